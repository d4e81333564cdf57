//! Models that can be trained.

use blockformer_embedder::Embedder;
use blockformer_model::{AnyModel, BlockTransformer, VanillaTransformer};
use blockformer_token_decoder::TokenDecoder;
use burn::module::Module;

use crate::{Batch, TokenLoss, token_loss};

/// A model that predicts the tokens behind each sample's first block.
pub trait Trainable: Module {
    /// Cross-entropy of the batch, divided by `normalizer`; see [`token_loss`].
    fn loss(&self, batch: &Batch, normalizer: f64) -> TokenLoss;

    /// Tokens a block; 1 for models without blocks.
    fn block_length(&self) -> usize;

    /// Number of token ids.
    fn vocab_size(&self) -> usize;
}

impl<E: Embedder, T: TokenDecoder> Trainable for BlockTransformer<E, T> {
    fn loss(&self, batch: &Batch, normalizer: f64) -> TokenLoss {
        let output = self.forward(batch.ids.clone(), batch.mask.clone());
        let (targets, mask) = batch.targets();
        token_loss(|hidden| self.logits(hidden), output.hidden, targets, mask, normalizer, self.layout().vocab_size)
    }

    fn block_length(&self) -> usize {
        self.layout().block_length
    }

    fn vocab_size(&self) -> usize {
        self.layout().vocab_size
    }
}

impl Trainable for VanillaTransformer {
    fn loss(&self, batch: &Batch, normalizer: f64) -> TokenLoss {
        let [rows, n, _] = batch.ids.dims();
        let ids = batch.ids.clone().reshape([rows, n]);
        let mask = batch.mask.clone().map(|mask| mask.reshape([rows, n]).narrow(1, 0, n - 1));
        let hidden = self.forward(ids.narrow(1, 0, n - 1), mask, None);
        let (targets, mask) = batch.targets();
        token_loss(|hidden| self.logits(hidden), hidden, targets, mask, normalizer, self.layout().vocab_size)
    }

    fn block_length(&self) -> usize {
        1
    }

    fn vocab_size(&self) -> usize {
        self.layout().vocab_size
    }
}

impl Trainable for AnyModel {
    fn loss(&self, batch: &Batch, normalizer: f64) -> TokenLoss {
        match self {
            Self::Block(model) => model.loss(batch, normalizer),
            Self::Vanilla(model) => model.loss(batch, normalizer),
        }
    }

    fn block_length(&self) -> usize {
        match self {
            Self::Block(model) => model.block_length(),
            Self::Vanilla(model) => model.block_length(),
        }
    }

    fn vocab_size(&self) -> usize {
        match self {
            Self::Block(model) => model.vocab_size(),
            Self::Vanilla(model) => model.vocab_size(),
        }
    }
}
