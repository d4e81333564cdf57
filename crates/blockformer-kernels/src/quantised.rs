//! Weights of 8 and 4 bits, in groups that share a scale and, of 4 bits, a minimum.
//!
//! With 8 bits a weight is its code, a byte with sign, times the scale; with 4 bits it is the code, without sign, times the
//! scale, plus the minimum, because 16 values are too few to leave some unused. CPUs multiply bytes without sign by bytes
//! with sign, so the codes of inputs are the other way round ([`Codes::SIGNED_INPUTS`]). Codes are so small that some
//! products of both can be summed in 16 bits ([`Codes::TOGETHER`]), of which CPUs multiply and add twice as many at a
//! time. That is why 8-bit codes use but seven bits, and a smaller largest code where weights of one sign sum to too much: in
//! a third of the groups of trained models.

use crate::memory::Plain;
use crate::packed::{F32Row, bf16};
use crate::simd::{MAX_LANES, PANEL, Simd};

/// Inputs that lie next to each other in a column.
pub(crate) const QUAD: usize = 4;

/// 32 columns at four inputs, -64 to 64 in two's complement, column by column.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Int8Codes(pub(crate) [u8; QUAD * PANEL]);

/// The scales of 32 columns in a group of 8-bit weights, and the sums of their codes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Int8Scales {
    pub(crate) scales: [f32; PANEL],
    pub(crate) code_sums: [f32; PANEL],
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
    /// The largest code of a weight, either sign if it has one.
    const LARGEST_WEIGHT: i8;
    /// The largest code of an input, either sign if it has one.
    const LARGEST_INPUT: f32;
    /// Quads of inputs whose products are summed in 16 bits, which they surely fit.
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

    /// The scales of vector `index`, and the sums of its codes or, where these have no sign, its minima.
    fn scales<S: Simd>(scales: &Self::Scales, s: S, index: usize) -> [S::V; 2];
}

const _: () = assert!(Int8Codes::GROUP.is_multiple_of(MAX_LANES) && Int4Codes::GROUP.is_multiple_of(MAX_LANES));

/// Quads of a group of 8-bit weights.
pub(crate) const GROUP_QUADS: usize = 16;

/// What codes of 8-bit weights of one sign may sum up to, among those whose products are summed in 16 bits together: times
/// the largest input, it fits.
const LARGEST_SUM: i32 = i16::MAX as i32 / Int8Codes::LARGEST_INPUT as i32;

const _: () = {
    let largest = Int4Codes::LARGEST_WEIGHT as usize * Int4Codes::LARGEST_INPUT as usize;
    assert!(2 * Int4Codes::TOGETHER * largest <= i16::MAX as usize);
    assert!(Int8Codes::GROUP.is_multiple_of(QUAD * Int8Codes::TOGETHER));
    assert!(Int4Codes::GROUP.is_multiple_of(QUAD * Int4Codes::TOGETHER));
    // Codes of one, to which packing might come.
    assert!((QUAD * Int8Codes::TOGETHER) as i32 / 2 <= LARGEST_SUM);
    // A row's code of zero times the sum of codes, and the sum of products, are whole numbers of float32.
    let parts = Int8Codes::GROUP as i32 / QUAD as i32 / Int8Codes::TOGETHER as i32;
    assert!(2 * parts * LARGEST_SUM * (Int8Codes::LARGEST_INPUT as i32) < 1 << 23);
};

impl Int8Codes {
    /// The largest sum of codes of one sign whose products are summed in 16 bits together: those of the first or the second
    /// half of some quads.
    fn largest_sum(codes: &[i8]) -> i32 {
        let of_quads = |codes: &[i8]| {
            let mut sums = [[0; 2]; 2];
            for (input, code) in codes.iter().enumerate() {
                sums[input % QUAD / 2][usize::from(*code < 0)] += i32::from(*code).abs();
            }
            sums.as_flattened().iter().fold(0, |max, sum| max.max(*sum))
        };
        codes.chunks(QUAD * Self::TOGETHER).map(of_quads).max().unwrap_or(0)
    }
}

impl Codes for Int8Codes {
    type Scales = Int8Scales;
    const GROUP: usize = GROUP_QUADS * QUAD;
    const INPUTS: usize = QUAD;
    const SIGNED_INPUTS: bool = false;
    const LARGEST_WEIGHT: i8 = 64;
    const LARGEST_INPUT: f32 = 127.0;
    const TOGETHER: usize = 8;

