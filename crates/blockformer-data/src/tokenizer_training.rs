//! Tokenizers made from a corpus: byte-level BPE, and one token a character.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokenizers::models::bpe::{BPE, BpeTrainer, Vocab};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, TokenizerBuilder};

use crate::error::{BoxedError, DataError, Result};
use crate::source::Documents;
use crate::tokenizer::Tokenizer;

/// The special token that ends a document, id 0 of the tokenizers made here.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The unknown token that character-level tokenizers name but do not have, so that unknown text is an error.
const ABSENT_UNKNOWN: &str = "<unk>";

/// How to train a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerTraining {
    /// How many tokens to end up with, special tokens and the 256 bytes included. Text with few distinct words may
    /// give fewer.
    pub vocab_size: usize,
    /// The special tokens, which get the ids from 0.
    #[serde(default = "default_special_tokens")]
    pub special_tokens: Vec<String>,
    /// How often a pair of tokens must occur to become a token.
    #[serde(default = "default_min_frequency")]
    pub min_frequency: u64,
}

fn default_special_tokens() -> Vec<String> {
    vec![END_OF_TEXT.to_owned()]
}

fn default_min_frequency() -> u64 {
    2
}

impl TokenizerTraining {
    /// Training for `vocab_size` tokens, with [`END_OF_TEXT`] as the only special token.
    pub fn new(vocab_size: usize) -> Self {
        Self { vocab_size, special_tokens: default_special_tokens(), min_frequency: default_min_frequency() }
    }

    /// Replaces the special tokens. The first one gets id 0.
    #[must_use]
    pub fn with_special_tokens(mut self, special_tokens: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.special_tokens = special_tokens.into_iter().map(Into::into).collect();
        self
    }

    /// Sets how often a pair of tokens must occur to become a token.
    #[must_use]
    pub fn with_min_frequency(mut self, min_frequency: u64) -> Self {
        self.min_frequency = min_frequency;
        self
    }

    /// Trains byte-level BPE that splits text into words as GPT-2 does.
    ///
    /// All 256 bytes are tokens, so any text can be encoded, and decodes to itself.
    ///
    /// # Errors
    /// [`DataError::VocabularyTooSmall`] if `vocab_size` has no room for the bytes and the special tokens;
    /// [`DataError::SpecialToken`] if a special token is empty or there twice.
    pub fn train_byte_level_bpe<S>(&self, texts: impl Iterator<Item = S> + Send) -> Result<Tokenizer>
    where
        S: AsRef<str> + Send,
    {
        self.validate()?;
        let training = |source| DataError::Training { source };
        let byte_level = ByteLevel::new(false, true, true);
        let mut tokenizer = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
            .with_model(BPE::default())
            .with_pre_tokenizer(Some(byte_level))
            .with_post_processor(Some(byte_level))
            .with_decoder(Some(byte_level))
            .build()
            .map_err(training)?;
        tokenizer.train(&mut self.bpe_trainer(), texts).map_err(training)?;
        let json = tokenizer.to_string(false).map_err(training)?;
        Tokenizer::from_bytes(json.as_bytes())
    }

    /// Trains byte-level BPE on the documents of text and JSONL files or folders of them, one in memory at a time.
    ///
    /// # Errors
    /// As [`train_byte_level_bpe`](Self::train_byte_level_bpe) and [`Documents`].
    pub fn train_byte_level_bpe_on_files(&self, paths: &[PathBuf]) -> Result<Tokenizer> {
        self.validate()?;
        let mut failure = None;
        let mut documents = Documents::open(paths)?;
        let texts = std::iter::from_fn(|| match documents.next()? {
            Ok(text) => Some(text),
            Err(error) => {
                failure = Some(error);
                None
            }
        });
        let tokenizer = self.train_byte_level_bpe(texts);
        match failure {
            Some(error) => Err(error),
            None => tokenizer,
        }
    }

