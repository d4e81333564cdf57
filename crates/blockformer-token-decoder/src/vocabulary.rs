//! Token embeddings and the projection back to the vocabulary.

use blockformer_nn::{linear, linear_init, normal_embedding};
use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Int, Tensor};

/// The embedding table of a decoder and its output projection, which may be the same matrix.
#[derive(Module, Debug)]
pub struct Vocabulary {
    /// `[vocab_size, d_model]`.
    pub embedding: Embedding,
    /// `d_model -> vocab_size`; without it the embedding table serves (tied embeddings).
    pub output: Option<Linear>,
}

impl Vocabulary {
    /// Initialises the tables with entries of standard deviation `std`.
    pub fn new(vocab_size: usize, d_model: usize, tied: bool, std: f64, device: &Device) -> Self {
        Self {
            embedding: normal_embedding(vocab_size, d_model, std, device),
            output: (!tied).then(|| linear_init(d_model, vocab_size, false, std, device)),
        }
    }

    /// # Shapes
    /// - `ids`: `[rows, n]`
    /// - returns: `[rows, n, d_model]`
    pub fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.embedding.forward(ids)
    }

    /// # Shapes
    /// - `hidden`: `[rows, n, d_model]`
    /// - returns: `[rows, n, vocab_size]`
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        match &self.output {
            Some(output) => linear(output, hidden),
            None => {
                let [rows, n, d_model] = hidden.dims();
                let table = self.embedding.weight.val(); // [vocab_size, d_model]
                let vocab_size = table.dims()[0];
                hidden.reshape([rows * n, d_model]).matmul(table.transpose()).reshape([rows, n, vocab_size])
            }
        }
    }
}
