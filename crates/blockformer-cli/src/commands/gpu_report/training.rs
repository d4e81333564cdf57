//! Training steps.

use blockformer::bench::{Spread, device_bytes, random_ids, resident_bytes};
use blockformer::data::{InMemoryCorpus, PackedDataset};
use blockformer::model::{AnyModel, ModelConfig, presets};
use blockformer::train::{TrainConfig, Trainer};
use serde_json::{Value, json};

use super::work::forward_flops;
use super::{Precision, Run, Section, limits, value_name};
use crate::commands::train::packing_of;
use crate::error::CliError;

#[derive(clap::Args)]
#[group(id = "training")]
pub(super) struct Arguments {
    /// Presets to train
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "block_main_b4_85,vanilla_160,block_main_b4_300,vanilla_410"
    )]
    training_presets: Vec<String>,
    /// Optimizer steps; 2,000 to see whether memory grows
    #[arg(long, value_name = "N", default_value_t = 60)]
    training_steps: usize,
    /// Samples a step
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(super) training_batch: usize,
    /// Tokens a sample; the model's context if not given
    #[arg(long, value_name = "N")]
    pub(super) training_length: Option<usize>,
}

/// Steps that do not count: kernels are compiled and tuned in them.
const WARM_UP: usize = 5;
/// Steps from which on memory in use is judged: what it is at the end against what it was after a twentieth.
const LONG_RUN: usize = 200;
/// How often memory is looked at.
const LOOKS: usize = 20;

pub(super) fn measure(run: &mut Run<'_>) -> Result<(), CliError> {
    let arguments = run.arguments;
    for name in &arguments.training.training_presets {
        for precision in &arguments.precision {
            let item = format!("{name} {}, {} steps", value_name(*precision), arguments.training.training_steps);
            run.item(Section::Training, &item, |run| train(run, name, *precision))?;
        }
    }
    Ok(())
}

fn train(run: &Run<'_>, name: &str, precision: Precision) -> Result<Value, CliError> {
    run.check_type(precision)?;
    let arguments = &run.arguments.training;
    let unknown = || CliError::Option { option: "--training-presets", reason: format!("{name} is not a preset") };
    let config = presets::model(name).ok_or_else(unknown)?;
    let (steps, batch_size) = (arguments.training_steps.max(1), arguments.training_batch);
    let length = arguments.training_length.unwrap_or(config.max_length());
    let settings = TrainConfig {
        steps,
        batch_size,
        precision: precision.into(),
        warmup_steps: 100.min(steps / 2),
        learning_rate: 3e-4,
        ..TrainConfig::default()
    };
    let device = run.device.clone().autodiff();
    let data = PackedDataset::new(
        words(&config, length * batch_size * 4),
        packing_of(&config, length, config.eos_token_id().unwrap_or(0)),
    )?;
    let model = AnyModel::new(&config, &device)?;
    let forward = forward_flops((&config, &model), length);
    let mut trainer = Trainer::new(model, data, settings, &device)?;

    let mut seconds = Vec::with_capacity(steps);
    let (mut losses, mut memory) = (Vec::new(), Vec::new());
    let every = (steps / LOOKS).max(1);
    for step in 0..steps {
        let report = trainer.step()?;
        seconds.push(report.seconds);
        if step % every == 0 || step + 1 == steps {
            losses.push(json!({ "step": step, "loss": report.loss }));
            memory.push(json!({ "step": step, "device": device_bytes(&run.device), "process": resident_bytes() }));
        }
    }
    let warm_up: f64 = seconds.iter().take(WARM_UP).sum();
    let counted = if steps > WARM_UP { &seconds[WARM_UP..] } else { &seconds[..] };
    let tokens = (batch_size * length) as f64;
    let speed = Spread::of(counted.iter().map(|seconds| tokens / seconds));
    // Twice as many operations backward.
    let flops = run.record.number("limits", &limits::products(precision), "flops");
    let share = flops.map(|flops| 3.0 * forward * speed.median / flops);
    let in_use = |look: &Value| look["device"]["in_use"].as_u64();
    let flat = match (memory.get(1).and_then(in_use), memory.last().and_then(in_use)) {
        (Some(early), Some(late)) if steps >= LONG_RUN => Some(late as f64 <= 1.02 * early as f64),
        _ => None,
    };
    let held = |look: &Value| look["device"]["reserved"].as_u64().or(look["process"].as_u64()).unwrap_or(0) as f64;
    let summary = format!(
        "{:.0} tokens/s{}; first {} steps {warm_up:.0} s; memory {:.2} GiB at the beginning, {:.2} in the middle, {:.2} at the \
         end",
        speed.median,
        share.map_or(String::new(), |share| format!(", {:.0} % of the arithmetic limit", 100.0 * share)),
        WARM_UP.min(steps),
        memory.first().map_or(0.0, held) / f64::from(1 << 30),
        memory.get(memory.len() / 2).map_or(0.0, held) / f64::from(1 << 30),
        memory.last().map_or(0.0, held) / f64::from(1 << 30),
    );
    let growth = match flat {
        Some(false) => "; what is in use GROWS".into(),
        Some(true) => String::new(),
        None => format!("; not judged below {LONG_RUN} steps, or where the device does not tell"),
    };
    Ok(json!({
        "summary": summary + &growth,
        "passed": flat,
        "tokens_per_second": speed,
        "step_seconds": Spread::of(counted.iter().copied()),
        "warm_up_seconds": warm_up,
        "batch_size": batch_size,
        "length": length,
        "share_of_arithmetic": share,
        "losses": losses,
        "memory": memory,
    }))
}

/// Documents of words that look random.
fn words(config: &ModelConfig, n: usize) -> InMemoryCorpus {
    let mut corpus = InMemoryCorpus::new();
    for document in 0..n.div_ceil(1000) {
        corpus.push(&random_ids(1000, config.vocab_size(), document as u64));
    }
    corpus
}
