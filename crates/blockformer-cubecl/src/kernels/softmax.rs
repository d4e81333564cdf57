//! What attention kernels share: a cube has one query, its units the scores, several of them a key, and then the features.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

use super::max_units;

/// Units that share the score of a key.
pub(crate) const PARTS: usize = 8;

/// Units of a cube for heads of so many features.
pub(crate) fn units_for(head_dim: usize, on: &CubeTensor) -> u32 {
    let units = head_dim.next_power_of_two().clamp(32, 128) as u32;
    units.min(max_units(&on.client.properties().hardware))
}

/// What the places of the largest of these tensors need.
pub(crate) fn address_of(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|x| x.required_address_type()).max().unwrap_or_default()
}

/// Adds up the parts of `n` scores, for all units to see.
#[cube]
pub(crate) fn add_parts(
    partial: &Shared<[f32]>,
    scores: &mut Shared<[f32]>,
    n: usize,
    scale: f32,
    #[comptime] parts: usize,
) {
    let mut key = UNIT_POS_X as usize;
    while key < n {
        let mut sum = 0.0f32;
        for part in 0..parts {
            sum += partial[key * parts + part];
        }
        scores[key] = sum * scale;
        key += CUBE_DIM_X as usize;
    }
    sync_cube();
}

/// Turns `n` scores into what they weigh beside the largest; returns the largest, which is the least there is if there are none, and
/// the sum of the weights.
#[cube]
pub(crate) fn weigh(scores: &mut Shared<[f32]>, n: usize) -> (f32, f32) {
    let mut largest = scores[0];
    for key in 1..n {
        largest = max(largest, scores[key]);
    }
    if n == 0 {
        largest = f32::min_value();
    }
    sync_cube();
    let mut key = UNIT_POS_X as usize;
    while key < n {
        scores[key] = (scores[key] - largest).exp();
        key += CUBE_DIM_X as usize;
    }
    sync_cube();
    let mut total = 0.0f32;
    for key in 0..n {
        total += scores[key];
    }
    (largest, total)
}
