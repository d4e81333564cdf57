//! Products of a few rows with weights, and what stands before and behind them in a layer.
//!
//! Reading the weights is all that takes time here. A cube has a strip of their columns: its units stand `lanes` beside each
//! other, a vector of columns each, and one part of the rows of the weights behind another. Every unit adds up its
//! part for all rows at once, so weights are read once; then the parts are added up.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::HardwareProperties;
use cubecl::prelude::*;

use super::max_units;
use super::operations::{Optional, ProductInputs};
use crate::RowActivation;

/// Units of a cube, if the device has so many.
const UNITS: usize = 256;
/// The same of products with so few columns that there are not [`CUBES`] of them: as many units as those would have.
const MOST_UNITS: usize = 1024;
/// The most numbers that a unit of more than twice [`UNITS`] adds up, which has so many registers the fewer.
const FEW_SUMS: usize = 16;
/// Cubes that keep a large GPU busy: strips get narrower until there are so many.
const CUBES: usize = 256;
/// Vectors side by side, which a strip has at most and at least: two of 16 bytes are the least that memory gives at a time.
const LANES: [usize; 5] = [32, 16, 8, 4, 2];
/// Vectors that a unit asks for before it uses the first.
const AHEAD: usize = 4;
/// Units that add up a row's sums, each some of them.
const ADDERS: usize = 32;
/// The same, of every vector of a strip.
const ADDERS_OF_VECTOR: usize = 16;

/// What the kernel is compiled for, beside the inputs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Spec {
    /// Whether rows are centred before they are scaled.
    centred: bool,
    activation: Option<RowActivation>,
    rows: usize,
    lanes: usize,
    units: usize,
}

/// Adds up what the units have for each row; all of them get the sums.
#[cube]
fn add_up(
    mine: &Array<f32>,
    sums: &mut Array<f32>,
    partial: &mut Shared<[f32]>,
    fewer: &mut Shared<[f32]>,
    #[comptime] rows: usize,
    #[comptime] units: usize,
    #[comptime] adders: usize,
) {
    let unit = UNIT_POS_X as usize;
    #[unroll]
    for row in 0..rows {
        partial[row * units + unit] = mine[row];
    }
    sync_cube();
    let mut i = unit;
    while i < rows * adders {
        let at = i / adders * units + i % adders;
        let mut sum = 0.0f32;
        for other in 0..comptime!(units / adders) {
            sum += partial[at + other * adders];
        }
        fewer[i] = sum;
        i += units;
    }
    sync_cube();
    #[unroll]
    for row in 0..rows {
        let mut sum = 0.0f32;
        for adder in 0..adders {
            sum += fewer[row * adders + adder];
        }
        sums[row] = sum;
    }
}

#[cube]
fn activated<N: Size>(x: Vector<f32, N>, #[comptime] activation: Option<RowActivation>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    match comptime!(activation) {
        None => x,
        Some(RowActivation::Gelu) => {
            let half = Vector::<f32, N>::new(0.5f32);
            let inner = x * Vector::new(std::f32::consts::FRAC_1_SQRT_2);
            x * half * (inner.erf() + one)
        }
        Some(RowActivation::GeluTanh) => {
            // 0.5 (1 + tanh(y)) is a sigmoid, of which no part overflows to something that is no number.
            let y = Vector::new(0.797_884_6f32) * (x + Vector::new(0.044715f32) * x * x * x);
            x / (one + (Vector::new(-2.0f32) * y).exp())
        }
        Some(RowActivation::Relu) => max(x, Vector::new(0.0f32)),
        Some(RowActivation::Silu) => x / (one + (Vector::new(-1.0f32) * x).exp()),
    }
}

