//! The token decoder: from a context embedding to the tokens of a block.

use blockformer_kernels::{Level, Precision};
use blockformer_nn::{Transformer, TransformerConfig};
use blockformer_token_decoder::{
    AnyTokenDecoder, ContextExpansion, CrossAttentionConfig, CrossAttentionDecoder, CrossAttentionLayer, RelativeBias,
    TokenDecoderConfig,
};
use burn::nn::RmsNorm;

use crate::PackError;
use crate::cache::{Cache, Kv};
use crate::cross_attention::{CrossCache, CrossStack};
use crate::lengths::Lengths;
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
    /// As keys and values that the start token and the tokens attend to.
    Attended { start_token_id: u32 },
}

/// The layers behind it.
#[derive(Debug, Clone)]
enum Layers {
    Stack(Stack),
    Cross(CrossStack),
}

/// A token decoder on packed weights.
#[derive(Debug, Clone)]
pub(crate) struct TokenDecoder {
    entry: Entry,
    expansion: Option<Linear>,
    ratio: usize,
    layers: Layers,
    vocabulary: Vocabulary,
}

/// The block being decoded.
#[derive(Debug, Clone)]
pub(crate) struct TokenState {
    cache: TokenCache,
    /// The expanded context embeddings, `[batch, positions, d_model]`.
    expanded: Vec<f32>,
    /// Positions that the context of a block becomes, `n_embedding_tokens · ratio`.
    positions: usize,
    /// The new positions.
    x: Vec<f32>,
}

#[derive(Debug, Clone)]
enum TokenCache {
    Stack(Cache),
    Cross(CrossCache),
}

impl TokenState {
    pub(crate) fn cache_bytes(&self) -> usize {
        match &self.cache {
            TokenCache::Stack(cache) => cache.bytes(),
            TokenCache::Cross(cache) => cache.bytes(),
        }
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
        block_length: usize,
        precision: Precision,
    ) -> Result<Self, PackError> {
        let (entry, expansion, vocabulary, layers) = match (decoder, config) {
            (AnyTokenDecoder::Prefix(decoder), TokenDecoderConfig::Prefix(config)) => {
                let layers = Unpacked::Stack(decoder.transformer, &config.transformer);
                (Entry::Prefix, decoder.expansion, decoder.vocabulary, layers)
            }
            (AnyTokenDecoder::Summation(decoder), TokenDecoderConfig::Summation(config)) => {
                let entry = Entry::Sum { start_token_id: config.start_token_id };
                let layers = Unpacked::Stack(decoder.transformer, &config.transformer);
                (entry, decoder.expansion, decoder.vocabulary, layers)
            }
            (AnyTokenDecoder::CrossAttention(decoder), TokenDecoderConfig::CrossAttention(config)) => {
                let entry = Entry::Attended { start_token_id: config.start_token_id };
                let CrossAttentionDecoder { expansion, vocabulary, relative_bias, layers, final_norm, .. } = decoder;
                (entry, expansion, vocabulary, Unpacked::Cross(layers, final_norm, relative_bias, config))
            }
            _ => return Err(PackError::Mismatch),
        };
        let ratio = expansion.ratio();
        let ContextExpansion { layer, .. } = expansion;
        // The largest matrices first, while little else is packed.
        let vocabulary = Vocabulary::new(vocabulary, precision);
        let expansion = layer.map(|layer| Linear::new(layer, precision));
        let layers = match layers {
            Unpacked::Stack(transformer, config) => Layers::Stack(Stack::new(transformer, config, precision)?),
            Unpacked::Cross(layers, final_norm, bias, config) => {
                Layers::Cross(CrossStack::new((layers, final_norm), &bias, block_length, config, precision))
            }
        };
        Ok(Self { entry, expansion, ratio, layers, vocabulary })
    }

    pub(crate) fn bytes(&self) -> usize {
        let layers = match &self.layers {
            Layers::Stack(stack) => stack.bytes(),
            Layers::Cross(stack) => stack.bytes(),
        };
        self.expansion.as_ref().map_or(0, Linear::bytes) + layers + self.vocabulary.bytes()
    }

    fn d_model(&self) -> usize {
        match &self.layers {
            Layers::Stack(stack) => stack.config().d_model,
            Layers::Cross(stack) => stack.d_model(),
        }
    }

