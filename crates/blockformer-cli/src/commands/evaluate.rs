//! `blockformer evaluate`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockformer::ServingModel;
use blockformer::data::{Documents, Tokenizer};
use blockformer::eval::{
    EvalError, LossByPosition, Perplexity, PerplexityConfig, ScoreConfig, Task, TaskResult, WordCount, perplexity,
};
use blockformer_files::write_atomically;
use burn::tensor::Device;
use clap::Args;

use crate::error::CliError;
use crate::precision::{self, Choice};

/// Points of the curve over the context.
const CONTEXT_POINTS: usize = 64;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A model directory; the bundled model if not given
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where to compute: cpu, cuda:0, wgpu, …
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Measure perplexity on text: .txt files (a document each), .jsonl files (a document a line), or folders of them
    #[arg(long, num_args = 1.., value_name = "PATH")]
    text: Vec<PathBuf>,
    /// The field of a JSONL line that is the document
    #[arg(long, default_value = "text", value_name = "FIELD")]
    text_field: String,
    /// Tokens asked for at a time, a multiple of the block length: the fewer, the more context each has; half the
    /// model's context if not given
    #[arg(long, value_name = "TOKENS")]
    stride: Option<usize>,
    /// Count the end of each line as a word, as results on WikiText do
    #[arg(long)]
    line_ends_are_words: bool,
    /// Look at the first tokens of each document only
    #[arg(long, value_name = "N")]
    max_document_tokens: Option<usize>,
    /// LAMBADA: plain text, or JSONL with a "text" field
    #[arg(long, value_name = "FILE")]
    lambada: Option<PathBuf>,
    /// PIQA: a JSONL file, beside which FILE-labels.lst has the labels (dev.jsonl and dev-labels.lst)
    #[arg(long, value_name = "FILE")]
    piqa: Option<PathBuf>,
    /// ARC-Easy: a JSONL file
    #[arg(long, value_name = "FILE")]
    arc_easy: Option<PathBuf>,
    /// Ask the first questions of each task only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// How weights are stored on a CPU; plain runs on Burn's operations, as other devices always do. By default f32
    #[arg(long, value_enum)]
    precision: Option<Choice>,
    /// Sequences computed at once
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// Where to write results.json, and loss by position as CSV and SVG
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CliError> {
    let tasks = tasks(arguments)?;
    if tasks.is_empty() && arguments.text.is_empty() {
        let reason = "or one of --lambada, --piqa and --arc-easy: there is nothing to evaluate".into();
        return Err(CliError::Option { option: "--text", reason });
    }
    let device = blockformer::device(&arguments.device)?;
    let (config, model, tokenizer) = blockformer::open(arguments.model.as_deref(), &device)?;
    let model = precision::prepare(&config, model, arguments.precision, (&device, &arguments.device))?;
    let measured =
        if arguments.text.is_empty() { None } else { Some(measure(arguments, &model, &tokenizer, &device)?) };
    let mut results = Vec::new();
    for task in tasks {
        eprintln!("{}: {} questions", task.name, task.items.len().min(arguments.limit.unwrap_or(usize::MAX)));
        results.push(task.run(&model, &tokenizer, arguments.limit, &scoring(arguments), &device)?);
    }
    if let Some(folder) = &arguments.output {
        write(folder, measured.as_ref(), &results)?;
    }
    print(measured.as_ref(), &results).map_err(|source| CliError::Stdout { source })?;
    Ok(ExitCode::SUCCESS)
}

fn scoring(arguments: &Arguments) -> ScoreConfig {
    ScoreConfig { batch_size: arguments.batch_size }
}

fn tasks(arguments: &Arguments) -> Result<Vec<Task>, EvalError> {
    let mut tasks = Vec::new();
    if let Some(path) = &arguments.lambada {
        tasks.push(Task::lambada(path)?);
    }
    if let Some(path) = &arguments.piqa {
        let stem = path.file_stem().unwrap_or_default().display();
        tasks.push(Task::piqa(path, &path.with_file_name(format!("{stem}-labels.lst")))?);
    }
    if let Some(path) = &arguments.arc_easy {
        tasks.push(Task::arc("arc_easy", path)?);
    }
    Ok(tasks)
}

