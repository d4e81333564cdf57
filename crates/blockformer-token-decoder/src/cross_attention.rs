//! The cross-attention token decoder: a T5-style decoder whose layers attend to the expanded context embedding as T5's
//! attend to its encoder (Ho et al. 2024, section 2.4; Raffel et al. 2020).
//!
//! Each layer adds three sublayers to the residual stream, each behind an RMS norm: causal self-attention with a
//! learned bias by relative position, attention to the context, and a ReLU network. Scores are not scaled, there are no
//! biases, and the output projection is the embedding table, on hidden states multiplied by `d_model^-1/2`.

mod attention;

use blockformer_kv_cache::{CacheConfig, KvCache};
use blockformer_nn::{ConfigError, linear, linear_init};
use burn::module::Module;
use burn::nn::{Linear, RmsNorm, RmsNormConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Bool, Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::summation::{behind_real, behind_start};
use crate::{ContextExpansion, Expansion, TokenCache, TokenDecoder, TokenDecoderSizes, TokenInput, Vocabulary};
pub use attention::{CrossAttentionHeads, RelativeBias};

/// Configuration of a [`CrossAttentionDecoder`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossAttentionConfig {
    /// Features of the residual stream.
    pub d_model: usize,
    /// Layers.
    pub n_layers: usize,
    /// CrossAttentionHeads.
    pub n_heads: usize,
    /// Features a head.
    pub head_dim: usize,
    /// Inner features of the feed-forward network.
    pub d_ff: usize,
    /// Epsilon of the norms; 1e-6 in T5.
    pub norm_eps: f64,
    /// How the context embedding becomes the positions attended to.
    pub expansion: Expansion,
    /// How many, a context embedding.
    pub expansion_ratio: usize,
    /// The token that stands before the first of a block.
    pub start_token_id: u32,
    /// Buckets of relative positions; 32 in T5.
    pub relative_buckets: usize,
    /// The distance from which all share the last bucket; 128 in T5.
    pub relative_max_distance: usize,
}

impl CrossAttentionConfig {
    /// Initialises the decoder as T5 does: embeddings of standard deviation 1, projections by their fan-in.
    ///
    /// # Errors
    /// A [`ConfigError`] if the sizes do not fit together.
    pub fn init(&self, sizes: &TokenDecoderSizes, device: &Device) -> Result<CrossAttentionDecoder, ConfigError> {
        self.validate(sizes)?;
        let d_model = self.d_model;
        Ok(CrossAttentionDecoder {
            expansion: ContextExpansion::new(self.expansion, self.expansion_ratio, d_model, sizes, device)?,
            vocabulary: Vocabulary::new(sizes.vocab_size, d_model, true, 1.0, device),
            relative_bias: RelativeBias::new(self, device),
            layers: (0..self.n_layers).map(|_| CrossAttentionLayer::new(self, device)).collect(),
            final_norm: RmsNormConfig::new(d_model).with_epsilon(self.norm_eps).init(device),
            sizes: *sizes,
            d_model,
            n_heads: self.n_heads,
            head_dim: self.head_dim,
            start_token_id: self.start_token_id as usize,
        })
    }

    fn validate(&self, sizes: &TokenDecoderSizes) -> Result<(), ConfigError> {
        sizes.validate()?;
        // Attention to the context knows no places: contexts of several blocks could not be told apart.
        sizes.check_one_context_block("a cross-attention token decoder")?;
        let positive = [
            ("token_decoder.d_model", self.d_model),
            ("token_decoder.n_layers", self.n_layers),
            ("token_decoder.n_heads", self.n_heads),
            ("token_decoder.head_dim", self.head_dim),
            ("token_decoder.d_ff", self.d_ff),
        ];
        for (field, value) in positive {
            ConfigError::positive(field, value)?;
            ConfigError::bounded(field, value)?;
        }
        ConfigError::bounded("token_decoder.expansion_ratio", self.expansion_ratio)?;
        ConfigError::in_range("token_decoder.norm_eps", self.norm_eps, 0.0, 1.0)?;
        ConfigError::bounded("token_decoder.relative_max_distance", self.relative_max_distance)?;
        let buckets = self.relative_buckets as f64;
        ConfigError::in_range("token_decoder.relative_buckets", buckets, 2.0, self.relative_max_distance as f64)?;
        sizes.check_token("token_decoder.start_token_id", self.start_token_id)
    }
}

