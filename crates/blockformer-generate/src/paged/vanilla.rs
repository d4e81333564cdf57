//! Token by token, the baseline.

use blockformer_kv_cache::{KvStorage, PagedBatch, PoolConfig, SharedPages};
use blockformer_model::{BlockLayout, VanillaTransformer};
use burn::tensor::{Device, Tensor, s};

use crate::paged::{BlockStep, Blocks, Context, PagedModel, RecordableBlock, RecordableTakeIn, indices, longest};

impl PagedModel for VanillaTransformer {
    /// A block is one token: nothing is left of it when it is drawn.
    type Block = ();

    fn layout(&self) -> BlockLayout {
        self.layout()
    }

    fn pool_config(&self, page_blocks: usize, budget: usize, storage: KvStorage) -> PoolConfig {
        self.transformer.pool_config(page_blocks, budget, storage)
    }

    fn positions_per_block(&self) -> usize {
        1
    }

    fn context_blocks(&self) -> usize {
        1
    }

    fn block_bytes(&self, _device: &Device) -> usize {
        0
    }

    fn take_in(&self, blocks: Blocks<'_>, _before: Option<Context>, batch: &mut PagedBatch<'_>) -> Context {
        let Some(ids) = blocks.ids(1) else { panic!("no tokens to take in") };
        let [rows, n, _] = ids.dims();
        let hidden = self.forward_paged(ids.reshape([rows, n]), batch);
        let window = match blocks.n_blocks_each() {
            Some(_) => hidden.slice(s![.., n - 1.., ..]),
            None => {
                assert!(blocks.n_blocks.iter().all(|n| *n > 0), "no tokens to take in");
                let last: Vec<usize> = (0..blocks.rows()).map(|row| batch.new_of(row).end - 1).collect();
                hidden.select(1, indices(&last, blocks.device)).swap_dims(0, 1)
            }
        };
        Context { window, recent: None }
    }

    fn begin_blocks(&self, window: Tensor<3>) -> ((), Tensor<2>) {
        ((), self.logits(window).squeeze_dim(1))
    }

    fn step(&self, (): &mut (), _tokens: &[u32], _device: &Device) -> Tensor<2> {
        panic!("a block of one token has no second one")
    }

    fn keeps_tokens_on_device(&self) -> bool {
        true
    }

    fn recordable_block(&self) -> Option<RecordableBlock> {
        let model = self.clone(); // not its weights
        Some(Box::new(move |step| match step {
            BlockStep::Begin(window) => model.logits(window).squeeze_dim(1),
            BlockStep::Token(_) => panic!("a block of one token has no second one"),
        }))
    }

    fn recordable_take_in(&self, pages: &SharedPages, rows: usize, most_pages: usize) -> Option<RecordableTakeIn> {
        let longest = longest(pages, most_pages, self.transformer.max_positions());
        if !self.transformer.takes_tables(pages, rows, longest) {
            return None;
        }
        let (model, pages) = (self.clone(), pages.clone());
        Some(Box::new(move |ids, tables| model.forward_paged(ids, &mut pages.batch(tables, longest))))
    }

    fn decode_whole(&self, window: Tensor<3>, _tokens: &[u32], _known: usize) -> Tensor<3> {
        self.logits(window)
    }

    fn teacher_forced(&self, blocks: Blocks<'_>, from: usize) -> Tensor<2> {
        let hidden = hidden_of(self, blocks);
        let n = hidden.dims()[1];
        self.logits(hidden.slice(s![.., from - 1..n - 1, ..])).squeeze_dim(0)
    }

    fn context_embeddings(&self, blocks: Blocks<'_>) -> Tensor<2> {
        hidden_of(self, blocks).squeeze_dim(0)
    }
}

/// Hidden states of one text.
fn hidden_of(model: &VanillaTransformer, blocks: Blocks<'_>) -> Tensor<3> {
    let Some(ids) = blocks.ids(1) else { panic!("no tokens") };
    let [rows, n, _] = ids.dims();
    model.forward(ids.reshape([rows, n]), None, None)
}