/// The mean of each row (zero unless rows are centred), and what its features are multiplied with behind it.
#[cube]
fn normalise<F: Float>(
    x: &[F],
    mean: &mut Array<f32>,
    inverse: &mut Array<f32>,
    d_in: usize,
    epsilon: f32,
    #[comptime] spec: Spec,
) {
    let rows = comptime!(spec.rows);
    let units = comptime!(spec.units);
    let adders = comptime!(if units < ADDERS { units } else { ADDERS });
    let mut partial = Shared::<[f32]>::new_slice(comptime!(rows * units));
    let mut fewer = Shared::<[f32]>::new_slice(comptime!(rows * adders));
    let mut mine = Array::<f32>::new(rows);
    #[unroll]
    for row in 0..rows {
        mean[row] = 0.0f32;
    }
    if comptime!(spec.centred) {
        #[unroll]
        for row in 0..rows {
            let mut sum = 0.0f32;
            let mut k = UNIT_POS_X as usize;
            while k < d_in {
                sum += f32::cast_from(x[row * d_in + k]);
                k += units;
            }
            mine[row] = sum;
        }
        add_up(&mine, mean, &mut partial, &mut fewer, rows, units, adders);
        #[unroll]
        for row in 0..rows {
            mean[row] /= f32::cast_from(d_in);
        }
    }
    #[unroll]
    for row in 0..rows {
        let mut sum = 0.0f32;
        let mut k = UNIT_POS_X as usize;
        while k < d_in {
            let off = f32::cast_from(x[row * d_in + k]) - mean[row];
            sum += off * off;
            k += units;
        }
        mine[row] = sum;
    }
    add_up(&mine, inverse, &mut partial, &mut fewer, rows, units, adders);
    #[unroll]
    for row in 0..rows {
        inverse[row] = 1.0f32 / (inverse[row] / f32::cast_from(d_in) + epsilon).sqrt();
    }
}

/// Feature `k` of all rows, normalised, with its weights: to the sums, and to those of the gate if there is one.
#[cube]
#[allow(clippy::too_many_arguments)] // kernels take no structs with references
fn add_feature<F: Float, N: Size>(
    x: &[F],
    scale: &ComptimeOption<&[F]>,
    shift: &ComptimeOption<&[F]>,
    mean: &Array<f32>,
    inverse: &Array<f32>,
    w: Vector<f32, N>,
    g: Vector<f32, N>,
    sums: &mut Array<Vector<f32, N>>,
    gates: &mut Array<Vector<f32, N>>,
    k: usize,
    d_in: usize,
    #[comptime] rows: usize,
    #[comptime] gated: bool,
) {
    let mut factor = 1.0f32;
    let mut summand = 0.0f32;
    #[comptime]
    if let ComptimeOption::Some(scale) = scale {
        factor = f32::cast_from(scale[k]);
    }
    #[comptime]
    if let ComptimeOption::Some(shift) = shift {
        summand = f32::cast_from(shift[k]);
    }
    #[unroll]
    for row in 0..rows {
        let mut value = f32::cast_from(x[row * d_in + k]);
        if comptime!(scale.is_some()) {
            value = (value - mean[row]) * inverse[row] * factor + summand;
        }
        let value = Vector::<f32, N>::new(value);
        sums[row] += value * w;
        if comptime!(gated) {
            gates[row] += value * g;
        }
    }
}

/// Asks for a vector of each of the next rows of weights.
#[cube]
fn ask_for<F: Float, N: Size>(
    weight: &[Vector<F, N>],
    vectors: &mut Array<Vector<F, N>>,
    k: usize,
    d_in: usize,
    row: usize,
    column: usize,
    #[comptime] parts: usize,
) {
    #[unroll]
    for i in 0..AHEAD {
        vectors[i] = weight[min(k + i * parts, d_in - 1) * row + column];
    }
}

/// The same of the gate's weights, if there is one.
#[cube]
fn ask_for_gate<F: Float, N: Size>(
    gate: &ComptimeOption<&[Vector<F, N>]>,
    vectors: &mut Array<Vector<F, N>>,
    k: usize,
    d_in: usize,
    row: usize,
    column: usize,
    #[comptime] parts: usize,
) {
    #[comptime]
    if let ComptimeOption::Some(gate) = gate {
        #[unroll]
        for i in 0..AHEAD {
            vectors[i] = gate[min(k + i * parts, d_in - 1) * row + column];
        }
    }
}

