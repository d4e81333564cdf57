//! Answers are what the engine gives.

use blockformer::generate::{Completion, FinishReason, Request};
use serde_json::{Value, json};

use crate::client::Server;
use crate::engines::{alone, request};

const PROMPT: &str = "The people of the United States";

/// Texts and reasons of an answer's choices, which stand in order.
fn choices(answer: &Value) -> Vec<(String, String)> {
    let choices = answer["choices"].as_array().unwrap();
    assert!(choices.iter().enumerate().all(|(place, choice)| choice["index"] == place));
    let text = |choice: &Value, field: &str| choice[field].as_str().unwrap().to_string();
    choices.iter().map(|choice| (text(choice, "text"), text(choice, "finish_reason"))).collect()
}

/// The same of what the engine gave.
fn expected(completion: &Completion) -> Vec<(String, String)> {
    let reason = |finish| if finish == FinishReason::Length { "length" } else { "stop" };
    completion.samples.iter().map(|sample| (sample.text.clone(), reason(sample.finish).into())).collect()
}

#[test]
fn an_answer_is_what_the_engine_gives() {
    for (temperature, seed) in [(0.0, 0), (1.0, 7), (0.7, 8)] {
        let body = json!({
            "model": "bundled", "prompt": PROMPT, "max_tokens": 21, "temperature": temperature, "seed": seed,
        });
        let answer = Server::bundled().complete(&body);
        let own = alone(request(PROMPT, 21, temperature, seed));
        assert_eq!(choices(&answer), expected(&own));
        let usage = &answer["usage"];
        assert_eq!(usage["prompt_tokens"], own.usage.prompt_tokens);
        assert_eq!(usage["completion_tokens"], own.usage.generated_tokens);
        assert_eq!(usage["total_tokens"], own.usage.prompt_tokens + own.usage.generated_tokens);
        assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!("bundled")));
        assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    }
}

#[test]
fn seeds_decide_and_without_one_every_answer_is_another() {
    let text = |seed: Value| {
        let body = json!({"prompt": PROMPT, "max_tokens": 30, "seed": seed});
        choices(&Server::bundled().complete(&body))
    };
    assert_eq!(text(json!(1)), text(json!(1)));
    assert_ne!(text(json!(1)), text(json!(2)));
    assert_ne!(text(json!(-1)), text(json!(1)));
    assert_ne!(text(Value::Null), text(Value::Null));
}

#[test]
fn what_is_left_out_has_the_defaults_of_the_api() {
    let server = Server::bundled();
    let short = server.complete(&json!({"prompt": PROMPT, "seed": 3}));
    let long = json!({
        "model": "bundled", "prompt": [PROMPT], "max_tokens": 16, "temperature": 1.0, "top_p": 1.0, "n": 1,
        "best_of": 1, "stream": false, "logprobs": null, "echo": false, "stop": null, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "logit_bias": null, "seed": 3, "suffix": null, "user": "somebody",
    });
    assert_eq!(choices(&short), choices(&server.complete(&long)));
    assert_eq!(choices(&short), expected(&alone(request(PROMPT, 16, 1.0, 3))));
    // Without a prompt, as at the beginning of a document.
    let nothing = server.complete(&json!({"temperature": 0, "max_tokens": 5}));
    let eos = request("", 5, 0.0, 0);
    assert_eq!(choices(&nothing), expected(&alone(Request { prompt: vec![0], ..eos })));
}

#[test]
fn many_clients_at_once_get_what_they_get_alone() {
    std::thread::scope(|scope| {
        for client in 0..8u64 {
            scope.spawn(move || {
                let prompt = ["Call me", "The war", "I think that the whale", PROMPT][client as usize % 4];
                let tokens = 5 + client as usize * 3;
                let temperature = if client % 2 == 0 { 0.0 } else { 0.9 };
                let body = json!({
                    "prompt": prompt, "max_tokens": tokens, "temperature": temperature, "seed": client,
                });
                let own = alone(request(prompt, tokens, temperature, client));
                assert_eq!(choices(&Server::bundled().complete(&body)), expected(&own), "client {client}");
            });
        }
    });
}

