//! `blockformer self-check`.

use std::io::Write;
use std::process::ExitCode;

use blockformer::self_check::{Outcome, SelfCheckLine, SelfCheckOptions, self_check_with};
use clap::Args;

use crate::error::CliError;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    devices: Devices,
    /// Accept products of float32 that are rounded to TF32, and allow errors accordingly
    #[arg(long)]
    allow_tf32: bool,
}

/// One device or all of them.
#[derive(Args)]
pub(crate) struct Devices {
    /// Where to compute: cpu, cuda:0, wgpu, …
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Check every device that this build finds, one after the other
    #[arg(long, conflicts_with = "device")]
    all_devices: bool,
}

impl Devices {
    /// Their names. A CPU backend that is also the one called `cpu` comes once.
    pub(crate) fn names(&self) -> Vec<String> {
        if !self.all_devices {
            return vec![self.device.clone()];
        }
        let mut names = blockformer::available_devices();
        let has_cpu = names.iter().any(|name| name == "cpu");
        names.retain(|name| !(has_cpu && name == "flex"));
        names
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let stdout = |source| CliError::Stdout { source };
    let options = SelfCheckOptions { allow_tf32: arguments.allow_tf32 };
    let mut out = std::io::stdout().lock();
    let mut written = Ok(());
    let mut failed = false;
    for name in arguments.devices.names() {
        let device = blockformer::device(&name)?;
        let header = format!("{name:<46} {:<34} {:>9} {:>9} {:>8}  result", "numbers", "error", "allowed", "seconds");
        written = written.and_then(|()| writeln!(out, "{header}"));
        let result = self_check_with(&device, &options, |checked| {
            if written.is_ok() {
                written = writeln!(out, "{}", line(checked)).and_then(|()| out.flush());
            }
        });
        let said = match &result {
            Ok(report) => report.to_string(),
            Err(error) => error.to_string(),
        };
        failed |= result.is_err();
        written = written.and_then(|()| writeln!(out, "{said}"));
    }
    written.map_err(stdout)?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn line(line: &SelfCheckLine) -> String {
    let (name, seconds) = (line.name, line.seconds);
    match &line.outcome {
        Outcome::Compared { part, error, tolerance } => {
            let result = if line.passed() { "pass" } else { "FAIL" };
            format!("{name:<46} {part:<34} {error:>9.1e} {tolerance:>9.0e} {seconds:>8.2}  {result}")
        }
        Outcome::Panicked { message } => format!("{name:<46} FAIL: {message}"),
        _ => line.to_string(),
    }
}
