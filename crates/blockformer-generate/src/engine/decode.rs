//! One block of every running sequence.

use blockformer_kv_cache::SequenceId;
use burn::tensor::{FloatDType, Tensor, TensorData};

use super::context::RowContext;
use super::drawing::goes_on;
use super::job::Row;
use super::recorded::{Lost, When};
use super::{Engine, Speculation};
use crate::draft::draft;
use crate::paged::{Blocks, Context, PagedModel};
use crate::{Event, GenerateError};

/// Logits as plain numbers.
pub(crate) struct Logits {
    data: TensorData,
    vocab_size: usize,
}

impl Logits {
    /// Waits for the device's answer.
    ///
    /// # Panics
    /// If the device fails.
    pub(crate) async fn read<const D: usize>(logits: Tensor<D>) -> Self {
        let vocab_size = logits.dims()[D - 1];
        match logits.cast(FloatDType::F32).into_data_async().await {
            Ok(data) => Self { data, vocab_size },
            Err(error) => panic!("the device failed: {error}"),
        }
    }

    /// Row `index`, all dimensions but the last counted together.
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        let Ok(values) = self.data.as_slice::<f32>() else { unreachable!("they were cast to float32") };
        &values[index * self.vocab_size..(index + 1) * self.vocab_size]
    }
}

impl<M: PagedModel> Engine<M> {
    pub(super) async fn decode(&mut self) {
        let mut rows = std::mem::take(&mut self.running);
        if rows.is_empty() {
            return;
        }
        let before: usize = rows.iter().map(|row| row.generated).sum();
        let mut failed = Vec::new();
        match self.config.speculation {
            Some(speculation) if self.limits.layout.block_length > 1 => {
                self.decode_by_drafts(&mut rows, speculation, &mut failed).await;
            }
            _ => self.decode_token_by_token(&mut rows, &mut failed).await,
        }
        self.counters.generated += (rows.iter().map(|row| row.generated).sum::<usize>() - before) as u64;
        self.settle(rows, failed);
    }

    /// All rows are at the same place of their blocks, so one cache of the token decoder serves them all.
    async fn decode_token_by_token(&mut self, rows: &mut [Row], failed: &mut Vec<(usize, GenerateError)>) {
        if self.draws_on_device(rows[0].context.window(), rows) {
            return self.draw_block(rows, failed).await;
        }
        let contexts: Vec<_> = rows.iter().map(|row| &row.context).collect();
        let layout = &self.limits.layout;
        let (mut block, mut logits) = self.model.begin_blocks(RowContext::windows(&contexts));
        let all: Vec<usize> = (0..rows.len()).collect();
        for place in 0..layout.block_length {
            self.draw_on_host(rows, &all, (logits, place), failed).await;
            if place + 1 == layout.block_length
                || !rows.iter().enumerate().any(|(index, row)| goes_on(row, index, failed))
            {
                return;
            }
            let tokens: Vec<u32> = rows.iter().map(|row| row.token(place, layout)).collect();
            logits = self.model.step(&mut block, &tokens, &self.device);
        }
    }

    /// Each pass of the token decoder gives the logits of all tokens of the blocks, good as far as the drafts are.
    async fn decode_by_drafts(
        &mut self,
        rows: &mut [Row],
        speculation: Speculation,
        failed: &mut Vec<(usize, GenerateError)>,
    ) {
        let length = self.limits.layout.block_length;
        loop {
            let open: Vec<usize> = (0..rows.len())
                .filter(|index| rows[*index].block.len() < length && goes_on(&rows[*index], *index, failed))
                .collect();
            let Some(known) = open.iter().map(|index| rows[*index].block.len()).min() else { return };
            let mut tokens = Vec::with_capacity(open.len() * (length - 1));
            let mut drafted = Vec::with_capacity(open.len());
            for &index in &open {
                let row = &rows[index];
                let room = length - 1 - row.block.len();
                let draft = draft(row.sampler.tokens(), speculation.longest, speculation.shortest, room);
                drafted.push(draft.len());
                let padding = std::iter::repeat_n(self.limits.layout.pad_token_id, room - draft.len());
                tokens.extend(row.block.iter().copied().chain(draft.iter().copied()).chain(padding));
            }
            let contexts: Vec<_> = open.iter().map(|index| &rows[*index].context).collect();
            let window = RowContext::windows(&contexts);
            let logits = Logits::read(self.model.decode_whole(window, &tokens, known)).await; // [open, length - known, vocab_size]
            self.counters.verifications += 1;
            for (place, &index) in open.iter().enumerate() {
                let tokens = &tokens[place * (length - 1)..(place + 1) * (length - 1)];
                let logits = |at: usize| logits.row(place * (length - known) + at - known);
                self.counters.drafted += drafted[place] as u64;
                match verify(&mut rows[index], tokens, drafted[place], logits) {
                    Ok(accepted) => self.counters.accepted += accepted as u64,
                    Err(error) => failed.push((index, error)),
                }
            }
        }
    }

