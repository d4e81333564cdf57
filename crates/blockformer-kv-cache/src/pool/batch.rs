//! Sequences that take in new positions together.

use core::ops::Range;

use blockformer_cubecl::takes_pages;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::storage::Storage;
use super::tensor_pages::SharedTensorPages;
use super::{HostLayer, KvPool, PageId, PoolConfig, SequenceId};
use crate::CacheError;

/// One sequence of a batch.
#[derive(Debug)]
struct Row {
    id: SequenceId,
    start: usize,
    /// Its new positions among those of all sequences.
    new: Range<usize>,
    pages: Vec<PageId>,
}

/// Where the pages of a batch are.
#[derive(Debug)]
enum Of<'a> {
    /// In this pool.
    Pool(&'a mut KvPool),
    /// Here, and these tables on the device say which are whose.
    Pages { pages: &'a SharedPages, tables: Tensor<2, Int> },
}

/// New positions of some sequences. Layer by layer, new keys and values are
/// [written](Self::write) and all of them [read](Self::read); [`commit`](Self::commit) makes the positions part of the
/// sequences. A batch that is dropped instead leaves the sequences as they were.
#[derive(Debug)]
pub struct PagedBatch<'a> {
    of: Of<'a>,
    config: PoolConfig,
    rows: Vec<Row>,
}

impl KvPool {
    /// Makes room for `new` positions in each of these sequences: copies pages that others share and that are about to
    /// be written to.
    ///
    /// # Errors
    /// [`CacheError::UnknownSequence`], [`CacheError::RepeatedSequence`], or [`CacheError::Full`] if one of them has
    /// not the capacity. Nothing is changed then.
    pub fn batch(&mut self, ids: &[SequenceId], new: usize) -> Result<PagedBatch<'_>, CacheError> {
        let sequences: Vec<_> = ids.iter().map(|id| (*id, new)).collect();
        self.ragged_batch(&sequences)
    }

    /// The same for as many positions of each sequence as stand beside it.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    pub fn ragged_batch(&mut self, sequences: &[(SequenceId, usize)]) -> Result<PagedBatch<'_>, CacheError> {
        for (index, &(id, new)) in sequences.iter().enumerate() {
            let sequence = self.sequence(id)?;
            if new > sequence.capacity - sequence.len {
                let (len, capacity) = (sequence.len, sequence.capacity);
                return Err(CacheError::Full { len, capacity, requested: new });
            }
            if sequences[..index].iter().any(|(other, _)| *other == id) {
                return Err(CacheError::RepeatedSequence { id: id.0 });
            }
        }
        let mut rows: Vec<Row> = Vec::with_capacity(sequences.len());
        for &(id, new) in sequences {
            self.prepare(id, new);
            let sequence = self.sequence(id)?;
            let first = rows.last().map_or(0, |row| row.new.end);
            rows.push(Row { id, start: sequence.len, new: first..first + new, pages: sequence.table.clone() });
        }
        Ok(PagedBatch { config: self.config, of: Of::Pool(self), rows })
    }

    /// Makes the pages of the next `new` positions of `id` its own.
    fn prepare(&mut self, id: SequenceId, new: usize) {
        let page_length = self.config.page_length;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let written = sequence.len / page_length..(sequence.len + new).div_ceil(page_length);
        for index in written {
            let Some(&page) = sequence.table.get(index) else {
                sequence.table.extend(sequence.spare.pop());
                continue;
            };
            if self.pages.holders(page) > 1 {
                let Some(copy) = sequence.spare.pop() else { continue };
                let rows = |page: PageId| page * page_length..page * page_length + sequence.len % page_length;
                self.storage.copy(rows(page), rows(copy));
                self.pages.give_back(page);
                sequence.table[index] = copy;
            } else {
                self.pages.withdraw(page);
            }
        }
        // A page that was reserved for a copy is not needed once nobody else holds the one that was to be copied.
        let need = self.config.pages_of(sequence.capacity);
        let surplus = (sequence.table.len() + sequence.spare.len()).saturating_sub(need);
        sequence.spare.drain(..surplus).for_each(|page| self.pages.give_back(page));
    }
}

/// The pages of a pool, for work that a device repeats: a captured graph writes keys and values where those of the pool are.
#[derive(Debug, Clone)]
pub struct SharedPages {
    pages: SharedTensorPages,
    config: PoolConfig,
}

/// Why a batch refuses.
const FOR_KERNELS: &str = "sequences that tables on the device describe are there for kernels alone";

impl KvPool {
    /// Its pages, to be written to beside it; none of a pool that is on the host or keeps eight bits a number.
    pub fn shared_pages(&self) -> Option<SharedPages> {
        let Storage::Device(pages) = &self.storage else { return None };
        let are_floats = pages.lock().are_floats();
        are_floats.then(|| SharedPages { pages: pages.clone(), config: self.config })
    }
}

impl SharedPages {
    /// The size of the pool.
    pub fn config(&self) -> PoolConfig {
        self.config
    }

