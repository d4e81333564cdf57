//! Kernels for the CPU: products of the shapes that decoding has, and functions element by element.

use std::hint::black_box;

use blockformer::kernels::{Activation, Epilogue, Level, PackedMatrix, Precision, Rounded, log_softmax, matmul};
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
                let mut rounded = Rounded::default();
                group.throughput(Throughput::Elements((rows * n_inputs * n_outputs) as u64));
                let id = format!("{}/{}/{rows}x{n_inputs}x{n_outputs}", level.name(), precision.name());
                group.bench_function(BenchmarkId::new("cpu", id), |b| {
                    b.iter(|| matmul(level, black_box(&x), &packed, Epilogue::default(), &mut rounded, &mut out));
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

criterion_group!(benches, products, elements);
criterion_main!(benches);
