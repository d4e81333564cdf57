//! More heads and larger tensors than 16 and 32 bits count.

use blockformer_cubecl::{NewPositions, attend_new, attend_paged, local_attention};
use burn::tensor::{DType, Tensor};

use crate::paged::Pool;
use crate::support::{device, numbers, tensor, values};

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
        let of = pool.of(&qkv, &tables, [heads, head_dim]);
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
            let pool = Pool { lens: vec![from; 4], new: vec![2; 4], page_length, n_pages, pages };
            let qkv = tensor(&numbers(4 * 2 * 3 * kv_width, 5 + from as u64), [4, 2, 3 * kv_width], dtype);
            attend_paged(pool.of(&qkv, &pool.tables(), [8, head_dim]), &mut keys, &mut values_)
                .expect("there is a kernel")
        });
        values(Tensor::cat(mixed.into(), 1))
    };
    assert_eq!(paged((1 << 32) / (page_length * kv_width) + 3), paged(8));
}
