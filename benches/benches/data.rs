//! Text to batches: tokenizing, packing, and whether the device waits for them.
//!
//! `BLOCKFORMER_BENCH_TEXT` names a file or folder of text to measure on; without it, the project's documents serve,
//! which are too short to say much.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blockformer::data::{
    BatchOrder, DataError, MegatronCorpus, PrefetchConfig, Prefetcher, Sample, TokenizeConfig, tokenize_files,
};
use blockformer::prelude::*;
use blockformer::train::Batch;
use blockformer_benches::{device, device_id};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BATCH_SIZE: usize = 16;

/// The bundled model, its tokenizer, and a corpus in a temporary folder.
struct Setup {
    model: AnyModel,
    tokenizer: Tokenizer,
    text: Vec<PathBuf>,
    folder: PathBuf,
}

impl Setup {
    fn new(device: &Device) -> Self {
        let (_, model, tokenizer) = blockformer::bundled::load(device).unwrap_or_else(|error| panic!("{error}"));
        let project = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let documents = ["README.md", "docs/architecture.md", "docs/training.md"];
        let text = match std::env::var_os("BLOCKFORMER_BENCH_TEXT") {
            Some(path) => vec![path.into()],
            None => documents.map(|name| PathBuf::from(project).join(name)).to_vec(),
        };
        let folder = std::env::temp_dir().join(format!("blockformer-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{error}"));
        Self { model, tokenizer, text, folder }
    }

    fn tokenize(&self) -> Result<u64, DataError> {
        let config = TokenizeConfig { overwrite: true, ..TokenizeConfig::default() };
        let go_on = |_: &_| ControlFlow::Continue(());
        Ok(tokenize_files(&self.text, &self.tokenizer, &self.folder.join("corpus"), &config, go_on)?.n_tokens)
    }

    fn dataset(&self) -> Result<PackedDataset<MegatronCorpus>, DataError> {
        let layout = self.model.layout();
        let corpus = MegatronCorpus::open(self.folder.join("corpus"))?;
        PackedDataset::new(corpus, PackingConfig::new(layout.block_length, layout.max_length, layout.pad_token_id))
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // A temporary folder that stays does no harm.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn data(c: &mut Criterion) {
    let device = device();
    let setup = Setup::new(&device);
    if let Err(error) = measure(c, &setup, &device) {
        panic!("{error}");
    }
}

fn measure(c: &mut Criterion, setup: &Setup, device: &Device) -> Result<(), DataError> {
    let mut group = c.benchmark_group("data");
    group.sample_size(10);
    group.throughput(Throughput::Elements(setup.tokenize()?));
    let threads = format!("{} threads", rayon::current_num_threads());
    group.bench_function(BenchmarkId::new("tokenize", threads), |b| b.iter(|| black_box(setup.tokenize().is_ok())));

    let dataset = Arc::new(setup.dataset()?);
    let order = BatchOrder::new(dataset.len(), BATCH_SIZE, 0)?;
    let length = dataset.config().max_length;
    let shape = format!("b{BATCH_SIZE}/{length}");
    let batch = |step| -> Vec<Sample> { order.indices(step).into_iter().map(|index| dataset.sample(index)).collect() };
    group.throughput(Throughput::Elements((BATCH_SIZE * length) as u64));
    let mut step = 0;
    group.bench_function(BenchmarkId::new("pack", &shape), |b| {
        b.iter(|| {
            step += 1;
            black_box(batch(step))
        });
    });

    // A forward pass is the least that a device does with a batch: a training step takes three times as long.
    let layout = setup.model.layout();
    let forward = |samples: &[Sample]| setup.model.loss(&Batch::new(samples, &layout, device), 1.0).sum();
    let samples = batch(0);
    group.bench_function(BenchmarkId::new(format!("forward/{}", device_id()), &shape), |b| {
        b.iter(|| black_box(forward(&samples)));
    });
    let mut batches = Prefetcher::samples(Arc::clone(&dataset), order, 0, PrefetchConfig::default())?;
    group.bench_function(BenchmarkId::new(format!("waited-in-forward/{}", device_id()), &shape), |b| {
        b.iter_custom(|iterations| {
            let mut waited = Duration::ZERO;
            for _ in 0..iterations {
                let batch = batches.next();
                waited += batch.waited;
                black_box(forward(&batch.item));
            }
            // Criterion cannot do with no time at all.
            waited.max(Duration::from_nanos(iterations))
        });
    });
    group.finish();
    Ok(())
}

criterion_group!(benches, data);
criterion_main!(benches);
