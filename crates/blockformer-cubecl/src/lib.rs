//! Kernels for decoding on GPUs: what takes many small launches in plain tensor operations, in one.
//!
//! - [`local_attention`]: a few queries over a short cache, such as that of a Block Transformer's token decoder;
//! - [`attend_new`]: the same for the new positions of a decoding step, from the projections on, writing the cache;
//! - [`attend_paged`]: the same for many sequences whose caches lie in the pages of a pool;
//! - [`norm`]: a norm of some rows;
//! - [`product`]: a product of a few rows with weights, and the norm, bias, activation and residual around it;
//! - [`draw`]: a token of every row of logits, by an inverse cumulative distribution, without sorting; [`draw_each`]: each row in
//!   its own way.
//!
//! [`write_rows`] and [`copy_rows`] write rows of a tensor in place.
//!
//! [`Recording`] repeats by one call what was launched kernel by kernel before. [`observe_kernels`] tells which kernels
//! something launches, its own and Burn's, and how long they take.
//!
//! They are written in CubeCL, so that one source serves CUDA, Vulkan, Metal and WebGPU, and join the streams of Burn's
//! fusion. A function answers `None` where it has no kernel: on other backends, under autodiff, for shapes it was not
//! made for, and in a build without one of the features `wgpu` and `cuda`. The caller then goes on with plain
//! operations.
//!
//! ```
//! use burn::tensor::{Device, Tensor, activation::softmax};
//!
//! /// `q` is `[batch, heads, 1, head_dim]`, keys and values `[batch, heads, n, head_dim]`.
//! fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
//!     blockformer_cubecl::local_attention(&q, &k, &v).unwrap_or_else(|| {
//!         let scale = (q.dims()[3] as f64).powf(-0.5);
//!         softmax(q.mul_scalar(scale).matmul(k.transpose()), 3).matmul(v)
//!     })
//! }
//!
//! let ones = Tensor::<4>::ones([1, 2, 1, 4], &Device::flex());
//! assert_eq!(attend(ones.clone(), ones.clone(), ones).sum().into_scalar::<f32>(), 8.0);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "_kernels")]
mod attention;
#[cfg(feature = "_kernels")]
mod copying;
#[cfg(feature = "_kernels")]
mod drawing;
#[cfg(feature = "_kernels")]
mod extension;
#[cfg(feature = "_kernels")]
mod few_rows;
#[cfg(feature = "_kernels")]
mod graph;
#[cfg(feature = "_kernels")]
mod new_positions;
#[cfg(feature = "_kernels")]
mod observation;
#[cfg(feature = "_kernels")]
mod paged;
mod recording;
#[cfg(feature = "_kernels")]
mod softmax;

use std::ops::Range;
use std::time::Duration;

use burn::tensor::{Bool, DType, Int, Tensor};

pub use recording::{Recordable, Recording};

/// The environment variable that leaves kernels to plain operations, for comparisons: their functions' names, separated by
/// commas, `all` or `none`. Another name is a panic at the first decision, lest something else be compared.
pub const KERNELS_OFF_VARIABLE: &str = "BLOCKFORMER_KERNELS_OFF";

/// Whether there are kernels for tensors like `x`, if their shapes fit: not on backends other than CubeCL's, under autodiff,
/// or in a build without one of the features `wgpu` and `cuda`.
pub fn has_kernels<const D: usize>(x: &Tensor<D>) -> bool {
    #[cfg(feature = "_kernels")]
    {
        extension::has_kernels(x)
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = x;
        false
    }
}

/// The most cubes along an axis of a launch on any device: what WebGPU promises.
const MAX_CUBES: usize = 65_535;

/// The most words that tokens are drawn of: ids pass through float32.
const MAX_VOCABULARY: usize = 1 << 24;

/// The most numbers that the parts of the sums of several new positions in pages may take.
const MAX_PARTS: usize = 1 << 24;

/// The most rows of a pool: 32 bits tell them.
const MAX_POOL_ROWS: usize = u32::MAX as usize;

/// The most keys that [`local_attention`] attends to, and a part of [`attend_new`] and [`attend_paged`], as every unit of a cube
/// looks at all scores.
pub const MAX_KEYS: usize = 64;

/// The most keys that [`attend_new`] and [`attend_paged`] attend to.
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
        extension::local_attention(q, k, v)
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
///   (65,535 with WebGPU, 2³¹ - 1 with CUDA), and for shapes that do not fit
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
        extension::attend_new(position, keys, values)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// New positions of sequences whose keys and values lie in pages of a common pool: of each as many as there are.
