//! What a device records for an engine and repeats.
//!
//! A round is two recordings, both of them for a number of sequences that is a power of two, to which it is filled up: one decodes a
//! block of each from its window, and knows nothing of the pool; the other takes the blocks in, and is told by tables where
//! in the pool they belong.

use std::iter::{repeat, successors};

use blockformer_cubecl::{Choice, MAX_HELD, Narrowed, Recording, Ways, draw, draw_each, draws};
use blockformer_kv_cache::{KvPool, PagedBatch, SharedPages};
use blockformer_model::BlockLayout;
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor, TensorData};

use super::context::RowContext;
use super::drawing::Batch;
use super::shelf::{Found, MOST_RECORDINGS, Shelf};
use super::{Engine, EngineConfig};
use crate::device_sampler::{choice, column};
use crate::paged::{BlockStep, PagedModel, RecordableBlock};

/// The fewest positions that sequences are taken for, so that short ones have one shape.
const LEAST_POSITIONS: usize = 256;
/// Pages and tokens pass through float32.
const MOST_IDS: usize = 1 << 24;

/// Windows, `[rows, n_contexts, d_model]`, what tokens are drawn with, and tokens that are given, `[rows, block_length]` in float32 as
/// recordings take them, and -1 where none is.
type BlockInputs = (Tensor<3>, (Option<Draws>, Option<Tensor<2>>));

/// Random numbers, `[rows, block_length]`, and the ways in which rows are drawn, `[rows, 4]`, see [`Ways`].
type Draws = (Tensor<2>, Tensor<2>);

/// Tokens of blocks, `[rows, block_length]`, and tables, `[rows, 1 + pages]`, all in float32.
type TakeInInputs = (Tensor<2>, Tensor<2>);

/// Whether an engine records, see [`EngineConfig::recorded_after`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordingState {
    /// It was not asked to.
    Off,
    /// Its model, its pool or the device's backend has nothing that could be recorded.
    Unable,
    /// It has not been tried yet: that is done at the first step, or [ahead](Engine::record_ahead).
    Untried,
    /// The device records.
    Works,
    /// The device has failed to: everything is launched.
    Failed,
}

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

impl TakeInShape {
    fn new(n: usize, most_pages: usize, page_length: usize) -> Self {
        let pages = most_pages.max(LEAST_POSITIONS.div_ceil(page_length));
        Self { rows: n.next_power_of_two(), most_pages: pages.next_power_of_two() }
    }
}

/// When a shape is recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum When {
    /// When it has come often enough.
    IfOften,
    /// Not now: from a place where what the pool holds must not be lost.
    Never,
}

/// The recordings of an engine.
#[derive(Debug)]
pub(super) struct Recorded {
    /// How often a shape comes before it is recorded.
    after: usize,
    /// Those of the pool; none while it is made anew.
    pages: Option<SharedPages>,
    blocks: Shelf<BlockShape, Recording<'static, BlockInputs, Tensor<2>>>,
    taken_in: Shelf<TakeInShape, Recording<'static, TakeInInputs, Tensor<3>>>,
    /// Whether all is recorded that takes blocks in.
    is_complete: bool,
    /// Why a shape was not recorded, the last time.
    failure: Option<String>,
}

/// The device did not record, for this reason, and what the recorded work was to write is lost.
pub(super) struct Lost(pub(super) String);

impl Recorded {
    /// Nothing yet; `None` if there is nothing that could be recorded.
    pub(super) fn new<M: PagedModel>(model: &M, after: usize, pool: &KvPool) -> Option<Self> {
        let pages = pool.shared_pages()?;
        let config = pages.config();
        let counts = config.n_pages() <= MOST_IDS && model.layout().vocab_size <= MOST_IDS;
        let can = counts && model.recordable_take_in(&pages, 1, 1).is_some();
        let (blocks, taken_in) = (Shelf::default(), Shelf::default());
        can.then_some(Self { after, pages: Some(pages), blocks, taken_in, is_complete: false, failure: None })
    }

    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Gives up what belongs to a pool that is to be made anew.
    fn give_up_pages(&mut self) {
        self.taken_in.clear();
        self.pages = None;
    }

