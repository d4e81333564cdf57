//! A corpus held in memory.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::corpus::TokenCorpus;
use crate::corpus_part::{tail_len, validation_documents};
use crate::error::{DataError, Result};
use crate::tokenizer::Tokenizer;

/// How many bytes of text [`InMemoryCorpus::tokenize_stream`] gathers before it tokenizes them in parallel.
const TEXT_IN_FLIGHT: usize = 16 << 20;

/// Documents in memory: all tokens end to end, and where each document starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InMemoryCorpus {
    tokens: Vec<u32>,
    /// Document `i` is `tokens[offsets[i]..offsets[i + 1]]`.
    offsets: Vec<usize>,
}

impl InMemoryCorpus {
    /// A corpus without documents.
    pub fn new() -> Self {
        Self { tokens: Vec::new(), offsets: vec![0] }
    }

    /// A corpus from all tokens end to end and the places where documents start, the end of the last one added.
    ///
    /// # Errors
    /// [`DataError::InvalidOffsets`] unless the offsets start with 0, never decrease, and end with the number of tokens.
    pub fn from_parts(tokens: Vec<u32>, offsets: Vec<usize>) -> Result<Self> {
        let invalid = |position: usize, expected: String| {
            let got = offsets.get(position).copied().unwrap_or(0);
            Err(DataError::InvalidOffsets { position, expected, got })
        };
        if offsets.first() != Some(&0) {
            return invalid(0, "0".to_owned());
        }
        let decrease = offsets.windows(2).position(|pair| pair[0] > pair[1]);
        if let Some(position) = decrease {
            return invalid(position + 1, format!("at least {}", offsets[position]));
        }
        if offsets.last() != Some(&tokens.len()) {
            return invalid(offsets.len() - 1, format!("the number of tokens, {}", tokens.len()));
        }
        Ok(Self { tokens, offsets })
    }

    /// A corpus of documents that are tokenized already.
    pub fn from_documents<D: AsRef<[u32]>>(documents: impl IntoIterator<Item = D>) -> Self {
        let mut corpus = Self::new();
        for document in documents {
            corpus.push(document.as_ref());
        }
        corpus
    }

    /// Tokenizes documents in parallel.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], for the first document that has an error.
    pub fn tokenize<S: AsRef<str> + Sync>(documents: &[S], tokenizer: &Tokenizer) -> Result<Self> {
        let mut corpus = Self::new();
        corpus.push_texts(documents, tokenizer)?;
        Ok(corpus)
    }

    /// Tokenizes documents in parallel while they are being read, a few megabytes of text at a time.
    ///
    /// # Errors
    /// The first error among the documents, or of [`Tokenizer::encode`].
    pub fn tokenize_stream(documents: impl Iterator<Item = Result<String>>, tokenizer: &Tokenizer) -> Result<Self> {
        let mut corpus = Self::new();
        let mut texts = Vec::new();
        let mut n_bytes = 0;
        for document in documents {
            let document = document?;
            n_bytes += document.len();
            texts.push(document);
            if n_bytes >= TEXT_IN_FLIGHT {
                corpus.push_texts(&texts, tokenizer)?;
                texts.clear();
                n_bytes = 0;
            }
        }
        corpus.push_texts(&texts, tokenizer)?;
        Ok(corpus)
    }

    fn push_texts<S: AsRef<str> + Sync>(&mut self, texts: &[S], tokenizer: &Tokenizer) -> Result<()> {
        let encoded: Vec<Result<Vec<u32>>> = texts.par_iter().map(|text| tokenizer.encode(text.as_ref())).collect();
        for document in encoded {
            self.push(&document?);
        }
        Ok(())
    }

    /// Adds a document at the end.
    pub fn push(&mut self, document: &[u32]) {
        self.tokens.extend_from_slice(document);
        self.offsets.push(self.tokens.len());
    }

