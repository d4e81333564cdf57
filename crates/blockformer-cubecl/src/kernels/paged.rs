//! Attention of the new positions of many sequences, whose keys and values lie in pages of a common pool.
//!
//! As [`new_positions`](super::new_positions), but for where a position lies: a cube looks up the rows of its keys in the
//! table first. A cube has one position, which has a table of its own. Where there are several of a sequence, a kernel of its own has
//! written their keys and values before, as other cubes look at them.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::new_positions::{load_query, outputs, owned, put_together, rotated};
use super::operations::{Optional, PagedInputs};
use super::softmax::{PARTS, add_parts, address_of, units_for, weigh};
use crate::MAX_KEYS;

/// The row of the pool where a position of the sequence lies whose table begins at `table`.
#[cube]
fn row_of(tables: &Tensor<i32>, table: usize, position: usize, page_length: usize) -> usize {
    let page = tables[table + (1 + position / page_length) * tables.stride(1)];
    usize::cast_from(page) * page_length + position % page_length
}

/// Where the projections of a new position begin.
#[cube]
fn place_of<F: Float>(qkv: &Tensor<F>, new: usize) -> usize {
    let each = qkv.shape(1);
    (new / each) * qkv.stride(0) + (new % each) * qkv.stride(1)
}

/// Writes a feature of a new key and of its value where the position lies, and returns them.
#[cube]
fn write_new<F: Float, P: Float, T: Float>(
    qkv: &Tensor<F>,
    cos: &ComptimeOption<&Tensor<T>>,
    sin: &ComptimeOption<&Tensor<T>>,
    keys: &mut Tensor<P>,
    values: &mut Tensor<P>,
    at: &NewPlace,
    feature: usize,
) -> (f32, f32) {
    // By way of the model's type, as on the plain path.
    let key = F::cast_from(rotated::<F, T>(qkv, cos, sin, at.position, at.key, feature));
    let key = P::cast_from(f32::cast_from(key));
    let value = P::cast_from(f32::cast_from(qkv[at.value + feature * qkv.stride(2)]));
    let key_at = at.row * keys.stride(0) + (at.first + feature) * keys.stride(1);
    let value_at = at.row * values.stride(0) + (at.first + feature) * values.stride(1);
    keys[key_at] = key;
    values[value_at] = value;
    (f32::cast_from(key), f32::cast_from(value))
}

/// Where a new key and its value are.
#[derive(CubeType)]
struct NewPlace {
    /// The position in its sequence.
    position: usize,
    /// The row of the pool.
    row: usize,
    /// The first feature of the head in that row.
    first: usize,
    /// Where the key begins among the projections.
    key: usize,
    /// Where the value does.
    value: usize,
}

#[cube(launch, address_type = "dynamic")]
fn write_kernel<F: Float, P: Float, T: Float>(
    qkv: &Tensor<F>,
    cos: ComptimeOption<&Tensor<T>>,
    sin: ComptimeOption<&Tensor<T>>,
    tables: &Tensor<i32>,
    keys: &mut Tensor<P>,
    values: &mut Tensor<P>,
    heads: u32,
    kv_heads: u32,
    page_length: u32,
    longest: u32,
    #[comptime] head_dim: usize,
    #[define(F, P, T)] _dtypes: [ElemType; 3],
) {
    let (heads, kv_heads) = (heads as usize, kv_heads as usize);
    let (new, kv_head) = (CUBE_POS_X as usize / kv_heads, CUBE_POS_X as usize % kv_heads);
    let table = new * tables.stride(0);
    let position = min(usize::cast_from(tables[table]), longest as usize);
    let at = place_of(qkv, new);
    let head_stride = head_dim * qkv.stride(2);
    let place = NewPlace {
        position,
        row: row_of(tables, table, position, page_length as usize),
        first: kv_head * head_dim,
        key: at + (heads + kv_head) * head_stride,
        value: at + (heads + kv_heads + kv_head) * head_stride,
    };
    let mut feature = UNIT_POS_X as usize;
    while feature < head_dim {
        write_new::<F, P, T>(qkv, &cos, &sin, keys, values, &place, feature);
        feature += CUBE_DIM_X as usize;
    }
}

