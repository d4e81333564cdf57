//! Products with weights of 8 and 4 bits, in integers.
//!
//! A row of `x` is first rounded to 7 or 8 bits, in the groups of inputs that share a scale in the weights, with a scale
//! of its own for each: an error of a 126th or a 254th of the largest number of the group, about what rounding the weights
//! to 8 bits changes. Products of these codes are summed in 16 bits as far as they surely fit, then in 32 (with VNNI at
//! once in 32), so the sum over a group is exact and the same on every level; it becomes a float, is multiplied by both
//! scales and added to those before it, with 4 bits after what the groups' minima give.
//!
//! Weights are stored without sign. Those of 8 bits have an offset, which makes every sum too large by the offset times the
//! sum of the row's codes: a number that is known when the row is rounded, and that sums begin with, negative. Those of
//! 4 bits count from a minimum of their group, which is multiplied by the sum of the row's numbers.

use rayon::prelude::*;

use super::{Block, VECTORS, Weights, begin, keep};
use crate::Level;
use crate::quantised::{Codes, GROUP, QUAD};
use crate::simd::{Kernel, PANEL, Simd};

/// Numbers of `x` that are worth a thread's attention.
const PART: usize = 1 << 15;
/// Quads of a group.
const QUADS: usize = GROUP / QUAD;

/// Room for rows of `x`, rounded for products with weights of 8 or 4 bits, and with bfloat16 ones where the CPU multiplies
/// bfloat16. It grows as needed and can be used for one product after the other; other products leave it alone.
#[derive(Debug, Clone, Default)]
pub struct Rounded {
    /// `[rows, n_groups, GROUP]`; behind the inputs stand zeros.
    codes: Vec<i8>,
    /// `[rows, n_groups]`.
    groups: Vec<Group>,
    n_groups: usize,
    /// Rows of bfloat16, where the CPU multiplies such.
    #[cfg(target_arch = "x86_64")]
    pub(super) bf16: super::bfloat16::Rows,
    /// Steps of a group, always the same; that the compiler does not know keeps it from unrolling them all, which costs
    /// more registers than there are.
    n_steps: usize,
}

/// A group of a row.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    scale: f32,
    /// The sum of its codes times the weights' offset, negative.
    start: i32,
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
        self.n_groups = n_inputs.div_ceil(GROUP);
        self.n_steps = QUADS / 2;
        let (n_rows, n_groups) = (x.len() / n_inputs, self.n_groups);
        grow(&mut self.codes, n_rows * n_groups * GROUP);
        grow(&mut self.groups, n_rows * n_groups);
        let (codes, groups) = (&mut self.codes[..n_rows * n_groups * GROUP], &mut self.groups[..n_rows * n_groups]);
        let (largest, offset) = (C::LARGEST_INPUT, C::OFFSET);
        let round = |((x, codes), groups)| level.run(Round { x, n_inputs, codes, groups, largest, offset });
        let rows = rows_of_a_part(n_inputs);
        if n_rows <= rows {
            return round(((x, codes), groups));
        }
        let codes = codes.par_chunks_mut(rows * n_groups * GROUP);
        let groups = groups.par_chunks_mut(rows * n_groups);
        x.par_chunks(rows * n_inputs).zip(codes).zip(groups).for_each(round);
    }

    /// The codes of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> &[[i8; QUAD]] {
        self.codes[row * self.n_groups * GROUP..][..self.n_groups * GROUP].as_chunks().0
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