#[derive(Debug, Clone, Copy)]
pub struct PagedPositions<'a> {
    /// Their queries, keys and values, heads one after another, `[batch, positions, (n_heads + 2 · n_kv_heads) · head_dim]`. It does not
    /// matter how they are arranged: as `[sequences, 1, ..]`, or those of all sequences one after another, `[1, positions, ..]`.
    pub qkv: &'a Tensor<3>,
    /// As [`NewPositions::rotation`].
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
    /// Whether some of them are of one sequence, so that they see each other.
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
///   sums would take more than 64 MiB, and for shapes that do not fit
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
        extension::attend_paged(positions, keys, values)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// Whether [`attend_paged`] has a kernel for one new position of each of some sequences, with so many query heads altogether and up to
/// `keys` keys each, if shapes fit, and [`write_rows`] and [`copy_rows`] have one for pages.
pub fn takes_pages(pages: &Tensor<2>, heads: usize, keys: usize) -> bool {
    #[cfg(feature = "_kernels")]
    {
        keys <= MAX_HELD && writes_rows(pages) && extension::takes_pages(pages, heads)
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = (pages, heads, keys);
        false
    }
}

/// Whether rows of a tensor like this one are written by kernels.
fn writes_rows(target: &Tensor<2>) -> bool {
    #[cfg(feature = "_kernels")]
    {
        target.dims()[0] <= MAX_POOL_ROWS && extension::writes_rows(target)
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
        extension::write_rows(target, to, rows.clone(), stays);
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
        extension::copy_rows(target, from.start, to, n, stays);
    }
    let _ = stays;
    true
}

/// Whether tables of cosine and sine turn so many positions.
fn rotation_fits((cos, sin): (&Tensor<2>, &Tensor<2>), positions: usize, head_dim: usize) -> bool {
    let [rows, half] = cos.dims();
    sin.dims() == cos.dims() && sin.dtype() == cos.dtype() && positions <= rows && half > 0 && 2 * half <= head_dim
}

/// Whether [`attend_new`] can be given a count of positions by the device, for tensors like `x`, so many query heads of all
/// sequences and a cache of so many positions.
pub fn takes_counts<const D: usize>(x: &Tensor<D>, heads: usize, capacity: usize) -> bool {
    #[cfg(feature = "_kernels")]
    {
        capacity <= MAX_HELD && extension::takes_counts(x) && extension::launches_cubes(x, heads)
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = (x, heads, capacity);
        false
    }
}

/// The most rows of a [`product`]: with more of them, arithmetic begins to count beside the reading of weights.
pub const MAX_ROWS: usize = 8;

/// The most tensors of a launch, so that with its sizes it has no more than the 8 buffers that WebGPU promises.
const MAX_TENSORS: usize = 7;

/// A linear map.
#[derive(Debug, Clone, Copy)]
pub struct RowMap<'a> {
    /// `[d_in, d_out]`
    pub weight: &'a Tensor<2>,
    /// `[d_out]`
    pub bias: Option<&'a Tensor<1>>,
}

/// A norm over the features of a row, computed in float32: a layer norm if rows are centred, otherwise an RMS norm.
#[derive(Debug, Clone, Copy)]
pub struct RowNorm<'a> {
    /// Whether the mean of a row is taken off first.
    pub centred: bool,
    /// `[d_in]`
    pub scale: &'a Tensor<1>,
    /// `[d_in]`
    pub shift: Option<&'a Tensor<1>>,
    /// Added to the mean of the squares.
    pub epsilon: f64,
}

impl RowNorm<'_> {
    fn fits(self, features: usize, dtype: DType) -> bool {
        [Some(self.scale), self.shift].into_iter().flatten().all(|x| x.dims() == [features] && x.dtype() == dtype)
    }
}

/// The most rows of a [`norm`].
pub const MAX_NORM_ROWS: usize = 1024;

