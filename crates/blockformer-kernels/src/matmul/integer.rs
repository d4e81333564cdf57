//! Products with weights of 8 and 4 bits, in integers.
//!
//! Products of codes are summed in 16 bits as far as they surely fit, then in 32 (with VNNI at once in 32), so the sum over
//! a group is exact and the same on every level. It becomes a float, is multiplied by the scales of the row and of the
//! weights, and added to those before it.
//!
//! One factor of such a product has no sign. With 8 bits it is the row's code, which counts from the least number of its
//! group; that makes every sum too large by the code of zero times the sum of a column's codes, which is known when weights
//! are packed and taken off in float32, exactly, as both are small. Weights can then come from memory without a register of
//! their own. With 4 bits it is the weight, which has to be unpacked anyway; it counts from a minimum of its group, which is
//! multiplied by the sum of the row's numbers and added first.

use std::ops::Range;

use super::RowWeights;
use super::rounded::{Group, Rounded};
use super::tiles::{Block, LINE, VECTORS, Weights, begin, further_on, keep};
use crate::quantised::{Codes, GROUP_QUADS, QUAD};
use crate::simd::{PANEL, Simd, prefetch};

/// Inputs of a block: 8 KiB of 8-bit weights.
const INPUTS: usize = 256;

/// Codes of all panels and their scales, and the rows they meet.
pub(super) struct Quantised<'a, C: Codes> {
    pub(super) codes: &'a [C],
    pub(super) scales: &'a [C::Scales],
    pub(super) rows: &'a Rounded,
}

/// Rows of `x` that meet the same weights.
struct Rows<'a, const R: usize> {
    quads: [&'a [[i8; QUAD]]; R],
    groups: [&'a [Group]; R],
}

/// One panel of weights.
struct Panel<'a, C: Codes> {
    codes: &'a [C],
    /// Behind them those of the next panels.
    scales: &'a [C::Scales],
    n_steps: usize,
}

impl<'a, C: Codes> Quantised<'a, C> {
    #[inline(always)]
    fn rows<const R: usize>(&self, first: usize) -> Rows<'a, R> {
        let mut rows = Rows { quads: [self.rows.row::<C>(first); R], groups: [self.rows.row_groups(first); R] };
        for index in 1..R {
            rows.quads[index] = self.rows.row::<C>(first + index);
            rows.groups[index] = self.rows.row_groups(first + index);
        }
        rows
    }

    #[inline(always)]
    fn panel(&self, index: usize) -> Panel<'a, C> {
        let n_groups = self.rows.n_groups;
        let n_codes = n_groups * (C::GROUP / C::INPUTS);
        Panel {
            codes: &self.codes[index * n_codes..][..n_codes],
            scales: &self.scales[index * n_groups..],
            n_steps: self.rows.n_steps,
        }
    }
}

/// The sums of one group, with `C` vectors of columns from `vector` on.
#[inline(always)]
fn group_sums<S: Simd, K: Codes, const R: usize, const C: usize>(
    s: S,
    rows: &Rows<'_, R>,
    panel: &Panel<'_, K>,
    (group, vector): (usize, usize),
) -> [[S::I; C]; R] {
    let mut quads = [&rows.quads[0][..0]; R];
    for (quads, of_row) in quads.iter_mut().zip(&rows.quads) {
        *quads = &of_row[group * (K::GROUP / QUAD)..][..K::GROUP / QUAD];
    }
    let codes = &panel.codes[group * (K::GROUP / K::INPUTS)..][..K::GROUP / K::INPUTS];
    let mut sums = [[s.splat_integer(0); C]; R];
    if const { R <= 2 && C == 4 && rows_meet_panels::<S, K>() } {
        // `C` is four, and groups of 8-bit weights have so many quads, neither of which the compiler knows.
        let weights = K::of_8_bits(codes).expect("a group of 8-bit weights");
        let mut x = [&[[0; QUAD]; GROUP_QUADS]; R];
        for (row, x) in x.iter_mut().enumerate() {
            *x = quads[row].first_chunk().expect("the quads of a group");
        }
        if let Some(of_columns) = s.dot_group(x, weights) {
            for (to, from) in sums.as_flattened_mut().iter_mut().zip(of_columns.as_flattened()) {
                *to = *from;
            }
            return sums;
        }
    }
    dot(s, &quads, (codes, panel.n_steps), vector, &mut sums);
    sums
}

