//! Attention of few or many queries over cached keys and values: `softmax(q kᵀ / sqrt(head_dim)) v`.
//!
//! A task is up to four rows (queries, or heads of one query that share keys) of one key/value head: their scores are
//! kept, never those of all queries at once. Keys outside of a query's range are not touched.
#![allow(unsafe_code)] // Threads write disjoint heads of one output.

use std::ops::Range;

use rayon::prelude::*;

use crate::Level;
use crate::simd::{Kernel, Simd};
use crate::softmax::exp_and_sum;

/// Rows that share the loads of keys and values.
const ROWS: usize = 4;
/// Multiplications that are worth a thread's attention.
const TASK: usize = 1 << 16;

/// The sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Queries of each.
    pub n_queries: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; query heads `g · i .. g · (i + 1)` share number `i`, where `g = n_heads / n_kv_heads`.
    pub n_kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Positions that each sequence's keys and values have room for.
    pub capacity: usize,
    /// Numbers from one query position to the next (at least `n_heads · head_dim`): queries can be read where a fused
    /// projection left them.
    pub query_stride: usize,
}

/// Attention; `visible[b · n_queries + q]` is the range of keys that query `q` of sequence `b` sees.
///
/// # Shapes
/// - `queries`: `[batch, n_queries, query_stride]`, of which the first `n_heads · head_dim` are read
/// - `keys`, `values`: `[batch, n_kv_heads, capacity, head_dim]`
/// - `out`: `[batch, n_queries, n_heads · head_dim]`
///
/// # Panics
/// If a slice does not have its shape, or a range is empty or goes beyond the capacity.
pub fn attention(
    level: Level,
    shape: AttentionShape,
    inputs: AttentionInputs<'_>,
    visible: &[Range<usize>],
    out: &mut [f32],
) {
    check(&shape, &inputs, visible, out.len());
    let group = shape.n_heads / shape.n_kv_heads;
    let tiles = (group * shape.n_queries).div_ceil(ROWS);
    let longest = visible.iter().map(|range| range.len()).max().unwrap_or(0);
    let out = Output(out.as_mut_ptr());
    let run = |range: Range<usize>| level.run(Tiles { shape, inputs, visible, out: &out, range, longest });
    let tasks = shape.batch * shape.n_kv_heads * tiles;
    let per_task = (TASK / (2 * longest * shape.head_dim * ROWS.min(group * shape.n_queries)).max(1)).max(1);
    if tasks <= per_task || rayon::current_num_threads() == 1 {
        return run(0..tasks);
    }
    let pieces = tasks.div_ceil(per_task).min(4 * rayon::current_num_threads());
    (0..pieces).into_par_iter().for_each(|piece| run(tasks * piece / pieces..tasks * (piece + 1) / pieces));
}

/// What attention reads; shapes as [`attention`] says.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// Queries, not yet scaled.
    pub queries: &'a [f32],
    /// Keys.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
}

fn check(shape: &AttentionShape, inputs: &AttentionInputs<'_>, visible: &[Range<usize>], out: usize) {
    let AttentionShape { batch, n_queries, n_heads, n_kv_heads, head_dim, capacity, query_stride } = *shape;
    assert!(n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "{n_heads} heads over {n_kv_heads} key/value heads");
    assert!(query_stride >= n_heads * head_dim, "a query stride of {query_stride} for {n_heads} heads of {head_dim}");
    assert_eq!(inputs.queries.len(), batch * n_queries * query_stride, "queries");
    assert_eq!(inputs.keys.len(), batch * n_kv_heads * capacity * head_dim, "keys");
    assert_eq!(inputs.values.len(), inputs.keys.len(), "values");
    assert_eq!(visible.len(), batch * n_queries, "ranges of visible keys");
    assert_eq!(out, batch * n_queries * n_heads * head_dim, "output");
    for range in visible {
        assert!(range.start < range.end && range.end <= capacity, "visible keys {range:?} of {capacity}");
    }
}

struct Output(*mut f32);

// SAFETY: every head of a query is written by one task only; numbers may be sent between threads.
unsafe impl Sync for Output {}

struct Tiles<'a> {
    shape: AttentionShape,
    inputs: AttentionInputs<'a>,
    visible: &'a [Range<usize>],
    out: &'a Output,
    range: Range<usize>,
    longest: usize,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AttentionShape { n_queries, n_heads, n_kv_heads, .. } = self.shape;
        let group = n_heads / n_kv_heads;
        let rows = group * n_queries;
        let tiles = rows.div_ceil(ROWS);
        // The union of four ranges; longer only where ranges of neighbouring queries are far apart.
        let mut scores = vec![0.0; ROWS * (self.longest + ROWS)];
        for index in self.range.clone() {
            let (pair, tile) = (index / tiles, index % tiles);
            let rows = tile * ROWS..((tile + 1) * ROWS).min(rows);
            if rows.len() == 1 {
                self.tile::<S, 1>(s, pair, rows, &mut scores);
            } else {
                self.tile::<S, ROWS>(s, pair, rows, &mut scores);
            }
        }
    }
}

/// A row of a tile.
#[derive(Clone, Copy)]
struct Row<'a> {
    query: &'a [f32],
    /// Where its output begins.
    out: usize,
    start: usize,
    end: usize,
}