fn measure(
    arguments: &Arguments,
    model: &ServingModel,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<Perplexity, CliError> {
    let words = if arguments.line_ends_are_words { WordCount::WhitespaceAndLineEnds } else { WordCount::Whitespace };
    let config = PerplexityConfig {
        stride: arguments.stride,
        words,
        max_document_tokens: arguments.max_document_tokens,
        scoring: scoring(arguments),
    };
    let documents = Documents::open(&arguments.text)?.with_text_field(&arguments.text_field);
    Ok(perplexity(model, documents, tokenizer, &config, device)?)
}

fn print(measured: Option<&Perplexity>, results: &[TaskResult]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if let Some(text) = measured {
        writeln!(out, "text: {} documents, {} tokens", text.n_documents, text.n_tokens)?;
        writeln!(out, "  loss                 {:.4} nats a token", text.loss())?;
        writeln!(out, "  perplexity a token   {:.4}", text.per_token())?;
        writeln!(out, "  perplexity a word    {:.4}  ({:.0} words)", text.per_word(), text.n_words)?;
        writeln!(out, "  perplexity a byte    {:.4}  ({:.4} bits)", text.per_byte(), text.bits_per_byte())?;
        let positions = text.by_block_position.means(1);
        if positions.len() > 1 {
            let losses: Vec<String> = positions.iter().map(|(_, _, loss)| format!("{loss:.4}")).collect();
            writeln!(out, "  loss in the block    {}", losses.join(" "))?;
        }
    }
    for result in results {
        write!(
            out,
            "{}: {} questions, acc {:.4} ± {:.4}",
            result.task, result.n_items, result.acc.value, result.acc.stderr
        )?;
        if let Some(norm) = result.acc_norm {
            write!(out, ", acc_norm {:.4} ± {:.4}", norm.value, norm.stderr)?;
        }
        if let Some(perplexity) = result.perplexity {
            write!(out, ", perplexity {perplexity:.2}")?;
        }
        writeln!(out)?;
    }
    out.flush()
}

fn write(folder: &Path, measured: Option<&Perplexity>, results: &[TaskResult]) -> Result<(), CliError> {
    let io = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| CliError::Io { action, path, source }
    };
    std::fs::create_dir_all(folder).map_err(io("make directory", folder))?;
    let text = measured.map(|text| {
        serde_json::json!({
            "n_documents": text.n_documents, "n_tokens": text.n_tokens, "n_words": text.n_words,
            "n_bytes": text.n_bytes, "nats": text.nats, "loss": text.loss(),
            "token_perplexity": text.per_token(), "word_perplexity": text.per_word(),
            "byte_perplexity": text.per_byte(), "bits_per_byte": text.bits_per_byte(),
        })
    });
    let json = format!("{:#}\n", serde_json::json!({ "text": text, "tasks": results }));
    let path = folder.join("results.json");
    write_atomically(&path, json).map_err(io("write", &path))?;
    let Some(text) = measured else { return Ok(()) };
    let draw = |losses: &LossByPosition, width: usize, name: &str, axis: &str| {
        let path = folder.join(format!("{name}.csv"));
        write_atomically(&path, losses.to_csv(width)).map_err(io("write", &path))?;
        Ok::<_, CliError>(losses.draw(width, &folder.join(format!("{name}.svg")), "Loss by position", axis)?)
    };
    draw(&text.by_block_position, 1, "loss-by-block-position", "position in the block")?;
    let width = text.by_context_length.n_positions().div_ceil(CONTEXT_POINTS);
    // Whole blocks, or the positions within a block would be seen in the curve.
    let width = width.next_multiple_of(text.by_block_position.n_positions());
    draw(&text.by_context_length, width, "loss-by-context", "tokens before, in the context")
}