#[test]
fn several_prompts_in_any_form_have_their_choices_in_order() {
    let prompts = ["Call me", "The war"];
    let own: Vec<_> =
        prompts.iter().flat_map(|prompt| expected(&alone(Request { n: 2, ..request(prompt, 9, 0.9, 5) }))).collect();
    let ids = prompts.map(|prompt| request(prompt, 9, 0.9, 5).prompt);
    let ask = |prompt: Value| {
        let body = json!({"prompt": prompt, "max_tokens": 9, "temperature": 0.9, "seed": 5, "n": 2});
        choices(&Server::bundled().complete(&body))
    };
    assert_eq!(own.len(), 4);
    assert_eq!(ask(json!(prompts)), own);
    assert_eq!(ask(json!(ids)), own);
    assert_eq!(ask(json!(ids[1])), own[2..]);
}

#[test]
fn the_best_samples_and_beams_are_those_of_the_engine() {
    let server = Server::bundled();
    let body = json!({"prompt": PROMPT, "max_tokens": 7, "seed": 4, "n": 2, "best_of": 4});
    let own = alone(Request { n: 2, best_of: Some(4), ..request(PROMPT, 7, 1.0, 4) });
    let answer = server.complete(&body);
    assert_eq!(choices(&answer), expected(&own));
    assert_eq!(answer["usage"]["completion_tokens"], own.usage.generated_tokens);
    let body = json!({"prompt": PROMPT, "max_tokens": 7, "temperature": 0, "n": 2, "beams": 3});
    let own = alone(Request { n: 2, beams: Some(3), ..request(PROMPT, 7, 0.0, 0) });
    assert_eq!(choices(&server.complete(&body)), expected(&own));
}

#[test]
fn options_of_sampling_reach_the_engine() {
    let body = json!({
        "prompt": PROMPT, "max_tokens": 24, "temperature": 1.3, "top_p": 0.9, "top_k": 50, "min_p": 0.01,
        "typical_p": 0.95, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2,
        "logit_bias": {"300": 2.5, "301": -100}, "seed": 6,
    });
    let mut own = request(PROMPT, 24, 1.3, 6);
    let sampling = &mut own.sampling;
    (sampling.top_p, sampling.top_k, sampling.min_p, sampling.typical_p) =
        (Some(0.9), Some(50), Some(0.01), Some(0.95));
    (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) = (1.2, 0.3, 0.2);
    sampling.logit_bias = vec![(300, 2.5), (301, -100.0)];
    assert_eq!(choices(&Server::bundled().complete(&body)), expected(&alone(own)));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let server = Server::bundled();
    let whole = alone(request(PROMPT, 24, 0.0, 0)).samples[0].text.clone();
    let stop: String = whole.chars().skip(20).take(6).collect();
    let end = whole.find(&stop).unwrap();
    for stop in [json!(stop), json!(["this never comes", stop])] {
        let body = json!({"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "stop": stop});
        assert_eq!(choices(&server.complete(&body)), [(whole[..end].to_string(), "stop".to_string())]);
    }
}

#[test]
fn the_end_of_a_document_ends_an_answer_unless_it_is_ignored() {
    let server = Server::bundled();
    let mut body = json!({"prompt": PROMPT, "max_tokens": 5, "logit_bias": {"0": 100}});
    let answer = server.complete(&body);
    assert_eq!(choices(&answer), [(String::new(), "stop".to_string())]);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    body["ignore_eos"] = json!(true);
    let answer = server.complete(&body);
    assert_eq!(choices(&answer), [(String::new(), "length".to_string())]);
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    body["stop_token_ids"] = json!([0]);
    assert_eq!(choices(&server.complete(&body)), [(String::new(), "stop".to_string())]);
}

#[test]
fn an_echo_is_the_prompt_before_the_text() {
    let server = Server::bundled();
    let mut body = json!({"prompt": [PROMPT, "Call me"], "max_tokens": 6, "temperature": 0});
    let plain = choices(&server.complete(&body));
    body["echo"] = json!(true);
    let echoed = choices(&server.complete(&body));
    assert_eq!(echoed[0].0, format!("{PROMPT}{}", plain[0].0));
    assert_eq!(echoed[1].0, format!("Call me{}", plain[1].0));
}

#[test]
fn a_prompt_that_came_before_is_found_in_the_cache() {
    let body = json!({"prompt": "It is the whale again. ".repeat(8), "max_tokens": 1, "temperature": 0});
    let cached = |answer: Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(Server::bundled().complete(&body)), 0);
    assert!(cached(Server::bundled().complete(&body)) >= 16);
}
