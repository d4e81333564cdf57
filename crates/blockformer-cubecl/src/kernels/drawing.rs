//! A token of every row.
//!
//! A cube draws the token of one row. Filters keep a prefix of the tokens in the order of likelihood, equal ones in the
//! order of ids; a prefix is given by the bits of the weight at its end, which order positive floats as they order
//! integers, and how many ids from the first on it holds of the tokens of that weight. Both are found by halving: thirty
//! sums over the row and one more for each bit of the vocabulary's size, instead of sorting it. Loops around barriers run
//! equally often in all units, whatever the numbers are.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::max_units;

/// Units that share a row, where a device has so many.
const UNITS: u32 = 1024;
/// The bits of 1, the weight of the likeliest.
const ONE: u32 = 0x3f80_0000;
/// Halvings from the bits of 0 and 2 to those of neighbours.
const HALVINGS: u32 = 30;
/// Less than any logit that is a number.
const LEAST: f32 = -3.0e38;

/// What narrows the choice; 0 or, for `top_p`, 1 switches a filter off.
pub(crate) struct Filters {
    pub(crate) inverse_temperature: f32,
    pub(crate) top_k: usize,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
}

impl Filters {
    /// Those of a vocabulary of so many.
    pub(crate) fn new(filters: &crate::Filters, vocab_size: usize) -> Self {
        let [inverse_temperature, top_p, min_p] = filters.numbers();
        let top_k = filters.top_k.filter(|k| *k < vocab_size).unwrap_or(0);
        Self { inverse_temperature, top_k, top_p, min_p }
    }
}

/// The sum of what the units have, in one order, or the largest.
#[cube]
fn over_units(value: f32, shared: &mut Shared<[f32]>, #[comptime] largest: bool) -> f32 {
    let unit = UNIT_POS_X as usize;
    shared[unit] = value;
    sync_cube();
    let mut half = CUBE_DIM_X as usize / 2;
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            if comptime!(largest) {
                if other > shared[unit] {
                    shared[unit] = other;
                }
            } else {
                shared[unit] += other;
            }
        }
        sync_cube();
        half /= 2;
    }
    let result = shared[0];
    sync_cube();
    result
}

/// A row of logits as weights, 1 for the likeliest.
#[derive(CubeType)]
struct Row {
    at: usize,
    stride: usize,
    n: usize,
    max: f32,
    inverse_temperature: f32,
}

#[cube]
fn weight<F: Float>(logits: &Tensor<F>, row: &Row, id: usize) -> f32 {
    ((f32::cast_from(logits[row.at + id * row.stride]) - row.max) * row.inverse_temperature).exp()
}

/// Whether a token is in the prefix that ends at the weight of `bits` and holds the `first` ids of that weight.
#[cube]
fn is_kept(weight: f32, id: usize, bits: u32, first: u32) -> bool {
    let of = u32::reinterpret(weight);
    of > bits || (of == bits && (id as u32) < first)
}

/// What the tokens of a prefix weigh, or how many there are.
#[cube]
fn measure<F: Float>(
    logits: &Tensor<F>,
    row: &Row,
    bits: u32,
    first: u32,
    shared: &mut Shared<[f32]>,
    #[comptime] count: bool,
) -> f32 {
    let mut sum = 0.0f32;
    let mut id = UNIT_POS_X as usize;
    while id < row.n {
        let weight = weight::<F>(logits, row, id);
        if is_kept(weight, id, bits, first) {
            if comptime!(count) {
                sum += 1.0f32;
            } else {
                sum += weight;
            }
        }
        id += CUBE_DIM_X as usize;
    }
    over_units(sum, shared, false)
}

