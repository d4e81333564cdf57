//! The largest output of each row, without the others being written anywhere.

use rayon::prelude::*;

use super::{Epilogue, Sink, Task, chunk, part, pieces};
use crate::packed::PackedMatrix;
use crate::simd::{PANEL, Simd};
use crate::{Level, Workspace};

/// The largest of some columns of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    largest: f32,
    column: usize,
    /// The sum of the columns, which is not a number if one is not, or if infinities of both signs meet.
    sum: f32,
}

impl Candidate {
    const NONE: Self = Self { largest: f32::NEG_INFINITY, column: 0, sum: 0.0 };

    /// Takes in columns, which come in order.
    #[inline(always)]
    pub(super) fn take<S: Simd>(&mut self, s: S, first: usize, columns: &[f32]) {
        let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0);
        let whole = columns.chunks_exact(S::LANES);
        for x in whole.remainder() {
            largest = if *x > largest { *x } else { largest };
            sum += x;
        }
        if whole.len() > 0 {
            let (mut most, mut all) = (s.splat(f32::NEG_INFINITY), s.splat(0.0));
            for x in whole {
                let x = s.load(x);
                (most, all) = (s.max(most, x), s.add(all, x));
            }
            let most = s.max_of(most);
            largest = if most > largest { most } else { largest };
            sum += s.sum(all);
        }
        self.sum += sum;
        if largest > self.largest {
            self.largest = largest;
            self.column = first + columns.iter().position(|x| *x == largest).unwrap_or(0);
        }
    }

    fn with(self, next: Self) -> Self {
        let best = if next.largest > self.largest { next } else { self };
        Self { sum: self.sum + next.sum, ..best }
    }
}

/// The first of the largest outputs of each row of `x W + bias`: what [`argmax`](crate::argmax) finds in the rows that
/// [`matmul`](crate::matmul) gives, `None` where that finds nothing. All is computed before it returns: the iterator only
/// puts together what parts of the columns have found, which is in the workspace.
///
/// # Shapes
/// - `x`: `[rows, n_inputs]`
/// - returns: one a row
///
/// # Panics
/// If `x` and the bias do not fit `weights`.
pub fn likeliest<'w>(
    level: Level,
    x: &[f32],
    weights: &PackedMatrix,
    bias: Option<&[f32]>,
    workspace: &'w mut Workspace,
) -> impl ExactSizeIterator<Item = Option<usize>> + use<'w> {
    let (n_inputs, n_outputs) = (weights.n_inputs(), weights.n_outputs());
    assert!(x.len().is_multiple_of(n_inputs), "{} numbers are not rows of {n_inputs} inputs", x.len());
    if let Some(bias) = bias {
        assert_eq!(bias.len(), n_outputs, "the bias of {n_outputs} outputs");
    }
    let rows = x.len() / n_inputs;
    let Workspace { inputs, candidates, .. } = workspace;
    candidates.clear();
    if rows > 0 {
        let chunk = chunk(level, rows, weights);
        let tasks = rows.div_ceil(chunk) * n_outputs.div_ceil(PANEL);
        let inputs = inputs.fill(level, x, weights, chunk);
        let epilogue = Epilogue { bias, ..Epilogue::default() };
        let pieces = pieces(tasks, chunk * n_inputs * PANEL);
        // Each piece has candidates of its own; those of a row come in the order of its columns.
        candidates.resize(pieces * rows, Candidate::NONE);
        candidates.par_chunks_mut(rows).enumerate().for_each(|(piece, candidates)| {
            let (sink, range) = (Sink::Largest(candidates), part(tasks, piece, pieces));
            Task { x, inputs, weights, epilogue, sink, chunk, range }.run_on(level);
        });
    }
    let candidates = &candidates[..];
    let of = move |row: usize| candidates[row..].iter().step_by(rows).copied().reduce(Candidate::with);
    let found = |best: Candidate| (!best.sum.is_nan() && best.largest.is_finite()).then_some(best.column);
    (0..rows).map(move |row| of(row).and_then(found))
}
