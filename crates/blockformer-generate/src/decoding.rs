//! Where tokens are drawn, and how often they are looked at.

use std::num::NonZeroUsize;

use blockformer_model::BlockLayout;

use crate::Sampling;
use crate::generate::size_class;

/// Tokens that are decoded between two looks at them, or the next whole blocks of so many.
const TOKENS_PER_READ: usize = 16;

/// Where tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decoding {
    /// On the host, which looks at the logits of every token. Right for CPUs, where looking costs nothing.
    #[default]
    Host,
    /// On the device, where the logits are: the host enqueues the steps of several tokens and then waits once. Right
    /// for GPUs. The tokens are those of [`Host`](Self::Host), up to rounding. Options that need the host
    /// ([`Sampling::typical_p`]) are drawn there nevertheless.
    Device(DeviceDecoding),
}

/// How tokens are decoded on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceDecoding {
    /// Tokens of each sequence that are decoded between two looks at them. What comes behind a stop token is dropped, so
    /// more of them waste more at the end of texts and wait less often: while it waits, the host enqueues nothing. `None`: 16 tokens, or the
    /// next whole blocks of so many.
    pub tokens_per_read: Option<NonZeroUsize>,
    /// Whether batch, prompts and caches are filled up to sizes of which there are few, so that a device that compiles
    /// or tunes its kernels for each shape is asked for few of them.
    pub static_shapes: bool,
    /// Graph capture: whether the device records what decodes a block (or a token of a vanilla transformer) and from then on
    /// repeats it by one call a block ([`Recording`](blockformer_cubecl::Recording)), where
    /// [model and device can](crate::LanguageModel::recordable_steps), sampling has no penalties or bias, and so many
    /// tokens are left to each sequence: recording decodes three blocks for nothing, and where a device fails to record, prompts
    /// are taken in once more. `None`: never. The tokens are the same. While it records, **no other thread may use the device**.
    pub recorded_from: Option<usize>,
}

impl DeviceDecoding {
    /// A sensible [`recorded_from`](Self::recorded_from).
    pub const RECORDED_FROM: usize = 64;

    /// The rows that a batch of so many sequences is computed with: those of batches up to the next of a few sizes, where
    /// [shapes are static](Self::static_shapes).
    pub fn rows_of(&self, batch: usize) -> usize {
        if self.static_shapes { size_class(batch) } else { batch }
    }

    /// Tokens decoded between two looks at them.
    pub(crate) fn tokens_per_read(&self, layout: &BlockLayout) -> usize {
        match self.tokens_per_read {
            Some(tokens) => tokens.get(),
            None => TOKENS_PER_READ.next_multiple_of(layout.block_length),
        }
    }
}

impl Decoding {
    /// How tokens are drawn on the device, if they are.
    pub(crate) fn on_device(&self, sampling: &Sampling) -> Option<DeviceDecoding> {
        match self {
            Self::Device(decoding) if sampling.typical_p.is_none_or(|p| p >= 1.0) => Some(*decoding),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_looked_at_in_whole_blocks() {
        let layout = |block_length| BlockLayout {
            block_length,
            max_length: 64 * block_length,
            pad_token_id: 0,
            vocab_size: 10,
            predict_first_block: false,
        };
        let read = |decoding: DeviceDecoding| [1, 4, 5, 32].map(|length| decoding.tokens_per_read(&layout(length)));
        assert_eq!(read(DeviceDecoding::default()), [16, 16, 20, 32]);
        let tokens_per_read = NonZeroUsize::new(3);
        assert_eq!(read(DeviceDecoding { tokens_per_read, ..DeviceDecoding::default() }), [3; 4]);
    }
}
