//! Documents from files: plain text, one document a file, and JSONL, one document a line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{DataError, Result};

/// A byte order mark, which some editors put at the start of a file and which is no part of its text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Reads documents one after another, holding one at a time.
///
/// A `.jsonl` file has one JSON object a line, whose `text` field is the document; other fields and blank lines are
/// skipped. Any other file is one document of plain text. A folder stands for the `.txt` and `.jsonl` files right in
/// it, sorted by name. Documents of nothing but white space are skipped and [counted](Self::n_empty).
///
/// The iterator ends after its first error. If it gets to the end without having met a document,
/// [`DataError::NoDocuments`] is its only item.
#[derive(Debug)]
pub struct Documents {
    paths: Vec<PathBuf>,
    files: Vec<PathBuf>,
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
            next_file: 0,
            lines: None,
            n_documents: 0,
            n_empty: 0,
            finished: false,
        })
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

    /// The next document, empty or not.
    fn advance(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(lines) = &mut self.lines {
                match lines.next_text()? {
                    Some(text) => return Ok(Some(text)),
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
                return read_text(path).map(Some);
            }
        }
    }

    fn no_documents(&self) -> DataError {
        DataError::NoDocuments { paths: self.paths.clone(), n_files: self.files.len(), n_empty: self.n_empty }
    }
}

impl Iterator for Documents {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.finished {
            match self.advance() {
                Ok(Some(text)) if text.trim().is_empty() => self.n_empty += 1,
                Ok(Some(text)) => {
                    self.n_documents += 1;
                    return Some(Ok(text));
                }
                Ok(None) => {
                    self.finished = true;
                    return (self.n_documents == 0).then(|| Err(self.no_documents()));
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

fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
    let mut text = String::from_utf8(bytes).map_err(|error| DataError::InvalidUtf8 {
        path: path.to_path_buf(),
        byte_offset: error.utf8_error().valid_up_to() as u64,
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(text)
}

/// One line of a JSONL file. Fields other than these are skipped.
#[derive(Deserialize)]
struct JsonLine {
    text: Option<String>,
}

/// An open JSONL file.
#[derive(Debug)]
struct JsonLines {
    path: PathBuf,
    reader: BufReader<File>,
    buffer: Vec<u8>,
    /// The number of the line in `buffer`, from one.
    line: u64,
    /// Where that line starts in the file.
    byte_offset: u64,
}

impl JsonLines {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io("read", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            reader: BufReader::with_capacity(1 << 16, file),
            buffer: Vec::new(),
            line: 0,
            byte_offset: 0,
        })
    }

    /// The text of the next line that is not blank.
    fn next_text(&mut self) -> Result<Option<String>> {
        loop {
            self.byte_offset += self.buffer.len() as u64;
            self.buffer.clear();
            self.line += 1;
            let read = self.reader.read_until(b'\n', &mut self.buffer);
            if read.map_err(DataError::io("read", &self.path))? == 0 {
                return Ok(None);
            }
            let line = std::str::from_utf8(&self.buffer).map_err(|error| DataError::InvalidUtf8 {
                path: self.path.clone(),
                byte_offset: self.byte_offset + error.valid_up_to() as u64,
            })?;
            let line = if self.line == 1 { line.trim_start_matches(BYTE_ORDER_MARK) } else { line };
            if let Some(first) = line.trim_start().chars().next() {
                return self.parse(line, first).map(Some);
            }
        }
    }

    fn parse(&self, line: &str, first: char) -> Result<String> {
        // Serde would take a JSON array for the fields in order.
        if first == '[' {
            return Err(DataError::NotAnObject { path: self.path.clone(), line: self.line, got: first });
        }
        let parsed: JsonLine = serde_json::from_str(line).map_err(|source| DataError::InvalidJsonLine {
            path: self.path.clone(),
            line: self.line,
            source,
        })?;
        parsed.text.ok_or_else(|| DataError::MissingText { path: self.path.clone(), line: self.line })
    }
}
