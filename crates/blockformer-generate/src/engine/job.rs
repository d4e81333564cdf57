//! A request that is being served, and its sequences.

use std::sync::Arc;

use blockformer_kv_cache::SequenceId;
use blockformer_model::BlockLayout;

use super::RequestId;
use super::context::RowContext;
use crate::prompt::AlignedPrompt;
use crate::sampler::{Sampler, TokenLogprobs};
use crate::text::TextStream;
use crate::{Event, FinishReason, GenerateError, Request, TokenEvent, Usage};

/// A request, from submission to its last event.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Arc<Request>,
    pub(super) prompt: AlignedPrompt,
    pub(super) usage: Usage,
    /// Holds pages for the forks that will come.
    pub(super) reserve: Option<SequenceId>,
    /// Samples that ended.
    pub(super) finished: usize,
    /// Those that are ranked before they are given out.
    pub(super) ranked: Vec<Sample>,
}

impl Job {
    pub(super) fn new(request: Request, prompt: AlignedPrompt) -> Self {
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        Self { request: Arc::new(request), prompt, usage, reserve: None, finished: 0, ranked: Vec::new() }
    }

    /// The events of the best samples, best first.
    pub(super) fn best(&mut self) -> Vec<Event> {
        let mut samples = std::mem::take(&mut self.ranked);
        samples.sort_by(|a, b| b.score().total_cmp(&a.score()));
        samples.truncate(self.request.n);
        let events = |(index, sample): (usize, Sample)| {
            let Sample { events, reason, text, logprob, .. } = sample;
            let token = move |token| Event::Token(TokenEvent { sample: index, ..token });
            let end = Event::Finished { sample: index, reason, text, logprob: Some(logprob) };
            events.into_iter().map(token).chain(std::iter::once(end))
        };
        samples.into_iter().enumerate().flat_map(events).collect()
    }
}

/// A sample that has ended.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) index: usize,
    /// Its tokens, if they have not been given out yet.
    pub(super) events: Vec<TokenEvent>,
    pub(super) reason: FinishReason,
    pub(super) text: String,
    pub(super) logprob: f64,
    /// Tokens that the log probability counts.
    pub(super) counted: usize,
}

impl Sample {
    /// Log probability a token.
    fn score(&self) -> f64 {
        self.logprob / self.counted.max(1) as f64
    }
}

/// A prompt that is being taken in.
#[derive(Debug)]
pub(super) struct Prefill {
    pub(super) id: RequestId,
    pub(super) kv: SequenceId,
    /// What determines each unit.
    pub(super) contents: Vec<Vec<u32>>,
    /// Units taken in, reused ones included.
    pub(super) done: usize,
    pub(super) context: Option<RowContext>,
}

/// A sequence that is being decoded.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: RequestId,
    pub(super) sample: usize,
    pub(super) request: Arc<Request>,
    pub(super) kv: SequenceId,
    pub(super) context: RowContext,
    pub(super) sampler: Sampler,
    /// What determines the units behind its published pages, if they are to be published when they fill one.
    pub(super) unpublished: Option<Vec<Vec<u32>>>,
    /// Tokens of the block that is being decoded.
    pub(super) block: Vec<u32>,
    pub(super) text: Option<TextStream>,
    pub(super) generated: usize,
    /// Of these, tokens that the request's usage counts already.
    pub(super) reported: usize,
    pub(super) logprob: f64,
    pub(super) counted: usize,
    pub(super) finish: Option<FinishReason>,
    /// Tokens that have not been given out: all of them, where samples are ranked.
    pub(super) events: Vec<TokenEvent>,
    /// Text that came with the end.
    pub(super) tail: String,
}

impl Row {
    /// Whether its tokens can be drawn where the logits are: without a look at any of them, or at the tokens before.
    pub(super) fn draws_on_device(&self) -> bool {
        let request = &self.request;
        let all_may_come = request.sampling.typical_p.is_none_or(|p| p >= 1.0) && request.hook.is_none();
        all_may_come && request.sampling.keeps_logits() && request.logprobs.is_none() && !request.is_ranked()
    }

    /// The token at a place of its block; padding behind its end, which nobody reads.
    pub(super) fn token(&self, place: usize, layout: &BlockLayout) -> u32 {
        self.block.get(place).copied().unwrap_or(layout.pad_token_id)
    }

    /// Goes on by a token that was drawn on the device.
    pub(super) fn take_drawn(&mut self, token: u32) -> Result<(), GenerateError> {
        self.sampler.push(token);
        self.take(token, None)
    }

    /// Draws the next token from its logits.
    pub(super) fn advance(&mut self, logits: &[f32]) -> Result<(), GenerateError> {
        let token = self.sampler.sample(logits)?;
        let ranked = self.request.is_ranked();
        let logprobs = match (self.request.logprobs, ranked) {
            (Some(n), _) => Some(TokenLogprobs::new(logits, token, n)),
            (None, true) => Some(TokenLogprobs::new(logits, token, 0)),
            (None, false) => None,
        };
        if let Some(logprobs) = &logprobs {
            self.logprob += f64::from(logprobs.chosen);
            self.counted += 1;
        }
        self.take(token, logprobs)
    }

    fn take(&mut self, token: u32, logprobs: Option<TokenLogprobs>) -> Result<(), GenerateError> {
        if self.request.stop_tokens.contains(&token) {
            return self.end(FinishReason::Stop);
        }
        self.block.push(token);
        self.generated += 1;
        let (text, stopped) = match &mut self.text {
            Some(text) => {
                let piece = text.push(token)?;
                (piece.text, piece.stopped)
            }
            None => (String::new(), false),
        };
        let logprobs = logprobs.filter(|_| self.request.logprobs.is_some());
        self.events.push(TokenEvent { sample: self.sample, token, text, logprobs });
        if stopped {
            self.finish = Some(FinishReason::Stop);
        } else if self.generated == self.request.max_new_tokens {
            return self.end(FinishReason::Length);
        }
        Ok(())
    }

    fn end(&mut self, reason: FinishReason) -> Result<(), GenerateError> {
        self.finish = Some(reason);
        if let Some(text) = &mut self.text {
            let piece = text.finish()?;
            self.tail = piece.text;
            if piece.stopped {
                self.finish = Some(FinishReason::Stop);
            }
        }
        Ok(())
    }

    /// The text that is held back.
    pub(super) fn rest_of_text(&mut self) -> String {
        let rest = self.text.as_mut().and_then(|text| text.finish().ok());
        rest.map_or(String::new(), |piece| piece.text)
    }

    /// The row as a sample that ended.
    pub(super) fn into_sample(self, reason: FinishReason) -> Sample {
        let Self { sample, events, tail, logprob, counted, .. } = self;
        Sample { index: sample, events, reason, text: tail, logprob, counted }
    }
}