/// A T5-style decoder that attends to expanded context embeddings.
#[derive(Module, Debug)]
pub struct CrossAttentionDecoder {
    /// Context embedding to the positions attended to.
    pub expansion: ContextExpansion,
    /// Token embeddings, which are the output projection too.
    pub vocabulary: Vocabulary,
    /// The bias of self-attention, shared by all layers.
    pub relative_bias: RelativeBias,
    /// The layers.
    pub layers: Vec<CrossAttentionLayer>,
    /// Applied to the output of the last layer.
    pub final_norm: RmsNorm,
    #[module(skip)]
    sizes: TokenDecoderSizes,
    d_model: usize,
    n_heads: usize,
    head_dim: usize,
    start_token_id: usize,
}

/// Self-attention, attention to the context, and a ReLU network.
#[derive(Module, Debug)]
pub struct CrossAttentionLayer {
    /// Before self-attention.
    pub self_norm: RmsNorm,
    /// Self-attention.
    pub self_attention: CrossAttentionHeads,
    /// Before attention to the context.
    pub cross_norm: RmsNorm,
    /// Attention to the context.
    pub cross_attention: CrossAttentionHeads,
    /// Before the feed-forward network.
    pub feed_forward_norm: RmsNorm,
    /// `d_model -> d_ff`.
    pub up: Linear,
    /// `d_ff -> d_model`.
    pub down: Linear,
}

impl CrossAttentionLayer {
    fn new(config: &CrossAttentionConfig, device: &Device) -> Self {
        let CrossAttentionConfig { d_model, d_ff, .. } = *config;
        let norm = || RmsNormConfig::new(d_model).with_epsilon(config.norm_eps).init(device);
        let projection = |input: usize, output| linear_init(input, output, false, (input as f64).powf(-0.5), device);
        Self {
            self_norm: norm(),
            self_attention: CrossAttentionHeads::new(config, device),
            cross_norm: norm(),
            cross_attention: CrossAttentionHeads::new(config, device),
            feed_forward_norm: norm(),
            up: projection(d_model, d_ff),
            down: projection(d_ff, d_model),
        }
    }

    fn feed_forward(&self, x: Tensor<3>) -> Tensor<3> {
        linear(&self.down, relu(linear(&self.up, self.feed_forward_norm.forward(x))))
    }
}

/// The cache of a [`CrossAttentionDecoder`].
#[derive(Debug, Clone)]
pub struct CrossAttentionCache {
    tokens: KvCache,
    /// Keys and values of the context, one pair a layer; none before a block begins.
    context: Vec<(Tensor<4>, Tensor<4>)>,
    /// Their bytes once there are any.
    context_bytes: usize,
}

impl TokenCache for CrossAttentionCache {
    fn bytes(&self) -> usize {
        self.tokens.bytes() + self.context_bytes
    }
}

impl TokenDecoder for CrossAttentionDecoder {
    type Cache = CrossAttentionCache;

