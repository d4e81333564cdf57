//! Weight matrices laid out once for products with few or many rows.
//!
//! The columns are cut into panels of 32; a panel holds its 32 columns input by input, so a product reads the weights
//! from front to back, whichever level runs it. Missing columns of the last panel are zero.

use rayon::prelude::*;

use crate::memory::Memory;
use crate::quantised::{self, Bf16Ranges, Codes, Int4Codes, Int8Codes, Int8Scales};
use crate::simd::PANEL;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Precision {
    /// float32: the weights as they are.
    #[default]
    F32,
    /// bfloat16, rounded to nearest: half the bytes (inputs are filled up to a multiple of 32). Where the CPU multiplies bfloat16 itself (AVX-512 BF16, AMX), inputs
    /// are rounded to it as well; elsewhere they stay float32.
    Bf16,
    /// 8 bits, symmetric, with one float32 scale for 64 weights of a column and the sum of their codes: 9 bits a weight
    /// (inputs are filled up to a multiple of 64). Codes reach from -64 to 64, or less far where the sum of those of one
    /// sign is large: in a third of the groups of trained models, to 56 or so. Weights that nearly all have one sign and
    /// are as large as each other have codes of 16, fewer than [`Int4`](Self::Int4) has for the same range. Products are
    /// computed in integers, with inputs rounded to seven bits in groups of 64, from the least to the largest.
    Int8,
    /// 4 bits: `minimum + code · scale`, where 32 weights of a column share both, in bfloat16, chosen for the least
    /// squared error: 5 bits a weight. A weight of zero among others is in general not kept.
    /// Products are computed in integers, with inputs rounded to eight bits in groups of 32.
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

/// 32 columns at two consecutive inputs, bfloat16, column by column.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Bf16Pairs(pub(crate) [[u16; 2]; PANEL]);

/// Inputs that bfloat16 weights are filled up to a multiple of, with zeros: as many as a tile holds.
pub(crate) const BF16_INPUTS: usize = 32;

/// Pairs of inputs of bfloat16 weights.
pub(crate) fn n_pairs(n_inputs: usize) -> usize {
    n_inputs.next_multiple_of(BF16_INPUTS) / 2
}

#[derive(Debug, Clone)]
pub(crate) enum Panels {
    F32(Memory<F32Row>),
    Bf16(Memory<Bf16Pairs>),
    Int8 { codes: Memory<Int8Codes>, scales: Memory<Int8Scales> },
    Int4 { codes: Memory<Int4Codes>, scales: Memory<Bf16Ranges> },
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
        let panel = |index: usize, rows: &mut [F32Row]| {
            let first = index * PANEL;
            let columns = PANEL.min(n_outputs - first);
            for (input, row) in rows.iter_mut().enumerate() {
                let (row, missing) = row.0.split_at_mut(columns);
                fill(input, first, row);
                missing.fill(0.0);
            }
        };
        let n_panels = n_outputs.div_ceil(PANEL);
        let rows = || vec![F32Row([0.0; PANEL]); n_inputs];
        let panels = match precision {
            Precision::F32 => {
                let mut panels = Memory::<F32Row>::new(n_panels * n_inputs);
                panels.par_chunks_mut(n_inputs).enumerate().for_each(|(index, rows)| panel(index, rows));
                Panels::F32(panels)
            }
            Precision::Bf16 => {
                let n_pairs = n_pairs(n_inputs);
                let mut panels = Memory::<Bf16Pairs>::new(n_panels * n_pairs);
                panels.par_chunks_mut(n_pairs).enumerate().for_each_init(rows, |rows, (index, pairs)| {
                    panel(index, rows);
                    for (input, row) in rows.iter().enumerate() {
                        let pairs = pairs[input / 2].0.iter_mut();
                        pairs.zip(row.0).for_each(|(pair, weight)| pair[input % 2] = bf16(weight));
                    }
                });
                Panels::Bf16(panels)
            }
            Precision::Int8 => {
                let (codes, scales) = quantised(n_inputs, n_panels, panel);
                Panels::Int8 { codes, scales }
            }
            Precision::Int4 => {
                let (codes, scales) = quantised(n_inputs, n_panels, panel);
                Panels::Int4 { codes, scales }
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

    /// Bytes of the weights, their scales and minima: what a product with one row reads.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(rows) => size_of_val(&rows[..]),
            Panels::Bf16(pairs) => size_of_val(&pairs[..]),
            Panels::Int8 { codes, scales } => size_of_val(&codes[..]) + size_of_val(&scales[..]),
            Panels::Int4 { codes, scales } => size_of_val(&codes[..]) + size_of_val(&scales[..]),
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
        match &self.panels {
            Panels::F32(rows) => rows[panel * self.n_inputs + input].0[column],
            Panels::Bf16(pairs) => {
                let pair = pairs[panel * n_pairs(self.n_inputs) + input / 2].0[column];
                f32::from_bits(u32::from(pair[input % 2]) << 16)
            }
            Panels::Int8 { codes, scales } => self.quantised(codes, scales, input, output),
            Panels::Int4 { codes, scales } => self.quantised(codes, scales, input, output),
        }
    }

    fn quantised<C: Codes>(&self, codes: &[C], scales: &[C::Scales], input: usize, output: usize) -> f32 {
        let (panel, column) = (output / PANEL, output % PANEL);
        let scales = &scales[panel * self.n_inputs.div_ceil(C::GROUP) + input / C::GROUP];
        let codes = &codes[panel * quantised::n_codes::<C>(self.n_inputs) + input / C::INPUTS];
        codes.weight(scales, column, input % C::INPUTS)
    }
}

/// Codes and scales of all panels; `fill(index, rows)` writes the weights of one.
fn quantised<C: Codes>(
    n_inputs: usize,
    n_panels: usize,
    fill: impl Fn(usize, &mut [F32Row]) + Sync,
) -> (Memory<C>, Memory<C::Scales>) {
    let (n_codes, n_groups) = (quantised::n_codes::<C>(n_inputs), n_inputs.div_ceil(C::GROUP));
    let mut codes = Memory::<C>::new(n_panels * n_codes);
    let mut scales = Memory::<C::Scales>::new(n_panels * n_groups);
    let rows = || vec![F32Row([0.0; PANEL]); n_inputs];
    let each = codes.par_chunks_mut(n_codes).zip(scales.par_chunks_mut(n_groups)).enumerate();
    each.for_each_init(rows, |rows, (index, (codes, scales))| {
        fill(index, rows);
        quantised::quantise(rows, codes, scales);
    });
    (codes, scales)
}

fn check(weights: &[f32], n_inputs: usize, n_outputs: usize) {
    assert!(n_inputs > 0 && n_outputs > 0, "a matrix of {n_inputs} x {n_outputs} weights");
    assert_eq!(weights.len(), n_inputs * n_outputs, "weights of a matrix of {n_inputs} x {n_outputs}");
}

/// Rounds to the nearest bfloat16, ties to even.
#[inline(always)]
pub(crate) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}
