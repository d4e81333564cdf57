//! The loop: prefill, then draw and step.

mod repeated;
mod rounds;

use std::ops::ControlFlow;

use blockformer_model::{BlockLayout, BlockedPrompts};
use burn::tensor::Device;

use crate::device_sampler::token;
use crate::language_model::to_host;
use crate::read_back::read_tokens;
use crate::{Decoding, FinishReason, GenerateError, LanguageModel, Sampler, Sampling};
pub use rounds::Rounds;
pub(crate) use rounds::size_class;

/// What is to be generated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Tokens generated for each prompt, unless a stop token comes first.
    pub max_new_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Tokens that end a sequence; they are not part of it.
    pub stop_tokens: Vec<u32>,
    /// Where they are drawn.
    pub decoding: Decoding,
}

impl Default for GenerateOptions {
    /// 128 tokens, greedy, no stop tokens, drawn on the host.
    fn default() -> Self {
        let (sampling, decoding) = (Sampling::default(), Decoding::default());
        Self { max_new_tokens: 128, sampling, stop_tokens: Vec::new(), decoding }
    }
}

/// What was generated for one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens, without the prompt.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: FinishReason,
}

/// Continues prompts, a batch at a time, and hands each new token to `on_token(prompt index, token)` as it is made;
/// [`ControlFlow::Break`] ends all sequences.
///
/// Prompts of different lengths may be mixed. Each gets the logits it would get alone, up to rounding; sampled tokens
/// also depend on the prompt's place in the batch, which has random numbers of its own. Where
/// [`decoding`](GenerateOptions::decoding) draws them on the device, they come several at a time.
///
/// # Errors
/// [`GenerateError`] if a prompt is empty (unless the model predicts first blocks), too long or out of vocabulary, if no
/// tokens are asked for, or if a sampling option is out of range; nothing is generated then. Also if the model's logits are not numbers.
pub fn generate<M: LanguageModel>(
    model: &M,
    prompts: &[&[u32]],
    options: &GenerateOptions,
    device: &Device,
    on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Generation>, GenerateError> {
    let (blocked, samplers) = prepare(model, prompts, options)?;
    let mut batch = Batch { sequences: vec![Sequence::default(); prompts.len()], options, on_token };
    match options.decoding.on_device(&options.sampling) {
        None => on_host(model, &blocked, samplers, &mut batch, device)?,
        Some(decoding) => on_device(Rounds::new(model, blocked, samplers, (options, decoding), device), &mut batch)?,
    }
    Ok(batch.sequences.into_iter().map(Sequence::into_generation).collect())
}

/// Checks options and prompts; a sampler for each.
fn prepare<M: LanguageModel>(
    model: &M,
    prompts: &[&[u32]],
    options: &GenerateOptions,
) -> Result<(BlockedPrompts, Vec<Sampler>), GenerateError> {
    if options.max_new_tokens == 0 {
        return Err(GenerateError::NothingToGenerate);
    }
    let blocked = model.layout().block_prompts(prompts, options.max_new_tokens)?;
    options.sampling.validate(model.layout().vocab_size)?;
    let sampler = |(index, prompt): (usize, &&[u32])| Sampler::new(options.sampling.clone(), index, prompt);
    Ok((blocked, prompts.iter().enumerate().map(sampler).collect()))
}

/// Looks at the logits of every token.
fn on_host<M: LanguageModel, F: FnMut(usize, u32) -> ControlFlow<()>>(
    model: &M,
    prompts: &BlockedPrompts,
    mut samplers: Vec<Sampler>,
    batch: &mut Batch<'_, F>,
    device: &Device,
) -> Result<(), GenerateError> {
    let (mut state, logits) = model.prefill(prompts, batch.options.max_new_tokens, device);
    let sampling = &batch.options.sampling;
    let greedy = sampling.is_greedy() && sampling.keeps_logits();
    let mut after = After::Logits(to_host(logits));
    let BlockLayout { vocab_size, pad_token_id, .. } = model.layout();
    let mut next = vec![pad_token_id; samplers.len()];
    loop {
        let sample = |index: usize| {
            next[index] = after.draw(index, vocab_size, &mut samplers[index])?;
            Ok(next[index])
        };
        if batch.take(sample)?.is_break() {
            return Ok(());
        }
        after = match after {
            After::Logits(mut logits) if !greedy => {
                model.step_into(&mut state, &next, &mut logits);
                After::Logits(logits)
            }
            _ => After::Likeliest(model.step_likeliest(&mut state, &next)),
        };
    }
}

/// What a model says of the tokens after those it was given.
enum After {
    /// `[batch, vocab_size]`, row by row.
    Logits(Vec<f32>),
    /// What greedy sampling would draw.
    Likeliest(Vec<Option<u32>>),
}

impl After {
    /// The next token of sequence `index`.
    fn draw(&self, index: usize, vocab_size: usize, sampler: &mut Sampler) -> Result<u32, GenerateError> {
        match self {
            Self::Logits(logits) => sampler.sample(&logits[index * vocab_size..(index + 1) * vocab_size]),
            Self::Likeliest(tokens) => {
                let token = tokens[index].ok_or(GenerateError::NotANumber)?;
                sampler.push(token);
                Ok(token)
            }
        }
    }
}

/// Looks at the tokens of a round together.
fn on_device<M: LanguageModel, F: FnMut(usize, u32) -> ControlFlow<()>>(
    mut rounds: Rounds<'_, M>,
    batch: &mut Batch<'_, F>,
) -> Result<(), GenerateError> {
    while let Some(round) = rounds.next_round() {
        let n = round.dims()[1];
        let tokens = read_tokens(round); // the one place where the host waits
        for place in 0..n {
            if batch.take(|index| token(tokens[index * n + place]))?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The sequences that advance together, and who is told of their tokens.
struct Batch<'a, F> {
    sequences: Vec<Sequence>,
    options: &'a GenerateOptions,
    on_token: F,
}

#[derive(Debug, Clone, Default)]
struct Sequence {
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
}

impl Sequence {
    fn into_generation(self) -> Generation {
        Generation { tokens: self.tokens, finish: self.finish.unwrap_or(FinishReason::Cancelled) }
    }
}

impl<F: FnMut(usize, u32) -> ControlFlow<()>> Batch<'_, F> {
    /// Takes the next token of every sequence that goes on; breaks if none goes on behind it, or if the receiver wants
    /// no more.
    fn take(
        &mut self,
        mut token: impl FnMut(usize) -> Result<u32, GenerateError>,
    ) -> Result<ControlFlow<()>, GenerateError> {
        for (index, sequence) in self.sequences.iter_mut().enumerate() {
            if sequence.finish.is_some() {
                continue;
            }
            let token = token(index)?;
            if self.options.stop_tokens.contains(&token) {
                sequence.finish = Some(FinishReason::Stop);
                continue;
            }
            sequence.tokens.push(token);
            if sequence.tokens.len() == self.options.max_new_tokens {
                sequence.finish = Some(FinishReason::Length);
            }
            if (self.on_token)(index, token).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let ended = self.sequences.iter().all(|sequence| sequence.finish.is_some());
        Ok(if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}
