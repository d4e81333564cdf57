//! Attention of few or many queries over cached keys and values: `softmax(q kᵀ / sqrt(head_dim) + bias) v`.
//!
//! Keys and values lie in pages, and each sequence has a table of its pages; a cache of sequences side by side is one
//! page a sequence. A tile is up to four rows (queries, or heads of one query that share keys) of one key/value head. Its
//! scores are kept, never those of all queries at once. Keys that no query of a tile sees are not touched; those
//! that another query sees have the weight zero. Where a head has but one tile, as in decoding, and keys lie in several pages,
//! up to eight neighbouring heads of a sequence are taken together, page by page, so that memory is read in order.
//!
//! Neither the rows of a tile nor the pages' length change the order of a sum: as long as all values are finite, what a
//! query gets depends on the query and the keys and values it sees alone, bit for bit.
#![allow(unsafe_code)] // Threads write disjoint heads of one output.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

mod page;

use self::page::{Page, Part, mix_page, score_page};
use crate::simd::{Kernel, Simd};
use crate::softmax::exp_and_sum;
use crate::stored::{Int8, Stored, StoredRows};
use crate::workspace::grow;
use crate::{Level, Workspace};

/// Rows that share the loads of keys and values.
const ROWS: usize = 4;
/// Key/value heads of a sequence that are taken together at most.
const HEADS: usize = 8;
/// Multiplications that are worth a thread's attention.
const TASK: usize = 1 << 16;
/// Numbers of two lines of the cache, which some CPUs fetch together.
const LINES: usize = 32;

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
    /// Positions of a page.
    pub page_length: usize,
    /// Numbers from one query position to the next (at least `n_heads · head_dim`): queries can be read where a fused
    /// projection left them.
    pub query_stride: usize,
}

/// Attention, with several threads where that pays. The workspace holds the scores of the tiles that a thread takes together,
/// with room for as many keys as a sequence's pages have.
///
/// # Shapes
/// - `out`: `[batch, n_queries, n_heads · head_dim]`; the others are [`AttentionInputs`]'s
///
/// # Panics
/// If a slice does not have its shape, keys and values are not stored alike, a table names a page that is not there, or a
/// range is empty, goes beyond a sequence's pages, or is longer than there are distances.
pub fn attention(
    level: Level,
    shape: AttentionShape,
    inputs: AttentionInputs<'_>,
    workspace: &mut Workspace,
    out: &mut [f32],
) {
    check(&shape, &inputs, out.len());
    let AttentionInputs { queries, tables, bias, visible, .. } = inputs;
    let call = Call { level, shape, queries, tables, bias, visible };
    let scores = &mut workspace.scores;
    match (inputs.keys, inputs.values) {
        (Stored::F32(keys), Stored::F32(values)) => call.run(keys, values, scores, out),
        (Stored::F16(keys), Stored::F16(values)) => call.run(keys, values, scores, out),
        (Stored::Int8 { numbers, scales: of_keys }, Stored::Int8 { numbers: values, scales: of_values }) => {
            let keys = Int8 { numbers, scales: of_keys };
            call.run(keys, Int8 { numbers: values, scales: of_values }, scores, out);
        }
        _ => panic!("keys and values are stored in different ways"),
    }
}

/// What there is to do, but for keys and values.
#[derive(Clone, Copy)]
struct Call<'a> {
    level: Level,
    shape: AttentionShape,
    queries: &'a [f32],
    tables: &'a [usize],
    bias: Option<&'a [f32]>,
    visible: &'a [Range<usize>],
}

