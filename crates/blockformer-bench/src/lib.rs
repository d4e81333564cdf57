//! The throughput protocol (Ho et al. 2024, section 3): how fast models generate, and what that takes.
//!
//! [`measure`] runs one [`Workload`] at one batch size: a warm-up, then repeats, the device synchronised wherever a
//! time is taken. [`largest_batch`] searches the batch size that a memory budget allows. [`Report`] collects the
//! [`Measurement`]s, writes CSV and JSON, and draws throughput against batch size and against loss. [`Limits`] are
//! what the machine's memory and arithmetic allow, measured in the same run.
//!
//! ```
//! use blockformer_bench::{MeasureOptions, Report, Subject, Workload, measure};
//! use blockformer_model::{AnyModel, ModelConfig, presets};
//! use burn::tensor::Device;
//!
//! let mut config = presets::block("block_main_b4_5").unwrap();
//! (config.vocab_size, config.block_decoder.n_layers) = (100, 1); // a toy, with random weights
//! let device = Device::flex();
//! let model = AnyModel::new(&ModelConfig::BlockTransformer(config), &device).unwrap();
//!
//! let workload = Workload::prefill_heavy().scaled(64).unwrap(); // 32 tokens in, 2 out
//! let options = MeasureOptions { batch: 2, repeats: 3, ..MeasureOptions::default() };
//! let measured = measure(&Subject::new("toy", &model), &workload, &options, &device).unwrap();
//! assert!(measured.tokens_per_second.median > 0.0);
//! println!("{}", Report::from_iter([measured]).to_csv());
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod device_limits;
mod error;
mod kernels;
mod limits;
mod measure;
mod memory;
mod picture;
mod report;
mod search;
mod workload;

pub use device_limits::{copy_rate, product_rate};
pub use error::{BenchError, guarded};
pub use kernels::{StepKernel, StepKernels, step_kernels};
pub use limits::Limits;
pub use measure::{
    Components, MeasureOptions, Measurement, Phase, Spread, Subject, Tokens, measure, needed_bytes, random_ids,
    required_bytes,
};
pub use memory::{DeviceBytes, device_bytes, peak_bytes, reset_peak, resident_bytes, settle};
pub use report::Report;
pub use search::{Needed, batch_sizes, largest_batch};
pub use workload::Workload;
