//! What is wrong is said in the shape of the API, and touches nobody else.

use std::time::Duration;

use blockformer::generate::EngineConfig;
use blockformer_http_service::ServiceConfig;
use serde_json::{Value, json};

use crate::client::{Server, read};
use crate::engines::hooked;

/// Asserts an error's status, type, field, code, and a part of its message.
fn assert_error((status, body): &(u16, Value), expected: u16, param: Value, code: Value, message: &str) {
    let error = &body["error"];
    assert_eq!(*status, expected, "{body}");
    let kind = match expected {
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    assert_eq!((&error["type"], &error["param"], &error["code"]), (&json!(kind), &param, &code), "{body}");
    assert!(error["message"].as_str().unwrap().contains(message), "{body} instead of {message:?}");
}

#[test]
fn wrong_requests_are_refused_and_name_the_field() {
    let prompt = json!("Call me");
    for (body, param, message) in [
        (json!({"prompt": 5}), "prompt", "a string, an array of strings, an array of token ids"),
        (json!({"prompt": [[1], "x"]}), "prompt", "a string, an array of strings, an array of token ids"),
        (json!({"prompt": [-1]}), "prompt", "a string, an array of strings, an array of token ids"),
        (json!({"prompt": []}), "prompt", "an empty array"),
        (json!({"prompt": ""}), "prompt", "prompt 0 is empty"),
        (json!({"prompt": ["x", ""]}), "prompt", "prompt 1 is empty"),
        (json!({"prompt": [[1], [2], [4096]]}), "prompt", "prompt 2 holds token id 4096"),
        (json!({"prompt": ["a", "b", "c", "d", "e", "f"]}), "prompt", "6 prompts in one request, this service takes 5"),
        (json!({"prompt": prompt, "max_tokens": 0}), "max_tokens", "max_tokens is 0"),
        (json!({"prompt": prompt, "max_tokens": -5}), "max_tokens", "invalid value"),
        (json!({"prompt": prompt, "max_tokens": "many"}), "max_tokens", "invalid type: string"),
        (json!({"prompt": prompt, "temperature": "hot"}), "temperature", "invalid type: string"),
        (json!({"prompt": prompt, "temperature": -1}), "temperature", "temperature is -1"),
        (json!({"prompt": prompt, "top_p": 0}), "top_p", "top_p is 0"),
        (json!({"prompt": prompt, "top_k": 0}), "top_k", "top_k is 0"),
        (json!({"prompt": prompt, "n": 0}), "n", "n is 0"),
        (json!({"prompt": prompt, "logprobs": 21}), "logprobs", "more than 20"),
        (json!({"prompt": prompt, "logprobs": 1, "echo": true}), "logprobs", "are not computed here"),
        (json!({"prompt": prompt, "logit_bias": {"the": 1}}), "logit_bias", "\"the\" is not a token id"),
        (json!({"prompt": prompt, "logit_bias": {"4096": 1}}), "logit_bias", "names token 4096"),
        (json!({"prompt": prompt, "stop_token_ids": [4096]}), "stop_token_ids", "names token 4096"),
        (json!({"prompt": prompt, "stop_token_ids": vec![1; 1025]}), "stop_token_ids", "1025 tokens, more than 1024"),
        (json!({"prompt": prompt, "stop": 5}), "stop", "a string or an array of strings"),
        (json!({"prompt": prompt, "stop": ""}), "stop", "not empty"),
        (json!({"prompt": prompt, "stop": ["a", "b", "c", "d", "e"]}), "stop", "up to 4"),
        (json!({"prompt": prompt, "suffix": " end"}), "suffix", "suffix is not supported"),
        (json!({"prompt": prompt, "stream": true, "best_of": 2}), "best_of", "cannot be streamed"),
        (json!({"prompt": prompt, "stream": true, "beams": 2}), "beams", "cannot be streamed"),
        (json!({"prompt": prompt, "stream_options": {}}), "stream_options", "set stream to true"),
        (json!({"prompt": prompt, "tempreature": 1}), "tempreature", "unknown field"),
    ] {
        assert_error(&Server::bundled().ask(&body.to_string()), 400, json!(param), Value::Null, message);
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for (body, message) in [
        (json!({"prompt": "x", "temperature": 0, "n": 2}), "they would all be the same"),
        (json!({"prompt": "x", "n": 3, "best_of": 2}), "best_of and n"),
        (json!({"prompt": "x", "beams": 2}), "a beam search does not sample"),
        (json!({"prompt": "x", "n": 1000}), "1000 sequences at a time"),
        (json!({"prompt": "x", "n": 1_000_000_000, "echo": true}), "1000000000 sequences at a time"),
    ] {
        assert_error(&Server::bundled().ask(&body.to_string()), 400, Value::Null, Value::Null, message);
    }
}

#[test]
fn prompts_that_do_not_fit_the_context_have_a_code() {
    for body in [json!({"prompt": vec![5; 600]}), json!({"prompt": "Call me", "max_tokens": 600})] {
        let answer = Server::bundled().ask(&body.to_string());
        assert_error(
            &answer,
            400,
            json!("prompt"),
            json!("context_length_exceeded"),
            "does not fit the context of 512",
        );
    }
}

#[test]
fn what_is_not_json_is_refused() {
    let server = Server::bundled();
    for body in ["", "{", "{\"prompt\": \"x\"} more", "\u{1}", "{\"prompt\": \"x\", \"n\": 1e999}"] {
        assert_error(&server.ask(body), 400, Value::Null, Value::Null, "the body is not JSON");
    }
    assert_error(&server.ask("[]"), 400, Value::Null, Value::Null, "invalid");
    let deep = "[".repeat(60_000);
    assert_eq!(server.ask(&format!("{{\"prompt\": {deep}")).0, 400);
    let form = read(server.send("/v1/completions", "application/x-www-form-urlencoded", "{\"prompt\": \"x\"}"));
    assert_error(&form, 415, Value::Null, Value::Null, "application/json");
    let charset = server.send("/v1/completions", "application/json; charset=utf-8", "{\"prompt\": \"x\"}");
    assert_eq!(charset.status(), 200);
}

#[test]
fn too_large_a_body_is_refused() {
    let body = json!({"prompt": "x".repeat(65 << 10)}).to_string();
    assert_error(&Server::bundled().ask(&body), 413, Value::Null, Value::Null, "length limit exceeded");
}

#[test]
fn models_are_listed_and_others_are_not_found() {
    let server = Server::bundled();
    let (status, list) = server.get("/v1/models");
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((status, &list["object"]), (200, &json!("list")));
    assert_eq!((&list["data"][0]["id"], &list["data"][0]["object"]), (&json!("bundled"), &json!("model")));
    let (status, model) = server.get("/v1/models/bundled");
    assert_eq!((status, serde_json::from_str::<Value>(&model).unwrap()), (200, list["data"][0].clone()));
    let (status, other) = server.get("/v1/models/org/other");
    let answer = (status, serde_json::from_str(&other).unwrap());
    assert_error(&answer, 404, json!("model"), json!("model_not_found"), "\"org/other\"");
    let asked = server.ask(&json!({"prompt": "x", "model": "gpt-5"}).to_string());
    assert_error(&asked, 404, json!("model"), json!("model_not_found"), "\"gpt-5\"");
}

#[test]
fn other_paths_and_methods_are_refused_in_the_same_shape() {
    let server = Server::bundled();
    let (status, body) = server.get("/v1/chat/completions");
    let answer = (status, serde_json::from_str(&body).unwrap());
    assert_error(&answer, 404, Value::Null, json!("unknown_url"), "GET /v1/chat/completions");
    let (status, body) = server.get("/v1/completions");
    let answer = (status, serde_json::from_str(&body).unwrap());
    assert_error(&answer, 405, Value::Null, json!("method_not_allowed"), "does not answer to GET");
}

#[test]
fn a_full_queue_tells_clients_to_come_again() {
    let config = EngineConfig { max_batch: 1, max_waiting: 1, ..EngineConfig::default() };
    let (engine, tokenizer) = hooked(config, || std::thread::sleep(Duration::from_millis(20)));
    let server = Server::start(engine, tokenizer, ServiceConfig::new("toy"));
    let (long, short) = (json!({"prompt": "x", "max_tokens": 1600}), json!({"prompt": "x", "max_tokens": 2}));
    let running = server.stream(long.clone());
    server.wait_for("sequences_running", 1);
    // There is room for one of two prompts: neither is served, and neither is left behind.
    let several = json!({"prompt": ["x", "y"], "max_tokens": 1600}).to_string();
    let (none, busy) = (Value::Null, json!("rate_limit_exceeded"));
    let refused = server.send("/v1/completions", "application/json", &several);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_error(&read(refused), 429, none.clone(), busy.clone(), "1 requests are waiting already");
    server.wait_for("requests_waiting", 0);
    let waiting = server.stream(long);
    server.wait_for("requests_waiting", 1);
    let streamed = json!({"prompt": "x", "stream": true}).to_string();
    assert_error(&server.ask(&streamed), 429, none, busy, "1 requests are waiting already");
    drop((running, waiting));
    server.wait_for("requests_waiting", 0);
    server.wait_for("sequences_running", 0);
    assert!(server.metric("generated_tokens_total") < 800, "what was refused or left went on");
    server.complete(&short);
}
