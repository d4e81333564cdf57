//! Prompts with the answers a model is to learn.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::corpus::TokenCorpus;
use crate::error::{DataError, Result};
use crate::tokenizer::Tokenizer;

/// Pairs of prompt and answer, each a document: the tokens of the prompt, then those of the answer. Once packed, a
/// document ends with an end of text like any other. The prompt is read but not learned: see
/// [`TokenCorpus::prompt_len`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PairsCorpus {
    tokens: Vec<u32>,
    /// Where each pair's prompt and answer end in `tokens`.
    ends: Vec<(usize, usize)>,
}

/// A line of a file of pairs. Other fields are passed over.
#[derive(Deserialize)]
struct Pair {
    prompt: String,
    answer: String,
    /// Without it a list of two strings would do for an object.
    #[serde(flatten)]
    _others: HashMap<String, IgnoredAny>,
}

impl PairsCorpus {
    /// Pairs that are tokenized already.
    pub fn from_pairs<P: AsRef<[u32]>, A: AsRef<[u32]>>(pairs: impl IntoIterator<Item = (P, A)>) -> Self {
        let mut corpus = Self::default();
        for (prompt, answer) in pairs {
            corpus.push(prompt.as_ref(), answer.as_ref());
        }
        corpus
    }

    /// Reads JSONL files with a `prompt` and an `answer` a line, both strings. They are tokenized apart, as a prompt is
    /// when text is generated behind it; blank lines are passed over.
    ///
    /// # Errors
    /// [`DataError::InvalidPair`] or [`DataError::EmptyAnswer`] naming the file and line, [`DataError::NoDocuments`] if
    /// there is no pair, or the error of [`Tokenizer::encode`].
    pub fn read(paths: &[PathBuf], tokenizer: &Tokenizer) -> Result<Self> {
        let mut corpus = Self::default();
        for path in paths {
            corpus.read_file(path, tokenizer)?;
        }
        if corpus.ends.is_empty() {
            return Err(DataError::NoDocuments { paths: paths.to_vec(), n_files: paths.len(), n_empty: 0 });
        }
        Ok(corpus)
    }

    fn read_file(&mut self, path: &Path, tokenizer: &Tokenizer) -> Result<()> {
        let file = File::open(path).map_err(DataError::io("read", path))?;
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(DataError::io("read", path))?;
            if line.trim().is_empty() {
                continue;
            }
            let number = index as u64 + 1;
            let invalid = |source| DataError::InvalidPair { path: path.into(), line: number, source };
            let pair: Pair = serde_json::from_str(&line).map_err(invalid)?;
            let (prompt, answer) = (tokenizer.encode(&pair.prompt)?, tokenizer.encode(&pair.answer)?);
            if answer.is_empty() {
                return Err(DataError::EmptyAnswer { path: path.into(), line: number });
            }
            self.push(&prompt, &answer);
        }
        Ok(())
    }

    /// Adds a pair at the end.
    pub fn push(&mut self, prompt: &[u32], answer: &[u32]) {
        self.tokens.extend_from_slice(prompt);
        let prompt_end = self.tokens.len();
        self.tokens.extend_from_slice(answer);
        self.ends.push((prompt_end, self.tokens.len()));
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before].1)
    }
}

impl TokenCorpus for PairsCorpus {
    fn n_documents(&self) -> usize {
        self.ends.len()
    }

    fn document_len(&self, index: usize) -> usize {
        self.ends[index].1 - self.start(index)
    }

    fn document_range(&self, index: usize, range: Range<usize>) -> Cow<'_, [u32]> {
        Cow::Borrowed(&self.tokens[self.start(index)..self.ends[index].1][range])
    }

    fn prompt_len(&self, index: usize) -> usize {
        self.ends[index].0 - self.start(index)
    }

    fn n_tokens(&self) -> usize {
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packing::{PackedDataset, PackingConfig};
    use crate::tokenizer_training::character_level;

    fn read(lines: &str) -> Result<PairsCorpus> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pairs.jsonl");
        std::fs::write(&path, lines).unwrap();
        PairsCorpus::read(&[path], &character_level("abcd").unwrap())
    }

    #[test]
    fn pairs_are_prompt_then_answer() {
        let corpus =
            read("{\"prompt\": \"ab\", \"answer\": \"c\", \"id\": 7}\n\n{\"prompt\": \"\", \"answer\": \"da\"}\n")
                .unwrap();
        assert_eq!(corpus, PairsCorpus::from_pairs([(vec![1, 2], vec![3]), (vec![], vec![4, 1])]));
        let lengths: Vec<_> = (0..2).map(|i| (corpus.document(i).into_owned(), corpus.prompt_len(i))).collect();
        assert_eq!(lengths, [(vec![1, 2, 3], 2), (vec![4, 1], 0)]);
    }

    #[test]
    fn the_prompt_of_a_packed_pair_is_marked_wherever_it_lies() {
        // Blocks of 2, samples of 4: `a b | c $`, `d a | b c`, `$ . | ..`; the second prompt is `d a b`.
        let corpus = PairsCorpus::from_pairs([(vec![1, 2], vec![3]), (vec![4, 1, 2], vec![3]), (vec![], vec![1, 1])]);
        let config = PackingConfig { random_pad_first_block: false, ..PackingConfig::new(2, 4, 0) };
        let dataset = PackedDataset::new(corpus, config).unwrap();
        let samples: Vec<_> = (0..3).map(|index| dataset.sample(index)).collect();
        assert_eq!(samples[0].ids, [1, 2, 3, 0]);
        assert_eq!(samples[0].prompt, [true, true, false, false]);
        assert_eq!(samples[1].ids, [4, 1, 2, 3]);
        assert_eq!(samples[1].prompt, [true, true, true, false]);
        assert_eq!((&samples[2].ids[..], &samples[2].mask[..]), (&[0, 0, 1, 1][..], &[true, false, true, true][..]));
        assert!(samples[2].prompt.is_empty(), "no part of a prompt is in it");
        assert_eq!(samples[1].counted().collect::<Vec<_>>(), [false, false, false, true]);
        assert_eq!(samples[2].counted().collect::<Vec<_>>(), [true, false, true, true]);
    }

    #[test]
    fn lines_that_are_no_pairs_are_named() {
        let message = |lines: &str| read(lines).unwrap_err().to_string();
        let second = "{\"prompt\": \"a\", \"answer\": \"b\"}\n";
        assert!(message(&format!("{second}{{\"prompt\": \"a\"}}\n")).contains("line 2: expected a json object"));
        assert!(message("[\"a\", \"b\"]").contains("line 1"));
        assert!(message("{\"prompt\": \"a\", \"answer\": \"\"}").contains("line 1: the answer is empty"));
        assert!(message("{\"prompt\": \"a\", \"answer\": 3}").contains("line 1"));
        assert!(message("\n").contains("no documents"));
    }
}
