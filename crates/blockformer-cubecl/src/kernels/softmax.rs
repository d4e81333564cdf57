//! What attention kernels share: a cube has one query, its units the scores, several of them a key, and then the features, several groups
//! of them the keys.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

use super::max_units;
use crate::MAX_KEYS;

/// Units that share the score of a key, at most.
pub(crate) const PARTS: usize = 8;

/// Features of a vector, at most.
const WIDEST: usize = 8;

/// Units of a cube at most.
const MOST_UNITS: usize = 128;

/// Units of a cube for heads of so many features: a power of two.
pub(crate) fn units_for(head_dim: usize, on: &CubeTensor) -> u32 {
    let units = head_dim.next_power_of_two().clamp(32, MOST_UNITS) as u32;
    units.min(1 << max_units(&on.client.properties().hardware).ilog2())
}

/// How the units of a cube read keys and values of a head from a cache: in vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Head {
    pub(crate) head_dim: usize,
    /// Features of a vector.
    width: usize,
    pub(crate) units: usize,
}

impl Head {
    /// Of keys and values whose last axis has the features, of this head alone or of several.
    pub(crate) fn new(head_dim: usize, units: u32, caches: [&CubeTensor; 2]) -> Self {
        let divides = |width: &usize| {
            head_dim.is_multiple_of(*width)
                && caches.iter().all(|cache| {
                    let [before @ .., feature] = &cache.meta.strides()[..] else { return false };
                    *feature == 1 && before.iter().all(|stride| stride.is_multiple_of(*width))
                })
        };
        let widths = caches[0].client.io_optimized_vector_sizes(caches[0].dtype.size());
        let width = widths.filter(|width| *width <= WIDEST && divides(width)).max().unwrap_or(1);
        Self { head_dim, width, units: units as usize }
    }

    pub(crate) fn width(self) -> usize {
        self.width
    }

    pub(crate) fn vectors(self) -> usize {
        self.head_dim / self.width
    }

    /// Units that share the score of a key, a power of two.
    pub(crate) fn parts(self) -> usize {
        1 << PARTS.min(self.vectors()).min(self.units).ilog2()
    }

    /// Vectors of a key that each of these has, at most.
    pub(crate) fn each(self) -> usize {
        self.vectors().div_ceil(self.parts())
    }

    /// Groups of units, each of which has a part of the values.
    pub(crate) fn groups(self) -> usize {
        (self.units / self.vectors()).max(1)
    }

    /// Floats that a cube shares at most, where it has so many new positions.
    pub(crate) fn most_floats(head_dim: usize, new: usize) -> usize {
        let mixed = head_dim.max(MOST_UNITS * WIDEST);
        (2 * new + 1) * head_dim + (PARTS + 2) * MAX_KEYS + mixed
    }
}

/// Where features of a cache stand.
#[derive(CubeType)]
pub(crate) struct Strides {
    /// The first feature of the head.
    pub(crate) at: usize,
    pub(crate) position: usize,
    pub(crate) feature: usize,
}

/// The place of a vector of a position.
#[cube]
pub(crate) fn vector_at(strides: &Strides, position: usize, vector: usize, #[comptime] head: Head) -> usize {
    let width = comptime!(head.width());
    (strides.at + position * strides.position + vector * width * strides.feature) / width
}

/// The vector of floats that begins at `at`.
#[cube]
pub(crate) fn gathered<N: Size>(floats: &Shared<[f32]>, at: usize, #[comptime] head: Head) -> Vector<f32, N> {
    let mut vector = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..comptime!(head.width()) {
        vector.insert(i, floats[at + i]);
    }
    vector
}

/// What this unit multiplies keys with: its vectors of the query.
#[cube]
pub(crate) fn own_query<N: Size>(
    query: &Shared<[f32]>,
    own: &mut Array<Vector<f32, N>>,
    part: usize,
    #[comptime] head: Head,
) {
    #[unroll]
    for i in 0..comptime!(head.each()) {
        own[i] = Vector::new(0.0f32);
        let vector = part + comptime!(i * head.parts());
        if vector < comptime!(head.vectors()) {
            own[i] = gathered::<N>(query, vector * comptime!(head.width()), head);
        }
    }
}

/// The sum of a vector's features.
#[cube]
pub(crate) fn sum_of<N: Size>(vector: Vector<f32, N>, #[comptime] head: Head) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..comptime!(head.width()) {
        sum += vector.extract(i);
    }
    sum
}

/// Lays the features of a vector side by side.
#[cube]
pub(crate) fn scatter<N: Size>(vector: Vector<f32, N>, floats: &mut Shared<[f32]>, at: usize, #[comptime] head: Head) {
    #[unroll]
    for i in 0..comptime!(head.width()) {
        floats[at + i] = vector.extract(i);
    }
}

/// Puts out what the groups have mixed, divided by the sum of the weights; or, of a part of the keys that is `split` off, what they have
/// mixed, the largest score and the sum of the weights.
#[cube]
pub(crate) fn put_out<O: Float>(
    mixed: &Shared<[f32]>,
    output: &mut [O],
    at: usize,
    largest: f32,
    total: f32,
    #[comptime] split: bool,
    #[comptime] head: Head,
) {
    let head_dim = comptime!(head.head_dim);
    let unit = UNIT_POS_X as usize;
    let mut feature = unit;
    while feature < head_dim {
        let mut sum = 0.0f32;
        for group in 0..comptime!(head.groups()) {
            sum += mixed[group * head_dim + feature];
        }
        if comptime!(!split) {
            sum /= total;
        }
        output[at + feature] = O::cast_from(sum);
        feature += CUBE_DIM_X as usize;
    }
    if comptime!(split) && unit == 0 {
        output[at + head_dim] = O::cast_from(largest);
        output[at + head_dim + 1] = O::cast_from(total);
    }
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
