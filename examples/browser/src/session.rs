//! A model that continues one prompt at a time.

use std::sync::Arc;

use blockformer_data::Tokenizer;
use blockformer_generate::{Alignment, Engine, EngineConfig, Event, FinishReason, PagedModel, Request, RequestId};
use blockformer_kv_cache::KvStorage;
use blockformer_model::{BlockLayout, ModelConfig};
use burn::tensor::Device;
use serde::Serialize;

use crate::{Options, SessionError};

/// Blocks a page of keys and values.
const PAGE_BLOCKS: usize = 16;

/// What a model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Tokens a block.
    pub block_length: usize,
    /// The context in tokens, prompt and new ones together.
    pub max_length: usize,
    /// Whether an empty prompt can be continued.
    pub continues_empty_prompts: bool,
}

/// Text of one token, or of several where they make up one character.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// The block of the token that completed it, the prompt's first being 0.
    pub block: usize,
}

/// What one step has given: the tokens of one block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Step {
    /// Their text.
    pub pieces: Vec<Piece>,
    /// How many there are.
    pub tokens: usize,
    /// Why there are no more, once there are none: `stop`, `length` or `cancelled`.
    pub finish: Option<&'static str>,
}

/// A model with its tokenizer, and the prompt that it is continuing.
#[derive(Debug)]
pub struct Session<M: PagedModel> {
    engine: Engine<M>,
    tokenizer: Arc<Tokenizer>,
    layout: BlockLayout,
    alignment: Alignment,
    stop_tokens: Vec<u32>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    request: RequestId,
    /// Place of the next token, padding included.
    place: usize,
}

impl<M: PagedModel> Session<M> {
    /// Allocates keys and values for one context.
    ///
    /// # Errors
    /// [`SessionError::Vocabulary`] if the tokenizer is not the model's.
    pub fn new(config: &ModelConfig, model: M, tokenizer: Tokenizer, device: &Device) -> Result<Self, SessionError> {
        let layout = model.layout();
        let known = tokenizer.max_token_id().map_or(0, |id| id as usize + 1);
        if known > layout.vocab_size {
            return Err(SessionError::Vocabulary { tokenizer: known, model: layout.vocab_size });
        }
        let alignment = Alignment::of(config);
        let blocks = layout.n_blocks(layout.max_length) + usize::from(layout.predict_first_block);
        let pool = model.pool_config(PAGE_BLOCKS, 0, KvStorage::Float32);
        let kv_budget = pool.pages_of(blocks * model.positions_per_block()) * pool.page_bytes();
        let engine_config =
            EngineConfig { kv_budget, page_blocks: PAGE_BLOCKS, max_batch: 1, alignment, ..EngineConfig::default() };
        let tokenizer = Arc::new(tokenizer);
        let engine = Engine::new(model, engine_config, device)?.with_tokenizer(Arc::clone(&tokenizer));
        let stop_tokens = config.eos_token_id().into_iter().collect();
        Ok(Self { engine, tokenizer, layout, alignment, stop_tokens, running: None })
    }

    /// What the model is.
    pub fn description(&self) -> Description {
        let BlockLayout { block_length, max_length, predict_first_block, .. } = self.layout;
        Description { block_length, max_length, continues_empty_prompts: predict_first_block }
    }

    /// Takes a prompt to go on from, and returns it in blocks. What comes of it comes from [`step`](Self::step).
    ///
    /// # Errors
    /// A [`SessionError`] if it cannot be continued, or if another one is being continued.
    pub fn start(&mut self, prompt: &str, options: &Options) -> Result<Vec<Piece>, SessionError> {
        if self.running.is_some() {
            return Err(SessionError::Busy);
        }
        let ids = self.tokenizer.encode(prompt)?;
        let padding = self.alignment.padding(ids.len(), &self.layout);
        let pieces = self.pieces(&ids, padding)?;
        let place = padding + ids.len();
        let request = Request::new(ids)
            .with_max_new_tokens(options.max_new_tokens)
            .with_sampling(options.sampling())
            .with_stop_tokens(self.stop_tokens.clone());
        self.running = Some(Running { request: self.engine.submit(request)?, place });
        Ok(pieces)
    }

    fn pieces(&self, ids: &[u32], padding: usize) -> Result<Vec<Piece>, SessionError> {
        let block = |index: usize| (padding + index) / self.layout.block_length;
        let mut stream = self.tokenizer.decode_stream();
        let mut pieces = Vec::with_capacity(ids.len());
        for (index, id) in ids.iter().enumerate() {
            pieces.extend(stream.push(*id)?.map(|text| Piece { text, block: block(index) }));
        }
        pieces.extend(stream.finish()?.map(|text| Piece { text, block: block(ids.len().saturating_sub(1)) }));
        Ok(pieces)
    }

    /// The tokens of the next block; with the first, the prompt is taken in. Nothing, if nothing is being continued.
    ///
    /// # Errors
    /// [`SessionError::Generate`] if the model failed; the prompt is given up then.
    pub async fn step(&mut self) -> Result<Step, SessionError> {
        if self.running.is_none() {
            return Ok(Step::default());
        }
        let events = self.engine.step_async().await;
        self.gather(events)
    }

    /// Gives up the prompt that is being continued: the text that was held back, if any.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn stop(&mut self) -> Result<Step, SessionError> {
        let Some(Running { request, .. }) = self.running else { return Ok(Step::default()) };
        self.engine.cancel(request);
        let mut events = Vec::new();
        self.engine.run(|id, event| events.push((id, event)));
        self.gather(events)
    }

    fn gather(&mut self, events: Vec<(RequestId, Event)>) -> Result<Step, SessionError> {
        let mut step = Step::default();
        for (_, event) in events {
            let Some(running) = &mut self.running else { break };
            let last = running.place.saturating_sub(1) / self.layout.block_length;
            match event {
                Event::Token(token) => {
                    let block = running.place / self.layout.block_length;
                    step.push(token.text, block);
                    step.tokens += 1;
                    running.place += 1;
                }
                Event::Finished { reason, text, .. } => {
                    step.push(text, last);
                    step.finish = Some(name(reason));
                }
                Event::Done(_) => self.running = None,
                Event::Failed(error) => {
                    self.running = None;
                    return Err(error.into());
                }
            }
        }
        Ok(step)
    }
}

impl Step {
    fn push(&mut self, text: String, block: usize) {
        if !text.is_empty() {
            self.pieces.push(Piece { text, block });
        }
    }
}

fn name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}
