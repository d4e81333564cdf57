//! A stack of layers on packed weights: what `blockformer_nn::Transformer` computes.

use std::ops::Range;

use blockformer_kernels::{
    Activation, AttentionInputs, AttentionShape, Level, Precision, Store, Stored, Workspace, attention, rotate,
};
use blockformer_kv_cache::{HostLayer, HostRows};
use blockformer_nn::{
    Activation as NnActivation, Layer as BurnLayer, NormPosition, Residual, Transformer, TransformerConfig,
};

use crate::PackError;
use crate::cache::Kv;
use crate::lengths::Lengths;
use crate::profile::{Clock, StackProfile};
use crate::weights::{Linear, Norm};

/// Positions of prompts that go through a stack at once: sequences are taken in so many at a time.
pub(crate) const PREFILL_ROWS: usize = 512;

/// Buffers that every step uses anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    pub(crate) normed: Vec<f32>,
    pub(crate) qkv: Vec<f32>,
    pub(crate) mixed: Vec<f32>,
    pub(crate) inner: Vec<f32>,
    pub(crate) visible: Vec<Range<usize>>,
    /// The first new position of each sequence.
    starts: Vec<usize>,
    /// New positions of each sequence.
    lengths: Vec<usize>,
    /// The pages of each sequence, one after the other.
    pub(crate) tables: Vec<usize>,
    /// What kernels keep while they compute.
    pub(crate) workspace: Workspace,
    /// Bytes of the most logits there were at once.
    pub(crate) logits: usize,
}

impl Scratch {
    pub(crate) fn bytes(&self) -> usize {
        let floats = [&self.normed, &self.qkv, &self.mixed, &self.inner];
        let tables =
            [&self.starts, &self.lengths, &self.tables].iter().map(|table| size_of_val(&table[..])).sum::<usize>();
        let floats = floats.iter().map(|buffer| size_of_val(&buffer[..])).sum::<usize>();
        floats + size_of_val(&self.visible[..]) + tables + self.workspace.bytes() + self.logits
    }
}

/// The first `n` numbers of a buffer that grows as needed.
pub(crate) fn room(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// Which positions come in, and what they see.
#[derive(Clone, Copy)]
pub(crate) struct Positions<'a> {
    /// New positions of each sequence, one sequence after the other.
    pub(crate) new: Lengths<'a>,
    /// The last so many of each are wanted behind the layers, or all; the last layer computes no others.
    pub(crate) wanted: Option<usize>,
    /// Positions of one group see each other.
    pub(crate) group: usize,
    /// For each sequence, how many positions at its start are padding; empty where there is none.
    pub(crate) padded: &'a [usize],
    /// Rotary positions begin with this one and run round. Not zero only where there are no positions before the new.
    pub(crate) turned: usize,
}

/// The kernel of an activation.
///
/// # Errors
/// [`PackError::Unsupported`] if there is none.
pub(crate) fn activation(config: &TransformerConfig) -> Result<Activation, PackError> {
    match config.activation {
        NnActivation::Gelu => Ok(Activation::Gelu),
        NnActivation::GeluTanh => Ok(Activation::GeluTanh),
        NnActivation::Relu => Ok(Activation::Relu),
        NnActivation::Silu => Ok(Activation::Silu),
        _ => Err(PackError::Unsupported { part: "activation of this kind" }),
    }
}

#[derive(Debug, Clone)]
struct Layer {
    attention_norm: Norm,
    qkv: Linear,
    output: Linear,
    feed_forward_norm: Norm,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

/// Layers, rotary tables, final norm.
#[derive(Debug, Clone)]
pub(crate) struct Stack {
    config: TransformerConfig,
    activation: Activation,
    layers: Vec<Layer>,
    final_norm: Option<Norm>,
    /// `[max_positions, half]` each; empty without rotary embedding.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Stack {
    pub(crate) fn new(
        transformer: Transformer,
        config: &TransformerConfig,
        precision: Precision,
    ) -> Result<Self, PackError> {
        let (cos, sin) = rotary_tables(config);
        Ok(Self {
            activation: activation(config)?,
            layers: transformer.layers.into_iter().map(|layer| Layer::new(layer, config, precision)).collect(),
            final_norm: transformer.final_norm.map(|norm| Norm::new(norm, config.norm_eps)),
            cos,
            sin,
            config: config.clone(),
        })
    }

