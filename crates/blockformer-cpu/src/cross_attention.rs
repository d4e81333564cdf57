//! The layers of a cross-attention token decoder on packed weights: what
//! `blockformer_token_decoder::CrossAttentionDecoder` computes between embeddings and logits.

use blockformer_kernels::{Activation, Level, Precision, Store, softmax};
use blockformer_nn::Norm as BurnNorm;
use blockformer_token_decoder::{CrossAttentionConfig, CrossAttentionLayer, Heads, RelativeBias};
use burn::nn::RmsNorm;
use rayon::prelude::*;

use crate::profile::{Clock, StackProfile};
use crate::stack::{Scratch, keep_last, room};
use crate::weights::{Linear, Norm};

/// Scores of a block that are worth a thread's attention.
const PART: usize = 1 << 14;

/// The layers and the final norm.
#[derive(Debug, Clone)]
pub(crate) struct CrossStack {
    config: CrossAttentionConfig,
    layers: Vec<Layer>,
    /// T5 multiplies hidden states by `d_model^-1/2` before its table projects them: so does the norm here.
    final_norm: Norm,
    /// The bias of self-attention, `[n_heads, block_length]`, by distance to the past.
    bias: Vec<f32>,
    block_length: usize,
}

#[derive(Debug, Clone)]
struct Layer {
    self_norm: Norm,
    /// Queries, keys and values side by side.
    qkv: Linear,
    self_output: Linear,
    cross_norm: Norm,
    query: Linear,
    /// Keys and values of the context side by side.
    keys_values: Linear,
    cross_output: Linear,
    feed_forward_norm: Norm,
    up: Linear,
    down: Linear,
}

/// Keys and values of blocks being decoded: of their tokens and of their contexts.
#[derive(Debug, Clone)]
pub(crate) struct CrossCache {
    /// Per layer `[rows, block_length, 2, n_heads · head_dim]`.
    tokens: Vec<Vec<f32>>,
    /// Per layer `[rows, positions, 2, n_heads · head_dim]`.
    context: Vec<Vec<f32>>,
    /// Positions of a context.
    positions: usize,
    len: usize,
}

impl CrossCache {
    pub(crate) fn bytes(&self) -> usize {
        self.tokens.iter().chain(&self.context).map(|numbers| size_of_val(&numbers[..])).sum()
    }
}

impl Layer {
    fn new(layer: CrossAttentionLayer, config: &CrossAttentionConfig, precision: Precision) -> Self {
        let norm = |norm: RmsNorm| Norm::new(BurnNorm::RmsNorm(norm), config.norm_eps);
        let Heads { query, key, value, output, .. } = layer.self_attention;
        let qkv = Linear::side_by_side([query, key, value], precision);
        let self_output = Linear::new(output, precision);
        let Heads { query, key, value, output, .. } = layer.cross_attention;
        Self {
            self_norm: norm(layer.self_norm),
            qkv,
            self_output,
            cross_norm: norm(layer.cross_norm),
            query: Linear::new(query, precision),
            keys_values: Linear::side_by_side([key, value], precision),
            cross_output: Linear::new(output, precision),
            feed_forward_norm: norm(layer.feed_forward_norm),
            up: Linear::new(layer.up, precision),
            down: Linear::new(layer.down, precision),
        }
    }

    fn bytes(&self) -> usize {
        let linear =
            [&self.qkv, &self.self_output, &self.query, &self.keys_values, &self.cross_output, &self.up, &self.down];
        let norms = [&self.self_norm, &self.cross_norm, &self.feed_forward_norm];
        linear.map(Linear::bytes).iter().sum::<usize>() + norms.map(Norm::bytes).iter().sum::<usize>()
    }
}

