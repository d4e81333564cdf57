//! What can be wrong with a pair of models.

use blockformer_nn::ConfigError;
use thiserror::Error;

/// Why a Block Transformer cannot begin with the weights of a vanilla transformer.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum UptrainingError {
    /// A configuration whose sizes do not fit together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Numbers of layers that the method cannot fill.
    #[error(
        "{method} of {vanilla} vanilla layers cannot fill {block} layers of the block decoder and {token} of the token \
         decoder: it needs {needs}"
    )]
    Layers {
        /// The method.
        method: &'static str,
        /// Layers of the vanilla transformer.
        vanilla: usize,
        /// Layers of the block decoder.
        block: usize,
        /// Layers of the token decoder.
        token: usize,
        /// What would do, in words.
        needs: &'static str,
    },
    /// A setting in which the models must agree.
    #[error("{part}: {field} is {block}, but the vanilla transformer has {vanilla}")]
    Mismatch {
        /// The part of the Block Transformer.
        part: &'static str,
        /// The setting.
        field: String,
        /// Its value there.
        block: String,
        /// Its value in the vanilla transformer.
        vanilla: String,
    },
    /// A part or initialisation that does not go with the others.
    #[error("{what} needs {needs}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// A parameter of a copied module that the vanilla transformer does not have, or of another shape.
    #[error("{name} of shape {shape:?} has no counterpart in the vanilla transformer")]
    NoCounterpart {
        /// The parameter's name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
}
