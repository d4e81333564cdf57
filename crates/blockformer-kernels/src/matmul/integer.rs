//! Products with weights of 8 and 4 bits, in integers.
//!
//! A row of `x` is first rounded to 16 bits, in the groups of inputs that share a scale in the weights, with a scale of
//! its own for each: an error of about 2⁻¹⁶ of the largest number of the group. Products of such numbers with weights
//! of 8 bits and their sum over a group are integers of 32 bits, so the sum is exact, and rounded once when it becomes a
//! float; it is multiplied by both scales and added to those before it, in float32. Integers of 16 bits are multiplied twice as
//! many at a time as float32.

use std::cell::Cell;

use rayon::prelude::*;

use super::{Block, Weights};
use crate::Level;
use crate::packed::F32Row;
use crate::quantised::{CodePair, GROUP};
use crate::simd::{Kernel, Simd};

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

/// Codes of all panels and their scales, and the rows they meet.
pub(super) struct Quantised<'a, C> {
    pub(super) codes: &'a [C],
    pub(super) scales: &'a [F32Row],
    pub(super) rows: &'a QuantisedRows,
}

/// Rows of `x` that meet the same weights.
struct Rows<'a, const R: usize> {
    pairs: [&'a [[i16; 2]]; R],
    scales: [&'a [f32]; R],
}

/// One panel of weights.
struct Panel<'a, K> {
    codes: &'a [K],
    scales: &'a [F32Row],
}

impl<'a, K: CodePair> Quantised<'a, K> {
    #[inline(always)]
    fn rows<const R: usize>(&self, first: usize) -> Rows<'a, R> {
        let mut rows = Rows { pairs: [self.rows.row(first); R], scales: [self.rows.row_scales(first); R] };
        for index in 1..R {
            rows.pairs[index] = self.rows.row(first + index);
            rows.scales[index] = self.rows.row_scales(first + index);
        }
        rows
    }

    #[inline(always)]
    fn panel(&self, index: usize) -> Panel<'a, K> {
        let (n_pairs, n_groups) = (self.rows.n_pairs(), self.rows.n_groups());
        let codes = &self.codes[index * n_pairs..][..n_pairs];
        Panel { codes, scales: &self.scales[index * n_groups..][..n_groups] }
    }
}

/// Adds the scaled sums of one group, with `C` vectors of columns from `vector` on.
#[inline(always)]
fn add_group<S: Simd, K: CodePair, const R: usize, const C: usize>(
    s: S,
    rows: &Rows<'_, R>,
    panel: &Panel<'_, K>,
    (group, vector): (usize, usize),
    acc: &mut [[S::V; C]; R],
) {
    let pairs = group * (GROUP / 2)..((group + 1) * (GROUP / 2)).min(panel.codes.len());
    let products = dot::<S, K, R, C>(s, &rows.pairs, panel.codes, pairs, vector);
    for ((acc, products), scales) in acc.iter_mut().zip(&products).zip(&rows.scales) {
        let x_scale = s.splat(scales[group]);
        for (c, (acc, product)) in acc.iter_mut().zip(products).enumerate() {
            let scale = s.mul(x_scale, s.load(&panel.scales[group].0[(vector + c) * S::LANES..]));
            *acc = s.mul_add(s.to_float(*product), scale, *acc);
        }
    }
}

impl<K: CodePair> Weights for Quantised<'_, K> {
    /// 16 KiB of 8-bit weights.
    const INPUTS: usize = 16 * GROUP;

    #[inline(always)]
    fn product<S: Simd, const R: usize, const C: usize>(
        &self,
        s: S,
        block: &Block,
        (row, vector): (usize, usize),
        acc: &mut [[S::V; C]; R],
    ) {
        let (rows, panel) = (self.rows::<R>(block.first_row + row), self.panel(block.panel));
        for group in block.inputs.start / GROUP..block.inputs.end.div_ceil(GROUP) {
            add_group(s, &rows, &panel, (group, vector), acc);
        }
    }

    #[inline(always)]
    fn row<S: Simd, const P: usize, const C: usize>(&self, s: S, first: usize) -> [[S::V; C]; P] {
        let rows = self.rows::<1>(0);
        let mut acc = [[s.splat(0.0); C]; P];
        for (index, acc) in acc.iter_mut().enumerate() {
            let panel = self.panel(first + index);
            for group in 0..self.rows.n_groups() {
                add_group(s, &rows, &panel, (group, 0), std::array::from_mut(acc));
            }
        }
        acc
    }
}

/// The products of some pairs of inputs with `C` vectors of columns.
#[inline(always)]
fn dot<S: Simd, K: CodePair, const R: usize, const C: usize>(
    s: S,
    x: &[&[[i16; 2]]; R],
    codes: &[K],
    pairs: std::ops::Range<usize>,
    vector: usize,
) -> [[S::I; C]; R] {
    for x in x {
        assert!(pairs.end <= x.len(), "as many inputs as weights");
    }
    let mut acc = [[s.zeros(); C]; R];
    for (codes, pair) in codes[pairs.clone()].iter().zip(pairs) {
        let mut w = [s.splat_pair(&[0; 2]); C];
        for (c, w) in w.iter_mut().enumerate() {
            *w = codes.load(s, vector + c);
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
