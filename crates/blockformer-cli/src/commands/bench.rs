//! `blockformer bench`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockformer::ServingModel;
use blockformer::bench::{
    Limits, MeasureOptions, Measurement, Report, Subject, Workload, batch_sizes, largest_batch, measure, needed_bytes,
    peak_bytes, reset_peak, settle,
};
use blockformer::generate::Decoding;
use blockformer::model::{AnyModel, ModelConfig, presets};
use burn::tensor::Device;
use clap::{Args, ValueEnum};

use crate::commands::decoding;
use crate::error::CliError;
use crate::precision::{self, Choice};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// 2,048 tokens in, 128 out
    PrefillHeavy,
    /// 128 tokens in, 2,048 out
    DecodeHeavy,
}

#[derive(Args)]
pub(crate) struct Arguments {
    /// Presets (with random weights) or model directories
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "block_main_b4_19")]
    model: Vec<String>,
    /// What is generated
    #[arg(long, value_enum, value_delimiter = ',', default_value = "prefill-heavy,decode-heavy")]
    workload: Vec<Protocol>,
    /// Tokens in, instead of the workloads'; with --new-tokens
    #[arg(long, value_name = "N", requires = "new_tokens", conflicts_with = "workload")]
    prompt_tokens: Option<usize>,
    /// Tokens out, instead of the workloads'; with --prompt-tokens
    #[arg(long, value_name = "N", requires = "prompt_tokens")]
    new_tokens: Option<usize>,
    /// Divides the workloads' lengths
    #[arg(long, value_name = "N", default_value_t = 1)]
    scale: usize,
    /// Batch sizes
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Search the largest batch that keys, values and buffers (on a GPU, weights too) in so many GiB allow, instead of
    /// --batch
    #[arg(long, value_name = "GIB", conflicts_with = "batch")]
    memory_budget: Option<f64>,
    /// How weights are stored
    #[arg(long, value_enum, value_delimiter = ',')]
    precision: Vec<Choice>,
    /// Repeats that count
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// Repeats before them that do not
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: usize,
    /// Of the random prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute: cpu, cuda:0, wgpu, …
    #[arg(long, default_value = "cpu")]
    device: String,
    /// On GPUs, record how a block is decoded and repeat it by one call (a CUDA graph): by default with CUDA alone
    #[arg(long, value_name = "BOOL")]
    recorded: Option<bool>,
    /// Let an engine generate, as a service has it, each sequence a request
    #[arg(long, conflicts_with = "memory_budget")]
    engine: bool,
    /// A model's loss in nats a token, for the picture of throughput and loss
    #[arg(long, value_name = "NAME=LOSS", value_parser = loss)]
    loss: Vec<(String, f64)>,
    /// Where bench.csv, bench.json, tokens.json and the pictures go
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// No search goes beyond so many sequences.
pub(super) const LARGEST_BATCH: usize = 1 << 14;

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let device = blockformer::device(&arguments.device)?;
    let workloads = workloads(arguments)?;
    let limits = Limits::measure();
    eprintln!(
        "memory streams at {:.1} GB/s, products run at {:.1} GFLOP/s, on {} threads",
        limits.bytes_per_second / 1e9,
        limits.flops / 1e9,
        limits.threads
    );
    let mut report = Report { limits: Some(limits), losses: arguments.loss.clone(), ..Report::default() };
    for name in &arguments.model {
        let choices: Vec<Option<Choice>> = match arguments.precision.as_slice() {
            [] => vec![None],
            chosen => chosen.iter().copied().map(Some).collect(),
        };
        for choice in choices {
            settle();
            reset_peak();
            let (config, model) = open(name, &workloads, &device)?;
            let model = precision::prepare(&config, model, choice, (&device, &arguments.device))?;
            let subject = match &model {
                ServingModel::Plain(model) => Subject::new(name, model),
                ServingModel::Packed(model) => Subject::packed(name, model),
            };
            let subject = subject.with_loading_peak(peak_bytes());
            for workload in &workloads {
                all_batches(arguments, &subject, workload, &device, &mut report)?;
            }
        }
    }
    if let Some(directory) = &arguments.out {
        report.write(directory)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn all_batches(
    arguments: &Arguments,
    subject: &Subject<'_>,
    workload: &Workload,
    device: &Device,
    report: &mut Report,
) -> Result<(), CliError> {
    let decoding = decoding(device, arguments.recorded);
    let batches = match arguments.memory_budget {
        None => arguments.batch.clone(),
        Some(gib) => {
            let budget = (gib * f64::from(1 << 30)) as usize;
            // An engine fills no batch up.
            let filled = if arguments.engine { Decoding::Host } else { decoding };
            vec![largest_batch(budget, &batch_sizes(&filled, LARGEST_BATCH), |batch| {
                let options = MeasureOptions { batch, decoding, ..MeasureOptions::default() };
                needed_bytes(subject, workload, &options, device)
            })?]
        }
    };
    for batch in batches {
        // What the measurement before took is not this one's.
        settle();
        let Arguments { repeats, warm_up, seed, engine, .. } = *arguments;
        let options = MeasureOptions { batch, repeats, seed, warm_up, decoding, engine };
        let measured = measure(subject, workload, &options, device)?;
        print(&measured)?;
        report.measurements.push(measured);
    }
    Ok(())
}

fn workloads(arguments: &Arguments) -> Result<Vec<Workload>, CliError> {
    if let (Some(prompt_tokens), Some(new_tokens)) = (arguments.prompt_tokens, arguments.new_tokens) {
        let name = format!("{prompt_tokens}+{new_tokens}");
        return Ok(vec![Workload { name, prompt_tokens, new_tokens }]);
    }
    let scaled = |protocol: &Protocol| match protocol {
        Protocol::PrefillHeavy => Workload::prefill_heavy().scaled(arguments.scale),
        Protocol::DecodeHeavy => Workload::decode_heavy().scaled(arguments.scale),
    };
    Ok(arguments.workload.iter().map(scaled).collect::<Result<_, _>>()?)
}

/// A model directory, or a preset with random weights and a context that holds the workloads.
pub(super) fn open(name: &str, workloads: &[Workload], device: &Device) -> Result<(ModelConfig, AnyModel), CliError> {
    let preset = presets::model(name).filter(|_| !Path::new(name).exists());
    let Some(mut config) = preset else { return Ok(AnyModel::load_deferred(Path::new(name), device)?) };
    let block_length = config.block_length();
    let needed = workloads.iter().map(|workload| workload.context(block_length)).max().unwrap_or(0);
    match &mut config {
        ModelConfig::BlockTransformer(config) => {
            config.max_length = config.max_length.max(needed);
            let positions = config.max_length.div_ceil(block_length) * config.n_embedding_tokens;
            config.block_decoder.max_positions = config.block_decoder.max_positions.max(positions);
        }
        ModelConfig::VanillaTransformer(config) => {
            config.max_length = config.max_length.max(needed);
            config.transformer.max_positions = config.transformer.max_positions.max(config.max_length);
        }
    }
    let model = AnyModel::new(&config, device)?;
    Ok((config, model))
}

fn print(m: &Measurement) -> Result<(), CliError> {
    let speed = m.tokens_per_second;
    writeln!(
        std::io::stdout(),
        "{} {} {} batch {}: {:.1} tokens/s ({:.1} to {:.1}), first token {:.1} ms, {}then {:.2} ms a token; \
         weights {:.1} MiB, KV {:.1} MiB{}{}{}",
        m.model,
        m.precision,
        m.workload,
        m.batch,
        speed.median,
        speed.min,
        speed.max,
        m.first_token_ms.median,
        if m.recording_ms.median > 0.0 {
            format!("recording {:.0} ms, ", m.recording_ms.median)
        } else {
            String::new()
        },
        m.token_ms.median,
        mebibytes(m.weight_bytes),
        mebibytes(m.kv_bytes),
        m.buffer_bytes.map_or(String::new(), |bytes| format!(", buffers {:.1} MiB", mebibytes(bytes))),
        m.peak_bytes.map_or(String::new(), |bytes| format!(", process peak {:.1} MiB", mebibytes(bytes))),
        m.peak_by_stated().map_or(String::new(), |ratio| format!(" ({ratio:.2} times their sum)")),
    )
    .map_err(|source| CliError::Stdout { source })
}

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn loss(text: &str) -> Result<(String, f64), String> {
    let (name, loss) = text.rsplit_once('=').ok_or("expected NAME=LOSS")?;
    match loss.parse::<f64>() {
        Ok(loss) if loss.is_finite() => Ok((name.into(), loss)),
        _ => Err(format!("{loss:?} is not a loss")),
    }
}
