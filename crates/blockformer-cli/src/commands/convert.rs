//! `blockformer convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use blockformer::model::{AnyModel, SavePrecision, TOKENIZER_FILE};
use clap::{Args, ValueEnum};

use crate::error::CliError;
use crate::vocabulary;

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
    /// The number type of the weights
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
}

/// The number type of written weights.
#[derive(Clone, Copy, ValueEnum)]
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

/// Refuses to write over a model: above all over the one that is read.
fn check_output(arguments: &Arguments) -> Result<(), CliError> {
    let taken = ["config.json", "model.safetensors", "trainer.yaml", "trainer.yml", "trainer.json"];
    match taken.iter().map(|name| arguments.output.join(name)).find(|path| path.exists()) {
        Some(path) => {
            let reason = format!("{} is there already: choose another directory", path.display());
            Err(CliError::Option { option: "output", reason })
        }
        None => Ok(()),
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let device = blockformer::default_device()?;
    check_output(arguments)?;
    let (config, model) = AnyModel::load(&arguments.input, &device)?;
    // Read the tokenizer before anything is written.
    let tokenizer_path = match &arguments.tokenizer {
        Some(path) => Some(path.clone()),
        None => Some(arguments.input.join(TOKENIZER_FILE)).filter(|path| path.exists()),
    };
    let tokenizer = match &tokenizer_path {
        Some(path) => Some(blockformer::data::Tokenizer::from_file(path)?),
        None => None,
    };
    if let (Some(tokenizer), Some(path)) = (&tokenizer, tokenizer_path) {
        vocabulary::check(&path, tokenizer, &config)?;
    }
    model.save(&config, &arguments.output, arguments.precision.into())?;
    match tokenizer {
        Some(tokenizer) => tokenizer.save(arguments.output.join(TOKENIZER_FILE))?,
        None => eprintln!("note: no {TOKENIZER_FILE}; put one beside the model (or use --tokenizer) to generate text"),
    }
    eprintln!("wrote {} parameters to {}", model.parameters().total, arguments.output.display());
    Ok(ExitCode::SUCCESS)
}
