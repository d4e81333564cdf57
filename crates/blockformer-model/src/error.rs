//! What can go wrong with checkpoints and prompts.

use std::io;
use std::path::{Path, PathBuf};

use blockformer_nn::ConfigError;
use thiserror::Error;

/// Why a model directory or checkpoint could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
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
    /// A file that is not the JSON it should be.
    #[error("{} is not a valid configuration: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A file that is not the YAML it should be.
    #[error("{} is not a valid trainer file: {source}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_norway::Error,
    },
    /// A directory in which none of the known layouts is found.
    #[error("{} holds no model: expected {expected}", path.display())]
    NoModel {
        /// The directory.
        path: PathBuf,
        /// The files that were looked for.
        expected: &'static str,
    },
    /// Sizes that do not fit together.
    #[error("{}: {source}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What does not fit.
        source: ConfigError,
    },
    /// A setting that this library does not have.
    #[error("{}: {field} is {value:?}, supported: {supported}", path.display())]
    Unsupported {
        /// The configuration file.
        path: PathBuf,
        /// The setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// The values that would do.
        supported: &'static str,
    },
    /// A file that is not valid safetensors, or cut short.
    #[error("{} is not a valid safetensors file: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Weights that could not be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A tensor of a type that weights do not have.
    #[error("{}: tensor {name} is of type {dtype}, expected float32, float16 or bfloat16", path.display())]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A tensor whose shape is not that of the model's parameter.
    #[error("{}: tensor {name} has shape {got:?}, the configuration needs {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// Parameters that the file does not hold.
    #[error("{}: tensor {} is missing{}", path.display(), names[0], more(names))]
    Missing {
        /// The file.
        path: PathBuf,
        /// The parameters' names.
        names: Vec<String>,
    },
    /// Tensors that the model has no parameter for.
    #[error("{}: tensor {} is unknown to the model{}", path.display(), names[0], more(names))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The tensors' names.
        names: Vec<String>,
    },
}

fn more(names: &[String]) -> String {
    if names.len() > 1 { format!(" (and {} more)", names.len() - 1) } else { String::new() }
}

impl CheckpointError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}

/// Why a prompt was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PromptError {
    /// No prompts at all.
    #[error("there is no prompt")]
    None,
    /// A prompt without a token.
    #[error("prompt {index} is empty: give at least one token")]
    Empty {
        /// Which prompt, from 0.
        index: usize,
    },
    /// A prompt that leaves no room for what is asked.
    #[error(
        "prompt {index} of {tokens} tokens with {new_tokens} new ones does not fit the context of {max_length} tokens \
         (blocks of {block_length})"
    )]
    TooLong {
        /// Which prompt, from 0.
        index: usize,
        /// Its tokens.
        tokens: usize,
        /// Tokens to be generated.
        new_tokens: usize,
        /// The model's context.
        max_length: usize,
        /// Tokens a block.
        block_length: usize,
    },
    /// A token id that is not in the vocabulary.
    #[error("prompt {index} holds token id {id}, the vocabulary has {vocab_size}")]
    OutOfVocabulary {
        /// Which prompt, from 0.
        index: usize,
        /// The id.
        id: u32,
        /// Number of token ids.
        vocab_size: usize,
    },
}
