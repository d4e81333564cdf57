//! Functions of vectors.

use crate::simd::Simd;

/// `x` in `[low, high]`; what is not a number stays so.
#[inline(always)]
fn clamp<S: Simd>(s: S, x: S::V, low: f32, high: f32) -> S::V {
    s.min(s.splat(high), s.max(s.splat(low), x))
}

/// `c[0] xⁿ + … + c[n]`.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, c: [f32; N]) -> S::V {
    let mut y = s.splat(c[0]);
    for &c in &c[1..] {
        y = s.mul_add(y, x, s.splat(c));
    }
    y
}

/// `eˣ` to about two units in the last place; zero below -87, and `e^88` above 88.
///
/// `x = n ln 2 + r`, `eˣ = 2ⁿ eʳ`, `eʳ` by a polynomial for `|r| <= ln(2) / 2` (the coefficients of Cephes' `expf`).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let bounded = clamp(s, x, -87.0, 88.0);
    let n = s.round(s.mul(bounded, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-0.693_359_4), bounded);
    let r = s.mul_add(n, s.splat(2.121_944_4e-4), r);
    let p = polynomial(s, r, [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5]);
    let y = s.add(s.mul_add(s.mul(p, r), r, r), s.splat(1.0));
    s.zero_below(x, -87.0, s.mul(y, s.exp2_integer(n)))
}

/// The error function to a few units in the last place: an odd rational function on `[-4, 4]` (the coefficients of
/// Eigen's `erf`), ±1 beyond.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let x = clamp(s, x, -4.0, 4.0);
    let x2 = s.mul(x, x);
    let p = polynomial(
        s,
        x2,
        [
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let q = polynomial(s, x2, [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2]);
    s.div(s.mul(x, p), q)
}

/// `x Φ(x)`.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let half = s.mul(x, s.splat(0.5));
    let y = s.mul_add(half, erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half);
    s.zero_below(x, -5.6, y) // where |y| < 6e-8, and rounding of erf would count
}

/// `x / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(e, s.splat(1.0)))
}

/// GELU by `tanh`: `x σ(2 sqrt(2/π) (x + 0.044715 x³))`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let inner = s.mul_add(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
    let z = s.mul(s.mul(x, inner), s.splat(-1.595_769)); // -2 sqrt(2/π)
    s.div(x, s.add(exp(s, z), s.splat(1.0)))
}

/// `max(x, 0)`.
#[inline(always)]
pub(crate) fn relu<S: Simd>(s: S, x: S::V) -> S::V {
    s.max(s.splat(0.0), x)
}

/// The slope of [`gelu`], `Φ(x) + x φ(x)`.
#[inline(always)]
pub(crate) fn gelu_slope<S: Simd>(s: S, x: S::V) -> S::V {
    let half = s.splat(0.5);
    let below = s.mul_add(half, erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half);
    let density = s.mul(exp(s, s.mul(s.mul(x, x), s.splat(-0.5))), s.splat(0.398_942_3)); // 1 / sqrt(2π)
    s.mul_add(x, density, below)
}

/// The slope of [`silu`], `σ(x) (1 + x (1 - σ(x)))`; zero below -87, where `e⁻ˣ` would not be finite.
#[inline(always)]
pub(crate) fn silu_slope<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let e = exp(s, s.sub(s.splat(0.0), x));
    let sigma = s.div(one, s.add(e, one));
    let rest = s.mul(e, sigma); // 1 - σ, without its cancellation
    s.zero_below(x, -87.0, s.mul(sigma, s.mul_add(x, rest, one)))
}

/// The slope of [`gelu_tanh`], `σ(z) (1 + x (1 - σ(z)) z')` with its `z` and `z' = 2 sqrt(2/π) (1 + 3 · 0.044715 x²)`;
/// beyond ±10 that of 10, which is 0 or 1.
#[inline(always)]
pub(crate) fn gelu_tanh_slope<S: Simd>(s: S, x: S::V) -> S::V {
    let (one, x) = (s.splat(1.0), clamp(s, x, -10.0, 10.0));
    let x2 = s.mul(x, x);
    let inner = s.mul_add(x2, s.splat(0.044_715), one);
    let e = exp(s, s.mul(s.mul(x, inner), s.splat(-1.595_769)));
    let sigma = s.div(one, s.add(e, one));
    let slope = s.mul(s.mul_add(x2, s.splat(0.134_145), one), s.splat(1.595_769));
    s.mul(sigma, s.mul_add(s.mul(x, slope), s.mul(e, sigma), one))
}

/// The slope of [`relu`]: 1 above 0.
#[inline(always)]
pub(crate) fn relu_slope<S: Simd>(s: S, x: S::V) -> S::V {
    s.zero_below(x, f32::MIN_POSITIVE, s.splat(1.0))
}