    /// All tokens, documents end to end.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Where each document starts in [`tokens`](Self::tokens), and at last their number.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Splits off the last tokens, a `fraction` of them rounded to the nearest token, and returns both parts.
    ///
    /// A document that the cut goes through is cut in two. Returns `(head, tail)`: training and validation.
    ///
    /// # Errors
    /// [`DataError::InvalidFraction`] unless `0 <= fraction < 1`.
    pub fn split_tail(mut self, fraction: f64) -> Result<(Self, Self)> {
        let cut = self.tokens.len() - tail_len(self.tokens.len(), fraction)?;
        // Documents that start before the cut: these belong to the head, the last perhaps in part.
        let n_head = self.offsets[..self.offsets.len() - 1].partition_point(|&start| start < cut);
        let is_cut = self.offsets[n_head] > cut;
        let tail_offsets = std::iter::once(cut)
            .chain(self.offsets[n_head..].iter().copied().skip(usize::from(!is_cut)))
            .map(|offset| offset - cut)
            .collect();
        let tail = Self { tokens: self.tokens.split_off(cut), offsets: tail_offsets };
        self.offsets.truncate(n_head + 1);
        self.offsets[n_head] = cut;
        Ok((self, tail))
    }

    /// Splits into two corpora of whole documents: `(training, validation)`.
    ///
    /// The validation documents are a `fraction` of all, rounded to the nearest document but at least one if there are
    /// two or more and the fraction is not 0. They are chosen by `seed`; both parts keep the order of documents.
    ///
    /// # Errors
    /// [`DataError::InvalidFraction`] unless `0 <= fraction < 1`.
    pub fn split_documents(self, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        let mut chosen = validation_documents(self.n_documents(), fraction, seed)?.into_iter().peekable();
        let (mut training, mut validation) = (Self::new(), Self::new());
        for index in 0..self.n_documents() {
            let part = if chosen.next_if_eq(&index).is_some() { &mut validation } else { &mut training };
            part.push(self.slice(index));
        }
        Ok((training, validation))
    }

    fn slice(&self, index: usize) -> &[u32] {
        &self.tokens[self.offsets[index]..self.offsets[index + 1]]
    }
}

impl Default for InMemoryCorpus {
    fn default() -> Self {
        Self::new()
    }
}

impl TokenCorpus for InMemoryCorpus {
    fn n_documents(&self) -> usize {
        self.offsets.len() - 1
    }

    fn document_len(&self, index: usize) -> usize {
        self.slice(index).len()
    }

