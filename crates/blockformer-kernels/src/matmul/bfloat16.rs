//! Products of bfloat16, on CPUs that have instructions for them.
//!
//! Rows of `x` are rounded to bfloat16 as the weights are; products of both are exact in float32, and added there: two
//! inputs at a time with AVX-512 BF16, 32 inputs of 16 rows and 16 columns with AMX. Numbers below float32's normal ones
//! count as zeros, as these instructions have it. With AMX all rows are multiplied in tiles, single ones too, so that the
//! rows beside a row change no bit of it.
#![allow(unsafe_code)] // Tiles are in no type of the language.

use std::arch::asm;

use rayon::prelude::*;

use super::rounded::rows_of_a_part;
use super::tiles::{Block, VECTORS, Weights, begin, keep};
use super::{MAX_ROWS, RowWeights, Sums, TILE_ROWS, Task};
use crate::Level;
use crate::packed::{BF16_INPUTS, Bf16Pairs, bf16, n_pairs};
use crate::simd::{Bf16Simd, Kernel, PANEL, Simd, Tiles};
use crate::workspace::grow;

/// Pairs of inputs of a tile, and its columns.
const TILE_PAIRS: usize = BF16_INPUTS / 2;

const _: () = assert!(TILE_ROWS == TILE_PAIRS && PANEL == 2 * TILE_PAIRS && MAX_ROWS.is_multiple_of(2 * TILE_ROWS));

/// Pairs of inputs of a row that a tile takes, in one line of the cache.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([[u16; 2]; TILE_PAIRS]);

/// Rows rounded to bfloat16. Behind the inputs of a row stand zeros, and behind the rows others, which tiles read too.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    /// `[rows, stride]`
    lines: Vec<Line>,
    /// Lines of a row.
    n_lines: usize,
    /// Lines from one row to the next: an odd number, so that the rows of a tile do not fall on the same places of a
    /// cache.
    stride: usize,
}

impl Rows {
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    /// Rounds the rows of `x`.
    pub(super) fn fill(&mut self, level: Level, x: &[f32], n_inputs: usize) {
        self.n_lines = n_pairs(n_inputs) / TILE_PAIRS;
        self.stride = self.n_lines | 1;
        let (n_rows, stride) = (x.len() / n_inputs, self.stride);
        grow(&mut self.lines, n_rows.next_multiple_of(TILE_ROWS) * stride);
        let round = |(lines, x)| level.run(Round { x, n_inputs, lines, stride });
        let rows = rows_of_a_part(n_inputs);
        if n_rows <= rows {
            return round((&mut self.lines[..], x));
        }
        self.lines.par_chunks_mut(rows * stride).zip(x.par_chunks(rows * n_inputs)).for_each(round);
    }

    /// The pairs of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> &[[u16; 2]] {
        pairs(&self.lines[row * self.stride..][..self.n_lines])
    }
}

/// The pairs of lines.
#[inline(always)]
fn pairs(lines: &[Line]) -> &[[u16; 2]] {
    // SAFETY: a line is an array of pairs, without gaps.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * TILE_PAIRS) }
}

struct Round<'a> {
    x: &'a [f32],
    n_inputs: usize,
    lines: &'a mut [Line],
    stride: usize,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (x, lines) in self.x.chunks_exact(self.n_inputs).zip(self.lines.chunks_exact_mut(self.stride)) {
            for (x, line) in x.chunks(BF16_INPUTS).zip(lines) {
                let (rounded, zeros) = line.0.as_flattened_mut().split_at_mut(x.len());
                for (rounded, x) in rounded.iter_mut().zip(x) {
                    *rounded = bf16(*x);
                }
                zeros.fill(0);
            }
        }
    }
}

/// The weights of all panels, and the rows they meet.
pub(super) struct Pairs<'a> {
    pub(super) pairs: &'a [Bf16Pairs],
    pub(super) rows: &'a Rows,
}

