//! Where the time goes.

use std::ops::AddAssign;
use std::time::Duration;

use web_time::Instant; // the standard library's, except in browsers, where that one panics

/// Time spent in the parts of a model since its state was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Profile {
    /// The embedder (of a vanilla model: looking up token embeddings).
    pub embedder: Duration,
    /// The block decoder.
    pub block_decoder: StackProfile,
    /// The token decoder's layers and context expansion (of a vanilla model: all its layers).
    pub token_decoder: StackProfile,
    /// The projection to the vocabulary.
    pub output: Duration,
}

/// Time spent in a stack of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StackProfile {
    /// Attention with its projections, norm and cache.
    pub attention: Duration,
    /// Feed-forward networks with their norm.
    pub feed_forward: Duration,
    /// What is neither.
    pub other: Duration,
}

impl StackProfile {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.attention + self.feed_forward + self.other
    }
}

impl AddAssign for StackProfile {
    fn add_assign(&mut self, more: Self) {
        self.attention += more.attention;
        self.feed_forward += more.feed_forward;
        self.other += more.other;
    }
}

impl Profile {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.embedder + self.block_decoder.total() + self.token_decoder.total() + self.output
    }
}

/// Adds the time since the last call to one part or another.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn lap(&mut self, part: &mut Duration) {
        let now = Instant::now();
        *part += now - self.0;
        self.0 = now;
    }
}
