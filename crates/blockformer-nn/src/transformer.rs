//! A stack of layers.

use blockformer_cubecl::{has_kernels, takes_counts};
use blockformer_kv_cache::{CacheConfig, KvCache, KvPlace, KvStorage, PagedBatch, PoolConfig, SharedPages};
use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::attention::{AttentionContext, FUSED_FROM_SCORES, LayerKv};
use crate::linear::FullNorm;
use crate::{AttentionMask, Layer, Norm, RotaryTable};

/// Layers, rotary tables and a final norm: embeddings in, hidden states out. Made by
/// [`TransformerConfig::init`](crate::TransformerConfig::init).
#[derive(Module, Debug)]
pub struct Transformer {
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// Applied to the output of the last layer; none where every layer ends with a norm.
    pub final_norm: Option<Norm>,
    pub(crate) rotary: Option<RotaryTable>,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) d_model: usize,
    pub(crate) norm_epsilon: f64,
}

impl Transformer {
    /// Runs the layers. With a cache, `x` holds the positions that follow those in the cache.
    ///
    /// # Shapes
    /// - `x`: `[batch, positions, d_model]`, returns the same
    /// - a key mask in `mask`: `[batch, cached + positions]`
    ///
    /// # Panics
    /// If shapes do not fit, if positions run beyond the rotary tables, or if the cache cannot take them (ask
    /// [`KvCache::ensure_room`] first).
    pub fn forward(&self, x: Tensor<3>, mask: &AttentionMask, cache: Option<&mut KvCache>) -> Tensor<3> {
        let context = AttentionContext::new(&x, mask, self.rotary.as_ref(), cache.as_deref());
        self.layers_forward(x, &context, &mut cache.map_or(Kv::None, Kv::Contiguous))
    }

    /// Runs the layers over the new positions of sequences that a pool holds, each behind those it has. What comes
    /// out for one sequence depends on that sequence alone.
    ///
    /// # Shapes
    /// - `x`: `[1, new positions of all sequences, d_model]`, those of one sequence after those of the other, or, where each has
    ///   as many, `[sequences, new positions of each, d_model]`; returns the same
    ///
    /// # Panics
    /// If shapes do not fit, if `mask` hides keys, or if positions run beyond the rotary tables.
    pub fn forward_paged(&self, x: Tensor<3>, mask: &AttentionMask, batch: &mut PagedBatch<'_>) -> Tensor<3> {
        let [rows, positions, _] = x.dims();
        assert_eq!(rows * positions, batch.new_positions(), "new positions of all sequences");
        assert!(!mask.hides_keys(), "sequences of a pool hold no padding");
        let context = AttentionContext::paged(&x, mask, self.rotary.as_ref(), batch);
        self.layers_forward(x, &context, &mut Kv::Paged(batch))
    }

    fn layers_forward(&self, x: Tensor<3>, context: &AttentionContext, kv: &mut Kv<'_, '_>) -> Tensor<3> {
        let [_, _, d_model] = x.dims();
        assert_eq!(d_model, self.d_model, "embeddings of {d_model} features in a stack of {}", self.d_model);
        let mut x = x;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, context, kv.layer(index));
        }
        match &self.final_norm {
            Some(norm) => FullNorm { norm, epsilon: self.norm_epsilon }.forward(x),
            None => x,
        }
    }

    /// The size of a pool for this stack, with pages of `page_length` positions.
    pub fn pool_config(&self, page_length: usize, budget: usize, storage: KvStorage) -> PoolConfig {
        let (n_layers, n_kv_heads, head_dim) = (self.layers.len(), self.n_kv_heads, self.head_dim);
        PoolConfig { n_layers, n_kv_heads, head_dim, page_length, budget, storage, place: KvPlace::Device }
    }

    /// The size of a cache for `batch` sequences of up to `capacity` positions.
    pub fn cache_config(&self, batch: usize, capacity: usize) -> CacheConfig {
        let (n_layers, n_kv_heads, head_dim) = (self.layers.len(), self.n_kv_heads, self.head_dim);
        CacheConfig { n_layers, batch, n_kv_heads, capacity, head_dim }
    }

    /// An empty cache of that size, in the type of the weights.
    pub fn new_cache(&self, batch: usize, capacity: usize, device: &Device) -> KvCache {
        let config = self.cache_config(batch, capacity);
        match self.layers.first() {
            Some(layer) => KvCache::new(config, (device, layer.attention.qkv.weight.val().dtype())),
            None => KvCache::new(config, device),
        }
    }

    /// Whether the device may count the positions of a cache ([`KvCache::count_on_device`]) for passes of one new position:
    /// where there are kernels that ask it.
    pub fn takes_counts(&self, cache: &KvCache) -> bool {
        let CacheConfig { batch, capacity, .. } = cache.config();
        self.layers.first().is_some_and(|layer| {
            let (heads, weight) = (layer.attention.n_heads(), layer.attention.qkv.weight.val());
            let plain = capacity < FUSED_FROM_SCORES && cache.dtype() == Some(weight.dtype());
            plain && takes_counts(&weight, [batch * heads, layer.attention.head_dim()], capacity)
        })
    }

    /// Whether kernels alone take in one new position of each of `rows` sequences whose pages these are, up to `longest` of which each
    /// holds, so that a device may be told by [tables](SharedPages::batch) where they lie.
    pub fn takes_tables(&self, pages: &SharedPages, rows: usize, longest: usize) -> bool {
        let reaches = self.max_positions().is_none_or(|max| longest < max);
        reaches
            && self.layers.first().is_some_and(|layer| {
                let (heads, weight) = (layer.attention.n_heads(), layer.attention.qkv.weight.val());
                has_kernels(&weight) && pages.have_kernels(rows * heads, longest + 1)
            })
    }

    /// Features of the residual stream.
    pub fn d_model(&self) -> usize {
        self.d_model
    }

    /// Positions the rotary tables reach, if there are any.
    pub fn max_positions(&self) -> Option<usize> {
        self.rotary.as_ref().map(RotaryTable::max_positions)
    }
}

