//! The model to serve.

use std::path::{Path, PathBuf};

use blockformer::bundled::BundledError;
use blockformer::data::{DataError, Tokenizer};
use blockformer::model::{AnyModel, CheckpointError, ModelConfig, TOKENIZER_FILE};
use burn::tensor::Device;
use thiserror::Error;

#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Bundled(#[from] BundledError),
    #[error(transparent)]
    Model(#[from] CheckpointError),
    #[error(transparent)]
    Tokenizer(#[from] DataError),
    #[error("{} has token {id}, but the model's vocabulary has {vocab_size}: they do not belong together", path.display())]
    Vocabulary { path: PathBuf, id: u32, vocab_size: usize },
}

/// The model of a directory, or the bundled one.
pub(crate) fn open(directory: Option<&Path>, device: &Device) -> Result<(ModelConfig, AnyModel, Tokenizer), OpenError> {
    let Some(directory) = directory else { return Ok(blockformer::bundled::load(device)?) };
    let (config, model) = AnyModel::load(directory, device)?;
    let path = directory.join(TOKENIZER_FILE);
    let tokenizer = Tokenizer::from_file(&path)?;
    let vocab_size = config.vocab_size();
    match tokenizer.max_token_id().filter(|id| *id as usize >= vocab_size) {
        Some(id) => Err(OpenError::Vocabulary { path, id, vocab_size }),
        None => Ok((config, model, tokenizer)),
    }
}
