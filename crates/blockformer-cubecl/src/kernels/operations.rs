//! How the kernels become operations of Burn.

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;

use super::drawing::{Filters, How};
use super::{attention, copying, drawing, few_rows, new_positions, paged};
use crate::RowActivation;

/// A tensor, or none: the macros know no [`Option`] of tensors.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion)]
pub(crate) enum Optional<B: Backend> {
    None,
    Some(FloatTensor<B>),
}

impl<B: Backend> Optional<B> {
    pub(crate) fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::None => None,
            Self::Some(x) => Some(x),
        }
    }
}

/// A tensor of truths, or none.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion)]
pub(crate) enum OptionalBool<B: Backend> {
    None,
    Some(BoolTensor<B>),
}

/// What new positions take, see [`NewPositions`]; cosine and sine are there or not, both.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct PositionInputs<B: Backend> {
    pub(crate) qkv: FloatTensor<B>,
    #[extension_type]
    pub(crate) cos: Optional<B>,
    #[extension_type]
    pub(crate) sin: Optional<B>,
    #[extension_type]
    pub(crate) hidden: OptionalBool<B>,
    #[extension_type]
    pub(crate) count: Optional<B>,
    pub(crate) keys: FloatTensor<B>,
    pub(crate) values: FloatTensor<B>,
}

/// What new positions take whose cache lies in pages, see [`PagedPositions`].
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct PagedInputs<B: Backend> {
    pub(crate) qkv: FloatTensor<B>,
    #[extension_type]
    pub(crate) cos: Optional<B>,
    #[extension_type]
    pub(crate) sin: Optional<B>,
    pub(crate) tables: IntTensor<B>,
    pub(crate) keys: FloatTensor<B>,
    pub(crate) values: FloatTensor<B>,
}

/// What a product takes, see [`FewRows`]; `scale` and `shift` are those of the norm.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct ProductInputs<B: Backend> {
    pub(crate) x: FloatTensor<B>,
    pub(crate) weight: FloatTensor<B>,
    #[extension_type]
    pub(crate) bias: Optional<B>,
    #[extension_type]
    pub(crate) gate: Optional<B>,
    #[extension_type]
    pub(crate) gate_bias: Optional<B>,
    #[extension_type]
    pub(crate) scale: Optional<B>,
    #[extension_type]
    pub(crate) shift: Optional<B>,
    #[extension_type]
    pub(crate) residual: Optional<B>,
}

/// The operations, on CubeCL's backend and in the streams of its fusion.
#[backend_extension(Cube, Fusion)]
pub(crate) trait DecodingOps: Backend {
    /// See [`crate::local_attention`].
    #[fusion(dtype = q, shape = q)]
    fn local_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`crate::attend_new`]: mixed values, keys and values.
    #[fusion(meta = new_positions_specs)]
    fn new_positions(
        #[extension_type] inputs: PositionInputs<Self>,
        n_heads: usize,
        len: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`crate::attend_paged`]: mixed values, keys and values.
    #[fusion(meta = paged_specs)]
    fn paged(
        #[extension_type] inputs: PagedInputs<Self>,
        n_heads: usize,
        head_dim: usize,
        page_length: usize,
        longest: usize,
        see_each_other: bool,
        stays: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`crate::norm`].
    #[fusion(dtype = x, shape = x)]
    fn norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        #[extension_type] shift: Optional<Self>,
        centred: bool,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// See [`crate::product`].
    #[fusion(meta = product_spec)]
    fn product(
        #[extension_type] inputs: ProductInputs<Self>,
        centred: bool,
        epsilon: f32,
        activation: Option<RowActivation>,
    ) -> FloatTensor<Self>;

    /// The same numbers in `target`, a tensor that this operation gave, or in one of their own whose rows follow each other.
    #[fusion(dtype = source, shape = source)]
    fn copied(source: FloatTensor<Self>, #[extension_type] target: Optional<Self>) -> FloatTensor<Self>;

    /// See [`crate::write_rows`].
    #[fusion(dtype = target, shape = target)]
    fn write_rows(rows: FloatTensor<Self>, target: FloatTensor<Self>, to: usize, stays: bool) -> FloatTensor<Self>;

    /// See [`crate::copy_rows`].
    #[fusion(dtype = target, shape = target)]
    fn copy_rows(target: FloatTensor<Self>, from: usize, to: usize, n: usize, stays: bool) -> FloatTensor<Self>;

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

    /// See [`crate::draw_each`].
    #[fusion(dtype = DType::I32, shape = column(logits))]
    fn draw_each(
        logits: FloatTensor<Self>,
        uniform: FloatTensor<Self>,
        ways: FloatTensor<Self>,
        with_top_k: bool,
        with_top_p: bool,
    ) -> IntTensor<Self>;
}

