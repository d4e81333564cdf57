//! Products in float32, with weights of float32 or bfloat16.
#![allow(unsafe_code)] // Numbers are read without a check in the innermost loops.

use super::{Block, Weights, begin, keep};
use crate::packed::{Bf16Pairs, F32Row, n_pairs};
use crate::simd::{PANEL, Simd};

/// 32 columns at one or two consecutive inputs.
pub(super) trait Row: Copy {
    /// Inputs.
    const INPUTS: usize;

    /// Vector `index` of the columns at an input.
    fn load<S: Simd>(&self, s: S, index: usize, input: usize) -> S::V;

    /// Adds the products of all inputs with vector `index` of the columns, input after input.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, index: usize, x: &[S::V; 2], mut to: S::V) -> S::V {
        for (input, x) in x[..Self::INPUTS].iter().enumerate() {
            to = s.mul_add(*x, self.load(s, index, input), to);
        }
        to
    }
}

impl Row for F32Row {
    const INPUTS: usize = 1;

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, index: usize, _: usize) -> S::V {
        s.load(&self.0[index * S::LANES..])
    }
}

impl Row for Bf16Pairs {
    const INPUTS: usize = 2;

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, index: usize, input: usize) -> S::V {
        let pairs = &self.0[index * S::LANES..];
        if input == 0 { s.load_bf16_first(pairs) } else { s.load_bf16_second(pairs) }
    }
}

/// Adds rows of `x` with weights, without scales, input after input.
#[inline(always)]
fn dot<S: Simd, W: Row, const R: usize, const C: usize>(
    s: S,
    x: &[&[f32]; R],
    rows: &[W],
    vector: usize,
    sums: &mut [[S::V; C]; R],
) {
    let n_inputs = x[0].len();
    for x in x {
        assert_eq!(x.len(), n_inputs, "as many inputs in every row");
    }
    let (whole, rest) = rows.split_at(n_inputs / W::INPUTS);
    let mut acc = *sums;
    for (k, row) in whole.iter().enumerate() {
        for input in 0..W::INPUTS {
            // SAFETY: the input is one of `whole.len() · W::INPUTS <= n_inputs`, the length of all rows.
            unsafe { add_input(s, x, k * W::INPUTS + input, row, (vector, input), &mut acc) };
        }
    }
    for input in 0..n_inputs % W::INPUTS {
        // SAFETY: the input is one of `n_inputs`, the length of all rows.
        unsafe { add_input(s, x, whole.len() * W::INPUTS + input, &rest[0], (vector, input), &mut acc) };
    }
    *sums = acc;
}

/// Adds input `k` of rows of `x` with its weights: those of `row` at its input `input`.
///
/// # Safety
/// All rows of `x` have more than `k` inputs.
#[inline(always)]
unsafe fn add_input<S: Simd, W: Row, const R: usize, const C: usize>(
    s: S,
    x: &[&[f32]; R],
    k: usize,
    row: &W,
    (vector, input): (usize, usize),
    acc: &mut [[S::V; C]; R],
) {
    let mut w = [s.splat(0.0); C];
    for (c, w) in w.iter_mut().enumerate() {
        *w = row.load(s, vector + c, input);
    }
    for (acc, x) in acc.iter_mut().zip(x) {
        // SAFETY: as the caller says.
        let x = s.splat(unsafe { *x.get_unchecked(k) });
        for (acc, w) in acc.iter_mut().zip(&w) {
            *acc = s.mul_add(x, *w, *acc);
        }
    }
}

/// One row of `x` with the weights of `P` panels, without scales, input after input.
#[inline(always)]
fn dot_row<S: Simd, W: Row, const P: usize, const C: usize>(s: S, x: &[f32], panels: &[&[W]; P]) -> [[S::V; C]; P] {
    let whole = x.len() / W::INPUTS;
    for panel in panels {
        assert!(panel.len() >= x.len().div_ceil(W::INPUTS), "as many weights as inputs");
    }
    let mut acc = [[s.splat(0.0); C]; P];
    for k in 0..whole {
        let mut inputs = [s.splat(0.0); 2];
        for (input, of_x) in inputs[..W::INPUTS].iter_mut().enumerate() {
            // SAFETY: `k < whole`, so all inputs of number `k` are there.
            *of_x = s.splat(unsafe { *x.get_unchecked(k * W::INPUTS + input) });
        }
        for (acc, panel) in acc.iter_mut().zip(panels) {
            // SAFETY: `k < whole <= panel.len()`.
            let row = unsafe { panel.get_unchecked(k) };
            for (c, acc) in acc.iter_mut().enumerate() {
                *acc = row.add(s, c, &inputs, *acc);
            }
        }
    }
    for (input, x) in x[whole * W::INPUTS..].iter().enumerate() {
        for (acc, panel) in acc.iter_mut().zip(panels) {
            for (c, acc) in acc.iter_mut().enumerate() {
                *acc = s.mul_add(s.splat(*x), panel[whole].load(s, c, input), *acc);
            }
        }
    }
    acc
}

/// The weights of all panels, and the rows they meet.
pub(super) struct Plain<'a, W> {
    pub(super) x: &'a [f32],
    pub(super) n_inputs: usize,
    pub(super) rows: &'a [W],
}

impl<'a, W: Row> Plain<'a, W> {
    #[inline(always)]
    fn panel(&self, index: usize) -> &'a [W] {
        let n = if const { W::INPUTS == 1 } { self.n_inputs } else { n_pairs(self.n_inputs) };
        &self.rows[index * n..][..n]
    }
}

impl<S: Simd, W: Row> Weights<S> for Plain<'_, W> {
    const INTEGERS: bool = false;
    /// 32 KiB of float32, of which a pass over two vectors of eight takes half.
    const INPUTS: usize = 256;
    const ROWS: usize = S::TILE_ROWS;

    #[inline(always)]
    fn product<const R: usize>(
        &self,
        s: S,
        block: &Block,
        (row, vector): (usize, usize),
        sums: &mut [[f32; PANEL]; R],
    ) {
        let Block { panel, first_row, ref inputs } = *block;
        let mut x = [&self.x[..0]; R];
        for (index, x) in x.iter_mut().enumerate() {
            *x = &self.x[(first_row + row + index) * self.n_inputs + inputs.start..][..inputs.len()];
        }
        let rows = self.panel(panel);
        let mut acc = begin(s, block, vector, sums);
        dot(s, &x, &rows[inputs.start / W::INPUTS..inputs.end.div_ceil(W::INPUTS)], vector, &mut acc);
        keep(s, &acc, vector, sums);
    }

    #[inline(always)]
    fn row<const P: usize, const C: usize>(&self, s: S, first: usize) -> [[S::V; C]; P] {
        let mut panels = [&self.rows[..0]; P];
        for (index, panel) in panels.iter_mut().enumerate() {
            *panel = self.panel(first + index);
        }
        dot_row(s, self.x, &panels)
    }
}
