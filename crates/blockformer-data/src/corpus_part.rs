//! A part of a corpus, and corpora end to end.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::corpus::TokenCorpus;
use crate::error::{DataError, Result};
use crate::seeded_hash::seeded_hash;

/// Some documents of a corpus, without copying them: the training or the validation part.
#[derive(Debug, Clone)]
pub struct CorpusPart<C> {
    corpus: Arc<C>,
    documents: Selection,
    /// Tokens left out at the beginning of the first document.
    skip_first: usize,
    /// Tokens left out at the end of the last document.
    skip_last: usize,
}

/// Which documents belong to a part. Lists are of the smaller side, so that a part of a large corpus takes little
/// memory.
#[derive(Debug, Clone)]
enum Selection {
    Range(Range<usize>),
    /// These, in order.
    Only(Vec<usize>),
    /// All of so many but these, in order.
    AllBut(usize, Vec<usize>),
}

impl Selection {
    fn len(&self) -> usize {
        match self {
            Self::Range(range) => range.len(),
            Self::Only(documents) => documents.len(),
            Self::AllBut(n, documents) => n - documents.len(),
        }
    }

    /// The corpus's number of the part's document `index`.
    fn get(&self, index: usize) -> usize {
        assert!(index < self.len(), "document {index} of {}", self.len());
        match self {
            Self::Range(range) => range.start + index,
            Self::Only(documents) => documents[index],
            Self::AllBut(_, left_out) => {
                // The left-out document number `k` has `left_out[k] - k` others before it.
                let (mut low, mut high) = (0, left_out.len());
                while low < high {
                    let middle = low.midpoint(high);
                    if left_out[middle] - middle <= index {
                        low = middle + 1;
                    } else {
                        high = middle;
                    }
                }
                index + low
            }
        }
    }
}

impl<C: TokenCorpus> CorpusPart<C> {
    /// The whole corpus.
    pub fn whole(corpus: C) -> Self {
        let documents = Selection::Range(0..corpus.n_documents());
        Self { corpus: Arc::new(corpus), documents, skip_first: 0, skip_last: 0 }
    }

    /// Splits into two parts of whole documents: `(training, validation)`.
    ///
    /// The validation documents are a `fraction` of all, rounded to the nearest document but at least one if there are
    /// two or more and the fraction is not 0. They are chosen by `seed`; both parts keep the order of documents.
    ///
    /// # Errors
    /// [`DataError::InvalidFraction`] unless `0 <= fraction < 1`.
    pub fn split_documents(corpus: C, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        let n_documents = corpus.n_documents();
        let validation = validation_documents(n_documents, fraction, seed)?;
        let corpus = Arc::new(corpus);
        let part = |documents| Self { corpus: Arc::clone(&corpus), documents, skip_first: 0, skip_last: 0 };
        Ok((part(Selection::AllBut(n_documents, validation.clone())), part(Selection::Only(validation))))
    }

    /// Splits off the last tokens, a `fraction` of them rounded to the nearest token: `(training, validation)`.
    ///
    /// A document that the cut goes through is cut in two.
    ///
    /// # Errors
    /// [`DataError::InvalidFraction`] unless `0 <= fraction < 1`.
    pub fn split_tail(corpus: C, fraction: f64) -> Result<(Self, Self)> {
        let n_documents = corpus.n_documents();
        let mut n_left = tail_len(corpus.n_tokens(), fraction)?;
        // The first document of the tail, from behind.
        let mut first = n_documents;
        while n_left > 0 {
            first -= 1;
            let len = corpus.document_len(first);
            if len > n_left {
                break;
            }
            n_left -= len;
        }
        let corpus = Arc::new(corpus);
        let part = |documents, skip_first, skip_last| Self {
            corpus: Arc::clone(&corpus),
            documents: Selection::Range(documents),
            skip_first,
            skip_last,
        };
        // `n_left` tokens of document `first` belong to the tail; none: all of it does, or there is no tail.
        Ok(if n_left == 0 {
            (part(0..first, 0, 0), part(first..n_documents, 0, 0))
        } else {
            let n_head = corpus.document_len(first) - n_left;
            (part(0..first + 1, 0, n_left), part(first..n_documents, n_head, 0))
        })
    }

    /// The corpus that this is a part of.
    pub fn corpus(&self) -> &C {
        &self.corpus
    }

    /// Where in the corpus's document the tokens of document `index` are.
    fn range_of(&self, index: usize) -> (usize, Range<usize>) {
        let document = self.documents.get(index);
        let start = if index == 0 { self.skip_first } else { 0 };
        let skip_last = if index + 1 == self.documents.len() { self.skip_last } else { 0 };
        (document, start..self.corpus.document_len(document) - skip_last)
    }
}

impl<C: TokenCorpus> TokenCorpus for CorpusPart<C> {
    fn n_documents(&self) -> usize {
        self.documents.len()
    }

    fn document_len(&self, index: usize) -> usize {
        self.range_of(index).1.len()
    }

    fn prompt_len(&self, index: usize) -> usize {
        let (document, range) = self.range_of(index);
        self.corpus.prompt_len(document).clamp(range.start, range.end) - range.start
    }

    fn document_range(&self, index: usize, range: Range<usize>) -> Cow<'_, [u32]> {
        let (document, own) = self.range_of(index);
        assert!(range.end <= own.len(), "tokens {range:?} of document {index}, which has {}", own.len());
        self.corpus.document_range(document, own.start + range.start..own.start + range.end)
    }
}

/// How many tokens the last `fraction` of `n_tokens` are.
pub(crate) fn tail_len(n_tokens: usize, fraction: f64) -> Result<usize> {
    check_fraction(fraction)?;
    Ok(((n_tokens as f64 * fraction).round() as usize).min(n_tokens))
}

