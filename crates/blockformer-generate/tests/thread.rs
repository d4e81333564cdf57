//! The engine in a thread: what it takes and refuses, and what its streams say when it ends.

mod models;

use std::pin::pin;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Waker};

use blockformer_generate::{
    Blocks, Engine, EngineConfig, EngineThread, EventStream, GenerateError, LogitsHook, PagedModel, Request,
};
use blockformer_kv_cache::{KvStorage, PagedBatch, PoolConfig};
use blockformer_model::{BlockLayout, BlockTransformer};
use burn::tensor::{Device, Tensor};
use models::block_model;

/// A model that panics as soon as it is to decode.
struct Panicking(BlockTransformer);

impl PagedModel for Panicking {
    type Block = <BlockTransformer as PagedModel>::Block;

    fn layout(&self) -> BlockLayout {
        self.0.layout()
    }
    fn pool_config(&self, page_blocks: usize, budget: usize, storage: KvStorage) -> PoolConfig {
        self.0.pool_config(page_blocks, budget, storage)
    }
    fn positions_per_block(&self) -> usize {
        self.0.positions_per_block()
    }
    fn context_blocks(&self) -> usize {
        self.0.context_blocks()
    }
    fn block_bytes(&self, device: &Device) -> usize {
        self.0.block_bytes(device)
    }
    fn take_in(
        &self,
        blocks: Blocks<'_>,
        before: Option<blockformer_generate::Context>,
        batch: &mut PagedBatch<'_>,
    ) -> blockformer_generate::Context {
        self.0.take_in(blocks, before, batch)
    }
    fn begin_blocks(&self, _window: Tensor<3>) -> (Self::Block, Tensor<2>) {
        panic!("this model cannot decode")
    }
    fn step(&self, block: &mut Self::Block, tokens: &[u32], device: &Device) -> Tensor<2> {
        self.0.step(block, tokens, device)
    }
    fn decode_whole(&self, window: Tensor<3>, tokens: &[u32], known: usize) -> Tensor<3> {
        self.0.decode_whole(window, tokens, known)
    }
    fn teacher_forced(&self, blocks: Blocks<'_>, from: usize) -> Tensor<2> {
        self.0.teacher_forced(blocks, from)
    }
    fn context_embeddings(&self, blocks: Blocks<'_>) -> Tensor<2> {
        self.0.context_embeddings(blocks)
    }
}

fn request() -> Request {
    Request::new([1, 2, 3, 4, 5]).with_max_new_tokens(6)
}

/// Waits for the engine's answer to a submission.
fn answer(stream: &mut EventStream) -> Result<(), GenerateError> {
    let mut accepted = pin!(stream.accepted());
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(answer) = accepted.as_mut().poll(&mut context) {
            return answer;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_stream_says_whether_the_engine_took_its_request() {
    // The first request holds the engine up until the others have been submitted, so that they come in one round.
    let ((reach, reached), (go_on, wait)) = (channel::<()>(), channel::<()>());
    let ends = Mutex::new((reach, wait));
    let hook = LogitsHook::new(move |_, _| {
        let (reach, wait) = &*ends.lock().unwrap();
        let (_told, _closed) = (reach.send(()), wait.recv());
    });
    let config = EngineConfig { max_waiting: 2, ..EngineConfig::default() };
    let engine = EngineThread::spawn(Engine::new(block_model(), config, &Device::flex()).unwrap());
    let mut first = engine.submit(Request { hook: Some(hook), ..request() }).unwrap();
    assert_eq!(answer(&mut first), Ok(()));
    reached.recv().unwrap();
    let mut later: Vec<_> = (0..3).map(|_| engine.submit(request()).unwrap()).collect();
    drop(go_on);
    assert_eq!(answer(&mut later[0]), Ok(()));
    assert_eq!(answer(&mut later[1]), Ok(()));
    assert_eq!(answer(&mut later[2]), Err(GenerateError::Busy { waiting: 2 }));
    assert_eq!(later.pop().unwrap().next(), None);
    for taken in later.into_iter().chain([first]) {
        assert_eq!(taken.wait().unwrap().samples[0].tokens.len(), 6);
    }
    assert!(engine.is_running());
}

#[test]
fn a_panic_of_the_model_leaves_nobody_waiting() {
    let engine = Engine::new(Panicking(block_model()), EngineConfig::default(), &Device::flex()).unwrap();
    let engine = EngineThread::spawn(engine);
    let streams: Vec<_> = (0..3).filter_map(|_| engine.submit(request()).ok()).collect();
    assert!(!streams.is_empty());
    for stream in streams {
        assert_eq!(stream.wait(), Err(GenerateError::Stopped));
    }
    while engine.is_running() {
        std::thread::yield_now();
    }
    assert_eq!(engine.submit(request()).unwrap_err(), GenerateError::Stopped);
    assert_eq!(engine.stats(), Err(GenerateError::Stopped));
}
