//! `blockformer train`.

#[cfg(feature = "dashboard")]
mod dashboard;
mod data;
mod progress;
mod settings;

pub(super) use data::packing_of;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockformer::data::PackedDataset;
use blockformer::model::{AnyModel, ModelConfig, TOKENIZER_FILE, WEIGHTS_FILE, presets};
use blockformer::train::lora::{self, LoraConfig};
use blockformer::train::{TrainError, Trainer, latest_checkpoint};
use burn::module::Module;
use burn::tensor::Device;
use clap::{Args, ValueEnum};

use super::convert::Precision;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use progress::Progress;
use settings::SettingsArguments;

/// The adapters' name in the output directory.
const ADAPTER_FILE: &str = "adapter.safetensors";

#[derive(Args)]
pub(crate) struct Arguments {
    /// Text to train on: .txt files (a document each), .jsonl files (a "text" field a line), or folders of them; or
    /// datasets that `blockformer tokenize` wrote, or other Megatron .idx/.bin files
    #[arg(long, required_unless_present = "pairs", num_args = 1.., value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Prompts and answers to train on instead: .jsonl files with a "prompt" and an "answer" a line. Only the answers
    /// are learned
    #[arg(long, conflicts_with = "data", num_args = 1.., value_name = "FILE")]
    pairs: Vec<PathBuf>,
    /// Text to validate on; a part of the training text if not given
    #[arg(long, num_args = 1.., value_name = "PATH")]
    validation_data: Vec<PathBuf>,
    /// The share of the training text kept for validation
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    validation_share: f64,
    /// Which part that is
    #[arg(long, value_enum, default_value_t = Split::Documents)]
    validation_split: Split,
    /// A tokenizer.json; or `bpe:N` to train a byte-level BPE of N tokens on the text; or `characters`
    #[arg(long)]
    tokenizer: String,
    /// A model configuration, config.json; or a preset's name
    #[arg(long, value_name = "FILE|PRESET", required_unless_present = "init")]
    config: Option<String>,
    /// A model directory whose configuration and weights to begin with
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    init: Option<PathBuf>,
    /// Train adapters of this rank (LoRA) and leave the weights as they are
    #[arg(long, requires = "init", value_name = "RANK")]
    lora_rank: Option<usize>,
    /// Adapters' corrections are scaled by this over the rank
    #[arg(long, default_value_t = 16.0, requires = "lora_rank")]
    lora_alpha: f64,
    /// The share of a map's input features that its adapter does not see in a step
    #[arg(long, default_value_t = 0.0, requires = "lora_rank", value_name = "SHARE")]
    lora_dropout: f64,
    /// Regular expressions of the weights to adapt; all of attention and feed-forward networks if not given
    #[arg(long, requires = "lora_rank", num_args = 1.., value_name = "REGEX")]
    lora_targets: Vec<String>,
    /// Where to write the model, its tokenizer, checkpoints and the loss curve
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Go on from the newest checkpoint in the output directory, if there is one
    #[arg(long)]
    resume: bool,
    /// Where to compute: cpu, cuda:0, wgpu, remote:ws://HOST:PORT (a `blockformer worker`), …; several, with commas
    /// between, divide each batch
    #[arg(long, default_value = "cpu", value_delimiter = ',')]
    device: Vec<String>,
    /// Save memory: compute activations of cheap operations again in the backward pass
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Tokens a sample; the configuration's context if not given
    #[arg(long, value_name = "TOKENS")]
    sample_length: Option<usize>,
    /// Draw the length of every block from this many tokens to the block length of the configuration, whose two paddings
    /// must be off; all blocks are full if not given
    #[arg(long, value_name = "TOKENS")]
    shortest_block: Option<usize>,
    /// End after this step of the schedule, with a checkpoint and the model as it is; --resume goes on
    #[arg(long, value_name = "STEP")]
    stop_at: Option<usize>,
    /// Steps between lines of progress, where there is no dashboard
    #[arg(long, default_value_t = 10)]
    log_every: usize,
    /// Print lines of progress in a terminal too
    #[arg(long)]
    no_dashboard: bool,
    /// Steps between evaluations
    #[arg(long, default_value_t = 250)]
    evaluate_every: usize,
    /// Validation samples an evaluation; the last one takes all
    #[arg(long, default_value_t = 64)]
    evaluation_samples: usize,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 500)]
    save_every: usize,
    /// Checkpoints kept
    #[arg(long, default_value_t = 2)]
    keep_checkpoints: usize,
    /// The number type of the written weights
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    #[command(flatten)]
    settings: SettingsArguments,
}

