//! Rows that are written in place.

use blockformer_cubecl::{copy_rows, write_rows};
use burn::tensor::{DType, Device, Tensor};

use crate::support::{device, numbers, tensor, values};

const ROWS: usize = 9;
const COLUMNS: usize = 5; // rows of CUDA begin at multiples of 512 bytes, however short they are

fn target(dtype: DType) -> Tensor<2> {
    tensor(&numbers(ROWS * COLUMNS, 4), [ROWS, COLUMNS], dtype)
}

#[test]
fn rows_are_written_and_copied_where_they_belong() {
    for dtype in [DType::F32, DType::F16, DType::BF16].into_iter().filter(|dtype| device().supports_dtype(*dtype)) {
        for (from, to, n) in [(0, 0, 1), (2, 4, 3), (0, 0, ROWS), (0, 8, 1), (3, 3, 0)] {
            let mut x = target(dtype);
            let mut expected = values(x.clone());
            // Every other column of something wider: not one row behind the other.
            let rows = tensor::<2>(&numbers(n * 2 * COLUMNS, 5), [n, 2 * COLUMNS], DType::F32).narrow(1, 0, COLUMNS);
            assert!(write_rows(&mut x, to, &rows, true));
            let rounded = values(rows.cast(dtype));
            expected[to * COLUMNS..(to + n) * COLUMNS].copy_from_slice(&rounded);
            assert_eq!((values(x.clone()), x.dtype()), (expected.clone(), dtype), "{n} rows to {to}, {dtype:?}");

            if from + n <= to || to + n <= from {
                assert!(copy_rows(&mut x, from..from + n, to, true));
                let copied = expected[from * COLUMNS..(from + n) * COLUMNS].to_vec();
                expected[to * COLUMNS..(to + n) * COLUMNS].copy_from_slice(&copied);
                assert_eq!(values(x), expected, "{n} rows from {from} to {to}, {dtype:?}");
            }
        }
    }
}

#[test]
fn rows_of_somebody_else_stay_as_they_were() {
    let mut x = target(DType::F32);
    let (before, others) = (values(x.clone()), x.clone());
    assert!(write_rows(&mut x, 3, &Tensor::ones([2, COLUMNS], (&device(), DType::F32)), false));
    assert!(copy_rows(&mut x, 3..5, 0, false));
    assert_eq!(values(others), before);
    let expected = |i: usize| if [0, 1, 3, 4].contains(&(i / COLUMNS)) { 1.0 } else { before[i] };
    assert_eq!(values(x), (0..ROWS * COLUMNS).map(expected).collect::<Vec<_>>());
}

#[test]
#[should_panic]
fn rows_that_stay_are_not_written_while_somebody_else_holds_them() {
    let mut x = target(DType::F32);
    let others = x.clone();
    write_rows(&mut x, 3, &Tensor::ones([2, COLUMNS], (&device(), DType::F32)), true);
    values(x);
    drop(others);
}

#[test]
#[should_panic(expected = "to row 4 of 9")]
fn rows_are_not_copied_into_each_other() {
    copy_rows(&mut target(DType::F32), 2..5, 4, false);
}

#[test]
fn rows_on_a_cpu_are_left_to_others() {
    let mut x = Tensor::<2>::ones([2, 3], &Device::flex());
    assert!(!write_rows(&mut x, 0, &Tensor::zeros([1, 3], &Device::flex()), false));
    assert!(!copy_rows(&mut x, 0..1, 1, false));
    assert_eq!(values(x), [1.0; 6]);
}
