//! Weight matrices laid out once for products with few or many rows.
//!
//! The columns are cut into panels of 32; a panel holds its 32 columns input by input, so a product reads the weights
//! from front to back, whichever level runs it. Missing columns of the last panel are zero.

use rayon::prelude::*;

use crate::quantised::{self, CodePair, GROUP, Int4Pair, Int8Pair};
use crate::simd::PANEL;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Precision {
    /// float32: the weights as they are.
    #[default]
    F32,
    /// bfloat16, rounded to nearest: half the bytes.
    Bf16,
    /// 8 bits, symmetric, one float32 scale for 32 weights of a column: 9 bits a weight. Products are computed in
    /// integers, with inputs rounded to 16 bits in groups of 32.
    Int8,
    /// 4 bits, one float32 scale for 32 weights of a column, chosen for the least squared error: 5 bits a weight.
    /// Products as with 8 bits.
    Int4,
}

impl Precision {
    /// All precisions, widest first.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4];

    /// `f32`, `bf16`, `int8` or `int4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// 32 columns at one input.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct F32Row(pub(crate) [f32; PANEL]);

/// 32 columns at one input, bfloat16.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Bf16Row(pub(crate) [u16; PANEL]);

#[derive(Debug, Clone)]
pub(crate) enum Panels {
    F32(Vec<F32Row>),
    Bf16(Vec<Bf16Row>),
    Int8 { codes: Vec<Int8Pair>, scales: Vec<F32Row> },
    Int4 { codes: Vec<Int4Pair>, scales: Vec<F32Row> },
}

/// A matrix of `n_inputs x n_outputs` weights, ready for [`matmul`](crate::matmul).
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    n_inputs: usize,
    n_outputs: usize,
    pub(crate) panels: Panels,
}

impl PackedMatrix {
    /// Packs weights stored input by input (`[n_inputs, n_outputs]`, so that `y = x W`).
    ///
    /// # Panics
    /// If a size is zero or `weights` is not `n_inputs · n_outputs` numbers.
    pub fn new(weights: &[f32], n_inputs: usize, n_outputs: usize, precision: Precision) -> Self {
        check(weights, n_inputs, n_outputs);
        Self::pack(n_inputs, n_outputs, precision, |input, first, row| {
            let start = input * n_outputs + first;
            row.copy_from_slice(&weights[start..start + row.len()]);
        })
    }

    /// Packs weights stored output by output (`[n_outputs, n_inputs]`, so that `y = x Wᵀ`), as an embedding table that
    /// is also the output projection is.
    ///
    /// # Panics
    /// If a size is zero or `weights` is not `n_inputs · n_outputs` numbers.
    pub fn transposed(weights: &[f32], n_inputs: usize, n_outputs: usize, precision: Precision) -> Self {
        check(weights, n_inputs, n_outputs);
        Self::pack(n_inputs, n_outputs, precision, |input, first, row| {
            for (column, weight) in row.iter_mut().enumerate() {
                *weight = weights[(first + column) * n_inputs + input];
            }
        })
    }

    /// `fill(input, first column, row)` writes consecutive columns of one input.
    fn pack(
        n_inputs: usize,
        n_outputs: usize,
        precision: Precision,
        fill: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) -> Self {
        let panel = |index: usize| -> Vec<F32Row> {
            let first = index * PANEL;
            let columns = PANEL.min(n_outputs - first);
            let mut rows = vec![F32Row([0.0; PANEL]); n_inputs];
            rows.iter_mut().enumerate().for_each(|(input, row)| fill(input, first, &mut row.0[..columns]));
            rows
        };
        let indices = (0..n_outputs.div_ceil(PANEL)).into_par_iter();
        let panels = match precision {
            Precision::F32 => Panels::F32(collect(indices.map(panel))),
            Precision::Bf16 => Panels::Bf16(collect(
                indices.map(|index| panel(index).iter().map(|row| Bf16Row(row.0.map(bf16))).collect()),
            )),
            Precision::Int8 => {
                let (codes, scales): (Vec<_>, Vec<_>) = indices.map(|i| quantised::int8(&panel(i))).unzip();
                Panels::Int8 { codes: codes.concat(), scales: scales.concat() }
            }
            Precision::Int4 => {
                let (codes, scales): (Vec<_>, Vec<_>) = indices.map(|i| quantised::int4(&panel(i))).unzip();
                Panels::Int4 { codes: codes.concat(), scales: scales.concat() }
            }
        };
        Self { n_inputs, n_outputs, panels }
    }

    /// Inputs, the length of a row of `x`.
    pub fn n_inputs(&self) -> usize {
        self.n_inputs
    }

    /// Outputs, the length of a row of `y`.
    pub fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    /// How the weights are stored.
    pub fn precision(&self) -> Precision {
        match self.panels {
            Panels::F32(_) => Precision::F32,
            Panels::Bf16(_) => Precision::Bf16,
            Panels::Int8 { .. } => Precision::Int8,
            Panels::Int4 { .. } => Precision::Int4,
        }
    }

    /// Bytes of the weights and their scales: what a product with one row reads.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(rows) => size_of_val(rows.as_slice()),
            Panels::Bf16(rows) => size_of_val(rows.as_slice()),
            Panels::Int8 { codes, scales } => size_of_val(codes.as_slice()) + size_of_val(scales.as_slice()),
            Panels::Int4 { codes, scales } => size_of_val(codes.as_slice()) + size_of_val(scales.as_slice()),
        }
    }

    /// The weights as products see them, `[n_inputs, n_outputs]`: rounded to the precision they are stored in.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.n_inputs * self.n_outputs];
        for (input, row) in weights.chunks_exact_mut(self.n_outputs).enumerate() {
            for (output, weight) in row.iter_mut().enumerate() {
                *weight = self.weight(input, output);
            }
        }
        weights
    }

    fn weight(&self, input: usize, output: usize) -> f32 {
        let (panel, column) = (output / PANEL, output % PANEL);
        let index = panel * self.n_inputs + input;
        let pair = panel * self.n_inputs.div_ceil(2) + input / 2;
        let scale = |scales: &[F32Row]| scales[panel * self.n_inputs.div_ceil(GROUP) + input / GROUP].0[column];
        match &self.panels {
            Panels::F32(rows) => rows[index].0[column],
            Panels::Bf16(rows) => f32::from_bits(u32::from(rows[index].0[column]) << 16),
            Panels::Int8 { codes, scales } => f32::from(codes[pair].code(column, input % 2)) * scale(scales),
            Panels::Int4 { codes, scales } => f32::from(codes[pair].code(column, input % 2)) * scale(scales),
        }
    }
}

fn check(weights: &[f32], n_inputs: usize, n_outputs: usize) {
    assert!(n_inputs > 0 && n_outputs > 0, "a matrix of {n_inputs} x {n_outputs} weights");
    assert_eq!(weights.len(), n_inputs * n_outputs, "weights of a matrix of {n_inputs} x {n_outputs}");
}

fn collect<T: Clone + Send + Sync>(panels: impl ParallelIterator<Item = Vec<T>>) -> Vec<T> {
    let panels: Vec<Vec<T>> = panels.collect();
    panels.concat()
}

/// Rounds to the nearest bfloat16, ties to even.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}