/// Which part of the text is kept for validation.
#[derive(Clone, Copy, ValueEnum)]
enum Split {
    /// Some whole documents, drawn by the seed
    Documents,
    /// The end, cut at a token
    Tail,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    check(arguments)?;
    let settings = arguments.settings.read()?;
    let devices = open_devices(arguments)?;
    let device = &devices[0];
    let config = match (&arguments.init, &arguments.config) {
        (Some(directory), _) => ModelConfig::of_directory(directory)?,
        (None, config) => read_config(config.as_deref().unwrap_or_default())?,
    };
    let checkpoint = checkpoint_to_resume(arguments)?;
    let text = data::prepare(arguments, &config, settings.seed, checkpoint.is_some())?;
    device.seed(settings.seed);
    let model = match &arguments.init {
        // A run that goes on has its own weights.
        Some(directory) if checkpoint.is_none() => AnyModel::load(directory, device)?.1,
        _ => AnyModel::new(&config, device)?,
    };
    let lora = lora(arguments);
    let model = match &lora {
        Some(lora) => lora.attach(model)?,
        None => model,
    };
    let count = model.parameters();
    eprintln!("{} parameters, {} non-embedding", count.total, count.non_embedding);
    let mut trainer = Trainer::new(model, text.train, settings, device)?.with_workers(devices[1..].iter().cloned())?;
    trainer.identify("model configuration", config.to_json());
    trainer.identify("tokenizer", text.tokenizer_digest);
    trainer.identify("adapters", format!("{lora:?}"));
    if let Some(path) = checkpoint {
        trainer = trainer.resume(&path)?;
        eprintln!("resumed from {} at step {}", path.display(), trainer.next_step());
    }
    // Everything fits together: from here on files are written.
    let output = &arguments.output;
    let io = |source| CliError::Io { action: "make directory", path: output.clone(), source };
    std::fs::create_dir_all(output).map_err(io)?;
    text.tokenizer.save(output.join(TOKENIZER_FILE))?;
    let trained = train(arguments, trainer, &text.validation).map_err(|error| name_devices(arguments, error))?;
    let Some(trainer) = trained else { return Ok(ExitCode::from(130)) };
    let model = trainer.model().valid();
    if let Some(lora) = &lora {
        lora::save(&model, lora, &output.join(ADAPTER_FILE))?;
    }
    lora::merge(model).save(&config, output, arguments.precision.into())?;
    eprintln!("wrote the model to {}", output.display());
    Ok(ExitCode::SUCCESS)
}

/// Says which of the devices that were asked for failed, and what there is to go on from.
fn name_devices(arguments: &Arguments, error: CliError) -> CliError {
    let name = |index: usize| arguments.device[index].clone();
    let checkpoint = || latest_checkpoint(&checkpoints(arguments)).ok().and_then(|found| found.path);
    match error {
        CliError::Train(TrainError::Device { devices, reason }) => {
            CliError::DeviceFailed { names: devices.into_iter().map(name).collect(), reason, checkpoint: checkpoint() }
        }
        CliError::Train(TrainError::Work { device, reason }) => {
            CliError::WorkFailed { name: name(device), reason, checkpoint: checkpoint() }
        }
        other => other,
    }
}

/// The adapters to train, if any.
fn lora(arguments: &Arguments) -> Option<LoraConfig> {
    let default = LoraConfig::default();
    arguments.lora_rank.map(|rank| LoraConfig {
        rank,
        alpha: arguments.lora_alpha,
        dropout: arguments.lora_dropout,
        targets: if arguments.lora_targets.is_empty() { default.targets } else { arguments.lora_targets.clone() },
    })
}

