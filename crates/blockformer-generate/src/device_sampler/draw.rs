//! The inverse of the cumulative distribution.

use burn::tensor::{Int, Tensor, s};

/// Draws a token by its weight, with a uniform number a row: the first whose cumulative weight goes beyond that share
/// of the sum.
///
/// Weights are added up in chunks and the chunks among themselves. That takes two sums of about the root of the
/// vocabulary instead of one of its whole length, on backends whose cumulative sum takes quadratic time, and loses fewer
/// bits.
///
/// # Shapes
/// - `weights`: `[rows, vocab_size]`, not negative
/// - `uniform`: `[rows, 1]`, from 0 to less than 1
/// - returns: `[rows, 1]`
pub(super) fn draw(weights: Tensor<2>, uniform: Tensor<2>) -> Tensor<2, Int> {
    let [rows, vocab_size] = weights.dims();
    let length = chunk_length(vocab_size);
    let n_chunks = vocab_size.div_ceil(length);
    let missing = n_chunks * length - vocab_size;
    let weights = if missing == 0 { weights } else { weights.pad((0, missing, 0, 0), 0.0) };
    let chunks = weights.reshape([rows, n_chunks, length]);
    let sums = chunks.clone().sum_dim(2).reshape([rows, n_chunks]);
    let cumulative = sums.clone().cumsum(1); // [rows, n_chunks]
    let target = cumulative.clone().slice(s![.., n_chunks - 1..]) * uniform; // [rows, 1]
    let chunk = first_beyond(cumulative.clone(), sums, target.clone()); // [rows, 1]
    // What the chunks before weigh: the largest of the cumulative sums that is not beyond.
    let beyond = cumulative.clone().greater(target.clone().expand([rows, n_chunks]));
    let before = cumulative.mask_fill(beyond, 0.0).max_dim(1); // [rows, 1]
    let at = chunk.clone().reshape([rows, 1, 1]).expand([rows, 1, length]);
    let within = chunks.gather(1, at).reshape([rows, length]);
    let place = first_beyond(within.clone().cumsum(1), within, target - before);
    // Rows that are not numbers lead nowhere.
    (chunk.mul_scalar(length as i64) + place).clamp(0, vocab_size as i64 - 1)
}

/// The first place whose cumulative weight is beyond the target; where rounding has left none, the last with a weight.
fn first_beyond(cumulative: Tensor<2>, weights: Tensor<2>, target: Tensor<2>) -> Tensor<2, Int> {
    let [rows, n] = cumulative.dims();
    let before = cumulative.lower_equal(target.expand([rows, n])).int().sum_dim(1); // [rows, 1]
    let places = Tensor::<1, Int>::arange(0..n as i64, &weights.device()).reshape([1, n]).expand([rows, n]);
    let last = places.mask_fill(weights.lower_equal_elem(0.0), 0).max_dim(1);
    before.min_pair(last)
}

/// A length of chunks near the root of the vocabulary: one that divides it, if there is such a one.
fn chunk_length(vocab_size: usize) -> usize {
    let root = vocab_size.isqrt().max(1);
    let divides = |length: &usize| vocab_size.is_multiple_of(*length);
    (root..=2 * root).find(divides).or_else(|| (root.div_ceil(2)..root).rev().find(divides)).unwrap_or(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// The definition, in float64.
    fn expected(weights: &[f32], uniform: f64) -> i64 {
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let mut sum = 0.0;
        let beyond = |weight: &f32| {
            sum += f64::from(*weight);
            sum > uniform * total
        };
        weights.iter().position(beyond).unwrap() as i64
    }

    #[test]
    fn every_share_of_the_sum_leads_to_the_token_it_falls_on() {
        let device = Device::flex();
        for n in [1, 2, 3, 7, 64, 97, 1000, 1009] {
            // Sums of these are exact, so that no rounding blurs the bounds. Some weigh nothing.
            let weights: Vec<f32> = (0..n).map(|i| ((i * 37 + 5) % 8) as f32).collect();
            let uniforms: Vec<f32> = (0..256).map(|i| i as f32 / 256.0).collect();
            let row = Tensor::<2>::from_data(TensorData::new(weights.clone(), [1, n]), &device).expand([256, n]);
            let drawn = draw(row, Tensor::from_data(TensorData::new(uniforms.clone(), [256, 1]), &device));
            let drawn: Vec<i64> = drawn.into_data().iter::<i64>().collect();
            let expected: Vec<i64> = uniforms.iter().map(|uniform| expected(&weights, f64::from(*uniform))).collect();
            assert_eq!(drawn, expected, "{n} tokens");
        }
    }

    #[test]
    fn tokens_without_weight_are_never_drawn() {
        let device = Device::flex();
        let mut weights = vec![0.0f32; 50];
        (weights[17], weights[31]) = (1e-30, 3e-30);
        let row = Tensor::<2>::from_data(TensorData::new(weights, [1, 50]), &device).expand([4, 50]);
        let uniforms = TensorData::new(vec![0.0f32, 0.24, 0.26, 1.0 - f32::EPSILON / 2.0], [4, 1]);
        let drawn = draw(row, Tensor::from_data(uniforms, &device)).into_data().iter::<i64>().collect::<Vec<_>>();
        assert_eq!(drawn, [17, 17, 31, 31]);
    }

    #[test]
    fn chunks_cover_the_vocabulary_and_divide_it_where_they_can() {
        for (vocab_size, length) in [(1, 1), (2, 1), (50_304, 262), (1009, 31), (8192, 128), (32_000, 200)] {
            assert_eq!(chunk_length(vocab_size), length, "{vocab_size}");
        }
    }
}
