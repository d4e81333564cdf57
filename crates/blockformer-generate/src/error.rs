//! What can go wrong in generation.

use blockformer_model::PromptError;
use thiserror::Error;

/// Why nothing was generated.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A prompt cannot be served.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// No tokens were asked for.
    #[error("max_new_tokens is 0: ask for at least one")]
    NothingToGenerate,
    /// A sampling option outside its range.
    #[error("{option} is {value}, expected {expected}")]
    Sampling {
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What it may be, in words.
        expected: &'static str,
    },
    /// The model's logits are not numbers.
    #[error("the model gave logits that are not numbers: its weights are damaged, or it diverged in training")]
    NotANumber,
    /// A token id that is not in the vocabulary, in an option.
    #[error("{option} names token {id}, the vocabulary has {vocab_size}")]
    OutOfVocabulary {
        /// The option.
        option: &'static str,
        /// The id.
        id: u32,
        /// Number of token ids.
        vocab_size: usize,
    },
    /// Options that contradict each other.
    #[error("{options}: {reason}")]
    Contradiction {
        /// The options.
        options: &'static str,
        /// Why they do not go together.
        reason: &'static str,
    },
    /// Every token was forbidden.
    #[error("no token may come next: logit_bias and the hook forbid them all")]
    NothingAllowed,
}
