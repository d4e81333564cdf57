//! Reading: a corpus that stays on disk.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use super::dtype::TokenType;
use super::index::{Index, check_length};
use super::mapped_file::MappedFile;
use super::{DatasetCard, Paths, dataset_exists};
use crate::corpus::TokenCorpus;
use crate::error::Result;

/// A Megatron dataset mapped into memory.
///
/// Opening one reads the index once and none of the tokens. Tokens of type [`TokenType::I32`] are used where they lie;
/// others are widened when asked for. Numbers in the file that cannot be tokens, such as negative ones, come out as ids
/// that no vocabulary has, so that [`validate`](TokenCorpus::validate) finds them.
#[derive(Debug)]
pub struct MegatronCorpus {
    index: Index,
    tokens: MappedFile,
    card: Option<DatasetCard>,
    eos_token_id: Option<u32>,
}

impl MegatronCorpus {
    /// Whether there is a dataset called `name`, as [`open`](Self::open) takes it: whether its index is there.
    pub fn exists(name: impl AsRef<Path>) -> bool {
        dataset_exists(name.as_ref()).is_some()
    }

    /// Opens the dataset called `name`: the files `name.idx` and `name.bin`. Either of them may be named as well.
    ///
    /// The files must not be changed or cut short as long as the corpus is in use: that would end the process, or give
    /// it tokens that change under its hands. Writers that rename complete files, like
    /// [`MegatronWriter`](crate::MegatronWriter), do no harm.
    ///
    /// # Errors
    /// Everything about the two files that does not fit together: [`DataError`](crate::DataError)'s `Io`,
    /// `NotAnIndex`, `IndexVersion`, `TokenType`, `FileLength`, `IndexEntry` and `DatasetCard`.
    pub fn open(name: impl AsRef<Path>) -> Result<Self> {
        let paths = Paths::of(name.as_ref());
        let index = Index::open(&paths.index)?;
        let tokens = MappedFile::open(&paths.tokens)?;
        check_length(&paths.tokens, index.n_token_bytes(), tokens.len() as u64)?;
        let card = DatasetCard::read(&paths.card)?;
        Ok(Self { index, tokens, card, eos_token_id: None })
    }

    /// Leaves out a last token of each document that is `eos_token_id`.
    ///
    /// For datasets written with ends of documents in them (Megatron's `--append-eod`), because
    /// [packing](crate::PackedDataset) adds its own.
    #[must_use]
    pub fn without_trailing(mut self, eos_token_id: u32) -> Self {
        self.eos_token_id = Some(eos_token_id);
        self
    }

    /// Where the tokens are from, if that was written down.
    pub fn card(&self) -> Option<&DatasetCard> {
        self.card.as_ref()
    }

    /// The type of the tokens on disk.
    pub fn token_type(&self) -> TokenType {
        self.index.dtype
    }

    /// The tokens at these places among all tokens.
    fn tokens(&self, range: Range<usize>) -> Cow<'_, [u32]> {
        let n_bytes = self.index.dtype.n_bytes();
        self.index.dtype.decode(&self.tokens[range.start * n_bytes..range.end * n_bytes])
    }

    /// Where a document's tokens are among all tokens.
    fn range_of(&self, document: usize) -> Range<usize> {
        assert!(document < self.n_documents(), "document {document} of {}", self.n_documents());
        let (start, end) = (self.index.document_start(document), self.index.document_start(document + 1));
        let ends_with_eos = |eos| start < end && self.tokens(end - 1..end)[0] == eos;
        start..end - usize::from(self.eos_token_id.is_some_and(ends_with_eos))
    }
}

impl TokenCorpus for MegatronCorpus {
    fn n_documents(&self) -> usize {
        self.index.n_documents()
    }

    fn document_len(&self, index: usize) -> usize {
        self.range_of(index).len()
    }

    fn document_range(&self, index: usize, range: Range<usize>) -> Cow<'_, [u32]> {
        let document = self.range_of(index);
        assert!(
            range.start <= range.end && range.end <= document.len(),
            "tokens {range:?} of document {index}, which has {}",
            document.len()
        );
        self.tokens(document.start + range.start..document.start + range.end)
    }
}
