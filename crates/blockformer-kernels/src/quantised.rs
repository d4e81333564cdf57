//! Weights of 8 and 4 bits, in groups that share a scale and, of 4 bits, a minimum.
//!
//! With 8 bits a weight is its code, a byte with sign, times the scale; with 4 bits it is the code, without sign, times the
//! scale, plus the minimum, because 16 values are too few to leave some unused. CPUs multiply bytes without sign by bytes
//! with sign, so the codes of inputs are the other way round ([`Codes::SIGNED_INPUTS`]). Codes are so small that some
//! products of both can be summed in 16 bits ([`Codes::TOGETHER`]), of which CPUs multiply and add twice as many at a
//! time. That is why 8-bit codes use but seven bits: their rounding costs next to nothing beside that of four.

use crate::memory::Plain;
use crate::packed::{F32Row, bf16};
use crate::simd::{MAX_LANES, PANEL, Simd};

/// Inputs that lie next to each other in a column.
pub(crate) const QUAD: usize = 4;

/// 32 columns at four inputs, -64 to 64 in two's complement, column by column.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Int8Codes(pub(crate) [u8; QUAD * PANEL]);

/// The scales of 32 columns in a group of 8-bit weights, and the negated sums of their codes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Int8Scales {
    pub(crate) scales: [f32; PANEL],
    pub(crate) negated_sums: [i32; PANEL],
}

/// 32 columns at eight inputs, 0 to 15: the first four in the low halves, the others in the high halves.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Int4Codes(pub(crate) [u8; QUAD * PANEL]);

/// The scales and minima of 32 columns in a group, bfloat16, column by column.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Bf16Ranges(pub(crate) [[u16; 2]; PANEL]);

/// Codes of a panel's columns at one or two times four consecutive inputs; zero where there are no more inputs.
pub(crate) trait Codes: Plain {
    /// What makes weights of the codes of 32 columns in a group.
    type Scales: Plain;
    /// Consecutive inputs of one column that share a scale, and a minimum if they have one.
    const GROUP: usize;
    /// Inputs of an element.
    const INPUTS: usize;
    /// Whether codes of inputs have a sign, and codes of weights none, or the other way round.
    const SIGNED_INPUTS: bool;
    /// Whether codes count from a minimum of the group, and not from zero.
    const MINIMA: bool;
    /// The largest code of a weight, either sign if it has one.
    const LARGEST_WEIGHT: i8;
    /// The largest code of an input, either sign if it has one.
    const LARGEST_INPUT: f32;
    /// Quads of inputs whose products are summed in 16 bits, two or all of a group: so many of the largest fit.
    const TOGETHER: usize;

    /// Writes the codes of the weights of one column in a group, and what makes weights of them. All are zero before.
    fn quantise(weights: &[f32], column: usize, codes: &mut [Self], scales: &mut Self::Scales);

    /// A weight.
    fn weight(&self, scales: &Self::Scales, column: usize, input: usize) -> f32;

    /// The codes of a group, where they have 8 bits.
    fn of_8_bits(_codes: &[Self]) -> Option<&[Int8Codes; GROUP_QUADS]> {
        None
    }

    /// The stored codes of the columns of vector `index` at quad `quad` of its inputs.
    fn load<S: Simd>(&self, s: S, index: usize, quad: usize) -> S::B;

    /// The negated sums of the codes of vector `index`, where these have signs.
    fn negated_sums<S: Simd>(scales: &Self::Scales, s: S, index: usize) -> S::I;

    /// The scales of vector `index`.
    fn scales<S: Simd>(scales: &Self::Scales, s: S, index: usize) -> S::V;

    /// The minima of vector `index`.
    fn minima<S: Simd>(scales: &Self::Scales, s: S, index: usize) -> S::V;
}

const _: () = assert!(Int8Codes::GROUP.is_multiple_of(MAX_LANES) && Int4Codes::GROUP.is_multiple_of(MAX_LANES));

const fn fits_16_bits<C: Codes>() -> bool {
    let products = 2 * C::TOGETHER * C::LARGEST_WEIGHT as usize * C::LARGEST_INPUT as usize;
    // Sums of the codes of weights with signs are multiplied in 16 bits, too.
    products <= i16::MAX as usize && (C::SIGNED_INPUTS || C::GROUP * C::LARGEST_WEIGHT as usize <= i16::MAX as usize)
}

