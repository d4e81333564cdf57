//! Buffers that the calls of an engine use anew.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::embedder::EmbedderWork;
use crate::profile::Profile;
use crate::stack::Scratch;
use crate::token_decoder::TokenState;

/// What one call, or the decoding of one block, works with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    pub(crate) x: Vec<f32>,
    pub(crate) embedder: EmbedderWork,
    pub(crate) scratch: Scratch,
    /// The blocks being decoded.
    pub(crate) tokens: Option<TokenState>,
    pub(crate) profile: Profile,
}

/// Buffers that nobody uses at the moment. An engine needs two at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spare(Arc<Mutex<Vec<Work>>>);

impl Spare {
    pub(crate) fn take(&self) -> Lent {
        let work = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Lent { work: work.unwrap_or_default(), spare: self.clone() }
    }
}

/// Buffers in use, which are given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Lent {
    work: Work,
    spare: Spare,
}

impl Deref for Lent {
    type Target = Work;

    fn deref(&self) -> &Work {
        &self.work
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Work {
        &mut self.work
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let work = std::mem::take(&mut self.work);
        self.spare.0.lock().unwrap_or_else(PoisonError::into_inner).push(work);
    }
}
