//! Self-attention with grouped query heads, rotary positions and an optional cache.
//!
//! ```text
//! attention(q, k, v) = softmax(q kᵀ / sqrt(head_dim)) v
//! ```

use core::cell::{LazyCell, OnceCell};
use core::ops::Range;

use blockformer_cubecl::{
    MAX_QUERIES, NewPositions, PagedPositions, attend_new, attend_paged, has_kernels, local_attention,
};
use blockformer_kv_cache::{KvCache, LayerCache, PagedBatch};
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::softmax;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, Int, Tensor, s};

use crate::linear::{FullNorm, linear_behind, linear_onto};
use crate::rotary::Rotation;
use crate::{AttentionMask, RotaryTable, TransformerConfig, linear_init};

/// Scores from which the fused kernel of the backend is used, which never materialises them. Below, the plain product
/// is faster. Under autodiff the plain product is always used: Burn would fall back to it anyway, and its fallback is
/// wrong for grouped queries.
pub(crate) const FUSED_FROM_SCORES: usize = 128 * 128;

/// Multi-head, grouped-query or multi-query self-attention with one fused projection for queries, keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// To queries, then keys, then values: `d_model -> (n_heads + 2 · n_kv_heads) · head_dim`, heads one after another.
    pub qkv: Linear,
    /// From the heads back to the residual stream: `n_heads · head_dim -> d_model`.
    pub output: Linear,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

/// What the layers of one forward pass share.
pub(crate) struct AttentionContext {
    /// Rotary tables, if there are any.
    tables: Option<RotaryTable>,
    /// How queries and keys are rotated, if they are.
    rotation: Lazy<Rotation>,
    /// What new positions see: one entry; with a paged cache, one for each piece of the new positions of each sequence.
    sight: Vec<Sight>,
    /// Where the positions of a paged cache lie, once a layer has asked.
    pages: OnceCell<Pages>,
}

/// See [`PagedPositions`].
struct Pages {
    tables: Tensor<2, Int>,
    longest: usize,
    see_each_other: bool,
}

/// Which keys some queries see.
struct Sight {
    /// Their sequence in a paged cache, otherwise the first of all that advance together.
    row: usize,
    /// Among the new positions; those of the sequences of a paged cache stand one after another.
    queries: Range<usize>,
    n_keys: usize,
    /// True where a query must not look, `[batch or 1, 1, queries, keys]`; also none where `fused` does the causal
    /// mask itself.
    hidden: Hidden,
    /// The same for one query, of the keys held and its own alone.
    hidden_held: Hidden,
    /// Whether the backend's fused kernel is used.
    fused: bool,
    /// Whether the mask is exactly the causal one.
    plain_causal: bool,
}

/// What the first layer that asks makes: kernels ask for less of it than plain operations.
type Lazy<T> = LazyCell<Option<T>, Box<dyn FnOnce() -> Option<T>>>;

/// See [`Sight::hidden`].
type Hidden = Lazy<Tensor<4, Bool>>;

fn lazily<T>(make: impl FnOnce() -> Option<T> + 'static) -> Lazy<T> {
    LazyCell::new(Box::new(make))
}

impl AttentionContext {
    /// For the new positions of `x` behind those of a cache.
    pub(crate) fn new(
        x: &Tensor<3>,
        mask: &AttentionMask,
        rotary: Option<&RotaryTable>,
        cache: Option<&KvCache>,
    ) -> Self {
        let positions = x.dims()[1];
        let start = cache.map_or(0, KvCache::len);
        let n_keys = cache.map_or(positions, |cache| cache.view_len(positions));
        let fused = positions * n_keys >= FUSED_FROM_SCORES && !x.is_autodiff();
        let plain_causal = mask.is_plain_causal() && n_keys == start + positions;
        let (held, device) = (start + positions, x.device());
        let (of_view, of_held) = ((mask.clone(), device.clone()), (mask.clone(), device));
        let hidden = lazily(move || match fused && plain_causal {
            true => None,
            false => of_view.0.hidden_among(positions, held, n_keys, &of_view.1),
        });
        let hidden_held = lazily(move || of_held.0.hidden(positions, held, &of_held.1));
        let sight = Sight { row: 0, queries: 0..positions, n_keys, hidden, hidden_held, fused, plain_causal };
        let dtype = x.dtype();
        let rotate = move |tables: RotaryTable| tables.rotation(start..held, dtype);
        Self::with_sight(vec![sight], rotary, held, rotate)
    }

