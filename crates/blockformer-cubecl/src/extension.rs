//! How the kernels become operations of Burn.

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Int, Shape, Tensor};
use burn_cubecl::CubeBackend;
use cubecl::ir::HardwareProperties;

use crate::{Choice, OnePosition, attention, drawing, one_position};

/// The operations, on CubeCL's backend and in the streams of its fusion.
#[backend_extension(Cube, Fusion)]
pub(crate) trait DecodingOps: Backend {
    /// See [`crate::local_attention`].
    #[fusion(dtype = q, shape = q)]
    fn local_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`crate::attend_one`]: mixed values, keys and values. `half` rotated features, or none, in which case nobody
    /// looks at cosine and sine.
    #[fusion(meta = one_position_specs)]
    #[allow(clippy::too_many_arguments)] // the macro takes no structs of plain numbers
    fn one_position(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        n_heads: usize,
        half: usize,
        len: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`crate::draw`]; `uniform` is not looked at if the likeliest are wanted. 0 or, for shares, 1 switches a filter
    /// off.
    #[fusion(dtype = DType::I32, shape = column(logits))]
    #[allow(clippy::too_many_arguments)] // the macro takes no structs of plain numbers
    fn draw(
        logits: FloatTensor<Self>,
        uniform: FloatTensor<Self>,
        greedy: bool,
        inverse_temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
    ) -> IntTensor<Self>;
}

#[allow(clippy::too_many_arguments)]
fn one_position_specs(
    qkv: &TensorSpec,
    _cos: &TensorSpec,
    _sin: &TensorSpec,
    keys: &TensorSpec,
    values: &TensorSpec,
    n_heads: &usize,
    _half: &usize,
    _len: &usize,
) -> (TensorSpec, TensorSpec, TensorSpec) {
    let shape = Shape::new([qkv.shape[0], 1, n_heads * keys.shape[3]]);
    (TensorSpec::new(shape, qkv.dtype), keys.clone(), values.clone())
}

fn column(matrix: &Shape) -> Shape {
    Shape::new([matrix[0], 1])
}

impl DecodingOps for CubeBackend {
    fn local_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self> {
        attention::launch(q, k, v)
    }

    fn one_position(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        n_heads: usize,
        half: usize,
        len: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        one_position::launch(qkv, [cos, sin], [keys, values], n_heads, half, len)
    }

    fn draw(
        logits: FloatTensor<Self>,
        uniform: FloatTensor<Self>,
        greedy: bool,
        inverse_temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
    ) -> IntTensor<Self> {
        let filters = drawing::Filters { inverse_temperature, top_k, top_p, min_p };
        drawing::launch(logits, uniform, (!greedy).then_some(filters))
    }
}

/// The most units of a cube along its first axis.
pub(crate) fn max_units(hardware: &HardwareProperties) -> u32 {
    hardware.max_cube_dim.0.min(hardware.max_units_per_cube)
}

/// Whether there are kernels for a tensor: it is one of CubeCL's, in a type of floats they know, and keeps no graph.
fn has_kernels<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Cube(_))
        && !x.is_autodiff()
        && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

pub(crate) fn local_attention(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>) -> Option<Tensor<4>> {
    if !has_kernels(q) || !has_kernels(k) || !has_kernels(v) {
        return None;
    }
    let [q, k, v] = [q, k, v].map(|x| x.clone().into_dispatch());
    Some(Tensor::from_dispatch(<Dispatch as DecodingOps>::local_attention(q, k, v)))
}

pub(crate) fn attend_one(position: OnePosition<'_>, keys: &mut Tensor<4>, values: &mut Tensor<4>) -> Option<Tensor<3>> {
    let OnePosition { qkv, rotation, n_heads, len } = position;
    let tables = rotation.into_iter().flat_map(|(cos, sin)| [cos, sin]);
    if !has_kernels(qkv) || ![&*keys, &*values].into_iter().chain(tables).all(has_kernels) {
        return None;
    }
    let half = rotation.map_or(0, |(cos, _)| cos.dims()[3]);
    let x = qkv.clone().into_dispatch();
    let [cos, sin] = match rotation {
        Some((cos, sin)) => [cos, sin].map(|table| table.clone().into_dispatch()),
        None => [x.clone(), x.clone()],
    };
    let mut mixed = None;
    keys.inplace(|keys| {
        let mut written = None;
        values.inplace(|values| {
            let (keys, values) = (keys.into_dispatch(), values.into_dispatch());
            let (output, keys, values) =
                <Dispatch as DecodingOps>::one_position(x, cos, sin, keys, values, n_heads, half, len);
            (mixed, written) = (Some(Tensor::from_dispatch(output)), Some(Tensor::from_dispatch(keys)));
            Tensor::from_dispatch(values)
        });
        let Some(keys) = written else { unreachable!("it was called") };
        keys
    });
    mixed
}

pub(crate) fn draw(logits: &Tensor<2>, uniform: Option<&Tensor<2>>, choice: Choice) -> Option<Tensor<2, Int>> {
    if !has_kernels(logits) || uniform.is_some_and(|uniform| !has_kernels(uniform) || uniform.dtype() != DType::F32) {
        return None;
    }
    let x = logits.clone().into_dispatch();
    let drawn = match (choice, uniform) {
        (Choice::Sampled(filters), Some(uniform)) => {
            let top_k = filters.top_k.filter(|k| *k < logits.dims()[1]).unwrap_or(0);
            // A share of nothing is still the likeliest token.
            let top_p = (filters.top_p.unwrap_or(1.0) as f32).max(f32::MIN_POSITIVE);
            let min_p = filters.min_p.unwrap_or(0.0) as f32;
            let inverse_temperature = 1.0 / filters.temperature as f32;
            let uniform = uniform.clone().into_dispatch();
            <Dispatch as DecodingOps>::draw(x, uniform, false, inverse_temperature, top_k, top_p, min_p)
        }
        _ => <Dispatch as DecodingOps>::draw(x.clone(), x, true, 1.0, 0, 1.0, 0.0),
    };
    Some(Tensor::from_dispatch(drawn))
}
