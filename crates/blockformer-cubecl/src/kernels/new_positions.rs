//! Attention of new positions of every sequence, from their projections to the mixed values.
//!
//! A cube serves one key head: it rotates the new keys, writes keys and values behind those of the cache, and then attends for
//! each position and query head of the group, its units sharing the scores, up to eight of them a key, and then the features, some groups of them the keys. Of a cache that
//! is longer than [`MAX_KEYS`], a cube has so many keys, and a second kernel puts the parts together.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::operations::{Optional, OptionalBool, PositionInputs};
use super::softmax::{
    Head, Strides, add_parts, address_of, gathered, own_query, put_out, scatter, sum_of, units_for, vector_at, weigh,
};
use crate::MAX_KEYS;

/// A feature of a head behind its rotation, the head beginning at `at` of the projections.
#[cube]
pub(crate) fn rotated<F: Float, T: Float>(
    qkv: &Tensor<F>,
    cos: &ComptimeOption<&Tensor<T>>,
    sin: &ComptimeOption<&Tensor<T>>,
    position: usize,
    at: usize,
    feature: usize,
) -> f32 {
    let stride = qkv.stride(2);
    let mut x = f32::cast_from(qkv[at + feature * stride]);
    #[comptime]
    if let ComptimeOption::Some(cos) = cos {
        #[comptime]
        if let ComptimeOption::Some(sin) = sin {
            let half = cos.shape(1);
            let angle = feature % half;
            let c = f32::cast_from(cos[position * cos.stride(0) + angle * cos.stride(1)]);
            let s = f32::cast_from(sin[position * sin.stride(0) + angle * sin.stride(1)]);
            if feature < half {
                x = x * c - f32::cast_from(qkv[at + (feature + half) * stride]) * s;
            } else if feature < 2 * half {
                x = x * c + f32::cast_from(qkv[at + (feature - half) * stride]) * s;
            }
        }
    }
    x
}

/// Puts a query behind its rotation where all units of the cube see it.
#[cube]
pub(crate) fn load_query<F: Float, T: Float>(
    qkv: &Tensor<F>,
    cos: &ComptimeOption<&Tensor<T>>,
    sin: &ComptimeOption<&Tensor<T>>,
    query: &mut Shared<[f32]>,
    position: usize,
    at: usize,
    head_dim: usize,
) {
    let mut feature = UNIT_POS_X as usize;
    while feature < head_dim {
        // In the type of the model, as on the plain path.
        let x = F::cast_from(rotated::<F, T>(qkv, cos, sin, position, at, feature));
        query[feature] = f32::cast_from(x);
        feature += CUBE_DIM_X as usize;
    }
    sync_cube();
}

