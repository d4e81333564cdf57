//! What can go wrong in generation.

use blockformer_data::DataError;
use blockformer_kv_cache::CacheError;
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
    /// A request that the pool could not hold even if it were alone.
    #[error("the request needs {needed} bytes of keys and values, the budget is {budget}")]
    Budget {
        /// Bytes of the pages it would take.
        needed: usize,
        /// Bytes of all pages.
        budget: usize,
    },
    /// More sequences than the engine decodes at a time.
    #[error("the request asks for {width} sequences at a time, the engine decodes {max_batch}")]
    TooWide {
        /// Samples or beams.
        width: usize,
        /// The engine's limit.
        max_batch: usize,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests are waiting already: try again later")]
    Busy {
        /// Requests that wait.
        waiting: usize,
    },
    /// The cache refused.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Tokens that the tokenizer cannot make text of.
    #[error("tokens could not be made text: {reason}")]
    Text {
        /// Why.
        reason: String,
    },
    /// The device lost the cache when it failed to record work that it was to repeat; nothing is recorded any more.
    #[error("the device failed to record what was to be repeated, and keys and values are lost: try again ({reason})")]
    CacheLost {
        /// What the device says.
        reason: String,
    },
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

impl From<DataError> for GenerateError {
    fn from(error: DataError) -> Self {
        Self::Text { reason: error.to_string() }
    }
}
