//! The Block Transformer (Ho et al., NeurIPS 2024, arXiv 2406.02657) and the vanilla transformer it is compared with.
//!
//! A [`BlockTransformer`] is an embedder, a block decoder and a token decoder; the first and the last can be of your
//! own making. [`VanillaTransformer`] is the baseline of the same layers. [`ModelConfig`] describes either and is the
//! `config.json` of a model directory, which [`AnyModel::load`] opens and [`AnyModel::save`] writes. [`presets`] has
//! the paper's configurations by name, [`reference`](mod@reference) reads the authors' checkpoints and Hugging Face
//! directories of the GPT-NeoX and Llama families.
//!
//! ```
//! use blockformer_model::presets;
//! use burn::tensor::{Device, Int, Tensor};
//!
//! let mut config = presets::block("block_main_b4_5").unwrap();
//! config.vocab_size = 100; // a toy vocabulary
//! let model = config.init(&Device::flex()).unwrap();
//!
//! let ids = Tensor::<3, Int>::zeros([1, 3, 4], &Device::flex()); // one sequence of three blocks of four tokens
//! let output = model.forward(ids, None);
//! assert_eq!(output.context_embeddings.dims(), [1, 3, 1, 256]);
//! assert_eq!(model.logits(output.hidden).dims(), [2, 4, 100]); // blocks 1 and 2 are predicted
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod any;
mod block_transformer;
mod blocks;
mod checkpoint;
mod config;
mod context;
mod error;
mod panic;
mod parameter_path;
mod parameters;
pub mod presets;
pub mod reference;
mod vanilla;

pub use any::AnyModel;
pub use block_transformer::{BlockOutput, BlockTransformer, BlockWindows, real_blocks};
pub use blocks::{BlockLayout, BlockedPrompts};
pub use checkpoint::{CONFIG_FILE, Checkpoint, SavePrecision, TOKENIZER_FILE, WEIGHTS_FILE, save_weights};
pub use config::{BlockTransformerConfig, ModelConfig, VanillaTransformerConfig};
pub use context::ContextEnds;
pub use error::{CheckpointError, PromptError};
pub use panic::panic_message;
pub use parameter_path::ParameterPath;
pub use parameters::ParameterCount;
pub use vanilla::VanillaTransformer;
