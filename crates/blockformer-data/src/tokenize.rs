//! Text files to a Megatron dataset, on all cores.
//!
//! ```text
//! caller's thread   read raw documents ──> ... ──> put in order ──> MegatronWriter
//! rayon's threads                   parse, tokenize
//! ```
//!
//! Documents go to the threads one by one, and their tokens are written in the order of the documents, so the files do
//! not depend on the number of threads. A bound on the text in flight bounds the memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rayon::{ScopeFifo, Yield};

use crate::error::{DataError, Result};
use crate::megatron::{DatasetCard, MegatronWriter, TokenType, dataset_exists};
use crate::source::{Documents, RawDocument, is_empty};
use crate::tokenizer::Tokenizer;

/// Text in flight, at least, in bytes.
const TEXT_IN_FLIGHT: usize = 16 << 20;
/// Text in flight for each thread, at least, in bytes.
const TEXT_PER_THREAD: usize = 1 << 20;
/// How long [`tokenize_files`] goes without asking its caller whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);

/// How [`tokenize_files`] makes a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizeConfig {
    /// The field of a JSONL line that is the document.
    pub text_field: String,
    /// Whether the tokenizer's end of text is written behind each document, as Megatron's `--append-eod` does.
    /// [Packing](crate::PackedDataset) adds its own, so files for this library need none.
    pub append_eos: bool,
    /// Whether a dataset of that name may be replaced.
    pub overwrite: bool,
}

impl Default for TokenizeConfig {
    /// The field `text`, no end of text, no overwriting.
    fn default() -> Self {
        Self { text_field: "text".into(), append_eos: false, overwrite: false }
    }
}

/// How far [`tokenize_files`] is, and at last what it has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenizeProgress {
    /// Bytes of text files that are done.
    pub n_bytes: u64,
    /// Bytes of all text files.
    pub total_bytes: u64,
    /// Documents written.
    pub n_documents: usize,
    /// Documents of nothing but white space, which are left out.
    pub n_empty: usize,
    /// Tokens written.
    pub n_tokens: u64,
}

/// Tokenizes text files (what [`Documents`] reads) into the Megatron dataset `name.idx` and `name.bin`, in parallel on
/// rayon's threads, and a [`DatasetCard`] beside them that says which tokenizer it was.
///
/// The files are the same whatever the number of threads. They appear when complete: after an error, or if the process
/// is killed, there is no file of those names that was not there before.
///
/// `progress` is called often, at least every tenth of a second; when it breaks, so does the tokenization.
///
/// # Errors
/// The first error in the order of documents: those of [`Documents`] and [`Tokenizer::encode`]. Before anything is read,
/// [`DataError::Exists`] if there is such a dataset and `config` does not allow to replace it, and
/// [`DataError::NoEndOfText`] if an end of text is asked for that the tokenizer does not have. [`DataError::Io`] if files
/// cannot be written, [`DataError::Cancelled`] if `progress` breaks.
///
/// # Panics
/// If the tokenizer panics.
pub fn tokenize_files(
    paths: &[PathBuf],
    tokenizer: &Tokenizer,
    name: &Path,
    config: &TokenizeConfig,
    mut progress: impl FnMut(&TokenizeProgress) -> ControlFlow<()>,
) -> Result<TokenizeProgress> {
    if let Some(path) = dataset_exists(name).filter(|_| !config.overwrite) {
        return Err(DataError::Exists { path });
    }
    let eos = tokenizer.eos_token_id();
    if config.append_eos && eos.is_none() {
        return Err(DataError::NoEndOfText);
    }
    let vocab_size = tokenizer.max_token_id().map_or(0, |id| id as usize + 1);
    let documents = Documents::open(paths)?.with_text_field(&config.text_field);
    let writer = MegatronWriter::create(name, TokenType::for_vocab_size(vocab_size))?;
    let encoder = Encoder { tokenizer, eos: eos.filter(|_| config.append_eos), cancelled: AtomicBool::new(false) };
    let total_bytes = total_bytes(documents.files())?;
    let mut pipeline = Pipeline::new(documents, writer, total_bytes);
    rayon::in_place_scope_fifo(|scope| {
        let done = pipeline.run(scope, &encoder, &mut progress);
        // The scope ends when its tasks have: those that have not begun need not.
        encoder.cancelled.store(done.is_err(), Ordering::Relaxed);
        done
    })?;
    let Pipeline { documents, writer, progress, .. } = pipeline;
    if progress.n_documents == 0 {
        return Err(documents.no_documents(progress.n_empty));
    }
    writer.finish_with(&DatasetCard {
        tokenizer: tokenizer.digest()?,
        vocab_size,
        ends_with_eos: config.append_eos,
        n_documents: progress.n_documents,
        n_tokens: progress.n_tokens,
    })?;
    Ok(progress)
}

fn total_bytes(files: &[PathBuf]) -> Result<u64> {
    let length = |path: &PathBuf| std::fs::metadata(path).map(|metadata| metadata.len());
    files.iter().map(|path| length(path).map_err(DataError::io("open", path))).sum()
}

