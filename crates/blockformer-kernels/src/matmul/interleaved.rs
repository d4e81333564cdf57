//! Rows of inputs in the order in which tiles of many rows read them, for products in float32.
//!
//! A tile that read rows as they are would read from as many places as it has rows, which in many models lie a multiple of
//! 4 KiB apart, on the same few places of a cache.

use rayon::prelude::*;

use super::rounded::PART;
use super::tiles::tile_rows;
use crate::Level;
use crate::packed::{BF16_INPUTS, PackedMatrix, Panels};
use crate::simd::{Kernel, Simd};
use crate::workspace::grow;

/// Rows that are so few that they wait for float32 weights from memory.
pub(super) const FEW_ROWS: usize = 6;

/// Whether chunks of so many rows are interleaved.
#[inline(always)]
pub(super) fn serves(chunk: usize, weights: &PackedMatrix) -> bool {
    chunk > if matches!(weights.panels, Panels::F32(_)) { FEW_ROWS } else { 1 }
}

/// Inputs of a block: fewer where rows are few, so that no tile asks for too many weights at once. Whole lines of bfloat16
/// weights.
#[inline(always)]
pub(super) fn inputs(chunk: usize) -> usize {
    (2 * chunk).next_multiple_of(BF16_INPUTS).min(4 * BF16_INPUTS)
}

/// Rows of float32: chunk after chunk of rows, in a chunk block after block of inputs, in a block tile after tile of rows,
/// in a tile input after input, each of all its rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Interleaved(Vec<f32>);

impl Interleaved {
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.0[..])
    }

    /// Takes in the rows of `x`, of which tasks take `chunk` each.
    pub(super) fn fill(&mut self, level: Level, x: &[f32], n_inputs: usize, chunk: usize) {
        grow(&mut self.0, x.len());
        let inputs = inputs(chunk);
        x.par_chunks(chunk * n_inputs).zip(self.0[..x.len()].par_chunks_mut(chunk * n_inputs)).for_each(|(x, to)| {
            let block = inputs * (x.len() / n_inputs);
            to.par_chunks_mut(block).with_min_len(PART.div_ceil(block)).enumerate().for_each(|(index, to)| {
                level.run(Interleave { x, n_inputs, first: index * inputs, to });
            });
        });
    }

    /// The rows.
    pub(super) fn rows(&self) -> &[f32] {
        &self.0
    }
}

/// One block of a chunk.
struct Interleave<'a> {
    x: &'a [f32],
    n_inputs: usize,
    /// The first input of the block.
    first: usize,
    to: &'a mut [f32],
}

impl Kernel for Interleave<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let n_rows = self.x.len() / self.n_inputs;
        let n = self.to.len() / n_rows;
        let mut row = 0;
        while row < n_rows {
            let rows = tile_rows(n_rows - row, S::TILE_ROWS);
            let x = &self.x[row * self.n_inputs + self.first..];
            let to = &mut self.to[row * n..][..rows * n];
            match rows {
                12 => interleave::<12>(x, self.n_inputs, to),
                6 => interleave::<6>(x, self.n_inputs, to),
                4 => interleave::<4>(x, self.n_inputs, to),
                3 => interleave::<3>(x, self.n_inputs, to),
                2 => interleave::<2>(x, self.n_inputs, to),
                _ => interleave::<1>(x, self.n_inputs, to),
            }
            row += rows;
        }
    }
}

/// A tile of `R` rows, of which `x` begins with the first; they lie `stride` numbers apart.
#[inline(always)]
fn interleave<const R: usize>(x: &[f32], stride: usize, to: &mut [f32]) {
    let (to, _) = to.as_chunks_mut::<R>();
    let mut rows = [&x[..0]; R];
    for (index, row) in rows.iter_mut().enumerate() {
        *row = &x[index * stride..][..to.len()];
    }
    for (k, to) in to.iter_mut().enumerate() {
        for (to, row) in to.iter_mut().zip(&rows) {
            *to = row[k];
        }
    }
}
