//! What four tokens cost as the context grows, block against vanilla at equal depth and width.

use std::hint::black_box;
use std::time::Instant;

use blockformer::generate::PagedModel;
use blockformer::prelude::*;
use blockformer_benches::{device, device_id, model_with_context, prompt};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const MODELS: [&str; 2] = ["block_main_b4_5", "vanilla_31"];
const CONTEXTS: [usize; 4] = [128, 512, 2048, 8192];
/// Tokens of a sample: a block of the Block Transformer.
const TOKENS: usize = 4;

fn decode_cost(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode_cost/four_tokens");
    group.sample_size(10);
    group.throughput(Throughput::Elements(TOKENS as u64));
    for name in MODELS {
        let model = model_with_context(name, 2 * CONTEXTS[CONTEXTS.len() - 1], &device());
        for context in CONTEXTS {
            let mut engine = running(&model, context);
            let rounds = TOKENS / model.layout().block_length;
            group.bench_function(BenchmarkId::new(device_id(), format!("{name}/{context}")), |b| {
                b.iter_custom(|iterations| {
                    let started = Instant::now();
                    for _ in 0..iterations {
                        if engine.is_idle() {
                            engine = running(&model, context); // the context is used up; happens in no sane setting
                        }
                        for _ in 0..rounds {
                            black_box(engine.step());
                        }
                    }
                    started.elapsed()
                });
            });
        }
    }
}

/// An engine whose only sequence has taken in a prompt of `context` tokens.
fn running(model: &AnyModel, context: usize) -> Engine<&AnyModel> {
    let page_blocks = 16;
    let positions = 2 * CONTEXTS[CONTEXTS.len() - 1] / model.layout().block_length;
    let kv_budget = model.pool_config(1, 0, Default::default()).page_bytes() * (positions + page_blocks);
    let config = EngineConfig { kv_budget, page_blocks, reuse_prefixes: false, ..EngineConfig::default() };
    let request = Request::new(prompt(context)).with_max_new_tokens(CONTEXTS[CONTEXTS.len() - 1] - 16);
    let submitted = Engine::new(model, config, &device()).and_then(|mut engine| {
        engine.submit(request)?;
        Ok(engine)
    });
    let mut engine = match submitted {
        Ok(engine) => engine,
        Err(error) => panic!("{error}"),
    };
    while engine.stats().generated_tokens == 0 {
        engine.step();
    }
    engine
}

criterion_group!(benches, decode_cost);
criterion_main!(benches);
