//! Training of Block Transformers and of the vanilla baseline.
//!
//! [`Trainer`] is the loop: packed samples in, AdamW with warmup and cosine decay (or other [schedules](ScheduleShape)),
//! [parameter groups](ParameterGroup), gradient clipping and accumulation, [mixed precision](Precision), several
//! devices, evaluation, checkpoints to resume from. It trains whatever implements [`Trainable`], which every
//! `BlockTransformer<E, T>` does, also with parts of your own. The pieces ([`token_loss`], [`Schedule`],
//! [`clip_gradients`], [`Optimizer`], [`MetricsLog`]) can be used without it.
//! [`uptraining`] makes a Block Transformer of a pretrained vanilla model to begin with, [`lora`] adapts a model by a few
//! parameters of its own.
//!
//! ```
//! use blockformer_data::{InMemoryCorpus, PackedDataset, PackingConfig};
//! use blockformer_model::{AnyModel, ModelConfig, presets};
//! use blockformer_train::{TrainConfig, Trainer};
//! use burn::tensor::Device;
//!
//! let mut config = presets::block("block_main_b4_5").unwrap();
//! (config.vocab_size, config.max_length) = (16, 32);
//! config.block_decoder.n_layers = 1;
//! let device = Device::flex().autodiff();
//! let model = AnyModel::new(&ModelConfig::BlockTransformer(config), &device).unwrap();
//!
//! let counting: Vec<u32> = (0..2000).map(|i| 1 + i % 7).collect();
//! let corpus = InMemoryCorpus::from_documents([counting]);
//! let data = PackedDataset::new(corpus, PackingConfig::new(4, 32, 0)).unwrap();
//! let train = TrainConfig { steps: 30, batch_size: 2, warmup_steps: 5, ..TrainConfig::default() };
//! let mut trainer = Trainer::new(model, data, train, &device).unwrap();
//! let first = trainer.step().unwrap().loss;
//! while trainer.next_step() < 30 {
//!     trainer.step().unwrap();
//! }
//! assert!(trainer.step().unwrap().loss < first / 2.0);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod batch;
mod block_losses;
mod checkpoint;
mod config;
mod device_failure;
mod error;
mod evaluation;
mod gradients;
pub mod lora;
mod loss;
mod loss_curve;
mod manifest;
mod metrics;
mod named_parameters;
mod objective;
mod optimizer;
mod parameter_groups;
mod precision;
mod recompute;
mod replicas;
mod schedule;
mod trainable;
mod trainer;
pub mod uptraining;

pub use batch::Batch;
pub use block_losses::{BlockDecodingLoss, BlockDecodingLossKind, LossConfig};
pub use checkpoint::{FoundCheckpoint, latest_checkpoint};
pub use config::{BatchRamp, TrainConfig};
pub use error::TrainError;
pub use evaluation::Evaluation;
pub use gradients::{GradientAccumulator, clip_gradients, scale_gradients};
pub use loss::{TokenLoss, token_loss};
pub use loss_curve::draw_loss_curve;
pub use metrics::{MetricsLog, MetricsRow};
pub use objective::Objective;
pub use optimizer::{AdamWSettings, Optimizer};
pub use parameter_groups::{ParameterGroup, ParameterSelection};
pub use precision::{LossScale, Precision};
pub use schedule::{Schedule, ScheduleShape};
pub use trainable::{Losses, Trainable};
pub use trainer::{StepReport, Trainer};
