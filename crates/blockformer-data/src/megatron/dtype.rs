//! The integer types that tokens are stored as.

use std::borrow::Cow;

use super::mapped_file::as_u32s;

/// The type of the tokens in a Megatron `.bin` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenType {
    /// One byte, code 1.
    U8,
    /// One byte with a sign, code 2.
    I8,
    /// Two bytes with a sign, code 3.
    I16,
    /// Four bytes with a sign, code 4. Read without copying.
    I32,
    /// Eight bytes with a sign, code 5.
    I64,
    /// Two bytes, code 8: what vocabularies up to 65536 tokens are stored as.
    U16,
}

impl TokenType {
    /// The smallest type that Megatron's own writer uses for a vocabulary: [`U16`](Self::U16) where it fits, or else
    /// [`I32`](Self::I32).
    pub fn for_vocab_size(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::I32 }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::U8),
            2 => Some(Self::I8),
            3 => Some(Self::I16),
            4 => Some(Self::I32),
            5 => Some(Self::I64),
            8 => Some(Self::U16),
            _ => None,
        }
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Self::U8 => 1,
            Self::I8 => 2,
            Self::I16 => 3,
            Self::I32 => 4,
            Self::I64 => 5,
            Self::U16 => 8,
        }
    }

    /// How many bytes a token takes.
    pub fn n_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// The largest token id that can be stored.
    pub fn largest(self) -> u32 {
        match self {
            Self::U8 => u8::MAX.into(),
            Self::I8 => i8::MAX as u32,
            Self::I16 => i16::MAX as u32,
            Self::I32 => i32::MAX as u32,
            Self::I64 => u32::MAX,
            Self::U16 => u16::MAX.into(),
        }
    }

    /// The first bytes of a token, as many as the type has. The token must not be above [`largest`](Self::largest).
    pub(super) fn encode(self, token: u32, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&u64::from(token).to_le_bytes()[..self.n_bytes()]);
    }

    /// Tokens from bytes. Numbers that no token has (negative, too large) become ones that no vocabulary has.
    pub(super) fn decode(self, bytes: &[u8]) -> Cow<'_, [u32]> {
        match self {
            Self::U8 => bytes.iter().map(|&byte| u32::from(byte)).collect(),
            Self::I8 => bytes.iter().map(|&byte| token_or_none(i64::from(byte as i8))).collect(),
            Self::I16 => words(bytes).map(|word| token_or_none(i16::from_le_bytes(word).into())).collect(),
            Self::U16 => words(bytes).map(|word| u32::from(u16::from_le_bytes(word))).collect(),
            Self::I32 => match as_u32s(bytes) {
                // A negative number is 2^31 or more without its sign.
                Some(tokens) => Cow::Borrowed(tokens),
                None => words(bytes).map(u32::from_le_bytes).collect(),
            },
            Self::I64 => words(bytes).map(|word| token_or_none(i64::from_le_bytes(word))).collect(),
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

fn token_or_none(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [TokenType; 6] =
        [TokenType::U8, TokenType::I8, TokenType::I16, TokenType::I32, TokenType::I64, TokenType::U16];

    #[test]
    fn every_type_keeps_its_smallest_and_largest_token() {
        for dtype in ALL {
            let tokens = [0, 1, 77, dtype.largest() - 1, dtype.largest()];
            let mut bytes = Vec::new();
            for token in tokens {
                dtype.encode(token, &mut bytes);
            }
            assert_eq!(bytes.len(), tokens.len() * dtype.n_bytes());
            assert_eq!(*dtype.decode(&bytes), tokens, "{dtype:?}");
            assert_eq!(TokenType::from_code(dtype.code()), Some(dtype));
        }
    }

    #[test]
    fn negative_numbers_fit_no_vocabulary() {
        for dtype in [TokenType::I8, TokenType::I16, TokenType::I32, TokenType::I64] {
            let bytes = vec![0xFF; dtype.n_bytes()];
            assert_eq!(*dtype.decode(&bytes), [u32::MAX], "{dtype:?}");
        }
        assert_eq!(*TokenType::I64.decode(&(1_i64 << 32).to_le_bytes()), [u32::MAX]);
    }

    #[test]
    fn floats_hold_no_tokens() {
        for code in [0, 6, 7, 9, 255] {
            assert_eq!(TokenType::from_code(code), None);
        }
    }

    #[test]
    fn two_bytes_are_used_while_they_suffice() {
        assert_eq!(TokenType::for_vocab_size(1 << 16), TokenType::U16);
        assert_eq!(TokenType::for_vocab_size((1 << 16) + 1), TokenType::I32);
    }
}
