//! Kernels for the CPU: products of the shapes that decoding has, and functions element by element.

use std::hint::black_box;

use blockformer::kernels::{
    Activation, AttentionInputs, AttentionShape, Epilogue, Level, PackedMatrix, Precision, Stored, Workspace,
    attention, log_softmax, matmul,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Inputs and outputs.
const SHAPES: [(usize, usize); 3] = [(512, 2048), (3072, 768), (512, 50_304)];

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("kernels/matmul");
    group.sample_size(10);
    let level = Level::current();
    for (n_inputs, n_outputs) in SHAPES {
        let weights: Vec<f32> = (0..n_inputs * n_outputs).map(|i| (i * 7919 % 1000) as f32 / 1000.0 - 0.5).collect();
        for precision in Precision::ALL {
            let packed = PackedMatrix::new(&weights, n_inputs, n_outputs, precision);
            for rows in [1, 4, 32, 128] {
                let (x, mut out) = (vec![0.5; rows * n_inputs], vec![0.0; rows * n_outputs]);
                let mut workspace = Workspace::default();
                group.throughput(Throughput::Elements((rows * n_inputs * n_outputs) as u64));
                let id = format!("{}/{}/{rows}x{n_inputs}x{n_outputs}", level.name(), precision.name());
                group.bench_function(BenchmarkId::new("cpu", id), |b| {
                    b.iter(|| matmul(level, black_box(&x), &packed, Epilogue::default(), &mut workspace, &mut out));
                });
            }
        }
    }
}

fn elements(c: &mut Criterion) {
    let mut group = c.benchmark_group("kernels/elements");
    let level = Level::current();
    let x: Vec<f32> = (0..1 << 16).map(|i| (i % 100) as f32 / 10.0 - 5.0).collect();
    group.throughput(Throughput::Elements(1 << 16));
    for activation in [Activation::Gelu, Activation::Silu] {
        group.bench_function(BenchmarkId::new("cpu", format!("{}/f32/{activation:?}", level.name())), |b| {
            let mut y = x.clone();
            b.iter(|| {
                y.copy_from_slice(&x);
                activation.apply(level, black_box(&mut y));
            });
        });
    }
    group.bench_function(BenchmarkId::new("cpu", format!("{}/f32/log_softmax_16x4096", level.name())), |b| {
        let mut y = x.clone();
        b.iter(|| {
            y.copy_from_slice(&x);
            log_softmax(level, black_box(&mut y), 4096);
        });
    });
}

/// Twelve heads of 64 features: one query of each of eight sequences over 32 and 2,048 keys, as in decoding, and 128
/// queries of one prompt. Keys and values are float32 and 8 bits.
fn attentions(c: &mut Criterion) {
    let mut group = c.benchmark_group("kernels/attention");
    group.sample_size(10);
    let (level, n_heads, head_dim) = (Level::current(), 12, 64);
    for (batch, n_queries, n_keys) in [(32, 1, 5), (8, 1, 32), (8, 1, 2048), (1, 128, 128)] {
        let shape = AttentionShape {
            batch,
            n_queries,
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            page_length: n_keys,
            query_stride: n_heads * head_dim,
        };
        let held = batch * n_heads * n_keys * head_dim;
        let numbers: Vec<f32> = (0..held).map(|i| (i * 7919 % 1000) as f32 / 1000.0 - 0.5).collect();
        let codes: Vec<i8> = numbers.iter().map(|x| (x * 254.0) as i8).collect();
        let (scales, queries) = (vec![1.0 / 254.0; held / head_dim], vec![0.5; batch * n_queries * n_heads * head_dim]);
        let tables: Vec<usize> = (0..batch).collect();
        let visible: Vec<_> = (0..batch * n_queries).map(|i| 0..n_keys - (n_queries - 1 - i % n_queries)).collect();
        let (mut workspace, mut out) = (Workspace::default(), vec![0.0; queries.len()]);
        let stored = [("f32", Stored::F32(&numbers)), ("int8", Stored::Int8 { numbers: &codes, scales: &scales })];
        for (name, held) in stored {
            let id = format!("{}/{name}/{batch}x{n_queries}x{n_keys}", level.name());
            let (keys, values, queries, tables) = (held, held, &queries[..], &tables[..]);
            group.throughput(Throughput::Elements(visible.iter().map(|keys| (keys.len() * n_heads) as u64).sum()));
            group.bench_function(BenchmarkId::new("cpu", id), |b| {
                b.iter(|| {
                    let inputs = AttentionInputs { queries, keys, values, tables, visible: &visible, bias: None };
                    attention(level, shape, black_box(inputs), &mut workspace, &mut out);
                });
            });
        }
    }
}

criterion_group!(benches, products, attentions, elements);
criterion_main!(benches);
