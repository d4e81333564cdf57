//! Prefill and decoding, block against vanilla at equal depth and width.

use std::hint::black_box;
use std::ops::ControlFlow;

use blockformer::prelude::*;
use blockformer_benches::{device, model, prompt};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const MODELS: [&str; 2] = ["block_main_b4_5", "vanilla_31"];
const DEVICE: &str = "cpu/f32";

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
        group.bench_function(BenchmarkId::new(DEVICE, format!("{name}/b1/512")), |b| {
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
            let options = GenerateOptions { max_new_tokens: 32, ..GenerateOptions::default() };
            group.throughput(Throughput::Elements(batch as u64 * 32));
            group.bench_function(BenchmarkId::new(DEVICE, format!("{name}/b{batch}/128+32")), |b| {
                b.iter(|| {
                    let generated = generate(&model, &prompts, &options, &device, |_, _| ControlFlow::Continue(()));
                    black_box(generated.map(|sequences| sequences.len()).ok())
                });
            });
        }
    }
}

criterion_group!(benches, prefill, decode);
criterion_main!(benches);
