//! `blockformer verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use blockformer::verify::{self, CaseReport};
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
    println!("{:<38} {:<64} {:>9} {:>9}  result", "case", "quantity", "error", "allowed");
    let reports = verify::directory(&arguments.directory, &device, print)?;
    let failed = reports.iter().filter(|report| !report.passed()).count();
    println!("{} cases, {} passed, {failed} failed", reports.len(), reports.len() - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &CaseReport) {
    match &report.checks {
        Ok(checks) => {
            for check in checks {
                let result = if check.passed() { "pass" } else { "FAIL" };
                let (case, quantity) = (&report.case, &check.quantity);
                println!("{case:<38} {quantity:<64} {:>9.1e} {:>9.0e}  {result}", check.error, check.tolerance);
            }
        }
        Err(error) => println!("{:<38} cannot be run: {error}", report.case),
    }
}
