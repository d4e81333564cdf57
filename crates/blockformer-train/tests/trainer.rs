//! The trainer on small models.

mod small_model;

use blockformer_data::{InMemoryCorpus, PackedDataset, PackingConfig, Sample};
use blockformer_model::{BlockTransformer, BlockTransformerConfig};
use blockformer_train::{
    Batch, BlockDecodingLoss, BlockDecodingLossKind, Evaluation, LossConfig, TrainConfig, TrainError, Trainable,
    Trainer, latest_checkpoint,
};
use burn::module::Module;
use burn::tensor::Device;
use small_model::{config, data, model, trainer};

#[test]
fn accumulated_steps_are_those_of_the_whole_batch() {
    let start = model();
    let run = |accumulation| {
        let schedule = TrainConfig { learning_rate: 1e-2, warmup_steps: 2, steps: 40, ..TrainConfig::default() };
        let mut trainer = trainer(start.clone(), TrainConfig { batch_size: 8, accumulation, ..schedule });
        let reports: Vec<_> = (0..40).map(|_| trainer.step().unwrap()).collect();
        reports.iter().map(|report| (report.loss, report.gradient_norm, report.n_tokens)).collect::<Vec<_>>()
    };
    let whole = run(1);
    for accumulation in [2, 8] {
        // Rounding grows from step to step: the first few must be the same.
        for (a, b) in whole.iter().zip(run(accumulation)).take(4) {
            assert!((a.0 - b.0).abs() < 1e-4 && (a.1 - b.1).abs() < 1e-3 * a.1, "{a:?} and {b:?}");
            assert_eq!(a.2, b.2);
        }
    }
    assert!(whole[39].0 < whole[0].0 - 0.2, "the loss does not fall: {whole:?}");
}

#[test]
fn a_learned_start_and_several_contexts_are_trained_and_first_blocks_count() {
    let device = Device::flex().autodiff();
    device.seed(3);
    let config = BlockTransformerConfig { context_blocks: 3, predict_first_block: true, ..config() };
    let model = config.init(&device).unwrap();
    let sample = data().sample(0);
    let batch = Batch::new(std::slice::from_ref(&sample), &model.layout(), &device);
    assert_eq!(batch.n_predicted, sample.n_content());
    let losses = model.losses(&batch, &LossConfig::default(), batch.n_predicted as f64);
    assert_eq!(losses.tokens.per_token.dims(), [sample.ids.len()]);
    let gradients = losses.graph().backward();
    for end in [&model.context_ends.start, &model.context_ends.absent] {
        let gradient = end.as_ref().expect("a learned end").val().grad(&gradients).expect("a gradient");
        assert!(gradient.abs().max().into_scalar::<f32>() > 0.0);
    }
    let settings =
        TrainConfig { learning_rate: 1e-2, warmup_steps: 2, steps: 40, batch_size: 8, ..TrainConfig::default() };
    let mut trainer = trainer(model, settings);
    let losses: Vec<f64> = (0..40).map(|_| trainer.step().unwrap().loss).collect();
    assert!(losses[39] < losses[0] - 0.2, "the loss does not fall: {losses:?}");
}

#[test]
fn accumulation_does_not_change_the_weight_of_a_block_loss() {
    let start = model();
    let documents = (3..60u32).map(|n| (0..n).map(|i| 1 + (i * i + n) % 15).collect::<Vec<_>>());
    let packing = PackingConfig { block_length: 4, ..PackingConfig::vanilla(32, 0) };
    let data = PackedDataset::new(InMemoryCorpus::from_documents(documents), packing).unwrap();
    let norm = |accumulation| {
        let block_decoding = Some(BlockDecodingLoss { kind: BlockDecodingLossKind::Mse, weight: 100.0 });
        let losses = LossConfig { block_decoding, ..LossConfig::default() };
        let config = TrainConfig { batch_size: 8, accumulation, losses, ..TrainConfig::default() };
        let mut trainer = Trainer::new(start.clone(), data.clone(), config, &Device::flex().autodiff()).unwrap();
        trainer.step().unwrap().gradient_norm
    };
    let (whole, parts) = (norm(1), norm(4));
    assert!((whole - parts).abs() < 1e-3 * whole, "{whole} and {parts}");
}

