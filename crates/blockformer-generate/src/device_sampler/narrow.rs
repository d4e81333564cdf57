//! Narrowing the choice without sorting.
//!
//! A filter keeps the first of the tokens in the order of [`Sampler`](crate::Sampler), likeliest first and smallest ids
//! first among equals. Where that prefix ends is found by halving: first the weight at its end, then, among the tokens of
//! that weight, the id.

use burn::tensor::{Bool, Int, Tensor};

/// Halvings of the range of weights, 0 to 1. Weights nearer to each other than what remains count as equal.
const HALVINGS: usize = 32;

/// Keeps the `k` likeliest and takes the weight of all others.
///
/// # Shapes
/// - `weights`: `[rows, vocab_size]`, from 0 to 1; returns the same
pub(super) fn keep_likeliest(weights: Tensor<2>, k: usize) -> Tensor<2> {
    let rows = weights.dims()[0];
    let wanted = Tensor::full([rows, 1], k as f32, (&weights.device(), weights.dtype()));
    let ones = weights.ones_like();
    keep_prefix(weights, ones, wanted)
}

/// Keeps the likeliest whose weights add up to the share `p` of all.
///
/// # Shapes
/// - `weights`: `[rows, vocab_size]`, from 0 to 1; returns the same
pub(super) fn keep_nucleus(weights: Tensor<2>, p: f64) -> Tensor<2> {
    let wanted = weights.clone().sum_dim(1).mul_scalar(p);
    keep_prefix(weights.clone(), weights, wanted)
}

/// Keeps those at least `share` times as likely as the likeliest, whose weight is 1.
///
/// # Shapes
/// - `weights`: `[rows, vocab_size]`, from 0 to 1; returns the same
pub(super) fn keep_above(weights: Tensor<2>, share: f64) -> Tensor<2> {
    let below = weights.clone().lower_elem(share as f32);
    weights.mask_fill(below, 0.0)
}

/// Keeps the shortest prefix, in the order of weights, whose `measures` add up to what is `wanted`, `[rows, 1]`.
fn keep_prefix(weights: Tensor<2>, measures: Tensor<2>, wanted: Tensor<2>) -> Tensor<2> {
    let (shape, options) = (weights.dims(), (&weights.device(), weights.dtype()));
    let [rows, vocab_size] = shape;
    let enough = |kept: &Tensor<2, Bool>| {
        let measured = measures.clone().mask_fill(kept.clone().bool_not(), 0.0).sum_dim(1);
        measured.greater_equal(wanted.clone()) // [rows, 1]
    };
    let from = |weight: Tensor<2>| weights.clone().greater_equal(weight.expand(shape));
    // Those from `low` on are enough, those from `high` on are not.
    let (low, high) = (Tensor::zeros([rows, 1], options), Tensor::full([rows, 1], 2.0, options));
    let (low, high) = halve(low, high, HALVINGS, |sum| sum.mul_scalar(0.5), |middle| enough(&from(middle)));
    let (level, above) = (from(low), from(high));
    let ids = Tensor::<1, Int>::arange(0..vocab_size as i64, &weights.device()).float().cast(weights.dtype());
    let ids = ids.reshape([1, vocab_size]).expand(shape);
    let up_to = |id: Tensor<2>| {
        let first = ids.clone().lower_equal(id.expand(shape));
        above.clone().bool_or(level.clone().bool_and(first))
    };
    // Of the tokens in between, those up to the last id are enough, and none of them are not.
    let (last, none) =
        (Tensor::full([rows, 1], vocab_size as f32 - 1.0, options), Tensor::full([rows, 1], -1.0, options));
    let halvings = vocab_size.next_power_of_two().ilog2() as usize + 1;
    let (last, _) = halve(last, none, halvings, |sum| sum.mul_scalar(0.5).floor(), |id| enough(&up_to(id)));
    weights.mask_fill(up_to(last).bool_not(), 0.0)
}