    /// Gives out what rows have drawn, ends those that are done, and takes the blocks of the others in.
    fn settle(&mut self, rows: Vec<Row>, failed: Vec<(usize, GenerateError)>) {
        let failed: Vec<_> = failed.into_iter().map(|(index, error)| (rows[index].id, error)).collect();
        let mut going_on = Vec::new();
        for mut row in rows {
            if let Some(job) = self.jobs.get_mut(&row.id) {
                job.usage.generated_tokens += row.generated - row.reported;
            }
            row.reported = row.generated;
            if !row.request.is_ranked() {
                let id = row.id;
                self.events.extend(row.events.drain(..).map(|token| (id, Event::Token(token))));
            }
            match row.finish {
                Some(reason) => {
                    self.close(row.kv);
                    self.finish_sample(row.id, row.into_sample(reason));
                }
                None => going_on.push(row),
            }
        }
        self.running = going_on;
        for (id, error) in failed {
            self.fail(id, error);
        }
        let mut rows = std::mem::take(&mut self.running);
        let sequences: Vec<SequenceId> = rows.iter().map(|row| row.kv).collect();
        let blocks: Vec<u32> = rows.iter_mut().flat_map(|row| std::mem::take(&mut row.block)).collect();
        if rows.is_empty() {
            return;
        }
        let contexts: Vec<_> = rows.iter().map(|row| &row.context).collect();
        let taken_in = self.take_in_blocks(&sequences, &blocks, &contexts, When::IfOften);
        match taken_in {
            Ok(contexts) => {
                rows.iter_mut().zip(contexts).for_each(|(row, context)| row.context = context);
                let length = self.limits.layout.block_length;
                let mut failed = Vec::new();
                for (row, block) in rows.iter_mut().zip(blocks.chunks_exact(length)) {
                    // Only a page that is full is published: an error is a fault of the engine.
                    failed.extend(self.publish_generated(row, block).err().map(|error| (row.id, error)));
                }
                self.running = rows;
                failed.into_iter().for_each(|(id, error)| self.fail(id, error));
            }
            Err(GenerateError::CacheLost { reason }) => {
                self.running = rows;
                self.lose_all(&reason);
            }
            Err(error) => {
                // The pool has promised room for every block, so this is a fault of the engine: nothing goes on.
                let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
                self.running = rows;
                ids.into_iter().for_each(|id| self.fail(id, error.clone()));
            }
        }
    }

    /// Takes in one block of each sequence behind its context.
    pub(super) fn take_in_blocks(
        &mut self,
        sequences: &[SequenceId],
        blocks: &[u32],
        contexts: &[&RowContext],
        when: When,
    ) -> Result<impl Iterator<Item = RowContext> + use<M>, GenerateError> {
        let mut batch = self.pool.batch(sequences, self.limits.positions_per_block)?;
        let device = &self.device;
        if let Some(recorded) = &mut self.recorded {
            match recorded.take_in(&self.model, &batch, blocks, device, when) {
                Ok(Some(window)) => {
                    self.counters.repeated += 1;
                    batch.commit();
                    return Ok(RowContext::each(Context { window, recent: None }));
                }
                Ok(None) => {}
                Err(Lost(reason)) => return Err(GenerateError::CacheLost { reason }),
            }
        }
        let n_blocks = &vec![1; sequences.len()];
        let blocks = Blocks { ids: blocks, real: None, n_blocks, begin: false, device };
        let context = self.model.take_in(blocks, Some(RowContext::join(contexts)), &mut batch);
        batch.commit();
        Ok(RowContext::each(context))
    }
}

/// Draws tokens from their logits as long as the tokens given to the model were those that are drawn: how many of the
/// draft were.
fn verify<'a>(
    row: &mut Row,
    tokens: &[u32],
    drafted: usize,
    logits: impl Fn(usize) -> &'a [f32],
) -> Result<usize, GenerateError> {
    let known = row.block.len();
    loop {
        let place = row.block.len();
        row.advance(logits(place))?;
        let was_drafted = place < known + drafted;
        if row.finish.is_some() || row.block.len() > tokens.len() || !was_drafted || row.block[place] != tokens[place] {
            let matched = was_drafted && row.block.get(place) == tokens.get(place);
            return Ok(place - known + usize::from(matched));
        }
    }
}
