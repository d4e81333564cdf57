//! What can go wrong with a cache.

use thiserror::Error;

/// Why a cache refused an operation. The cache is unchanged afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// More positions than the cache was made for.
    #[error("the cache is full: {requested} new positions do not fit, {len} of {capacity} are taken")]
    Full {
        /// Positions already held.
        len: usize,
        /// Positions the cache was made for.
        capacity: usize,
        /// Positions that were to be added.
        requested: usize,
    },
    /// Keys or values whose shape is not `[batch, n_kv_heads, positions, head_dim]` of this cache.
    #[error("{name} of shape {got:?} do not fit a cache of [batch, heads, capacity, head_dim] = {expected:?}")]
    Shape {
        /// `"keys"` or `"values"`.
        name: &'static str,
        /// The cache's own shape; any number of positions up to its capacity is fine.
        expected: [usize; 4],
        /// What was given.
        got: [usize; 4],
    },
    /// A length to shorten to that lies beyond what is held.
    #[error("cannot shorten the cache to {requested} positions: it holds {len}")]
    Truncate {
        /// Positions held.
        len: usize,
        /// Positions that were to stay.
        requested: usize,
    },
}