/// Adds up what the units of each lane have: for `unit < lanes` in `partial[unit]`.
#[cube]
fn add_up_parts<N: Size>(partial: &mut Shared<[Vector<f32, N>]>, #[comptime] lanes: usize, #[comptime] units: usize) {
    let parts = comptime!(units / lanes);
    let adders = comptime!(if parts < ADDERS_OF_VECTOR { parts } else { ADDERS_OF_VECTOR });
    let unit = UNIT_POS_X as usize;
    if unit < comptime!(lanes * adders) {
        let mut sum = partial[unit];
        for part in 1..comptime!(parts / adders) {
            sum += partial[unit + part * comptime!(lanes * adders)];
        }
        partial[unit] = sum;
    }
    sync_cube();
    if unit < lanes {
        let mut sum = partial[unit];
        for part in 1..adders {
            sum += partial[unit + part * lanes];
        }
        partial[unit] = sum;
    }
}

#[cube(launch)]
fn product_kernel<F: Float, N: Size>(
    x: &[F],                                    // [rows, d_in]
    weight: &[Vector<F, N>],                    // [d_in, d_out], rows `weight_row` vectors apart
    bias: ComptimeOption<&[Vector<F, N>]>,      // [d_out]
    gate: ComptimeOption<&[Vector<F, N>]>,      // [d_in, d_out], rows `gate_row` vectors apart
    gate_bias: ComptimeOption<&[Vector<F, N>]>, // [d_out]
    scale: ComptimeOption<&[F]>,                // [d_in]
    shift: ComptimeOption<&[F]>,                // [d_in]
    residual: ComptimeOption<&[Vector<F, N>]>,  // [rows, d_out]
    output: &mut [Vector<F, N>],                // [rows, d_out]
    d_in: u32,
    columns: u32,
    weight_row: u32,
    gate_row: u32,
    epsilon: f32,
    #[comptime] spec: Spec,
    #[define(F)] _dtype: ElemType,
) {
    let rows = comptime!(spec.rows);
    let lanes = comptime!(spec.lanes);
    let units = comptime!(spec.units);
    let parts = comptime!(units / lanes);
    let unit = UNIT_POS_X as usize;
    let d_in = d_in as usize;
    let columns = columns as usize; // vectors of them
    let (weight_row, gate_row) = (weight_row as usize, gate_row as usize);
    let column = CUBE_POS_X as usize * lanes + unit % lanes;
    let gated = gate.is_some();

    // What is read first is on its way while rows are normalised.
    let from = min(column, columns - 1); // units beyond the last column have nothing to write
    let mut k = unit / lanes;
    let mut w = Array::<Vector<F, N>>::new(AHEAD);
    let mut g = Array::<Vector<F, N>>::new(AHEAD);
    ask_for::<F, N>(weight, &mut w, k, d_in, weight_row, from, parts);
    ask_for_gate::<F, N>(&gate, &mut g, k, d_in, gate_row, from, parts);

    let mut mean = Array::<f32>::new(rows);
    let mut inverse = Array::<f32>::new(rows);
    if comptime!(scale.is_some()) {
        normalise::<F>(x, &mut mean, &mut inverse, d_in, epsilon, spec);
    }

    // This unit's part, for all rows.
    let mut sums = Array::<Vector<f32, N>>::new(rows);
    let mut gates = Array::<Vector<f32, N>>::new(comptime!(if gated { rows } else { 1 }));
    #[unroll]
    for row in 0..rows {
        sums[row] = Vector::new(0.0f32);
        if comptime!(gated) {
            gates[row] = Vector::new(0.0f32);
        }
    }
    while k < d_in {
        #[unroll]
        for i in 0..AHEAD {
            let at = k + i * parts;
            if at < d_in {
                let weights = Vector::<f32, N>::cast_from(w[i]);
                let mut of_gate = weights;
                if comptime!(gated) {
                    of_gate = Vector::<f32, N>::cast_from(g[i]);
                }
                add_feature::<F, N>(
                    x, &scale, &shift, &mean, &inverse, weights, of_gate, &mut sums, &mut gates, at, d_in, rows, gated,
                );
            }
        }
        k += comptime!(AHEAD * parts);
        if k < d_in {
            ask_for::<F, N>(weight, &mut w, k, d_in, weight_row, from, parts);
            ask_for_gate::<F, N>(&gate, &mut g, k, d_in, gate_row, from, parts);
        }
    }

    // All parts, row by row.
    let mut partial = Shared::<[Vector<f32, N>]>::new_slice(units);
    let mut partial_gate = Shared::<[Vector<f32, N>]>::new_slice(comptime!(if gated { units } else { 1 }));
    #[unroll]
    for row in 0..rows {
        partial[unit] = sums[row];
        if comptime!(gated) {
            partial_gate[unit] = gates[row];
        }
        sync_cube();
        add_up_parts::<N>(&mut partial, lanes, units);
        if comptime!(gated) {
            add_up_parts::<N>(&mut partial_gate, lanes, units);
        }
        if unit < lanes && column < columns {
            let mut y = partial[unit];
            #[comptime]
            if let ComptimeOption::Some(bias) = &bias {
                y += Vector::cast_from(bias[column]);
            }
            if comptime!(gated) {
                let mut z = partial_gate[unit];
                #[comptime]
                if let ComptimeOption::Some(bias) = &gate_bias {
                    z += Vector::cast_from(bias[column]);
                }
                y *= activated::<N>(z, spec.activation);
            } else {
                y = activated::<N>(y, spec.activation);
            }
            #[comptime]
            if let ComptimeOption::Some(residual) = &residual {
                y += Vector::cast_from(residual[row * columns + column]);
            }
            output[row * columns + column] = Vector::cast_from(y);
        }
        sync_cube();
    }
}

