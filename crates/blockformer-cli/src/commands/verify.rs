//! `blockformer verify`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use blockformer::verify::{self, CaseReport, Check, VerifyPrecision};
use clap::{Args, ValueEnum};

use super::self_check::Devices;
use crate::error::CliError;
use crate::precision::check_type;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A directory of reference cases, or one case
    directory: PathBuf,
    #[command(flatten)]
    devices: Devices,
    /// What to compute in; errors are allowed accordingly
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Precision {
    /// float32
    F32,
    /// float32 on a device that may round the factors of products to TF32
    Tf32,
    /// bfloat16
    Bf16,
    /// float16
    F16,
}

impl From<Precision> for VerifyPrecision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Tf32 => Self::Tf32,
            Precision::Bf16 => Self::Bf16,
            Precision::F16 => Self::F16,
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let mut failed = false;
    for name in arguments.devices.names() {
        failed |= on_device(arguments, &name)? > 0;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The number of cases that failed.
fn on_device(arguments: &Arguments, name: &str) -> Result<usize, CliError> {
    let device = blockformer::device(name)?;
    let precision = VerifyPrecision::from(arguments.precision);
    if let Some(dtype) = precision.computes_in().dtype() {
        check_type(dtype, (&device, name))?;
    }
    let stdout = |source| CliError::Stdout { source };
    let mut out = std::io::stdout().lock();
    let mut written = writeln!(out, "{name:<38} {:<64} {:>9} {:>9}  result", "quantity", "error", "allowed");
    let reports = verify::directory_in(&arguments.directory, &device, precision, |report| {
        if written.is_ok() {
            written = write!(out, "{}", lines(report)).and_then(|()| out.flush());
        }
    })?;
    written.map_err(stdout)?;
    let failed = reports.iter().filter(|report| !report.passed()).count();
    writeln!(out, "{} cases, {} passed, {failed} failed", reports.len(), reports.len() - failed).map_err(stdout)?;
    Ok(failed)
}

fn lines(report: &CaseReport) -> String {
    let checks = match &report.checks {
        Ok(checks) => checks,
        Err(error) => return format!("{:<38} cannot be run: {error}\n", report.case),
    };
    let line = |check: &Check| {
        let result = if check.passed() { "pass" } else { "FAIL" };
        let (case, quantity) = (&report.case, &check.quantity);
        format!("{case:<38} {quantity:<64} {:>9.1e} {:>9.0e}  {result}\n", check.error, check.tolerance)
    };
    checks.iter().map(line).collect()
}
