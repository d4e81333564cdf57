//! The order in which samples are trained on.
//!
//! Each epoch is a random permutation of all samples. The permutation is computed, not shuffled: a Feistel network is
//! a keyed bijection of the numbers below a power of four, and walking its cycles until one lands below `n_samples`
//! narrows it to a bijection of the samples. Any place in any epoch is found without the ones before it and without
//! memory, so a resumed run goes on exactly where it was.

use crate::error::{DataError, Result};
use crate::seeded_hash::seeded_hash;

/// Rounds of the Feistel network. Four suffice in theory; small domains want more.
const N_ROUNDS: u64 = 8;

/// The fewest bits of half a number: networks on tiny domains mix badly.
const MIN_HALF_BITS: u32 = 3;

/// Which samples make up each batch: a pure function of the seed and the step.
///
/// Batches run over the ends of epochs, so no sample is dropped and all batches have the same size.
///
/// ```
/// # fn main() -> Result<(), blockformer_data::DataError> {
/// use blockformer_data::BatchOrder;
///
/// let order = BatchOrder::new(6, 4, 42)?;
/// let mut epoch: Vec<usize> = (0..2).flat_map(|step| order.indices(step)).take(6).collect();
/// epoch.sort();
/// assert_eq!(epoch, [0, 1, 2, 3, 4, 5]);
/// assert_eq!(order.epoch(1), 0); // batch 1 starts in epoch 0 and ends in epoch 1
/// assert_eq!(order.epoch(2), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOrder {
    n_samples: usize,
    batch_size: usize,
    seed: u64,
}

impl BatchOrder {
    /// The order of `n_samples` samples in batches of `batch_size`.
    ///
    /// # Errors
    /// [`DataError::Zero`] if either is 0.
    pub fn new(n_samples: usize, batch_size: usize, seed: u64) -> Result<Self> {
        if n_samples == 0 {
            return Err(DataError::Zero { field: "n_samples" });
        }
        if batch_size == 0 {
            return Err(DataError::Zero { field: "batch_size" });
        }
        Ok(Self { n_samples, batch_size, seed })
    }

    /// The samples of batch `step`, the first being 0.
    pub fn indices(&self, step: u64) -> Vec<usize> {
        let first = self.first_position(step);
        (first..first + self.batch_size as u128).map(|position| self.sample_at(position)).collect()
    }

    /// The epoch, from 0, that batch `step` starts in.
    pub fn epoch(&self, step: u64) -> u64 {
        (self.first_position(step) / self.n_samples as u128) as u64
    }

    /// How many samples an epoch has.
    pub fn n_samples(&self) -> usize {
        self.n_samples
    }

    /// How many samples a batch has.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    fn first_position(&self, step: u64) -> u128 {
        u128::from(step) * self.batch_size as u128
    }

    fn sample_at(&self, position: u128) -> usize {
        let epoch = (position / self.n_samples as u128) as u64;
        let place = (position % self.n_samples as u128) as u64;
        let permutation = Permutation::new(self.n_samples as u64, seeded_hash(self.seed, epoch));
        permutation.apply(place) as usize
    }
}

/// A keyed bijection of the numbers below `n`.
#[derive(Debug, Clone, Copy)]
struct Permutation {
    n: u64,
    key: u64,
    half_bits: u32,
}

impl Permutation {
    fn new(n: u64, key: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self { n, key, half_bits: bits.div_ceil(2).max(MIN_HALF_BITS) }
    }

    /// Follows the network's cycle from `x`, which is below `n`, to the next number below `n`.
    fn apply(&self, mut x: u64) -> u64 {
        loop {
            x = self.network(x);
            if x < self.n {
                return x;
            }
        }
    }

    /// A bijection of the numbers of `2 * half_bits` bits.
    fn network(&self, x: u64) -> u64 {
        let half_mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & half_mask);
        for round in 0..N_ROUNDS {
            let scrambled = seeded_hash(self.key.wrapping_add(round), right) & half_mask;
            (left, right) = (right, left ^ scrambled);
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epochs(order: &BatchOrder, n_epochs: usize) -> Vec<Vec<usize>> {
        let n = order.n_samples() * n_epochs;
        let all: Vec<usize> = (0..).flat_map(|step| order.indices(step)).take(n).collect();
        all.chunks(order.n_samples()).map(<[usize]>::to_vec).collect()
    }

    #[test]
    fn a_batch_does_not_depend_on_those_asked_for_before() {
        let order = BatchOrder::new(1000, 32, 5).unwrap();
        let in_order: Vec<_> = (0..100).map(|step| order.indices(step)).collect();
        let resumed = BatchOrder::new(1000, 32, 5).unwrap();
        for step in (0..100).rev() {
            assert_eq!(resumed.indices(step), in_order[step as usize]);
        }
    }

    #[test]
    fn epochs_and_seeds_have_different_orders() {
        let one = epochs(&BatchOrder::new(100, 10, 1).unwrap(), 2);
        let two = epochs(&BatchOrder::new(100, 10, 2).unwrap(), 1);
        assert_ne!(one[0], one[1]);
        assert_ne!(one[0], two[0]);
        assert_ne!(one[0], (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn every_sample_comes_first_equally_often() {
        for n_samples in [2, 5, 10] {
            let order = BatchOrder::new(n_samples, n_samples, 3).unwrap();
            let mut counts = vec![0_usize; n_samples];
            for step in 0..10_000 {
                counts[order.indices(step)[0]] += 1;
            }
            let expected = 10_000 / n_samples;
            for count in &counts {
                assert!(count.abs_diff(expected) < expected / 8 + 60, "{counts:?}");
            }
        }
    }

    #[test]
    fn neighbours_are_torn_apart() {
        let epoch = &epochs(&BatchOrder::new(10_000, 10, 3).unwrap(), 1)[0];
        let n_neighbours = epoch.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
        assert!(n_neighbours < 10, "{n_neighbours} of 10000 pairs follow each other, one is expected");
    }

    #[test]
    fn steps_up_to_the_largest_work() {
        let order = BatchOrder::new(7, usize::MAX / 2, 0).unwrap();
        assert!(order.epoch(u64::MAX) > 0);
        let order = BatchOrder::new(usize::MAX, 3, 0).unwrap();
        assert_eq!(order.indices(u64::MAX).len(), 3);
    }

    #[test]
    fn nothing_to_order_is_an_error() {
        assert_eq!(BatchOrder::new(0, 1, 0).unwrap_err().to_string(), "n_samples must be at least 1, got 0");
        assert_eq!(BatchOrder::new(1, 0, 0).unwrap_err().to_string(), "batch_size must be at least 1, got 0");
    }

    proptest! {
        #[test]
        fn every_sample_comes_exactly_once_an_epoch(
            n_samples in 1_usize..300, batch_size in 1_usize..40, seed in any::<u64>(),
        ) {
            let order = BatchOrder::new(n_samples, batch_size, seed).unwrap();
            for mut epoch in epochs(&order, 3) {
                epoch.sort();
                prop_assert_eq!(epoch, (0..n_samples).collect::<Vec<_>>());
            }
        }
    }
}
