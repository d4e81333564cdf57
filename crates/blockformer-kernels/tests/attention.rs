//! Attention against float64.

mod common;

use std::ops::Range;

use blockformer_kernels::{AttentionInputs, AttentionShape, Level, Stored, Workspace, attention};
use common::{assert_close, levels, noise};
use half::f16;

struct Case {
    shape: AttentionShape,
    /// Positions that each sequence has room for: in pages of this length, one a sequence.
    capacity: usize,
    visible: Vec<Range<usize>>,
    /// `[n_heads, capacity]`, by distance.
    bias: Option<Vec<f32>>,
}

/// Causal queries that end at key `end` of `end + batch`; the first keys of each sequence are padding, `b` of sequence
/// `b`, and a query among them sees itself.
fn case(batch: usize, n_queries: usize, heads: (usize, usize), head_dim: usize, end: usize) -> Case {
    let (n_heads, n_kv_heads) = heads;
    let query_stride = (n_heads + 2 * n_kv_heads) * head_dim;
    let capacity = end + batch;
    let shape = AttentionShape { batch, n_queries, n_heads, n_kv_heads, head_dim, page_length: capacity, query_stride };
    let range = |b: usize, q: usize| {
        let own = end - n_queries + q;
        if own < b { own..own + 1 } else { b..own + 1 }
    };
    let visible = (0..batch * n_queries).map(|i| range(i / n_queries, i % n_queries)).collect();
    Case { shape, capacity, visible, bias: None }
}

impl Case {
    fn with_bias(self) -> Self {
        let bias = Some(noise(self.shape.n_heads * self.capacity, 9).iter().map(|x| 3.0 * x).collect());
        Self { bias, ..self }
    }

    fn inputs(&self) -> [Vec<f32>; 3] {
        let AttentionShape { batch, n_queries, n_kv_heads, head_dim, query_stride, .. } = self.shape;
        let held = batch * n_kv_heads * self.capacity * head_dim;
        let scaled = |n, seed| noise(n, seed).iter().map(|x| 2.0 * x).collect();
        [scaled(batch * n_queries * query_stride, 1), scaled(held, 2), scaled(held, 3)]
    }

