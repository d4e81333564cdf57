//! New positions over the pages of a pool.

use blockformer_cubecl::{MAX_KEYS, PagedPositions, attend_paged};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::support::{Sizes, attention, device, numbers, rotate, tensor, values};

/// Sequences of a pool, of so many positions each, with pages in a disorderly order.
pub(crate) struct Pool {
    pub(crate) lens: Vec<usize>,
    /// New positions of each.
    pub(crate) new: Vec<usize>,
    pub(crate) page_length: usize,
    pub(crate) n_pages: usize,
    pub(crate) pages: Vec<Vec<usize>>,
}

impl Pool {
    /// With the same number of new positions for each.
    pub(crate) fn new(lens: &[usize], new: usize, page_length: usize) -> Self {
        Self::ragged(lens, &vec![new; lens.len()], page_length)
    }

    pub(crate) fn ragged(lens: &[usize], new: &[usize], page_length: usize) -> Self {
        let of = |(len, new): (&usize, &usize)| (len + new).div_ceil(page_length); // those of the new positions included
        let n_pages = lens.iter().zip(new).map(of).sum::<usize>() + 2;
        let divides_both = |by: usize, step: usize| step.is_multiple_of(by) && n_pages.is_multiple_of(by);
        let coprime = |step: &usize| (2..=*step).all(|by| !divides_both(by, *step));
        let step = (2..).find(coprime).expect("a number that has no divisor in common with it");
        let mut order = (0..n_pages).map(|i| (i * step + 1) % n_pages);
        let pages = lens.iter().zip(new).map(|row| order.by_ref().take(of(row)).collect()).collect();
        Self { lens: lens.to_vec(), new: new.to_vec(), page_length, n_pages, pages }
    }

    /// The sequences of all new positions, and where in these they are.
    fn positions(&self) -> impl Iterator<Item = (usize, usize)> {
        let of = |(row, (len, new)): (usize, (&usize, &usize))| {
            (*len..len + new).map(move |position| (row, position)).collect::<Vec<_>>()
        };
        self.lens.iter().zip(&self.new).enumerate().flat_map(of)
    }

    /// The most positions that are before a new one.
    fn longest(&self) -> usize {
        self.positions().map(|(_, position)| position).max().expect("new positions")
    }

    /// The row of the pool where a position lies.
    fn row(&self, sequence: usize, position: usize) -> usize {
        self.pages[sequence][position / self.page_length] * self.page_length + position % self.page_length
    }

    /// The new positions as a kernel takes them, of whose sequences these are the [tables](Self::tables), without rotation.
    pub(crate) fn of<'a>(
        &self,
        qkv: &'a Tensor<3>,
        tables: &'a Tensor<2, Int>,
        [n_heads, head_dim]: [usize; 2],
    ) -> PagedPositions<'a> {
        PagedPositions {
            qkv,
            rotation: None,
            n_heads,
            head_dim,
            tables,
            page_length: self.page_length,
            longest: self.longest(),
            see_each_other: self.new.iter().any(|new| *new > 1),
            stays: false,
        }
    }

    pub(crate) fn tables(&self) -> Tensor<2, Int> {
        let width = 1 + self.pages.iter().map(Vec::len).max().unwrap_or(0);
        let table = |(row, position): (usize, usize)| {
            let mut row: Vec<i32> = std::iter::once(&position).chain(&self.pages[row]).map(|x| *x as i32).collect();
            row.resize(width, 0);
            row
        };
        let numbers: Vec<i32> = self.positions().flat_map(table).collect();
        Tensor::from_data(TensorData::new(numbers, [self.positions().count(), width]), (&device(), DType::I32))
    }
}