impl Call<'_> {
    /// Shares the tiles among threads, each with room for scores of its own.
    fn run<N: StoredRows>(self, keys: N, values: N, scores: &mut Vec<f32>, out: &mut [f32]) {
        let Self { level, shape, visible, .. } = self;
        let rows = shape.n_heads / shape.n_kv_heads * shape.n_queries;
        let tasks = shape.batch * shape.n_kv_heads * rows.div_ceil(ROWS);
        let longest = visible.iter().map(|range| range.len()).max().unwrap_or(0);
        let together = self.heads_together(longest).min(shape.n_kv_heads);
        let out = Output(out.as_mut_ptr());
        let run = |range: Range<usize>, scores: &mut [f32]| {
            level.run(Tiles { call: self, keys, values, out: &out, range, together, scores });
        };
        let threads = rayon::current_num_threads().min(tasks.max(1));
        // Not only for the keys that are seen now: decoding need not make more room before its sequences have more pages.
        let capacity = self.tables.len() / shape.batch * shape.page_length;
        let of_a_tile = if rows == 1 { 1 } else { ROWS } * capacity;
        let of_a_thread = together.min(tasks.div_ceil(threads)) * of_a_tile;
        // Threads write to no line of the cache together.
        let of_a_thread = of_a_thread.next_multiple_of(LINES) + LINES;
        grow(scores, threads * of_a_thread);
        let per_task = (TASK / (2 * longest * shape.head_dim * ROWS.min(rows)).max(1)).max(1);
        let per_task = per_task.max(together.min(shape.n_kv_heads.div_ceil(threads)));
        if tasks <= per_task || threads == 1 {
            return run(0..tasks, scores);
        }
        let pieces = tasks.div_ceil(per_task).next_multiple_of(threads).min(4 * threads);
        let next = AtomicUsize::new(0);
        scores[..threads * of_a_thread].par_chunks_exact_mut(of_a_thread).for_each(|scores| {
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    break;
                }
                run(tasks * piece / pieces..tasks * (piece + 1) / pieces, scores);
            }
        });
    }

    /// Key/value heads that are taken together: several where each has one tile and keys lie in several pages.
    fn heads_together(&self, longest: usize) -> usize {
        let AttentionShape { n_queries, n_heads, n_kv_heads, page_length, .. } = self.shape;
        if n_queries * (n_heads / n_kv_heads) <= ROWS && page_length < longest { HEADS } else { 1 }
    }
}

/// What attention reads.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// Queries, not yet scaled: `[batch, n_queries, query_stride]`, of which the first `n_heads · head_dim` are read.
    pub queries: &'a [f32],
    /// Keys: `[any number of pages, n_kv_heads, page_length, head_dim]`.
    pub keys: Stored<'a>,
    /// Values: as keys, and stored like them.
    pub values: Stored<'a>,
    /// The pages of each sequence, in order, as many for each: `[batch, pages of a sequence]`. What is behind the keys that
    /// are seen may be any page.
    pub tables: &'a [usize],
    /// The keys that each query sees, positions of its sequence: `[batch, n_queries]`.
    pub visible: &'a [Range<usize>],
    /// A bias for each head and distance, `[n_heads, distances]`: the last key that a query sees is at distance 0. T5's
    /// relative positions are such (Raffel et al. 2020, section 2.1).
    pub bias: Option<&'a [f32]>,
}

fn check(shape: &AttentionShape, inputs: &AttentionInputs<'_>, out: usize) {
    let AttentionShape { batch, n_queries, n_heads, n_kv_heads, head_dim, page_length, query_stride } = *shape;
    assert!(n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "{n_heads} heads over {n_kv_heads} key/value heads");
    assert!(query_stride >= n_heads * head_dim, "a query stride of {query_stride} for {n_heads} heads of {head_dim}");
    assert_eq!(inputs.queries.len(), batch * n_queries * query_stride, "queries");
    let page = n_kv_heads * page_length * head_dim;
    assert!(page > 0 && inputs.keys.len().is_multiple_of(page), "keys are not pages of {page} numbers");
    assert_eq!(inputs.values.len(), inputs.keys.len(), "values");
    for stored in [inputs.keys, inputs.values] {
        if let Stored::Int8 { numbers, scales } = stored {
            assert_eq!(scales.len() * head_dim, numbers.len(), "scales of {} numbers", numbers.len());
        }
    }
    assert!(batch > 0 && inputs.tables.len().is_multiple_of(batch), "tables of {batch} sequences");
    let n_pages = inputs.keys.len() / page;
    assert!(inputs.tables.iter().all(|page| *page < n_pages), "a table names a page beyond {n_pages}");
    let capacity = inputs.tables.len() / batch * page_length;
    let visible = inputs.visible;
    assert_eq!(visible.len(), batch * n_queries, "ranges of visible keys");
    assert_eq!(out, batch * n_queries * n_heads * head_dim, "output");
    let distances = inputs.bias.map_or(usize::MAX, |bias| {
        assert!(bias.len().is_multiple_of(n_heads), "biases of {n_heads} heads");
        bias.len() / n_heads
    });
    for range in visible {
        assert!(range.len() <= distances, "visible keys {range:?}, but {distances} distances");
        assert!(range.start < range.end && range.end <= capacity, "visible keys {range:?} of {capacity}");
    }
}

