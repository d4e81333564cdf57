//! Key/value caches for transformer inference on [Burn](https://burn.dev).
//!
//! A [`LayerCache`] holds the keys and values of one attention layer in two tensors that are allocated once, at
//! their full capacity, and written in place. A [`KvCache`] is one such cache per layer. Both refuse to take more
//! than they were made for: [`LayerCache::append`] answers [`CacheError::Full`] and leaves the cache as it was.
//!
//! In a Block Transformer the block decoder's cache has one entry a *block* of tokens, and the token decoder's cache
//! has a fixed handful of entries that are used again for every block (Ho et al. 2024, section 2.4). Both are
//! `KvCache`s; only their [`CacheConfig`]s differ.
//!
//! ```
//! use blockformer_kv_cache::{CacheConfig, KvCache};
//! use burn::tensor::{Device, Tensor};
//!
//! let device = Device::flex();
//! let config = CacheConfig { n_layers: 2, batch: 1, n_kv_heads: 4, capacity: 16, head_dim: 8 };
//! let mut cache = KvCache::new(config, &device);
//!
//! let new = Tensor::<4>::ones([1, 4, 3, 8], &device); // three positions
//! let (keys, _values) = cache.layer_mut(0).append(new.clone(), new).unwrap();
//! assert_eq!(keys.dims(), [1, 4, 3, 8]);
//! assert_eq!(cache.layer_mut(0).remaining(), 13);
//! assert_eq!(config.bytes(4), 2 * 2 * 4 * 16 * 8 * 4); // keys and values of 2 layers in float32
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod kv_cache;
mod layer;

pub use error::CacheError;
pub use kv_cache::{CacheConfig, KvCache};
pub use layer::LayerCache;