impl<'a> Pairs<'a> {
    #[inline(always)]
    fn panel(&self, index: usize) -> &'a [Bf16Pairs] {
        let n_pairs = self.rows.n_lines * TILE_PAIRS;
        &self.pairs[index * n_pairs..][..n_pairs]
    }
}

impl<S: Bf16Simd> Weights<S> for Pairs<'_> {
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
        // Up to the zeros behind the inputs: as a single row, which may turn a negative zero into a positive one.
        let pairs = block.inputs.start / 2..n_pairs(block.inputs.end);
        let mut x = [&self.rows.row(block.first_row + row)[pairs.clone()]; R];
        for (index, x) in x.iter_mut().enumerate() {
            *x = &self.rows.row(block.first_row + row + index)[pairs.clone()];
        }
        let mut acc: [[S::V; VECTORS]; R] = begin(s, block, vector, sums);
        for (k, w) in self.panel(block.panel)[pairs].iter().enumerate() {
            for (acc, x) in acc.iter_mut().zip(x) {
                // SAFETY: rows have as many pairs as weights are walked through.
                let x = s.splat_pair(unsafe { *x.get_unchecked(k) });
                for (c, acc) in acc.iter_mut().enumerate() {
                    *acc = s.dot_pairs(x, s.load_pairs(&w.0[(vector + c) * S::LANES..]), *acc);
                }
            }
        }
        keep(s, &acc, vector, sums);
    }

    /// 32 KiB.
    #[inline(always)]
    fn inputs(&self) -> usize {
        512
    }
}

impl<S: Bf16Simd> RowWeights<S> for Pairs<'_> {
    #[inline(always)]
    fn row<const P: usize, const C: usize>(&self, s: S, first: usize) -> [[S::V; C]; P] {
        let mut panels = [self.panel(first); P];
        for (index, panel) in panels.iter_mut().enumerate().skip(1) {
            *panel = self.panel(first + index);
        }
        let mut acc = [[s.splat(0.0); C]; P];
        for (k, x) in self.rows.row(0).iter().enumerate() {
            let x = s.splat_pair(*x);
            for (acc, panel) in acc.iter_mut().zip(panels) {
                // SAFETY: a panel has as many pairs as a row.
                let w = unsafe { panel.get_unchecked(k) };
                for (c, acc) in acc.iter_mut().enumerate() {
                    *acc = s.dot_pairs(x, s.load_pairs(&w.0[c * S::LANES..]), *acc);
                }
            }
        }
        acc
    }
}

/// The task in tiles.
#[inline(always)]
pub(super) fn panels<S: Simd>(s: S, tiles: Tiles, task: &mut Task<'_>, pairs: &[Bf16Pairs]) {
    /// Tiles of weights that all rows meet before the next, so many that they stay in the first-level cache.
    const LINES: usize = 8;
    let rows = &task.inputs.bf16;
    let weights = Pairs { pairs, rows };
    let (n_panels, n_rows) = (task.weights.n_outputs().div_ceil(PANEL), task.x.len() / task.weights.n_inputs());
    let mut sums = Sums([[0.0; PANEL]; MAX_ROWS]);
    let configured = Configured::new(tiles);
    for index in task.range.clone() {
        let (chunk, panel) = (index / n_panels, index % n_panels);
        let first_row = chunk * task.chunk;
        let wanted = task.chunk.min(n_rows - first_row);
        let sums = &mut sums.0[..wanted.next_multiple_of(TILE_ROWS)];
        sums.fill([0.0; PANEL]);
        for first in (0..rows.n_lines).step_by(LINES) {
            let lines = first..(first + LINES).min(rows.n_lines);
            let weights = &weights.panel(panel)[lines.start * TILE_PAIRS..lines.end * TILE_PAIRS];
            for (index, sums) in sums.chunks_mut(2 * TILE_ROWS).enumerate() {
                let x = &rows.lines[(first_row + index * 2 * TILE_ROWS) * rows.stride + first..];
                configured.add(x, rows.stride, weights, sums);
            }
        }
        for (row, sums) in sums[..wanted].iter_mut().enumerate() {
            // SAFETY: row and panel belong to an index of the task.
            unsafe { task.finish(s, (first_row + row, panel), sums) };
        }
    }
}

