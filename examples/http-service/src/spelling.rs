//! Tokens as text, one by one.

use blockformer::data::Tokenizer;

/// How an answer spells a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spelling {
    pub(crate) text: String,
    /// Characters of the text that are the token's and no other's.
    pub(crate) characters: usize,
}

/// A token is spelled as the text it is within a text. One that is not whole characters is spelled as its bytes,
/// `bytes:\xe2\x80`, and one that is no text (the end of a document) as in the vocabulary.
pub(crate) fn spell(tokenizer: &Tokenizer, id: u32) -> Spelling {
    let text = text_within(tokenizer, id);
    if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) {
        return Spelling { characters: text.chars().count(), text };
    }
    // Models often have more ids than their tokenizers.
    let token = tokenizer.id_to_token(id).unwrap_or_else(|| format!("token_id:{id}"));
    let bytes = bytes_of(&token).filter(|_| !text.is_empty());
    let spelled = |bytes: Vec<u8>| bytes.iter().fold("bytes:".into(), |text, byte| format!("{text}\\x{byte:02x}"));
    Spelling { text: bytes.map_or(token, spelled), characters: 0 }
}

/// The first word of a text loses its space in many tokenizers, so this is the text of the second of two equal tokens.
fn text_within(tokenizer: &Tokenizer, id: u32) -> String {
    let alone = tokenizer.decode(&[id]).unwrap_or_default();
    let twice = tokenizer.decode(&[id, id]).unwrap_or_default();
    twice.strip_prefix(&alone).map_or(alone.clone(), String::from)
}

/// The bytes of a token of a byte-level vocabulary, or of a byte token such as `<0xE2>`.
fn bytes_of(token: &str) -> Option<Vec<u8>> {
    let hexadecimal = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match hexadecimal.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(byte) => Some(vec![byte]),
        None => token.chars().map(byte_of).collect(),
    }
}

/// Byte-level vocabularies write printable bytes as their Latin-1 characters and the others, in order, from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockformer::data::TokenizerTraining;

    #[test]
    fn tokens_of_part_of_a_character_are_spelled_as_bytes() {
        // With no merges, every token is one byte.
        let training = TokenizerTraining::new(257).with_special_tokens(["<|endoftext|>"]);
        let tokenizer = training.train_byte_level_bpe(["é"].into_iter()).unwrap();
        let spelled: Vec<String> =
            tokenizer.encode("a \u{e9}\u{ad}\n").unwrap().into_iter().map(|id| spell(&tokenizer, id).text).collect();
        assert_eq!(spelled, ["a", " ", r"bytes:\xc3", r"bytes:\xa9", r"bytes:\xc2", r"bytes:\xad", "\n"]);
        let eos = tokenizer.eos_token_id().unwrap();
        assert_eq!(spell(&tokenizer, eos).text, "<|endoftext|>");
        assert_eq!(spell(&tokenizer, 9999).text, "token_id:9999");
    }

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let characters = (0x21..=0x143).filter_map(char::from_u32);
        let mut bytes: Vec<u8> = characters.filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }
}
