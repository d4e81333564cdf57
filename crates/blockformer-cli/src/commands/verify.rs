//! `blockformer verify`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use blockformer::verify::{self, CaseReport, Check};
use clap::Args;

use crate::error::CliError;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A directory of reference cases, or one case
    directory: PathBuf,
    /// Where to compute: cpu, cuda:0, wgpu, …
    #[arg(long, default_value = "cpu")]
    device: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let device = blockformer::device(&arguments.device)?;
    let stdout = |source| CliError::Stdout { source };
    let mut out = std::io::stdout().lock();
    let mut written = writeln!(out, "{:<38} {:<64} {:>9} {:>9}  result", "case", "quantity", "error", "allowed");
    let reports = verify::directory(&arguments.directory, &device, |report| {
        if written.is_ok() {
            written = write!(out, "{}", lines(report)).and_then(|()| out.flush());
        }
    })?;
    written.map_err(stdout)?;
    let failed = reports.iter().filter(|report| !report.passed()).count();
    writeln!(out, "{} cases, {} passed, {failed} failed", reports.len(), reports.len() - failed).map_err(stdout)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
