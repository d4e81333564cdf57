//! `blockformer uptrain`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use blockformer::model::{AnyModel, BlockTransformerConfig, ModelConfig, VanillaTransformerConfig};
use blockformer::train::uptraining::{LayerMethod, TargetSizes, UptrainingOptions, UptrainingPlan, target_config};
use clap::{Args, ValueEnum};

use super::convert::{self, Precision};
use crate::error::CliError;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The vanilla model's directory: this library's, or a Hugging Face GPT-NeoX or Llama directory
    input: PathBuf,
    /// Where to write the Block Transformer, which `blockformer train --init` goes on from
    output: PathBuf,
    /// The Block Transformer's configuration, config.json; made to fit if not given
    #[arg(long, value_name = "FILE", conflicts_with_all = ["block_length", "max_length", "block_layers", "token_layers"])]
    config: Option<PathBuf>,
    /// Which layers become which
    #[arg(long, value_enum, default_value_t = Layers::Partition)]
    layers: Layers,
    /// Tokens a block
    #[arg(long, default_value_t = 4, value_name = "TOKENS")]
    block_length: usize,
    /// Context in tokens; the vanilla model's if not given
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Layers of the block decoder
    #[arg(long, value_name = "N")]
    block_layers: Option<usize>,
    /// Layers of the token decoder
    #[arg(long, value_name = "N")]
    token_layers: Option<usize>,
    /// Start the embedder's projection with random weights, not as the mean of token embeddings
    #[arg(long)]
    random_projection: bool,
    /// Start the expansion with random weights, not as the identity
    #[arg(long)]
    random_expansion: bool,
    /// Compute the token decoder's embeddings with the block decoder; needs untied embeddings
    #[arg(long)]
    compute_token_embeddings: bool,
    /// A tokenizer.json to put beside the model; the input's own if it has one
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Draws what is random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The number type of the weights
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layers {
    /// The first part to the block decoder, the rest to the token decoder
    Partition,
    /// Every n-th to each
    Skip,
    /// All to each
    Duplicate,
}

impl From<Layers> for LayerMethod {
    fn from(layers: Layers) -> Self {
        match layers {
            Layers::Partition => Self::Partition,
            Layers::Skip => Self::Skip,
            Layers::Duplicate => Self::Duplicate,
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let device = blockformer::default_device()?;
    convert::check_output(&arguments.output)?;
    let ModelConfig::VanillaTransformer(vanilla_config) = ModelConfig::of_directory(&arguments.input)? else {
        let reason = format!("{} is a Block Transformer already", arguments.input.display());
        return Err(CliError::Option { option: "input", reason });
    };
    let options = UptrainingOptions {
        layers: arguments.layers.into(),
        mean_projection: !arguments.random_projection,
        identity_expansion: !arguments.random_expansion,
        compute_token_embeddings: arguments.compute_token_embeddings,
    };
    let config = block_config(arguments, &vanilla_config)?;
    let plan = UptrainingPlan::new(&vanilla_config, &config, &options, &device)?;
    device.seed(arguments.seed);
    let model_config = ModelConfig::BlockTransformer(config);
    let AnyModel::Block(block) = AnyModel::new(&model_config, &device)? else { unreachable!("its configuration is") };
    let (vanilla_config, vanilla) = AnyModel::load(&arguments.input, &device)?;
    let AnyModel::Vanilla(vanilla) = vanilla else { unreachable!("its configuration was") };
    let tokenizer = convert::tokenizer(arguments.tokenizer.as_deref(), &arguments.input, &vanilla_config)?;
    let model = AnyModel::Block(plan.apply(&vanilla, block));
    model.save(&model_config, &arguments.output, arguments.precision.into())?;
    convert::save_tokenizer(tokenizer, &arguments.output)?;
    write!(std::io::stdout().lock(), "{plan}").map_err(|source| CliError::Stdout { source })?;
    eprintln!("wrote {} parameters to {}", model.parameters().total, arguments.output.display());
    Ok(ExitCode::SUCCESS)
}

fn block_config(arguments: &Arguments, vanilla: &VanillaTransformerConfig) -> Result<BlockTransformerConfig, CliError> {
    if let Some(path) = &arguments.config {
        return match ModelConfig::load(path)? {
            ModelConfig::BlockTransformer(config) => Ok(config),
            ModelConfig::VanillaTransformer(_) => {
                let reason = format!("{} is not a Block Transformer's", path.display());
                Err(CliError::Option { option: "--config", reason })
            }
        };
    }
    let sizes = TargetSizes {
        block_length: arguments.block_length,
        max_length: arguments.max_length,
        block_layers: arguments.block_layers,
        token_layers: arguments.token_layers,
        ..TargetSizes::default()
    };
    Ok(target_config(vanilla, arguments.layers.into(), &sizes)?)
}