#[cube(launch, address_type = "dynamic")]
fn new_positions_kernel<F: Float, T: Float, O: Float, B: Int, N: Size>(
    qkv: &Tensor<F>,                    // [batch, new, (heads + 2 kv_heads) · head_dim]
    cos: ComptimeOption<&Tensor<T>>,    // [positions, half]
    sin: ComptimeOption<&Tensor<T>>,    // the same
    hidden: ComptimeOption<&Tensor<B>>, // [batch or 1, 1, 1, positions or more]
    count: ComptimeOption<&[f32]>,      // [1]
    keys: &mut Tensor<Vector<F, N>>,    // [batch, kv_heads, capacity, head_dim]
    values: &mut Tensor<Vector<F, N>>,  // the same
    output: &mut [O],                   // [batch, new, heads, head_dim], or [batch, heads, parts, head_dim + 2]
    group: u32,
    len: u32,
    scale: f32,
    #[comptime] new: usize,
    #[comptime] split: bool,
    #[comptime] max_keys: usize,
    #[comptime] of_head: Head,
    #[define(F, T, O, B)] _dtypes: [ElemType; 4],
) {
    let unit = UNIT_POS_X as usize;
    let units = CUBE_DIM_X as usize;
    let group = group as usize;
    let mut len = len as usize;
    #[comptime]
    if let ComptimeOption::Some(count) = &count {
        len = usize::cast_from(count[0]);
    }
    let kv_heads = keys.shape(1);
    let head_dim = comptime!(of_head.head_dim);
    let (width, vectors) = comptime!((of_head.width(), of_head.vectors()));
    let (parts, groups) = comptime!((of_head.parts(), of_head.groups()));
    let heads = kv_heads * group;
    let batch = CUBE_POS_X as usize / kv_heads;
    let kv_head = CUBE_POS_X as usize % kv_heads;
    // This cube's keys.
    let part = CUBE_POS_Y as usize;
    let from = part * max_keys;

    let head_stride = head_dim * qkv.stride(2);
    let of_keys = Strides {
        at: batch * keys.stride(0) + kv_head * keys.stride(1),
        position: keys.stride(2),
        feature: keys.stride(3),
    };
    let of_values = Strides {
        at: batch * values.stride(0) + kv_head * values.stride(1),
        position: values.stride(2),
        feature: values.stride(3),
    };

    // The new keys and values, for these positions and for the cache.
    let mut new_key = Shared::<[f32]>::new_slice(comptime!(new * head_dim));
    let mut new_value = Shared::<[f32]>::new_slice(comptime!(new * head_dim));
    let has_new = part == len / max_keys;
    if has_new {
        let mut i = unit;
        while i < comptime!(new * head_dim) {
            let (position, feature) = (i / head_dim, i % head_dim);
            let row_at = batch * qkv.stride(0) + position * qkv.stride(1);
            let key_at = row_at + (heads + kv_head) * head_stride;
            let key = F::cast_from(rotated::<F, T>(qkv, &cos, &sin, len + position, key_at, feature));
            let value = qkv[row_at + (heads + kv_heads + kv_head) * head_stride + feature * qkv.stride(2)];
            new_key[i] = f32::cast_from(key);
            new_value[i] = f32::cast_from(value);
            i += units;
        }
    }
    sync_cube();
    if has_new {
        let mut i = unit;
        while i < comptime!(new * vectors) {
            let (position, vector) = (len + i / vectors, i % vectors);
            let (key, value) =
                (gathered::<N>(&new_key, i * width, of_head), gathered::<N>(&new_value, i * width, of_head));
            keys[vector_at(&of_keys, position, vector, of_head)] = Vector::cast_from(key);
            values[vector_at(&of_values, position, vector, of_head)] = Vector::cast_from(value);
            i += units;
        }
    }

    let mut query = Shared::<[f32]>::new_slice(head_dim);
    let mut own = Array::<Vector<f32, N>>::new(comptime!(of_head.each()));
    let mut partial = Shared::<[f32]>::new_slice(comptime!(parts * max_keys));
    let mut scores = Shared::<[f32]>::new_slice(max_keys);
    let mut mixed = Shared::<[f32]>::new_slice(comptime!(groups * head_dim));
    for query_of in 0..new * group {
        let (position, head) = (query_of / group, kv_head * group + query_of % group);
        let row_at = batch * qkv.stride(0) + position * qkv.stride(1);
        // Those held, and of the new ones those up to its own; none where the device counts fewer than there are cubes for.
        let end = len + position + 1;
        let n_keys = min(max(end, from) - from, max_keys);
        load_query::<F, T>(qkv, &cos, &sin, &mut query, len + position, row_at + head * head_stride, head_dim);

        // Every part of every score.
        let part_of_key = unit % parts;
        own_query::<N>(&query, &mut own, part_of_key, of_head);
        let mut i = unit;
        while i < n_keys * parts {
            let key = from + i / parts;
            let mut sum = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for j in 0..comptime!(of_head.each()) {
                let vector = part_of_key + comptime!(j * parts);
                if vector < vectors {
                    let y = if key < len {
                        Vector::<f32, N>::cast_from(keys[vector_at(&of_keys, key, vector, of_head)])
                    } else {
                        gathered::<N>(&new_key, (key - len) * head_dim + vector * width, of_head)
                    };
                    sum += own[j] * y;
                }
            }
            partial[i] = sum_of::<N>(sum, of_head);
            i += units;
        }
        sync_cube();

        add_parts(&partial, &mut scores, n_keys, scale, parts);
        #[comptime]
        if let ComptimeOption::Some(hidden) = &hidden {
            let mut row = 0usize;
            if hidden.shape(0) > 1 {
                row = batch * hidden.stride(0);
            }
            let mut key = unit;
            while key < n_keys {
                if hidden[row + (from + key) * hidden.stride(3)] != B::from_int(0) {
                    scores[key] = f32::min_value(); // beside any other it weighs nothing
                }
                key += units;
            }
            sync_cube();
        }
        let (largest, total) = weigh(&mut scores, n_keys);
        let mut output_at = ((batch * new + position) * heads + head) * head_dim;
        if comptime!(split) {
            output_at = ((batch * heads + head) * CUBE_COUNT_Y as usize + part) * (head_dim + 2);
        }
        let mut vector = unit;
        let mut among = 0usize;
        if comptime!(groups > 1) {
            vector = unit % vectors;
            among = unit / vectors;
        }
        if among < groups {
            while vector < vectors {
                let mut sum = Vector::<f32, N>::new(0.0f32);
                let mut key = among;
                while key < n_keys {
                    let y = if from + key < len {
                        Vector::<f32, N>::cast_from(values[vector_at(&of_values, from + key, vector, of_head)])
                    } else {
                        gathered::<N>(&new_value, (from + key - len) * head_dim + vector * width, of_head)
                    };
                    sum += Vector::new(scores[key]) * y;
                    key += groups;
                }
                scatter::<N>(sum, &mut mixed, among * head_dim + vector * width, of_head);
                vector += comptime!(if groups > 1 { vectors } else { of_head.units });
            }
        }
        sync_cube();
        put_out::<O>(&mixed, output, output_at, largest, total, split, of_head);
        sync_cube();
    }
}