    pub(crate) fn config(&self) -> &TransformerConfig {
        &self.config
    }

    pub(crate) fn bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        layers + self.final_norm.as_ref().map_or(0, Norm::bytes) + 2 * size_of_val(&self.cos[..])
    }

    /// Runs the layers on `x`, in place; keys and values are written, but the sequences not advanced. Behind it the first
    /// numbers of `x` are those of the wanted positions, `[sequences, wanted, d_model]`.
    ///
    /// # Shapes
    /// - `x`: `[new positions of all sequences, d_model]`
    ///
    /// # Panics
    /// If positions run beyond the pages or the rotary tables.
    pub(crate) fn forward(
        &self,
        level: Level,
        x: &mut [f32],
        positions: Positions<'_>,
        mut kv: Kv<'_, '_>,
        scratch: &mut Scratch,
    ) -> StackProfile {
        let mut clock = Clock::start();
        let mut profile = StackProfile::default();
        let (rows, page_length) = (kv.rows(), kv.page_length());
        kv.tables(&mut scratch.tables);
        let capacity = scratch.tables.len() / rows * page_length;
        assert_eq!(positions.new.rows(), rows, "sequences");
        scratch.starts.clear();
        scratch.starts.extend((0..rows).map(|row| kv.start(row)));
        scratch.lengths.clear();
        scratch.lengths.extend(positions.new.iter());
        for (start, new) in scratch.starts.iter().zip(&scratch.lengths) {
            let end = start + new;
            assert!(end <= capacity, "{end} positions in a cache of {capacity}");
            assert!(
                end <= self.config.max_positions || self.cos.is_empty(),
                "position {end} is beyond the rotary tables"
            );
        }
        see(&mut scratch.visible, &positions, &scratch.starts);
        let Positions { wanted, turned, .. } = positions;
        for (index, layer) in self.layers.iter().enumerate() {
            let wanted = wanted.filter(|_| index + 1 == self.layers.len());
            let held = kv.layer(index);
            let mut pass = Pass { stack: self, layer, level, turned, page_length, held, scratch };
            pass.run(x, wanted, &mut clock, &mut profile);
        }
        let x = &mut x[..scratch.lengths.iter().sum::<usize>() * self.config.d_model];
        if let Some(norm) = &self.final_norm {
            let normed = room(&mut scratch.normed, x.len());
            norm.forward(level, x, normed);
            x.copy_from_slice(normed);
        }
        clock.lap(&mut profile.other);
        profile
    }
}

impl Layer {
    fn new(layer: BurnLayer, config: &TransformerConfig, precision: Precision) -> Self {
        Self {
            attention_norm: Norm::new(layer.attention_norm, config.norm_eps),
            qkv: Linear::new(layer.attention.qkv, precision),
            output: Linear::new(layer.attention.output, precision),
            feed_forward_norm: Norm::new(layer.feed_forward_norm, config.norm_eps),
            gate: layer.feed_forward.gate.map(|gate| Linear::new(gate, precision)),
            up: Linear::new(layer.feed_forward.up, precision),
            down: Linear::new(layer.feed_forward.down, precision),
        }
    }

    fn bytes(&self) -> usize {
        let linear = [&self.qkv, &self.output, &self.up, &self.down].into_iter().chain(&self.gate);
        let norms = self.attention_norm.bytes() + self.feed_forward_norm.bytes();
        linear.map(Linear::bytes).sum::<usize>() + norms
    }
}

/// What attention reads.
pub(crate) fn stored<'a>(rows: &'a HostRows<'_>) -> Stored<'a> {
    match rows {
        HostRows::Float32(numbers) => Stored::F32(numbers),
        HostRows::Float16(numbers) => Stored::F16(numbers),
        HostRows::Int8 { numbers, scales } => Stored::Int8 { numbers, scales },
    }
}

/// As `blockformer_nn::RotaryTable`.
fn rotary_tables(config: &TransformerConfig) -> (Vec<f32>, Vec<f32>) {
    let Some(rotary) = config.rotary else { return (Vec::new(), Vec::new()) };
    let (dim, half) = (config.rotary_dim(), config.rotary_dim() / 2);
    let frequencies: Vec<f32> =
        (0..half).map(|i| 1.0 / (rotary.base as f32).powf(2.0 * i as f32 / dim as f32)).collect();
    let angles = || (0..config.max_positions * half).map(|i| (i / half) as f32 * frequencies[i % half]);
    (angles().map(f32::cos).collect(), angles().map(f32::sin).collect())
}

