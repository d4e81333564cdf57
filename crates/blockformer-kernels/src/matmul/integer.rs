//! Products with weights of 8 and 4 bits, in integers.
//!
//! A row of `x` is first rounded to 7 or 8 bits, in the groups of inputs that share a scale in the weights, with a scale
//! of its own for each: an error of a 252nd of what lies between the least and the largest number of the group (zero among
//! them), or of a 254th of the largest, about what rounding the weights to 8 bits changes. Products of these codes are
//! summed in 16 bits as far as they surely fit, then in 32 (with VNNI at once in 32), so the sum over a group is exact and
//! the same on every level; it becomes a float, is multiplied by both scales and added to those before it, with 4 bits
//! after what the groups' minima give.
//!
//! One factor of such a product has no sign. With 8 bits it is the row's code, which counts from the least number of its
//! group; that makes every sum too large by the code of zero times the sum of a column's codes, which is known when weights
//! are packed, so sums begin with that, negative. Weights can then come from memory without a register of their own. With
//! 4 bits it is the weight, which has to be unpacked anyway; it counts from a minimum of its group, which is multiplied by
//! the sum of the row's numbers.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::{Block, VECTORS, Weights, begin, keep};
use crate::Level;
use crate::quantised::{Codes, GROUP_QUADS, Int4Codes, Int8Codes, QUAD};
use crate::simd::{Kernel, MAX_LANES, PANEL, Simd};

/// Numbers of `x` that are worth a thread's attention.
const PART: usize = 1 << 15;
/// Inputs of the largest group.
const MAX_GROUP: usize = Int8Codes::GROUP;
const _: () = assert!(Int4Codes::GROUP <= MAX_GROUP);

/// Room for rows of `x`, rounded for products with weights of 8 or 4 bits, and with bfloat16 ones where the CPU multiplies
/// bfloat16. It grows as needed and can be used for one product after the other; other products leave it alone.
#[derive(Debug, Clone, Default)]
pub struct Rounded {
    /// `[rows, n_groups, inputs of a group]`; behind the inputs stand codes of zeros.
    codes: Vec<i8>,
    /// `[rows, n_groups]`.
    groups: Vec<Group>,
    n_groups: usize,
    /// Rows of bfloat16, where the CPU multiplies such.
    #[cfg(target_arch = "x86_64")]
    pub(super) bf16: super::bfloat16::Rows,
    /// Steps of products that are summed in 16 bits, always the same; that the compiler does not know keeps it from unrolling
    /// them all, which costs more registers than there are.
    n_steps: usize,
}

/// A group of a row: a number is its code, less `zero`, times the scale.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    scale: f32,
    /// The code of zero; not zero only where codes have no sign.
    zero: i32,
    /// The sum of its rounded numbers.
    sum: f32,
}

impl Rounded {
    /// Bytes of the room.
    pub fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let bf16 = self.bf16.bytes();
        #[cfg(not(target_arch = "x86_64"))]
        let bf16 = 0;
        size_of_val(&self.codes[..]) + size_of_val(&self.groups[..]) + bf16
    }

    /// Rounds the rows of `x` for weights `C`.
    pub(super) fn fill<C: Codes>(&mut self, level: Level, x: &[f32], n_inputs: usize) {
        self.n_groups = n_inputs.div_ceil(C::GROUP);
        self.n_steps = C::TOGETHER / 2;
        let (n_rows, n_groups) = (x.len() / n_inputs, self.n_groups);
        grow(&mut self.codes, n_rows * n_groups * C::GROUP);
        grow(&mut self.groups, n_rows * n_groups);
        let (codes, groups) = (&mut self.codes[..n_rows * n_groups * C::GROUP], &mut self.groups[..n_rows * n_groups]);
        let weights = PhantomData::<C>;
        let round = |((x, codes), groups)| level.run(Round { x, n_inputs, codes, groups, weights });
        let rows = rows_of_a_part(n_inputs);
        if n_rows <= rows {
            return round(((x, codes), groups));
        }
        let codes = codes.par_chunks_mut(rows * n_groups * C::GROUP);
        let groups = groups.par_chunks_mut(rows * n_groups);
        x.par_chunks(rows * n_inputs).zip(codes).zip(groups).for_each(round);
    }

    /// The codes of a row for weights `C`.
    #[inline(always)]
    fn row<C: Codes>(&self, row: usize) -> &[[i8; QUAD]] {
        self.codes[row * self.n_groups * C::GROUP..][..self.n_groups * C::GROUP].as_chunks().0
    }

    /// The groups of a row.
    #[inline(always)]
    fn row_groups(&self, row: usize) -> &[Group] {
        &self.groups[row * self.n_groups..][..self.n_groups]
    }
}

