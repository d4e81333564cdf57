//! A model with its tokenizer.

use std::path::{Path, PathBuf};

use blockformer_data::{DataError, EOS_TOKENS, Tokenizer};
use blockformer_model::{AnyModel, CheckpointError, ModelConfig, TOKENIZER_FILE};
use burn::tensor::Device;
use thiserror::Error;

use crate::bundled::{self, BundledError};

/// Why a model with its tokenizer could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The bundled model.
    #[error(transparent)]
    Bundled(#[from] BundledError),
    /// The model's configuration or weights.
    #[error(transparent)]
    Model(#[from] CheckpointError),
    /// The tokenizer's file.
    #[error(transparent)]
    Tokenizer(#[from] DataError),
    /// The tokenizer's size does not suit the model's vocabulary.
    #[error(
        "{} has {tokenizer} tokens, but the model's vocabulary has {model}: they do not belong together",
        path.display()
    )]
    Vocabulary {
        /// The tokenizer's file.
        path: PathBuf,
        /// Ids that the tokenizer knows.
        tokenizer: usize,
        /// Ids that the model knows.
        model: usize,
    },
    /// Tokenizer and model end text with different tokens.
    #[error(
        "{} ends text with token {tokenizer}, but the model with {model}: they do not belong together",
        path.display()
    )]
    EndOfText {
        /// The tokenizer's file.
        path: PathBuf,
        /// The token that ends text in the tokenizer.
        tokenizer: u32,
        /// The token that ends text in the model.
        model: u32,
    },
}

/// Opens the model of a directory and the `tokenizer.json` beside it, or the bundled ones. A directory's weights are read when
/// they are first used ([`AnyModel::load_deferred`], which says what that asks of the files): what packs them never holds the whole
/// model.
///
/// # Errors
/// An [`OpenError`] if a file is missing or damaged, or if model and tokenizer [do not belong
/// together](check_tokenizer).
///
/// # Panics
/// Not here, but where a weight is first used, if it can then not be read.
pub fn open(directory: Option<&Path>, device: &Device) -> Result<(ModelConfig, AnyModel, Tokenizer), OpenError> {
    let Some(directory) = directory else { return Ok(bundled::load(device)?) };
    let (config, model) = AnyModel::load_deferred(directory, device)?;
    let path = directory.join(TOKENIZER_FILE);
    let tokenizer = Tokenizer::from_file(&path)?;
    check_tokenizer(&path, &tokenizer, &config)?;
    Ok((config, model, tokenizer))
}

/// Checks that a tokenizer, which was read from `path`, belongs to a model: that the model knows every id the tokenizer
/// gives, that the token the model ends text with does so in the tokenizer (which may have several, for turns of a
/// chat), and that the model's vocabulary is not much larger than the tokenizer's (some padding to a round number is
/// common).
///
/// # Errors
/// [`OpenError::Vocabulary`] or [`OpenError::EndOfText`].
pub fn check_tokenizer(path: &Path, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<(), OpenError> {
    let (known, model) = (tokenizer.max_token_id().map_or(0, |id| id as usize + 1), config.vocab_size());
    if known > model || model > known + known / 4 + 128 {
        return Err(OpenError::Vocabulary { path: path.into(), tokenizer: known, model });
    }
    let ends_text = |id| tokenizer.id_to_token(id).is_some_and(|token| EOS_TOKENS.contains(&token.as_str()));
    match (tokenizer.eos_token_id(), config.eos_token_id()) {
        (Some(tokenizer), Some(model)) if tokenizer != model && !ends_text(model) => {
            Err(OpenError::EndOfText { path: path.into(), tokenizer, model })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use blockformer_data::character_level;

    use super::*;

    #[test]
    fn the_bundled_tokenizer_belongs_to_the_bundled_model_and_another_does_not() {
        let (config, _, tokenizer) = open(None, &Device::flex()).unwrap();
        let path = Path::new("some/tokenizer.json");
        check_tokenizer(path, &tokenizer, &config).unwrap();
        let error = check_tokenizer(path, &character_level("abc").unwrap(), &config).unwrap_err();
        let expected =
            "some/tokenizer.json has 4 tokens, but the model's vocabulary has 4096: they do not belong together";
        assert_eq!(error.to_string(), expected);
    }
}
