//! Products in float32, with weights of float32 or bfloat16.
#![allow(unsafe_code)] // Numbers are read without a check in the innermost loops.

use std::ops::Range;

use super::interleaved::{self, FEW_ROWS};
use super::tiles::{Block, VECTORS, Weights, begin, further_on, keep};
use super::{RowWeights, Task};
use crate::packed::{BF16_INPUTS, Bf16Pairs, F32Row, n_pairs};
use crate::simd::{PANEL, Simd};

/// Inputs of one step of a loop over interleaved rows: several, so that it is fast wherever it lies in the lines of the cache
/// that its instructions come from.
const TOGETHER: usize = 4;

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

/// Adds rows of `x` with weights, input after input.
#[inline(always)]
fn dot<S: Simd, const R: usize, const C: usize>(s: S, x: &[&[f32]; R], rows: &[F32Row], sums: &mut [[S::V; C]; R]) {
    for x in x {
        assert_eq!(x.len(), rows.len(), "as many inputs as weights in every row");
    }
    let mut acc = *sums;
    for (k, row) in rows.iter().enumerate() {
        let mut inputs = [s.splat(0.0); R];
        for (of_x, x) in inputs.iter_mut().zip(x) {
            // SAFETY: `k < rows.len()`, the length of all rows of `x`.
            *of_x = s.splat(unsafe { *x.get_unchecked(k) });
        }
        for c in 0..C {
            let w = row.load(s, c, 0);
            for (acc, x) in acc.iter_mut().zip(&inputs) {
                acc[c] = s.mul_add(*x, w, acc[c]);
            }
        }
    }
    *sums = acc;
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

/// A task: an only row as it is, more interleaved.
#[inline(always)]
pub(super) fn products<S: Simd, W: Row>(s: S, task: &mut Task<'_>, rows: &[W]) {
    let (x, n_inputs, chunk) = (task.x, task.weights.n_inputs(), task.chunk);
    if interleaved::serves(chunk, task.weights) {
        let x = &task.inputs.interleaved.rows()[..x.len()];
        let inputs = interleaved::inputs(chunk);
        super::panels(s, task, &Interleaved { weights: Plain { x, n_inputs, rows }, inputs });
    } else {
        super::only_row(s, task, &Plain { x, n_inputs, rows });
    }
}

/// A task with float32 weights: a few rows are left as they are, too.
#[inline(always)]
pub(super) fn products_of_f32<S: Simd>(s: S, task: &mut Task<'_>, rows: &[F32Row]) {
    let (x, n_inputs) = (task.x, task.weights.n_inputs());
    if (2..=FEW_ROWS).contains(&task.chunk) {
        super::panels(s, task, &Plain { x, n_inputs, rows });
    } else {
        products(s, task, rows);
    }
}

/// The weights of all panels, and the rows they meet.
struct Plain<'a, W> {
    x: &'a [f32],
    n_inputs: usize,
    rows: &'a [W],
}

impl<'a, W: Row> Plain<'a, W> {
    #[inline(always)]
    fn panel(&self, index: usize) -> &'a [W] {
        let n = if const { W::INPUTS == 1 } { self.n_inputs } else { n_pairs(self.n_inputs) };
        &self.rows[index * n..][..n]
    }

    #[inline(always)]
    fn block(&self, block: &Block) -> &'a [W] {
        &self.panel(block.panel)[block.inputs.start / W::INPUTS..block.inputs.end.div_ceil(W::INPUTS)]
    }
}

impl Plain<'_, F32Row> {
    /// Adds the products of a block with `R` rows, from `row` on, and all `C` vectors of a panel.
    #[inline(always)]
    fn add_block<S: Simd, const R: usize, const C: usize>(
        &self,
        s: S,
        block: &Block,
        row: usize,
        sums: &mut [[f32; PANEL]; R],
    ) {
        let mut x = [&self.x[..0]; R];
        for (index, x) in x.iter_mut().enumerate() {
            let first = (block.first_row + row + index) * self.n_inputs + block.inputs.start;
            *x = &self.x[first..][..block.inputs.len()];
        }
        let mut acc: [[S::V; C]; R] = begin(s, block, 0, sums);
        dot(s, &x, self.block(block), &mut acc);
        keep(s, &acc, 0, sums);
    }
}

