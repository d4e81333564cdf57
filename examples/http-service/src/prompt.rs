//! The forms a prompt can have.

use blockformer::data::Tokenizer;
use serde::Deserialize;

use crate::error::ApiError;

/// One or several prompts, as text or as token ids.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of arrays of token ids"
)]
pub(crate) enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// A prompt as the engine takes it and as it is echoed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenizedPrompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
}

impl Prompt {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::TokenLists(lists) => lists.len(),
        }
    }

    /// All of them as text and as token ids.
    ///
    /// # Errors
    /// 400 if the tokenizer has no token for a character.
    pub(crate) fn tokenize(self, tokenizer: &Tokenizer) -> Result<Vec<TokenizedPrompt>, ApiError> {
        let from_text = |text: String| {
            let ids = tokenizer.encode(&text).map_err(|error| ApiError::text(&error))?;
            Ok(TokenizedPrompt { ids, text })
        };
        let from_ids = |ids: Vec<u32>| {
            let text = tokenizer.decode(&ids).map_err(|error| ApiError::text(&error))?;
            Ok(TokenizedPrompt { ids, text })
        };
        match self {
            Self::Text(text) => Ok(vec![from_text(text)?]),
            Self::Texts(texts) => texts.into_iter().map(from_text).collect(),
            Self::Tokens(ids) => Ok(vec![from_ids(ids)?]),
            Self::TokenLists(lists) => lists.into_iter().map(from_ids).collect(),
        }
    }
}
