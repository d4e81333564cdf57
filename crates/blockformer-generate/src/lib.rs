//! Generation with Block Transformers, and with the vanilla baseline through the same functions.
//!
//! A prompt is prefilled by the embedder and the block decoder alone; the token decoder never sees it. Then, for each
//! new block, the token decoder decodes `block_length` tokens from the context embedding, in a cache of a handful of
//! entries that every block uses anew, and the block decoder takes one step (Ho et al. 2024, section 2.5).
//!
//! [`generate`] does it all; [`LanguageModel`] has its two halves, prefill and step, for loops of your own, and
//! [`Sampler`] turns logits into tokens.
//!
//! ```
//! use blockformer_generate::{GenerateOptions, generate};
//! use blockformer_model::presets;
//! use burn::tensor::Device;
//! use std::ops::ControlFlow;
//!
//! let device = Device::flex();
//! let mut config = presets::block("block_main_b4_5").unwrap();
//! (config.vocab_size, config.block_decoder.n_layers) = (100, 1); // a toy, with random weights
//! let model = config.init(&device).unwrap();
//!
//! let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
//! let mut streamed = Vec::new();
//! let generated = generate(&model, &[&[1, 2, 3, 4, 5]], &options, &device, |_row, token| {
//!     streamed.push(token);
//!     ControlFlow::Continue(())
//! })
//! .unwrap();
//! assert_eq!(generated[0].tokens, streamed);
//! assert_eq!(streamed.len(), 6);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod any;
mod block;
mod error;
mod generate;
mod language_model;
mod sampler;
mod sampling;
mod vanilla;

pub use any::AnyState;
pub use block::BlockState;
pub use error::GenerateError;
pub use generate::{FinishReason, GenerateOptions, Generation, generate};
pub use language_model::LanguageModel;
pub use sampler::{LogitsHook, Sampler, TokenLogprobs};
pub use sampling::Sampling;
pub use vanilla::VanillaState;