/// Moves a number for which `holds` and one for which it does not towards each other, in every row by itself; `middle`
/// makes what is between two numbers of their sum.
fn halve(
    mut good: Tensor<2>,
    mut bad: Tensor<2>,
    times: usize,
    middle: impl Fn(Tensor<2>) -> Tensor<2>,
    holds: impl Fn(Tensor<2>) -> Tensor<2, Bool>,
) -> (Tensor<2>, Tensor<2>) {
    for _ in 0..times {
        let between = middle(good.clone() + bad.clone());
        let held = holds(between.clone());
        good = good.mask_where(held.clone(), between.clone());
        bad = bad.mask_where(held.bool_not(), between);
    }
    (good, bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// Few distinct weights, so that there are ties everywhere, and a long tail of small ones; the first row ends with
    /// the likeliest, the second begins with it.
    fn rows(n: usize) -> [Vec<f32>; 2] {
        let weight = |i: usize| if i == n - 1 { 1.0 } else { 0.75f32.powi((i * 37 % 23) as i32) * 0.9 };
        [(0..n).map(weight).collect(), (0..n).rev().map(weight).collect()]
    }

    fn filtered(rows: &[Vec<f32>; 2], filter: impl Fn(Tensor<2>) -> Tensor<2>) -> [Vec<f32>; 2] {
        let n = rows[0].len();
        let kept = filter(Tensor::from_data(TensorData::new(rows.concat(), [2, n]), &Device::flex()));
        let kept: Vec<f32> = kept.into_data().iter::<f32>().collect();
        [kept[..n].to_vec(), kept[n..].to_vec()]
    }

    /// The prefix of the sorted tokens that `goes_on` says, given how many and which weight came before.
    fn prefix(row: &[f32], goes_on: impl Fn(usize, f64) -> bool) -> Vec<f32> {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        let mut kept = vec![0.0; row.len()];
        let (mut n, mut mass) = (0, 0.0);
        for id in order {
            if !goes_on(n, mass) {
                break;
            }
            kept[id] = row[id];
            (n, mass) = (n + 1, mass + f64::from(row[id]));
        }
        kept
    }

    #[test]
    fn the_likeliest_are_those_of_a_full_sort() {
        for n in [2, 3, 100, 129] {
            let rows = rows(n);
            for k in [1, 2, 7, 50, n - 1].into_iter().filter(|k| *k < n) {
                let got = filtered(&rows, |weights| keep_likeliest(weights, k));
                assert_eq!(got, rows.clone().map(|row| prefix(&row, |before, _| before < k)), "{k} of {n}");
            }
        }
    }

    #[test]
    fn the_nucleus_is_that_of_a_full_sort() {
        for n in [2, 100, 129] {
            let rows = rows(n);
            for p in [0.013, 0.31, 0.7, 0.9, 0.997] {
                let got = filtered(&rows, |weights| keep_nucleus(weights, p));
                let expected = rows.clone().map(|row| {
                    let total: f64 = row.iter().map(|weight| f64::from(*weight)).sum();
                    prefix(&row, |_, mass| mass < p * total)
                });
                assert_eq!(got, expected, "{p} of {n}");
            }
        }
    }

    #[test]
    fn a_share_of_the_likeliest_is_a_threshold() {
        let rows = rows(100);
        let got = filtered(&rows, |weights| keep_above(weights, 0.3));
        let kept = |weight: &f32| if *weight >= 0.3 { *weight } else { 0.0 };
        assert_eq!(got, rows.map(|row| row.iter().map(kept).collect::<Vec<_>>()));
    }

    #[test]
    fn tokens_that_weigh_nothing_make_no_difference() {
        let rows = [vec![0.0, 0.5, 0.0, 1.0, 0.0], vec![1.0, 0.0, 0.0, 0.0, 0.0]];
        assert_eq!(filtered(&rows, |weights| keep_likeliest(weights, 3)), rows);
        assert_eq!(filtered(&rows, |weights| keep_nucleus(weights, 0.9)), rows);
    }
}