struct Output(*mut f32);

// SAFETY: every head of a query is read and written by one task only, and each piece of the tasks is run once; numbers may be sent between threads.
unsafe impl Sync for Output {}

struct Tiles<'a, N> {
    call: Call<'a>,
    keys: N,
    values: N,
    out: &'a Output,
    range: Range<usize>,
    /// Key/value heads that are taken together at most.
    together: usize,
    scores: &'a mut [f32],
}

impl<N: StoredRows> Kernel for Tiles<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let AttentionShape { n_queries, n_heads, n_kv_heads, .. } = self.call.shape;
        let group = n_heads / n_kv_heads;
        let rows = group * n_queries;
        let tiles = rows.div_ceil(ROWS);
        let Range { start: mut index, end } = self.range.clone();
        while index < end {
            let (pair, tile) = (index / tiles, index % tiles);
            // Where heads are taken together, each is one tile.
            let heads = self.together.min(n_kv_heads - pair % n_kv_heads).min(end - index);
            let rows = tile * ROWS..((tile + 1) * ROWS).min(rows);
            if rows.len() == 1 {
                self.tile::<S, 1>(s, pair..pair + heads, rows);
            } else {
                self.tile::<S, ROWS>(s, pair..pair + heads, rows);
            }
            index += heads;
        }
    }
}

/// A row of a tile.
#[derive(Clone, Copy)]
struct Row<'a> {
    query: &'a [f32],
    /// Its head's bias by distance; empty if there is none.
    bias: &'a [f32],
    /// Where its output begins.
    out: usize,
    start: usize,
    end: usize,
}

impl<'a, N: StoredRows> Tiles<'a, N> {
    /// Rows `rows` of the key/value heads `pairs`, numbered sequence by sequence, all of one, so that they see the same keys;
    /// with fewer than `R` rows the last is computed again.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&mut self, s: S, pairs: Range<usize>, rows: Range<usize>) {
        let AttentionShape { batch, n_kv_heads, head_dim, page_length, .. } = self.call.shape;
        let (sequence, kv_head) = (pairs.start / n_kv_heads, pairs.start % n_kv_heads);
        let last = rows.end - 1;
        let mut heads = [[self.row(sequence, kv_head, last); R]; HEADS];
        let heads = &mut heads[..pairs.len()];
        for (kv_head, tile) in (kv_head..).zip(&mut *heads) {
            for (row, slot) in (rows.start..).zip(tile) {
                *slot = self.row(sequence, kv_head, row.min(last));
            }
        }
        let (mut start, mut end) = (usize::MAX, 0);
        for row in &heads[0] {
            (start, end) = (start.min(row.start), end.max(row.end));
        }
        let n = end - start;
        let pages = self.call.tables.len() / batch;
        let table = &self.call.tables[sequence * pages..(sequence + 1) * pages];
        let walk = Walk {
            table: &table[start / page_length..],
            within: start % page_length,
            done: 0,
            left: n,
            page_length,
            page: n_kv_heads * page_length,
            head: kv_head * page_length,
        };
        let scores = &mut self.scores[..heads.len() * R * n];
        for (at, first) in walk {
            for (head, (tile, scores)) in heads.iter().zip(scores.chunks_exact_mut(R * n)).enumerate() {
                score_page::<S, N, R>(s, tile, self.keys, first + head * page_length, at.clone(), scores);
            }
        }
        let mut outs = [[Part { first: self.out.0, offset: 0, scale: 0.0 }; R]; HEADS];
        for ((tile, scores), outs) in heads.iter().zip(scores.chunks_exact_mut(R * n)).zip(&mut outs) {
            for ((row, scores), out) in tile.iter().zip(scores.chunks_exact_mut(n)).zip(outs) {
                let (first, behind) = (row.start - start, row.end - start);
                scores[..first].fill(0.0);
                scores[behind..].fill(0.0);
                for (score, bias) in scores[first..behind].iter_mut().rev().zip(row.bias) {
                    *score += bias;
                }
                let sum = exp_and_sum(s, &mut scores[first..behind]);
                *out = Part { first: self.out.0, offset: row.out, scale: sum.recip() };
            }
        }
        for (at, first) in walk {
            for (head, (outs, weights)) in outs.iter().zip(scores.chunks_exact(R * n)).enumerate() {
                let page = Page { first: first + head * page_length, at: at.clone(), n, head_dim };
                mix_page::<S, N, R>(s, weights, page, self.values, outs);
            }
        }
    }

    fn row(&self, sequence: usize, kv_head: usize, row: usize) -> Row<'a> {
        let AttentionShape { n_queries, n_heads, n_kv_heads, head_dim, query_stride, .. } = self.call.shape;
        // Queries next to each other share most keys, so they come first.
        let (head, query) = (kv_head * (n_heads / n_kv_heads) + row / n_queries, row % n_queries);
        let position = sequence * n_queries + query;
        let range = &self.call.visible[position];
        Row {
            query: &self.call.queries[position * query_stride + head * head_dim..][..head_dim],
            bias: self.call.bias.map_or(&[], |bias| &bias[head * (bias.len() / n_heads)..][..bias.len() / n_heads]),
            out: (position * n_heads + head) * head_dim,
            start: range.start,
            end: range.end,
        }
    }
}

