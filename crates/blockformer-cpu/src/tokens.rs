//! Token ids to embeddings, and hidden states to logits.

use blockformer_kernels::{Level, Precision};
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
    pub(crate) fn new(vocabulary: BurnVocabulary, precision: Precision) -> Self {
        let d_model = vocabulary.embedding.weight.dims()[1];
        let output = vocabulary.output.map(|output| Linear::new(output, precision));
        let table = Table { numbers: numbers(vocabulary.embedding.weight), width: d_model };
        let output = output.unwrap_or_else(|| Linear::of_table(&table.numbers, d_model, precision));
        Self { table, output }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn bytes(&self) -> usize {
        self.table.bytes() + self.output.bytes()
    }

    /// Logits of rows of hidden states, in memory of their own: they become a tensor.
    pub(crate) fn logits(&self, level: Level, hidden: &[f32], scratch: &mut Scratch) -> Vec<f32> {
        let rows = hidden.len() / self.table.width;
        let mut logits = vec![0.0; rows * self.output.n_outputs()];
        self.output.forward(level, hidden, &mut scratch.rounded, &mut logits);
        scratch.logits = scratch.logits.max(size_of_val(&logits[..]));
        logits
    }
}

/// Rows of float32, one a token id.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) numbers: Vec<f32>,
    pub(crate) width: usize,
}

impl Table {
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
