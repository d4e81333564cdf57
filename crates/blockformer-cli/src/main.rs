//! The `blockformer` command.

mod commands;
mod error;
mod interrupt;
mod precision;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::CliError;

#[cfg(feature = "remote")]
use commands::worker;
use commands::{bench, convert, evaluate, generate, gpu_report, inspect, self_check, tokenize, train, uptrain, verify};

/// Burn's CPU backend allocates a tensor for every operation; mimalloc makes that several times faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Block Transformers: train, convert, generate.
#[derive(Parser)]
#[command(name = "blockformer", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt; the text goes to standard output, everything else to standard error.
    Generate(generate::Arguments),
    /// Measure perplexity, loss by position, and zero-shot tasks.
    Evaluate(evaluate::Arguments),
    /// Turn text into token files that training maps into memory.
    Tokenize(tokenize::Arguments),
    /// Train a model on text.
    Train(train::Arguments),
    /// Convert a checkpoint of the authors' implementation, or a Hugging Face GPT-NeoX or Llama directory.
    Convert(convert::Arguments),
    /// Make a Block Transformer of a vanilla model's weights, to train on.
    Uptrain(uptrain::Arguments),
    /// Show a model's configuration, parameters and cache sizes.
    Inspect(inspect::Arguments),
    /// Check in seconds that a device computes what a CPU does.
    SelfCheck(self_check::Arguments),
    /// Check a device against the numbers of reference cases.
    Verify(verify::Arguments),
    /// Measure how fast models generate: prefill-heavy and decode-heavy, by batch size.
    Bench(bench::Arguments),
    /// Put a device through everything: checks, its limits, throughput and training; one table, one JSON file.
    GpuReport(gpu_report::Arguments),
    /// Serve a device to `--device remote:ws://HOST:PORT` of other processes and machines, until Ctrl-C.
    #[cfg(feature = "remote")]
    Worker(worker::Arguments),
}

fn run(command: Command) -> Result<ExitCode, CliError> {
    // Before anything opens a device.
    blockformer::keep_kernels(None)?;
    match command {
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments),
        Command::Tokenize(arguments) => tokenize::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Uptrain(arguments) => uptrain::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::SelfCheck(arguments) => self_check::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::GpuReport(arguments) => gpu_report::run(&arguments),
        #[cfg(feature = "remote")]
        Command::Worker(arguments) => worker::run(&arguments),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        // The reader of the output has gone: nothing is wrong.
        Err(CliError::Stdout { source }) if source.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            // A fresh process may do better.
            if matches!(error, CliError::DeviceGone { .. }) { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}
