//! What kernels keep while they compute.

use super::interleaved::{self, Interleaved};
use super::likeliest::Candidate;
use super::rounded::Rounded;
use crate::Level;
use crate::packed::{PackedMatrix, Panels};
use crate::quantised::{Int4Codes, Int8Codes};

/// Room for rows of `x` as products take them: rounded for weights of 8 and 4 bits, and for bfloat16 ones where the CPU
/// multiplies bfloat16; in the order in which they are read where many rows are multiplied in float32. And for the scores of
/// attention, and the best of each thread when the likeliest is sought. It grows as needed and can be used for one call after
/// the other, which then allocate nothing.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    pub(super) rounded: Rounded,
    /// Rows of bfloat16, where the CPU multiplies such.
    #[cfg(target_arch = "x86_64")]
    pub(super) bf16: super::bfloat16::Rows,
    pub(super) interleaved: Interleaved,
    pub(super) candidates: Vec<Candidate>,
    pub(crate) scores: Vec<f32>,
}

impl Workspace {
    /// Bytes of the room.
    pub fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let bf16 = self.bf16.bytes();
        #[cfg(not(target_arch = "x86_64"))]
        let bf16 = 0;
        let other = size_of_val(&self.candidates[..]) + size_of_val(&self.scores[..]);
        self.rounded.bytes() + bf16 + self.interleaved.bytes() + other
    }

    /// Takes in the rows of `x`, of which tasks take `chunk` each, as products with the weights want them.
    pub(super) fn fill(&mut self, level: Level, x: &[f32], weights: &PackedMatrix, chunk: usize) -> &Self {
        let n_inputs = weights.n_inputs();
        match &weights.panels {
            #[cfg(target_arch = "x86_64")]
            Panels::Bf16(_) if level.multiplies_bf16() => self.bf16.fill(level, x, n_inputs),
            Panels::F32(_) | Panels::Bf16(_) => {
                if interleaved::serves(chunk, weights) {
                    self.interleaved.fill(level, x, n_inputs, chunk);
                }
            }
            Panels::Int8 { .. } => self.rounded.fill::<Int8Codes>(level, x, n_inputs),
            Panels::Int4 { .. } => self.rounded.fill::<Int4Codes>(level, x, n_inputs),
        }
        self
    }
}

/// Makes room for `n` values, if there is not.
pub(crate) fn grow<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
}
