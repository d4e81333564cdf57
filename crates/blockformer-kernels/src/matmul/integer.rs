//! Products with weights of 8 and 4 bits, in integers.
//!
//! A row of `x` is first rounded to 16 bits, in the groups of inputs that share a scale in the weights, with a scale of
//! its own for each: an error of about 2⁻¹⁶ of the largest number of the group. Products of such numbers with weights
//! of 8 bits and their sum over a group are integers of 32 bits, so the sum is exact, and rounded once when it becomes a
//! float; it is multiplied by both scales and added to those before it, in float32. Integers of 16 bits are multiplied twice as
//! many at a time as float32.

use std::cell::Cell;

use rayon::prelude::*;

use super::{Task, finish};
use crate::Level;
use crate::packed::F32Row;
use crate::quantised::{CodePair, GROUP};
use crate::simd::{Kernel, PANEL, Simd};

/// Groups of a panel that are used for all rows before the next: 16 KiB of 8-bit weights, in the first-level cache.
const GROUPS: usize = 16;
/// Numbers of `x` that are worth a thread's attention.
const PART: usize = 1 << 15;
/// The largest 16-bit integer.
const LARGEST: f32 = 32767.0;

/// Rows of `x`, rounded.
#[derive(Debug, Default)]
pub(super) struct QuantisedRows {
    /// `[rows, 2 · n_pairs]`; behind an odd number of inputs stands a zero.
    codes: Vec<i16>,
    /// `[rows, n_groups]`.
    scales: Vec<f32>,
    n_inputs: usize,
}

thread_local! {
    /// Taken and put back by every product, so that none allocates.
    static ROWS: Cell<QuantisedRows> = Cell::default();
}

impl QuantisedRows {
    /// Rounds the rows of `x`, calls `f` with them, and keeps the room for the next product.
    pub(super) fn with<T>(level: Level, x: &[f32], n_inputs: usize, f: impl FnOnce(&Self) -> T) -> T {
        let mut rows = ROWS.take();
        rows.fill(level, x, n_inputs);
        let result = f(&rows);
        ROWS.set(rows);
        result
    }

    fn fill(&mut self, level: Level, x: &[f32], n_inputs: usize) {
        self.n_inputs = n_inputs;
        let (n_codes, n_groups) = (2 * self.n_pairs(), self.n_groups());
        let n_rows = x.len() / n_inputs;
        self.codes.resize(n_rows * n_codes, 0);
        self.scales.resize(n_rows * n_groups, 0.0);
        let rows = (PART / n_inputs).max(1);
        let quantise = |((x, codes), scales)| level.run(Quantise { x, n_inputs, codes, scales });
        if n_rows <= rows {
            return quantise(((x, &mut self.codes[..]), &mut self.scales[..]));
        }
        let codes = self.codes.par_chunks_mut(rows * n_codes);
        let scales = self.scales.par_chunks_mut(rows * n_groups);
        x.par_chunks(rows * n_inputs).zip(codes).zip(scales).for_each(quantise);
    }

    fn n_pairs(&self) -> usize {
        self.n_inputs.div_ceil(2)
    }

    fn n_groups(&self) -> usize {
        self.n_inputs.div_ceil(GROUP)
    }

    /// The pairs of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> &[[i16; 2]] {
        self.codes[row * 2 * self.n_pairs()..][..2 * self.n_pairs()].as_chunks().0
    }

    /// The scales of a row.
    #[inline(always)]
    fn row_scales(&self, row: usize) -> &[f32] {
        &self.scales[row * self.n_groups()..][..self.n_groups()]
    }
}

struct Quantise<'a> {
    x: &'a [f32],
    n_inputs: usize,
    codes: &'a mut [i16],
    scales: &'a mut [f32],
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let codes = self.codes.chunks_exact_mut(self.n_inputs.next_multiple_of(2));
        let scales = self.scales.chunks_exact_mut(self.n_inputs.div_ceil(GROUP));
        for ((x, codes), scales) in self.x.chunks_exact(self.n_inputs).zip(codes).zip(scales) {
            for ((x, codes), scale) in x.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(scales) {
                *scale = group(x, codes);
            }
        }
    }
}

