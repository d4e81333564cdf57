//! Models that can be trained.

use blockformer_embedder::Embedder;
use blockformer_model::{AnyModel, BlockLayout, BlockTransformer, VanillaTransformer};
use blockformer_token_decoder::TokenDecoder;
use burn::module::Module;
use burn::tensor::{FloatDType, Tensor, s};

use crate::{Batch, GradientAccumulator, LossConfig, Objective, TokenLoss, recompute, token_loss};

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
        // The terms of tokens are of the model's type.
        let mut graph = self.tokens.graph.clone().cast(FloatDType::F32);
        if let Some(loss) = &self.block_decoding {
            graph = graph + loss.clone();
        }
        if let Some((loss, weight)) = &self.auto_encoding {
            graph = graph + loss.graph.clone().cast(FloatDType::F32).mul_scalar(*weight);
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

    /// Adds the gradients of the objective on the batch to `gradients`, and returns the sum of the cross-entropies of
    /// tokens, in nats. This is one backward pass over [`losses`](Self::losses), or several that hold less at a time.
    fn backward(&self, batch: &Batch, objective: &Objective, gradients: &mut GradientAccumulator) -> f64 {
        objective.backward_at_once(self, batch, gradients)
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
        let blocks = output.block_embeddings.clone();
        let block_decoding = config.of_blocks(output.context_embeddings, blocks, batch.mask.clone());
        let auto_encoding = config.auto_encoding_weight.map(|weight| {
            let first = batch.first_predicted_block;
            let own = own_windows(self, output.block_embeddings, first);
            let ids = batch.ids.clone().slice(s![.., first.., ..]);
            let mask = batch.mask.clone().map(|mask| mask.slice(s![.., first.., ..]));
            (cross_entropy(self.decode_blocks(own, ids, mask)), weight)
        });
        Losses { tokens, block_decoding, auto_encoding }
    }

    fn backward(&self, batch: &Batch, objective: &Objective, gradients: &mut GradientAccumulator) -> f64 {
        if objective.recompute {
            return recompute::backward(self, batch, objective, gradients);
        }
        objective.backward_at_once(self, batch, gradients)
    }

    fn layout(&self) -> BlockLayout {
        self.layout()
    }
}

/// What the token decoder is given to decode each block from its own embedding.
///
/// # Shapes
/// - `blocks`: `[batch, n_blocks, n_embedding_tokens, d_model]`
/// - returns: `[batch · (n_blocks - first), n_contexts · n_embedding_tokens, d_model]`
pub(crate) fn own_windows<E: Embedder, T: TokenDecoder>(
    model: &BlockTransformer<E, T>,
    blocks: Tensor<4>,
    first: usize,
) -> Tensor<3> {
    let [n_batch, n_blocks, n, d_model] = blocks.dims();
    let own = blocks.slice(s![.., first.., .., ..]);
    // Each block by itself: of a window of several contexts, its own embedding is the only one there is.
    let own = own.reshape([n_batch * (n_blocks - first), 1, n, d_model]);
    model.context_ends.windows(own, None, None).0.squeeze_dim::<3>(1)
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

    fn backward(&self, batch: &Batch, objective: &Objective, gradients: &mut GradientAccumulator) -> f64 {
        match self {
            Self::Block(model) => model.backward(batch, objective, gradients),
            Self::Vanilla(model) => model.backward(batch, objective, gradients),
        }
    }

    fn layout(&self) -> BlockLayout {
        self.layout()
    }
}
