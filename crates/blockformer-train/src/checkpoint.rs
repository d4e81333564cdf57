//! Checkpoints to resume from: `step-N/` with the model, the optimizer's moments, the run's settings and position, and
//! a manifest of checksums.
//!
//! Model and moments are Burn's own records, which keep the identity of parameters that the moments refer to. A folder
//! is written under another name, brought to the disk and renamed when complete. What the disk then does to it is found
//! by the checksums, and the checkpoint before is used.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::{LossScale, Optimizer, TrainConfig, TrainError};

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";
const FILES: [&str; 3] = [MODEL, OPTIMIZER, STATE];
const PREFIX: &str = "step-";
const WRITING: &str = "writing-";

/// What a run and the checkpoint it goes on from must have in common, by name.
pub(crate) type Identity = BTreeMap<String, String>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) step: usize,
    pub(crate) loss_scale: LossScale,
    pub(crate) config: TrainConfig,
    pub(crate) identity: Identity,
}

/// The newest whole checkpoint of a directory, and newer ones that are damaged.
#[derive(Debug, Default)]
pub struct FoundCheckpoint {
    /// The newest that is whole, if there is one.
    pub path: Option<PathBuf>,
    /// Newer ones, newest first: what is wrong with each.
    pub damaged: Vec<TrainError>,
}

/// Finds the checkpoint in `directory` to go on from: the newest whose files are what was written.
///
/// # Errors
/// [`TrainError::Io`] if the directory exists but cannot be read.
pub fn latest_checkpoint(directory: &Path) -> Result<FoundCheckpoint, TrainError> {
    let mut found = FoundCheckpoint::default();
    for (_, path) in checkpoints(directory)?.into_iter().rev() {
        match Manifest::check(&path, &FILES) {
            Ok(()) => {
                found.path = Some(path);
                break;
            }
            Err(error) => found.damaged.push(error),
        }
    }
    Ok(found)
}

/// All checkpoints in `directory`, oldest first.
fn checkpoints(directory: &Path) -> Result<Vec<(usize, PathBuf)>, TrainError> {
    numbered(directory, PREFIX)
}

/// The entries of `directory` named `prefix` and a number, by number.
fn numbered(directory: &Path, prefix: &str) -> Result<Vec<(usize, PathBuf)>, TrainError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(|e| TrainError::io("read", directory, e))? {
        let path = entry.map_err(|e| TrainError::io("read", directory, e))?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(prefix));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, path));
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
    // What a killed run left behind.
    for (_, path) in numbered(directory, WRITING)? {
        fs::remove_dir_all(&path).map_err(|e| TrainError::io("remove", &path, e))?;
    }
    let temporary = directory.join(format!("{WRITING}{}", state.step));
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
    // Later ones, of a run that went on from an earlier one, must not push it out.
    let old: Vec<_> = checkpoints(directory)?.into_iter().filter(|(step, _)| *step <= state.step).collect();
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
    Manifest::write(path, &FILES)?;
    FILES.iter().chain([&Manifest::file_name()]).try_for_each(|name| sync(&path.join(name)))?;
    sync(path)
}

/// Waits until a file or folder is on the disk. Folders cannot be opened for this everywhere, and then need it not.
fn sync(path: &Path) -> Result<(), TrainError> {
    if path.is_dir() && cfg!(not(unix)) {
        return Ok(());
    }
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|e| TrainError::io("sync", path, e))
}

/// Reads the state of a checkpoint whose files are what was written.
pub(crate) fn read_state(path: &Path) -> Result<State, TrainError> {
    Manifest::check(path, &FILES)?;
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
    let changed = changed_settings(&state.config, config);
    if !changed.is_empty() {
        return other(&format!("other settings ({})", changed.join(", ")));
    }
    let names = state.identity.keys().chain(identity.keys());
    match names.into_iter().find(|name| state.identity.get(*name) != identity.get(*name)) {
        Some(name) => other(&format!("another {name}")),
        None => Ok(()),
    }
}

/// The settings that differ, each with its old and its new value. Both sides have been through JSON, which may round
/// the last bit of a number.
fn changed_settings(old: &TrainConfig, new: &TrainConfig) -> Vec<String> {
    let fields = |config: &TrainConfig| -> BTreeMap<String, serde_json::Value> {
        let json = serde_json::to_string(config).unwrap_or_default();
        serde_json::from_str(&json).unwrap_or_default()
    };
    let written = serde_json::to_string(new).ok().and_then(|json| serde_json::from_str(&json).ok());
    if written.as_ref() == Some(old) {
        return Vec::new();
    }
    let (before, now) = (fields(old), fields(new));
    let differ = before.iter().filter(|(name, value)| now.get(*name) != Some(value));
    differ.map(|(name, value)| format!("{name} was {value}, now {}", now[name])).collect()
}

pub(crate) fn load<M: Module>(path: &Path, model: M, optimizer: Optimizer) -> Result<(M, Optimizer), TrainError> {
    let model_path = path.join(MODEL);
    let model = model.try_load_file(&model_path).map_err(|error| TrainError::checkpoint(&model_path, error))?;
    Ok((model, optimizer.load(&path.join(OPTIMIZER))?))
}
