//! Attention of one new position of every sequence, from its projections to the mixed values.
//!
//! A cube serves one key head: it rotates the new key, writes key and value behind those of the cache, and then attends for
//! each query head of the group, its units sharing the scores, eight of them a key, and then the features.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::MAX_KEYS;
use crate::softmax::{PARTS, add_parts, largest_and_total, units_for};

/// A feature of a head behind its rotation, the head beginning at `at` of the projections.
#[cube]
fn rotated<F: Float>(
    qkv: &Tensor<F>,
    cos: &Tensor<F>,
    sin: &Tensor<F>,
    at: usize,
    feature: usize,
    #[comptime] half: usize,
) -> f32 {
    let stride = qkv.stride(2);
    let mut x = f32::cast_from(qkv[at + feature * stride]);
    if comptime!(half > 0) {
        let angle = feature % half;
        let c = f32::cast_from(cos[angle * cos.stride(3)]);
        let s = f32::cast_from(sin[angle * sin.stride(3)]);
        if feature < half {
            x = x * c - f32::cast_from(qkv[at + (feature + half) * stride]) * s;
        } else if feature < 2 * half {
            x = x * c + f32::cast_from(qkv[at + (feature - half) * stride]) * s;
        }
    }
    x
}

#[cube(launch)]
fn one_position_kernel<F: Float>(
    qkv: &Tensor<F>,        // [batch, 1, (heads + 2 kv_heads) · head_dim]
    cos: &Tensor<F>,        // [1, 1, 1, half]
    sin: &Tensor<F>,        // the same
    keys: &mut Tensor<F>,   // [batch, kv_heads, capacity, head_dim]
    values: &mut Tensor<F>, // the same
    output: &mut Tensor<F>, // [batch, 1, heads · head_dim]
    group: u32,
    len: u32,
    scale: f32,
    #[comptime] half: usize,
    #[comptime] parts: usize,
    #[comptime] max_keys: usize,
    #[comptime] max_features: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    let units = CUBE_DIM_X as usize;
    let (group, len) = (group as usize, len as usize);
    let kv_heads = keys.shape(1);
    let head_dim = keys.shape(3);
    let heads = kv_heads * group;
    let batch = CUBE_POS_X as usize / kv_heads;
    let kv_head = CUBE_POS_X as usize % kv_heads;

    let row_at = batch * qkv.stride(0);
    let head_stride = head_dim * qkv.stride(2);
    let (k_position, k_feature) = (keys.stride(2), keys.stride(3));
    let (v_position, v_feature) = (values.stride(2), values.stride(3));
    let k_at = batch * keys.stride(0) + kv_head * keys.stride(1);
    let v_at = batch * values.stride(0) + kv_head * values.stride(1);
    let output_at = batch * output.stride(0);
    let output_feature = output.stride(2);

    // The new key and value, for the cache and for this position.
    let mut new_key = Shared::<[f32]>::new_slice(max_features);
    let mut new_value = Shared::<[f32]>::new_slice(max_features);
    let mut feature = unit;
    while feature < head_dim {
        let key = F::cast_from(rotated::<F>(qkv, cos, sin, row_at + (heads + kv_head) * head_stride, feature, half));
        let value = qkv[row_at + (heads + kv_heads + kv_head) * head_stride + feature * qkv.stride(2)];
        keys[k_at + len * k_position + feature * k_feature] = key;
        values[v_at + len * v_position + feature * v_feature] = value;
        new_key[feature] = f32::cast_from(key);
        new_value[feature] = f32::cast_from(value);
        feature += units;
    }

    let mut query = Shared::<[f32]>::new_slice(max_features);
    let mut partial = Shared::<[f32]>::new_slice(parts * max_keys);
    let mut scores = Shared::<[f32]>::new_slice(max_keys);
    for member in 0..group {
        let head = kv_head * group + member;
        let mut feature = unit;
        while feature < head_dim {
            // In the type of the tensors, as on the plain path.
            let x = F::cast_from(rotated::<F>(qkv, cos, sin, row_at + head * head_stride, feature, half));
            query[feature] = f32::cast_from(x);
            feature += units;
        }
        sync_cube();

        // Every part of every score.
        let mut i = unit;
        while i < (len + 1) * parts {
            let key = i / parts;
            let mut sum = 0.0f32;
            let mut feature = i % parts;
            while feature < head_dim {
                let mut y = new_key[feature];
                if key < len {
                    y = f32::cast_from(keys[k_at + key * k_position + feature * k_feature]);
                }
                sum += query[feature] * y;
                feature += parts;
            }
            partial[i] = sum;
            i += units;
        }
        sync_cube();

        add_parts(&partial, &mut scores, len + 1, scale, parts);
        let (largest, total) = largest_and_total(&scores, len + 1);
        let mut feature = unit;
        while feature < head_dim {
            let mut sum = (scores[len] - largest).exp() * new_value[feature];
            for key in 0..len {
                let y = f32::cast_from(values[v_at + key * v_position + feature * v_feature]);
                sum += (scores[key] - largest).exp() * y;
            }
            output[output_at + (head * head_dim + feature) * output_feature] = F::cast_from(sum / total);
            feature += units;
        }
        sync_cube();
    }
}

/// Launches it; shapes have been checked. Caches that others hold too are copied first.
pub(crate) fn launch(
    qkv: CubeTensor,
    [cos, sin]: [CubeTensor; 2],
    [keys, values]: [CubeTensor; 2],
    n_heads: usize,
    half: usize,
    len: usize,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let own = |x: CubeTensor| if x.can_mut() && x.is_nonoverlapping() { x } else { x.copy() };
    let [keys, values] = [keys, values].map(own);
    let [batch, kv_heads, _, head_dim] = keys.shape().dims::<4>();
    let (client, dtype) = (qkv.client.clone(), qkv.dtype);
    let shape = Shape::new([batch, 1, n_heads * head_dim]);
    let output = empty_device_dtype(client.clone(), qkv.device.clone(), shape, dtype);
    let units = units_for(head_dim, &qkv);
    one_position_kernel::launch(
        &client,
        CubeCount::Static((batch * kv_heads) as u32, 1, 1),
        CubeDim::new_1d(units),
        qkv.into_tensor_arg(),
        cos.into_tensor_arg(),
        sin.into_tensor_arg(),
        keys.clone().into_tensor_arg(),
        values.clone().into_tensor_arg(),
        output.clone().into_tensor_arg(),
        (n_heads / kv_heads) as u32,
        len as u32,
        (head_dim as f32).powf(-0.5),
        half,
        PARTS,
        (len + 1).next_power_of_two().clamp(16, MAX_KEYS),
        head_dim,
        dtype_to_storage_type(dtype),
    );
    (output, keys, values)
}
