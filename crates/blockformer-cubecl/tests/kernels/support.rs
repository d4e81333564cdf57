//! Numbers, tensors and the definition of attention in float64.

use burn::tensor::{DType, Device, Tensor, TensorData};

pub(crate) fn device() -> Device {
    if let Ok(wanted) = std::env::var("BLOCKFORMER_TEST_DEVICE") {
        let default = if cfg!(feature = "cuda") { ["cuda", "cuda:0"] } else { ["wgpu", "wgpu:0"] };
        assert!(default.contains(&wanted.as_str()), "these tests run on {default:?} alone, {wanted} is wanted");
    }
    #[cfg(feature = "cuda")]
    return Device::cuda(0);
    #[cfg(not(feature = "cuda"))]
    Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)
}

/// Numbers from -1 to 1 that look random.
pub(crate) fn numbers(n: usize, salt: u64) -> Vec<f32> {
    let number = |i: u64| {
        let x = (i ^ (salt << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n as u64).map(number).collect()
}

pub(crate) fn tensor<const D: usize>(values: &[f32], shape: [usize; D], dtype: DType) -> Tensor<D> {
    Tensor::<D>::from_data(TensorData::new(values.to_vec(), shape), (&device(), DType::F32)).cast(dtype)
}

pub(crate) fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.cast(DType::F32).into_data().iter::<f64>().collect()
}

/// `[batch, heads, queries, head_dim]` and `[batch, kv_heads, keys, head_dim]`.
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head_dim: usize,
}

/// The definition: each query sees the keys up to its own position, and they are the last positions.
pub(crate) fn attention(qkv: [&[f64]; 3], sizes: &Sizes) -> Vec<f64> {
    attention_of(qkv, sizes, |_, _| true)
}

/// The same of the keys that `seen` tells of a sequence.
pub(crate) fn attention_of([q, k, v]: [&[f64]; 3], sizes: &Sizes, seen: impl Fn(usize, usize) -> bool) -> Vec<f64> {
    let Sizes { batch, heads, kv_heads, queries, keys, head_dim } = *sizes;
    let mut output = Vec::new();
    for row in 0..batch * heads * queries {
        let (b, h, i) = (row / queries / heads, row / queries % heads, row % queries);
        let q = &q[row * head_dim..][..head_dim];
        let at = |x: usize| ((b * kv_heads + h / (heads / kv_heads)) * keys + x) * head_dim;
        let scores = (0..keys - queries + i + 1).map(|key| {
            let dot: f64 = q.iter().zip(&k[at(key)..]).map(|(q, k)| q * k).sum();
            if seen(b, key) { (dot / (head_dim as f64).sqrt()).exp() } else { 0.0 }
        });
        let scores: Vec<f64> = scores.collect();
        let total: f64 = scores.iter().sum();
        output.extend(
            (0..head_dim)
                .map(|d| scores.iter().enumerate().map(|(key, score)| score * v[at(key) + d]).sum::<f64>() / total),
        );
    }
    output
}

/// The half-split rotation of one head.
pub(crate) fn rotate(head: &[f64], [cos, sin]: [&[f64]; 2]) -> Vec<f64> {
    let half = cos.len();
    let mut rotated = head.to_vec();
    for i in 0..half {
        rotated[i] = head[i] * cos[i] - head[i + half] * sin[i];
        rotated[i + half] = head[i + half] * cos[i] + head[i] * sin[i];
    }
    rotated
}