/// Where the shortest prefix ends that measures what is wanted: the bits of the weight, and how many of the first ids.
#[cube]
fn shortest<F: Float>(
    logits: &Tensor<F>,
    row: &Row,
    wanted: f32,
    id_halvings: u32,
    shared: &mut Shared<[f32]>,
    #[comptime] count: bool,
) -> (u32, u32) {
    let all = row.n as u32;
    // All from `low` on are enough, those from `high` on are not.
    let mut low = 0u32;
    let mut high = comptime!(ONE + 1).runtime();
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2;
        if measure::<F>(logits, row, middle, all, shared, count) >= wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    // Of those at `low`, the first `enough` ids are, the first `few` are not.
    let mut enough = all;
    let mut few = 0u32;
    for _ in 0..id_halvings {
        let middle = few + (enough - few) / 2;
        if measure::<F>(logits, row, low, middle, shared, count) >= wanted {
            enough = middle;
        } else {
            few = middle;
        }
    }
    (low, enough)
}

#[cube(launch, address_type = "dynamic")]
fn draw_kernel<F: Float>(
    logits: &Tensor<F>,                 // [rows, vocab_size]
    uniforms: &Tensor<f32>,             // [rows, 1]
    each: ComptimeOption<&Tensor<f32>>, // [rows, 4]: as the next four, a row; an inverse temperature of 0 takes the likeliest
    output: &mut Tensor<i32>,           // [rows, 1]
    inverse_temperature: f32,
    top_k: f32,
    top_p: f32,
    min_p: f32,
    id_halvings: u32,
    #[comptime] units: usize,
    #[comptime] greedy: bool,
    #[comptime] with_top_k: bool,
    #[comptime] with_top_p: bool,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    let n = logits.shape(1);
    let at = CUBE_POS_X as usize * logits.stride(0);
    let stride = logits.stride(1);
    let output_at = CUBE_POS_X as usize * output.stride(0);
    let mut shared = Shared::<[f32]>::new_slice(units);

    let mut likeliest = greedy.runtime();
    let (mut inverse_temperature, mut top_k) = (inverse_temperature, top_k);
    let (mut top_p, mut min_p) = (top_p, min_p);
    #[comptime]
    if let ComptimeOption::Some(each) = &each {
        let row = CUBE_POS_X as usize * each.stride(0);
        let next = each.stride(1);
        likeliest = each[row] == 0.0f32;
        inverse_temperature = if likeliest { 1.0f32 } else { each[row] };
        top_k = each[row + next];
        top_p = each[row + 2 * next];
        min_p = each[row + 3 * next];
    }

    // The first of the likeliest.
    let mut largest = f32::new(LEAST);
    let mut best = n;
    let mut id = unit;
    while id < n {
        let logit = f32::cast_from(logits[at + id * stride]);
        if logit > largest {
            largest = logit;
            best = id;
        }
        id += units;
    }
    let max = over_units(largest, &mut shared, true);
    let row = Row { at, stride, n, max, inverse_temperature };
    // Infinity less infinity is not a number, and neither is any sum with one that is not; nothing finite weighs nothing.
    let everything = sum_of_all::<F>(logits, &row, &mut shared);
    let sound = !everything.is_nan() && everything >= 1.0f32;

    if comptime!(greedy || each.is_some()) {
        let mut first = -(n as f32);
        if largest == max {
            first = -(best as f32);
        }
        let first = over_units(first, &mut shared, true);
        if unit == 0 && likeliest {
            output[output_at] = if sound { i32::cast_from(-first) } else { -1i32 };
        }
    }
    if comptime!(!greedy) {
        let mut bits = 0u32;
        let mut first = n as u32;
        if comptime!(with_top_k) {
            let (end, ids) = shortest::<F>(logits, &row, top_k, id_halvings, &mut shared, true);
            bits = end;
            first = ids;
        }
        if comptime!(with_top_p) {
            let wanted = top_p * measure::<F>(logits, &row, bits, first, &mut shared, false);
            let (end, ids) = shortest::<F>(logits, &row, wanted, id_halvings, &mut shared, false);
            // Rounding must not widen what `top_k` left, nor narrow anything where all are wanted.
            if top_p < 1.0f32 && end > bits {
                bits = end;
                first = ids;
            } else if top_p < 1.0f32 && end == bits && ids < first {
                first = ids;
            }
        }
        let least = u32::reinterpret(min_p);
        if least > bits {
            bits = least;
            first = n as u32;
        }

        // What is left, in ranges of ids, one a unit.
        #[allow(clippy::manual_div_ceil)] // kernels have no such function
        let length = (n + units - 1) / units;
        let begin = unit * length;
        let mut own = 0.0f32;
        for i in 0..length {
            let id = begin + i;
            if id < n {
                let weight = weight::<F>(logits, &row, id);
                if is_kept(weight, id, bits, first) {
                    own += weight;
                }
            }
        }
        shared[unit] = own;
        sync_cube();
        let mut before = 0.0f32;
        let mut total = 0.0f32;
        let mut last = 0usize;
        for other in 0..units {
            if other == unit {
                before = total;
            }
            if shared[other] > 0.0f32 {
                last = other;
            }
            total += shared[other];
        }
        let target = total * uniforms[CUBE_POS_X as usize * uniforms.stride(0)];
        let holds = target >= before && target < before + own;
        let slivers = target >= total && unit == last;
        if unit == 0 && !sound && !likeliest {
            output[output_at] = -1i32;
        }
        if sound && !likeliest && (holds || slivers) {
            let beyond = target - before;
            let mut sum = 0.0f32;
            let mut drawn = begin;
            let mut found = false;
            for i in 0..length {
                let id = begin + i;
                if id < n && !found {
                    let weight = weight::<F>(logits, &row, id);
                    if weight > 0.0f32 && is_kept(weight, id, bits, first) {
                        sum += weight;
                        drawn = id;
                        found = sum > beyond;
                    }
                }
            }
            output[output_at] = drawn as i32;
        }
    }
}