/// Tiles that span the panel, as few rows wait for weights from memory: they read them from there once, from front to back.
impl<S: Simd> Weights<S> for Plain<'_, F32Row> {
    const SPANS_PANEL: bool = true;
    const ROWS: usize = {
        let rows = VECTORS * S::TILE_ROWS * S::LANES / PANEL;
        if rows < FEW_ROWS { rows } else { FEW_ROWS }
    };

    #[inline(always)]
    fn product<const R: usize>(&self, s: S, block: &Block, (row, _): (usize, usize), sums: &mut [[f32; PANEL]; R]) {
        if const { PANEL / S::LANES == 2 } {
            self.add_block::<S, R, 2>(s, block, row, sums);
        } else {
            self.add_block::<S, R, 4>(s, block, row, sums);
        }
    }

    #[inline(always)]
    fn inputs(&self) -> usize {
        128
    }
}

impl<S: Simd, W: Row> RowWeights<S> for Plain<'_, W> {
    #[inline(always)]
    fn row<const P: usize, const C: usize>(&self, s: S, first: usize) -> [[S::V; C]; P] {
        let mut panels = [&self.rows[..0]; P];
        for (index, panel) in panels.iter_mut().enumerate() {
            *panel = self.panel(first + index);
        }
        dot_row(s, self.x, &panels)
    }
}

/// The same with interleaved rows.
struct Interleaved<'a, W> {
    weights: Plain<'a, W>,
    /// Inputs of a block.
    inputs: usize,
}

impl<S: Simd, W: Row> Weights<S> for Interleaved<'_, W> {
    const SPANS_PANEL: bool = false;
    const ROWS: usize = S::TILE_ROWS;

    #[inline(always)]
    fn product<const R: usize>(
        &self,
        s: S,
        block: &Block,
        (row, vector): (usize, usize),
        sums: &mut [[f32; PANEL]; R],
    ) {
        let Block { first_row, rows, ref inputs, .. } = *block;
        let first = first_row * self.weights.n_inputs + inputs.start * rows + row * inputs.len();
        let (x, _) = self.weights.x[first..][..R * inputs.len()].as_chunks();
        let mut acc: [[S::V; VECTORS]; R] = begin(s, block, vector, sums);
        dot_interleaved(s, x, self.weights.block(block), vector, &mut acc);
        keep(s, &acc, vector, sums);
    }

    #[inline(always)]
    fn inputs(&self) -> usize {
        self.inputs
    }

    #[inline(always)]
    fn ahead(&self, block: &Block) -> Option<Range<*const u8>> {
        let step = self.weights.panel(block.panel).len().min(self.inputs / W::INPUTS);
        Some(further_on(self.weights.block(block), step))
    }
}

/// Adds interleaved rows of `x` with weights, input after input.
#[inline(always)]
fn dot_interleaved<S: Simd, W: Row, const R: usize, const C: usize>(
    s: S,
    x: &[[f32; R]],
    rows: &[W],
    vector: usize,
    sums: &mut [[S::V; C]; R],
) {
    let mut acc = *sums;
    const { assert!(TOGETHER.is_multiple_of(W::INPUTS) && BF16_INPUTS.is_multiple_of(W::INPUTS), "whole rows of weights") };
    let (whole, rest) = x.as_chunks::<TOGETHER>();
    let (rows, last) = rows.split_at(whole.len() * TOGETHER / W::INPUTS);
    for (x, rows) in whole.iter().zip(rows.chunks_exact(const { TOGETHER / W::INPUTS })) {
        for (input, x) in x.iter().enumerate() {
            add_interleaved(s, x, &rows[input / W::INPUTS], (vector, input % W::INPUTS), &mut acc);
        }
    }
    for (input, x) in rest.iter().enumerate() {
        add_interleaved(s, x, &last[input / W::INPUTS], (vector, input % W::INPUTS), &mut acc);
    }
    *sums = acc;
}

/// Adds one input of rows of `x` with its weights: those of `row` at its input `input`.
#[inline(always)]
fn add_interleaved<S: Simd, W: Row, const R: usize, const C: usize>(
    s: S,
    x: &[f32; R],
    row: &W,
    (vector, input): (usize, usize),
    acc: &mut [[S::V; C]; R],
) {
    let mut w = [s.splat(0.0); C];
    for (c, w) in w.iter_mut().enumerate() {
        *w = row.load(s, vector + c, input);
    }
    for (acc, x) in acc.iter_mut().zip(x) {
        let x = s.splat(*x);
        for (acc, w) in acc.iter_mut().zip(&w) {
            *acc = s.mul_add(x, *w, *acc);
        }
    }
}
