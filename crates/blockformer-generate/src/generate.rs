//! The loop: prefill, then sample and step.

use std::ops::ControlFlow;

use burn::tensor::{Device, FloatDType, Tensor};

use crate::{FinishReason, GenerateError, LanguageModel, Sampler, Sampling};

/// What is to be generated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Tokens generated for each prompt, unless a stop token comes first.
    pub max_new_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Tokens that end a sequence; they are not part of it.
    pub stop_tokens: Vec<u32>,
}

impl Default for GenerateOptions {
    /// 128 tokens, greedy, no stop tokens.
    fn default() -> Self {
        Self { max_new_tokens: 128, sampling: Sampling::default(), stop_tokens: Vec::new() }
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
/// also depend on the prompt's place in the batch, which has random numbers of its own.
///
/// # Errors
/// [`GenerateError`] if a prompt is empty (unless the model predicts first blocks), too long or out of vocabulary, if no tokens are asked for, or if a sampling
/// option is out of range; nothing is generated then. Also if the model's logits are not numbers.
pub fn generate<M: LanguageModel>(
    model: &M,
    prompts: &[&[u32]],
    options: &GenerateOptions,
    device: &Device,
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Generation>, GenerateError> {
    if options.max_new_tokens == 0 {
        return Err(GenerateError::NothingToGenerate);
    }
    let blocked = model.layout().block_prompts(prompts, options.max_new_tokens)?;
    options.sampling.validate(model.layout().vocab_size)?;
    let sampler = |(index, prompt): (usize, &&[u32])| Sampler::new(options.sampling.clone(), index, prompt);
    let mut sequences: Vec<Sequence> = prompts.iter().enumerate().map(sampler).map(Sequence::new).collect();
    let (mut state, logits) = model.prefill(&blocked, options.max_new_tokens, device);
    let greedy = options.sampling.is_greedy() && options.sampling.keeps_logits();
    let mut after = After::Logits(logits);
    let mut next = vec![model.layout().pad_token_id; prompts.len()];
    loop {
        let tokens = draw(&mut sequences, after)?;
        let cancelled = take(&mut sequences, &tokens, options, &mut next, &mut on_token);
        if cancelled || sequences.iter().all(|sequence| sequence.finish.is_some()) {
            break;
        }
        after = if greedy {
            After::Likeliest(model.step_likeliest(&mut state, &next))
        } else {
            After::Logits(model.step(&mut state, &next))
        };
    }
    Ok(sequences.into_iter().map(Sequence::into_generation).collect())
}

struct Sequence {
    sampler: Sampler,
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
}

impl Sequence {
    fn new(sampler: Sampler) -> Self {
        Self { sampler, tokens: Vec::new(), finish: None }
    }

    fn into_generation(self) -> Generation {
        Generation { tokens: self.tokens, finish: self.finish.unwrap_or(FinishReason::Cancelled) }
    }
}

/// What a model says of the tokens after those it was given.
enum After {
    Logits(Tensor<2>),
    /// What greedy sampling would draw.
    Likeliest(Vec<Option<u32>>),
}

/// The next token of every sequence that goes on.
fn draw(sequences: &mut [Sequence], after: After) -> Result<Vec<Option<u32>>, GenerateError> {
    let mut open = |draw: &mut dyn FnMut(usize, &mut Sampler) -> Result<u32, GenerateError>| {
        let one = |(index, sequence): (usize, &mut Sequence)| {
            if sequence.finish.is_some() { Ok(None) } else { draw(index, &mut sequence.sampler).map(Some) }
        };
        sequences.iter_mut().enumerate().map(one).collect()
    };
    match after {
        After::Logits(logits) => {
            let [_, vocab_size] = logits.dims();
            let logits = logits.cast(FloatDType::F32).into_data();
            let Ok(rows) = logits.as_slice::<f32>() else { unreachable!("they were cast to float32") };
            open(&mut |index, sampler| sampler.sample(&rows[index * vocab_size..(index + 1) * vocab_size]))
        }
        After::Likeliest(tokens) => open(&mut |index, sampler| {
            let token = tokens[index].ok_or(GenerateError::NotANumber)?;
            sampler.push(token);
            Ok(token)
        }),
    }
}

/// Adds the tokens to their sequences; true if the receiver wants no more.
fn take(
    sequences: &mut [Sequence],
    tokens: &[Option<u32>],
    options: &GenerateOptions,
    next: &mut [u32],
    on_token: &mut impl FnMut(usize, u32) -> ControlFlow<()>,
) -> bool {
    for (index, (sequence, token)) in sequences.iter_mut().zip(tokens).enumerate() {
        let Some(token) = *token else { continue };
        next[index] = token;
        if options.stop_tokens.contains(&token) {
            sequence.finish = Some(FinishReason::Stop);
            continue;
        }
        sequence.tokens.push(token);
        if sequence.tokens.len() == options.max_new_tokens {
            sequence.finish = Some(FinishReason::Length);
        }
        if on_token(index, token).is_break() {
            return true;
        }
    }
    false
}
