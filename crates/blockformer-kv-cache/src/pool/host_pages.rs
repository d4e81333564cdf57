//! Pages in plain memory.

use burn::tensor::{Device, Tensor, TensorData};

use super::PoolConfig;
use super::storage::Run;

/// Keys and values of all layers, each `[n_pages, heads, page_length, head_dim]`: what attention walks through, a head
/// of a page, lies side by side.
#[derive(Debug)]
pub(super) struct HostPages {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    heads: usize,
    page_length: usize,
    head_dim: usize,
    /// Where tensors that are asked for are made.
    device: Device,
}

/// The keys and values of one layer of a pool on the host, each `[n_pages, n_kv_heads, page_length, head_dim]`.
#[derive(Debug)]
pub struct HostLayer<'a> {
    /// Keys of all pages.
    pub keys: &'a mut [f32],
    /// Values of all pages.
    pub values: &'a mut [f32],
}

impl HostPages {
    pub(super) fn new(config: &PoolConfig, n_pages: usize, device: &Device) -> Self {
        let PoolConfig { n_layers, n_kv_heads: heads, head_dim, page_length, .. } = *config;
        let zeros = || vec![0.0; n_pages * heads * page_length * head_dim];
        let layers = (0..n_layers).map(|_| (zeros(), zeros())).collect();
        Self { layers, heads, page_length, head_dim, device: device.clone() }
    }

    pub(super) fn layer_mut(&mut self, layer: usize) -> HostLayer<'_> {
        let (keys, values) = &mut self.layers[layer];
        HostLayer { keys, values }
    }

    /// Where the features of head `head` of row `row` begin.
    fn at(&self, row: usize, head: usize) -> usize {
        let (page, within) = (row / self.page_length, row % self.page_length);
        ((page * self.heads + head) * self.page_length + within) * self.head_dim
    }

    /// Keys and values are `[heads, run, head_dim]`.
    pub(super) fn write(&mut self, layer: usize, run: Run, keys: Tensor<3>, values: Tensor<3>) {
        let (keys, values) = (numbers(keys), numbers(values));
        for head in 0..self.heads {
            for (index, row) in run.clone().enumerate() {
                let (from, to) = ((head * run.len() + index) * self.head_dim, self.at(row, head));
                let (held_keys, held_values) = &mut self.layers[layer];
                held_keys[to..to + self.head_dim].copy_from_slice(&keys[from..from + self.head_dim]);
                held_values[to..to + self.head_dim].copy_from_slice(&values[from..from + self.head_dim]);
            }
        }
    }

    /// Keys and values, each `[heads, all runs, head_dim]`.
    pub(super) fn read(&self, layer: usize, runs: &[Run]) -> (Tensor<3>, Tensor<3>) {
        let n: usize = runs.iter().map(|run| run.len()).sum();
        let read = |held: &[f32]| {
            let mut numbers = Vec::with_capacity(self.heads * n * self.head_dim);
            for head in 0..self.heads {
                for row in runs.iter().cloned().flatten() {
                    let at = self.at(row, head);
                    numbers.extend_from_slice(&held[at..at + self.head_dim]);
                }
            }
            Tensor::from_data(TensorData::new(numbers, [self.heads, n, self.head_dim]), &self.device)
        };
        let (keys, values) = &self.layers[layer];
        (read(keys), read(values))
    }

    /// Copies rows of one page to another, in all layers.
    pub(super) fn copy(&mut self, from: Run, to: Run) {
        for head in 0..self.heads {
            let (source, target) = (self.at(from.start, head), self.at(to.start, head));
            let n = from.len() * self.head_dim;
            for (keys, values) in &mut self.layers {
                keys.copy_within(source..source + n, target);
                values.copy_within(source..source + n, target);
            }
        }
    }
}

fn numbers(tensor: Tensor<3>) -> Vec<f32> {
    match tensor.into_data().convert::<f32>().try_into_vec() {
        Ok(numbers) => numbers,
        Err(error) => panic!("reading keys and values: {error:?}"),
    }
}
