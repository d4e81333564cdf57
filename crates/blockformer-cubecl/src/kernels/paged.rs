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
use super::softmax::{
    Head, Strides, add_parts, address_of, gathered, own_query, put_out, scatter, sum_of, units_for, vector_at, weigh,
};
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

/// A feature of a new key and of its value, as the pool keeps them.
#[cube]
fn new_feature<F: Float, P: Float, T: Float>(
    qkv: &Tensor<F>,
    cos: &ComptimeOption<&Tensor<T>>,
    sin: &ComptimeOption<&Tensor<T>>,
    at: &NewPlace,
    feature: usize,
) -> (f32, f32) {
    // By way of the model's type, as on the plain path.
    let key = F::cast_from(rotated::<F, T>(qkv, cos, sin, at.position, at.key, feature));
    let key = P::cast_from(f32::cast_from(key));
    let value = P::cast_from(f32::cast_from(qkv[at.value + feature * qkv.stride(2)]));
    (f32::cast_from(key), f32::cast_from(value))
}

/// Writes the features that stand in `key` and `value` into a row of the pool; all units have to have put them there.
#[cube]
#[allow(clippy::too_many_arguments)] // kernels take no structs with references
fn write_new<P: Float, N: Size>(
    key: &Shared<[f32]>,
    value: &Shared<[f32]>,
    keys: &mut Tensor<Vector<P, N>>,
    values: &mut Tensor<Vector<P, N>>,
    of_keys: &Strides,
    of_values: &Strides,
    row: usize,
    #[comptime] head: Head,
) {
    let mut vector = UNIT_POS_X as usize;
    while vector < comptime!(head.vectors()) {
        let place = vector * comptime!(head.width());
        keys[vector_at(of_keys, row, vector, head)] = Vector::cast_from(gathered::<N>(key, place, head));
        values[vector_at(of_values, row, vector, head)] = Vector::cast_from(gathered::<N>(value, place, head));
        vector += comptime!(head.units);
    }
}

/// Where a new key and its value come from.
#[derive(CubeType)]
struct NewPlace {
    /// The position in its sequence.
    position: usize,
    /// Where the key begins among the projections.
    key: usize,
    /// Where the value does.
    value: usize,
}

#[cube(launch, address_type = "dynamic")]
fn write_kernel<F: Float, P: Float, T: Float, N: Size>(
    qkv: &Tensor<F>,
    cos: ComptimeOption<&Tensor<T>>,
    sin: ComptimeOption<&Tensor<T>>,
    tables: &Tensor<i32>,
    keys: &mut Tensor<Vector<P, N>>,
    values: &mut Tensor<Vector<P, N>>,
    heads: u32,
    kv_heads: u32,
    page_length: u32,
    longest: u32,
    #[comptime] of_head: Head,
    #[define(F, P, T)] _dtypes: [ElemType; 3],
) {
    let (heads, kv_heads) = (heads as usize, kv_heads as usize);
    let (new, kv_head) = (CUBE_POS_X as usize / kv_heads, CUBE_POS_X as usize % kv_heads);
    let table = new * tables.stride(0);
    let position = min(usize::cast_from(tables[table]), longest as usize);
    let at = place_of(qkv, new);
    let head_dim = comptime!(of_head.head_dim);
    let head_stride = head_dim * qkv.stride(2);
    let row = row_of(tables, table, position, page_length as usize);
    let first = kv_head * head_dim;
    let of_keys = Strides { at: first * keys.stride(1), position: keys.stride(0), feature: keys.stride(1) };
    let of_values = Strides { at: first * values.stride(1), position: values.stride(0), feature: values.stride(1) };
    let place = NewPlace {
        position,
        key: at + (heads + kv_head) * head_stride,
        value: at + (heads + kv_heads + kv_head) * head_stride,
    };
    let mut new_key = Shared::<[f32]>::new_slice(head_dim);
    let mut new_value = Shared::<[f32]>::new_slice(head_dim);
    let mut feature = UNIT_POS_X as usize;
    while feature < head_dim {
        let (key, value) = new_feature::<F, P, T>(qkv, &cos, &sin, &place, feature);
        new_key[feature] = key;
        new_value[feature] = value;
        feature += CUBE_DIM_X as usize;
    }
    sync_cube();
    write_new::<P, N>(&new_key, &new_value, keys, values, &of_keys, &of_values, row, of_head);
}

