//! Parameters that the optimizer treats in their own way.

use std::fmt;
use std::str::FromStr;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Parameters with a weight decay or learning rate of their own. Of several groups that hold a parameter, the last
/// counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// Which.
    pub parameters: ParameterSelection,
    /// Their weight decay, if not that of all.
    #[serde(default)]
    pub weight_decay: Option<f32>,
    /// Their learning rate as a multiple of the schedule's.
    #[serde(default = "one")]
    pub learning_rate_factor: f64,
}

fn one() -> f64 {
    1.0
}

/// Parameters, by what they are or by their path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterSelection {
    /// Gains and biases of norms.
    Norms,
    /// Biases of linear maps and convolutions.
    Biases,
    /// Embedding tables.
    Embeddings,
    /// Everything that is not a matrix: norms and biases together.
    Vectors,
    /// Paths that a regular expression matches, in full or in part: `^token_decoder\.` say.
    Pattern(String),
}

impl ParameterSelection {
    /// The paths of the parameters it stands for in `model`.
    ///
    /// # Errors
    /// [`TrainError::ParameterGroup`] if there are none, or the pattern is not a regular expression.
    pub fn paths<M: Module>(&self, model: &M) -> Result<Vec<String>, TrainError> {
        let error = |reason: String| TrainError::ParameterGroup { group: self.to_string(), reason };
        let pattern = match self {
            Self::Pattern(pattern) => Some(ParamGroup::from_regex(pattern).map_err(|e| error(format!("{e:?}")))?),
            _ => None,
        };
        let mut collector =
            Collector { selection: self, pattern, path: Vec::new(), containers: Vec::new(), found: Vec::new() };
        model.visit(&mut collector);
        if collector.found.is_empty() {
            return Err(error("no parameter of the model is in it".into()));
        }
        Ok(collector.found)
    }

    fn holds(&self, name: &str, container: &str, rank: usize) -> bool {
        let norm = container.ends_with("Norm");
        match self {
            Self::Norms => norm,
            Self::Biases => !norm && name == "bias",
            Self::Embeddings => container.ends_with(":Embedding"),
            Self::Vectors => rank < 2,
            Self::Pattern(_) => false,
        }
    }
}

impl fmt::Display for ParameterSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Norms => "norms",
            Self::Biases => "biases",
            Self::Embeddings => "embeddings",
            Self::Vectors => "vectors",
            Self::Pattern(pattern) => pattern,
        })
    }
}

/// `norms`, `biases`, `embeddings` and `vectors`; anything else is a pattern.
impl FromStr for ParameterSelection {
    type Err = std::convert::Infallible;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(match name {
            "norms" => Self::Norms,
            "biases" => Self::Biases,
            "embeddings" => Self::Embeddings,
            "vectors" => Self::Vectors,
            pattern => Self::Pattern(pattern.into()),
        })
    }
}

struct Collector<'a> {
    selection: &'a ParameterSelection,
    pattern: Option<ParamGroup>,
    path: Vec<String>,
    containers: Vec<String>,
    found: Vec<String>,
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(name.into());
        self.containers.push(container_type.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        let name = self.path.last().map_or("", String::as_str);
        let container = self.containers.last().map_or("", String::as_str);
        let held = match &self.pattern {
            Some(pattern) => pattern.matches(&param.id, Some(&path)),
            None => self.selection.holds(name, container, D),
        };
        if held {
            self.found.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockformer_model::{BlockTransformer, presets};
    use burn::tensor::Device;

    fn model() -> BlockTransformer {
        let mut config = presets::block("block_main_b4_5").unwrap();
        (config.vocab_size, config.block_decoder.n_layers) = (16, 1);
        config.init(&Device::flex()).unwrap()
    }

    #[test]
    fn kinds_and_patterns_find_the_parameters_they_name() {
        let model = model();
        let paths = |name: &str| name.parse::<ParameterSelection>().unwrap().paths(&model).unwrap();
        let (norms, biases, vectors) = (paths("norms"), paths("biases"), paths("vectors"));
        assert!(norms.iter().all(|path| path.ends_with("gamma") || path.ends_with("beta")), "{norms:?}");
        assert!(biases.iter().all(|path| path.ends_with("bias")), "{biases:?}");
        assert_eq!(norms.len() + biases.len(), vectors.len());
        assert!(vectors.iter().all(|path| norms.contains(path) || biases.contains(path)));
        let tables = paths("embeddings");
        assert!(tables.iter().all(|path| path.contains("embedding")) && tables.len() >= 2, "{tables:?}");
        let all = paths(".").len();
        let (global, rest) = (paths(r"^block_decoder\.").len(), paths("^(embedder|token_decoder)").len());
        assert!(global > 0 && global + rest == all, "{global} and {rest} of {all}");
    }

    #[test]
    fn groups_that_hold_nothing_are_named() {
        let error = ParameterSelection::Pattern("no_such_thing".into()).paths(&model()).unwrap_err().to_string();
        assert_eq!(error, "parameter group \"no_such_thing\": no parameter of the model is in it");
        let error = ParameterSelection::Pattern("(".into()).paths(&model()).unwrap_err().to_string();
        assert!(error.starts_with("parameter group \"(\": "), "{error}");
    }
}