    fn bpe_trainer(&self) -> BpeTrainer {
        let special_tokens = self.special_tokens.iter().map(|token| AddedToken::from(token.clone(), true));
        BpeTrainer::builder()
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .show_progress(false)
            .special_tokens(special_tokens.collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build()
    }

    fn validate(&self) -> Result<()> {
        let expected_at_least = self.special_tokens.len() + 256;
        if self.vocab_size < expected_at_least {
            return Err(DataError::VocabularyTooSmall { expected_at_least, got: self.vocab_size });
        }
        let mut seen = HashSet::new();
        for (position, token) in self.special_tokens.iter().enumerate() {
            let problem = if token.is_empty() {
                "empty"
            } else if token.chars().count() == 1 {
                "a single character, which ordinary text needs"
            } else if !seen.insert(token) {
                "there already"
            } else {
                continue;
            };
            return Err(DataError::SpecialToken { token: token.clone(), position, problem });
        }
        Ok(())
    }
}

/// A tokenizer in which every distinct character of `text` is one token.
///
/// It is an ordinary `tokenizer.json` tokenizer, so character models use the same files as all others.
/// [`END_OF_TEXT`] is id 0, and the characters follow in the order of their code points. To encode a character that is
/// not in `text` is an error, [`DataError::UnknownCharacter`].
///
/// # Errors
/// [`DataError::Training`] if the `tokenizers` crate refuses the vocabulary.
///
/// ```
/// # fn main() -> Result<(), blockformer_data::DataError> {
/// let tokenizer = blockformer_data::character_level("banana\n")?;
/// assert_eq!(tokenizer.vocab_size(), 5); // <|endoftext|>, \n, a, b, n
/// assert_eq!(tokenizer.encode("nab\n")?, [4, 2, 3, 1]);
/// assert_eq!(tokenizer.decode(&[4, 2, 3, 1])?, "nab\n");
/// # Ok(())
/// # }
/// ```
pub fn character_level(text: &str) -> Result<Tokenizer> {
    character_level_of([text])
}

/// As [`character_level`], from many texts.
///
/// # Errors
/// As [`character_level`].
pub fn character_level_of<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<Tokenizer> {
    let mut characters = BTreeSet::new();
    for text in texts {
        characters.extend(text.as_ref().chars());
    }
    let tokens = std::iter::once(END_OF_TEXT.to_owned()).chain(characters.into_iter().map(String::from));
    character_tokenizer(tokens.zip(0..).collect()).map_err(|source| DataError::Training { source })
}

/// BPE without merges: what remains is one token a character.
fn character_tokenizer(vocabulary: Vocab) -> Result<Tokenizer, BoxedError> {
    let model = BPE::builder().vocab_and_merges(vocabulary, Vec::new()).unk_token(ABSENT_UNKNOWN.to_owned()).build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_decoder(Some(DecoderWrapper::Fuse(tokenizers::decoders::fuse::Fuse::new())));
    tokenizer.add_special_tokens(&[AddedToken::from(END_OF_TEXT, true)]);
    Ok(Tokenizer::from_inner(tokenizer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "the cat sat on the mat, the cat sat on the hat. Ünïcode, 日本語 and 🦀!";

    #[test]
    fn the_first_merge_is_the_most_frequent_pair() {
        let tokenizer = TokenizerTraining::new(258).train_byte_level_bpe(["abab ab", "abab"].into_iter()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 258);
        assert_eq!(tokenizer.token_to_id("ab"), Some(257));
        assert_eq!(tokenizer.encode("ab").unwrap(), [257]);
    }

    #[test]
    fn end_of_text_is_id_0_and_the_bytes_come_next() {
        let tokenizer = TokenizerTraining::new(300).train_byte_level_bpe([TEXT].into_iter()).unwrap();
        assert_eq!(tokenizer.eos_token_id(), Some(0));
        // The first printable byte of GPT-2's alphabet is the exclamation mark.
        assert_eq!(tokenizer.encode("!").unwrap(), [1]);
    }

    #[test]
    fn words_are_split_as_gpt2_splits_them() {
        let tokenizer = TokenizerTraining::new(2000).train_byte_level_bpe(vec![TEXT; 5].into_iter()).unwrap();
        let ids = tokenizer.encode("the cat sat").unwrap();
        let tokens: Vec<String> = ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect();
        assert_eq!(tokens, ["the", "Ġcat", "Ġsat"]);
    }

    #[test]
    fn training_twice_gives_the_same_file() {
        let train = || TokenizerTraining::new(320).train_byte_level_bpe([TEXT, TEXT].into_iter()).unwrap();
        assert_eq!(train().to_json().unwrap(), train().to_json().unwrap());
    }

    #[test]
    fn further_special_tokens_follow_in_order() {
        let training = TokenizerTraining::new(300).with_special_tokens(["<|endoftext|>", "<pad>"]);
        let tokenizer = training.train_byte_level_bpe([TEXT].into_iter()).unwrap();
        assert_eq!(tokenizer.eos_token_id(), Some(0));
        assert_eq!(tokenizer.pad_token_id(), Some(1));
    }

    #[test]
    fn a_vocabulary_without_room_for_all_bytes_is_refused() {
        let error = TokenizerTraining::new(256).train_byte_level_bpe([TEXT].into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "vocab_size too small: expected at least 257, got 256");
    }

    #[test]
    fn empty_and_repeated_special_tokens_are_refused() {
        for (tokens, message) in [
            (["<eos>", ""], "special token \"\" at position 1 is empty"),
            (["<eos>", "<eos>"], "special token \"<eos>\" at position 1 is there already"),
            (["a", "<eos>"], "special token \"a\" at position 0 is a single character, which ordinary text needs"),
        ] {
            let training = TokenizerTraining::new(300).with_special_tokens(tokens);
            let error = training.train_byte_level_bpe([TEXT].into_iter()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn a_character_outside_the_alphabet_is_an_error_that_names_it() {
        let tokenizer = character_level("abc").unwrap();
        let error = tokenizer.encode("ab🦀c").unwrap_err();
        assert_eq!(error.to_string(), "character '🦀' at byte 2 is not in the tokenizer's vocabulary");
    }

    #[test]
    fn a_character_tokenizer_survives_its_file() {
        let tokenizer = character_level(TEXT).unwrap();
        let read = Tokenizer::from_bytes(tokenizer.to_json().unwrap().as_bytes()).unwrap();
        assert_eq!(read.encode(TEXT).unwrap(), tokenizer.encode(TEXT).unwrap());
        assert_eq!(read.decode(&read.encode(TEXT).unwrap()).unwrap(), TEXT);
        assert_eq!(read.eos_token_id(), Some(0));
        assert!(matches!(read.encode("ω"), Err(DataError::UnknownCharacter { character: 'ω', byte_offset: 0 })));
    }

    #[test]
    fn characters_are_numbered_by_code_point_across_texts() {
        let tokenizer = character_level_of(["ca", "b\n"]).unwrap();
        assert_eq!(tokenizer.encode("\nabc").unwrap(), [1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn byte_level_bpe_decodes_any_text_to_itself(text in any::<String>()) {
            let tokenizer = byte_level();
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
        }

        #[test]
        fn a_character_tokenizer_decodes_text_of_its_alphabet_to_itself(text in any::<String>()) {
            let tokenizer = character_level(&text).unwrap();
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(ids.len(), text.chars().count());
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    fn byte_level() -> &'static Tokenizer {
        static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
        TOKENIZER.get_or_init(|| TokenizerTraining::new(400).train_byte_level_bpe(vec![TEXT; 3].into_iter()).unwrap())
    }
}