#[test]
fn a_batch_of_nothing_but_padding_has_no_loss_and_no_gradient() {
    let model = model();
    let sample = Sample { ids: vec![0; 32], mask: vec![false; 32], prompt: Vec::new() };
    let batch = Batch::new(&[sample], &model.layout(), &Device::flex().autodiff());
    assert_eq!(batch.n_predicted, 0);
    let block_decoding = BlockDecodingLoss { kind: BlockDecodingLossKind::Contrastive, weight: 1.0 };
    let config = LossConfig { block_decoding: Some(block_decoding), auto_encoding_weight: Some(1.0) };
    let losses = model.losses(&batch, &config, 1.0);
    assert_eq!(losses.value(1.0), 0.0);
    let gradients = losses.graph().backward();
    let gradient = model.token_decoder_weight().grad(&gradients).expect("a gradient");
    assert_eq!(gradient.abs().max().into_scalar::<f32>(), 0.0);
}

/// A way to one weight of the token decoder.
trait TokenDecoderWeight {
    fn token_decoder_weight(&self) -> burn::tensor::Tensor<2>;
}

impl TokenDecoderWeight for BlockTransformer {
    fn token_decoder_weight(&self) -> burn::tensor::Tensor<2> {
        match &self.token_decoder {
            blockformer_token_decoder::AnyTokenDecoder::Prefix(decoder) => decoder.vocabulary.embedding.weight.val(),
            _ => panic!("a prefix decoder"),
        }
    }
}

#[test]
fn evaluation_averages_over_content_and_over_positions() {
    let model = model().valid();
    let (data, device) = (data(), Device::flex());
    let together = Evaluation::run(&model, &data, 6, 4, &device).unwrap();
    // The same by hand: one sample at a time, losses of content alone.
    let (mut sum, mut n) = (0.0, 0);
    for index in 0..6 {
        let batch = Batch::new(&[data.sample(index)], &model.layout(), &device);
        sum += model.loss(&batch, 1.0).sum();
        n += batch.n_predicted;
    }
    assert_eq!(together.n_tokens, n);
    assert!((together.loss - sum / n as f64).abs() < 1e-5);
    assert_eq!(together.loss_by_position.len(), 4);
    // An untrained model knows nothing: every position is near the logarithm of the vocabulary.
    assert!(together.loss_by_position.iter().all(|loss| (loss - 16f64.ln()).abs() < 0.3), "{together:?}");
    assert!((together.perplexity().ln() - together.loss).abs() < 1e-12);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let device = Device::flex().autodiff();
    let corpus = || InMemoryCorpus::from_documents([vec![1; 500]]);
    let refused = |packing, config| {
        Trainer::new(model(), PackedDataset::new(corpus(), packing).unwrap(), config, &device).err().expect("refused")
    };
    let config = TrainConfig::default();
    let error = refused(PackingConfig::new(2, 32, 0), config.clone());
    assert!(matches!(error, TrainError::BlockLength { data: 2, model: 4 }), "{error}");
    let error = refused(PackingConfig::new(4, 128, 0), config.clone());
    assert!(matches!(error, TrainError::SampleLength { sample: 128, context: 64 }), "{error}");
    let error = refused(PackingConfig::new(4, 32, 0), TrainConfig { learning_rate: f64::NAN, ..config.clone() });
    assert!(matches!(error, TrainError::Setting { field: "learning_rate", .. }), "{error}");

    let unknown = PackedDataset::new(InMemoryCorpus::from_documents([vec![16; 500]]), PackingConfig::new(4, 32, 0));
    let mut trainer = Trainer::new(model(), unknown.unwrap(), config, &device).unwrap();
    assert!(matches!(trainer.step(), Err(TrainError::OutOfVocabulary { id: 16, vocab_size: 16 })));
}

