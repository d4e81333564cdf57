//! From logits to tokens.

mod candidates;
mod logprobs;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use candidates::{Candidate, keep_above, keep_likeliest, keep_nucleus, keep_typical, total};
pub use logprobs::TokenLogprobs;
pub(crate) use logprobs::top_logprobs;

use crate::{GenerateError, Sampling};

/// Changes logits before a token is drawn: it is given the prompt and the tokens so far, and sets the logits of what
/// must not come to negative infinity. Constrained decoding (a grammar, a schema, a list of choices) is written this
/// way.
///
/// It must be a function of its arguments alone, since it is asked again where sequences are forked or drafts tried.
#[derive(Clone)]
pub struct LogitsHook(Arc<Hook>);

type Hook = dyn Fn(&[u32], &mut [f32]) + Send + Sync;

impl LogitsHook {
    /// A hook from a function of the prompt and the tokens so far, and of the logits of the next token.
    pub fn new(hook: impl Fn(&[u32], &mut [f32]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }
}

impl fmt::Debug for LogitsHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogitsHook")
    }
}

/// How often a token stands in the prompt and in what was generated.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    prompt: u32,
    generated: u32,
}

/// Draws the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    hook: Option<LogitsHook>,
    rng: ChaCha8Rng,
    /// The prompt and the tokens so far.
    tokens: Vec<u32>,
    counts: HashMap<u32, Count>,
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// The sampler of sample `index` from `prompt`; each sample of one prompt has random numbers of its own. Options
    /// must have been [validated](Sampling::validate).
    pub fn new(sampling: Sampling, index: usize, prompt: &[u32]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        rng.set_stream(index as u64);
        let mut counts: HashMap<u32, Count> = HashMap::new();
        if !sampling.keeps_logits() {
            prompt.iter().for_each(|id| counts.entry(*id).or_default().prompt += 1);
        }
        let tokens = prompt.to_vec();
        Self { sampling, hook: None, rng, tokens, counts, logits: Vec::new(), candidates: Vec::new() }
    }

    /// The same with a hook.
    pub fn with_hook(mut self, hook: Option<LogitsHook>) -> Self {
        self.hook = hook;
        self
    }

    /// The prompt and the tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Its options.
    pub(crate) fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// The random number of the next token, from 0 to less than 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.rng.random()
    }

    /// Draws a token, which becomes part of the sequence. Among equal logits the smallest id is the likeliest.
    ///
    /// # Errors
    /// [`GenerateError::NotANumber`] if a logit is not a number or infinite, or none is finite;
    /// [`GenerateError::NothingAllowed`] if bias or hook leave nothing.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, GenerateError> {
        argmax(logits)?.ok_or(GenerateError::NotANumber)?;
        let mut own = std::mem::take(&mut self.logits);
        let token = match self.adjusted(logits, &mut own) {
            Some(adjusted) => self.draw(adjusted),
            None => self.draw(logits),
        };
        self.logits = own;
        let token = token?;
        self.push(token);
        Ok(token)
    }

    /// Takes in a token that was not drawn.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if !self.sampling.keeps_logits() {
            self.counts.entry(token).or_default().generated += 1;
        }
    }

    /// Logits with bias, penalties and hook, in `own`; nothing if none of these is asked for.
    pub(crate) fn adjusted<'a>(&self, logits: &[f32], own: &'a mut Vec<f32>) -> Option<&'a [f32]> {
        if self.sampling.keeps_logits() && self.hook.is_none() {
            return None;
        }
        own.clear();
        own.extend_from_slice(logits);
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, .. } = &self.sampling;
        for (id, bias) in logit_bias {
            own[*id as usize] += bias;
        }
        for (id, count) in &self.counts {
            let Some(logit) = own.get_mut(*id as usize) else { continue };
            let repetition = *repetition_penalty as f32;
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            if count.generated > 0 {
                *logit -= (presence_penalty + frequency_penalty * f64::from(count.generated)) as f32;
            }
        }
        if let Some(hook) = &self.hook {
            (hook.0)(&self.tokens, own);
        }
        Some(own)
    }

    fn draw(&mut self, logits: &[f32]) -> Result<u32, GenerateError> {
        let best = argmax(logits)?.ok_or(GenerateError::NothingAllowed)?;
        if self.sampling.is_greedy() {
            return Ok(best);
        }
        let inverse = self.sampling.inverse_temperature();
        let max = logits[best as usize];
        let weight = |(id, logit): (usize, &f32)| (((logit - max) * inverse).exp(), id as u32);
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(weight));
        self.narrow();
        let mut left = self.uniform() * total(&self.candidates);
        for (weight, id) in &self.candidates {
            left -= f64::from(*weight);
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding left a sliver.
        self.candidates
            .iter()
            .rev()
            .find(|candidate| candidate.0 > 0.0)
            .map(|candidate| candidate.1)
            .ok_or(GenerateError::NotANumber)
    }

    /// Applies the filters. What is left stands in the order of ids, so that a draw changes no more than the logits do.
    fn narrow(&mut self) {
        let Sampling { top_k, top_p, min_p, typical_p, .. } = self.sampling;
        let all = self.candidates.len();
        if let Some(k) = top_k {
            keep_likeliest(&mut self.candidates, k);
        }
        if let Some(p) = top_p.filter(|p| *p < 1.0) {
            keep_nucleus(&mut self.candidates, p);
        }
        if let Some(p) = min_p.filter(|p| *p > 0.0) {
            keep_above(&mut self.candidates, p);
        }
        if let Some(p) = typical_p.filter(|p| *p < 1.0) {
            keep_typical(&mut self.candidates, p);
        }
        if self.candidates.len() < all {
            self.candidates.sort_unstable_by_key(|candidate| candidate.1);
        }
    }
}

/// The likeliest token, if any has a finite logit.
pub(crate) fn argmax(logits: &[f32]) -> Result<Option<u32>, GenerateError> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(GenerateError::NotANumber);
        }
        if logit.is_finite() && best.is_none_or(|(_, top)| logit > top) {
            best = Some((id as u32, logit));
        }
    }
    Ok(best.map(|(id, _)| id))
}
