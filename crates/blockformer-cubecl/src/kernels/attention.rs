//! A few queries over a short cache.
//!
//! A cube computes one query of one head: its units share the scores, eight of them a key, and then the features.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::softmax::{PARTS, add_parts, address_of, units_for, weigh};
use crate::MAX_KEYS;

#[cube(launch, address_type = "dynamic")]
fn attention_kernel<F: Float>(
    q: &Tensor<F>,          // [batch, heads, queries, head_dim]
    k: &Tensor<F>,          // [batch, kv_heads, keys, head_dim]
    v: &Tensor<F>,          // the same
    output: &mut Tensor<F>, // that of q
    scale: f32,
    #[comptime] parts: usize,
    #[comptime] max_keys: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    let units = CUBE_DIM_X as usize;
    let heads = q.shape(1);
    let queries = q.shape(2);
    let head_dim = q.shape(3);
    let keys = k.shape(2);
    let batch = CUBE_POS_X as usize / heads;
    let head = CUBE_POS_X as usize % heads;
    let query = CUBE_POS_Y as usize;
    let kv_head = head * k.shape(1) / heads;
    let seen = keys - queries + query + 1;

    let q_at = batch * q.stride(0) + head * q.stride(1) + query * q.stride(2);
    let k_at = batch * k.stride(0) + kv_head * k.stride(1);
    let v_at = batch * v.stride(0) + kv_head * v.stride(1);
    let output_at = batch * output.stride(0) + head * output.stride(1) + query * output.stride(2);
    let output_feature = output.stride(3);

    // Every part of every score.
    let mut partial = Shared::<[f32]>::new_slice(parts * max_keys);
    let mut i = unit;
    while i < seen * parts {
        let key = i / parts;
        let mut sum = 0.0f32;
        let mut feature = i % parts;
        while feature < head_dim {
            let x = f32::cast_from(q[q_at + feature * q.stride(3)]);
            let y = f32::cast_from(k[k_at + key * k.stride(2) + feature * k.stride(3)]);
            sum += x * y;
            feature += parts;
        }
        partial[i] = sum;
        i += units;
    }
    sync_cube();

    let mut scores = Shared::<[f32]>::new_slice(max_keys);
    add_parts(&partial, &mut scores, seen, scale, parts);
    let (_, total) = weigh(&mut scores, seen);
    let mut feature = unit;
    while feature < head_dim {
        let mut sum = 0.0f32;
        for key in 0..seen {
            let y = f32::cast_from(v[v_at + key * v.stride(2) + feature * v.stride(3)]);
            sum += scores[key] * y;
        }
        output[output_at + feature * output_feature] = F::cast_from(sum / total);
        feature += units;
    }
}

/// Launches it; shapes have been checked.
pub(crate) fn launch(q: CubeTensor, k: CubeTensor, v: CubeTensor) -> CubeTensor {
    let [batch, heads, queries, head_dim] = q.shape().dims::<4>();
    let keys = k.shape().dims::<4>()[2];
    let (client, dtype) = (q.client.clone(), q.dtype);
    let output = empty_device_dtype(client.clone(), q.device.clone(), q.shape(), dtype);
    let units = units_for(head_dim, &q);
    let address = address_of(&[&q, &k, &v, &output]);
    attention_kernel::launch(
        &client,
        CubeCount::Static((batch * heads) as u32, queries as u32, 1),
        CubeDim::new_1d(units),
        address,
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        (head_dim as f32).powf(-0.5),
        PARTS,
        keys.next_power_of_two().clamp(16, MAX_KEYS),
        dtype_to_storage_type(dtype),
    );
    output
}