    /// The tokens of a block of all rows, `[rows, block_length]`, negative where there is none; nothing if this shape is not
    /// recorded, as where the device has failed to record it: nothing is lost then.
    pub(super) fn block<M: PagedModel>(
        &mut self,
        model: &M,
        batch: &Batch,
        contexts: &[&RowContext],
    ) -> Option<Tensor<2, Int>> {
        let each = batch.all_on_device()?;
        let BlockLayout { block_length, vocab_size, .. } = model.layout();
        let (n, device) = (each.len(), contexts[0].window().device());
        let rows = n.next_power_of_two();
        if !draws(contexts[0].window(), rows, vocab_size) {
            return None;
        }
        // Rows that fill up are drawn as the last one is.
        let with_copies = || (0..rows).map(|row| row.min(n - 1));
        let sampled = each.iter().any(|sampling| !sampling.is_greedy());
        let ways = sampled.then(|| Ways::new(with_copies().map(|row| choice(each[row])), vocab_size));
        let given: Vec<&[u32]> = batch.given_tokens().collect();
        let shape = BlockShape {
            rows,
            // By both or none, so that there are few shapes.
            narrowed: ways.as_ref().map(|Ways { narrowed: Narrowed { by_top_k, by_top_p }, .. }| {
                let any = *by_top_k || *by_top_p;
                Narrowed { by_top_k: any, by_top_p: any }
            }),
            tokens_given: given.iter().any(|given| !given.is_empty()),
        };
        let found = self.blocks.find(&shape, Some(self.after));
        if found == Found::Nothing {
            return None;
        }
        let draws = ways.map(|ways| {
            let numbers: Vec<&[f32]> = batch.numbers().collect();
            let padded = |row: usize| numbers[row].iter().copied().chain(repeat(0.0)).take(block_length);
            let numbers = floats(with_copies().flat_map(padded).collect(), [rows, block_length], &device);
            (numbers, floats(ways.numbers, [rows, 4], &device))
        });
        let given = shape.tokens_given.then(|| {
            let padded = |row: usize| given[row].iter().map(|id| *id as f32).chain(repeat(-1.0)).take(block_length);
            floats(with_copies().flat_map(padded).collect(), [rows, block_length], &device)
        });
        let inputs = (RowContext::filled_windows(contexts, rows), (draws, given));
        let at = match found {
            Found::At(at) => at,
            _ => self.record_block(model, shape, inputs.clone(), block_length)?,
        };
        let drawn = self.blocks.recording(at).repeat(inputs);
        Some(drawn.narrow(0, 0, n).cast(IntDType::I32))
    }

    /// Records it, where model and device can; its place.
    fn record_block<M: PagedModel>(
        &mut self,
        model: &M,
        shape: BlockShape,
        inputs: BlockInputs,
        block_length: usize,
    ) -> Option<usize> {
        let steps = model.recordable_block();
        let work = steps.map(|steps| decoded_block(steps, shape.narrowed.unwrap_or_default(), block_length));
        match work.map(|work| recorded(inputs, work)) {
            Some(Ok(recording)) => return Some(self.blocks.keep(shape, recording)),
            Some(Err(Lost(reason))) => self.failure = Some(reason),
            None => {}
        }
        self.blocks.refuse(&shape);
        None
    }

    /// Takes in a block of each sequence of `batch`, their tokens one after another: the windows behind them, in rows of which
    /// there may be more than sequences. Nothing if this shape is not recorded, and is not to be.
    ///
    /// # Errors
    /// [`Lost`] if the device fails to record it: what the pool holds is lost.
    pub(super) fn take_in<M: PagedModel>(
        &mut self,
        model: &M,
        batch: &PagedBatch<'_>,
        tokens: &[u32],
        device: &Device,
        when: When,
    ) -> Result<Option<Tensor<3>>, Lost> {
        // Beyond, kernels do not reach.
        if batch.starts().into_iter().any(|held| held >= MAX_HELD) {
            return Ok(None);
        }
        let n = batch.rows();
        let shape = TakeInShape::new(n, batch.most_pages(), batch.config().page_length);
        let TakeInShape { rows, most_pages } = shape;
        let after = (when == When::IfOften && !self.is_complete).then_some(self.after);
        let found = self.taken_in.find(&shape, after);
        if found == Found::Nothing {
            return Ok(None);
        }
        // Rows that fill up write what the last one does.
        let with_copies = || (0..rows).map(|row| row.min(n - 1));
        let block_length = tokens.len() / n;
        let ids = with_copies().flat_map(|row| &tokens[row * block_length..(row + 1) * block_length]);
        let ids = floats(ids.map(|id| *id as f32).collect(), [rows, block_length], device);
        let table = with_copies().flat_map(|row| batch.table(row, 0, most_pages)).map(|number| number as f32);
        let inputs = (ids, floats(table.collect(), [rows, 1 + most_pages], device));
        let at = match found {
            Found::At(at) => at,
            _ => match self.record_take_in(model, shape, inputs.clone())? {
                Some(at) => at,
                None => return Ok(None),
            },
        };
        Ok(Some(self.taken_in.recording(at).repeat(inputs)))
    }

