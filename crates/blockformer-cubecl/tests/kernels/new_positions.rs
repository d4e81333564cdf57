//! New positions over a contiguous cache.

use blockformer_cubecl::{MAX_HELD, MAX_KEYS, NewPositions, attend_new, takes_counts};
use burn::tensor::{Bool, DType, Tensor, TensorData};

use crate::support::{Sizes, attention_of, device, numbers, rotate, tensor, values};

/// Writes and attends behind each of `lens` positions, and compares what is mixed, and what the cache holds, with the
/// definition. With `hide`, a third of the keys are hidden, and more of the last
/// sequence, but never the newest.
fn check_new_positions(sizes: &Sizes, half: usize, lens: &[usize], hide: bool, dtype: DType, tolerance: f64) {
    let Sizes { batch, heads, kv_heads, keys: capacity, head_dim, .. } = *sizes;
    let alike = half == 0; // then one row of the mask serves all sequences
    let width = (heads + 2 * kv_heads) * head_dim;
    let shape = [batch, kv_heads, capacity, head_dim];
    let cache = |salt| tensor(&numbers(shape.iter().product(), salt), shape, dtype);
    let (mut keys, mut values_) = (cache(30), cache(31));
    let mut held: [Vec<f64>; 2] = [values(cache(30)), values(cache(31))];
    // In float32, whatever the rest is in.
    let table = |salt| tensor(&numbers(capacity * half, salt), [capacity, half], DType::F32);
    let tables = (half > 0).then(|| (table(50), table(90)));
    for len in lens.iter().copied() {
        let qkv = tensor(&numbers(batch * width, len as u64), [batch, 1, width], dtype).mul_scalar(2.0);
        let [cos, sin]: [Vec<f64>; 2] = match &tables {
            Some((cos, sin)) => [cos, sin].map(|table| values(table.clone())[len * half..][..half].to_vec()),
            None => [vec![], vec![]],
        };
        let rows = values(qkv.clone());
        let head = |row: usize, head: usize| &rows[row * width + head * head_dim..][..head_dim];
        let mut queries = Vec::new();
        for row in 0..batch {
            (0..heads).for_each(|h| queries.extend(rotate(head(row, h), [&cos, &sin])));
            for kv in 0..kv_heads {
                let at = ((row * kv_heads + kv) * capacity + len) * head_dim;
                held[0][at..at + head_dim].copy_from_slice(&rotate(head(row, heads + kv), [&cos, &sin]));
                held[1][at..at + head_dim].copy_from_slice(head(row, heads + kv_heads + kv));
            }
        }
        let known = |all: &[f64]| -> Vec<f64> {
            all.chunks(capacity * head_dim).flat_map(|rows| rows[..(len + 1) * head_dim].to_vec()).collect()
        };
        let now = Sizes { batch, heads, kv_heads, queries: 1, keys: len + 1, head_dim };
        let hidden = |row: usize, key: usize| {
            let row = if alike { 0 } else { row };
            hide && key < len && ((row + key).is_multiple_of(3) || (row + 1 == batch && key < capacity / 2))
        };
        let seen = |row: usize, key: usize| !hidden(row, key);
        let expected = attention_of([&queries, &known(&held[0]), &known(&held[1])], &now, seen);
        let mask = |n: usize| {
            let rows = if alike { 1 } else { batch };
            let mask: Vec<bool> = (0..rows * n).map(|i| hidden(i / n, i % n)).collect();
            hide.then(|| Tensor::<4, Bool>::from_data(TensorData::new(mask, [rows, 1, 1, n]), &device()))
        };
        // Longer than it need be, as that of a view of the cache may be; and for all positions.
        let (mask, whole_mask) = (mask(len + 2), mask(capacity));

        let before = (len == 1).then(|| (keys.clone(), values(keys.clone())));
        let rotation = tables.as_ref().map(|(cos, sin)| (cos, sin));
        let position = NewPositions { qkv: &qkv, rotation, n_heads: heads, len, hidden: mask.as_ref(), count: None };
        let (mut keys_too, mut values_too) = (keys.clone().mul_scalar(1.0), values_.clone().mul_scalar(1.0));
        let mixed = attend_new(position, &mut keys, &mut values_).expect("there is a kernel");
        assert_eq!(mixed.dims(), [batch, 1, heads * head_dim]);
        let close = |got: Vec<f64>, expected: &[f64], what: &str| {
            let error = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < tolerance, "{what} at {len}, {shape:?} for {heads} heads in {dtype:?}: {error}");
        };
        close(values(mixed), &expected, "mixed values");
        close(values(keys.clone()), &held[0], "keys");
        close(values(values_.clone()), &held[1], "values");
        if takes_counts(&qkv, [batch * heads, head_dim], capacity) {
            let count = tensor(&[len as f32], [1], DType::F32);
            let (hidden, count) = (whole_mask.as_ref(), Some(&count));
            let position = NewPositions { len: capacity - 1, hidden, count, ..position };
            let mixed = attend_new(position, &mut keys_too, &mut values_too).expect("there is a kernel");
            close(values(mixed), &expected, "mixed values of a counted cache");
            close(values(keys_too), &held[0], "keys of a counted cache");
            close(values(values_too), &held[1], "values of a counted cache");
        }
        if let Some((clone, numbers)) = before {
            assert_eq!(values(clone), numbers, "somebody else's cache was written");
        }
    }
}