    pub(crate) fn new_state(&self, batch: usize, n_embedding_tokens: usize, block_length: usize) -> TokenState {
        let positions = n_embedding_tokens * self.ratio;
        let cache = match &self.layers {
            Layers::Stack(stack) => {
                // A prefix stands before all tokens but the last, which is not taken in; a start token in its place.
                let before = if let Entry::Prefix = self.entry { positions } else { 1 };
                TokenCache::Stack(Cache::new(stack.config(), batch, before + block_length - 1))
            }
            Layers::Cross(stack) => TokenCache::Cross(stack.new_cache(batch, positions)),
        };
        TokenState { cache, expanded: Vec::new(), positions, x: Vec::new() }
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
        let (d_model, positions) = (self.d_model(), state.positions);
        let expanded = room(&mut state.expanded, rows * positions * d_model);
        match &self.expansion {
            Some(layer) => layer.forward(tools.level, context, &mut tools.scratch.workspace, expanded),
            None => {
                let each = expanded.chunks_exact_mut(self.ratio * d_model).zip(context.chunks_exact(d_model));
                each.for_each(|(out, row)| out.chunks_exact_mut(d_model).for_each(|out| out.copy_from_slice(row)));
            }
        }
        if let TokenCache::Stack(cache) = &mut state.cache {
            cache.reset();
            cache.grow(rows);
        }
        let n_tokens = tokens.len() / rows;
        let before = match self.entry {
            Entry::Prefix => positions,
            Entry::Sum { .. } | Entry::Attended { .. } => 1,
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
                Entry::Attended { start_token_id } => table.look_up(&[start_token_id], first),
            }
        }
        clock.lap(&mut tools.profile.token_decoder.other);
        if let (Layers::Cross(stack), TokenCache::Cross(cache)) = (&self.layers, &mut state.cache) {
            let expanded = &state.expanded[..rows * positions * d_model];
            tools.profile.token_decoder += stack.begin(tools.level, expanded, cache, tools.scratch);
        }
        self.run(rows, before + n_tokens, before - 1 + known, state, tools)
    }

    /// Takes in one token a block: logits of the next, `[batch, vocab_size]`.
    pub(crate) fn next(&self, tokens: &[u32], state: &mut TokenState, tools: &mut Tools<'_>) -> Vec<f32> {
        let n = self.go_on(tokens, state, tools);
        self.project(&state.x[..n], tools)
    }

    /// The same before the projection to the vocabulary, as [`begin`](Self::begin) has it: `[batch, d_model]`.
    pub(crate) fn go_on(&self, tokens: &[u32], state: &mut TokenState, tools: &mut Tools<'_>) -> usize {
        let d_model = self.d_model();
        let x = room(&mut state.x, tokens.len() * d_model);
        self.vocabulary.table().look_up(tokens, x);
        if let (Entry::Sum { .. }, TokenCache::Stack(cache)) = (&self.entry, &state.cache) {
            let each = state.expanded.chunks_exact(state.positions * d_model);
            for (x, context) in x.chunks_exact_mut(d_model).zip(each) {
                let context = &context[cache.len() * d_model..][..d_model];
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

    /// Logits of hidden states, in memory of their own: they become a tensor.
    pub(crate) fn project(&self, hidden: &[f32], tools: &mut Tools<'_>) -> Vec<f32> {
        let mut logits = Vec::new();
        self.project_into(hidden, tools, &mut logits);
        logits
    }

    /// Logits of hidden states, instead of whatever `logits` holds.
    pub(crate) fn project_into(&self, hidden: &[f32], tools: &mut Tools<'_>, logits: &mut Vec<f32>) {
        let mut clock = Clock::start();
        self.vocabulary.logits(tools.level, hidden, tools.scratch, logits);
        clock.lap(&mut tools.profile.output);
    }

    /// Runs the layers on `new` positions of each block. The hidden states of those from number `first` on are the first
    /// numbers of `state.x`, so many.
    fn run(&self, rows: usize, new: usize, first: usize, state: &mut TokenState, tools: &mut Tools<'_>) -> usize {
        let d_model = self.d_model();
        let x = &mut state.x[..rows * new * d_model];
        let wanted = new - first;
        tools.profile.token_decoder += match (&self.layers, &mut state.cache) {
            (Layers::Stack(stack), TokenCache::Stack(cache)) => {
                let kv = Kv::Together { cache, sequences: 0..rows };
                let new_of_all = Lengths::Same { length: new, rows };
                let positions = Positions { new: new_of_all, wanted: Some(wanted), group: 1, padded: &[], turned: 0 };
                let spent = stack.forward(tools.level, x, positions, kv, tools.scratch);
                cache.advance(new);
                spent
            }
            (Layers::Cross(stack), TokenCache::Cross(cache)) => {
                stack.forward(tools.level, x, (new, wanted), cache, tools.scratch)
            }
            _ => panic!("the state of another token decoder"),
        };
        rows * wanted * d_model
    }
}

/// Layers that are not packed yet.
enum Unpacked<'a> {
    Stack(Transformer, &'a TransformerConfig),
    Cross(Vec<CrossAttentionLayer>, RmsNorm, RelativeBias, &'a CrossAttentionConfig),
}