    /// The largest weight has a code with which sums fit 16 bits, 64 or near the largest such. Where weights are spread like
    /// normal numbers, that is 64 in two thirds of the groups, and 55 or so in the others; where all are alike, it is 16.
    fn quantise(weights: &[f32], column: usize, codes: &mut [Self], scales: &mut Int8Scales) {
        let largest = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
        let mut rounded = [0; Self::GROUP];
        let rounded = &mut rounded[..weights.len()];
        let mut largest_code = Self::LARGEST_WEIGHT;
        let scale = loop {
            let scale = largest / f32::from(largest_code);
            // Weights too small to divide by count as zeros.
            let inverse = if scale >= f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
            for (code, weight) in rounded.iter_mut().zip(weights) {
                *code = ((weight * inverse).round() as i8).clamp(-largest_code, largest_code);
            }
            let sum = Self::largest_sum(rounded);
            if sum <= LARGEST_SUM {
                break scale;
            }
            // Less than before, as the sum is more than allowed; ones fit.
            largest_code = (i32::from(largest_code) * LARGEST_SUM / sum) as i8;
        };
        // What is not finite must not vanish: with such a scale all products of the group are not numbers.
        let finite = weights.iter().all(|weight| weight.is_finite());
        scales.scales[column] = if finite { scale } else { f32::NAN };
        let mut sum = 0;
        for (input, code) in rounded.iter().enumerate() {
            codes[input / QUAD].0[QUAD * column + input % QUAD] = *code as u8;
            sum += i32::from(*code);
        }
        scales.code_sums[column] = sum as f32;
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
    fn scales<S: Simd>(scales: &Int8Scales, s: S, index: usize) -> [S::V; 2] {
        [s.load(&scales.scales[index * S::LANES..]), s.load(&scales.code_sums[index * S::LANES..])]
    }
}

impl Codes for Int4Codes {
    type Scales = Bf16Ranges;
    const GROUP: usize = 32;
    const INPUTS: usize = 2 * QUAD;
    const SIGNED_INPUTS: bool = true;
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
    fn scales<S: Simd>(scales: &Bf16Ranges, s: S, index: usize) -> [S::V; 2] {
        let columns = &scales.0[index * S::LANES..];
        [s.load_bf16_first(columns), s.load_bf16_second(columns)]
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A column's weights, its codes and its scale.
    fn quantised(weights: &[f32]) -> (Vec<i8>, f32) {
        let (mut codes, mut scales) = ([Int8Codes::ZERO; GROUP_QUADS], Int8Scales::ZERO);
        Int8Codes::quantise(weights, 5, &mut codes, &mut scales);
        let codes: Vec<i8> =
            (0..weights.len()).map(|input| codes[input / QUAD].0[QUAD * 5 + input % QUAD] as i8).collect();
        let sum = codes.iter().map(|code| i32::from(*code)).sum::<i32>();
        assert_eq!(scales.code_sums[5], sum as f32);
        (codes, scales.scales[5])
    }

    /// The largest sum of one sign among what is summed in 16 bits: inputs 0, 1, 4, 5 … and 2, 3, 6, 7 … of 32.
    fn largest_sum(weights: &[f64]) -> f64 {
        let sum = |first: usize, sign: f64| -> f64 {
            let pairs = (first..first + 32).step_by(4).flat_map(|input| [input, input + 1]);
            pairs.filter_map(|input| weights.get(input)).map(|weight| (sign * weight).max(0.0)).sum()
        };
        [0, 2, 32, 34].iter().flat_map(|first| [sum(*first, 1.0), sum(*first, -1.0)]).fold(0.0, f64::max)
    }

    #[test]
    fn sums_of_8_bit_codes_fit_and_weights_are_off_by_half_a_step() {
        let uniform = |input: usize| ((input * 7919 + 104_729) % 2003) as f32 / 1001.5 - 1.0;
        let groups: [&dyn Fn(usize) -> f32; 9] = [
            &uniform,
            &|input| uniform(input).powi(3),
            &|input| uniform(input).abs(),
            &|input| -1.0 - 0.1 * uniform(input),
            &|input| if input % 4 < 2 { 1.0 } else { -0.3 },
            &|input| if input < 8 { 1.0 } else { 0.01 },
            &|input| if input == 40 { 1e30 } else { uniform(input) },
            &|input| uniform(input).abs() * 1e-36,
            &|_| 1e-44,
        ];
        for (index, group) in groups.iter().enumerate() {
            for n in [1, 7, 33, 64] {
                let weights: Vec<f32> = (0..n).map(group).collect();
                let (codes, scale) = quantised(&weights);
                let sum = largest_sum(&codes.iter().map(|code| f64::from(*code)).collect::<Vec<_>>());
                assert!(sum * 127.0 <= f64::from(i16::MAX), "{index}, {n}: {sum}");
                let exact: Vec<f64> = weights.iter().map(|weight| f64::from(*weight)).collect();
                let largest = exact.iter().fold(0.0f64, |max, weight| max.max(weight.abs()));
                // A largest code of less than 64, 16 at least, comes of one with which sums were more than 258, of which
                // rounding may be 8, times 258 by that sum, rounded down.
                let step = (largest / 64.0).max(17.0 / 16.0 * largest_sum(&exact) / 250.0);
                assert!(f64::from(scale) <= 1.00001 * step + 1e-44, "{index}, {n}: {scale}, at most {step}");
                for (code, weight) in codes.iter().zip(&exact) {
                    let error = (f64::from(*code) * f64::from(scale) - weight).abs();
                    let allowed =
                        if f64::from(scale) < f64::from(f32::MIN_POSITIVE) { largest } else { 0.50001 * step };
                    assert!(error <= allowed, "{index}, {n}: {weight} became {code}, step {step}");
                }
            }
        }
    }

    #[test]
    fn weights_that_are_alike_keep_their_value() {
        let (codes, scale) = quantised(&[0.7; 64]);
        assert_eq!((codes, scale), (vec![16; 64], 0.7 / 16.0));
        // Those of 32 inputs, of which 16 are summed together, have room for more.
        let (codes, _) = quantised(&std::array::from_fn::<_, 64, _>(|input| if input % 8 < 2 { 0.7 } else { 0.0 }));
        assert_eq!(codes.iter().max(), Some(&32));
    }
}
