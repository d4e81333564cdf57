//! From waiting requests to running sequences.

use std::sync::Arc;

use blockformer_kv_cache::SequenceId;
use blockformer_model::BlockLayout;

use super::beams::{Beam, BeamSearch};
use super::context::RowContext;
use super::job::{Prefill, Row};
use super::{Engine, RequestId};
use crate::paged::{Blocks, PagedModel};
use crate::sampler::Sampler;
use crate::text::TextStream;
use crate::{Alignment, GenerateError, Request};

/// Units of a prompt that are taken in next, up to `end`.
struct Piece {
    prefill: Prefill,
    end: usize,
}

/// What a sequence begins to decode with, see [`Row`].
struct Held {
    kv: SequenceId,
    context: RowContext,
    unpublished: Option<Vec<Vec<u32>>>,
    /// The rest of the prompt, behind its whole blocks.
    rest: Vec<u32>,
}

/// What is the same of prompts that are taken in together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Kind {
    /// Whether they begin with a learned start.
    begin: bool,
    /// Whether there are contexts before them that later windows need.
    has_recent: bool,
}

impl Kind {
    fn of(prefill: &Prefill, layout: &BlockLayout) -> Self {
        Self {
            begin: layout.predict_first_block && prefill.done == 0,
            has_recent: prefill.context.as_ref().is_some_and(RowContext::has_recent),
        }
    }
}

