//! The paper's workloads.

use blockformer::bench::{
    BenchError, MeasureOptions, Measurement, Needed, StepKernels, Subject, Workload, batch_sizes, device_bytes,
    guarded, largest_batch, measure as time, needed_bytes, step_kernels,
};
use blockformer::model::{AnyModel, ModelConfig};
use blockformer::self_check::computes;
use blockformer::train;
use burn::tensor::DType;
use serde_json::{Value, json};

use super::work::Work;
use super::{Precision, Run, Section, dtype, limits, value_name};
use crate::commands::bench::{LARGEST_BATCH, open};
use crate::commands::decoding;
use crate::error::CliError;

#[derive(clap::Args)]
#[group(id = "throughput")]
pub(super) struct Arguments {
    /// Presets (with random weights) or model directories to generate with
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "block_main_b4_300,vanilla_410,block_main_b4_1.2b,vanilla_1.4b,block_timed_b4_2.8b,vanilla_2.8b,\
                         block_timed_b4_6.9b,vanilla_6.9b"
    )]
    presets: Vec<String>,
    /// Divides the workloads' lengths
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) scale: usize,
    /// Repeats that count, behind one that does not
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(super) repeats: usize,
    /// Memory that the largest batch may fill; nine tenths of the card's if NVIDIA's driver tells
    #[arg(long, value_name = "GIB")]
    pub(super) memory: Option<f64>,
    /// Record how a block is decoded and repeat it by one call (a CUDA graph): by default with CUDA alone
    #[arg(long, value_name = "BOOL")]
    pub(super) recorded: Option<bool>,
    /// The largest batch that is looked for
    #[arg(long, value_name = "N", default_value_t = LARGEST_BATCH)]
    pub(super) most_sequences: usize,
}

pub(super) fn measure(run: &mut Run<'_>) -> Result<(), CliError> {
    let arguments = run.arguments;
    let scale = arguments.throughput.scale;
    let workloads = [Workload::prefill_heavy().scaled(scale)?, Workload::decode_heavy().scaled(scale)?];
    for name in &arguments.throughput.presets {
        for precision in &arguments.precision {
            // Made for the first row that needs it, and gone before the next model's.
            let mut subject = None;
            for workload in &workloads {
                // Of one sequence there is no largest batch.
                let batches = if arguments.throughput.most_sequences > 1 { &[false, true][..] } else { &[false] };
                for &largest in batches {
                    let batch = if largest { "largest batch" } else { "batch 1" };
                    let item = format!("{name} {} {} {batch}", value_name(*precision), workload.name);
                    run.item(Section::Throughput, &item, |run| {
                        let model = match &mut subject {
                            Some(model) => model,
                            none => none.insert(prepare(run, name, &workloads, *precision)?),
                        };
                        row(run, name, model, workload, *precision, largest)
                    })?;
                }
            }
        }
    }
    Ok(())
}

fn prepare(
    run: &Run<'_>,
    name: &str,
    workloads: &[Workload],
    precision: Precision,
) -> Result<(ModelConfig, AnyModel), CliError> {
    run.check_type(precision)?;
    let (config, model) = open(name, workloads, &run.device)?;
    Ok((config, train::Precision::from(precision).convert(model)))
}

