//! Documents to samples of one length, aligned with blocks.
//!
//! ```text
//! block_length 4, `.` padding (mask false), `$` end of document
//!
//! document 0   .  .  a  b | c  d  e  $
//! document 1   .  f  g  $
//! document 2   h  i  j  k | l  $  .  .
//!
//! end to end   ..ab|cde$|.fgh|... cut into samples of max_length tokens
//! ```
//!
//! Every document is given `r` padding tokens in front, `r` drawn evenly from `0..block_length`, so that the model sees
//! a document's beginning at every place in a block; then its end-of-text token; then padding up to the next block, so
//! that no block holds tokens of two documents. The padded documents are laid end to end and cut into samples. A
//! document may run on into the next sample, and what is left over at the end of the corpus is dropped. This is how
//! the Block Transformer paper's code prepares its data.
//!
//! Nothing is materialised but the sample asked for: a document's padded length follows from its length and its index.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::block_lengths::{BlockLengths, cut};
use crate::corpus::TokenCorpus;
use crate::error::{DataError, Result};
use crate::seeded_hash::seeded_hash;

/// How documents are packed into samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackingConfig {
    /// Tokens a block (the paper's L_B). A vanilla transformer has 1.
    pub block_length: usize,
    /// Tokens a sample; a multiple of `block_length` unless the lengths of blocks are drawn.
    pub max_length: usize,
    /// Whether a random number of padding tokens, from 0 up to `block_length - 1`, goes before each document.
    pub random_pad_first_block: bool,
    /// Whether each document is padded to a whole number of blocks.
    pub pad_to_block_boundary: bool,
    /// The token that ends a document. It is content: the model is to predict it.
    pub eos_token_id: u32,
    /// The token that padding consists of. May be the same as `eos_token_id`: the mask tells them apart.
    pub pad_token_id: u32,
    /// How many tokens the blocks of a sample hold. Unless they are all full, both paddings must be off: there are no
    /// block boundaries before a sample is cut.
    #[serde(default)]
    pub block_lengths: BlockLengths,
    /// What the padding before documents and the lengths of blocks are drawn by.
    pub seed: u64,
}

impl PackingConfig {
    /// Packing for a Block Transformer: both paddings on, padding with the end-of-text token, seed 0.
    pub fn new(block_length: usize, max_length: usize, eos_token_id: u32) -> Self {
        Self {
            block_length,
            max_length,
            random_pad_first_block: true,
            pad_to_block_boundary: true,
            eos_token_id,
            pad_token_id: eos_token_id,
            block_lengths: BlockLengths::Fixed,
            seed: 0,
        }
    }

    /// Packing for a vanilla transformer: blocks of one token and no padding.
    pub fn vanilla(max_length: usize, eos_token_id: u32) -> Self {
        Self { random_pad_first_block: false, pad_to_block_boundary: false, ..Self::new(1, max_length, eos_token_id) }
    }

    /// As one line of JSON: what a checkpoint keeps to be compared with.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and flags can be written as json")
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// [`DataError::Zero`] for a length of 0; [`DataError::UnevenBlocks`] unless `max_length` is a multiple of
    /// `block_length`; for drawn lengths instead [`DataError::ShortestBlock`] if blocks cannot have them, and
    /// [`DataError::DrawnBlocksArePadded`] if a padding is on.
    pub fn validate(&self) -> Result<()> {
        if self.block_length == 0 {
            return Err(DataError::Zero { field: "block_length" });
        }
        if self.max_length == 0 {
            return Err(DataError::Zero { field: "max_length" });
        }
        if self.block_lengths != BlockLengths::Fixed {
            if self.random_pad_first_block {
                return Err(DataError::DrawnBlocksArePadded { field: "random_pad_first_block" });
            }
            if self.pad_to_block_boundary {
                return Err(DataError::DrawnBlocksArePadded { field: "pad_to_block_boundary" });
            }
            return self.block_lengths.validate(self.max_length, self.block_length);
        }
        if !self.max_length.is_multiple_of(self.block_length) {
            return Err(DataError::UnevenBlocks { max_length: self.max_length, block_length: self.block_length });
        }
        Ok(())
    }