#[cube(launch, address_type = "dynamic")]
fn paged_kernel<F: Float, P: Float, T: Float, O: Float>(
    qkv: &Tensor<F>,                 // [batch, positions, (heads + 2 kv_heads) · head_dim]
    cos: ComptimeOption<&Tensor<T>>, // [positions, half]
    sin: ComptimeOption<&Tensor<T>>, // the same
    tables: &Tensor<i32>,            // [batch · positions, 1 + pages]: positions before, then pages
    keys: &mut Tensor<P>,            // [positions of the pool, kv_heads · head_dim]
    values: &mut Tensor<P>,          // the same
    output: &mut [O],                // [batch · positions, heads, head_dim], or [.., heads, parts, head_dim + 2]
    group: u32,
    kv_heads: u32,
    page_length: u32,
    longest: u32,
    scale: f32,
    #[comptime] written: bool,
    #[comptime] split: bool,
    #[comptime] parts: usize,
    #[comptime] max_keys: usize,
    #[comptime] head_dim: usize,
    #[define(F, P, T, O)] _dtypes: [ElemType; 4],
) {
    let unit = UNIT_POS_X as usize;
    let units = CUBE_DIM_X as usize;
    let (group, kv_heads, page_length) = (group as usize, kv_heads as usize, page_length as usize);
    let heads = kv_heads * group;
    let new = CUBE_POS_X as usize / kv_heads;
    let kv_head = CUBE_POS_X as usize % kv_heads;
    let table = new * tables.stride(0);
    // Positions before its own; never so many that the table has no page for them.
    let len = min(usize::cast_from(tables[table]), longest as usize);
    // This cube's keys; none where another position has more before it.
    let part = CUBE_POS_Y as usize;
    let from = part * max_keys;
    let n_keys = min(max(len + 1, from) - from, max_keys);

    let mut rows = Shared::<[u32]>::new_slice(max_keys);
    let mut i = unit;
    while i < n_keys {
        rows[i] = row_of(tables, table, from + i, page_length) as u32;
        i += units;
    }

    let head_stride = head_dim * qkv.stride(2);
    let (k_position, k_feature) = (keys.stride(0), keys.stride(1));
    let (v_position, v_feature) = (values.stride(0), values.stride(1));
    let row_at = place_of(qkv, new);
    let k_at = kv_head * head_dim * k_feature;
    let v_at = kv_head * head_dim * v_feature;

    // The new key and value, for the pool and for this position.
    let mut new_key = Shared::<[f32]>::new_slice(head_dim);
    let mut new_value = Shared::<[f32]>::new_slice(head_dim);
    if comptime!(!written) && part == len / max_keys {
        let place = NewPlace {
            position: len,
            row: row_of(tables, table, len, page_length),
            first: kv_head * head_dim,
            key: row_at + (heads + kv_head) * head_stride,
            value: row_at + (heads + kv_heads + kv_head) * head_stride,
        };
        let mut feature = unit;
        while feature < head_dim {
            let (key, value) = write_new::<F, P, T>(qkv, &cos, &sin, keys, values, &place, feature);
            new_key[feature] = key;
            new_value[feature] = value;
            feature += units;
        }
    }

    let mut query = Shared::<[f32]>::new_slice(head_dim);
    let mut partial = Shared::<[f32]>::new_slice(comptime!(parts * max_keys));
    let mut scores = Shared::<[f32]>::new_slice(max_keys);
    for query_of in 0..group {
        let head = kv_head * group + query_of;
        load_query::<F, T>(qkv, &cos, &sin, &mut query, len, row_at + head * head_stride, head_dim);

        // Every part of every score.
        let mut i = unit;
        while i < n_keys * parts {
            let key = i / parts;
            let at = rows[key] as usize * k_position + k_at;
            let mut sum = 0.0f32;
            let mut feature = i % parts;
            while feature < head_dim {
                let y = if comptime!(written) || from + key < len {
                    f32::cast_from(keys[at + feature * k_feature])
                } else {
                    new_key[feature]
                };
                sum += query[feature] * y;
                feature += parts;
            }
            partial[i] = sum;
            i += units;
        }
        sync_cube();

        add_parts(&partial, &mut scores, n_keys, scale, parts);
        let (largest, total) = weigh(&mut scores, n_keys);
        let head_of_all = new * heads + head;
        let mut output_at = head_of_all * head_dim;
        if comptime!(split) {
            output_at = (head_of_all * CUBE_COUNT_Y as usize + part) * (head_dim + 2);
        }
        let mut feature = unit;
        while feature < head_dim {
            let mut sum = 0.0f32;
            for key in 0..n_keys {
                let y = if comptime!(written) || from + key < len {
                    f32::cast_from(values[rows[key] as usize * v_position + v_at + feature * v_feature])
                } else {
                    new_value[feature]
                };
                sum += scores[key] * y;
            }
            if comptime!(!split) {
                sum /= total;
            }
            output[output_at + feature] = O::cast_from(sum);
            feature += units;
        }
        if comptime!(split) && unit == 0 {
            output[output_at + head_dim] = O::cast_from(largest);
            output[output_at + head_dim + 1] = O::cast_from(total);
        }
        sync_cube();
    }
}

