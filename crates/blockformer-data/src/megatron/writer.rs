//! Writing, one document at a time.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use blockformer_files::AtomicFile;

use super::dtype::TokenType;
use super::{DatasetCard, MAGIC, Paths, VERSION};
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
    card: PathBuf,
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
        let paths = Paths::of(name.as_ref());
        let create = |path: &Path| AtomicFile::create(path).map_err(DataError::io("create", path));
        Ok(Self {
            dtype,
            index: create(&paths.index)?,
            tokens: create(&paths.tokens)?,
            card: paths.card,
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

    /// Writes the index and gives both files their names, replacing a dataset of that name.
    ///
    /// Whatever happens meanwhile, no index ever stands beside tokens of another dataset: once the
    /// new files are on the disk, the old index goes first and the new one gets its name last.
    ///
    /// # Errors
    /// [`DataError::Io`] if that fails.
    pub fn finish(self) -> Result<()> {
        self.finish_by(None)
    }

    /// The same, with a card.
    pub(crate) fn finish_with(self, card: &DatasetCard) -> Result<()> {
        self.finish_by(Some(card))
    }

    fn finish_by(mut self, card: Option<&DatasetCard>) -> Result<()> {
        let index_path = self.index.path().to_path_buf();
        let token_path = self.tokens.path().to_path_buf();
        self.tokens.sync().map_err(DataError::io("write", &token_path))?;
        self.write_index().map_err(DataError::io("write", &index_path))?;
        let card_file = card.map(|card| self.write_card(card)).transpose();
        let card_file = card_file.map_err(DataError::io("write", &self.card))?;
        for old in [&index_path, &self.card] {
            remove_if_there(old).map_err(DataError::io("replace", old))?;
        }
        self.tokens.commit().map_err(DataError::io("write", &token_path))?;
        if let Some(file) = card_file {
            file.commit().map_err(DataError::io("write", &self.card))?;
        }
        self.index.commit().map_err(DataError::io("write", &index_path))
    }

    fn write_card(&self, card: &DatasetCard) -> io::Result<AtomicFile> {
        let mut file = AtomicFile::create(&self.card)?;
        file.write_all(card.to_json().as_bytes())?;
        file.sync()?;
        Ok(file)
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
        index.sync()
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
