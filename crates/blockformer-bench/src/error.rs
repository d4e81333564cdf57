//! What can go wrong in measuring.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use blockformer_generate::GenerateError;
use blockformer_model::PromptError;
use blockformer_model::panic_message;
use thiserror::Error;

/// Why nothing was measured or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The workload does not fit the model.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The model gave senseless logits.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A number that makes no sense.
    #[error("{what} is {value}, expected {expected}")]
    Range {
        /// What it is of.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What it may be, in words.
        expected: &'static str,
    },
    /// Not even one sequence fits the memory budget.
    #[error("one sequence takes {needed} bytes, which is more than the budget of {budget}")]
    Budget {
        /// Bytes that one sequence takes.
        needed: usize,
        /// Bytes there are.
        budget: usize,
    },
    /// The system does not tell how much memory is used.
    #[error(
        "this system does not tell how much memory a process uses, so no batch size can be searched for: give some"
    )]
    NoMemory,
    /// The device failed.
    #[error("the device failed: {reason}")]
    Device {
        /// What it said, in one line.
        reason: String,
    },
    /// A report that cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Runs work on a device. Burn reports a failure, of an allocation say, by a panic.
///
/// # Errors
/// [`BenchError::Device`] if it panics.
pub fn guarded<R>(work: impl FnOnce() -> R) -> Result<R, BenchError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| BenchError::Device { reason: panic_message(panic.as_ref()) })
}
