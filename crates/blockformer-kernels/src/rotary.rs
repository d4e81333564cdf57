//! Rotary position embedding in its half-split form, in place.

use crate::Level;
use crate::simd::{Kernel, Simd};

/// Rotates heads: with `half` the length of `cos`, features `i < half` and `half + i` of each head turn by the angle
/// whose cosine and sine are `cos[i]` and `sin[i]`; what is behind them stays.
///
/// # Shapes
/// - `heads`: whole heads of `head_dim` features
///
/// # Panics
/// If `cos` and `sin` differ in length, a head is shorter than both halves, or `heads` is not whole heads.
pub fn rotate(level: Level, heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    assert_eq!(cos.len(), sin.len(), "cosines and sines");
    assert!(2 * cos.len() <= head_dim, "{} rotated features in a head of {head_dim}", 2 * cos.len());
    assert!(heads.len().is_multiple_of(head_dim), "{} numbers are not heads of {head_dim}", heads.len());
    level.run(Rotate { heads, head_dim, cos, sin });
}

struct Rotate<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let half = self.cos.len();
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(self.cos.iter().zip(self.sin)) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
