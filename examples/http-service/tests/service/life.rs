//! Clients that go away, and services that stop.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockformer::generate::EngineConfig;
use blockformer_http_service::{ServeError, ServiceConfig};
use serde_json::{Value, json};

use crate::client::Server;
use crate::engines::hooked;

const TOKENS: u64 = 1600;

/// A service whose engine takes its time: its longest answer takes at least 8 seconds.
fn slow(config: ServiceConfig) -> Server {
    let (engine, tokenizer) = hooked(EngineConfig::default(), || std::thread::sleep(Duration::from_millis(20)));
    Server::start(engine, tokenizer, config)
}

/// A service whose engine decodes a block for each message, and as many as it likes when the sender is gone.
fn stepped(config: ServiceConfig) -> (Server, Sender<()>) {
    let (step, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let (engine, tokenizer) = hooked(EngineConfig::default(), move || {
        let _closed = wait.lock().unwrap().recv();
    });
    (Server::start(engine, tokenizer, config), step)
}

fn long() -> Value {
    json!({"prompt": ["x", "yz"], "max_tokens": TOKENS, "seed": 1})
}

/// Asserts that the engine ends what it does long before it would be done.
fn assert_cancelled(server: &Server) {
    server.wait_for("sequences_running", 0);
    server.wait_for("kv_used_bytes", 0);
    let generated = server.metric("generated_tokens_total");
    assert!(generated < TOKENS / 2, "{generated} tokens were generated for nobody");
    assert_eq!(server.metric("generated_tokens_total"), generated);
    // It goes on to serve others.
    assert_eq!(server.complete(&json!({"prompt": "x", "max_tokens": 3}))["usage"]["completion_tokens"], 3);
}

#[test]
fn a_client_that_leaves_a_stream_ends_its_request() {
    let server = slow(ServiceConfig::new("toy"));
    let mut stream = server.stream(long());
    let first: Value = serde_json::from_str(&stream.next().unwrap()).unwrap();
    assert_eq!(first["object"], "text_completion");
    server.wait_for("sequences_running", 2);
    drop(stream);
    assert_cancelled(&server);
}

#[test]
fn a_client_that_does_not_wait_for_its_answer_ends_its_request() {
    let server = slow(ServiceConfig::new("toy"));
    let mut client = TcpStream::connect(server.address).unwrap();
    let body = long().to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes()).unwrap();
    server.wait_for("sequences_running", 2);
    drop(client);
    assert_cancelled(&server);
}

#[test]
fn requests_that_run_end_before_a_service_does() {
    let (mut server, step) = stepped(ServiceConfig::new("toy"));
    let body = json!({"prompt": "x", "max_tokens": 12, "seed": 1});
    let mut idle = TcpStream::connect(server.address).unwrap();
    let stream = server.stream(body);
    server.stop();
    // Nobody is let in any more, and a connection without a request is closed.
    let mut rest = Vec::new();
    idle.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(idle.read_to_end(&mut rest).unwrap(), 0);
    while TcpStream::connect(server.address).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(step);
    assert_eq!(stream.parts().last().unwrap()["choices"][0]["finish_reason"], "length");
    server.ended().unwrap();
}

#[test]
fn requests_that_outlast_the_grace_are_told_that_it_is_over() {
    let config = ServiceConfig { grace: Duration::from_millis(50), ..ServiceConfig::new("toy") };
    let (mut server, step) = stepped(config);
    let stream = server.stream(json!({"prompt": "x", "max_tokens": TOKENS}));
    server.stop();
    let messages: Vec<String> = stream.collect();
    let last: Value = serde_json::from_str(messages.last().unwrap()).unwrap();
    assert_eq!(last["error"]["message"], "the service is stopping");
    assert_eq!(last["error"]["type"], "server_error");
    drop(step);
    server.ended().unwrap();
}

#[test]
fn a_panic_in_the_engine_ends_all_answers_and_the_service() {
    let damaged = Arc::new(AtomicBool::new(false));
    let damage = Arc::clone(&damaged);
    let (engine, tokenizer) = hooked(EngineConfig::default(), move || {
        assert!(!damaged.load(Ordering::SeqCst), "this model cannot go on");
        std::thread::sleep(Duration::from_millis(20));
    });
    let server = Server::start(engine, tokenizer, ServiceConfig::new("toy"));
    let stream = server.stream(json!({"prompt": "x", "max_tokens": TOKENS}));
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| server.ask(&json!({"prompt": "x", "max_tokens": TOKENS}).to_string()));
        server.wait_for("sequences_running", 2);
        damage.store(true, Ordering::SeqCst);
        let (status, body) = answer.join().unwrap();
        assert_eq!((status, &body["error"]["type"]), (500, &json!("server_error")), "{body}");
    });
    let messages: Vec<String> = stream.collect();
    let last: Value = serde_json::from_str(messages.last().unwrap()).unwrap();
    assert_eq!(last["error"]["message"], "the engine has stopped");
    assert!(matches!(server.ended(), Err(ServeError::Engine)));
}
