//! Log probabilities are the engine's, and stand where the text stands.

use blockformer::generate::{EngineConfig, Request};
use blockformer_http_service::ServiceConfig;
use serde_json::{Value, json};

use crate::client::{Server, assert_same, gather};
use crate::engines::{alone, hooked, request};

const PROMPT: &str = "The people of the United States";

fn array(logprobs: &Value, field: &str) -> Vec<Value> {
    logprobs[field].as_array().unwrap().clone()
}

fn strings(values: &[Value]) -> Vec<&str> {
    values.iter().map(|value| value.as_str().unwrap()).collect()
}

#[test]
fn log_probabilities_are_those_of_the_engine() {
    let body = json!({"prompt": PROMPT, "max_tokens": 18, "seed": 5, "logprobs": 3});
    let answer = Server::bundled().complete(&body);
    let own = alone(Request { logprobs: Some(3), ..request(PROMPT, 18, 1.0, 5) });
    let logprobs = &answer["choices"][0]["logprobs"];
    let chosen: Vec<f32> = own.samples[0].logprobs.iter().map(|logprobs| logprobs.chosen).collect();
    assert_same(&logprobs["token_logprobs"], &json!(chosen));
    let (tokens, tops) = (array(logprobs, "tokens"), array(logprobs, "top_logprobs"));
    assert_eq!((tokens.len(), tops.len()), (chosen.len(), chosen.len()));
    for (place, top) in tops.iter().enumerate() {
        let top = top.as_object().unwrap();
        assert!(top.len() == 3 || top.len() == 4, "three, and the chosen one if it is none of them");
        assert_same(&top[tokens[place].as_str().unwrap()], &json!(chosen[place]));
        let mut values: Vec<f32> = top.values().map(|value| value.as_f64().unwrap() as f32).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        let likeliest: Vec<f32> = own.samples[0].logprobs[place].top.iter().map(|(_, logprob)| *logprob).collect();
        assert_same(&json!(values[..3]), &json!(likeliest));
    }
}

#[test]
fn offsets_are_where_tokens_stand_behind_the_prompt() {
    let body = json!({"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "logprobs": 0});
    let choice = Server::bundled().complete(&body)["choices"][0].clone();
    let whole = format!("{PROMPT}{}", choice["text"].as_str().unwrap());
    let (tokens, offsets) = (array(&choice["logprobs"], "tokens"), array(&choice["logprobs"], "text_offset"));
    assert!(whole.is_ascii());
    assert_eq!(strings(&tokens).concat(), choice["text"].as_str().unwrap());
    for (token, offset) in strings(&tokens).into_iter().zip(offsets) {
        assert!(whole[offset.as_u64().unwrap() as usize..].starts_with(token));
    }
}

#[test]
fn a_text_that_was_cut_lists_the_tokens_that_are_left_of_it() {
    let whole = alone(request(PROMPT, 24, 0.0, 0)).samples[0].text.clone();
    let stop: String = whole.chars().skip(25).take(7).collect();
    let body = json!({"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "logprobs": 0, "stop": stop});
    let choice = Server::bundled().complete(&body)["choices"][0].clone();
    let text = choice["text"].as_str().unwrap();
    let tokens = array(&choice["logprobs"], "tokens");
    let (last, before) = tokens.split_last().unwrap();
    // The stop string may begin within the last token.
    assert!(strings(&tokens).concat().starts_with(text));
    assert!(strings(before).concat().len() < text.len(), "{last} stands behind the text");
}

#[test]
fn tokens_that_are_no_characters_are_listed_as_bytes() {
    let (engine, tokenizer) = hooked(EngineConfig::default(), || {});
    let server = Server::start(engine, tokenizer.clone(), ServiceConfig::new("toy"));
    let body = json!({"prompt": "né", "max_tokens": 60, "seed": 1, "temperature": 2, "logprobs": 2});
    let choice = server.complete(&body)["choices"][0].clone();
    let (tokens, offsets) = (array(&choice["logprobs"], "tokens"), array(&choice["logprobs"], "text_offset"));
    assert_eq!((tokens.len(), offsets.len()), (60, 60));
    assert_eq!(offsets[0], 2);
    assert!(strings(&tokens).iter().any(|token| token.starts_with(r"bytes:\x")), "{tokens:?}");
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    for (token, offset) in strings(&tokens).into_iter().zip(&offsets) {
        let place = offset.as_u64().unwrap() as usize - 2;
        if token.chars().count() == 1 {
            assert_eq!(text[place], token.chars().next().unwrap());
        } else if token.starts_with("bytes:") {
            assert!(place < text.len() && !text[place].is_ascii());
        }
    }
    assert_same(&gather(&server.stream(body).parts())[0], &choice);
}
