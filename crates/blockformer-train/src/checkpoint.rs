//! Checkpoints to resume from: `step-N/` with the model, the optimizer's moments, and the run's settings.
//!
//! They are Burn's own records, which keep the identity of parameters that the moments refer to. A folder is written
//! under another name and renamed when complete, so a checkpoint that exists is whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use serde::{Deserialize, Serialize};

use crate::{Optimizer, TrainConfig, TrainError};

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";
const PREFIX: &str = "step-";
const WRITING: &str = "writing-";

/// What a run and the checkpoint it goes on from must have in common, by name.
pub(crate) type Identity = BTreeMap<String, String>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) step: usize,
    pub(crate) config: TrainConfig,
    pub(crate) identity: Identity,
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
    state: &State,
    model: &M,
    optimizer: &Optimizer,
) -> Result<(), TrainError> {
    let temporary = directory.join(format!("{WRITING}{}", state.step));
    // What a killed run left behind.
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(|e| TrainError::io("replace", &temporary, e))?;
    }
    if let Err(error) = write(&temporary, state, model, optimizer) {
        // Best effort: the error that matters is the one reported.
        let _ = fs::remove_dir_all(&temporary);
        return Err(error);
    }
    let path = directory.join(format!("{PREFIX}{:08}", state.step));
    if path.exists() {
        fs::remove_dir_all(&path).map_err(|e| TrainError::io("replace", &path, e))?;
    }
    fs::rename(&temporary, &path).map_err(|e| TrainError::io("write", &path, e))?;
    // The new one must be on the disk before an old one goes.
    sync(directory)?;
    let old = checkpoints(directory)?;
    for (_, path) in old.iter().take(old.len().saturating_sub(keep.max(1))) {
        fs::remove_dir_all(path).map_err(|e| TrainError::io("remove", path, e))?;
    }
    Ok(())
}

fn write<M: Module>(path: &Path, state: &State, model: &M, optimizer: &Optimizer) -> Result<(), TrainError> {
    fs::create_dir_all(path).map_err(|e| TrainError::io("make directory", path, e))?;
    let model_path = path.join(MODEL);
    model.clone().save_file(&model_path).map_err(|error| TrainError::write_checkpoint(&model_path, error))?;
    optimizer.save(&path.join(OPTIMIZER))?;
    let state_path = path.join(STATE);
    let json = serde_json::to_vec_pretty(state).map_err(|error| TrainError::write_checkpoint(&state_path, error))?;
    fs::write(&state_path, json).map_err(|e| TrainError::io("write", &state_path, e))?;
    [MODEL, OPTIMIZER, STATE].iter().try_for_each(|name| sync(&path.join(name)))?;
    sync(path)
}

/// Waits until a file or folder is on the disk. Folders cannot be opened for this everywhere, and then need it not.
fn sync(path: &Path) -> Result<(), TrainError> {
    if path.is_dir() && cfg!(not(unix)) {
        return Ok(());
    }
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|e| TrainError::io("sync", path, e))
}

pub(crate) fn read_state(path: &Path) -> Result<State, TrainError> {
    let state_path = path.join(STATE);
    let text = fs::read_to_string(&state_path).map_err(|e| TrainError::io("read", &state_path, e))?;
    serde_json::from_str(&text).map_err(|error| TrainError::checkpoint(&state_path, error))
}

/// Checks that a run may go on from `state`.
pub(crate) fn check_state(
    path: &Path,
    state: &State,
    config: &TrainConfig,
    identity: &Identity,
) -> Result<(), TrainError> {
    let other = |what: &str| Err(TrainError::checkpoint(path, format!("it was written by a run with {what}")));
    if state.config != *config {
        return other("other settings");
    }
    let names = state.identity.keys().chain(identity.keys());
    match names.into_iter().find(|name| state.identity.get(*name) != identity.get(*name)) {
        Some(name) => other(&format!("another {name}")),
        None => Ok(()),
    }
}

pub(crate) fn load<M: Module>(path: &Path, model: M, optimizer: Optimizer) -> Result<(M, Optimizer), TrainError> {
    let model_path = path.join(MODEL);
    let model = model.try_load_file(&model_path).map_err(|error| TrainError::checkpoint(&model_path, error))?;
    Ok((model, optimizer.load(&path.join(OPTIMIZER))?))
}
