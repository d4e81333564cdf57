//! Pages as tensors of a device. Where there are kernels, nothing but kernels writes them, in place: captured graphs may write there
//! too.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockformer_cubecl::{copy_rows, write_rows};
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor, s};

use super::PoolConfig;
use super::storage::{KvStorage, Run};

/// Why pages are not written.
const STAYS: &str = "there is no kernel that writes pages where they stay";

/// One tensor of keys or of values, a position a row.
#[derive(Debug)]
enum Rows {
    /// `[positions, heads · head_dim]`, float32 or float16.
    Float(Tensor<2>),
    /// The same in eight bits, and scales `[positions, heads]`.
    Int8(Tensor<2, Int>, Tensor<2>),
}

impl Rows {
    fn new(storage: KvStorage, rows: usize, heads: usize, head_dim: usize, device: &Device) -> Self {
        let shape = [rows, heads * head_dim];
        let dtype = storage.dtype();
        match storage {
            KvStorage::Float32 | KvStorage::Float16 => Self::Float(Tensor::zeros(shape, (device, dtype))),
            KvStorage::Int8 => {
                Self::Int8(Tensor::zeros(shape, (device, dtype)), Tensor::zeros([rows, heads], (device, DType::F32)))
            }
        }
    }

    /// `values`: `[heads, run, head_dim]`.
    fn write(&mut self, run: Run, values: Tensor<3>, stays: bool) {
        let [heads, n, head_dim] = values.dims();
        let values = values.swap_dims(0, 1); // [run, heads, head_dim]
        match self {
            Self::Float(rows) => {
                let values = values.reshape([n, heads * head_dim]);
                if !write_rows(rows, run.start, &values, stays) {
                    assert!(!stays, "{STAYS}");
                    let values = values.cast(rows.dtype());
                    rows.inplace(|rows| rows.slice_assign(s![run, ..], values));
                }
            }
            Self::Int8(rows, scales) => {
                let largest = values.clone().abs().max_dim(2); // [run, heads, 1]
                let scale = largest.div_scalar(127.0).clamp_min(f32::MIN_POSITIVE);
                let values = (values / scale.clone()).round().clamp(-127.0, 127.0).reshape([n, heads * head_dim]);
                let values = values.int().cast(IntDType::I8);
                rows.inplace(|rows| rows.slice_assign(s![run.clone(), ..], values));
                scales.inplace(|scales| scales.slice_assign(s![run, ..], scale.reshape([n, heads])));
            }
        }
    }

    /// `[heads, all runs, head_dim]` in float32; a view where there is one run of float32.
    fn read(&self, runs: &[Run], heads: usize, head_dim: usize) -> Tensor<3> {
        let flat = match self {
            Self::Float(rows) => joined(runs, |run| rows.clone().slice(s![run, ..])).cast(FloatDType::F32),
            Self::Int8(rows, scales) => {
                let values = joined_int(runs, |run| rows.clone().slice(s![run, ..]));
                let scales = joined(runs, |run| scales.clone().slice(s![run, ..]));
                let n = scales.dims()[0];
                let values = values.cast(FloatDType::F32).reshape([n, heads, head_dim]);
                (values * scales.reshape([n, heads, 1])).reshape([n, heads * head_dim])
            }
        };
        let n = flat.dims()[0];
        flat.reshape([n, heads, head_dim]).swap_dims(0, 1)
    }

    fn copy(&mut self, from: Run, to: Run, stays: bool) {
        match self {
            Self::Float(rows) => {
                if !copy_rows(rows, from.clone(), to.start, stays) {
                    assert!(!stays, "{STAYS}");
                    let held = contiguous(rows.clone().slice(s![from, ..]));
                    rows.inplace(|rows| rows.slice_assign(s![to, ..], held));
                }
            }
            Self::Int8(rows, scales) => {
                let held = rows.clone().slice(s![from.clone(), ..]).mul_scalar(1);
                rows.inplace(|rows| rows.slice_assign(s![to.clone(), ..], held));
                let held = contiguous(scales.clone().slice(s![from, ..]));
                scales.inplace(|scales| scales.slice_assign(s![to, ..], held));
            }
        }
    }
}

/// A copy of its own, so that no view keeps the pool from being written in place.
fn contiguous(view: Tensor<2>) -> Tensor<2> {
    view.mul_scalar(1.0)
}

