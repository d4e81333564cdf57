//! Normalisation.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor};

use crate::NormKind;

/// Layer norm or RMS norm over the last dimension.
#[derive(Module, Debug)]
pub enum Norm {
    /// `(x - mean) / sqrt(var + eps) · gamma + beta`.
    LayerNorm(LayerNorm),
    /// `x / sqrt(mean(x²) + eps) · gamma`.
    RmsNorm(RmsNorm),
}

impl Norm {
    /// A norm with scale one (and shift zero).
    pub fn new(kind: NormKind, d_model: usize, eps: f64, device: &Device) -> Self {
        match kind {
            NormKind::LayerNorm => Self::LayerNorm(LayerNormConfig::new(d_model).with_epsilon(eps).init(device)),
            NormKind::RmsNorm => Self::RmsNorm(RmsNormConfig::new(d_model).with_epsilon(eps).init(device)),
        }
    }

    /// Normalises the last dimension.
    ///
    /// # Shapes
    /// - `x`: `[.., d_model]`, returns the same.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::LayerNorm(norm) => norm.forward(x),
            Self::RmsNorm(norm) => norm.forward(x),
        }
    }
}