    /// For new positions of the sequences of a paged cache. Each piece is attended to by itself, so that neither the
    /// sequences beside it nor the way a text is cut into batches change a number.
    pub(crate) fn paged(
        x: &Tensor<3>,
        mask: &AttentionMask,
        rotary: Option<&RotaryTable>,
        batch: &PagedBatch<'_>,
    ) -> Self {
        let sight = (0..batch.rows()).flat_map(|row| {
            let (start, first) = (batch.start(row), batch.new_of(row).start);
            batch.pieces(row).into_iter().map(move |piece| {
                let n_keys = start + piece.end;
                let (mask, n_queries, device) = (mask.clone(), piece.len(), x.device());
                let plain_causal = mask.is_plain_causal();
                let hidden = lazily(move || mask.hidden(n_queries, n_keys, &device));
                let queries = first + piece.start..first + piece.end;
                Sight { row, queries, n_keys, hidden, hidden_held: lazily(|| None), fused: false, plain_causal }
            })
        });
        let positions: Vec<usize> = batch.positions().collect();
        let end = positions.iter().max().map_or(0, |last| last + 1);
        let dtype = x.dtype();
        let rotate = move |tables: RotaryTable| tables.rotation_at(&positions, dtype);
        Self::with_sight(sight.collect(), rotary, end, rotate)
    }

    /// # Panics
    /// If positions up to `end` lie beyond the rotary tables.
    fn with_sight(
        sight: Vec<Sight>,
        rotary: Option<&RotaryTable>,
        end: usize,
        rotate: impl FnOnce(RotaryTable) -> Rotation + 'static,
    ) -> Self {
        if let Some(rotary) = rotary {
            rotary.assert_reach(end);
        }
        let tables = rotary.cloned();
        let rotation = lazily({
            let tables = tables.clone();
            move || tables.map(rotate)
        });
        Self { tables, rotation, sight, pages: OnceCell::new() }
    }
}

/// Where a layer keeps keys and values.
pub(crate) enum LayerKv<'a, 'p> {
    /// Nowhere: all positions are new.
    None,
    /// In a cache of sequences that advance together.
    Contiguous(&'a mut LayerCache),
    /// In layer `layer` of a pool.
    Paged {
        /// The sequences.
        batch: &'a mut PagedBatch<'p>,
        /// The layer's place in the stack.
        layer: usize,
    },
}

impl Attention {
    /// Initialises the projections as `config` says.
    pub fn new(config: &TransformerConfig, device: &Device) -> Self {
        let TransformerConfig { d_model, n_heads, n_kv_heads, head_dim, initializer_range: std, .. } = *config;
        let d_qkv = (n_heads + 2 * n_kv_heads) * head_dim;
        Self {
            qkv: linear_init(d_model, d_qkv, config.qkv_bias, std, device),
            output: linear_init(n_heads * head_dim, d_model, config.output_bias, std, device),
            n_heads,
            n_kv_heads,
            head_dim,
        }
    }

    /// Query heads.
    pub(crate) fn n_heads(&self) -> usize {
        self.n_heads
    }

