//! What can go wrong in packing.

use thiserror::Error;

/// Why a model cannot be packed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PackError {
    /// A part that runs on Burn's operations only.
    #[error("models with a {part} run on plain operations only: their weights cannot be packed")]
    Unsupported {
        /// The part, in words.
        part: &'static str,
    },
    /// A model of another kind than its configuration says.
    #[error("the model is not of the kind its configuration says")]
    Mismatch,
}