/// New positions of each sequence, compared with the definition; so is what the pool holds then.
fn check_paged(pool: &Pool, [heads, kv_heads, head_dim]: [usize; 3], half: usize, types: [DType; 2], tolerance: f64) {
    let [dtype, pool_type] = types;
    // As many of each, or one after another.
    let (rows, n, each) = (pool.lens.len(), pool.positions().count(), pool.new[0]);
    let shape_of_new = if pool.new.iter().all(|new| *new == each) { [rows, each] } else { [1, n] };
    let (width, kv_width) = ((heads + 2 * kv_heads) * head_dim, kv_heads * head_dim);
    let longest = pool.longest();
    let shape = [pool.n_pages * pool.page_length, kv_width];
    let held = |salt| tensor(&numbers(shape.iter().product(), salt), shape, pool_type);
    let (mut keys, mut values_) = (held(30), held(31));
    let mut expected_pool: [Vec<f64>; 2] = [values(held(30)), values(held(31))];
    let table = |salt| tensor(&numbers((longest + 1) * half, salt), [longest + 1, half], DType::F32);
    let rotation = (half > 0).then(|| (table(50), table(90)));
    let turns: Option<[Vec<f64>; 2]> = rotation.as_ref().map(|(cos, sin)| [cos, sin].map(|x| values(x.clone())));
    let qkv = tensor(&numbers(n * width, 7), [shape_of_new[0], shape_of_new[1], width], dtype).mul_scalar(2.0);
    let projected = values(qkv.clone());
    let mut expected = Vec::new();
    for (new, (row, len)) in pool.positions().enumerate() {
        let turn = |head: usize| {
            let head = &projected[(new * width + head * head_dim)..][..head_dim];
            match &turns {
                Some(turns) => rotate(head, [0, 1].map(|of: usize| &turns[of][len * half..][..half])),
                None => head.to_vec(),
            }
        };
        let value = |kv: usize| projected[(new * width + (heads + kv_heads + kv) * head_dim)..][..head_dim].to_vec();
        let queries: Vec<f64> = (0..heads).flat_map(turn).collect();
        for kv in 0..kv_heads {
            let at = pool.row(row, len) * kv_width + kv * head_dim;
            expected_pool[0][at..at + head_dim].copy_from_slice(&turn(heads + kv));
            expected_pool[1][at..at + head_dim].copy_from_slice(&value(kv));
        }
        let [k, v] = [0, 1].map(|of: usize| {
            let place = |i: usize| {
                let (kv, position) = (i / (len + 1), i % (len + 1));
                expected_pool[of][pool.row(row, position) * kv_width + kv * head_dim..][..head_dim].to_vec()
            };
            (0..kv_heads * (len + 1)).flat_map(place).collect::<Vec<f64>>()
        });
        let sizes = Sizes { batch: 1, heads, kv_heads, queries: 1, keys: len + 1, head_dim };
        expected.extend(attention([&queries, &k, &v], &sizes));
    }
    let (tables, rotation) = (pool.tables(), rotation.as_ref().map(|(cos, sin)| (cos, sin)));
    let positions = PagedPositions { rotation, ..pool.of(&qkv, &tables, [heads, head_dim]) };
    let before = (keys.clone(), values(keys.clone()));
    let mixed = attend_paged(positions, &mut keys, &mut values_).expect("there is a kernel");
    assert_eq!((mixed.dims(), mixed.dtype()), ([shape_of_new[0], shape_of_new[1], heads * head_dim], dtype));
    let close = |got: Vec<f64>, expected: &[f64], what: &str| {
        assert_eq!(got.len(), expected.len());
        let error = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let (lens, new) = (&pool.lens, &pool.new);
        assert!(error < tolerance, "{what} of {lens:?} and {new:?}, {heads} heads in {types:?}: {error}");
    };
    close(values(mixed), &expected, "mixed values");
    close(values(keys), &expected_pool[0], "keys");
    close(values(values_), &expected_pool[1], "values");
    assert_eq!(values(before.0), before.1, "somebody else's pool was written");
}

#[test]
fn new_positions_find_their_pages() {
    for (lens, new, page_length, heads, half) in [
        (vec![0], vec![1], 4, [1, 1, 3], 0),
        (vec![7, 0, 8, 3], vec![1; 4], 4, [4, 2, 17], 8),
        (vec![5, 62, 63], vec![1; 3], 16, [6, 1, 64], 32),
        // Of several parts, one of which the shorter ones do not have; the last key of a part, and the first.
        (vec![3, 2 * MAX_KEYS - 1, 2 * MAX_KEYS, 65], vec![1; 4], 16, [4, 2, 33], 5),
        (vec![MAX_KEYS, 1], vec![1; 2], 7, [2, 2, 200], 25),
        // Prompts, or pieces of them, as long as each other or not.
        (vec![0], vec![9], 4, [2, 1, 17], 8),
        (vec![6, 0], vec![5; 2], 4, [4, 2, 33], 0),
        (vec![MAX_KEYS - 2, 3], vec![70; 2], 16, [2, 2, 8], 4),
        (vec![6, 0, 3, 11], vec![5, 1, 9, 2], 4, [4, 2, 33], 16),
        (vec![0, MAX_KEYS + 3, 0], vec![3, 1, 80], 16, [2, 1, 8], 4),
    ] {
        let pool = Pool::ragged(&lens, &new, page_length);
        check_paged(&pool, heads, half, [DType::F32, DType::F32], 2e-5);
        for (dtype, tolerance) in [(DType::F16, 8e-3), (DType::BF16, 6e-2)] {
            if device().supports_dtype(dtype) {
                check_paged(&pool, heads, half, [dtype, DType::F32], tolerance);
                check_paged(&pool, heads, half, [dtype, dtype], tolerance);
            }
        }
    }
    // Pools of float16 serve models of any type.
    let pool = Pool::new(&[7, 0, MAX_KEYS + 3], 1, 4);
    for (dtype, tolerance) in [(DType::F32, 2e-3), (DType::BF16, 6e-2)] {
        if device().supports_dtype(DType::F16) && device().supports_dtype(dtype) {
            check_paged(&pool, [4, 2, 17], 8, [dtype, DType::F16], tolerance);
        }
    }
}