    fn expected(&self) -> Vec<f64> {
        let AttentionShape { batch, n_queries, n_heads, n_kv_heads, head_dim, query_stride, .. } = self.shape;
        let ([queries, keys, values], capacity) = (self.inputs(), self.capacity);
        let mut out = Vec::new();
        for position in 0..batch * n_queries {
            for head in 0..n_heads {
                let kv = (position / n_queries) * n_kv_heads + head * n_kv_heads / n_heads;
                let held = |of: &[f32], key: usize, i: usize| f64::from(of[(kv * capacity + key) * head_dim + i]);
                let query = |i: usize| f64::from(queries[position * query_stride + head * head_dim + i]);
                let bias = |key: usize| {
                    let distance = self.visible[position].end - 1 - key;
                    self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[head * capacity + distance]))
                };
                let score = |key: usize| -> f64 {
                    let products = (0..head_dim).map(|i| query(i) * held(&keys, key, i)).sum::<f64>();
                    products / (head_dim as f64).sqrt() + bias(key)
                };
                let weights: Vec<f64> = self.visible[position].clone().map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..head_dim).map(|i| {
                    let visible = self.visible[position].clone().zip(&weights);
                    visible.map(|(key, weight)| weight * held(&values, key, i)).sum::<f64>() / total
                }));
            }
        }
        out
    }

    fn run(&self, level: Level) -> Vec<f32> {
        let [_, keys, values] = self.inputs();
        self.run_stored(level, keys[..].into(), values[..].into())
    }

    /// The same queries over other keys and values.
    fn run_stored(&self, level: Level, keys: Stored<'_>, values: Stored<'_>) -> Vec<f32> {
        let [queries, _, _] = self.inputs();
        let AttentionShape { batch, n_queries, n_heads, head_dim, .. } = self.shape;
        let mut out = vec![f32::NAN; batch * n_queries * n_heads * head_dim];
        let tables: Vec<usize> = (0..batch).collect();
        let inputs = AttentionInputs {
            queries: &queries,
            keys,
            values,
            tables: &tables,
            visible: &self.visible,
            bias: self.bias.as_deref(),
        };
        attention(level, self.shape, inputs, &mut Workspace::default(), &mut out);
        out
    }

    /// Whether [`run_in_pages`](Self::run_in_pages) can shuffle pages of that length: for some numbers of pages its way would
    /// use one twice.
    fn shuffles(&self, page_length: usize) -> bool {
        !(self.shape.batch * self.capacity.div_ceil(page_length) + 1).is_multiple_of(7)
    }

    /// The same numbers in pages of `page_length` that lie in no order; what belongs to nobody is not a number.
    fn run_in_pages(&self, level: Level, page_length: usize) -> Vec<f32> {
        let AttentionShape { batch, n_queries, n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let per_sequence = self.capacity.div_ceil(page_length);
        let n_pages = batch * per_sequence + 1;
        let tables: Vec<usize> = (0..batch * per_sequence).map(|i| n_pages - 1 - (i * 7 + 3) % n_pages).collect();
        let shuffled: std::collections::HashSet<_> = tables.iter().collect();
        assert_eq!(shuffled.len(), tables.len(), "every page once");
        let scatter = |held: &[f32]| {
            let mut pages = vec![f32::NAN; n_pages * n_kv_heads * page_length * head_dim];
            for (index, position) in held.chunks(head_dim).enumerate() {
                let (pair, key) = (index / self.capacity, index % self.capacity);
                let page = tables[pair / n_kv_heads * per_sequence + key / page_length];
                let at = ((page * n_kv_heads + pair % n_kv_heads) * page_length + key % page_length) * head_dim;
                pages[at..at + head_dim].copy_from_slice(position);
            }
            pages
        };
        let [queries, keys, values] = self.inputs();
        let (keys, values) = (scatter(&keys), scatter(&values));
        let mut out = vec![f32::NAN; batch * n_queries * n_heads * head_dim];
        let inputs = AttentionInputs {
            queries: &queries,
            keys: keys[..].into(),
            values: values[..].into(),
            tables: &tables,
            visible: &self.visible,
            bias: self.bias.as_deref(),
        };
        attention(level, AttentionShape { page_length, ..self.shape }, inputs, &mut Workspace::default(), &mut out);
        out
    }

    /// What query `position` of all gets when it is the only one.
    fn run_alone(&self, level: Level, position: usize) -> Vec<f32> {
        let [queries, keys, values] = self.inputs();
        let AttentionShape { n_queries, n_heads, head_dim, query_stride, .. } = self.shape;
        let shape = AttentionShape { batch: 1, n_queries: 1, ..self.shape };
        let queries = &queries[position * query_stride..(position + 1) * query_stride];
        let tables = [position / n_queries];
        let inputs = AttentionInputs {
            queries,
            keys: keys[..].into(),
            values: values[..].into(),
            tables: &tables,
            visible: &self.visible[position..=position],
            bias: self.bias.as_deref(),
        };
        let mut out = vec![f32::NAN; n_heads * head_dim];
        attention(level, shape, inputs, &mut Workspace::default(), &mut out);
        out
    }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(1, 1, (1, 1), 1, 1),
        case(2, 1, (12, 12), 20, 40).with_bias(),
        case(3, 4, (4, 2), 16, 11).with_bias(),
        // More key/value heads than are taken together, whole vectors and a rest of features, rows that fill up no tile.
        case(2, 1, (12, 12), 20, 40),
        case(3, 1, (20, 10), 33, 70),
        // Some queries that see different keys, of several heads.
        case(3, 3, (10, 10), 20, 5),
        case(1, 1, (2, 2), 64, 9),
        case(2, 1, (4, 2), 32, 6),
        case(3, 5, (4, 1), 20, 5),
        case(2, 3, (6, 2), 7, 11),
        case(2, 7, (2, 2), 40, 7),
    ];
    if !cfg!(miri) {
        cases.extend([
            case(3, 1, (12, 12), 64, 300),
            case(1, 1, (9, 9), 64, 600),
            case(2, 130, (4, 2), 48, 130),
            case(1, 9, (8, 1), 128, 77),
        ]);
    }
    cases
}

#[test]
fn attention_follows_float64() {
    for case in cases() {
        let expected = case.expected();
        for level in levels() {
            assert_close(&case.run(level), &expected, 1e-5, &format!("{} {:?}", level.name(), case.shape));
        }
    }
}

#[test]
fn half_precision_gives_the_bits_that_its_numbers_give_in_float32() {
    for case in cases() {
        let [_, keys, values] = case.inputs();
        let round = |of: &[f32]| of.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
        let back = |of: &[f16]| of.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        let (keys, values) = (round(&keys), round(&values));
        for level in levels() {
            assert_eq!(
                case.run_stored(level, Stored::F16(&keys), Stored::F16(&values)),
                case.run_stored(level, back(&keys)[..].into(), back(&values)[..].into()),
                "{} {:?}",
                level.name(),
                case.shape
            );
        }
    }
}