/// Consecutive positions of one head of a sequence, page by page: which of all they are, and the row of the first.
#[derive(Clone, Copy)]
struct Walk<'a> {
    /// The pages that are left.
    table: &'a [usize],
    /// Positions of the first page that come before.
    within: usize,
    /// Positions that came before.
    done: usize,
    /// Positions that are left.
    left: usize,
    page_length: usize,
    /// Rows of a page: positions of all heads.
    page: usize,
    /// Rows of a page before the head's.
    head: usize,
}

impl Iterator for Walk<'_> {
    type Item = (Range<usize>, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let (page, rest) = self.table.split_first()?;
        let n = (self.page_length - self.within).min(self.left);
        let (first, at) = (page * self.page + self.head + self.within, self.done..self.done + n);
        (self.table, self.within, self.done, self.left) = (rest, 0, at.end, self.left - n);
        Some((at, first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_before_change_nothing() {
        // One tile of four rows, tiles of one row, heads taken together over pages; on one thread and on several.
        for (n_queries, n_heads, n_kv_heads, page_length) in
            [(4, 1, 1, 96), (1, 12, 12, 96), (1, 12, 12, 8), (9, 4, 2, 8)]
        {
            let (batch, head_dim) = (5, 8);
            let query_stride = n_heads * head_dim;
            let shape = AttentionShape { batch, n_queries, n_heads, n_kv_heads, head_dim, page_length, query_stride };
            let numbers: Vec<f32> = (0..batch * 96 * 12 * head_dim).map(|i| (i as f32 * 0.37).sin()).collect();
            let held = Stored::F32(&numbers[..batch * 96 * n_kv_heads * head_dim]);
            let tables: Vec<usize> = (0..batch * 96 / page_length).collect();
            // Not all see the first key, or as many.
            let visible: Vec<_> = (0..batch * n_queries).map(|i| i % 3..90 - i % 7).collect();
            let inputs = AttentionInputs {
                queries: &numbers[..batch * n_queries * query_stride],
                keys: held,
                values: held,
                tables: &tables,
                visible: &visible,
                bias: None,
            };
            let run = |workspace: &mut Workspace| {
                let mut out = vec![f32::NAN; batch * n_queries * query_stride];
                attention(Level::current(), shape, inputs, workspace, &mut out);
                out
            };
            let mut workspace = Workspace::default();
            let expected = run(&mut workspace);
            workspace.scores.fill(f32::NAN);
            assert_eq!(run(&mut workspace), expected);
            assert!(expected.iter().all(|x| x.is_finite()));
        }
    }
}
