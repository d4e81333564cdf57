//! Layer norm and RMS norm.

use rayon::prelude::*;

use crate::Level;
use crate::simd::{Kernel, Simd};

/// Elements below which one thread does the work.
const PARALLEL_FROM: usize = 1 << 15;

/// `(x - mean) / sqrt(variance + eps) · gamma + beta`, row by row.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// Scale, one a column.
    pub gamma: &'a [f32],
    /// Shift, one a column.
    pub beta: Option<&'a [f32]>,
    /// Keeps the root positive.
    pub eps: f32,
}

/// `x / sqrt(mean(x²) + eps) · gamma`, row by row.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// Scale, one a column.
    pub gamma: &'a [f32],
    /// Keeps the root positive.
    pub eps: f32,
}

impl LayerNorm<'_> {
    /// Normalises rows of `x` into rows of `out`.
    ///
    /// # Panics
    /// If `x` and `out` are not the same number of whole rows, or `beta` is not as long as `gamma`.
    pub fn apply(&self, level: Level, x: &[f32], out: &mut [f32]) {
        if let Some(beta) = self.beta {
            assert_eq!(beta.len(), self.gamma.len(), "gamma and beta have different lengths");
        }
        let affine = Affine { gamma: self.gamma, beta: self.beta, eps: self.eps, centred: true };
        rows(level, affine, x, out);
    }
}

impl RmsNorm<'_> {
    /// Normalises rows of `x` into rows of `out`.
    ///
    /// # Panics
    /// If `x` and `out` are not the same number of whole rows.
    pub fn apply(&self, level: Level, x: &[f32], out: &mut [f32]) {
        rows(level, Affine { gamma: self.gamma, beta: None, eps: self.eps, centred: false }, x, out);
    }
}

#[derive(Clone, Copy)]
struct Affine<'a> {
    gamma: &'a [f32],
    beta: Option<&'a [f32]>,
    eps: f32,
    centred: bool,
}

fn rows(level: Level, affine: Affine<'_>, x: &[f32], out: &mut [f32]) {
    let n = affine.gamma.len();
    assert!(n > 0 && x.len().is_multiple_of(n), "{} numbers are not rows of {n}", x.len());
    assert_eq!(x.len(), out.len(), "input and output have different lengths");
    let part = |(x, out): (&[f32], &mut [f32])| level.run(Rows { affine, x, out });
    if x.len() < PARALLEL_FROM {
        part((x, out));
    } else {
        let chunk = (PARALLEL_FROM / 4).next_multiple_of(n);
        x.par_chunks(chunk).zip(out.par_chunks_mut(chunk)).for_each(part);
    }
}

struct Rows<'a> {
    affine: Affine<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Affine { gamma, beta, eps, centred } = self.affine;
        let n = gamma.len();
        for (x, out) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)) {
            let mean = if centred { sum(s, x) / n as f32 } else { 0.0 };
            let scale = (sum_of_squares(s, x, mean) / n as f32 + eps).sqrt().recip();
            for (out, (x, gamma)) in out.iter_mut().zip(x.iter().zip(gamma)) {
                *out = (x - mean) * scale * gamma;
            }
            if let Some(beta) = beta {
                out.iter_mut().zip(beta).for_each(|(out, beta)| *out += beta);
            }
        }
    }
}

#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let chunks = x.chunks_exact(S::LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    let mut total = s.splat(0.0);
    for chunk in chunks {
        total = s.add(total, s.load(chunk));
    }
    s.sum(total) + rest
}

#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32], mean: f32) -> f32 {
    let chunks = x.chunks_exact(S::LANES);
    let mut rest = 0.0;
    for x in chunks.remainder() {
        rest += (x - mean) * (x - mean);
    }
    let mut total = s.splat(0.0);
    for chunk in chunks {
        let d = s.sub(s.load(chunk), s.splat(mean));
        total = s.mul_add(d, d, total);
    }
    s.sum(total) + rest
}
