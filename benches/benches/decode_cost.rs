//! What four tokens cost as the context grows, block against vanilla (at equal depth and width, by default); at the longest context also
//! with keys and values of fewer bits.

use std::hint::black_box;
use std::time::{Duration, Instant};

use blockformer::generate::{PagedModel, RequestId};
use blockformer::kv_cache::KvStorage;
use blockformer::prelude::*;
use blockformer_benches::{device, device_id, prompt, serving_model};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Small ones, whose prompts are soon taken in; `BLOCKFORMER_BENCH_MODELS` names others, separated by commas.
const MODELS: &str = "block_main_b4_5,vanilla_31";
const LONGEST: usize = 8192;
const CONTEXTS: [usize; 4] = [128, 512, 2048, LONGEST];
/// Tokens of a sample: a block of the Block Transformer.
const TOKENS: usize = 4;
/// Samples taken of one request; then it is begun again, so that the context is what the bench's name says, within these.
const SAMPLES: u64 = 8;

fn decode_cost(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode_cost/four_tokens");
    group.sample_size(20);
    group.throughput(Throughput::Elements(TOKENS as u64));
    let models = std::env::var("BLOCKFORMER_BENCH_MODELS").unwrap_or_else(|_| MODELS.into());
    for name in models.split(',') {
        let model = serving_model(name, 2 * LONGEST, &device());
        let smaller = [KvStorage::Float16, KvStorage::Int8].map(|storage| (LONGEST, storage));
        for (context, storage) in CONTEXTS.map(|context| (context, KvStorage::Float32)).into_iter().chain(smaller) {
            let mut engine = engine(&model, context, storage);
            let block_length = model.layout().block_length;
            assert!(
                TOKENS.is_multiple_of(block_length),
                "{name}: {TOKENS} tokens are no whole blocks of {block_length}"
            );
            let rounds = TOKENS / block_length;
            group.bench_function(BenchmarkId::new(device_id(), format!("{name}/{context}/{storage:?}")), |b| {
                b.iter_custom(|iterations| {
                    let (mut left, mut spent) = (iterations, Duration::ZERO);
                    while left > 0 {
                        let request = begin(&mut engine, context);
                        let samples = left.min(SAMPLES);
                        let started = Instant::now();
                        for _ in 0..samples as usize * rounds {
                            black_box(engine.step());
                        }
                        spent += started.elapsed();
                        left -= samples;
                        engine.cancel(request);
                        engine.step();
                        assert!(engine.is_idle());
                    }
                    spent
                });
            });
        }
    }
}

/// An engine with room for a prompt of `context` tokens and what is generated behind it.
fn engine(model: &ServingModel, context: usize, kv_storage: KvStorage) -> Engine<&ServingModel> {
    let page_blocks = 16;
    let positions = (context + 2 * TOKENS * SAMPLES as usize) / model.layout().block_length;
    let kv_budget = model.pool_config(1, 0, kv_storage).page_bytes() * (positions + 2 * page_blocks);
    let config = EngineConfig { kv_budget, kv_storage, page_blocks, ..EngineConfig::default() };
    match Engine::new(model, config, &device()) {
        Ok(engine) => engine,
        Err(error) => panic!("{error}"),
    }
}

/// A request that has taken in its prompt; most of it from the cache, but for the first.
fn begin(engine: &mut Engine<&ServingModel>, context: usize) -> RequestId {
    let request = Request::new(prompt(context)).with_max_new_tokens(2 * TOKENS * SAMPLES as usize);
    let request = match engine.submit(request) {
        Ok(request) => request,
        Err(error) => panic!("{error}"),
    };
    let before = engine.stats().generated_tokens;
    while engine.stats().generated_tokens == before {
        engine.step();
    }
    request
}

criterion_group!(benches, decode_cost);
criterion_main!(benches);
