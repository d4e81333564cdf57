//! From a context embedding to positions of the token decoder.

use blockformer_nn::{ConfigError, linear, linear_init};
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::TokenDecoderSizes;

/// How a context embedding becomes several positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expansion {
    /// A linear map to `ratio · d_model` features, cut into `ratio` positions.
    Layer,
    /// The context embedding itself, `ratio` times; needs `d_context = d_model`.
    Repeat,
}

/// Expands each context embedding to `ratio` positions.
#[derive(Module, Debug)]
pub struct ContextExpansion {
    /// `d_context -> ratio · d_model`; without it the embedding is repeated.
    pub layer: Option<Linear>,
    ratio: usize,
    d_model: usize,
}

impl ContextExpansion {
    /// Initialises the expansion; its weights have standard deviation `d_context^-1/2`, its bias is zero.
    ///
    /// # Errors
    /// A [`ConfigError`] if `ratio` is zero or a repeated embedding would not have `d_model` features.
    pub fn new(
        kind: Expansion,
        ratio: usize,
        d_model: usize,
        sizes: &TokenDecoderSizes,
        device: &Device,
    ) -> Result<Self, ConfigError> {
        ConfigError::positive("token_decoder.expansion_ratio", ratio)?;
        let layer = match kind {
            Expansion::Layer => {
                let std = (sizes.d_context as f64).powf(-0.5);
                Some(linear_init(sizes.d_context, ratio * d_model, true, std, device))
            }
            Expansion::Repeat => {
                ConfigError::equal(
                    "the token decoder's d_model",
                    d_model,
                    "a repeated context embedding",
                    sizes.d_context,
                )?;
                None
            }
        };
        Ok(Self { layer, ratio, d_model })
    }

    /// # Shapes
    /// - `context`: `[rows, n_contexts, d_context]`
    /// - returns: `[rows, n_contexts · ratio, d_model]`
    pub fn forward(&self, context: Tensor<3>) -> Tensor<3> {
        let [rows, n, d_context] = context.dims();
        match &self.layer {
            Some(layer) => linear(layer, context).reshape([rows, n * self.ratio, self.d_model]),
            None => {
                let repeated: Tensor<4> = context.unsqueeze_dim::<4>(2).repeat_dim(2, self.ratio);
                repeated.reshape([rows, n * self.ratio, d_context])
            }
        }
    }

    /// Positions a context embedding becomes.
    pub fn ratio(&self) -> usize {
        self.ratio
    }
}
