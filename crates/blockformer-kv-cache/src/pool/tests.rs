//! The pool against a model that keeps every sequence as a plain list.

mod by_tables;

use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;

use super::*;

const LAYERS: usize = 2;
const HEADS: usize = 2;
const HEAD_DIM: usize = 3;
const PAGE: usize = 4;

const PLACES: [KvPlace; 2] = [KvPlace::Device, KvPlace::Host];

fn config(n_pages: usize, storage: KvStorage) -> PoolConfig {
    let (n_layers, n_kv_heads, head_dim, page_length) = (LAYERS, HEADS, HEAD_DIM, PAGE);
    let place = KvPlace::Device;
    let config = PoolConfig { n_layers, n_kv_heads, head_dim, page_length, budget: 0, storage, place };
    PoolConfig { budget: n_pages * config.page_bytes() + config.page_bytes() / 2, ..config }
}

fn pool(n_pages: usize, place: KvPlace) -> KvPool {
    KvPool::new(PoolConfig { place, ..config(n_pages, KvStorage::Float32) }, &Device::flex()).unwrap()
}

/// `[heads, values, head_dim]`; every number tells position, layer, head and feature.
fn positions(values: &[u32], layer: usize) -> Tensor<3> {
    let number = |head: usize, value: u32, feature: usize| {
        value as f32 + 0.25 * layer as f32 + 0.125 * head as f32 + 0.03125 * feature as f32
    };
    let numbers: Vec<f32> = (0..HEADS * values.len() * HEAD_DIM)
        .map(|i| number(i / (values.len() * HEAD_DIM), values[i / HEAD_DIM % values.len()], i % HEAD_DIM))
        .collect();
    Tensor::from_data(TensorData::new(numbers, [HEADS, values.len(), HEAD_DIM]), &Device::flex())
}

#[test]
fn a_pool_begins_anew_when_nobody_is_there() {
    for place in PLACES {
        let mut pool = pool(4, place);
        let id = pool.open(8).unwrap();
        append(&mut pool, id, &[1, 2, 3, 4]).unwrap();
        pool.publish(id, &[1]).unwrap();
        assert_eq!(pool.renew(&Device::flex()), Err(CacheError::Open { sequences: 1 }));
        assert_holds(&mut pool, id, &[1, 2, 3, 4]);
        pool.close(id).unwrap();
        assert_eq!(pool.published_prefix(&[&[1]]), 1);
        pool.renew(&Device::flex()).unwrap();
        assert_eq!(pool.published_prefix(&[&[1]]), 0);
        let id = pool.open(16).unwrap();
        append(&mut pool, id, &[5, 6, 7, 8, 9]).unwrap();
        assert_holds(&mut pool, id, &[5, 6, 7, 8, 9]);
    }
}