impl<M: PagedModel> Engine<M> {
    /// Admits requests in the order in which they came, as long as there is room for the next.
    pub(super) fn admit(&mut self) {
        while let Some(&id) = self.waiting.front() {
            let width = self.jobs.get(&id).map_or(0, |job| job.request.width());
            if self.width() + width > self.config.max_batch || !self.open(id) {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Sequences that have been admitted.
    fn width(&self) -> usize {
        let width = |prefill: &Prefill| self.jobs.get(&prefill.id).map_or(0, |job| job.request.width());
        let prefilling: usize = self.prefilling.iter().map(width).sum();
        prefilling + self.running.len() + self.searches.iter().map(BeamSearch::width).sum::<usize>()
    }

    /// Gives a request its pages; false if there are not enough now.
    fn open(&mut self, id: RequestId) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else { return true };
        let contents = job.prompt.contents(&self.limits.layout);
        let page_blocks = self.config.page_blocks;
        // The last contexts are needed anew: no page keeps them.
        let reusable = contents.len().saturating_sub(self.limits.context_blocks) / page_blocks;
        let reusable = if self.config.reuse_prefixes { reusable } else { 0 };
        let pages: Vec<Vec<u32>> = contents.chunks_exact(page_blocks).take(reusable).map(<[_]>::concat).collect();
        let pages: Vec<&[u32]> = pages.iter().map(Vec::as_slice).collect();
        let capacity = self.limits.capacity(&job.request, &job.prompt);
        let Ok((kv, reused)) = self.pool.open_with_prefix(capacity, &pages) else { return false };
        let reserved = self.limits.reserved_pages(&job.request, &job.prompt);
        if reserved > 0 {
            match self.pool.open(reserved * self.pool.config().page_length) {
                Ok(reserve) => job.reserve = Some(reserve),
                Err(_) => {
                    self.close(kv);
                    return false;
                }
            }
        }
        let done = reused / self.limits.positions_per_block;
        let start = usize::from(self.limits.layout.predict_first_block);
        let blocks = done.saturating_sub(start);
        let reused_ids = &job.prompt.real[..blocks * self.limits.layout.block_length];
        job.usage.reused_tokens = reused_ids.iter().filter(|real| **real).count();
        self.prefilling.push_back(Prefill { id, kv, contents, done, context: None });
        true
    }

    /// Takes in blocks of prompts, the oldest first, up to the limit of a round: those that are alike together.
    pub(super) fn prefill(&mut self) {
        let mut budget = self.config.prefill_blocks;
        while budget > 0 {
            let mut pieces: Vec<Piece> = Vec::new();
            let alike = |a: &Prefill, b: &Prefill| Kind::of(a, &self.limits.layout) == Kind::of(b, &self.limits.layout);
            while budget > 0
                && let Some(prefill) =
                    self.prefilling.pop_front_if(|next| pieces.first().is_none_or(|piece| alike(&piece.prefill, next)))
            {
                let end = self.chunk_end(&prefill, budget);
                // Where one is cut, less than a page is left, and nobody overtakes it.
                let is_cut = end < prefill.contents.len();
                budget = if is_cut { 0 } else { budget.saturating_sub(end - prefill.done) };
                pieces.push(Piece { prefill, end });
            }
            if pieces.is_empty() {
                return;
            }
            // The pool has promised room for every prompt: an error is a fault of the engine.
            let taken_in = self.take_in_prompts(&mut pieces);
            for Piece { prefill, end } in pieces {
                let published = taken_in.clone().and_then(|()| self.publish(&prefill));
                if let Err(error) = published {
                    self.close(prefill.kv);
                    self.fail(prefill.id, error);
                } else if end < prefill.contents.len() {
                    self.prefilling.push_front(prefill); // the last one
                } else if let Err((id, error)) = self.start(prefill) {
                    self.fail(id, error);
                }
            }
        }
    }

    /// The unit up to which a prompt is taken in next. Prompts are cut at page boundaries only, which makes the numbers
    /// independent of where they are cut.
    fn chunk_end(&self, prefill: &Prefill, budget: usize) -> usize {
        let (total, page) = (prefill.contents.len(), self.config.page_blocks);
        let end = prefill.done + budget;
        if end >= total {
            return total;
        }
        (end / page * page).max((prefill.done / page + 1) * page).min(total)
    }

    /// Takes in pieces of one kind, at least one.
    fn take_in_prompts(&mut self, pieces: &mut [Piece]) -> Result<(), GenerateError> {
        let layout = &self.limits.layout;
        let start = usize::from(layout.predict_first_block);
        let (mut ids, mut real, mut n_blocks) = (Vec::new(), Vec::new(), Vec::with_capacity(pieces.len()));
        for Piece { prefill, end } in pieces.iter() {
            let blocks = prefill.done.saturating_sub(start)..end - start;
            let tokens = blocks.start * layout.block_length..blocks.end * layout.block_length;
            let Some(job) = self.jobs.get(&prefill.id) else {
                unreachable!("what has ended is taken out of all lists")
            };
            ids.extend_from_slice(&job.prompt.ids[tokens.clone()]);
            real.extend_from_slice(&job.prompt.real[tokens]);
            n_blocks.push(blocks.len());
        }
        let Kind { begin, has_recent } = Kind::of(&pieces[0].prefill, layout);
        let contexts: Vec<_> = pieces.iter().filter_map(|piece| piece.prefill.context.as_ref()).collect();
        let before = has_recent.then(|| RowContext::join(&contexts));
        let blocks = Blocks { ids: &ids, real: Some(&real), n_blocks: &n_blocks, begin, device: &self.device };
        let positions =
            |Piece { prefill, end }: &Piece| (prefill.kv, (end - prefill.done) * self.limits.positions_per_block);
        let sequences: Vec<_> = pieces.iter().map(positions).collect();
        let mut batch = self.pool.ragged_batch(&sequences)?;
        let context = self.model.take_in(blocks, before, &mut batch);
        batch.commit();
        for (Piece { prefill, end }, context) in pieces.iter_mut().zip(RowContext::each(context)) {
            (prefill.context, prefill.done) = (Some(context), *end);
        }
        Ok(())
    }

    /// Lets other prompts begin with the pages that this one has filled.
    fn publish(&mut self, prefill: &Prefill) -> Result<(), GenerateError> {
        if self.config.reuse_prefixes {
            let full = prefill.done / self.config.page_blocks;
            let pages = prefill.contents.chunks_exact(self.config.page_blocks).take(full);
            for content in pages.skip(self.pool.published(prefill.kv)?) {
                self.pool.publish(prefill.kv, &content.concat())?;
            }
        }
        Ok(())
    }

    /// Whether blocks that were generated are offered to prompts.
    fn reuses_generated(&self) -> bool {
        let stays = self.config.alignment == Alignment::ForceRest || self.limits.layout.block_length == 1;
        let reuses = self.config.reuse_generated.unwrap_or_else(|| stays && self.model.takes_in_alike());
        self.config.reuse_prefixes && reuses
    }

    /// Lets prompts begin with a page that a row has filled, if a block that it has taken in was the last of one.
    pub(super) fn publish_generated(&mut self, row: &mut Row, block: &[u32]) -> Result<(), GenerateError> {
        let Some(units) = &mut row.unpublished else { return Ok(()) };
        units.push(block.to_vec());
        if units.len() == self.config.page_blocks {
            self.pool.publish(row.kv, &std::mem::take(units).concat())?;
        }
        Ok(())
    }

    /// Begins to decode: one sequence a sample, which share the prompt's pages.
    fn start(&mut self, prefill: Prefill) -> Result<(), (RequestId, GenerateError)> {
        let Prefill { id, kv, context, contents, .. } = prefill;
        let behind = contents.chunks_exact(self.config.page_blocks).remainder();
        let unpublished = self.reuses_generated().then(|| behind.to_vec());
        let (Some(job), Some(context)) = (self.jobs.get_mut(&id), context) else { return Ok(()) };
        let (request, rest) = (Arc::clone(&job.request), job.prompt.rest.clone());
        let capacity = self.limits.capacity(&request, &job.prompt);
        if request.beams.is_some() {
            let own_pages = self.limits.own_pages(&request, &job.prompt);
            let beam = Beam { kv, context };
            self.searches.push(BeamSearch::new(id, request, beam, rest, (capacity, own_pages)));
            return Ok(());
        }
        if let Some(reserve) = job.reserve.take() {
            self.close(reserve);
        }
        let mut sequences = vec![kv];
        for _ in 1..request.width() {
            match self.pool.fork(kv, capacity) {
                Ok(fork) => sequences.push(fork),
                Err(error) => {
                    sequences.into_iter().for_each(|kv| self.close(kv));
                    return Err((id, error.into()));
                }
            }
        }
        for (sample, kv) in sequences.into_iter().enumerate() {
            let held = Held { kv, context: context.clone(), unpublished: unpublished.clone(), rest: rest.clone() };
            let row = self.row(id, sample, &request, held);
            self.running.push(row);
        }
        Ok(())
    }

    fn row(&self, id: RequestId, sample: usize, request: &Arc<Request>, held: Held) -> Row {
        let Held { kv, context, unpublished, rest } = held;
        let sampler = Sampler::new(request.sampling.clone(), sample, &request.prompt).with_hook(request.hook.clone());
        Row {
            id,
            sample,
            request: Arc::clone(request),
            kv,
            context,
            sampler,
            unpublished,
            block: rest,
            text: self.text_stream(request),
            generated: 0,
            reported: 0,
            logprob: 0.0,
            counted: 0,
            finish: None,
            events: Vec::new(),
            tail: String::new(),
        }
    }

    pub(super) fn text_stream(&self, request: &Request) -> Option<TextStream> {
        let tokenizer = self.tokenizer.as_ref()?;
        Some(TextStream::new(Arc::clone(tokenizer), request.stop_strings.clone()))
    }
}