    /// How long a sample is as the model sees it: all its blocks, with the padding in them.
    pub fn sample_len(&self) -> usize {
        self.block_lengths.n_blocks(self.max_length, self.block_length) * self.block_length
    }

    /// How many padding tokens go before document `index`: a function of the seed and the index alone.
    pub fn n_leading_pads(&self, index: usize) -> usize {
        if self.random_pad_first_block {
            (seeded_hash(self.seed, index as u64) % self.block_length as u64) as usize
        } else {
            0
        }
    }

    /// How long document `index` of `len` tokens is with its padding and end-of-text token.
    fn padded_len(&self, index: usize, len: usize) -> usize {
        let len = self.n_leading_pads(index) + len + 1;
        if self.pad_to_block_boundary { len.next_multiple_of(self.block_length) } else { len }
    }
}

/// One sample: its tokens, [`PackingConfig::sample_len`] many, and for each whether it is content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// True for content, ends of documents included; false for padding.
    pub mask: Vec<bool>,
    /// True for tokens of a prompt, whose predictions do not count; empty where there are no prompts.
    pub prompt: Vec<bool>,
}

impl Sample {
    fn with_capacity(n: usize) -> Self {
        Self { ids: Vec::with_capacity(n), mask: Vec::with_capacity(n), prompt: Vec::new() }
    }

    fn push_content(&mut self, tokens: &[u32]) {
        self.ids.extend_from_slice(tokens);
        self.mask.resize(self.ids.len(), true);
    }

    fn push_padding(&mut self, token: u32, n: usize) {
        self.ids.resize(self.ids.len() + n, token);
        self.mask.resize(self.ids.len(), false);
    }

    /// Marks a range of the last `n` tokens as a prompt.
    fn mark_prompt(&mut self, n: usize, prompt: Range<usize>) {
        if prompt.is_empty() && self.prompt.is_empty() {
            return;
        }
        let start = self.ids.len() - n;
        self.prompt.resize(self.ids.len(), false);
        self.prompt[start + prompt.start..start + prompt.end].fill(true);
    }

    /// For each token, whether its prediction counts in the loss: content that is not part of a prompt.
    pub fn counted(&self) -> impl Iterator<Item = bool> + '_ {
        let prompt = self.prompt.iter().copied().chain(std::iter::repeat(false));
        self.mask.iter().zip(prompt).map(|(&is_content, is_prompt)| is_content && !is_prompt)
    }

    /// How many tokens are content.
    pub fn n_content(&self) -> usize {
        self.mask.iter().filter(|&&is_content| is_content).count()
    }
}

/// What packing made of a corpus, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackingStatistics {
    /// How many documents there are.
    pub n_documents: usize,
    /// How many samples there are.
    pub n_samples: usize,
    /// Content tokens of the whole corpus: the documents' tokens and an end for each.
    pub n_content_tokens: usize,
    /// Padding tokens of the whole corpus, without those that blocks of drawn lengths are filled up with.
    pub n_padding_tokens: usize,
    /// Tokens after the last whole sample, content and padding, which no sample holds.
    pub n_dropped_tokens: usize,
}

/// A corpus packed into samples, which are made when asked for.
#[derive(Debug, Clone)]
pub struct PackedDataset<C> {
    corpus: C,
    config: PackingConfig,
    /// Where each padded document starts, and at last where they end.
    starts: Vec<usize>,
}

impl<C: TokenCorpus> PackedDataset<C> {
    /// Lays the documents of `corpus` end to end.
    ///
    /// # Errors
    /// As [`PackingConfig::validate`], and [`DataError::CorpusTooShort`] if there is not one whole sample.
    pub fn new(corpus: C, config: PackingConfig) -> Result<Self> {
        config.validate()?;
        let mut starts = Vec::with_capacity(corpus.n_documents() + 1);
        let mut end = 0;
        starts.push(end);
        for index in 0..corpus.n_documents() {
            end += config.padded_len(index, corpus.document_len(index));
            starts.push(end);
        }
        if end < config.max_length {
            return Err(DataError::CorpusTooShort {
                expected: config.max_length,
                got: end,
                n_documents: corpus.n_documents(),
                n_corpus_tokens: corpus.n_tokens(),
            });
        }
        Ok(Self { corpus, config, starts })
    }

