//! Prefill and decoding, block against vanilla at equal depth and width.

use std::hint::black_box;

use blockformer::prelude::*;
use blockformer_benches::{device, device_id, model, prompt};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const MODELS: [&str; 2] = ["block_main_b4_5", "vanilla_31"];
const NEW_TOKENS: usize = 32;

fn prefill(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("generate/prefill");
    group.sample_size(10);
    for name in MODELS {
        let model = model(name, &device);
        let prompt = prompt(512);
        let blocked = match model.layout().block_prompts(&[&prompt], 1) {
            Ok(blocked) => blocked,
            Err(error) => panic!("{name}: {error}"),
        };
        group.throughput(Throughput::Elements(512));
        group.bench_function(BenchmarkId::new(device_id(), format!("{name}/b1/512")), |b| {
            b.iter(|| black_box(model.prefill(&blocked, 1, &device).1.into_data()));
        });
    }
}

fn decode(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("generate/decode");
    group.sample_size(10);
    for name in MODELS {
        let model = model(name, &device);
        for batch in [1, 8] {
            let prompt = prompt(128);
            let prompts = vec![prompt.as_slice(); batch];
            let blocked = match model.layout().block_prompts(&prompts, NEW_TOKENS) {
                Ok(blocked) => blocked,
                Err(error) => panic!("{name}: {error}"),
            };
            group.throughput(Throughput::Elements((batch * NEW_TOKENS) as u64));
            group.bench_function(BenchmarkId::new(device_id(), format!("{name}/b{batch}/128+{NEW_TOKENS}")), |b| {
                b.iter_batched(
                    || model.prefill(&blocked, NEW_TOKENS, &device).0,
                    |mut state| {
                        let tokens = vec![7; batch];
                        let last = (1..NEW_TOKENS).map(|_| model.step(&mut state, &tokens)).last();
                        black_box(last.map(|logits| logits.into_data()))
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
}

criterion_group!(benches, prefill, decode);
criterion_main!(benches);
