//! Token ids to embeddings, and hidden states to logits.

use blockformer_kernels::{Level, Numbers, Precision};
use blockformer_token_decoder::Vocabulary as BurnVocabulary;

use crate::stack::Scratch;
use crate::weights::{Linear, numbers};

/// An embedding table and the projection back.
#[derive(Debug, Clone)]
pub(crate) struct Vocabulary {
    table: Table,
    output: Linear,
}

impl Vocabulary {
    /// Where other weights have 4 bits, those of the projection have 8: rounding them changes logits at once.
    pub(crate) fn new(vocabulary: BurnVocabulary, precision: Precision) -> Self {
        let precision = if precision == Precision::Int4 { Precision::Int8 } else { precision };
        let d_model = vocabulary.embedding.weight.dims()[1];
        let output = vocabulary.output.map(|output| Linear::new(output, precision));
        let table = Table::new(&numbers(vocabulary.embedding.weight), d_model);
        let output = output.unwrap_or_else(|| Linear::of_table(&table.numbers, d_model, precision));
        Self { table, output }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn bytes(&self) -> usize {
        self.table.bytes() + self.output.bytes()
    }

    /// Logits of rows of hidden states, instead of whatever `logits` holds.
    pub(crate) fn logits(&self, level: Level, hidden: &[f32], scratch: &mut Scratch, logits: &mut Vec<f32>) {
        let rows = hidden.len() / self.table.width;
        logits.resize(rows * self.output.n_outputs(), 0.0);
        self.output.forward(level, hidden, &mut scratch.workspace, logits);
        scratch.logits = scratch.logits.max(size_of_val(&logits[..]));
    }

    /// The likeliest tokens of rows of hidden states; nothing where logits are no numbers.
    pub(crate) fn likeliest(&self, level: Level, hidden: &[f32], scratch: &mut Scratch) -> Vec<Option<u32>> {
        self.output.likeliest(level, hidden, &mut scratch.workspace)
    }
}

/// Rows of float32, one a token id.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) numbers: Numbers,
    pub(crate) width: usize,
}

impl Table {
    pub(crate) fn new(numbers: &[f32], width: usize) -> Self {
        Self { numbers: numbers.into(), width }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.numbers[..])
    }

    /// One row after the other.
    pub(crate) fn look_up(&self, ids: &[u32], out: &mut [f32]) {
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(self.width)) {
            out.copy_from_slice(&self.numbers[*id as usize * self.width..][..self.width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn the_projection_has_eight_bits_beside_weights_of_four_and_else_their_precision() {
        let device = Device::flex();
        for tied in [false, true] {
            let vocabulary = || BurnVocabulary::new(32, 64, tied, 0.02, &device);
            let bytes = |precision| Vocabulary::new(vocabulary(), precision).output.bytes();
            assert_eq!(bytes(Precision::Int4), bytes(Precision::Int8), "tied: {tied}");
            // 64 x 32 weights, and for 64 of them a scale and the sum of their codes, of four bytes each.
            let expected = [4 * 2048, 2 * 2048, 2048 + 256, 2048 + 256];
            assert_eq!(Precision::ALL.map(bytes), expected, "tied: {tied}");
        }
    }
}
