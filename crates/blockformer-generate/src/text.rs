//! Text from tokens, as far as it is certain.

use std::sync::Arc;

use blockformer_data::{DataError, DecodeStream, Tokenizer};

/// The text of one sequence, with what may be the beginning of a stop string held back.
#[derive(Debug)]
pub(crate) struct TextStream {
    stream: DecodeStream<Arc<Tokenizer>>,
    stops: Vec<String>,
    held: String,
}

/// Text that can be given out, and whether a stop string came behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) stopped: bool,
}

impl TextStream {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>) -> Self {
        Self { stream: DecodeStream::new(tokenizer), stops, held: String::new() }
    }

    pub(crate) fn push(&mut self, token: u32) -> Result<Piece, DataError> {
        let text = self.stream.push(token)?.unwrap_or_default();
        Ok(self.give(&text))
    }

    /// The rest, at the end of the sequence.
    pub(crate) fn finish(&mut self) -> Result<Piece, DataError> {
        let text = self.stream.finish()?.unwrap_or_default();
        let mut piece = self.give(&text);
        if !piece.stopped {
            piece.text.push_str(&std::mem::take(&mut self.held));
        }
        Ok(piece)
    }

    fn give(&mut self, text: &str) -> Piece {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let rest = self.held.split_off(self.held.len() - self.doubtful());
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// Bytes at the end that may be the beginning of a stop string.
    fn doubtful(&self) -> usize {
        let beginning = |stop: &String| {
            let longest = stop.len().saturating_sub(1).min(self.held.len());
            (1..=longest).rev().find(|n| stop.is_char_boundary(*n) && self.held.ends_with(&stop[..*n])).unwrap_or(0)
        };
        self.stops.iter().map(beginning).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockformer_data::TokenizerTraining;

    #[test]
    fn stop_strings_end_the_text_wherever_tokens_cut_them() {
        // With no merges, every token is one byte.
        let tokenizer = TokenizerTraining::new(257).train_byte_level_bpe(["é"].into_iter()).unwrap();
        let tokenizer = Arc::new(tokenizer);
        for (text, stops, expected) in [
            ("one END two", vec!["END"], ("one ", true)),
            ("one EN two", vec!["END"], ("one EN two", false)),
            ("aab", vec!["ab"], ("a", true)),
            ("xéé!", vec!["é!"], ("xé", true)),
            ("one two", vec!["two", "ne"], ("o", true)),
            ("ends in EN", vec!["END"], ("ends in EN", false)),
        ] {
            let mut stream = TextStream::new(Arc::clone(&tokenizer), stops.into_iter().map(String::from).collect());
            let mut given = String::new();
            let mut stopped = false;
            for token in tokenizer.encode(text).unwrap() {
                let piece = stream.push(token).unwrap();
                given.push_str(&piece.text);
                if piece.stopped {
                    stopped = true;
                    break;
                }
            }
            if !stopped {
                let piece = stream.finish().unwrap();
                given.push_str(&piece.text);
                stopped = piece.stopped;
            }
            assert_eq!((given.as_str(), stopped), expected, "{text}");
        }
    }
}
