//! Weights of 8 and 4 bits, in groups that share a scale.

use crate::packed::F32Row;
use crate::simd::{PANEL, Simd};

/// Consecutive inputs of one column that share a scale.
pub(crate) const GROUP: usize = 32;

/// 32 columns at two inputs, -127 to 127, column by column.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Int8Pair(pub(crate) [i8; 2 * PANEL]);

/// The same, -8 to 7, each plus 8: columns 0 to 15 in the low halves, 16 to 31 in the high halves.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Int4Pair(pub(crate) [u8; PANEL]);

/// Codes of a panel's columns at two consecutive inputs. Where there is no second input its codes are zero.
pub(crate) trait CodePair: Copy + Send + Sync {
    /// All codes zero.
    const ZERO: Self;

    /// The code of a column at the pair's first or second input.
    fn code(&self, column: usize, input: usize) -> i8;

    /// Sets a code that was zero.
    fn set(&mut self, column: usize, input: usize, code: i8);

    /// The codes of the columns of vector `index`.
    fn load<S: Simd>(&self, s: S, index: usize) -> S::P;
}

impl CodePair for Int8Pair {
    const ZERO: Self = Self([0; 2 * PANEL]);

    fn code(&self, column: usize, input: usize) -> i8 {
        self.0[2 * column + input]
    }

    fn set(&mut self, column: usize, input: usize, code: i8) {
        self.0[2 * column + input] = code;
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, index: usize) -> S::P {
        s.load_pairs(&self.0[2 * index * S::LANES..])
    }
}

impl CodePair for Int4Pair {
    const ZERO: Self = Self([0x88; PANEL]);

    fn code(&self, column: usize, input: usize) -> i8 {
        let index = 2 * column + input;
        let byte = self.0[index % PANEL];
        (if index < PANEL { byte & 15 } else { byte >> 4 }) as i8 - 8
    }

    fn set(&mut self, column: usize, input: usize, code: i8) {
        let index = 2 * column + input;
        let nibble = (code + 8) as u8;
        let byte = &mut self.0[index % PANEL];
        *byte = if index < PANEL { *byte & 0xf0 | nibble } else { *byte & 0x0f | nibble << 4 };
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, index: usize) -> S::P {
        let first = 2 * index * S::LANES;
        if first < PANEL { s.load_low_nibbles(&self.0[first..]) } else { s.load_high_nibbles(&self.0[first - PANEL..]) }
    }
}

/// The codes of a panel and its scales, one row of scales a group.
pub(crate) fn int8(panel: &[F32Row]) -> (Vec<Int8Pair>, Vec<F32Row>) {
    let scale = |weights: &[f32]| weights.iter().fold(0.0f32, |max, w| max.max(w.abs())) / 127.0;
    let code = |weight: f32, scale: f32| if scale > 0.0 { (weight * scale.recip()).round() as i8 } else { 0 };
    quantise(panel, scale, code)
}

/// The same with 4 bits.
pub(crate) fn int4(panel: &[F32Row]) -> (Vec<Int4Pair>, Vec<F32Row>) {
    quantise(panel, int4_scale, |weight, scale| int4_code(weight, scale) as i8)
}

fn quantise<C: CodePair>(
    panel: &[F32Row],
    scale: impl Fn(&[f32]) -> f32,
    code: impl Fn(f32, f32) -> i8,
) -> (Vec<C>, Vec<F32Row>) {
    let mut codes = vec![C::ZERO; panel.len().div_ceil(2)];
    let mut scales = vec![F32Row([0.0; PANEL]); panel.len().div_ceil(GROUP)];
    let mut weights = [0.0; GROUP];
    for ((group, codes), scales) in panel.chunks(GROUP).zip(codes.chunks_mut(GROUP / 2)).zip(&mut scales) {
        let weights = &mut weights[..group.len()];
        for column in 0..PANEL {
            weights.iter_mut().zip(group).for_each(|(weight, row)| *weight = row.0[column]);
            // What is not finite must not vanish: with such a scale all products of the group are not numbers.
            let scale = if weights.iter().all(|weight| weight.is_finite()) { scale(weights) } else { f32::NAN };
            scales.0[column] = scale;
            for (input, weight) in weights.iter().enumerate() {
                codes[input / 2].set(column, input % 2, code(*weight, scale));
            }
        }
    }
    (codes, scales)
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
