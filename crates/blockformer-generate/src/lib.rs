//! Generation with Block Transformers, and with the vanilla baseline through the same engine.
//!
//! A prompt is prefilled by the embedder and the block decoder alone; the token decoder never sees it. Then, for each
//! new block, the token decoder decodes `block_length` tokens from the context embedding, in a cache of a handful of
//! entries, and the block decoder takes one step (Ho et al. 2024, section 2.5).
//!
//! An [`Engine`] does this for many [`Request`]s at a time: they come and go as they like, share the keys and values of
//! common prefixes in one pool of fixed size, and get token for token what each would get alone. [`EngineThread`] runs
//! it behind streams, for blocking and for asynchronous callers. [`generate`] is the short way for a few prompts that
//! advance together, [`log_likelihoods`] and [`embed`] ask a model about texts that are there already. [`Sampler`] turns
//! logits into tokens, [`PagedModel`] is what a model must do to be run by the engine, [`LanguageModel`] by `generate`.
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
mod decoding;
mod device_sampler;
mod draft;
mod engine;
mod error;
mod generate;
mod language_model;
mod paged;
mod prompt;
mod read_back;
mod request;
mod sampler;
mod sampling;
mod score;
mod text;
mod thread;
mod vanilla;

pub use any::AnyState;
pub use block::BlockState;
pub use decoding::{Decoding, DeviceDecoding};
pub use engine::{Engine, EngineConfig, EngineStats, RecordingState, RequestId, Speculation};
pub use error::GenerateError;
pub use generate::{GenerateOptions, Generation, Rounds, generate};
pub use language_model::{LanguageModel, RecordableStep, RecordableSteps, likeliest};
pub use paged::{BlockStep, Blocks, Context, PagedModel, RecordableBlock, RecordableTakeIn};
pub use prompt::Alignment;
pub use request::{Completion, Event, FinishReason, Request, SampleOutput, TokenEvent, Usage};
pub use sampler::{LogitsHook, Sampler, TokenLogprobs};
pub use sampling::Sampling;
pub use score::{LogLikelihood, embed, log_likelihoods};
pub use thread::{EngineThread, EventStream};
pub use vanilla::VanillaState;
