//! Checkpoints to resume from: `step-N/` with the model, the optimizer's moments, and the run's settings.
//!
//! They are Burn's own records, which keep the identity of parameters that the moments refer to. A folder is written
//! under another name and renamed when complete, so a checkpoint that exists is whole.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use serde::{Deserialize, Serialize};

use crate::{Optimizer, TrainConfig, TrainError};

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";
const PREFIX: &str = "step-";

#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
    config: TrainConfig,
}

/// The newest checkpoint in `directory`, if there is one.
///
/// # Errors
/// [`TrainError::Io`] if the directory exists but cannot be read.
pub fn latest_checkpoint(directory: &Path) -> Result<Option<PathBuf>, TrainError> {
    Ok(checkpoints(directory)?.pop().map(|(_, path)| path))
}

/// All checkpoints in `directory`, oldest first.
fn checkpoints(directory: &Path) -> Result<Vec<(usize, PathBuf)>, TrainError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(|e| TrainError::io("read", directory, e))? {
        let path = entry.map_err(|e| TrainError::io("read", directory, e))?.path();
        let step = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub(crate) fn save<M: Module>(
    directory: &Path,
    keep: usize,
    step: usize,
    config: &TrainConfig,
    model: &M,
    optimizer: &Optimizer,
) -> Result<(), TrainError> {
    let temporary = directory.join(format!("writing-{step}"));
    let result = write(&temporary, step, config, model, optimizer);
    if let Err(error) = result {
        // Best effort: the error that matters is the one reported.
        let _ = fs::remove_dir_all(&temporary);
        return Err(error);
    }
    let path = directory.join(format!("{PREFIX}{step:08}"));
    if path.exists() {
        fs::remove_dir_all(&path).map_err(|e| TrainError::io("replace", &path, e))?;
    }
    fs::rename(&temporary, &path).map_err(|e| TrainError::io("write", &path, e))?;
    let old = checkpoints(directory)?;
    for (_, path) in old.iter().take(old.len().saturating_sub(keep.max(1))) {
        fs::remove_dir_all(path).map_err(|e| TrainError::io("remove", path, e))?;
    }
    Ok(())
}

fn write<M: Module>(
    path: &Path,
    step: usize,
    config: &TrainConfig,
    model: &M,
    optimizer: &Optimizer,
) -> Result<(), TrainError> {
    fs::create_dir_all(path).map_err(|e| TrainError::io("make directory", path, e))?;
    let model_path = path.join(MODEL);
    model.clone().save_file(&model_path).map_err(|error| TrainError::checkpoint(&model_path, error))?;
    optimizer.save(&path.join(OPTIMIZER))?;
    let state_path = path.join(STATE);
    let state = serde_json::to_vec_pretty(&State { step, config: config.clone() })
        .map_err(|error| TrainError::checkpoint(&state_path, error))?;
    fs::write(&state_path, state).map_err(|e| TrainError::io("write", &state_path, e))
}

pub(crate) fn load<M: Module>(
    path: &Path,
    config: &TrainConfig,
    model: M,
    optimizer: Optimizer,
) -> Result<(usize, M, Optimizer), TrainError> {
    let state_path = path.join(STATE);
    let text = fs::read_to_string(&state_path).map_err(|e| TrainError::io("read", &state_path, e))?;
    let state: State = serde_json::from_str(&text).map_err(|error| TrainError::checkpoint(&state_path, error))?;
    if state.config != *config {
        return Err(TrainError::checkpoint(&state_path, "it was written by a run with other settings"));
    }
    let model_path = path.join(MODEL);
    let model = model.try_load_file(&model_path).map_err(|error| TrainError::checkpoint(&model_path, error))?;
    Ok((state.step, model, optimizer.load(&path.join(OPTIMIZER))?))
}
