//! One transformer layer.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::attention::{AttentionContext, LayerKv};
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
        }
    }

    /// # Shapes
    /// - `x`: `[batch, positions, d_model]`, returns the same.
    pub(crate) fn forward(&self, x: Tensor<3>, context: &AttentionContext, kv: LayerKv<'_, '_>) -> Tensor<3> {
        if self.norm_position == NormPosition::Post {
            let x = self.attention_norm.forward(x.clone() + self.attention.forward(x, context, kv));
            return self.feed_forward_norm.forward(x.clone() + self.feed_forward.forward(x));
        }
        let attended = self.attention.forward(self.attention_norm.forward(x.clone()), context, kv);
        match self.residual {
            Residual::Parallel => {
                let fed = self.feed_forward.forward(self.feed_forward_norm.forward(x.clone()));
                x + attended + fed
            }
            Residual::Sequential => {
                let x = x + attended;
                let fed = self.feed_forward.forward(self.feed_forward_norm.forward(x.clone()));
                x + fed
            }
        }
    }
}