/// The keys that each query sees, as `blockformer_nn::AttentionMask` has it: those up to the end of its group that are
/// not padding; where none is left, itself.
fn see(visible: &mut Vec<Range<usize>>, positions: &Positions<'_>, starts: &[usize]) {
    let Positions { new, group, padded, .. } = *positions;
    visible.clear();
    for (sequence, (&start, new)) in starts.iter().zip(new.iter()).enumerate() {
        let first = padded.get(sequence).copied().unwrap_or(0);
        visible.extend((start..start + new).map(|own| {
            let end = ((own / group + 1) * group).min(start + new);
            if first < end { first..end } else { own..own + 1 }
        }));
    }
}

/// Numbers of a position's queries, keys and values.
fn qkv_width(config: &TransformerConfig) -> usize {
    (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
}

/// Moves the last `kept` of each of some stretches, of things of `width`, to the front.
pub(crate) fn keep_last<T: Clone>(of: &mut [T], lengths: Lengths<'_>, kept: usize, width: usize) {
    let (mut from, kept) = (0, kept * width);
    for (index, length) in lengths.iter().enumerate() {
        from += length * width;
        for at in 0..kept {
            of[index * kept + at] = of[from - kept + at].clone();
        }
    }
}

/// One layer's work.
struct Pass<'a> {
    stack: &'a Stack,
    layer: &'a Layer,
    level: Level,
    turned: usize,
    page_length: usize,
    held: HostLayer<'a>,
    scratch: &'a mut Scratch,
}

