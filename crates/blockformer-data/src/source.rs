//! Documents from files: plain text, one document a file, and JSONL, one document a line.

mod json_line;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{DataError, Result};

/// A byte order mark, which some editors put at the start of a file and which is no part of its text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The field of a JSONL line that is the document, if no other is named.
const TEXT_FIELD: &str = "text";

/// Reads documents one after another, holding one at a time.
///
/// A `.jsonl` file has one JSON object a line, whose `text` field (or [another](Self::with_text_field)) is the document;
/// other fields and blank lines are skipped. Any other file is one document of plain text. A folder stands for the
/// `.txt` and `.jsonl` files right in it, sorted by name. Documents of nothing but white space are skipped and
/// [counted](Self::n_empty).
///
/// The iterator ends after its first error. If it gets to the end without having met a document,
/// [`DataError::NoDocuments`] is its only item.
#[derive(Debug)]
pub struct Documents {
    paths: Vec<PathBuf>,
    files: Vec<PathBuf>,
    text_field: Arc<str>,
    next_file: usize,
    lines: Option<JsonLines>,
    n_documents: usize,
    n_empty: usize,
    finished: bool,
}

impl Documents {
    /// Finds the files. Reading starts with the iteration.
    ///
    /// # Errors
    /// [`DataError::Io`] if a path does not exist or a folder cannot be listed.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            let metadata = std::fs::metadata(path).map_err(DataError::io("open", path))?;
            if metadata.is_dir() {
                files.extend(text_files_in(path)?);
            } else {
                files.push(path.clone());
            }
        }
        Ok(Self {
            paths: paths.to_vec(),
            files,
            text_field: TEXT_FIELD.into(),
            next_file: 0,
            lines: None,
            n_documents: 0,
            n_empty: 0,
            finished: false,
        })
    }

    /// Takes the documents of JSONL files from the field called `name`.
    #[must_use]
    pub fn with_text_field(mut self, name: &str) -> Self {
        self.text_field = name.into();
        self
    }

    /// The files to be read, in order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// How many documents have been returned so far.
    pub fn n_documents(&self) -> usize {
        self.n_documents
    }

    /// How many empty documents have been skipped so far.
    pub fn n_empty(&self) -> usize {
        self.n_empty
    }

    /// The next file or line as it is, empty or not.
    pub(crate) fn next_raw(&mut self) -> Result<Option<RawDocument>> {
        loop {
            if let Some(lines) = &mut self.lines {
                match lines.next_line(&self.text_field)? {
                    Some(line) => return Ok(Some(line)),
                    None => self.lines = None,
                }
            }
            let Some(path) = self.files.get(self.next_file) else {
                return Ok(None);
            };
            self.next_file += 1;
            if has_extension(path, "jsonl") {
                self.lines = Some(JsonLines::open(path)?);
            } else {
                let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
                return Ok(Some(RawDocument { bytes, path: path.as_path().into(), line: None }));
            }
        }
    }

    /// The next document, empty or not.
    fn advance(&mut self) -> Result<Option<String>> {
        while let Some(raw) = self.next_raw()? {
            if let Some(text) = raw.text()? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// That there was none, but `n_empty` empty ones.
    pub(crate) fn no_documents(&self, n_empty: usize) -> DataError {
        DataError::NoDocuments { paths: self.paths.clone(), n_files: self.files.len(), n_empty }
    }
}

impl Iterator for Documents {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.finished {
            match self.advance() {
                Ok(Some(text)) if is_empty(&text) => self.n_empty += 1,
                Ok(Some(text)) => {
                    self.n_documents += 1;
                    return Some(Ok(text));
                }
                Ok(None) => {
                    self.finished = true;
                    return (self.n_documents == 0).then(|| Err(self.no_documents(self.n_empty)));
                }
                Err(error) => {
                    self.finished = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// Whether a document is nothing but white space, and not worth keeping.
pub(crate) fn is_empty(text: &str) -> bool {
    text.trim().is_empty()
}

/// Reads all documents into memory. See [`Documents`] for what paths may be.
///
/// # Errors
/// The first error of [`Documents`].
pub fn read_documents(paths: &[PathBuf]) -> Result<Vec<String>> {
    Documents::open(paths)?.collect()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The text and JSONL files right in a folder, by name.
fn text_files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_file() && (has_extension(&path, "txt") || has_extension(&path, "jsonl")) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    };
    list().map_err(DataError::io("list the folder", folder))
}

/// A file of plain text, or a line of JSONL, that has been read but not looked at.
///
/// Looking at it is most of the work besides tokenizing, so that can be done on another thread.
#[derive(Debug)]
pub(crate) struct RawDocument {
    bytes: Vec<u8>,
    path: Arc<Path>,
    /// For JSONL.
    line: Option<Line>,
}

/// Where a line is.
#[derive(Debug)]
struct Line {
    /// Counted from one.
    number: u64,
    /// Where it starts in the file.
    byte_offset: u64,
    text_field: Arc<str>,
}

impl RawDocument {
    /// How many bytes of its file it is.
    pub(crate) fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Its text; `None` for a blank line.
    pub(crate) fn text(self) -> Result<Option<String>> {
        let Self { bytes, path, line } = self;
        let start = line.as_ref().map_or(0, |line| line.byte_offset);
        let mut text = String::from_utf8(bytes).map_err(|error| DataError::InvalidUtf8 {
            path: path.to_path_buf(),
            byte_offset: start + error.utf8_error().valid_up_to() as u64,
        })?;
        if start == 0 && text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
        }
        match line {
            None => Ok(Some(text)),
            Some(_) if is_empty(&text) => Ok(None),
            Some(line) => line.parse(&path, &text).map(Some),
        }
    }
}

impl Line {
    fn parse(self, path: &Path, text: &str) -> Result<String> {
        let Self { number: line, text_field, .. } = self;
        let path = || path.to_path_buf();
        let field = || text_field.to_string();
        let parsed = json_line::text_of(text, &text_field);
        let found =
            parsed.map_err(|source| DataError::InvalidJsonLine { path: path(), line, field: field(), source })?;
        found.ok_or_else(|| DataError::MissingText { path: path(), line, field: field() })
    }
}

/// An open JSONL file.
#[derive(Debug)]
struct JsonLines {
    path: Arc<Path>,
    reader: BufReader<File>,
    /// How many lines have been read, and their bytes.
    n_lines: u64,
    n_bytes: u64,
}

impl JsonLines {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io("read", path))?;
        Ok(Self { path: path.into(), reader: BufReader::with_capacity(1 << 20, file), n_lines: 0, n_bytes: 0 })
    }

    fn next_line(&mut self, text_field: &Arc<str>) -> Result<Option<RawDocument>> {
        let mut bytes = Vec::new();
        let read = self.reader.read_until(b'\n', &mut bytes);
        if read.map_err(DataError::io("read", &self.path))? == 0 {
            return Ok(None);
        }
        self.n_lines += 1;
        let line = Line { number: self.n_lines, byte_offset: self.n_bytes, text_field: Arc::clone(text_field) };
        self.n_bytes += bytes.len() as u64;
        Ok(Some(RawDocument { bytes, path: Arc::clone(&self.path), line: Some(line) }))
    }
}
