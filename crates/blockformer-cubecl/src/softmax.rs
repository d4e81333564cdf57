//! What attention kernels share: a cube has one query, its units the scores, several of them a key, and then the features.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::extension::max_units;

/// Units that share the score of a key.
pub(crate) const PARTS: usize = 8;

/// Units of a cube for heads of so many features.
pub(crate) fn units_for(head_dim: usize, on: &CubeTensor) -> u32 {
    let units = head_dim.next_power_of_two().clamp(32, 128) as u32;
    units.min(max_units(&on.client.properties().hardware))
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

/// Turns `n` scores into what they weigh beside the largest; returns the largest, and the sum of the weights.
#[cube]
pub(crate) fn weigh(scores: &mut Shared<[f32]>, n: usize) -> (f32, f32) {
    let mut largest = scores[0];
    for key in 1..n {
        largest = max(largest, scores[key]);
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
