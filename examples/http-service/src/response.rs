//! What a client gets.

use blockformer::generate::{FinishReason, Usage};
use serde::Serialize;

use crate::choice::Delta;
use crate::logprobs::Logprobs;
use crate::service::{Service, now};

/// What all parts of an answer begin with.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Head {
    pub(crate) fn new(service: &Service) -> Self {
        let model = service.config.model_name.clone();
        Self { id: service.answer_id(), object: "text_completion", created: now(), model }
    }
}

/// An answer, or a part of one that is streamed.
#[derive(Debug, Serialize)]
pub(crate) struct Body<'a> {
    #[serde(flatten)]
    pub(crate) head: &'a Head,
    pub(crate) choices: Vec<ChoiceBody>,
    /// Streams have it if they were asked to: null until the last part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<UsageBody>>,
}

/// A choice, or what is added to it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChoiceBody {
    text: String,
    index: usize,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

impl ChoiceBody {
    pub(crate) fn add(&mut self, delta: Delta) {
        self.index = delta.index;
        self.text.push_str(&delta.text);
        if let Some(logprobs) = delta.logprobs {
            self.logprobs.get_or_insert_default().extend(logprobs);
        }
        self.finish_reason = delta.finish.map(finish_reason);
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finish_reason.is_some()
    }
}

impl From<Delta> for ChoiceBody {
    fn from(delta: Delta) -> Self {
        let mut body = Self::default();
        body.add(delta);
        body
    }
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}

/// Tokens counted.
#[derive(Debug, Serialize)]
pub(crate) struct UsageBody {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokens,
}

#[derive(Debug, Serialize)]
struct PromptTokens {
    cached_tokens: usize,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.generated_tokens,
            total_tokens: usage.prompt_tokens + usage.generated_tokens,
            prompt_tokens_details: PromptTokens { cached_tokens: usage.reused_tokens },
        }
    }
}

/// JSON of what cannot fail to be JSON.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    match serde_json::to_string(value) {
        Ok(json) => json,
        Err(error) => unreachable!("strings, numbers and objects with string keys: {error}"),
    }
}
