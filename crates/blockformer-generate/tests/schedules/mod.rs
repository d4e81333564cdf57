//! Random schedules of requests, and what must hold of an engine under them, whatever its model. Used by the tests of
//! other crates too.
#![allow(dead_code)] // not every test needs all of it

use std::collections::HashMap;

use blockformer_generate::{
    Alignment, Completion, Engine, EngineConfig, Event, FinishReason, PagedModel, Request, RequestId, SampleOutput,
    Sampling,
};
use burn::tensor::Device;
use proptest::prelude::*;

use crate::models::VOCAB_SIZE;

/// A small pool, so that requests wait and prefixes are evicted.
pub(crate) fn tight(model: &impl PagedModel, alignment: Alignment) -> EngineConfig {
    let config = EngineConfig { page_blocks: 2, max_batch: 5, prefill_blocks: 3, alignment, ..EngineConfig::default() };
    // A vanilla transformer's blocks are single tokens: the same text takes more of them.
    let pages = 14 * 4 / model.layout().block_length;
    EngineConfig { kv_budget: pages * model.pool_config(2, 0, config.kv_storage).page_bytes(), ..config }
}

/// What a request gives in an engine of its own.
pub(crate) fn alone<M: PagedModel>(model: &M, config: &EngineConfig, request: &Request) -> Completion {
    let mut engine = Engine::new(model, config.clone(), &Device::flex()).unwrap();
    engine.submit(request.clone()).unwrap();
    let mut events = Vec::new();
    engine.run(|_, event| events.push(event));
    assert_eq!(engine.stats().pool.used, 0);
    Completion::from_events(events).unwrap()
}

#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// Rounds after the one before.
    after: usize,
    /// Prompts share texts, so that prefixes meet.
    text: u32,
    len: usize,
    max_new_tokens: usize,
    pub(crate) kind: u8,
    seed: u64,
    /// Rounds until it is cancelled, if it is.
    cancelled_after: Option<usize>,
    /// Whether its prompt begins with the prompt before it and what that gave, as the next turn of a conversation does.
    goes_on: bool,
}

/// So that all samples of a prompt that goes on fit into a [`tight`] pool.
const LONGEST_PROMPT: usize = 40;

impl Arrival {
    pub(crate) fn request(&self) -> Request {
        let id = |i: usize| (self.text as usize * 31 + i * 7 + i * i) as u32 % VOCAB_SIZE as u32;
        let prompt: Vec<u32> = (0..self.len).map(id).collect();
        let sampled = Sampling { temperature: 0.9, seed: self.seed, ..Sampling::default() };
        let request = Request::new(prompt).with_max_new_tokens(self.max_new_tokens);
        match self.kind {
            0 => request,
            1 => request.with_sampling(sampled),
            2 => request.with_sampling(Sampling { top_p: Some(0.8), repetition_penalty: 1.3, ..sampled }),
            3 => Request { n: 3, logprobs: Some(2), ..request.with_sampling(Sampling { top_k: Some(9), ..sampled }) },
            4 => Request { n: 1, best_of: Some(2), ..request.with_sampling(sampled) },
            5 => Request { n: 2, beams: Some(3), ..request },
            _ => request.with_sampling(sampled).with_stop_tokens((0..VOCAB_SIZE as u32).step_by(9).collect::<Vec<_>>()),
        }
    }
}

pub(crate) fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let numbers = (0..4usize, 0..3u32, 1..26usize, 1..14usize, 0..7u8, 0..5u64);
    let cancelled = prop_oneof![3 => Just(None), 1 => (0..6usize).prop_map(Some)];
    let arrival = (numbers, cancelled, any::<bool>()).prop_map(|(numbers, cancelled_after, goes_on)| {
        let (after, text, len, max_new_tokens, kind, seed) = numbers;
        Arrival { after, text, len, max_new_tokens, kind, seed, cancelled_after, goes_on }
    });
    proptest::collection::vec(arrival, 1..12)
}