/// Launches it; shapes have been checked.
pub(crate) fn launch(
    inputs: ProductInputs<CubeBackend>,
    centred: bool,
    epsilon: f32,
    activation: Option<RowActivation>,
) -> CubeTensor {
    // Rows of weights may lie apart, as some memory is laid out; a copy at every step would cost as much as the product.
    let in_rows = |x: CubeTensor| if x.meta.strides()[1] == 1 { x } else { into_contiguous(x) };
    let (x, weight, gate) = (into_contiguous(inputs.x), in_rows(inputs.weight), inputs.gate.into_option().map(in_rows));
    let vectors = [inputs.bias, inputs.gate_bias, inputs.scale, inputs.shift, inputs.residual];
    let [bias, gate_bias, scale, shift, residual] = vectors.map(|x| x.into_option().map(into_contiguous));
    let ([batch, positions, d_in], [_, d_out]) = (x.shape().dims::<3>(), weight.shape().dims::<2>());
    let (client, dtype) = (x.client.clone(), x.dtype);
    let shape = Shape::new([batch, positions, d_out]);
    let output = empty_device_contiguous_dtype(client.clone(), x.device.clone(), shape, dtype);

    let weight_row = weight.meta.strides()[0];
    let gate_row = gate.as_ref().map_or(0, |gate| gate.meta.strides()[0]);
    let divides = |n: &usize| [d_out, weight_row, gate_row].iter().all(|length| length.is_multiple_of(*n));
    let vector = client.io_optimized_vector_sizes(dtype.size()).filter(divides).max().unwrap_or(1);
    let columns = d_out / vector;
    let rows = batch * positions;
    let narrowest = LANES[LANES.len() - 1];
    let lanes = LANES.into_iter().find(|lanes| columns.div_ceil(*lanes) >= CUBES).unwrap_or(narrowest);
    let sums = rows * vector * if gate.is_some() { 2 } else { 1 };
    let units = units_of(columns.div_ceil(lanes), lanes, d_in, sums);
    let has = [scale.is_some(), gate.is_some()];
    let units = fitting_units(&client.properties().hardware, units, [rows, vector], has);
    let lanes = lanes.min(units);
    product_kernel::launch(
        &client,
        CubeCount::Static(columns.div_ceil(lanes) as u32, 1, 1),
        CubeDim::new_1d(units as u32),
        vector,
        x.into_buffer_arg(),
        weight.into_buffer_arg(),
        bias.map(CubeTensor::into_buffer_arg).into(),
        gate.map(CubeTensor::into_buffer_arg).into(),
        gate_bias.map(CubeTensor::into_buffer_arg).into(),
        scale.map(CubeTensor::into_buffer_arg).into(),
        shift.map(CubeTensor::into_buffer_arg).into(),
        residual.map(CubeTensor::into_buffer_arg).into(),
        output.clone().into_buffer_arg(),
        d_in as u32,
        columns as u32,
        (weight_row / vector) as u32,
        (gate_row / vector) as u32,
        epsilon,
        Spec { centred, activation, rows, lanes, units },
        dtype_to_storage_type(dtype),
    );
    output
}

