//! The settings of a run: a file, and options that replace what it says.

use std::path::PathBuf;

use blockformer::train::{
    BatchRamp, BlockDecodingLoss, BlockDecodingLossKind, ParameterGroup, ParameterSelection, Precision, ScheduleShape,
    TrainConfig,
};
use clap::{Args, ValueEnum};

use crate::error::CliError;

#[derive(Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct SettingsArguments {
    /// The settings as JSON; options replace what it says, and what neither says has its default
    #[arg(long, value_name = "FILE")]
    train_config: Option<PathBuf>,
    /// Optimizer steps [default: 1000]
    #[arg(long)]
    steps: Option<usize>,
    /// Samples a step [default: 16]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Backward passes a step; divides the batch [default: 1]
    #[arg(long)]
    accumulation: Option<usize>,
    /// Batches grow from FROM samples to the full size over the first STEPS steps
    #[arg(long, value_name = "FROM:STEPS", value_parser = batch_ramp)]
    batch_ramp: Option<BatchRamp>,
    /// Highest learning rate [default: 1e-3]
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Steps of linear warmup [default: 100]
    #[arg(long)]
    warmup_steps: Option<usize>,
    /// How the learning rate goes on after the warmup [default: cosine]
    #[arg(long, value_enum)]
    schedule: Option<Schedule>,
    /// Steps of the decay of warmup-stable-decay [default: a fifth of the steps]
    #[arg(long)]
    decay_steps: Option<usize>,
    /// What remains of the learning rate at the end [default: 0.1]
    #[arg(long, value_name = "RATIO")]
    min_learning_rate_ratio: Option<f64>,
    /// Decoupled weight decay [default: 0.1]
    #[arg(long)]
    weight_decay: Option<f32>,
    /// Parameters with a weight decay or learning rate of their own. SELECTION is `norms`, `biases`, `embeddings`,
    /// `vectors` (norms and biases) or a regular expression on paths; then `weight_decay=X`, `learning_rate_factor=X`
    /// or both, with a comma between. Of several groups that hold a parameter, the last counts
    #[arg(long, value_name = "SELECTION:KEY=VALUE", value_parser = parameter_group)]
    parameter_group: Vec<ParameterGroup>,
    /// Clip gradients to this global norm; 0 does not [default: 1]
    #[arg(long)]
    max_gradient_norm: Option<f64>,
    /// Also train the context embedding to predict the next block's embedding [default weight: 1]
    #[arg(long, value_name = "mse|contrastive[:WEIGHT]", value_parser = block_decoding_loss)]
    block_decoding_loss: Option<BlockDecodingLoss>,
    /// Also decode each block from its own embedding, with this weight
    #[arg(long, value_name = "WEIGHT")]
    auto_encoding_loss: Option<f64>,
    /// Compute in a shorter type; weights, moments and losses stay float32
    #[arg(long, value_enum)]
    mixed_precision: Option<MixedPrecision>,
    /// Save memory: go through the model part by part and compute activations of the block decoder twice
    #[arg(long)]
    recompute: bool,
    /// Initial weights, order of samples, padding [default: 0]
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Schedule {
    Cosine,
    Linear,
    Constant,
    InverseSquareRoot,
    WarmupStableDecay,
}

#[derive(Clone, Copy, ValueEnum)]
enum MixedPrecision {
    Bf16,
    F16,
}

impl SettingsArguments {
    /// The file's settings with those of the options.
    pub(super) fn read(&self) -> Result<TrainConfig, CliError> {
        let mut config = match &self.train_config {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| CliError::Io {
                    action: "read",
                    path: path.clone(),
                    source,
                })?;
                serde_json::from_str(&text).map_err(|source| CliError::TrainConfig { path: path.clone(), source })?
            }
            None => TrainConfig::default(),
        };
        replace(&mut config.steps, self.steps);
        replace(&mut config.batch_size, self.batch_size);
        replace(&mut config.accumulation, self.accumulation);
        replace(&mut config.learning_rate, self.learning_rate);
        replace(&mut config.warmup_steps, self.warmup_steps);
        replace(&mut config.min_learning_rate_ratio, self.min_learning_rate_ratio);
        replace(&mut config.optimizer.weight_decay, self.weight_decay);
        replace(&mut config.max_gradient_norm, self.max_gradient_norm);
        replace(&mut config.seed, self.seed);
        config.batch_ramp = self.batch_ramp.or(config.batch_ramp);
        config.losses.block_decoding = self.block_decoding_loss.or(config.losses.block_decoding);
        config.losses.auto_encoding_weight = self.auto_encoding_loss.or(config.losses.auto_encoding_weight);
        config.parameter_groups.extend(self.parameter_group.iter().cloned());
        config.recompute |= self.recompute;
        if let Some(precision) = self.mixed_precision {
            config.precision = match precision {
                MixedPrecision::Bf16 => Precision::Bf16,
                MixedPrecision::F16 => Precision::F16,
            };
        }
        self.choose_schedule(&mut config)?;
        config.validate()?;
        Ok(config)
    }

    fn choose_schedule(&self, config: &mut TrainConfig) -> Result<(), CliError> {
        let decay_steps = self.decay_steps.unwrap_or(config.steps / 5);
        if let Some(schedule) = self.schedule {
            config.schedule_shape = match schedule {
                Schedule::Cosine => ScheduleShape::Cosine,
                Schedule::Linear => ScheduleShape::Linear,
                Schedule::Constant => ScheduleShape::Constant,
                Schedule::InverseSquareRoot => ScheduleShape::InverseSquareRoot,
                Schedule::WarmupStableDecay => ScheduleShape::WarmupStableDecay { decay_steps },
            };
        }
        match (&mut config.schedule_shape, self.decay_steps) {
            (ScheduleShape::WarmupStableDecay { decay_steps }, Some(steps)) => *decay_steps = steps,
            (_, Some(_)) => {
                let reason = "only the schedule warmup-stable-decay has a decay of its own".into();
                return Err(CliError::Option { option: "--decay-steps", reason });
            }
            _ => {}
        }
        Ok(())
    }
}