#[test]
fn one_position_after_the_other_is_rotated_written_and_attended_to() {
    let sizes = |batch, heads, kv_heads, keys, head_dim| Sizes { batch, heads, kv_heads, queries: 1, keys, head_dim };
    for (sizes, half) in [
        (sizes(2, 3, 3, 5, 17), 4),
        (sizes(3, 4, 2, 4, 64), 32),
        (sizes(2, 6, 1, 18, 33), 0),
        (sizes(2, 2, 2, 3, 200), 25),
    ] {
        let lens: Vec<usize> = (0..sizes.keys).collect();
        check_new_positions(&sizes, half, &lens, false, DType::F32, 2e-5);
        check_new_positions(&sizes, half, &lens[1..], true, DType::F32, 2e-5);
        for (dtype, tolerance) in [(DType::F16, 8e-3), (DType::BF16, 6e-2)] {
            if device().supports_dtype(dtype) {
                check_new_positions(&sizes, half, &lens, false, dtype, tolerance);
            }
        }
    }
}

#[test]
fn parts_of_a_long_cache_are_put_together() {
    let sizes = Sizes { batch: 2, heads: 4, kv_heads: 2, queries: 1, keys: 3 * MAX_KEYS + 9, head_dim: 20 };
    // The last key of a part, the first of the next, and all that fit.
    let lens = [MAX_KEYS - 1, MAX_KEYS, 2 * MAX_KEYS - 1, 2 * MAX_KEYS, sizes.keys - 1];
    for hide in [false, true] {
        check_new_positions(&sizes, 5, &lens, hide, DType::F32, 2e-5);
        for (dtype, tolerance) in [(DType::F16, 8e-3), (DType::BF16, 6e-2)] {
            if device().supports_dtype(dtype) {
                check_new_positions(&sizes, 5, &lens, hide, dtype, tolerance);
            }
        }
    }
}

#[test]
fn several_positions_are_one_after_the_other() {
    let (batch, heads, kv_heads, head_dim, new) = (2, 4, 2, 20, 3);
    let width = (heads + 2 * kv_heads) * head_dim;
    for (held, dtype) in [(0, DType::F32), (4, DType::F32), (MAX_KEYS - new, DType::F32), (2, DType::F16)] {
        if !device().supports_dtype(dtype) {
            continue;
        }
        let qkv = tensor(&numbers(batch * new * width, 9), [batch, new, width], dtype);
        let table = |salt| tensor(&numbers(MAX_KEYS * 5, salt), [MAX_KEYS, 5], DType::F32);
        let (cos, sin) = (table(50), table(90));
        let shape = [batch, kv_heads, MAX_KEYS, head_dim];
        let cache = |salt| tensor(&numbers(shape.iter().product(), salt), shape, dtype);
        let attend = |qkv: &Tensor<3>, len, keys: &mut Tensor<4>, values: &mut Tensor<4>| {
            let of = NewPositions { qkv, rotation: Some((&cos, &sin)), n_heads: heads, len, hidden: None, count: None };
            attend_new(of, keys, values).expect("there is a kernel")
        };
        let (mut keys, mut values_) = (cache(30), cache(31));
        let singly = (0..new).map(|i| attend(&qkv.clone().narrow(1, i, 1), held + i, &mut keys, &mut values_));
        let singly = Tensor::cat(singly.collect(), 1);
        let (mut keys_too, mut values_too) = (cache(30), cache(31));
        let together = attend(&qkv, held, &mut keys_too, &mut values_too);
        assert_eq!(values(together), values(singly), "behind {held} in {dtype:?}");
        assert_eq!(values(keys_too), values(keys), "behind {held} in {dtype:?}");
        assert_eq!(values(values_too), values(values_), "behind {held} in {dtype:?}");
    }
}

#[test]
fn a_position_without_a_kernel_leaves_the_cache_alone() {
    let device = device();
    let qkv = Tensor::<3>::ones([1, 1, 3 * 8], &device);
    let mut keys = Tensor::<4>::zeros([1, 1, MAX_HELD + 2, 8], &device);
    let mut values_ = keys.clone();
    let position = |len| NewPositions { qkv: &qkv, rotation: None, n_heads: 1, len, hidden: None, count: None };
    assert!(attend_new(position(MAX_HELD), &mut keys, &mut values_).is_none());
    let hidden = Tensor::<4>::zeros([1, 1, 1, 5], &device).bool();
    assert!(attend_new(NewPositions { hidden: Some(&hidden), ..position(5) }, &mut keys, &mut values_).is_none());
    assert_eq!(values(keys.clone()).iter().sum::<f64>(), 0.0);
    assert!(attend_new(position(MAX_HELD - 1), &mut keys, &mut values_).is_some());
    assert_eq!(values(keys).iter().sum::<f64>(), 8.0);
}