/// What the threads share.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Goes behind each document.
    eos: Option<u32>,
    cancelled: AtomicBool,
}

/// What became of a file or line.
enum Encoded {
    /// A blank line, or one that is not wanted any more.
    Nothing,
    /// A document of white space.
    Empty,
    Tokens(Vec<u32>),
}

impl Encoder<'_> {
    fn encode(&self, raw: RawDocument) -> Result<Encoded> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Ok(Encoded::Nothing);
        }
        let Some(text) = raw.text()? else { return Ok(Encoded::Nothing) };
        if is_empty(&text) {
            return Ok(Encoded::Empty);
        }
        let mut tokens = self.tokenizer.encode(&text)?;
        tokens.extend(self.eos);
        Ok(Encoded::Tokens(tokens))
    }
}

/// A result on its way to its place in the order.
struct Arrival {
    place: u64,
    n_bytes: usize,
    /// `Err` if the tokenizer panicked.
    result: thread::Result<Result<Encoded>>,
}

struct Pipeline {
    documents: Documents,
    writer: MegatronWriter,
    progress: TokenizeProgress,
    sender: Sender<Arrival>,
    receiver: Receiver<Arrival>,
    /// Arrivals whose predecessors have not come yet.
    early: BTreeMap<u64, Arrival>,
    /// Files and lines read, and how many of them are done.
    n_read: u64,
    n_done: u64,
    all_read: bool,
    bytes_in_flight: usize,
}

impl Pipeline {
    fn new(documents: Documents, writer: MegatronWriter, total_bytes: u64) -> Self {
        let (sender, receiver) = channel();
        Self {
            documents,
            writer,
            progress: TokenizeProgress { total_bytes, ..TokenizeProgress::default() },
            sender,
            receiver,
            early: BTreeMap::new(),
            n_read: 0,
            n_done: 0,
            all_read: false,
            bytes_in_flight: 0,
        }
    }

    fn run<'scope>(
        &mut self,
        scope: &ScopeFifo<'scope>,
        encoder: &'scope Encoder<'scope>,
        progress: &mut impl FnMut(&TokenizeProgress) -> ControlFlow<()>,
    ) -> Result<()> {
        let limit = TEXT_IN_FLIGHT.max(TEXT_PER_THREAD * rayon::current_num_threads());
        loop {
            if !self.all_read && self.bytes_in_flight < limit {
                self.start_next(scope, encoder);
            } else if rayon::yield_now() != Some(Yield::Executed) {
                // On one of rayon's own threads, waiting without working might be for ever.
                self.wait();
            }
            self.write_arrivals()?;
            if progress(&self.progress).is_break() {
                return Err(DataError::Cancelled);
            }
            if self.all_read && self.n_done == self.n_read {
                return Ok(());
            }
        }
    }

    /// Reads a file or line and hands it to a thread. An error takes the place of what could not be read.
    fn start_next<'scope>(&mut self, scope: &ScopeFifo<'scope>, encoder: &'scope Encoder<'scope>) {
        let raw = match self.documents.next_raw().transpose() {
            None => {
                self.all_read = true;
                return;
            }
            Some(raw) => raw,
        };
        let place = self.n_read;
        self.n_read += 1;
        match raw {
            Err(error) => {
                self.all_read = true;
                self.early.insert(place, Arrival { place, n_bytes: 0, result: Ok(Err(error)) });
            }
            Ok(raw) => {
                let n_bytes = raw.n_bytes();
                self.bytes_in_flight += n_bytes;
                let sender = self.sender.clone();
                scope.spawn_fifo(move |_| {
                    let result = std::panic::catch_unwind(AssertUnwindSafe(|| encoder.encode(raw)));
                    // If the receiver is gone, so is the interest in the result.
                    let _ = sender.send(Arrival { place, n_bytes, result });
                });
            }
        }
    }

    /// Waits a while for an arrival.
    fn wait(&mut self) {
        if let Ok(arrival) = self.receiver.recv_timeout(PATIENCE) {
            self.early.insert(arrival.place, arrival);
        }
    }

    /// Writes everything whose turn it is.
    fn write_arrivals(&mut self) -> Result<()> {
        self.early.extend(self.receiver.try_iter().map(|arrival| (arrival.place, arrival)));
        while let Some(arrival) = self.early.remove(&self.n_done) {
            self.n_done += 1;
            self.bytes_in_flight -= arrival.n_bytes;
            self.progress.n_bytes += arrival.n_bytes as u64;
            match arrival.result {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Encoded::Nothing)) => {}
                Ok(Ok(Encoded::Empty)) => self.progress.n_empty += 1,
                Ok(Ok(Encoded::Tokens(tokens))) => {
                    self.writer.push(&tokens)?;
                    self.progress.n_documents += 1;
                    self.progress.n_tokens += tokens.len() as u64;
                }
            }
        }
        Ok(())
    }
}