    fn document_range(&self, index: usize, range: Range<usize>) -> Cow<'_, [u32]> {
        Cow::Borrowed(&self.slice(index)[range])
    }

    fn n_tokens(&self) -> usize {
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer_training::character_level;
    use proptest::prelude::*;

    fn documents(corpus: &InMemoryCorpus) -> Vec<Vec<u32>> {
        (0..corpus.n_documents()).map(|index| corpus.document(index).into_owned()).collect()
    }

    #[test]
    fn documents_are_tokenized_in_order() {
        let tokenizer = character_level("abc").unwrap();
        let corpus = InMemoryCorpus::tokenize(&["ab", "", "cba"], &tokenizer).unwrap();
        assert_eq!(documents(&corpus), [vec![1, 2], vec![], vec![3, 2, 1]]);
        assert_eq!(corpus.n_tokens(), 5);
        let stream = ["ab", "", "cba"].map(|text| Ok(text.to_owned())).into_iter();
        assert_eq!(InMemoryCorpus::tokenize_stream(stream, &tokenizer).unwrap(), corpus);
    }

    #[test]
    fn the_first_text_that_cannot_be_encoded_is_the_error() {
        let tokenizer = character_level("abc").unwrap();
        let error = InMemoryCorpus::tokenize(&["ab", "bx", "y"], &tokenizer).unwrap_err();
        assert!(matches!(error, DataError::UnknownCharacter { character: 'x', byte_offset: 1 }), "{error}");
    }

    #[test]
    fn the_tail_may_cut_a_document_in_two() {
        let corpus = InMemoryCorpus::from_documents([vec![1, 2, 3], vec![4, 5, 6, 7], vec![8, 9, 10]]);
        let (head, tail) = corpus.split_tail(0.5).unwrap();
        assert_eq!(documents(&head), [vec![1, 2, 3], vec![4, 5]]);
        assert_eq!(documents(&tail), [vec![6, 7], vec![8, 9, 10]]);
    }

    #[test]
    fn the_tail_may_fall_between_documents() {
        let corpus = InMemoryCorpus::from_documents([vec![1, 2, 3], vec![4, 5, 6]]);
        let (head, tail) = corpus.split_tail(0.5).unwrap();
        assert_eq!(documents(&head), [vec![1, 2, 3]]);
        assert_eq!(documents(&tail), [vec![4, 5, 6]]);
    }

    #[test]
    fn whole_documents_are_split_by_the_seed() {
        let corpus = InMemoryCorpus::from_documents((0..100).map(|index| vec![index; 3]));
        let (training, validation) = corpus.clone().split_documents(0.1, 1).unwrap();
        assert_eq!((training.n_documents(), validation.n_documents()), (90, 10));
        assert_eq!(corpus.clone().split_documents(0.1, 1).unwrap().1, validation);
        assert_ne!(corpus.split_documents(0.1, 2).unwrap().1, validation);
        let mut all: Vec<u32> = [documents(&training), documents(&validation)].concat().iter().map(|d| d[0]).collect();
        all.sort();
        assert_eq!(all, (0..100).collect::<Vec<u32>>());
    }

    #[test]
    fn a_split_of_few_documents_leaves_some_on_both_sides() {
        let corpus = InMemoryCorpus::from_documents([[1], [2]]);
        for fraction in [0.01, 0.99] {
            let (training, validation) = corpus.clone().split_documents(fraction, 0).unwrap();
            assert_eq!((training.n_documents(), validation.n_documents()), (1, 1));
        }
        assert_eq!(corpus.split_documents(0.0, 0).unwrap().1.n_documents(), 0);
        let (training, validation) = InMemoryCorpus::new().split_documents(0.5, 0).unwrap();
        assert_eq!((training.n_documents(), validation.n_documents()), (0, 0));
    }

    #[test]
    fn fractions_outside_0_to_1_are_refused() {
        for fraction in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
            let corpus = InMemoryCorpus::from_documents([[1], [2]]);
            assert!(matches!(corpus.clone().split_tail(fraction), Err(DataError::InvalidFraction { .. })));
            assert!(matches!(corpus.split_documents(fraction, 0), Err(DataError::InvalidFraction { .. })));
        }
    }

    #[test]
    fn offsets_that_do_not_fit_the_tokens_are_refused() {
        for (offsets, message) in [
            (vec![], "invalid document offset 0: expected 0, got 0"),
            (vec![1, 3], "invalid document offset 0: expected 0, got 1"),
            (vec![0, 2, 1, 3], "invalid document offset 2: expected at least 2, got 1"),
            (vec![0, 2], "invalid document offset 1: expected the number of tokens, 3, got 2"),
            (vec![0, 4], "invalid document offset 1: expected the number of tokens, 3, got 4"),
        ] {
            let error = InMemoryCorpus::from_parts(vec![1, 2, 3], offsets).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        assert_eq!(InMemoryCorpus::from_parts(vec![1, 2, 3], vec![0, 0, 3]).unwrap().n_documents(), 2);
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_found() {
        let corpus = InMemoryCorpus::from_documents([vec![1, 2], vec![3, 9, 10]]);
        assert!(corpus.validate(11).is_ok());
        let error = corpus.validate(9).unwrap_err();
        assert_eq!(error.to_string(), "document 1, token 1: expected an id below vocab_size 9, got 9");
    }

    proptest! {
        #[test]
        fn both_sides_of_a_tail_split_hold_all_tokens(
            lengths in prop::collection::vec(0_usize..6, 0..8), fraction in 0.0..1.0,
        ) {
            let mut next = 0;
            let corpus = InMemoryCorpus::from_documents(lengths.iter().map(|&length| {
                next += length as u32;
                (next - length as u32..next).collect::<Vec<u32>>()
            }));
            let (head, tail) = corpus.clone().split_tail(fraction).unwrap();
            let n_tail = (corpus.n_tokens() as f64 * fraction).round() as usize;
            prop_assert_eq!(tail.n_tokens(), n_tail);
            prop_assert_eq!([head.tokens(), tail.tokens()].concat(), corpus.tokens());
            let both = head.n_documents() + tail.n_documents();
            prop_assert!(both == corpus.n_documents() || both == corpus.n_documents() + 1);
            for part in [head, tail] {
                prop_assert!(InMemoryCorpus::from_parts(part.tokens().to_vec(), part.offsets().to_vec()).is_ok());
            }
        }
    }
}
