//! From the embeddings of a block's tokens to the block's embeddings.

use blockformer_nn::{ConfigError, linear, linear_init};
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::EmbedderSizes;

/// How the token embeddings of a block become its block embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// They are concatenated: `d_model = d_embedding · block_length / n_embedding_tokens`.
    Concat,
    /// They are concatenated and mapped linearly to `d_model` (a convolution whose stride is its width).
    ProjectionLayer,
}

/// Joins each `block_length / n_embedding_tokens` consecutive token embeddings into one block embedding.
#[derive(Module, Debug)]
pub struct BlockProjection {
    /// `d_embedding · tokens -> d_model`; without it the concatenation is the embedding.
    pub layer: Option<Linear>,
    tokens_per_embedding: usize,
}

impl BlockProjection {
    /// Initialises the projection; its weights have standard deviation `(d_embedding · block_length)^-1/2`, its bias
    /// is zero.
    ///
    /// # Errors
    /// A [`ConfigError`] if `sizes` do not fit together or, for [`Projection::Concat`], do not give `d_model`.
    pub fn new(
        kind: Projection,
        d_embedding: usize,
        sizes: &EmbedderSizes,
        device: &Device,
    ) -> Result<Self, ConfigError> {
        let tokens_per_embedding = sizes.tokens_per_embedding()?;
        let d_joined = d_embedding * tokens_per_embedding;
        let layer = match kind {
            Projection::Concat => {
                ConfigError::equal(
                    "the concatenated embedding",
                    d_joined,
                    "the block decoder's d_model",
                    sizes.d_model,
                )?;
                None
            }
            Projection::ProjectionLayer => {
                let std = ((d_embedding * sizes.block_length) as f64).powf(-0.5);
                Some(linear_init(d_joined, sizes.d_model, true, std, device))
            }
        };
        Ok(Self { layer, tokens_per_embedding })
    }

    /// # Shapes
    /// - `tokens`: `[blocks, block_length, d_embedding]`
    /// - returns: `[blocks, n_embedding_tokens, d_model]`
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let [blocks, length, d_embedding] = tokens.dims();
        let per_embedding = self.tokens_per_embedding;
        let joined = tokens.reshape([blocks, length / per_embedding, per_embedding * d_embedding]);
        match &self.layer {
            Some(layer) => linear(layer, joined),
            None => joined,
        }
    }
}
