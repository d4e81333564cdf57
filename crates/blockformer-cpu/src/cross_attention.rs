//! The layers of a cross-attention token decoder on packed weights: what
//! `blockformer_token_decoder::CrossAttentionDecoder` computes between embeddings and logits.

use blockformer_kernels::{Activation, AttentionInputs, AttentionShape, Level, Precision, Store, attention};
use blockformer_kv_cache::HostLayer;
use blockformer_nn::Norm as BurnNorm;
use blockformer_token_decoder::{CrossAttentionConfig, CrossAttentionHeads, CrossAttentionLayer, RelativeBias};
use burn::nn::RmsNorm;

use crate::cache::{Cache, Kv};
use crate::lengths::Lengths;
use crate::profile::{Clock, StackProfile};
use crate::stack::{Scratch, keep_last, room, stored};
use crate::weights::{Linear, Norm};

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

/// Keys and values of blocks being decoded.
#[derive(Debug, Clone)]
pub(crate) struct CrossCache {
    /// Of the tokens, the start token among them.
    tokens: Cache,
    /// Of the contexts, which are taken in whole: as many positions as there is room for.
    context: Cache,
}

impl CrossCache {
    pub(crate) fn bytes(&self) -> usize {
        self.tokens.bytes() + self.context.bytes()
    }
}

impl Layer {
    fn new(layer: CrossAttentionLayer, config: &CrossAttentionConfig, precision: Precision) -> Self {
        let norm = |norm: RmsNorm| Norm::new(BurnNorm::RmsNorm(norm), config.norm_eps);
        // Scores are not scaled, but those of the kernel are.
        let scale = (config.head_dim as f32).sqrt();
        let CrossAttentionHeads { query, key, value, output, .. } = layer.self_attention;
        let qkv = Linear::side_by_side([(query, scale), (key, 1.0), (value, 1.0)], precision);
        let self_output = Linear::new(output, precision);
        let CrossAttentionHeads { query, key, value, output, .. } = layer.cross_attention;
        Self {
            self_norm: norm(layer.self_norm),
            qkv,
            self_output,
            cross_norm: norm(layer.cross_norm),
            query: Linear::side_by_side([(query, scale)], precision),
            keys_values: Linear::side_by_side([(key, 1.0), (value, 1.0)], precision),
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
        let CrossAttentionConfig { n_layers, n_heads, head_dim, .. } = self.config;
        let cache = |capacity: usize| Cache::of(n_layers, (n_heads, head_dim), rows, capacity);
        CrossCache { tokens: cache(self.block_length), context: cache(positions) }
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
        let positions = cache.context.capacity();
        let rows = n / positions;
        for cache in [&mut cache.tokens, &mut cache.context] {
            cache.reset();
            cache.grow(rows);
        }
        let keys_values = room(&mut scratch.qkv, n * 2 * self.inner());
        for (index, layer) in self.layers.iter().enumerate() {
            layer.keys_values.forward(level, expanded, &mut scratch.workspace, keys_values);
            let mut kv = Kv::Together { cache: &mut cache.context, sequences: 0..rows };
            self.hold(keys_values, 2 * self.inner(), (positions, 0, positions), &mut kv.layer(index));
        }
        cache.context.advance(positions);
        clock.lap(&mut profile.attention);
        profile
    }

    /// Writes the keys and values at the end of each row of `stride` numbers: `new` positions of each block, from `start`
    /// on, where each block has room for `capacity`.
    fn hold(
        &self,
        rows: &[f32],
        stride: usize,
        (new, start, capacity): (usize, usize, usize),
        held: &mut HostLayer<'_>,
    ) {
        let CrossAttentionConfig { n_heads, head_dim, .. } = self.config;
        for (index, row) in rows.chunks_exact(stride).enumerate() {
            let (keys, values) = row[stride - 2 * self.inner()..].split_at(self.inner());
            let (block, position) = (index / new, start + index % new);
            for (head, (key, value)) in keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).enumerate() {
                let at = (block * n_heads + head) * capacity + position;
                held.keys.write(at, key);
                held.values.write(at, value);
            }
        }
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
        let (d_model, start, positions) = (self.d_model(), cache.tokens.len(), cache.context.capacity());
        let rows = x.len() / (new * d_model);
        let sequences = 0..rows;
        cache.tokens.advance(new);
        for (index, layer) in self.layers.iter().enumerate() {
            let mut tokens = Kv::Together { cache: &mut cache.tokens, sequences: sequences.clone() };
            let mut context = Kv::Together { cache: &mut cache.context, sequences: sequences.clone() };
            let mut pass = Pass { stack: self, layer, level, rows, new, scratch };
            pass.attend_to_tokens(x, start, tokens.layer(index));
            pass.attend_to_context(x, positions, context.layer(index));
            clock.lap(&mut profile.attention);
            pass.feed_forward(x);
            clock.lap(&mut profile.feed_forward);
        }
        keep_last(x, Lengths::Same { length: new, rows }, wanted, d_model);
        let x = &mut x[..rows * wanted * d_model];
        let normed = room(&mut scratch.normed, x.len());
        self.final_norm.forward(level, x, normed);
        x.copy_from_slice(normed);
        clock.lap(&mut profile.other);
        profile
    }
}

