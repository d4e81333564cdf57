//! How many tokens the blocks of a sample hold.
//!
//! ```text
//! block_length 4, `.` padding (mask false), ten tokens a sample
//!
//! Fixed                     a b c d | e f g h | i j ...        (the sample's length is a multiple of 4)
//! Uniform { shortest: 1 }   a b . . | c d e f | g . . . | h i j .
//! ```

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::Sample;
use crate::error::{DataError, Result};
use crate::seeded_hash::seeded_hash;

/// Sets the draws of lengths apart from those of the padding before documents.
const STREAM: u64 = 0x626c_6f63_6b73;

/// How many tokens the blocks of a sample hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
#[non_exhaustive]
pub enum BlockLengths {
    /// Every block is full: it has `block_length` tokens.
    #[default]
    Fixed,
    /// Every block has a number of tokens of its own, drawn evenly from `shortest..=block_length`, and padding behind
    /// them. A lookup embedder sees the padding's id and not the mask: give padding an id that text does not hold. The draws of a sample follow from the seed and the sample's index, and sum to the sample's length, for
    /// which a few are shifted by one.
    Uniform {
        /// Tokens of the shortest block.
        shortest: usize,
    },
}

impl BlockLengths {
    /// How many blocks a sample of `n_tokens` tokens has: the length over the mean, rounded up.
    pub fn n_blocks(self, n_tokens: usize, block_length: usize) -> usize {
        match self {
            Self::Fixed => n_tokens.div_ceil(block_length.max(1)),
            Self::Uniform { shortest } => {
                let twice_the_mean = (shortest as u128 + block_length as u128).max(1);
                usize::try_from((2 * n_tokens as u128).div_ceil(twice_the_mean)).unwrap_or(usize::MAX)
            }
        }
    }

    /// Checks that blocks can have these lengths, and that they can sum to `n_tokens`.
    pub(crate) fn validate(self, n_tokens: usize, block_length: usize) -> Result<()> {
        let Self::Uniform { shortest } = self else { return Ok(()) };
        let fits =
            || self.n_blocks(n_tokens, block_length).checked_mul(shortest).is_some_and(|least| least <= n_tokens);
        if shortest == 0 || shortest > block_length || !fits() {
            return Err(DataError::ShortestBlock { shortest, block_length, max_length: n_tokens });
        }
        Ok(())
    }

    /// The lengths of the blocks of sample `index`, which has `n_tokens` tokens.
    pub(crate) fn draw(self, n_tokens: usize, block_length: usize, seed: u64, index: u64) -> Vec<usize> {
        let n_blocks = self.n_blocks(n_tokens, block_length);
        let Self::Uniform { shortest } = self else { return vec![block_length; n_blocks] };
        let range = shortest..=block_length;
        let mut draws = Draws { key: seeded_hash(seed ^ STREAM, index), n: 0 };
        let mut lengths: Vec<usize> = (0..n_blocks).map(|_| draws.within(&range)).collect();
        let mut sum: usize = lengths.iter().sum();
        // `validate` has checked that the sum can be reached, so some block can always give way.
        while sum != n_tokens {
            let length = &mut lengths[draws.within(&(0..=n_blocks - 1))];
            if sum < n_tokens && *length < block_length {
                (*length, sum) = (*length + 1, sum + 1);
            } else if sum > n_tokens && *length > shortest {
                (*length, sum) = (*length - 1, sum - 1);
            }
        }
        lengths
    }
}

/// A sample cut into blocks of these lengths, each padded behind to `block_length`.
pub(crate) fn cut(sample: &Sample, lengths: &[usize], block_length: usize, pad_token_id: u32) -> Sample {
    let n = lengths.len() * block_length;
    let n_prompt = if sample.prompt.is_empty() { 0 } else { n };
    let mut cut = Sample { ids: vec![pad_token_id; n], mask: vec![false; n], prompt: vec![false; n_prompt] };
    let mut from = 0;
    for (block, &length) in lengths.iter().enumerate() {
        let (at, to) = (block * block_length, from + length);
        cut.ids[at..at + length].copy_from_slice(&sample.ids[from..to]);
        cut.mask[at..at + length].copy_from_slice(&sample.mask[from..to]);
        if n_prompt > 0 {
            cut.prompt[at..at + length].copy_from_slice(&sample.prompt[from..to]);
        }
        from = to;
    }
    cut
}

struct Draws {
    key: u64,
    n: u64,
}

impl Draws {
    fn within(&mut self, range: &RangeInclusive<usize>) -> usize {
        self.n += 1;
        let width = (range.end() - range.start()) as u64 + 1;
        range.start() + (seeded_hash(self.key, self.n) % width) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_lengths_are_drawn_about_equally_often() {
        let mut counts = [0_usize; 8];
        for index in 0..400 {
            for length in (BlockLengths::Uniform { shortest: 1 }).draw(256, 7, 3, index) {
                counts[length] += 1;
            }
        }
        let n: usize = counts.iter().sum();
        assert_eq!(n, 400 * 64);
        for (length, count) in counts.iter().enumerate().skip(1) {
            // The shifts that make the sum right take a little from the ends and give it to the middle.
            assert!(count.abs_diff(n / 7) < n / 35, "{length}: {counts:?}");
        }
        assert_eq!(counts[0], 0);
    }

    #[test]
    fn cut_blocks_are_padded_behind() {
        let (mask, prompt) = (vec![true, true, true, true, false, true], vec![true, true, false, false, false, false]);
        let sample = Sample { ids: (1..=6).collect(), mask, prompt };
        let cut = cut(&sample, &[1, 3, 2], 3, 99);
        assert_eq!(cut.ids, [1, 99, 99, 2, 3, 4, 5, 6, 99]);
        assert_eq!(cut.mask, [true, false, false, true, true, true, false, true, false]);
        assert_eq!(cut.prompt, [true, false, false, true, false, false, false, false, false]);
    }

    proptest! {
        #[test]
        fn lengths_are_in_range_sum_to_the_sample_and_repeat(
            shortest in 1_usize..9, more in 0_usize..9, n_tokens in 1_usize..300, seed in any::<u64>(), index in 0..9_u64,
        ) {
            let (lengths, block_length) = (BlockLengths::Uniform { shortest }, shortest + more);
            prop_assume!(lengths.validate(n_tokens, block_length).is_ok());
            let drawn = lengths.draw(n_tokens, block_length, seed, index);
            prop_assert_eq!(drawn.iter().sum::<usize>(), n_tokens);
            prop_assert_eq!(drawn.len(), lengths.n_blocks(n_tokens, block_length));
            prop_assert!(drawn.iter().all(|length| (shortest..=block_length).contains(length)));
            prop_assert_eq!(lengths.draw(n_tokens, block_length, seed, index), drawn);
        }
    }
}