#[test]
fn a_run_that_diverges_keeps_its_last_good_weights() {
    let config = TrainConfig { learning_rate: 1e30, warmup_steps: 0, max_gradient_norm: 0.0, ..TrainConfig::default() };
    let mut trainer = trainer(model(), TrainConfig { batch_size: 4, ..config });
    trainer.step().unwrap();
    let before = trainer.model().token_decoder_weight().into_data();
    let error = trainer.step().expect_err("the loss of weights of 1e30 is not a number");
    assert!(matches!(error, TrainError::Diverged { step: 1, .. }), "{error}");
    assert_eq!(trainer.next_step(), 1);
    trainer.model().token_decoder_weight().into_data().assert_eq(&before, true);
}

#[test]
fn checkpoints_of_other_runs_and_damaged_ones_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let config = TrainConfig { batch_size: 4, ..TrainConfig::default() };
    let mut first = trainer(model(), config.clone());
    first.identify("tokenizer", "a");
    first.step().unwrap();
    first.save_checkpoint(directory.path(), 2).unwrap();
    let path = latest_checkpoint(directory.path()).unwrap().path.expect("a checkpoint");

    let mut second = trainer(model(), config.clone());
    second.identify("tokenizer", "b");
    let message = second.resume(&path).err().expect("refused").to_string();
    assert!(message.contains("another tokenizer"), "{message}");

    let resume = || {
        let mut trainer = trainer(model(), config.clone());
        trainer.identify("tokenizer", "a");
        trainer.resume(&path)
    };
    assert_eq!(resume().unwrap().next_step(), 1);
    for file in ["model.bpk", "optimizer.bpk", "state.json", "manifest.json"] {
        let whole = std::fs::read(path.join(file)).unwrap();
        std::fs::write(path.join(file), &whole[..whole.len() / 2]).unwrap();
        let message = resume().err().expect("refused").to_string();
        assert!(message.contains(file), "{file}: {message}");
        std::fs::write(path.join(file), whole).unwrap();
    }
}

#[test]
fn any_flipped_bit_of_a_checkpoint_is_found_and_the_one_before_it_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let mut trainer = trainer(model(), TrainConfig { batch_size: 4, ..TrainConfig::default() });
    for _ in 0..2 {
        trainer.step().unwrap();
        trainer.save_checkpoint(directory.path(), 5).unwrap();
    }
    let newest = directory.path().join("step-00000002");
    for file in ["model.bpk", "optimizer.bpk", "state.json"] {
        let whole = std::fs::read(newest.join(file)).unwrap();
        for place in [0, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << (place % 8);
            std::fs::write(newest.join(file), flipped).unwrap();
            let found = latest_checkpoint(directory.path()).unwrap();
            assert_eq!(found.path.expect("the one before"), directory.path().join("step-00000001"));
            let message = found.damaged[0].to_string();
            assert!(message.contains(file) && message.contains("step-00000002"), "{message}");
        }
        std::fs::write(newest.join(file), whole).unwrap();
    }
    assert_eq!(latest_checkpoint(directory.path()).unwrap().path, Some(newest));
}

#[test]
fn the_last_checkpoints_are_kept_and_a_damaged_later_one_pushes_none_out() {
    let directory = tempfile::tempdir().unwrap();
    let config = TrainConfig { batch_size: 4, ..TrainConfig::default() };
    let mut run = trainer(model(), config.clone());
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    for _ in 0..4 {
        run.step().unwrap();
        run.save_checkpoint(directory.path(), 2).unwrap();
    }
    assert_eq!(names(), ["step-00000003", "step-00000004"]);
    std::fs::write(directory.path().join("step-00000004/model.bpk"), "half").unwrap();
    std::fs::create_dir(directory.path().join("writing-4")).unwrap();
    let found = latest_checkpoint(directory.path()).unwrap();
    let mut run = trainer(model(), config).resume(&found.path.unwrap()).unwrap();
    run.save_checkpoint(directory.path(), 1).unwrap();
    assert_eq!(names(), ["step-00000003", "step-00000004"], "the damaged one does not count");
    run.step().unwrap();
    run.save_checkpoint(directory.path(), 1).unwrap();
    assert_eq!(names(), ["step-00000004"]);
    assert!(latest_checkpoint(directory.path()).unwrap().damaged.is_empty());
}
