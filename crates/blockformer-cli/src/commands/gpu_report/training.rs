//! Training steps.

use blockformer::bench::{Spread, device_bytes, resident_bytes};
use blockformer::data::{InMemoryCorpus, PackedDataset, PackingConfig};
use blockformer::model::{AnyModel, ModelConfig, presets};
use blockformer::nn::TransformerConfig;
use blockformer::token_decoder::TokenDecoderConfig;
use blockformer::train::{TrainConfig, Trainer};
use serde_json::{Value, json};

use super::{Run, Section, Type, limits};
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
            let item = format!("{name} {}, {} steps", precision.name(), arguments.training.training_steps);
            run.item(Section::Training, &item, |run| train(run, name, *precision))?;
        }
    }
    Ok(())
}

fn train(run: &Run<'_>, name: &str, precision: Type) -> Result<Value, CliError> {
    run.check_type(precision.dtype())?;
    let arguments = &run.arguments.training;
    let unknown = || CliError::Option { option: "--training-presets", reason: format!("{name} is not a preset") };
    let config = presets::model(name).ok_or_else(unknown)?;
    let (steps, batch_size) = (arguments.training_steps.max(1), arguments.training_batch);
    let length = arguments.training_length.unwrap_or(config.max_length());
    let settings = TrainConfig {
        steps,
        batch_size,
        precision: precision.precision(),
        warmup_steps: 100.min(steps / 2),
        learning_rate: 3e-4,
        ..TrainConfig::default()
    };
    let device = run.device.clone().autodiff();
    let data = PackedDataset::new(words(&config, length * batch_size * 4), packing(&config, length))?;
    let model = AnyModel::new(&config, &device)?;
    let weights = model.parameters().total;
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
    // A multiplication and an addition forward, twice as many backward.
    let flops = run.record.number("limits", &limits::products(precision), "flops");
    let operations = operations(&config, weights, length);
    let share = flops.zip(operations).map(|(flops, operations)| 6.0 * operations * speed.median / flops);
    let in_use = |look: &Value| look["device"]["in_use"].as_u64();
    // A leak of a thousandth a step would double it.
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
    let growth = if flat == Some(false) { "; what is in use GROWS" } else { "" };
    Ok(json!({
        "summary": summary + growth,
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

/// Multiplications for a token in a forward pass, on average: of the weights it meets, and of causal attention, which sees
/// half of the positions; of models that presets do not have, not known here.
fn operations(config: &ModelConfig, weights: usize, length: usize) -> Option<f64> {
    let attention = |t: &TransformerConfig, positions: f64| (t.n_layers * t.n_heads * t.head_dim) as f64 * positions;
    let config = match config {
        // The token table is looked up.
        ModelConfig::VanillaTransformer(config) => {
            let table = config.vocab_size * config.transformer.d_model;
            return Some((weights - table) as f64 + attention(&config.transformer, length as f64));
        }
        ModelConfig::BlockTransformer(config) => config,
    };
    let TokenDecoderConfig::Prefix(prefix) = &config.token_decoder else { return None };
    let layers = |t: &TransformerConfig, positions: f64| {
        let projections = t.d_model * t.head_dim * (2 * t.n_heads + 2 * t.n_kv_heads);
        let feed_forward = t.d_model * t.d_ff * if t.gated { 3 } else { 2 };
        (t.n_layers * (projections + feed_forward)) as f64 + attention(t, positions)
    };
    let (block, length) = (config.block_length as f64, length as f64);
    let contexts = config.token_decoder_sizes().n_contexts();
    let (positions, _) = config.token_decoder.cache_size(contexts, config.block_length, 4);
    let positions = positions as f64;
    let output = (config.vocab_size * prefix.transformer.d_model) as f64;
    let of_blocks = layers(&config.block_decoder, length / block) / block;
    Some(of_blocks + layers(&prefix.transformer, positions) * positions / block + output)
}

/// Documents of words that look random.
fn words(config: &ModelConfig, n: usize) -> InMemoryCorpus {
    let vocab_size = config.vocab_size() as u64;
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab_size) as u32
    };
    let mut corpus = InMemoryCorpus::new();
    for _ in 0..n.div_ceil(1000) {
        corpus.push(&(0..1000).map(|_| next()).collect::<Vec<_>>());
    }
    corpus
}

fn packing(config: &ModelConfig, length: usize) -> PackingConfig {
    let eos = config.eos_token_id().unwrap_or(0);
    match config {
        ModelConfig::VanillaTransformer(_) => PackingConfig::vanilla(length, eos),
        ModelConfig::BlockTransformer(config) => PackingConfig {
            random_pad_first_block: config.random_pad_first_block,
            pad_to_block_boundary: config.pad_to_block_boundary,
            pad_token_id: config.pad_token_id,
            ..PackingConfig::new(config.block_length, length, eos)
        },
    }
}