/// Asks for the scales of a group. They are too few, between so many codes, for the CPU to see that they follow each other.
#[inline(always)]
fn ask_for_scales<K: Codes>(panel: &Panel<'_, K>, group: usize) {
    if let Some(scales) = panel.scales.get(group) {
        for offset in (0..size_of_val(scales)).step_by(LINE) {
            prefetch(std::ptr::from_ref(scales).cast::<u8>().wrapping_add(offset));
        }
    }
}

/// The [scales](Codes::scales) of one group, of `C` vectors of columns from `vector` on.
#[inline(always)]
fn scales<S: Simd, K: Codes, const C: usize>(
    s: S,
    panel: &Panel<'_, K>,
    (group, vector): (usize, usize),
) -> [[S::V; 2]; C] {
    let mut scales = [[s.splat(0.0); 2]; C];
    for (c, scales) in scales.iter_mut().enumerate() {
        *scales = K::scales(&panel.scales[group], s, vector + c);
    }
    scales
}

/// Adds the sum of a group of a row, scaled.
#[inline(always)]
fn add_scaled<S: Simd, K: Codes>(s: S, x: Group, sum: S::I, [scale, other]: [S::V; 2], to: S::V) -> S::V {
    let scale = s.mul(s.splat(x.scale), scale);
    if const { K::SIGNED_INPUTS } {
        let minimum = other;
        s.mul_add(s.to_float(sum), scale, s.mul_add(s.splat(x.sum), minimum, to))
    } else {
        // Whole numbers, exactly.
        let code_sum = other;
        s.mul_add(s.mul_add(s.splat(x.negated_zero), code_sum, s.to_float(sum)), scale, to)
    }
}

/// Adds the products of a group, two quads at a time; `n_steps` such pairs are summed in 16 bits.
#[inline(always)]
fn dot<S: Simd, K: Codes, const R: usize, const C: usize>(
    s: S,
    x: &[&[[i8; QUAD]]; R],
    (codes, n_steps): (&[K], usize),
    vector: usize,
    sums: &mut [[S::I; C]; R],
) {
    assert!(n_steps <= K::TOGETHER / 2, "two quads a step");
    for first in (0..K::GROUP / QUAD).step_by(K::TOGETHER) {
        let zero = s.dot_bytes(s.splat_quad(&[0; QUAD]), s.splat_quad(&[0; QUAD]));
        let mut pairs = [[zero; C]; R];
        for step in 0..n_steps {
            let quad = first + 2 * step;
            let mut w = [[s.splat_quad(&[0; QUAD]); C]; 2];
            for (second, w) in w.iter_mut().enumerate() {
                let quad = quad + second;
                for (c, w) in w.iter_mut().enumerate() {
                    *w = codes[quad * QUAD / K::INPUTS].load(s, vector + c, quad % (K::INPUTS / QUAD));
                }
            }
            for ((sums, pairs), x) in sums.iter_mut().zip(&mut pairs).zip(x) {
                let x = [s.splat_quad(&x[quad]), s.splat_quad(&x[quad + 1])];
                for (c, (sum, pairs)) in sums.iter_mut().zip(pairs).enumerate() {
                    let factors = |second: usize| {
                        if const { K::SIGNED_INPUTS } { (w[second][c], x[second]) } else { (x[second], w[second][c]) }
                    };
                    let (first, second) = (factors(0), factors(1));
                    if const { S::QUADS_AT_ONCE } {
                        *sum = s.dot_quads(second.0, second.1, s.dot_quads(first.0, first.1, *sum));
                    } else {
                        let both = s.add_pairs(s.dot_bytes(first.0, first.1), s.dot_bytes(second.0, second.1));
                        *pairs = s.add_pairs(*pairs, both);
                    }
                }
            }
        }
        if const { !S::QUADS_AT_ONCE } {
            for (sum, pairs) in sums.as_flattened_mut().iter_mut().zip(pairs.as_flattened()) {
                *sum = s.add_both(*pairs, *sum);
            }
        }
    }
}

/// Whether a row meets all columns of a panel at once: inputs are in registers then, and weights come from memory.
const fn rows_meet_panels<S: Simd, K: Codes>() -> bool {
    !K::SIGNED_INPUTS && S::ROWS_MEET_PANELS
}

