//! The token decoder: from a context embedding to the tokens of a block.

use blockformer_kernels::{Level, Precision};
use blockformer_token_decoder::{AnyTokenDecoder, ContextExpansion, TokenDecoderConfig};

use crate::PackError;
use crate::cache::{Cache, Kv};
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
    /// The expanded context embeddings, `[batch, positions, d_model]`.
    expanded: Vec<f32>,
    /// Positions that the context of a block becomes, `n_embedding_tokens · ratio`.
    positions: usize,
    /// The new positions.
    x: Vec<f32>,
}

impl TokenState {
    pub(crate) fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// The hidden states computed last, the first `n` numbers.
    pub(crate) fn hidden(&self, n: usize) -> &[f32] {
        &self.x[..n]
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        size_of_val(&self.expanded[..]) + size_of_val(&self.x[..])
    }
}

/// Blocks that begin.
#[derive(Clone, Copy)]
pub(crate) struct Begin<'a> {
    /// `[rows, n_embedding_tokens, d_context]`
    pub(crate) context: &'a [f32],
    pub(crate) rows: usize,
    /// The first tokens of each block, if any, as many of each.
    pub(crate) tokens: &'a [u32],
    /// Logits are wanted of all tokens behind the first so many.
    pub(crate) known: usize,
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
        // The largest matrices first, while little else is packed.
        let vocabulary = Vocabulary::new(vocabulary, precision);
        Ok(Self {
            entry,
            expansion: layer.map(|layer| Linear::new(layer, precision)),
            ratio,
            stack: Stack::new(transformer, config, precision)?,
            vocabulary,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.expansion.as_ref().map_or(0, Linear::bytes) + self.stack.bytes() + self.vocabulary.bytes()
    }

    pub(crate) fn new_state(&self, batch: usize, n_embedding_tokens: usize, block_length: usize) -> TokenState {
        let cache = Cache::new(self.stack.config(), batch, self.capacity(n_embedding_tokens, block_length));
        TokenState { cache, expanded: Vec::new(), positions: n_embedding_tokens * self.ratio, x: Vec::new() }
    }

    /// Positions of a block's cache.
    fn capacity(&self, n_embedding_tokens: usize, block_length: usize) -> usize {
        match self.entry {
            Entry::Prefix => self.ratio * n_embedding_tokens + block_length - 1,
            Entry::Sum { .. } => block_length,
        }
    }

    /// Begins blocks: logits of the tokens behind the first `known` of each, `[rows, tokens a row + 1 - known,
    /// vocab_size]`.
    pub(crate) fn start(&self, begin: Begin<'_>, state: &mut TokenState, tools: &mut Tools<'_>) -> Vec<f32> {
        let n = self.begin(begin, state, tools);
        self.project(&state.x[..n], tools)
    }

    /// The same before the projection to the vocabulary: so many numbers of the state's [hidden](TokenState::hidden) are
    /// of `[rows, tokens a row + 1 - known, d_model]`.
    pub(crate) fn begin(&self, begin: Begin<'_>, state: &mut TokenState, tools: &mut Tools<'_>) -> usize {
        let Begin { context, rows, tokens, known } = begin;
        let mut clock = Clock::start();
        let (d_model, positions) = (self.stack.config().d_model, state.positions);
        let expanded = room(&mut state.expanded, rows * positions * d_model);
        match &self.expansion {
            Some(layer) => layer.forward(tools.level, context, &mut tools.scratch.rounded, expanded),
            None => {
                let each = expanded.chunks_exact_mut(self.ratio * d_model).zip(context.chunks_exact(d_model));
                each.for_each(|(out, row)| out.chunks_exact_mut(d_model).for_each(|out| out.copy_from_slice(row)));
            }
        }
        state.cache.reset();
        state.cache.grow(rows);
        let n_tokens = tokens.len() / rows;
        let before = match self.entry {
            Entry::Prefix => positions,
            Entry::Sum { .. } => 1,
        };
        let x = room(&mut state.x, rows * (before + n_tokens) * d_model);
        let table = self.vocabulary.table();
        for (row, x) in x.chunks_exact_mut((before + n_tokens) * d_model).enumerate() {
            let context = &expanded[row * positions * d_model..(row + 1) * positions * d_model];
            let (first, rest) = x.split_at_mut(before * d_model);
            table.look_up(&tokens[row * n_tokens..(row + 1) * n_tokens], rest);
            match self.entry {
                Entry::Prefix => first.copy_from_slice(context),
                Entry::Sum { start_token_id } => {
                    table.look_up(&[start_token_id], first);
                    x.iter_mut().zip(context).for_each(|(x, context)| *x += context);
                }
            }
        }
        clock.lap(&mut tools.profile.token_decoder.other);
        self.run(rows, before + n_tokens, before - 1 + known, state, tools)
    }

    /// Takes in one token a block: logits of the next, `[batch, vocab_size]`.
    pub(crate) fn next(&self, tokens: &[u32], state: &mut TokenState, tools: &mut Tools<'_>) -> Vec<f32> {
        let n = self.go_on(tokens, state, tools);
        self.project(&state.x[..n], tools)
    }

    /// The same before the projection to the vocabulary, as [`begin`](Self::begin) has it: `[batch, d_model]`.
    pub(crate) fn go_on(&self, tokens: &[u32], state: &mut TokenState, tools: &mut Tools<'_>) -> usize {
        let d_model = self.stack.config().d_model;
        let x = room(&mut state.x, tokens.len() * d_model);
        self.vocabulary.table().look_up(tokens, x);
        if let Entry::Sum { .. } = self.entry {
            let each = state.expanded.chunks_exact(state.positions * d_model);
            for (x, context) in x.chunks_exact_mut(d_model).zip(each) {
                let context = &context[state.cache.len() * d_model..][..d_model];
                x.iter_mut().zip(context).for_each(|(x, context)| *x += context);
            }
        }
        self.run(tokens.len(), 1, 0, state, tools)
    }

    /// The likeliest tokens by hidden states; nothing where logits are no numbers.
    pub(crate) fn likeliest(&self, hidden: &[f32], tools: &mut Tools<'_>) -> Vec<Option<u32>> {
        let mut clock = Clock::start();
        let tokens = self.vocabulary.likeliest(tools.level, hidden, tools.scratch);
        clock.lap(&mut tools.profile.output);
        tokens
    }

    /// Logits of hidden states.
    pub(crate) fn project(&self, hidden: &[f32], tools: &mut Tools<'_>) -> Vec<f32> {
        let mut clock = Clock::start();
        let logits = self.vocabulary.logits(tools.level, hidden, tools.scratch);
        clock.lap(&mut tools.profile.output);
        logits
    }

    /// Runs the layers on `new` positions of each block. The hidden states of those from number `first` on are the first
    /// numbers of `state.x`, so many.
    fn run(&self, rows: usize, new: usize, first: usize, state: &mut TokenState, tools: &mut Tools<'_>) -> usize {
        let d_model = self.stack.config().d_model;
        let x = &mut state.x[..rows * new * d_model];
        let kv = Kv::Together { cache: &mut state.cache, sequences: 0..rows };
        let wanted = new - first;
        let positions = Positions { new, wanted, group: 1, padded: &[] };
        let spent = self.stack.forward(tools.level, x, positions, kv, tools.scratch);
        tools.profile.token_decoder += spent;
        state.cache.advance(new);
        rows * wanted * d_model
    }
}
