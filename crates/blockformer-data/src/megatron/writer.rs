//! Writing, one document at a time.

use std::io::{self, Write};
use std::path::Path;

use super::dtype::TokenType;
use super::{MAGIC, VERSION, index_and_token_paths};
use crate::atomic_file::AtomicFile;
use crate::error::{DataError, Result};

/// Writes a Megatron dataset of which each document is one sequence.
///
/// Both files are written under temporary names and renamed by [`finish`](Self::finish); without it, nothing is left
/// behind.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use blockformer_data::{MegatronCorpus, MegatronWriter, TokenCorpus, TokenType};
///
/// # let folder = tempfile::tempdir()?;
/// let name = folder.path().join("tokens");
/// let mut writer = MegatronWriter::create(&name, TokenType::for_vocab_size(50_304))?;
/// writer.push(&[5, 6, 7])?;
/// writer.push(&[8, 9])?;
/// writer.finish()?;
///
/// let corpus = MegatronCorpus::open(&name)?;
/// assert_eq!(corpus.n_documents(), 2);
/// assert_eq!(*corpus.document(1), [8, 9]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MegatronWriter {
    dtype: TokenType,
    index: AtomicFile,
    tokens: AtomicFile,
    sizes: Vec<i32>,
    /// The bytes of one document.
    buffer: Vec<u8>,
}

impl MegatronWriter {
    /// Starts the files `name.idx` and `name.bin`.
    ///
    /// # Errors
    /// [`DataError::Io`] if there can be no file there.
    pub fn create(name: impl AsRef<Path>, dtype: TokenType) -> Result<Self> {
        let (index_path, token_path) = index_and_token_paths(name.as_ref());
        let create = |path: &Path| AtomicFile::create(path).map_err(DataError::io("create", path));
        Ok(Self {
            dtype,
            index: create(&index_path)?,
            tokens: create(&token_path)?,
            sizes: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// Adds a document.
    ///
    /// # Errors
    /// [`DataError::TokenTooLarge`] for a token that the type cannot hold, [`DataError::DocumentTooLong`] for 2^31
    /// tokens or more, [`DataError::Io`] if the tokens cannot be written. The document is not in the dataset then; after
    /// an `Io` error, start over.
    pub fn push(&mut self, document: &[u32]) -> Result<()> {
        let largest = self.dtype.largest();
        if let Some(&token) = document.iter().find(|&&token| token > largest) {
            return Err(DataError::TokenTooLarge { path: self.tokens.path().to_path_buf(), largest, token });
        }
        let size = i32::try_from(document.len()).map_err(|_| DataError::DocumentTooLong {
            path: self.tokens.path().to_path_buf(),
            expected_at_most: i32::MAX as usize,
            got: document.len(),
        })?;
        self.buffer.clear();
        for &token in document {
            self.dtype.encode(token, &mut self.buffer);
        }
        let written = self.tokens.write_all(&self.buffer);
        written.map_err(DataError::io("write", self.tokens.path()))?;
        self.sizes.push(size);
        Ok(())
    }

    /// Writes the index and gives both files their names.
    ///
    /// # Errors
    /// [`DataError::Io`] if that fails.
    pub fn finish(mut self) -> Result<()> {
        let index_path = self.index.path().to_path_buf();
        let token_path = self.tokens.path().to_path_buf();
        self.write_index().map_err(DataError::io("write", &index_path))?;
        self.tokens.commit().map_err(DataError::io("write", &token_path))?;
        self.index.commit().map_err(DataError::io("write", &index_path))
    }

    fn write_index(&mut self) -> io::Result<()> {
        let index = &mut self.index;
        index.write_all(MAGIC)?;
        index.write_all(&VERSION.to_le_bytes())?;
        index.write_all(&[self.dtype.code()])?;
        index.write_all(&(self.sizes.len() as u64).to_le_bytes())?;
        index.write_all(&(self.sizes.len() as u64 + 1).to_le_bytes())?;
        for size in &self.sizes {
            index.write_all(&size.to_le_bytes())?;
        }
        let mut pointer = 0_i64;
        for &size in &self.sizes {
            index.write_all(&pointer.to_le_bytes())?;
            pointer += i64::from(size) * self.dtype.n_bytes() as i64;
        }
        for document in 0..=self.sizes.len() as i64 {
            index.write_all(&document.to_le_bytes())?;
        }
        Ok(())
    }
}