    /// Records it, where the model can; its place.
    fn record_take_in<M: PagedModel>(
        &mut self,
        model: &M,
        shape: TakeInShape,
        inputs: TakeInInputs,
    ) -> Result<Option<usize>, Lost> {
        let steps = self.pages.as_ref().and_then(|pages| {
            let steps = model.recordable_take_in(pages, shape.rows, shape.most_pages)?;
            pages.stay(true);
            Some(steps)
        });
        let Some(mut steps) = steps else {
            self.taken_in.refuse(&shape);
            return Ok(None);
        };
        let work = move |(ids, tables): TakeInInputs| steps(ids.cast(IntDType::I32), tables.cast(IntDType::I32));
        Ok(Some(self.taken_in.keep(shape, recorded(inputs, work)?)))
    }

    /// The same where nothing is in the pool: of tokens that do not matter, into its first page.
    /// Where the device fails to, the shape is not tried again.
    fn record_blank<M: PagedModel>(&mut self, model: &M, shape: TakeInShape, device: &Device) -> Result<(), Lost> {
        if self.taken_in.find(&shape, Some(0)) == Found::ToRecord {
            let blank = |columns| Tensor::zeros([shape.rows, columns], (device, DType::F32));
            let inputs = (blank(model.layout().block_length), blank(1 + shape.most_pages));
            if let Err(Lost(reason)) = self.record_take_in(model, shape, inputs) {
                self.taken_in.refuse(&shape);
                self.failure = Some(reason.clone());
                return Err(Lost(reason));
            }
        }
        Ok(())
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if let Some(pages) = &self.pages {
            pages.stay(false);
        }
    }
}

