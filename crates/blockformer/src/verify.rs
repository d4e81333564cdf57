//! Checks a device against numbers of the authors' implementation.
//!
//! A *reference case* is a folder with a small model's configuration and weights (`trainer.json` or a Hugging Face
//! `config.json`, `model.safetensors`), inputs and answers (`cases.safetensors`, `expected.json`) that the authors'
//! PyTorch code gave: embeddings, logits, losses, gradients, five training steps, and greedy continuations.
//! [`directory`] runs every case in a directory on a device and reports, for each quantity, the largest error and the
//! error allowed.

mod batches;
mod case;
mod generation;
mod precision;
mod training;

use std::path::{Path, PathBuf};

use blockformer_data::DataError;
use blockformer_generate::GenerateError;
use blockformer_model::CheckpointError;
use blockformer_model::panic_message;
use blockformer_train::TrainError;
use burn::tensor::Device;
use thiserror::Error;

use case::Case;
pub use precision::{Tolerances, VerifyPrecision};

/// Why a case could not be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The file system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No case in the directory.
    #[error("{} holds no reference case: expected folders with a cases.safetensors", path.display())]
    NoCases {
        /// The directory.
        path: PathBuf,
    },
    /// A file that is not what it should be.
    #[error("{} cannot be read: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A tensor or value that a case must have.
    #[error("{} has no {name}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Its name.
        name: String,
    },
    /// The library or the backend panicked.
    #[error("{} made the program panic: {message}", path.display())]
    Panicked {
        /// The case.
        path: PathBuf,
        /// The panic's message.
        message: String,
    },
    /// The model could not be read.
    #[error(transparent)]
    Model(#[from] CheckpointError),
    /// Generation was refused.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Training was refused.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Data was refused.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// One quantity of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What was compared.
    pub quantity: String,
    /// The largest error; for token sequences, the number of tokens that differ.
    pub error: f64,
    /// The error allowed.
    pub tolerance: f64,
}

impl Check {
    /// Whether the error is allowed. An error that is not a number is not.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }

    /// What of them did not pass.
    #[cfg(test)]
    fn failed(checks: Vec<Self>) -> Vec<String> {
        checks.into_iter().filter(|check| !check.passed()).map(|check| check.quantity).collect()
    }
}

/// What came of a case.
#[derive(Debug)]
pub struct CaseReport {
    /// The folder's name.
    pub case: String,
    /// Its quantities, or why it could not be run.
    pub checks: Result<Vec<Check>, VerifyError>,
}

impl CaseReport {
    /// Whether the case was run and every error is allowed.
    pub fn passed(&self) -> bool {
        self.checks.as_ref().is_ok_and(|checks| !checks.is_empty() && checks.iter().all(Check::passed))
    }
}

/// Runs every case in `path` on `device` in float32, in order of their names, and hands each report to `on_report` as it
/// comes. `path` may also be one case.
///
/// # Errors
/// [`VerifyError`] if the directory cannot be read or holds no case; what goes wrong with a case is in its report.
pub fn directory(
    path: &Path,
    device: &Device,
    on_report: impl FnMut(&CaseReport),
) -> Result<Vec<CaseReport>, VerifyError> {
    directory_in(path, device, VerifyPrecision::F32, on_report)
}

/// As [`directory`], in a precision and with its tolerances. The device must compute in it
/// ([`Device::supports_dtype`]).
///
/// # Errors
/// As [`directory`].
pub fn directory_in(
    path: &Path,
    device: &Device,
    precision: VerifyPrecision,
    mut on_report: impl FnMut(&CaseReport),
) -> Result<Vec<CaseReport>, VerifyError> {
    let mut reports = Vec::new();
    for folder in folders(path)? {
        let case = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let report = CaseReport { case, checks: run_guarded(&folder, device, precision) };
        on_report(&report);
        reports.push(report);
    }
    if reports.is_empty() {
        return Err(VerifyError::NoCases { path: path.into() });
    }
    Ok(reports)
}

/// Runs one case; a panic, which a backend may raise, is one case's failure and not the end of all.
fn run_guarded(folder: &Path, device: &Device, precision: VerifyPrecision) -> Result<Vec<Check>, VerifyError> {
    let run = std::panic::AssertUnwindSafe(|| run(folder, device, precision));
    std::panic::catch_unwind(run).unwrap_or_else(|payload| {
        Err(VerifyError::Panicked { path: folder.into(), message: panic_message(payload.as_ref()) })
    })
}

/// Runs one case on `device`, in a precision and with its tolerances.
///
/// # Errors
/// [`VerifyError`] if a file is missing or damaged, or describes a model that this library does not have.
pub fn run(folder: &Path, device: &Device, precision: VerifyPrecision) -> Result<Vec<Check>, VerifyError> {
    let case = Case::open(folder, device, precision)?;
    let mut checks = batches::check(&case)?;
    checks.extend(training::check(&case)?);
    checks.extend(generation::check(&case)?);
    Ok(checks)
}

/// Any of these makes a folder a case; one that lacks the others is reported, not passed over.
const CASE_FILES: [&str; 5] = [case::CASES_FILE, "expected.json", "model.safetensors", "trainer.json", "config.json"];

/// The case folders in `path`, or `path` itself if it is one.
fn folders(path: &Path) -> Result<Vec<PathBuf>, VerifyError> {
    if path.join(case::CASES_FILE).exists() {
        return Ok(vec![path.to_path_buf()]);
    }
    let io = |source| VerifyError::Io { path: path.into(), source };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let folder = entry.map_err(io)?.path();
        if CASE_FILES.iter().any(|name| folder.join(name).exists()) {
            folders.push(folder);
        }
    }
    folders.sort();
    Ok(folders)
}
