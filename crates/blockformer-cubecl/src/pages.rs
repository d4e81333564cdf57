//! Attention over the pages of a pool, and what writes them otherwise.

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor};

use crate::attention::rotation_fits;
#[cfg(feature = "_kernels")]
use crate::kernels;
use crate::{MAX_HELD, MAX_KEYS, has_kernels};

/// The most numbers that the parts of the sums of several new positions in pages may take.
const MAX_PARTS: usize = 1 << 24;

/// The most rows of a pool: 32 bits tell them.
const MAX_POOL_ROWS: usize = u32::MAX as usize;

/// New positions of sequences whose keys and values lie in pages of a common pool: of each as many as there are.
#[derive(Debug, Clone, Copy)]
pub struct PagedPositions<'a> {
    /// Their queries, keys and values, heads one after another, `[batch, positions, (n_heads + 2 · n_kv_heads) · head_dim]`. It does not
    /// matter how they are arranged: as `[sequences, 1, ..]`, or those of all sequences one after another, `[1, positions, ..]`.
    pub qkv: &'a Tensor<3>,
    /// As [`NewPositions::rotation`](crate::NewPositions::rotation).
    pub rotation: Option<(&'a Tensor<2>, &'a Tensor<2>)>,
    /// Query heads.
    pub n_heads: usize,
    /// Features a head.
    pub head_dim: usize,
    /// For each new position the number of positions of its sequence that are before it, and then the sequence's pages in order, its own
    /// included, `[batch · positions, 1 + pages]` or wider, in 32 bits. Pages have to be in the pool, and no two sequences may have one in
    /// common that holds new positions, unless they are the same sequence with the same new position.
    pub tables: &'a Tensor<2, Int>,
    /// Positions a page.
    pub page_length: usize,
    /// The most positions that are before one of the new ones. Where `tables` says that there are more, so many are meant.
    pub longest: usize,
    /// Whether some of them are of one sequence, so that they see each other. Where they are and this says otherwise, what comes
    /// of them is whatever was in their pages.
    pub see_each_other: bool,
    /// Whether the pool has to stay where it is, as captured graphs write there: one that somebody else holds is an error of the device
    /// then, which shows where what comes of it is read.
    pub stays: bool,
}

/// Attention of new positions of several sequences, however many these are, in one launch: queries and keys are rotated, keys and
/// values written into the pool, in its type, and each query attends to all positions of its sequence up to its own. It takes
/// one launch more where a sequence has more than [`MAX_KEYS`] keys, and one more where new positions see each other. In this
/// kernel what comes of a position does not depend on what is new beside it. A pool that nobody else holds is
/// written in place.
///
/// # Shapes
/// - `keys`, `values`: `[positions of the pool, n_kv_heads · head_dim]`, a page behind the other
/// - returns: `[batch, positions, n_heads · head_dim]`; `None`, with the pool as it was, where there is no kernel: on backends other
///   than CubeCL's, under autodiff, for more than [`MAX_HELD`] keys, for more query heads of all new positions than the device
///   launches cubes along an axis (65,535 with WebGPU, 2³¹ - 1 with CUDA), for so many new positions that the parts of their
///   sums would take more than 64 MiB, where cubes share too little memory for heads so large, and for shapes that do not fit
pub fn attend_paged(positions: PagedPositions<'_>, keys: &mut Tensor<2>, values: &mut Tensor<2>) -> Option<Tensor<3>> {
    let PagedPositions { qkv, rotation, n_heads, head_dim, tables, page_length, longest, see_each_other, stays: _ } =
        positions;
    let ([batch, each, width], [of_pool, kv_width]) = (qkv.dims(), keys.dims());
    let most = longest.saturating_add(1);
    let heads = batch * each * n_heads;
    let fits = most <= MAX_HELD
        && (!see_each_other || heads * most.div_ceil(MAX_KEYS) * (head_dim + 2) <= MAX_PARTS)
        && values.dims() == keys.dims()
        && [batch, each, n_heads, head_dim, kv_width, page_length].iter().all(|size| *size > 0)
        && kv_width.is_multiple_of(head_dim)
        && width == n_heads * head_dim + 2 * kv_width
        && (n_heads * head_dim).is_multiple_of(kv_width)
        && tables.dims()[0] == batch * each
        && tables.dims()[1] > most.div_ceil(page_length)
        && tables.dtype() == DType::I32
        && of_pool <= MAX_POOL_ROWS
        && rotation.is_none_or(|tables| rotation_fits(tables, most, head_dim));
    if !fits || values.dtype() != keys.dtype() {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        kernels::attend_paged(positions, keys, values)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// Whether [`attend_paged`] has a kernel for one new position of each of some sequences, with so many query heads altogether, of so many
/// features, and up to `keys` keys each, if shapes fit, and [`write_rows`] and [`copy_rows`] have one for pages.
pub fn takes_pages(pages: &Tensor<2>, [heads, head_dim]: [usize; 2], keys: usize) -> bool {
    #[cfg(feature = "_kernels")]
    {
        keys <= MAX_HELD && writes_rows(pages) && kernels::takes_pages(pages, [heads, head_dim])
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = (pages, heads, head_dim, keys);
        false
    }
}

/// Whether rows of a tensor like this one are written by kernels.
fn writes_rows(target: &Tensor<2>) -> bool {
    #[cfg(feature = "_kernels")]
    {
        target.dims()[0] <= MAX_POOL_ROWS && kernels::writes_rows(target)
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = target;
        false
    }
}

/// Writes `rows`, in the target's type, over those of `target` from row `to` on, in place: a target that somebody else holds is copied
/// first, or, if it has to stay where it is (`stays`), an error of the device, which shows where the target is read. False, with nothing written, where there is no kernel.
///
/// # Shapes
/// - `rows`: `[n, columns]`; `target`: `[all, columns]`
///
/// # Panics
/// If shapes do not fit.
pub fn write_rows(target: &mut Tensor<2>, to: usize, rows: &Tensor<2>, stays: bool) -> bool {
    let ([n, columns], [all, width]) = (rows.dims(), target.dims());
    assert!(columns == width && to + n <= all, "{n} rows of {columns} from row {to} on of [{all}, {width}]");
    if !writes_rows(target) || !has_kernels(rows) {
        return false;
    }
    #[cfg(feature = "_kernels")]
    if n > 0 {
        kernels::write_rows(target, to, rows.clone(), stays);
    }
    let _ = stays;
    true
}

/// Writes the rows of `from` over as many from row `to` on, as [`write_rows`].
///
/// # Panics
/// If they go beyond the rows there are, or into each other.
pub fn copy_rows(target: &mut Tensor<2>, from: Range<usize>, to: usize, stays: bool) -> bool {
    let ([all, _], n) = (target.dims(), from.len());
    let apart = to >= from.end || to + n <= from.start;
    assert!(from.end <= all && to + n <= all && apart, "rows {from:?} to row {to} of {all}");
    if !writes_rows(target) {
        return false;
    }
    #[cfg(feature = "_kernels")]
    if n > 0 {
        kernels::copy_rows(target, from.start, to, n, stays);
    }
    let _ = stays;
    true
}