/// Their requests, and what each of them gives alone.
fn requests<M: PagedModel>(model: &M, config: &EngineConfig, arrivals: &[Arrival]) -> Vec<(Request, Completion)> {
    let mut requests: Vec<(Request, Completion)> = Vec::new();
    for arrival in arrivals {
        let mut request = arrival.request();
        if let (true, Some((before, gave))) = (arrival.goes_on, requests.last()) {
            let said = before.prompt.iter().chain(&gave.samples[0].tokens).chain(&request.prompt);
            request.prompt = said.copied().take(LONGEST_PROMPT).collect();
        }
        let gives = alone(model, config, &request);
        requests.push((request, gives));
    }
    requests
}

/// Runs a schedule and gathers each request's events.
fn run_schedule<M: PagedModel>(
    engine: &mut Engine<M>,
    arrivals: &[Arrival],
    requests: &[(Request, Completion)],
) -> Vec<(RequestId, Vec<Event>, bool)> {
    let mut ids: Vec<(RequestId, Option<usize>)> = Vec::new();
    let mut events: HashMap<RequestId, Vec<Event>> = HashMap::new();
    let mut cancelled = Vec::new();
    let (mut round, mut next, mut due) = (0, 0, arrivals[0].after);
    while next < arrivals.len() || !engine.is_idle() {
        while next < arrivals.len() && round >= due {
            let id = engine.submit(requests[next].0.clone()).unwrap();
            ids.push((id, arrivals[next].cancelled_after.map(|after| round + after)));
            next += 1;
            due = round + arrivals.get(next).map_or(0, |arrival| arrival.after);
        }
        for (id, at) in &ids {
            if *at == Some(round) && engine.cancel(*id) {
                cancelled.push(*id);
            }
        }
        for (id, event) in engine.step() {
            events.entry(id).or_default().push(event);
        }
        round += 1;
    }
    let events = |id: RequestId| events.get(&id).cloned().unwrap_or_default();
    ids.into_iter().map(|(id, _)| (id, events(id), cancelled.contains(&id))).collect()
}

/// Log probabilities may differ by `rounding`; all else is the same.
fn same(got: &SampleOutput, expected: &SampleOutput, rounding: f32) -> bool {
    let close = |a: f32, b: f32| a == b || (a - b).abs() <= rounding;
    let top = |a: &[(u32, f32)], b: &[(u32, f32)]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && close(a.1, b.1))
    };
    let logprobs =
        got.logprobs.iter().zip(&expected.logprobs).all(|(a, b)| close(a.chosen, b.chosen) && top(&a.top, &b.top));
    let without = |sample: &SampleOutput| SampleOutput { logprobs: Vec::new(), ..sample.clone() };
    got.logprobs.len() == expected.logprobs.len() && logprobs && without(got) == without(expected)
}

/// Each request gives what it gives alone: log probabilities up to `rounding`, and to the last bit where that is zero.
pub(crate) fn check_schedule<M: PagedModel>(
    name: &str,
    model: &M,
    config: &EngineConfig,
    arrivals: &[Arrival],
    rounding: f32,
) {
    let mut engine = Engine::new(model, config.clone(), &Device::flex()).unwrap();
    let requests = requests(model, config, arrivals);
    let outcomes = run_schedule(&mut engine, arrivals, &requests);
    for ((arrival, (_, expected)), (_, events, cancelled)) in arrivals.iter().zip(&requests).zip(outcomes) {
        let ends = events.iter().filter(|event| matches!(event, Event::Done(_) | Event::Failed(_))).count();
        assert_eq!(ends, 1, "{name}: {arrival:?}: {events:?}");
        assert!(matches!(events.last(), Some(Event::Done(_))), "{name}: {arrival:?}");
        let got = Completion::from_events(events).unwrap();
        assert_eq!(got.samples.len(), expected.samples.len());
        for (got, expected) in got.samples.iter().zip(&expected.samples) {
            if !cancelled {
                assert!(same(got, expected, rounding), "{name}: {arrival:?}: {got:?}, expected {expected:?}");
                continue;
            }
            assert!(expected.tokens.starts_with(&got.tokens), "{name}: {arrival:?}");
            assert!(got.finish == FinishReason::Cancelled || same(got, expected, rounding));
        }
    }
    assert_eq!(engine.stats().pool.used, 0, "{name}");
    assert_eq!(engine.stats().pool.sequences, 0, "{name}");
}

