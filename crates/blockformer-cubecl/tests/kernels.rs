//! The kernels against float64, on a CUDA device in a build for CUDA, otherwise on one of WGPU (Mesa's software device will
//! do).
#![cfg(any(feature = "wgpu", feature = "cuda"))]

use blockformer_cubecl::{
    Choice, FewRows, Filters, MAX_HELD, MAX_KEYS, MAX_QUERIES, MAX_ROWS, NewPositions, Observe, PagedPositions,
    RowActivation, RowMap, RowNorm, attend_new, attend_paged, draw, local_attention, norm, observe_kernels, product,
    takes_counts,
};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

fn device() -> Device {
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
fn numbers(n: usize, salt: u64) -> Vec<f32> {
    let number = |i: u64| {
        let x = (i ^ (salt << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n as u64).map(number).collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D], dtype: DType) -> Tensor<D> {
    Tensor::<D>::from_data(TensorData::new(values.to_vec(), shape), (&device(), DType::F32)).cast(dtype)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.cast(DType::F32).into_data().iter::<f64>().collect()
}

/// `[batch, heads, queries, head_dim]` and `[batch, kv_heads, keys, head_dim]`.
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
}

/// The definition: each query sees the keys up to its own position, and they are the last positions.
fn attention(qkv: [&[f64]; 3], sizes: &Sizes) -> Vec<f64> {
    attention_of(qkv, sizes, |_, _| true)
}

/// The same of the keys that `seen` tells of a sequence.
fn attention_of([q, k, v]: [&[f64]; 3], sizes: &Sizes, seen: impl Fn(usize, usize) -> bool) -> Vec<f64> {
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

fn check_attention(sizes: &Sizes, dtype: DType, tolerance: f64) {
    let Sizes { batch, heads, kv_heads, queries, keys, head_dim } = *sizes;
    let (q_shape, k_shape) = ([batch, heads, queries, head_dim], [batch, kv_heads, keys, head_dim]);
    let of = |shape: [usize; 4], salt| tensor(&numbers(shape.iter().product(), salt), shape, dtype);
    let (q, k, v) = (of(q_shape, 1).mul_scalar(3.0), of(k_shape, 2), of(k_shape, 3));
    let expected = attention([&values(q.clone()), &values(k.clone()), &values(v.clone())], sizes);
    // Keys and values as a cache gives them: a part of something longer.
    let longer = |x: Tensor<4>| {
        let rest = Tensor::ones([batch, kv_heads, 3, head_dim], (&device(), dtype));
        Tensor::cat(vec![x, rest], 2).narrow(2, 0, keys)
    };
    let got = local_attention(&q, &longer(k), &longer(v)).expect("there is a kernel");
    assert_eq!((got.dims(), got.dtype()), (q_shape, dtype));
    for (got, expected) in values(got).iter().zip(&expected) {
        assert!(
            (got - expected).abs() < tolerance,
            "{got} instead of {expected}, {q_shape:?} of {k_shape:?} {dtype:?}"
        );
    }
}

#[test]
fn attention_is_that_of_float64() {
    let sizes =
        |batch, heads, kv_heads, queries, keys, head_dim| Sizes { batch, heads, kv_heads, queries, keys, head_dim };
    for sizes in [
        sizes(1, 1, 1, 1, 1, 1),
        sizes(2, 3, 3, 1, 5, 17),
        sizes(3, 4, 2, 1, 6, 64),
        sizes(1, 6, 1, 3, 16, 33),
        sizes(2, 2, 2, 8, 8, 128),
        sizes(1, 2, 1, 2, 64, 129),
        sizes(1, 2, 2, 1, 19, 200),
    ] {
        check_attention(&sizes, DType::F32, 1e-5);
        for (dtype, tolerance) in [(DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            if device().supports_dtype(dtype) {
                check_attention(&sizes, dtype, tolerance);
            }
        }
    }
}

/// The half-split rotation of one head.
fn rotate(head: &[f64], [cos, sin]: [&[f64]; 2]) -> Vec<f64> {
    let half = cos.len();
    let mut rotated = head.to_vec();
    for i in 0..half {
        rotated[i] = head[i] * cos[i] - head[i + half] * sin[i];
        rotated[i + half] = head[i + half] * cos[i] + head[i] * sin[i];
    }
    rotated
}

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
        if takes_counts(&qkv, batch * heads, capacity) {
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

/// Sequences of a pool, of so many positions each, with pages in a disorderly order.
struct Pool {
    lens: Vec<usize>,
    /// New positions of each.
    new: usize,
    page_length: usize,
    n_pages: usize,
    pages: Vec<Vec<usize>>,
}

impl Pool {
    fn new(lens: &[usize], new: usize, page_length: usize) -> Self {
        let of = |len: &usize| (len + new).div_ceil(page_length); // those of the new positions included
        let n_pages = lens.iter().map(of).sum::<usize>() + 2;
        let divides_both = |by: usize, step: usize| step.is_multiple_of(by) && n_pages.is_multiple_of(by);
        let coprime = |step: &usize| (2..=*step).all(|by| !divides_both(by, *step));
        let step = (2..).find(coprime).expect("a number that has no divisor in common with it");
        let mut order = (0..n_pages).map(|i| (i * step + 1) % n_pages);
        let pages = lens.iter().map(|len| order.by_ref().take(of(len)).collect()).collect();
        Self { lens: lens.to_vec(), new, page_length, n_pages, pages }
    }

    /// The row of the pool where a position lies.
    fn row(&self, sequence: usize, position: usize) -> usize {
        self.pages[sequence][position / self.page_length] * self.page_length + position % self.page_length
    }

    fn tables(&self) -> Tensor<2, Int> {
        let width = 1 + self.pages.iter().map(Vec::len).max().unwrap_or(0);
        let table = |(len, pages): (&usize, &Vec<usize>)| {
            let mut row: Vec<i32> = std::iter::once(len).chain(pages).map(|x| *x as i32).collect();
            row.resize(width, 0);
            row
        };
        let numbers: Vec<i32> = self.lens.iter().zip(&self.pages).flat_map(table).collect();
        Tensor::from_data(TensorData::new(numbers, [self.lens.len(), width]), (&device(), DType::I32))
    }
}

/// New positions of each sequence, compared with the definition; so is what the pool holds then.
fn check_paged(pool: &Pool, [heads, kv_heads, head_dim]: [usize; 3], half: usize, types: [DType; 2], tolerance: f64) {
    let [dtype, pool_type] = types;
    let (rows, new) = (pool.lens.len(), pool.new);
    let (width, kv_width) = ((heads + 2 * kv_heads) * head_dim, kv_heads * head_dim);
    let longest = *pool.lens.iter().max().expect("sequences");
    let shape = [pool.n_pages * pool.page_length, kv_width];
    let held = |salt| tensor(&numbers(shape.iter().product(), salt), shape, pool_type);
    let (mut keys, mut values_) = (held(30), held(31));
    let mut expected_pool: [Vec<f64>; 2] = [values(held(30)), values(held(31))];
    let table = |salt| tensor(&numbers((longest + new) * half, salt), [longest + new, half], DType::F32);
    let rotation = (half > 0).then(|| (table(50), table(90)));
    let turns: Option<[Vec<f64>; 2]> = rotation.as_ref().map(|(cos, sin)| [cos, sin].map(|x| values(x.clone())));
    let qkv = tensor(&numbers(rows * new * width, 7), [rows, new, width], dtype).mul_scalar(2.0);
    let projected = values(qkv.clone());
    let mut expected = Vec::new();
    for (row, position) in (0..rows).flat_map(|row| (0..new).map(move |position| (row, position))) {
        let len = pool.lens[row] + position;
        let turn = |head: usize| {
            let head = &projected[((row * new + position) * width + head * head_dim)..][..head_dim];
            match &turns {
                Some(turns) => rotate(head, [0, 1].map(|of: usize| &turns[of][len * half..][..half])),
                None => head.to_vec(),
            }
        };
        let value = |kv: usize| {
            projected[((row * new + position) * width + (heads + kv_heads + kv) * head_dim)..][..head_dim].to_vec()
        };
        let queries: Vec<f64> = (0..heads).flat_map(turn).collect();
        for kv in 0..kv_heads {
            let at = pool.row(row, len) * kv_width + kv * head_dim;
            expected_pool[0][at..at + head_dim].copy_from_slice(&turn(heads + kv));
            expected_pool[1][at..at + head_dim].copy_from_slice(&value(kv));
        }
        let [k, v] = [0, 1].map(|of: usize| {
            let place = |i: usize| {
                let (kv, position) = (i / (len + 1), i % (len + 1));
                expected_pool[of][pool.row(row, position) * kv_width + kv * head_dim..][..head_dim].to_vec()
            };
            (0..kv_heads * (len + 1)).flat_map(place).collect::<Vec<f64>>()
        });
        let sizes = Sizes { batch: 1, heads, kv_heads, queries: 1, keys: len + 1, head_dim };
        expected.extend(attention([&queries, &k, &v], &sizes));
    }
    let positions = PagedPositions {
        qkv: &qkv,
        rotation: rotation.as_ref().map(|(cos, sin)| (cos, sin)),
        n_heads: heads,
        head_dim,
        tables: &pool.tables(),
        page_length: pool.page_length,
        longest,
    };
    let before = (keys.clone(), values(keys.clone()));
    let mixed = attend_paged(positions, &mut keys, &mut values_).expect("there is a kernel");
    assert_eq!((mixed.dims(), mixed.dtype()), ([rows, new, heads * head_dim], dtype));
    let close = |got: Vec<f64>, expected: &[f64], what: &str| {
        assert_eq!(got.len(), expected.len());
        let error = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < tolerance, "{what} of {:?} and {new}, {heads} heads in {types:?}: {error}", pool.lens);
    };
    close(values(mixed), &expected, "mixed values");
    close(values(keys), &expected_pool[0], "keys");
    close(values(values_), &expected_pool[1], "values");
    assert_eq!(values(before.0), before.1, "somebody else's pool was written");
}

#[test]
fn new_positions_find_their_pages() {
    for (lens, new, page_length, heads, half) in [
        (vec![0], 1, 4, [1, 1, 3], 0),
        (vec![7, 0, 8, 3], 1, 4, [4, 2, 17], 8),
        (vec![5, 62, 63], 1, 16, [6, 1, 64], 32),
        // Of several parts, one of which the shorter ones do not have; the last key of a part, and the first.
        (vec![3, 2 * MAX_KEYS - 1, 2 * MAX_KEYS, 65], 1, 16, [4, 2, 33], 5),
        (vec![MAX_KEYS, 1], 1, 7, [2, 2, 200], 25),
        // Prompts, or pieces of them.
        (vec![0], 9, 4, [2, 1, 17], 8),
        (vec![6, 0], 5, 4, [4, 2, 33], 0),
        (vec![MAX_KEYS - 2, 3], 70, 16, [2, 2, 8], 4),
    ] {
        let pool = Pool::new(&lens, new, page_length);
        check_paged(&pool, heads, half, [DType::F32, DType::F32], 2e-5);
        for (dtype, tolerance) in [(DType::F16, 8e-3), (DType::BF16, 6e-2)] {
            if device().supports_dtype(dtype) {
                check_paged(&pool, heads, half, [dtype, DType::F32], tolerance);
                check_paged(&pool, heads, half, [dtype, dtype], tolerance);
            }
        }
    }
    // Pools of float16 serve models of any type.
    let pool = Pool::new(&[7, 0, MAX_KEYS + 3], 1, 4);
    for (dtype, tolerance) in [(DType::F32, 2e-3), (DType::BF16, 6e-2)] {
        if device().supports_dtype(DType::F16) && device().supports_dtype(dtype) {
            check_paged(&pool, [4, 2, 17], 8, [dtype, DType::F16], tolerance);
        }
    }
}

#[test]
fn what_comes_of_a_position_does_not_depend_on_those_that_are_new_beside_it() {
    let (heads, kv_heads, head_dim, page_length, n) = (4, 2, 20, 16, MAX_KEYS + 20);
    let width = (heads + 2 * kv_heads) * head_dim;
    let qkv = tensor(&numbers(n * width, 9), [1, n, width], DType::F32);
    let table = |salt| tensor(&numbers(n * 5, salt), [n, 5], DType::F32);
    let (cos, sin) = (table(50), table(90));
    let run = |cuts: &[usize]| {
        let empty = || Tensor::<2>::zeros([n.next_multiple_of(page_length) + 64, kv_heads * head_dim], &device());
        let (mut keys, mut values_) = (empty(), empty());
        let parts = cuts.windows(2).map(|cut| {
            let (longest, new) = (cut[0], cut[1] - cut[0]);
            let pool = Pool::new(&[0], n, page_length);
            let tables = Pool { lens: vec![longest], ..pool }.tables();
            let qkv = qkv.clone().narrow(1, longest, new);
            let rotation = Some((&cos, &sin));
            let of =
                PagedPositions { qkv: &qkv, rotation, n_heads: heads, head_dim, tables: &tables, page_length, longest };
            attend_paged(of, &mut keys, &mut values_).expect("there is a kernel")
        });
        let mixed = Tensor::cat(parts.collect(), 1);
        (values(mixed), values(keys), values(values_))
    };
    let whole = run(&[0, n]);
    assert_eq!(run(&[0, 16, 17, 18, 64, 65, n]), whole);
}

#[test]
fn positions_in_pages_without_a_kernel_leave_the_pool_alone() {
    let device = device();
    let ones = Tensor::<3>::ones([2, 1, 3 * 8], &device);
    let mut keys = Tensor::<2>::zeros([64, 8], &device);
    let mut values_ = keys.clone();
    let pool = Pool::new(&[5, 3], 1, 4);
    let of = |qkv: &Tensor<3>, head_dim: usize, longest: usize, keys: &mut Tensor<2>, values: &mut Tensor<2>| {
        let (tables, rotation) = (&pool.tables(), None);
        let of = PagedPositions { qkv, rotation, n_heads: 1, head_dim, tables, page_length: 4, longest };
        attend_paged(of, keys, values).is_some()
    };
    assert!(!of(&ones, 8, 8, &mut keys, &mut values_), "more positions than there are pages for");
    assert!(!of(&ones.clone().repeat_dim(1, 4), 8, 5, &mut keys, &mut values_), "a page too few");
    assert!(!of(&ones.clone().narrow(0, 0, 1), 8, 5, &mut keys, &mut values_), "one sequence");
    assert!(!of(&ones, 3, 5, &mut keys, &mut values_), "heads that do not fit");
    let mut flex = Tensor::<2>::zeros([64, 8], &Device::flex());
    assert!(!of(&ones, 8, 5, &mut flex.clone(), &mut flex), "a pool elsewhere");
    assert_eq!(values(keys.clone()).iter().sum::<f64>(), 0.0);
    assert!(of(&ones, 8, 5, &mut keys, &mut values_));
    assert_eq!(values(keys).iter().sum::<f64>(), 16.0);
}

#[test]
fn parts_that_take_too_much_are_left_to_others() {
    let (new, head_dim, page_length) = (2049, 126, 64);
    let attend = |longest: usize| {
        let pool = Pool::new(&[longest], new, page_length);
        let empty = || Tensor::<2>::zeros([pool.n_pages * page_length, head_dim], &device());
        let qkv = Tensor::<3>::zeros([1, new, 3 * head_dim], &device());
        let (tables, rotation) = (&pool.tables(), None);
        let of = PagedPositions { qkv: &qkv, rotation, n_heads: 1, head_dim, tables, page_length, longest };
        attend_paged(of, &mut empty(), &mut empty()).is_some()
    };
    // 2,049 positions, 64 parts, 128 numbers: more than 2²⁴.
    assert!(!attend(64 * MAX_KEYS - new));
}

/// A claim of fewer positions than a table tells harms nobody else.
#[test]
fn no_position_is_written_beyond_those_that_were_claimed() {
    let (head_dim, page_length) = (8, 4);
    let pool = Pool { lens: vec![9, 2], new: 1, page_length, n_pages: 2, pages: vec![vec![0], vec![1]] };
    let empty = || Tensor::<2>::zeros([2 * page_length, head_dim], &device());
    let (mut keys, mut values_) = (empty(), empty());
    for new in [1, 2] {
        let qkv = Tensor::<3>::ones([2, new, 3 * head_dim], &device());
        let (tables, rotation) = (&pool.tables(), None);
        let of = PagedPositions { qkv: &qkv, rotation, n_heads: 1, head_dim, tables, page_length, longest: 2 };
        attend_paged(of, &mut keys, &mut values_).expect("there is a kernel");
    }
    let written = |x: &Tensor<2>| values(x.clone()).chunks(head_dim).map(|row| row[0]).collect::<Vec<_>>();
    assert_eq!(
        written(&keys),
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
        "the third and fourth positions of both pages"
    );
    assert_eq!(written(&values_), written(&keys));
}

/// Sequences so many that their heads are more than WebGPU launches cubes along an axis.
#[test]
fn heads_beyond_16_bits_are_attended_to() {
    if !cfg!(feature = "cuda") {
        return; // what has no kernel there is another test's
    }
    let (batch, heads, head_dim) = (4097, 16, 2);
    let width = 3 * heads * head_dim;
    let qkv = tensor(&numbers(batch * width, 3), [batch, 1, width], DType::F32);
    let cache = |rows: usize, salt| {
        let shape = [batch, heads, 2, head_dim];
        tensor(&numbers(shape.iter().product(), salt), shape, DType::F32).narrow(0, batch - rows, rows)
    };
    let attend = |rows: usize| {
        let (mut keys, mut values_) = (cache(rows, 30), cache(rows, 31));
        let qkv = qkv.clone().narrow(0, batch - rows, rows);
        let of = NewPositions { qkv: &qkv, rotation: None, n_heads: heads, len: 1, hidden: None, count: None };
        let mixed = attend_new(of, &mut keys, &mut values_);
        values(mixed.expect("there is a kernel").narrow(0, rows - 3, 3))
    };
    assert_eq!(attend(batch), attend(3), "the last sequences, among all and by themselves");
    let paged = |rows: usize| {
        let pool = Pool::new(&vec![1; rows], 1, 2);
        let (mut keys, mut values_) = (
            Tensor::<2>::ones([pool.n_pages * 2, heads * head_dim], &device()),
            Tensor::<2>::ones([pool.n_pages * 2, heads * head_dim], &device()),
        );
        let (qkv, tables) = (qkv.clone().narrow(0, batch - rows, rows), pool.tables());
        let (rotation, page_length, longest) = (None, 2, 1);
        let of =
            PagedPositions { qkv: &qkv, rotation, n_heads: heads, head_dim, tables: &tables, page_length, longest };
        values(attend_paged(of, &mut keys, &mut values_).expect("there is a kernel").narrow(0, rows - 3, 3))
    };
    assert_eq!(paged(batch), paged(3), "the last sequences of a pool, among all and by themselves");
    let q = |rows: usize, salt| cache(rows, salt).narrow(2, 0, 1);
    let local = |rows: usize| {
        let mixed = local_attention(&q(rows, 5), &cache(rows, 30), &cache(rows, 31)).expect("there is a kernel");
        values(mixed.narrow(0, rows - 3, 3))
    };
    assert_eq!(local(batch), local(3), "the last sequences of a short cache, among all and by themselves");
}

/// On a device of less memory it fails for that. An emulated one has what nobody touches for nothing.
#[test]
#[ignore = "needs 17 GiB of a CUDA device"]
fn places_beyond_32_bits_are_found() {
    // The last sequences' keys begin where a place of 32 bits begins anew.
    let (batch, capacity, head_dim, dtype) = (4100, 1 << 14, 64, DType::F16);
    let width = 3 * head_dim;
    let attend = |capacity: usize| {
        let empty = || Tensor::<4>::empty([batch, 1, capacity, head_dim], (&device(), dtype));
        let (mut keys, mut values_) = (empty(), empty());
        let mixed = (0..2).map(|len| {
            let qkv = tensor(&numbers(batch * width, 5 + len as u64), [batch, 1, width], dtype);
            let of = NewPositions { qkv: &qkv, rotation: None, n_heads: 1, len, hidden: None, count: None };
            attend_new(of, &mut keys, &mut values_).expect("there is a kernel")
        });
        values(Tensor::cat(mixed.collect(), 1))
    };
    assert_eq!(attend(capacity), attend(2));
    // Two sequences of a pool whose pages are its last, and two with the pages that the last ones' places in 32 bits would lie in.
    let (page_length, kv_width) = (16, 8 * head_dim);
    let paged = |n_pages: usize| {
        let empty = || Tensor::<2>::empty([n_pages * page_length, kv_width], (&device(), dtype));
        let (mut keys, mut values_) = (empty(), empty());
        let mixed = [0, 2].map(|from| {
            let pages = [n_pages - 1, n_pages - 2, 2, 1].map(|page| vec![page]).into();
            let tables = &Pool { lens: vec![from; 4], new: 2, page_length, n_pages, pages }.tables();
            let qkv = tensor(&numbers(4 * 2 * 3 * kv_width, 5 + from as u64), [4, 2, 3 * kv_width], dtype);
            let of =
                PagedPositions { qkv: &qkv, rotation: None, n_heads: 8, head_dim, tables, page_length, longest: from };
            attend_paged(of, &mut keys, &mut values_).expect("there is a kernel")
        });
        values(Tensor::cat(mixed.into(), 1))
    };
    assert_eq!(paged((1 << 32) / (page_length * kv_width) + 3), paged(8));
}

#[test]
fn norms_are_those_of_float64() {
    for (rows, features) in [(1, 1), (3, 40), (2, 1000), (70, 7)] {
        for centred in [false, true] {
            let x = tensor(&numbers(rows * features, 1), [rows, 1, features], DType::F32).add_scalar(0.5);
            let (scale, shift) = (numbers(features, 2), numbers(features, 3));
            let [s, t] = [&scale, &shift].map(|x| tensor(x, [features], DType::F32));
            let of = match centred {
                true => RowNorm { centred, scale: &s, shift: Some(&t), epsilon: EPSILON },
                false => RowNorm { centred, scale: &s, shift: None, epsilon: EPSILON },
            };
            let got = values(norm(&x, of).expect("there is a kernel"));
            for (got, x) in got.chunks(features).zip(values(x).chunks(features)) {
                let mean = if centred { x.iter().sum::<f64>() / features as f64 } else { 0.0 };
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / features as f64;
                for (k, got) in got.iter().enumerate() {
                    let shift = if centred { f64::from(shift[k]) } else { 0.0 };
                    let expected = (x[k] - mean) / (variance + EPSILON).sqrt() * f64::from(scale[k]) + shift;
                    assert!((got - expected).abs() < 2e-5, "{got} instead of {expected}, {rows} x {features}");
                }
            }
        }
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

#[test]
fn what_the_kernels_were_not_made_for_is_left_to_others() {
    let zeros = |queries: usize| Tensor::<4>::zeros([1, 2, queries, 8], &device());
    assert!(local_attention(&zeros(1), &zeros(MAX_KEYS), &zeros(MAX_KEYS)).is_some());
    assert!(local_attention(&zeros(1), &zeros(MAX_KEYS + 1), &zeros(MAX_KEYS + 1)).is_none());
    assert!(local_attention(&zeros(MAX_QUERIES + 1), &zeros(32), &zeros(32)).is_none());
    assert!(local_attention(&zeros(3), &zeros(2), &zeros(2)).is_none());
    let many = |batch: usize| Tensor::<4>::zeros([batch, 2, 1, 1], &device());
    assert!(local_attention(&many(32_767), &many(32_767), &many(32_767)).is_some());
    // WebGPU launches no more cubes along an axis.
    let more = local_attention(&many(32_768), &many(32_768), &many(32_768));
    assert_eq!(more.is_some(), cfg!(feature = "cuda"));
    assert!(local_attention(&zeros(1), &zeros(2), &zeros(3)).is_none());
    let flex = Tensor::<4>::zeros([1, 2, 1, 8], &Device::flex());
    assert!(local_attention(&flex, &flex, &flex).is_none());
    let graph = zeros(1).autodiff();
    assert!(local_attention(&graph, &graph, &graph).is_none());
    let multiplied = |rows: usize, d_in: usize, device: &Device| {
        let (x, weight) = (Tensor::<3>::zeros([rows, 1, 4], device), Tensor::<2>::zeros([d_in, 6], device));
        product(&x, &FewRows::new(RowMap { weight: &weight, bias: None }))
    };
    assert!(multiplied(MAX_ROWS, 4, &device()).is_some());
    assert!(multiplied(MAX_ROWS + 1, 4, &device()).is_none());
    assert!(multiplied(1, 5, &device()).is_none());
    assert!(multiplied(1, 4, &Device::flex()).is_none());
    assert!(multiplied(1, 4, &device().autodiff()).is_none());
    // Nine tensors are more than WebGPU promises to bind.
    let (x, square, ones) = (
        Tensor::<3>::ones([1, 1, 4], &device()),
        Tensor::<2>::ones([4, 4], &device()),
        Tensor::<1>::ones([4], &device()),
    );
    let map = RowMap { weight: &square, bias: Some(&ones) };
    let all = FewRows {
        norm: Some(RowNorm { centred: true, scale: &ones, shift: Some(&ones), epsilon: EPSILON }),
        gate: Some(map),
        residual: Some(&x),
        ..FewRows::new(map)
    };
    assert!(product(&x, &all).is_none());
    assert!(product(&x, &FewRows { residual: None, gate: None, ..all }).is_some());
    let logits = Tensor::<2>::zeros([2, 5], &Device::flex());
    assert!(draw(&logits, None, Choice::Likeliest).is_none());
    let logits = Tensor::<2>::zeros([2, 5], &device());
    assert!(draw(&logits, None, Choice::Sampled(PLAIN)).is_none());
}

const PLAIN: Filters = Filters { temperature: 1.0, top_k: None, top_p: None, min_p: None };

/// What stands around a product.
#[derive(Debug, Clone, Copy, Default)]
struct Around {
    /// `Some(true)`: a layer norm; `Some(false)`: an RMS norm.
    centred: Option<bool>,
    biased: bool,
    gated: bool,
    activation: Option<RowActivation>,
    onto_residual: bool,
}

const EPSILON: f64 = 1e-3;

/// The error function by Simpson's rule.
fn erf(x: f64) -> f64 {
    let n = 400;
    let step = x / f64::from(n);
    let weight = |i: i32| if i == 0 || i == n { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
    let sum: f64 = (0..=n).map(|i| weight(i) * (-(f64::from(i) * step).powi(2)).exp()).sum();
    sum * step / 3.0 * std::f64::consts::FRAC_2_SQRT_PI
}

fn activated(activation: Option<RowActivation>, x: f64) -> f64 {
    match activation {
        None => x,
        Some(RowActivation::Gelu) => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Some(RowActivation::GeluTanh) => {
            x * 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Some(RowActivation::Relu) => x.max(0.0),
        Some(RowActivation::Silu) => x / (1.0 + (-x).exp()),
    }
}

fn check_product([batch, positions, d_in, d_out]: [usize; 4], around: Around, dtype: DType, tolerance: f64) {
    let x =
        tensor(&numbers(batch * positions * d_in, 1), [batch, positions, d_in], dtype).mul_scalar(2.0).add_scalar(0.5);
    let matrix = |salt| tensor(&numbers(d_in * d_out, salt), [d_in, d_out], dtype).div_scalar((d_in as f64).sqrt());
    let vector = |n, salt| tensor(&numbers(n, salt), [n], dtype);
    let (weight, gate, bias, gate_bias) = (matrix(2), matrix(3), vector(d_out, 4), vector(d_out, 5));
    let (scale, shift) = (vector(d_in, 6), vector(d_in, 7));
    let residual = tensor(&numbers(batch * positions * d_out, 8), [batch, positions, d_out], dtype);
    let of = FewRows {
        map: RowMap { weight: &weight, bias: around.biased.then_some(&bias) },
        norm: around.centred.map(|centred| match centred {
            true => RowNorm { centred, scale: &scale, shift: around.biased.then_some(&shift), epsilon: EPSILON },
            false => RowNorm { centred, scale: &scale, shift: None, epsilon: EPSILON },
        }),
        gate: around.gated.then_some(RowMap { weight: &gate, bias: around.biased.then_some(&gate_bias) }),
        activation: around.activation,
        residual: around.onto_residual.then_some(&residual),
    };
    let got = product(&x, &of).expect("there is a kernel");
    assert_eq!((got.dims(), got.dtype()), ([batch, positions, d_out], dtype));
    let got = values(got);

    let [weight, gate] = [weight, gate].map(values);
    let [bias, gate_bias, scale, shift] = [bias, gate_bias, scale, shift].map(values);
    let (x, residual) = (values(x), values(residual));
    for row in 0..batch * positions {
        let mut x = x[row * d_in..][..d_in].to_vec();
        if let Some(centred) = around.centred {
            let mean = if centred { x.iter().sum::<f64>() / d_in as f64 } else { 0.0 };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d_in as f64;
            for (k, x) in x.iter_mut().enumerate() {
                *x = (*x - mean) / (variance + EPSILON).sqrt() * scale[k];
                *x += if centred && around.biased { shift[k] } else { 0.0 };
            }
        }
        for column in 0..d_out {
            let map = |weight: &[f64], bias: &[f64]| {
                let sum: f64 = x.iter().enumerate().map(|(k, x)| x * weight[k * d_out + column]).sum();
                sum + if around.biased { bias[column] } else { 0.0 }
            };
            let y = map(&weight, &bias);
            let mut expected = match around.gated {
                true => y * activated(around.activation, map(&gate, &gate_bias)),
                false => activated(around.activation, y),
            };
            let at = row * d_out + column;
            expected += if around.onto_residual { residual[at] } else { 0.0 };
            let difference = (got[at] - expected).abs();
            assert!(
                difference < tolerance * (1.0 + expected.abs()),
                "{} instead of {expected}: row {row}, column {column} of {batch} x {positions} x {d_in} x {d_out} {dtype:?} {around:?}",
                got[at],
            );
        }
    }
}

#[test]
fn products_are_those_of_float64() {
    let neox = Around { centred: Some(true), biased: true, activation: Some(RowActivation::Gelu), ..Around::default() };
    let llama =
        Around { centred: Some(false), gated: true, activation: Some(RowActivation::Silu), ..Around::default() };
    let arounds = [
        Around::default(),
        neox,
        llama,
        Around { activation: Some(RowActivation::GeluTanh), onto_residual: true, ..Around::default() },
        Around { biased: true, activation: Some(RowActivation::Relu), ..llama },
        Around { biased: true, onto_residual: true, ..Around::default() },
    ];
    // Odd sizes have vectors of one; 4,100 features are more than a cube's units take at once.
    let shapes = [[1, 1, 1, 1], [1, 2, 33, 7], [2, 1, 64, 96], [3, 1, 4100, 20], [MAX_ROWS / 2, 2, 40, 264]];
    for (i, shape) in shapes.into_iter().enumerate() {
        for around in arounds {
            check_product(shape, around, DType::F32, 2e-5);
        }
        for (dtype, tolerance) in [(DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            if device().supports_dtype(dtype) {
                check_product(shape, arounds[i % 3], dtype, tolerance);
            }
        }
    }
}

/// Rows of weights may lie apart, as CUDA lays them out where they are no multiple of 512 bytes; or be columns.
#[test]
fn weights_are_read_as_they_lie() {
    let (d_in, d_out) = (24, 40);
    let x = tensor(&numbers(2 * d_in, 1), [2, 1, d_in], DType::F32);
    let wide = tensor(&numbers(d_in * 64, 2), [d_in, 64], DType::F32);
    let across = tensor(&numbers(d_in * d_out, 2), [d_out, d_in], DType::F32).transpose();
    for weight in [wide.clone().narrow(1, 8, d_out), wide.narrow(1, 3, d_out), across] {
        let of = FewRows::new(RowMap { weight: &weight, bias: None });
        let got = values(product(&x, &of).expect("there is a kernel"));
        let (x, weight) = (values(x.clone()), values(weight));
        for (at, got) in got.iter().enumerate() {
            let (row, column) = (at / d_out, at % d_out);
            let expected: f64 = (0..d_in).map(|k| x[row * d_in + k] * weight[k * d_out + column]).sum();
            assert!((got - expected).abs() < 1e-5, "{got} instead of {expected} at {at}");
        }
    }
}

/// Strips of all widths: the more columns, the wider.
#[test]
fn products_with_many_columns_are_those_of_float64() {
    for d_out in [4 * 8 * 256, 4 * 16 * 256, 4 * 32 * 256 + 4] {
        check_product([1, 1, 9, d_out], Around { biased: true, ..Around::default() }, DType::F32, 2e-5);
    }
}

#[test]
fn activations_of_large_numbers_are_numbers() {
    let (one, large) =
        (Tensor::<2>::ones([1, 1], &device()), tensor(&[-1e30, -100.0, 100.0, 1e30], [4, 1, 1], DType::F32));
    for (activation, expected) in [
        (RowActivation::Gelu, [0.0, 0.0, 100.0, 1e30f32 as f64]),
        (RowActivation::GeluTanh, [0.0, 0.0, 100.0, 1e30f32 as f64]),
        (RowActivation::Relu, [0.0, 0.0, 100.0, 1e30f32 as f64]),
        (RowActivation::Silu, [0.0, 0.0, 100.0, 1e30f32 as f64]),
    ] {
        let of = FewRows { activation: Some(activation), ..FewRows::new(RowMap { weight: &one, bias: None }) };
        let got = values(product(&large, &of).expect("there is a kernel"));
        assert_eq!(got, expected, "{activation:?}");
    }
}

#[test]
fn launches_are_counted() {
    let (x, weight) = (Tensor::<3>::ones([1, 1, 8], &device()), Tensor::<2>::ones([8, 8], &device()));
    let run = || {
        let of = FewRows::new(RowMap { weight: &weight, bias: None });
        let y = product(&x, &of).expect("there is a kernel");
        product(&y, &of).expect("there is a kernel").sum().into_scalar::<f32>()
    };
    assert_eq!(run(), 512.0); // all is compiled and tuned now
    let (sum, kernels) = observe_kernels(Observe::Times, run);
    assert_eq!(sum, 512.0);
    let kernels = kernels.expect("there are kernels");
    // Other tests may launch meanwhile.
    let ours = kernels.iter().find(|kernel| kernel.kernel.starts_with("ProductKernel")).expect("the kernel is named");
    assert!(ours.launches >= 2, "{kernels:?}");
    assert!(ours.time.is_none_or(|time| time > std::time::Duration::ZERO), "{kernels:?}");
}

/// Logits with ties, of which few are likely.
fn logits(rows: usize, vocab_size: usize) -> Vec<f32> {
    numbers(rows * vocab_size, 9).iter().map(|x| (x * 24.0).round() * 0.25).collect()
}

/// The definition in float64, by sorting: the token, and how far the number is from the nearest bound between tokens.
fn expected(logits: &[f32], uniform: f32, filters: &Filters) -> (i64, f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| (f64::from(logit - max) / filters.temperature).exp();
    let weights: Vec<f64> = logits.iter().map(weight).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    order.truncate(filters.top_k.unwrap_or(usize::MAX));
    if let Some(p) = filters.top_p {
        let wanted = p * order.iter().map(|id| weights[*id]).sum::<f64>();
        let mut mass = 0.0;
        let n = order.iter().take_while(|id| {
            let goes_on = mass < wanted;
            mass += weights[**id];
            goes_on
        });
        order.truncate(n.count());
    }
    order.retain(|id| weights[*id] >= filters.min_p.unwrap_or(0.0));
    order.sort();
    let total: f64 = order.iter().map(|id| weights[*id]).sum();
    let (mut sum, mut nearest, mut drawn) = (0.0, f64::INFINITY, None);
    for id in order {
        sum += weights[id] / total;
        nearest = nearest.min((sum - f64::from(uniform)).abs());
        drawn = drawn.or((sum > f64::from(uniform)).then_some(id as i64));
    }
    (drawn.unwrap(), nearest)
}

#[test]
fn drawn_tokens_are_those_of_the_definition() {
    let filters = [
        PLAIN,
        Filters { temperature: 0.6, ..PLAIN },
        Filters { top_k: Some(1), ..PLAIN },
        Filters { top_k: Some(7), ..PLAIN },
        Filters { top_k: Some(1 << 20), ..PLAIN },
        Filters { top_p: Some(0.803), ..PLAIN },
        Filters { top_p: Some(1e-46), ..PLAIN },
        Filters { min_p: Some(0.1), ..PLAIN },
        Filters { temperature: 1.4, top_k: Some(40), top_p: Some(0.913), min_p: Some(0.02) },
    ];
    for vocab_size in [1, 2, 255, 1009] {
        let rows = 24;
        let logits = logits(rows, vocab_size);
        let uniforms: Vec<f32> = numbers(rows, 5).iter().map(|x| (x + 1.0) / 2.0).collect();
        let (x, u) = (tensor(&logits, [rows, vocab_size], DType::F32), tensor(&uniforms, [rows, 1], DType::F32));
        for filters in filters {
            let drawn = draw(&x, Some(&u), Choice::Sampled(filters)).expect("there is a kernel");
            assert_eq!(drawn.dims(), [rows, 1]);
            let drawn: Vec<i64> = drawn.into_data().iter::<i64>().collect();
            for row in 0..rows {
                let (token, distance) = expected(&logits[row * vocab_size..][..vocab_size], uniforms[row], &filters);
                assert!(drawn[row] == token || distance < 1e-5, "row {row} of {vocab_size}, {filters:?}");
            }
        }
    }
}

#[test]
fn the_first_of_the_likeliest_is_taken() {
    for vocab_size in [1, 3, 300, 1009] {
        let logits = logits(5, vocab_size);
        let x = tensor(&logits, [5, vocab_size], DType::F32);
        let drawn = draw(&x, None, Choice::Likeliest).expect("there is a kernel").into_data();
        let expected = logits.chunks(vocab_size).map(|row| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter().position(|logit| *logit == max).unwrap() as i64
        });
        assert_eq!(drawn.iter::<i64>().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}

#[test]
fn rows_that_are_not_numbers_are_marked() {
    let infinity = f32::INFINITY;
    let rows = [[1.0, f32::NAN, 2.0], [1.0, infinity, 2.0], [-infinity; 3], [1.0, -infinity, 2.0]].concat();
    let (x, u) = (tensor(&rows, [4, 3], DType::F32), tensor(&[0.9; 4], [4, 1], DType::F32));
    for (choice, uniform) in [(Choice::Likeliest, None), (Choice::Sampled(PLAIN), Some(&u))] {
        let drawn = draw(&x, uniform, choice).expect("there is a kernel").into_data();
        assert_eq!(drawn.iter::<i64>().collect::<Vec<_>>(), [-1, -1, -1, 2], "{choice:?}");
    }
}

#[test]
fn kernels_stand_in_the_middle_of_fused_streams() {
    let q = tensor(&numbers(2 * 4 * 8, 1), [1, 2, 4, 8], DType::F32);
    let before = q.clone().mul_scalar(2.0).add_scalar(0.5);
    let sizes = Sizes { batch: 1, heads: 2, kv_heads: 2, queries: 4, keys: 4, head_dim: 8 };
    let plain: Vec<f64> = values(q).iter().map(|x| x * 2.0 + 0.5).collect();
    let expected = attention([&plain, &plain, &plain], &sizes);
    let after = local_attention(&before, &before, &before).expect("there is a kernel").mul_scalar(3.0) + before;
    for ((got, expected), before) in values(after).iter().zip(expected).zip(plain) {
        assert!((got - (3.0 * expected + before)).abs() < 1e-5);
    }
}
