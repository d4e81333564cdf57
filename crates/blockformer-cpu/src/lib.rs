//! Generation on a CPU with hand-written kernels.
//!
//! [`CpuModel::new`] takes a model apart and packs its weights once, in one of four [`Precision`]s (the
//! projection to the vocabulary with at least 8 bits). What is left is a
//! [`PagedModel`](blockformer_generate::PagedModel), which the [`Engine`](blockformer_generate::Engine) runs, and a
//! [`LanguageModel`](blockformer_generate::LanguageModel): [`generate`](blockformer_generate::generate) runs it like
//! any other. In float32 it gives the numbers of the model it was made of, up to rounding; every step works in buffers
//! made once, on slices, without a tensor operation in between, and the vocabulary is projected to for the positions
//! whose logits are wanted only.
//!
//! It knows lookup and encoder embedders, all layers of `blockformer-nn`, prefix, summation and cross-attention token
//! decoders, and the vanilla transformer. Training, gradients and other devices have nothing to do with it.
//!
//! No sum depends on what is computed beside it, so an engine's requests get the very bits they get alone, however
//! prompts are cut and whether blocks are decoded token by token or as a whole.
//!
//! ```
//! use blockformer_cpu::{CpuModel, Precision};
//! use blockformer_generate::{GenerateOptions, generate};
//! use blockformer_model::{AnyModel, ModelConfig, presets};
//! use burn::tensor::Device;
//! use std::ops::ControlFlow;
//!
//! let device = Device::flex();
//! let mut config = presets::block("block_main_b4_5").unwrap();
//! (config.vocab_size, config.block_decoder.n_layers) = (100, 1); // a toy, with random weights
//! let config = ModelConfig::BlockTransformer(config);
//! let model = AnyModel::new(&config, &device).unwrap();
//!
//! let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
//! let plain = generate(&model, &[&[1, 2, 3, 4, 5]], &options, &device, |_, _| ControlFlow::Continue(())).unwrap();
//! let packed = CpuModel::new(&config, model, Precision::F32).unwrap();
//! let same = generate(&packed, &[&[1, 2, 3, 4, 5]], &options, &device, |_, _| ControlFlow::Continue(())).unwrap();
//! assert_eq!(plain[0].tokens, same[0].tokens);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod block;
mod cache;
mod cross_attention;
mod embedder;
mod encoder;
mod ends;
mod error;
mod lengths;
mod model;
mod paged;
mod profile;
mod stack;
mod token_decoder;
mod tokens;
mod vanilla;
mod weights;
mod work;

pub use blockformer_kernels::{Level, Precision};
pub use error::PackError;
pub use model::{CpuModel, CpuState};
pub use paged::CpuBlock;
pub use profile::{Profile, StackProfile};
