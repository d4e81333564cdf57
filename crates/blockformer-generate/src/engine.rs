//! Many requests at a time.

mod beams;
mod config;
mod context;
mod decode;
mod drawing;
mod job;
mod prefill;
mod recorded;
mod shelf;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use blockformer_data::Tokenizer;
use blockformer_kv_cache::{KvPool, PoolUsage};
use burn::tensor::{Device, StreamId, read_sync};

use beams::BeamSearch;
pub(crate) use config::Limits;
pub use config::{EngineConfig, Speculation};
use job::{Job, Prefill, Row, Sample};
use recorded::Recorded;
pub use recorded::RecordingState;

use crate::{Event, FinishReason, GenerateError, PagedModel, Request};

/// Names a request of an [`Engine`]; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// What an engine is doing and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests that wait for room.
    pub waiting: usize,
    /// Requests whose prompts are being taken in.
    pub prefilling: usize,
    /// Sequences that are being decoded.
    pub running: usize,
    /// The pool of keys and values.
    pub pool: PoolUsage,
    /// Bytes that the token decoder's cache takes while blocks of all running sequences are decoded.
    pub block_cache: usize,
    /// Tokens drawn so far.
    pub generated_tokens: u64,
    /// Tokens that were drafted so far (see [`Speculation`]).
    pub drafted_tokens: u64,
    /// Of these, tokens that the model drew.
    pub accepted_tokens: u64,
    /// Token-decoder passes that verified drafts.
    pub verifications: u64,
    /// Passes that a device did by repeating what it had recorded ([`EngineConfig::recorded_after`]): one that decodes a block
    /// of all sequences, and one that takes it in.
    pub repeated_passes: u64,
    /// Whether it records.
    pub recording: RecordingState,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counters {
    generated: u64,
    drafted: u64,
    accepted: u64,
    verifications: u64,
    repeated: u64,
}

/// Runs requests through a model, many at a time, block by block.
///
/// Requests are [submitted](Self::submit) at any time. Every [`step`](Self::step) admits those for which there is room,
/// takes in a part of the prompts that have come, and decodes one block of every running sequence. A request that
/// was admitted has its pages of the cache, so that it always ends. What a request gives depends on nothing but itself:
/// neither on what runs beside it nor on what the cache still holds (but see [`EngineConfig::reuse_generated`]).
///
/// This type does the work where it is called; [`EngineThread`](crate::EngineThread) does it in a thread of its own,
/// behind streams.
///
/// ```
/// use blockformer_generate::{Completion, Engine, EngineConfig, Event, Request};
/// use blockformer_model::presets;
/// use burn::tensor::Device;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::flex();
/// let mut config = presets::block("block_main_b4_5").unwrap();
/// (config.vocab_size, config.block_decoder.n_layers) = (100, 1); // a toy, with random weights
/// let mut engine = Engine::new(config.init(&device)?, EngineConfig::default(), &device)?;
///
/// let id = engine.submit(Request::new([1, 2, 3, 4, 5]).with_max_new_tokens(6))?;
/// let mut events = Vec::new();
/// while !engine.is_idle() {
///     events.extend(engine.step().into_iter().filter(|(of, _)| *of == id).map(|(_, event)| event));
/// }
/// assert!(matches!(events.last(), Some(Event::Done(_))));
/// assert_eq!(Completion::from_events(events)?.samples[0].tokens.len(), 6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine<M: PagedModel> {
    model: M,
    config: EngineConfig,
    limits: Limits,
    device: Device,
    tokenizer: Option<Arc<Tokenizer>>,
    pool: KvPool,
    recorded: Option<Recorded>,
    recording: RecordingState,
    recording_failure: Option<String>,
    /// Where everything is launched, whatever the thread: kernels write the pool in place, and devices keep the order of what is launched
    /// within a stream alone. Recordings were made there.
    stream: StreamId,
    next_id: u64,
    jobs: HashMap<RequestId, Job>,
    waiting: VecDeque<RequestId>,
    prefilling: VecDeque<Prefill>,
    running: Vec<Row>,
    searches: Vec<BeamSearch>,
    events: Vec<(RequestId, Event)>,
    counters: Counters,
}

