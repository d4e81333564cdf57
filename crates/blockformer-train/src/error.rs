//! What can go wrong in training.

use std::io;
use std::path::{Path, PathBuf};

use blockformer_data::DataError;
use blockformer_model::CheckpointError;
use thiserror::Error;

/// Why training could not start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The data does not serve.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model could not be read or written.
    #[error(transparent)]
    Model(#[from] CheckpointError),
    /// A setting outside its range.
    #[error("{field} is {value}, expected {expected}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it may be, in words.
        expected: &'static str,
    },
    /// A group of parameters that cannot be formed.
    #[error("parameter group {group:?}: {reason}")]
    ParameterGroup {
        /// How it was named.
        group: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Data packed for another kind of model.
    #[error("the data has blocks of {data} tokens, the model of {model}")]
    BlockLength {
        /// Tokens a block of the data.
        data: usize,
        /// Tokens a block of the model.
        model: usize,
    },
    /// A token of the data that the model does not know.
    #[error("the data holds token id {id}, the model's vocabulary has {vocab_size}")]
    OutOfVocabulary {
        /// The id.
        id: u32,
        /// Number of token ids of the model.
        vocab_size: usize,
    },
    /// The loss is no longer a number.
    #[error(
        "training diverged at step {step}: the loss is {loss}, the gradients' norm {gradient_norm} (a lower learning rate \
         or more warmup helps)"
    )]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f64,
        /// The norm of the gradients.
        gradient_norm: f64,
    },
    /// Devices that no longer answer: workers that are gone, say. The run must go on from a checkpoint.
    #[error("devices {devices:?} failed (counted from 0): {reason}")]
    Device {
        /// Which. 0 holds the model and the optimizer.
        devices: Vec<usize>,
        /// What Burn said.
        reason: String,
    },
    /// Work that panicked on a device that still answers: a card without room for the batch, or a fault of the program. The
    /// run must go on from a checkpoint.
    #[error("the work on device {device} (counted from 0) failed, though the device answers: {reason}")]
    Work {
        /// Which. 0 holds the model and the optimizer.
        device: usize,
        /// What the panic said.
        reason: String,
    },
    /// Samples longer than the model's context.
    #[error("samples of {sample} tokens do not fit the model's context of {context}")]
    SampleLength {
        /// Tokens a sample.
        sample: usize,
        /// Tokens the model can take.
        context: usize,
    },
    /// A checkpoint that cannot be resumed from.
    #[error("checkpoint {} cannot be resumed: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint's folder or file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint that could not be written; those before are still there.
    #[error("checkpoint {} cannot be written: {reason}", path.display())]
    WriteCheckpoint {
        /// The checkpoint's file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The loss curve could not be drawn.
    #[error("cannot draw {}: {reason}", path.display())]
    Curve {
        /// The picture.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl TrainError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    pub(crate) fn write_checkpoint(path: &Path, reason: impl ToString) -> Self {
        Self::WriteCheckpoint { path: path.into(), reason: reason.to_string() }
    }

    pub(crate) fn checkpoint(path: &Path, reason: impl ToString) -> Self {
        Self::Checkpoint { path: path.into(), reason: reason.to_string() }
    }
}
