//! The feed-forward network of a layer.

use std::f64::consts::FRAC_1_SQRT_2;
use std::ops::ControlFlow;

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::{gelu, gelu_approximate, relu, silu};
use burn::tensor::{Device, Tensor};

use crate::linear::{Around, FullNorm, few_rows, linear_onto, normed};
use crate::{Activation, TransformerConfig, host, linear, linear_init};

impl Activation {
    /// Applies the non-linearity to every element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let x = match host::activation(self, x) {
            ControlFlow::Break(y) => return y,
            ControlFlow::Continue(x) => x,
        };
        match self {
            Self::Gelu if x.is_autodiff() => traced_gelu(x),
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_approximate(x),
            Self::Relu => relu(x),
            Self::Silu => silu(x),
        }
    }
}

/// GELU for a graph. Burn's own has, on backends without a kernel for it (GPUs among them), the gradient of the tanh
/// approximation, which is up to 4e-4 off. The price is memory: the graph keeps three tensors of this size, not one.
fn traced_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let twice_cdf = x.clone().mul_scalar(FRAC_1_SQRT_2).erf().add_scalar(1.0);
    x.mul(twice_cdf).mul_scalar(0.5)
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
        linear(&self.down, self.inner(None, x))
    }

    /// `residual + forward(norm(x))`.
    pub(crate) fn add_to(&self, residual: Tensor<3>, norm: Option<FullNorm<'_>>, x: Tensor<3>) -> Tensor<3> {
        linear_onto(&self.down, self.inner(norm, x), residual)
    }

    /// `[batch, positions, d_ff]`.
    fn inner(&self, norm: Option<FullNorm<'_>>, x: Tensor<3>) -> Tensor<3> {
        let (gate, activation) = (self.gate.as_ref(), Some(self.activation));
        if let Some(inner) = few_rows(&self.up, &x, Around { norm, gate, activation, residual: None }) {
            return inner;
        }
        let x = normed(norm, x);
        match gate {
            Some(gate) => self.activation.forward(linear(gate, x.clone())) * linear(&self.up, x),
            None => self.activation.forward(linear(&self.up, x)),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::gelu;

    use super::*;

    #[test]
    fn gelu_in_a_graph_has_the_value_and_the_slope_of_the_definition() {
        let device = Device::flex();
        let values: Vec<f32> = (-40..=40).map(|i| i as f32 * 0.11).collect();
        let x = Tensor::<1>::from_floats(values.as_slice(), &device.clone().autodiff()).require_grad();
        let y = traced_gelu(x.clone());
        let plain = gelu(Tensor::<1>::from_floats(values.as_slice(), &device));
        let difference: f32 = (y.clone().inner() - plain).abs().max().into_scalar();
        assert!(difference < 1e-6, "{difference}");
        let slopes = x.grad(&y.sum().backward()).expect("a gradient").into_data();
        for (x, slope) in values.iter().map(|x| f64::from(*x)).zip(slopes.iter::<f64>()) {
            // Φ(x) + x φ(x), with Φ by Simpson's rule from -12 on.
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let (n, step) = (4000, (x + 12.0) / 4000.0);
            let weight = |i: usize| {
                if i == 0 || i == n {
                    1.0
                } else if i % 2 == 1 {
                    4.0
                } else {
                    2.0
                }
            };
            let cdf: f64 = (0..=n).map(|i| weight(i) * density(-12.0 + i as f64 * step)).sum::<f64>() * step / 3.0;
            let expected = cdf + x * density(x);
            assert!((slope - expected).abs() < 2e-6, "slope {slope} at {x}, expected {expected}");
        }
    }
}
