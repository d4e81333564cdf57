//! What changes how a step is computed, and what must not change what it gives.

mod small_model;

use blockformer_model::{BlockTransformer, BlockTransformerConfig};
use blockformer_train::{
    BatchRamp, BlockDecodingLoss, BlockDecodingLossKind, LossConfig, ParameterGroup, ParameterSelection, Precision,
    StepReport, TrainConfig, TrainError, Trainer, latest_checkpoint,
};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use small_model::{config, data, model, trainer};

const STEPS: usize = 4;

fn settings() -> TrainConfig {
    TrainConfig { steps: 40, batch_size: 8, learning_rate: 1e-2, warmup_steps: 2, ..TrainConfig::default() }
}

fn run<C: blockformer_data::TokenCorpus + 'static>(trainer: &mut Trainer<BlockTransformer, C>) -> Vec<StepReport> {
    (0..STEPS).map(|_| trainer.step().unwrap()).collect()
}

fn assert_same_curve(a: &[StepReport], b: &[StepReport], tolerance: f64) {
    for (a, b) in a.iter().zip(b) {
        assert_eq!((a.n_tokens, a.batch_size), (b.n_tokens, b.batch_size));
        assert!((a.loss - b.loss).abs() < tolerance * a.loss, "{a:?} and {b:?}");
        assert!((a.gradient_norm - b.gradient_norm).abs() < 10.0 * tolerance * a.gradient_norm, "{a:?} and {b:?}");
    }
}

/// All parameters by path.
fn parameters(model: &BlockTransformer) -> Vec<(String, TensorData)> {
    struct All(Vec<String>, Vec<(String, TensorData)>);
    impl ModuleVisitor for All {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push((self.0.join("."), param.val().into_data()));
        }
    }
    let mut all = All(Vec::new(), Vec::new());
    model.visit(&mut all);
    all.1
}

fn all_losses() -> LossConfig {
    let block_decoding = BlockDecodingLoss { kind: BlockDecodingLossKind::Mse, weight: 0.5 };
    LossConfig { block_decoding: Some(block_decoding), auto_encoding_weight: Some(0.25) }
}

#[test]
fn recomputed_activations_give_the_same_steps() {
    let contexts = BlockTransformerConfig { context_blocks: 3, predict_first_block: true, ..config() };
    for start in [model(), contexts.init(&Device::flex().autodiff()).unwrap()] {
        for losses in [LossConfig::default(), all_losses()] {
            let curve = |recompute| {
                run(&mut trainer(start.clone(), TrainConfig { losses, recompute, accumulation: 2, ..settings() }))
            };
            assert_same_curve(&curve(false), &curve(true), 1e-4);
        }
    }
}

#[test]
fn gradient_checkpointing_gives_the_same_steps() {
    let start = model();
    let expected = run(&mut trainer(start.clone(), settings()));
    let device = Device::flex().autodiff().gradient_checkpointing();
    let directory = tempfile::tempdir().unwrap();
    let weights = directory.path().join("start.bpk");
    start.save_file(&weights).unwrap();
    for recompute in [false, true] {
        let model = config().init(&device).unwrap().try_load_file(&weights).unwrap();
        let got = Trainer::new(model, data(), TrainConfig { recompute, ..settings() }, &device);
        assert_same_curve(&expected, &run(&mut got.unwrap()), 1e-4);
    }
}

#[test]
fn two_workers_give_the_steps_of_one() {
    let start = model();
    let device = Device::flex().autodiff();
    for accumulation in [1, 2] {
        let settings = TrainConfig { accumulation, losses: LossConfig::default(), ..settings() };
        let one = run(&mut trainer(start.clone(), settings.clone()));
        let two = trainer(start.clone(), settings).with_workers([device.clone()]).unwrap();
        assert_same_curve(&one, &run(&mut { two }), 1e-4);
    }
    let error = trainer(start, settings()).with_workers([device.clone(), device.clone()]).err().expect("refused");
    assert!(matches!(error, TrainError::Setting { field: "devices", value: 3.0, .. }), "{error}");
}

