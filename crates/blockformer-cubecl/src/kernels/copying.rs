//! Numbers into memory that stays where it is.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::max_units;
use super::new_positions::owned;
use super::operations::Optional;
use super::softmax::address_of;

/// Units of a cube, if the device has so many.
const UNITS: u32 = 256;

#[cube(launch, address_type = "dynamic")]
fn copying_kernel<F: Float>(source: &[F], target: &mut [F], #[define(F)] _dtype: ElemType) {
    let i = ABSOLUTE_POS;
    if i < target.len() {
        target[i] = source[i];
    }
}

/// Launches it; `target` has the sizes of `source`, one row behind the other.
pub(crate) fn launch(source: CubeTensor, target: Optional<CubeBackend>) -> CubeTensor {
    let source = into_contiguous(source);
    let (client, dtype) = (source.client.clone(), source.dtype);
    let target = target
        .into_option()
        .unwrap_or_else(|| empty_device_contiguous_dtype(client.clone(), source.device.clone(), source.shape(), dtype));
    let (units, cubes) = elementwise(&target, target.shape().num_elements());
    copying_kernel::launch(
        &client,
        cubes,
        units,
        source.required_address_type(),
        source.into_buffer_arg(),
        target.clone().into_buffer_arg(),
        dtype_to_storage_type(dtype),
    );
    target
}

/// Puts rows over those of `target` from row `to` on.
#[cube(launch, address_type = "dynamic")]
fn write_rows_kernel<F: Float, G: Float>(
    rows: &Tensor<F>,       // [n, columns]
    target: &mut Tensor<G>, // [all, columns]
    to: u32,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let columns = rows.shape(1);
    let i = ABSOLUTE_POS;
    if i < rows.shape(0) * columns {
        let (row, column) = (i / columns, i % columns);
        let number = f32::cast_from(rows[row * rows.stride(0) + column * rows.stride(1)]);
        let at = (to as usize + row) * target.stride(0) + column * target.stride(1);
        target[at] = G::cast_from(number);
    }
}

/// Puts the `n` rows from row `from` on over those from row `to` on.
#[cube(launch, address_type = "dynamic")]
fn copy_rows_kernel<F: Float>(
    target: &mut Tensor<F>, // [all, columns]
    from: u32,
    to: u32,
    n: u32,
    #[define(F)] _dtype: ElemType,
) {
    let columns = target.shape(1);
    let i = ABSOLUTE_POS;
    if i < n as usize * columns {
        let (row, column) = (i / columns, i % columns);
        let column = column * target.stride(1);
        let number = target[(from as usize + row) * target.stride(0) + column];
        let at = (to as usize + row) * target.stride(0) + column;
        target[at] = number;
    }
}

/// Units and cubes for so many numbers.
fn elementwise(target: &CubeTensor, numbers: usize) -> (CubeDim, CubeCount) {
    let client = &target.client;
    let units = CubeDim::new_1d(UNITS.min(max_units(&client.properties().hardware)));
    (units, calculate_cube_count_elemwise(client, numbers, units))
}

/// Launches it; the rows are those of `target`.
pub(crate) fn launch_write_rows(rows: CubeTensor, target: CubeTensor, to: usize, stays: bool) -> CubeTensor {
    let target = owned(target, stays);
    let (units, cubes) = elementwise(&target, rows.shape().num_elements());
    write_rows_kernel::launch(
        &target.client,
        cubes,
        units,
        address_of(&[&rows, &target]),
        rows.clone().into_tensor_arg(),
        target.clone().into_tensor_arg(),
        to as u32,
        [rows.dtype, target.dtype].map(dtype_to_storage_type),
    );
    target
}

/// Launches it; neither range of rows goes beyond the target, nor into the other.
pub(crate) fn launch_copy_rows(target: CubeTensor, from: usize, to: usize, n: usize, stays: bool) -> CubeTensor {
    let target = owned(target, stays);
    let (units, cubes) = elementwise(&target, n * target.shape()[1]);
    copy_rows_kernel::launch(
        &target.client,
        cubes,
        units,
        target.required_address_type(),
        target.clone().into_tensor_arg(),
        from as u32,
        to as u32,
        n as u32,
        dtype_to_storage_type(target.dtype),
    );
    target
}
