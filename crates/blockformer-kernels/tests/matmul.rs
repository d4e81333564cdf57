//! Products against float64.

mod common;

use blockformer_kernels::{
    Activation, Epilogue, Level, PackedMatrix, Precision, Store, Workspace, argmax, likeliest, matmul,
};
use common::{assert_close, levels, noise, size};

struct Case {
    rows: usize,
    n_inputs: usize,
    n_outputs: usize,
}

impl Case {
    fn x(&self) -> Vec<f32> {
        noise(self.rows * self.n_inputs, 1)
    }

    fn weights(&self) -> Vec<f32> {
        noise(self.n_inputs * self.n_outputs, 2)
    }

    /// `x W` in float64, with weights as they are stored.
    fn expected(&self, packed: &PackedMatrix) -> Vec<f64> {
        let (x, weights) = (self.x(), packed.to_f32());
        let entry = |row: usize, column: usize| -> f64 {
            (0..self.n_inputs)
                .map(|k| f64::from(x[row * self.n_inputs + k]) * f64::from(weights[k * self.n_outputs + column]))
                .sum()
        };
        (0..self.rows * self.n_outputs).map(|i| entry(i / self.n_outputs, i % self.n_outputs)).collect()
    }

    /// What rounding inputs, as products do on a level, can change at most in each entry: half a step, of which there are 126
    /// from the least to the largest of a group of 64 (zero among them) with 8-bit weights, and 127 on either side in a
    /// group of 32 with 4-bit ones; with bfloat16 weights, perhaps to bfloat16, by a 512th at most.
    fn rounding(&self, level: Level, packed: &PackedMatrix) -> Vec<f64> {
        let (x, weights) = (self.x(), packed.to_f32());
        let range = |x: &[f32]| {
            f64::from(x.iter().fold(0.0f32, |max, x| max.max(*x)) - x.iter().fold(0.0f32, |min, x| min.min(*x)))
        };
        let largest = |x: &[f32]| f64::from(x.iter().fold(0.0f32, |max, x| max.max(x.abs())));
        let error = |group: &[f32], x: f32| match packed.precision() {
            Precision::F32 => 0.0,
            Precision::Bf16 if level.multiplies_bf16() => f64::from(x.abs()) / 512.0,
            Precision::Bf16 => 0.0,
            Precision::Int8 => 0.50001 * range(group) / 126.0,
            Precision::Int4 => 0.50001 * largest(group) / 127.0,
        };
        let size = if packed.precision() == Precision::Int8 { 64 } else { 32 };
        let errors: Vec<f64> = x
            .chunks(self.n_inputs)
            .flat_map(|row| row.chunks(size).flat_map(|group| group.iter().map(|x| error(group, *x))))
            .collect();
        let entry = |row: usize, column: usize| -> f64 {
            let weights = (0..self.n_inputs).map(|k| f64::from(weights[k * self.n_outputs + column].abs()));
            errors[row * self.n_inputs..].iter().zip(weights).map(|(error, weight)| error * weight).sum()
        };
        (0..self.rows * self.n_outputs).map(|i| entry(i / self.n_outputs, i % self.n_outputs)).collect()
    }

