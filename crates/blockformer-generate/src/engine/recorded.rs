//! What a device records for an engine and repeats.
//!
//! A round is two recordings, both of them for a number of sequences that is one of few, and it is filled up to that by
//! repeating the last: one decodes a block of each from its window, and knows nothing of the pool; the other takes
//! the blocks in, and is told by tables where in the pool they belong.

use std::iter::repeat;

use blockformer_cubecl::{Choice, Narrowed, Recording, Ways, draw, draw_each, draws};
use blockformer_kv_cache::{KvPool, PagedBatch, SharedPages};
use blockformer_model::BlockLayout;
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor, TensorData};

use super::drawing::Batch;
use super::{Engine, EngineConfig};
use crate::GenerateError;
use crate::device_sampler::choice;
use crate::generate::size_class;
use crate::paged::{BlockStep, PagedModel, RecordableBlock};

/// Shapes of either kind that are recorded, or waited for, at a time.
const MOST_SHAPES: usize = 24;

/// Windows, `[rows, n_contexts, d_model]`, what tokens are drawn with, and tokens that are given, `[rows, block_length]` in float32 as
/// recordings take them, and -1 where none is.
type BlockInputs = (Tensor<3>, (Option<Draws>, Option<Tensor<2>>));

/// Random numbers, `[rows, block_length]`, and the ways in which rows are drawn, `[rows, 4]`, see [`Ways`].
type Draws = (Tensor<2>, Tensor<2>);

/// Tokens of blocks, `[rows, block_length]`, and tables, `[rows, 1 + pages]`, all in float32.
type TakeInInputs = (Tensor<2>, Tensor<2>);

/// What decodes blocks: where it is all the same, one recording does for all.
#[derive(Debug, Clone, Copy, PartialEq)]
struct BlockShape {
    rows: usize,
    /// How rows are drawn, if any is not by the likeliest.
    narrowed: Option<Narrowed>,
    tokens_given: bool,
}

/// What takes blocks in.
#[derive(Debug, Clone, Copy, PartialEq)]
struct TakeInShape {
    rows: usize,
    most_pages: usize,
}

/// The recordings of an engine.
#[derive(Debug)]
pub(super) struct Recorded {
    /// How often a shape comes before it is recorded.
    after: usize,
    /// Whether it was tried whether the device records.
    tried: bool,
    pages: SharedPages,
    blocks: Shelf<BlockShape, Recording<'static, BlockInputs, Tensor<2>>>,
    taken_in: Shelf<TakeInShape, Recording<'static, TakeInInputs, Tensor<3>>>,
    repeats: u64,
}

/// The device did not record, and what the recorded work was to write is lost.
pub(super) struct Lost;

impl Recorded {
    /// Nothing yet; `None` if nothing is to be recorded, or could be.
    pub(super) fn new<M: PagedModel>(model: &M, config: &EngineConfig, pool: &mut KvPool) -> Option<Self> {
        let after = config.recorded_after.filter(|_| config.draw_on_device != Some(false))?;
        let pages = pool.shared_pages()?;
        let (blocks, taken_in) = (Shelf::default(), Shelf::default());
        let has_kernels = model.recordable_take_in(&pages, 1, 1).is_some();
        has_kernels.then_some(Self { after, tried: false, pages, blocks, taken_in, repeats: 0 })
    }

    pub(super) fn repeats(&self) -> u64 {
        self.repeats
    }

