//! `blockformer generate`.

use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use blockformer::ServingModel;
use blockformer::data::Tokenizer;
use blockformer::generate::{FinishReason, GenerateOptions, Generation, LanguageModel, Sampling, generate};
use burn::tensor::Device;
use clap::Args;

use crate::commands::decoding;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::precision::{self, Choice};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The text to continue; standard input if not given
    #[arg(long, allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A model directory; the bundled model if not given
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where to compute: cpu, cuda:0, wgpu, …
    #[arg(long, default_value = "cpu")]
    device: String,
    /// On GPUs, record how a block is decoded and repeat it by one call (a CUDA graph): by default with CUDA alone
    #[arg(long, value_name = "BOOL")]
    recorded: Option<bool>,
    /// How weights are stored; plain runs on Burn's operations, as devices other than CPUs always do. By default f32
    #[arg(long, value_enum)]
    precision: Option<Choice>,
    /// How many tokens to generate at most; generation ends earlier at the end of a document
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: usize,
    /// Randomness: 0 takes the likeliest token, 1 draws as the model says
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw only from the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw only from the likeliest tokens that together have probability P
    #[arg(long, default_value_t = 0.9, value_name = "P")]
    top_p: f64,
    /// Draw only from tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Make tokens of the prompt and of the text so far less likely: above 1
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    repetition_penalty: f64,
    /// Take this off the logits of tokens that were generated before
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "X")]
    presence_penalty: f64,
    /// Take this off the logits of tokens as often as they were generated before
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "X")]
    frequency_penalty: f64,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let device = blockformer::device(&arguments.device)?;
    let prompt = match &arguments.prompt {
        Some(prompt) => prompt.clone(),
        None => prompt_from_stdin()?,
    };
    let (config, model, tokenizer) = blockformer::open(arguments.model.as_deref(), &device)?;
    let ids = tokenizer.encode(&prompt)?;
    if ids.is_empty() && !model.layout().predict_first_block {
        return Err(CliError::EmptyPrompt);
    }
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: Some(arguments.top_p),
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
        presence_penalty: arguments.presence_penalty,
        frequency_penalty: arguments.frequency_penalty,
        seed: arguments.seed,
        ..Sampling::default()
    };
    let options = GenerateOptions {
        max_new_tokens: arguments.max_new_tokens,
        sampling,
        stop_tokens: config.eos_token_id().into_iter().collect(),
        decoding: decoding(&device, arguments.recorded),
    };
    match precision::prepare(&config, model, arguments.precision, (&device, &arguments.device))? {
        ServingModel::Plain(model) => stream(&model, &tokenizer, &ids, &options, &device),
        ServingModel::Packed(model) => stream(&model, &tokenizer, &ids, &options, &device),
    }
}

fn prompt_from_stdin() -> Result<String, CliError> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("type a prompt, then Ctrl-D:");
    }
    let mut prompt = String::new();
    stdin.read_to_string(&mut prompt).map_err(|source| CliError::Stdin { source })?;
    // The newline that ends a line of input is not part of the text.
    Ok(prompt.strip_suffix('\n').map_or(prompt.clone(), |text| text.strip_suffix('\r').unwrap_or(text).to_string()))
}

/// Writes the text as it is made; ends when the reader has gone.
fn stream<M: LanguageModel>(
    model: &M,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    device: &Device,
) -> Result<ExitCode, CliError> {
    let interrupt = Interrupt::watch();
    let mut text = tokenizer.decode_stream();
    let mut stdout = std::io::stdout().lock();
    let mut failure = None;
    let mut write = |piece: Option<String>| -> Result<(), CliError> {
        let piece = piece.unwrap_or_default();
        let written = stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush());
        written.map_err(|source| CliError::Stdout { source })
    };
    let started = Instant::now();
    let generated = generate(model, &[prompt], options, device, |_, token| {
        let written = text.push(token).map_err(CliError::from).and_then(&mut write);
        match written {
            Ok(()) if !interrupt.pressed() => ControlFlow::Continue(()),
            Ok(()) => ControlFlow::Break(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    let rest = text.finish()?;
    write(rest)?;
    write(Some("\n".into()))?;
    report(&generated, started.elapsed().as_secs_f64());
    Ok(if interrupt.pressed() { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

fn report(generated: &[Generation], seconds: f64) {
    for generation in generated {
        let n = generation.tokens.len();
        let why = match generation.finish {
            FinishReason::Stop => ", end of text",
            FinishReason::Cancelled => ", interrupted",
            FinishReason::Length => "",
        };
        eprintln!("[{n} tokens in {seconds:.2} s, {:.1} tokens/s{why}]", n as f64 / seconds);
    }
}