fn replace<T: Copy>(setting: &mut T, option: Option<T>) {
    if let Some(value) = option {
        *setting = value;
    }
}

fn batch_ramp(text: &str) -> Result<BatchRamp, String> {
    let ramp = text.split_once(':').and_then(|(from, steps)| Some((from.parse().ok()?, steps.parse().ok()?)));
    let (from, steps) = ramp.ok_or("expected FROM:STEPS, two numbers")?;
    Ok(BatchRamp { from, steps })
}

fn block_decoding_loss(text: &str) -> Result<BlockDecodingLoss, String> {
    let (kind, weight) = text.split_once(':').unwrap_or((text, "1"));
    let kind = match kind {
        "mse" => BlockDecodingLossKind::Mse,
        "contrastive" => BlockDecodingLossKind::Contrastive,
        _ => return Err(format!("{kind:?} is neither mse nor contrastive")),
    };
    let weight = weight.parse().map_err(|_| format!("{weight:?} is not a weight"))?;
    Ok(BlockDecodingLoss { kind, weight })
}

fn parameter_group(text: &str) -> Result<ParameterGroup, String> {
    let expected = "expected SELECTION:KEY=VALUE with weight_decay or learning_rate_factor as key";
    // The last colon: a regular expression may have some.
    let (selection, values) = text.rsplit_once(':').ok_or(expected)?;
    let parameters: ParameterSelection = match selection.parse() {
        Ok(parameters) => parameters,
        Err(never) => match never {},
    };
    let mut group = ParameterGroup { parameters, weight_decay: None, learning_rate_factor: 1.0 };
    for pair in values.split(',') {
        let (key, value) = pair.split_once('=').ok_or(expected)?;
        let number = |value: &str| value.parse::<f64>().map_err(|_| format!("{value:?} is not a number"));
        match key {
            "weight_decay" => group.weight_decay = Some(number(value)? as f32),
            "learning_rate_factor" => group.learning_rate_factor = number(value)?,
            _ => return Err(expected.into()),
        }
    }
    Ok(group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        settings: SettingsArguments,
    }

    fn read(options: &[&str]) -> Result<TrainConfig, CliError> {
        Command::try_parse_from([&["train"], options].concat()).expect("options that parse").settings.read()
    }

    #[test]
    fn options_replace_what_the_file_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("train.json");
        let json = r#"{"steps": 70, "learning_rate": 0.5, "schedule_shape": "linear", "seed": 3,
                       "parameter_groups": [{"parameters": "norms", "weight_decay": 0}]}"#;
        std::fs::write(&path, json).unwrap();
        let file = path.to_str().unwrap();
        let options = ["--train-config", file, "--steps", "80", "--schedule", "warmup-stable-decay"];
        let more = ["--warmup-steps", "5", "--parameter-group", "^a:b:weight_decay=0.5,learning_rate_factor=2"];
        let config = read(&[&options[..], &more].concat()).unwrap();
        assert_eq!((config.steps, config.learning_rate, config.seed), (80, 0.5, 3));
        assert_eq!(config.schedule_shape, ScheduleShape::WarmupStableDecay { decay_steps: 16 });
        assert_eq!(config.parameter_groups[0].parameters, ParameterSelection::Norms);
        let own = &config.parameter_groups[1];
        assert_eq!(own.parameters, ParameterSelection::Pattern("^a:b".into()));
        assert_eq!((own.weight_decay, own.learning_rate_factor), (Some(0.5), 2.0));
        assert_eq!(read(&[]).unwrap(), TrainConfig::default());
    }

    #[test]
    fn losses_ramps_and_precision_are_options() {
        let config = read(&[
            "--block-decoding-loss",
            "contrastive:0.25",
            "--auto-encoding-loss",
            "0.5",
            "--batch-ramp",
            "4:30",
            "--batch-size",
            "8",
            "--accumulation",
            "2",
            "--mixed-precision",
            "bf16",
        ])
        .unwrap();
        let block = config.losses.block_decoding.expect("a block decoding loss");
        assert_eq!((block.kind, block.weight), (BlockDecodingLossKind::Contrastive, 0.25));
        assert_eq!(config.losses.auto_encoding_weight, Some(0.5));
        assert_eq!(config.batch_ramp, Some(BatchRamp { from: 4, steps: 30 }));
        assert_eq!(config.precision, Precision::Bf16);
    }

    #[test]
    fn options_that_make_no_sense_are_named() {
        let parse = |options: &[&str]| Command::try_parse_from([&["train"], options].concat()).map(|_| ());
        for wrong in [
            ["--batch-ramp", "4"],
            ["--block-decoding-loss", "cosine"],
            ["--parameter-group", "norms:decay=0"],
            ["--parameter-group", "norms"],
        ] {
            assert!(parse(&wrong).unwrap_err().to_string().contains(wrong[0]), "{wrong:?}");
        }
        assert!(read(&["--decay-steps", "3"]).unwrap_err().to_string().contains("--decay-steps"));
        assert!(read(&["--train-config", "no/such.json"]).unwrap_err().to_string().contains("no/such.json"));
    }
}
