//! `blockformer gpu-report`.

mod checks;
mod limits;
mod record;
mod throughput;
mod training;
mod work;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use blockformer::bench::device_bytes;
use blockformer::is_cpu;
use blockformer::self_check::computes;
use blockformer::train;
use burn::tensor::{Device, FloatDType};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::convert::Precision;
use crate::error::CliError;
use crate::precision::check_type;
use record::{Record, Resume};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Where to compute: cpu, cuda:0, wgpu, …
    #[arg(long, default_value = "cpu")]
    device: String,
    /// The JSON file, whole after each of its rows
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Go on with FILE: rows that are there are not made again, those that failed included
    #[arg(long)]
    resume: bool,
    /// With --resume: make the rows that failed, or did not pass, again
    #[arg(long, requires = "resume")]
    retry: bool,
    /// What to do, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Section::value_variants().to_vec())]
    sections: Vec<Section>,
    /// Begin nothing more after so many seconds of this process; the exit status is 4 if rows were left out
    #[arg(long, value_name = "N")]
    budget_seconds: Option<u64>,
    /// Reference cases for the section verify
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
    /// What to compute in; a type the device does not have is a row that says so
    #[arg(long, value_enum, value_delimiter = ',', default_value = "f32,bf16")]
    precision: Vec<Precision>,
    #[command(flatten)]
    limits: limits::Arguments,
    #[command(flatten)]
    throughput: throughput::Arguments,
    #[command(flatten)]
    training: training::Arguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// The device, the driver, this build
    Device,
    /// What `self-check` does
    SelfCheck,
    /// What `verify` does
    Verify,
    /// Copies and products
    Limits,
    /// The paper's workloads at batch 1 and at the largest batch
    Throughput,
    /// Training steps, and the memory they take
    Training,
}

/// The type's number in Burn.
fn dtype(precision: Precision) -> FloatDType {
    train::Precision::from(precision).dtype().unwrap_or(FloatDType::F32)
}

/// What an option calls one of its values.
fn value_name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().into())
}

/// A report in the making.
struct Run<'a> {
    arguments: &'a Arguments,
    device: Device,
    record: Record,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let device = blockformer::device(&arguments.device)?;
    let end = arguments.budget_seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    if !computes(&device) {
        return Err(CliError::DeviceSilent { name: arguments.device.clone() });
    }
    let how = Resume { resume: arguments.resume, retry: arguments.retry, end };
    let record = Record::open(&arguments.out, settings(arguments, &device), how)?;
    let mut run = Run { arguments, device, record };
    for section in &arguments.sections {
        match section {
            Section::Device => run.item(*section, "device", |run| Ok(describe(run)))?,
            Section::SelfCheck => run.item(*section, "all checks", checks::self_check)?,
            Section::Verify => checks::verify(&mut run)?,
            Section::Limits => limits::measure(&mut run)?,
            Section::Throughput => throughput::measure(&mut run)?,
            Section::Training => training::measure(&mut run)?,
        }
    }
    run.record.print_table()?;
    let left_out = run.record.left_out();
    if left_out > 0 {
        eprintln!("{left_out} rows were not begun, for want of time: go on with --resume");
        return Ok(ExitCode::from(TIME_WAS_UP));
    }
    Ok(if run.record.all_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The exit status where rows were left out.
const TIME_WAS_UP: u8 = 4;

/// What every row of a report has in common; a row's own settings are in its name.
fn settings(arguments: &Arguments, device: &Device) -> Value {
    let Arguments { limits, throughput, training, .. } = arguments;
    json!({
        "device": arguments.device,
        "hardware": hardware(device),
        "version": env!("CARGO_PKG_VERSION"),
        "optimised": !cfg!(debug_assertions),
        "copy size": limits.copy_size,
        "product size": limits.product_size,
        "scale": throughput.scale,
        "repeats": throughput.repeats,
        "recorded": throughput.recorded,
        "memory": throughput.memory,
        "most sequences": throughput.most_sequences,
        "training batch": training.training_batch,
        "training length": training.training_length,
    })
}

impl Run<'_> {
    /// Makes a row, unless it is there or time is up. What goes wrong is in the row.
    ///
    /// # Errors
    /// A [`CliError`] if the file cannot be written, or the device has failed for good.
    fn item(
        &mut self,
        section: Section,
        item: &str,
        work: impl FnOnce(&mut Self) -> Result<Value, CliError>,
    ) -> Result<(), CliError> {
        let section = value_name(section);
        if !self.record.begin(&section, item)? {
            return Ok(());
        }
        let started = Instant::now();
        let result = match blockformer::bench::guarded(|| work(self)) {
            Ok(result) => result,
            Err(error) => Err(error.into()),
        };
        self.record.finish(&section, item, started.elapsed().as_secs_f64(), result)?;
        // Checks have their failures in their results, so every row is a reason to ask.
        if !computes(&self.device) {
            let (name, path) = (self.arguments.device.clone(), self.arguments.out.clone());
            return Err(CliError::DeviceGone { name, path });
        }
        Ok(())
    }

    /// Refuses a type the device does not have.
    fn check_type(&self, precision: Precision) -> Result<(), CliError> {
        check_type(dtype(precision), (&self.device, &self.arguments.device))
    }

    /// Bytes that the device may hold: what was given, or nine tenths of what a driver tells.
    fn memory_budget(&self) -> Option<usize> {
        let given = self.arguments.throughput.memory.map(|gib| (gib * f64::from(1 << 30)) as usize);
        given.or_else(|| {
            let total = nvidia_smi(&self.arguments.device, "memory.total")?;
            let mebibytes: usize = total.split_whitespace().next()?.parse().ok()?;
            Some((mebibytes << 20) / 10 * 9)
        })
    }
}

fn describe(run: &mut Run<'_>) -> Value {
    let (device, name) = (&run.device, &run.arguments.device);
    let types = [FloatDType::F32, FloatDType::F16, FloatDType::BF16].into_iter();
    let types: Vec<_> = types.filter(|dtype| device.supports_dtype(*dtype)).map(|dtype| format!("{dtype:?}")).collect();
    json!({
        "name": name,
        "hardware": hardware(device),
        "driver": nvidia_smi(name, "driver_version"),
        "memory": nvidia_smi(name, "memory.total"),
        "types": types,
        // What is there is not tried in the warm-up again.
        "kernel_cache": blockformer::kernel_cache().map(|file| file.display().to_string()),
        "held_bytes": device_bytes(device),
        "is_cpu": is_cpu(device),
        "version": env!("CARGO_PKG_VERSION"),
        "optimised": !cfg!(debug_assertions),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "available_devices": blockformer::available_devices(),
    })
}

/// What the backend calls the hardware.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn hardware(device: &Device) -> Option<String> {
    device.identity().map(|identity| identity.name)
}

#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
fn hardware(_device: &Device) -> Option<String> {
    None
}

/// What NVIDIA's program says of a CUDA device, where it is installed.
fn nvidia_smi(device: &str, query: &str) -> Option<String> {
    let index = device.strip_prefix("cuda")?.trim_start_matches(':');
    let index = if index.is_empty() { "0" } else { index };
    let options = [format!("--query-gpu={query}"), "--format=csv,noheader".into(), format!("--id={index}")];
    let output = Command::new("nvidia-smi").args(options).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
