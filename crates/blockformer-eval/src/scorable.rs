//! Models that can be asked how likely tokens are.

use blockformer_embedder::Embedder;
use blockformer_model::{AnyModel, BlockLayout, BlockTransformer, VanillaTransformer};
use blockformer_token_decoder::TokenDecoder;
use blockformer_train::Batch;
use burn::tensor::Tensor;

/// A model that predicts tokens from those before: all behind each sample's first block, and that too if its layout says
/// so.
///
/// Output is in two steps, so that logits need not be computed where nobody asks for them: they are the largest tensors
/// there are.
pub trait Scorable {
    /// What predicts each token of the blocks that are predicted, in order.
    ///
    /// # Shapes
    /// - `batch.ids`: `[batch, n_blocks, block_length]`
    /// - returns: any number of rows and columns that together are `batch · n_predicted_blocks · block_length`, and
    ///   `d_model`
    fn hidden(&self, batch: &Batch) -> Tensor<3>;

    /// Logits over the vocabulary.
    ///
    /// # Shapes
    /// - `hidden`: `[rows, n, d_model]`
    /// - returns: `[rows, n, vocab_size]`
    fn logits(&self, hidden: Tensor<3>) -> Tensor<3>;

    /// Its blocks (of one token for models without), context, padding and vocabulary.
    fn layout(&self) -> BlockLayout;
}

impl<E: Embedder, T: TokenDecoder> Scorable for BlockTransformer<E, T> {
    fn hidden(&self, batch: &Batch) -> Tensor<3> {
        self.forward(batch.ids.clone(), batch.mask.clone()).hidden // [batch · n_predicted_blocks, block_length, d_model]
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.logits(hidden)
    }

    fn layout(&self) -> BlockLayout {
        self.layout()
    }
}

impl Scorable for VanillaTransformer {
    fn hidden(&self, batch: &Batch) -> Tensor<3> {
        let [rows, n, length] = batch.ids.dims();
        let n = n * length;
        let ids = batch.ids.clone().reshape([rows, n]).narrow(1, 0, n - 1);
        let mask = batch.mask.clone().map(|mask| mask.reshape([rows, n]).narrow(1, 0, n - 1));
        self.forward(ids, mask, None) // [batch, n - 1, d_model]
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.logits(hidden)
    }

    fn layout(&self) -> BlockLayout {
        self.layout()
    }
}

impl Scorable for AnyModel {
    fn hidden(&self, batch: &Batch) -> Tensor<3> {
        match self {
            Self::Block(model) => model.hidden(batch),
            Self::Vanilla(model) => model.hidden(batch),
        }
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Block(model) => model.logits(hidden),
            Self::Vanilla(model) => model.logits(hidden),
        }
    }

    fn layout(&self) -> BlockLayout {
        self.layout()
    }
}