/// Rows of `x` that are worth a thread's attention.
pub(super) fn rows_of_a_part(n_inputs: usize) -> usize {
    (PART / n_inputs).max(1)
}

pub(super) fn grow<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
}

struct Round<'a, C> {
    x: &'a [f32],
    n_inputs: usize,
    codes: &'a mut [i8],
    groups: &'a mut [Group],
    weights: PhantomData<C>,
}

impl<C: Codes> Kernel for Round<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n_groups = self.n_inputs.div_ceil(C::GROUP);
        let (codes, groups) =
            (self.codes.chunks_exact_mut(n_groups * C::GROUP), self.groups.chunks_exact_mut(n_groups));
        for ((x, codes), groups) in self.x.chunks_exact(self.n_inputs).zip(codes).zip(groups) {
            let mut codes = codes.chunks_exact_mut(C::GROUP);
            let mut groups = groups.iter_mut();
            let mut x = x.chunks_exact(C::GROUP);
            for ((x, codes), group) in x.by_ref().zip(codes.by_ref()).zip(groups.by_ref()) {
                *group = round::<S, C>(s, x, codes);
            }
            if let (Some(codes), Some(group)) = (codes.next(), groups.next()) {
                let mut padded = [0.0; MAX_GROUP];
                padded[..x.remainder().len()].copy_from_slice(x.remainder());
                *group = round::<S, C>(s, &padded[..C::GROUP], codes);
            }
        }
    }
}

/// Rounds a group: with signs from the largest number's negative to itself, without from the least number to the largest,
/// zero among them. Where a number is not finite, its scale is none, and so makes the product none: an infinity might have
/// the wrong sign, and an activation could hide it.
#[inline(always)]
fn round<S: Simd, C: Codes>(s: S, x: &[f32], codes: &mut [i8]) -> Group {
    // Loops by index: the compiler would call functions of iterators.
    let (mut least, mut largest) = (s.splat_integer(0), s.splat_integer(0));
    for first in (0..C::GROUP).step_by(S::LANES) {
        let bits = s.ordered_bits(s.load(&x[first..]));
        (least, largest) = (s.min_integers(bits, least), s.max_integers(bits, largest));
    }
    let [mut least_lanes, mut largest_lanes] = [[0; MAX_LANES]; 2];
    s.store_integers(&mut least_lanes, least);
    s.store_integers(&mut largest_lanes, largest);
    let (mut least, mut largest) = (0, 0);
    for bits in &least_lanes {
        least = *bits.min(&least);
    }
    for bits in &largest_lanes {
        largest = *bits.max(&largest);
    }
    let least = if least < 0 { f32::from_bits((least ^ i32::MAX) as u32) } else { 0.0 };
    let largest = f32::from_bits(largest as u32);
    let scale = if const { C::SIGNED_INPUTS } {
        // Bits keep what is not a number.
        f32::from_bits(least.abs().to_bits().max(largest.to_bits())) * C::LARGEST_INPUT.recip()
    } else {
        // One step less than codes, as both ends may be rounded outwards.
        let step = (C::LARGEST_INPUT - 1.0).recip();
        largest * step - least * step
    };
    if !scale.is_finite() {
        codes.fill(0);
        return Group { scale: f32::NAN, zero: 0, sum: f32::NAN };
    }
    // Numbers too small to divide by count as zeros.
    let inverse = if scale >= f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
    let zero = if const { C::SIGNED_INPUTS } { 0 } else { (-least * inverse).round_ties_even() as i32 };
    let mut sum = s.splat_integer(0);
    for first in (0..C::GROUP).step_by(S::LANES) {
        let integers = s.to_integers(s.mul(s.load(&x[first..]), s.splat(inverse)));
        s.store_bytes(&mut codes[first..], s.add_integers(integers, s.splat_integer(zero)));
        sum = s.add_integers(sum, integers);
    }
    let mut total = 0i32;
    if const { C::MINIMA } {
        let mut lanes = [0; MAX_LANES];
        s.store_integers(&mut lanes, sum);
        for integer in &lanes {
            total = total.wrapping_add(*integer);
        }
    }
    Group { scale, zero, sum: scale * total as f32 }
}

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
            scales: &self.scales[index * n_groups..][..n_groups],
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
        let weights = K::of_8_bits(codes, &panel.scales[group]).expect("a group of 8-bit weights");
        let (mut x, mut zeros) = ([&[[0; QUAD]; GROUP_QUADS]; R], [0; R]);
        for (row, x) in x.iter_mut().enumerate() {
            *x = quads[row].first_chunk().expect("the quads of a group");
            zeros[row] = rows.groups[row][group].zero;
        }
        let of_columns = s.dot_group(x, zeros, weights);
        for (to, from) in sums.as_flattened_mut().iter_mut().zip(of_columns.as_flattened()) {
            *to = *from;
        }
        return sums;
    }
    if const { !K::SIGNED_INPUTS } {
        for (row, sums) in sums.iter_mut().enumerate() {
            let zero = s.splat_integer(rows.groups[row][group].zero);
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum = s.mul_16(K::negated_sums(&panel.scales[group], s, vector + c), zero);
            }
        }
    }
    dot(s, &quads, (codes, panel.n_steps), vector, &mut sums);
    sums
}

