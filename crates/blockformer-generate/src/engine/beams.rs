//! Beam search.

use std::sync::Arc;

use blockformer_kv_cache::SequenceId;

use super::context::RowContext;
use super::decode::Logits;
use super::job::Sample;
use super::recorded::When;
use super::{Engine, RequestId};
use crate::paged::PagedModel;
use crate::sampler::{Sampler, TokenLogprobs, top_logprobs};
use crate::{FinishReason, GenerateError, Request, TokenEvent};

/// What a beam has drawn: each token and, if they were asked for, its log probabilities.
type Drawn = Vec<(u32, Option<TokenLogprobs>)>;

/// A sequence of a search, at a block boundary.
#[derive(Debug)]
pub(super) struct Beam {
    pub(super) kv: SequenceId,
    pub(super) context: RowContext,
}

/// A sequence of a search, within a block.
#[derive(Debug, Clone)]
struct Hypothesis {
    /// The beam that it goes on from.
    origin: usize,
    sampler: Sampler,
    block: Vec<u32>,
    drawn: Drawn,
    logprob: f64,
}

/// The search of one request.
#[derive(Debug)]
pub(super) struct BeamSearch {
    pub(super) id: RequestId,
    request: Arc<Request>,
    capacity: usize,
    /// Pages of a sequence that it cannot share with the others.
    own_pages: usize,
    beams: Vec<Beam>,
    hypotheses: Vec<Hypothesis>,
    ended: Vec<(Hypothesis, FinishReason)>,
}

impl BeamSearch {
    pub(super) fn new(
        id: RequestId,
        request: Arc<Request>,
        first: Beam,
        rest: Vec<u32>,
        (capacity, own_pages): (usize, usize),
    ) -> Self {
        let sampler = Sampler::new(request.sampling.clone(), 0, &request.prompt).with_hook(request.hook.clone());
        let hypotheses = vec![Hypothesis { origin: 0, sampler, block: rest, drawn: Vec::new(), logprob: 0.0 }];
        Self { id, request, capacity, own_pages, beams: vec![first], hypotheses, ended: Vec::new() }
    }

    pub(super) fn width(&self) -> usize {
        self.request.width()
    }

    pub(super) fn sequences(&self) -> impl Iterator<Item = SequenceId> {
        self.beams.iter().map(|beam| beam.kv)
    }

    fn is_over(&self) -> bool {
        self.hypotheses.is_empty() || self.ended.len() >= self.width()
    }

    /// Goes on by one token: the likeliest continuations of all hypotheses together.
    fn advance(&mut self, logits: &Logits) -> Result<(), GenerateError> {
        let (width, stops) = (self.width(), &self.request.stop_tokens);
        let mut candidates = Vec::new(); // (log probability, hypothesis, token)
        for (index, hypothesis) in self.hypotheses.iter().enumerate() {
            let logits = logits.row(index);
            if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
                return Err(GenerateError::NotANumber);
            }
            let mut own = Vec::new();
            let adjusted = hypothesis.sampler.adjusted(logits, &mut own).unwrap_or(logits);
            let top = top_logprobs(adjusted, (width + stops.len()).min(adjusted.len()));
            let allowed = top.into_iter().filter(|(_, logprob)| logprob.is_finite());
            candidates.extend(allowed.map(|(token, logprob)| (hypothesis.logprob + f64::from(logprob), index, token)));
        }
        if candidates.is_empty() {
            return Err(GenerateError::NothingAllowed);
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let mut next = Vec::with_capacity(width);
        for (logprob, index, token) in candidates {
            if next.len() == width {
                break;
            }
            let mut hypothesis = Hypothesis { logprob, ..self.hypotheses[index].clone() };
            if stops.contains(&token) {
                self.ended.push((hypothesis, FinishReason::Stop));
                continue;
            }
            let logprobs = self.request.logprobs.map(|n| TokenLogprobs::new(logits.row(index), token, n));
            hypothesis.sampler.push(token);
            hypothesis.block.push(token);
            hypothesis.drawn.push((token, logprobs));
            next.push(hypothesis);
        }
        self.hypotheses = next;
        if self.hypotheses.first().is_some_and(|first| first.drawn.len() == self.request.max_new_tokens) {
            let all = std::mem::take(&mut self.hypotheses);
            self.ended.extend(all.into_iter().map(|hypothesis| (hypothesis, FinishReason::Length)));
        }
        Ok(())
    }
}

impl<M: PagedModel> Engine<M> {
    /// Decodes a block of every search.
    pub(super) async fn search(&mut self) {
        for mut search in std::mem::take(&mut self.searches) {
            let id = search.id;
            let going_on = self.search_block(&mut search).await.and_then(|()| {
                if search.is_over() { Ok(false) } else { self.take_in_beams(&mut search).map(|()| true) }
            });
            match going_on {
                Ok(true) => self.searches.push(search),
                Ok(false) => self.end_search(search),
                Err(error) => {
                    search.sequences().for_each(|kv| self.close(kv));
                    self.fail(id, error);
                }
            }
        }
    }