struct Round<'a> {
    x: &'a [f32],
    n_inputs: usize,
    codes: &'a mut [i8],
    groups: &'a mut [Group],
    largest: f32,
    offset: i32,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let n_groups = self.n_inputs.div_ceil(GROUP);
        let (codes, groups) = (self.codes.chunks_exact_mut(n_groups * GROUP), self.groups.chunks_exact_mut(n_groups));
        for ((x, codes), groups) in self.x.chunks_exact(self.n_inputs).zip(codes).zip(groups) {
            let codes = codes.as_chunks_mut::<GROUP>().0;
            let (whole, rest) = x.as_chunks::<GROUP>();
            for ((x, codes), group) in whole.iter().zip(&mut *codes).zip(&mut *groups) {
                *group = round(x, codes, self.largest, self.offset);
            }
            if let (Some(codes), Some(group)) = (codes.get_mut(whole.len()), groups.get_mut(whole.len())) {
                let mut padded = [0.0; GROUP];
                padded[..rest.len()].copy_from_slice(rest);
                *group = round(&padded, codes, self.largest, self.offset);
            }
        }
    }
}

/// Rounds a group. Its scale is not finite where a number is not, and so makes the product not finite.
#[inline(always)]
fn round(x: &[f32; GROUP], codes: &mut [i8; GROUP], largest_code: f32, offset: i32) -> Group {
    // Adding 1.5 · 2²³ leaves an integer in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    // Without signs, floats are ordered as their bits are, and what is not a number comes last.
    let largest = f32::from_bits(x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff)));
    let scale = largest / largest_code;
    // Numbers too small to divide by count as zeros.
    let inverse = if scale >= f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
    let mut sum = 0i32;
    for (code, x) in codes.iter_mut().zip(x) {
        let integer = ((x * inverse + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32);
        *code = integer as i8;
        sum = sum.wrapping_add(i32::from(*code));
    }
    Group { scale, start: -offset * sum, sum: scale * sum as f32 }
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
        let mut rows = Rows { quads: [self.rows.row(first); R], groups: [self.rows.row_groups(first); R] };
        for index in 1..R {
            rows.quads[index] = self.rows.row(first + index);
            rows.groups[index] = self.rows.row_groups(first + index);
        }
        rows
    }

    #[inline(always)]
    fn panel(&self, index: usize) -> Panel<'a, C> {
        let n_groups = self.rows.n_groups;
        let n_codes = n_groups * (GROUP / C::INPUTS);
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
    let mut quads = [&[[0; QUAD]; QUADS]; R];
    let mut sums = [[s.splat_integer(0); C]; R];
    for row in 0..R {
        quads[row] = &rows.quads[row].as_chunks().0[group];
        if const { K::OFFSET != 0 } {
            sums[row] = [s.splat_integer(rows.groups[row][group].start); C];
        }
    }
    dot(s, &quads, panel, (group, vector), &mut sums);
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

/// Adds the products of a group, two quads at a time.
#[inline(always)]
fn dot<S: Simd, K: Codes, const R: usize, const C: usize>(
    s: S,
    x: &[&[[i8; QUAD]; QUADS]; R],
    panel: &Panel<'_, K>,
    (group, vector): (usize, usize),
    sums: &mut [[S::I; C]; R],
) {
    assert!(panel.n_steps <= QUADS / 2, "two quads a step");
    let codes = &panel.codes[group * (GROUP / K::INPUTS)..][..GROUP / K::INPUTS];
    let zero = s.dot_bytes(s.splat_quad(&[0; QUAD]), s.splat_quad(&[0; QUAD]));
    let mut pairs = [[zero; C]; R];
    for step in 0..panel.n_steps {
        let mut w = [[s.splat_quad(&[0; QUAD]); C]; 2];
        for (quad, w) in w.iter_mut().enumerate() {
            let quad = 2 * step + quad;
            for (c, w) in w.iter_mut().enumerate() {
                *w = codes[quad * QUAD / K::INPUTS].load(s, vector + c, quad % (K::INPUTS / QUAD));
            }
        }
        for ((sums, pairs), x) in sums.iter_mut().zip(&mut pairs).zip(x) {
            let x = [s.splat_quad(&x[2 * step]), s.splat_quad(&x[2 * step + 1])];
            if const { S::QUADS_AT_ONCE } {
                for (w, x) in w.iter().zip(x) {
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = s.dot_quads(*w, x, *sum);
                    }
                }
                continue;
            }
            for (c, (sum, pairs)) in sums.iter_mut().zip(pairs).enumerate() {
                let both = s.add_pairs(s.dot_bytes(w[0][c], x[0]), s.dot_bytes(w[1][c], x[1]));
                if const { K::TOGETHER == 2 } {
                    *sum = s.add_both(both, *sum);
                } else {
                    *pairs = s.add_pairs(*pairs, both);
                }
            }
        }
    }
    if const { K::TOGETHER == QUADS && !S::QUADS_AT_ONCE } {
        for (sum, pairs) in sums.as_flattened_mut().iter_mut().zip(pairs.as_flattened()) {
            *sum = s.add_both(*pairs, *sum);
        }
    }
}

