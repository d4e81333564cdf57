//! What the machine allows.

use std::hint::black_box;
use std::time::Instant;

use blockformer_kernels::{Epilogue, Level, PackedMatrix, Precision, Workspace, matmul};
use rayon::prelude::*;
use serde::Serialize;

/// Bytes that are read to measure the streaming rate: far more than caches hold.
const STREAM_BYTES: usize = 256 << 20;

/// Rates of this machine, over all threads of the pool, the best of some tries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// Bytes a second that can be read from memory. Each token of a single sequence reads all weights once, so
    /// weights' bytes over this is the least time of a token.
    pub bytes_per_second: f64,
    /// Floating-point operations a second of a matrix product that stays in caches (512 rows of 512 numbers by 512).
    pub flops: f64,
    /// Threads.
    pub threads: usize,
}

impl Limits {
    /// Measures them, in about a second.
    pub fn measure() -> Self {
        let threads = rayon::current_num_threads();
        Self { bytes_per_second: stream(), flops: product(), threads }
    }
}

fn best(tries: usize, mut f: impl FnMut()) -> f64 {
    f();
    let times = (0..tries).map(|_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn stream() -> f64 {
    let numbers = vec![1.0f32; STREAM_BYTES / 4];
    let seconds = best(9, || {
        let sum: f32 = numbers.par_chunks(1 << 18).map(sum).sum();
        black_box(sum);
    });
    STREAM_BYTES as f64 / seconds
}

/// In many independent sums, so that memory is what it waits for.
fn sum(numbers: &[f32]) -> f32 {
    let mut sums = [0.0f32; 64];
    for chunk in numbers.chunks_exact(64) {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    sums.iter().sum()
}

fn product() -> f64 {
    const N: usize = 512;
    let weights = PackedMatrix::new(&vec![0.5; N * N], N, N, Precision::F32);
    let (x, mut out) = (vec![0.25; N * N], vec![0.0; N * N]);
    let mut workspace = Workspace::default();
    let seconds = best(20, || matmul(Level::current(), &x, &weights, Epilogue::default(), &mut workspace, &mut out));
    black_box(&out);
    2.0 * (N * N * N) as f64 / seconds
}
