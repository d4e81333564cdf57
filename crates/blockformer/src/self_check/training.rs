//! Losses, gradients and optimizer steps.

use blockformer_model::BlockLayout;
use blockformer_train::{AdamWSettings, Batch, GradientAccumulator, Optimizer, Trainable, clip_gradients};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use super::answers::{Answer, Part};
use super::models::{BLOCK_LENGTH, Subject, VOCAB_SIZE, id_tensor, ids, mask, numbers};

/// Two rows of six blocks, the second with padding in front, on an autodiff device.
pub(super) fn batch(salt: usize, layout: &BlockLayout, device: &Device) -> Batch {
    let n = 6 * BLOCK_LENGTH;
    let shape = [2, n / layout.block_length, layout.block_length];
    let padding = [0, BLOCK_LENGTH + 1];
    let rows = [ids(n, salt, VOCAB_SIZE), ids(n, salt + 1, VOCAB_SIZE)].concat();
    let first = layout.first_predicted_block() * layout.block_length;
    Batch {
        ids: id_tensor(&rows, shape, device),
        mask: Some(mask(shape, &padding, device)),
        counted: None,
        first_predicted_block: layout.first_predicted_block(),
        n_predicted: padding.iter().map(|padding| n - first.max(*padding)).sum(),
    }
}

/// What two optimizer steps give.
pub(super) fn two_steps<C: TrainedConfig>(subject: &Subject, config: &C) -> Answer {
    let device = subject.device.clone().autodiff();
    let mut model = config.model(subject, &device);
    // With a large epsilon, gradients that are nothing but rounding do not move weights.
    let mut optimizer = Optimizer::new(&AdamWSettings { epsilon: 1e-2, ..AdamWSettings::default() });
    let [mut losses, mut gradients] = [Vec::new(), Vec::new()];
    for step in 0..2 {
        let batch = batch(2 * step, &model.layout(), &device);
        let loss = model.loss(&batch, batch.n_predicted as f64);
        losses.extend(numbers(loss.per_token.clone()));
        let mut accumulator = GradientAccumulator::new();
        accumulator.add(&model, loss.graph.backward());
        let mut found = accumulator.finish(&model);
        gradients.extend(gradients_of(&model, &found));
        clip_gradients(&model, &mut found, 1.0);
        model = optimizer.step(1e-2, model, found);
    }
    let mut weights = Numbers { gradients: None, all: Vec::new() };
    model.visit(&mut weights);
    vec![
        Part::new("losses", losses),
        Part::new("gradients", gradients),
        Part::new("weights after two steps", weights.all),
    ]
}

/// A configuration of a model that can be trained.
pub(super) trait TrainedConfig {
    type Model: Trainable;

    fn model(&self, subject: &Subject, device: &Device) -> Self::Model;
}

impl TrainedConfig for blockformer_model::BlockTransformerConfig {
    type Model = blockformer_model::BlockTransformer;

    fn model(&self, subject: &Subject, device: &Device) -> Self::Model {
        subject.block(self, device)
    }
}

impl TrainedConfig for blockformer_model::VanillaTransformerConfig {
    type Model = blockformer_model::VanillaTransformer;

    fn model(&self, subject: &Subject, device: &Device) -> Self::Model {
        subject.vanilla(self, device)
    }
}

/// The gradients of all parameters, one after the other.
pub(super) fn gradients_of<M: Trainable>(model: &M, gradients: &GradientsParams) -> Vec<f32> {
    let mut numbers = Numbers { gradients: Some(gradients), all: Vec::new() };
    model.visit(&mut numbers);
    numbers.all
}

/// Collects gradients, or weights where there are none.
struct Numbers<'a> {
    gradients: Option<&'a GradientsParams>,
    all: Vec<f32>,
}

impl ModuleVisitor for Numbers<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = match self.gradients {
            Some(gradients) => gradients.get::<D>(param.id),
            None => Some(param.val().inner()),
        };
        self.all.extend(tensor.map(numbers).unwrap_or_default());
    }
}