const _: () = assert!(fits_16_bits::<Int8Codes>() && fits_16_bits::<Int4Codes>());

/// Quads of a group of 8-bit weights.
pub(crate) const GROUP_QUADS: usize = 16;

impl Codes for Int8Codes {
    type Scales = Int8Scales;
    const GROUP: usize = GROUP_QUADS * QUAD;
    const INPUTS: usize = QUAD;
    const SIGNED_INPUTS: bool = false;
    const MINIMA: bool = false;
    const LARGEST_WEIGHT: i8 = 64;
    const LARGEST_INPUT: f32 = 127.0;
    const TOGETHER: usize = 2;

    fn quantise(weights: &[f32], column: usize, codes: &mut [Self], scales: &mut Int8Scales) {
        let scale = weights.iter().fold(0.0f32, |max, w| max.max(w.abs())) / f32::from(Self::LARGEST_WEIGHT);
        // What is not finite must not vanish: with such a scale all products of the group are not numbers.
        let finite = weights.iter().all(|weight| weight.is_finite());
        scales.scales[column] = if finite { scale } else { f32::NAN };
        // Weights too small to divide by count as zeros.
        let inverse = if scale >= f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
        for (input, weight) in weights.iter().enumerate() {
            let code = ((weight * inverse).round() as i8).clamp(-Self::LARGEST_WEIGHT, Self::LARGEST_WEIGHT);
            codes[input / QUAD].0[QUAD * column + input % QUAD] = code as u8;
            scales.negated_sums[column] -= i32::from(code);
        }
    }

    fn weight(&self, scales: &Int8Scales, column: usize, input: usize) -> f32 {
        f32::from(self.0[QUAD * column + input] as i8) * scales.scales[column]
    }

    #[inline(always)]
    fn of_8_bits(codes: &[Self]) -> Option<&[Self; GROUP_QUADS]> {
        codes.first_chunk()
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, index: usize, _: usize) -> S::B {
        s.load_bytes(&self.0[QUAD * index * S::LANES..])
    }

    #[inline(always)]
    fn negated_sums<S: Simd>(scales: &Int8Scales, s: S, index: usize) -> S::I {
        s.load_integers(&scales.negated_sums[index * S::LANES..])
    }

    #[inline(always)]
    fn scales<S: Simd>(scales: &Int8Scales, s: S, index: usize) -> S::V {
        s.load(&scales.scales[index * S::LANES..])
    }

    #[inline(always)]
    fn minima<S: Simd>(_: &Int8Scales, s: S, _: usize) -> S::V {
        s.splat(0.0)
    }
}

impl Codes for Int4Codes {
    type Scales = Bf16Ranges;
    const GROUP: usize = 32;
    const INPUTS: usize = 2 * QUAD;
    const SIGNED_INPUTS: bool = true;
    const MINIMA: bool = true;
    const LARGEST_WEIGHT: i8 = 15;
    const LARGEST_INPUT: f32 = 127.0;
    const TOGETHER: usize = 8;

    fn quantise(weights: &[f32], column: usize, codes: &mut [Self], scales: &mut Bf16Ranges) {
        // As above.
        let finite = weights.iter().all(|weight| weight.is_finite());
        let range = if finite { Range::best(weights) } else { Range { scale: f32::NAN, minimum: f32::NAN } };
        scales.0[column] = [bf16(range.scale), bf16(range.minimum)];
        for (input, weight) in weights.iter().enumerate() {
            let (code, input, high) = (range.code(*weight) as u8, input % Self::INPUTS, input / Self::INPUTS);
            codes[high].0[QUAD * column + input % QUAD] |= if input < QUAD { code } else { code << 4 };
        }
    }

    fn weight(&self, scales: &Bf16Ranges, column: usize, input: usize) -> f32 {
        let byte = self.0[QUAD * column + input % QUAD];
        let code = if input < QUAD { byte & 15 } else { byte >> 4 };
        let [scale, minimum] = scales.0[column].map(|bits| f32::from_bits(u32::from(bits) << 16));
        scale.mul_add(f32::from(code), minimum)
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, index: usize, quad: usize) -> S::B {
        let both = s.load_bytes(&self.0[QUAD * index * S::LANES..]);
        if quad == 0 { s.low_halves(both) } else { s.high_halves(both) }
    }