/// Adds a group's products with `C` vectors of columns from `vector` on.
#[inline(always)]
fn add_group<S: Simd, K: Codes, const R: usize, const C: usize>(
    s: S,
    rows: &Rows<'_, R>,
    panel: &Panel<'_, K>,
    (group, vector): (usize, usize),
    sums: &mut [[f32; PANEL]; R],
) {
    let of_group: [[S::I; C]; R] = group_sums(s, rows, panel, (group, vector));
    let scales: [_; C] = scales(s, panel, (group, vector));
    for (row, sums) in sums.iter_mut().enumerate() {
        let of_row = rows.groups[row][group];
        for (c, scales) in scales.iter().enumerate() {
            let sums = &mut sums[(vector + c) * S::LANES..];
            let sum = add_scaled::<S, K>(s, of_row, of_group[row][c], *scales, s.load(sums));
            s.store(sums, sum);
        }
    }
}

impl<S: Simd, K: Codes> Weights<S> for Quantised<'_, K> {
    const SPANS_PANEL: bool = true;
    /// Two where their sums with a panel take all registers that are to spare, and weights need none.
    const ROWS: usize = if rows_meet_panels::<S, K>() { 2 } else { S::INTEGER_ROWS };

    #[inline(always)]
    fn product<const R: usize>(&self, s: S, block: &Block, (row, _): (usize, usize), sums: &mut [[f32; PANEL]; R]) {
        let (rows, panel) = (self.rows::<R>(block.first_row + row), self.panel(block.panel));
        let groups = block.inputs.start / K::GROUP..block.inputs.end.div_ceil(K::GROUP);
        if const { PANEL / S::LANES == VECTORS } {
            let mut acc: [[S::V; VECTORS]; R] = begin(s, block, 0, sums);
            for group in groups {
                let of_group: [[S::I; VECTORS]; R] = group_sums(s, &rows, &panel, (group, 0));
                let scales: [_; VECTORS] = scales(s, &panel, (group, 0));
                for (row, acc) in acc.iter_mut().enumerate() {
                    for (c, acc) in acc.iter_mut().enumerate() {
                        *acc = add_scaled::<S, K>(s, rows.groups[row][group], of_group[row][c], scales[c], *acc);
                    }
                }
            }
            return keep(s, &acc, 0, sums);
        }
        // Registers are too few to keep these sums while a group is multiplied, so a pass over some of the columns
        // would save nothing, and read memory with gaps.
        if block.inputs.start == 0 {
            *sums = [[0.0; PANEL]; R];
        }
        for group in groups {
            if row == 0 {
                ask_for_scales(&panel, group + 1);
            }
            if const { rows_meet_panels::<S, K>() } {
                add_group::<S, K, R, 4>(s, &rows, &panel, (group, 0), sums);
                continue;
            }
            for vector in (0..PANEL / S::LANES).step_by(VECTORS) {
                add_group::<S, K, R, VECTORS>(s, &rows, &panel, (group, vector), sums);
            }
        }
    }

    #[inline(always)]
    fn inputs(&self) -> usize {
        const { assert!(INPUTS.is_multiple_of(K::GROUP), "whole groups") };
        INPUTS
    }

    /// Few rows, and weights of 4 bits, which take longer to unpack than to come, gain nothing by it.
    #[inline(always)]
    fn ahead(&self, block: &Block) -> Option<Range<*const u8>> {
        const LEAST_ROWS: usize = 12;
        if K::SIGNED_INPUTS || block.rows < LEAST_ROWS {
            return None;
        }
        let (codes, group) = (self.panel(block.panel).codes, K::GROUP / K::INPUTS);
        let groups = block.inputs.start / K::GROUP..block.inputs.end.div_ceil(K::GROUP);
        let step = codes.len().min(INPUTS / K::INPUTS);
        Some(further_on(&codes[groups.start * group..groups.end * group], step))
    }
}

