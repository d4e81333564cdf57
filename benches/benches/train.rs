//! One training step.

use blockformer::prelude::*;
use blockformer_benches::{device, device_id, model, prompt};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn step(c: &mut Criterion) {
    let device = device().autodiff();
    let mut group = c.benchmark_group("train/step");
    group.sample_size(10);
    for (name, block_length) in [("block_main_b4_5", 4), ("vanilla_31", 1)] {
        let corpus = InMemoryCorpus::from_documents([prompt(10_000)]);
        let packing = match block_length {
            1 => PackingConfig::vanilla(256, 0),
            _ => PackingConfig::new(block_length, 256, 0),
        };
        let settings = TrainConfig { batch_size: 4, ..TrainConfig::default() };
        let trainer = PackedDataset::new(corpus, packing)
            .map_err(Into::into)
            .and_then(|data| Trainer::new(model(name, &device), data, settings, &device));
        let mut trainer = match trainer {
            Ok(trainer) => trainer,
            Err(error) => panic!("{name}: {error}"),
        };
        group.throughput(Throughput::Elements(4 * 256));
        group.bench_function(BenchmarkId::new(device_id(), format!("{name}/b4/256")), |b| {
            b.iter(|| match trainer.step() {
                Ok(report) => report.loss,
                Err(error) => panic!("{name}: {error}"),
            });
        });
    }
}

criterion_group!(benches, step);
criterion_main!(benches);
