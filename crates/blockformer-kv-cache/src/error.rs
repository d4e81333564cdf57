//! What can go wrong with a cache.

use burn::tensor::DType;
use thiserror::Error;

use crate::KvStorage;

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
    /// A size of a pool that must not be zero.
    #[error("{name} is 0, expected at least 1")]
    Zero {
        /// The size.
        name: &'static str,
    },
    /// A budget that is less than one page.
    #[error("a budget of {budget} bytes is less than one page of {page_bytes} bytes")]
    Budget {
        /// The budget.
        budget: usize,
        /// What a page takes.
        page_bytes: usize,
    },
    /// A way to store numbers that the device does not know.
    #[error("keys and values cannot be stored as {storage:?}: the device has no {}", dtype.name())]
    Storage {
        /// How they were to be stored.
        storage: KvStorage,
        /// What that takes.
        dtype: DType,
    },
    /// More pages than the pool has to give, reusable ones included.
    #[error("{requested} pages are needed, {available} are available")]
    OutOfPages {
        /// Pages that were to be taken.
        requested: usize,
        /// Pages that nobody holds.
        available: usize,
    },
    /// A sequence that was closed, or is another pool's.
    #[error("there is no sequence {id} in this pool")]
    UnknownSequence {
        /// Its number.
        id: u64,
    },
    /// A sequence that stands twice in a batch.
    #[error("sequence {id} stands twice in the batch")]
    RepeatedSequence {
        /// Its number.
        id: u64,
    },
    /// Sequences that are open where none may be.
    #[error("{sequences} sequences are open, expected none")]
    Open {
        /// How many.
        sequences: usize,
    },
    /// A page that is to be published before it is full.
    #[error("page {page} cannot be published: the sequence holds {len} positions only")]
    PageNotFull {
        /// Which page of the sequence, from 0.
        page: usize,
        /// Positions held.
        len: usize,
    },
}
