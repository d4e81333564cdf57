//! One transformer layer.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::attention::{AttentionContext, LayerKv};
use crate::linear::FullNorm;
use crate::{Attention, FeedForward, Norm, NormPosition, Residual, TransformerConfig};

/// Attention and feed-forward network, each behind its norm, added to the residual stream.
#[derive(Module, Debug)]
pub struct Layer {
    /// Before attention.
    pub attention_norm: Norm,
    /// Self-attention.
    pub attention: Attention,
    /// Before the feed-forward network.
    pub feed_forward_norm: Norm,
    /// Feed-forward network.
    pub feed_forward: FeedForward,
    #[module(skip)]
    norm_position: NormPosition,
    #[module(skip)]
    residual: Residual,
    #[module(skip)]
    norm_epsilon: f64,
}

impl Layer {
    /// Initialises a layer as `config` says.
    pub fn new(config: &TransformerConfig, device: &Device) -> Self {
        let norm = || Norm::new(config.norm, config.d_model, config.norm_eps, device);
        Self {
            attention_norm: norm(),
            attention: Attention::new(config, device),
            feed_forward_norm: norm(),
            feed_forward: FeedForward::new(config, device),
            norm_position: config.norm_position,
            residual: config.residual,
            norm_epsilon: config.norm_eps,
        }
    }

    /// # Shapes
    /// - `x`: `[batch, positions, d_model]`, returns the same.
    pub(crate) fn forward(&self, x: Tensor<3>, context: &AttentionContext, kv: LayerKv<'_, '_>) -> Tensor<3> {
        let norm = |norm| FullNorm { norm, epsilon: self.norm_epsilon };
        if self.norm_position == NormPosition::Post {
            let x = norm(&self.attention_norm).forward(self.attention.add_to(x, None, context, kv));
            let fed = self.feed_forward.add_to(x.clone(), None, x);
            return norm(&self.feed_forward_norm).forward(fed);
        }
        let given = (self.residual == Residual::Parallel).then(|| x.clone());
        let attended = self.attention.add_to(x, Some(norm(&self.attention_norm)), context, kv);
        let fed_from = given.unwrap_or_else(|| attended.clone());
        self.feed_forward.add_to(attended, Some(norm(&self.feed_forward_norm)), fed_from)
    }
}