/// Puts the parts of every query head together.
#[cube(launch, address_type = "dynamic")]
fn together_kernel<F: Float>(
    mixed: &[f32], // [batch · heads, parts, head_dim + 2]: the sums, the largest score, the sum of the weights
    output: &mut [F], // [batch · heads, head_dim]
    parts: u32,
    head_dim: u32,
    #[comptime] most_parts: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (parts, head_dim) = (parts as usize, head_dim as usize);
    let head = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let units = CUBE_DIM_X as usize;
    let length = head_dim + 2;
    let at = head * parts * length;
    // What each part is multiplied with, and its weights.
    let mut factors = Shared::<[f32]>::new_slice(most_parts);
    let mut totals = Shared::<[f32]>::new_slice(most_parts);
    let mut part = unit;
    while part < parts {
        factors[part] = mixed[at + part * length + head_dim];
        totals[part] = mixed[at + part * length + head_dim + 1];
        part += units;
    }
    sync_cube();
    let mut largest = factors[0];
    for part in 1..parts {
        largest = max(largest, factors[part]);
    }
    sync_cube();
    let mut part = unit;
    while part < parts {
        let factor = (factors[part] - largest).exp();
        factors[part] = factor;
        totals[part] *= factor;
        part += units;
    }
    sync_cube();
    let mut total = 0.0f32;
    for part in 0..parts {
        total += totals[part];
    }
    let mut feature = unit;
    while feature < head_dim {
        let mut sum = 0.0f32;
        for part in 0..parts {
            sum += factors[part] * mixed[at + part * length + feature];
        }
        output[head * head_dim + feature] = F::cast_from(sum / total);
        feature += units;
    }
}

/// A cache to write in place: a copy, if others hold it too.
///
/// # Panics
/// If they do and it has to stay where it is, as graphs write there. Fusion makes an error of the outputs of it, that shows where
/// they are read.
pub(crate) fn owned(cache: CubeTensor, stays: bool) -> CubeTensor {
    if cache.can_mut() && cache.is_nonoverlapping() {
        return cache;
    }
    // A graph would copy what the cache held when it was captured, again and again.
    assert!(!stays, "a cache that graphs write to belongs to somebody else, too");
    cache.copy()
}

