//! A block of weights with all rows of a task, a register tile after the other.

use std::ops::Range;

use crate::simd::{PANEL, Simd, prefetch};

/// Vectors of columns that a tile multiplies at a time: so few that the sums fit the registers.
pub(super) const VECTORS: usize = 2;

/// Some inputs of a panel, and the rows they meet: those of a chunk.
pub(super) struct Block {
    pub(super) panel: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) inputs: Range<usize>,
}

/// Adds the products of a block to `sums` (or writes them, where the block is a panel's first), rows in tiles for which
/// the registers suffice.
#[inline(always)]
pub(super) fn tiles<S: Simd, W: Weights<S>>(s: S, weights: &W, block: &Block, sums: &mut [[f32; PANEL]]) {
    let vectors = if const { W::SPANS_PANEL } { PANEL / S::LANES } else { VECTORS };
    let passes = PANEL / S::LANES / vectors;
    let mut ahead = Ahead::new(weights.ahead(block), passes * sums.len());
    for vector in (0..PANEL / S::LANES).step_by(vectors) {
        let mut row = 0;
        while row < sums.len() {
            let (rows, at) = (tile_rows(sums.len() - row, W::ROWS), (row, vector));
            ahead.ask(rows);
            // Tiles that a level has no registers for are not even compiled.
            if const { W::ROWS >= 12 } && rows >= 12 {
                tile::<S, W, 12>(s, weights, block, at, sums);
            } else if const { W::ROWS >= 6 } && rows >= 6 {
                tile::<S, W, 6>(s, weights, block, at, sums);
            } else if const { W::ROWS >= 4 } && rows >= 4 {
                tile::<S, W, 4>(s, weights, block, at, sums);
            } else if const { W::ROWS >= 3 } && rows >= 3 {
                tile::<S, W, 3>(s, weights, block, at, sums);
            } else if const { W::ROWS >= 2 } && rows >= 2 {
                tile::<S, W, 2>(s, weights, block, at, sums);
            } else {
                tile::<S, W, 1>(s, weights, block, at, sums);
            }
            row += rows;
        }
    }
}

/// Rows of the next tile, where so many are left and a tile has `most` at most. A row that is left over would wait for its
/// own additions, so a tile is not taken if it leaves one.
#[inline(always)]
pub(super) fn tile_rows(left: usize, most: usize) -> usize {
    let fits = |rows: usize| left == rows || left > rows + 1;
    if most >= 12 && fits(12) {
        12
    } else if most >= 6 && fits(6) {
        6
    } else if most >= 4 && fits(4) {
        4
    } else if most >= 3 && fits(3) {
        3
    } else {
        most.min(left).min(2)
    }
}

/// Weights that are wanted after a block's. Every tile asks for some of them, so that they come from memory while the
/// block's are multiplied: the CPU cannot foresee them, as tiles go through the block's again and again.
struct Ahead {
    next: *const u8,
    lines: usize,
    /// Lines that a tile asks for, for each of its rows.
    lines_per_row: usize,
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

impl Ahead {
    /// `rows` is the sum of the rows of all tiles that ask.
    #[inline(always)]
    fn new(weights: Option<Range<*const u8>>, rows: usize) -> Self {
        let Some(Range { start, end }) = weights else {
            return Self { next: std::ptr::null(), lines: 0, lines_per_row: 0 };
        };
        let lines = (end.addr() - start.addr()) / LINE;
        Self { next: start, lines, lines_per_row: lines.div_ceil(rows) }
    }

    /// What a tile of so many rows asks for.
    #[inline(always)]
    fn ask(&mut self, rows: usize) {
        let lines = (rows * self.lines_per_row).min(self.lines);
        for _ in 0..lines {
            prefetch(self.next);
            self.next = self.next.wrapping_add(LINE);
        }
        self.lines -= lines;
    }
}

/// `R` rows, from `row` on, with the columns from `vector` on.
#[inline(always)]
fn tile<S: Simd, W: Weights<S>, const R: usize>(
    s: S,
    weights: &W,
    block: &Block,
    (row, vector): (usize, usize),
    sums: &mut [[f32; PANEL]],
) {
    weights.product(s, block, (row, vector), &mut sums[row..].as_chunks_mut::<R>().0[0]);
}

/// What the sums of a tile begin with: what is there, or zeros where the block is a panel's first.
#[inline(always)]
pub(super) fn begin<S: Simd, const R: usize, const C: usize>(
    s: S,
    block: &Block,
    vector: usize,
    sums: &[[f32; PANEL]; R],
) -> [[S::V; C]; R] {
    let mut acc = [[s.splat(0.0); C]; R];
    if block.inputs.start > 0 {
        for (acc, sums) in acc.iter_mut().zip(sums) {
            for (v, sums) in acc.iter_mut().zip(sums[vector * S::LANES..].chunks_exact(S::LANES)) {
                *v = s.load(sums);
            }
        }
    }
    acc
}

/// Keeps the sums of a tile.
#[inline(always)]
pub(super) fn keep<S: Simd, const R: usize, const C: usize>(
    s: S,
    acc: &[[S::V; C]; R],
    vector: usize,
    sums: &mut [[f32; PANEL]; R],
) {
    for (acc, sums) in acc.iter().zip(sums) {
        for (v, sums) in acc.iter().zip(sums[vector * S::LANES..].chunks_exact_mut(S::LANES)) {
            s.store(sums, *v);
        }
    }
}

/// Weights of one precision, and the rows they meet.
pub(super) trait Weights<S: Simd> {
    /// Whether a tile spans the panel, instead of [`VECTORS`] of its columns.
    const SPANS_PANEL: bool;
    /// Rows of the largest tile.
    const ROWS: usize;

    /// Adds the products of a block's inputs to `sums`, or writes them, where the block is a panel's first: of `R` of its
    /// rows, from `row` on, with [`VECTORS`] vectors of its panel's columns, from `vector` on, or with all.
    fn product<const R: usize>(&self, s: S, block: &Block, at: (usize, usize), sums: &mut [[f32; PANEL]; R]);

    /// Inputs of a block: so many that weights stay in the first-level cache while all rows meet them.
    fn inputs(&self) -> usize;

    /// Where the weights are that are wanted after those of a block, if it pays to ask for them.
    #[inline(always)]
    fn ahead(&self, _block: &Block) -> Option<Range<*const u8>> {
        None
    }
}

/// Where as many weights are as some, `step` further on: with the step from block to block, the short last block of a panel asks
/// for what no other asks for.
#[inline(always)]
pub(super) fn further_on<T>(weights: &[T], step: usize) -> Range<*const u8> {
    const { assert!(align_of::<T>().is_multiple_of(LINE), "whole cache lines") };
    let Range { start, end } = weights.as_ptr_range();
    start.wrapping_add(step).cast()..end.wrapping_add(step).cast()
}