    /// The tokens of a block of all rows, `[rows, block_length]`, negative where there is none; nothing if this shape is not
    /// recorded.
    ///
    /// # Errors
    /// [`Lost`] if the device fails to record it; nothing but the recording is lost.
    pub(super) fn block<M: PagedModel>(
        &mut self,
        model: &M,
        batch: &Batch,
        window: &Tensor<3>,
    ) -> Result<Option<Tensor<2, Int>>, Lost> {
        let Some(each) = batch.all_on_device() else { return Ok(None) };
        let BlockLayout { block_length, vocab_size, .. } = model.layout();
        let (n, device) = (each.len(), window.device());
        let rows = size_class(n);
        if !draws(window, rows, vocab_size) {
            return Ok(None);
        }
        // Rows that fill up do what the last one does.
        let with_copies = || (0..rows).map(|row| row.min(n - 1));
        let sampled = each.iter().any(|sampling| !sampling.is_greedy());
        let ways = sampled.then(|| Ways::new(with_copies().map(|row| choice(each[row])), vocab_size));
        let given: Vec<&[u32]> = batch.given_tokens().collect();
        let tokens_given = given.iter().any(|given| !given.is_empty());
        let shape = BlockShape { rows, narrowed: ways.as_ref().map(|ways| ways.narrowed), tokens_given };
        let Some(slot) = self.blocks.slot(shape, self.after) else { return Ok(None) };
        let draws = ways.map(|ways| {
            let numbers: Vec<&[f32]> = batch.numbers().collect();
            let padded = |row: usize| numbers[row].iter().copied().chain(repeat(0.0)).take(block_length);
            let numbers = floats(with_copies().flat_map(padded).collect(), [rows, block_length], &device);
            (numbers, floats(ways.numbers, [rows, 4], &device))
        });
        let given = tokens_given.then(|| {
            let padded = |row: usize| given[row].iter().map(|id| *id as f32).chain(repeat(-1.0)).take(block_length);
            floats(with_copies().flat_map(padded).collect(), [rows, block_length], &device)
        });
        let inputs = (filled_up(window.clone(), rows), (draws, given));
        let recording = match slot {
            Some(recording) => recording,
            slot @ None => {
                let Some(steps) = model.recordable_block() else { return Ok(None) };
                let narrowed = shape.narrowed.unwrap_or_default();
                slot.insert(Recording::new(inputs.clone(), decoded_block(steps, narrowed, block_length)))
            }
        };
        if !recording.is_recorded() {
            return Err(Lost);
        }
        self.repeats += 1;
        Ok(Some(recording.repeat(inputs).narrow(0, 0, n).cast(IntDType::I32)))
    }

    /// Takes in a block of each sequence of `batch`, their tokens one after another: the windows behind them, in rows of which
    /// there may be more than sequences. Nothing if this shape is not recorded, and is not to be (`may_record`).
    ///
    /// # Errors
    /// [`Lost`] if the device fails to record it: what the pool holds is lost.
    pub(super) fn take_in<M: PagedModel>(
        &mut self,
        model: &M,
        batch: &PagedBatch<'_>,
        tokens: &[u32],
        device: &Device,
        may_record: bool,
    ) -> Result<Option<Tensor<3>>, Lost> {
        let n = batch.rows();
        let (rows, most_pages) = (size_class(n), batch.most_pages().next_power_of_two());
        let after = if may_record { self.after } else { usize::MAX };
        let Some(slot) = self.taken_in.slot(TakeInShape { rows, most_pages }, after) else { return Ok(None) };
        // Rows that fill up write what the last one does.
        let with_copies = || (0..rows).map(|row| row.min(n - 1));
        let block_length = tokens.len() / n;
        let ids = with_copies().flat_map(|row| &tokens[row * block_length..(row + 1) * block_length]);
        let ids = floats(ids.map(|id| *id as f32).collect(), [rows, block_length], device);
        let table = with_copies().flat_map(|row| batch.table(row, most_pages)).map(|number| number as f32);
        let inputs = (ids, floats(table.collect(), [rows, 1 + most_pages], device));
        let recording = match slot {
            Some(recording) => recording,
            slot @ None => {
                let steps = model.recordable_take_in(&self.pages, rows, most_pages);
                let Some(mut steps) = steps else { return Ok(None) };
                slot.insert(Recording::new(inputs.clone(), move |(ids, tables): TakeInInputs| {
                    steps(ids.cast(IntDType::I32), tables.cast(IntDType::I32))
                }))
            }
        };
        if !recording.is_recorded() {
            return Err(Lost);
        }
        self.repeats += 1;
        Ok(Some(recording.repeat(inputs)))
    }
}