#[test]
fn eight_bits_are_multiplied_by_their_scales() {
    for case in cases() {
        let head_dim = case.shape.head_dim;
        let [_, keys, values] = case.inputs();
        let bytes = |of: &[f32]| of.iter().map(|x| (x * 63.0) as i8).collect::<Vec<_>>();
        let (keys, values) = (bytes(&keys), bytes(&values));
        let rows = keys.len() / head_dim;
        // Powers of two, so that it does not matter where they are multiplied: the same bits.
        let scales: Vec<f32> = (0..rows).map(|row| 2f32.powi(row as i32 % 3 - 7)).collect();
        let others: Vec<f32> = (0..rows).map(|row| 2f32.powi(row as i32 % 2 - 6)).collect();
        let scaled = |of: &[i8], scales: &[f32]| -> Vec<f32> {
            of.chunks(head_dim)
                .zip(scales)
                .flat_map(|(row, scale)| row.iter().map(move |x| f32::from(*x) * scale))
                .collect()
        };
        for level in levels() {
            let stored = case.run_stored(
                level,
                Stored::Int8 { numbers: &keys, scales: &scales },
                Stored::Int8 { numbers: &values, scales: &others },
            );
            let (keys, values) = (scaled(&keys, &scales), scaled(&values, &others));
            let plain = case.run_stored(level, keys[..].into(), values[..].into());
            assert_eq!(stored, plain, "{} {:?}", level.name(), case.shape);
        }
    }
}

#[test]
#[should_panic(expected = "stored in different ways")]
fn keys_and_values_are_stored_alike() {
    let case = case(1, 1, (1, 1), 8, 4);
    let [_, keys, _] = case.inputs();
    case.run_stored(Level::PORTABLE, keys[..].into(), Stored::F16(&vec![f16::ONE; keys.len()]));
}

#[test]
fn pages_in_any_order_give_the_same_bits() {
    for case in cases() {
        for level in levels() {
            for page_length in [1, 2, 5, 16, case.capacity + 3] {
                if !case.shuffles(page_length) {
                    continue;
                }
                let what = format!("{} {:?} in pages of {page_length}", level.name(), case.shape);
                assert_eq!(case.run_in_pages(level, page_length), case.run(level), "{what}");
            }
        }
    }
}

#[test]
fn a_query_gets_the_same_bits_alone_and_among_others() {
    for case in cases() {
        let AttentionShape { batch, n_queries, n_heads, head_dim, .. } = case.shape;
        for level in levels() {
            let all = case.run(level);
            for (position, among) in all.chunks(n_heads * head_dim).enumerate().take(batch * n_queries) {
                assert_eq!(case.run_alone(level, position), among, "{} {:?}, {position}", level.name(), case.shape);
            }
        }
    }
}

#[test]
fn keys_outside_of_the_range_are_not_read() {
    let case = case(2, 3, (4, 2), 16, 8);
    let [queries, mut keys, mut values] = case.inputs();
    let AttentionShape { n_kv_heads, head_dim, .. } = case.shape;
    let capacity = case.capacity;
    for sequence in 0..2 {
        for head in 0..n_kv_heads {
            for key in (0..capacity).filter(|key| *key < sequence || *key >= 8) {
                let at = ((sequence * n_kv_heads + head) * capacity + key) * head_dim;
                keys[at..at + head_dim].fill(f32::NAN);
                values[at..at + head_dim].fill(f32::NAN);
            }
        }
    }
    for level in levels() {
        let mut out = vec![0.0; 2 * 3 * 4 * 16];
        let inputs = AttentionInputs {
            queries: &queries,
            keys: keys[..].into(),
            values: values[..].into(),
            tables: &[0, 1],
            visible: &case.visible,
            bias: None,
        };
        attention(level, case.shape, inputs, &mut Workspace::default(), &mut out);
        assert_close(&out, &case.expected(), 1e-5, level.name());
    }
}

#[test]
#[cfg_attr(miri, ignore = "one thread")]
fn the_number_of_threads_changes_no_bit() {
    let pools = [1, 2, 3, 5, 16].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    for case in cases() {
        let page_length = [5, 16].into_iter().find(|length| case.shuffles(*length)).unwrap();
        let run = || [case.run(Level::current()), case.run_in_pages(Level::current(), page_length)];
        let one = pools[0].install(run);
        for pool in &pools[1..] {
            assert_eq!(pool.install(run), one, "{:?} with {} threads", case.shape, pool.current_num_threads());
        }
    }
}

#[test]
#[should_panic(expected = "visible keys 3..3 of 5")]
fn a_query_that_sees_nothing_panics() {
    let mut case = case(1, 1, (1, 1), 8, 4);
    case.visible = vec![3..3; 1];
    case.run(Level::PORTABLE);
}

#[test]
#[should_panic(expected = "a table names a page beyond 1")]
fn a_page_that_is_not_there_panics() {
    let case = case(1, 1, (1, 1), 8, 4);
    let [queries, keys, values] = case.inputs();
    let inputs = AttentionInputs {
        queries: &queries,
        keys: keys[..].into(),
        values: values[..].into(),
        tables: &[1],
        visible: &case.visible,
        bias: None,
    };
    attention(Level::PORTABLE, case.shape, inputs, &mut Workspace::default(), &mut [0.0; 8]);
}

#[test]
#[should_panic(expected = "visible keys 0..5, but 4 distances")]
fn a_bias_of_too_few_distances_panics() {
    let mut case = case(1, 1, (2, 2), 8, 5).with_bias();
    case.bias.as_mut().unwrap().truncate(8);
    case.run(Level::PORTABLE);
}
