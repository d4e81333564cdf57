//! What can go wrong.

use blockformer_data::DataError;
use blockformer_generate::GenerateError;
use blockformer_model::CheckpointError;
use thiserror::Error;

/// Why a model could not be opened, or a prompt not continued.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The model's configuration or weights.
    #[error(transparent)]
    Model(#[from] CheckpointError),
    /// The tokenizer, or text that it cannot take.
    #[error(transparent)]
    Tokenizer(#[from] DataError),
    /// The model could not be packed for the CPU.
    #[cfg(feature = "flex")]
    #[error(transparent)]
    Pack(#[from] blockformer_cpu::PackError),
    /// The tokenizer knows tokens that the model does not.
    #[error(
        "the tokenizer has {tokenizer} tokens, but the model's vocabulary has {model}: they do not belong together"
    )]
    Vocabulary {
        /// Ids that the tokenizer knows.
        tokenizer: usize,
        /// Ids that the model knows.
        model: usize,
    },
    /// Options that are not options.
    #[error("the options cannot be read: {0}")]
    Options(#[from] serde_json::Error),
    /// A prompt without a token, for a model that cannot begin a text.
    #[error("the prompt is empty: this model needs a word to go on from")]
    EmptyPrompt,
    /// A prompt that leaves no room for the tokens that are asked for.
    #[error(
        "the prompt has {tokens} tokens; in blocks of {block_length}, with {new_tokens} more they do not fit into the \
         context of {max_length}: shorten the prompt or ask for fewer"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens asked for.
        new_tokens: usize,
        /// Tokens a block.
        block_length: usize,
        /// The context in tokens.
        max_length: usize,
    },
    /// A second prompt before the first has ended.
    #[error("a text is being generated: stop it first")]
    Busy,
    /// Any other reason why nothing is generated.
    #[error(transparent)]
    Generate(GenerateError),
}

impl From<GenerateError> for SessionError {
    fn from(error: GenerateError) -> Self {
        use blockformer_model::PromptError;
        match error {
            GenerateError::Prompt(PromptError::Empty { .. }) => Self::EmptyPrompt,
            GenerateError::Prompt(PromptError::TooLong { tokens, new_tokens, max_length, block_length, .. }) => {
                Self::TooLong { tokens, new_tokens, block_length, max_length }
            }
            error => Self::Generate(error),
        }
    }
}
