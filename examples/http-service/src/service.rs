//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blockformer::data::Tokenizer;
use blockformer::generate::{Engine, EngineThread, PagedModel};
use tokio::sync::watch;

/// The settings of a [`Service`].
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceConfig {
    /// The name under which clients ask for the model.
    pub model_name: String,
    /// The token that ends a text: it ends an answer, and is the prompt of a request that has none.
    pub eos_token_id: Option<u32>,
    /// Bytes that the body of a request may have.
    pub max_body: usize,
    /// Prompts that a request may have.
    pub max_prompts: usize,
    /// How long requests that run when the service is stopped may go on.
    pub grace: Duration,
}

impl ServiceConfig {
    /// A model of this name without a token that ends texts; bodies of 1 MiB, 256 prompts, 30 seconds of grace.
    pub fn new(model_name: impl Into<String>) -> Self {
        Self {
            model_name: model_name.into(),
            eos_token_id: None,
            max_body: 1 << 20,
            max_prompts: 256,
            grace: Duration::from_secs(30),
        }
    }
}

/// Where a service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// New requests are refused, those that run go on.
    Stopping,
    /// Those that still run are told that it is over.
    Over,
}

/// A model behind an engine, with what is needed to answer requests.
#[derive(Debug)]
pub struct Service {
    pub(crate) engine: EngineThread,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) config: ServiceConfig,
    /// When the service began, in seconds since 1970.
    pub(crate) created: u64,
    phase: watch::Sender<Phase>,
    answers: AtomicU64,
}

impl Service {
    /// A service in front of an engine, which gets a thread of its own and the tokenizer.
    ///
    /// # Panics
    /// If the operating system gives no thread.
    pub fn new<M: PagedModel + Send + 'static>(engine: Engine<M>, tokenizer: Tokenizer, config: ServiceConfig) -> Self {
        let tokenizer = Arc::new(tokenizer);
        let engine = EngineThread::spawn(engine.with_tokenizer(Arc::clone(&tokenizer)));
        let phase = watch::Sender::new(Phase::Running);
        Self { engine, tokenizer, config, created: now(), phase, answers: AtomicU64::new(0) }
    }

    /// A name for an answer, different each time.
    pub(crate) fn answer_id(&self) -> String {
        let answer = self.answers.fetch_add(1, Ordering::Relaxed);
        format!("cmpl-{:08x}{answer:012x}", self.created)
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to a phase; there is no way back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_modify(|current| *current = phase.max(*current));
    }

    /// Waits for a phase.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        // It fails only if the sender is gone, which is part of this.
        let _reached = phases.wait_for(|current| *current >= phase).await;
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
