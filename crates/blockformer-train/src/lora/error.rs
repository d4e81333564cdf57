//! What can go wrong with adapters.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why adapters could not be attached, read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoraError {
    /// A setting outside its range.
    #[error("LoRA {field} is {value}, expected {expected}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it may be, in words.
        expected: &'static str,
    },
    /// A target that is not a regular expression.
    #[error("LoRA target {pattern:?} is not a regular expression: {reason}")]
    Pattern {
        /// The target.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Targets that name nothing.
    #[error("LoRA targets {targets:?} name no linear map of the model; {example} would be one")]
    NoTarget {
        /// The targets.
        targets: Vec<String>,
        /// The first linear map there is.
        example: String,
    },
    /// A model that has adapters.
    #[error("the model has adapters already ({name}): merge them first")]
    Attached {
        /// One of their parameters.
        name: String,
    },
    /// A model that has none.
    #[error("the model has no adapters to save")]
    None,
    /// The file system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Adapters that could not be written; what stood there before is unchanged.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file that does not hold adapters.
    #[error("{} holds no adapters: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Adapters of another model.
    #[error("{} does not belong to the model: {name} {problem}", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// A tensor.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}
