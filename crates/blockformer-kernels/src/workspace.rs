//! What kernels keep while they compute.

use crate::matmul::{Candidate, Inputs};

/// Room that kernels work in: rows of inputs as products take them, rounded for weights of 8 and 4 bits, and for bfloat16 ones
/// where the CPU multiplies bfloat16, in the order in which they are read where many rows are multiplied in float32; the
/// scores of attention; what parts of a vocabulary have found to be likeliest. It grows as needed and can be used for one call
/// after the other, of which those that need no more room allocate nothing.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    pub(crate) inputs: Inputs,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) scores: Vec<f32>,
}

impl Workspace {
    /// Bytes of the room.
    pub fn bytes(&self) -> usize {
        let candidates = self.candidates.capacity() * size_of::<Candidate>();
        self.inputs.bytes() + candidates + size_of_val(&self.scores[..])
    }
}

/// Makes room for `n` values, if there is not; what was there is lost.
pub(crate) fn grow<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) {
    if buffer.len() < n {
        *buffer = Vec::new();
        *buffer = vec![T::default(); n];
    }
}
