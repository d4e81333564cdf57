//! The text of one choice as it comes.

use std::sync::Arc;

use blockformer::data::{DataError, Tokenizer};
use blockformer::generate::{FinishReason, TokenEvent};

use crate::logprobs::{Logprobs, LogprobsTrack};

/// What is added to a choice.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<Logprobs>,
    pub(crate) finish: Option<FinishReason>,
}

/// A choice that is being written.
#[derive(Debug)]
pub(crate) struct Choice {
    index: usize,
    logprobs: Option<LogprobsTrack>,
}

impl Choice {
    pub(crate) fn new(index: usize, tokenizer: &Arc<Tokenizer>, prompt: &str, logprobs: bool) -> Self {
        Self { index, logprobs: logprobs.then(|| LogprobsTrack::new(tokenizer, prompt)) }
    }

    /// What a token adds; nothing while its text is held back.
    pub(crate) fn token(&mut self, event: TokenEvent) -> Result<Option<Delta>, DataError> {
        let text = event.text.clone();
        let logprobs = match &mut self.logprobs {
            Some(track) => track.token(event)?,
            None => None,
        };
        let adds = !text.is_empty() || logprobs.is_some();
        Ok(adds.then_some(Delta { index: self.index, text, logprobs, finish: None }))
    }

    /// What the end adds.
    pub(crate) fn finish(&mut self, text: String, reason: FinishReason) -> Result<Delta, DataError> {
        let logprobs = match &mut self.logprobs {
            Some(track) => track.finish(&text)?,
            None => None,
        };
        Ok(Delta { index: self.index, text, logprobs, finish: Some(reason) })
    }
}