fn joined(runs: &[Run], slice: impl Fn(Run) -> Tensor<2>) -> Tensor<2> {
    let mut parts: Vec<_> = runs.iter().cloned().map(slice).collect();
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
}

fn joined_int(runs: &[Run], slice: impl Fn(Run) -> Tensor<2, Int>) -> Tensor<2, Int> {
    let mut parts: Vec<_> = runs.iter().cloned().map(slice).collect();
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
}

/// Keys and values of all layers.
#[derive(Debug)]
pub(super) struct TensorPages {
    layers: Vec<(Rows, Rows)>,
    heads: usize,
    head_dim: usize,
    /// Whether captured graphs may write to them, so that they have to stay where they are.
    stay: bool,
}

impl Drop for TensorPages {
    /// Memory of their own serves nothing else until it is given back.
    fn drop(&mut self) {
        let device = self.layers.first().map(|(Rows::Float(x) | Rows::Int8(_, x), _)| x.device());
        self.layers.clear();
        // Where devices may not be waited for, it goes back with the next clean-up.
        if let Some(device) = device.filter(|_| !cfg!(target_family = "wasm") && !std::thread::panicking()) {
            let _ = device.flush(); // an error shows where something is read
            device.memory_cleanup();
        }
    }
}

/// The pages of a pool, which others may write to as well.
#[derive(Debug, Clone)]
pub(super) struct SharedTensorPages(Arc<Mutex<TensorPages>>);

impl SharedTensorPages {
    pub(super) fn new(pages: TensorPages) -> Self {
        Self(Arc::new(Mutex::new(pages)))
    }

    /// The pages; what a panic has left behind is still pages.
    pub(super) fn lock(&self) -> MutexGuard<'_, TensorPages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TensorPages {
    pub(super) fn new(config: &PoolConfig, rows: usize, device: &Device) -> Self {
        let (heads, head_dim) = (config.n_kv_heads, config.head_dim);
        let rows = || Rows::new(config.storage, rows, heads, head_dim, device);
        let layers = || (0..config.n_layers).map(|_| (rows(), rows())).collect();
        // In memory of their own: otherwise the allocator would make all its pages as large as these, and every captured graph
        // keeps some.
        let layers = device.memory_persistent_allocations((), |()| layers());
        Self { layers, heads, head_dim, stay: false }
    }

    /// Keys and values are `[heads, run, head_dim]`.
    pub(super) fn write(&mut self, layer: usize, run: Run, keys: Tensor<3>, values: Tensor<3>) {
        let (held_keys, held_values) = &mut self.layers[layer];
        held_keys.write(run.clone(), keys, self.stay);
        held_values.write(run, values, self.stay);
    }

    /// Keys and values, each `[heads, all runs, head_dim]`.
    pub(super) fn read(&self, layer: usize, runs: &[Run]) -> (Tensor<3>, Tensor<3>) {
        let (keys, values) = &self.layers[layer];
        (keys.read(runs, self.heads, self.head_dim), values.read(runs, self.heads, self.head_dim))
    }

    /// Whether keys and values are stored as floats.
    pub(super) fn are_floats(&self) -> bool {
        self.layers.iter().all(|layer| matches!(layer, (Rows::Float(_), Rows::Float(_))))
    }

    /// Whether they stay where they are from now on.
    pub(super) fn stay(&mut self, stay: bool) {
        self.stay = stay;
    }

    /// Whether they stay where they are.
    pub(super) fn stays(&self) -> bool {
        self.stay
    }

    /// The keys of the first layer, if they are stored as floats.
    pub(super) fn first_floats(&self) -> Option<&Tensor<2>> {
        match self.layers.first() {
            Some((Rows::Float(keys), Rows::Float(_))) => Some(keys),
            _ => None,
        }
    }

    /// Keys and values of a layer, if they are stored as floats.
    pub(super) fn floats_mut(&mut self, layer: usize) -> Option<(&mut Tensor<2>, &mut Tensor<2>)> {
        match &mut self.layers[layer] {
            (Rows::Float(keys), Rows::Float(values)) => Some((keys, values)),
            _ => None,
        }
    }

    /// Copies rows, in all layers.
    pub(super) fn copy(&mut self, from: Run, to: Run) {
        for (keys, values) in &mut self.layers {
            keys.copy(from.clone(), to.clone(), self.stay);
            values.copy(from.clone(), to.clone(), self.stay);
        }
    }
}