/// Texts come and go in a pool that is too small for all of them.
pub(crate) fn check_reuse<M: PagedModel>(name: &str, model: &M) {
    let config = tight(model, Alignment::PadFirstBlock);
    let mut engine = Engine::new(model, config.clone(), &Device::flex()).unwrap();
    let request = |text: u32| {
        let prompt: Vec<u32> = (0..24).map(|i| (text * 13 + i * 5) % VOCAB_SIZE as u32).collect();
        Request::new(prompt).with_max_new_tokens(6)
    };
    let mut reused = 0;
    for text in [0, 0, 1, 2, 3, 4, 5, 6, 0, 0] {
        engine.submit(request(text)).unwrap();
        let mut events = Vec::new();
        engine.run(|_, event| events.push(event));
        let got = Completion::from_events(events).unwrap();
        assert_eq!(got.samples, alone(model, &config, &request(text)).samples, "{name}: text {text}");
        reused += got.usage.reused_tokens;
    }
    assert!(reused >= 24, "{name}: {reused} tokens were reused");
    assert!(engine.stats().pool.evicted_pages > 0, "{name}");
}

/// A conversation whose next prompt is all that was said before and some more, in two samples of which one goes on: how many tokens of it
/// were reused. Each turn gives what it gives alone, log probabilities up to `rounding`; one that is cancelled on the way changes
/// nothing.
pub(crate) fn check_conversation<M: PagedModel>(name: &str, model: &M, settings: EngineConfig, rounding: f32) -> usize {
    let config = EngineConfig { page_blocks: 2, ..settings };
    let mut engine = Engine::new(model, config.clone(), &Device::flex()).unwrap();
    let (mut said, mut reused): (Vec<u32>, usize) = (Vec::new(), 0);
    for turn in 0..3 {
        // Texts stay as long as whole blocks where padding stands before them.
        let new = if config.alignment == Alignment::ForceRest { 9 } else { 8 };
        said.extend((0..new).map(|i| (turn * 17 + i * 5) % VOCAB_SIZE as u32));
        let sampling = Sampling { temperature: 0.9, seed: u64::from(turn), ..Sampling::default() };
        let request = Request::new(said.clone()).with_max_new_tokens(24).with_sampling(sampling);
        let request = Request { n: 2, logprobs: Some(2), ..request };
        let kept = engine.submit(request.clone()).unwrap();
        let other = Sampling { seed: 99, ..request.sampling.clone() };
        let dropped = engine.submit(request.clone().with_sampling(other)).unwrap();
        let mut events = Vec::new();
        for _ in 0..4 {
            events.extend(engine.step());
        }
        engine.cancel(dropped);
        engine.run(|id, event| events.push((id, event)));
        let events: Vec<Event> = events.into_iter().filter(|(id, _)| *id == kept).map(|(_, event)| event).collect();
        let got = Completion::from_events(events).unwrap();
        for (got, expected) in got.samples.iter().zip(alone(model, &config, &request).samples) {
            assert!(same(got, &expected, rounding), "{name}, turn {turn}: {got:?}, alone {expected:?}");
        }
        said.extend(&got.samples[turn as usize % 2].tokens);
        reused += got.usage.reused_tokens;
    }
    reused
}

/// The bytes that an engine says it uses, against the formula.
pub(crate) fn check_accounts<M: PagedModel>(name: &str, model: &M) {
    let config = EngineConfig { page_blocks: 1, ..EngineConfig::default() };
    let pool = model.pool_config(1, 0, config.kv_storage);
    let mut engine = Engine::new(model, config, &Device::flex()).unwrap();
    engine.submit(Request::new([1; 12]).with_max_new_tokens(8)).unwrap();
    engine.step();
    let length = model.layout().block_length;
    // The last block (for a vanilla transformer, the last token) is never taken in.
    let start = usize::from(model.layout().predict_first_block);
    let blocks = start + 12 / length + 8 / length - 1;
    let positions = blocks * model.positions_per_block();
    let per_position = 2 * pool.n_layers * pool.n_kv_heads * pool.head_dim * 4;
    assert_eq!(engine.stats().pool.used, positions * per_position, "{name}");
    assert_eq!(engine.stats().block_cache, model.block_bytes(&Device::flex()), "{name}");
}
