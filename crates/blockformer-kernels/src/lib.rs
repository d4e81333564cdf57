//! CPU kernels for transformers, on plain slices of float32.
//!
//! Nothing here knows a tensor library or a model; `blockformer-cpu` runs Block Transformers with them, and any other
//! model can.
//!
//! - [`PackedMatrix`] holds weights laid out once for products, in float32, bfloat16, 8 or 4 bits; [`matmul`]
//!   multiplies rows of float32 by it, and adds bias, activation and residual on the way out; [`likeliest`] finds the
//!   largest outputs and writes none.
//! - [`attention`] is that of few or many queries over pages of keys and values, with grouped heads; keys and values may
//!   be [stored](Stored) in float32, half precision or eight bits.
//! - [`LayerNorm`], [`RmsNorm`], [`Activation`], [`gated`], [`rotate`], [`softmax`], [`log_softmax`],
//!   [`log_sum_exp`] and [`argmax`] are the rest of a transformer.
//! - [`cross_entropy`] and [`Activation::tangents`] give values and derivatives in one pass, for training.
//!
//! Every kernel is written once over a vector type and compiled for each [`Level`] (AVX-512F, AVX2 with FMA, the
//! target's baseline); products with weights of 8 and 4 bits also for VNNI, those with bfloat16 ones for AVX-512 BF16 and
//! AMX. [`Level::current`] asks the CPU at run time. Work is shared among the threads of the rayon
//! pool it is called in; how many there are changes no result, and neither does what stands beside a row.
//!
//! ```
//! use blockformer_kernels::{Activation, Epilogue, Level, PackedMatrix, Precision, Workspace, matmul};
//!
//! let weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // 2 inputs, 3 outputs
//! let packed = PackedMatrix::new(&weights, 2, 3, Precision::F32);
//! let mut out = [0.0; 3];
//! let epilogue = Epilogue { bias: Some(&[0.0, 0.0, -100.0]), activation: Activation::Relu, ..Epilogue::default() };
//! matmul(Level::current(), &[1.0, 10.0], &packed, epilogue, &mut Workspace::default(), &mut out);
//! assert_eq!(out, [41.0, 52.0, 0.0]);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod activation;
mod attention;
mod level;
mod math;
mod matmul;
mod memory;
mod norm;
mod packed;
mod quantised;
mod rotary;
mod simd;
mod softmax;
mod stored;
mod workspace;

pub use activation::{Activation, gated};
pub use attention::{AttentionInputs, AttentionShape, attention};
pub use level::{LEVEL_VARIABLE, Level};
pub use matmul::{Epilogue, Store, likeliest, matmul};
pub use memory::Numbers;
pub use norm::{LayerNorm, RmsNorm};
pub use packed::{PackedMatrix, Precision};
pub use rotary::rotate;
pub use softmax::{argmax, cross_entropy, log_softmax, log_sum_exp, softmax};
pub use stored::Stored;
pub use workspace::Workspace;
