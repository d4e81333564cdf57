//! Whether a tokenizer and a model belong together.

use std::path::Path;

use blockformer::data::Tokenizer;
use blockformer::model::ModelConfig;

use crate::error::CliError;

/// Checks that the model knows every id the tokenizer gives, that both end text with the same token, and that the
/// model's vocabulary is not much larger than the tokenizer's (some padding to a round number is common).
pub(crate) fn check(path: &Path, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<(), CliError> {
    let (known, model) = (tokenizer.max_token_id().map_or(0, |id| id as usize + 1), config.vocab_size());
    if known > model || model > known + known / 4 + 128 {
        return Err(CliError::Vocabulary { path: path.into(), tokenizer: known, model });
    }
    match (tokenizer.eos_token_id(), config.eos_token_id()) {
        (Some(tokenizer), Some(model)) if tokenizer != model => {
            Err(CliError::EndOfText { path: path.into(), tokenizer, model })
        }
        _ => Ok(()),
    }
}