/// Rounds a group; its scale, which is not finite where a number is not, and so makes the product not finite.
#[inline(always)]
fn group(x: &[f32], codes: &mut [i16]) -> f32 {
    // Adding 1.5 · 2²³ leaves an integer in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    // Without signs, floats are ordered as their bits are, and what is not a number comes last.
    let largest = f32::from_bits(x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff)));
    let scale = largest / LARGEST;
    // Numbers too small to divide by count as zeros.
    let inverse = if scale >= f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
    for (code, x) in codes.iter_mut().zip(x) {
        *code = ((x * inverse + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32) as i16;
    }
    if let Some(code) = codes.get_mut(x.len()) {
        *code = 0;
    }
    scale
}

/// Codes of all panels, and their scales.
pub(super) struct Quantised<'a, C> {
    pub(super) codes: &'a [C],
    pub(super) scales: &'a [F32Row],
    pub(super) rows: &'a QuantisedRows,
}

/// As `super::panels`.
#[inline(always)]
pub(super) fn panels<S: Simd, C: CodePair>(s: S, task: &Task<'_>, weights: &Quantised<'_, C>) {
    let (n_inputs, n_outputs) = (task.weights.n_inputs(), task.weights.n_outputs());
    let n_panels = n_outputs.div_ceil(PANEL);
    let n_rows = task.x.len() / n_inputs;
    let n_groups = n_inputs.div_ceil(GROUP);
    let mut sums = [[0.0f32; PANEL]; super::MAX_ROWS];
    for index in task.range.clone() {
        let (chunk, panel) = (index / n_panels, index % n_panels);
        let first_row = chunk * task.chunk;
        let sums = &mut sums[..task.chunk.min(n_rows - first_row)];
        sums.fill([0.0; PANEL]);
        for first in (0..n_groups).step_by(GROUPS) {
            let block = Block { panel, first_row, groups: first..(first + GROUPS).min(n_groups) };
            tiles(s, weights, &block, sums);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let columns = PANEL.min(n_outputs - panel * PANEL);
            // SAFETY: row and panel lie in the output, whose size `matmul` has checked; every task index, and so
            // every pair of a row and a panel, belongs to one task.
            let out = unsafe { task.out.part(first_row + row, panel * PANEL, columns) };
            finish(s, &task.epilogue, panel * PANEL, sums, out);
        }
    }
}

/// Some groups of a panel, and the rows they meet.
struct Block {
    panel: usize,
    first_row: usize,
    groups: std::ops::Range<usize>,
}

/// Adds the products of a block to `sums`. A single row takes the panel's whole width, front to back.
#[inline(always)]
fn tiles<S: Simd, C: CodePair>(s: S, weights: &Quantised<'_, C>, block: &Block, sums: &mut [[f32; PANEL]]) {
    if sums.len() == 1 {
        if const { PANEL / S::LANES == 2 } {
            tile::<S, C, 1, 2>(s, weights, block, (0, 0), sums);
        } else {
            tile::<S, C, 1, 4>(s, weights, block, (0, 0), sums);
        }
        return;
    }
    for vector in (0..PANEL / S::LANES).step_by(2) {
        let mut row = 0;
        while row < sums.len() {
            let (left, at) = (sums.len() - row, (row, vector));
            // Tiles that a level has no registers for are not even compiled.
            row += if const { S::TILE_ROWS >= 12 } && left >= 12 {
                tile::<S, C, 12, 2>(s, weights, block, at, sums)
            } else if const { S::TILE_ROWS >= 6 } && left >= 6 {
                tile::<S, C, 6, 2>(s, weights, block, at, sums)
            } else if const { S::TILE_ROWS >= 4 } && left >= 4 {
                tile::<S, C, 4, 2>(s, weights, block, at, sums)
            } else if left >= 2 {
                tile::<S, C, 2, 2>(s, weights, block, at, sums)
            } else {
                tile::<S, C, 1, 2>(s, weights, block, at, sums)
            };
        }
    }
}

