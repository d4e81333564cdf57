//! Rows of inputs, rounded for products in integers.
//!
//! Each group of inputs that shares a scale in the weights has a scale of its own here, too, and 7 or 8 bits: an error of a
//! 252nd of what lies between the least and the largest number of the group (zero among them), or of a 254th of the
//! largest, about what rounding the weights to 8 bits changes.

use std::marker::PhantomData;

use rayon::prelude::*;

use crate::Level;
use crate::quantised::{Codes, Int4Codes, Int8Codes, QUAD};
use crate::simd::{Kernel, MAX_LANES, Simd};
use crate::workspace::grow;

/// Numbers of `x` that are worth a thread's attention.
pub(super) const PART: usize = 1 << 15;
/// Inputs of the largest group.
const MAX_GROUP: usize = Int8Codes::GROUP;
const _: () = assert!(Int4Codes::GROUP <= MAX_GROUP);

/// Rows of `x`, rounded for products with weights of 8 or 4 bits.
#[derive(Debug, Clone, Default)]
pub(super) struct Rounded {
    /// `[rows, n_groups, inputs of a group]`; behind the inputs stand codes of zeros.
    pub(super) codes: Vec<i8>,
    /// `[rows, n_groups]`.
    pub(super) groups: Vec<Group>,
    pub(super) n_groups: usize,
    /// Steps of two quads in what is summed in 16 bits, the same for all weights; that the compiler does not know keeps it
    /// from unrolling them all, which costs more registers than there are.
    pub(super) n_steps: usize,
}

/// A group of a row: what makes numbers of its codes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Group {
    pub(super) scale: f32,
    /// The code of zero, negated: a number is the sum of its code and this, times the scale. Not zero only where codes have
    /// no sign.
    pub(super) negated_zero: f32,
    /// The sum of the rounded numbers, where codes have a sign.
    pub(super) sum: f32,
}

impl Rounded {
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.codes[..]) + size_of_val(&self.groups[..])
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
    pub(super) fn row<C: Codes>(&self, row: usize) -> &[[i8; QUAD]] {
        self.codes[row * self.n_groups * C::GROUP..][..self.n_groups * C::GROUP].as_chunks().0
    }

    /// The groups of a row.
    #[inline(always)]
    pub(super) fn row_groups(&self, row: usize) -> &[Group] {
        &self.groups[row * self.n_groups..][..self.n_groups]
    }
}

/// Rows of `x` that are worth a thread's attention.
pub(super) fn rows_of_a_part(n_inputs: usize) -> usize {
    (PART / n_inputs).max(1)
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
        return Group { scale: f32::NAN, negated_zero: 0.0, sum: f32::NAN };
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
    if const { C::SIGNED_INPUTS } {
        let mut lanes = [0; MAX_LANES];
        s.store_integers(&mut lanes, sum);
        for integer in &lanes {
            total = total.wrapping_add(*integer);
        }
    }
    Group { scale, negated_zero: -zero as f32, sum: scale * total as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers rounded on every level, all alike.
    fn rounded<C: Codes>(x: &[f32]) -> Rounded {
        let on = |level| {
            let mut rows = Rounded::default();
            rows.fill::<C>(level, x, x.len());
            rows
        };
        let bits = |rows: &Rounded| -> Vec<_> {
            rows.groups.iter().map(|group| [group.scale, group.negated_zero, group.sum].map(f32::to_bits)).collect()
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
            let error = ((f64::from(*code) + f64::from(group.negated_zero)) * scale - x).abs();
            // Half a step, and what scaling rounds in float32's 24 bits.
            assert!(error <= 0.50001 * scale, "{x}: {error}");
            assert!(if C::SIGNED_INPUTS { group.negated_zero == 0.0 } else { *code >= 0 });
        }
        for (group, codes) in rows.groups.iter().zip(rows.codes.chunks(C::GROUP)) {
            let largest = codes.iter().map(|code| i32::from(*code).abs()).max();
            assert!([Some(126), Some(127)].contains(&largest), "{largest:?}");
            let sum = codes.iter().map(|code| i32::from(*code)).sum::<i32>();
            assert!(!C::SIGNED_INPUTS || group.sum == group.scale * sum as f32);
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
        check::<Int8Codes>(&[-f32::MAX, 1.0]);
    }
}