    /// Whether pages stay where they are from now on, as they have to while a graph writes to them: then nothing but kernels writes
    /// them, in place. A [read](PagedBatch::read) that is alive meanwhile makes the device fail.
    pub fn stay(&self, stay: bool) {
        self.pages.lock().stay(stay);
    }

    /// Whether [kernels](blockformer_cubecl::takes_pages) write them, and attend to up to `keys` positions of each sequence, with so many query heads of
    /// all sequences.
    pub fn have_kernels(&self, heads: usize, keys: usize) -> bool {
        self.pages.lock().first_floats().is_some_and(|pages| takes_pages(pages, [heads, self.config.head_dim], keys))
    }

    /// A batch of sequences that take in a position each, none of which holds more than `longest`. Which pages are whose
    /// is known to `tables` alone, so that kernels may [write](PagedBatch::write_new) by it and everything else is a panic;
    /// the pool has to have made room, by a [`batch`](KvPool::batch) of its own.
    ///
    /// # Shapes
    /// - `tables`: `[rows, 1 + pages]`, as [`PagedBatch::tables`] gives
    pub fn batch(&self, tables: Tensor<2, Int>, longest: usize) -> PagedBatch<'_> {
        let row = |row| Row { id: SequenceId(u64::MAX), start: longest, new: row..row + 1, pages: Vec::new() };
        let rows = (0..tables.dims()[0]).map(row).collect();
        PagedBatch { of: Of::Pages { pages: self, tables }, config: self.config, rows }
    }
}

