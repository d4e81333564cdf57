//! The training loop.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use blockformer_data::{BatchOrder, PackedDataset, PrefetchConfig, Prefetcher, Sample, TokenCorpus};
use burn::tensor::Device;

use crate::device_failure::guard;
use crate::evaluation::{check_fit, check_vocabulary};
use crate::{
    Batch, Evaluation, LossScale, Objective, Optimizer, TrainConfig, TrainError, Trainable, checkpoint,
    checkpoint::Identity, clip_gradients, replicas, scale_gradients,
};

/// Trains a model on packed samples, step by step. Everything a step depends on follows from its number: the samples
/// from the seed, the learning rate from the schedule.
pub struct Trainer<M, C> {
    /// Taken while the optimizer updates it, so that no second copy of the weights is alive.
    model: Option<M>,
    optimizer: Optimizer,
    data: Arc<PackedDataset<C>>,
    order: BatchOrder,
    /// The samples of the steps to come, made in the background.
    prefetched: Option<Prefetcher<Vec<Sample>>>,
    config: TrainConfig,
    identity: Identity,
    loss_scale: LossScale,
    /// The first holds the model and the optimizer.
    devices: Vec<Device>,
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
    /// The factor on the loss; 1 but for float16.
    pub loss_scale: f64,
    /// Samples.
    pub batch_size: usize,
    /// Tokens predicted.
    pub n_tokens: usize,
    /// Seconds the step took.
    pub seconds: f64,
    /// Of these, seconds in which the device waited for data.
    pub data_seconds: f64,
}

