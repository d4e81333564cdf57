//! The closed set of embedders that a configuration file can name.

use blockformer_nn::ConfigError;
use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Embedder, EmbedderSizes, EncoderConfig, EncoderEmbedder, LookupConfig, LookupEmbedder};

/// Which embedder, and its configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EmbedderConfig {
    /// A [`LookupEmbedder`].
    Lookup(LookupConfig),
    /// An [`EncoderEmbedder`], with or without CLS tokens.
    Encoder(EncoderConfig),
}

impl EmbedderConfig {
    /// Initialises the embedder.
    ///
    /// # Errors
    /// A [`ConfigError`] if the sizes do not fit together.
    pub fn try_init(&self, sizes: &EmbedderSizes, device: &Device) -> Result<AnyEmbedder, ConfigError> {
        match self {
            Self::Lookup(config) => config.init(sizes, device).map(AnyEmbedder::Lookup),
            Self::Encoder(config) => config.init(sizes, device).map(AnyEmbedder::Encoder),
        }
    }

    /// Initialises the embedder.
    ///
    /// # Panics
    /// If the sizes do not fit together.
    pub fn init(&self, sizes: &EmbedderSizes, device: &Device) -> AnyEmbedder {
        match self.try_init(sizes, device) {
            Ok(embedder) => embedder,
            Err(error) => panic!("invalid embedder configuration: {error}"),
        }
    }
}

/// Any of this crate's embedders.
#[derive(Module, Debug)]
pub enum AnyEmbedder {
    /// See [`LookupEmbedder`].
    Lookup(LookupEmbedder),
    /// See [`EncoderEmbedder`].
    Encoder(EncoderEmbedder),
}

impl Embedder for AnyEmbedder {
    fn forward(&self, ids: Tensor<3, Int>, mask: Option<Tensor<3, Bool>>) -> Tensor<4> {
        match self {
            Self::Lookup(embedder) => embedder.forward(ids, mask),
            Self::Encoder(embedder) => embedder.forward(ids, mask),
        }
    }

    fn sizes(&self) -> EmbedderSizes {
        match self {
            Self::Lookup(embedder) => embedder.sizes(),
            Self::Encoder(embedder) => embedder.sizes(),
        }
    }
}
