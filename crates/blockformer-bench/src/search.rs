//! The largest batch that fits.

use blockformer_generate::Decoding;

use crate::BenchError;

/// What a batch needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    /// Bytes in all.
    pub bytes: usize,
    /// Of these, keys and values, which every further sequence has too.
    pub kv_bytes: usize,
}

impl Needed {
    /// More than there is.
    pub const TOO_MUCH: Self = Self { bytes: usize::MAX, kv_bytes: 0 };
}

/// The batch sizes up to `most` among which the largest is worth looking for: where batches are filled up to a few sizes, those.
pub fn batch_sizes(decoding: &Decoding, most: usize) -> Vec<usize> {
    let rows_of = |batch: usize| match decoding {
        Decoding::Device(decoding) => decoding.rows_of(batch),
        Decoding::Host => batch,
    };
    (1..=most).filter(|batch| rows_of(*batch) == *batch).collect()
}

/// The largest of some batch sizes, in rising order, whose `memory` is within `budget` bytes: it is measured for the first two, extrapolated
/// along the line through both (but by no less than keys and values grow, as an allocator has room for both in what it holds for one),
/// and then searched for by bisection around that guess. The smallest if there is no other.
///
/// # Errors
/// [`BenchError::Budget`] if the smallest is too much, [`BenchError::Range`] if there are no sizes, and what `memory` gives.
pub fn largest_batch(
    budget: usize,
    sizes: &[usize],
    mut memory: impl FnMut(usize) -> Result<Needed, BenchError>,
) -> Result<usize, BenchError> {
    let &[first, ref further @ ..] = sizes else {
        return Err(BenchError::Range { what: "the number of batch sizes", value: 0, expected: "at least 1" });
    };
    let one = memory(first)?;
    if one.bytes > budget {
        return Err(BenchError::Budget { needed: one.bytes, budget });
    }
    let &[second, ..] = further else { return Ok(first) };
    let two = memory(second)?;
    if two.bytes > budget {
        return Ok(first);
    }
    let grown = two.bytes.saturating_sub(one.bytes).max(two.kv_bytes.saturating_sub(one.kv_bytes));
    let each = (grown / (second - first)).max(1);
    let reach = second.saturating_add((budget - two.bytes) / each);
    let guess = sizes.partition_point(|size| *size <= reach) - 1;
    // By their places: this one fits, that one does not.
    let (mut fits, mut too_many) = (1, sizes.len());
    let mut next = guess;
    while fits + 1 < too_many {
        let candidate = next.clamp(fits + 1, too_many - 1);
        if memory(sizes[candidate])?.bytes <= budget {
            fits = candidate;
            // A good guess is confirmed by the next larger batch not fitting.
            next = if candidate == guess { candidate + 1 } else { (fits + too_many) / 2 };
        } else {
            too_many = candidate;
            // What is too much may cost minutes to find out: a wrong guess is most often wrong by little.
            next = if candidate == guess { candidate - 1 } else { (fits + too_many) / 2 };
        }
    }
    Ok(sizes[fits])
}

#[cfg(test)]
mod tests {
    use blockformer_generate::DeviceDecoding;

    use super::*;

    fn needed(bytes: usize) -> Needed {
        Needed { bytes, kv_bytes: 0 }
    }

    #[test]
    fn the_largest_batch_is_found_whatever_the_curve() {
        let curves: [fn(usize) -> usize; 4] =
            [|n| 100 + 10 * n, |n| 100 + n * n, |n| 100 + 10 * n + n / 7 * 30, |n| 100 + n / 50 * 20];
        let filled = Decoding::Device(DeviceDecoding { static_shapes: true, ..DeviceDecoding::default() });
        for curve in curves {
            for budget in [99, 101, 110, 123, 250, 1000, 5000] {
                for (most, decoding) in
                    [1, 2, 3, 64, 1000].into_iter().flat_map(|most| [(most, Decoding::Host), (most, filled)])
                {
                    let sizes = batch_sizes(&decoding, most);
                    let expected = sizes.iter().copied().take_while(|n| curve(*n) <= budget).last();
                    let found = largest_batch(budget, &sizes, |n| Ok(needed(curve(n))));
                    match expected {
                        Some(expected) => assert_eq!(found.unwrap(), expected, "budget {budget}, most {most}"),
                        None => assert!(matches!(found, Err(BenchError::Budget { .. }))),
                    }
                }
            }
        }
        assert!(matches!(largest_batch(1, &[], |_| Ok(needed(1))), Err(BenchError::Range { .. })));
    }

    #[test]
    fn a_straight_line_takes_four_measurements() {
        let mut measured = 0;
        largest_batch(10_000, &batch_sizes(&Decoding::Host, 100_000), |n| {
            measured += 1;
            Ok(needed(100 + 10 * n))
        })
        .unwrap();
        assert_eq!(measured, 4);
    }

    #[test]
    fn an_allocator_that_holds_more_than_it_needs_does_not_lead_far_beyond_what_fits() {
        // In steps of 1,000 bytes: the first two batches take the same.
        let mut tried = Vec::new();
        let found = largest_batch(10_000, &batch_sizes(&Decoding::Host, 100_000), |n| {
            tried.push(n);
            Ok(Needed { bytes: (100 + 10 * n).next_multiple_of(1000), kv_bytes: 9 * n })
        });
        assert_eq!(found.unwrap(), 990);
        assert!(tried.iter().all(|n| *n <= 2 + 9000 / 9), "{tried:?}");
    }

    #[test]
    fn sizes_are_those_that_are_computed() {
        let filled = Decoding::Device(DeviceDecoding { static_shapes: true, ..DeviceDecoding::default() });
        assert_eq!(batch_sizes(&filled, 21), [1, 2, 4, 8, 10, 12, 14, 16, 20]);
        assert_eq!(batch_sizes(&Decoding::Host, 3), [1, 2, 3]);
    }
}
