//! The trainer on small models.

use blockformer_data::{InMemoryCorpus, PackedDataset, PackingConfig, Sample};
use blockformer_embedder::{EmbedderConfig, LookupConfig, Projection};
use blockformer_model::{BlockTransformer, BlockTransformerConfig, presets};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::TokenDecoderConfig;
use blockformer_train::{
    Batch, BlockDecodingLoss, BlockDecodingLossKind, Evaluation, LossConfig, TrainConfig, TrainError, Trainable,
    Trainer,
};
use burn::module::Module;
use burn::tensor::Device;

fn config() -> BlockTransformerConfig {
    let mut config = presets::block("block_main_b4_5").unwrap();
    config.block_decoder = TransformerConfig::llama(32, 1, 2);
    config.embedder = EmbedderConfig::Lookup(LookupConfig { d_embedding: 8, projection: Projection::Concat });
    if let TokenDecoderConfig::Prefix(prefix) = &mut config.token_decoder {
        prefix.transformer = TransformerConfig::llama(32, 1, 2);
    }
    BlockTransformerConfig { vocab_size: 16, max_length: 64, ..config }
}

fn model() -> BlockTransformer {
    let device = Device::flex().autodiff();
    device.seed(3);
    config().init(&device).unwrap()
}

fn data() -> PackedDataset<InMemoryCorpus> {
    // Documents of many lengths, so that samples differ in how much of them is padding.
    let documents = (3..60u32).map(|n| (0..n).map(|i| 1 + (i * i + n) % 15).collect::<Vec<_>>());
    PackedDataset::new(InMemoryCorpus::from_documents(documents), PackingConfig::new(4, 32, 0)).unwrap()
}

fn trainer(model: BlockTransformer, config: TrainConfig) -> Trainer<BlockTransformer, InMemoryCorpus> {
    Trainer::new(model, data(), config, &Device::flex().autodiff()).unwrap()
}

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
    let path = blockformer_train::latest_checkpoint(directory.path()).unwrap().expect("a checkpoint");

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
    for file in ["model.bpk", "optimizer.bpk", "state.json"] {
        let whole = std::fs::read(path.join(file)).unwrap();
        std::fs::write(path.join(file), &whole[..whole.len() / 2]).unwrap();
        let message = resume().err().expect("refused").to_string();
        assert!(message.contains(file), "{file}: {message}");
        std::fs::write(path.join(file), whole).unwrap();
    }
}
