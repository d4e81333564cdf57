//! Pages in plain memory.

use burn::tensor::{Device, Tensor, TensorData};
use half::f16;

use super::PoolConfig;
use super::storage::{KvStorage, Run};

/// Keys or values of a layer, `[n_pages, n_kv_heads, page_length, head_dim]`: what attention walks through, a head of a
/// page, lies side by side. A row is a position of a head.
#[derive(Debug)]
enum Rows {
    Float32(Vec<f32>),
    Float16(Vec<f16>),
    /// Numbers, and what those of each row are multiplied by.
    Int8(Vec<i8>, Vec<f32>),
}

/// Keys or values of one layer of a pool on the host, `[n_pages, n_kv_heads, page_length, head_dim]`. A row is a position
/// of a head, `(page · n_kv_heads + head) · page_length + position in the page`.
#[derive(Debug)]
pub enum HostRows<'a> {
    /// As they are.
    Float32(&'a mut [f32]),
    /// In half precision.
    Float16(&'a mut [f16]),
    /// In eight bits.
    Int8 {
        /// The numbers.
        numbers: &'a mut [i8],
        /// What the numbers of each row are multiplied by.
        scales: &'a mut [f32],
    },
}

impl HostRows<'_> {
    /// Writes row `row`, whose numbers are as many as a head has features, rounded as the pool stores them.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn write(&mut self, row: usize, values: &[f32]) {
        let at = row * values.len()..(row + 1) * values.len();
        match self {
            Self::Float32(numbers) => numbers[at].copy_from_slice(values),
            Self::Float16(numbers) => {
                numbers[at].iter_mut().zip(values).for_each(|(number, value)| *number = f16::from_f32(*value));
            }
            Self::Int8 { numbers, scales } => {
                let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
                // Numbers that are not finite spoil the row: they must not vanish.
                let finite = values.iter().all(|value| value.is_finite());
                let scale = if finite { (largest / 127.0).max(f32::MIN_POSITIVE) } else { f32::NAN };
                scales[row] = scale;
                // A conversion of what is out of range gives the nearest, so nothing wraps around.
                let rounded = |value: &f32| (value / scale).round_ties_even() as i8;
                numbers[at].iter_mut().zip(values).for_each(|(number, value)| *number = rounded(value));
            }
        }
    }
}

impl Rows {
    fn new(storage: KvStorage, rows: usize, head_dim: usize) -> Self {
        match storage {
            KvStorage::Float32 => Self::Float32(vec![0.0; rows * head_dim]),
            KvStorage::Float16 => Self::Float16(vec![f16::ZERO; rows * head_dim]),
            KvStorage::Int8 => Self::Int8(vec![0; rows * head_dim], vec![0.0; rows]),
        }
    }

    fn borrow(&mut self) -> HostRows<'_> {
        match self {
            Self::Float32(numbers) => HostRows::Float32(numbers),
            Self::Float16(numbers) => HostRows::Float16(numbers),
            Self::Int8(numbers, scales) => HostRows::Int8 { numbers, scales },
        }
    }

    /// Appends row `row` in float32.
    fn read(&self, row: usize, head_dim: usize, into: &mut Vec<f32>) {
        let at = row * head_dim..(row + 1) * head_dim;
        match self {
            Self::Float32(numbers) => into.extend_from_slice(&numbers[at]),
            Self::Float16(numbers) => into.extend(numbers[at].iter().map(|number| number.to_f32())),
            Self::Int8(numbers, scales) => {
                into.extend(numbers[at].iter().map(|number| f32::from(*number) * scales[row]));
            }
        }
    }

    /// Copies `n` rows.
    fn copy(&mut self, from: usize, to: usize, n: usize, head_dim: usize) {
        let numbers = from * head_dim..(from + n) * head_dim;
        match self {
            Self::Float32(held) => held.copy_within(numbers, to * head_dim),
            Self::Float16(held) => held.copy_within(numbers, to * head_dim),
            Self::Int8(held, scales) => {
                held.copy_within(numbers, to * head_dim);
                scales.copy_within(from..from + n, to);
            }
        }
    }
}

/// Keys and values of all layers.
#[derive(Debug)]
pub(super) struct HostPages {
    layers: Vec<(Rows, Rows)>,
    heads: usize,
    page_length: usize,
    head_dim: usize,
    /// Where tensors that are asked for are made.
    device: Device,
}

/// The keys and values of one layer of a pool on the host.
#[derive(Debug)]
pub struct HostLayer<'a> {
    /// Keys of all pages.
    pub keys: HostRows<'a>,
    /// Values of all pages.
    pub values: HostRows<'a>,
}

impl HostPages {
    pub(super) fn new(config: &PoolConfig, n_pages: usize, device: &Device) -> Self {
        let PoolConfig { n_layers, n_kv_heads: heads, head_dim, page_length, storage, .. } = *config;
        let rows = || Rows::new(storage, n_pages * heads * page_length, head_dim);
        let layers = (0..n_layers).map(|_| (rows(), rows())).collect();
        Self { layers, heads, page_length, head_dim, device: device.clone() }
    }

    pub(super) fn layer_mut(&mut self, layer: usize) -> HostLayer<'_> {
        let (keys, values) = &mut self.layers[layer];
        HostLayer { keys: keys.borrow(), values: values.borrow() }
    }

    /// The row of head `head` of position `position` of the pool.
    fn row(&self, position: usize, head: usize) -> usize {
        let (page, within) = (position / self.page_length, position % self.page_length);
        (page * self.heads + head) * self.page_length + within
    }

    /// Keys and values are `[heads, run, head_dim]`.
    pub(super) fn write(&mut self, layer: usize, run: Run, keys: Tensor<3>, values: Tensor<3>) {
        let (keys, values) = (numbers(keys), numbers(values));
        for head in 0..self.heads {
            for (index, position) in run.clone().enumerate() {
                let from = (head * run.len() + index) * self.head_dim;
                let (from, row) = (from..from + self.head_dim, self.row(position, head));
                let HostLayer { keys: mut held_keys, values: mut held_values } = self.layer_mut(layer);
                held_keys.write(row, &keys[from.clone()]);
                held_values.write(row, &values[from]);
            }
        }
    }

    /// Keys and values, each `[heads, all runs, head_dim]`.
    pub(super) fn read(&self, layer: usize, runs: &[Run]) -> (Tensor<3>, Tensor<3>) {
        let n: usize = runs.iter().map(|run| run.len()).sum();
        let read = |held: &Rows| {
            let mut numbers = Vec::with_capacity(self.heads * n * self.head_dim);
            for head in 0..self.heads {
                for position in runs.iter().cloned().flatten() {
                    held.read(self.row(position, head), self.head_dim, &mut numbers);
                }
            }
            Tensor::from_data(TensorData::new(numbers, [self.heads, n, self.head_dim]), &self.device)
        };
        let (keys, values) = &self.layers[layer];
        (read(keys), read(values))
    }

    /// Copies positions of one page to another, in all layers.
    pub(super) fn copy(&mut self, from: Run, to: Run) {
        for head in 0..self.heads {
            let (source, target) = (self.row(from.start, head), self.row(to.start, head));
            for (keys, values) in &mut self.layers {
                keys.copy(source, target, from.len(), self.head_dim);
                values.copy(source, target, from.len(), self.head_dim);
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