#[cube(launch)]
fn norm_kernel<F: Float>(
    x: &[F],                     // [rows, features]
    scale: &[F],                 // [features]
    shift: ComptimeOption<&[F]>, // [features]
    output: &mut [F],            // [rows, features]
    features: u32,
    epsilon: f32,
    #[comptime] spec: Spec,
    #[define(F)] _dtype: ElemType,
) {
    let features = features as usize;
    let at = CUBE_POS_X as usize * features;
    let row = &x[at..at + features];
    let mut mean = Array::<f32>::new(1usize);
    let mut inverse = Array::<f32>::new(1usize);
    normalise::<F>(row, &mut mean, &mut inverse, features, epsilon, spec);
    let mut k = UNIT_POS_X as usize;
    while k < features {
        let mut y = (f32::cast_from(row[k]) - mean[0]) * inverse[0] * f32::cast_from(scale[k]);
        #[comptime]
        if let ComptimeOption::Some(shift) = &shift {
            y += f32::cast_from(shift[k]);
        }
        output[at + k] = F::cast_from(y);
        k += comptime!(spec.units);
    }
}

/// Launches it, a cube for each row; shapes have been checked.
pub(crate) fn launch_norm(
    x: CubeTensor,
    scale: CubeTensor,
    shift: Optional<CubeBackend>,
    centred: bool,
    epsilon: f32,
) -> CubeTensor {
    let (x, scale, shift) = (into_contiguous(x), into_contiguous(scale), shift.into_option().map(into_contiguous));
    let [batch, positions, features] = x.shape().dims::<3>();
    let (client, dtype) = (x.client.clone(), x.dtype);
    let output = empty_device_contiguous_dtype(client.clone(), x.device.clone(), x.shape(), dtype);
    let units = fitting_units(&client.properties().hardware, UNITS, [1, 1], [true, false]);
    norm_kernel::launch(
        &client,
        CubeCount::Static((batch * positions) as u32, 1, 1),
        CubeDim::new_1d(units as u32),
        x.into_buffer_arg(),
        scale.into_buffer_arg(),
        shift.map(CubeTensor::into_buffer_arg).into(),
        output.clone().into_buffer_arg(),
        features as u32,
        epsilon,
        Spec { centred, activation: None, rows: 1, lanes: 1, units },
        dtype_to_storage_type(dtype),
    );
    output
}

/// Units of a cube that would keep a large GPU busy: more of them where there are few cubes, as long as all of them have rows of the weights
/// to ask for, and registers.
fn units_of(cubes: usize, lanes: usize, d_in: usize, sums: usize) -> usize {
    let most = if sums <= FEW_SUMS { MOST_UNITS } else { MOST_UNITS / 2 };
    let mut units = UNITS;
    while units < most && cubes * units < CUBES * UNITS && 2 * units / lanes * AHEAD <= d_in {
        units *= 2;
    }
    units
}

/// A power of two of up to so many units, for which the shared memory suffices.
fn fitting_units(
    hardware: &HardwareProperties,
    units: usize,
    [rows, vector]: [usize; 2],
    [normed, gated]: [bool; 2],
) -> usize {
    let floats = |units: usize| {
        let sums = vector * if gated { 2 * units } else { units + 1 };
        sums + if normed { rows * (units + ADDERS) } else { 0 }
    };
    let mut units = 1 << (max_units(hardware) as usize).min(units).ilog2();
    while units > ADDERS && floats(units) * size_of::<f32>() > hardware.max_shared_memory_size {
        units /= 2;
    }
    units
}
