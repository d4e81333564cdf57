//! Whether a tokenizer and a model belong together.

use std::path::Path;

use blockformer::data::{EOS_TOKENS, Tokenizer};
use blockformer::model::ModelConfig;

use crate::error::CliError;

/// Checks that the model knows every id the tokenizer gives, that the token the model ends text with does so in the
/// tokenizer (which may have several, for turns of a chat), and that the model's vocabulary is not much larger than
/// the tokenizer's (some padding to a round number is common).
pub(crate) fn check(path: &Path, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<(), CliError> {
    let (known, model) = (tokenizer.max_token_id().map_or(0, |id| id as usize + 1), config.vocab_size());
    if known > model || model > known + known / 4 + 128 {
        return Err(CliError::Vocabulary { path: path.into(), tokenizer: known, model });
    }
    let ends_text = |id| tokenizer.id_to_token(id).is_some_and(|token| EOS_TOKENS.contains(&token.as_str()));
    match (tokenizer.eos_token_id(), config.eos_token_id()) {
        (Some(tokenizer), Some(model)) if tokenizer != model && !ends_text(model) => {
            Err(CliError::EndOfText { path: path.into(), tokenizer, model })
        }
        _ => Ok(()),
    }
}
