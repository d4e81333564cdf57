//! AdamW, as the paper trains.

use std::path::Path;

use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Module, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use serde::{Deserialize, Serialize};

use crate::{ParameterGroup, TrainError};

/// Settings of AdamW (Loshchilov & Hutter 2019), with the paper's values as defaults.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay, on every parameter that no [`ParameterGroup`] says otherwise of.
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

    fn config(&self) -> AdamWConfig {
        AdamWConfig::new()
            .with_beta_1(self.beta_1)
            .with_beta_2(self.beta_2)
            .with_epsilon(self.epsilon)
            .with_weight_decay(self.weight_decay)
    }
}

/// AdamW with its moments.
pub struct Optimizer {
    inner: ModuleOptimizer,
    /// Parameters with a learning rate of their own, and the factor on that of all.
    factors: Vec<(ParamGroup, f64)>,
}

impl Optimizer {
    /// With empty moments, all parameters alike.
    pub fn new(settings: &AdamWSettings) -> Self {
        Self { inner: settings.config().init(), factors: Vec::new() }
    }

    /// With empty moments, and `groups` of the parameters of `model` treated in their own way.
    ///
    /// # Errors
    /// [`TrainError::ParameterGroup`] naming a group that no parameter of the model is in; [`TrainError::Setting`]
    /// for a weight decay or factor out of its range.
    pub fn with_groups<M: Module>(
        settings: &AdamWSettings,
        groups: &[ParameterGroup],
        model: &M,
    ) -> Result<Self, TrainError> {
        let mut optimizer = Self::new(settings);
        for group in groups {
            // By path, not by identity: a checkpoint brings identities of its own.
            let parameters = ParamGroup::from_paths(group.parameters.paths(model)?);
            let factor = group.learning_rate_factor;
            if !(factor.is_finite() && factor >= 0.0) {
                let expected = "0 or a positive number";
                return Err(TrainError::Setting { field: "learning_rate_factor", value: factor, expected });
            }
            let weight_decay = group.weight_decay.unwrap_or(settings.weight_decay);
            let own = AdamWSettings { weight_decay, ..*settings };
            own.validate()?;
            optimizer.inner = optimizer.inner.with_group(parameters.clone(), own.config().build(), None);
            optimizer.factors.push((parameters, factor));
        }
        Ok(optimizer)
    }

    /// One step.
    pub fn step<M: Module>(&mut self, learning_rate: f64, model: M, gradients: GradientsParams) -> M {
        let mut rates = ModuleLrScheduler::new(learning_rate);
        for (parameters, factor) in &self.factors {
            rates = rates.with_group(parameters.clone(), learning_rate * factor);
        }
        self.inner.step(rates.step(), model, gradients)
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
        let Self { inner, factors } = self;
        let inner = inner.load(path).map_err(|error| TrainError::checkpoint(path, error))?;
        Ok(Self { inner, factors })
    }
}