impl<M: PagedModel> Engine<M> {
    /// An engine with nothing to do; allocates the pool. Wherever it steps, it launches on the [stream](StreamId) of the thread that makes
    /// it: what else is launched there, by another engine of this thread for example, goes in turns with it.
    ///
    /// # Errors
    /// [`GenerateError::Cache`] if the budget is less than one page or the device cannot store keys and values as asked for, [`GenerateError::Sampling`] if a limit is zero.
    pub fn new(model: M, config: EngineConfig, device: &Device) -> Result<Self, GenerateError> {
        config.validate()?;
        let pool = KvPool::new(model.pool_config(config.page_blocks, config.kv_budget, config.kv_storage), device)?;
        let limits = Limits::new(&model, &config, &pool, device);
        let (recorded, recording) = Self::recordings(&model, &config, &pool);
        Ok(Self {
            model,
            config,
            limits,
            device: device.clone(),
            tokenizer: None,
            pool,
            stream: StreamId::current(),
            recorded,
            recording,
            recording_failure: None,
            next_id: 0,
            jobs: HashMap::new(),
            waiting: VecDeque::new(),
            prefilling: VecDeque::new(),
            running: Vec::new(),
            searches: Vec::new(),
            events: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// The same with a tokenizer, so that there is text beside the tokens.
    pub fn with_tokenizer(mut self, tokenizer: impl Into<Arc<Tokenizer>>) -> Self {
        self.tokenizer = Some(tokenizer.into());
        self.limits.has_tokenizer = true;
        self
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Takes a request. Its events come from [`step`](Self::step).
    ///
    /// # Errors
    /// A [`GenerateError`] if it can never be served or too many requests wait; no other request is touched.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, GenerateError> {
        let prompt = self.limits.check(&request)?;
        if self.waiting.len() >= self.config.max_waiting {
            return Err(GenerateError::Busy { waiting: self.waiting.len() });
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.jobs.insert(id, Job::new(request, prompt));
        self.waiting.push_back(id);
        Ok(id)
    }

    /// Ends a request: whatever it has still to do is left undone, and its room is free. False if it has ended before.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        if !self.jobs.contains_key(&id) {
            return false;
        }
        let open = self.remove_rows(id);
        let Some(job) = self.jobs.remove(&id) else { return false };
        if let Some(reserve) = job.reserve {
            self.close(reserve);
        }
        // Before its first token, or where samples are ranked, nothing of any sample was given out.
        let none_given = job.request.is_ranked() || (open.is_empty() && job.finished == 0);
        let left = if none_given { (0..job.request.n).map(|sample| (sample, String::new())).collect() } else { open };
        for (sample, text) in left {
            self.events.push((id, Event::Finished { sample, reason: FinishReason::Cancelled, text, logprob: None }));
        }
        self.events.push((id, Event::Done(job.usage)));
        true
    }

    /// Whether there is nothing to do and no event to fetch.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.events.is_empty()
    }

    /// One round: admits requests, takes in a part of the prompts, decodes a block of every running sequence. Returns
    /// what has happened.
    pub fn step(&mut self) -> Vec<(RequestId, Event)> {
        read_sync(self.step_async())
    }

    /// The same without blocking while a device computes. On WebGPU in a browser, where nothing may block, it is the
    /// only way; on CPUs it waits for nothing.
    ///
    /// The future must run to its end: if it is dropped before, requests that were running never end.
    pub async fn step_async(&mut self) -> Vec<(RequestId, Event)> {
        let stream = self.stream;
        let mut round = pin!(self.round());
        poll_fn(|context| stream.executes(|| round.as_mut().poll(context))).await
    }

    async fn round(&mut self) -> Vec<(RequestId, Event)> {
        self.try_to_record();
        self.admit();
        self.prefill();
        self.decode().await;
        self.search().await;
        std::mem::take(&mut self.events)
    }

    /// Runs until nothing is left to do.
    pub fn run(&mut self, mut on_event: impl FnMut(RequestId, Event)) {
        while !self.is_idle() {
            self.step().into_iter().for_each(|(id, event)| on_event(id, event));
        }
    }

    /// What the engine is doing and has done.
    pub fn stats(&self) -> EngineStats {
        let beams: usize = self.searches.iter().map(BeamSearch::width).sum();
        let running = self.running.len() + beams;
        EngineStats {
            waiting: self.waiting.len(),
            prefilling: self.prefilling.len(),
            running,
            pool: self.pool.usage(),
            block_cache: running * self.limits.block_bytes,
            generated_tokens: self.counters.generated,
            drafted_tokens: self.counters.drafted,
            accepted_tokens: self.counters.accepted,
            verifications: self.counters.verifications,
            recording: self.recording,
            repeated_passes: self.counters.repeated,
        }
    }

    /// Forgets every prefix that could be reused.
    pub fn clear_prefixes(&mut self) {
        self.pool.clear_reusable();
    }

    /// Takes the sequences of a request out of all lists and closes them: the samples that were open and their held
    /// text.
    fn remove_rows(&mut self, id: RequestId) -> Vec<(usize, String)> {
        self.waiting.retain(|waiting| *waiting != id);
        let mut open = Vec::new();
        if let Some(at) = self.prefilling.iter().position(|prefill| prefill.id == id)
            && let Some(prefill) = self.prefilling.remove(at)
        {
            self.close(prefill.kv);
        }
        if let Some(at) = self.searches.iter().position(|search| search.id == id) {
            let search = self.searches.remove(at);
            search.sequences().for_each(|kv| self.close(kv));
        }
        let (removed, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.running).into_iter().partition(|row| row.id == id);
        self.running = kept;
        for mut row in removed {
            self.close(row.kv);
            open.push((row.sample, row.rest_of_text()));
        }
        open
    }

    /// Ends all requests of which the pool holds anything, as it is lost, and records no more.
    fn lose_all(&mut self, reason: &str) {
        let prefilling = self.prefilling.iter().map(|prefill| prefill.id);
        let decoding = self.running.iter().map(|row| row.id).chain(self.searches.iter().map(|search| search.id));
        let ids: Vec<_> = prefilling.chain(decoding).collect();
        ids.into_iter().for_each(|id| self.fail(id, GenerateError::CacheLost { reason: reason.into() }));
        self.stop_recording(reason.into());
        self.renew_pool();
    }

    /// Allocates the pool anew, whose keys and values are lost; nothing is in it.
    fn renew_pool(&mut self) {
        if let Err(error) = self.pool.renew(&self.device) {
            unreachable!("all sequences were closed: {error}");
        }
    }

    /// Why the device did not record something, the last time that it failed to.
    pub fn recording_failure(&self) -> Option<&str> {
        let last = self.recorded.as_ref().and_then(Recorded::failure);
        last.or(self.recording_failure.as_deref())
    }

    /// Gives up what was recorded.
    fn stop_recording(&mut self, reason: String) {
        self.recording_failure = Some(reason);
        self.recorded = None;
        self.recording = RecordingState::Failed;
    }

    /// Ends a request with an error.
    fn fail(&mut self, id: RequestId, error: GenerateError) {
        self.remove_rows(id);
        if let Some(job) = self.jobs.remove(&id) {
            if let Some(reserve) = job.reserve {
                self.close(reserve);
            }
            self.events.push((id, Event::Failed(error)));
        }
    }

    /// Ends a sample; with the last one, the request.
    fn finish_sample(&mut self, id: RequestId, sample: Sample) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.finished += 1;
        if job.request.is_ranked() {
            job.ranked.push(sample);
        } else {
            let Sample { index, reason, text, .. } = sample;
            self.events.push((id, Event::Finished { sample: index, reason, text, logprob: None }));
        }
        if job.finished < job.request.width() {
            return;
        }
        if let Some(mut job) = self.jobs.remove(&id) {
            if let Some(reserve) = job.reserve {
                self.close(reserve);
            }
            let ranked = job.best();
            self.events.extend(ranked.into_iter().map(|event| (id, event)));
            self.events.push((id, Event::Done(job.usage)));
        }
    }

    fn close(&mut self, kv: blockformer_kv_cache::SequenceId) {
        // Only sequences that the engine opened are closed, each once.
        let closed = self.pool.close(kv);
        debug_assert!(closed.is_ok(), "{closed:?}");
    }
}
