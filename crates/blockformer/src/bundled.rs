//! The bundled model: a small Block Transformer trained by this library, with its tokenizer.
//!
//! It is part of the program, so it works offline. `model/README.md` beside this crate's sources says what it is, what
//! it was trained on, and with which command.

use blockformer_data::{DataError, Tokenizer};
use blockformer_model::{AnyModel, CheckpointError, ModelConfig};
use burn::tensor::Device;
use thiserror::Error;

const CONFIG: &str = include_str!("../model/config.json");
const WEIGHTS: &[u8] = include_bytes!("../model/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../model/tokenizer.json");

/// Why the bundled model could not be opened; only if the build is damaged.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BundledError {
    /// Its configuration or weights.
    #[error("the bundled model is damaged: {0}")]
    Model(#[from] CheckpointError),
    /// Its tokenizer.
    #[error("the bundled tokenizer is damaged: {0}")]
    Tokenizer(#[from] DataError),
}

/// Opens the bundled model on `device`.
///
/// # Errors
/// A [`BundledError`] if the build is damaged.
pub fn load(device: &Device) -> Result<(ModelConfig, AnyModel, Tokenizer), BundledError> {
    let (config, model) = AnyModel::from_bytes(CONFIG, WEIGHTS, device)?;
    Ok((config, model, Tokenizer::from_bytes(TOKENIZER)?))
}
