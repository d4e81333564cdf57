//! The program around the service.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use ureq::Agent;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_blockformer-http-service"))
}

#[cfg(unix)]
#[test]
fn the_program_says_where_it_listens_and_ends_what_it_does_before_it_stops() {
    let mut child = program()
        .args(["--port", "0", "--model-name", "org/mine"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = format!("{}/v1/completions", line.trim().strip_prefix("listening on ").unwrap());
    let body = json!({"model": "org/mine", "prompt": "Call me", "max_tokens": 200, "stream": true, "ignore_eos": true});
    let agent = Agent::new_with_defaults();
    let response = agent.post(url).header("content-type", "application/json").send(&body.to_string()).unwrap();
    let mut text = BufReader::new(response.into_body().into_reader());
    let mut first = String::new();
    text.read_line(&mut first).unwrap();
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let mut rest = String::new();
    text.read_to_string(&mut rest).unwrap();
    let messages: Vec<&str> = rest.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let [.., last, done] = messages[..] else { panic!("{rest}") };
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!((&last["choices"][0]["finish_reason"], done), (&json!("length"), "[DONE]"));
    drop(agent); // the connection that is kept open
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(said.contains("stopping"), "{said}");
}

#[test]
fn the_program_says_what_is_wrong_with_its_arguments() {
    for (arguments, message) in [
        (["--model", "no-such-directory"], "no-such-directory"),
        (["--device", "tpu"], "unknown device \"tpu\""),
        (["--kv-budget", "0"], "budget"),
        (["--host", "192.0.2.1"], "error: "),
    ] {
        let output = program().args(arguments).args(["--port", "0"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("error: ") && said.contains(message), "{said:?} instead of {message:?}");
    }
}
