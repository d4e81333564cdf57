//! What an application asks for, and what it gets.

use crate::{GenerateError, LogitsHook, Sampling, TokenLogprobs};

/// One prompt and what is wanted of it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids to go on from.
    pub prompt: Vec<u32>,
    /// Tokens generated at most.
    pub max_new_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Tokens that end a sequence; they are not part of it.
    pub stop_tokens: Vec<u32>,
    /// Texts that end a sequence; they are not part of its text. They need an engine with a tokenizer.
    pub stop_strings: Vec<String>,
    /// Log probabilities of the tokens that are chosen, and of so many of the likeliest.
    pub logprobs: Option<usize>,
    /// Samples that are returned. They share the prompt's keys and values.
    pub n: usize,
    /// Samples that are drawn, of which the `n` with the highest log probability a token are returned; nothing is
    /// streamed then.
    pub best_of: Option<usize>,
    /// Search with so many beams instead of sampling; the `n` best are returned, and nothing is streamed.
    pub beams: Option<usize>,
    /// Changes logits before a token is drawn.
    pub hook: Option<LogitsHook>,
}

impl Request {
    /// 128 tokens, greedy, nothing that stops it.
    pub fn new(prompt: impl Into<Vec<u32>>) -> Self {
        Self {
            prompt: prompt.into(),
            max_new_tokens: 128,
            sampling: Sampling::greedy(),
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            logprobs: None,
            n: 1,
            best_of: None,
            beams: None,
            hook: None,
        }
    }

    /// The same with so many tokens at most.
    pub fn with_max_new_tokens(mut self, max_new_tokens: usize) -> Self {
        self.max_new_tokens = max_new_tokens;
        self
    }

    /// The same with other sampling options.
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// The same with tokens that end it.
    pub fn with_stop_tokens(mut self, stop_tokens: impl Into<Vec<u32>>) -> Self {
        self.stop_tokens = stop_tokens.into();
        self
    }

    /// The same with texts that end it.
    pub fn with_stop_strings(mut self, stop_strings: impl Into<Vec<String>>) -> Self {
        self.stop_strings = stop_strings.into();
        self
    }

    /// Sequences that advance at the same time.
    pub(crate) fn width(&self) -> usize {
        self.beams.or(self.best_of).unwrap_or(self.n)
    }

    /// Whether everything comes at the end.
    pub(crate) fn is_ranked(&self) -> bool {
        self.beams.is_some() || self.best_of.is_some_and(|best_of| best_of > self.n)
    }

    pub(crate) fn validate(&self, vocab_size: usize, has_tokenizer: bool) -> Result<(), GenerateError> {
        if self.max_new_tokens == 0 {
            return Err(GenerateError::NothingToGenerate);
        }
        for (option, value) in [("n", Some(self.n)), ("best_of", self.best_of), ("beams", self.beams)] {
            if value == Some(0) {
                return Err(GenerateError::Sampling { option, value: 0.0, expected: "at least 1" });
            }
        }
        self.sampling.validate(vocab_size)?;
        if let Some(&id) = self.stop_tokens.iter().find(|id| **id as usize >= vocab_size) {
            return Err(GenerateError::OutOfVocabulary { option: "stop_tokens", id, vocab_size });
        }
        if let Some(n) = self.logprobs.filter(|n| *n > vocab_size) {
            let expected = "at most the size of the vocabulary";
            return Err(GenerateError::Sampling { option: "logprobs", value: n as f64, expected });
        }
        let contradiction = |options, reason| Err(GenerateError::Contradiction { options, reason });
        if self.stop_strings.iter().any(String::is_empty) {
            return contradiction("stop_strings", "an empty text would end every sequence before it begins");
        }
        if !self.stop_strings.is_empty() && !has_tokenizer {
            return contradiction("stop_strings", "the engine has no tokenizer to make text of tokens");
        }
        if self.best_of.is_some_and(|best_of| best_of < self.n) {
            return contradiction("best_of and n", "more samples are to be returned than drawn");
        }
        if let Some(beams) = self.beams {
            if !self.sampling.is_greedy() {
                return contradiction("beams and temperature", "a beam search does not sample: leave temperature at 0");
            }
            if self.best_of.is_some() {
                return contradiction("beams and best_of", "beams are not samples");
            }
            if !self.stop_strings.is_empty() {
                return contradiction("beams and stop_strings", "a beam search ends at stop tokens only");
            }
            if beams < self.n {
                return contradiction("beams and n", "more sequences are to be returned than searched");
            }
        } else if self.sampling.is_greedy() && self.width() > 1 {
            return contradiction("temperature 0 and several samples", "they would all be the same");
        }
        Ok(())
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FinishReason {
    /// It has as many tokens as were asked for.
    Length,
    /// A stop token or a stop string came.
    Stop,
    /// The receiver of the tokens asked for no more.
    #[default]
    Cancelled,
}

/// What a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens of blocks whose keys and values were there already.
    pub reused_tokens: usize,
    /// Tokens generated, those of samples that are not returned included.
    pub generated_tokens: usize,
}

/// One token of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// Which sample of the request, from 0.
    pub sample: usize,
    /// The token.
    pub token: u32,
    /// Text that has become complete by it; often empty, since text is held back while it may be half a character or
    /// the beginning of a stop string. Always empty without a tokenizer.
    pub text: String,
    /// Log probabilities, if they were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// What happens to a request, in order. The last event is [`Done`](Self::Done) or [`Failed`](Self::Failed).
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A token.
    Token(TokenEvent),
    /// A sample ended.
    Finished {
        /// Which.
        sample: usize,
        /// Why.
        reason: FinishReason,
        /// The text that was held back.
        text: String,
        /// The sum of its tokens' log probabilities; only if a ranking needed it (`best_of`, `beams`).
        logprob: Option<f64>,
    },
    /// All samples ended.
    Done(Usage),
    /// The request failed; no other request is touched.
    Failed(GenerateError),
}

/// A sample, all of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SampleOutput {
    /// The new tokens, without the prompt.
    pub tokens: Vec<u32>,
    /// Their text; empty without a tokenizer.
    pub text: String,
    /// Log probabilities of each token, if they were asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why there are no more.
    pub finish: FinishReason,
}

/// Everything a request gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The samples.
    pub samples: Vec<SampleOutput>,
    /// What it took.
    pub usage: Usage,
}

impl Completion {
    /// Gathers the events of one request.
    ///
    /// # Errors
    /// The error of [`Event::Failed`].
    pub fn from_events(events: impl IntoIterator<Item = Event>) -> Result<Self, GenerateError> {
        let mut completion = Self { samples: Vec::new(), usage: Usage::default() };
        for event in events {
            match event {
                Event::Token(token) => {
                    let sample = completion.sample(token.sample);
                    sample.tokens.push(token.token);
                    sample.text.push_str(&token.text);
                    sample.logprobs.extend(token.logprobs);
                }
                Event::Finished { sample, reason, text, .. } => {
                    let sample = completion.sample(sample);
                    sample.text.push_str(&text);
                    sample.finish = reason;
                }
                Event::Done(usage) => completion.usage = usage,
                Event::Failed(error) => return Err(error),
            }
        }
        Ok(completion)
    }

    fn sample(&mut self, index: usize) -> &mut SampleOutput {
        while self.samples.len() <= index {
            self.samples.push(SampleOutput::default());
        }
        &mut self.samples[index]
    }
}