#[test]
fn shorter_types_train_float32_weights_to_nearly_the_same_losses() {
    let start = model();
    let expected = run(&mut trainer(start.clone(), settings()));
    let with_all_losses = run(&mut trainer(start.clone(), TrainConfig { losses: all_losses(), ..settings() }));
    for (precision, tolerance) in [(Precision::Bf16, 2e-2), (Precision::F16, 5e-3)] {
        for recompute in [false, true] {
            let settings = TrainConfig { precision, recompute, losses: all_losses(), ..settings() };
            let mut trainer = trainer(start.clone(), settings);
            let got = run(&mut trainer);
            assert!(parameters(trainer.model()).iter().all(|(_, data)| data.dtype() == DType::F32), "{precision:?}");
            for (got, expected) in got.iter().zip(&with_all_losses) {
                let error = (got.loss - expected.loss).abs();
                assert!(error < tolerance * expected.loss, "{precision:?}: {got:?} and {expected:?}");
            }
            assert_ne!(got[0].loss, with_all_losses[0].loss, "{precision:?} computes in float32");
        }
        let mut plain = trainer(start.clone(), TrainConfig { precision, ..settings() });
        assert_same_curve(&expected, &run(&mut plain), tolerance);
    }
}

#[test]
fn float16_gradients_that_overflow_are_tried_again_with_a_smaller_scale() {
    let mut trainer = trainer(model(), TrainConfig { precision: Precision::F16, ..settings() });
    // Gradients of single weights are below 1 here: not even the largest scale makes them overflow at once.
    let first = trainer.step().unwrap();
    assert!(first.loss_scale >= 1024.0 && first.loss.is_finite(), "{first:?}");
    let directory = tempfile::tempdir().unwrap();
    trainer.save_checkpoint(directory.path(), 1).unwrap();
    let path = latest_checkpoint(directory.path()).unwrap().path.expect("a checkpoint");
    let state = std::fs::read_to_string(path.join("state.json")).unwrap();
    assert!(state.contains("\"loss_scale\"") && state.contains(&format!("{:.1}", first.loss_scale)), "{state}");
}

#[test]
fn groups_have_their_own_decay_and_learning_rate_also_when_resumed() {
    let frozen = ParameterGroup {
        parameters: ParameterSelection::Pattern("^embedder".into()),
        weight_decay: None,
        learning_rate_factor: 0.0,
    };
    let undecayed =
        ParameterGroup { parameters: ParameterSelection::Norms, weight_decay: Some(0.0), learning_rate_factor: 1.0 };
    // The loss has no gradient with a weight decay this strong: whatever decays is nearly gone in a few steps.
    let optimizer = blockformer_train::AdamWSettings { weight_decay: 30.0, ..Default::default() };
    let settings = TrainConfig { optimizer, parameter_groups: vec![frozen, undecayed], ..settings() };
    let start = model();
    let mut run = trainer(start.clone(), settings.clone());
    let directory = tempfile::tempdir().unwrap();
    for step in 0..8 {
        if step == 3 {
            run.save_checkpoint(directory.path(), 1).unwrap();
            let path = latest_checkpoint(directory.path()).unwrap().path.unwrap();
            run = trainer(model(), settings.clone()).resume(&path).unwrap();
        }
        run.step().unwrap();
    }
    let size = |data: &TensorData| data.iter::<f64>().map(f64::abs).sum::<f64>();
    for ((path, before), (_, after)) in parameters(&start).iter().zip(&parameters(run.model())) {
        let ratio = size(after) / size(before).max(1e-9);
        if path.ends_with("bias") && !path.starts_with("embedder") {
            continue; // begins at zero: there is nothing to decay
        }
        if path.starts_with("embedder") {
            assert_eq!(before, after, "{path}");
        } else if path.contains("gamma") {
            assert!((ratio - 1.0).abs() < 0.1, "{path} decayed to {ratio}");
        } else {
            assert!(ratio < 0.9, "{path} is {ratio} of what it was");
        }
    }
}

#[test]
fn ramped_batches_take_up_where_the_last_one_ended() {
    let ramp = Some(BatchRamp { from: 2, steps: 3 });
    let settings = TrainConfig { batch_ramp: ramp, accumulation: 8, ..settings() };
    let reports = run(&mut trainer(model(), settings));
    assert_eq!(reports.iter().map(|report| report.batch_size).collect::<Vec<_>>(), [2, 4, 6, 8]);
    // The 20 samples are the first 20 of the order: the same as in whole batches of 4.
    let plain = run(&mut trainer(model(), TrainConfig { batch_size: 4, ..self::settings() }));
    let tokens = |reports: &[StepReport]| reports.iter().map(|report| report.n_tokens).sum::<usize>();
    assert_eq!(tokens(&reports[..2]) + reports[2].n_tokens, tokens(&plain[..3]));
}
