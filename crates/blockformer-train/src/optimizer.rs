//! AdamW, as the paper trains.

use std::path::Path;

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Settings of AdamW (Loshchilov & Hutter 2019), with the paper's values as defaults.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay, on every parameter.
    pub weight_decay: f32,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { beta_1: 0.9, beta_2: 0.95, epsilon: 1e-8, weight_decay: 0.1 }
    }
}

impl AdamWSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] naming the first that is out of its range.
    pub fn validate(&self) -> Result<(), TrainError> {
        let below_one = |beta: f32| (0.0..1.0).contains(&beta);
        let not_negative = |value: f32| value.is_finite() && value >= 0.0;
        let checks = [
            ("beta_1", self.beta_1, below_one(self.beta_1), "a number from 0 to below 1"),
            ("beta_2", self.beta_2, below_one(self.beta_2), "a number from 0 to below 1"),
            ("epsilon", self.epsilon, not_negative(self.epsilon), "0 or a positive number"),
            ("weight_decay", self.weight_decay, not_negative(self.weight_decay), "0 or a positive number"),
        ];
        match checks.into_iter().find(|(_, _, good, _)| !good) {
            Some((field, value, _, expected)) => Err(TrainError::Setting { field, value: f64::from(value), expected }),
            None => Ok(()),
        }
    }
}

/// AdamW with its moments.
pub struct Optimizer {
    inner: ModuleOptimizer,
}

impl Optimizer {
    /// With empty moments.
    pub fn new(settings: &AdamWSettings) -> Self {
        let config = AdamWConfig::new()
            .with_beta_1(settings.beta_1)
            .with_beta_2(settings.beta_2)
            .with_epsilon(settings.epsilon)
            .with_weight_decay(settings.weight_decay);
        Self { inner: config.init() }
    }

    /// One step.
    pub fn step<M: Module>(&mut self, learning_rate: f64, model: M, gradients: GradientsParams) -> M {
        self.inner.step(learning_rate, model, gradients)
    }

    /// Writes the moments.
    ///
    /// # Errors
    /// [`TrainError::WriteCheckpoint`] naming the file.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        self.inner.save(path).map_err(|error| TrainError::write_checkpoint(path, error))
    }

    /// Reads moments that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] naming the file.
    pub fn load(self, path: &Path) -> Result<Self, TrainError> {
        let inner = self.inner.load(path).map_err(|error| TrainError::checkpoint(path, error))?;
        Ok(Self { inner })
    }
}
