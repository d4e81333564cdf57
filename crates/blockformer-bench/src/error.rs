//! What can go wrong in measuring.

use std::path::PathBuf;

use blockformer_generate::GenerateError;
use blockformer_model::PromptError;
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
    /// A report that cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}