/// What is handed out, `[rows, new, heads · head_dim]`, and where a kernel puts it: there, or the parts of each sum,
/// `[rows · new · heads, parts, head_dim + 2]`.
pub(crate) fn outputs(qkv: &CubeTensor, n_heads: usize, head_dim: usize, parts: usize) -> (CubeTensor, CubeTensor) {
    let [rows, new, _] = qkv.shape().dims::<3>();
    let empty = |shape, dtype| empty_device_contiguous_dtype(qkv.client.clone(), qkv.device.clone(), shape, dtype);
    let output = empty(Shape::new([rows, new, n_heads * head_dim]), qkv.dtype);
    let mixed = match parts {
        1 => output.clone(),
        _ => empty(Shape::new([rows * new * n_heads, parts, head_dim + 2]), DType::F32),
    };
    (output, mixed)
}

/// Puts the parts of all query heads together, `[rows · heads, parts, head_dim + 2]`, into `[rows, .., heads · head_dim]`.
pub(crate) fn put_together(mixed: CubeTensor, output: CubeTensor, parts: usize, head_dim: usize, units: CubeDim) {
    let (client, address, dtype) = (mixed.client.clone(), mixed.required_address_type(), output.dtype);
    together_kernel::launch(
        &client,
        CubeCount::Static(mixed.shape()[0] as u32, 1, 1),
        units,
        address,
        mixed.into_buffer_arg(),
        output.into_buffer_arg(),
        parts as u32,
        head_dim as u32,
        parts.next_power_of_two(),
        dtype_to_storage_type(dtype),
    );
}

/// Launches it; shapes have been checked. Caches that others hold too are copied first.
///
/// # Panics
/// If others hold a cache that the device counts.
pub(crate) fn launch(
    inputs: PositionInputs<CubeBackend>,
    n_heads: usize,
    len: usize,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let PositionInputs { qkv, cos, sin, hidden, count, keys, values } = inputs;
    let counted = !matches!(count, Optional::None);
    let [keys, values] = [keys, values].map(|x| owned(x, counted));
    let [cos, sin, count] = [cos, sin, count].map(Optional::into_option);
    let hidden = match hidden {
        OptionalBool::None => None,
        OptionalBool::Some(hidden) => Some(hidden),
    };
    let ([batch, kv_heads, _, head_dim], new) = (keys.shape().dims::<4>(), qkv.shape()[1]);
    let (client, dtype) = (qkv.client.clone(), qkv.dtype);
    let parts = (len + new).div_ceil(MAX_KEYS);
    let split = parts > 1;
    let (output, mixed) = outputs(&qkv, n_heads, head_dim, parts);
    let units = units_for(head_dim, &qkv);
    let head = Head::new(head_dim, units, [&keys, &values]);
    let units = CubeDim::new_1d(units);
    let address = address_of(&[&qkv, &keys, &values, &mixed]);
    let table_type = cos.as_ref().map_or(dtype, |cos| cos.dtype);
    let bool_type = hidden.as_ref().map_or(DType::U32, |hidden| hidden.dtype);
    new_positions_kernel::launch(
        &client,
        CubeCount::Static((batch * kv_heads) as u32, parts as u32, 1),
        units,
        address,
        head.width(),
        qkv.into_tensor_arg(),
        cos.map(CubeTensor::into_tensor_arg).into(),
        sin.map(CubeTensor::into_tensor_arg).into(),
        hidden.map(CubeTensor::into_tensor_arg).into(),
        count.map(CubeTensor::into_buffer_arg).into(),
        keys.clone().into_tensor_arg(),
        values.clone().into_tensor_arg(),
        mixed.clone().into_buffer_arg(),
        (n_heads / kv_heads) as u32,
        len as u32,
        (head_dim as f32).powf(-0.5),
        new,
        split,
        (len + new).next_power_of_two().clamp(16, MAX_KEYS),
        head,
        [dtype, table_type, mixed.dtype, bool_type].map(dtype_to_storage_type),
    );
    if split {
        put_together(mixed, output.clone(), parts, head_dim, units);
    }
    (output, keys, values)
}
