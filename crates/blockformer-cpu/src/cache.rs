//! Keys and values of a stack, on the host.

use std::ops::Range;

use blockformer_kv_cache::{HostLayer, HostRows, PagedBatch};
use blockformer_nn::TransformerConfig;

/// Keys and values of all layers, each `[batch, n_kv_heads, capacity, head_dim]`, of sequences that advance together.
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

impl Cache {
    pub(crate) fn new(config: &TransformerConfig, batch: usize, capacity: usize) -> Self {
        let TransformerConfig { n_layers, n_kv_heads, head_dim, .. } = *config;
        Self::of(n_layers, (n_kv_heads, head_dim), batch, capacity)
    }

    /// Of so many layers, heads and features of each.
    pub(crate) fn of(n_layers: usize, heads: (usize, usize), batch: usize, capacity: usize) -> Self {
        let (n_kv_heads, head_dim) = heads;
        let layers = (0..n_layers).map(|_| LayerCache { keys: Vec::new(), values: Vec::new() }).collect();
        let mut cache = Self { layers, n_kv_heads, head_dim, capacity, len: 0 };
        cache.grow(batch);
        cache
    }

    /// Makes room for `batch` sequences, if there is not.
    pub(crate) fn grow(&mut self, batch: usize) {
        let n = batch * self.n_kv_heads * self.capacity * self.head_dim;
        for LayerCache { keys, values } in self.layers.iter_mut().filter(|layer| layer.keys.len() < n) {
            keys.resize(n, 0.0);
            values.resize(n, 0.0);
        }
    }

    /// Positions that each sequence has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Positions held.
    pub(crate) fn len(&self) -> usize {
        self.len
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

    pub(crate) fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| size_of_val(&layer.keys[..]) + size_of_val(&layer.values[..])).sum()
    }
}

/// The sequences that a pass takes positions of, and where their keys and values are: in pages of one length.
pub(crate) enum Kv<'a, 'p> {
    /// Some sequences of a cache, each of which is a page.
    Together { cache: &'a mut Cache, sequences: Range<usize> },
    /// Sequences of a pool.
    Pool(&'a mut PagedBatch<'p>),
}

impl Kv<'_, '_> {
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Together { sequences, .. } => sequences.len(),
            Self::Pool(batch) => batch.rows(),
        }
    }

    /// The first new position of a sequence.
    pub(crate) fn start(&self, row: usize) -> usize {
        match self {
            Self::Together { cache, .. } => cache.len,
            Self::Pool(batch) => batch.start(row),
        }
    }

    pub(crate) fn page_length(&self) -> usize {
        match self {
            Self::Together { cache, .. } => cache.capacity,
            Self::Pool(batch) => batch.config().page_length,
        }
    }

    /// The pages of each sequence, as many for each: short ones are filled up with a page that is not read.
    pub(crate) fn tables(&self, tables: &mut Vec<usize>) {
        tables.clear();
        match self {
            Self::Together { sequences, .. } => tables.extend(sequences.clone()),
            Self::Pool(batch) => {
                let longest = (0..batch.rows()).map(|row| batch.pages(row).len()).max().unwrap_or(0);
                for row in 0..batch.rows() {
                    let pages = batch.pages(row);
                    tables.extend(pages.iter().copied().chain(std::iter::repeat_n(0, longest - pages.len())));
                }
            }
        }
    }

    pub(crate) fn layer(&mut self, layer: usize) -> HostLayer<'_> {
        match self {
            Self::Together { cache, .. } => {
                let LayerCache { keys, values } = &mut cache.layers[layer];
                HostLayer { keys: HostRows::Float32(keys), values: HostRows::Float32(values) }
            }
            Self::Pool(batch) => batch.host_layer(layer),
        }
    }
}
