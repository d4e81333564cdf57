//! Token ids to text, one id at a time.
//!
//! Two things stand between an id and its text. One token may hold only some of a character's bytes, so text can only
//! be given out up to the last whole character. And a token's text depends on the tokens before it (the first word of
//! a text loses its leading space in many tokenizers), so a token is decoded together with the ones before it, and what
//! those alone decode to is taken off the front.

use std::borrow::Borrow;

use crate::error::{DataError, Result};
use crate::tokenizer::Tokenizer;

/// What decoders put in place of bytes that are not (yet) a character.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Gives out the text of a growing list of token ids.
///
/// All that [`push`](Self::push) and [`finish`](Self::finish) return, laid end to end, is what [`Tokenizer::decode`]
/// makes of all the ids together: also for ids whose bytes are no valid text, where both put U+FFFD.
///
/// ```
/// # fn main() -> Result<(), blockformer_data::DataError> {
/// use blockformer_data::TokenizerTraining;
///
/// // With no merges, every token is one byte.
/// let tokenizer = TokenizerTraining::new(257).train_byte_level_bpe(["é"].into_iter())?;
/// let ids = tokenizer.encode("é!")?;
///
/// let mut stream = tokenizer.decode_stream();
/// assert_eq!(stream.push(ids[0])?, None); // half a character
/// assert_eq!(stream.push(ids[1])?.as_deref(), Some("é"));
/// assert_eq!(stream.push(ids[2])?.as_deref(), Some("!"));
/// assert_eq!(stream.finish()?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DecodeStream<T> {
    tokenizer: T,
    /// The tokens still needed: one push that gave text, then those since.
    window: Vec<u32>,
    /// How many ids at the window's start belong to that earlier push.
    n_context: usize,
    /// The text of the window that has been given out, that of the context included.
    given: String,
}

impl<T: Borrow<Tokenizer>> DecodeStream<T> {
    /// An empty stream, with a tokenizer that is borrowed (`&Tokenizer`), shared (`Arc<Tokenizer>`) or its own.
    pub fn new(tokenizer: T) -> Self {
        Self { tokenizer, window: Vec::new(), n_context: 0, given: String::new() }
    }

    /// Takes one more id and returns the text that has become complete, if any.
    ///
    /// # Errors
    /// [`DataError::Decode`] as in [`Tokenizer::decode`]; [`DataError::UnstableDecoding`] for a tokenizer whose text
    /// for some ids is not the beginning of its text for more ids (speech models' CTC decoders).
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let Some(token) = self.tokenizer.borrow().text_token(id) else {
            return Ok(None); // Decoding skips it.
        };
        self.window.push(id);
        if is_byte_token(&token) {
            // A run of byte tokens is text or not as a whole, so it has to end first.
            return Ok(None);
        }
        let text = self.tokenizer.borrow().decode(&self.window)?;
        let complete = match text.strip_suffix(REPLACEMENT) {
            Some(complete) => complete,
            None => text.as_str(),
        };
        let is_whole = complete.len() == text.len();
        let new_text = self.new_text(complete)?;
        if is_whole && new_text.is_some() {
            self.window.drain(..self.n_context);
            self.n_context = self.window.len();
            self.given = self.tokenizer.borrow().decode(&self.window)?;
        } else if let Some(new_text) = &new_text {
            self.given.push_str(new_text);
        }
        Ok(new_text)
    }

    /// Returns the text still held back, if any, and makes the stream ready for new ids.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<Option<String>> {
        let text = self.tokenizer.borrow().decode(&self.window)?;
        let rest = self.new_text(&text)?;
        self.window.clear();
        self.n_context = 0;
        self.given.clear();
        Ok(rest)
    }

    /// What `text`, the window's text, adds to what has been given out.
    fn new_text(&self, text: &str) -> Result<Option<String>> {
        if text.len() < self.given.len() && self.given.starts_with(text) {
            return Ok(None); // Nothing new, and the last character held back.
        }
        match text.strip_prefix(self.given.as_str()) {
            Some("") => Ok(None),
            Some(new_text) => Ok(Some(new_text.to_owned())),
            None => Err(DataError::UnstableDecoding { expected_prefix: self.given.clone(), got: text.to_owned() }),
        }
    }
}