/// The recording of what was done three times, if there is one.
fn recorded<I, T>(inputs: I, work: impl FnMut(I) -> T + Send + 'static) -> Result<Recording<'static, I, T>, Lost>
where
    I: blockformer_cubecl::Recordable + 'static,
    T: blockformer_cubecl::Recordable + 'static,
{
    let recording = Recording::new(inputs, work);
    match recording.failure() {
        None if recording.is_recorded() => Ok(recording),
        reason => Err(Lost(reason.unwrap_or("the device captures nothing").into())),
    }
}

impl<M: PagedModel> Engine<M> {
    /// What is recorded, and how it begins.
    pub(super) fn recordings(model: &M, config: &EngineConfig, pool: &KvPool) -> (Option<Recorded>, RecordingState) {
        let Some(after) = config.recorded_after else { return (None, RecordingState::Off) };
        let recorded = Recorded::new(model, after, pool);
        let state = if recorded.is_some() { RecordingState::Untried } else { RecordingState::Unable };
        (recorded, state)
    }

    /// Before there is anything to lose: records how a block of one sequence is taken in. Where that fails, nothing is ever recorded.
    pub(super) fn try_to_record(&mut self) {
        if self.recording == RecordingState::Untried {
            self.record_blanks(&[TakeInShape::new(1, 1, self.pool.config().page_length)]);
        }
    }

    /// Records now how blocks are taken in, for the numbers of sequences and the lengths that the engine may come to, the fewest and
    /// shortest first, up to 32 of them. Otherwise each is recorded [when it has come often enough](EngineConfig::recorded_after), which
    /// holds up those that are running, and would end them with [`GenerateError::CacheLost`](crate::GenerateError::CacheLost) if
    /// the device failed to. If these are all, nothing is recorded any more behind this but how blocks are decoded, which can lose
    /// nothing. It takes some rounds for each of them, and keeps memory of the device for each.
    ///
    /// Does nothing where the engine [does not record](crate::EngineStats::recording) or a sequence is open. Prefixes are forgotten.
    pub fn record_ahead(&mut self) {
        let can = matches!(self.recording, RecordingState::Untried | RecordingState::Works);
        if !can || self.pool.usage().sequences > 0 {
            return;
        }
        let (pool, layout) = (self.pool.config(), &self.limits.layout);
        let blocks = layout.max_length / layout.block_length + usize::from(layout.predict_first_block);
        let most_pages = pool.pages_of(blocks * self.limits.positions_per_block).min(pool.n_pages());
        let mut shapes: Vec<TakeInShape> = Vec::new();
        for rows in powers_up_to(self.config.max_batch) {
            for pages in powers_up_to(most_pages) {
                let shape = TakeInShape::new(rows, pages, pool.page_length);
                if !shapes.contains(&shape) {
                    shapes.push(shape);
                }
            }
        }
        let are_all = shapes.len() <= MOST_RECORDINGS;
        shapes.truncate(MOST_RECORDINGS);
        let stream = self.stream;
        stream.executes(|| self.record_blanks(&shapes));
        if let Some(recorded) = &mut self.recorded {
            // What the device failed to record is not tried with requests at stake.
            recorded.is_complete = are_all || recorded.taken_in.len() < shapes.len();
        }
    }

    /// Records shapes while nothing is in the pool, up to the first that the device fails to.
    fn record_blanks(&mut self, shapes: &[TakeInShape]) {
        self.pool.clear_reusable(); // the first page may be one of them
        let mut shapes = shapes;
        loop {
            let Some(recorded) = &mut self.recorded else { return };
            let fails = |shape: &TakeInShape| recorded.record_blank(&self.model, *shape, &self.device).is_err();
            let Some(failed) = shapes.iter().position(fails) else { break };
            // The pool is lost, and with it what was recorded of it: those that worked once more.
            recorded.give_up_pages();
            self.renew_pool();
            let pages = self.pool.shared_pages();
            if let Some(recorded) = &mut self.recorded {
                recorded.pages = pages;
            }
            shapes = &shapes[..failed];
        }
        let Some(recorded) = &mut self.recorded else { return };
        if recorded.taken_in.len() == 0 {
            let reason = recorded.failure.take().unwrap_or_else(|| "there is nothing to record".into());
            return self.stop_recording(reason);
        }
        self.recording = RecordingState::Works;
    }
}

/// 1, 2, 4 and so on, up to the first that is not less than `most`.
fn powers_up_to(most: usize) -> impl Iterator<Item = usize> {
    successors(Some(1usize), |power| power.checked_mul(2)).take_while(move |power| power / 2 < most)
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
                Some((numbers, ways)) => draw_each(&logits, &column(numbers, place), ways, narrowed),
            };
            let Some(drawn) = drawn else { unreachable!("it was asked whether there is a kernel") };
            tokens.push(drawn.clone());
            let ids = drawn.clamp_min(0);
            next = BlockStep::Token(match &given {
                None => ids,
                Some(given) => {
                    let given = column(given, place);
                    let known = given.clone().greater_equal_elem(0.0);
                    ids.mask_where(known, given.clamp_min(0.0).cast(IntDType::I32))
                }
            });
        }
        Tensor::cat(tokens, 1).cast(FloatDType::F32)
    }
}

fn floats<const D: usize>(numbers: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(numbers, shape), (device, DType::F32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_reach_as_far_as_they_have_to() {
        let of = |most| powers_up_to(most).collect::<Vec<_>>();
        assert_eq!([1, 2, 3, 4, 5].map(of), [vec![1], vec![1, 2], vec![1, 2, 4], vec![1, 2, 4], vec![1, 2, 4, 8]]);
        assert_eq!(powers_up_to(usize::MAX).count(), usize::BITS as usize);
    }

    #[test]
    fn shapes_are_few() {
        let shape = |rows, pages| TakeInShape::new(rows, pages, 16);
        let of = |TakeInShape { rows, most_pages }| [rows, most_pages];
        assert_eq!(
            [shape(1, 1), shape(3, 16), shape(5, 17), shape(32, 40)].map(of),
            [[1, 16], [4, 16], [8, 32], [32, 64]]
        );
        assert_eq!(of(TakeInShape::new(1, 1, 24)), [1, 16]);
    }
}
