//! What can go wrong in a command.

use std::error::Error as _;
use std::path::PathBuf;

use blockformer::bench::BenchError;
use blockformer::bundled::BundledError;
use blockformer::cpu::PackError;
use blockformer::data::DataError;
use blockformer::eval::EvalError;
use blockformer::generate::GenerateError;
use blockformer::model::CheckpointError;
use blockformer::train::TrainError;
use blockformer::train::lora::LoraError;
use blockformer::train::uptraining::UptrainingError;
use blockformer::verify::VerifyError;
use blockformer::{DeviceError, KernelCacheError, OpenError, SelfCheckError};
use thiserror::Error;

#[derive(Debug, Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Bundled(#[from] BundledError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Model(#[from] CheckpointError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Lora(#[from] LoraError),
    #[error(transparent)]
    Uptraining(#[from] UptrainingError),
    #[error(transparent)]
    SelfCheck(#[from] SelfCheckError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    KernelCache(#[from] KernelCacheError),
    #[cfg(feature = "remote")]
    #[error(transparent)]
    Worker(#[from] blockformer::worker::WorkerError),
    #[cfg(feature = "remote")]
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: std::io::Error },
    #[error("device {} failed: {reason}{}", names.join(", "), whole(checkpoint))]
    DeviceFailed { names: Vec<String>, reason: String, checkpoint: Option<PathBuf> },
    #[error("training on device {name} failed, though the device answers: {reason}{}", whole(checkpoint))]
    WorkFailed { name: String, reason: String, checkpoint: Option<PathBuf> },
    #[error("device {name} does not answer any more; {} has what was measured: go on with --resume", path.display())]
    DeviceGone { name: String, path: PathBuf },
    #[error("{} is there already: go on with --resume, or name another file", path.display())]
    ReportExists { path: PathBuf },
    #[error("{} was made with {name} {was}, not {now}: name another file", path.display())]
    ReportSettings { path: PathBuf, name: String, was: String, now: String },
    #[error("device {name} does not compute")]
    DeviceSilent { name: String },
    #[error("{} is not a report of this command: {source}", path.display())]
    Report { path: PathBuf, source: serde_json::Error },
    #[error("cannot read the prompt from standard input: {source}")]
    Stdin { source: std::io::Error },
    #[error("cannot write to standard output: {source}")]
    Stdout { source: std::io::Error },
    #[error("the prompt is empty: give some text with --prompt or on standard input")]
    EmptyPrompt,
    #[error("{} has no end-of-text token, which training needs", path.display())]
    NoEndOfText { path: PathBuf },
    #[error(
        "{} was tokenized by another tokenizer, its {}.blockformer.json says: give the one it was made with",
        path.display(),
        path.file_stem().unwrap_or_default().display()
    )]
    OtherTokenizer { path: PathBuf },
    #[error("{} does not fit the model: {source}", path.display())]
    Dataset { path: PathBuf, source: DataError },
    #[error("{} is not a file of training settings: {source}", path.display())]
    TrainConfig { path: PathBuf, source: serde_json::Error },
    #[error("{option}: {reason}")]
    Option { option: &'static str, reason: String },
}

impl CliError {
    /// The message with its causes, each said once.
    pub(crate) fn chain(&self) -> String {
        let mut message = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        message
    }
}

/// What there is to go on from.
fn whole(checkpoint: &Option<PathBuf>) -> String {
    let hint = |path: &PathBuf| format!("; {} is whole: go on from it with --resume", path.display());
    checkpoint.as_ref().map_or(String::new(), hint)
}