/// This thread's tile registers, eight tiles of 16 rows of 64 bytes; released when dropped.
struct Configured(());

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configured {
    #[inline(always)]
    fn new(_: Tiles) -> Self {
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(size_of::<Line>() as u16);
        configuration.rows[..8].fill(TILE_ROWS as u8);
        // SAFETY: `Tiles` exists only where the CPU and the system have AMX; the instruction reads 64 bytes, as many as the
        // configuration has, which is one that AMX allows. Tile registers are used nowhere else.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &raw const configuration,
                options(nostack, readonly, preserves_flags),
            );
        }
        Self(())
    }

    /// Adds the products of 16 or 32 rows of `x`, which are `stride` lines apart, with weights of whole tiles to `sums`.
    #[inline(always)]
    fn add(&self, x: &[Line], stride: usize, weights: &[Bf16Pairs], sums: &mut [[f32; PANEL]]) {
        let (rows, steps) = (sums.len(), weights.len() / TILE_PAIRS);
        assert!(rows == TILE_ROWS || rows == 2 * TILE_ROWS, "whole tiles of rows");
        assert!(steps > 0 && weights.len().is_multiple_of(TILE_PAIRS), "whole tiles of weights");
        assert!(x.len() >= (rows - 1) * stride + steps, "as many inputs as weights");
        if rows == TILE_ROWS {
            // SAFETY: tiles are configured. With each of `steps` steps, 64 bytes of 16 rows of `x` and of two times 16 rows of
            // weights, 128 bytes apart, are read, all of which both have, as asserted; `sums` has 16 rows of 128 bytes. The
            // block names all tile registers it changes.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{sums} + {row} * 1]",
                    "tileloadd tmm1, [{sums} + {row} * 1 + 64]",
                    "2:",
                    "tileloadd tmm4, [{x} + {stride} * 1]",
                    "tileloadd tmm6, [{w} + {row} * 1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w} + {row} * 1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {x}, 64",
                    "add {w}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {row} * 1], tmm0",
                    "tilestored [{sums} + {row} * 1 + 64], tmm1",
                    sums = in(reg) sums.as_mut_ptr(),
                    row = in(reg) size_of::<Bf16Pairs>(),
                    x = inout(reg) x.as_ptr() => _,
                    stride = in(reg) stride * size_of::<Line>(),
                    w = inout(reg) weights.as_ptr() => _,
                    steps = inout(reg) steps => _,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        } else {
            // SAFETY: as above, with 32 rows of `x` and of `sums`.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{sums} + {row} * 1]",
                    "tileloadd tmm1, [{sums} + {row} * 1 + 64]",
                    "tileloadd tmm2, [{sums} + {row} * 1 + 2048]",
                    "tileloadd tmm3, [{sums} + {row} * 1 + 2112]",
                    "2:",
                    "tileloadd tmm4, [{x} + {stride} * 1]",
                    "tileloadd tmm6, [{w} + {row} * 1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w} + {row} * 1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{y} + {stride} * 1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {x}, 64",
                    "add {y}, 64",
                    "add {w}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {row} * 1], tmm0",
                    "tilestored [{sums} + {row} * 1 + 64], tmm1",
                    "tilestored [{sums} + {row} * 1 + 2048], tmm2",
                    "tilestored [{sums} + {row} * 1 + 2112], tmm3",
                    sums = in(reg) sums.as_mut_ptr(),
                    row = in(reg) size_of::<Bf16Pairs>(),
                    x = inout(reg) x.as_ptr() => _,
                    y = inout(reg) x[TILE_ROWS * stride..].as_ptr() => _,
                    stride = in(reg) stride * size_of::<Line>(),
                    w = inout(reg) weights.as_ptr() => _,
                    steps = inout(reg) steps => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}

impl Drop for Configured {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: tiles exist where `self` does.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }
}
