//! The correction of one weight.

use burn::module::{Module, Param, Reparameterization};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{DType, Device, Distribution, Tensor};

use super::LoraConfig;

/// `alpha / rank · A B`, added to a frozen weight.
#[derive(Module, Debug)]
pub struct LoraAdapter {
    /// `[in, rank]`, at first even in ±1/√in.
    pub a: Param<Tensor<2>>,
    /// `[rank, out]`, at first zero.
    pub b: Param<Tensor<2>>,
    /// On the input's features; only in training.
    pub dropout: Dropout,
    scale: f64,
}

impl LoraAdapter {
    pub(super) fn new(config: &LoraConfig, [d_input, d_output]: [usize; 2], dtype: DType, device: &Device) -> Self {
        let bound = (d_input as f64).powf(-0.5);
        let a = Tensor::<2>::random([d_input, config.rank], Distribution::Uniform(-bound, bound), device);
        let b = Tensor::<2>::zeros([config.rank, d_output], device);
        Self {
            a: Param::from_tensor(a.cast(dtype)),
            b: Param::from_tensor(b.cast(dtype)),
            dropout: DropoutConfig::new(config.dropout).init(),
            scale: config.alpha / config.rank as f64,
        }
    }

    /// The correction.
    ///
    /// # Shapes
    /// - returns: `[in, out]`
    pub fn delta(&self) -> Tensor<2> {
        let a = self.a.val();
        let a = if self.dropout.prob > 0.0 {
            // A row of A is what the adapter makes of an input feature.
            let features = Tensor::<2>::ones([a.dims()[0], 1], &a.device()).cast(a.dtype());
            a * self.dropout.forward(features)
        } else {
            a
        };
        a.matmul(self.b.val()).mul_scalar(self.scale)
    }
}

impl Reparameterization for LoraAdapter {
    const NAME: &'static str = "lora";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let delta = self.delta().reshape(base.shape());
        let base = if base.dtype() == delta.dtype() { base } else { base.cast(delta.dtype()) };
        base + delta
    }
}
