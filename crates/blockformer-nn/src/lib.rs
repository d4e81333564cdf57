//! The transformer layers that every part of a Block Transformer shares.
//!
//! One [`Layer`] covers the GPT-NeoX style (layer norm, parallel residual, partial rotary embedding, GELU, biases)
//! and the Llama style (RMS norm, sequential residual, full rotary embedding, SwiGLU, grouped-query attention): the
//! difference is data in a [`TransformerConfig`]. A [`Transformer`] is a stack of them with its rotary tables and
//! final norm. There is one forward path: with a [`KvCache`](blockformer_kv_cache::KvCache) it continues behind what
//! the cache holds, without one it starts at position 0.
//!
//! ```
//! use blockformer_nn::{AttentionMask, TransformerConfig};
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! let device = Device::flex();
//! let config = TransformerConfig::llama(64, 2, 4).with_n_kv_heads(2);
//! let stack = config.init(&device);
//! let x = Tensor::<3>::random([1, 5, 64], Distribution::Default, &device);
//!
//! // All at once, and one position at a time through a cache: the same numbers.
//! let full = stack.forward(x.clone(), &AttentionMask::causal(), None);
//! let mut cache = stack.new_cache(1, 5, &device);
//! for i in 0..5 {
//!     let step = stack.forward(x.clone().narrow(1, i, 1), &AttentionMask::causal(), Some(&mut cache));
//!     let difference = (step - full.clone().narrow(1, i, 1)).abs().max().into_scalar::<f32>();
//!     assert!(difference < 1e-5);
//! }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attention;
mod config;
mod error;
mod feed_forward;
mod host;
mod layer;
mod linear;
mod mask;
mod norm;
mod rotary;
mod transformer;

pub use attention::Attention;
pub use config::{Activation, NormKind, NormPosition, Residual, RotaryConfig, TransformerConfig};
pub use error::ConfigError;
pub use feed_forward::FeedForward;
pub use host::{TENSOR_KERNELS_VARIABLE, constant, kernels_serve};
#[cfg(feature = "flex")]
pub use host::{in_place, own};
pub use layer::Layer;
pub use linear::{linear, linear_init, normal_embedding};
pub use mask::AttentionMask;
pub use norm::Norm;
pub use rotary::RotaryTable;
pub use transformer::Transformer;