#[cube(launch, address_type = "dynamic")]
fn paged_kernel<F: Float, P: Float, T: Float, O: Float, N: Size>(
    qkv: &Tensor<F>,                   // [batch, positions, (heads + 2 kv_heads) · head_dim]
    cos: ComptimeOption<&Tensor<T>>,   // [positions, half]
    sin: ComptimeOption<&Tensor<T>>,   // the same
    tables: &Tensor<i32>,              // [batch · positions, 1 + pages]: positions before, then pages
    keys: &mut Tensor<Vector<P, N>>,   // [positions of the pool, kv_heads · head_dim]
    values: &mut Tensor<Vector<P, N>>, // the same
    output: &mut [O],                  // [batch · positions, heads, head_dim], or [.., heads, parts, head_dim + 2]
    group: u32,
    kv_heads: u32,
    page_length: u32,
    longest: u32,
    scale: f32,
    #[comptime] written: bool,
    #[comptime] split: bool,
    #[comptime] max_keys: usize,
    #[comptime] of_head: Head,
    #[define(F, P, T, O)] _dtypes: [ElemType; 4],
) {
    let unit = UNIT_POS_X as usize;
    let units = CUBE_DIM_X as usize;
    let head_dim = comptime!(of_head.head_dim);
    let (width, vectors) = comptime!((of_head.width(), of_head.vectors()));
    let (parts, groups) = comptime!((of_head.parts(), of_head.groups()));
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
    let row_at = place_of(qkv, new);
    let first = kv_head * head_dim;
    let of_keys = Strides { at: first * keys.stride(1), position: keys.stride(0), feature: keys.stride(1) };
    let of_values = Strides { at: first * values.stride(1), position: values.stride(0), feature: values.stride(1) };

    // The new key and value, for this position and for the pool.
    let mut new_key = Shared::<[f32]>::new_slice(head_dim);
    let mut new_value = Shared::<[f32]>::new_slice(head_dim);
    if comptime!(!written) {
        let place = NewPlace {
            position: len,
            key: row_at + (heads + kv_head) * head_stride,
            value: row_at + (heads + kv_heads + kv_head) * head_stride,
        };
        let has_new = part == len / max_keys;
        if has_new {
            let mut feature = unit;
            while feature < head_dim {
                let (key, value) = new_feature::<F, P, T>(qkv, &cos, &sin, &place, feature);
                new_key[feature] = key;
                new_value[feature] = value;
                feature += units;
            }
        }
        sync_cube();
        if has_new {
            let row = row_of(tables, table, len, page_length);
            write_new::<P, N>(&new_key, &new_value, keys, values, &of_keys, &of_values, row, of_head);
        }
    }

    let mut query = Shared::<[f32]>::new_slice(head_dim);
    let mut own = Array::<Vector<f32, N>>::new(comptime!(of_head.each()));
    let mut partial = Shared::<[f32]>::new_slice(comptime!(parts * max_keys));
    let mut scores = Shared::<[f32]>::new_slice(max_keys);
    let mut mixed = Shared::<[f32]>::new_slice(comptime!(groups * head_dim));
    for query_of in 0..group {
        let head = kv_head * group + query_of;
        load_query::<F, T>(qkv, &cos, &sin, &mut query, len, row_at + head * head_stride, head_dim);

        // Every part of every score.
        let part_of_key = unit % parts;
        own_query::<N>(&query, &mut own, part_of_key, of_head);
        let mut i = unit;
        while i < n_keys * parts {
            let key = i / parts;
            let row = rows[key] as usize;
            let mut sum = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for j in 0..comptime!(of_head.each()) {
                let vector = part_of_key + comptime!(j * parts);
                if vector < vectors {
                    let y = if comptime!(written) || from + key < len {
                        Vector::<f32, N>::cast_from(keys[vector_at(&of_keys, row, vector, of_head)])
                    } else {
                        gathered::<N>(&new_key, vector * width, of_head)
                    };
                    sum += own[j] * y;
                }
            }
            partial[i] = sum_of::<N>(sum, of_head);
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
                    let y = if comptime!(written) || from + key < len {
                        Vector::<f32, N>::cast_from(values[vector_at(&of_values, rows[key] as usize, vector, of_head)])
                    } else {
                        gathered::<N>(&new_value, vector * width, of_head)
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
    let units = units_for(head_dim, &qkv);
    let head = Head::new(head_dim, units, [&keys, &values]);
    let units = CubeDim::new_1d(units);
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
            head.width(),
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
            head,
            [dtype, pool_type, table_type].map(dtype_to_storage_type),
        );
    }
    paged_kernel::launch(
        &client,
        CubeCount::Static(cubes, parts as u32, 1),
        units,
        address,
        head.width(),
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
        (longest + 1).next_power_of_two().clamp(16, MAX_KEYS),
        head,
        [dtype, pool_type, table_type, mixed.dtype].map(dtype_to_storage_type),
    );
    if split {
        put_together(mixed, output.clone(), parts, head_dim, units);
    }
    (output, keys, values)
}
