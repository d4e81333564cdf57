//! What can go wrong in an evaluation.

use std::io;
use std::path::{Path, PathBuf};

use blockformer_data::DataError;
use thiserror::Error;

/// Why an evaluation could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvalError {
    /// Text could not be read or tokenized.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of a task's file is not what the task has.
    #[error("{} line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from one.
        line: usize,
        /// What was expected.
        reason: String,
    },
    /// There are not as many labels as questions.
    #[error("{}: expected {expected} labels, one a question, got {got}", path.display())]
    Labels {
        /// The file of labels.
        path: PathBuf,
        /// The number of questions.
        expected: usize,
        /// The number of labels.
        got: usize,
    },
    /// A file without a question, or a text without a token.
    #[error("{what} is empty: there is nothing to evaluate")]
    Empty {
        /// Which.
        what: String,
    },
    /// A request without a context.
    #[error("request {index} has no context: give at least one token, such as the end of text")]
    NoContext {
        /// Which request, from 0.
        index: usize,
    },
    /// A continuation that leaves no room for a context.
    #[error(
        "request {index}: a continuation of {tokens} tokens does not fit behind a block of context \
         (context {max_length}, blocks of {block_length})"
    )]
    TooLong {
        /// Which request, from 0.
        index: usize,
        /// Tokens of the continuation.
        tokens: usize,
        /// The model's context.
        max_length: usize,
        /// Tokens a block.
        block_length: usize,
    },
    /// A token id that is not in the vocabulary.
    #[error("request {index} holds token id {id}, the vocabulary has {vocab_size}")]
    OutOfVocabulary {
        /// Which request, from 0.
        index: usize,
        /// The id.
        id: u32,
        /// Number of token ids.
        vocab_size: usize,
    },
    /// A stride that is not possible.
    #[error("stride is {got}, expected a multiple of {block_length} from {block_length} to {at_most}")]
    Stride {
        /// The stride.
        got: usize,
        /// Tokens a block.
        block_length: usize,
        /// The most that leaves a block of context.
        at_most: usize,
    },
    /// A picture that could not be drawn.
    #[error("cannot draw {}: {reason}", path.display())]
    Draw {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl EvalError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
