//! Block by block.

use blockformer_embedder::Embedder;
use blockformer_kv_cache::{KvStorage, PagedBatch, PoolConfig, SharedPages};
use blockformer_model::{BlockLayout, BlockTransformer};
use blockformer_token_decoder::{TokenCache, TokenDecoder, TokenInput};
use burn::tensor::{Device, Int, Tensor, s};

use crate::block::id_tensor;
use crate::paged::{BlockStep, Blocks, Context, PagedModel, RecordableBlock, RecordableTakeIn, longest};

impl<E: Embedder, T: TokenDecoder> PagedModel for BlockTransformer<E, T> {
    type Block = T::Cache;

    fn layout(&self) -> BlockLayout {
        self.layout()
    }

    fn pool_config(&self, page_blocks: usize, budget: usize, storage: KvStorage) -> PoolConfig {
        self.block_decoder.transformer.pool_config(page_blocks * self.positions_per_block(), budget, storage)
    }

    fn positions_per_block(&self) -> usize {
        self.block_decoder.n_embedding_tokens()
    }

    fn context_blocks(&self) -> usize {
        self.context_ends.context_blocks()
    }

    fn block_bytes(&self, device: &Device) -> usize {
        self.token_decoder.new_cache(1, device).bytes()
    }

    fn take_in(&self, blocks: Blocks<'_>, before: Option<Context>, batch: &mut PagedBatch<'_>) -> Context {
        let length = self.layout().block_length;
        let ids = blocks.ids(length);
        let embedded = ids.map(|ids| self.embedder.forward(ids, blocks.mask(length)));
        let start = self.context_ends.start.as_ref().filter(|_| blocks.begin).map(|start| {
            let [n_embedding_tokens, d_model] = start.dims();
            start.val().reshape([1, 1, n_embedding_tokens, d_model]).repeat_dim(0, blocks.rows)
        });
        let parts: Vec<_> = start.into_iter().chain(embedded).collect(); // [rows, n, n_embedding_tokens, d_model]
        assert!(!parts.is_empty(), "no blocks to take in");
        let contexts = self.block_decoder.forward_paged(Tensor::cat(parts, 1), batch);
        let recent = before.and_then(|before| before.recent);
        let (window, recent) = self.context_ends.last_window(contexts, None, recent);
        Context { window, recent }
    }

    fn begin_blocks(&self, window: Tensor<3>) -> (T::Cache, Tensor<2>) {
        let mut cache = self.token_decoder.new_cache(window.dims()[0], &window.device());
        let hidden = self.token_decoder.forward(TokenInput::start(window), Some(&mut cache)); // [rows, 1, d_model]
        (cache, self.logits(hidden).squeeze_dim(1))
    }

    fn step(&self, cache: &mut T::Cache, tokens: &[u32], device: &Device) -> Tensor<2> {
        PagedModel::step_on_device(self, cache, id_tensor(tokens.iter(), [tokens.len(), 1], device))
    }

    fn keeps_tokens_on_device(&self) -> bool {
        true
    }

    fn step_on_device(&self, cache: &mut T::Cache, tokens: Tensor<2, Int>) -> Tensor<2> {
        let hidden = self.token_decoder.forward(TokenInput::next(tokens), Some(cache)); // [rows, 1, d_model]
        self.logits(hidden).squeeze_dim(1)
    }

    fn recordable_block(&self) -> Option<RecordableBlock> {
        let (model, mut cache) = (self.clone(), None); // not its weights
        Some(Box::new(move |step| {
            let input = match step {
                BlockStep::Begin(window) => {
                    // The same at every time: a block empties it.
                    cache.get_or_insert_with(|| model.token_decoder.new_cache(window.dims()[0], &window.device()));
                    TokenInput::start(window)
                }
                BlockStep::Token(ids) => TokenInput::next(ids),
            };
            model.logits(model.token_decoder.forward(input, cache.as_mut())).squeeze_dim(1)
        }))
    }

    fn recordable_take_in(&self, pages: &SharedPages, rows: usize, most_pages: usize) -> Option<RecordableTakeIn> {
        let longest = longest(pages, most_pages, self.block_decoder.transformer.max_positions());
        if self.context_blocks() > 1 || !self.block_decoder.takes_tables(pages, rows, longest) {
            return None;
        }
        let (model, pages) = (self.clone(), pages.clone());
        Some(Box::new(move |ids, tables| {
            let blocks = model.embedder.forward(ids.unsqueeze_dim(1), None); // [rows, 1, n_embedding_tokens, d_model]
            let contexts = model.block_decoder.forward_paged(blocks, &mut pages.batch(tables, 1, longest));
            model.context_ends.last_window(contexts, None, None).0
        }))
    }

    fn decode_whole(&self, window: Tensor<3>, tokens: &[u32], known: usize) -> Tensor<3> {
        let rows = window.dims()[0];
        let n = tokens.len() / rows;
        let ids = (n > 0).then(|| id_tensor(tokens.iter(), [rows, n], &window.device()));
        let hidden = self.token_decoder.forward(TokenInput::start(window).with_ids(ids), None); // [rows, n + 1, d_model]
        self.logits(hidden.slice(s![.., known.., ..]))
    }

    fn teacher_forced(&self, blocks: Blocks<'_>, from: usize) -> Tensor<2> {
        let length = self.layout().block_length;
        let Some(ids) = blocks.ids(length) else { panic!("no blocks") };
        let n_tokens = ids.dims()[1] * length;
        let output = self.forward(ids, blocks.mask(length));
        let [predicted, _, d_model] = output.hidden.dims();
        let first = n_tokens - predicted * length;
        let hidden = output.hidden.reshape([1, predicted * length, d_model]).slice(s![.., from - first.., ..]);
        self.logits(hidden).squeeze_dim(0)
    }

    fn context_embeddings(&self, blocks: Blocks<'_>) -> Tensor<2> {
        let length = self.layout().block_length;
        let Some(ids) = blocks.ids(length) else { panic!("no blocks") };
        let (_, contexts) = self.context(ids, blocks.mask(length));
        let [_, n_blocks, n_embedding_tokens, d_model] = contexts.dims();
        contexts.reshape([n_blocks, n_embedding_tokens * d_model])
    }
}
