//! Perplexity of texts.
//!
//! ```text
//! per token   exp(nats / tokens)
//! per word    exp(nats / words)         comparable between tokenizers
//! per byte    exp(nats / bytes)         the same; its logarithm to base 2 is bits a byte
//! ```
//!
//! Each document is asked for in stretches of `stride` tokens. The context of a stretch is what comes before it in the
//! document, as much as fits beside it; that of the first is the end-of-text token alone. So all tokens count, each
//! once, and each but those of the first stretches has at least `max_length - stride` tokens before it. The end of the
//! document itself is not asked for.

use blockformer_data::{DataError, Tokenizer};
use burn::tensor::Device;
use serde::Serialize;

use crate::{EvalError, LossByPosition, Request, Scorable, ScoreConfig, score};

/// Batches gathered before they are computed, so that requests of like length can be put together.
const BATCHES_GATHERED: usize = 8;

/// What counts as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum WordCount {
    /// What stands between white space.
    #[default]
    Whitespace,
    /// The same, and the end of each line: the convention of results on WikiText, whose lines end in `<eos>`.
    WhitespaceAndLineEnds,
}

impl WordCount {
    fn count(self, text: &str) -> usize {
        let words = text.split_whitespace().count();
        match self {
            Self::Whitespace => words,
            Self::WhitespaceAndLineEnds => words + text.lines().count(),
        }
    }
}

/// How [`perplexity`] is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerplexityConfig {
    /// Tokens asked for at a time, a multiple of the block length; the fewer, the more context each has. Half the
    /// model's context if not given.
    pub stride: Option<usize>,
    /// What counts as a word.
    pub words: WordCount,
    /// Tokens of a document that are looked at, from its beginning; all if not given.
    pub max_document_tokens: Option<usize>,
    /// How it is computed.
    pub scoring: ScoreConfig,
}

/// The perplexity of a text under a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// The negative log-likelihood of all tokens together, in nats.
    pub nats: f64,
    /// Documents.
    pub n_documents: usize,
    /// Tokens.
    pub n_tokens: usize,
    /// Words; of documents that are looked at in part, as many as that part of their tokens is of all.
    pub n_words: f64,
    /// Bytes of UTF-8; likewise.
    pub n_bytes: f64,
    /// Loss by position within the block. One position for models without blocks.
    #[serde(skip)]
    pub by_block_position: LossByPosition,
    /// Loss by the number of tokens before it that the model has seen, the document's end before it not counted.
    #[serde(skip)]
    pub by_context_length: LossByPosition,
}

impl Perplexity {
    /// Mean loss a token, in nats.
    pub fn loss(&self) -> f64 {
        self.nats / self.n_tokens as f64
    }

    /// Perplexity a token.
    pub fn per_token(&self) -> f64 {
        self.loss().exp()
    }

    /// Perplexity a word.
    pub fn per_word(&self) -> f64 {
        (self.nats / self.n_words).exp()
    }

    /// Perplexity a byte.
    pub fn per_byte(&self) -> f64 {
        (self.nats / self.n_bytes).exp()
    }

    /// Bits a byte.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / self.n_bytes / std::f64::consts::LN_2
    }
}

/// Measures the perplexity of documents, which [`Documents`](blockformer_data::Documents) reads from files.
///
/// # Errors
/// The first error of a document, [`EvalError::Stride`] for a stride that the model's context does not allow,
/// [`EvalError::Empty`] if there is no token, [`DataError::NoEndOfText`] if the tokenizer has no such token, and
/// [`EvalError::OutOfVocabulary`] if the tokenizer is not the model's.
pub fn perplexity<M: Scorable>(
    model: &M,
    documents: impl IntoIterator<Item = Result<String, DataError>>,
    tokenizer: &Tokenizer,
    config: &PerplexityConfig,
    device: &Device,
) -> Result<Perplexity, EvalError> {
    let mut measurement = Measurement::new(model, tokenizer, config, device)?;
    for document in documents {
        measurement.add(&document?)?;
    }
    measurement.compute()?;
    let result = measurement.result;
    if result.n_tokens == 0 { Err(EvalError::Empty { what: "the text".into() }) } else { Ok(result) }
}

/// A perplexity in the making.
struct Measurement<'a, M> {
    model: &'a M,
    tokenizer: &'a Tokenizer,
    config: &'a PerplexityConfig,
    device: &'a Device,
    stride: usize,
    end_of_text: u32,
    /// Not computed yet, and the tokens before each that it has seen.
    requests: Vec<Request>,
    n_seen: Vec<usize>,
    result: Perplexity,
}

impl<'a, M: Scorable> Measurement<'a, M> {
    fn new(
        model: &'a M,
        tokenizer: &'a Tokenizer,
        config: &'a PerplexityConfig,
        device: &'a Device,
    ) -> Result<Self, EvalError> {
        let layout = model.layout();
        let (block_length, at_most) = (layout.block_length, layout.max_length.saturating_sub(layout.block_length));
        let half = layout.max_length / 2 / block_length * block_length;
        let stride = config.stride.unwrap_or(half.max(block_length));
        if stride == 0 || !stride.is_multiple_of(block_length) || stride > at_most {
            return Err(EvalError::Stride { got: stride, block_length, at_most });
        }
        let result = Perplexity {
            nats: 0.0,
            n_documents: 0,
            n_tokens: 0,
            n_words: 0.0,
            n_bytes: 0.0,
            by_block_position: LossByPosition::new(block_length),
            by_context_length: LossByPosition::new(layout.max_length),
        };
        let end_of_text = tokenizer.eos_token_id().ok_or(DataError::NoEndOfText)?;
        let (requests, n_seen) = (Vec::new(), Vec::new());
        Ok(Self { model, tokenizer, config, device, stride, end_of_text, requests, n_seen, result })
    }

    fn add(&mut self, text: &str) -> Result<(), EvalError> {
        let tokens = self.tokenizer.encode(text)?;
        let n = tokens.len().min(self.config.max_document_tokens.unwrap_or(usize::MAX));
        if n == 0 {
            return Ok(());
        }
        let share = n as f64 / tokens.len() as f64;
        self.result.n_documents += 1;
        self.result.n_words += self.config.words.count(text) as f64 * share;
        self.result.n_bytes += text.len() as f64 * share;
        let room = self.model.layout().max_length - self.stride;
        for start in (0..n).step_by(self.stride) {
            let continuation = tokens[start..(start + self.stride).min(n)].to_vec();
            let seen = &tokens[start.saturating_sub(room)..start];
            let context = if seen.is_empty() { vec![self.end_of_text] } else { seen.to_vec() };
            self.n_seen.push(seen.len());
            self.requests.push(Request { context, continuation });
            if self.requests.len() >= self.config.scoring.batch_size.max(1) * BATCHES_GATHERED {
                self.compute()?;
            }
        }
        Ok(())
    }

    /// Computes what has been gathered.
    fn compute(&mut self) -> Result<(), EvalError> {
        let scores = score(self.model, &self.requests, &self.config.scoring, self.device)?;
        let block_length = self.model.layout().block_length;
        for (score, n_seen) in scores.iter().zip(&self.n_seen) {
            for (position, &log_p) in score.log_probabilities.iter().enumerate() {
                let nats = -f64::from(log_p);
                self.result.nats += nats;
                self.result.by_block_position.add(position % block_length, nats);
                self.result.by_context_length.add(n_seen + position, nats);
            }
            self.result.n_tokens += score.log_probabilities.len();
        }
        self.requests.clear();
        self.n_seen.clear();
        Ok(())
    }
}