/// The scales and minima of one group, of `C` vectors of columns from `vector` on.
#[inline(always)]
fn scales<S: Simd, K: Codes, const C: usize>(
    s: S,
    panel: &Panel<'_, K>,
    (group, vector): (usize, usize),
) -> [[S::V; 2]; C] {
    let mut scales = [[s.splat(0.0); 2]; C];
    for (c, scales) in scales.iter_mut().enumerate() {
        let of_group = &panel.scales[group];
        *scales = [K::scales(of_group, s, vector + c), K::minima(of_group, s, vector + c)];
    }
    scales
}

/// Adds the sum of a group of a row, scaled.
#[inline(always)]
fn add_scaled<S: Simd, K: Codes>(s: S, x: Group, sum: S::I, [scale, minimum]: [S::V; 2], to: S::V) -> S::V {
    let to = if const { K::MINIMA } { s.mul_add(s.splat(x.sum), minimum, to) } else { to };
    s.mul_add(s.to_float(sum), s.mul(s.splat(x.scale), scale), to)
}

/// Adds the products of a group, two quads at a time; so many steps are products that are summed in 16 bits.
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
    const INTEGERS: bool = true;
    /// 8 KiB of 8-bit weights.
    const INPUTS: usize = {
        assert!(256_usize.is_multiple_of(K::GROUP), "whole groups");
        256
    };
    /// Two where their sums with a panel take all registers that are to spare, and weights need none.
    const ROWS: usize = if rows_meet_panels::<S, K>() { 2 } else { S::INTEGER_ROWS };

    #[inline(always)]
    fn product<const R: usize>(&self, s: S, block: &Block, (row, _): (usize, usize), sums: &mut [[f32; PANEL]; R]) {
        let (rows, panel) = (self.rows::<R>(block.first_row + row), self.panel(block.panel));
        let groups = block.inputs.start / K::GROUP..block.inputs.end.div_ceil(K::GROUP);
        if const { PANEL / S::LANES == VECTORS } {
            let mut acc = begin(s, block, 0, sums);
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
    fn row<const P: usize, const C: usize>(&self, s: S, first: usize) -> [[S::V; C]; P] {
        let rows = self.rows::<1>(0);
        let mut acc = [[s.splat(0.0); C]; P];
        for (index, acc) in acc.iter_mut().enumerate() {
            let panel = self.panel(first + index);
            for group in 0..self.rows.n_groups {
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
    use super::*;
    use crate::{PackedMatrix, Precision};

    /// Numbers rounded on every level, all alike.
    fn rounded<C: Codes>(x: &[f32]) -> Rounded {
        let on = |level| {
            let mut rows = Rounded::default();
            rows.fill::<C>(level, x, x.len());
            rows
        };
        let bits = |rows: &Rounded| -> Vec<_> {
            rows.groups.iter().map(|group| (group.scale.to_bits(), group.zero, group.sum.to_bits())).collect()
        };
        let portable = on(Level::PORTABLE);
        for level in Level::supported() {
            let rows = on(level);
            assert_eq!((&rows.codes, bits(&rows)), (&portable.codes, bits(&portable)), "{}", level.name());
        }
        portable
    }

    #[test]
    fn a_group_is_rounded_to_within_half_a_step_of_its_own_scale() {
        let x: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).sin() * [1.0, 1e-4, 1e6][i / 32]).collect();
        check::<Int8Codes>(&x);
        check::<Int4Codes>(&x);
        // With zero at an end of the codes, or near it.
        check::<Int8Codes>(&x.iter().map(|x| x.abs()).collect::<Vec<_>>());
        check::<Int8Codes>(&x.iter().map(|x| -x.abs()).collect::<Vec<_>>());
        check::<Int8Codes>(&x.iter().map(|x| x.max(-0.01)).collect::<Vec<_>>());
    }

    fn check<C: Codes>(x: &[f32]) {
        let rows = rounded::<C>(x);
        let n_groups = x.len().div_ceil(C::GROUP);
        assert_eq!((rows.codes.len(), rows.groups.len()), (n_groups * C::GROUP, n_groups));
        for (i, code) in rows.codes.iter().enumerate() {
            let group = rows.groups[i / C::GROUP];
            let (x, scale) = (f64::from(x.get(i).copied().unwrap_or(0.0)), f64::from(group.scale));
            let error = (f64::from(i32::from(*code) - group.zero) * scale - x).abs();
            // Half a step, and what scaling rounds in float32's 24 bits.
            assert!(error <= 0.50001 * scale, "{x}: {error}");
            assert!(C::SIGNED_INPUTS && group.zero == 0 || *code >= 0);
        }
        for (group, codes) in rows.groups.iter().zip(rows.codes.chunks(C::GROUP)) {
            let largest = codes.iter().map(|code| i32::from(*code).abs()).max();
            assert!([Some(126), Some(127)].contains(&largest), "{largest:?}");
            let sum = codes.iter().map(|code| i32::from(*code)).sum::<i32>();
            assert!(!C::MINIMA || group.sum == group.scale * sum as f32);
        }
    }

    #[test]
    fn numbers_without_size_or_beyond_measure_are_no_surprise() {
        assert_eq!(rounded::<Int8Codes>(&[0.0, -0.0, f32::MIN_POSITIVE / 8.0]).codes, [0; 64]);
        for bad in [f32::NAN, -f32::NAN] {
            assert!(rounded::<Int8Codes>(&[1.0, bad, 2.0]).groups[0].scale.is_nan());
            assert!(rounded::<Int4Codes>(&[1.0, bad, 2.0]).groups[0].scale.is_nan());
        }
        for bad in [f32::INFINITY, f32::NEG_INFINITY] {
            assert!(rounded::<Int8Codes>(&[1.0, bad, 2.0]).groups[0].scale.is_nan());
            assert!(rounded::<Int4Codes>(&[1.0, bad, 2.0]).groups[0].scale.is_nan());
        }
        // Their difference would be infinite.
        check::<Int8Codes>(&[f32::MAX, -f32::MAX, 1.0]);
    }

    /// Products of the rows as they were rounded, in float64, and the sum of what is added for each, without signs.
    fn exact<C: Codes>(rows: &Rounded, weights: &PackedMatrix, row: usize, column: usize) -> (f64, f64) {
        let (n_inputs, stored) = (weights.n_inputs(), weights.to_f32());
        let codes = &rows.codes[row * rows.n_groups * C::GROUP..][..n_inputs];
        let terms = codes.iter().enumerate().map(|(input, code)| {
            let group = rows.groups[row * rows.n_groups + input / C::GROUP];
            let x = f64::from(i32::from(*code) - group.zero) * f64::from(group.scale);
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
        let weight = |i: usize, weight: f32| match i % 37 % 5 {
            0 => weight.abs(),
            1 => -1.0 - 0.1 * weight,
            _ => weight,
        };
        let weights: Vec<f32> = noise(n_inputs * 37, 2).enumerate().map(|(i, noise)| weight(i, noise)).collect();
        let weights = PackedMatrix::new(&weights, n_inputs, 37, precision);
        for level in Level::supported() {
            let (mut rows, mut out) = (Rounded::default(), vec![0.0; n_rows * 37]);
            crate::matmul(level, &x, &weights, crate::Epilogue::default(), &mut rows, &mut out);
            for (i, got) in out.iter().enumerate() {
                let (expected, terms) = exact::<C>(&rows, &weights, i / 37, i % 37);
                let error = (f64::from(*got) - expected).abs();
                // Of 4 bits, a code times the scale and the minimum may be much larger than the weight.
                let allowed = if C::MINIMA { 2e-6 * terms + 2e-6 * f64::from(size) } else { 1e-6 * terms };
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
