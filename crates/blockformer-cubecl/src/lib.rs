//! Kernels for decoding on GPUs: what takes many small launches in plain tensor operations, in one.
//!
//! - [`local_attention`]: a few queries over a short cache, such as that of a Block Transformer's token decoder;
//! - [`attend_new`]: the same for the new positions of a decoding step, from the projections on, writing the cache;
//! - [`attend_paged`]: the same for many sequences whose caches lie in the pages of a pool;
//! - [`norm`]: a norm of some rows;
//! - [`product`]: a product of a few rows with weights, and the norm, bias, activation and residual around it;
//! - [`draw`]: a token of every row of logits, by an inverse cumulative distribution, without sorting; [`draw_each`]: each row in
//!   its own way.
//!
//! [`write_rows`] and [`copy_rows`] write rows of a tensor in place.
//!
//! [`Recording`] repeats by one call what was launched kernel by kernel before. [`observe_kernels`] tells which kernels
//! something launches, its own and Burn's, and how long they take. [`keep_kernels`] keeps what was found out about kernels for the next process.
//!
//! They are written in CubeCL, so that one source serves CUDA, Vulkan, Metal and WebGPU, and join the streams of Burn's
//! fusion. A function answers `None` where it has no kernel: on other backends, under autodiff, for shapes it was not
//! made for, and in a build without one of the features `wgpu` and `cuda`. The caller then goes on with plain
//! operations.
//!
//! ```
//! use burn::tensor::{Device, Tensor, activation::softmax};
//!
//! /// `q` is `[batch, heads, 1, head_dim]`, keys and values `[batch, heads, n, head_dim]`.
//! fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
//!     blockformer_cubecl::local_attention(&q, &k, &v).unwrap_or_else(|| {
//!         let scale = (q.dims()[3] as f64).powf(-0.5);
//!         softmax(q.mul_scalar(scale).matmul(k.transpose()), 3).matmul(v)
//!     })
//! }
//!
//! let ones = Tensor::<4>::ones([1, 2, 1, 4], &Device::flex());
//! assert_eq!(attend(ones.clone(), ones.clone(), ones).sum().into_scalar::<f32>(), 8.0);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attention;
mod drawing;
mod few_rows;
#[cfg(feature = "_kernels")]
mod graph;
mod keeping;
#[cfg(feature = "_kernels")]
mod kernels;
mod observation;
mod pages;
mod recording;

use burn::tensor::Tensor;

pub use attention::{MAX_HELD, MAX_KEYS, MAX_QUERIES, NewPositions, attend_new, local_attention, takes_counts};
pub use drawing::{Choice, Filters, Narrowed, Ways, draw, draw_each, draws};
pub use few_rows::{FewRows, MAX_NORM_ROWS, MAX_ROWS, RowActivation, RowMap, RowNorm, norm, product};
pub use keeping::{
    COMPILED_KERNELS_VARIABLE, KERNEL_CACHE_VARIABLE, KernelCacheError, keep_kernels, keep_kernels_of, kernel_cache,
};
pub use observation::{KernelUse, Observe, observe_kernels};
pub use pages::{PagedPositions, attend_paged, copy_rows, takes_pages, write_rows};
pub use recording::{Recordable, Recording};

/// The environment variable that leaves kernels to plain operations, for comparisons: their functions' names, separated by
/// commas, `all` or `none`. Another name is a panic at the first decision, lest something else be compared.
pub const KERNELS_OFF_VARIABLE: &str = "BLOCKFORMER_KERNELS_OFF";

/// Whether there are kernels for tensors like `x`, if their shapes fit: not on backends other than CubeCL's, under autodiff,
/// or in a build without one of the features `wgpu` and `cuda`.
pub fn has_kernels<const D: usize>(x: &Tensor<D>) -> bool {
    #[cfg(feature = "_kernels")]
    {
        kernels::has_kernels(x)
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = x;
        false
    }
}

/// The most cubes along an axis of a launch on any device: what WebGPU promises.
const MAX_CUBES: usize = 65_535;

/// The most tensors of a launch, so that with its sizes it has no more than the 8 buffers that WebGPU promises.
const MAX_TENSORS: usize = 7;
