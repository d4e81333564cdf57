//! `blockformer inspect`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use blockformer::model::{AnyModel, ModelConfig, presets};
use blockformer::nn::TransformerConfig;
use clap::Args;

use crate::error::CliError;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A model directory or a preset's name; the bundled model if not given
    model: Option<String>,
    /// List the presets
    #[arg(long)]
    presets: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let device = blockformer::default_device()?;
    let mut out = std::io::stdout().lock();
    let stdout = |source| CliError::Stdout { source };
    if arguments.presets {
        for name in presets::names() {
            let Some(config) = presets::model(name) else { continue };
            let count = AnyModel::new(&config, &device)?.parameters();
            writeln!(out, "{name:<20} {:>14} parameters, {:>14} non-embedding", count.total, count.non_embedding)
                .map_err(stdout)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (config, model) = match &arguments.model {
        None => {
            let (config, model, _) = blockformer::bundled::load(&device)?;
            (config, model)
        }
        Some(name) => {
            let config = match presets::model(name) {
                Some(config) if !Path::new(name).exists() => config,
                _ => config_of(Path::new(name))?,
            };
            // Weights are drawn when first used, so this allocates nothing.
            let model = AnyModel::new(&config, &device)?;
            (config, model)
        }
    };
    let count = model.parameters();
    write!(out, "{}", config.to_json()).map_err(stdout)?;
    writeln!(out, "parameters        {} ({} non-embedding)", count.total, count.non_embedding).map_err(stdout)?;
    write!(out, "{}", caches(&config)).map_err(stdout)?;
    Ok(ExitCode::SUCCESS)
}

/// The configuration of a model directory; its weights are not read.
fn config_of(directory: &Path) -> Result<ModelConfig, CliError> {
    if !directory.is_dir() {
        let reason = format!("{} is neither a directory nor a preset (--presets lists them)", directory.display());
        return Err(CliError::Option { option: "model", reason });
    }
    Ok(ModelConfig::of_directory(directory)?)
}

/// KV cache sizes in float32.
fn caches(config: &ModelConfig) -> String {
    let per_position = |config: &TransformerConfig| config.cache_config(1, 1).bytes_per_position(4);
    match config {
        ModelConfig::BlockTransformer(config) => {
            let entry = per_position(&config.block_decoder) * config.n_embedding_tokens;
            let n_contexts = config.token_decoder_sizes().n_contexts();
            let (handful, token) = config.token_decoder.cache_size(n_contexts, config.block_length, 4);
            let full = entry * config.max_blocks() + handful * token;
            format!(
                "KV cache, float32\n  block decoder   {entry} bytes a block, {} bytes a token\n  \
                 token decoder   {} bytes altogether ({handful} positions of {token} bytes)\n  \
                 full context    {full} bytes a sequence of {} tokens\n",
                entry / config.block_length,
                handful * token,
                config.max_length
            )
        }
        ModelConfig::VanillaTransformer(config) => {
            let entry = per_position(&config.transformer);
            let full = entry * config.max_length;
            format!(
                "KV cache, float32\n  {entry} bytes a token, {full} bytes a sequence of {} tokens\n",
                config.max_length
            )
        }
    }
}
