//! Non-linearities, element by element.

use rayon::prelude::*;

use crate::Level;
use crate::math;
use crate::simd::{Kernel, MAX_LANES, Simd};

/// Elements below which one thread does the work, and elements a thread takes at a time.
const CHUNK: usize = 1 << 14;

/// A non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// `x`.
    #[default]
    Identity,
    /// Exact GELU, `x Φ(x)`; absolute error below `1e-6 · max(|x|, 1)`.
    Gelu,
    /// GELU by the tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + e⁻ˣ)`.
    Silu,
}

impl Activation {
    /// Applies it to every element of `x`, with several threads where there are many.
    pub fn apply(self, level: Level, x: &mut [f32]) {
        if self == Self::Identity {
            return;
        }
        let part = |x: &mut [f32]| level.run(Map { activation: self, x });
        if x.len() < 2 * CHUNK { part(x) } else { x.par_chunks_mut(CHUNK).for_each(part) }
    }

    /// The tangent at every element of `x`: replaces it by `offset` and gives `slope`, where
    /// `slope · x + offset = activation(x)` and `slope` is the derivative there (that of ReLU at 0 is 0). What
    /// training needs, in one pass.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn tangents(self, level: Level, x: &mut [f32], slopes: &mut [f32]) {
        assert_eq!(x.len(), slopes.len(), "numbers and slopes have different lengths");
        let part = |(x, slopes): (&mut [f32], &mut [f32])| level.run(Tangents { activation: self, x, slopes });
        if x.len() < 2 * CHUNK {
            part((x, slopes));
        } else {
            x.par_chunks_mut(CHUNK).zip(slopes.par_chunks_mut(CHUNK)).for_each(part);
        }
    }
}

/// `gate[i] = activation(gate[i]) · up[i]`, the gated feed-forward networks' inner step (SwiGLU with SiLU).
///
/// # Panics
/// If the lengths differ.
pub fn gated(level: Level, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up have different lengths");
    let part = |(gate, up): (&mut [f32], &[f32])| {
        level.run(Map { activation, x: gate });
        gate.iter_mut().zip(up).for_each(|(gate, up)| *gate *= up);
    };
    if gate.len() < 2 * CHUNK {
        part((gate, up));
    } else {
        gate.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK)).for_each(part);
    }
}

struct Map<'a> {
    activation: Activation,
    x: &'a mut [f32],
}

impl Kernel for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        apply(s, self.activation, self.x);
    }
}

struct Tangents<'a> {
    activation: Activation,
    x: &'a mut [f32],
    slopes: &'a mut [f32],
}

impl Kernel for Tangents<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, slopes, .. } = self;
        match self.activation {
            Activation::Identity => {
                x.fill(0.0);
                slopes.fill(1.0);
            }
            Activation::Gelu => tangents(s, x, slopes, &Gelu, &GeluSlope),
            Activation::GeluTanh => tangents(s, x, slopes, &GeluTanh, &GeluTanhSlope),
            Activation::Relu => tangents(s, x, slopes, &Relu, &ReluSlope),
            Activation::Silu => tangents(s, x, slopes, &Silu, &SiluSlope),
        }
    }
}

/// Tangents of `f`, whose derivative is `slope`.
#[inline(always)]
fn tangents<S: Simd, F: Function, D: Function>(s: S, x: &mut [f32], slopes: &mut [f32], f: &F, slope: &D) {
    let (mut x, mut slopes) = (x.chunks_exact_mut(S::LANES), slopes.chunks_exact_mut(S::LANES));
    for (x, slopes) in (&mut x).zip(&mut slopes) {
        tangent(s, x, slopes, f, slope);
    }
    let (x, slopes) = (x.into_remainder(), slopes.into_remainder());
    if !x.is_empty() {
        let (mut padded, mut found) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        padded[..x.len()].copy_from_slice(x);
        tangent(s, &mut padded, &mut found, f, slope);
        x.copy_from_slice(&padded[..x.len()]);
        slopes.copy_from_slice(&found[..slopes.len()]);
    }
}

/// The tangents of a vector.
#[inline(always)]
fn tangent<S: Simd, F: Function, D: Function>(s: S, x: &mut [f32], slopes: &mut [f32], f: &F, slope: &D) {
    let at = s.load(x);
    let (y, d) = (f.apply(s, at), slope.apply(s, at));
    s.store(slopes, d);
    s.store(x, s.sub(y, s.mul(d, at)));
}

/// An activation inside of a kernel.
#[inline(always)]
pub(crate) fn apply<S: Simd>(s: S, activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Gelu => map(s, x, &Gelu),
        Activation::GeluTanh => map(s, x, &GeluTanh),
        Activation::Relu => map(s, x, &Relu),
        Activation::Silu => map(s, x, &Silu),
    }
}

/// A function of vectors. Not a closure: the compiler's shims around functions passed as values would be built
/// without the level's instructions.
pub(crate) trait Function {
    fn apply<S: Simd>(&self, s: S, x: S::V) -> S::V;
}

macro_rules! function {
    ($name:ident, $function:path) => {
        struct $name;

        impl Function for $name {
            #[inline(always)]
            fn apply<S: Simd>(&self, s: S, x: S::V) -> S::V {
                $function(s, x)
            }
        }
    };
}

function!(Gelu, math::gelu);
function!(GeluTanh, math::gelu_tanh);
function!(Relu, math::relu);
function!(Silu, math::silu);
function!(GeluSlope, math::gelu_slope);
function!(GeluTanhSlope, math::gelu_tanh_slope);
function!(ReluSlope, math::relu_slope);
function!(SiluSlope, math::silu_slope);

/// `f` of every element; the last few in a padded vector.
#[inline(always)]
pub(crate) fn map<S: Simd, F: Function>(s: S, x: &mut [f32], f: &F) {
    let mut chunks = x.chunks_exact_mut(S::LANES);
    for chunk in &mut chunks {
        s.store(chunk, f.apply(s, s.load(chunk)));
    }
    let rest = chunks.into_remainder();
    if !rest.is_empty() {
        let mut padded = [0.0; MAX_LANES];
        padded[..rest.len()].copy_from_slice(rest);
        let y = f.apply(s, s.load(&padded));
        s.store(&mut padded, y);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}
