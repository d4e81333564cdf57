//! Models, and what the engine gives without a service.

use std::sync::{Mutex, OnceLock};

use blockformer::data::{Tokenizer, TokenizerTraining};
use blockformer::generate::{Blocks, Completion, Context, Engine, EngineConfig, PagedModel, Request, Sampling};
use blockformer::kv_cache::{KvStorage, PagedBatch, PoolConfig};
use blockformer::model::{AnyModel, BlockLayout, BlockTransformer, ModelConfig, presets};
use burn::tensor::{Device, Tensor};

fn device() -> Device {
    blockformer::device("cpu").unwrap()
}

fn settings() -> EngineConfig {
    EngineConfig { kv_budget: 32 << 20, page_blocks: 4, ..EngineConfig::default() }
}

/// The bundled model, read once.
fn opened() -> (ModelConfig, AnyModel, Tokenizer) {
    static OPENED: OnceLock<Mutex<(ModelConfig, AnyModel, Tokenizer)>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| Mutex::new(blockformer::bundled::load(&device()).unwrap()));
    opened.lock().unwrap().clone()
}

pub(crate) fn bundled() -> (ModelConfig, Engine<AnyModel>, Tokenizer) {
    let (config, model, tokenizer) = opened();
    (config, Engine::new(model, settings(), &device()).unwrap(), tokenizer)
}

/// What the bundled model gives in an engine of its own.
pub(crate) fn alone(request: Request) -> Completion {
    let (config, engine, tokenizer) = bundled();
    let mut engine = engine.with_tokenizer(tokenizer);
    engine.submit(request.with_stop_tokens(config.eos_token_id().into_iter().collect::<Vec<_>>())).unwrap();
    let mut events = Vec::new();
    engine.run(|_, event| events.push(event));
    Completion::from_events(events).unwrap()
}

/// A request of the bundled model.
pub(crate) fn request(prompt: &str, max_new_tokens: usize, temperature: f64, seed: u64) -> Request {
    let (_, _, tokenizer) = opened();
    let sampling = Sampling { temperature, seed, ..Sampling::default() };
    Request::new(tokenizer.encode(prompt).unwrap()).with_max_new_tokens(max_new_tokens).with_sampling(sampling)
}

/// A toy with random weights that does something before it decodes a block.
pub(crate) struct Hooked<F> {
    model: BlockTransformer,
    before_block: F,
}

/// An engine of such a toy, with a tokenizer of bytes.
pub(crate) fn hooked<F: Fn() + Send + 'static>(
    config: EngineConfig,
    before_block: F,
) -> (Engine<Hooked<F>>, Tokenizer) {
    let tokenizer = TokenizerTraining::new(257).train_byte_level_bpe(["text"].into_iter()).unwrap();
    let mut toy = presets::block("block_main_b4_5").unwrap();
    (toy.vocab_size, toy.block_decoder.n_layers) = (257, 1);
    let model = Hooked { model: toy.init(&device()).unwrap(), before_block };
    (Engine::new(model, EngineConfig { kv_budget: 32 << 20, ..config }, &device()).unwrap(), tokenizer)
}

impl<F: Fn()> PagedModel for Hooked<F> {
    type Block = <BlockTransformer as PagedModel>::Block;

    fn layout(&self) -> BlockLayout {
        self.model.layout()
    }
    fn pool_config(&self, page_blocks: usize, budget: usize, storage: KvStorage) -> PoolConfig {
        self.model.pool_config(page_blocks, budget, storage)
    }
    fn positions_per_block(&self) -> usize {
        self.model.positions_per_block()
    }
    fn context_blocks(&self) -> usize {
        self.model.context_blocks()
    }
    fn block_bytes(&self, device: &Device) -> usize {
        self.model.block_bytes(device)
    }
    fn take_in(&self, blocks: Blocks<'_>, before: Option<Context>, batch: &mut PagedBatch<'_>) -> Context {
        self.model.take_in(blocks, before, batch)
    }
    fn begin_blocks(&self, window: Tensor<3>) -> (Self::Block, Tensor<2>) {
        (self.before_block)();
        self.model.begin_blocks(window)
    }
    fn step(&self, block: &mut Self::Block, tokens: &[u32], device: &Device) -> Tensor<2> {
        self.model.step(block, tokens, device)
    }
    fn decode_whole(&self, window: Tensor<3>, tokens: &[u32], known: usize) -> Tensor<3> {
        self.model.decode_whole(window, tokens, known)
    }
    fn teacher_forced(&self, blocks: Blocks<'_>, from: usize) -> Tensor<2> {
        self.model.teacher_forced(blocks, from)
    }
    fn context_embeddings(&self, blocks: Blocks<'_>) -> Tensor<2> {
        self.model.context_embeddings(blocks)
    }
}