impl Tiles<'_> {
    /// Rows `rows` of sequence and key/value head `pair`; with fewer than `R` the last is computed again.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, s: S, pair: usize, rows: Range<usize>, scores: &mut Vec<f32>) {
        let AttentionShape { n_kv_heads, head_dim, capacity, .. } = self.shape;
        let (sequence, kv_head) = (pair / n_kv_heads, pair % n_kv_heads);
        let last = rows.end - 1;
        let mut tile = [self.row(sequence, kv_head, last); R];
        for (slot, row) in tile.iter_mut().zip(rows.clone()) {
            *slot = self.row(sequence, kv_head, row);
        }
        let (mut start, mut end) = (capacity, 0);
        for row in &tile {
            (start, end) = (start.min(row.start), end.max(row.end));
        }
        let n = end - start;
        if scores.len() < R * n {
            scores.resize(R * n, 0.0);
        }
        let head = pair * capacity * head_dim;
        let held = head + start * head_dim..head + end * head_dim;
        let scores = &mut scores[..R * n];
        score::<S, R>(s, &tile, &self.inputs.keys[held.clone()], scores);
        let mut sums = [0.0; R];
        for ((row, scores), sum) in tile.iter().zip(scores.chunks_exact_mut(n)).zip(&mut sums) {
            let (first, behind) = (row.start - start, row.end - start);
            scores[..first].fill(0.0);
            scores[behind..].fill(0.0);
            *sum = exp_and_sum(s, &mut scores[first..behind]);
        }
        let mut out = [Part { first: self.out.0, offset: 0, scale: 0.0 }; R];
        for ((part, row), sum) in out.iter_mut().zip(&tile).zip(sums) {
            *part = Part { first: self.out.0, offset: row.out, scale: sum.recip() };
        }
        mix::<S, R>(s, scores, &self.inputs.values[held], head_dim, &out);
    }

    fn row(&self, sequence: usize, kv_head: usize, row: usize) -> Row<'_> {
        let AttentionShape { n_queries, n_heads, n_kv_heads, head_dim, query_stride, .. } = self.shape;
        // Queries next to each other share most keys, so they come first.
        let (head, query) = (kv_head * (n_heads / n_kv_heads) + row / n_queries, row % n_queries);
        let position = sequence * n_queries + query;
        let range = &self.visible[position];
        Row {
            query: &self.inputs.queries[position * query_stride + head * head_dim..][..head_dim],
            out: (position * n_heads + head) * head_dim,
            start: range.start,
            end: range.end,
        }
    }
}

/// `scores[r][key] = q[r] · k[key] / sqrt(head_dim)`.
#[inline(always)]
fn score<S: Simd, const R: usize>(s: S, rows: &[Row<'_>; R], keys: &[f32], scores: &mut [f32]) {
    let head_dim = rows[0].query.len();
    let n = scores.len() / R;
    let scale = (head_dim as f32).sqrt().recip();
    let whole = head_dim - head_dim % S::LANES;
    for (index, key) in keys.chunks_exact(head_dim).enumerate() {
        let mut acc = [s.splat(0.0); R];
        let mut first = 0;
        while first < whole {
            let k = s.load(&key[first..]);
            for (acc, row) in acc.iter_mut().zip(rows) {
                *acc = s.mul_add(s.load(&row.query[first..]), k, *acc);
            }
            first += S::LANES;
        }
        for (r, (acc, row)) in acc.iter().zip(rows).enumerate() {
            let mut sum = s.sum(*acc);
            for (q, k) in row.query[whole..].iter().zip(&key[whole..]) {
                sum += q * k;
            }
            scores[r * n + index] = sum * scale;
        }
    }
}

/// The output of one row.
#[derive(Clone, Copy)]
struct Part {
    first: *mut f32,
    offset: usize,
    scale: f32,
}

impl Part {
    #[inline(always)]
    fn slice(&mut self, feature: usize, features: usize) -> &mut [f32] {
        // SAFETY: `offset` is that of a whole head of the output, whose length `check` has compared; a head belongs to
        // one task, and a task holds one slice at a time.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(self.offset + feature), features) }
    }
}

/// `out[r] = scale[r] · Σ_key weights[r][key] v[key]`.
#[inline(always)]
fn mix<S: Simd, const R: usize>(s: S, weights: &[f32], values: &[f32], head_dim: usize, out: &[Part; R]) {
    let mut feature = 0;
    while feature + 2 * S::LANES <= head_dim {
        mix_features::<S, R, 2>(s, weights, values, (feature, head_dim), out);
        feature += 2 * S::LANES;
    }
    while feature + S::LANES <= head_dim {
        mix_features::<S, R, 1>(s, weights, values, (feature, head_dim), out);
        feature += S::LANES;
    }
    for feature in feature..head_dim {
        for (weights, out) in weights.chunks_exact(values.len() / head_dim).zip(out) {
            let mut sum = 0.0;
            for (weight, value) in weights.iter().zip(values.chunks_exact(head_dim)) {
                sum += weight * value[feature];
            }
            let mut out = *out;
            out.slice(feature, 1)[0] = sum * out.scale;
        }
    }
}

/// The same for `C` vectors of features, from one on.
#[inline(always)]
fn mix_features<S: Simd, const R: usize, const C: usize>(
    s: S,
    weights: &[f32],
    values: &[f32],
    (feature, head_dim): (usize, usize),
    out: &[Part; R],
) {
    let n = values.len() / head_dim;
    let mut acc = [[s.splat(0.0); C]; R];
    for (index, value) in values.chunks_exact(head_dim).enumerate() {
        let mut v = [s.splat(0.0); C];
        for (c, v) in v.iter_mut().enumerate() {
            *v = s.load(&value[feature + c * S::LANES..]);
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let weight = s.splat(weights[r * n + index]);
            for (acc, v) in acc.iter_mut().zip(&v) {
                *acc = s.mul_add(weight, *v, *acc);
            }
        }
    }
    for (acc, out) in acc.iter().zip(out) {
        let mut out = *out;
        let scale = s.splat(out.scale);
        for (acc, out) in acc.iter().zip(out.slice(feature, C * S::LANES).chunks_exact_mut(S::LANES)) {
            s.store(out, s.mul(*acc, scale));
        }
    }
}
