//! LoRA (Hu et al. 2021): a frozen model, and for chosen linear maps a trainable correction of low rank.
//!
//! ```text
//! W' = W + alpha / rank · A B        W [in, out] frozen, A [in, rank] and B [rank, out] trained, B at first zero
//! ```
//!
//! Adapters are attached to parameters ([`LoraConfig::attach`]), by Burn's reparameterisation of them: no layer knows of
//! it, models without adapters pay nothing, and it works for every part, also of your own making. A model with adapters
//! trains and generates like any other; its frozen weights and its adapters can be saved apart ([`save`], [`load`]), and
//! [`merge`] makes the corrected weights plain ones.
//!
//! Since the correction is added to the weight and not to its product, dropout drops features of a map's input for a
//! whole forward pass, not token by token, and the backward pass still forms the gradient of each adapted weight before
//! it becomes that of `A` and `B`: the optimizer's state shrinks, the time of a step hardly.
//!
//! ```
//! use blockformer_model::presets;
//! use blockformer_train::lora::{self, LoraConfig};
//! use burn::tensor::Device;
//!
//! let mut config = presets::block("block_main_b4_5").unwrap();
//! (config.vocab_size, config.max_length) = (16, 32);
//! let model = config.init(&Device::flex().autodiff()).unwrap();
//! let adapters = LoraConfig { rank: 4, targets: vec!["token_decoder.*attention".into()], ..LoraConfig::default() };
//! let model = adapters.attach(model).unwrap(); // to be trained
//! let merged = lora::merge(model);
//! # let _ = merged;
//! ```

mod adapter;
mod error;
mod file;

pub use adapter::LoraAdapter;
pub use error::LoraError;
pub use file::{load, save};

use std::collections::HashSet;

use burn::module::{Module, Param, ParamId, Reparameterizer};
use burn::tensor::Tensor;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::named_parameters::{self, Parameter};

/// What the names of adapters' parameters have behind the name of the adapted weight.
const MARK: &str = ".lora.";

/// Which linear maps are adapted, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the correction.
    pub rank: usize,
    /// The correction is scaled by `alpha / rank`.
    pub alpha: f64,
    /// The share of a map's input features that its adapter does not see, drawn anew for every forward pass in training.
    pub dropout: f64,
    /// Regular expressions; a linear map is adapted if one of them is found in the name of its weight, as weight files
    /// have it.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    /// Rank 8, alpha 16, no dropout, on all maps of attention and feed-forward networks.
    fn default() -> Self {
        let targets = [r"attention\.", r"feed_forward\."].map(String::from).to_vec();
        Self { rank: 8, alpha: 16.0, dropout: 0.0, targets }
    }
}

impl LoraConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`LoraError::Setting`] or [`LoraError::Pattern`] naming the first that does not serve.
    pub fn validate(&self) -> Result<(), LoraError> {
        let setting = |field, value, expected| Err(LoraError::Setting { field, value, expected });
        if self.rank == 0 {
            return setting("rank", 0.0, "at least 1");
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return setting("alpha", self.alpha, "a positive number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return setting("dropout", self.dropout, "a number from 0 to below 1");
        }
        self.patterns().map(drop)
    }

    fn patterns(&self) -> Result<Vec<Regex>, LoraError> {
        let compile = |pattern: &String| {
            Regex::new(pattern)
                .map_err(|error| LoraError::Pattern { pattern: pattern.clone(), reason: error.to_string() })
        };
        self.targets.iter().map(compile).collect()
    }

    /// Freezes `model` and attaches adapters to the linear maps the targets name. They change nothing until trained. On
    /// an autodiff device, the adapters are what is trained.
    ///
    /// # Errors
    /// A [`LoraError`] if the settings do not serve, no linear map is named, or there are adapters already.
    pub fn attach<M: Module>(&self, model: M) -> Result<M, LoraError> {
        self.validate()?;
        let patterns = self.patterns()?;
        let parameters = named_parameters::shapes(&model);
        if let Some(adapter) = parameters.iter().find(|parameter| parameter.name.contains(MARK)) {
            return Err(LoraError::Attached { name: adapter.name.clone() });
        }
        let linear: Vec<&Parameter> = parameters.iter().filter(|parameter| parameter.linear).collect();
        let named = |parameter: &&&Parameter| patterns.iter().any(|pattern| pattern.is_match(&parameter.name));
        let targets: HashSet<ParamId> = linear.iter().filter(named).map(|parameter| parameter.id).collect();
        if targets.is_empty() {
            let example = linear.first().map_or_else(String::new, |parameter| parameter.name.clone());
            return Err(LoraError::NoTarget { targets: self.targets.clone(), example });
        }
        Ok(model.apply_reparameterization(Attach { config: self, targets }))
    }
}

/// Makes the corrected weights of a model plain ones; without adapters it is the model itself. What was frozen stays
/// so.
pub fn merge<M: Module>(model: M) -> M {
    model.materialize()
}

/// Freezes every parameter and gives those named an adapter.
struct Attach<'a> {
    config: &'a LoraConfig,
    targets: HashSet<ParamId>,
}

impl Reparameterizer for Attach<'_> {
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        _path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LoraAdapter>) {
        let frozen = param.set_require_grad(false);
        if !self.targets.contains(&frozen.id) {
            return (frozen, None);
        }
        let weight = frozen.base();
        let (d_input, d_output) = (weight.dims()[0], weight.dims()[1]);
        let adapter = LoraAdapter::new(self.config, [d_input, d_output], weight.dtype(), &weight.device());
        (frozen, Some(adapter))
    }
}