#[test]
fn each_sequence_of_a_ragged_batch_takes_in_its_own_number_of_positions() {
    let mut pool = pool(12, KvPlace::Device);
    let ids = [pool.open(14).unwrap(), pool.open(9).unwrap(), pool.open(3).unwrap()];
    append(&mut pool, ids[0], &[1, 2, 3, 4, 5, 6]).unwrap();
    let new: [&[u32]; 3] = [&[7, 8, 9], &[11, 12, 13, 14, 15, 16], &[]];
    let sequences = [0, 1, 2].map(|row| (ids[row], new[row].len()));
    let refused = pool.ragged_batch(&[sequences[0], (ids[2], 4)]).err();
    assert_eq!(refused, Some(CacheError::Full { len: 0, capacity: 3, requested: 4 }));
    let mut batch = pool.ragged_batch(&sequences).unwrap();
    assert_eq!((batch.rows(), batch.new_positions(), batch.starts()), (3, 9, vec![6, 0, 0]));
    assert_eq!([0, 1, 2].map(|row| batch.new_of(row)), [0..3, 3..9, 9..9]);
    assert_eq!(batch.positions().collect::<Vec<_>>(), [6, 7, 8, 0, 1, 2, 3, 4, 5]);
    assert_eq!([0, 1, 2].map(|row| batch.pieces(row)), [vec![0..2, 2..3], vec![0..4, 4..6], vec![]]);
    for layer in 0..LAYERS {
        for (row, new) in new.iter().enumerate().filter(|(_, new)| !new.is_empty()) {
            let keys = positions(new, layer);
            batch.write(layer, row, keys.clone(), keys.neg());
        }
    }
    batch.commit();
    assert_holds(&mut pool, ids[0], &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_holds(&mut pool, ids[1], &[11, 12, 13, 14, 15, 16]);
    assert_eq!(pool.len(ids[2]), Ok(0));
}

fn append(pool: &mut KvPool, id: SequenceId, values: &[u32]) -> Result<(), CacheError> {
    let mut batch = pool.batch(&[id], values.len())?;
    for layer in 0..LAYERS {
        let keys = positions(values, layer);
        batch.write(layer, 0, keys.clone(), keys.neg());
    }
    batch.commit();
    Ok(())
}

fn assert_holds(pool: &mut KvPool, id: SequenceId, values: &[u32]) {
    assert_eq!(pool.len(id), Ok(values.len()));
    if values.is_empty() {
        return;
    }
    let batch = pool.batch(&[id], 0).unwrap();
    for layer in 0..LAYERS {
        let (keys, negated) = batch.read(layer, 0, values.len());
        let expected = positions(values, layer);
        keys.into_data().assert_eq(&expected.to_data(), true);
        negated.into_data().assert_eq(&expected.neg().into_data(), true);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Open { text: u32, len: usize, capacity: usize },
    Append { which: usize, n: usize },
    Fork { which: usize, more: usize },
    Truncate { which: usize, len: usize },
    Grow { which: usize, more: usize },
    Close { which: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 0..64usize;
    let step = prop_oneof![
        3 => (0..3u32, 0..20usize, 0..24usize).prop_map(|(text, len, capacity)| Step::Open { text, len, capacity }),
        5 => (which.clone(), 1..9usize).prop_map(|(which, n)| Step::Append { which, n }),
        2 => (which.clone(), 0..12usize).prop_map(|(which, more)| Step::Fork { which, more }),
        1 => (which.clone(), 0..24usize).prop_map(|(which, len)| Step::Truncate { which, len }),
        1 => (which.clone(), 1..9usize).prop_map(|(which, more)| Step::Grow { which, more }),
        3 => which.prop_map(|which| Step::Close { which }),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What the pool should hold: for each open sequence its values and its capacity.
type Model = Vec<(SequenceId, Vec<u32>, usize)>;

/// Opens a sequence of a text that others may have begun with too, and publishes what is full.
fn open(pool: &mut KvPool, model: &mut Model, text: u32, len: usize, capacity: usize) {
    let values: Vec<u32> = (0..len as u32).map(|i| 1000 * text + i).collect();
    let contents: Vec<&[u32]> = values.chunks_exact(PAGE).collect();
    let known = pool.published_prefix(&contents).min(capacity / PAGE);
    let before = pool.usage();
    match pool.open_with_prefix(capacity, &contents) {
        Err(error) => {
            assert!(matches!(error, CacheError::OutOfPages { .. }), "{error}");
            assert_eq!(pool.usage().used, before.used);
        }
        Ok((id, reused)) => {
            assert_eq!(reused, known * PAGE);
            let values = &values[..len.min(capacity)];
            append(pool, id, &values[reused..]).unwrap();
            for content in &contents[known..values.len() / PAGE] {
                pool.publish(id, content).unwrap();
            }
            model.push((id, values.to_vec(), capacity));
        }
    }
}

fn apply(pool: &mut KvPool, model: &mut Model, step: &Step, fresh: &mut u32) {
    let open_now = model.len();
    if open_now == 0 && !matches!(step, Step::Open { .. }) {
        return;
    }
    match *step {
        Step::Open { text, len, capacity } => open(pool, model, text, len, capacity),
        Step::Append { which, n } => {
            let (id, values, capacity) = &mut model[which % open_now];
            let new: Vec<u32> = (*fresh..*fresh + n as u32).collect();
            *fresh += n as u32;
            match append(pool, *id, &new) {
                Ok(()) => values.extend(new),
                Err(error) => {
                    let full = CacheError::Full { len: values.len(), capacity: *capacity, requested: n };
                    assert_eq!(error, full);
                    assert!(values.len() + n > *capacity);
                }
            }
        }
        Step::Fork { which, more } => {
            let (id, values, _) = &model[which % open_now];
            let capacity = values.len() + more;
            match pool.fork(*id, capacity) {
                Ok(fork) => model.push((fork, values.clone(), capacity)),
                Err(error) => assert!(matches!(error, CacheError::OutOfPages { .. }), "{error}"),
            }
        }
        Step::Truncate { which, len } => {
            let (id, values, _) = &mut model[which % open_now];
            match pool.truncate(*id, len) {
                Ok(()) => {
                    assert!(len <= values.len());
                    values.truncate(len);
                }
                Err(CacheError::Truncate { .. }) => assert!(len > values.len()),
                Err(error) => assert!(matches!(error, CacheError::OutOfPages { .. }), "{error}"),
            }
        }
        Step::Grow { which, more } => {
            let (id, _, capacity) = &mut model[which % open_now];
            match pool.grow(*id, *capacity + more) {
                Ok(()) => *capacity += more,
                Err(error) => assert!(matches!(error, CacheError::OutOfPages { .. }), "{error}"),
            }
        }
        Step::Close { which } => {
            let (id, _, _) = model.swap_remove(which % open_now);
            pool.close(id).unwrap();
            assert!(matches!(pool.close(id), Err(CacheError::UnknownSequence { .. })));
        }
    }
}

/// The sums that must hold whatever happened.
fn check_accounts(pool: &KvPool, model: &Model) {
    pool.pages.check();
    let usage = pool.usage();
    assert_eq!(usage.used + usage.reusable + usage.free, usage.total);
    assert!(usage.peak >= usage.used);
    assert_eq!(usage.sequences, model.len());
    for (id, values, capacity) in model {
        let sequence = pool.sequence_usage(*id).unwrap();
        assert_eq!((sequence.len, sequence.capacity), (values.len(), *capacity));
        assert_eq!(sequence.bytes, values.len() * 2 * LAYERS * HEADS * HEAD_DIM * 4);
        assert!(sequence.page_bytes >= capacity.div_ceil(PAGE) * usage.page_bytes);
        assert!(sequence.page_bytes <= (capacity.div_ceil(PAGE) + 1) * usage.page_bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_holds_what_a_plain_list_would(steps in steps(), n_pages in 4..24usize, host in any::<bool>()) {
        let mut pool = pool(n_pages, PLACES[usize::from(host)]);
        let (mut model, mut fresh) = (Model::new(), 10_000);
        for step in &steps {
            apply(&mut pool, &mut model, step, &mut fresh);
            check_accounts(&pool, &model);
            for (id, values, _) in model.clone() {
                assert_holds(&mut pool, id, &values);
            }
        }
        for (id, _, _) in model {
            pool.close(id).unwrap();
        }
        assert_eq!(pool.usage().used, 0);
        pool.clear_reusable();
        assert_eq!(pool.usage().free, pool.usage().total);
    }
}

#[test]
fn bytes_follow_the_formula_for_every_storage() {
    for (storage, head) in [(KvStorage::Float32, 4 * 3), (KvStorage::Float16, 2 * 3), (KvStorage::Int8, 3 + 4)] {
        let config = config(10, storage);
        assert_eq!(config.bytes_per_position(), 2 * LAYERS * HEADS * head);
        assert_eq!(config.n_pages(), 10);
        let mut pool = KvPool::new(config, &Device::flex()).unwrap();
        let id = pool.open(9).unwrap();
        append(&mut pool, id, &[1, 2, 3, 4, 5]).unwrap();
        let usage = pool.sequence_usage(id).unwrap();
        assert_eq!(usage.bytes, 5 * config.bytes_per_position());
        assert_eq!(usage.page_bytes, 3 * config.page_bytes());
        assert_eq!(pool.usage().used, usage.page_bytes);
    }
    let same = crate::CacheConfig { n_layers: LAYERS, batch: 1, n_kv_heads: HEADS, capacity: 1, head_dim: HEAD_DIM };
    assert_eq!(config(1, KvStorage::Float32).bytes_per_position(), same.bytes_per_position(4));
}

#[test]
fn smaller_storage_stays_within_its_rounding() {
    let values: Vec<u32> = (0..11).collect();
    for (storage, relative) in [(KvStorage::Float16, 1.0 / 2048.0), (KvStorage::Int8, 0.5 / 127.0)] {
        let held = PLACES.map(|place| {
            let mut pool = KvPool::new(PoolConfig { place, ..config(10, storage) }, &Device::flex()).unwrap();
            let id = pool.open(20).unwrap();
            append(&mut pool, id, &values).unwrap();
            let fork = pool.fork(id, 20).unwrap();
            append(&mut pool, fork, &[7]).unwrap(); // copies the last page
            let batch = pool.batch(&[id, fork], 0).unwrap();
            [0, 1].map(|row| {
                let (keys, _) = batch.read(1, row, 11);
                let exact = positions(&values, 1);
                let bound = exact.clone().abs().max_dim(2) * relative + 1e-6;
                let outside = (keys.clone() - exact).abs().greater(bound.expand([HEADS, 11, HEAD_DIM]));
                assert!(!outside.any().into_scalar::<bool>(), "{storage:?} {place:?}");
                keys.into_data()
            })
        });
        // Both places round alike.
        for (on_device, on_host) in held[0].iter().zip(&held[1]) {
            on_device.assert_approx_eq::<f32>(on_host, burn::tensor::Tolerance::absolute(1e-6));
        }
    }
}

#[test]
fn a_fork_copies_nothing_until_one_of_the_two_writes() {
    for place in PLACES {
        let mut pool = pool(8, place);
        let first = pool.open(8).unwrap();
        append(&mut pool, first, &[1, 2, 3, 4, 5]).unwrap();
        let second = pool.fork(first, 8).unwrap();
        assert_eq!(pool.sequence_usage(second).unwrap().shared_bytes, 2 * pool.usage().page_bytes);
        append(&mut pool, first, &[6]).unwrap();
        append(&mut pool, second, &[7]).unwrap();
        assert_eq!(pool.sequence_usage(second).unwrap().shared_bytes, pool.usage().page_bytes);
        assert_holds(&mut pool, first, &[1, 2, 3, 4, 5, 6]);
        assert_holds(&mut pool, second, &[1, 2, 3, 4, 5, 7]);
    }
}

#[test]
fn the_longest_unused_text_is_evicted_first_from_its_end() {
    for place in PLACES {
        let mut pool = pool(4, place);
        for text in [[1, 1, 1, 1, 2, 2, 2, 2], [5, 5, 5, 5, 6, 6, 6, 6]] {
            let id = pool.open(8).unwrap();
            append(&mut pool, id, &text).unwrap();
            text.chunks(PAGE).for_each(|content| pool.publish(id, content).unwrap());
            pool.close(id).unwrap();
        }
        assert_eq!((pool.usage().free, pool.usage().reusable), (0, pool.usage().total));
        let other = pool.open(4).unwrap(); // one page is needed
        assert_eq!(pool.published_prefix(&[&[1; 4], &[2; 4]]), 1);
        assert_eq!(pool.published_prefix(&[&[5; 4], &[6; 4]]), 2);
        assert_eq!(pool.usage().evicted_pages, 1);
        assert_eq!(pool.published_prefix(&[&[6; 4]]), 0, "content alone is not the prefix");
        let (again, reused) = pool.open_with_prefix(8, &[&[5; 4], &[6; 4]]).unwrap();
        assert_eq!(reused, 8);
        assert_holds(&mut pool, again, &[5, 5, 5, 5, 6, 6, 6, 6]);
        assert!(matches!(pool.open(8), Err(CacheError::OutOfPages { requested: 2, available: 1 })));
        pool.close(other).unwrap();
    }
}

#[test]
fn pages_of_one_sequence_lie_side_by_side_where_they_can() {
    for place in PLACES {
        let mut pool = pool(8, place);
        let short = pool.open(8).unwrap();
        let long = pool.open(16).unwrap();
        append(&mut pool, long, &(0..16).collect::<Vec<_>>()).unwrap();
        append(&mut pool, short, &(0..8).collect::<Vec<_>>()).unwrap();
        assert_eq!(pool.sequences[&long].table, [2, 3, 4, 5]);
        assert_eq!(pool.sequences[&short].table, [0, 1]);
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let refused = |config: PoolConfig| KvPool::new(config, &Device::flex()).unwrap_err();
    let good = config(4, KvStorage::Float32);
    assert_eq!(refused(PoolConfig { head_dim: 0, ..good }), CacheError::Zero { name: "head_dim" });
    let budget = good.page_bytes() - 1;
    let page_bytes = good.page_bytes();
    assert_eq!(refused(PoolConfig { budget, ..good }), CacheError::Budget { budget, page_bytes });
    for place in PLACES {
        let mut pool = pool(4, place);
        let id = pool.open(6).unwrap();
        assert_eq!(append(&mut pool, id, &[0; 7]), Err(CacheError::Full { len: 0, capacity: 6, requested: 7 }));
        assert!(matches!(pool.batch(&[id, id], 1), Err(CacheError::RepeatedSequence { .. })));
        append(&mut pool, id, &[1, 2, 3]).unwrap();
        assert_eq!(pool.publish(id, &[1, 2, 3]), Err(CacheError::PageNotFull { page: 0, len: 3 }));
        assert_eq!(pool.truncate(id, 4), Err(CacheError::Truncate { len: 3, requested: 4 }));
        assert!(matches!(pool.fork(id, 2), Err(CacheError::Full { capacity: 2, .. })));
        assert!(matches!(pool.open(100), Err(CacheError::OutOfPages { requested: 25, available: 2 })));
        assert_holds(&mut pool, id, &[1, 2, 3]);
    }
}

#[test]
fn numbers_that_are_not_finite_do_not_vanish_in_eight_bits() {
    let (mut numbers, mut scales) = ([1i8; 6], [1.0; 3]);
    let mut rows = HostRows::Int8 { numbers: &mut numbers, scales: &mut scales };
    rows.write(1, &[1.0, f32::NAN]);
    rows.write(2, &[f32::INFINITY, 1.0]);
    assert_eq!((scales[0], scales[1].is_nan(), scales[2].is_nan()), (1.0, true, true));
}

#[test]
fn what_is_written_in_place_is_read_as_tensors() {
    let mut pool = pool(6, KvPlace::Host);
    let (first, other) = (pool.open(8).unwrap(), pool.open(8).unwrap());
    append(&mut pool, other, &[50, 51, 52]).unwrap();
    append(&mut pool, first, &[1, 2, 3]).unwrap();
    let mut batch = pool.batch(&[other, first], 2).unwrap();
    assert_eq!((batch.start(1), batch.config().page_length), (3, PAGE));
    for (row, new) in [[53u32, 54], [4, 5]].iter().enumerate() {
        let pages = batch.pages(row).to_vec();
        assert_eq!(pages.len(), 2, "new positions have their pages");
        for layer in 0..LAYERS {
            let numbers: Vec<f32> = positions(new, layer).into_data().iter().collect(); // [heads, 2, head_dim]
            let HostLayer { mut keys, mut values } = batch.host_layer(layer);
            for (index, of_head) in numbers.chunks(HEAD_DIM).enumerate() {
                let (head, position) = (index / 2, 3 + index % 2);
                let row = (pages[position / PAGE] * HEADS + head) * PAGE + position % PAGE;
                keys.write(row, of_head);
                values.write(row, &of_head.iter().map(|number| -number).collect::<Vec<_>>());
            }
        }
    }
    batch.commit();
    assert_holds(&mut pool, first, &[1, 2, 3, 4, 5]);
    assert_holds(&mut pool, other, &[50, 51, 52, 53, 54]);
}

#[test]
#[should_panic(expected = "in tensors, not on the host")]
fn a_pool_of_tensors_is_not_written_in_place() {
    let mut pool = pool(4, KvPlace::Device);
    let id = pool.open(4).unwrap();
    pool.batch(&[id], 1).unwrap().host_layer(0);
}
