//! The crate's error type.

use std::path::{Path, PathBuf};

/// The error a third-party tokenizer reports: boxed, because it has no type of its own.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Everything that can go wrong while reading, tokenizing, packing or ordering text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being attempted, as a verb phrase ("read", "list the folder").
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file holds something that is not a tokenizer.
    #[error("{} is not a valid tokenizer file", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What the `tokenizers` crate says about it.
        source: BoxedError,
    },
    /// Bytes in memory are not a tokenizer.
    #[error("not a valid tokenizer ({n_bytes} bytes of json)")]
    TokenizerBytes {
        /// How many bytes were given.
        n_bytes: usize,
        /// What the `tokenizers` crate says about them.
        source: BoxedError,
    },
    /// A tokenizer could not be turned into JSON.
    #[error("cannot serialize the tokenizer")]
    TokenizerSerialize {
        /// What the `tokenizers` crate says.
        source: BoxedError,
    },
    /// Text holds a character for which the tokenizer has no token.
    #[error("character {character:?} at byte {byte_offset} is not in the tokenizer's vocabulary")]
    UnknownCharacter {
        /// The first such character.
        character: char,
        /// Where it starts in the text given to the tokenizer.
        byte_offset: usize,
    },
    /// Text could not be encoded.
    #[error("cannot encode a text of {n_bytes} bytes")]
    Encode {
        /// The length of the text.
        n_bytes: usize,
        /// What the `tokenizers` crate says.
        source: BoxedError,
    },
    /// Token ids could not be decoded.
    #[error("cannot decode {n_tokens} tokens")]
    Decode {
        /// How many ids were given.
        n_tokens: usize,
        /// What the `tokenizers` crate says.
        source: BoxedError,
    },
    /// The tokenizer's decoder changed text that had already been streamed.
    #[error("cannot stream this tokenizer's text: expected it to go on from {expected_prefix:?}, got {got:?}")]
    UnstableDecoding {
        /// The text already handed out.
        expected_prefix: String,
        /// What the same tokens and one more decode to.
        got: String,
    },
    /// Blocks cannot have the lengths that are to be drawn.
    #[error(
        "the shortest block is to have {shortest} tokens, expected 1 to block_length ({block_length}), and blocks that \
         fit samples of {max_length} tokens"
    )]
    ShortestBlock {
        /// Tokens of the shortest block.
        shortest: usize,
        /// Tokens of the longest.
        block_length: usize,
        /// Tokens of a sample.
        max_length: usize,
    },
    /// Lengths of blocks are to be drawn, and documents to be aligned with blocks.
    #[error("blocks of drawn lengths cannot go with {field}: switch it off in the model's configuration")]
    DrawnBlocksArePadded {
        /// The padding that is on.
        field: &'static str,
    },
    /// A tokenizer could not be trained.
    #[error("cannot train a tokenizer")]
    Training {
        /// What the `tokenizers` crate says.
        source: BoxedError,
    },
    /// The vocabulary asked for has no room for the bytes and the special tokens.
    #[error("vocab_size too small: expected at least {expected_at_least}, got {got}")]
    VocabularyTooSmall {
        /// One token a byte, one a special token.
        expected_at_least: usize,
        /// What was asked for.
        got: usize,
    },
    /// A special token is empty, or listed twice.
    #[error("special token {token:?} at position {position} is {problem}")]
    SpecialToken {
        /// The token.
        token: String,
        /// Its place in the list.
        position: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A text file is not UTF-8.
    #[error("{} is not valid utf-8 at byte {byte_offset}", path.display())]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// The first bad byte, counted from the start of the file.
        byte_offset: u64,
    },
    /// A line of a JSONL file is not a JSON object in which the field with the text is a string.
    #[error("{} line {line}: expected a json object with a string {field:?} field", path.display())]
    InvalidJsonLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from one.
        line: u64,
        /// The field that is to have the text.
        field: String,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A line of a JSONL file has no field with the text.
    #[error("{} line {line}: missing field {field:?}", path.display())]
    MissingText {
        /// The file.
        path: PathBuf,
        /// The line, counted from one.
        line: u64,
        /// The field that is to have the text.
        field: String,
    },
    /// The system gives no thread to make batches on.
    #[error("cannot start a thread")]
    Thread {
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A dataset is there already.
    #[error("{} is there already", path.display())]
    Exists {
        /// Its index.
        path: PathBuf,
    },
    /// The card of a dataset is not one.
    #[error("{} is not the card of a dataset", path.display())]
    DatasetCard {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// The tokenizer has no end-of-text token, and one is needed.
    #[error("the tokenizer has no end-of-text token")]
    NoEndOfText,
    /// The caller did not want to go on.
    #[error("cancelled")]
    Cancelled,
    /// A line of a file of prompts and answers that is not one.
    #[error("{} line {line}: expected a json object with strings \"prompt\" and \"answer\"", path.display())]
    InvalidPair {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A prompt whose answer has no tokens, so that there is nothing to learn.
    #[error("{} line {line}: the answer is empty", path.display())]
    EmptyAnswer {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
    },
    /// The paths given hold no document.
    #[error("no documents in {paths:?}: {n_files} files read, {n_empty} empty documents skipped")]
    NoDocuments {
        /// The paths given.
        paths: Vec<PathBuf>,
        /// How many files they came to.
        n_files: usize,
        /// How many documents were skipped because they are empty.
        n_empty: usize,
    },
    /// A fraction is not between zero and one.
    #[error("invalid {name}: expected a number from 0 up to (not including) 1, got {got}")]
    InvalidFraction {
        /// Which fraction.
        name: &'static str,
        /// The value given.
        got: f64,
    },
    /// Document offsets do not describe the tokens they come with.
    #[error("invalid document offset {position}: expected {expected}, got {got}")]
    InvalidOffsets {
        /// Which offset.
        position: usize,
        /// What would be right there.
        expected: String,
        /// What is there.
        got: usize,
    },
    /// A token id does not fit the model's vocabulary.
    #[error("document {document}, token {position}: expected an id below vocab_size {vocab_size}, got {token}")]
    TokenOutOfVocabulary {
        /// The document.
        document: usize,
        /// The token's place in the document.
        position: usize,
        /// The id.
        token: u32,
        /// How many ids there are.
        vocab_size: usize,
    },
    /// A configuration field is zero that must not be.
    #[error("{field} must be at least 1, got 0")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// Samples would not hold whole blocks.
    #[error("max_length must be a multiple of block_length: expected a multiple of {block_length}, got {max_length}")]
    UnevenBlocks {
        /// Tokens a sample.
        max_length: usize,
        /// Tokens a block.
        block_length: usize,
    },
    /// The corpus does not fill a single sample.
    #[error(
        "the corpus is shorter than one sample: expected at least {expected} tokens, got {got} \
         ({n_documents} documents, {n_corpus_tokens} tokens before packing)"
    )]
    CorpusTooShort {
        /// Tokens a sample.
        expected: usize,
        /// Tokens after packing, padding and ends of documents included.
        got: usize,
        /// How many documents there are.
        n_documents: usize,
        /// Their tokens before packing.
        n_corpus_tokens: usize,
    },
    /// A file does not begin as a Megatron index does.
    #[error("{} is not a megatron index: expected it to begin with {expected:?}, got {got:?}", path.display())]
    NotAnIndex {
        /// The `.idx` file.
        path: PathBuf,
        /// The nine bytes that an index begins with.
        expected: String,
        /// The file's first bytes.
        got: String,
    },
    /// A Megatron index has a version that this crate does not read.
    #[error("{}: expected index version {expected}, got {got}", path.display())]
    IndexVersion {
        /// The `.idx` file.
        path: PathBuf,
        /// The version read here.
        expected: u64,
        /// The file's version.
        got: u64,
    },
    /// A Megatron index says its tokens are no integers, or of an unknown type.
    #[error("{}: expected token type 1 (u8), 2 (i8), 3 (i16), 4 (i32), 5 (i64) or 8 (u16), got {got}", path.display())]
    TokenType {
        /// The `.idx` file.
        path: PathBuf,
        /// The file's type code.
        got: u8,
    },
    /// A Megatron file has not the length that the index's header or entries call for.
    #[error("{}: expected {expected} bytes, got {got}", path.display())]
    FileLength {
        /// The `.idx` or `.bin` file.
        path: PathBuf,
        /// The length it should have.
        expected: u64,
        /// The length it has.
        got: u64,
    },
    /// An entry of a Megatron index does not fit the others.
    #[error("{}: expected {table}[{entry}] to be {expected}, got {got}", path.display())]
    IndexEntry {
        /// The `.idx` file.
        path: PathBuf,
        /// The table the entry is in: `sizes`, `pointers` or `doc_idx`.
        table: &'static str,
        /// The entry's place in the table.
        entry: u64,
        /// What would be right there.
        expected: String,
        /// What is there.
        got: i64,
    },
    /// A token is too large for the type that a Megatron file is written with.
    #[error("{}: expected tokens up to {largest}, got {token}", path.display())]
    TokenTooLarge {
        /// The `.bin` file.
        path: PathBuf,
        /// The largest token that the type holds.
        largest: u32,
        /// The token.
        token: u32,
    },
    /// A document is too long for a Megatron file.
    #[error("{}: expected documents of up to {expected_at_most} tokens, got one of {got}", path.display())]
    DocumentTooLong {
        /// The `.bin` file.
        path: PathBuf,
        /// The most tokens that the format allows.
        expected_at_most: usize,
        /// The document's tokens.
        got: usize,
    },
}

/// The result of anything in this crate that can fail.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

impl DataError {
    /// An [`DataError::Io`] for use in `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
