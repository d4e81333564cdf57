//! The settings of a run.

use serde::{Deserialize, Serialize};

use crate::{AdamWSettings, LossConfig, ParameterGroup, Precision, Schedule, ScheduleShape, TrainError};

/// The settings of a run. With the same settings, data and initial model, a run on one CPU gives the same weights bit
/// for bit, also when it was stopped and resumed.
///
/// In JSON, what is left out has its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Samples a step.
    pub batch_size: usize,
    /// Passes a step: each takes `batch_size / accumulation` samples, divided among the devices.
    pub accumulation: usize,
    /// Smaller batches at the beginning.
    pub batch_ramp: Option<BatchRamp>,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// What remains of it at the end of the schedule.
    pub min_learning_rate_ratio: f64,
    /// Steps of linear warmup.
    pub warmup_steps: usize,
    /// How the learning rate goes on after the warmup.
    pub schedule_shape: ScheduleShape,
    /// Gradients are scaled down to this global norm; 0 leaves them alone.
    pub max_gradient_norm: f64,
    /// Losses besides the cross-entropy of tokens.
    pub losses: LossConfig,
    /// AdamW.
    pub optimizer: AdamWSettings,
    /// Parameters with a weight decay or learning rate of their own; none in the paper.
    pub parameter_groups: Vec<ParameterGroup>,
    /// What the model computes in; weights, moments and losses are float32 in any case.
    pub precision: Precision,
    /// Whether activations are computed again in the backward pass, part by part, so that memory holds those of one
    /// part at a time (see [`Objective::recompute`](crate::Objective::recompute)).
    pub recompute: bool,
    /// Order of the samples.
    pub seed: u64,
}

/// Batches that grow linearly from `from` samples to the full size over the first `steps` steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchRamp {
    /// Samples of the first step.
    pub from: usize,
    /// Steps until batches are full.
    pub steps: usize,
}

impl Default for TrainConfig {
    /// The paper's optimizer and schedule, with a batch for small machines.
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 16,
            accumulation: 1,
            batch_ramp: None,
            learning_rate: 1e-3,
            min_learning_rate_ratio: 0.1,
            warmup_steps: 100,
            schedule_shape: ScheduleShape::Cosine,
            max_gradient_norm: 1.0,
            losses: LossConfig::default(),
            optimizer: AdamWSettings::default(),
            parameter_groups: Vec::new(),
            precision: Precision::F32,
            recompute: false,
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
            shape: self.schedule_shape,
        }
    }

    /// Samples of step `step`, counted from 0: a multiple of the samples of a pass.
    pub fn batch_size_at(&self, step: usize) -> usize {
        match self.batch_ramp {
            Some(BatchRamp { from, steps }) if step < steps => {
                let size = from + (self.batch_size - from) * step / steps;
                size - size % self.micro_batch_size()
            }
            _ => self.batch_size,
        }
    }

    /// Samples of all steps before `step`.
    pub fn samples_before(&self, step: usize) -> u64 {
        let ramp = self.batch_ramp.map_or(0, |ramp| ramp.steps).min(step);
        let ramped: u64 = (0..ramp).map(|step| self.batch_size_at(step) as u64).sum();
        ramped + (step - ramp) as u64 * self.batch_size as u64
    }

    /// Samples of a pass.
    pub fn micro_batch_size(&self) -> usize {
        self.batch_size / self.accumulation.max(1)
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
        if let Some(BatchRamp { from, .. }) = self.batch_ramp
            && (from == 0 || from > self.batch_size || !from.is_multiple_of(self.micro_batch_size()))
        {
            let expected = "a multiple of batch_size / accumulation, at most batch_size";
            return setting("batch_ramp.from", from as f64, expected);
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return setting("learning_rate", self.learning_rate, "a positive number");
        }
        if !(0.0..=1.0).contains(&self.min_learning_rate_ratio) {
            return setting("min_learning_rate_ratio", self.min_learning_rate_ratio, "a number from 0 to 1");
        }
        if let ScheduleShape::WarmupStableDecay { decay_steps } = self.schedule_shape
            && decay_steps.saturating_add(self.warmup_steps) > self.steps
        {
            return setting("decay_steps", decay_steps as f64, "at most the steps behind the warmup");
        }
        self.optimizer.validate()?;
        if self.max_gradient_norm.is_nan() || self.max_gradient_norm < 0.0 {
            return setting("max_gradient_norm", self.max_gradient_norm, "0 or a positive number");
        }
        self.losses.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramped_batches_grow_in_whole_passes_and_are_counted() {
        let ramp = Some(BatchRamp { from: 4, steps: 6 });
        let config = TrainConfig { batch_size: 16, accumulation: 8, batch_ramp: ramp, ..TrainConfig::default() };
        config.validate().unwrap();
        let sizes: Vec<usize> = (0..8).map(|step| config.batch_size_at(step)).collect();
        assert_eq!(sizes, [4, 6, 8, 10, 12, 14, 16, 16]);
        for step in 0..8 {
            assert_eq!(config.samples_before(step), sizes[..step].iter().sum::<usize>() as u64, "step {step}");
        }
        let odd = TrainConfig { batch_ramp: Some(BatchRamp { from: 3, steps: 6 }), ..config };
        assert!(matches!(odd.validate(), Err(TrainError::Setting { field: "batch_ramp.from", .. })));
    }

    #[test]
    fn a_file_says_only_what_differs_and_typing_errors_are_found() {
        let read = |json: &str| serde_json::from_str::<TrainConfig>(json);
        let config = read(
            r#"{"steps": 50, "schedule_shape": {"warmup_stable_decay": {"decay_steps": 5}}, "precision": "bf16",
                "parameter_groups": [{"parameters": "norms", "weight_decay": 0.0}, {"parameters": {"pattern": "^embedder"},
                "learning_rate_factor": 0.1}]}"#,
        )
        .unwrap();
        assert_eq!((config.steps, config.batch_size), (50, 16));
        assert_eq!(config.schedule_shape, ScheduleShape::WarmupStableDecay { decay_steps: 5 });
        assert_eq!(config.parameter_groups[1].learning_rate_factor, 0.1);
        assert_eq!(read(&serde_json::to_string(&config).unwrap()).unwrap(), config);
        assert!(read(r#"{"learning_rat": 0.1}"#).unwrap_err().to_string().contains("learning_rat"));
    }
}
