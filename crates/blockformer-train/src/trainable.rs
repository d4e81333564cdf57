//! Models that can be trained.

use blockformer_embedder::Embedder;
use blockformer_model::{AnyModel, BlockLayout, BlockTransformer, VanillaTransformer};
use blockformer_token_decoder::TokenDecoder;
use burn::module::Module;
use burn::tensor::{Tensor, s};

use crate::{Batch, LossConfig, TokenLoss, token_loss};

/// The losses of a batch.
#[derive(Debug, Clone)]
pub struct Losses {
    /// Cross-entropy of tokens.
    pub tokens: TokenLoss,
    /// Loss on predicted block embeddings, weighted, `[1]`.
    pub block_decoding: Option<Tensor<1>>,
    /// Cross-entropy of tokens decoded from their own block's embedding, and its weight.
    pub auto_encoding: Option<(TokenLoss, f64)>,
}

impl Losses {
    fn of_tokens(tokens: TokenLoss) -> Self {
        Self { tokens, block_decoding: None, auto_encoding: None }
    }

    /// Call `backward` on this: its gradient is that of the weighted sum, its value means nothing.
    pub fn graph(&self) -> Tensor<1> {
        let mut graph = self.tokens.graph.clone();
        if let Some(loss) = &self.block_decoding {
            graph = graph + loss.clone();
        }
        if let Some((loss, weight)) = &self.auto_encoding {
            graph = graph + loss.graph.clone().mul_scalar(*weight);
        }
        graph
    }

    /// The weighted sum, cross-entropies divided by `normalizer`.
    pub fn value(&self, normalizer: f64) -> f64 {
        let block_decoding = self.block_decoding.clone().map_or(0.0, |loss| f64::from(loss.into_scalar::<f32>()));
        let auto_encoding = self.auto_encoding.as_ref().map_or(0.0, |(loss, weight)| loss.sum() * weight);
        (self.tokens.sum() + auto_encoding) / normalizer + block_decoding
    }
}

/// A model that predicts the tokens of samples, behind their first block or, where it has a start of text, all.
pub trait Trainable: Module {
    /// The losses of the batch. The cross-entropy of tokens is divided by `normalizer` (see [`token_loss`]); the other
    /// losses are averages over the batch, and models without blocks have none.
    fn losses(&self, batch: &Batch, config: &LossConfig, normalizer: f64) -> Losses;

    /// The cross-entropy of tokens alone.
    fn loss(&self, batch: &Batch, normalizer: f64) -> TokenLoss {
        self.losses(batch, &LossConfig::default(), normalizer).tokens
    }

    /// Its blocks (of one token for models without), context and vocabulary.
    fn layout(&self) -> BlockLayout;
}

impl<E: Embedder, T: TokenDecoder> Trainable for BlockTransformer<E, T> {
    fn losses(&self, batch: &Batch, config: &LossConfig, normalizer: f64) -> Losses {
        let output = self.forward(batch.ids.clone(), batch.mask.clone());
        let (targets, mask) = batch.targets();
        let vocab_size = self.layout().vocab_size;
        let cross_entropy =
            |hidden| token_loss(|h| self.logits(h), hidden, targets.clone(), mask.clone(), normalizer, vocab_size);
        let tokens = cross_entropy(output.hidden);
        let block_decoding = config.block_decoding.map(|loss| {
            let real = batch.mask.clone().map(|mask| mask.any_dim(2).squeeze_dim(2)); // [batch, n_blocks]
            let (context, blocks) = (output.context_embeddings, output.block_embeddings.clone());
            loss.kind.forward(context, blocks, real).mul_scalar(loss.weight)
        });
        let auto_encoding = config.auto_encoding_weight.map(|weight| {
            let first = batch.first_predicted_block;
            let [n_batch, n_blocks, n, d_model] = output.block_embeddings.dims();
            let own = output.block_embeddings.slice(s![.., first.., .., ..]);
            // Each block by itself: of a window of several contexts, its own embedding is the only one there is.
            let own = own.reshape([n_batch * (n_blocks - first), 1, n, d_model]);
            let own = self.context_ends.windows(own, None, None).0.squeeze_dim::<3>(1);
            let ids = batch.ids.clone().slice(s![.., first.., ..]);
            let mask = batch.mask.clone().map(|mask| mask.slice(s![.., first.., ..]));
            (cross_entropy(self.decode_blocks(own, ids, mask)), weight)
        });
        Losses { tokens, block_decoding, auto_encoding }
    }

    fn layout(&self) -> BlockLayout {
        self.layout()
    }
}

impl Trainable for VanillaTransformer {
    fn losses(&self, batch: &Batch, _config: &LossConfig, normalizer: f64) -> Losses {
        let [rows, n, _] = batch.ids.dims();
        let ids = batch.ids.clone().reshape([rows, n]);
        let mask = batch.mask.clone().map(|mask| mask.reshape([rows, n]).narrow(1, 0, n - 1));
        let hidden = self.forward(ids.narrow(1, 0, n - 1), mask, None);
        let (targets, mask) = batch.targets();
        let vocab_size = self.layout().vocab_size;
        Losses::of_tokens(token_loss(|hidden| self.logits(hidden), hidden, targets, mask, normalizer, vocab_size))
    }

    fn layout(&self) -> BlockLayout {
        self.layout()
    }
}

impl Trainable for AnyModel {
    fn losses(&self, batch: &Batch, config: &LossConfig, normalizer: f64) -> Losses {
        match self {
            Self::Block(model) => model.losses(batch, config, normalizer),
            Self::Vanilla(model) => model.losses(batch, config, normalizer),
        }
    }

    fn layout(&self) -> BlockLayout {
        self.layout()
    }
}
