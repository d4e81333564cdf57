//! Whether there is a kernel, and what is asked of it.

use std::sync::OnceLock;

use burn::backend::{Dispatch, DispatchDevice, DispatchTensor};
use burn::tensor::{DType, Int, Tensor};

use super::drawing::Filters;
use super::operations::{DecodingOps, Optional, OptionalBool, PagedInputs, PositionInputs, ProductInputs};
use super::softmax::Head;
use crate::{Choice, FewRows, KERNELS_OFF_VARIABLE, MAX_CUBES, MAX_TENSORS, NewPositions, PagedPositions, RowNorm};

/// Whether there are kernels for a tensor: it is one of CubeCL's, in a type of floats they know, and keeps no graph.
pub(crate) fn has_kernels<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Cube(_))
        && !x.is_autodiff()
        && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// Whether [`KERNELS_OFF_VARIABLE`] leaves a kernel out.
fn is_off(kernel: &str) -> bool {
    const KERNELS: [&str; 8] =
        ["norm", "product", "attend_new", "attend_paged", "local_attention", "draw", "write_rows", "copy_rows"];
    static OFF: OnceLock<Vec<&str>> = OnceLock::new();
    let off = OFF.get_or_init(|| {
        let given = std::env::var(KERNELS_OFF_VARIABLE).unwrap_or_default();
        let off_by = |name: &str| match name.trim() {
            "" | "none" => vec![],
            "all" => KERNELS.to_vec(),
            name => match KERNELS.iter().find(|kernel| **kernel == name) {
                Some(kernel) => vec![*kernel],
                None => panic!("{KERNELS_OFF_VARIABLE} names {name:?}, which is none of {KERNELS:?}, all and none"),
            },
        };
        given.split(',').flat_map(off_by).collect()
    });
    off.contains(&kernel)
}

pub(crate) fn local_attention(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>) -> Option<Tensor<4>> {
    let [batch, heads, ..] = q.dims();
    let served = !is_off("local_attention") && has_kernels(q) && has_kernels(k) && has_kernels(v);
    if !served || !launches_cubes(q, batch * heads) {
        return None;
    }
    let [q, k, v] = [q, k, v].map(|x| x.clone().into_dispatch());
    Some(Tensor::from_dispatch(<Dispatch as DecodingOps>::local_attention(q, k, v)))
}

pub(crate) fn attend_new(
    position: NewPositions<'_>,
    keys: &mut Tensor<4>,
    values: &mut Tensor<4>,
) -> Option<Tensor<3>> {
    let NewPositions { qkv, rotation, n_heads, len, hidden, count } = position;
    let served = !is_off("attend_new")
        && has_kernels(qkv)
        && has_kernels(keys)
        && has_kernels(values)
        && launches_cubes(keys, keys.dims()[0] * n_heads)
        && shares_enough(keys, keys.dims()[3], qkv.dims()[1])
        && rotation.is_none_or(|(cos, sin)| has_kernels(cos) && has_kernels(sin))
        && count.is_none_or(|count| has_kernels(count) && takes_counts(keys, keys.dims()[3]))
        && hidden.is_none_or(|hidden| matches!(hidden.device().as_dispatch(), DispatchDevice::Cube(_)));
    if !served {
        return None;
    }
    let [cos, sin] = [rotation.map(|(cos, _)| cos), rotation.map(|(_, sin)| sin)].map(optional);
    let hidden = match hidden {
        None => OptionalBool::None,
        Some(hidden) => OptionalBool::Some(hidden.clone().into_dispatch()),
    };
    let (qkv, count) = (qkv.clone().into_dispatch(), optional(count));
    Some(written_in_place(keys, values, |keys, values| {
        let inputs = PositionInputs { qkv, cos, sin, hidden, count, keys, values };
        <Dispatch as DecodingOps>::new_positions(inputs, n_heads, len)
    }))
}

/// Lets a kernel have keys and values as their only owner, if they have one.
fn written_in_place<const D: usize>(
    keys: &mut Tensor<D>,
    values: &mut Tensor<D>,
    launch: impl FnOnce(DispatchTensor, DispatchTensor) -> (DispatchTensor, DispatchTensor, DispatchTensor),
) -> Tensor<3> {
    let mut mixed = None;
    keys.inplace(|keys| {
        let mut written = None;
        values.inplace(|values| {
            let (output, keys, values) = launch(keys.into_dispatch(), values.into_dispatch());
            (mixed, written) = (Some(Tensor::from_dispatch(output)), Some(Tensor::from_dispatch(keys)));
            Tensor::from_dispatch(values)
        });
        let Some(keys) = written else { unreachable!("it was called") };
        keys
    });
    let Some(mixed) = mixed else { unreachable!("it was called") };
    mixed
}

