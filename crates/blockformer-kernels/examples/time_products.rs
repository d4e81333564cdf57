//! Times products on request, for a program that takes turns with another library (`scripts/matmul_beside_pytorch.py`).
//!
//! Each line of standard input is `rows inputs outputs precision`; the answer is the median of the seconds that a
//! product took. `stream` is answered with the bytes a second that all threads together read from memory.
//!
//! As in a model, the weights of a product are not those of the one before: copies are gone through in turn that are
//! together too large for caches.
#![allow(missing_docs)]

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use blockformer_kernels::{Epilogue, Level, PackedMatrix, Precision, Workspace, matmul};
use rayon::prelude::*;

/// Bytes of all copies of the weights at least.
const BYTES: usize = 128 << 20;
/// How long a product is repeated.
const SPENT: Duration = Duration::from_millis(60);
/// Repeats at least.
const REPEATS: usize = 3;

type Weights = HashMap<(usize, usize, &'static str), Vec<PackedMatrix>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut weights = Weights::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["stream"] => stream(),
            [rows, n_inputs, n_outputs, name] => {
                let precision = Precision::ALL.into_iter().find(|precision| precision.name() == name);
                let precision = precision.ok_or_else(|| format!("no precision is called {name}"))?;
                let (n_inputs, n_outputs) = (n_inputs.parse()?, n_outputs.parse()?);
                let key = (n_inputs, n_outputs, precision.name());
                if !weights.contains_key(&key) {
                    weights.clear(); // one shape at a time
                }
                let copies = weights.entry(key).or_insert_with(|| copies(n_inputs, n_outputs, precision));
                // On a thread of the pool, as models run.
                {
                    let rows = rows.parse()?;
                    rayon::scope(|_| seconds(rows, copies))
                }
            }
            _ => return Err(format!("expected `rows inputs outputs precision`, got {line:?}").into()),
        };
        println!("{answer:e}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn copies(n_inputs: usize, n_outputs: usize, precision: Precision) -> Vec<PackedMatrix> {
    let weights: Vec<f32> = (0..n_inputs * n_outputs).map(|i| (i * 7919 % 1000) as f32 / 1000.0 - 0.5).collect();
    let packed = PackedMatrix::new(&weights, n_inputs, n_outputs, precision);
    let n = BYTES.div_ceil(packed.bytes()).max(2);
    vec![packed; n]
}

fn seconds(rows: usize, copies: &[PackedMatrix]) -> f64 {
    let (n_inputs, n_outputs) = (copies[0].n_inputs(), copies[0].n_outputs());
    let x: Vec<f32> = (0..rows * n_inputs).map(|i| (i * 31 % 200) as f32 / 100.0 - 1.0).collect();
    let (mut workspace, mut out) = (Workspace::default(), vec![0.0; rows * n_outputs]);
    let mut product = |weights: &PackedMatrix| {
        let start = Instant::now();
        matmul(Level::current(), black_box(&x), weights, Epilogue::default(), &mut workspace, &mut out);
        start.elapsed().as_secs_f64()
    };
    let begun = Instant::now();
    product(&copies[0]);
    let mut times = Vec::new();
    for weights in copies.iter().cycle().skip(1) {
        times.push(product(weights));
        if times.len() >= REPEATS && begun.elapsed() > SPENT {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Sums much more than caches hold.
fn stream() -> f64 {
    let numbers = vec![1.0f32; 256 << 18];
    let sum = |part: &[f32]| {
        let mut sums = [0.0f32; 64];
        for chunk in part.chunks_exact(64) {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
        }
        sums.iter().sum::<f32>()
    };
    let once = || {
        let start = Instant::now();
        black_box(numbers.par_chunks(1 << 18).map(sum).sum::<f32>());
        size_of_val(&numbers[..]) as f64 / start.elapsed().as_secs_f64()
    };
    (0..9).map(|_| once()).fold(0.0, f64::max)
}
