//! The caches of a stack of layers.

use burn::tensor::{DType, TensorCreationOptions};

use crate::{CacheError, Counted, LayerCache};

/// The size of a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// Attention layers.
    pub n_layers: usize,
    /// Sequences advanced together.
    pub batch: usize,
    /// Key/value heads a layer; fewer than query heads under grouped-query attention.
    pub n_kv_heads: usize,
    /// Positions a sequence can hold.
    pub capacity: usize,
    /// Features a head.
    pub head_dim: usize,
}

impl CacheConfig {
    /// Bytes of one position of one sequence: keys and values of all layers.
    pub fn bytes_per_position(&self, bytes_per_value: usize) -> usize {
        2 * self.n_layers * self.n_kv_heads * self.head_dim * bytes_per_value
    }

    /// Bytes of the whole cache, `2 · layers · batch · kv_heads · capacity · head_dim · bytes_per_value`.
    pub fn bytes(&self, bytes_per_value: usize) -> usize {
        self.batch * self.capacity * self.bytes_per_position(bytes_per_value)
    }
}

/// One [`LayerCache`] a layer, all of one size and filled alike.
#[derive(Debug, Clone)]
pub struct KvCache {
    config: CacheConfig,
    layers: Vec<LayerCache>,
}

impl KvCache {
    /// An empty cache on a device, or on a device and of a float type: [`LayerCache::new`].
    pub fn new(config: CacheConfig, options: impl Into<TensorCreationOptions>) -> Self {
        let CacheConfig { n_layers, batch, n_kv_heads, capacity, head_dim } = config;
        let options = options.into();
        let layer = |_| LayerCache::new(batch, n_kv_heads, capacity, head_dim, options.clone());
        let layers = (0..n_layers).map(layer).collect();
        Self { config, layers }
    }

    /// The size it was made with.
    pub fn config(&self) -> CacheConfig {
        self.config
    }

    /// Positions held. Layers are filled one after the other; between forward passes all hold the same.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions that still fit.
    pub fn remaining(&self) -> usize {
        self.config.capacity - self.len()
    }

    /// Bytes the keys and values take on the device.
    pub fn bytes(&self) -> usize {
        let value = self.layers.first().map_or(0, LayerCache::bytes_per_value);
        self.config.bytes(value)
    }

    /// From now on views cover a multiple of `multiple` positions, as [`LayerCache::round_views`] says.
    ///
    /// # Panics
    /// If `multiple` is zero.
    pub fn round_views(&mut self, multiple: usize) {
        self.layers.iter_mut().for_each(|layer| layer.round_views(multiple));
    }

    /// Positions that views cover once `new` more are held.
    pub fn view_len(&self, new: usize) -> usize {
        self.layers.first().map_or(new, |layer| layer.view_len(new))
    }

    /// From now on the device counts the positions held: [`LayerCache::count_on_device`].
    ///
    /// # Panics
    /// If there is room for none.
    pub fn count_on_device(&mut self, counted: &Counted) {
        self.layers.iter_mut().for_each(|layer| layer.count_on_device(counted.clone()));
    }

    /// The type of the numbers; `None` if there are no layers.
    pub fn dtype(&self) -> Option<DType> {
        self.layers.first().map(LayerCache::dtype)
    }

    /// The cache of layer `index`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer_mut(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    /// Checks that `new` positions fit before a forward pass begins, so that none stops half way.
    ///
    /// # Errors
    /// [`CacheError::Full`].
    pub fn ensure_room(&self, new: usize) -> Result<(), CacheError> {
        if new > self.remaining() {
            return Err(CacheError::Full { len: self.len(), capacity: self.config.capacity, requested: new });
        }
        Ok(())
    }

    /// Forgets everything held; the memory stays.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(LayerCache::reset);
    }

    /// Keeps the first `len` positions of every layer.
    ///
    /// # Errors
    /// [`CacheError::Truncate`] when fewer are held.
    pub fn truncate(&mut self, len: usize) -> Result<(), CacheError> {
        self.layers.iter_mut().try_for_each(|layer| layer.truncate(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor};

    const CONFIG: CacheConfig = CacheConfig { n_layers: 3, batch: 2, n_kv_heads: 2, capacity: 4, head_dim: 8 };

    #[test]
    fn bytes_follow_the_formula() {
        let cache = KvCache::new(CONFIG, &Device::flex());
        assert_eq!(cache.bytes(), 2 * 3 * 2 * 2 * 4 * 8 * 4);
        assert_eq!(CONFIG.bytes(2), cache.bytes() / 2);
        assert_eq!(CONFIG.bytes_per_position(4) * 2 * 4, cache.bytes());
    }

    #[test]
    fn room_is_checked_for_all_layers_at_once() {
        let mut cache = KvCache::new(CONFIG, &Device::flex());
        let new = Tensor::<4>::ones([2, 2, 3, 8], &Device::flex());
        for layer in 0..3 {
            cache.layer_mut(layer).append(new.clone(), new.clone()).unwrap();
        }
        assert_eq!(cache.ensure_room(1), Ok(()));
        assert_eq!(cache.ensure_room(2), Err(CacheError::Full { len: 3, capacity: 4, requested: 2 }));
        cache.truncate(2).unwrap();
        assert_eq!(cache.remaining(), 2);
        cache.reset();
        assert!(cache.is_empty());
    }
}