/// `norm(x)` in one launch, computed in float32.
///
/// # Shapes
/// - `x`: `[batch, positions, features]`, returns the same; `None` where there is no kernel: on backends other than CubeCL's,
///   under autodiff, for more than [`MAX_NORM_ROWS`] positions of all sequences, and for shapes that do not fit
pub fn norm(x: &Tensor<3>, norm: RowNorm<'_>) -> Option<Tensor<3>> {
    let [batch, positions, features] = x.dims();
    let fits = (1..=MAX_NORM_ROWS).contains(&(batch * positions)) && features > 0 && norm.fits(features, x.dtype());
    if !fits {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        extension::norm(x, norm)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// A non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowActivation {
    /// `x Φ(x)`.
    Gelu,
    /// Its approximation by the hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// What a [`product`] consists of.
#[derive(Debug, Clone, Copy)]
pub struct FewRows<'a> {
    /// What rows are multiplied with.
    pub map: RowMap<'a>,
    /// Before that: a norm.
    pub norm: Option<RowNorm<'a>>,
    /// A second map of the same rows and sizes; its activated output is multiplied with that of the first.
    pub gate: Option<RowMap<'a>>,
    /// Of the gate if there is one, otherwise of the map's output.
    pub activation: Option<RowActivation>,
    /// What the result is added to, `[batch, positions, d_out]`.
    pub residual: Option<&'a Tensor<3>>,
}

impl<'a> FewRows<'a> {
    /// A product with nothing around it.
    pub fn new(map: RowMap<'a>) -> Self {
        Self { map, norm: None, gate: None, activation: None, residual: None }
    }
}

/// `residual + act(norm(x) gate) · (norm(x) map)`, or `residual + act(norm(x) map)`, of few rows in one launch. All of it is
/// computed in float32 and rounded once.
///
/// # Shapes
/// - `x`: `[batch, positions, d_in]`
/// - returns: `[batch, positions, d_out]`; `None` where there is no kernel: on backends other than CubeCL's, under
///   autodiff, for more than [`MAX_ROWS`] positions of all sequences, for more than seven tensors, the output included, and
///   for shapes that do not fit
pub fn product(x: &Tensor<3>, of: &FewRows<'_>) -> Option<Tensor<3>> {
    let [batch, positions, d_in] = x.dims();
    let FewRows { map, norm, gate, activation: _, residual } = of;
    let [_, d_out] = map.weight.dims();
    let dtype = x.dtype();
    let vector = |x: Option<&Tensor<1>>, n: usize| x.is_none_or(|x| x.dims() == [n] && x.dtype() == dtype);
    let maps =
        |map: &RowMap<'_>| map.weight.dims() == [d_in, d_out] && map.weight.dtype() == dtype && vector(map.bias, d_out);
    let optional = [
        map.bias.is_some(),
        gate.is_some(),
        gate.is_some_and(|gate| gate.bias.is_some()),
        norm.is_some(),
        norm.is_some_and(|norm| norm.shift.is_some()),
        residual.is_some(),
    ];
    let n_tensors = 3 + optional.into_iter().filter(|there| *there).count();
    let fits = (1..=MAX_ROWS).contains(&(batch * positions))
        && n_tensors <= MAX_TENSORS
        && d_in > 0
        && d_out > 0
        && maps(map)
        && gate.as_ref().is_none_or(maps)
        && norm.is_none_or(|norm| norm.fits(d_in, dtype))
        && residual.is_none_or(|x| x.dims() == [batch, positions, d_out] && x.dtype() == dtype);
    if !fits {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        extension::product(x, of)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// The likeliest; of several, the first.
    Likeliest,
    /// By their probabilities.
    Sampled(Filters),
}

/// What narrows the choice, one after another; tokens that are equally likely count in the order of their ids.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filters {
    /// The logits are divided by it.
    pub temperature: f64,
    /// Only so many of the likeliest.
    pub top_k: Option<usize>,
    /// Only the likeliest that make up this share.
    pub top_p: Option<f64>,
    /// Only those that are this share of the likeliest at least.
    pub min_p: Option<f64>,
}

impl Filters {
    /// What kernels take: the inverse of the temperature, never 0, which stands for the likeliest; `top_p`, 1 where there is none; and
    /// `min_p`, 0 where there is none.
    fn numbers(&self) -> [f32; 3] {
        // A share of nothing is still the likeliest token.
        let top_p = (self.top_p.unwrap_or(1.0) as f32).max(f32::MIN_POSITIVE);
        let inverse_temperature = (1.0 / self.temperature as f32).max(f32::MIN_POSITIVE);
        [inverse_temperature, top_p, self.min_p.unwrap_or(0.0) as f32]
    }
}

/// Draws a token of every row, in one launch: the first whose cumulative weight is beyond `uniform` times the sum of all,
/// where weights are `exp((logit - max) / temperature)`, added up in float32.
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]`
/// - `uniform`: `[rows, 1]` in float32, from 0 to less than 1; not looked at for [`Choice::Likeliest`]
/// - returns: `[rows, 1]`, -1 where a logit is not a number or infinite, or none is finite; `None` where there is no
///   kernel: on backends other than CubeCL's, under autodiff, for more than 65,535 rows, and for shapes that do not fit
pub fn draw(logits: &Tensor<2>, uniform: Option<&Tensor<2>>, choice: Choice) -> Option<Tensor<2, Int>> {
    let [rows, vocab_size] = logits.dims();
    let given = match choice {
        Choice::Likeliest => true,
        Choice::Sampled(_) => uniform.is_some_and(|uniform| uniform.dims() == [rows, 1]),
    };
    if !given || !draws(logits, rows, vocab_size) {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        extension::draw(logits, uniform, choice)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// How tokens of several rows are drawn, each in its own way, as numbers that [`draw_each`] takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Ways {
    /// `[rows, 4]`, row after row.
    pub numbers: Vec<f32>,
    /// What rows narrow the choice by; rows without are the longer at it where another has one.
    pub narrowed: Narrowed,
}

/// Which of the filters that take time there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Narrowed {
    /// Whether a row has a [`top_k`](Filters::top_k).
    pub by_top_k: bool,
    /// Whether a row has a [`top_p`](Filters::top_p).
    pub by_top_p: bool,
}

impl Ways {
    /// Of rows over a vocabulary of so many.
    pub fn new(choices: impl IntoIterator<Item = Choice>, vocab_size: usize) -> Self {
        let (mut numbers, mut narrowed) = (Vec::new(), Narrowed::default());
        for choice in choices {
            let Choice::Sampled(filters) = choice else {
                numbers.extend([0.0, vocab_size as f32, 1.0, 0.0]);
                continue;
            };
            let top_k = filters.top_k.unwrap_or(vocab_size).min(vocab_size);
            let [inverse_temperature, top_p, min_p] = filters.numbers();
            numbers.extend([inverse_temperature, top_k as f32, top_p, min_p]);
            narrowed.by_top_k |= top_k < vocab_size;
            narrowed.by_top_p |= top_p < 1.0;
        }
        Self { numbers, narrowed }
    }
}

/// Whether [`draw`] and [`draw_each`] have a kernel for so many rows of logits in the type of `x` and on its device.
pub fn draws<const D: usize>(x: &Tensor<D>, rows: usize, vocab_size: usize) -> bool {
    let fits = (1..=MAX_CUBES).contains(&rows) && (1..=MAX_VOCABULARY).contains(&vocab_size);
    #[cfg(feature = "_kernels")]
    {
        fits && extension::draws(x)
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = (fits, x);
        false
    }
}

/// As [`draw`], each row in its own way: so ways may change where everything else is the same, as in a [`Recording`].
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]`
/// - `uniform`: `[rows, 1]` in float32
/// - `ways`: `[rows, 4]` in float32, [those](Ways::numbers) of [`Ways`], narrowed by no more than `narrowed`
/// - returns: as [`draw`]
pub fn draw_each(
    logits: &Tensor<2>,
    uniform: &Tensor<2>,
    ways: &Tensor<2>,
    narrowed: Narrowed,
) -> Option<Tensor<2, Int>> {
    let [rows, vocab_size] = logits.dims();
    if !draws(logits, rows, vocab_size) || uniform.dims() != [rows, 1] || ways.dims() != [rows, 4] {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        extension::draw_each(logits, uniform, ways, [narrowed.by_top_k, narrowed.by_top_p])
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = narrowed;
        None
    }
}

/// What [`observe_kernels`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observe {
    /// How often kernels are launched, which costs next to nothing.
    Launches,
    /// And how long each takes on the device. The device measures while its kernels run one after another as they do
    /// otherwise, but launching them takes longer.
    Times,
}

/// A kernel that was launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelUse {
    /// What it calls itself, without paths.
    pub kernel: String,
    /// How often.
    pub launches: usize,
    /// How long all its launches took; `None` where this was not asked for or the device did not measure all of them.
    pub time: Option<Duration>,
}

/// Does `work` and tells which kernels were launched meanwhile, by all threads of the process: the longest, or the most
/// launched, first. `None` in a build without one of the features `wgpu` and `cuda`.
///
/// Burn launches late: `work` should end with reading something. What it does for the first time is compiled and tuned, and
/// the tuning's launches count. Only one observation is possible at a time; another one that begins meanwhile takes
/// its launches.
pub fn observe_kernels<T>(what: Observe, work: impl FnOnce() -> T) -> (T, Option<Vec<KernelUse>>) {
    #[cfg(feature = "_kernels")]
    {
        let (result, kernels) = observation::observe(what, work);
        (result, Some(kernels))
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = what;
        (work(), None)
    }
}
