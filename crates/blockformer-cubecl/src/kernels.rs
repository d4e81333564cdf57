//! The kernels, and how they become operations of Burn.

mod asking;
mod attention;
mod copying;
mod drawing;
mod few_rows;
mod new_positions;
mod observation;
mod operations;
mod paged;
mod row;
mod softmax;

use cubecl::ir::HardwareProperties;

pub(crate) use asking::{
    attend_new, attend_paged, copy_rows, draw, draw_each, draws, has_kernels, held, launches_cubes, local_attention,
    norm, product, takes_counts, takes_pages, write_over, write_rows, writes_rows,
};
pub(crate) use observation::observe;

/// The most units of a cube along its first axis.
pub(crate) fn max_units(hardware: &HardwareProperties) -> u32 {
    hardware.max_cube_dim.0.min(hardware.max_units_per_cube)
}
