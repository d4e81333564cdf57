//! The closed set of token decoders that a configuration file can name.

use blockformer_kv_cache::{CacheConfig, KvCache};
use blockformer_nn::{ConfigError, TransformerConfig};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    CrossAttentionCache, CrossAttentionConfig, CrossAttentionDecoder, PrefixConfig, PrefixDecoder, SummationCache,
    SummationConfig, SummationDecoder, TokenCache, TokenDecoder, TokenDecoderSizes, TokenInput,
};

/// Which token decoder, and its configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TokenDecoderConfig {
    /// A [`PrefixDecoder`].
    Prefix(PrefixConfig),
    /// A [`SummationDecoder`].
    Summation(SummationConfig),
    /// A [`CrossAttentionDecoder`].
    CrossAttention(CrossAttentionConfig),
}

impl TokenDecoderConfig {
    /// Initialises the token decoder.
    ///
    /// # Errors
    /// A [`ConfigError`] if the sizes do not fit together.
    pub fn try_init(&self, sizes: &TokenDecoderSizes, device: &Device) -> Result<AnyTokenDecoder, ConfigError> {
        match self {
            Self::Prefix(config) => config.init(sizes, device).map(AnyTokenDecoder::Prefix),
            Self::Summation(config) => config.init(sizes, device).map(AnyTokenDecoder::Summation),
            Self::CrossAttention(config) => config.init(sizes, device).map(AnyTokenDecoder::CrossAttention),
        }
    }

    /// Initialises the token decoder.
    ///
    /// # Panics
    /// If the sizes do not fit together.
    pub fn init(&self, sizes: &TokenDecoderSizes, device: &Device) -> AnyTokenDecoder {
        match self.try_init(sizes, device) {
            Ok(decoder) => decoder,
            Err(error) => panic!("invalid token decoder configuration: {error}"),
        }
    }

    /// The positions whose keys and values the token decoder's cache holds (the expanded context, where it takes
    /// positions, and tokens), and the bytes of one position if a number takes `bytes_per_value`.
    pub fn cache_size(&self, n_contexts: usize, block_length: usize, bytes_per_value: usize) -> (usize, usize) {
        let per_position = |n_layers, n_kv_heads, head_dim| {
            CacheConfig { n_layers, n_kv_heads, head_dim, batch: 1, capacity: 1 }.bytes_per_position(bytes_per_value)
        };
        let of = |t: &TransformerConfig| per_position(t.n_layers, t.n_kv_heads, t.head_dim);
        match self {
            Self::Prefix(config) => {
                let positions = config.expansion_ratio * n_contexts + block_length - 1;
                (positions, of(&config.transformer))
            }
            Self::Summation(config) => (block_length, of(&config.transformer)),
            Self::CrossAttention(config) => {
                let positions = config.expansion_ratio * n_contexts + block_length;
                (positions, per_position(config.n_layers, config.n_heads, config.head_dim))
            }
        }
    }
}

/// Any of this crate's token decoders.
#[derive(Module, Debug)]
pub enum AnyTokenDecoder {
    /// See [`PrefixDecoder`].
    Prefix(PrefixDecoder),
    /// See [`SummationDecoder`].
    Summation(SummationDecoder),
    /// See [`CrossAttentionDecoder`].
    CrossAttention(CrossAttentionDecoder),
}

/// The cache of an [`AnyTokenDecoder`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AnyTokenCache {
    /// Of a [`PrefixDecoder`].
    Prefix(KvCache),
    /// Of a [`SummationDecoder`].
    Summation(SummationCache),
    /// Of a [`CrossAttentionDecoder`].
    CrossAttention(CrossAttentionCache),
}

impl TokenCache for AnyTokenCache {
    fn bytes(&self) -> usize {
        match self {
            Self::Prefix(cache) => cache.bytes(),
            Self::Summation(cache) => cache.bytes(),
            Self::CrossAttention(cache) => cache.bytes(),
        }
    }
}

impl TokenDecoder for AnyTokenDecoder {
    type Cache = AnyTokenCache;

    fn forward(&self, input: TokenInput, cache: Option<&mut AnyTokenCache>) -> Tensor<3> {
        match (self, cache) {
            (Self::Prefix(decoder), None) => decoder.forward(input, None),
            (Self::Prefix(decoder), Some(AnyTokenCache::Prefix(cache))) => decoder.forward(input, Some(cache)),
            (Self::Summation(decoder), None) => decoder.forward(input, None),
            (Self::Summation(decoder), Some(AnyTokenCache::Summation(cache))) => decoder.forward(input, Some(cache)),
            (Self::CrossAttention(decoder), None) => decoder.forward(input, None),
            (Self::CrossAttention(decoder), Some(AnyTokenCache::CrossAttention(cache))) => {
                decoder.forward(input, Some(cache))
            }
            _ => panic!("the cache of another kind of token decoder"),
        }
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Prefix(decoder) => decoder.logits(hidden),
            Self::Summation(decoder) => decoder.logits(hidden),
            Self::CrossAttention(decoder) => decoder.logits(hidden),
        }
    }

    fn new_cache(&self, rows: usize, device: &Device) -> AnyTokenCache {
        match self {
            Self::Prefix(decoder) => AnyTokenCache::Prefix(decoder.new_cache(rows, device)),
            Self::Summation(decoder) => AnyTokenCache::Summation(decoder.new_cache(rows, device)),
            Self::CrossAttention(decoder) => AnyTokenCache::CrossAttention(decoder.new_cache(rows, device)),
        }
    }

    fn sizes(&self) -> TokenDecoderSizes {
        match self {
            Self::Prefix(decoder) => decoder.sizes(),
            Self::Summation(decoder) => decoder.sizes(),
            Self::CrossAttention(decoder) => decoder.sizes(),
        }
    }
}
