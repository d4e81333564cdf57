//! The token decoder: from a context embedding to the tokens of a block.

use blockformer_kernels::{Level, Precision};
use blockformer_token_decoder::{AnyTokenDecoder, ContextExpansion, TokenDecoderConfig};

use crate::PackError;
use crate::cache::Cache;
use crate::profile::{Clock, Profile};
use crate::stack::{Positions, Scratch, Stack, room};
use crate::tokens::Vocabulary;
use crate::weights::Linear;

/// How the context embedding enters.
#[derive(Debug, Clone)]
enum Entry {
    /// As positions before the tokens.
    Prefix,
    /// Added to the start token and the tokens, position by position.
    Sum { start_token_id: u32 },
}

/// A prefix or summation decoder on packed weights.
#[derive(Debug, Clone)]
pub(crate) struct TokenDecoder {
    entry: Entry,
    expansion: Option<Linear>,
    ratio: usize,
    stack: Stack,
    vocabulary: Vocabulary,
}

/// The block being decoded.
#[derive(Debug, Clone)]
pub(crate) struct TokenState {
    cache: Cache,
    /// The expanded context embeddings, `[batch, n_embedding_tokens · ratio, d_model]`.
    expanded: Vec<f32>,
    /// The new positions.
    x: Vec<f32>,
}

impl TokenState {
    pub(crate) fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        size_of_val(&self.expanded[..]) + size_of_val(&self.x[..])
    }
}

/// What a step works with beside its own state.
pub(crate) struct Tools<'a> {
    pub(crate) level: Level,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) profile: &'a mut Profile,
}

impl TokenDecoder {
    pub(crate) fn new(
        decoder: AnyTokenDecoder,
        config: &TokenDecoderConfig,
        precision: Precision,
    ) -> Result<Self, PackError> {
        let (entry, config, expansion, vocabulary, transformer) = match (decoder, config) {
            (AnyTokenDecoder::Prefix(decoder), TokenDecoderConfig::Prefix(config)) => {
                (Entry::Prefix, &config.transformer, decoder.expansion, decoder.vocabulary, decoder.transformer)
            }
            (AnyTokenDecoder::Summation(decoder), TokenDecoderConfig::Summation(config)) => {
                let entry = Entry::Sum { start_token_id: config.start_token_id };
                (entry, &config.transformer, decoder.expansion, decoder.vocabulary, decoder.transformer)
            }
            (AnyTokenDecoder::CrossAttention(_), TokenDecoderConfig::CrossAttention(_)) => {
                return Err(PackError::Unsupported { part: "cross-attention token decoder" });
            }
            _ => return Err(PackError::Mismatch),
        };
        let ratio = expansion.ratio();
        let ContextExpansion { layer, .. } = expansion;
        Ok(Self {
            entry,
            expansion: layer.map(|layer| Linear::new(layer, precision)),
            ratio,
            stack: Stack::new(transformer, config, precision)?,
            vocabulary: Vocabulary::new(vocabulary, precision),
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.expansion.as_ref().map_or(0, Linear::bytes) + self.stack.bytes() + self.vocabulary.bytes()
    }

    pub(crate) fn new_state(&self, batch: usize, n_embedding_tokens: usize, block_length: usize) -> TokenState {
        let capacity = match self.entry {
            Entry::Prefix => self.ratio * n_embedding_tokens + block_length - 1,
            Entry::Sum { .. } => block_length,
        };
        let cache = Cache::new(self.stack.config(), batch, capacity);
        TokenState { cache, expanded: Vec::new(), x: Vec::new() }
    }

    /// Begins blocks: logits of their first tokens, `[batch, vocab_size]`.
    ///
    /// # Shapes
    /// - `context`: `[batch, n_embedding_tokens, d_context]`
    pub(crate) fn start(
        &self,
        context: &[f32],
        batch: usize,
        n_embedding_tokens: usize,
        state: &mut TokenState,
        tools: &mut Tools<'_>,
    ) -> Vec<f32> {
        let mut clock = Clock::start();
        let d_model = self.stack.config().d_model;
        let positions = n_embedding_tokens * self.ratio;
        let expanded = room(&mut state.expanded, batch * positions * d_model);
        match &self.expansion {
            Some(layer) => layer.forward(tools.level, context, expanded),
            None => {
                let rows = expanded.chunks_exact_mut(self.ratio * d_model).zip(context.chunks_exact(d_model));
                rows.for_each(|(out, row)| out.chunks_exact_mut(d_model).for_each(|out| out.copy_from_slice(row)));
            }
        }
        clock.lap(&mut tools.profile.token_decoder.other);
        state.cache.reset();
        match self.entry {
            Entry::Prefix => {
                let x = room(&mut state.x, batch * positions * d_model);
                x.copy_from_slice(&state.expanded[..batch * positions * d_model]);
                self.run(batch, positions, state, tools)
            }
            Entry::Sum { start_token_id } => self.next(&vec![start_token_id; batch], state, tools),
        }
    }

    /// Takes in one token a block: logits of the next, `[batch, vocab_size]`.
    pub(crate) fn next(&self, tokens: &[u32], state: &mut TokenState, tools: &mut Tools<'_>) -> Vec<f32> {
        let d_model = self.stack.config().d_model;
        let x = room(&mut state.x, tokens.len() * d_model);
        self.vocabulary.table().look_up(tokens, x);
        if let Entry::Sum { .. } = self.entry {
            let positions = state.expanded.len() / (tokens.len() * d_model);
            for (x, context) in x.chunks_exact_mut(d_model).zip(state.expanded.chunks_exact(positions * d_model)) {
                let context = &context[state.cache.len() * d_model..][..d_model];
                x.iter_mut().zip(context).for_each(|(x, context)| *x += context);
            }
        }
        self.run(tokens.len(), 1, state, tools)
    }

    /// Runs the layers on new positions and projects the last of each block.
    fn run(&self, batch: usize, new: usize, state: &mut TokenState, tools: &mut Tools<'_>) -> Vec<f32> {
        let d_model = self.stack.config().d_model;
        let x = &mut state.x[..batch * new * d_model];
        let positions = Positions { sequences: 0..batch, new, group: 1, padded: &[] };
        let spent = self.stack.forward(tools.level, x, &positions, &mut state.cache, tools.scratch);
        tools.profile.token_decoder += spent;
        state.cache.advance(new);
        let mut clock = Clock::start();
        if new > 1 {
            for row in 0..batch {
                x.copy_within(((row + 1) * new - 1) * d_model..(row + 1) * new * d_model, row * d_model);
            }
        }
        let logits = self.vocabulary.logits(tools.level, &x[..batch * d_model]);
        clock.lap(&mut tools.profile.output);
        logits
    }
}
