//! A row of logits, shared by the units of a cube: sums over all of it, and the token at which a sum goes beyond a number.

use cubecl::prelude::*;

/// Parts in which what the units have is put together.
pub(super) const GROUPS: usize = 32;

fn groups(units: usize) -> usize {
    units.min(GROUPS)
}

/// The sums of what the units have in `shared[i * units + unit]`, in one order, or the largest: in `shared[i * units]`. Nothing may be
/// written there before all units have read it.
#[cube]
pub(super) fn reduce(
    shared: &mut Shared<[f32]>,
    #[comptime] numbers: usize,
    #[comptime] largest: bool,
    #[comptime] units: usize,
) {
    let groups = comptime!(groups(units));
    let unit = UNIT_POS_X as usize;
    sync_cube();
    let mut i = unit;
    while i < comptime!(numbers * groups) {
        let at = i / groups * units + i % groups;
        let mut result = shared[at];
        for other in 1..comptime!(units / groups) {
            let value = shared[at + other * groups];
            if comptime!(largest) {
                result = max(result, value);
            } else {
                result += value;
            }
        }
        shared[at] = result;
        i += units;
    }
    sync_cube();
    let mut i = unit;
    while i < numbers {
        let at = i * units;
        let mut result = shared[at];
        for group in 1..groups {
            if comptime!(largest) {
                result = max(result, shared[at + group]);
            } else {
                result += shared[at + group];
            }
        }
        shared[at] = result;
        i += units;
    }
    sync_cube();
}

/// The sum of what the units have, or the largest.
#[cube]
pub(super) fn over_units(
    value: f32,
    shared: &mut Shared<[f32]>,
    #[comptime] largest: bool,
    #[comptime] units: usize,
) -> f32 {
    shared[UNIT_POS_X as usize] = value;
    reduce(shared, 1usize, largest, units);
    let result = shared[0];
    sync_cube();
    result
}

/// A row of logits as weights, 1 for the likeliest.
#[derive(CubeType)]
pub(super) struct Row {
    pub(super) at: usize,
    pub(super) stride: usize,
    pub(super) n: usize,
    pub(super) max: f32,
    pub(super) inverse_temperature: f32,
}

#[cube]
pub(super) fn weight<F: Float>(logits: &Tensor<F>, row: &Row, id: usize) -> f32 {
    ((f32::cast_from(logits[row.at + id * row.stride]) - row.max) * row.inverse_temperature).exp()
}

/// Whether a token is in the prefix that ends at the weight of `bits` and holds the `first` ids of that weight.
#[cube]
pub(super) fn is_kept(weight: f32, id: usize, bits: u32, first: u32) -> bool {
    let of = u32::reinterpret(weight);
    of > bits || (of == bits && (id as u32) < first)
}

/// What a token adds: 1 if its weight has these bits, where `ties` are counted; otherwise what it weighs, if it is in the prefix.
#[cube]
fn adds(weight: f32, id: usize, bits: u32, first: u32, #[comptime] ties: bool) -> f32 {
    let mut adds = 0.0f32;
    if comptime!(ties) {
        if u32::reinterpret(weight) == bits {
            adds = 1.0f32;
        }
    } else if is_kept(weight, id, bits, first) {
        adds = weight;
    }
    adds
}

/// The first token, in the order of ids, with which what tokens [add](adds) up to is more than `target`, or than this share of all of it
/// where they are not `ties`; where rounding has left none, the last that adds anything.
///
/// It is looked for in parts of the row, in parts of that part, one a unit, and then in that unit's.
#[cube]
#[allow(clippy::too_many_arguments)] // kernels take no structs with references
pub(super) fn select<F: Float>(
    logits: &Tensor<F>,
    row: &Row,
    bits: u32,
    first: u32,
    target: f32,
    shared: &mut Shared<[f32]>,
    #[comptime] ties: bool,
    #[comptime] units: usize,
) -> usize {
    let groups = comptime!(groups(units));
    let members = comptime!(units / groups);
    let unit = UNIT_POS_X as usize;
    let (group, member) = (unit / members, unit % members);
    // So that a group's stand one in each row, side by side with those of the others.
    let place = member * groups + group;

    #[allow(clippy::manual_div_ceil)] // kernels have no such function
    let length = (row.n + groups - 1) / groups;
    let end = min((group + 1) * length, row.n);
    let mut own = 0.0f32;
    let mut id = group * length + member;
    while id < end {
        own += adds(weight::<F>(logits, row, id), id, bits, first, ties);
        id += members;
    }
    shared[place] = own;
    add_up_groups(shared, units);
    let mut target = target;
    if comptime!(!ties) {
        let mut all = 0.0f32;
        for group in 0..groups {
            all += shared[units + group];
        }
        target *= all;
    }
    let (part, before) = first_beyond(shared, target, units, 1, groups);
    let beyond = target - before;
    sync_cube();

    let end = min((part + 1) * length, row.n);
    #[allow(clippy::manual_div_ceil)] // as above
    let piece = (length + units - 1) / units;
    let begin = part * length + unit * piece;
    let mut own = 0.0f32;
    for i in 0..piece {
        if begin + i < end {
            own += adds(weight::<F>(logits, row, begin + i), begin + i, bits, first, ties);
        }
    }
    shared[place] = own;
    add_up_groups(shared, units);
    let (chosen, before) = first_beyond(shared, beyond, units, 1, groups);
    let beyond = beyond - before;
    let (of_it, before) = first_beyond(shared, beyond, chosen, groups, members);
    if group == chosen && member == of_it {
        let beyond = beyond - before;
        let mut sum = 0.0f32;
        let mut last = begin;
        let mut found = false;
        for i in 0..piece {
            if begin + i < end && !found {
                let more = adds(weight::<F>(logits, row, begin + i), begin + i, bits, first, ties);
                if more > 0.0f32 {
                    sum += more;
                    last = begin + i;
                    found = sum > beyond;
                }
            }
        }
        shared[comptime!(units + groups)] = f32::cast_from(last);
    }
    sync_cube();
    let selected = usize::cast_from(shared[comptime!(units + groups)]);
    sync_cube();
    selected
}

/// The sum of each group, behind what the units have.
#[cube]
fn add_up_groups(shared: &mut Shared<[f32]>, #[comptime] units: usize) {
    let groups = comptime!(groups(units));
    let unit = UNIT_POS_X as usize;
    sync_cube();
    if unit < groups {
        let mut sum = 0.0f32;
        for member in 0..comptime!(units / groups) {
            sum += shared[member * groups + unit];
        }
        shared[units + unit] = sum;
    }
    sync_cube();
}

/// The first of `n` numbers, `stride` apart, with which their sum is more than `target`, or the last that is not 0; and the sum of those before.
#[cube]
fn first_beyond(
    shared: &mut Shared<[f32]>,
    target: f32,
    at: usize,
    stride: usize,
    #[comptime] n: usize,
) -> (usize, f32) {
    let mut sum = 0.0f32;
    let mut before = 0.0f32;
    let mut place = 0usize;
    let mut found = false;
    for i in 0..n {
        let number = shared[at + i * stride];
        if number > 0.0f32 && !found {
            place = i;
            before = sum;
            found = sum + number > target;
        }
        sum += number;
    }
    (place, before)
}
