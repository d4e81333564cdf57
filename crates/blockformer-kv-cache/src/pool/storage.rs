//! How and where a pool keeps its numbers.

use burn::tensor::{DType, Device, Tensor};

use super::PoolConfig;
use super::host_pages::HostPages;
use super::tensor_pages::{SharedTensorPages, TensorPages};

/// How a pool stores keys and values. Attention always computes in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KvStorage {
    /// As they are.
    #[default]
    Float32,
    /// Rounded to half precision: half the memory, eleven significant bits.
    Float16,
    /// Eight bits a number, and a float32 scale for each position and head: the largest magnitude is 127.
    Int8,
}

impl KvStorage {
    /// The type of the numbers.
    pub fn dtype(self) -> DType {
        match self {
            Self::Float32 => DType::F32,
            Self::Float16 => DType::F16,
            Self::Int8 => DType::I8,
        }
    }

    /// Bytes of the keys and values of one position: `2 · layers · heads · (head_dim · bytes + scale)`.
    pub fn bytes_per_position(self, n_layers: usize, n_kv_heads: usize, head_dim: usize) -> usize {
        let head = match self {
            Self::Float32 => 4 * head_dim,
            Self::Float16 => 2 * head_dim,
            Self::Int8 => head_dim + 4,
        };
        2 * n_layers * n_kv_heads * head
    }
}

/// Where a pool keeps keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KvPlace {
    /// In tensors of the device.
    #[default]
    Device,
    /// In plain memory, page by page and head by head: for models that read and write it themselves, by
    /// [`PagedBatch::host_layer`](super::PagedBatch::host_layer).
    Host,
}

/// Rows of a pool by first and last: row `i` is position `i % page_length` of page `i / page_length`.
pub(super) type Run = core::ops::Range<usize>;

/// Keys and values of all layers.
#[derive(Debug)]
pub(super) enum Storage {
    Device(SharedTensorPages),
    Host(HostPages),
}

impl Storage {
    pub(super) fn new(config: &PoolConfig, n_pages: usize, device: &Device) -> Self {
        match config.place {
            KvPlace::Device => {
                let pages = TensorPages::new(config, n_pages * config.page_length, device);
                Self::Device(SharedTensorPages::new(pages))
            }
            KvPlace::Host => Self::Host(HostPages::new(config, n_pages, device)),
        }
    }

    /// Keys and values are `[heads, run, head_dim]`.
    pub(super) fn write(&mut self, layer: usize, run: Run, keys: Tensor<3>, values: Tensor<3>) {
        match self {
            Self::Device(pages) => pages.lock().write(layer, run, keys, values),
            Self::Host(pages) => pages.write(layer, run, keys, values),
        }
    }

    /// Keys and values, each `[heads, all runs, head_dim]`.
    pub(super) fn read(&self, layer: usize, runs: &[Run]) -> (Tensor<3>, Tensor<3>) {
        match self {
            Self::Device(pages) => pages.lock().read(layer, runs),
            Self::Host(pages) => pages.read(layer, runs),
        }
    }

    /// Copies rows of one page to another, in all layers.
    pub(super) fn copy(&mut self, from: Run, to: Run) {
        match self {
            Self::Device(pages) => pages.lock().copy(from, to),
            Self::Host(pages) => pages.copy(from, to),
        }
    }
}