/// `R` rows and `V` vectors of columns, from `(row, vector)` on; returns `R`.
#[inline(always)]
fn tile<S: Simd, C: CodePair, const R: usize, const V: usize>(
    s: S,
    weights: &Quantised<'_, C>,
    block: &Block,
    (row, vector): (usize, usize),
    sums: &mut [[f32; PANEL]],
) -> usize {
    let (n_pairs, n_groups) = (weights.rows.n_pairs(), weights.rows.n_groups());
    let codes = &weights.codes[block.panel * n_pairs..][..n_pairs];
    let scales = &weights.scales[block.panel * n_groups..][..n_groups];
    let mut x = [&weights.rows.row(0)[..0]; R];
    let mut x_scales = [&weights.rows.row_scales(0)[..0]; R];
    for (index, (x, x_scales)) in x.iter_mut().zip(&mut x_scales).enumerate() {
        *x = weights.rows.row(block.first_row + row + index);
        *x_scales = weights.rows.row_scales(block.first_row + row + index);
    }
    for group in block.groups.clone() {
        let pairs = group * (GROUP / 2)..((group + 1) * (GROUP / 2)).min(n_pairs);
        let products = dot::<S, C, R, V>(s, &x, codes, pairs, vector);
        for (r, products) in products.iter().enumerate() {
            let x_scale = s.splat(x_scales[r][group]);
            for (v, product) in products.iter().enumerate() {
                let sum = &mut sums[row + r][(vector + v) * S::LANES..];
                let scale = s.mul(x_scale, s.load(&scales[group].0[(vector + v) * S::LANES..]));
                s.store(sum, s.mul_add(s.to_float(*product), scale, s.load(sum)));
            }
        }
    }
    R
}

/// The products of some pairs of inputs with `V` vectors of columns.
#[inline(always)]
fn dot<S: Simd, C: CodePair, const R: usize, const V: usize>(
    s: S,
    x: &[&[[i16; 2]]; R],
    codes: &[C],
    pairs: std::ops::Range<usize>,
    vector: usize,
) -> [[S::I; V]; R] {
    for x in x {
        assert!(pairs.end <= x.len(), "as many inputs as weights");
    }
    let mut acc = [[s.zeros(); V]; R];
    for (codes, pair) in codes[pairs.clone()].iter().zip(pairs) {
        let mut w = [s.splat_pair(&[0; 2]); V];
        for (v, w) in w.iter_mut().enumerate() {
            *w = codes.load(s, vector + v);
        }
        for (acc, x) in acc.iter_mut().zip(x) {
            // SAFETY: `pair < pairs.end <= x.len()`, asserted above.
            let x = s.splat_pair(unsafe { x.get_unchecked(pair) });
            for (acc, w) in acc.iter_mut().zip(&w) {
                *acc = s.dot_add(x, *w, *acc);
            }
        }
    }
    acc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(x: &[f32]) -> (Vec<i16>, Vec<f32>) {
        let mut rows = QuantisedRows::default();
        rows.fill(Level::current(), x, x.len());
        (rows.codes, rows.scales)
    }

    #[test]
    fn a_group_is_rounded_to_within_half_a_step_of_its_own_scale() {
        let x: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).sin() * [1.0, 1e-4, 1e6][i / 32]).collect();
        let (codes, scales) = rounded(&x);
        assert_eq!((codes.len(), scales.len(), codes[77]), (78, 3, 0));
        for (i, x) in x.iter().enumerate() {
            let error = (f64::from(codes[i]) * f64::from(scales[i / 32]) - f64::from(*x)).abs();
            // Half a step, and what scaling to 15 bits rounds in float32's 24.
            assert!(error <= 0.505 * f64::from(scales[i / 32]), "{x}: {error}");
        }
        for (group, codes) in codes.chunks(32).enumerate() {
            assert_eq!(codes.iter().map(|code| code.unsigned_abs()).max(), Some(32767), "group {group}");
        }
    }

    #[test]
    fn numbers_without_size_or_beyond_measure_are_no_surprise() {
        assert_eq!(rounded(&[0.0, -0.0, f32::MIN_POSITIVE / 8.0]).0, [0, 0, 0, 0]);
        assert!(rounded(&[1.0, f32::NAN, 2.0]).1[0].is_nan());
        assert!(rounded(&[1.0, f32::NEG_INFINITY, 2.0]).1[0].is_infinite());
    }
}
