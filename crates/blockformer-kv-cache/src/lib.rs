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
//! Where many sequences come and go, a [`KvPool`] holds them all in pages within a budget of bytes: it opens, forks,
//! shortens and closes sequences, finds pages again by content, and counts every byte. Its numbers are in tensors or in
//! plain memory ([`KvPlace`]).
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
//!
//! The same in a pool, for two sequences that share a beginning:
//!
//! ```
//! use blockformer_kv_cache::{KvPlace, KvPool, KvStorage, PoolConfig};
//! use burn::tensor::{Device, Tensor};
//!
//! # fn main() -> Result<(), blockformer_kv_cache::CacheError> {
//! let (storage, place) = (KvStorage::Float32, KvPlace::Device);
//! let (n_layers, n_kv_heads, head_dim, budget) = (1, 4, 8, 1 << 20);
//! let config = PoolConfig { n_layers, n_kv_heads, head_dim, page_length: 2, budget, storage, place };
//! let mut pool = KvPool::new(config, &Device::flex())?;
//!
//! let first = pool.open(16)?;
//! let new = Tensor::<3>::ones([4, 3, 8], &Device::flex()); // three positions
//! let mut batch = pool.batch(&[first], 3)?;
//! batch.write(0, 0, new.clone(), new); // layer 0, sequence 0 of the batch
//! assert_eq!(batch.read(0, 0, 3).0.dims(), [4, 3, 8]);
//! batch.commit();
//!
//! let second = pool.fork(first, 16)?;
//! assert_eq!(pool.len(second)?, 3);
//! assert_eq!(pool.sequence_usage(second)?.bytes, 3 * 2 * 4 * 8 * 4);
//! assert_eq!(pool.sequence_usage(second)?.shared_bytes, 2 * config.page_bytes()); // nothing was copied
//! # Ok(())
//! # }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod kv_cache;
mod layer;
mod pool;

pub use error::CacheError;
pub use kv_cache::{CacheConfig, KvCache};
pub use layer::{Counted, LayerCache};
pub use pool::{
    HostLayer, HostRows, KvPlace, KvPool, KvStorage, PagedBatch, PoolConfig, PoolUsage, SequenceId, SequenceUsage,
    SharedPages,
};
