//! The training loop.

use std::path::Path;
use std::time::Instant;

use blockformer_data::{BatchOrder, PackedDataset, TokenCorpus};
use burn::tensor::Device;

use crate::evaluation::check_vocabulary;
use crate::{
    Batch, Evaluation, GradientAccumulator, Optimizer, TrainConfig, TrainError, Trainable, checkpoint,
    checkpoint::Identity, clip_gradients,
};

/// Trains a model on packed samples, step by step. Everything a step depends on follows from its number: the samples
/// from the seed, the learning rate from the schedule.
pub struct Trainer<M, C> {
    model: M,
    optimizer: Optimizer,
    data: PackedDataset<C>,
    order: BatchOrder,
    config: TrainConfig,
    identity: Identity,
    device: Device,
    step: usize,
}

/// What happened in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// The step, counted from 0.
    pub step: usize,
    /// Mean cross-entropy a token, in nats.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Tokens predicted.
    pub n_tokens: usize,
    /// Seconds the step took.
    pub seconds: f64,
}

impl<M: Trainable, C: TokenCorpus> Trainer<M, C> {
    /// A run at its beginning. `model` must be on `device`, which must be an autodiff device.
    ///
    /// # Errors
    /// [`TrainError`] if settings, data and model do not fit together.
    pub fn new(model: M, data: PackedDataset<C>, config: TrainConfig, device: &Device) -> Result<Self, TrainError> {
        config.validate()?;
        let (model_length, data_length) = (model.layout().block_length, data.config().block_length);
        if model_length != data_length {
            return Err(TrainError::BlockLength { data: data_length, model: model_length });
        }
        let (sample, context) = (data.config().sample_len(), model.layout().max_length);
        if sample > context {
            return Err(TrainError::SampleLength { sample, context });
        }
        if sample <= model_length * model.layout().first_predicted_block() {
            return Err(TrainError::Setting {
                field: "max_length",
                value: sample as f64,
                expected: "at least two blocks",
            });
        }
        let order = BatchOrder::new(data.len(), config.batch_size, config.seed)?;
        let optimizer = Optimizer::new(&config.optimizer);
        let mut identity = Identity::new();
        identity.insert("packing".into(), data.config().to_json());
        identity.insert("data".into(), data.corpus().fingerprint());
        Ok(Self { model, optimizer, data, order, config, identity, device: device.clone(), step: 0 })
    }

    /// Something else that a run must have in common with the checkpoint it goes on from, by name: the model's
    /// configuration, say, or a digest of the tokenizer. Packing and data are always checked.
    pub fn identify(&mut self, name: &str, value: impl Into<String>) {
        self.identity.insert(name.into(), value.into());
    }

    /// One optimizer step.
    ///
    /// # Errors
    /// [`TrainError::OutOfVocabulary`] if a sample holds an id the model does not know, [`TrainError::Diverged`] if
    /// the loss or a gradient is not a number; the model is then as it was.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let started = Instant::now();
        let step = self.step;
        let batches = self.batches(step)?;
        let n_tokens: usize = batches.iter().map(|batch| batch.n_predicted).sum();
        let normalizer = n_tokens.max(1) as f64;
        let mut loss = 0.0;
        let mut accumulator = GradientAccumulator::new();
        for batch in &batches {
            let losses = self.model.losses(batch, &self.config.losses, normalizer);
            loss += losses.tokens.sum() / normalizer;
            accumulator.add(&self.model, losses.graph().backward());
        }
        let mut gradients = accumulator.finish(&self.model);
        let gradient_norm = clip_gradients(&self.model, &mut gradients, self.config.max_gradient_norm);
        if !(loss.is_finite() && gradient_norm.is_finite()) {
            return Err(TrainError::Diverged { step, loss, gradient_norm });
        }
        let learning_rate = self.config.schedule().learning_rate(step);
        self.model = self.optimizer.step(learning_rate, self.model.clone(), gradients);
        self.step += 1;
        let seconds = started.elapsed().as_secs_f64();
        Ok(StepReport { step, loss, gradient_norm, learning_rate, n_tokens, seconds })
    }

    /// Loss on held-out data.
    ///
    /// # Errors
    /// As [`Evaluation::run`].
    pub fn evaluate<D: TokenCorpus>(
        &self,
        data: &PackedDataset<D>,
        max_samples: usize,
    ) -> Result<Evaluation, TrainError> {
        let batch_size = self.config.batch_size / self.config.accumulation;
        Evaluation::run(&self.model.valid(), data, max_samples, batch_size, &self.device.clone().inner())
    }

    /// The number of the next step: how many are done.
    pub fn next_step(&self) -> usize {
        self.step
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The model as it stands, on the autodiff device.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Writes a checkpoint into `directory`, as `step-N`, and removes all but the newest `keep` (at least one).
    ///
    /// # Errors
    /// [`TrainError`] naming the file; the checkpoints before are then still there.
    pub fn save_checkpoint(&self, directory: &Path, keep: usize) -> Result<(), TrainError> {
        let state = checkpoint::State { step: self.step, config: self.config.clone(), identity: self.identity.clone() };
        checkpoint::save(directory, keep, &state, &self.model, &self.optimizer)
    }

    /// Goes on from a checkpoint that [`save_checkpoint`](Self::save_checkpoint) wrote under the same settings.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] if it is damaged or belongs to a run with other settings.
    pub fn resume(self, checkpoint: &Path) -> Result<Self, TrainError> {
        let Self { model, optimizer, data, order, config, identity, device, .. } = self;
        let state = checkpoint::read_state(checkpoint)?;
        checkpoint::check_state(checkpoint, &state, &config, &identity)?;
        let (model, optimizer) = checkpoint::load(checkpoint, model, optimizer)?;
        Ok(Self { model, optimizer, data, order, config, identity, device, step: state.step })
    }

    fn batches(&self, step: usize) -> Result<Vec<Batch>, TrainError> {
        let samples: Vec<_> = self.order.indices(step as u64).iter().map(|&index| self.data.sample(index)).collect();
        check_vocabulary(&samples, self.model.layout().vocab_size)?;
        let size = self.config.batch_size / self.config.accumulation;
        let layout = self.model.layout();
        Ok(samples.chunks(size).map(|samples| Batch::new(samples, &layout, &self.device)).collect())
    }
}
