//! `blockformer tokenize`.

use std::io::{IsTerminal, stderr};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use blockformer::data::{DataError, TokenizeConfig, TokenizeProgress, Tokenizer, tokenize_files};
use clap::Args;
use kdam::{Bar, BarExt, tqdm};

use crate::error::CliError;
use crate::interrupt::Interrupt;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Text: .txt files (a document each), .jsonl files (a document a line), or folders of them
    #[arg(required = true, value_name = "PATH")]
    input: Vec<PathBuf>,
    /// A tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// Where to write: PREFIX.idx and PREFIX.bin, in Megatron's format
    #[arg(long, value_name = "PREFIX")]
    output: PathBuf,
    /// The field of a JSONL line that is the document
    #[arg(long, default_value = "text", value_name = "FIELD")]
    text_field: String,
    /// Write the end-of-text token behind each document, for other programs; `blockformer train` needs none
    #[arg(long)]
    append_eos: bool,
    /// Replace a dataset of that name
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let tokenizer = Tokenizer::from_file(&arguments.tokenizer)?;
    let config = TokenizeConfig {
        text_field: arguments.text_field.clone(),
        append_eos: arguments.append_eos,
        overwrite: arguments.overwrite,
    };
    if let Some(folder) = arguments.output.parent() {
        let io = |source| CliError::Io { action: "make directory", path: folder.to_path_buf(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let interrupt = Interrupt::watch();
    let mut display = Display::new();
    let result = tokenize_files(&arguments.input, &tokenizer, &arguments.output, &config, |progress| {
        display.show(progress);
        if interrupt.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    display.end();
    match result {
        Ok(summary) => {
            report(&summary, display.started.elapsed());
            Ok(ExitCode::SUCCESS)
        }
        Err(DataError::Cancelled) => {
            eprintln!("interrupted: nothing was written");
            Ok(ExitCode::from(130))
        }
        Err(error) => Err(error.into()),
    }
}

fn report(summary: &TokenizeProgress, elapsed: Duration) {
    let seconds = elapsed.as_secs_f64();
    let TokenizeProgress { n_tokens, n_documents, n_empty, n_bytes, .. } = summary;
    eprintln!(
        "{n_tokens} tokens in {n_documents} documents ({n_empty} empty ones left out) from {n_bytes} bytes, \
         {seconds:.1} s, {:.0} tokens/s",
        *n_tokens as f64 / seconds
    );
}

/// A progress bar on a terminal, a line now and then elsewhere.
struct Display {
    bar: Option<Bar>,
    started: Instant,
    shown: Instant,
}

impl Display {
    /// Between lines that are not on a terminal.
    const LINES_EVERY: Duration = Duration::from_secs(10);

    fn new() -> Self {
        let bar = stderr().is_terminal().then(|| {
            let mut bar = tqdm!(desc = "tokenizing", unit = "B", unit_scale = true, unit_divisor = 1000);
            bar.dynamic_ncols = true;
            bar
        });
        Self { bar, started: Instant::now(), shown: Instant::now() }
    }

    fn show(&mut self, progress: &TokenizeProgress) {
        let TokenizeProgress { n_bytes, total_bytes, n_tokens, .. } = *progress;
        if let Some(bar) = &mut self.bar {
            bar.total = total_bytes as usize;
            // It draws itself ten times a second at most. A terminal that cannot be drawn on is no reason to stop.
            let _ = bar.update_to(n_bytes as usize);
        } else if self.shown.elapsed() > Self::LINES_EVERY {
            self.shown = Instant::now();
            let percent = 100.0 * n_bytes as f64 / total_bytes.max(1) as f64;
            eprintln!(
                "{percent:.0} % of {total_bytes} bytes, {n_tokens} tokens, {:.0} tokens/s",
                n_tokens as f64 / self.started.elapsed().as_secs_f64()
            );
        }
    }

    fn end(&mut self) {
        if let Some(bar) = &mut self.bar {
            let _ = bar.refresh();
            eprintln!();
        }
    }
}
