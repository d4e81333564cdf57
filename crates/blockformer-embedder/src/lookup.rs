//! The lookup embedder: a table of token embeddings, joined block by block (Ho et al. 2024, section 2.2).

use blockformer_nn::{ConfigError, normal_embedding};
use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::{Bool, Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::{BlockProjection, Embedder, EmbedderSizes, Projection};

/// Standard deviation of the initial table.
const INITIALIZER_RANGE: f64 = 0.02;

/// Configuration of a [`LookupEmbedder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookupConfig {
    /// Features of a token's embedding.
    pub d_embedding: usize,
    /// How a block's token embeddings are joined.
    pub projection: Projection,
}

impl LookupConfig {
    /// Initialises the embedder.
    ///
    /// # Errors
    /// A [`ConfigError`] if the sizes do not fit together.
    pub fn init(&self, sizes: &EmbedderSizes, device: &Device) -> Result<LookupEmbedder, ConfigError> {
        ConfigError::positive("embedder.d_embedding", self.d_embedding)?;
        ConfigError::bounded("embedder.d_embedding", self.d_embedding)?;
        Ok(LookupEmbedder {
            projection: BlockProjection::new(self.projection, self.d_embedding, sizes, device)?,
            embedding: normal_embedding(sizes.vocab_size, self.d_embedding, INITIALIZER_RANGE, device),
            sizes: *sizes,
        })
    }
}

/// Looks up each token of a block and joins the vectors. Padding has an embedding of its own: that of the padding id.
#[derive(Module, Debug)]
pub struct LookupEmbedder {
    /// `[vocab_size, d_embedding]`.
    pub embedding: Embedding,
    /// Joins the embeddings of a block.
    pub projection: BlockProjection,
    #[module(skip)]
    sizes: EmbedderSizes,
}

impl Embedder for LookupEmbedder {
    fn forward(&self, ids: Tensor<3, Int>, _mask: Option<Tensor<3, Bool>>) -> Tensor<4> {
        let [batch, n_blocks, length] = ids.dims();
        assert_eq!(
            length, self.sizes.block_length,
            "blocks of {length} tokens, the embedder wants {}",
            self.sizes.block_length
        );
        let tokens = self.embedding.forward(ids.reshape([batch * n_blocks, length])); // [blocks, length, d_embedding]
        self.projection.forward(tokens).reshape([batch, n_blocks, self.sizes.n_embedding_tokens, self.sizes.d_model])
    }

    fn sizes(&self) -> EmbedderSizes {
        self.sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{TensorData, s};

    const SIZES: EmbedderSizes = EmbedderSizes { vocab_size: 11, block_length: 4, n_embedding_tokens: 2, d_model: 6 };

    #[test]
    fn concatenated_embeddings_are_rows_of_the_table() {
        let device = Device::flex();
        let config = LookupConfig { d_embedding: 3, projection: Projection::Concat };
        let embedder = config.init(&SIZES, &device).unwrap();
        let ids = Tensor::<3, Int>::from_ints([[[1, 2, 3, 4], [10, 0, 9, 8]]], &device);
        let row = |id: usize| embedder.embedding.weight.val().slice(s![id..id + 1, ..]);
        let expected = Tensor::cat([1, 2, 3, 4, 10, 0, 9, 8].map(row).to_vec(), 0).reshape([1, 2, 2, 6]);
        embedder.forward(ids, None).into_data().assert_eq(&expected.into_data(), true);
    }

    #[test]
    fn projected_embeddings_are_the_strided_convolution() {
        let device = Device::flex();
        let config = LookupConfig { d_embedding: 5, projection: Projection::ProjectionLayer };
        let embedder = config.init(&SIZES, &device).unwrap();
        let ids = Tensor::<3, Int>::from_ints([[[1, 2, 3, 4]]], &device);
        let table: Vec<f64> = embedder.embedding.weight.val().into_data().iter::<f64>().collect();
        let weight: Vec<f64> = embedder.projection.layer.as_ref().unwrap().weight.val().into_data().iter().collect();
        let mut expected = vec![0.0f32; 2 * 6];
        for (embedding, pair) in [[1, 2], [3, 4]].iter().enumerate() {
            for out in 0..6 {
                let sum: f64 = (0..10).map(|i| table[pair[i / 5] * 5 + i % 5] * weight[i * 6 + out]).sum();
                expected[embedding * 6 + out] = sum as f32;
            }
        }
        let got = embedder.forward(ids, None).into_data();
        got.assert_approx_eq::<f32>(&TensorData::new(expected, [1, 1, 2, 6]), burn::tensor::Tolerance::absolute(1e-6));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let config = LookupConfig { d_embedding: 4, projection: Projection::Concat };
        let error = config.init(&SIZES, &Device::flex()).unwrap_err().to_string();
        assert_eq!(error, "the concatenated embedding is 8, but the block decoder's d_model needs 6");
        let sizes = EmbedderSizes { n_embedding_tokens: 3, ..SIZES };
        assert!(matches!(config.init(&sizes, &Device::flex()), Err(ConfigError::NotMultiple { .. })));
    }
}
