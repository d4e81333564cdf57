//! Generation with a model whose kind is known at run time only.

use blockformer_kv_cache::{KvStorage, PagedBatch, PoolConfig, SharedPages};
use blockformer_model::{AnyModel, BlockLayout};
use blockformer_token_decoder::AnyTokenCache;
use burn::tensor::{Device, Int, Tensor};

use crate::paged::{Blocks, Context, PagedModel, RecordableBlock, RecordableTakeIn};

/// Calls the model inside, whichever it is.
macro_rules! inner {
    ($self:ident, $model:ident => $call:expr) => {
        match $self {
            AnyModel::Block($model) => $call,
            AnyModel::Vanilla($model) => $call,
        }
    };
}

impl PagedModel for AnyModel {
    /// None for a vanilla transformer.
    type Block = Option<AnyTokenCache>;

    fn layout(&self) -> BlockLayout {
        self.layout()
    }

    fn pool_config(&self, page_blocks: usize, budget: usize, storage: KvStorage) -> PoolConfig {
        inner!(self, model => model.pool_config(page_blocks, budget, storage))
    }

    fn positions_per_block(&self) -> usize {
        inner!(self, model => model.positions_per_block())
    }

    fn context_blocks(&self) -> usize {
        inner!(self, model => model.context_blocks())
    }

    fn block_bytes(&self, device: &Device) -> usize {
        inner!(self, model => model.block_bytes(device))
    }

    fn take_in(&self, blocks: Blocks<'_>, before: Option<Context>, batch: &mut PagedBatch<'_>) -> Context {
        inner!(self, model => model.take_in(blocks, before, batch))
    }

    fn begin_blocks(&self, window: Tensor<3>) -> (Option<AnyTokenCache>, Tensor<2>) {
        match self {
            Self::Block(model) => {
                let (cache, logits) = model.begin_blocks(window);
                (Some(cache), logits)
            }
            Self::Vanilla(model) => (None, model.begin_blocks(window).1),
        }
    }

    fn step(&self, block: &mut Option<AnyTokenCache>, tokens: &[u32], device: &Device) -> Tensor<2> {
        match (self, block) {
            (Self::Block(model), Some(cache)) => model.step(cache, tokens, device),
            _ => panic!("the block of another kind of model"),
        }
    }

    fn keeps_tokens_on_device(&self) -> bool {
        true
    }

    fn step_on_device(&self, block: &mut Option<AnyTokenCache>, tokens: Tensor<2, Int>) -> Tensor<2> {
        match (self, block) {
            (Self::Block(model), Some(cache)) => PagedModel::step_on_device(model, cache, tokens),
            _ => panic!("the block of another kind of model"),
        }
    }

    fn recordable_block(&self) -> Option<RecordableBlock> {
        inner!(self, model => model.recordable_block())
    }

    fn recordable_take_in(&self, pages: &SharedPages, rows: usize, most_pages: usize) -> Option<RecordableTakeIn> {
        inner!(self, model => model.recordable_take_in(pages, rows, most_pages))
    }

    fn decode_whole(&self, window: Tensor<3>, tokens: &[u32], known: usize) -> Tensor<3> {
        inner!(self, model => model.decode_whole(window, tokens, known))
    }

    fn teacher_forced(&self, blocks: Blocks<'_>, from: usize) -> Tensor<2> {
        inner!(self, model => model.teacher_forced(blocks, from))
    }

    fn context_embeddings(&self, blocks: Blocks<'_>) -> Tensor<2> {
        inner!(self, model => model.context_embeddings(blocks))
    }
}

impl<M: PagedModel> PagedModel for &M {
    type Block = M::Block;

    fn layout(&self) -> BlockLayout {
        (**self).layout()
    }

    fn pool_config(&self, page_blocks: usize, budget: usize, storage: KvStorage) -> PoolConfig {
        (**self).pool_config(page_blocks, budget, storage)
    }

    fn positions_per_block(&self) -> usize {
        (**self).positions_per_block()
    }

    fn context_blocks(&self) -> usize {
        (**self).context_blocks()
    }

    fn block_bytes(&self, device: &Device) -> usize {
        (**self).block_bytes(device)
    }

    fn take_in(&self, blocks: Blocks<'_>, before: Option<Context>, batch: &mut PagedBatch<'_>) -> Context {
        (**self).take_in(blocks, before, batch)
    }

    fn takes_in_alike(&self) -> bool {
        (**self).takes_in_alike()
    }

    fn begin_blocks(&self, window: Tensor<3>) -> (M::Block, Tensor<2>) {
        (**self).begin_blocks(window)
    }

    fn step(&self, block: &mut M::Block, tokens: &[u32], device: &Device) -> Tensor<2> {
        (**self).step(block, tokens, device)
    }

    fn keeps_tokens_on_device(&self) -> bool {
        (**self).keeps_tokens_on_device()
    }

    fn step_on_device(&self, block: &mut M::Block, tokens: Tensor<2, Int>) -> Tensor<2> {
        (**self).step_on_device(block, tokens)
    }

    fn recordable_block(&self) -> Option<RecordableBlock> {
        (**self).recordable_block()
    }

    fn recordable_take_in(&self, pages: &SharedPages, rows: usize, most_pages: usize) -> Option<RecordableTakeIn> {
        (**self).recordable_take_in(pages, rows, most_pages)
    }

    fn decode_whole(&self, window: Tensor<3>, tokens: &[u32], known: usize) -> Tensor<3> {
        (**self).decode_whole(window, tokens, known)
    }

    fn teacher_forced(&self, blocks: Blocks<'_>, from: usize) -> Tensor<2> {
        (**self).teacher_forced(blocks, from)
    }

    fn context_embeddings(&self, blocks: Blocks<'_>) -> Tensor<2> {
        (**self).context_embeddings(blocks)
    }
}