    /// Features of a head.
    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// `x + attention(norm(x))`.
    ///
    /// # Shapes
    /// - `x`: `[batch, positions, d_model]`, returns the same.
    ///
    /// # Panics
    /// If `cache` cannot take `positions` more.
    pub(crate) fn add_to(
        &self,
        x: Tensor<3>,
        norm: Option<FullNorm<'_>>,
        context: &AttentionContext,
        mut kv: LayerKv<'_, '_>,
    ) -> Tensor<3> {
        let [batch, positions, _] = x.dims();
        let (heads, kv_heads, head_dim) = (self.n_heads, self.n_kv_heads, self.head_dim);
        let qkv = linear_behind(norm, &self.qkv, x.clone()); // [batch, positions, (heads + 2 kv_heads) · head_dim]
        let mixed = match &mut kv {
            LayerKv::None => None,
            LayerKv::Contiguous(cache) => self.attend_new(&qkv, context, cache),
            LayerKv::Paged { batch, layer } => self.attend_new_paged(&qkv, context, batch, *layer),
        };
        if let Some(mixed) = mixed {
            return linear_onto(&self.output, mixed, x);
        }
        // The new positions of a pool's sequences stand one after another.
        let flat = if matches!(kv, LayerKv::Paged { .. }) { [1, batch * positions] } else { [batch, positions] };
        let qkv = qkv.reshape([flat[0], flat[1], heads + 2 * kv_heads, head_dim]).swap_dims(1, 2); // [batch, heads + 2 kv_heads, positions, head_dim]
        let mut qk = qkv.clone().slice(s![.., 0..heads + kv_heads, .., ..]);
        let values = qkv.slice(s![.., heads + kv_heads.., .., ..]);
        if let Some(rotation) = &*context.rotation {
            qk = rotation.forward(qk);
        }
        let queries = qk.clone().slice(s![.., 0..heads, .., ..]);
        let keys = qk.slice(s![.., heads.., .., ..]);
        let (keys, values) = match kv {
            LayerKv::None => (keys, values),
            LayerKv::Contiguous(cache) => match cache.append(keys, values) {
                Ok(held) => held,
                Err(error) => panic!("attention with a cache: {error}"),
            },
            LayerKv::Paged { batch, layer } => {
                let mixed = self.attend_piece_by_piece(queries, keys, values, context, batch, layer);
                return self.project(mixed, x);
            }
        };
        let mixed = self.attend(queries, keys, values, &context.sight[0]); // [batch, heads, positions, head_dim]
        self.project(mixed, x)
    }

    /// Few new positions, by a kernel if there is one: `[batch, positions, heads · head_dim]`.
    fn attend_new(&self, qkv: &Tensor<3>, context: &AttentionContext, cache: &mut LayerCache) -> Option<Tensor<3>> {
        let sight = &context.sight[0];
        let new = sight.queries.len();
        if (new != 1 && !sight.plain_causal) || new > MAX_QUERIES || sight.fused || !has_kernels(qkv) {
            return None;
        }
        let counted = cache.counted().cloned();
        let hidden = match &counted {
            Some(counted) => counted.hidden.as_ref(),
            None if new == 1 => sight.hidden_held.as_ref(),
            None => None,
        };
        let rotation = context.tables.as_ref().map(RotaryTable::tables);
        let count = counted.as_ref().map(|counted| &counted.count);
        let attend = |keys: &mut Tensor<4>, values: &mut Tensor<4>, len| {
            attend_new(NewPositions { qkv, rotation, n_heads: self.n_heads, len, hidden, count }, keys, values)
        };
        match cache.write_new(new, attend) {
            Ok(mixed) => mixed,
            Err(error) => panic!("attention with a cache: {error}"),
        }
    }

    /// New positions of the sequences of a pool, by a kernel if there is one: `[batch, positions, heads · head_dim]`.
    fn attend_new_paged(
        &self,
        qkv: &Tensor<3>,
        context: &AttentionContext,
        batch: &mut PagedBatch<'_>,
        layer: usize,
    ) -> Option<Tensor<3>> {
        let plain_causal = context.sight.iter().all(|sight| sight.plain_causal);
        if !plain_causal || !has_kernels(qkv) || !batch.has_float_pages() {
            return None;
        }
        let pages = context.pages.get_or_init(|| Pages {
            tables: batch.tables(&qkv.device()),
            longest: batch.positions().max().unwrap_or(0),
            see_each_other: (0..batch.rows()).any(|row| batch.new_of(row).len() > 1),
        });
        let Pages { tables, longest, see_each_other } = pages;
        let rotation = context.tables.as_ref().map(RotaryTable::tables);
        let (n_heads, head_dim, page_length) = (self.n_heads, self.head_dim, batch.config().page_length);
        let (longest, see_each_other, stays) = (*longest, *see_each_other, batch.stays());
        let positions =
            PagedPositions { qkv, rotation, n_heads, head_dim, tables, page_length, longest, see_each_other, stays };
        batch.write_new(layer, |keys, values| attend_paged(positions, keys, values))
    }

