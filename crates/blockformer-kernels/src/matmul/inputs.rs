//! What products make of their inputs before they multiply them.

use super::interleaved::{self, Interleaved};
use super::rounded::Rounded;
use crate::Level;
use crate::packed::{PackedMatrix, Panels};
use crate::quantised::{Int4Codes, Int8Codes};

/// Rows of `x` as products take them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inputs {
    pub(super) rounded: Rounded,
    /// Rows of bfloat16, where the CPU multiplies such.
    #[cfg(target_arch = "x86_64")]
    pub(super) bf16: super::bfloat16::Rows,
    pub(super) interleaved: Interleaved,
}

impl Inputs {
    /// Bytes of the room.
    pub(crate) fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let bf16 = self.bf16.bytes();
        #[cfg(not(target_arch = "x86_64"))]
        let bf16 = 0;
        self.rounded.bytes() + bf16 + self.interleaved.bytes()
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