impl<S: Simd, K: Codes> RowWeights<S> for Quantised<'_, K> {
    #[inline(always)]
    fn row<const P: usize, const C: usize>(&self, s: S, first: usize) -> [[S::V; C]; P] {
        let rows = self.rows::<1>(0);
        let mut acc = [[s.splat(0.0); C]; P];
        for (index, acc) in acc.iter_mut().enumerate() {
            let panel = self.panel(first + index);
            for group in 0..self.rows.n_groups {
                ask_for_scales(&panel, group + 1);
                let [sums]: [[S::I; C]; 1] = group_sums(s, &rows, &panel, (group, 0));
                let scales: [_; C] = scales(s, &panel, (group, 0));
                for ((acc, sum), scales) in acc.iter_mut().zip(sums).zip(scales) {
                    *acc = add_scaled::<S, K>(s, rows.groups[0][group], sum, scales, *acc);
                }
            }
        }
        acc
    }
}

#[cfg(test)]
mod tests {
    use crate::quantised::{Int4Codes, Int8Codes};
    use crate::{Level, PackedMatrix, Precision, Workspace};

    use super::*;

    /// Products of the rows as they were rounded, in float64, and the sum of what is added for each, without signs.
    fn exact<C: Codes>(rows: &Rounded, weights: &PackedMatrix, row: usize, column: usize) -> (f64, f64) {
        let (n_inputs, stored) = (weights.n_inputs(), weights.to_f32());
        let codes = &rows.codes[row * rows.n_groups * C::GROUP..][..n_inputs];
        let terms = codes.iter().enumerate().map(|(input, code)| {
            let group = rows.groups[row * rows.n_groups + input / C::GROUP];
            let x = (f64::from(*code) + f64::from(group.negated_zero)) * f64::from(group.scale);
            x * f64::from(stored[input * weights.n_outputs() + column])
        });
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    }

    /// Compares the kernel's products with those of the very numbers that it multiplies, so that nothing but the rounding
    /// of float32 is allowed.
    fn check_products<C: Codes>(precision: Precision, (n_rows, n_inputs): (usize, usize), size: f32) {
        let noise =
            |n: usize, seed: usize| (0..n).map(move |i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0);
        let x = |i: usize, x: f32| if i.is_multiple_of(3) { x * x * x * size } else { size };
        let x: Vec<f32> = noise(n_rows * n_inputs, 1).enumerate().map(|(i, noise)| x(i, noise)).collect();
        // Some columns' weights are of one sign, so that sums become as large as they may.
        // Others' are large only where the halves of quads, the halves of groups, or both, meet the same sum.
        let weight = |i: usize, weight: f32| {
            let (input, column) = (i / 37, i % 37);
            let large = |large: bool| if large { 1.0 + 0.1 * weight } else { 0.01 * weight };
            match column % 9 {
                0 => weight.abs(),
                1 => -1.0 - 0.1 * weight,
                2 => large(input % 4 < 2),
                3 => -large(input % 4 >= 2),
                4 => large(input % 64 < 32),
                5 => -large(input % 64 >= 32),
                6 => large(input % 4 < 2 && input % 64 < 32),
                7 => large(input % 2 == 0),
                _ => weight,
            }
        };
        let weights: Vec<f32> = noise(n_inputs * 37, 2).enumerate().map(|(i, noise)| weight(i, noise)).collect();
        let weights = PackedMatrix::new(&weights, n_inputs, 37, precision);
        for level in Level::supported() {
            let (mut workspace, mut out) = (Workspace::default(), vec![0.0; n_rows * 37]);
            crate::matmul(level, &x, &weights, crate::Epilogue::default(), &mut workspace, &mut out);
            for (i, got) in out.iter().enumerate() {
                let (expected, terms) = exact::<C>(&workspace.inputs.rounded, &weights, i / 37, i % 37);
                let error = (f64::from(*got) - expected).abs();
                // Of 4 bits, a code times the scale and the minimum may be much larger than the weight.
                let allowed = if C::SIGNED_INPUTS { 2e-6 * terms + 2e-6 * f64::from(size) } else { 1e-6 * terms };
                let what = format!("{} {} {n_rows} x {n_inputs}", level.name(), precision.name());
                assert!(error <= allowed, "{what}: {got}, not {expected} ({error} of {terms})");
            }
        }
    }

    #[test]
    fn products_are_those_of_the_rounded_numbers() {
        for shape in [(1, 7), (1, 64), (1, 385), (2, 64), (2, 130), (3, 385), (5, 33), (5, 257)] {
            for size in [1.0, 1e-25, 1e30] {
                check_products::<Int8Codes>(Precision::Int8, shape, size);
                check_products::<Int4Codes>(Precision::Int4, shape, size);
            }
        }
    }
}
