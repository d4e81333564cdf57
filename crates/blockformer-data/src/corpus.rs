//! Tokenized documents.

use std::borrow::Cow;
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::error::{DataError, Result};

/// How many documents a [fingerprint](TokenCorpus::fingerprint) looks into, and how far.
const N_SAMPLED: usize = 1024;
const N_SAMPLED_TOKENS: usize = 256;

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

    /// How many tokens document `index` begins with that are read but not learned: those of a prompt. Their
    /// predictions do not count in the loss.
    ///
    /// # Panics
    /// If there is no such document.
    fn prompt_len(&self, index: usize) -> usize {
        let _ = index;
        0
    }

    /// How many tokens there are in all documents.
    fn n_tokens(&self) -> usize {
        (0..self.n_documents()).map(|index| self.document_len(index)).sum()
    }

    /// Tells corpora apart: a SHA-256 digest, in hexadecimal, of the lengths of all documents and of the first tokens of
    /// up to 1,024 of them spread over the corpus.
    ///
    /// It reads little of a corpus however large, so two that differ only in the middle of documents share it.
    fn fingerprint(&self) -> String {
        let n_documents = self.n_documents();
        let mut hasher = Sha256::new();
        hasher.update((n_documents as u64).to_le_bytes());
        for index in 0..n_documents {
            hasher.update((self.document_len(index) as u64).to_le_bytes());
            if self.prompt_len(index) > 0 {
                hasher.update((self.prompt_len(index) as u64).to_be_bytes());
            }
        }
        for index in (0..n_documents).step_by(n_documents.div_ceil(N_SAMPLED).max(1)) {
            let n_tokens = self.document_len(index).min(N_SAMPLED_TOKENS);
            for token in self.document_range(index, 0..n_tokens).iter() {
                hasher.update(token.to_le_bytes());
            }
        }
        format!("{:x}", hasher.finalize())
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
    fn prompt_len(&self, index: usize) -> usize {
        (**self).prompt_len(index)
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
    fn prompt_len(&self, index: usize) -> usize {
        (**self).prompt_len(index)
    }
    fn n_tokens(&self) -> usize {
        (**self).n_tokens()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_memory_corpus::InMemoryCorpus;

    #[test]
    fn a_fingerprint_tells_lengths_and_tokens_apart() {
        let fingerprint = |documents: &[&[u32]]| InMemoryCorpus::from_documents(documents).fingerprint();
        let one = fingerprint(&[&[1, 2, 3], &[4]]);
        assert_eq!(one, fingerprint(&[&[1, 2, 3], &[4]]));
        for other in [&[&[1, 2][..], &[3, 4]][..], &[&[1, 2, 3], &[5]], &[&[1, 2, 3]], &[&[1, 2, 3], &[4], &[]], &[]] {
            assert_ne!(one, fingerprint(other), "{other:?}");
        }
        // By `sha256sum` of the numbers 1 and 2 in eight bytes, and 7 and 8 in four.
        assert_eq!(fingerprint(&[&[7, 8]]), "7ed58cfea0ba22f974fcba8945d366e54f609d355285e5f9e77282a6c128309c");
    }
}
