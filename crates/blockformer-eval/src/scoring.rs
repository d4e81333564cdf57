//! The log-likelihood of continuations.

use std::cmp::Reverse;

use blockformer_data::Sample;
use blockformer_model::BlockLayout;
use blockformer_train::Batch;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};

use crate::{EvalError, Scorable};

/// Logits computed at once; bounds the memory that a large vocabulary takes.
const CHUNK_ELEMENTS: usize = 1 << 25;

/// A question: how likely is the continuation after the context?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What comes before; at least one token. Of a long one, the last tokens that fit are taken.
    pub context: Vec<u32>,
    /// What is asked for.
    pub continuation: Vec<u32>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Score {
    /// The natural logarithm of each token's probability, given all before it.
    pub log_probabilities: Vec<f32>,
    /// Whether each token is the likeliest there.
    pub likeliest: Vec<bool>,
}

impl Score {
    /// The logarithm of the continuation's probability.
    pub fn log_likelihood(&self) -> f64 {
        self.log_probabilities.iter().map(|&log_p| f64::from(log_p)).sum()
    }

    /// Whether greedy decoding of the context would give the continuation.
    pub fn is_greedy(&self) -> bool {
        self.likeliest.iter().all(|likeliest| *likeliest)
    }
}

/// How [`score`] computes; the answers do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreConfig {
    /// The most requests computed at once.
    pub batch_size: usize,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self { batch_size: 16 }
    }
}

/// Answers requests, in their order. Requests of like length are computed together.
///
/// # Errors
/// [`EvalError::NoContext`], [`EvalError::TooLong`] and [`EvalError::OutOfVocabulary`], naming the first such request.
pub fn score<M: Scorable>(
    model: &M,
    requests: &[Request],
    config: &ScoreConfig,
    device: &Device,
) -> Result<Vec<Score>, EvalError> {
    let layout = model.layout();
    let placed = requests.iter().enumerate().map(|(index, request)| Placed::new(index, request, &layout));
    let mut placed: Vec<Placed<'_>> = placed.collect::<Result<_, _>>()?;
    placed.retain(|placed| !placed.continuation.is_empty());
    placed.sort_by_key(|placed| (Reverse(placed.len(&layout)), placed.index));
    let mut scores = vec![Score::default(); requests.len()];
    for batch in placed.chunks(config.batch_size.max(1)) {
        for (placed, score) in batch.iter().zip(score_batch(model, batch, device)) {
            scores[placed.index] = score;
        }
    }
    Ok(scores)
}

/// A request and its place in a sample.
struct Placed<'a> {
    index: usize,
    /// As much as fits.
    context: &'a [u32],
    continuation: &'a [u32],
    /// Padding before the context, so that it ends with a block.
    n_padding: usize,
}

impl<'a> Placed<'a> {
    fn new(index: usize, request: &'a Request, layout: &BlockLayout) -> Result<Self, EvalError> {
        let Request { context, continuation } = request;
        let BlockLayout { block_length, max_length, vocab_size, .. } = *layout;
        if context.is_empty() {
            return Err(EvalError::NoContext { index });
        }
        if let Some(&id) = context.iter().chain(continuation).find(|&&id| id as usize >= vocab_size) {
            return Err(EvalError::OutOfVocabulary { index, id, vocab_size });
        }
        let room = max_length.saturating_sub(continuation.len().next_multiple_of(block_length));
        let room = room / block_length * block_length;
        if room == 0 {
            return Err(EvalError::TooLong { index, tokens: continuation.len(), max_length, block_length });
        }
        let context = &context[context.len().saturating_sub(room)..];
        let n_padding = context.len().next_multiple_of(block_length) - context.len();
        Ok(Self { index, context, continuation, n_padding })
    }

    /// Where the continuation begins.
    fn start(&self) -> usize {
        self.n_padding + self.context.len()
    }

    /// Tokens in whole blocks.
    fn len(&self, layout: &BlockLayout) -> usize {
        (self.start() + self.continuation.len()).next_multiple_of(layout.block_length)
    }

    fn sample(&self, length: usize, pad_token_id: u32) -> Sample {
        let content = self.start()..self.start() + self.continuation.len();
        let content = self.n_padding..content.end;
        let mut ids = vec![pad_token_id; length];
        ids[content.start..self.start()].copy_from_slice(self.context);
        ids[self.start()..content.end].copy_from_slice(self.continuation);
        let mask = (0..length).map(|position| content.contains(&position)).collect();
        Sample { ids, mask, prompt: Vec::new() }
    }
}

fn score_batch<M: Scorable>(model: &M, placed: &[Placed<'_>], device: &Device) -> Vec<Score> {
    let layout = model.layout();
    let length = placed.iter().map(|placed| placed.len(&layout)).max().unwrap_or(0);
    let samples: Vec<Sample> = placed.iter().map(|placed| placed.sample(length, layout.pad_token_id)).collect();
    let hidden = model.hidden(&Batch::new(&samples, &layout, device));
    let d_model = hidden.dims()[2];
    let skipped = layout.first_predicted_block() * layout.block_length;
    let n_predicted = length - skipped;
    let hidden = hidden.reshape([placed.len() * n_predicted, d_model]);
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (row, placed) in placed.iter().enumerate() {
        let first = row * n_predicted + placed.start() - skipped;
        rows.extend((first..first + placed.continuation.len()).map(|row| row as i32));
        targets.extend(placed.continuation.iter().map(|&id| id as i32));
    }
    let mut all = Score::default();
    let chunk = (CHUNK_ELEMENTS / layout.vocab_size).max(1);
    for (rows, targets) in rows.chunks(chunk).zip(targets.chunks(chunk)) {
        let n = rows.len();
        let ints = |values: &[i32]| Tensor::<1, Int>::from_data(TensorData::new(values.to_vec(), [n]), device);
        let logits = model.logits(hidden.clone().select(0, ints(rows)).reshape([1, n, d_model]));
        let log_p = log_softmax(logits.reshape([n, layout.vocab_size]).cast(FloatDType::F32), 1);
        let targets = ints(targets).reshape([n, 1]);
        let likeliest = log_p.clone().argmax(1).equal(targets.clone());
        all.log_probabilities.extend(log_p.gather(1, targets).into_data().iter::<f32>());
        all.likeliest.extend(likeliest.into_data().iter::<bool>());
    }
    split(placed, &all)
}

/// The scores of each request from those of all tokens.
fn split(placed: &[Placed<'_>], all: &Score) -> Vec<Score> {
    let mut start = 0;
    let mut score = |placed: &Placed<'_>| {
        let tokens = start..start + placed.continuation.len();
        start = tokens.end;
        Score {
            log_probabilities: all.log_probabilities[tokens.clone()].to_vec(),
            likeliest: all.likeliest[tokens].to_vec(),
        }
    };
    placed.iter().map(&mut score).collect()
}