impl<S: Simd, K: Codes> Weights<S> for Quantised<'_, K> {
    const INTEGERS: bool = true;
    /// 8 KiB of 8-bit weights.
    const INPUTS: usize = 8 * GROUP;

    #[inline(always)]
    fn product<const R: usize>(&self, s: S, block: &Block, (row, _): (usize, usize), sums: &mut [[f32; PANEL]; R]) {
        let (rows, panel) = (self.rows::<R>(block.first_row + row), self.panel(block.panel));
        let groups = block.inputs.start / GROUP..block.inputs.end.div_ceil(GROUP);
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
            for vector in (0..PANEL / S::LANES).step_by(VECTORS) {
                let of_group: [[S::I; VECTORS]; R] = group_sums(s, &rows, &panel, (group, vector));
                let scales: [_; VECTORS] = scales(s, &panel, (group, vector));
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (c, scales) in scales.iter().enumerate() {
                        let sums = &mut sums[(vector + c) * S::LANES..];
                        let sum =
                            add_scaled::<S, K>(s, rows.groups[row][group], of_group[row][c], *scales, s.load(sums));
                        s.store(sums, sum);
                    }
                }
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
    use crate::quantised::{Int4Codes, Int8Codes};

    fn rounded<C: Codes>(x: &[f32]) -> Rounded {
        let mut rows = Rounded::default();
        rows.fill::<C>(Level::current(), x, x.len());
        rows
    }

    #[test]
    fn a_group_is_rounded_to_within_half_a_step_of_its_own_scale() {
        let x: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).sin() * [1.0, 1e-4, 1e6][i / 32]).collect();
        for (rows, largest, offset) in [(rounded::<Int8Codes>(&x), 63, 64), (rounded::<Int4Codes>(&x), 127, 0)] {
            assert_eq!((rows.codes.len(), rows.groups.len()), (96, 3));
            assert!(rows.codes[77..].iter().all(|code| *code == 0));
            for (i, x) in x.iter().enumerate() {
                let scale = f64::from(rows.groups[i / 32].scale);
                let error = (f64::from(rows.codes[i]) * scale - f64::from(*x)).abs();
                // Half a step, and what scaling rounds in float32's 24 bits.
                assert!(error <= 0.50001 * scale, "{x}: {error}");
            }
            for (group, codes) in rows.groups.iter().zip(rows.codes.chunks(32)) {
                assert_eq!(codes.iter().map(|code| i32::from(*code).abs()).max(), Some(largest));
                let sum = codes.iter().map(|code| i32::from(*code)).sum::<i32>();
                assert_eq!((group.start, group.sum), (-offset * sum, group.scale * sum as f32));
            }
        }
    }

    #[test]
    fn numbers_without_size_or_beyond_measure_are_no_surprise() {
        assert_eq!(rounded::<Int8Codes>(&[0.0, -0.0, f32::MIN_POSITIVE / 8.0]).codes, [0; 32]);
        assert!(rounded::<Int8Codes>(&[1.0, f32::NAN, 2.0]).groups[0].scale.is_nan());
        assert!(rounded::<Int8Codes>(&[1.0, f32::NEG_INFINITY, 2.0]).groups[0].scale.is_infinite());
    }
}