/// The devices, ready for gradients.
fn open_devices(arguments: &Arguments) -> Result<Vec<Device>, CliError> {
    let open = |name: &String| {
        let device = blockformer::device(name)?.autodiff();
        Ok(if arguments.gradient_checkpointing { device.gradient_checkpointing() } else { device })
    };
    arguments.device.iter().map(open).collect()
}

/// Checks the options that only this command has.
fn check(arguments: &Arguments) -> Result<(), CliError> {
    let counts = [
        ("--log-every", arguments.log_every),
        ("--evaluate-every", arguments.evaluate_every),
        ("--evaluation-samples", arguments.evaluation_samples),
        ("--save-every", arguments.save_every),
        ("--keep-checkpoints", arguments.keep_checkpoints),
        ("--stop-at", arguments.stop_at.unwrap_or(1)),
    ];
    // Said here too: clap does not ask for an option that conflicts with one that is there.
    if arguments.lora_rank.is_some() && arguments.init.is_none() {
        let reason = "adapters need a model to adapt: give its directory with --init".into();
        return Err(CliError::Option { option: "--lora-rank", reason });
    }
    match counts.into_iter().find(|(_, value)| *value == 0) {
        Some((option, _)) => Err(CliError::Option { option, reason: "it must be at least 1".into() }),
        None => Ok(()),
    }
}

fn read_config(name: &str) -> Result<ModelConfig, CliError> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(ModelConfig::load(path)?);
    }
    presets::model(name).ok_or_else(|| CliError::Option {
        option: "--config",
        reason: format!("{name} is neither a file nor a preset (`blockformer inspect --presets` lists them)"),
    })
}

type TextTrainer = Trainer<AnyModel, data::Corpus>;

/// The checkpoint to go on from; none for a run that begins, which must not overwrite another.
fn checkpoint_to_resume(arguments: &Arguments) -> Result<Option<PathBuf>, CliError> {
    let finished = arguments.output.join(WEIGHTS_FILE);
    let found = latest_checkpoint(&checkpoints(arguments))?;
    for error in found.damaged.into_iter().filter(|_| arguments.resume) {
        if found.path.is_none() {
            return Err(error.into()); // there is no other to go on from
        }
        eprintln!("warning: {error}; the checkpoint before it is used");
    }
    match found.path.or_else(|| Some(finished).filter(|path| path.exists() && !arguments.resume)) {
        Some(path) if !arguments.resume => {
            let reason = format!("{} is there already: add --resume, or choose another --output", path.display());
            Err(CliError::Option { option: "--output", reason })
        }
        newest => Ok(newest),
    }
}

fn checkpoints(arguments: &Arguments) -> PathBuf {
    arguments.output.join("checkpoints")
}

/// Trains to the end, or to where it is to stop; `None` if interrupted, after a checkpoint.
fn train(
    arguments: &Arguments,
    mut trainer: TextTrainer,
    validation: &PackedDataset<data::Corpus>,
) -> Result<Option<TextTrainer>, CliError> {
    let interrupt = Interrupt::watch();
    let end = arguments.stop_at.unwrap_or(usize::MAX).min(trainer.config().steps);
    let mut progress = Progress::new(&arguments.output, trainer.next_step(), end, !arguments.no_dashboard)?;
    while trainer.next_step() < end {
        let report = trainer.step()?;
        let done = trainer.next_step();
        let last = done == end;
        let interrupted = interrupt.pressed() && !last;
        let evaluation = if last || done.is_multiple_of(arguments.evaluate_every) {
            let samples = if last { usize::MAX } else { arguments.evaluation_samples };
            Some(trainer.evaluate(validation, samples)?)
        } else {
            None
        };
        progress.step(&report, evaluation.as_ref())?;
        if evaluation.is_some() || done.is_multiple_of(arguments.log_every) {
            progress.print();
        }
        if last || done.is_multiple_of(arguments.save_every) || interrupted {
            trainer.save_checkpoint(&checkpoints(arguments), arguments.keep_checkpoints)?;
        }
        if interrupted {
            progress.finish()?;
            eprintln!("\ninterrupted at step {done}; go on with --resume");
            return Ok(None);
        }
    }
    progress.finish()?;
    Ok(Some(trainer))
}
