//! Block embedders: the part of a Block Transformer that turns each block of tokens into one embedding (or a few) for
//! the block decoder (Ho et al. 2024, section 2.2).
//!
//! An embedder implements [`Embedder`]. [`LookupEmbedder`] is the paper's main choice: an embedding table whose
//! vectors of one block are concatenated, or projected together. [`EncoderEmbedder`] reads each block with
//! a small RoBERTa-style encoder, with or without CLS tokens. [`AnyEmbedder`] is the closed set that configurations
//! choose from ([`EmbedderConfig`]).
//!
//! ```
//! use blockformer_embedder::{Embedder, EmbedderConfig, EmbedderSizes, LookupConfig, Projection};
//! use burn::tensor::{Device, Int, Tensor};
//!
//! let device = Device::flex();
//! let sizes = EmbedderSizes { vocab_size: 100, block_length: 4, n_embedding_tokens: 1, d_model: 64 };
//! let config = EmbedderConfig::Lookup(LookupConfig { d_embedding: 16, projection: Projection::Concat });
//! let embedder = config.init(&sizes, &device);
//!
//! let ids = Tensor::<3, Int>::from_ints([[[1, 2, 3, 4], [5, 6, 7, 8]]], &device);
//! assert_eq!(embedder.forward(ids, None).dims(), [1, 2, 1, 64]); // one sequence of two blocks
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod any;
mod embedder;
mod encoder;
mod lookup;
mod projection;

pub use any::{AnyEmbedder, EmbedderConfig};
pub use embedder::{Embedder, EmbedderSizes};
pub use encoder::{ClsTokens, EncoderConfig, EncoderEmbedder};
pub use lookup::{LookupConfig, LookupEmbedder};
pub use projection::{BlockProjection, Projection};