/// Where the layers keep keys and values.
enum Kv<'a, 'p> {
    None,
    Contiguous(&'a mut KvCache),
    Paged(&'a mut PagedBatch<'p>),
}

impl<'p> Kv<'_, 'p> {
    fn layer(&mut self, index: usize) -> LayerKv<'_, 'p> {
        match self {
            Self::None => LayerKv::None,
            Self::Contiguous(cache) => LayerKv::Contiguous(cache.layer_mut(index)),
            Self::Paged(batch) => LayerKv::Paged { batch, layer: index },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Residual, TransformerConfig};
    use blockformer_kv_cache::KvPool;
    use burn::tensor::{Bool, Distribution, TensorData, s};
    use core::ops::Range;

    fn styles() -> Vec<(&'static str, TransformerConfig)> {
        let neox = TransformerConfig { initializer_range: 0.2, ..TransformerConfig::gpt_neox(32, 2, 4) };
        let llama = TransformerConfig { initializer_range: 0.2, ..TransformerConfig::llama(32, 2, 4) };
        vec![
            ("gpt-neox", neox.clone()),
            ("gpt-neox sequential", TransformerConfig { residual: Residual::Sequential, ..neox }),
            ("post-norm", TransformerConfig { initializer_range: 0.2, ..TransformerConfig::roberta(32, 2, 4) }),
            ("llama", llama.clone()),
            ("llama grouped-query", llama.clone().with_n_kv_heads(2)),
            ("llama multi-query", llama.with_n_kv_heads(1)),
        ]
    }

    fn difference(a: Tensor<3>, b: Tensor<3>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn cached_steps_match_the_full_forward() {
        let device = Device::flex();
        for (name, config) in styles() {
            let stack = config.init(&device);
            let x = Tensor::<3>::random([2, 7, 32], Distribution::Normal(0.0, 1.0), &device);
            for mask in [AttentionMask::causal(), AttentionMask::causal_groups(1)] {
                let full = stack.forward(x.clone(), &mask, None);
                let mut cache = stack.new_cache(2, 7, &device);
                let parts = [0..3, 3..4, 4..7]
                    .map(|range| stack.forward(x.clone().slice(s![.., range, ..]), &mask, Some(&mut cache)));
                let error = difference(Tensor::cat(parts.to_vec(), 1), full);
                assert!(error < 1e-5, "{name}: {error}");
            }
        }
    }

    #[test]
    fn rounded_views_of_a_cache_change_no_output() {
        let device = Device::flex();
        for (name, config) in styles() {
            let stack = config.init(&device);
            let x = Tensor::<3>::random([2, 9, 32], Distribution::Normal(0.0, 1.0), &device);
            let real: Vec<bool> = (0..18).map(|i| i >= 9 || i > 1).collect(); // the first sequence begins with padding
            let real = Tensor::<2, Bool>::from_data(TensorData::new(real, [2, 9]), &device);
            for group in [1, 3] {
                let run = |multiple: usize, padded: bool| {
                    let mut cache = stack.new_cache(2, 10, &device);
                    cache.round_views(multiple);
                    let parts = [0..3, 3..6, 6..9].map(|range| {
                        let keys = padded.then(|| real.clone().slice(s![.., 0..range.end]));
                        let mask = AttentionMask::causal_groups(group).with_keys(keys);
                        stack.forward(x.clone().slice(s![.., range, ..]), &mask, Some(&mut cache))
                    });
                    Tensor::cat(parts.to_vec(), 1)
                };
                for (multiple, padded) in [(4, false), (4, true), (16, false), (16, true)] {
                    let error = difference(run(multiple, padded), run(1, padded));
                    assert!(error < 1e-5, "{name}, multiples of {multiple}: {error}");
                }
            }
        }
    }

    #[test]
    fn sequences_of_a_pool_compute_what_each_computes_alone() {
        let device = Device::flex();
        let storages = [(KvStorage::Float32, 1e-5), (KvStorage::Float16, 1e-2), (KvStorage::Int8, 1e-1)];
        for ((name, config), (storage, tolerance)) in
            styles().into_iter().flat_map(|style| storages.map(|storage| (style.clone(), storage)))
        {
            let stack = config.init(&device);
            let x = Tensor::<3>::random([3, 11, 32], Distribution::Normal(0.0, 1.0), &device);
            let mask = AttentionMask::causal_groups(2);
            let full = stack.forward(x.clone(), &mask, None);
            let mut pool = KvPool::new(stack.pool_config(4, 1 << 16, storage), &device).unwrap();
            let ids: Vec<_> = (0..3).map(|_| pool.open(11).unwrap()).collect();
            let mut run = |rows: &[(usize, Range<usize>)]| {
                let of = |x: &Tensor<3>| {
                    rows.iter().map(|(row, new)| x.clone().slice(s![*row..row + 1, new.clone(), ..])).collect()
                };
                let sequences: Vec<_> = rows.iter().map(|(row, new)| (ids[*row], new.len())).collect();
                let mut batch = pool.ragged_batch(&sequences).unwrap();
                // One after another, and, where there are as many of each, beside each other.
                let dim = if rows.iter().all(|(_, new)| new.len() == rows[0].1.len()) { 0 } else { 1 };
                let y = stack.forward_paged(Tensor::cat(of(&x), dim), &mask, &mut batch);
                batch.commit();
                let error = difference(y, Tensor::cat(of(&full), dim));
                assert!(error < tolerance, "{name} in {storage:?}, {rows:?}: {error}");
            };
            run(&[(0, 0..6)]);
            run(&[(1, 0..4)]);
            run(&[(1, 4..6), (2, 0..8)]);
            run(&[(0, 6..8), (1, 6..8)]);
            run(&[(1, 8..10), (0, 8..10), (2, 8..10)]);
        }
    }

    /// The bits of every number.
    fn bits(x: Tensor<3>) -> Vec<u32> {
        x.into_data().iter::<f32>().map(f32::to_bits).collect()
    }

    #[test]
    fn what_stands_beside_a_sequence_changes_no_bit_of_it() {
        let device = Device::flex();
        for (name, config) in styles() {
            let stack = config.init(&device);
            let x = Tensor::<3>::random([5, 9, 32], Distribution::Normal(0.0, 1.0), &device);
            // Prefill in pieces, then one position at a time, among `beside`.
            let run = |cuts: &[usize], beside: &[usize]| {
                let mut pool = KvPool::new(stack.pool_config(2, 1 << 17, KvStorage::Float32), &device).unwrap();
                let rows: Vec<usize> = std::iter::once(0).chain(beside.iter().copied()).collect();
                let ids: Vec<_> = rows.iter().map(|_| pool.open(9).unwrap()).collect();
                let mut out = Vec::new();
                for window in cuts.windows(2) {
                    let part = |row: &usize| x.clone().slice(s![*row..row + 1, window[0]..window[1], ..]);
                    let x = Tensor::cat(rows.iter().map(part).collect(), 0);
                    let mut batch = pool.batch(&ids, window[1] - window[0]).unwrap();
                    out.push(stack.forward_paged(x, &AttentionMask::causal(), &mut batch).slice(s![0..1, .., ..]));
                    batch.commit();
                }
                bits(Tensor::cat(out, 1))
            };
            let alone = run(&[0, 6, 7, 8, 9], &[]);
            assert_eq!(alone, run(&[0, 6, 7, 8, 9], &[1]), "{name}");
            assert_eq!(alone, run(&[0, 6, 7, 8, 9], &[3, 2, 4, 1]), "{name}");
            assert_eq!(alone, run(&[0, 2, 6, 7, 8, 9], &[4]), "{name}");
            assert_eq!(alone, run(&[0, 4, 6, 7, 8, 9], &[]), "{name}");
        }
    }

    #[test]
    fn long_prefill_through_the_fused_kernel_matches_single_steps() {
        let device = Device::flex();
        let config =
            TransformerConfig { initializer_range: 0.2, ..TransformerConfig::llama(32, 2, 4).with_n_kv_heads(2) };
        let stack = config.init(&device);
        let x = Tensor::<3>::random([2, 160, 32], Distribution::Normal(0.0, 1.0), &device);
        let padding = |padded: usize| {
            let real: Vec<bool> = (0..2 * 160).map(|i| i % 160 >= padded * (i / 160)).collect();
            Tensor::<2, Bool>::from_data(TensorData::new(real, [2, 160]), &device)
        };
        for padded in [0, 5] {
            let mask = AttentionMask::causal().with_keys((padded > 0).then(|| padding(padded)));
            let full = stack.forward(x.clone(), &mask, None);
            let mut cache = stack.new_cache(2, 160, &device);
            let steps: Vec<_> = (0..160)
                .map(|i| {
                    let keys = (padded > 0).then(|| padding(padded).slice(s![.., 0..i + 1]));
                    let mask = AttentionMask::causal().with_keys(keys);
                    stack.forward(x.clone().slice(s![.., i..i + 1, ..]), &mask, Some(&mut cache))
                })
                .collect();
            let real = s![.., padded.., ..];
            let error = difference(Tensor::cat(steps, 1).slice(real), full.slice(real));
            assert!(error < 1e-4, "padded {padded}: {error}");
        }
    }

    #[test]
    fn a_future_position_changes_nothing_before_it() {
        let device = Device::flex();
        for (name, config) in styles() {
            let stack = config.init(&device);
            let x = Tensor::<3>::random([1, 6, 32], Distribution::Normal(0.0, 1.0), &device);
            let noise = Tensor::<3>::random([1, 1, 32], Distribution::Normal(0.0, 1.0), &device);
            let changed = x.clone().slice_assign(s![.., 4..5, ..], noise);
            let before = stack.forward(x, &AttentionMask::causal(), None);
            let after = stack.forward(changed, &AttentionMask::causal(), None);
            let past = s![.., 0..4, ..];
            assert_eq!(difference(before.clone().slice(past), after.clone().slice(past)), 0.0, "{name}");
            assert!(difference(before, after) > 1e-3, "{name}");
        }
    }

    #[test]
    fn padded_positions_change_nothing_where_the_mask_is_true() {
        let device = Device::flex();
        let stack = styles()[0].1.init(&device);
        let x = Tensor::<3>::random([1, 5, 32], Distribution::Normal(0.0, 1.0), &device);
        let noise = Tensor::<3>::random([1, 2, 32], Distribution::Normal(0.0, 1.0), &device);
        let keys = TensorData::new(vec![false, false, true, true, true], [1, 5]);
        let mask = AttentionMask::causal().with_keys(Some(Tensor::from_data(keys, &device)));
        let changed = x.clone().slice_assign(s![.., 0..2, ..], noise);
        let real = s![.., 2.., ..];
        let a = stack.forward(x, &mask, None).slice(real);
        let b = stack.forward(changed, &mask, None).slice(real);
        assert!(difference(a, b) < 1e-6);
    }

    #[test]
    fn grouped_query_gradients_equal_those_of_repeated_heads() {
        let device = Device::flex().autodiff();
        let grouped = TransformerConfig { n_layers: 1, ..styles()[4].1.clone() }.init(&device);
        let config = TransformerConfig { n_layers: 1, ..styles()[3].1.clone() };
        let mut full = config.init(&device);
        full.layers[0].feed_forward = grouped.layers[0].feed_forward.clone();
        full.layers[0].attention.output = grouped.layers[0].attention.output.clone();
        // 4 query heads, 2 key heads, 2 value heads of 8 features -> each key and value head twice.
        let weight = grouped.layers[0].attention.qkv.weight.val().inner();
        let head = |index: usize| weight.clone().slice(s![.., index * 8..index * 8 + 8]);
        let repeated = [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7].map(head).to_vec();
        full.layers[0].attention.qkv.weight =
            burn::module::Param::from_tensor(Tensor::from_inner(Tensor::cat(repeated, 1)));
        let x = Tensor::<3>::random([2, 5, 32], Distribution::Normal(0.0, 1.0), &device).require_grad();
        let gradient = |stack: &Transformer| {
            let y = stack.forward(x.clone(), &AttentionMask::causal(), None);
            (y.clone().inner(), x.grad(&y.powi_scalar(3).sum().backward()).expect("x has a gradient"))
        };
        let ((y1, g1), (y2, g2)) = (gradient(&grouped), gradient(&full));
        assert!(difference(y1, y2) < 1e-5);
        let scale = g1.clone().abs().max().into_scalar::<f32>();
        assert!(difference(g1, g2) < 1e-4 * scale);
    }
}
