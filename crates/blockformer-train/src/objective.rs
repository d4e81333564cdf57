//! What a backward pass minimises, and how.

use crate::{Batch, GradientAccumulator, LossConfig, Precision, Trainable};

/// What a backward pass minimises, and how it computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// The losses besides the cross-entropy of tokens.
    pub losses: LossConfig,
    /// What cross-entropies are divided by: for the mean, the predictions that count in all batches of the step.
    pub normalizer: f64,
    /// What the model computes in.
    pub precision: Precision,
    /// A factor on all losses; see [`LossScale`](crate::LossScale).
    pub loss_scale: f64,
    /// Whether a Block Transformer goes through its parts one after the other: the embedder and block decoder without
    /// a graph; the token decoder with its own backward pass, for some blocks at a time; embedder and block decoder
    /// again, with theirs. Memory then holds the activations of one part, and logits of few blocks, at a time, for a
    /// second pass through the smaller part of the model's work. Other models take no notice.
    pub recompute: bool,
}

impl Objective {
    /// The cross-entropy of tokens in float32.
    pub fn new(normalizer: f64) -> Self {
        let (losses, precision) = (LossConfig::default(), Precision::F32);
        Self { losses, normalizer, precision, loss_scale: 1.0, recompute: false }
    }

    /// The losses of one batch of a step, with the scale in them; cross-entropies have it by their
    /// [normalizer](Self::scaled_normalizer). A block decoding loss is an average over its batch, so it is weighted by
    /// the batch's share of the step's predictions; a contrastive one looks for its target among this batch's blocks.
    pub fn scaled_losses(&self, batch: &Batch) -> LossConfig {
        self.losses.scaled(self.loss_scale * batch.n_predicted as f64 / self.normalizer)
    }

    /// The normalizer with the scale in it.
    pub fn scaled_normalizer(&self) -> f64 {
        self.normalizer / self.loss_scale
    }

    /// One backward pass over all losses; returns the sum of the cross-entropies of tokens, in nats.
    pub fn backward_at_once<M: Trainable>(&self, model: &M, batch: &Batch, gradients: &mut GradientAccumulator) -> f64 {
        let losses = self.precision.shadow(model).losses(batch, &self.scaled_losses(batch), self.scaled_normalizer());
        let sum = losses.tokens.sum();
        gradients.add(model, losses.graph().backward());
        sum
    }
}
