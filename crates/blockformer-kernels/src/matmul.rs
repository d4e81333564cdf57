//! Products with packed matrices: `y = activation(x W + bias)`, then stored, added or multiplied.
//!
//! The work is cut into panels of 32 columns and chunks of rows, which threads take. A task walks its panels; in a
//! panel it takes as many inputs as fit the first-level cache, and for these all its rows, a register tile at a time,
//! and asks for the next weights meanwhile. Rows that are multiplied in float32 are first copied into the order in which
//! tiles read them, unless they are so few that they wait for weights from memory: these are faster read from front to back, by
//! tiles that span the panel. With a single row that is one walk through the weights, two panels at a time.
//!
//! However the work is cut, every number is summed in the same order, input after input from zero (of quantised
//! weights, group after group, each from zero and then scaled, with 4 bits after its minimum; with AMX, 32 inputs from
//! zero, then the next): the rows beside a row change no bit of it.
#![allow(unsafe_code)] // Threads write disjoint columns of one output.

#[cfg(target_arch = "x86_64")]
mod bfloat16;
mod floats;
mod inputs;
mod integer;
mod interleaved;
mod likeliest;
mod rounded;
mod tiles;

use std::ops::Range;

use rayon::prelude::*;

use crate::activation::{Activation, apply};
use crate::packed::{PackedMatrix, Panels};
use crate::simd::{Bf16Kernel, Kernel, PANEL, Simd};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Bf16Simd, Tiles};
use crate::{Level, Workspace};
#[cfg(target_arch = "x86_64")]
use bfloat16::Pairs;
pub(crate) use inputs::Inputs;
use integer::Quantised;
pub(crate) use likeliest::Candidate;
pub use likeliest::likeliest;
use tiles::{Block, Weights, tiles};

/// Rows of a task at most; their sums are kept on its stack.
const MAX_ROWS: usize = 192;
/// Rows of a task at least, where there are so many.
const LEAST_ROWS: usize = 96;
/// Rows of a tile of AMX.
const TILE_ROWS: usize = 16;
/// Bytes of a task's rows of `x`, which should stay in the second-level cache.
const ROW_BYTES: usize = 384 << 10;
/// Multiplications that are worth a thread's attention.
const TASK: usize = 1 << 17;

/// What becomes of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Store {
    /// It is written.
    #[default]
    Write,
    /// It is added to what is there: the residual connection.
    Add,
    /// What is there is multiplied by it: the gate of a gated feed-forward network.
    Multiply,
}

/// What is done with a product before it leaves the registers' neighbourhood.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added first, one number a column.
    pub bias: Option<&'a [f32]>,
    /// Applied second.
    pub activation: Activation,
    /// How the result meets the output.
    pub store: Store,
}

/// `out = activation(x W + bias)` for rows of `x`, with several threads where that pays; see [`Epilogue`].
///
/// # Shapes
/// - `x`: `[rows, n_inputs]`
/// - `out`: `[rows, n_outputs]`
///
/// # Panics
/// If `x`, `out` and the bias do not fit `weights`.
pub fn matmul(
    level: Level,
    x: &[f32],
    weights: &PackedMatrix,
    epilogue: Epilogue<'_>,
    workspace: &mut Workspace,
    out: &mut [f32],
) {
    let (n_inputs, n_outputs) = (weights.n_inputs(), weights.n_outputs());
    assert!(x.len().is_multiple_of(n_inputs), "{} numbers are not rows of {n_inputs} inputs", x.len());
    let rows = x.len() / n_inputs;
    assert_eq!(out.len(), rows * n_outputs, "the output of {rows} rows of {n_outputs}");
    if let Some(bias) = epilogue.bias {
        assert_eq!(bias.len(), n_outputs, "the bias of {n_outputs} outputs");
    }
    if rows == 0 {
        return;
    }
    let chunk = chunk(level, rows, weights);
    let out = Output { first: out.as_mut_ptr(), n_outputs };
    let tasks = rows.div_ceil(chunk) * n_outputs.div_ceil(PANEL);
    let inputs = workspace.inputs.fill(level, x, weights, chunk);
    let run = |range: Range<usize>| {
        Task { x, inputs, weights, epilogue, sink: Sink::Out(&out), chunk, range }.run_on(level);
    };
    match pieces(tasks, chunk * n_inputs * PANEL) {
        1 => run(0..tasks),
        pieces => (0..pieces).into_par_iter().for_each(|piece| run(part(tasks, piece, pieces))),
    }
}

