//! The kernels against float64, on a CUDA device in a build for CUDA, otherwise on one of WGPU (Mesa's software device will
//! do).
#![cfg(any(feature = "wgpu", feature = "cuda"))]

mod attention;
mod drawing;
mod limits;
mod new_positions;
mod paged;
mod products;
mod rows;
mod support;

use blockformer_cubecl::{
    Choice, FewRows, Filters, MAX_KEYS, MAX_QUERIES, MAX_ROWS, Observe, RowMap, RowNorm, draw, local_attention,
    observe_kernels, product,
};
use burn::tensor::{DType, Device, Tensor};
use products::EPSILON;
use support::{Sizes, attention, device, numbers, tensor, values};

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

pub(crate) const PLAIN: Filters = Filters { temperature: 1.0, top_k: None, top_p: None, min_p: None };

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