#[test]
fn what_comes_of_a_position_does_not_depend_on_those_that_are_new_beside_it() {
    let (heads, kv_heads, head_dim, page_length, n) = (4, 2, 20, 16, MAX_KEYS + 20);
    let width = (heads + 2 * kv_heads) * head_dim;
    let qkv = tensor(&numbers(n * width, 9), [1, n, width], DType::F32);
    let table = |salt| tensor(&numbers(n * 5, salt), [n, 5], DType::F32);
    let (cos, sin) = (table(50), table(90));
    let run = |cuts: &[usize]| {
        let empty = || Tensor::<2>::zeros([n.next_multiple_of(page_length) + 64, kv_heads * head_dim], &device());
        let (mut keys, mut values_) = (empty(), empty());
        let parts = cuts.windows(2).map(|cut| {
            let (start, new) = (cut[0], cut[1] - cut[0]);
            let pool = Pool { lens: vec![start], new: vec![new], ..Pool::new(&[0], n, page_length) };
            let (tables, qkv) = (pool.tables(), qkv.clone().narrow(1, start, new));
            let of = PagedPositions { rotation: Some((&cos, &sin)), ..pool.of(&qkv, &tables, [heads, head_dim]) };
            attend_paged(of, &mut keys, &mut values_).expect("there is a kernel")
        });
        let mixed = Tensor::cat(parts.collect(), 1);
        (values(mixed), values(keys), values(values_))
    };
    let whole = run(&[0, n]);
    assert_eq!(run(&[0, 16, 17, 18, 64, 65, n]), whole);
}

#[test]
fn positions_in_pages_without_a_kernel_leave_the_pool_alone() {
    let device = device();
    let ones = Tensor::<3>::ones([2, 1, 3 * 8], &device);
    let mut keys = Tensor::<2>::zeros([64, 8], &device);
    let mut values_ = keys.clone();
    let pool = Pool::new(&[5, 3], 1, 4);
    let of = |qkv: &Tensor<3>, head_dim: usize, longest: usize, keys: &mut Tensor<2>, values: &mut Tensor<2>| {
        let tables = pool.tables();
        let of = PagedPositions { longest, ..pool.of(qkv, &tables, [1, head_dim]) };
        attend_paged(of, keys, values).is_some()
    };
    assert!(!of(&ones, 8, 8, &mut keys, &mut values_), "more positions than there are pages for");
    assert!(!of(&ones.clone().repeat_dim(1, 4), 8, 5, &mut keys, &mut values_), "positions without tables");
    assert!(!of(&ones.clone().narrow(0, 0, 1), 8, 5, &mut keys, &mut values_), "one sequence");
    assert!(!of(&ones, 3, 5, &mut keys, &mut values_), "heads that do not fit");
    let mut flex = Tensor::<2>::zeros([64, 8], &Device::flex());
    assert!(!of(&ones, 8, 5, &mut flex.clone(), &mut flex), "a pool elsewhere");
    assert_eq!(values(keys.clone()).iter().sum::<f64>(), 0.0);
    assert!(of(&ones, 8, 5, &mut keys, &mut values_));
    assert_eq!(values(keys).iter().sum::<f64>(), 16.0);
}

#[test]
fn parts_that_take_too_much_are_left_to_others() {
    let (new, head_dim, page_length) = (2049, 126, 64);
    let attend = |held: usize| {
        let pool = Pool::new(&[held], new, page_length);
        let empty = || Tensor::<2>::zeros([pool.n_pages * page_length, head_dim], &device());
        let qkv = Tensor::zeros([1, new, 3 * head_dim], &device());
        attend_paged(pool.of(&qkv, &pool.tables(), [1, head_dim]), &mut empty(), &mut empty()).is_some()
    };
    // 2,049 positions, 64 parts, 128 numbers: more than 2²⁴.
    assert!(!attend(64 * MAX_KEYS - new));
}

/// A claim of fewer positions than a table tells harms nobody else.
#[test]
fn no_position_is_written_beyond_those_that_were_claimed() {
    let (head_dim, page_length) = (8, 4);
    let empty = || Tensor::<2>::zeros([2 * page_length, head_dim], &device());
    let (mut keys, mut values_) = (empty(), empty());
    for (new, longest) in [(1, 2), (2, 3)] {
        let pages = vec![vec![0], vec![1]];
        let pool = Pool { lens: vec![9, 2], new: vec![new; 2], page_length, n_pages: 2, pages };
        let (qkv, tables) = (Tensor::ones([2, new, 3 * head_dim], &device()), pool.tables());
        let of = PagedPositions { longest, ..pool.of(&qkv, &tables, [1, head_dim]) };
        attend_paged(of, &mut keys, &mut values_).expect("there is a kernel");
    }
    let written = |x: &Tensor<2>| values(x.clone()).chunks(head_dim).map(|row| row[0]).collect::<Vec<_>>();
    assert_eq!(
        written(&keys),
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
        "the third and fourth positions of both pages"
    );
    assert_eq!(written(&values_), written(&keys));
}
