//! Narrowing the choice, without sorting the vocabulary.

use std::cmp::Ordering;

/// A token and its weight, its probability up to a factor that all share.
pub(super) type Candidate = (f32, u32);

/// Likeliest first; among equals, smallest id first, so that ties do not depend on the order of selection.
pub(super) fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

pub(super) fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.0)).sum()
}

/// Keeps the `k` likeliest, in any order, without sorting the rest.
pub(super) fn keep_likeliest(candidates: &mut Vec<Candidate>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, by_weight);
        candidates.truncate(k);
    }
}

/// Keeps the likeliest whose weights add up to the share `p` of all.
pub(super) fn keep_nucleus(candidates: &mut Vec<Candidate>, p: f64) {
    keep_share(candidates, p, by_weight);
}

/// Keeps those at least `share` times as likely as the likeliest.
pub(super) fn keep_above(candidates: &mut Vec<Candidate>, share: f64) {
    let largest = candidates.iter().map(|candidate| candidate.0).fold(0.0, f32::max);
    candidates.retain(|candidate| f64::from(candidate.0) >= share * f64::from(largest));
}

/// Keeps those whose information `-ln p` is nearest to its expectation, up to the share `p` of all.
pub(super) fn keep_typical(candidates: &mut Vec<Candidate>, p: f64) {
    let total = total(candidates);
    let information = |weight: f32| -(f64::from(weight) / total).ln();
    let expected: f64 = candidates
        .iter()
        .filter(|candidate| candidate.0 > 0.0)
        .map(|candidate| f64::from(candidate.0) / total * information(candidate.0))
        .sum();
    let surprise = |candidate: &Candidate| (information(candidate.0) - expected).abs();
    keep_share(candidates, p, |a, b| surprise(a).total_cmp(&surprise(b)).then(a.1.cmp(&b.1)));
}

/// Keeps the first in `order` whose weights add up to the share `p` of all, sorting no more than it needs.
fn keep_share(candidates: &mut Vec<Candidate>, p: f64, order: impl Fn(&Candidate, &Candidate) -> Ordering) {
    let wanted = p * total(candidates);
    let mut sorted = 0; // so many at the front are the first, in order
    let mut mass = 0.0;
    while sorted < candidates.len() {
        let end = (sorted.max(16) * 2).min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted - 1, &order);
        }
        candidates[sorted..end].sort_unstable_by(&order);
        for index in sorted..end {
            mass += f64::from(candidates[index].0);
            if mass >= wanted {
                candidates.truncate(index + 1);
                return;
            }
        }
        sorted = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn many() -> Vec<Candidate> {
        (0..5000u32).map(|i| (((i.wrapping_mul(2_654_435_761) % 1000) as f32 / 100.0).exp(), i)).collect()
    }

    /// As many of the sorted candidates as it takes to reach the share.
    fn shortest_prefix(sorted: &[Candidate], p: f64) -> usize {
        let wanted = p * total(sorted);
        let mut mass = 0.0;
        let below = sorted.iter().take_while(|candidate| {
            mass += f64::from(candidate.0);
            mass < wanted
        });
        (below.count() + 1).min(sorted.len())
    }

    #[test]
    fn the_nucleus_of_many_tokens_is_that_of_a_full_sort() {
        let mut sorted = many();
        sorted.sort_by(by_weight);
        for p in [0.01, 0.3, 0.9, 1.0] {
            let expected = shortest_prefix(&sorted, p);
            let mut kept = many();
            keep_nucleus(&mut kept, p);
            // The sum in another order may reach the share one token earlier or later.
            assert!(kept.len().abs_diff(expected) <= 1, "p {p}: {} instead of {expected}", kept.len());
            assert_eq!(kept, sorted[..kept.len()]);
        }
    }

    #[test]
    fn typical_tokens_are_those_of_the_definition() {
        let total = total(&many());
        let p = |candidate: &Candidate| f64::from(candidate.0) / total;
        let entropy: f64 = many().iter().map(|c| -p(c) * p(c).ln()).sum();
        let mut sorted = many();
        sorted.sort_by(|a, b| {
            let surprise = |c: &Candidate| (-p(c).ln() - entropy).abs();
            surprise(a).total_cmp(&surprise(b)).then(a.1.cmp(&b.1))
        });
        for share in [0.05, 0.5, 0.95] {
            let mut kept = many();
            keep_typical(&mut kept, share);
            let expected = shortest_prefix(&sorted, share);
            assert!(kept.len().abs_diff(expected) <= 1, "{share}: {} instead of {expected}", kept.len());
            assert_eq!(kept, sorted[..kept.len()]);
        }
    }

    #[test]
    fn a_share_of_the_likeliest_is_a_threshold() {
        let mut kept = many();
        keep_above(&mut kept, 0.5);
        let largest = many().iter().map(|c| c.0).fold(0.0, f32::max);
        assert_eq!(kept.len(), many().iter().filter(|c| c.0 >= 0.5 * largest).count());
        assert!(!kept.is_empty() && kept.len() < 5000);
    }
}
