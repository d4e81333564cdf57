//! A few queries over a short cache.

use blockformer_cubecl::local_attention;
use burn::tensor::{DType, Tensor};

use crate::support::{Sizes, attention, device, numbers, tensor, values};

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
