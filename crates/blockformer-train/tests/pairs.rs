//! Training on prompts and answers: only answers count.

use std::path::Path;

use blockformer_data::{InMemoryCorpus, PackedDataset, PackingConfig, PairsCorpus, TokenCorpus};
use blockformer_model::{AnyModel, ModelConfig};
use blockformer_train::{Batch, Evaluation, TrainConfig, Trainable, Trainer, token_loss};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Device, Gradients, Tensor, TensorData};

const CASES: [&str; 2] = ["lookup_projection_prefix_b4", "vanilla_llama_grouped_query"];

fn model(case: &str, device: &Device) -> (ModelConfig, AnyModel) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases").join(case);
    AnyModel::load(&path, device).unwrap()
}

fn pairs() -> PairsCorpus {
    let prompt = |n: u32| (0..5 + n % 4).map(move |i| 1 + (n * 7 + i) % 40).collect::<Vec<_>>();
    let answer = |n: u32| (0..3 + n % 3).map(move |i| 1 + (n + i * 5) % 40).collect::<Vec<_>>();
    PairsCorpus::from_pairs((0..16).map(|n| (prompt(n), answer(n))))
}

fn packing(block_length: usize) -> PackingConfig {
    if block_length == 1 { PackingConfig::vanilla(24, 0) } else { PackingConfig::new(block_length, 24, 0) }
}

/// The same documents, all of which counts.
fn unmarked<C: TokenCorpus>(corpus: &C) -> InMemoryCorpus {
    InMemoryCorpus::from_documents((0..corpus.n_documents()).map(|index| corpus.document(index).into_owned()))
}

struct GradientsOf<'a>(&'a Gradients, Vec<Vec<f32>>);

impl ModuleVisitor for GradientsOf<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(self.0).map(|gradient| gradient.into_data().iter::<f32>().collect());
        self.1.push(gradient.unwrap_or_default());
    }
}

fn gradients<M: Module>(model: &M, gradients: &Gradients) -> Vec<Vec<f32>> {
    let mut visitor = GradientsOf(gradients, Vec::new());
    model.visit(&mut visitor);
    visitor.1
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.iter().map(Vec::len).collect::<Vec<_>>(), b.iter().map(Vec::len).collect::<Vec<_>>());
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn loss_and_gradient_are_those_of_the_answers_alone() {
    let device = Device::flex().autodiff();
    for case in CASES {
        let (config, model) = model(case, &device);
        let data = PackedDataset::new(pairs(), packing(config.block_length())).unwrap();
        let plain = PackedDataset::new(unmarked(&pairs()), *data.config()).unwrap();
        let samples = [data.sample(0), data.sample(1)];
        let batch = Batch::new(&samples, &Trainable::layout(&model), &device);
        let all = Batch::new(&[plain.sample(0), plain.sample(1)], &Trainable::layout(&model), &device);
        assert!(batch.n_predicted > 0 && batch.n_predicted < all.n_predicted, "{case}");

        // Where a prediction counts, by hand: content behind a prompt, but for the first block.
        let first = config.block_length();
        let answers: Vec<bool> = samples
            .iter()
            .flat_map(|sample| (first..24).map(|i| sample.mask[i] && !sample.prompt.get(i).is_some_and(|p| *p)))
            .collect();
        let loss = model.loss(&batch, 1.0);
        let every = model.loss(&all, 1.0);
        let expected: f64 =
            every.per_token.clone().into_data().iter::<f64>().zip(&answers).filter(|(_, a)| **a).map(|(l, _)| l).sum();
        assert!((loss.sum() - expected).abs() < 1e-3, "{case}: {} for {expected}", loss.sum());
        assert_eq!(answers.iter().filter(|answer| **answer).count(), batch.n_predicted, "{case}");

        let got = gradients(&model, &loss.graph.backward());
        let keep = Tensor::<1, Bool>::from_data(TensorData::new(answers.clone(), [answers.len()]), &device);
        let hidden = match &model {
            AnyModel::Block(model) => model.forward(all.ids.clone(), all.mask.clone()).hidden,
            AnyModel::Vanilla(model) => model.forward(all.ids.clone().reshape([2, 24]).narrow(1, 0, 23), None, None),
        };
        let logits = |hidden| match &model {
            AnyModel::Block(model) => model.logits(hidden),
            AnyModel::Vanilla(model) => model.logits(hidden),
        };
        let vocab_size = config.vocab_size();
        let by_hand = token_loss(logits, hidden, all.targets().0, Some(keep), 1.0, vocab_size);
        let expected = gradients(&model, &by_hand.graph.backward());
        assert!(largest_difference(&got, &expected) < 1e-5, "{case}");
        assert!(largest_difference(&got, &gradients(&model, &every.graph.backward())) > 1e-2, "{case}");
    }
}

#[test]
fn a_sample_of_nothing_but_prompt_has_no_loss_and_no_gradient() {
    let device = Device::flex().autodiff();
    for case in CASES {
        let (config, model) = model(case, &device);
        let long = PairsCorpus::from_pairs([((0..60).map(|i| 1 + i % 40).collect::<Vec<u32>>(), vec![1])]);
        let data = PackedDataset::new(long, packing(config.block_length())).unwrap();
        let batch = Batch::new(&[data.sample(0)], &Trainable::layout(&model), &device);
        assert_eq!(batch.n_predicted, 0);
        let loss = model.loss(&batch, 1.0);
        assert_eq!(loss.sum(), 0.0);
        assert!(gradients(&model, &loss.graph.backward()).iter().flatten().all(|gradient| *gradient == 0.0), "{case}");
    }
}

#[test]
fn answers_are_learned() {
    let device = Device::flex().autodiff();
    for case in CASES {
        let (config, model) = model(case, &device);
        let data = PackedDataset::new(pairs(), packing(config.block_length())).unwrap();
        let settings = TrainConfig { steps: 30, batch_size: 4, warmup_steps: 2, ..TrainConfig::default() };
        let settings = TrainConfig { learning_rate: 1e-2, ..settings };
        let mut trainer = Trainer::new(model, data.clone(), settings, &device).unwrap();
        let before = trainer.evaluate(&data, usize::MAX).unwrap();
        while trainer.next_step() < 30 {
            trainer.step().unwrap();
        }
        let Evaluation { loss, n_tokens, .. } = trainer.evaluate(&data, usize::MAX).unwrap();
        assert!(loss < before.loss / 2.0, "{case}: {} to {loss}", before.loss);
        let plain = PackedDataset::new(unmarked(&pairs()), *data.config()).unwrap();
        assert!(n_tokens < trainer.evaluate(&plain, usize::MAX).unwrap().n_tokens);
    }
}
