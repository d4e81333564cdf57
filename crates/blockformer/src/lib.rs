//! Block Transformers (Ho et al., NeurIPS 2024, arXiv 2406.02657) on [Burn](https://burn.dev).
//!
//! A Block Transformer cuts text into blocks of a few tokens, models the sequence of blocks globally, and decodes the
//! tokens of each block locally. Its KV cache has one entry a block, and prompts need no token-decoder prefill.
//!
//! This crate brings the family together: it re-exports the library crates as modules, chooses backends by features,
//! opens devices by name ([`device()`]), has a bundled model ([`bundled`]), checks any device in seconds
//! ([`self_check()`]) and against numbers of the authors' implementation ([`verify`]).
//!
//! ```no_run
//! use blockformer::prelude::*;
//! use std::{ops::ControlFlow, path::Path};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = blockformer::device("cpu")?;
//! let (_config, model) = AnyModel::load(Path::new("my-model"), &device)?;
//! let tokenizer = Tokenizer::from_file("my-model/tokenizer.json")?;
//!
//! let prompt = tokenizer.encode("Call me")?;
//! let options = GenerateOptions { max_new_tokens: 40, ..GenerateOptions::default() };
//! let mut text = tokenizer.decode_stream();
//! generate(&model, &[&prompt], &options, &device, |_, token| {
//!     if let Ok(Some(piece)) = text.push(token) {
//!         print!("{piece}");
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod bundled;
mod decoding;
mod devices;
mod open;
pub mod self_check;
mod serving;
pub mod verify;
#[cfg(feature = "remote")]
pub mod worker;

pub use blockformer_bench as bench;
pub use blockformer_block_decoder as block_decoder;
pub use blockformer_cpu as cpu;
pub use blockformer_cubecl as cubecl;
pub use blockformer_cubecl::{KERNEL_CACHE_VARIABLE, KernelCacheError, keep_kernels, kernel_cache};
pub use blockformer_data as data;
pub use blockformer_embedder as embedder;
pub use blockformer_eval as eval;
pub use blockformer_generate as generate;
pub use blockformer_kernels as kernels;
pub use blockformer_kv_cache as kv_cache;
pub use blockformer_model as model;
pub use blockformer_nn as nn;
pub use blockformer_token_decoder as token_decoder;
pub use blockformer_train as train;
pub use decoding::{decoding, exclusive_decoding, exclusive_recording};
pub use devices::{DeviceError, available_devices, default_device, device, is_cpu};
pub use open::{OpenError, check_tokenizer, open};
pub use self_check::{SelfCheckError, SelfCheckReport, self_check};
pub use serving::{ServingBlock, ServingModel};

/// What most programs need.
pub mod prelude {
    pub use blockformer_data::{Documents, InMemoryCorpus, PackedDataset, PackingConfig, TokenCorpus, Tokenizer};
    pub use blockformer_embedder::{AnyEmbedder, Embedder};
    pub use blockformer_generate::{
        Alignment, Engine, EngineConfig, EngineThread, Event, GenerateOptions, LanguageModel, Request, Sampling,
        generate,
    };
    pub use blockformer_model::{
        AnyModel, BlockTransformer, BlockTransformerConfig, ModelConfig, VanillaTransformer, VanillaTransformerConfig,
        presets,
    };
    pub use blockformer_token_decoder::{AnyTokenDecoder, TokenDecoder};
    pub use blockformer_train::{TrainConfig, Trainable, Trainer};
    pub use burn::tensor::Device;

    pub use crate::{ServingModel, device, open};
}
