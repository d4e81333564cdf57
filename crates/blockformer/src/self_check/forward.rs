//! Whole passes.

use blockformer_model::{BlockTransformer, BlockTransformerConfig, VanillaTransformerConfig};
use blockformer_train::{GradientAccumulator, Objective, Precision, Trainable};
use burn::tensor::{Device, FloatDType, Tensor};

use super::answers::{Answer, Part};
use super::cached;
use super::models::{self, BLOCK_LENGTH, Subject, VOCAB_SIZE, id_tensor, ids, mask, numbers};
use super::training;

const N_BLOCKS: usize = 6;

/// Two rows, the second of which begins with a block and a token of padding.
const PADDING: [usize; 2] = [0, BLOCK_LENGTH + 1];

/// Embeddings and logits of a batch.
pub(super) fn block(subject: &Subject, config: &BlockTransformerConfig) -> Answer {
    let device = &subject.device;
    pass(&subject.block(config, device), N_BLOCKS, &PADDING, device)
}

fn pass(model: &BlockTransformer, n_blocks: usize, padding: &[usize], device: &Device) -> Answer {
    let shape = [padding.len(), n_blocks, BLOCK_LENGTH];
    let row = n_blocks * BLOCK_LENGTH;
    let rows: Vec<u32> = (0..padding.len()).flat_map(|salt| ids(row, salt, VOCAB_SIZE)).collect();
    let mask = padding.iter().any(|n| *n > 0).then(|| mask(shape, padding, device));
    let output = model.forward(id_tensor(&rows, shape, device), mask);
    vec![
        Part::new("block embeddings", float32(output.block_embeddings)),
        Part::new("context embeddings", float32(output.context_embeddings)),
        Part::new("logits", float32(model.logits(output.hidden))),
    ]
}

fn float32<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    numbers(tensor.cast(FloatDType::F32))
}

/// Logits of a batch.
pub(super) fn vanilla(subject: &Subject, config: &VanillaTransformerConfig) -> Answer {
    let (device, shape) = (&subject.device, [2, 24]);
    let model = subject.vanilla(config, device);
    let rows = [ids(24, 0, VOCAB_SIZE), ids(24, 1, VOCAB_SIZE)].concat();
    let hidden = model.forward(id_tensor(&rows, shape, device), Some(mask(shape, &PADDING, device)), None);
    vec![Part::new("logits", numbers(model.logits(hidden)))]
}

/// Sequences so long that attention goes to the backend's fused kernel, with the causal mask alone and with padding.
pub(super) fn long(subject: &Subject) -> Answer {
    let device = &subject.device;
    let model = subject.vanilla(&models::vanilla(), device);
    let rows = [ids(150, 0, VOCAB_SIZE), ids(150, 1, VOCAB_SIZE)].concat();
    let hidden = |mask| numbers(model.forward(id_tensor(&rows, [2, 150], device), mask, None));
    let mut answer = vec![
        Part::new("tokens", hidden(None)),
        Part::new("padded tokens", hidden(Some(mask([2, 150], &PADDING, device)))),
    ];
    let model = subject.block(&models::lookup_prefix(), device);
    answer.extend(pass(&model, 140, &[0], device));
    answer
}

/// A shorter type beside float32 on the same device: whole passes, steps, and gradients of mixed precision.
pub(super) fn shorter(subject: &Subject, precision: Precision) -> Answer {
    let device = &subject.device;
    let config = models::lookup_prefix();
    let model = subject.block(&config, device);
    let exact = pass(&model, N_BLOCKS, &PADDING, device);
    let short = pass(&precision.shadow(&model), N_BLOCKS, &PADDING, device);
    let mut answer: Answer = exact
        .into_iter()
        .zip(short)
        .map(|(exact, short)| Part::equal(exact.name, exact.values, short.values))
        .collect();
    let model = subject.block(&config, &device.clone().autodiff());
    let gradients = |precision| {
        let batch = training::batch(0, &model.layout(), &device.clone().autodiff());
        let mut accumulator = GradientAccumulator::new();
        let objective = Objective { precision, ..Objective::new(batch.n_predicted as f64) };
        model.backward(&batch, &objective, &mut accumulator);
        training::gradients_of(&model, &accumulator.finish(&model))
    };
    answer.push(Part::equal("gradients", gradients(Precision::F32), gradients(precision)));
    answer.extend(cached::shorter(subject, precision));
    answer
}
