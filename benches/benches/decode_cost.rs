//! What four tokens of one sequence cost as the context grows, block against vanilla; at the longest context also with keys and
//! values of fewer bits.
//!
//! All models and contexts are ready at once and take turns, so that what else a machine does falls on all of them alike; what is
//! printed are medians of times, and of ratios within each turn, with quartiles. (Criterion takes one after the other,
//! and cannot tell the growth from the machine's moods.)
//!
//! `BLOCKFORMER_BENCH_MODELS` names other models than these, separated by commas, `BLOCKFORMER_BENCH_ROUNDS` another number
//! of turns.

use std::env::VarError;
use std::hint::black_box;
use std::time::Instant;

use blockformer::generate::{PagedModel, RequestId};
use blockformer::kv_cache::KvStorage;
use blockformer::prelude::*;
use blockformer_benches::{device, device_id, prompt, serving_model};

/// Models of twelve layers of 768, with their vocabulary.
const MODELS: &str = "block_main_b4_85,vanilla_160";
/// What is run once through in tests.
const SMALL: &str = "block_main_b4_5,vanilla_31";
const LONGEST: usize = 8192;
const CONTEXTS: [usize; 4] = [128, 512, 2048, LONGEST];
/// Tokens whose cost is told: a block of the Block Transformer.
const TOKENS: usize = 4;
/// Such groups of tokens that are timed in a turn, behind one that is not.
const GROUPS: usize = 4;
const PAGE_BLOCKS: usize = 16;

fn main() {
    let (flags, filters): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    if !filters.is_empty() && !filters.iter().any(|filter| "decode_cost".contains(filter)) {
        return; // other benches are asked for
    }
    if flags.iter().any(|flag| flag == "--list") {
        println!("decode_cost: benchmark");
        return;
    }
    let full = flags.iter().any(|flag| flag == "--bench");
    let names = std::env::var("BLOCKFORMER_BENCH_MODELS").unwrap_or_else(|_| if full { MODELS } else { SMALL }.into());
    let rounds = match std::env::var("BLOCKFORMER_BENCH_ROUNDS").map(|rounds| rounds.parse()) {
        Ok(Ok(rounds)) if rounds > 0 => rounds,
        Ok(_) => panic!("BLOCKFORMER_BENCH_ROUNDS must be a number above 0"),
        Err(VarError::NotUnicode(_)) => panic!("BLOCKFORMER_BENCH_ROUNDS is no text"),
        Err(VarError::NotPresent) if full => 25,
        Err(VarError::NotPresent) => 1,
    };
    let contexts = if full { &CONTEXTS[..] } else { &CONTEXTS[..2] };
    let longest = contexts[contexts.len() - 1];
    let smaller = [KvStorage::Float16, KvStorage::Int8].map(|storage| (longest, storage));
    let shapes = contexts.iter().map(|context| (*context, KvStorage::Float32)).chain(smaller);

    let device = device();
    let models: Vec<_> = names.split(',').map(|name| (name, serving_model(name, 2 * LONGEST, &device))).collect();
    let mut cells: Vec<_> = models
        .iter()
        .flat_map(|(name, model)| shapes.clone().map(|(context, storage)| Cell::new(name, model, context, storage)))
        .collect();
    eprintln!("{} prompts are taken in", cells.len());
    for cell in &mut cells {
        cell.turn();
    }
    for round in 0..rounds {
        // Each begins with another cell, so that none is always the first behind a busy or an idle one.
        let n = cells.len();
        let mut order: Vec<_> = (0..n).map(|cell| (cell + round) % n).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for cell in order {
            let milliseconds = cells[cell].turn();
            cells[cell].times.push(milliseconds);
        }
    }
    println!(
        "{}, {rounds} turns: milliseconds for {TOKENS} tokens; their ratio to the same model's at the shortest context,",
        device_id()
    );
    println!("and to the first model's at the same context");
    println!("model,context,kv_storage,ms,ms_q1,ms_q3,growth,growth_q1,growth_q3,to_first,to_first_q1,to_first_q3");
    let shapes = shapes.count();
    for (index, Cell { name, context, storage, times, .. }) in cells.iter().enumerate() {
        let [ms_q1, ms, ms_q3] = quartiles(times.clone());
        let over = |other: usize| quartiles(times.iter().zip(&cells[other].times).map(|(a, b)| a / b).collect());
        let ([g1, growth, g3], [f1, first, f3]) = (over(index - index % shapes), over(index % shapes));
        println!(
            "{name},{context},{storage:?},{ms:.2},{ms_q1:.2},{ms_q3:.2},{growth:.3},{g1:.3},{g3:.3},{first:.3},{f1:.3},{f3:.3}"
        );
    }
}

fn quartiles(mut numbers: Vec<f64>) -> [f64; 3] {
    numbers.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| numbers[(numbers.len() - 1) * quarter / 4])
}

/// A model at a context.
struct Cell<'a> {
    name: &'a str,
    context: usize,
    storage: KvStorage,
    engine: Engine<&'a ServingModel>,
    /// Engine steps for [`TOKENS`].
    steps: usize,
    /// Milliseconds of each turn.
    times: Vec<f64>,
}

impl<'a> Cell<'a> {
    /// Has room for a prompt of `context` tokens and what is generated behind it.
    fn new(name: &'a str, model: &'a ServingModel, context: usize, storage: KvStorage) -> Self {
        let block_length = model.layout().block_length;
        assert!(TOKENS.is_multiple_of(block_length), "{name}: {TOKENS} tokens are no whole blocks of {block_length}");
        let positions = (context + 2 * TOKENS * (GROUPS + 1)) / block_length;
        let kv_budget = model.pool_config(1, 0, storage).page_bytes() * (positions + 2 * PAGE_BLOCKS);
        let config =
            EngineConfig { kv_budget, kv_storage: storage, page_blocks: PAGE_BLOCKS, ..EngineConfig::default() };
        let engine = match Engine::new(model, config, &device()) {
            Ok(engine) => engine,
            Err(error) => panic!("{name}: {error}"),
        };
        Self { name, context, storage, engine, steps: TOKENS / block_length, times: Vec::new() }
    }

    /// Milliseconds for [`TOKENS`] behind a prompt, whose keys and values are there but for the last page's.
    fn turn(&mut self) -> f64 {
        let request = self.begin();
        self.step(1);
        let before = self.engine.stats().generated_tokens;
        let started = Instant::now();
        self.step(GROUPS);
        let spent = started.elapsed().as_secs_f64();
        let tokens = self.engine.stats().generated_tokens - before;
        assert_eq!(tokens, (GROUPS * TOKENS) as u64, "{} at {}: tokens in a turn", self.name, self.context);
        self.engine.cancel(request);
        self.engine.step();
        assert!(self.engine.is_idle());
        1e3 * spent / GROUPS as f64
    }

    fn step(&mut self, groups: usize) {
        for _ in 0..groups * self.steps {
            black_box(self.engine.step());
        }
    }

    /// A request that has taken in its prompt.
    fn begin(&mut self) -> RequestId {
        let request = Request::new(prompt(self.context)).with_max_new_tokens(2 * TOKENS * (GROUPS + 1));
        let request = match self.engine.submit(request) {
            Ok(request) => request,
            Err(error) => panic!("{}: {error}", self.name),
        };
        let before = self.engine.stats().generated_tokens;
        while self.engine.stats().generated_tokens == before {
            assert!(!self.engine.is_idle(), "{} at {}: the prompt was refused", self.name, self.context);
            self.engine.step();
        }
        request
    }
}