/// Rows of a task: about as many in each, so many that weights are not read too often, and not more than a cache holds;
/// whole tiles of rows, where these are multiplied in tiles.
fn chunk(level: Level, rows: usize, weights: &PackedMatrix) -> usize {
    let most = (ROW_BYTES / (4 * weights.n_inputs())).clamp(LEAST_ROWS, MAX_ROWS);
    let chunk = rows.div_ceil(rows.div_ceil(most));
    let tiles = matches!(weights.panels, Panels::Bf16(_)) && level.multiplies_tiles();
    if tiles { chunk.next_multiple_of(TILE_ROWS) } else { chunk }
}

/// Into how many pieces tasks of so many multiplications each are cut: a few a thread even out what other processes
/// take.
fn pieces(tasks: usize, multiplications: usize) -> usize {
    let per_task = (TASK / multiplications).max(1);
    let threads = rayon::current_num_threads();
    if tasks <= per_task || threads == 1 { 1 } else { tasks.div_ceil(per_task).min(4 * threads) }
}

/// The tasks of one piece.
fn part(tasks: usize, piece: usize, pieces: usize) -> Range<usize> {
    tasks * piece / pieces..tasks * (piece + 1) / pieces
}

/// Where products go.
enum Sink<'a> {
    /// Into the output.
    Out(&'a Output),
    /// Nowhere: the largest of each row is kept.
    Largest(&'a mut [Candidate]),
}

/// Where the tasks write.
struct Output {
    first: *mut f32,
    n_outputs: usize,
}

// SAFETY: `part` hands out slices that overlap for no two tasks (see there); numbers may be sent between threads.
unsafe impl Sync for Output {}

impl Output {
    /// Columns of one row.
    ///
    /// # Safety
    /// The row and columns lie in the output, and nobody else holds any of them.
    #[expect(clippy::mut_from_ref, reason = "the caller answers for it")]
    unsafe fn part(&self, row: usize, first_column: usize, columns: usize) -> &mut [f32] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.n_outputs + first_column), columns) }
    }
}

/// Panels times chunks of rows, numbered chunk by chunk.
struct Task<'a> {
    x: &'a [f32],
    /// The same as products want it.
    inputs: &'a Inputs,
    weights: &'a PackedMatrix,
    epilogue: Epilogue<'a>,
    sink: Sink<'a>,
    chunk: usize,
    range: Range<usize>,
}

impl Task<'_> {
    fn run_on(self, level: Level) {
        match &self.weights.panels {
            Panels::F32(_) => level.run(Floats(self)),
            Panels::Bf16(_) => level.run_bf16(Bf16(self)),
            Panels::Int8 { .. } | Panels::Int4 { .. } => level.run_integers(Integers(self)),
        }
    }
}

/// A task with float32 weights.
struct Floats<'a>(Task<'a>);
/// A task with bfloat16 weights.
struct Bf16<'a>(Task<'a>);
/// A task with quantised weights.
struct Integers<'a>(Task<'a>);

impl Kernel for Floats<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if let Panels::F32(rows) = &self.0.weights.panels {
            floats::products_of_f32(s, &mut self.0, rows);
        }
    }
}

impl Kernel for Integers<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (weights, rows) = (self.0.weights, &self.0.inputs.rounded);
        match &weights.panels {
            Panels::Int8 { codes, scales } => products(s, &mut self.0, &Quantised { codes, scales, rows }),
            Panels::Int4 { codes, scales } => products(s, &mut self.0, &Quantised { codes, scales, rows }),
            Panels::F32(_) | Panels::Bf16(_) => {}
        }
    }
}

