//! Log probabilities in the shape of the OpenAI API.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use blockformer::data::{DataError, DecodeStream, Tokenizer};
use blockformer::generate::{TokenEvent, TokenLogprobs};
use serde::{Serialize, Serializer};

use crate::spelling::{Spelling, spell};

/// What stands for the logarithm of zero, for which JSON has no number.
const IMPOSSIBLE: f32 = -9999.0;

/// The tokens of a text, each with its log probability, the likeliest in its place, and where it begins. Places are
/// counted in characters from the beginning of the prompt, whether it is echoed or not.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<TopLogprobs>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    pub(crate) fn extend(&mut self, other: Self) {
        self.tokens.extend(other.tokens);
        self.token_logprobs.extend(other.token_logprobs);
        self.top_logprobs.extend(other.top_logprobs);
        self.text_offset.extend(other.text_offset);
    }

    fn push(&mut self, entry: Entry) {
        self.tokens.push(entry.token);
        self.token_logprobs.push(entry.logprob);
        self.top_logprobs.push(entry.top);
        self.text_offset.push(entry.offset);
    }
}

/// Tokens and their log probabilities: a JSON object, the likeliest first, the chosen one among them.
#[derive(Debug)]
struct TopLogprobs(Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// One token.
#[derive(Debug)]
struct Entry {
    token: String,
    logprob: f32,
    top: TopLogprobs,
    offset: usize,
}

impl Entry {
    fn new(tokenizer: &Tokenizer, token: String, logprobs: TokenLogprobs, offset: usize) -> Self {
        let logprob = logprobs.chosen.max(IMPOSSIBLE);
        let spelled = |(id, logprob): (u32, f32)| (spell(tokenizer, id).text, logprob.max(IMPOSSIBLE));
        let likeliest = logprobs.top.into_iter().map(spelled);
        let mut seen = HashSet::new(); // two tokens can be spelled alike
        let top = likeliest.chain([(token.clone(), logprob)]).filter(|(token, _)| seen.insert(token.clone())).collect();
        Self { token, logprob, top: TopLogprobs(top), offset }
    }
}

/// Gives out the log probabilities of tokens together with their text. The engine holds text back while it may be half a
/// character or the beginning of a stop string, and never gives out the stop string itself.
#[derive(Debug)]
pub(crate) struct LogprobsTrack {
    tokenizer: Arc<Tokenizer>,
    /// The text of all tokens, whatever is held back or cut off.
    whole: DecodeStream<Arc<Tokenizer>>,
    /// Where the next token begins.
    offset: usize,
    /// Where the text that was given out ends.
    given: usize,
    held: VecDeque<Entry>,
}

impl LogprobsTrack {
    /// For tokens behind a prompt.
    pub(crate) fn new(tokenizer: &Arc<Tokenizer>, prompt: &str) -> Self {
        let start = prompt.chars().count();
        let whole = DecodeStream::new(Arc::clone(tokenizer));
        Self { tokenizer: Arc::clone(tokenizer), whole, offset: start, given: start, held: VecDeque::new() }
    }

    /// Takes a token in; returns those whose text has been given out, this one's included.
    pub(crate) fn token(&mut self, event: TokenEvent) -> Result<Option<Logprobs>, DataError> {
        let before = self.offset;
        self.offset += characters(self.whole.push(event.token)?.as_deref());
        if let Some(logprobs) = event.logprobs {
            let Spelling { text, characters } = spell(&self.tokenizer, event.token);
            // What was pushed may begin with characters of tokens before, which only now turn out to be broken.
            let offset = self.offset.saturating_sub(characters).max(before);
            let offset = if characters == 0 { before } else { offset };
            self.held.push_back(Entry::new(&self.tokenizer, text, logprobs, offset));
        }
        self.given += characters(Some(&event.text));
        Ok(self.release(self.given))
    }

    /// The rest, at the end of the text, of which `text` was held back.
    pub(crate) fn finish(&mut self, text: &str) -> Result<Option<Logprobs>, DataError> {
        self.offset += characters(self.whole.finish()?.as_deref());
        self.given += characters(Some(text));
        let is_cut = self.given < self.offset; // by a stop string
        Ok(self.release(if is_cut { self.given } else { usize::MAX }))
    }

    /// The tokens that begin before `end`.
    fn release(&mut self, end: usize) -> Option<Logprobs> {
        let mut released = Logprobs::default();
        while let Some(entry) = self.held.pop_front_if(|entry| entry.offset < end) {
            released.push(entry);
        }
        (!released.tokens.is_empty()).then_some(released)
    }
}

fn characters(text: Option<&str>) -> usize {
    text.map_or(0, |text| text.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockformer::data::TokenizerTraining;

    /// Every token is one byte.
    fn bytes() -> Arc<Tokenizer> {
        Arc::new(TokenizerTraining::new(257).train_byte_level_bpe(["é"].into_iter()).unwrap())
    }

    /// What comes when the engine gives out `pieces` with the tokens of `text`, and `tail` at the end.
    fn track(prompt: &str, text: &str, pieces: &[&str], tail: &str) -> Vec<(Vec<String>, Vec<usize>)> {
        let tokenizer = bytes();
        let mut track = LogprobsTrack::new(&tokenizer, prompt);
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids.len(), pieces.len());
        let mut given: Vec<_> = ids
            .into_iter()
            .zip(pieces)
            .map(|(token, piece)| {
                let logprobs = Some(TokenLogprobs { chosen: -0.5, top: vec![(token, -0.5)] });
                track.token(TokenEvent { sample: 0, token, text: (*piece).into(), logprobs }).unwrap()
            })
            .collect();
        given.push(track.finish(tail).unwrap());
        given.into_iter().map(|given| given.map_or_else(Default::default, |it| (it.tokens, it.text_offset))).collect()
    }

    fn entry(tokens: &[&str], offsets: &[usize]) -> (Vec<String>, Vec<usize>) {
        (tokens.iter().map(|token| (*token).into()).collect(), offsets.to_vec())
    }

    #[test]
    fn a_character_of_several_tokens_comes_with_all_of_them() {
        let nothing = entry(&[], &[]);
        assert_eq!(
            track("né", "aé!", &["a", "", "é", "!"], ""),
            [
                entry(&["a"], &[2]),
                nothing.clone(),
                entry(&[r"bytes:\xc3", r"bytes:\xa9"], &[3, 3]),
                entry(&["!"], &[4]),
                nothing,
            ]
        );
    }

    #[test]
    fn a_token_behind_a_broken_character_stands_behind_it() {
        let tokenizer = bytes();
        let mut track = LogprobsTrack::new(&tokenizer, "");
        let mut push = |token: u32, text: &str| {
            let logprobs = Some(TokenLogprobs { chosen: -1.0, top: Vec::new() });
            track.token(TokenEvent { sample: 0, token, text: text.into(), logprobs }).unwrap()
        };
        assert!(push(tokenizer.encode("é").unwrap()[0], "").is_none());
        let both = push(tokenizer.encode("a").unwrap()[0], "\u{fffd}a").unwrap();
        assert_eq!((both.tokens, both.text_offset), entry(&[r"bytes:\xc3", "a"], &[0, 1]));
    }

    #[test]
    fn half_a_character_at_the_end_is_listed_too() {
        let tokenizer = bytes();
        let mut track = LogprobsTrack::new(&tokenizer, "");
        let token = tokenizer.encode("é").unwrap()[0];
        let logprobs = Some(TokenLogprobs { chosen: f32::NEG_INFINITY, top: Vec::new() });
        assert!(track.token(TokenEvent { sample: 0, token, text: String::new(), logprobs }).unwrap().is_none());
        let rest = track.finish("\u{fffd}").unwrap().unwrap();
        assert_eq!((rest.tokens, rest.text_offset), entry(&[r"bytes:\xc3"], &[0]));
        assert_eq!(rest.token_logprobs, [IMPOSSIBLE]);
    }

    #[test]
    fn tokens_of_a_stop_string_are_not_listed() {
        let nothing = entry(&[], &[]);
        let given = track("", "xab", &["x", "", ""], "");
        assert_eq!(given, [entry(&["x"], &[0]), nothing.clone(), nothing.clone(), nothing]);
    }

    #[test]
    fn text_that_only_seemed_to_begin_a_stop_string_is_listed_when_it_is_given() {
        let nothing = entry(&[], &[]);
        assert_eq!(
            track("p", "xac", &["x", "", "ac"], ""),
            [entry(&["x"], &[1]), nothing.clone(), entry(&["a", "c"], &[2, 3]), nothing.clone()]
        );
        assert_eq!(track("p", "xa", &["x", ""], "a"), [entry(&["x"], &[1]), nothing, entry(&["a"], &[2])]);
    }
}
