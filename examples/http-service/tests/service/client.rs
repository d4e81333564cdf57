//! A client and a server of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockformer::data::Tokenizer;
use blockformer::generate::{Engine, PagedModel};
use blockformer_http_service::{ServeError, Service, ServiceConfig, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::engines;

/// A service on a port of its own.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    agent: Agent,
}

impl Server {
    pub(crate) fn start<M: PagedModel + Send + 'static>(
        engine: Engine<M>,
        tokenizer: Tokenizer,
        config: ServiceConfig,
    ) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let service = Arc::new(Service::new(engine, tokenizer, config));
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let stop = async {
                    let _stopped = stopped.await;
                };
                serve(listener, service, stop).await
            })
        });
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .build()
            .into();
        Self { address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread), agent }
    }

    /// The bundled model, for all tests together.
    pub(crate) fn bundled() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| {
            let (config, engine, tokenizer) = engines::bundled();
            let settings = ServiceConfig {
                eos_token_id: config.eos_token_id(),
                max_body: 64 << 10,
                max_prompts: 5,
                ..ServiceConfig::new("bundled")
            };
            Self::start(engine, tokenizer, settings)
        })
    }

    pub(crate) fn send(&self, path: &str, content_type: &str, body: &str) -> Response<Body> {
        let url = format!("http://{}{path}", self.address);
        self.agent.post(url).header("content-type", content_type).send(body).unwrap()
    }

    /// Asks for completions; the status and the body.
    pub(crate) fn ask(&self, body: &str) -> (u16, Value) {
        read(self.send("/v1/completions", "application/json", body))
    }

    /// Asks for completions that must come.
    pub(crate) fn complete(&self, body: &Value) -> Value {
        let (status, answer) = self.ask(&body.to_string());
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Asks for a stream.
    pub(crate) fn stream(&self, mut body: Value) -> Messages {
        body["stream"] = json!(true);
        let response = self.send("/v1/completions", "application/json", &body.to_string());
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Messages(Box::new(BufReader::new(response.into_body().into_reader())))
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let response = self.agent.get(format!("http://{}{path}", self.address)).call().unwrap();
        (response.status().as_u16(), response.into_body().read_to_string().unwrap())
    }

    /// A number of `/metrics`.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        let prefix = format!("blockformer_{name} ");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().parse().unwrap()
    }

    /// Waits until a number of `/metrics` is as expected.
    pub(crate) fn wait_for(&self, name: &str, expected: u64) {
        let begin = Instant::now();
        while self.metric(name) != expected {
            assert!(begin.elapsed() < Duration::from_secs(60), "{name} is {}, not {expected}", self.metric(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Tells the service to stop.
    pub(crate) fn stop(&mut self) {
        let _ended = self.stop.take().map(|stop| stop.send(()));
    }

    /// Waits until it has ended.
    pub(crate) fn ended(mut self) -> Result<(), ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

/// The status and the JSON of a response.
pub(crate) fn read(response: Response<Body>) -> (u16, Value) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    (status, serde_json::from_str(&response.into_body().read_to_string().unwrap()).unwrap())
}

/// The messages of a stream, without `data: `.
pub(crate) struct Messages(Box<dyn BufRead + Send>);

impl Iterator for Messages {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut message = String::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                assert_eq!(message, "", "a message without its end");
                return None;
            }
            match line.trim_end_matches('\n') {
                "" if message.is_empty() => {}
                "" => return Some(message),
                line if line.starts_with(':') => {}
                line => message.push_str(line.strip_prefix("data: ").unwrap()),
            }
        }
    }
}

impl Messages {
    /// All parts of a stream that ends as it should.
    pub(crate) fn parts(self) -> Vec<Value> {
        let mut messages: Vec<String> = self.collect();
        assert_eq!(messages.pop().as_deref(), Some("[DONE]"));
        messages.iter().map(|message| serde_json::from_str(message).unwrap()).collect()
    }
}

/// The choices that the parts of a stream add up to, in the shape of an answer's.
pub(crate) fn gather(parts: &[Value]) -> Vec<Value> {
    let mut choices: Vec<Value> = Vec::new();
    for part in parts.iter().flat_map(|part| part["choices"].as_array().unwrap()) {
        let index = part["index"].as_u64().unwrap() as usize;
        while choices.len() <= index {
            choices.push(json!({"text": "", "index": choices.len(), "logprobs": null, "finish_reason": null}));
        }
        let choice = &mut choices[index];
        assert_eq!(choice["finish_reason"], Value::Null, "nothing comes behind the end of a choice");
        choice["text"] = format!("{}{}", choice["text"].as_str().unwrap(), part["text"].as_str().unwrap()).into();
        choice["finish_reason"] = part["finish_reason"].clone();
        let Some(logprobs) = part["logprobs"].as_object() else { continue };
        for (field, values) in logprobs {
            let all = &mut choice["logprobs"][field];
            let mut joined = all.as_array().cloned().unwrap_or_default();
            joined.extend(values.as_array().unwrap().clone());
            *all = joined.into();
        }
    }
    choices
}

/// Asserts that two values are the same, but for the rounding of log probabilities: which other requests run at the time
/// decides how many rows a matrix product has.
pub(crate) fn assert_same(left: &Value, right: &Value) {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            assert!(left.keys().eq(right.keys()), "{left:?} and {right:?}");
            left.iter().for_each(|(key, value)| assert_same(value, &right[key]));
        }
        (Value::Array(left), Value::Array(right)) => {
            assert_eq!(left.len(), right.len(), "{left:?} and {right:?}");
            left.iter().zip(right).for_each(|(left, right)| assert_same(left, right));
        }
        (Value::Number(left), Value::Number(right)) if left.is_f64() && right.is_f64() => {
            let (left, right) = (left.as_f64().unwrap(), right.as_f64().unwrap());
            assert!((left - right).abs() < 1e-4, "{left} and {right}");
        }
        (left, right) => assert_eq!(left, right),
    }
}
