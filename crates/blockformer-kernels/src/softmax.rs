//! Softmax, its logarithm's normaliser, and the largest element of rows of logits.

use rayon::prelude::*;

use crate::Level;
use crate::activation::{Function, map};
use crate::math;
use crate::simd::{Kernel, Simd};

/// Elements below which one thread does the work.
const PARALLEL_FROM: usize = 1 << 14;

/// Turns each row of `n_columns` into its softmax.
///
/// # Panics
/// If `x` is not whole rows.
pub fn softmax(level: Level, x: &mut [f32], n_columns: usize) {
    for_rows(x, n_columns, |row| level.run(Softmax { row }));
}

/// `ln Σ e^x` of each row of `n_columns`.
///
/// # Panics
/// If `x` is not whole rows or `out` has not one place a row.
pub fn log_sum_exp(level: Level, x: &[f32], n_columns: usize, out: &mut [f32]) {
    assert!(n_columns > 0 && x.len() == out.len() * n_columns, "{} numbers are not {} rows", x.len(), out.len());
    let part = |(row, out): (&[f32], &mut f32)| *out = level.run(LogSumExp { row });
    if x.len() < PARALLEL_FROM {
        x.chunks_exact(n_columns).zip(out).for_each(part);
    } else {
        x.par_chunks_exact(n_columns).zip(out).for_each(part);
    }
}

/// Turns each row of `n_columns` into its log-softmax.
///
/// # Panics
/// If `x` is not whole rows.
pub fn log_softmax(level: Level, x: &mut [f32], n_columns: usize) {
    for_rows(x, n_columns, |row| {
        let normaliser = level.run(LogSumExp { row });
        row.iter_mut().for_each(|x| *x -= normaliser);
    });
}

/// Cross-entropy of each row of `n_columns` logits with its target, in nats, and its gradient, in one pass:
///
/// ```text
/// losses[i] = ln Σ e^z − z[targets[i]],   row i = scales[i] · (softmax(z) − onehot(targets[i]))
/// ```
///
/// A row whose scale is 0 does not count: its loss and its gradient are 0, whatever it holds.
///
/// # Panics
/// If `logits` are not rows, a target is not one of the columns, or one of the others has not one place a row.
pub fn cross_entropy(
    level: Level,
    logits: &mut [f32],
    n_columns: usize,
    targets: &[usize],
    scales: &[f32],
    losses: &mut [f32],
) {
    let rows = losses.len();
    assert!(n_columns > 0 && logits.len() == rows * n_columns, "{} numbers are not {rows} rows", logits.len());
    assert!(targets.len() == rows && scales.len() == rows, "targets and scales of {rows} rows");
    assert!(targets.iter().all(|target| *target < n_columns), "a target beyond {n_columns} columns");
    let part = |(((row, loss), target), scale): (((&mut [f32], &mut f32), &usize), &f32)| {
        *loss = level.run(CrossEntropy { row, target: *target, scale: *scale });
    };
    if logits.len() < PARALLEL_FROM {
        logits.chunks_exact_mut(n_columns).zip(losses).zip(targets).zip(scales).for_each(part);
    } else {
        logits.par_chunks_exact_mut(n_columns).zip(losses).zip(targets).zip(scales).for_each(part);
    }
}

/// The index of the largest number, the first of equals; `None` if there is none, if one is not a number or is
/// positive infinity, or if all are negative infinity. (Logits for which it is `None` cannot be sampled from.)
pub fn argmax(level: Level, x: &[f32]) -> Option<usize> {
    let (max, sum) = level.run(MaxAndSum { row: x });
    // The sum is not a number if an element is not, or if infinities of both signs meet.
    if sum.is_nan() || !max.is_finite() {
        return None;
    }
    x.iter().position(|&x| x == max)
}

fn for_rows(x: &mut [f32], n_columns: usize, part: impl Fn(&mut [f32]) + Sync + Send) {
    assert!(n_columns > 0 && x.len().is_multiple_of(n_columns), "{} numbers are not rows of {n_columns}", x.len());
    if x.len() < PARALLEL_FROM {
        x.chunks_exact_mut(n_columns).for_each(part);
    } else {
        x.par_chunks_exact_mut(n_columns).for_each(part);
    }
}

struct Softmax<'a> {
    row: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = exp_and_sum(s, self.row).recip();
        self.row.iter_mut().for_each(|x| *x *= scale);
    }
}

struct CrossEntropy<'a> {
    row: &'a mut [f32],
    target: usize,
    scale: f32,
}

impl Kernel for CrossEntropy<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let Self { row, target, scale } = self;
        if scale == 0.0 {
            row.fill(0.0);
            return 0.0;
        }
        let of_target = row[target];
        let (max, _) = max_and_sum(s, row);
        let sum = exp_and_sum_less(s, row, max);
        let factor = scale / sum;
        row.iter_mut().for_each(|x| *x *= factor);
        row[target] -= scale;
        (max - of_target) + sum.ln()
    }
}

/// `e^(x - max)`.
struct ExpLess(f32);

impl Function for ExpLess {
    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, x: S::V) -> S::V {
        math::exp(s, s.sub(x, s.splat(self.0)))
    }
}

/// Replaces every element by `e^(x - max)`; their sum.
#[inline(always)]
pub(crate) fn exp_and_sum<S: Simd>(s: S, row: &mut [f32]) -> f32 {
    let (max, _) = max_and_sum(s, row);
    exp_and_sum_less(s, row, max)
}

/// The same, where the largest is known.
#[inline(always)]
fn exp_and_sum_less<S: Simd>(s: S, row: &mut [f32], max: f32) -> f32 {
    let mut chunks = row.chunks_exact_mut(S::LANES);
    let mut total = s.splat(0.0);
    for chunk in &mut chunks {
        let y = math::exp(s, s.sub(s.load(chunk), s.splat(max)));
        total = s.add(total, y);
        s.store(chunk, y);
    }
    let rest = chunks.into_remainder();
    map(s, rest, &ExpLess(max));
    s.sum(total) + rest.iter().sum::<f32>()
}

struct LogSumExp<'a> {
    row: &'a [f32],
}

impl Kernel for LogSumExp<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (max, _) = max_and_sum(s, self.row);
        let chunks = self.row.chunks_exact(S::LANES);
        let mut rest = [0.0f32; crate::simd::MAX_LANES];
        let n = chunks.remainder().len();
        rest[..n].copy_from_slice(chunks.remainder());
        map(s, &mut rest[..n], &ExpLess(max));
        let mut total = s.splat(0.0);
        for chunk in chunks {
            total = s.add(total, math::exp(s, s.sub(s.load(chunk), s.splat(max))));
        }
        max + (s.sum(total) + rest[..n].iter().sum::<f32>()).ln()
    }
}

struct MaxAndSum<'a> {
    row: &'a [f32],
}

impl Kernel for MaxAndSum<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        max_and_sum(s, self.row)
    }
}

#[inline(always)]
fn max_and_sum<S: Simd>(s: S, row: &[f32]) -> (f32, f32) {
    let chunks = row.chunks_exact(S::LANES);
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
    for &x in chunks.remainder() {
        max = if x > max { x } else { max };
        sum += x;
    }
    let (mut maxima, mut sums) = (s.splat(max), s.splat(0.0));
    for chunk in chunks {
        let x = s.load(chunk);
        maxima = s.max(x, maxima);
        sums = s.add(sums, x);
    }
    (s.max_of(maxima), s.sum(sums) + sum)
}
