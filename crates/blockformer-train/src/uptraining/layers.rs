//! Which layers become which.

use serde::{Deserialize, Serialize};

use super::UptrainingError;

/// How the layers of a vanilla transformer become those of the block decoder and of the token decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LayerMethod {
    /// The first part becomes the block decoder, the rest the token decoder; together they have as many layers as the
    /// vanilla transformer. The method of the paper's configurations.
    #[default]
    Partition,
    /// Each decoder takes every n-th layer from the first on, with n for each decoder the ratio of the vanilla layers
    /// to its own (rounded down where that is not a whole number).
    Skip,
    /// Each decoder takes all layers.
    Duplicate,
}

/// For each layer of the decoders, the vanilla layer it is a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LayerSources {
    pub(super) block: Vec<usize>,
    pub(super) token: Vec<usize>,
}

impl LayerMethod {
    /// Its name, as in configurations and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Skip => "skip",
            Self::Duplicate => "duplicate",
        }
    }

    /// The layers that `block` layers of the block decoder and `token` of the token decoder come from.
    pub(super) fn sources(self, vanilla: usize, block: usize, token: usize) -> Result<LayerSources, UptrainingError> {
        let refuse = |needs| Err(UptrainingError::Layers { method: self.name(), vanilla, block, token, needs });
        let every = |n: usize| (0..n).map(|layer| layer * vanilla / n).collect();
        match self {
            Self::Partition if block.checked_add(token) != Some(vanilla) => {
                refuse("as many layers in both together as the vanilla transformer has")
            }
            Self::Partition => Ok(LayerSources { block: (0..block).collect(), token: (block..vanilla).collect() }),
            Self::Skip if block > vanilla || token > vanilla => {
                refuse("at most as many layers in each as the vanilla transformer has")
            }
            Self::Skip => Ok(LayerSources { block: every(block), token: every(token) }),
            Self::Duplicate if block != vanilla || token != vanilla => {
                refuse("as many layers in each as the vanilla transformer has")
            }
            Self::Duplicate => Ok(LayerSources { block: (0..vanilla).collect(), token: (0..vanilla).collect() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(method: LayerMethod, vanilla: usize, block: usize, token: usize) -> (Vec<usize>, Vec<usize>) {
        let LayerSources { block, token } = method.sources(vanilla, block, token).unwrap();
        (block, token)
    }

    #[test]
    fn each_method_takes_its_layers() {
        assert_eq!(sources(LayerMethod::Partition, 5, 3, 2), (vec![0, 1, 2], vec![3, 4]));
        assert_eq!(sources(LayerMethod::Skip, 6, 3, 2), (vec![0, 2, 4], vec![0, 3]));
        assert_eq!(sources(LayerMethod::Skip, 5, 3, 5), (vec![0, 1, 3], vec![0, 1, 2, 3, 4]));
        assert_eq!(sources(LayerMethod::Duplicate, 2, 2, 2), (vec![0, 1], vec![0, 1]));
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_with_what_would() {
        let message = |method: LayerMethod, v, b, t| method.sources(v, b, t).unwrap_err().to_string();
        assert_eq!(
            message(LayerMethod::Partition, 6, 3, 2),
            "partition of 6 vanilla layers cannot fill 3 layers of the block decoder and 2 of the token decoder: it needs as \
             many layers in both together as the vanilla transformer has"
        );
        assert!(message(LayerMethod::Skip, 6, 3, 7).contains("at most as many layers in each"));
        assert!(message(LayerMethod::Duplicate, 6, 6, 5).contains("needs as many layers in each"));
    }
}
