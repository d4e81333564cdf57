//! Unscaled attention with separate projections, and T5's bias by relative position.

use blockformer_nn::{linear, linear_init, normal_embedding};
use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use super::CrossAttentionConfig;

/// A score that leaves nothing of a position; twice it is still a number.
fn hidden(dtype: DType) -> f32 {
    if dtype == DType::F16 { -3e4 } else { -1e9 }
}

/// The projections of one attention.
#[derive(Module, Debug)]
pub struct CrossAttentionHeads {
    /// `d_model -> n_heads · head_dim`.
    pub query: Linear,
    /// `d_model -> n_heads · head_dim`.
    pub key: Linear,
    /// `d_model -> n_heads · head_dim`.
    pub value: Linear,
    /// `n_heads · head_dim -> d_model`.
    pub output: Linear,
    n_heads: usize,
}

impl CrossAttentionHeads {
    pub(super) fn new(config: &CrossAttentionConfig, device: &Device) -> Self {
        let CrossAttentionConfig { d_model, n_heads, head_dim, .. } = *config;
        let inner = n_heads * head_dim;
        let projection = |input, output, fan: usize| linear_init(input, output, false, (fan as f64).powf(-0.5), device);
        Self {
            query: projection(d_model, inner, d_model * head_dim), // makes up for the missing scale of the scores
            key: projection(d_model, inner, d_model),
            value: projection(d_model, inner, d_model),
            output: projection(inner, d_model, inner),
            n_heads,
        }
    }

    /// `[rows, n, d_model]` to twice `[rows, n_heads, n, head_dim]`.
    pub(super) fn keys_values(&self, x: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
        (self.heads(linear(&self.key, x.clone())), self.heads(linear(&self.value, x)))
    }

    /// `x` is `[rows, n, d_model]`, keys and values `[rows, n_heads, m, head_dim]`, the bias is added to the scores.
    pub(super) fn attend(
        &self,
        x: Tensor<3>,
        keys: Tensor<4>,
        values: Tensor<4>,
        bias: Option<Tensor<4>>,
    ) -> Tensor<3> {
        let [rows, n, _] = x.dims();
        let scores = self.heads(linear(&self.query, x)).matmul(keys.transpose()); // [rows, n_heads, n, m]
        let scores = match bias {
            Some(bias) => scores + bias,
            None => scores,
        };
        let mixed = softmax(scores, 3).matmul(values); // [rows, n_heads, n, head_dim]
        let inner = mixed.dims()[1] * mixed.dims()[3];
        linear(&self.output, mixed.swap_dims(1, 2).reshape([rows, n, inner]))
    }

    fn heads(&self, x: Tensor<3>) -> Tensor<4> {
        let [rows, n, inner] = x.dims();
        x.reshape([rows, n, self.n_heads, inner / self.n_heads]).swap_dims(1, 2)
    }
}

/// A learned bias for each head and bucket of distances to the past. Near distances have a bucket each, far ones share
/// logarithmically wider ones.
#[derive(Module, Debug)]
pub struct RelativeBias {
    /// `[buckets, n_heads]`.
    pub embedding: Embedding,
    max_distance: usize,
}

impl RelativeBias {
    pub(super) fn new(config: &CrossAttentionConfig, device: &Device) -> Self {
        let std = (config.d_model as f64).powf(-0.5);
        let embedding = normal_embedding(config.relative_buckets, config.n_heads, std, device);
        Self { embedding, max_distance: config.relative_max_distance }
    }

    /// The bias of queries `start..end` to keys `0..end`, which hides the future and, where `mask` is false, padding.
    ///
    /// # Shapes
    /// - `mask`: `[rows, end]`
    /// - returns: `[rows or 1, n_heads, end - start, end]`
    pub(super) fn forward(&self, start: usize, end: usize, mask: Option<Tensor<2, Bool>>) -> Tensor<4> {
        let table = self.embedding.weight.val();
        let ([n_buckets, n_heads], device) = (table.dims(), table.device());
        let n = end - start;
        let pairs = (0..n * end).map(|i| (start + i / end, i % end)); // (query, key)
        let buckets: Vec<i32> =
            pairs.clone().map(|(query, key)| self.bucket(query.saturating_sub(key), n_buckets) as i32).collect();
        let future: Vec<bool> = pairs.map(|(query, key)| key > query).collect();
        let buckets = Tensor::<1, Int>::from_data(TensorData::new(buckets, [n * end]), &device);
        let bias = table.select(0, buckets).reshape([n, end, n_heads]).permute([2, 0, 1]).unsqueeze::<4>();
        let future = Tensor::<4, Bool>::from_data(TensorData::new(future, [1, 1, n, end]), &device);
        let hidden = hidden(bias.dtype());
        let bias = bias.mask_fill(future.expand([1, n_heads, n, end]), hidden);
        match mask {
            Some(mask) => {
                let rows = mask.dims()[0];
                let mask = mask.bool_not().float().cast(bias.dtype()).mul_scalar(hidden);
                bias + mask.reshape([rows, 1, 1, end])
            }
            None => bias,
        }
    }

    /// The biases of distances to the past from 0 on, `[n_heads, n]`, row by row.
    ///
    /// # Panics
    /// If the device cannot be read.
    pub fn by_distance(&self, n: usize) -> Vec<f32> {
        let table = self.embedding.weight.val();
        let [n_buckets, n_heads] = table.dims();
        let table: Vec<f32> = table.into_data().iter::<f32>().collect();
        let bias = |head: usize, distance: usize| table[self.bucket(distance, n_buckets) * n_heads + head];
        (0..n_heads * n).map(|i| bias(i / n, i % n)).collect()
    }

    /// T5's bucket of a distance to the past.
    fn bucket(&self, distance: usize, n_buckets: usize) -> usize {
        let exact = n_buckets / 2;
        if distance < exact {
            return distance;
        }
        let ratio = (distance as f32 / exact as f32).ln() / (self.max_distance as f32 / exact as f32).ln();
        (exact + (ratio * (n_buckets - exact) as f32) as usize).min(n_buckets - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_fall_into_the_buckets_of_t5() {
        let embedding = normal_embedding(32, 2, 1.0, &Device::flex());
        let bias = RelativeBias { embedding, max_distance: 128 };
        // From the formula of Raffel et al. with 32 buckets and distance 128, one direction.
        for (distance, bucket) in
            [(0, 0), (15, 15), (16, 16), (17, 16), (20, 17), (32, 21), (64, 26), (127, 31), (500, 31)]
        {
            assert_eq!(bias.bucket(distance, 32), bucket, "distance {distance}");
        }
    }
}
