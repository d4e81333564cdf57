//! What is written by tables: by kernels, and beside the pool.

use burn::tensor::s;

use super::*;

/// Writes the next positions of sequences as a kernel would: by their tables, into the rows of the pages.
fn append_by_tables(pool: &mut KvPool, ids: &[SequenceId], values: &[Vec<u32>]) {
    let sequences: Vec<_> = ids.iter().zip(values).map(|(id, values)| (*id, values.len())).collect();
    let mut batch = pool.ragged_batch(&sequences).unwrap();
    write_by_tables(&mut batch, values);
    batch.commit();
}

fn write_by_tables(batch: &mut PagedBatch<'_>, values: &[Vec<u32>]) {
    let tables = batch.tables(&Device::flex());
    let width = tables.dims()[1];
    let values = values.concat();
    assert_eq!(tables.dims()[0], values.len());
    let tables: Vec<usize> = tables.into_data().iter::<i32>().map(|x| x as usize).collect();
    for layer in 0..LAYERS {
        let written = batch.write_new(layer, |keys, negated| {
            for (value, table) in values.iter().zip(tables.chunks(width)) {
                let new = positions(&[*value], layer).swap_dims(0, 1).reshape([1, HEADS * HEAD_DIM]);
                let row = table[1 + table[0] / PAGE] * PAGE + table[0] % PAGE;
                keys.inplace(|keys| keys.slice_assign(s![row..row + 1, ..], new.clone()));
                negated.inplace(|negated| negated.slice_assign(s![row..row + 1, ..], new.neg()));
            }
            Some(layer)
        });
        assert_eq!(written, Some(layer));
    }
}

#[test]
fn what_is_written_beside_a_pool_is_in_it() {
    let mut pool = pool(12, KvPlace::Device);
    let pages = pool.shared_pages().expect("tensors of floats");
    assert!(!pages.have_kernels(1, 1), "none on a CPU");
    let (a, b) = (pool.open(10).unwrap(), pool.open(6).unwrap());
    append(&mut pool, a, &[1, 2, 3, 4, 5]).unwrap();
    for (i, new) in [[6, 21], [7, 22], [8, 23]].into_iter().enumerate() {
        let values = new.map(|value| vec![value]);
        let batch = pool.batch(&[a, b], 1).unwrap();
        assert!(!batch.stays());
        pages.stay(true);
        assert!(batch.stays());
        let most = batch.most_pages() + 1; // wider than any of them needs
        let numbers: Vec<i32> = (0..2).flat_map(|row| batch.table(row, 0, most)).collect();
        let tables = Tensor::from_data(TensorData::new(numbers, [2, 1 + most]), &Device::flex());
        let mut beside = pages.batch(tables, 9);
        assert_eq!((beside.rows(), beside.new_positions(), beside.starts()), (2, 2, vec![9, 9]));
        assert!(beside.has_float_pages() && beside.stays());
        write_by_tables(&mut beside, &values);
        beside.commit(); // of nothing
        pages.stay(false);
        batch.commit();
        assert_eq!(pool.len(b), Ok(i + 1));
    }
    assert_holds(&mut pool, a, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_holds(&mut pool, b, &[21, 22, 23]);
}

#[test]
#[should_panic = "for kernels alone"]
fn tables_on_a_device_are_for_kernels() {
    let pool = pool(2, KvPlace::Device);
    let pages = pool.shared_pages().unwrap();
    let keys = positions(&[1], 0);
    pages.batch(Tensor::zeros([1, 2], &Device::flex()), 3).write(0, 0, keys.clone(), keys);
}

#[test]
#[should_panic = "no kernel that writes pages where they stay"]
fn pages_that_stay_are_not_moved() {
    let mut pool = pool(2, KvPlace::Device);
    pool.shared_pages().unwrap().stay(true);
    let id = pool.open(4).unwrap();
    append(&mut pool, id, &[1]).unwrap();
}

#[test]
fn positions_written_by_tables_are_those_that_are_read() {
    let mut pool = pool(12, KvPlace::Device);
    let a = pool.open(14).unwrap();
    append(&mut pool, a, &[1, 2, 3, 4, 5, 6]).unwrap();
    let b = pool.fork(a, 14).unwrap(); // it shares a full page and one that both go on to write
    let c = pool.open(5).unwrap();
    append_by_tables(&mut pool, &[b, c, a], &[vec![17, 18, 19], vec![21, 22, 23, 24], vec![7]]);
    append_by_tables(&mut pool, &[c, b], &[vec![25], vec![20]]);
    assert_holds(&mut pool, a, &[1, 2, 3, 4, 5, 6, 7]);
    assert_holds(&mut pool, b, &[1, 2, 3, 4, 5, 6, 17, 18, 19, 20]);
    assert_holds(&mut pool, c, &[21, 22, 23, 24, 25]);
}

#[test]
fn pools_without_tensors_of_floats_ask_nobody_to_write() {
    for (storage, place) in [(KvStorage::Int8, KvPlace::Device), (KvStorage::Float32, KvPlace::Host)] {
        let mut pool = KvPool::new(PoolConfig { place, ..config(2, storage) }, &Device::flex()).unwrap();
        let id = pool.open(4).unwrap();
        let mut batch = pool.batch(&[id], 1).unwrap();
        assert!(!batch.has_float_pages() && !batch.stays());
        assert_eq!(batch.write_new(0, |_, _| -> Option<()> { panic!("{storage:?} was asked") }), None);
        drop(batch);
        assert!(pool.shared_pages().is_none());
    }
    let mut floats = pool(2, KvPlace::Device);
    let id = floats.open(4).unwrap();
    let batch = floats.batch(&[id], 1).unwrap();
    assert!(batch.has_float_pages());
}

#[test]
#[should_panic = "pages keep their shape and type"]
fn what_is_written_may_not_change_the_pages() {
    let mut pool = pool(2, KvPlace::Device);
    let id = pool.open(4).unwrap();
    let mut batch = pool.batch(&[id], 1).unwrap();
    batch.write_new(0, |keys, _| {
        *keys = keys.clone().narrow(0, 0, 1);
        Some(())
    });
}