/// The sum of all weights, not a number if one is not.
#[cube]
fn sum_of_all<F: Float>(logits: &Tensor<F>, row: &Row, shared: &mut Shared<[f32]>) -> f32 {
    let mut sum = 0.0f32;
    let mut id = UNIT_POS_X as usize;
    while id < row.n {
        sum += weight::<F>(logits, row, id);
        id += CUBE_DIM_X as usize;
    }
    over_units(sum, shared, false)
}

/// How [`launch`] draws.
pub(crate) enum How {
    /// The likeliest of each row.
    Likeliest,
    /// By weight, all rows in one way.
    Alike(Filters),
    /// Each row in its own way, as `each` of the kernel; whether there is one with a `top_k` or a `top_p`.
    Each { ways: CubeTensor, with_top_k: bool, with_top_p: bool },
}

/// Launches it. Shapes have been checked.
pub(crate) fn launch(logits: CubeTensor, uniforms: CubeTensor, how: How) -> CubeTensor {
    let [rows, vocab_size] = logits.shape().dims::<2>();
    let (client, dtype) = (logits.client.clone(), logits.dtype);
    let output = empty_device_dtype(client.clone(), logits.device.clone(), Shape::new([rows, 1]), DType::I32);
    let limit = max_units(&client.properties().hardware);
    let units = UNITS.min(1 << limit.ilog2()); // a power of two, for the sums
    let greedy = matches!(how, How::Likeliest);
    let off = Filters { inverse_temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    let (filters, each, with_top_k, with_top_p) = match how {
        How::Likeliest => (off, None, false, false),
        How::Alike(filters) => {
            let narrows = (filters.top_k > 0, filters.top_p < 1.0);
            (filters, None, narrows.0, narrows.1)
        }
        How::Each { ways, with_top_k, with_top_p } => (off, Some(ways), with_top_k, with_top_p),
    };
    let Filters { inverse_temperature, top_k, top_p, min_p } = filters;
    draw_kernel::launch(
        &client,
        CubeCount::Static(rows as u32, 1, 1),
        CubeDim::new_1d(units),
        logits.required_address_type(),
        logits.into_tensor_arg(),
        uniforms.into_tensor_arg(),
        each.map(CubeTensor::into_tensor_arg).into(),
        output.clone().into_tensor_arg(),
        inverse_temperature,
        top_k as f32,
        top_p,
        min_p,
        vocab_size.next_power_of_two().ilog2() + 1,
        units as usize,
        greedy,
        with_top_k,
        with_top_p,
        dtype_to_storage_type(dtype),
    );
    output
}
