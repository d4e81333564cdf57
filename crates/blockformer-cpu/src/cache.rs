//! Keys and values of a stack, allocated once.

use std::ops::Range;

use blockformer_nn::TransformerConfig;

/// Keys and values of all layers, each `[batch, n_kv_heads, capacity, head_dim]`.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    layers: Vec<LayerCache>,
    n_kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
}

#[derive(Debug, Clone)]
struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// One layer's keys and values of some sequences.
pub(crate) struct Held<'a> {
    pub(crate) keys: &'a mut [f32],
    pub(crate) values: &'a mut [f32],
}

impl Cache {
    pub(crate) fn new(config: &TransformerConfig, batch: usize, capacity: usize) -> Self {
        let TransformerConfig { n_layers, n_kv_heads, head_dim, .. } = *config;
        let zeros = || vec![0.0; batch * n_kv_heads * capacity * head_dim];
        let layers = (0..n_layers).map(|_| LayerCache { keys: zeros(), values: zeros() }).collect();
        Self { layers, n_kv_heads, head_dim, capacity, len: 0 }
    }

    /// Positions held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Says that `positions` more are held by every layer and sequence.
    ///
    /// # Panics
    /// If there is no room for them.
    pub(crate) fn advance(&mut self, positions: usize) {
        self.len += positions;
        assert!(self.len <= self.capacity, "{} positions in a cache of {}", self.len, self.capacity);
    }

    pub(crate) fn reset(&mut self) {
        self.len = 0;
    }

    pub(crate) fn layer_mut(&mut self, layer: usize, sequences: &Range<usize>) -> Held<'_> {
        let each = self.n_kv_heads * self.capacity * self.head_dim;
        let range = sequences.start * each..sequences.end * each;
        let LayerCache { keys, values } = &mut self.layers[layer];
        Held { keys: &mut keys[range.clone()], values: &mut values[range] }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| size_of_val(&layer.keys[..]) + size_of_val(&layer.values[..])).sum()
    }
}