fn row(
    run: &Run<'_>,
    name: &str,
    (config, model): &(ModelConfig, AnyModel),
    workload: &Workload,
    precision: Precision,
    largest: bool,
) -> Result<Value, CliError> {
    let subject = Subject::new(name, model);
    let Arguments { repeats, recorded, most_sequences, .. } = run.arguments.throughput;
    let decoding = decoding(&run.device, recorded);
    let options = |batch| MeasureOptions { batch, repeats, decoding, ..MeasureOptions::default() };
    let sizes = batch_sizes(&decoding, most_sequences);
    let found = if largest { find_largest(run, &subject, workload, &sizes)? } else { 1 };
    let mut batch = found;
    let measured = loop {
        run.device.memory_cleanup();
        let measured = guarded(|| time(&subject, workload, &options(batch), &run.device)).and_then(|measured| measured);
        match (measured, sizes.iter().rev().find(|size| **size < batch)) {
            (Ok(measured), _) => break measured,
            // What was tried once may not fit again and again, with what lies in memory then.
            (Err(error @ BenchError::Device { .. }), Some(smaller)) if largest && computes(&run.device) => {
                eprintln!("a batch of {batch} found no room after all: {error}");
                batch = *smaller;
            }
            (Err(error), _) => return Err(error.into()),
        }
    };
    let options = options(batch);
    // What was measured stands, whatever becomes of this.
    let (kernels, no_kernels) =
        match guarded(|| step_kernels(&subject, workload, &options, &run.device)).and_then(|kernels| kernels) {
            Ok(kernels) => (kernels, None),
            Err(error) => (None, Some(error.to_string())),
        };
    let bytes = (DType::from(dtype(precision)).size(), measured.kv_bytes);
    let work = Work::of((config, model), workload, batch, bytes);
    let shares = shares(run, &measured, &work, precision);
    let share = |name: &str| shares[name].as_f64().map_or("?".into(), |share| format!("{:.0} %", 100.0 * share));
    let summary = format!(
        "batch {batch}: {:.1} tokens/s, first token {:.1} ms, recording {:.0} ms, then {:.2} ms a step; of the limits {} in the prefill and {} \
         in steps; {}warm-up {:.0} s",
        measured.tokens_per_second.median,
        measured.first_token_ms.median,
        measured.recording_ms.median,
        measured.token_ms.median,
        share("prefill"),
        share("step"),
        kernels.as_ref().map_or_else(String::new, launched),
        measured.warm_up_seconds,
    );
    Ok(json!({
        "summary": summary,
        "measured": measured,
        "batch_found": found,
        "shares": shares,
        "step_kernels": kernels,
        "no_step_kernels": no_kernels,
        "device_bytes": device_bytes(&run.device),
    }))
}

/// What a step launches, for people.
fn launched(kernels: &StepKernels) -> String {
    let computed = kernels.milliseconds.map_or_else(String::new, |time| format!(" that compute for {time:.2} ms"));
    format!("{:.0} kernels a step{computed}; ", kernels.launches)
}

/// The share of its nearer limit that a phase reaches: the time it would take at the limit by the time it took.
fn shares(run: &Run<'_>, measured: &Measurement, work: &Work, precision: Precision) -> Value {
    let bytes = run.record.number("limits", "copy", "bytes_per_second");
    let flops = run.record.number("limits", &limits::products(precision), "flops");
    let share = |amount: f64, rate: Option<f64>, milliseconds: f64| {
        rate.filter(|_| milliseconds > 0.0).map(|rate| amount / rate / (milliseconds / 1e3))
    };
    let (prefill, step) = (measured.first_token_ms.median, measured.token_ms.median);
    let of_memory = [share(work.prefill_bytes, bytes, prefill), share(work.step_bytes, bytes, step)];
    let of_arithmetic = [share(work.prefill_flops, flops, prefill), share(work.step_flops, flops, step)];
    let nearer = |phase: usize| match (of_memory[phase], of_arithmetic[phase]) {
        (Some(memory), Some(arithmetic)) => Some(memory.max(arithmetic)),
        (one, other) => one.or(other),
    };
    json!({
        "prefill": nearer(0),
        "step": nearer(1),
        "prefill_of_memory": of_memory[0],
        "step_of_memory": of_memory[1],
        "prefill_of_arithmetic": of_arithmetic[0],
        "step_of_arithmetic": of_arithmetic[1],
    })
}

/// The largest batch within the memory budget. Where a device tells what it holds, batches are tried against that; where
/// it does not, against the memory of this process. A batch for which the device has no memory does not fit.
fn find_largest(run: &Run<'_>, subject: &Subject<'_>, workload: &Workload, sizes: &[usize]) -> Result<usize, CliError> {
    let device = &run.device;
    let decoding = decoding(device, run.arguments.throughput.recorded);
    let Some(budget) = run.memory_budget() else {
        let reason = "needed for the largest batch: no driver tells how much memory this device has".into();
        return Err(CliError::Option { option: "--memory", reason });
    };
    let needed = |batch: usize| -> Result<Needed, BenchError> {
        let options = MeasureOptions { batch, decoding, ..MeasureOptions::default() };
        match needed_bytes(subject, workload, &options, device) {
            Err(BenchError::Device { .. }) if computes(device) => Ok(Needed::TOO_MUCH),
            needed => needed,
        }
    };
    Ok(largest_batch(budget, sizes, needed)?)
}
