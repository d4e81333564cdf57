//! Streams are the same answers in parts.

use serde_json::{Value, json};

use crate::client::{Server, assert_same, gather};

const PROMPT: &str = "The people of the United States";

#[test]
fn a_stream_adds_up_to_the_answer() {
    let server = Server::bundled();
    for body in [
        json!({"prompt": PROMPT, "max_tokens": 21, "temperature": 0}),
        json!({"prompt": PROMPT, "max_tokens": 21, "seed": 9, "logprobs": 2}),
        json!({"prompt": [PROMPT, "Call me"], "max_tokens": 11, "n": 3, "seed": 2, "logprobs": 0}),
        json!({"prompt": PROMPT, "max_tokens": 9, "temperature": 0, "echo": true}),
        json!({"prompt": PROMPT, "max_tokens": 30, "temperature": 0, "logprobs": 1, "stop": [" of", "e "]}),
    ] {
        let parts = server.stream(body.clone()).parts();
        let answer = server.complete(&body);
        assert_same(&gather(&parts).into(), &answer["choices"]);
        assert!(parts.iter().all(|part| part["id"] == parts[0]["id"] && part["object"] == "text_completion"));
        assert!(parts.iter().all(|part| part.get("usage").is_none()));
    }
}

#[test]
fn a_stream_comes_token_by_token() {
    let body = json!({"prompt": PROMPT, "max_tokens": 20, "temperature": 0, "logprobs": 0});
    let parts = Server::bundled().stream(body).parts();
    assert_eq!(parts.len(), 21, "twenty tokens of text, and the end");
    let tokens = |part: &Value| part["choices"][0]["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
    assert!(parts[..20].iter().all(|part| tokens(part) == 1));
    assert_eq!(parts[20]["choices"][0]["finish_reason"], "length");
}

#[test]
fn usage_is_the_last_part_if_it_is_asked_for() {
    let mut body = json!({"prompt": [PROMPT, "Call me"], "max_tokens": 8, "temperature": 0});
    let usage = Server::bundled().complete(&body)["usage"].clone();
    body["stream_options"] = json!({"include_usage": true});
    let mut parts = Server::bundled().stream(body).parts();
    let last = parts.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], usage["completion_tokens"]);
    assert_eq!(last["usage"]["prompt_tokens"], usage["prompt_tokens"]);
    assert!(parts.iter().all(|part| part["usage"] == Value::Null && part.get("usage").is_some()));
}