impl CrossStack {
    pub(crate) fn new(
        (layers, final_norm): (Vec<CrossAttentionLayer>, RmsNorm),
        relative_bias: &RelativeBias,
        block_length: usize,
        config: &CrossAttentionConfig,
        precision: Precision,
    ) -> Self {
        let final_norm = Norm::new(BurnNorm::RmsNorm(final_norm), config.norm_eps);
        Self {
            layers: layers.into_iter().map(|layer| Layer::new(layer, config, precision)).collect(),
            final_norm: final_norm.times((config.d_model as f32).powf(-0.5)),
            bias: relative_bias.by_distance(block_length),
            block_length,
            config: config.clone(),
        }
    }

    pub(crate) fn d_model(&self) -> usize {
        self.config.d_model
    }

    pub(crate) fn bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        layers + self.final_norm.bytes() + size_of_val(&self.bias[..])
    }

    /// Features of all heads.
    fn inner(&self) -> usize {
        self.config.n_heads * self.config.head_dim
    }

    /// Room for `rows` blocks whose contexts become so many positions each.
    pub(crate) fn new_cache(&self, rows: usize, positions: usize) -> CrossCache {
        let layers = || vec![Vec::new(); self.layers.len()];
        let mut cache = CrossCache { tokens: layers(), context: layers(), positions, len: 0 };
        self.grow(&mut cache, rows);
        cache
    }

    fn grow(&self, cache: &mut CrossCache, rows: usize) {
        let each = 2 * self.inner();
        for (tokens, context) in cache.tokens.iter_mut().zip(&mut cache.context) {
            room(tokens, rows * self.block_length * each);
            room(context, rows * cache.positions * each);
        }
    }

    /// Begins blocks: keys and values of their expanded contexts, `[rows, positions, d_model]`.
    pub(crate) fn begin(
        &self,
        level: Level,
        expanded: &[f32],
        cache: &mut CrossCache,
        scratch: &mut Scratch,
    ) -> StackProfile {
        let (mut clock, mut profile) = (Clock::start(), StackProfile::default());
        let n = expanded.len() / self.d_model();
        cache.len = 0;
        self.grow(cache, n / cache.positions);
        for (layer, context) in self.layers.iter().zip(&mut cache.context) {
            let context = &mut context[..n * 2 * self.inner()];
            layer.keys_values.forward(level, expanded, &mut scratch.rounded, context);
        }
        clock.lap(&mut profile.attention);
        profile
    }

    /// Runs the layers on `new` tokens of each block, in place. Behind it the first numbers of `x` are those of the last
    /// `wanted` of them, `[rows, wanted, d_model]`.
    ///
    /// # Panics
    /// If they are more than a block has.
    pub(crate) fn forward(
        &self,
        level: Level,
        x: &mut [f32],
        (new, wanted): (usize, usize),
        cache: &mut CrossCache,
        scratch: &mut Scratch,
    ) -> StackProfile {
        let (mut clock, mut profile) = (Clock::start(), StackProfile::default());
        let (d_model, inner) = (self.d_model(), self.inner());
        let (start, end) = (cache.len, cache.len + new);
        assert!(end <= self.block_length, "{end} positions in a block of {}", self.block_length);
        let n = x.len() / d_model;
        let rows = n / new;
        let Scratch { normed, qkv, mixed, inner: hidden, rounded, .. } = scratch;
        let normed = room(normed, n * d_model);
        let mixed = room(mixed, n * inner);
        let held = cache.tokens.iter_mut().zip(&cache.context);
        for (layer, (tokens, context)) in self.layers.iter().zip(held) {
            let add = (Activation::Identity, Store::Add);
            layer.self_norm.forward(level, x, normed);
            let qkv = room(qkv, n * 3 * inner);
            layer.qkv.forward(level, normed, rounded, qkv);
            for (row, qkv) in qkv.chunks_exact(new * 3 * inner).enumerate() {
                let tokens = &mut tokens[(row * self.block_length + start) * 2 * inner..][..new * 2 * inner];
                for (token, qkv) in tokens.chunks_exact_mut(2 * inner).zip(qkv.chunks_exact(3 * inner)) {
                    token.copy_from_slice(&qkv[inner..]);
                }
            }
            let seen = Seen { new, start, capacity: self.block_length, bias: Some(&self.bias) };
            self.attend(level, (qkv, 3 * inner), &tokens[..rows * self.block_length * 2 * inner], seen, mixed);
            layer.self_output.run(level, mixed, add, rounded, x);

            layer.cross_norm.forward(level, x, normed);
            let queries = &mut qkv[..n * inner];
            layer.query.forward(level, normed, rounded, queries);
            let seen = Seen { new, start: 0, capacity: cache.positions, bias: None };
            self.attend(level, (queries, inner), &context[..rows * cache.positions * 2 * inner], seen, mixed);
            layer.cross_output.run(level, mixed, add, rounded, x);
            clock.lap(&mut profile.attention);

            layer.feed_forward_norm.forward(level, x, normed);
            let hidden = room(hidden, n * layer.up.n_outputs());
            layer.up.run(level, normed, (Activation::Relu, Store::Write), rounded, hidden);
            layer.down.run(level, hidden, add, rounded, x);
            clock.lap(&mut profile.feed_forward);
        }
        cache.len = end;
        keep_last(x, rows, new * d_model, wanted * d_model);
        let x = &mut x[..rows * wanted * d_model];
        self.final_norm.forward(level, x, &mut normed[..x.len()]);
        x.copy_from_slice(&normed[..x.len()]);
        clock.lap(&mut profile.other);
        profile
    }

    /// Mixes values, `[rows, new, n_heads · head_dim]`. Scores are not scaled. A block has few keys, and its projections
    /// hundreds of times the work.
    fn attend(
        &self,
        level: Level,
        (queries, stride): (&[f32], usize),
        held: &[f32],
        seen: Seen<'_>,
        mixed: &mut [f32],
    ) {
        let CrossAttentionConfig { n_heads, head_dim, .. } = self.config;
        let (inner, Seen { new, start, capacity, bias }) = (self.inner(), seen);
        let each = held.par_chunks_exact(capacity * 2 * inner).zip(queries.par_chunks_exact(new * stride));
        let least = (PART / (new * capacity * inner)).max(1);
        mixed.par_chunks_exact_mut(new * inner).zip(each).with_min_len(least).for_each(|(mixed, (held, queries))| {
            let mut scores = vec![0.0; capacity];
            for (at, (mixed, query)) in mixed.chunks_exact_mut(inner).zip(queries.chunks_exact(stride)).enumerate() {
                let own = start + at;
                // Tokens see those before them and themselves; all of the context is seen.
                let n_keys = if bias.is_some() { own + 1 } else { capacity };
                let scores = &mut scores[..n_keys];
                for head in 0..n_heads {
                    let features = head * head_dim..(head + 1) * head_dim;
                    for (key, (score, held)) in scores.iter_mut().zip(held.chunks_exact(2 * inner)).enumerate() {
                        let products = query[features.clone()].iter().zip(&held[features.clone()]);
                        *score = products.map(|(query, key)| query * key).sum::<f32>()
                            + bias.map_or(0.0, |bias| bias[head * capacity + own - key]);
                    }
                    softmax(level, scores, n_keys);
                    let mixed = &mut mixed[features.clone()];
                    mixed.fill(0.0);
                    for (score, held) in scores.iter().zip(held.chunks_exact(2 * inner)) {
                        let values = &held[inner..][features.clone()];
                        mixed.iter_mut().zip(values).for_each(|(mixed, value)| *mixed += score * value);
                    }
                }
            }
        });
    }
}

/// What the queries of a block see.
#[derive(Clone, Copy)]
struct Seen<'a> {
    /// Queries of each block.
    new: usize,
    /// The position of the first.
    start: usize,
    /// Positions of keys that a block has room for.
    capacity: usize,
    /// `[n_heads, capacity]`, by distance to the past, which alone is seen; without one, all is seen.
    bias: Option<&'a [f32]>,
}