pub(crate) fn attend_paged(
    position: PagedPositions<'_>,
    keys: &mut Tensor<2>,
    values: &mut Tensor<2>,
) -> Option<Tensor<3>> {
    let PagedPositions { qkv, rotation, n_heads, head_dim, tables, page_length, longest, see_each_other, stays } =
        position;
    let served = takes_pages(keys, [qkv.dims()[0] * qkv.dims()[1] * n_heads, head_dim])
        && has_kernels(qkv)
        && has_kernels(values)
        && matches!(tables.device().as_dispatch(), DispatchDevice::Cube(_))
        && rotation.is_none_or(|(cos, sin)| has_kernels(cos) && has_kernels(sin));
    if !served {
        return None;
    }
    let [cos, sin] = [rotation.map(|(cos, _)| cos), rotation.map(|(_, sin)| sin)].map(optional);
    let (qkv, tables) = (qkv.clone().into_dispatch(), tables.clone().into_dispatch());
    Some(written_in_place(keys, values, |keys, values| {
        let inputs = PagedInputs { qkv, cos, sin, tables, keys, values };
        <Dispatch as DecodingOps>::paged(inputs, n_heads, head_dim, page_length, longest, see_each_other, stays)
    }))
}

/// Whether [`attend_paged`] takes pages like these, with so many query heads of all new positions, of so many features.
pub(crate) fn takes_pages(pages: &Tensor<2>, [heads, head_dim]: [usize; 2]) -> bool {
    !is_off("attend_paged") && has_kernels(pages) && launches_cubes(pages, heads) && shares_enough(pages, head_dim, 1)
}

/// Whether a cube shares as much memory as attention of so many new positions needs, on the device of `x`.
fn shares_enough<const D: usize>(x: &Tensor<D>, head_dim: usize, new: usize) -> bool {
    let device = x.device();
    let DispatchDevice::Cube(device) = device.as_dispatch() else { return false };
    Head::most_floats(head_dim, new) * size_of::<f32>() <= device.client().properties().hardware.max_shared_memory_size
}

/// Whether rows of a tensor like this one are written and copied.
pub(crate) fn writes_rows(target: &Tensor<2>) -> bool {
    !is_off("write_rows") && !is_off("copy_rows") && has_kernels(target)
}

pub(crate) fn write_rows(target: &mut Tensor<2>, to: usize, rows: Tensor<2>, stays: bool) {
    target.inplace(|target| {
        let (rows, target) = (rows.into_dispatch(), target.into_dispatch());
        Tensor::from_dispatch(<Dispatch as DecodingOps>::write_rows(rows, target, to, stays))
    });
}

pub(crate) fn copy_rows(target: &mut Tensor<2>, from: usize, to: usize, n: usize, stays: bool) {
    target.inplace(|target| {
        Tensor::from_dispatch(<Dispatch as DecodingOps>::copy_rows(target.into_dispatch(), from, to, n, stays))
    });
}

/// Whether the device of `x` launches so many cubes along the first axis.
pub(crate) fn launches_cubes<const D: usize>(x: &Tensor<D>, cubes: usize) -> bool {
    cubes <= MAX_CUBES
        || match x.device().as_dispatch() {
            DispatchDevice::Cube(device) => cubes <= device.client().properties().hardware.max_cube_count.0 as usize,
            _ => false,
        }
}

/// Whether [`attend_new`] takes a count, for tensors like `x` and heads of so many features: with it there is one buffer more than WebGPU
/// promises.
pub(crate) fn takes_counts<const D: usize>(x: &Tensor<D>, head_dim: usize) -> bool {
    let device = x.device();
    let DispatchDevice::Cube(device) = device.as_dispatch() else { return false };
    !is_off("attend_new")
        && has_kernels(x)
        && shares_enough(x, head_dim, 1)
        && device.client().properties().hardware.max_bindings > MAX_TENSORS as u32 + 1
}

