//! The largest batch that fits.

use crate::BenchError;

/// The largest batch size up to `most` whose `memory` is within `budget` bytes: it is measured at 1 and 2, extrapolated
/// along the line through both, and then searched for by bisection around that guess.
///
/// # Errors
/// [`BenchError::Budget`] if one sequence is too much, and what `memory` gives.
pub fn largest_batch(
    budget: usize,
    most: usize,
    mut memory: impl FnMut(usize) -> Result<usize, BenchError>,
) -> Result<usize, BenchError> {
    let one = memory(1)?;
    if one > budget {
        return Err(BenchError::Budget { needed: one, budget });
    }
    if most < 2 {
        return Ok(1);
    }
    let two = memory(2)?;
    if two > budget {
        return Ok(1);
    }
    let each = two.saturating_sub(one).max(1);
    let guess = (2 + (budget - two) / each).min(most);
    let (mut fits, mut too_many) = (2, most + 1);
    let mut next = guess;
    while fits + 1 < too_many {
        let candidate = next.clamp(fits + 1, too_many - 1);
        if memory(candidate)? <= budget {
            fits = candidate;
            // A good guess is confirmed by the next larger batch not fitting.
            next = if candidate == guess { candidate + 1 } else { (fits + too_many) / 2 };
        } else {
            too_many = candidate;
            next = (fits + too_many) / 2;
        }
    }
    Ok(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_batch_is_found_whatever_the_curve() {
        let curves: [fn(usize) -> usize; 3] = [|n| 100 + 10 * n, |n| 100 + n * n, |n| 100 + 10 * n + n / 7 * 30];
        for curve in curves {
            for budget in [101, 110, 123, 250, 1000, 5000] {
                for most in [1, 2, 3, 64, 1000] {
                    let expected = (1..=most).take_while(|n| curve(*n) <= budget).last();
                    let found = largest_batch(budget, most, |n| Ok(curve(n)));
                    match expected {
                        Some(expected) => assert_eq!(found.unwrap(), expected, "budget {budget}, most {most}"),
                        None => assert!(matches!(found, Err(BenchError::Budget { .. }))),
                    }
                }
            }
        }
    }

    #[test]
    fn a_straight_line_takes_four_measurements() {
        let mut measured = 0;
        largest_batch(10_000, 100_000, |n| {
            measured += 1;
            Ok(100 + 10 * n)
        })
        .unwrap();
        assert_eq!(measured, 4);
    }
}