    fn product(&self, level: Level, packed: &PackedMatrix, epilogue: Epilogue<'_>, out: &mut [f32]) {
        matmul(level, &self.x(), packed, epilogue, &mut Workspace::default(), out);
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

fn cases() -> Vec<Case> {
    let sizes = [
        (1, 1, 1),
        (1, 64, 32),
        (1, 257, 95),
        (2, 33, 31),
        (3, 100, 64),
        (4, 512, 70),
        (5, 65, 33),
        (7, 193, 40),
        (9, 400, 96),
        (33, 230, 65),
        (201, 385, 34),
    ];
    sizes.map(|(rows, k, n)| Case { rows: size(rows), n_inputs: size(k), n_outputs: size(n) }).into()
}

#[test]
fn products_of_all_precisions_and_sizes_follow_float64() {
    for case in cases() {
        for precision in Precision::ALL {
            let packed = PackedMatrix::new(&case.weights(), case.n_inputs, case.n_outputs, precision);
            let expected = case.expected(&packed);
            for level in levels() {
                let rounding = case.rounding(level, &packed);
                let mut out = vec![f32::NAN; case.rows * case.n_outputs];
                case.product(level, &packed, Epilogue::default(), &mut out);
                let what =
                    format!("{} {} {}x{}x{}", level.name(), precision.name(), case.rows, case.n_inputs, case.n_outputs);
                let tolerance = 1e-5 * (case.n_inputs as f64).sqrt();
                for ((got, expected), rounding) in out.iter().zip(&expected).zip(&rounding) {
                    let error = (f64::from(*got) - expected).abs();
                    assert!(error <= tolerance + rounding, "{what}: {got}, expected {expected}");
                }
            }
        }
    }
}

#[test]
fn products_with_weights_and_inputs_far_from_zero_follow_float64() {
    let (n_inputs, n_outputs) = (size(165), size(35));
    let x: Vec<f32> = noise(3 * n_inputs, 1).iter().map(|x| 2.0 + 0.1 * x).collect();
    let weights: Vec<f32> = noise(n_inputs * n_outputs, 2).iter().map(|w| 1.0 + 0.1 * w).collect();
    for precision in [Precision::Int8, Precision::Int4] {
        let packed = PackedMatrix::new(&weights, n_inputs, n_outputs, precision);
        let stored = packed.to_f32();
        for level in levels() {
            let mut out = vec![0.0; 3 * n_outputs];
            matmul(level, &x, &packed, Epilogue::default(), &mut Workspace::default(), &mut out);
            for (i, got) in out.iter().enumerate() {
                let (row, column) = (i / n_outputs, i % n_outputs);
                let products =
                    (0..n_inputs).map(|k| f64::from(x[row * n_inputs + k]) * f64::from(stored[k * n_outputs + column]));
                let expected: f64 = products.sum();
                // Rounding inputs errs by half a step of at most 2.1 / 126 each, in all directions.
                let error = (f64::from(*got) - expected).abs() / expected;
                assert!(error < 2e-3, "{} {}: {got}, expected {expected}", level.name(), precision.name());
            }
        }
    }
}

#[test]
fn the_largest_codes_overflow_nothing() {
    let n_inputs = size(200);
    for precision in [Precision::Int8, Precision::Int4] {
        for (weight, x) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
            // A zero in each group gives weights of 4 bits their range.
            let zero = |input: usize| input.is_multiple_of(32);
            let weights: Vec<f32> = (0..n_inputs * 40).map(|i| if zero(i / 40) { 0.0 } else { weight }).collect();
            let packed = PackedMatrix::new(&weights, n_inputs, 40, precision);
            let expected = weight * x * (0..n_inputs).filter(|input| !zero(*input)).count() as f32;
            for (level, rows) in levels().into_iter().flat_map(|level| [1, 2, 5].map(|rows| (level, rows))) {
                let mut out = vec![0.0; rows * 40];
                let x = vec![x; rows * n_inputs];
                matmul(level, &x, &packed, Epilogue::default(), &mut Workspace::default(), &mut out);
                for got in out {
                    let what = format!("{} {}", level.name(), precision.name());
                    assert!((got - expected).abs() <= 0.01 * expected.abs(), "{what}: {got}, not {expected}");
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_makes_products_not_finite_in_every_precision() {
    let weights = noise(70 * 40, 6);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (mut bad_weights, mut x) = (weights.clone(), noise(3 * 70, 7));
        bad_weights[33 * 40 + 5] = bad;
        for precision in Precision::ALL {
            for level in levels() {
                let what = format!("{} {} {bad}", level.name(), precision.name());
                let product = |weights: &[f32], x: &[f32], activation| {
                    let mut out = vec![0.0; x.len() / 70 * 40];
                    let packed = PackedMatrix::new(weights, 70, 40, precision);
                    let epilogue = Epilogue { activation, ..Epilogue::default() };
                    matmul(level, x, &packed, epilogue, &mut Workspace::default(), &mut out);
                    out
                };
                let good = product(&weights, &x, Activation::Identity);
                let out = product(&bad_weights, &x[..70], Activation::Identity);
                let not_finite: Vec<usize> = (0..40).filter(|column| !out[*column].is_finite()).collect();
                assert_eq!(not_finite, [5], "{what} as a weight");
                // In one of three rows: those beside it keep their bits.
                let kept = std::mem::replace(&mut x[70 + 50], bad);
                let out = product(&weights, &x, Activation::Identity);
                assert!(out[40..80].iter().all(|y| !y.is_finite()), "{what} as an input");
                for others in [0..40, 80..120] {
                    assert_eq!(bits(&out[others.clone()]), bits(&good[others]), "beside {what} as an input");
                }
                if matches!(precision, Precision::Int8 | Precision::Int4) {
                    // An infinity could have the wrong sign, and an activation make a number of it.
                    let out = product(&weights, &x, Activation::Gelu);
                    assert!(out[40..80].iter().all(|y| y.is_nan()), "{what} as an input, activated");
                }
                x[70 + 50] = kept;
            }
        }
    }
}

#[test]
fn bias_activation_and_store_follow_float64() {
    let case = Case { rows: size(6), n_inputs: size(90), n_outputs: size(75) };
    let packed = PackedMatrix::new(&case.weights(), case.n_inputs, case.n_outputs, Precision::F32);
    let bias = noise(case.n_outputs, 7);
    let before = noise(case.rows * case.n_outputs, 8);
    let gelu = |x: f64| 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt()));
    let activated: Vec<f64> =
        case.expected(&packed).iter().enumerate().map(|(i, x)| gelu(x + f64::from(bias[i % case.n_outputs]))).collect();
    for level in levels() {
        for store in [Store::Write, Store::Add, Store::Multiply] {
            let mut out = before.clone();
            let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Gelu, store };
            case.product(level, &packed, epilogue, &mut out);
            let expected: Vec<f64> = activated
                .iter()
                .zip(&before)
                .map(|(y, before)| match store {
                    Store::Write => *y,
                    Store::Add => y + f64::from(*before),
                    Store::Multiply => y * f64::from(*before),
                })
                .collect();
            assert_close(&out, &expected, 1e-4, &format!("{} {store:?}", level.name()));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "one thread")]
fn the_number_of_threads_changes_no_bit() {
    let case = Case { rows: 50, n_inputs: 300, n_outputs: 1000 };
    let packed = PackedMatrix::new(&case.weights(), case.n_inputs, case.n_outputs, Precision::F32);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = vec![0.0; case.rows * case.n_outputs];
        pool.install(|| case.product(Level::current(), &packed, Epilogue::default(), &mut out));
        out
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn the_rows_beside_a_row_change_no_bit_of_it() {
    // Inputs beyond one block of them, in groups that are not whole; two panels and a part of one.
    let (most, n_inputs, n_outputs) = (if cfg!(miri) { 25 } else { 201 }, size(389), size(75));
    let (x, bias) = (noise(most * n_inputs, 1), noise(n_outputs, 2));
    for precision in Precision::ALL {
        let packed = PackedMatrix::new(&noise(n_inputs * n_outputs, 3), n_inputs, n_outputs, precision);
        for level in levels() {
            let product = |x: &[f32]| {
                let mut out = vec![0.5; x.len() / n_inputs * n_outputs];
                let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Gelu, store: Store::Add };
                matmul(level, x, &packed, epilogue, &mut Workspace::default(), &mut out);
                out
            };
            let alone: Vec<Vec<f32>> = x.chunks(n_inputs).map(product).collect();
            // In one chunk, and in several, of which the last is shorter.
            for rows in (1..=size(40)).chain([most - 8, most]) {
                let together = product(&x[..rows * n_inputs]);
                for (row, (together, alone)) in together.chunks(n_outputs).zip(&alone).enumerate() {
                    let what = format!("{} {}, row {row} of {rows}", level.name(), precision.name());
                    assert_eq!(bits(together), bits(alone), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_row_that_is_left_over_gets_the_bits_it_gets_alone() {
    // One row more than are taken at a time.
    let (rows, n_inputs, n_outputs) = (if cfg!(miri) { 25 } else { 193 }, size(300), 33);
    let x = noise(rows * n_inputs, 1);
    for precision in Precision::ALL {
        let packed = PackedMatrix::new(&noise(n_inputs * n_outputs, 3), n_inputs, n_outputs, precision);
        for level in levels() {
            let (mut all, mut last) = (vec![0.0; rows * n_outputs], vec![0.0; n_outputs]);
            matmul(level, &x, &packed, Epilogue::default(), &mut Workspace::default(), &mut all);
            matmul(
                level,
                &x[(rows - 1) * n_inputs..],
                &packed,
                Epilogue::default(),
                &mut Workspace::default(),
                &mut last,
            );
            let what = format!("{} {}", level.name(), precision.name());
            assert_eq!(bits(&all[(rows - 1) * n_outputs..]), bits(&last), "{what}");
        }
    }
}

#[test]
fn products_of_integers_have_the_same_bits_on_all_levels_with_fused_sums() {
    // Rows for a tile of each size, inputs in whole and part groups, more than are taken at a time.
    let (rows, n_outputs) = (size(23), size(70));
    // Sums of groups are exact, and each is added with one rounding where there is a fused instruction; the only group of
    // 8-bit weights is added to zero, with one rounding everywhere.
    for (precision, n_inputs, alone) in
        [(Precision::Int8, size(301), false), (Precision::Int4, size(301), false), (Precision::Int8, 64, true)]
    {
        let x = noise(rows * n_inputs, 1);
        let packed = PackedMatrix::new(&noise(n_inputs * n_outputs, 3), n_inputs, n_outputs, precision);
        let alike = levels().into_iter().filter(|level| alone || *level != Level::PORTABLE);
        let products: Vec<_> = alike
            .map(|level| {
                let mut out = vec![0.0; rows * n_outputs];
                matmul(level, &x, &packed, Epilogue::default(), &mut Workspace::default(), &mut out);
                (level.name(), out)
            })
            .collect();
        for two in products.windows(2) {
            let differing = (0..rows * n_outputs).find(|i| two[0].1[*i].to_bits() != two[1].1[*i].to_bits());
            let what =
                |i: usize| format!("number {i} is {} on {} and {} on {}", two[0].1[i], two[0].0, two[1].1[i], two[1].0);
            assert!(differing.is_none(), "{}: {}", precision.name(), differing.map_or(String::new(), what));
        }
    }
}

#[test]
fn bfloat16_products_take_rows_and_inputs_in_tiles_of_any_size() {
    // One row, part of a tile, whole tiles, one more, and several chunks; inputs beyond eight tiles.
    let (n_inputs, n_outputs) = (size(549), size(33));
    let packed = PackedMatrix::new(&noise(n_inputs * n_outputs, 2), n_inputs, n_outputs, Precision::Bf16);
    for rows in [1, 15, 16, 17, 33, 200].map(size) {
        let case = Case { rows, n_inputs, n_outputs };
        let expected = case.expected(&packed);
        for level in levels() {
            let mut out = vec![f32::NAN; rows * n_outputs];
            case.product(level, &packed, Epilogue::default(), &mut out);
            let rounding = case.rounding(level, &packed);
            for ((got, expected), rounding) in out.iter().zip(&expected).zip(&rounding) {
                let error = (f64::from(*got) - expected).abs();
                assert!(error <= 4e-4 + rounding, "{} {rows}: {got}, expected {expected}", level.name());
            }
        }
    }
}

#[test]
fn a_workspace_serves_products_of_all_kinds_in_turn() {
    let mut used = Workspace::default();
    for level in levels() {
        for (rows, n_inputs) in [(9, 70), (1, 33), (size(200), size(129)), (size(40), 64), (7, size(200)), (2, 7)] {
            for precision in Precision::ALL {
                let packed = PackedMatrix::new(&noise(n_inputs * 40, 5), n_inputs, 40, precision);
                let x = noise(rows * n_inputs, 6);
                let (mut with_used, mut with_new) = (vec![0.0; rows * 40], vec![0.0; rows * 40]);
                matmul(level, &x, &packed, Epilogue::default(), &mut used, &mut with_used);
                matmul(level, &x, &packed, Epilogue::default(), &mut Workspace::default(), &mut with_new);
                assert_eq!(with_used, with_new, "{} {} {rows}", level.name(), precision.name());
            }
        }
    }
}

#[test]
fn the_largest_outputs_are_found_without_writing_any() {
    let (n_inputs, n_outputs) = (size(70), size(1333));
    let mut workspace = Workspace::default();
    for rows in [if cfg!(miri) { 9 } else { 200 }, 1, 2, size(30)] {
        let x = noise(rows * n_inputs, 1);
        for precision in Precision::ALL {
            let mut weights = noise(n_inputs * n_outputs, 3);
            // Equal columns: the first counts.
            for row in weights.chunks_mut(n_outputs) {
                row[n_outputs - 1] = row[7];
            }
            let packed = PackedMatrix::new(&weights, n_inputs, n_outputs, precision);
            for level in levels() {
                for (bias, nothing) in
                    [(0.0, false), (f32::NAN, true), (f32::INFINITY, true), (f32::NEG_INFINITY, false)]
                {
                    let mut biases = noise(n_outputs, 4);
                    biases[n_outputs / 2] += bias;
                    let mut out = vec![0.0; rows * n_outputs];
                    let epilogue = Epilogue { bias: Some(&biases), ..Epilogue::default() };
                    matmul(level, &x, &packed, epilogue, &mut Workspace::default(), &mut out);
                    let expected: Vec<_> = out.chunks(n_outputs).map(|row| argmax(level, row)).collect();
                    let found: Vec<_> = likeliest(level, &x, &packed, Some(&biases), &mut workspace).collect();
                    assert_eq!(found, expected, "{} {} {rows} {bias}", level.name(), precision.name());
                    assert_eq!(found[0].is_none(), nothing);
                }
                let same = likeliest(level, &vec![0.0; rows * n_inputs], &packed, None, &mut workspace);
                assert_eq!(same.collect::<Vec<_>>(), vec![Some(0); rows]);
                assert_eq!(likeliest(level, &[], &packed, None, &mut workspace).count(), 0);
            }
        }
    }
}

#[test]
#[should_panic(expected = "7 numbers are not rows of 3 inputs")]
fn inputs_of_another_length_panic() {
    let packed = PackedMatrix::new(&[1.0; 6], 3, 2, Precision::F32);
    matmul(Level::PORTABLE, &[0.0; 7], &packed, Epilogue::default(), &mut Workspace::default(), &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "the output of 2 rows of 2")]
fn an_output_of_another_length_panics() {
    let packed = PackedMatrix::new(&[1.0; 6], 3, 2, Precision::F32);
    matmul(Level::PORTABLE, &[0.0; 6], &packed, Epilogue::default(), &mut Workspace::default(), &mut [0.0; 3]);
}
