//! Weights of 8 and 4 bits, in groups that share a scale.
//!
//! A code is stored plus an offset, as a byte or half a byte without sign. Inputs are bytes with sign, and so small that
//! some products of both can be summed in 16 bits ([`Codes::TOGETHER`]), which CPUs multiply and add twice as many of at
//! a time. That is why 8-bit codes use but seven bits: their rounding costs next to nothing
//! beside that of four.

use crate::packed::F32Row;
use crate::simd::{PANEL, Simd};

/// Consecutive inputs of one column that share a scale.
pub(crate) const GROUP: usize = 32;
/// Inputs that lie next to each other in a column.
pub(crate) const QUAD: usize = 4;

/// 32 columns at four inputs, -63 to 63, each plus 64, column by column.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Int8Codes(pub(crate) [u8; QUAD * PANEL]);

/// 32 columns at eight inputs, -8 to 7, each plus 8: the first four in the low halves, the others in the high halves.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Int4Codes(pub(crate) [u8; QUAD * PANEL]);

/// Codes of a panel's columns at one or two times four consecutive inputs. Where there are no more inputs codes are
/// zero.
pub(crate) trait Codes: Copy + Send + Sync {
    /// Inputs.
    const INPUTS: usize;
    /// What a stored code is too large by.
    const OFFSET: i32;
    /// The largest code of an input that it may meet, either sign.
    const LARGEST_INPUT: f32;
    /// Quads of inputs whose products are summed in 16 bits, two or all of a group: so many of the largest fit.
    const TOGETHER: usize;
    /// All codes zero.
    const ZERO: Self;

    /// A code.
    fn code(&self, column: usize, input: usize) -> i8;

    /// Sets a code that was zero.
    fn set(&mut self, column: usize, input: usize, code: i8);

    /// The stored codes of the columns of vector `index` at quad `quad` of its inputs.
    fn load<S: Simd>(&self, s: S, index: usize, quad: usize) -> S::B;
}

const fn fits_16_bits<C: Codes>(largest_stored: usize) -> bool {
    2 * C::TOGETHER * largest_stored * C::LARGEST_INPUT as usize <= i16::MAX as usize
}

const _: () = assert!(fits_16_bits::<Int8Codes>(127) && fits_16_bits::<Int4Codes>(15));

impl Codes for Int8Codes {
    const INPUTS: usize = QUAD;
    const OFFSET: i32 = 64;
    const LARGEST_INPUT: f32 = 63.0;
    const TOGETHER: usize = 2;
    const ZERO: Self = Self([64; QUAD * PANEL]);

    fn code(&self, column: usize, input: usize) -> i8 {
        self.0[QUAD * column + input] as i8 - 64
    }

    fn set(&mut self, column: usize, input: usize, code: i8) {
        self.0[QUAD * column + input] = (code + 64) as u8;
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, index: usize, _: usize) -> S::B {
        s.load_bytes(&self.0[QUAD * index * S::LANES..])
    }
}

impl Codes for Int4Codes {
    const INPUTS: usize = 2 * QUAD;
    const OFFSET: i32 = 8;
    const LARGEST_INPUT: f32 = 127.0;
    const TOGETHER: usize = 8;
    const ZERO: Self = Self([0x88; QUAD * PANEL]);

    fn code(&self, column: usize, input: usize) -> i8 {
        let byte = self.0[QUAD * column + input % QUAD];
        (if input < QUAD { byte & 15 } else { byte >> 4 }) as i8 - 8
    }

    fn set(&mut self, column: usize, input: usize, code: i8) {
        let nibble = (code + 8) as u8;
        let byte = &mut self.0[QUAD * column + input % QUAD];
        *byte = if input < QUAD { *byte & 0xf0 | nibble } else { *byte & 0x0f | nibble << 4 };
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, index: usize, quad: usize) -> S::B {
        let both = s.load_bytes(&self.0[QUAD * index * S::LANES..]);
        if quad == 0 { s.low_halves(both) } else { s.high_halves(both) }
    }
}

/// Writes the codes of a panel and its scales, one row of scales a group.
pub(crate) fn int8(panel: &[F32Row], codes: &mut [Int8Codes], scales: &mut [F32Row]) {
    let scale = |weights: &[f32]| weights.iter().fold(0.0f32, |max, w| max.max(w.abs())) / 63.0;
    let code = |weight: f32, scale: f32| if scale > 0.0 { (weight * scale.recip()).round() as i8 } else { 0 };
    quantise(panel, scale, code, (codes, scales));
}

/// The same with 4 bits.
pub(crate) fn int4(panel: &[F32Row], codes: &mut [Int4Codes], scales: &mut [F32Row]) {
    quantise(panel, int4_scale, |weight, scale| int4_code(weight, scale) as i8, (codes, scales));
}

/// How many elements hold the codes of a panel: those of whole groups.
pub(crate) fn n_codes<C: Codes>(n_inputs: usize) -> usize {
    n_inputs.div_ceil(GROUP) * GROUP / C::INPUTS
}

fn quantise<C: Codes>(
    panel: &[F32Row],
    scale: impl Fn(&[f32]) -> f32,
    code: impl Fn(f32, f32) -> i8,
    (codes, scales): (&mut [C], &mut [F32Row]),
) {
    let mut weights = [0.0; GROUP];
    codes.fill(C::ZERO);
    for ((group, codes), scales) in panel.chunks(GROUP).zip(codes.chunks_mut(GROUP / C::INPUTS)).zip(scales) {
        let weights = &mut weights[..group.len()];
        for column in 0..PANEL {
            weights.iter_mut().zip(group).for_each(|(weight, row)| *weight = row.0[column]);
            // What is not finite must not vanish: with such a scale all products of the group are not numbers.
            let scale = if weights.iter().all(|weight| weight.is_finite()) { scale(weights) } else { f32::NAN };
            scales.0[column] = scale;
            for (input, weight) in weights.iter().enumerate() {
                codes[input / C::INPUTS].set(column, input % C::INPUTS, code(*weight, scale));
            }
        }
    }
}

fn int4_code(weight: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (weight / scale).round().clamp(-8.0, 7.0) }
}

/// The scale with the least squared error among some near the one that maps the largest weight to -8 (so the scale's
/// sign is that of the smaller extreme), each refined once by least squares for its codes.
fn int4_scale(weights: &[f32]) -> f32 {
    let extreme = weights.iter().fold(0.0f32, |max, w| if w.abs() > max.abs() { *w } else { max });
    if extreme == 0.0 {
        return 0.0;
    }
    let (mut best, mut least) = (extreme / -8.0, f32::INFINITY);
    for levels in [-8.0, -7.6, -7.2, -6.8, -6.4, 7.0, 6.6] {
        let candidate = extreme / levels;
        let (mut products, mut squares) = (0.0, 0.0);
        for &weight in weights {
            let code = int4_code(weight, candidate);
            products += code * weight;
            squares += code * code;
        }
        let refined = if squares > 0.0 { products / squares } else { candidate };
        for scale in [candidate, refined] {
            let error: f32 = weights.iter().map(|w| (w - scale * int4_code(*w, scale)).powi(2)).sum();
            if error < least {
                (best, least) = (scale, error);
            }
        }
    }
    best
}
