//! `blockformer inspect`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockformer::model::{AnyModel, ModelConfig, presets, reference};
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
    let device = blockformer::device("cpu")?;
    if arguments.presets {
        for name in presets::names() {
            let Some(config) = presets::model(name) else { continue };
            let count = AnyModel::new(&config, &device)?.parameters();
            println!("{name:<20} {:>14} parameters, {:>14} non-embedding", count.total, count.non_embedding);
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
    print!("{}", config.to_json());
    let count = model.parameters();
    println!("parameters        {} ({} non-embedding)", count.total, count.non_embedding);
    print_caches(&config);
    Ok(ExitCode::SUCCESS)
}

/// The configuration of a model directory; its weights are not read.
fn config_of(directory: &Path) -> Result<ModelConfig, CliError> {
    if !directory.is_dir() {
        let reason = format!("{} is neither a directory nor a preset (--presets lists them)", directory.display());
        return Err(CliError::Option { option: "model", reason });
    }
    Ok(match reference::find_config(directory)? {
        Some((config, _)) => config,
        None => ModelConfig::load(&PathBuf::from(directory).join("config.json"))?,
    })
}

/// KV cache sizes in float32, by the arithmetic of `CacheConfig::bytes_per_position`.
fn print_caches(config: &ModelConfig) {
    let per_position = |t: &blockformer::nn::TransformerConfig| 2 * t.n_layers * t.n_kv_heads * t.head_dim * 4;
    match config {
        ModelConfig::BlockTransformer(config) => {
            let entry = per_position(&config.block_decoder) * config.n_embedding_tokens;
            let (handful, token) = config.token_decoder.cache_size(config.n_embedding_tokens, config.block_length, 4);
            println!("KV cache, float32");
            println!("  block decoder   {entry} bytes a block, {} bytes a token", entry / config.block_length);
            println!("  token decoder   {} bytes altogether ({handful} positions of {token} bytes)", handful * token);
            let full = entry * config.max_blocks() + handful * token;
            println!("  full context    {full} bytes a sequence of {} tokens", config.max_length);
        }
        ModelConfig::VanillaTransformer(config) => {
            let entry = per_position(&config.transformer);
            println!("KV cache, float32");
            println!(
                "  {entry} bytes a token, {} bytes a sequence of {} tokens",
                entry * config.max_length,
                config.max_length
            );
        }
    }
}
