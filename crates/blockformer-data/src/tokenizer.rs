//! Text to token ids and back, through a `tokenizer.json` file.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use blockformer_files::write_atomically;
use sha2::{Digest, Sha256};
use tokenizers::{PaddingParams, TruncationParams};

use crate::decode_stream::DecodeStream;
use crate::error::{BoxedError, DataError, Result};

/// The tokens looked for as end of text, the first that the tokenizer has winning.
///
/// Base models end documents with `<|endoftext|>` even where a chat format brings `<|im_end|>` as well, so that one
/// comes first.
pub const EOS_TOKENS: [&str; 6] = ["<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>"];

/// The tokens looked for as padding where the file names none, the first that the tokenizer has winning.
pub const PAD_TOKENS: [&str; 5] = ["<pad>", "<|padding|>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"];

/// A tokenizer read from a `tokenizer.json` file, or [trained](crate::TokenizerTraining) here.
///
/// It differs from the `tokenizers::Tokenizer` inside in three ways:
///
/// * Text is text. A document that spells out `<|endoftext|>` is encoded letter by letter and cannot forge the end of
///   a document; [`encode_with_special_tokens`](Self::encode_with_special_tokens) is there for chat templates.
/// * Truncation and padding that the file may ask for are kept in the file but not applied: a corpus is never cut.
/// * Decoding skips special tokens, and ids that the tokenizer does not know (models often pad their vocabulary).
#[derive(Clone)]
pub struct Tokenizer {
    /// Encodes special tokens as plain text; without truncation and padding.
    inner: tokenizers::Tokenizer,
    /// The same, recognising special tokens in the text. Built when first asked for.
    marked: OnceLock<tokenizers::Tokenizer>,
    truncation: Option<TruncationParams>,
    padding: Option<PaddingParams>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` file.
    ///
    /// # Errors
    /// [`DataError::Io`] if the file cannot be read, [`DataError::TokenizerFile`] if it is not a tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
        let inner = parse(&bytes).map_err(|source| DataError::TokenizerFile { path: path.to_path_buf(), source })?;
        Ok(Self::from_inner(inner))
    }

    /// Reads a tokenizer from the contents of a `tokenizer.json` file.
    ///
    /// # Errors
    /// [`DataError::TokenizerBytes`] if they are not a tokenizer.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let inner = parse(bytes).map_err(|source| DataError::TokenizerBytes { n_bytes: bytes.len(), source })?;
        Ok(Self::from_inner(inner))
    }

    pub(crate) fn from_inner(mut inner: tokenizers::Tokenizer) -> Self {
        let truncation = inner.get_truncation().cloned();
        let padding = inner.get_padding().cloned();
        // Taking truncation away cannot fail: only setting one is checked.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        Self { inner, marked: OnceLock::new(), truncation, padding }
    }

    /// Token ids of `text`. No special token is added, and none is recognised in the text.
    ///
    /// # Errors
    /// [`DataError::UnknownCharacter`] if the tokenizer has no token for a character and none for unknown text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_by(&self.inner, text)
    }

    /// Token ids of `text`, where a special token spelled out in the text becomes its id. Still none is added.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_special_tokens(&self, text: &str) -> Result<Vec<u32>> {
        let marked = self.marked.get_or_init(|| {
            let mut marked = self.inner.clone();
            marked.set_encode_special_tokens(false);
            marked
        });
        self.encode_by(marked, text)
    }

    fn encode_by(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
        match tokenizer.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(source) => Err(self.encode_error(text, source)),
        }
    }

    /// Names the character that has no token, where that is what went wrong.
    fn encode_error(&self, text: &str, source: BoxedError) -> DataError {
        let mut buffer = [0_u8; 4];
        let unknown =
            text.char_indices().find(|(_, character)| self.token_to_id(character.encode_utf8(&mut buffer)).is_none());
        match unknown {
            Some((byte_offset, character)) => DataError::UnknownCharacter { character, byte_offset },
            None => DataError::Encode { n_bytes: text.len(), source },
        }
    }

    /// The text of `ids`. Special tokens, and ids that the tokenizer does not know, are skipped.
    ///
    /// # Errors
    /// [`DataError::Decode`] if the tokenizer's decoder refuses the tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        // Some decoders panic when there is nothing to decode.
        if ids.iter().all(|&id| self.text_token(id).is_none()) {
            return Ok(String::new());
        }
        self.inner.decode(ids, true).map_err(|source| DataError::Decode { n_tokens: ids.len(), source })
    }

    /// A decoder that is given one id at a time, for printing text while it is being generated.
    pub fn decode_stream(&self) -> DecodeStream<&Self> {
        DecodeStream::new(self)
    }

    /// The token of `id` as the vocabulary spells it, unless decoding skips it.
    pub(crate) fn text_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id).filter(|token| !self.inner.get_added_vocabulary().is_special_token(token))
    }

    /// The number of tokens, added ones included. Ids may have gaps: see [`max_token_id`](Self::max_token_id).
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest id there is, or `None` for an empty vocabulary. A model needs more embeddings than this.
    pub fn max_token_id(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary spells it, special ones included.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The special token that ends a document: the first of [`EOS_TOKENS`] that there is.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.first_special(&EOS_TOKENS)
    }

    /// The padding token: the one the file pads with, or else the first of [`PAD_TOKENS`] that there is.
    pub fn pad_token_id(&self) -> Option<u32> {
        let own = self.padding.as_ref().and_then(|padding| self.token_to_id(&padding.pad_token));
        own.or_else(|| self.first_special(&PAD_TOKENS))
    }

    fn first_special(&self, candidates: &[&str]) -> Option<u32> {
        let added = self.inner.get_added_vocabulary();
        candidates.iter().filter(|token| added.is_special_token(token)).find_map(|token| self.token_to_id(token))
    }

    /// All tokens with their ids.
    pub fn vocabulary(&self) -> HashMap<String, u32> {
        self.inner.get_vocab(true)
    }

    /// The contents of a `tokenizer.json` file: what was read, its truncation and padding included.
    ///
    /// # Errors
    /// [`DataError::TokenizerSerialize`] if the tokenizer cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        let serialize = |source| DataError::TokenizerSerialize { source };
        let mut original = self.inner.clone();
        original.with_truncation(self.truncation.clone()).map_err(serialize)?;
        original.with_padding(self.padding.clone());
        original.to_string(true).map_err(serialize)
    }

    /// A SHA-256 digest of [`to_json`](Self::to_json), in hexadecimal: the same for tokenizers that are the same.
    ///
    /// # Errors
    /// As [`to_json`](Self::to_json).
    pub fn digest(&self) -> Result<String> {
        Ok(format!("{:x}", Sha256::digest(self.to_json()?)))
    }

    /// Writes a `tokenizer.json` file: to a temporary file in the same folder first, which is then renamed.
    ///
    /// # Errors
    /// [`DataError::Io`] if the file cannot be written; a file already there is then left as it was.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let json = self.to_json()?;
        write_atomically(path, json).map_err(DataError::io("write", path))
    }
}

/// Parses a `tokenizer.json` file. The `tokenizers` crate panics on some that are wrong: these are errors here.
fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer, BoxedError> {
    let _: serde::de::IgnoredAny = serde_json::from_slice(bytes)?;
    std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes))
        .unwrap_or_else(|_| Err("the tokenizers crate panicked over it".into()))
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("eos_token_id", &self.eos_token_id())
            .field("pad_token_id", &self.pad_token_id())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer_training::{TokenizerTraining, character_level};

    fn with_special_tokens(tokens: &[&str]) -> Tokenizer {
        let training = TokenizerTraining::new(300).with_special_tokens(tokens.iter().copied());
        training.train_byte_level_bpe(["some text"].into_iter()).unwrap()
    }

    #[test]
    fn special_tokens_spelled_out_in_text_stay_text() {
        let tokenizer = with_special_tokens(&["<|endoftext|>"]);
        let text = "a<|endoftext|>b";
        let ids = tokenizer.encode(text).unwrap();
        assert!(!ids.contains(&0));
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn special_tokens_in_text_are_recognised_on_demand() {
        let tokenizer = with_special_tokens(&["<|endoftext|>"]);
        let ids = tokenizer.encode_with_special_tokens("a<|endoftext|>b").unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == 0).count(), 1);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "ab");
    }

    #[test]
    fn the_first_known_end_of_text_token_wins() {
        assert_eq!(with_special_tokens(&["<|im_end|>", "</s>", "<|endoftext|>"]).eos_token_id(), Some(2));
        assert_eq!(with_special_tokens(&["<|im_end|>", "</s>"]).eos_token_id(), Some(1));
        assert_eq!(with_special_tokens(&["<other>"]).eos_token_id(), None);
    }

    #[test]
    fn padding_is_the_files_own_token_before_a_usual_one() {
        let tokenizer = with_special_tokens(&["<|endoftext|>", "<|padding|>", "<own>"]);
        assert_eq!(tokenizer.pad_token_id(), Some(1));
        let mut file: serde_json::Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        file["padding"] = serde_json::json!({
            "strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 2, "pad_type_id": 0, "pad_token": "<own>"
        });
        let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.pad_token_id(), Some(2));
        assert_eq!(character_level("a").unwrap().pad_token_id(), None);
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_kept_but_not_applied() {
        let mut file: serde_json::Value =
            serde_json::from_str(&character_level("ab").unwrap().to_json().unwrap()).unwrap();
        file["truncation"] =
            serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        file["padding"] = serde_json::json!({
            "strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"
        });
        let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("ababa").unwrap(), [1, 2, 1, 2, 1]);
        let written: serde_json::Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        assert_eq!(written, file);
    }

    #[test]
    fn nothing_decodes_to_no_text() {
        let tokenizer = character_level("ab").unwrap();
        assert_eq!(tokenizer.decode(&[]).unwrap(), "");
        assert_eq!(tokenizer.decode(&[0, 77]).unwrap(), "");
        assert!(tokenizer.encode("").unwrap().is_empty());
    }

    #[test]
    fn a_saved_tokenizer_reads_back_and_replaces_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        character_level("old").unwrap().save(&path).unwrap();
        let tokenizer = with_special_tokens(&["<|endoftext|>"]);
        tokenizer.save(&path).unwrap();
        let read = Tokenizer::from_file(&path).unwrap();
        assert_eq!(read.to_json().unwrap(), tokenizer.to_json().unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_digest_is_the_sha256_of_the_file() {
        let tokenizer = character_level("abc").unwrap();
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path().join("tokenizer.json")).unwrap();
        let read = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        assert_eq!(read.digest().unwrap(), tokenizer.digest().unwrap());
        assert_ne!(character_level("abd").unwrap().digest().unwrap(), tokenizer.digest().unwrap());
        // By `sha256sum` of the file.
        assert_eq!(tokenizer.digest().unwrap(), "a0745b2605c80bc1b11f95e61a586704387c7ed9e7a70399de6abd386f6951d9");
    }

    #[test]
    fn the_largest_id_is_found() {
        assert_eq!(character_level("abc").unwrap().max_token_id(), Some(3));
    }
}