    async fn search_block(&mut self, search: &mut BeamSearch) -> Result<(), GenerateError> {
        while !search.is_over() && search.hypotheses[0].block.len() < self.limits.layout.block_length {
            let known = search.hypotheses[0].block.len();
            let contexts: Vec<_> = search.hypotheses.iter().map(|h| &search.beams[h.origin].context).collect();
            let window = RowContext::windows(&contexts);
            let tokens: Vec<u32> = search.hypotheses.iter().flat_map(|h| h.block.iter().copied()).collect();
            let logits = Logits::read(self.model.decode_whole(window, &tokens, known)).await;
            search.advance(&logits)?;
            self.counters.generated += search.hypotheses.len() as u64;
            if let Some(job) = self.jobs.get_mut(&search.id) {
                job.usage.generated_tokens += search.hypotheses.len();
            }
        }
        Ok(())
    }

    /// A sequence for each hypothesis: the first that goes on from a beam has its sequence, the others forks of it.
    fn take_in_beams(&mut self, search: &mut BeamSearch) -> Result<(), GenerateError> {
        let job = self.jobs.get_mut(&search.id);
        if let Some(reserve) = job.and_then(|job| job.reserve.take()) {
            self.close(reserve);
        }
        let old = std::mem::take(&mut search.beams);
        let mut taken = vec![false; old.len()];
        for (index, beam) in old.iter().enumerate() {
            if !search.hypotheses.iter().any(|hypothesis| hypothesis.origin == index) {
                self.close(beam.kv);
            }
        }
        for hypothesis in &search.hypotheses {
            let Beam { kv, context } = &old[hypothesis.origin];
            let first = !std::mem::replace(&mut taken[hypothesis.origin], true);
            let kv = if first { Ok(*kv) } else { self.pool.fork(*kv, search.capacity) };
            match kv {
                Ok(kv) => search.beams.push(Beam { kv, context: context.clone() }),
                Err(error) => {
                    let left = |(index, _): &(usize, &Beam)| {
                        !taken[*index] && search.hypotheses.iter().any(|hypothesis| hypothesis.origin == *index)
                    };
                    old.iter().enumerate().filter(left).for_each(|(_, beam)| self.close(beam.kv));
                    return Err(error.into());
                }
            }
        }
        let sequences: Vec<SequenceId> = search.sequences().collect();
        let blocks: Vec<u32> = search.hypotheses.iter_mut().flat_map(|h| std::mem::take(&mut h.block)).collect();
        let contexts: Vec<_> = search.beams.iter().map(|beam| &beam.context).collect();
        let contexts = self.take_in_blocks(&sequences, &blocks, &contexts, When::Never)?;
        search.beams.iter_mut().zip(contexts).for_each(|(beam, context)| beam.context = context);
        search.hypotheses.iter_mut().enumerate().for_each(|(index, hypothesis)| hypothesis.origin = index);
        // Pages for beams that are still to come, and one a beam for the copies of the next block.
        let pages = search.width() + (search.width() - search.beams.len()) * search.own_pages;
        let reserve = self.pool.open(pages * self.pool.config().page_length)?;
        if let Some(job) = self.jobs.get_mut(&search.id) {
            job.reserve = Some(reserve);
        }
        Ok(())
    }

    fn end_search(&mut self, mut search: BeamSearch) {
        search.sequences().for_each(|kv| self.close(kv));
        let open = std::mem::take(&mut search.hypotheses).into_iter().map(|h| (h, FinishReason::Length));
        let mut ended = std::mem::take(&mut search.ended);
        if ended.len() < search.width() {
            ended.extend(open);
        }
        let score = |h: &Hypothesis| h.logprob / h.drawn.len().max(1) as f64;
        ended.sort_by(|a, b| score(&b.0).total_cmp(&score(&a.0)));
        ended.truncate(search.width());
        // A vocabulary of which less is allowed than there are beams gives fewer sequences.
        if let Some(job) = self.jobs.get_mut(&search.id) {
            job.finished = search.width() - ended.len();
        }
        for (index, (hypothesis, reason)) in ended.into_iter().enumerate() {
            match self.sample_of(&search.request, index, hypothesis, reason) {
                Ok(sample) => self.finish_sample(search.id, sample),
                Err(error) => return self.fail(search.id, error),
            }
        }
    }

    fn sample_of(
        &self,
        request: &Request,
        index: usize,
        hypothesis: Hypothesis,
        reason: FinishReason,
    ) -> Result<Sample, GenerateError> {
        let mut stream = self.text_stream(request);
        let (mut events, mut tail) = (Vec::new(), String::new());
        let counted = hypothesis.drawn.len();
        for (token, logprobs) in hypothesis.drawn {
            let text =
                stream.as_mut().map_or(Ok(String::new()), |stream| stream.push(token).map(|piece| piece.text))?;
            events.push(TokenEvent { sample: index, token, text, logprobs });
        }
        if let Some(stream) = &mut stream {
            tail = stream.finish()?.text;
        }
        Ok(Sample { index, events, reason, text: tail, logprob: hypothesis.logprob, counted })
    }
}