impl<M: PagedModel> Engine<M> {
    /// Before there is anything to lose: records how a block is taken in, of tokens and into a page that do not matter. Where
    /// that fails, nothing is ever recorded.
    pub(super) fn try_to_record(&mut self) -> Result<(), GenerateError> {
        let Some(recorded) = self.recorded.as_mut().filter(|recorded| !recorded.tried) else { return Ok(()) };
        recorded.tried = true;
        let page_length = self.pool.config().page_length;
        let sequence = self.pool.open(page_length.min(self.limits.positions_per_block))?;
        let batch = self.pool.batch(&[sequence], self.limits.positions_per_block);
        let nothing = vec![0; self.limits.layout.block_length];
        let after = std::mem::replace(&mut recorded.after, 0);
        let recording = batch.map(|batch| recorded.take_in(&self.model, &batch, &nothing, &self.device, true));
        recorded.after = after;
        self.pool.close(sequence)?;
        if let Err(Lost) = recording? {
            self.recorded = None;
            self.pool.renew(&self.device)?;
        }
        Ok(())
    }
}

/// The tokens of a block, `[rows, block_length]` in float32.
fn decoded_block(
    mut steps: RecordableBlock,
    narrowed: Narrowed,
    block_length: usize,
) -> impl FnMut(BlockInputs) -> Tensor<2> + Send {
    move |(window, (draws, given))| {
        let mut next = BlockStep::Begin(window);
        let mut tokens = Vec::with_capacity(block_length);
        for place in 0..block_length {
            let logits = steps(next);
            let drawn = match &draws {
                None => draw(&logits, None, Choice::Likeliest),
                Some((numbers, ways)) => draw_each(&logits, &place_of(numbers, place), ways, narrowed),
            };
            let Some(drawn) = drawn else { unreachable!("it was asked whether there is a kernel") };
            tokens.push(drawn.clone());
            let ids = drawn.clamp_min(0);
            next = BlockStep::Token(match &given {
                None => ids,
                Some(given) => {
                    let given = place_of(given, place);
                    let known = given.clone().greater_equal_elem(0.0);
                    ids.mask_where(known, given.clamp_min(0.0).cast(IntDType::I32))
                }
            });
        }
        Tensor::cat(tokens, 1).cast(FloatDType::F32)
    }
}

/// A column.
fn place_of(numbers: &Tensor<2>, place: usize) -> Tensor<2> {
    numbers.clone().narrow(1, place, 1)
}

fn floats<const D: usize>(numbers: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(numbers, shape), (device, DType::F32))
}

/// So many rows: the last one again and again behind those that are there.
fn filled_up<const D: usize>(x: Tensor<D>, rows: usize) -> Tensor<D> {
    let n = x.dims()[0];
    if n == rows {
        return x;
    }
    let last = x.clone().narrow(0, n - 1, 1).repeat_dim(0, rows - n);
    Tensor::cat(vec![x, last], 0)
}

/// Recordings by their shapes, the one used last at the end.
#[derive(Debug)]
struct Shelf<K, R> {
    slots: Vec<Slot<K, R>>,
}

#[derive(Debug)]
struct Slot<K, R> {
    shape: K,
    /// How often it was asked for.
    wanted: usize,
    recording: Option<R>,
}

impl<K, R> Default for Shelf<K, R> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<K: PartialEq, R> Shelf<K, R> {
    /// Where the recording of this shape is, or is to be; nothing if it is to come more often first.
    fn slot(&mut self, shape: K, after: usize) -> Option<&mut Option<R>> {
        let slot = self.slots.iter().position(|slot| slot.shape == shape).map(|at| self.slots.remove(at));
        let mut slot = slot.unwrap_or(Slot { shape, wanted: 0, recording: None });
        slot.wanted += 1;
        if self.slots.len() == MOST_SHAPES {
            self.slots.remove(0);
        }
        self.slots.push(slot);
        let slot = self.slots.last_mut()?;
        (slot.recording.is_some() || slot.wanted > after).then_some(&mut slot.recording)
    }
}
