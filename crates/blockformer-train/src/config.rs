//! The settings of a run.

use serde::{Deserialize, Serialize};

use crate::{AdamWSettings, LossConfig, Schedule, TrainError};

/// The settings of a run. With the same settings, data and initial model, a run on one CPU gives the same weights bit
/// for bit, also when it was stopped and resumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Samples a step.
    pub batch_size: usize,
    /// Backward passes a step: each takes `batch_size / accumulation` samples.
    pub accumulation: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// What remains of it at the end of the cosine.
    pub min_learning_rate_ratio: f64,
    /// Steps of linear warmup.
    pub warmup_steps: usize,
    /// Gradients are scaled down to this global norm; 0 leaves them alone.
    pub max_gradient_norm: f64,
    /// Losses besides the cross-entropy of tokens.
    #[serde(default)]
    pub losses: LossConfig,
    /// AdamW.
    pub optimizer: AdamWSettings,
    /// Order of the samples.
    pub seed: u64,
}

impl Default for TrainConfig {
    /// The paper's optimizer and schedule, with a batch for small machines.
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 16,
            accumulation: 1,
            learning_rate: 1e-3,
            min_learning_rate_ratio: 0.1,
            warmup_steps: 100,
            max_gradient_norm: 1.0,
            losses: LossConfig::default(),
            optimizer: AdamWSettings::default(),
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// The learning rate of every step.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            peak: self.learning_rate,
            min_ratio: self.min_learning_rate_ratio,
            warmup_steps: self.warmup_steps,
            total_steps: self.steps,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] naming the first that does not serve.
    pub fn validate(&self) -> Result<(), TrainError> {
        let setting = |field, value, expected| Err(TrainError::Setting { field, value, expected });
        if self.steps == 0 {
            return setting("steps", 0.0, "at least 1");
        }
        if self.batch_size == 0 {
            return setting("batch_size", 0.0, "at least 1");
        }
        if self.accumulation == 0 || !self.batch_size.is_multiple_of(self.accumulation) {
            return setting("accumulation", self.accumulation as f64, "a divisor of batch_size");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return setting("learning_rate", self.learning_rate, "a positive number");
        }
        if !(0.0..=1.0).contains(&self.min_learning_rate_ratio) {
            return setting("min_learning_rate_ratio", self.min_learning_rate_ratio, "a number from 0 to 1");
        }
        self.optimizer.validate()?;
        if self.max_gradient_norm.is_nan() || self.max_gradient_norm < 0.0 {
            return setting("max_gradient_norm", self.max_gradient_norm, "0 or a positive number");
        }
        Ok(())
    }
}
