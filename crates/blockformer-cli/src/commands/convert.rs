//! `blockformer convert`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockformer::check_tokenizer;
use blockformer::data::Tokenizer;
use blockformer::model::{AnyModel, ModelConfig, SavePrecision, TOKENIZER_FILE};
use blockformer::train::{self, lora};
use clap::{Args, ValueEnum};

use crate::error::CliError;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A directory with trainer.yaml (or .json) and model.safetensors, or a Hugging Face directory of the GPT-NeoX or
    /// Llama family (Llama, SmolLM2, TinyLlama, Mistral, Qwen2)
    input: PathBuf,
    /// Where to write config.json and model.safetensors
    output: PathBuf,
    /// A tokenizer.json to put beside them; the input's own if it has one
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Adapters to merge into the weights: the adapter.safetensors that `train --lora-rank` wrote
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// The number type of the weights
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
}

/// A number type, of weights that are written or of what is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 32-bit
    F32,
    /// 16-bit, 5 bits of exponent
    F16,
    /// 16-bit, 8 bits of exponent
    Bf16,
}

impl From<Precision> for SavePrecision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::Float32,
            Precision::F16 => Self::Float16,
            Precision::Bf16 => Self::BFloat16,
        }
    }
}

impl From<Precision> for train::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// Refuses to write over a model: above all over the one that is read.
pub(super) fn check_output(output: &Path) -> Result<(), CliError> {
    let taken = ["config.json", "model.safetensors", "trainer.yaml", "trainer.yml", "trainer.json"];
    match taken.iter().map(|name| output.join(name)).find(|path| path.exists()) {
        Some(path) => {
            let reason = format!("{} is there already: choose another directory", path.display());
            Err(CliError::Option { option: "output", reason })
        }
        None => Ok(()),
    }
}

/// The tokenizer of that name, or else the input's own if it has one; it must belong to the model.
pub(super) fn tokenizer(
    named: Option<&Path>,
    input: &Path,
    config: &ModelConfig,
) -> Result<Option<Tokenizer>, CliError> {
    let path = match named {
        Some(path) => path.to_path_buf(),
        None => input.join(TOKENIZER_FILE),
    };
    if named.is_none() && !path.exists() {
        return Ok(None);
    }
    let tokenizer = Tokenizer::from_file(&path)?;
    check_tokenizer(&path, &tokenizer, config)?;
    Ok(Some(tokenizer))
}

/// Puts a tokenizer beside a model.
pub(super) fn save_tokenizer(tokenizer: Option<Tokenizer>, output: &Path) -> Result<(), CliError> {
    match tokenizer {
        Some(tokenizer) => Ok(tokenizer.save(output.join(TOKENIZER_FILE))?),
        None => {
            eprintln!("note: no {TOKENIZER_FILE}; put one beside the model (or use --tokenizer) to generate text");
            Ok(())
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let device = blockformer::default_device()?;
    check_output(&arguments.output)?;
    let (config, model) = AnyModel::load(&arguments.input, &device)?;
    let model = match &arguments.adapter {
        Some(path) => lora::merge(lora::load(model, path)?.0),
        None => model,
    };
    // Read the tokenizer before anything is written.
    let tokenizer = tokenizer(arguments.tokenizer.as_deref(), &arguments.input, &config)?;
    model.save(&config, &arguments.output, arguments.precision.into())?;
    save_tokenizer(tokenizer, &arguments.output)?;
    eprintln!("wrote {} parameters to {}", model.parameters().total, arguments.output.display());
    Ok(ExitCode::SUCCESS)
}