    #[inline(always)]
    fn negated_sums<S: Simd>(_: &Bf16Ranges, s: S, _: usize) -> S::I {
        s.splat_integer(0)
    }

    #[inline(always)]
    fn scales<S: Simd>(scales: &Bf16Ranges, s: S, index: usize) -> S::V {
        s.load_bf16_first(&scales.0[index * S::LANES..])
    }

    #[inline(always)]
    fn minima<S: Simd>(scales: &Bf16Ranges, s: S, index: usize) -> S::V {
        s.load_bf16_second(&scales.0[index * S::LANES..])
    }
}

/// How many elements hold the codes of a panel: those of whole groups.
pub(crate) fn n_codes<C: Codes>(n_inputs: usize) -> usize {
    n_inputs.next_multiple_of(C::GROUP) / C::INPUTS
}

/// Writes the codes of a panel, and what makes weights of them, once a group.
pub(crate) fn quantise<C: Codes>(panel: &[F32Row], codes: &mut [C], scales: &mut [C::Scales]) {
    let mut weights = Vec::with_capacity(C::GROUP);
    codes.fill(C::ZERO);
    scales.fill(C::Scales::ZERO);
    for ((group, codes), scales) in panel.chunks(C::GROUP).zip(codes.chunks_mut(C::GROUP / C::INPUTS)).zip(scales) {
        for column in 0..PANEL {
            weights.clear();
            weights.extend(group.iter().map(|row| row.0[column]));
            C::quantise(&weights, column, codes, scales);
        }
    }
}

/// The weights that 16 codes of a group stand for: `minimum + code · scale`, where both are bfloat16.
#[derive(Debug, Clone, Copy)]
struct Range {
    scale: f32,
    minimum: f32,
}

impl Range {
    fn rounded(scale: f32, minimum: f32) -> Self {
        let [scale, minimum] = [scale, minimum].map(|x| f32::from_bits(u32::from(bf16(x)) << 16));
        Self { scale, minimum }
    }

    /// The one with the least squared error among some from the least to the largest weight or somewhat narrower, each
    /// refined once by least squares for its codes. The weights are finite.
    fn best(weights: &[f32]) -> Self {
        let least = weights.iter().fold(f32::INFINITY, |least, w| least.min(*w));
        let largest = weights.iter().fold(f32::NEG_INFINITY, |largest, w| largest.max(*w));
        let (middle, half) = (0.5 * least + 0.5 * largest, 0.5 * largest - 0.5 * least);
        let whole = |share: f32| Self::rounded(2.0 * (half / 15.0) * share, middle - half * share);
        let (mut best, mut least_error) = (whole(1.0), f32::INFINITY);
        for share in [1.0, 0.95, 0.9, 0.85, 0.8, 0.75] {
            let mut range = whole(share);
            for _ in 0..2 {
                let (error, refined) = range.fit(weights);
                if error < least_error {
                    (best, least_error) = (range, error);
                }
                range = refined;
            }
        }
        best
    }

    #[inline(always)]
    fn code(self, weight: f32) -> f32 {
        let inverse = if self.scale >= f32::MIN_POSITIVE { self.scale.recip() } else { 0.0 };
        // The nearest integer: what is cut off a number that is not negative is what it exceeds an integer by.
        ((weight - self.minimum) * inverse + 0.5).clamp(0.0, 15.0) as u8 as f32
    }

    /// The squared error of the weights' codes, and the range that fits these codes best.
    fn fit(self, weights: &[f32]) -> (f32, Self) {
        let (mut error, mut codes, mut squares, mut sum, mut products) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &weight in weights {
            let code = self.code(weight);
            error += (self.minimum + self.scale * code - weight).powi(2);
            codes += code;
            squares += code * code;
            sum += weight;
            products += code * weight;
        }
        let n = weights.len() as f32;
        let spread = n * squares - codes * codes;
        if spread <= 0.0 {
            return (error, self);
        }
        let scale = (n * products - codes * sum) / spread;
        (error, Self::rounded(scale, (sum - scale * codes) / n))
    }
}