impl Bf16Kernel for Bf16<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if let Panels::Bf16(rows) = &self.0.weights.panels {
            floats::products(s, &mut self.0, rows);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run_pairs<S: Bf16Simd>(mut self, s: S) {
        if let Panels::Bf16(pairs) = &self.0.weights.panels {
            let rows = &self.0.inputs.bf16;
            products(s, &mut self.0, &Pairs { pairs, rows });
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run_tiles<S: Simd>(mut self, s: S, tiles: Tiles) {
        if let Panels::Bf16(pairs) = &self.0.weights.panels {
            bfloat16::panels(s, tiles, &mut self.0, pairs);
        }
    }
}

#[inline(always)]
fn products<S: Simd, W: Weights<S> + RowWeights<S>>(s: S, task: &mut Task<'_>, weights: &W) {
    if task.x.len() > task.weights.n_inputs() { panels(s, task, weights) } else { only_row(s, task, weights) }
}

#[inline(always)]
fn only_row<S: Simd, W: RowWeights<S>>(s: S, task: &mut Task<'_>, weights: &W) {
    if const { PANEL / S::LANES == 2 } {
        one_row::<S, W, 2>(s, task, weights);
    } else {
        one_row::<S, W, 4>(s, task, weights);
    }
}

#[inline(always)]
fn panels<S: Simd, W: Weights<S>>(s: S, task: &mut Task<'_>, weights: &W) {
    let (n_inputs, n_outputs) = (task.weights.n_inputs(), task.weights.n_outputs());
    let (n_panels, n_rows) = (n_outputs.div_ceil(PANEL), task.x.len() / n_inputs);
    let mut sums = Sums([[0.0; PANEL]; MAX_ROWS]);
    for index in task.range.clone() {
        let (chunk, panel) = (index / n_panels, index % n_panels);
        let first_row = chunk * task.chunk;
        let sums = &mut sums.0[..task.chunk.min(n_rows - first_row)];
        for first in (0..n_inputs).step_by(weights.inputs()) {
            let inputs = first..(first + weights.inputs()).min(n_inputs);
            tiles(s, weights, &Block { panel, first_row, rows: sums.len(), inputs }, sums);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row and panel belong to an index of the task.
            unsafe { task.finish(s, (first_row + row, panel), sums) };
        }
    }
}

/// The sums of a task's rows with a panel, whole lines of the cache.
#[repr(C, align(64))]
struct Sums([[f32; PANEL]; MAX_ROWS]);

/// A single row needs the weights but once; its sums stay in registers all the way. Two panels at a time, of `C`
/// vectors each, so that additions do not wait for each other.
#[inline(always)]
fn one_row<S: Simd, W: RowWeights<S>, const C: usize>(s: S, task: &mut Task<'_>, weights: &W) {
    let mut panel = task.range.start;
    while panel + 2 <= task.range.end {
        row_panels::<S, W, 2, C>(s, task, weights, panel);
        panel += 2;
    }
    if panel < task.range.end {
        row_panels::<S, W, 1, C>(s, task, weights, panel);
    }
}

/// `P` panels of a single row, from `first` on.
#[inline(always)]
fn row_panels<S: Simd, W: RowWeights<S>, const P: usize, const C: usize>(
    s: S,
    task: &mut Task<'_>,
    weights: &W,
    first: usize,
) {
    let products: [[S::V; C]; P] = weights.row(s, first);
    for (index, product) in products.iter().enumerate() {
        let mut sums = [0.0; PANEL];
        for (v, sums) in product.iter().zip(sums.chunks_exact_mut(S::LANES)) {
            s.store(sums, *v);
        }
        // SAFETY: with one row, panels are indices.
        unsafe { task.finish(s, (0, first + index), &mut sums) };
    }
}

impl Task<'_> {
    /// Bias, activation and store for one row of a panel.
    ///
    /// # Safety
    /// The pair of both belongs to an index in the task's range, so that no other task writes it.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&mut self, s: S, (row, panel): (usize, usize), sums: &mut [f32; PANEL]) {
        let first = panel * PANEL;
        let columns = PANEL.min(self.weights.n_outputs() - first);
        if let Some(bias) = self.epilogue.bias {
            sums.iter_mut().zip(&bias[first..]).for_each(|(sum, bias)| *sum += bias);
        }
        if self.epilogue.activation != Activation::Identity {
            apply(s, self.epilogue.activation, sums);
        }
        let out = match &mut self.sink {
            Sink::Largest(candidates) => return candidates[row].take(s, first, &sums[..columns]),
            // SAFETY: row and columns lie in the output, whose size `matmul` has checked, and belong to this task, as the
            // caller says.
            Sink::Out(out) => unsafe { out.part(row, first, columns) },
        };
        match (self.epilogue.store, out.first_chunk_mut::<PANEL>()) {
            // Vector by vector, by index: the compiler would call functions to copy, or to pair chunks.
            (Store::Write, Some(out)) => {
                for first in (0..PANEL).step_by(S::LANES) {
                    s.store(&mut out[first..], s.load(&sums[first..]));
                }
            }
            (Store::Write, None) => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum),
            (Store::Add, _) => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum),
            (Store::Multiply, _) => out.iter_mut().zip(sums).for_each(|(out, sum)| *out *= *sum),
        }
    }
}

/// Weights of one precision, and the only row they meet.
trait RowWeights<S: Simd> {
    /// The products of the only row with `P` panels, from `first` on, each of `C` vectors.
    fn row<const P: usize, const C: usize>(&self, s: S, first: usize) -> [[S::V; C]; P];
}
