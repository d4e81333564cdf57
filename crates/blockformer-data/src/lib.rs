//! Text for the Block Transformer: tokenizers, corpora, packing into blocks, and the order of training.
//!
//! The [Block Transformer](https://arxiv.org/abs/2406.02657) reads text in blocks of a few tokens. This crate takes text
//! from files to samples that are aligned with such blocks, as plain vectors without any tensor library:
//!
//! ```text
//! files ── Documents ──> text ── Tokenizer ──> TokenCorpus ── PackedDataset ──> Sample { ids, mask }
//!                                                                  ^
//!                                              BatchOrder ── indices of each batch
//! ```
//!
//! * [`Documents`] reads plain text and JSONL, one document at a time.
//! * [`Tokenizer`] is a `tokenizer.json` file, [`DecodeStream`] its decoder for text that is being generated.
//!   [`TokenizerTraining`] and [`character_level`] make new ones.
//! * [`TokenCorpus`] is a list of tokenized documents: [`InMemoryCorpus`], or [`MegatronCorpus`] on disk.
//!   [`CorpusPart`] splits off a validation part, [`ConcatenatedCorpus`] takes several as one.
//! * [`tokenize_files`] makes the latter from text, on all cores.
//! * [`PackedDataset`] pads documents to blocks, lays them end to end, and cuts them into samples.
//! * [`BatchOrder`] says which samples make up each batch, and [`Prefetcher`] makes them ahead of time.
//!
//! Everything random is a pure function of a seed and an index. A run that is resumed, or that looks at samples in
//! another order, gets the same data.
//!
//! # Example
//!
//! ```
//! use blockformer_data::{BatchOrder, InMemoryCorpus, PackedDataset, PackingConfig, TokenizerTraining};
//!
//! # fn main() -> Result<(), blockformer_data::DataError> {
//! let documents = ["It was a damp, drizzly November.", "There is nothing surprising in this."];
//! let tokenizer = TokenizerTraining::new(300).train_byte_level_bpe(documents.iter())?;
//! let eos_token_id = tokenizer.eos_token_id().expect("trained with one");
//!
//! let corpus = InMemoryCorpus::tokenize(&documents, &tokenizer)?;
//! let dataset = PackedDataset::new(corpus, PackingConfig::new(4, 16, eos_token_id))?; // blocks of 4 tokens
//! let order = BatchOrder::new(dataset.len(), 2, 0)?;
//!
//! for index in order.indices(0) {
//!     let sample = dataset.sample(index);
//!     assert_eq!(sample.ids.len(), 16);
//!     assert_eq!(sample.mask.len(), 16); // false where the sample is padding
//! }
//! # Ok(())
//! # }
//! ```

mod block_lengths;
mod corpus;
mod corpus_part;
mod decode_stream;
mod error;
mod in_memory_corpus;
mod megatron;
mod order;
mod packing;
mod pairs;
mod prefetch;
mod seeded_hash;
mod source;
mod tokenize;
mod tokenizer;
mod tokenizer_training;

pub use block_lengths::BlockLengths;
pub use corpus::TokenCorpus;
pub use corpus_part::{ConcatenatedCorpus, CorpusPart};
pub use decode_stream::DecodeStream;
pub use error::{BoxedError, DataError, Result};
pub use in_memory_corpus::InMemoryCorpus;
pub use megatron::{DatasetCard, MegatronCorpus, MegatronWriter, TokenType};
pub use order::BatchOrder;
pub use packing::{PackedDataset, PackingConfig, PackingStatistics, Sample};
pub use pairs::PairsCorpus;
pub use prefetch::{PrefetchConfig, Prefetched, Prefetcher};
pub use source::{Documents, read_documents};
pub use tokenize::{TokenizeConfig, TokenizeProgress, tokenize_files};
pub use tokenizer::{EOS_TOKENS, PAD_TOKENS, Tokenizer};
pub use tokenizer_training::{END_OF_TEXT, TokenizerTraining, character_level, character_level_of};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