    fn forward(&self, input: TokenInput, mut cache: Option<&mut CrossAttentionCache>) -> Tensor<3> {
        let TokenInput { context, ids, mask } = input;
        let begins = context.is_some();
        assert!(begins || mask.is_none(), "only blocks that begin can hold padding");
        let rows = context.as_ref().map(|context| context.dims()[0]);
        let pairs = match context {
            Some(context) => {
                let context = self.expansion.forward(context);
                let pairs: Vec<_> =
                    self.layers.iter().map(|layer| layer.cross_attention.keys_values(context.clone())).collect();
                if let Some(cache) = cache.as_deref_mut() {
                    cache.tokens.reset();
                    cache.context.clone_from(&pairs);
                }
                pairs
            }
            None => cache.as_ref().map(|cache| cache.context.clone()).unwrap_or_default(),
        };
        assert!(!pairs.is_empty(), "tokens continue no block: give its context");
        let device = pairs[0].0.device();
        let ids = match rows {
            Some(rows) => Some(behind_start(ids, self.start_token_id, rows, &device)),
            None => ids,
        };
        let Some(ids) = ids else { panic!("neither a context embedding nor tokens") };
        self.layers_forward(ids, mask.map(behind_real), &pairs, cache.map(|cache| &mut cache.tokens))
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.vocabulary.logits(hidden.mul_scalar((self.d_model as f64).powf(-0.5)))
    }

    fn new_cache(&self, rows: usize, device: &Device) -> CrossAttentionCache {
        let config = CacheConfig {
            n_layers: self.layers.len(),
            batch: rows,
            n_kv_heads: self.n_heads,
            capacity: self.sizes.block_length,
            head_dim: self.head_dim,
        };
        let dtype = self.final_norm.gamma.val().dtype();
        let positions = rows * self.sizes.n_embedding_tokens * self.expansion.ratio();
        let context_bytes = self.layers.len() * 2 * positions * self.n_heads * self.head_dim * dtype.size();
        CrossAttentionCache { tokens: KvCache::new(config, (device, dtype)), context: Vec::new(), context_bytes }
    }

    fn sizes(&self) -> TokenDecoderSizes {
        self.sizes
    }
}

impl CrossAttentionDecoder {
    fn layers_forward(
        &self,
        ids: Tensor<2, Int>,
        mask: Option<Tensor<2, Bool>>,
        context: &[(Tensor<4>, Tensor<4>)],
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let end = start + ids.dims()[1];
        assert!(end <= self.sizes.block_length, "{end} positions in a block of {}", self.sizes.block_length);
        let mut x = self.vocabulary.embed(ids);
        let bias = self.relative_bias.forward(start, end, mask); // [rows or 1, heads, end - start, end]
        for (index, (layer, (keys, values))) in self.layers.iter().zip(context).enumerate() {
            let normed = layer.self_norm.forward(x.clone());
            let (k, v) = layer.self_attention.keys_values(normed.clone());
            let (k, v) = match cache.as_deref_mut().map(|cache| cache.layer_mut(index).append(k.clone(), v.clone())) {
                Some(Ok(held)) => held,
                Some(Err(error)) => panic!("self-attention with a cache: {error}"),
                None => (k, v),
            };
            x = x + layer.self_attention.attend(normed, k, v, Some(bias.clone()));
            let normed = layer.cross_norm.forward(x.clone());
            x = x + layer.cross_attention.attend(normed, keys.clone(), values.clone(), None);
            x = x.clone() + layer.feed_forward(x);
        }
        self.final_norm.forward(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token_decoder::assert_steps_match_the_whole_block;

    #[test]
    fn tokens_one_by_one_match_the_whole_block() {
        let device = Device::flex();
        let sizes = TokenDecoderSizes {
            vocab_size: 13,
            block_length: 4,
            n_embedding_tokens: 1,
            context_blocks: 1,
            d_context: 12,
        };
        let config = CrossAttentionConfig {
            d_model: 16,
            n_layers: 2,
            n_heads: 2,
            head_dim: 8,
            d_ff: 24,
            norm_eps: 1e-6,
            expansion: Expansion::Layer,
            expansion_ratio: 3,
            start_token_id: 0,
            relative_buckets: 32,
            relative_max_distance: 128,
        };
        let decoder = config.init(&sizes, &device).unwrap();
        assert_steps_match_the_whole_block(&decoder);
        let several = TokenDecoderSizes { context_blocks: 2, ..sizes };
        let error = config.init(&several, &device).unwrap_err().to_string();
        assert_eq!(error, "context_blocks is 2, but a cross-attention token decoder needs 1");
    }
}