/// Launches it; shapes have been checked. A pool that others hold too is copied first, unless it `stays`. `longest` is the most
/// positions that are before a new one.
///
/// # Panics
/// If others hold a pool that stays.
pub(crate) fn launch(
    inputs: PagedInputs<CubeBackend>,
    [n_heads, head_dim]: [usize; 2],
    (page_length, longest): (usize, usize),
    see_each_other: bool,
    stays: bool,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let PagedInputs { qkv, cos, sin, tables, keys, values } = inputs;
    let [keys, values] = [keys, values].map(|x| owned(x, stays));
    let [cos, sin] = [cos, sin].map(Optional::into_option);
    let positions = qkv.shape()[0] * qkv.shape()[1];
    let kv_heads = keys.shape()[1] / head_dim;
    let (client, dtype) = (qkv.client.clone(), qkv.dtype);
    let parts = (longest + 1).div_ceil(MAX_KEYS);
    let split = parts > 1;
    let (output, mixed) = outputs(&qkv, n_heads, head_dim, parts);
    let units = CubeDim::new_1d(units_for(head_dim, &qkv));
    let address = address_of(&[&qkv, &keys, &values, &mixed]);
    let table_type = cos.as_ref().map_or(dtype, |cos| cos.dtype);
    let pool_type = keys.dtype;
    let cubes = (positions * kv_heads) as u32;
    if see_each_other {
        write_kernel::launch(
            &client,
            CubeCount::Static(cubes, 1, 1),
            units,
            address,
            qkv.clone().into_tensor_arg(),
            cos.clone().map(CubeTensor::into_tensor_arg).into(),
            sin.clone().map(CubeTensor::into_tensor_arg).into(),
            tables.clone().into_tensor_arg(),
            keys.clone().into_tensor_arg(),
            values.clone().into_tensor_arg(),
            n_heads as u32,
            kv_heads as u32,
            page_length as u32,
            longest as u32,
            head_dim,
            [dtype, pool_type, table_type].map(dtype_to_storage_type),
        );
    }
    paged_kernel::launch(
        &client,
        CubeCount::Static(cubes, parts as u32, 1),
        units,
        address,
        qkv.into_tensor_arg(),
        cos.map(CubeTensor::into_tensor_arg).into(),
        sin.map(CubeTensor::into_tensor_arg).into(),
        tables.into_tensor_arg(),
        keys.clone().into_tensor_arg(),
        values.clone().into_tensor_arg(),
        mixed.clone().into_buffer_arg(),
        (n_heads / kv_heads) as u32,
        kv_heads as u32,
        page_length as u32,
        longest as u32,
        (head_dim as f32).powf(-0.5),
        see_each_other,
        split,
        PARTS,
        (longest + 1).next_power_of_two().clamp(16, MAX_KEYS),
        head_dim,
        [dtype, pool_type, table_type, mixed.dtype].map(dtype_to_storage_type),
    );
    if split {
        put_together(mixed, output.clone(), parts, head_dim, units);
    }
    (output, keys, values)
}