    /// How many samples there are. At least one.
    #[expect(clippy::len_without_is_empty, reason = "a dataset is never empty: `new` refuses to make one that is")]
    pub fn len(&self) -> usize {
        self.n_packed_tokens() / self.config.max_length
    }

    /// Sample `index`.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn sample(&self, index: usize) -> Sample {
        assert!(index < self.len(), "sample {index} of a dataset of {}", self.len());
        let first = index * self.config.max_length;
        let end = first + self.config.max_length;
        let mut sample = Sample::with_capacity(self.config.max_length);
        // Documents are never empty once packed, so exactly one holds token `first`.
        let mut document = self.starts.partition_point(|&start| start <= first) - 1;
        while first + sample.ids.len() < end {
            let start = self.starts[document];
            let from = first + sample.ids.len() - start;
            let to = end.min(self.starts[document + 1]) - start;
            self.push_document(document, from..to, &mut sample);
            document += 1;
        }
        if !sample.prompt.is_empty() {
            sample.prompt.resize(sample.ids.len(), false);
        }
        let PackingConfig { block_lengths, block_length, max_length, pad_token_id, seed, .. } = self.config;
        if block_lengths == BlockLengths::Fixed {
            return sample;
        }
        let lengths = block_lengths.draw(max_length, block_length, seed, index as u64);
        cut(&sample, &lengths, block_length, pad_token_id)
    }

    /// Adds the tokens at `range` of padded document `index`.
    fn push_document(&self, index: usize, range: Range<usize>, sample: &mut Sample) {
        let len = self.corpus.document_len(index);
        let text_start = self.config.n_leading_pads(index);
        let text_end = text_start + len;
        let padding = self.config.pad_token_id;

        let within = |from: usize, to: usize| range.start.clamp(from, to)..range.end.clamp(from, to);
        sample.push_padding(padding, within(0, text_start).len());
        let text = within(text_start, text_end);
        if !text.is_empty() {
            let text = text.start - text_start..text.end - text_start;
            sample.push_content(&self.corpus.document_range(index, text.clone()));
            let prompt_end = self.corpus.prompt_len(index).clamp(text.start, text.end);
            sample.mark_prompt(text.len(), 0..prompt_end - text.start);
        }
        if range.contains(&text_end) {
            sample.push_content(&[self.config.eos_token_id]);
        }
        sample.push_padding(padding, within(text_end + 1, range.end.max(text_end + 1)).len());
    }

    /// Where the first content token of document `index` is: `(sample, place in the sample)`, the place counted before
    /// blocks of drawn lengths are padded.
    ///
    /// The sample may be the one that would follow the last, whose tokens are dropped.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn document_start(&self, index: usize) -> (usize, usize) {
        assert!(index < self.corpus.n_documents(), "document {index} of {}", self.corpus.n_documents());
        let position = self.starts[index] + self.config.n_leading_pads(index);
        (position / self.config.max_length, position % self.config.max_length)
    }

    /// How the packing came out.
    pub fn statistics(&self) -> PackingStatistics {
        let n_documents = self.corpus.n_documents();
        let n_content_tokens = self.corpus.n_tokens() + n_documents;
        PackingStatistics {
            n_documents,
            n_samples: self.len(),
            n_content_tokens,
            n_padding_tokens: self.n_packed_tokens() - n_content_tokens,
            n_dropped_tokens: self.n_packed_tokens() % self.config.max_length,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &PackingConfig {
        &self.config
    }

    /// The corpus.
    pub fn corpus(&self) -> &C {
        &self.corpus
    }

    fn n_packed_tokens(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
