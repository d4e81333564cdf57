//! Tokenized documents.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{DataError, Result};

/// A list of tokenized documents.
///
/// [`InMemoryCorpus`](crate::InMemoryCorpus) and [`MegatronCorpus`](crate::MegatronCorpus) are two; a type of yours
/// that implements this can be packed and trained on like them.
pub trait TokenCorpus: Send + Sync {
    /// How many documents there are.
    fn n_documents(&self) -> usize;

    /// How many tokens document `index` has. May be 0.
    ///
    /// # Panics
    /// If there is no such document.
    fn document_len(&self, index: usize) -> usize;

    /// The tokens of document `index` at the places in `range`.
    ///
    /// # Panics
    /// If there is no such document, or the range is not within it.
    fn document_range(&self, index: usize, range: Range<usize>) -> Cow<'_, [u32]>;

    /// All tokens of document `index`.
    ///
    /// # Panics
    /// If there is no such document.
    fn document(&self, index: usize) -> Cow<'_, [u32]> {
        self.document_range(index, 0..self.document_len(index))
    }

    /// How many tokens there are in all documents.
    fn n_tokens(&self) -> usize {
        (0..self.n_documents()).map(|index| self.document_len(index)).sum()
    }

    /// Checks that every token fits a model with `vocab_size` tokens, by looking at all of them.
    ///
    /// # Errors
    /// [`DataError::TokenOutOfVocabulary`] for the first one that does not.
    fn validate(&self, vocab_size: usize) -> Result<()> {
        for document in 0..self.n_documents() {
            let tokens = self.document(document);
            let position = tokens.iter().position(|&token| token as usize >= vocab_size);
            if let Some(position) = position {
                return Err(DataError::TokenOutOfVocabulary {
                    document,
                    position,
                    token: tokens[position],
                    vocab_size,
                });
            }
        }
        Ok(())
    }
}

impl<C: TokenCorpus + ?Sized> TokenCorpus for std::sync::Arc<C> {
    fn n_documents(&self) -> usize {
        (**self).n_documents()
    }
    fn document_len(&self, index: usize) -> usize {
        (**self).document_len(index)
    }
    fn document_range(&self, index: usize, range: Range<usize>) -> Cow<'_, [u32]> {
        (**self).document_range(index, range)
    }
    fn document(&self, index: usize) -> Cow<'_, [u32]> {
        (**self).document(index)
    }
    fn n_tokens(&self) -> usize {
        (**self).n_tokens()
    }
}

impl<C: TokenCorpus + ?Sized> TokenCorpus for Box<C> {
    fn n_documents(&self) -> usize {
        (**self).n_documents()
    }
    fn document_len(&self, index: usize) -> usize {
        (**self).document_len(index)
    }
    fn document_range(&self, index: usize, range: Range<usize>) -> Cow<'_, [u32]> {
        (**self).document_range(index, range)
    }
    fn document(&self, index: usize) -> Cow<'_, [u32]> {
        (**self).document(index)
    }
    fn n_tokens(&self) -> usize {
        (**self).n_tokens()
    }
}
