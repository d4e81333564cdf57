//! Thousands of requests through an engine with too little memory for them: each must end, every page must be free at
//! the end, and the process must not grow.
//!
//! ```text
//! cargo run --release -p blockformer-examples --example soak -- 2000
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use blockformer::generate::{GenerateError, PagedModel};
use blockformer::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How requests ended.
#[derive(Debug, Default)]
struct Outcomes {
    finished: usize,
    cancelled: usize,
    refused: HashMap<&'static str, usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let requests: usize = std::env::args().nth(1).map_or(Ok(2000), |n| n.parse())?;
    let device = blockformer::device("cpu")?;
    let (config, model, _) = blockformer::bundled::load(&device)?;
    let model = ServingModel::new(&config, model, &device)?;
    let (page_blocks, max_batch) = (8, 12);
    let page = model.pool_config(page_blocks, 0, Default::default()).page_bytes();
    let kv_budget = 40 * page; // five full contexts would need more
    let engine_config = EngineConfig {
        kv_budget,
        page_blocks,
        max_batch,
        max_waiting: 40,
        prefill_blocks: 32,
        alignment: Alignment::of(&config),
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(model, engine_config, &device)?;
    let (mut random, mut outcomes, mut open) = (Random(42), Outcomes::default(), Vec::new());
    let (mut submitted, mut memory) = (0, Vec::new());
    let started = Instant::now();
    while submitted < requests || !engine.is_idle() {
        for _ in 0..random.below(4).min(requests - submitted) {
            submitted += 1;
            match engine.submit(request(&mut random, config.max_length())) {
                Ok(id) => open.push(id),
                Err(error) => *outcomes.refused.entry(kind(&error)).or_default() += 1,
            }
        }
        if !open.is_empty() && random.below(12) == 0 {
            let id = open.swap_remove(random.below(open.len()));
            outcomes.cancelled += usize::from(engine.cancel(id));
        }
        for (id, event) in engine.step() {
            if matches!(event, Event::Done(_) | Event::Failed(_)) {
                let before = open.len();
                open.retain(|known| *known != id);
                outcomes.finished += before - open.len();
            }
        }
        if submitted * 20 / requests > memory.len() {
            memory.push(resident_mib());
        }
    }
    let refused: usize = outcomes.refused.values().sum();
    let pool = engine.stats().pool;
    println!("{requests} requests in {:.0} s: {outcomes:?}", started.elapsed().as_secs_f64());
    println!("{} tokens, pool {pool:?}", engine.stats().generated_tokens);
    println!("resident MiB at every twentieth: {memory:.0?}");
    if outcomes.finished + outcomes.cancelled + refused != requests || !open.is_empty() {
        return Err("a request was lost".into());
    }
    engine.clear_prefixes();
    let pool = engine.stats().pool;
    if pool.free != pool.total || pool.sequences != 0 {
        return Err("pages are still held".into());
    }
    Ok(())
}

/// Any kind of request, some of them senseless.
fn request(random: &mut Random, max_length: usize) -> Request {
    let len = 1 + random.below(max_length / 2) * usize::from(random.below(4) == 0) + random.below(60);
    let text = random.below(5); // beginnings meet
    let prompt: Vec<u32> = (0..len).map(|i| (text * 97 + i * 31 % 509) as u32 % 1000).collect();
    let prompt = if random.below(40) == 0 { Vec::new() } else { prompt };
    let sampling = Sampling {
        temperature: 0.9,
        top_p: Some(0.95),
        repetition_penalty: 1.1,
        seed: random.below(1000) as u64,
        ..Sampling::default()
    };
    let sampling = if random.below(3) == 0 { Sampling::greedy() } else { sampling };
    let request = Request::new(prompt).with_max_new_tokens(random.below(40)).with_sampling(sampling);
    match random.below(10) {
        0 => Request { n: 2, ..request },
        1 => Request { beams: Some(3), ..request },
        2 => Request { best_of: Some(3), ..request },
        _ => request,
    }
}

fn kind(error: &GenerateError) -> &'static str {
    match error {
        GenerateError::Busy { .. } => "too many waiting",
        GenerateError::Prompt(_) => "prompt",
        GenerateError::NothingToGenerate => "no tokens asked for",
        GenerateError::Contradiction { .. } => "contradictory options",
        GenerateError::Budget { .. } => "budget",
        _ => "other",
    }
}

/// Resident memory; zero where there is no /proc.
fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
    pages * 4096.0 / f64::from(1 << 20)
}

/// A small generator (splitmix64), so that every run is the same.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}