/// The documents chosen by `seed` for validation, in order.
pub(crate) fn validation_documents(n_documents: usize, fraction: f64, seed: u64) -> Result<Vec<usize>> {
    check_fraction(fraction)?;
    let at_least = usize::from(fraction > 0.0 && n_documents > 1);
    let at_most = n_documents.saturating_sub(1);
    let n_validation = ((n_documents as f64 * fraction).round() as usize).clamp(at_least, at_most);
    let mut order: Vec<usize> = (0..n_documents).collect();
    if n_validation < n_documents {
        order.select_nth_unstable_by_key(n_validation, |&index| (seeded_hash(seed, index as u64), index));
    }
    order.truncate(n_validation);
    order.sort_unstable();
    Ok(order)
}

fn check_fraction(got: f64) -> Result<()> {
    if (0.0..1.0).contains(&got) { Ok(()) } else { Err(DataError::InvalidFraction { name: "fraction", got }) }
}

/// Corpora end to end, as one.
#[derive(Debug)]
pub struct ConcatenatedCorpus<C> {
    corpora: Vec<C>,
    /// The first document of each, and at last their number.
    starts: Vec<usize>,
}

impl<C: TokenCorpus> ConcatenatedCorpus<C> {
    /// The documents of the first, then those of the second, and so on.
    pub fn new(corpora: Vec<C>) -> Self {
        let mut starts = vec![0];
        for corpus in &corpora {
            starts.push(starts[starts.len() - 1] + corpus.n_documents());
        }
        Self { corpora, starts }
    }

    /// The corpus that document `index` is in, and its number there.
    fn find(&self, index: usize) -> (&C, usize) {
        assert!(index < self.n_documents(), "document {index} of {}", self.n_documents());
        let corpus = self.starts.partition_point(|&start| start <= index) - 1;
        (&self.corpora[corpus], index - self.starts[corpus])
    }
}

impl<C: TokenCorpus> TokenCorpus for ConcatenatedCorpus<C> {
    fn n_documents(&self) -> usize {
        self.starts[self.corpora.len()]
    }

    fn document_len(&self, index: usize) -> usize {
        let (corpus, index) = self.find(index);
        corpus.document_len(index)
    }

    fn prompt_len(&self, index: usize) -> usize {
        let (corpus, index) = self.find(index);
        corpus.prompt_len(index)
    }

    fn document_range(&self, index: usize, range: Range<usize>) -> Cow<'_, [u32]> {
        let (corpus, index) = self.find(index);
        corpus.document_range(index, range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::in_memory_corpus::InMemoryCorpus;

    fn documents(corpus: &impl TokenCorpus) -> Vec<Vec<u32>> {
        (0..corpus.n_documents())
            .map(|index| {
                let document = corpus.document(index).into_owned();
                assert_eq!(document.len(), corpus.document_len(index));
                document
            })
            .collect()
    }

    /// Documents of distinct tokens.
    fn corpora() -> impl Strategy<Value = InMemoryCorpus> {
        prop::collection::vec(0_u32..6, 0..12).prop_map(|lengths| {
            InMemoryCorpus::from_documents((0..).zip(lengths).map(|(d, n)| (d * 10..d * 10 + n).collect::<Vec<u32>>()))
        })
    }

    #[test]
    #[should_panic(expected = "document 1 of 1")]
    fn a_document_that_is_not_in_the_part_panics() {
        let corpus = InMemoryCorpus::from_documents([[1], [2]]);
        CorpusPart::split_tail(corpus, 0.5).unwrap().0.document_len(1);
    }

    #[test]
    fn fractions_outside_0_to_1_are_refused() {
        for fraction in [-0.1, 1.0, f64::NAN] {
            let corpus = InMemoryCorpus::from_documents([[1], [2]]);
            assert!(matches!(CorpusPart::split_tail(corpus.clone(), fraction), Err(DataError::InvalidFraction { .. })));
            let split = CorpusPart::split_documents(corpus, fraction, 0);
            assert!(matches!(split, Err(DataError::InvalidFraction { .. })));
        }
    }

    proptest! {
        #[test]
        fn parts_are_what_splitting_a_copy_gives(corpus in corpora(), fraction in 0.0..1.0, seed in any::<u64>()) {
            let (training, validation) = CorpusPart::split_documents(corpus.clone(), fraction, seed).unwrap();
            let expected = corpus.clone().split_documents(fraction, seed).unwrap();
            prop_assert_eq!(documents(&training), documents(&expected.0));
            prop_assert_eq!(documents(&validation), documents(&expected.1));
        }

        #[test]
        fn a_tail_is_the_last_tokens(corpus in corpora(), fraction in 0.0..1.0) {
            let (head, tail) = CorpusPart::split_tail(corpus.clone(), fraction).unwrap();
            let (head, tail) = (documents(&head), documents(&tail));
            prop_assert_eq!(tail.concat().len(), (corpus.n_tokens() as f64 * fraction).round() as usize);
            prop_assert_eq!([head.concat(), tail.concat()].concat(), corpus.tokens());
            let n_documents = head.len() + tail.len();
            prop_assert!(n_documents == corpus.n_documents() || n_documents == corpus.n_documents() + 1);
        }

        #[test]
        fn corpora_end_to_end_have_all_documents(parts in prop::collection::vec(corpora(), 0..4)) {
            let expected: Vec<Vec<u32>> = parts.iter().flat_map(documents).collect();
            prop_assert_eq!(documents(&ConcatenatedCorpus::new(parts)), expected);
        }
    }
}