impl<M: Trainable, C: TokenCorpus + 'static> Trainer<M, C> {
    /// A run at its beginning. `model` must be on `device`, which must be an autodiff device.
    ///
    /// # Errors
    /// [`TrainError`] if settings, data and model do not fit together.
    pub fn new(model: M, data: PackedDataset<C>, config: TrainConfig, device: &Device) -> Result<Self, TrainError> {
        config.validate()?;
        check_fit(data.config(), &model.layout())?;
        // Batches of one: a step takes as many as its batch holds.
        let order = BatchOrder::new(data.len(), 1, config.seed)?;
        let optimizer = Optimizer::with_groups(&config.optimizer, &config.parameter_groups, &model)?;
        let mut identity = Identity::new();
        identity.insert("packing".into(), data.config().to_json());
        identity.insert("data".into(), data.corpus().fingerprint());
        let loss_scale = LossScale::new(config.precision);
        let (model, devices) = (Some(model), vec![device.clone()]);
        let (data, prefetched) = (Arc::new(data), None);
        Ok(Self { model, optimizer, data, order, prefetched, config, identity, loss_scale, devices, step: 0 })
    }

    /// Divides every batch among more devices, each with a copy of the model; its gradients are gathered and summed on
    /// the first. All must be autodiff devices. The same batch gives the same step, but for rounding.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the samples of a pass cannot be divided evenly.
    pub fn with_workers(mut self, devices: impl IntoIterator<Item = Device>) -> Result<Self, TrainError> {
        self.devices.extend(devices);
        let n_devices = self.devices.len();
        let divides = |samples: usize| samples.is_multiple_of(n_devices);
        if !divides(self.config.micro_batch_size()) {
            let expected = "a divisor of batch_size / accumulation";
            return Err(TrainError::Setting { field: "devices", value: n_devices as f64, expected });
        }
        Ok(self)
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
    /// the loss or a gradient is not a number; the model is then as it was. [`TrainError::Device`] or
    /// [`TrainError::Work`] if a device or the work on it failed; the trainer is then of no more use.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let started = Instant::now();
        let step = self.step;
        let shares = self.batches(step)?;
        let data_seconds = started.elapsed().as_secs_f64();
        let n_tokens: usize = shares.iter().flatten().map(|batch| batch.n_predicted).sum();
        let normalizer = n_tokens.max(1) as f64;

        let (loss, gradient_norm, gradients) = loop {
            let objective = self.objective(normalizer);
            let (sum, accumulated) = replicas::backward(self.model(), &self.devices, &shares, &objective)?;
            let (gradient_norm, gradients) = guard(&self.devices, 0, || {
                let mut gradients = accumulated.finish(self.model());
                if objective.loss_scale != 1.0 {
                    scale_gradients(self.model(), &mut gradients, 1.0 / objective.loss_scale);
                }
                (clip_gradients(self.model(), &mut gradients, self.config.max_gradient_norm), gradients)
            })?;
            let loss = sum / normalizer;
            if loss.is_finite() && gradient_norm.is_finite() {
                break (loss, gradient_norm, gradients);
            }
            if !(loss.is_finite() && self.loss_scale.back_off(self.config.precision)) {
                return Err(TrainError::Diverged { step, loss, gradient_norm });
            }
        };

        let learning_rate = self.config.schedule().learning_rate(step);
        let model = self.model.take();
        self.model =
            guard(&self.devices, 0, || model.map(|model| self.optimizer.step(learning_rate, model, gradients)))?;
        self.step += 1;
        let loss_scale = self.loss_scale.factor;
        self.loss_scale.succeeded(self.config.precision);
        let batch_size = self.config.batch_size_at(step);
        let seconds = started.elapsed().as_secs_f64();
        Ok(StepReport {
            step,
            loss,
            gradient_norm,
            learning_rate,
            loss_scale,
            batch_size,
            n_tokens,
            seconds,
            data_seconds,
        })
    }

    /// Loss on held-out data.
    ///
    /// # Errors
    /// As [`Evaluation::run`]; [`TrainError::Device`] or [`TrainError::Work`] if the first device failed.
    pub fn evaluate<D: TokenCorpus>(
        &self,
        data: &PackedDataset<D>,
        max_samples: usize,
    ) -> Result<Evaluation, TrainError> {
        let batch_size = self.config.micro_batch_size();
        guard(&self.devices, 0, || {
            Evaluation::run(&self.model().valid(), data, max_samples, batch_size, &self.devices[0].clone().inner())
        })?
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
        self.model.as_ref().expect("only the optimizer's step takes the model, and it gives it back")
    }

    /// Writes a checkpoint into `directory`, as `step-N`, and removes all but the newest `keep` (at least one).
    ///
    /// # Errors
    /// [`TrainError`] naming the file, or the first device if it failed; the checkpoints before are then still there.
    pub fn save_checkpoint(&self, directory: &Path, keep: usize) -> Result<(), TrainError> {
        let state = checkpoint::State {
            step: self.step,
            loss_scale: self.loss_scale,
            config: self.config.clone(),
            identity: self.identity.clone(),
        };
        guard(&self.devices, 0, || checkpoint::save(directory, keep, &state, self.model(), &self.optimizer))?
    }

    /// Goes on from a checkpoint that [`save_checkpoint`](Self::save_checkpoint) wrote under the same settings. The
    /// devices may be others.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] if it is damaged or belongs to a run with other settings.
    pub fn resume(mut self, checkpoint: &Path) -> Result<Self, TrainError> {
        let state = checkpoint::read_state(checkpoint)?;
        checkpoint::check_state(checkpoint, &state, &self.config, &self.identity)?;
        let (model, optimizer) = checkpoint::load(checkpoint, self.model().clone(), self.optimizer)?;
        (self.model, self.optimizer) = (Some(model), optimizer);
        (self.step, self.loss_scale) = (state.step, state.loss_scale);
        Ok(self)
    }

    fn objective(&self, normalizer: f64) -> Objective {
        Objective {
            losses: self.config.losses,
            normalizer,
            precision: self.config.precision,
            loss_scale: self.loss_scale.factor,
            recompute: self.config.recompute,
        }
    }

    /// The batches of a step: for each device, one a pass.
    fn batches(&mut self, step: usize) -> Result<Vec<Vec<Batch>>, TrainError> {
        let samples = self.samples(step)?;
        let layout = self.model().layout();
        check_vocabulary(&samples, layout.vocab_size)?;
        let share = self.config.micro_batch_size() / self.devices.len();
        let mut shares: Vec<Vec<Batch>> = vec![Vec::new(); self.devices.len()];
        for (index, samples) in samples.chunks(share).enumerate() {
            let worker = index % self.devices.len();
            let batch = guard(&self.devices, worker, || Batch::new(samples, &layout, &self.devices[worker]))?;
            shares[worker].push(batch);
        }
        Ok(shares)
    }

    /// The samples of a step; those of the next are begun.
    fn samples(&mut self, step: usize) -> Result<Vec<Sample>, TrainError> {
        let mut prefetched = match self.prefetched.take() {
            Some(prefetched) if prefetched.next_step() == step as u64 => prefetched,
            _ => {
                let (data, order, config) = (Arc::clone(&self.data), self.order, self.config.clone());
                Prefetcher::new(step as u64, PrefetchConfig::default(), move |step| {
                    let first = config.samples_before(step as usize);
                    let positions = first..first + config.batch_size_at(step as usize) as u64;
                    positions.flat_map(|position| order.indices(position)).map(|i| data.sample(i)).collect()
                })?
            }
        };
        let samples = prefetched.next().item;
        self.prefetched = Some(prefetched);
        Ok(samples)
    }
}
