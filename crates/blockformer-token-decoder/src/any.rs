//! The closed set of token decoders that a configuration file can name.

use blockformer_kv_cache::KvCache;
use blockformer_nn::{ConfigError, TransformerConfig};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{PrefixConfig, PrefixDecoder, TokenCache, TokenDecoder, TokenDecoderSizes, TokenInput};

/// Which token decoder, and its configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TokenDecoderConfig {
    /// A [`PrefixDecoder`].
    Prefix(PrefixConfig),
}

impl TokenDecoderConfig {
    /// Initialises the token decoder.
    ///
    /// # Errors
    /// A [`ConfigError`] if the sizes do not fit together.
    pub fn try_init(&self, sizes: &TokenDecoderSizes, device: &Device) -> Result<AnyTokenDecoder, ConfigError> {
        match self {
            Self::Prefix(config) => config.init(sizes, device).map(AnyTokenDecoder::Prefix),
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

    /// Positions the token decoder's cache holds: the expanded context and all but the last token of a block.
    pub fn cache_positions(&self, n_embedding_tokens: usize, block_length: usize) -> usize {
        match self {
            Self::Prefix(config) => config.expansion_ratio * n_embedding_tokens + block_length - 1,
        }
    }

    /// The layers.
    pub fn transformer(&self) -> &TransformerConfig {
        match self {
            Self::Prefix(config) => &config.transformer,
        }
    }
}

/// Any of this crate's token decoders.
#[derive(Module, Debug)]
pub enum AnyTokenDecoder {
    /// See [`PrefixDecoder`].
    Prefix(PrefixDecoder),
}

/// The cache of an [`AnyTokenDecoder`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AnyTokenCache {
    /// Of a [`PrefixDecoder`].
    Prefix(KvCache),
}

impl TokenCache for AnyTokenCache {
    fn bytes(&self) -> usize {
        match self {
            Self::Prefix(cache) => cache.bytes(),
        }
    }
}

impl TokenDecoder for AnyTokenDecoder {
    type Cache = AnyTokenCache;

    fn forward(&self, input: TokenInput, cache: Option<&mut AnyTokenCache>) -> Tensor<3> {
        match self {
            Self::Prefix(decoder) => {
                let cache = cache.map(|AnyTokenCache::Prefix(cache)| cache);
                decoder.forward(input, cache)
            }
        }
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Prefix(decoder) => decoder.logits(hidden),
        }
    }

    fn new_cache(&self, rows: usize, device: &Device) -> AnyTokenCache {
        match self {
            Self::Prefix(decoder) => AnyTokenCache::Prefix(decoder.new_cache(rows, device)),
        }
    }

    fn block_length(&self) -> usize {
        match self {
            Self::Prefix(decoder) => decoder.block_length(),
        }
    }

    fn vocab_size(&self) -> usize {
        match self {
            Self::Prefix(decoder) => decoder.vocab_size(),
        }
    }
}