fn new_positions_specs(
    inputs: &PositionInputsMetadata,
    n_heads: &usize,
    _len: &usize,
) -> (TensorSpec, TensorSpec, TensorSpec) {
    let PositionInputsMetadata { qkv, keys, values, .. } = inputs;
    let shape = Shape::new([qkv.shape[0], qkv.shape[1], n_heads * keys.shape[3]]);
    (TensorSpec::new(shape, qkv.dtype), keys.clone(), values.clone())
}

fn paged_specs(
    inputs: &PagedInputsMetadata,
    n_heads: &usize,
    head_dim: &usize,
    _page_length: &usize,
    _longest: &usize,
    _see_each_other: &bool,
    _stays: &bool,
) -> (TensorSpec, TensorSpec, TensorSpec) {
    let PagedInputsMetadata { qkv, keys, values, .. } = inputs;
    let shape = Shape::new([qkv.shape[0], qkv.shape[1], n_heads * head_dim]);
    (TensorSpec::new(shape, qkv.dtype), keys.clone(), values.clone())
}

fn product_spec(
    inputs: &ProductInputsMetadata,
    _centred: &bool,
    _epsilon: &f32,
    _activation: &Option<RowActivation>,
) -> TensorSpec {
    let [batch, positions, _] = inputs.x.shape.dims::<3>();
    TensorSpec::new(Shape::new([batch, positions, inputs.weight.shape[1]]), inputs.x.dtype)
}

fn column(matrix: &Shape) -> Shape {
    Shape::new([matrix[0], 1])
}

impl DecodingOps for CubeBackend {
    fn local_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self> {
        attention::launch(q, k, v)
    }

    fn new_positions(
        inputs: PositionInputs<Self>,
        n_heads: usize,
        len: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        new_positions::launch(inputs, n_heads, len)
    }

    fn paged(
        inputs: PagedInputs<Self>,
        n_heads: usize,
        head_dim: usize,
        page_length: usize,
        longest: usize,
        see_each_other: bool,
        stays: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        paged::launch(inputs, [n_heads, head_dim], (page_length, longest), see_each_other, stays)
    }

    fn norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: Optional<Self>,
        centred: bool,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        few_rows::launch_norm(x, scale, shift, centred, epsilon)
    }

    fn product(
        inputs: ProductInputs<Self>,
        centred: bool,
        epsilon: f32,
        activation: Option<RowActivation>,
    ) -> FloatTensor<Self> {
        few_rows::launch(inputs, centred, epsilon, activation)
    }

    fn copied(source: FloatTensor<Self>, target: Optional<Self>) -> FloatTensor<Self> {
        copying::launch(source, target)
    }

    fn write_rows(rows: FloatTensor<Self>, target: FloatTensor<Self>, to: usize, stays: bool) -> FloatTensor<Self> {
        copying::launch_write_rows(rows, target, to, stays)
    }

    fn copy_rows(target: FloatTensor<Self>, from: usize, to: usize, n: usize, stays: bool) -> FloatTensor<Self> {
        copying::launch_copy_rows(target, from, to, n, stays)
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
        let filters = Filters { inverse_temperature, top_k, top_p, min_p };
        drawing::launch(logits, uniform, if greedy { How::Likeliest } else { How::Alike(filters) })
    }

    fn draw_each(
        logits: FloatTensor<Self>,
        uniform: FloatTensor<Self>,
        ways: FloatTensor<Self>,
        with_top_k: bool,
        with_top_p: bool,
    ) -> IntTensor<Self> {
        drawing::launch(logits, uniform, How::Each { ways, with_top_k, with_top_p })
    }
}