/// One layer's work.
struct Pass<'a> {
    stack: &'a CrossStack,
    layer: &'a Layer,
    level: Level,
    /// Blocks.
    rows: usize,
    /// New tokens of each.
    new: usize,
    scratch: &'a mut Scratch,
}

impl Pass<'_> {
    /// Tokens see those before them and themselves.
    fn attend_to_tokens(&mut self, x: &mut [f32], start: usize, mut held: HostLayer<'_>) {
        let (stack, layer, stride) = (self.stack, self.layer, 3 * self.stack.inner());
        let Scratch { normed, qkv, visible, workspace, .. } = &mut *self.scratch;
        let normed = room(normed, x.len());
        layer.self_norm.forward(self.level, x, normed);
        let qkv = room(qkv, self.rows * self.new * stride);
        layer.qkv.forward(self.level, normed, workspace, qkv);
        stack.hold(qkv, stride, (self.new, start, stack.block_length), &mut held);
        visible.clear();
        visible.extend((0..self.rows * self.new).map(|row| 0..start + row % self.new + 1));
        self.mix(stride, stack.block_length, Some(&stack.bias), &held);
        let Scratch { mixed, workspace, .. } = &mut *self.scratch;
        let mixed = &mixed[..self.rows * self.new * stack.inner()];
        layer.self_output.run(self.level, mixed, (Activation::Identity, Store::Add), workspace, x);
    }

    /// All of the context is seen.
    fn attend_to_context(&mut self, x: &mut [f32], positions: usize, held: HostLayer<'_>) {
        let (layer, stride) = (self.layer, self.stack.inner());
        let Scratch { normed, qkv, visible, workspace, .. } = &mut *self.scratch;
        let normed = room(normed, x.len());
        layer.cross_norm.forward(self.level, x, normed);
        layer.query.forward(self.level, normed, workspace, room(qkv, self.rows * self.new * stride));
        visible.clear();
        visible.resize(self.rows * self.new, 0..positions);
        self.mix(stride, positions, None, &held);
        let Scratch { mixed, workspace, .. } = &mut *self.scratch;
        let mixed = &mixed[..self.rows * self.new * stride];
        layer.cross_output.run(self.level, mixed, (Activation::Identity, Store::Add), workspace, x);
    }

    /// Mixes the values that the first numbers of each row of `qkv` see.
    fn mix(&mut self, query_stride: usize, page_length: usize, bias: Option<&[f32]>, held: &HostLayer<'_>) {
        let CrossAttentionConfig { n_heads, head_dim, .. } = self.stack.config;
        let (batch, n_queries) = (self.rows, self.new);
        let shape =
            AttentionShape { batch, n_queries, n_heads, n_kv_heads: n_heads, head_dim, page_length, query_stride };
        let Scratch { qkv, mixed, visible, tables, workspace, .. } = &mut *self.scratch;
        tables.clear();
        tables.extend(0..batch);
        let queries = &qkv[..batch * n_queries * query_stride];
        let (keys, values) = (stored(&held.keys), stored(&held.values));
        let inputs = AttentionInputs { queries, keys, values, tables, visible, bias };
        let mixed = room(mixed, batch * n_queries * n_heads * head_dim);
        attention(self.level, shape, inputs, workspace, mixed);
    }

    fn feed_forward(&mut self, x: &mut [f32]) {
        let Scratch { normed, inner, workspace, .. } = &mut *self.scratch;
        let normed = room(normed, x.len());
        self.layer.feed_forward_norm.forward(self.level, x, normed);
        let inner = room(inner, self.rows * self.new * self.layer.up.n_outputs());
        self.layer.up.run(self.level, normed, (Activation::Relu, Store::Write), workspace, inner);
        self.layer.down.run(self.level, inner, (Activation::Identity, Store::Add), workspace, x);
    }
}
