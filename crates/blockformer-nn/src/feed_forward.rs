//! The feed-forward network of a layer.

use std::ops::ControlFlow;

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::{gelu, gelu_approximate, relu, silu};
use burn::tensor::{Device, Tensor};

use crate::{Activation, TransformerConfig, host, linear, linear_init};

impl Activation {
    /// Applies the non-linearity to every element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let x = match host::activation(self, x) {
            ControlFlow::Break(y) => return y,
            ControlFlow::Continue(x) => x,
        };
        match self {
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_approximate(x),
            Self::Relu => relu(x),
            Self::Silu => silu(x),
        }
    }
}

/// `down(act(up(x)))`, or gated `down(act(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// `d_model -> d_ff`, the gate; only in the gated form.
    pub gate: Option<Linear>,
    /// `d_model -> d_ff`.
    pub up: Linear,
    /// `d_ff -> d_model`.
    pub down: Linear,
    #[module(skip)]
    activation: Activation,
}

impl FeedForward {
    /// Initialises the network as `config` says.
    pub fn new(config: &TransformerConfig, device: &Device) -> Self {
        let TransformerConfig { d_model, d_ff, feed_forward_bias: bias, initializer_range: std, .. } = *config;
        Self {
            gate: config.gated.then(|| linear_init(d_model, d_ff, bias, std, device)),
            up: linear_init(d_model, d_ff, bias, std, device),
            down: linear_init(d_ff, d_model, bias, std, device),
            activation: config.activation,
        }
    }

    /// # Shapes
    /// - `x`: `[batch, positions, d_model]`, returns the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inner = match &self.gate {
            Some(gate) => self.activation.forward(linear(gate, x.clone())) * linear(&self.up, x),
            None => self.activation.forward(linear(&self.up, x)),
        };
        linear(&self.down, inner)
    }
}