pub(crate) fn norm(x: &Tensor<3>, norm: RowNorm<'_>) -> Option<Tensor<3>> {
    let RowNorm { centred, scale, shift, epsilon } = norm;
    if is_off("norm") || !has_kernels(x) || !has_kernels(scale) || !shift.is_none_or(has_kernels) {
        return None;
    }
    let (x, scale, shift) = (x.clone().into_dispatch(), scale.clone().into_dispatch(), optional(shift));
    Some(Tensor::from_dispatch(<Dispatch as DecodingOps>::norm(x, scale, shift, centred, epsilon as f32)))
}

pub(crate) fn product(x: &Tensor<3>, of: &FewRows<'_>) -> Option<Tensor<3>> {
    let FewRows { map, gate, activation, norm, residual } = *of;
    let (scale, shift) = (norm.map(|norm| norm.scale), norm.and_then(|norm| norm.shift));
    let vectors = [map.bias, gate.and_then(|gate| gate.bias), scale, shift];
    let fits = !is_off("product")
        && has_kernels(x)
        && residual.is_none_or(has_kernels)
        && [Some(map.weight), gate.map(|gate| gate.weight)].into_iter().flatten().all(has_kernels)
        && vectors.into_iter().flatten().all(has_kernels);
    if !fits {
        return None;
    }
    let [bias, gate_bias, scale, shift] = vectors.map(optional);
    let inputs = ProductInputs {
        x: x.clone().into_dispatch(),
        weight: map.weight.clone().into_dispatch(),
        bias,
        gate: optional(gate.map(|gate| gate.weight)),
        gate_bias,
        scale,
        shift,
        residual: optional(residual),
    };
    let (centred, epsilon) = norm.map_or((false, 0.0), |norm| (norm.centred, norm.epsilon as f32));
    Some(Tensor::from_dispatch(<Dispatch as DecodingOps>::product(inputs, centred, epsilon, activation)))
}

fn optional<const D: usize>(x: Option<&Tensor<D>>) -> Optional<Dispatch> {
    match x {
        None => Optional::None,
        Some(x) => Optional::Some(x.clone().into_dispatch()),
    }
}

/// Whether [`draw`] has a kernel for tensors like `x`.
pub(crate) fn draws<const D: usize>(x: &Tensor<D>) -> bool {
    !is_off("draw") && has_kernels(x)
}

pub(crate) fn draw_each(
    logits: &Tensor<2>,
    uniform: &Tensor<2>,
    ways: &Tensor<2>,
    [with_top_k, with_top_p]: [bool; 2],
) -> Option<Tensor<2, Int>> {
    let of_floats = |x: &Tensor<2>| has_kernels(x) && x.dtype() == DType::F32;
    if !draws(logits) || !of_floats(uniform) || !of_floats(ways) {
        return None;
    }
    let [logits, uniform, ways] = [logits, uniform, ways].map(|x| x.clone().into_dispatch());
    Some(Tensor::from_dispatch(<Dispatch as DecodingOps>::draw_each(logits, uniform, ways, with_top_k, with_top_p)))
}

pub(crate) fn draw(logits: &Tensor<2>, uniform: Option<&Tensor<2>>, choice: Choice) -> Option<Tensor<2, Int>> {
    if !draws(logits) || uniform.is_some_and(|uniform| !has_kernels(uniform) || uniform.dtype() != DType::F32) {
        return None;
    }
    let x = logits.clone().into_dispatch();
    let drawn = match (choice, uniform) {
        (Choice::Sampled(filters), Some(uniform)) => {
            let Filters { inverse_temperature, top_k, top_p, min_p } = Filters::new(&filters, logits.dims()[1]);
            let uniform = uniform.clone().into_dispatch();
            <Dispatch as DecodingOps>::draw(x, uniform, false, inverse_temperature, top_k, top_p, min_p)
        }
        _ => <Dispatch as DecodingOps>::draw(x.clone(), x, true, 1.0, 0, 1.0, 0.0),
    };
    Some(Tensor::from_dispatch(drawn))
}

/// A tensor of its own with the numbers of `source`, for [`write_over`]; there have to be [kernels](has_kernels).
pub(crate) fn held<const D: usize>(source: &Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as DecodingOps>::copied(source.clone().into_dispatch(), Optional::None))
}

/// Writes other numbers into the memory of a tensor that [`held`] gave.
pub(crate) fn write_over<const D: usize>(held: &mut Tensor<D>, source: &Tensor<D>) {
    held.inplace(|held| {
        let target = Optional::Some(held.into_dispatch());
        Tensor::from_dispatch(<Dispatch as DecodingOps>::copied(source.clone().into_dispatch(), target))
    });
}