impl Pass<'_> {
    /// Behind it the first numbers of `x` are those of the last `wanted` positions of each sequence, or of all.
    fn run(&mut self, x: &mut [f32], wanted: Option<usize>, clock: &mut Clock, profile: &mut StackProfile) {
        let (layer, level) = (self.layer, self.level);
        let TransformerConfig { norm_position, residual, .. } = self.stack.config;
        if norm_position == NormPosition::Post {
            room(&mut self.scratch.normed, x.len()).copy_from_slice(x);
            self.project();
            let x = self.keep(wanted, x);
            self.attend(x);
            layer.attention_norm.forward(level, x, room(&mut self.scratch.normed, x.len()));
            x.copy_from_slice(&self.scratch.normed[..x.len()]);
            clock.lap(&mut profile.attention);
            self.feed_forward(x);
            layer.feed_forward_norm.forward(level, x, room(&mut self.scratch.normed, x.len()));
            x.copy_from_slice(&self.scratch.normed[..x.len()]);
            clock.lap(&mut profile.feed_forward);
            return;
        }
        layer.attention_norm.forward(level, x, room(&mut self.scratch.normed, x.len()));
        self.project();
        let x = self.keep(wanted, x);
        if residual == Residual::Parallel {
            // The network's input is read before attention is added to the stream.
            layer.feed_forward_norm.forward(level, x, room(&mut self.scratch.normed, x.len()));
            self.attend(x);
        } else {
            self.attend(x);
            layer.feed_forward_norm.forward(level, x, room(&mut self.scratch.normed, x.len()));
        }
        clock.lap(&mut profile.attention);
        self.feed_forward(x);
        clock.lap(&mut profile.feed_forward);
    }

    /// Keeps the last `wanted` positions of each sequence, which become all there are: their numbers in `x`, their
    /// queries, and what they see.
    fn keep<'x>(&mut self, wanted: Option<usize>, x: &'x mut [f32]) -> &'x mut [f32] {
        let d_model = self.stack.config.d_model;
        let Scratch { qkv, visible, lengths, .. } = &mut *self.scratch;
        if let Some(wanted) = wanted.filter(|wanted| lengths.iter().any(|new| new > wanted)) {
            let new = Lengths::Each(lengths);
            keep_last(x, new, wanted, d_model);
            keep_last(qkv, new, wanted, qkv_width(&self.stack.config));
            keep_last(visible, new, wanted, 1);
            lengths.fill(wanted);
            visible.truncate(lengths.len() * wanted);
        }
        &mut x[..lengths.iter().sum::<usize>() * d_model]
    }

    /// Queries, keys and values of `normed`, rotated; keys and values go to their pages.
    fn project(&mut self) {
        let TransformerConfig { d_model, n_heads, n_kv_heads, head_dim, .. } = self.stack.config;
        let Scratch { normed, qkv, starts, lengths, tables, workspace, .. } = &mut *self.scratch;
        let rows = lengths.iter().sum::<usize>();
        let stride = qkv_width(&self.stack.config);
        let qkv = room(qkv, rows * stride);
        self.layer.qkv.forward(self.level, &normed[..rows * d_model], workspace, qkv);
        let half = self.stack.config.rotary_dim() / 2;
        let pages = tables.len() / starts.len();
        let of_sequence = |(sequence, (start, new)): (usize, (&usize, &usize))| {
            let new = *new;
            (*start..start + new).map(move |position| (sequence, position, new))
        };
        let positions = starts.iter().zip(&*lengths).enumerate().flat_map(of_sequence);
        for ((sequence, position, new), qkv) in positions.zip(qkv.chunks_exact_mut(stride)) {
            let (queries_keys, values) = qkv.split_at_mut((n_heads + n_kv_heads) * head_dim);
            if half > 0 {
                let turned = if self.turned > 0 { (position + self.turned) % new } else { position };
                let angles = turned * half..(turned + 1) * half;
                let (cos, sin) = (&self.stack.cos[angles.clone()], &self.stack.sin[angles]);
                rotate(self.level, queries_keys, head_dim, cos, sin);
            }
            let page = tables[sequence * pages + position / self.page_length];
            let keys = queries_keys[n_heads * head_dim..].chunks_exact(head_dim);
            for (head, (key, value)) in keys.zip(values.chunks_exact(head_dim)).enumerate() {
                let row = (page * n_kv_heads + head) * self.page_length + position % self.page_length;
                self.held.keys.write(row, key);
                self.held.values.write(row, value);
            }
        }
    }

    /// Adds the projected mixture of values to `x`.
    fn attend(&mut self, x: &mut [f32]) {
        let TransformerConfig { n_heads, n_kv_heads, head_dim, .. } = self.stack.config;
        let Scratch { qkv, mixed, visible, lengths, tables, workspace, .. } = &mut *self.scratch;
        let (page_length, query_stride) = (self.page_length, qkv_width(&self.stack.config));
        let pages = tables.len() / lengths.len();
        let (keys, values) = (stored(&self.held.keys), stored(&self.held.values));
        let mixed = room(mixed, visible.len() * n_heads * head_dim);
        let (mut sequence, mut position) = (0, 0);
        // Neighbours with as many positions go together.
        for alike in lengths.chunk_by(|a, b| a == b) {
            let (batch, n_queries) = (alike.len(), alike[0]);
            let (sequences, own) = (sequence..sequence + batch, position..position + batch * n_queries);
            (sequence, position) = (sequences.end, own.end);
            let shape = AttentionShape { batch, n_queries, n_heads, n_kv_heads, head_dim, page_length, query_stride };
            let queries = &qkv[own.start * query_stride..own.end * query_stride];
            let (tables, visible) = (&tables[sequences.start * pages..sequences.end * pages], &visible[own.clone()]);
            let inputs = AttentionInputs { queries, keys, values, tables, visible, bias: None };
            let mixed = &mut mixed[own.start * n_heads * head_dim..own.end * n_heads * head_dim];
            attention(self.level, shape, inputs, workspace, mixed);
        }
        self.layer.output.run(self.level, mixed, (Activation::Identity, Store::Add), workspace, x);
    }

    /// Adds the feed-forward network of `normed` to `x`.
    fn feed_forward(&mut self, x: &mut [f32]) {
        let (level, layer, activation) = (self.level, self.layer, self.stack.activation);
        let Scratch { normed, inner, workspace, .. } = &mut *self.scratch;
        let normed = &normed[..x.len()];
        let rows = x.len() / self.stack.config.d_model;
        let inner = room(inner, rows * layer.up.n_outputs());
        match &layer.gate {
            Some(gate) => {
                gate.run(level, normed, (activation, Store::Write), workspace, inner);
                layer.up.run(level, normed, (Activation::Identity, Store::Multiply), workspace, inner);
            }
            None => layer.up.run(level, normed, (activation, Store::Write), workspace, inner),
        }
        layer.down.run(level, inner, (Activation::Identity, Store::Add), workspace, x);
    }
}
