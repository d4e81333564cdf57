//! The `.idx` file: its header, and checks of all its entries.

use std::path::Path;

use super::dtype::TokenType;
use super::mapped_file::MappedFile;
use super::{MAGIC, VERSION};
use crate::error::{DataError, Result};

/// Bytes before the tables: magic, version, type, two counts.
pub(super) const HEADER_LEN: usize = 9 + 8 + 1 + 8 + 8;

/// An index whose entries have all been checked.
#[derive(Debug)]
pub(super) struct Index {
    file: MappedFile,
    pub(super) dtype: TokenType,
    n_sequences: usize,
    n_doc_idx: usize,
    pub(super) n_tokens: usize,
}

impl Index {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        check_magic(&file, path)?;
        check_length(path, HEADER_LEN as u64, (file.len() as u64).min(HEADER_LEN as u64))?;
        let version = read_u64(&file, 9);
        if version != VERSION {
            return Err(DataError::IndexVersion { path: path.to_path_buf(), expected: VERSION, got: version });
        }
        let code = file[17];
        let dtype =
            TokenType::from_code(code).ok_or_else(|| DataError::TokenType { path: path.to_path_buf(), got: code })?;
        let (n_sequences, n_doc_idx) = (read_u64(&file, 18), read_u64(&file, 26));
        // Counts that overflow call for a length that no file has.
        let expected = n_sequences
            .saturating_mul(12)
            .saturating_add(n_doc_idx.saturating_mul(8))
            .saturating_add(HEADER_LEN as u64);
        check_length(path, expected, file.len() as u64)?;
        // Both counts are below the file's length now, so they fit.
        let (n_sequences, n_doc_idx) = (n_sequences as usize, n_doc_idx as usize);
        let mut index = Self { file, dtype, n_sequences, n_doc_idx, n_tokens: 0 };
        index.n_tokens = index.check_sequences(path)?;
        index.check_documents(path)?;
        Ok(index)
    }

    /// How many bytes the `.bin` file has to have.
    pub(super) fn n_token_bytes(&self) -> u64 {
        (self.n_tokens as u64).saturating_mul(self.dtype.n_bytes() as u64)
    }

    pub(super) fn n_documents(&self) -> usize {
        if self.has_documents() { self.n_doc_idx - 1 } else { self.n_sequences }
    }

    /// The place of a document's first token among all tokens; for `n_documents`, their number.
    pub(super) fn document_start(&self, document: usize) -> usize {
        let sequence = if self.has_documents() { self.doc_idx(document) as usize } else { document };
        if sequence == self.n_sequences {
            self.n_tokens
        } else {
            self.pointer(sequence) as usize / self.dtype.n_bytes()
        }
    }

    fn has_documents(&self) -> bool {
        self.n_doc_idx > 1
    }

    fn size(&self, sequence: usize) -> i32 {
        i32::from_le_bytes(read(&self.file, HEADER_LEN + 4 * sequence))
    }

    fn pointer(&self, sequence: usize) -> i64 {
        i64::from_le_bytes(read(&self.file, HEADER_LEN + 4 * self.n_sequences + 8 * sequence))
    }

    fn doc_idx(&self, entry: usize) -> i64 {
        i64::from_le_bytes(read(&self.file, HEADER_LEN + 12 * self.n_sequences + 8 * entry))
    }

    /// Checks that sequences lie one after another, and returns the number of their tokens.
    fn check_sequences(&self, path: &Path) -> Result<usize> {
        let mut n_tokens = 0_usize;
        for sequence in 0..self.n_sequences {
            // Saturated sums call for a length that no `.bin` file has.
            let expected = n_tokens.saturating_mul(self.dtype.n_bytes());
            let expected = i64::try_from(expected).unwrap_or(i64::MAX);
            let pointer = self.pointer(sequence);
            if pointer != expected {
                return Err(entry_error(path, "pointers", sequence, expected.to_string(), pointer));
            }
            let size = self.size(sequence);
            let Ok(size) = usize::try_from(size) else {
                return Err(entry_error(path, "sizes", sequence, "0 or more".to_owned(), size.into()));
            };
            n_tokens = n_tokens.saturating_add(size);
        }
        Ok(n_tokens)
    }

    /// Checks that documents start with the first sequence, do not go back, and end with the last.
    fn check_documents(&self, path: &Path) -> Result<()> {
        let mut previous = 0;
        for entry in 0..self.n_doc_idx {
            let start = self.doc_idx(entry);
            let expected = match entry {
                0 => 0..=0,
                last if last + 1 == self.n_doc_idx => self.n_sequences as i64..=self.n_sequences as i64,
                _ => previous..=self.n_sequences as i64,
            };
            if !expected.contains(&start) {
                let expected = if expected.start() == expected.end() {
                    expected.start().to_string()
                } else {
                    format!("from {} to {}", expected.start(), expected.end())
                };
                return Err(entry_error(path, "doc_idx", entry, expected, start));
            }
            previous = start;
        }
        Ok(())
    }
}

fn check_magic(file: &[u8], path: &Path) -> Result<()> {
    let start = &file[..file.len().min(MAGIC.len())];
    if start == MAGIC {
        return Ok(());
    }
    Err(DataError::NotAnIndex {
        path: path.to_path_buf(),
        expected: MAGIC.escape_ascii().to_string(),
        got: start.escape_ascii().to_string(),
    })
}

pub(super) fn check_length(path: &Path, expected: u64, got: u64) -> Result<()> {
    if expected == got { Ok(()) } else { Err(DataError::FileLength { path: path.to_path_buf(), expected, got }) }
}

fn entry_error(path: &Path, table: &'static str, entry: usize, expected: String, got: i64) -> DataError {
    DataError::IndexEntry { path: path.to_path_buf(), table, entry: entry as u64, expected, got }
}

/// The `N` bytes at a place that has been checked to be within the file.
fn read<const N: usize>(file: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&file[at..at + N]);
    bytes
}

fn read_u64(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(read(file, at))
}
