//! Sessions of the bundled model, without a browser.
#![cfg(not(target_arch = "wasm32"))]

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use blockformer_browser::{AnySession, Options, Piece, SessionError, Step};
use blockformer_data::{Tokenizer, character_level};
use blockformer_generate::{GenerateOptions, generate};
use blockformer_model::AnyModel;
use burn::tensor::Device;

const CONFIG: &str = include_str!("../../../crates/blockformer/model/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../../crates/blockformer/model/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../../../crates/blockformer/model/tokenizer.json");

/// What `scripts/try-browser.sh` expects of the page: what the model says greedily.
const PROMPT: &str = include_str!("greedy/prompt.txt");
const TEXT: &str = include_str!("greedy/text.txt");
const TOKENS: usize = 64;

fn packed() -> AnySession {
    AnySession::packed(CONFIG, WEIGHTS, TOKENIZER, &Device::flex()).unwrap()
}

fn greedy(max_new_tokens: usize) -> Options {
    Options { max_new_tokens, temperature: 0.0, ..Options::default() }
}

/// On a CPU a step waits for nothing.
fn step(session: &mut AnySession) -> Result<Step, SessionError> {
    match pin!(session.step()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(step) => step,
        Poll::Pending => panic!("a step on the CPU had to wait"),
    }
}

fn steps(session: &mut AnySession) -> Vec<Step> {
    let mut steps = vec![step(session).unwrap()];
    while steps.last().unwrap().finish.is_none() {
        steps.push(step(session).unwrap());
    }
    steps
}

fn text<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> String {
    pieces.into_iter().map(|piece| piece.text.as_str()).collect()
}

#[test]
fn both_kinds_of_session_say_what_the_plain_loop_says() {
    let device = Device::flex();
    let (_, model) = AnyModel::from_bytes(CONFIG, WEIGHTS, &device).unwrap();
    let tokenizer = Tokenizer::from_bytes(TOKENIZER).unwrap();
    let options = GenerateOptions { max_new_tokens: TOKENS, ..GenerateOptions::default() };
    let prompt = tokenizer.encode(PROMPT.trim_end()).unwrap();
    let expected = generate(&model, &[&prompt], &options, &device, |_, _| ControlFlow::Continue(())).unwrap();
    let expected = tokenizer.decode(&expected[0].tokens).unwrap();
    assert_eq!(expected, TEXT.strip_suffix('\n').unwrap());

    for mut session in [packed(), AnySession::plain(CONFIG, WEIGHTS, TOKENIZER, &device).unwrap()] {
        session.start(PROMPT.trim_end(), &greedy(TOKENS)).unwrap();
        let steps = steps(&mut session);
        assert_eq!(text(steps.iter().flat_map(|step| &step.pieces)), expected);
        assert_eq!(steps.iter().map(|step| step.tokens).sum::<usize>(), TOKENS);
        assert_eq!(steps.last().unwrap().finish, Some("length"));
        assert_eq!(step(&mut session).unwrap(), Step::default());
    }
}

#[test]
fn blocks_of_the_prompt_end_at_a_boundary_and_each_step_gives_the_next() {
    let mut session = packed();
    let tokenizer = Tokenizer::from_bytes(TOKENIZER).unwrap();
    for prompt in ["The", "The whale", "The people of the United States, and the sea:", "Ein Wal, größer als 🐋."] {
        let n = tokenizer.encode(prompt).unwrap().len();
        let pieces = session.start(prompt, &greedy(12)).unwrap();
        assert_eq!(text(&pieces), prompt);
        let last = n.div_ceil(4) - 1;
        assert_eq!(pieces.last().unwrap().block, last, "{prompt}");
        assert!(pieces.is_sorted_by_key(|piece| piece.block));
        for block in 0..=last {
            // The first block is the one that padding makes shorter; a character may take several tokens.
            let pieces = pieces.iter().filter(|piece| piece.block == block).count();
            let tokens = if block == 0 { n - 4 * last } else { 4 };
            assert!(pieces <= tokens && (prompt.contains('🐋') || pieces == tokens), "{prompt}, block {block}");
        }
        for (index, step) in steps(&mut session).iter().enumerate() {
            assert_eq!(step.tokens, 4);
            assert!(step.pieces.iter().all(|piece| piece.block == last + 1 + index), "{step:?}");
        }
    }
}

#[test]
fn a_stopped_prompt_makes_room_for_the_next() {
    let mut session = packed();
    assert_eq!(session.stop().unwrap(), Step::default());
    session.start("The whale", &greedy(400)).unwrap();
    assert_eq!(step(&mut session).unwrap().finish, None);
    assert!(matches!(session.start("The sea", &greedy(4)), Err(SessionError::Busy)));
    let stopped = session.stop().unwrap();
    assert_eq!((stopped.finish, stopped.tokens), (Some("cancelled"), 0));
    session.start("The sea", &greedy(4)).unwrap();
    assert_eq!(steps(&mut session).len(), 1);
}

#[test]
fn seeds_decide_what_is_drawn() {
    let mut session = packed();
    let mut draw = |seed| {
        session
            .start("The whale", &Options { seed, max_new_tokens: 24, temperature: 1.0, ..Options::default() })
            .unwrap();
        text(steps(&mut session).iter().flat_map(|step| &step.pieces))
    };
    let (first, again, other) = (draw(1), draw(1), draw(2));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn prompts_that_cannot_be_continued_are_refused_with_words_for_users() {
    let mut session = packed();
    let refused = |session: &mut AnySession, prompt: &str, options| session.start(prompt, &options).unwrap_err();
    assert_eq!(
        refused(&mut session, "", greedy(4)).to_string(),
        "the prompt is empty: this model needs a word to go on from"
    );
    let long = "whale ".repeat(600);
    let error = refused(&mut session, &long, greedy(4));
    assert!(matches!(error, SessionError::TooLong { tokens: 500.., new_tokens: 4, max_length: 512, .. }), "{error}");
    assert!(matches!(refused(&mut session, "The", greedy(509)), SessionError::TooLong { new_tokens: 509, .. }));
    assert!(matches!(refused(&mut session, "The", greedy(0)), SessionError::Generate(_)));
    let hot = Options { temperature: -1.0, ..greedy(4) };
    assert!(refused(&mut session, "The", hot).to_string().starts_with("temperature is -1"));
    session.start("The", &greedy(508)).unwrap(); // and after all that, it works
    assert_eq!(steps(&mut session).len(), 127);
}

#[test]
fn damaged_files_are_named() {
    let device = Device::flex();
    let open = |config: &str, weights: &[u8], tokenizer: &[u8]| {
        AnySession::packed(config, weights, tokenizer, &device).unwrap_err().to_string()
    };
    let error = open("<!doctype html>", WEIGHTS, TOKENIZER);
    assert!(error.contains("config.json"), "{error}");
    let error = open(CONFIG, &WEIGHTS[..1000], TOKENIZER);
    assert!(error.contains("model.safetensors"), "{error}");
    let error = open(CONFIG, WEIGHTS, b"404");
    assert!(error.contains("tokenizer"), "{error}");
    let config = CONFIG.replace("\"vocab_size\": 4096", "\"vocab_size\": 4000");
    assert_ne!(config, CONFIG);
    assert!(!open(&config, WEIGHTS, TOKENIZER).is_empty());
    let digits: String = (0..5000).filter_map(char::from_u32).collect();
    let large = character_level(&digits).unwrap().to_json().unwrap();
    let error = open(CONFIG, WEIGHTS, large.as_bytes());
    assert!(error.ends_with("they do not belong together"), "{error}");
}
