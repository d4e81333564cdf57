//! How good a model is: perplexity, loss by position, zero-shot tasks.
//!
//! Everything rests on one question, which [`score`] answers for whole batches: how likely is a *continuation* after a
//! *context*? A context ends at a block boundary, padded on the left as a prompt is in generation, and the
//! continuation begins a block. Block Transformers and the vanilla baseline are asked alike, and so is any model that
//! is [`Scorable`].
//!
//! * [`perplexity`] asks it of every stretch of a text, after all that comes before or as much of it as the context
//!   holds, and keeps the [loss by position](LossByPosition).
//! * [`Task`] asks it of the answers to questions, in the manner of lm-evaluation-harness: the prompts, the split into
//!   tokens and the measures `acc` and `acc_norm` are the same.
//!
//! ```
//! use blockformer_eval::{Request, ScoreConfig, score};
//! use blockformer_model::{AnyModel, ModelConfig, presets};
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = presets::block("block_main_b4_5").unwrap();
//! (config.vocab_size, config.block_decoder.n_layers) = (100, 1);
//! let device = Device::flex();
//! let model = AnyModel::new(&ModelConfig::BlockTransformer(config), &device)?;
//!
//! let request = Request { context: vec![1, 2, 3, 4, 5], continuation: vec![6, 7] };
//! let scores = score(&model, &[request], &ScoreConfig::default(), &device)?;
//! assert_eq!(scores[0].log_probabilities.len(), 2);
//! println!("log-likelihood {:.2}", scores[0].log_likelihood());
//! # Ok(())
//! # }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod perplexity;
mod positions;
mod scorable;
mod scoring;
mod tasks;

pub use error::EvalError;
pub use perplexity::{Perplexity, PerplexityConfig, WordCount, perplexity};
pub use positions::LossByPosition;
pub use scorable::Scorable;
pub use scoring::{Request, Score, ScoreConfig, score};
pub use tasks::{Item, Measure, Task, TaskKind, TaskResult};
