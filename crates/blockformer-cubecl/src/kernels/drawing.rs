//! A token of every row.
//!
//! A cube draws the token of one row. Filters keep a prefix of the tokens in the order of likelihood, equal ones in the
//! order of ids; a prefix is given by the bits of the weight at its end, which order positive floats as they order
//! integers, and how many ids from the first on it holds of the tokens of that weight. The bits are found some at a time, from the
//! highest on, by sums over the row for all values that these may have, instead of sorting it; the ids by counting. Loops around barriers
//! run equally often in all units, whatever the numbers are.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::max_units;
use super::row::{GROUPS, Row, is_kept, over_units, reduce, select, weight};

/// Units that share a row, where a device has so many, and memory that they share.
const UNITS: usize = 1024;
/// The bits of 1, the weight of the likeliest.
const ONE: u32 = 0x3f80_0000;
/// Bits of a weight that are found in one pass over the row.
const BITS: u32 = 3;
/// The values beside 0 that these may have.
const BOUNDS: usize = (1 << BITS) - 1;
/// Passes for the thirty bits below those of 2.
const PASSES: u32 = 10;
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

/// What the tokens of a prefix weigh, or how many there are.
#[cube]
fn measure<F: Float>(
    logits: &Tensor<F>,
    row: &Row,
    bits: u32,
    first: u32,
    shared: &mut Shared<[f32]>,
    #[comptime] count: bool,
    #[comptime] units: usize,
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
        id += units;
    }
    over_units(sum, shared, false, units)
}

/// The same of the prefixes that end with all tokens of the weights whose bits are `low` and 1 to [`BOUNDS`] times `1 << shift` more.
#[cube]
#[allow(clippy::too_many_arguments)] // kernels take no structs with references
fn measures<F: Float>(
    logits: &Tensor<F>,
    row: &Row,
    low: u32,
    shift: u32,
    measured: &mut Array<f32>,
    shared: &mut Shared<[f32]>,
    #[comptime] count: bool,
    #[comptime] units: usize,
) {
    let unit = UNIT_POS_X as usize;
    #[unroll]
    for i in 0..BOUNDS {
        measured[i] = 0.0f32;
    }
    let mut id = unit;
    while id < row.n {
        let weight = weight::<F>(logits, row, id);
        let bits = u32::reinterpret(weight);
        let mut adds = weight;
        if comptime!(count) {
            adds = 1.0f32;
        }
        #[unroll]
        for i in 0..BOUNDS {
            if bits >= low + (comptime!(i as u32 + 1) << shift) {
                measured[i] += adds;
            }
        }
        id += units;
    }
    #[unroll]
    for i in 0..BOUNDS {
        shared[comptime!(i * units) + unit] = measured[i];
    }
    reduce(shared, BOUNDS, false, units);
    #[unroll]
    for i in 0..BOUNDS {
        measured[i] = shared[comptime!(i * units)];
    }
    sync_cube();
}

/// Where the shortest prefix ends that measures what is wanted: the bits of the weight, and how many of the first ids.
#[cube]
fn shortest<F: Float>(
    logits: &Tensor<F>,
    row: &Row,
    wanted: f32,
    shared: &mut Shared<[f32]>,
    #[comptime] count: bool,
    #[comptime] units: usize,
) -> (u32, u32) {
    // All tokens of these bits or more are enough.
    let mut low = 0u32;
    let mut measured = Array::<f32>::new(BOUNDS);
    for pass in 0..PASSES {
        let shift = (PASSES - 1 - pass) * BITS;
        measures::<F>(logits, row, low, shift, &mut measured, shared, count, units);
        let mut enough = 0u32;
        #[unroll]
        for i in 0..BOUNDS {
            if measured[i] >= wanted {
                enough += 1u32;
            }
        }
        low += enough << shift;
    }
    low = min(low, ONE);
    // Without those at `low` it is not, and they are all alike.
    let more = wanted - measure::<F>(logits, row, low, 0u32, shared, count, units);
    let mut ties = more;
    if comptime!(!count) {
        ties = row.n as f32;
        if low > 0u32 {
            ties = (more / f32::reinterpret(low)).ceil();
        }
    }
    let last = select::<F>(logits, row, low, 0u32, max(ties, 1.0f32) - 0.5f32, shared, true, units);
    (low, last as u32 + 1u32)
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
    let narrows = comptime!(with_top_k || with_top_p);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(floats(units, narrows)));

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

    // The first of the likeliest, and whether a logit is no number or infinite.
    let mut largest = f32::new(LEAST);
    let mut unsound = 0.0f32;
    let mut best = n;
    let mut id = unit;
    while id < n {
        let logit = f32::cast_from(logits[at + id * stride]);
        if logit > largest {
            largest = logit;
            best = id;
        }
        if logit.is_nan() || logit > f32::max_value() {
            unsound = 1.0f32;
        }
        id += units;
    }
    shared[unit] = largest;
    shared[units + unit] = unsound;
    reduce(&mut shared, 2usize, true, units);
    let max = shared[0];
    let sound = shared[units] == 0.0f32 && max > f32::new(LEAST);
    sync_cube();
    let row = Row { at, stride, n, max, inverse_temperature };

    if comptime!(greedy || each.is_some()) {
        let mut first = -(n as f32);
        if largest == max {
            first = -(best as f32);
        }
        let first = over_units(first, &mut shared, true, units);
        if unit == 0 && likeliest {
            output[output_at] = if sound { i32::cast_from(-first) } else { -1i32 };
        }
    }
    if comptime!(!greedy) {
        let mut bits = 0u32;
        let mut first = n as u32;
        if comptime!(with_top_k) {
            let (end, ids) = shortest::<F>(logits, &row, top_k, &mut shared, true, units);
            bits = end;
            first = ids;
        }
        if comptime!(with_top_p) {
            let wanted = top_p * measure::<F>(logits, &row, bits, first, &mut shared, false, units);
            let (end, ids) = shortest::<F>(logits, &row, wanted, &mut shared, false, units);
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

        let uniform = uniforms[CUBE_POS_X as usize * uniforms.stride(0)];
        let drawn = select::<F>(logits, &row, bits, first, uniform, &mut shared, false, units);
        if unit == 0 && !likeliest {
            output[output_at] = if sound { i32::cast_from(drawn) } else { -1i32 };
        }
    }
}

/// Floats that the units of a cube share.
fn floats(units: usize, narrows: bool) -> usize {
    if narrows { BOUNDS * units } else { 2 * units + 1 }
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
    let [rows, _] = logits.shape().dims::<2>();
    let (client, dtype) = (logits.client.clone(), logits.dtype);
    let output = empty_device_dtype(client.clone(), logits.device.clone(), Shape::new([rows, 1]), DType::I32);
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
    let hardware = &client.properties().hardware;
    let mut units = 1 << (max_units(hardware) as usize).min(UNITS).ilog2(); // a power of two, for the groups
    while units > GROUPS && floats(units, with_top_k || with_top_p) * size_of::<f32>() > hardware.max_shared_memory_size
    {
        units /= 2;
    }
    draw_kernel::launch(
        &client,
        CubeCount::Static(rows as u32, 1, 1),
        CubeDim::new_1d(units as u32),
        logits.required_address_type(),
        logits.into_tensor_arg(),
        uniforms.into_tensor_arg(),
        each.map(CubeTensor::into_tensor_arg).into(),
        output.clone().into_tensor_arg(),
        inverse_temperature,
        top_k as f32,
        top_p,
        min_p,
        units,
        greedy,
        with_top_k,
        with_top_p,
        dtype_to_storage_type(dtype),
    );
    output
}
