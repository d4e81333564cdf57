//! Attention of a few queries over one cache.

use burn::tensor::{Bool, DType, Tensor};

#[cfg(feature = "_kernels")]
use crate::kernels;

/// The most keys that [`local_attention`] attends to, and a part of [`attend_new`] and [`attend_paged`](crate::attend_paged), as every unit of a cube
/// looks at all scores.
pub const MAX_KEYS: usize = 64;

/// The most keys that [`attend_new`] and [`attend_paged`](crate::attend_paged) attend to.
pub const MAX_HELD: usize = 1 << 14;

/// The most queries of one sequence in a launch.
pub const MAX_QUERIES: usize = 8;

/// Attention of a few queries over a short cache, in one launch: `softmax(q kᵀ / √head_dim) v`. The queries are the last
/// positions of the keys, and each sees the keys up to its own position.
///
/// # Shapes
/// - `q`: `[batch, heads, queries, head_dim]`
/// - `k`, `v`: `[batch, kv_heads, keys, head_dim]`; query heads share key heads in groups
/// - returns: `[batch, heads, queries, head_dim]`; `None` where there is no kernel: on backends other than CubeCL's,
///   under autodiff, for more than [`MAX_QUERIES`] or [`MAX_KEYS`], or more heads of all sequences than the device launches
///   cubes along an axis (65,535 with WebGPU, 2³¹ - 1 with CUDA), and for shapes that do not fit
pub fn local_attention(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>) -> Option<Tensor<4>> {
    let ([batch, heads, queries, head_dim], [_, kv_heads, keys, _]) = (q.dims(), k.dims());
    let fits = k.dims() == [batch, kv_heads, keys, head_dim]
        && v.dims() == k.dims()
        && (1..=MAX_QUERIES.min(keys)).contains(&queries)
        && keys <= MAX_KEYS
        && heads.is_multiple_of(kv_heads)
        && batch * heads > 0;
    if !fits || q.dtype() != k.dtype() || q.dtype() != v.dtype() {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        kernels::local_attention(q, k, v)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// New positions of every sequence.
#[derive(Debug, Clone, Copy)]
pub struct NewPositions<'a> {
    /// Their queries, keys and values, heads one after another, `[batch, new, (n_heads + 2 · n_kv_heads) · head_dim]`.
    pub qkv: &'a Tensor<3>,
    /// Cosine and sine of the rotary embedding in its half-split form, `[positions, rotated features / 2]`, of which rows
    /// from `len` on turn queries and keys; the features behind them stay. `None` where nothing is rotated.
    pub rotation: Option<(&'a Tensor<2>, &'a Tensor<2>)>,
    /// Query heads.
    pub n_heads: usize,
    /// Positions that the cache holds of every sequence, or the most that it may hold if the device counts them.
    pub len: usize,
    /// True for positions that a single new position does not look at, those held and its own, `[batch or 1, 1, 1, len + 1]`
    /// or longer; one at least has to be seen in each sequence.
    pub hidden: Option<&'a Tensor<4, Bool>>,
    /// The number of positions held, `[1]` in float32, for one new position: what is launched is then the same for every
    /// number up to `len`, as graph capture needs it. Only where [`takes_counts`] says so, and nobody else may hold the cache.
    pub count: Option<&'a Tensor<1>>,
}

/// Attention of new positions of every sequence, in one launch, or two for more than [`MAX_KEYS`] keys: queries and keys are
/// rotated, keys and values written into the cache behind the `len` positions it holds, and each query attends to all of
/// them and to the new ones up to its own. A cache that nobody else holds is written in place.
///
/// # Shapes
/// - `keys`, `values`: `[batch, n_kv_heads, capacity, head_dim]`
/// - returns: `[batch, new, n_heads · head_dim]`; `None`, with the cache as it was, where there is no kernel: on backends
///   other than CubeCL's, under autodiff, for more than [`MAX_HELD`] keys, or [`MAX_KEYS`] with several new positions, for
///   more than [`MAX_QUERIES`] new positions, or more query heads of all sequences than the device launches cubes along an axis
///   (65,535 with WebGPU, 2³¹ - 1 with CUDA), where its cubes share too little memory for heads so large, and for shapes that do not fit
pub fn attend_new(position: NewPositions<'_>, keys: &mut Tensor<4>, values: &mut Tensor<4>) -> Option<Tensor<3>> {
    let NewPositions { qkv, rotation, n_heads, len, hidden, count } = position;
    let ([batch, n_kv_heads, capacity, head_dim], new) = (keys.dims(), qkv.dims()[1]);
    let most = if new == 1 { MAX_HELD } else { MAX_KEYS };
    let fits = values.dims() == keys.dims()
        && (1..=MAX_QUERIES).contains(&new)
        && qkv.dims() == [batch, new, (n_heads + 2 * n_kv_heads) * head_dim]
        && n_heads.is_multiple_of(n_kv_heads)
        && len + new <= capacity.min(most)
        && hidden.is_none_or(|hidden| {
            let [rows, heads, queries, positions] = hidden.dims();
            new == 1 && [1, batch].contains(&rows) && [heads, queries] == [1, 1] && positions > len
        })
        && count.is_none_or(|count| new == 1 && count.dims() == [1] && count.dtype() == DType::F32)
        && rotation.is_none_or(|tables| rotation_fits(tables, len + new, head_dim));
    if !fits || qkv.dtype() != keys.dtype() || qkv.dtype() != values.dtype() {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        kernels::attend_new(position, keys, values)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// Whether tables of cosine and sine turn so many positions.
pub(crate) fn rotation_fits((cos, sin): (&Tensor<2>, &Tensor<2>), positions: usize, head_dim: usize) -> bool {
    let [rows, half] = cos.dims();
    sin.dims() == cos.dims() && sin.dtype() == cos.dtype() && positions <= rows && half > 0 && 2 * half <= head_dim
}

/// Whether [`attend_new`] can be given a count of positions by the device, for tensors like `x`, so many query heads of all
/// sequences, of so many features, and a cache of so many positions.
pub fn takes_counts<const D: usize>(x: &Tensor<D>, [heads, head_dim]: [usize; 2], capacity: usize) -> bool {
    #[cfg(feature = "_kernels")]
    {
        capacity <= MAX_HELD && kernels::takes_counts(x, head_dim) && kernels::launches_cubes(x, heads)
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = (x, heads, head_dim, capacity);
        false
    }
}