/// Whether this is how byte-fallback vocabularies spell a byte: `<0x0A>`.
fn is_byte_token(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer_training::{TokenizerTraining, character_level};
    use proptest::prelude::*;
    use std::sync::OnceLock;

    /// Streams all ids and returns the pieces.
    fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.decode_stream();
        let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        pieces.extend(stream.finish().unwrap());
        pieces
    }

    fn byte_level() -> &'static Tokenizer {
        static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
        TOKENIZER.get_or_init(|| {
            let texts = ["the cat 🦀 sat on 日本語 the mat", "héé the 日本 🦀🦀 cat é"];
            TokenizerTraining::new(330).with_min_frequency(1).train_byte_level_bpe(texts.into_iter()).unwrap()
        })
    }

    /// A tokenizer in the manner of Llama's: bytes as a last resort, `▁` for spaces, the first one stripped.
    fn sentencepiece_like() -> &'static Tokenizer {
        static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
        TOKENIZER.get_or_init(|| {
            let mut vocab = serde_json::Map::new();
            vocab.insert("</s>".to_owned(), 0.into());
            for byte in 0..256_u32 {
                vocab.insert(format!("<0x{byte:02X}>"), (byte + 1).into());
            }
            for token in ["▁", "a", "b", "▁a", "\u{fffd}", "▁ab"] {
                let id = vocab.len();
                vocab.insert(token.to_owned(), id.into());
            }
            let json = serde_json::json!({
                "version": "1.0", "truncation": null, "padding": null, "post_processor": null,
                "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false,
                                  "rstrip": false, "normalized": false, "special": true}],
                "normalizer": {"type": "Sequence", "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
                "pre_tokenizer": null,
                "decoder": {"type": "Sequence", "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"}, {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
                "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                          "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true,
                          "vocab": vocab, "merges": [["▁", "a"], ["▁a", "b"]]}
            });
            Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
        })
    }

    #[test]
    fn a_character_of_several_tokens_comes_out_whole() {
        let tokenizer = TokenizerTraining::new(257).train_byte_level_bpe(["x"].into_iter()).unwrap();
        let ids = tokenizer.encode("a🦀b").unwrap();
        assert_eq!(ids.len(), 6);
        assert_eq!(pieces(&tokenizer, &ids), ["a", "🦀", "b"]);
    }

    #[test]
    fn half_a_character_at_the_end_is_what_decode_makes_of_it() {
        let tokenizer = TokenizerTraining::new(257).train_byte_level_bpe(["x"].into_iter()).unwrap();
        let ids = tokenizer.encode("a🦀").unwrap();
        assert_eq!(pieces(&tokenizer, &ids[..3]), ["a", "\u{fffd}"]);
    }

    #[test]
    fn special_and_unknown_ids_give_no_text() {
        let tokenizer = character_level("ab").unwrap();
        assert_eq!(pieces(&tokenizer, &[0, 1, 0, 999, 2, 0]), ["a", "b"]);
    }

    #[test]
    fn only_the_first_word_loses_its_space() {
        let tokenizer = sentencepiece_like();
        let ids = tokenizer.encode("a ab a").unwrap();
        assert_eq!(pieces(tokenizer, &ids), ["a", " ab", " a"]);
        let mut after_eos = vec![0];
        after_eos.extend(&ids);
        assert_eq!(pieces(tokenizer, &after_eos), ["a", " ab", " a"]);
    }

    #[test]
    fn byte_tokens_wait_for_the_end_of_their_run() {
        let tokenizer = sentencepiece_like();
        let ids = tokenizer.encode("a🦀a").unwrap();
        assert_eq!(pieces(tokenizer, &ids), ["a", "🦀a"]);
    }

    #[test]
    fn a_finished_stream_can_be_used_again() {
        let tokenizer = sentencepiece_like();
        let ids = tokenizer.encode("a ab").unwrap();
        let mut stream = tokenizer.decode_stream();
        for _ in 0..2 {
            let mut text = String::new();
            for &id in &ids {
                text.extend(stream.push(id).unwrap());
            }
            text.extend(stream.finish().unwrap());
            assert_eq!(text, "a ab");
        }
    }

    /// Text with many characters of two, three and four bytes.
    fn text() -> impl Strategy<Value = String> {
        "[ a-dé日本🦀👩\u{200d}\u{fffd}the\n]{0,24}"
    }

    proptest! {
        #[test]
        fn the_pieces_of_any_text_make_the_text(text in text()) {
            let tokenizer = byte_level();
            let pieces = pieces(tokenizer, &tokenizer.encode(&text).unwrap());
            if !text.contains(REPLACEMENT) {
                prop_assert!(pieces.iter().all(|piece| !piece.contains(REPLACEMENT)));
            }
            prop_assert_eq!(pieces.concat(), text);
        }

        #[test]
        fn the_pieces_of_any_ids_make_what_decode_makes(ids in prop::collection::vec(0_u32..340, 0..40)) {
            let tokenizer = byte_level();
            prop_assert_eq!(pieces(tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap());
        }

        #[test]
        fn so_do_those_of_any_bytes(ids in prop::collection::vec(1_u32..257, 0..40)) {
            let tokenizer = byte_level();
            prop_assert_eq!(pieces(tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap());
        }

        #[test]
        fn so_do_those_of_a_tokenizer_with_byte_fallback(
            ids in prop::collection::vec(prop_oneof![0_u32..270, 257_u32..264, 225_u32..245], 0..30),
        ) {
            let tokenizer = sentencepiece_like();
            prop_assert_eq!(pieces(tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap());
        }
    }
}