impl PagedBatch<'_> {
    /// Number of sequences.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Positions that all sequences together take in.
    pub fn new_positions(&self) -> usize {
        self.rows.last().map_or(0, |row| row.new.end)
    }

    /// Where the new positions of sequence `row` are among those of all, one sequence after the other.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn new_of(&self, row: usize) -> Range<usize> {
        self.rows[row].new.clone()
    }

    /// How many positions of its sequence are before each of the new ones.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().flat_map(|row| row.start..row.start + row.new.len())
    }

    /// The size of the pool.
    pub fn config(&self) -> PoolConfig {
        self.config
    }

    /// The first new position of sequence `row`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn start(&self, row: usize) -> usize {
        self.rows[row].start
    }

    /// The pages of sequence `row`, in order; its new positions have theirs.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn pages(&self, row: usize) -> &[usize] {
        &self.rows[row].pages
    }

    /// Layer `layer` of a pool that is [on the host](super::KvPlace::Host), to be read and written in place: nothing but the
    /// new positions of these sequences, in the pages that [`pages`](Self::pages) names, may be written.
    ///
    /// # Panics
    /// If there is no such layer or the pool is on a device.
    pub fn host_layer(&mut self, layer: usize) -> HostLayer<'_> {
        match &mut self.of {
            Of::Pool(KvPool { storage: Storage::Host(pages), .. }) => pages.layer_mut(layer),
            _ => panic!("the pool's keys and values are in tensors, not on the host"),
        }
    }

    /// The first new position of each sequence.
    pub fn starts(&self) -> Vec<usize> {
        self.rows.iter().map(|row| row.start).collect()
    }

    /// The new positions of sequence `row`, cut where pages end: ranges that count from its first new position.
    ///
    /// Attention that computes each piece by itself, over the keys up to the piece's end, gives the same numbers
    /// however a text is cut into batches, as long as it is cut at page boundaries.
    pub fn pieces(&self, row: usize) -> Vec<Range<usize>> {
        let Row { start, new, .. } = &self.rows[row];
        let (page_length, start, end) = (self.config.page_length, *start, start + new.len());
        let mut pieces = Vec::new();
        let mut from = start;
        while from < end {
            let to = ((from / page_length + 1) * page_length).min(end);
            pieces.push(from - start..to - start);
            from = to;
        }
        pieces
    }

    /// Writes the new positions of sequence `row` in layer `layer`.
    ///
    /// # Shapes
    /// - `keys`, `values`: `[n_kv_heads, new positions of the row, head_dim]`
    ///
    /// # Panics
    /// If shapes, layer or row do not fit.
    pub fn write(&mut self, layer: usize, row: usize, keys: Tensor<3>, values: Tensor<3>) {
        let config = self.config;
        let (start, new) = (self.rows[row].start, self.rows[row].new.len());
        let expected = [config.n_kv_heads, new, config.head_dim];
        assert_eq!(keys.dims(), expected, "keys [heads, new, head_dim]");
        assert_eq!(values.dims(), expected, "values [heads, new, head_dim]");
        assert!(matches!(self.of, Of::Pool(_)), "{FOR_KERNELS}");
        let mut done = 0;
        for run in self.runs(row, start..start + new) {
            let part = done..done + run.len();
            done = part.end;
            let of = |x: &Tensor<3>| x.clone().slice(burn::tensor::s![.., part.clone(), ..]);
            if let Of::Pool(pool) = &mut self.of {
                pool.storage.write(layer, run, of(&keys), of(&values));
            }
        }
    }

    /// Keys and values of the first `len` positions of sequence `row`, new ones included if they were written, in
    /// float32. They should be dropped before the next write, which would copy the pool otherwise.
    ///
    /// # Shapes
    /// - returns: twice `[n_kv_heads, len, head_dim]`
    ///
    /// # Panics
    /// If layer or row do not fit or `len` goes beyond the new positions.
    pub fn read(&self, layer: usize, row: usize, len: usize) -> (Tensor<3>, Tensor<3>) {
        let held = self.rows[row].start + self.rows[row].new.len();
        assert!(len <= held, "{len} positions of a sequence of {held}");
        match &self.of {
            Of::Pool(pool) => pool.storage.read(layer, &self.runs(row, 0..len)),
            Of::Pages { .. } => panic!("{FOR_KERNELS}"),
        }
    }

    /// For each new position how many of its sequence are before it, and then the sequence's pages in order, those of the new positions
    /// included, for kernels that find their way themselves. Behind the last page of a sequence that has fewer than others stand zeros.
    ///
    /// # Shapes
    /// - returns: `[new positions of all sequences, 1 + pages]` in 32 bits
    pub fn tables(&self, device: &Device) -> Tensor<2, Int> {
        if let Of::Pages { tables, .. } = &self.of {
            return tables.clone();
        }
        let pages = self.most_pages();
        let of_row = |row: usize| (0..self.rows[row].new.len()).flat_map(move |new| self.table(row, new, pages));
        let numbers: Vec<i32> = (0..self.rows.len()).flat_map(of_row).collect();
        Tensor::from_data(TensorData::new(numbers, [self.new_positions(), 1 + pages]), (device, DType::I32))
    }

    /// The row of [`tables`](Self::tables) for new position `new` of sequence `row`, as wide as if `pages` were the most that a
    /// sequence has.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn table(&self, row: usize, new: usize, pages: usize) -> impl Iterator<Item = i32> {
        let Row { start, pages: own, .. } = &self.rows[row];
        let numbers = std::iter::once(start + new).chain(own.iter().copied()).chain(std::iter::repeat(0));
        numbers.take(1 + pages).map(|number| number as i32)
    }

    /// The most pages that one of the sequences has.
    pub fn most_pages(&self) -> usize {
        self.rows.iter().map(|row| row.pages.len()).max().unwrap_or(0)
    }

    /// Lets `write` put keys and values of the new positions of all sequences into layer `layer`, and nothing else: it is given
    /// all pages, and answers nothing if it has left them as they were. Without asking it, nothing is the answer of a pool
    /// that is on the host or keeps eight bits a number.
    ///
    /// # Shapes
    /// - given: keys and values, `[positions of the pool, n_kv_heads · head_dim]`, position `i` of page `p` in row
    ///   `p · page_length + i`
    ///
    /// # Panics
    /// If there is no such layer, or if what `write` leaves behind has another shape or type.
    pub fn write_new<T>(
        &mut self,
        layer: usize,
        write: impl FnOnce(&mut Tensor<2>, &mut Tensor<2>) -> Option<T>,
    ) -> Option<T> {
        self.pages_of_device()?.lock().floats_mut(layer).and_then(|(keys, values)| {
            let of = |x: &Tensor<2>| (x.dims(), x.dtype());
            let before = of(keys);
            let written = write(keys, values);
            assert_eq!((of(keys), of(values)), (before, before), "pages keep their shape and type");
            written
        })
    }

    /// The pages, if they are tensors.
    fn pages_of_device(&self) -> Option<&SharedTensorPages> {
        match &self.of {
            Of::Pool(KvPool { storage: Storage::Device(pages), .. }) => Some(pages),
            Of::Pool(_) => None,
            Of::Pages { pages, .. } => Some(&pages.pages),
        }
    }

    /// Whether captured graphs write to the pages, so that these have to [stay where they are](SharedPages::stay).
    pub fn stays(&self) -> bool {
        self.pages_of_device().is_some_and(|pages| pages.lock().stays())
    }

    /// Whether the pool's pages are tensors of floats, so that [`write_new`](Self::write_new) has something to give out.
    pub fn has_float_pages(&self) -> bool {
        self.pages_of_device().is_some_and(|pages| pages.lock().are_floats())
    }

    /// Makes the new positions part of the sequences; nothing of a batch of [`SharedPages`], which knows no sequences.
    pub fn commit(self) {
        let Of::Pool(pool) = self.of else { return };
        for row in &self.rows {
            if let Some(sequence) = pool.sequences.get_mut(&row.id) {
                sequence.len += row.new.len();
            }
        }
    }

    /// Rows of the pool's tensors that hold these positions, neighbours joined.
    fn runs(&self, row: usize, positions: Range<usize>) -> Vec<Range<usize>> {
        let page_length = self.config.page_length;
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut from = positions.start;
        while from < positions.end {
            let to = ((from / page_length + 1) * page_length).min(positions.end);
            let first = self.rows[row].pages[from / page_length] * page_length + from % page_length;
            let run = first..first + to - from;
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
            from = to;
        }
        runs
    }
}