    fn project(&self, mixed: Tensor<4>, residual: Tensor<3>) -> Tensor<3> {
        let ([batch, positions, _], [_, heads, _, head_dim]) = (residual.dims(), mixed.dims());
        let mixed = mixed.swap_dims(1, 2).reshape([batch, positions, heads * head_dim]);
        linear_onto(&self.output, mixed, residual)
    }

    /// Each sequence over its own pages, piece by piece.
    ///
    /// # Shapes
    /// - `queries`, `keys`, `values`: `[1, heads, new positions of all sequences, head_dim]`, returns the same
    fn attend_piece_by_piece(
        &self,
        queries: Tensor<4>,
        keys: Tensor<4>,
        values: Tensor<4>,
        context: &AttentionContext,
        batch: &mut PagedBatch<'_>,
        layer: usize,
    ) -> Tensor<4> {
        for row in 0..batch.rows() {
            let new = batch.new_of(row);
            if !new.is_empty() {
                let of = |x: &Tensor<4>| x.clone().slice(s![.., .., new.clone(), ..]).squeeze_dim::<3>(0);
                batch.write(layer, row, of(&keys), of(&values));
            }
        }
        let mut mixed = Vec::with_capacity(context.sight.len());
        for pieces in context.sight.chunk_by(|a, b| a.row == b.row) {
            let n_keys = pieces.last().map_or(0, |piece| piece.n_keys);
            let (keys, values) = batch.read(layer, pieces[0].row, n_keys); // [kv_heads, n_keys, head_dim]
            let (keys, values) = (in_type_of(&queries, keys), in_type_of(&queries, values));
            mixed.extend(pieces.iter().map(|piece| {
                let of = |x: &Tensor<3>| x.clone().slice(s![.., 0..piece.n_keys, ..]).unsqueeze::<4>();
                let queries = queries.clone().slice(s![.., .., piece.queries.clone(), ..]);
                self.attend(queries, of(&keys), of(&values), piece)
            }));
        }
        Tensor::cat(mixed, 2)
    }

    fn attend(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, sight: &Sight) -> Tensor<4> {
        let [batch, heads, n_queries, head_dim] = q.dims();
        let n_keys = k.dims()[2];
        if sight.fused {
            let (k, v) = (self.repeat_kv(k), self.repeat_kv(v));
            let options = AttentionModuleOptions { is_causal: sight.plain_causal, ..Default::default() };
            let hidden = (*sight.hidden).clone().map(|mask| mask.expand([batch, heads, n_queries, n_keys]));
            return attention(q, k, v, hidden, None, options);
        }
        let sees_all_before = sight.plain_causal || (n_queries == 1 && sight.hidden.is_none());
        if sees_all_before && let Some(mixed) = local_attention(&q, &k, &v) {
            return mixed;
        }
        // Query heads that share a key head become further queries of it: nothing is repeated.
        let group = heads / self.n_kv_heads;
        let q = q.mul_scalar((head_dim as f64).powf(-0.5));
        let q = q.reshape([batch, self.n_kv_heads, group * n_queries, head_dim]);
        let scores = q.matmul(k.transpose()).reshape([batch, heads, n_queries, n_keys]);
        let scores = match &*sight.hidden {
            Some(hidden) => {
                scores.mask_fill(hidden.clone().expand([batch, heads, n_queries, n_keys]), f32::NEG_INFINITY)
            }
            None => scores,
        };
        let weights = softmax(scores, 3).reshape([batch, self.n_kv_heads, group * n_queries, n_keys]);
        weights.matmul(v).reshape([batch, heads, n_queries, head_dim])
    }

    fn repeat_kv(&self, x: Tensor<4>) -> Tensor<4> {
        let group = self.n_heads / self.n_kv_heads;
        if group == 1 {
            return x;
        }
        let [batch, kv_heads, positions, head_dim] = x.dims();
        let repeated: Tensor<5> = x.unsqueeze_dim::<5>(2).repeat_dim(2, group);
        repeated.reshape([batch, kv_heads * group, positions, head_dim])
    }
}

/// Pools give float32, whatever they hold and the model computes in.
fn in_type_of(queries: &Tensor<4>, held: Tensor<3>) -> Tensor<3> {
    let dtype = queries.dtype();
    if held.dtype() == dtype { held } else { held.cast(dtype) }
}
