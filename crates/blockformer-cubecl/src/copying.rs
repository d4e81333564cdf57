//! Numbers into memory that stays where it is.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use crate::extension::{Optional, max_units};

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
    let units = CubeDim::new_1d(UNITS.min(max_units(&client.properties().hardware)));
    let cubes = calculate_cube_count_elemwise(&client, target.shape().num_elements(), units);
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
