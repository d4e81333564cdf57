//! Block by block.

use blockformer_embedder::Embedder;
use blockformer_kv_cache::{KvStorage, PagedBatch, PoolConfig, SharedPages};
use blockformer_model::{BlockLayout, BlockTransformer, ContextEnds};
use blockformer_token_decoder::{TokenCache, TokenDecoder, TokenInput};
use burn::tensor::{Device, Int, Tensor, s};

use crate::block::id_tensor;
use crate::paged::{BlockStep, Blocks, Context, PagedModel, RecordableBlock, RecordableTakeIn, indices, longest};

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
        let start = self.context_ends.start.as_ref().filter(|_| blocks.begin).map(|start| start.val().unsqueeze());
        let contexts = self.block_decoder.forward_paged(with_start(start, embedded, &blocks), batch);
        let recent = before.and_then(|before| before.recent);
        last_contexts(&self.context_ends, contexts, recent, batch)
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
            let contexts = model.block_decoder.forward_paged(blocks, &mut pages.batch(tables, longest));
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

/// The start of each sequence, `[1, 1, n_embedding_tokens, d_model]` if there is one, before its block embeddings.
fn with_start(start: Option<Tensor<4>>, embedded: Option<Tensor<4>>, blocks: &Blocks<'_>) -> Tensor<4> {
    match (start, embedded) {
        (None, Some(embedded)) => embedded,
        (Some(start), None) => start.repeat_dim(0, blocks.rows()),
        (Some(start), Some(embedded)) if blocks.n_blocks_each().is_some() => {
            Tensor::cat(vec![start.repeat_dim(0, blocks.rows()), embedded], 1)
        }
        (Some(start), Some(embedded)) => {
            let (mut order, mut next) = (Vec::new(), 1);
            for n in blocks.n_blocks.iter().copied() {
                order.push(0);
                order.extend(next..next + n);
                next += n;
            }
            Tensor::cat(vec![start, embedded], 1).select(1, indices(&order, blocks.device))
        }
        (None, None) => panic!("no blocks to take in"),
    }
}

/// What the next blocks are decoded from, of context embeddings as `forward_paged` gives them, and `recent` ones before them.
fn last_contexts(
    ends: &ContextEnds,
    contexts: Tensor<4>,
    recent: Option<Tensor<4>>,
    batch: &PagedBatch<'_>,
) -> Context {
    let ([_, _, n_embedding_tokens, d_model], device) = (contexts.dims(), contexts.device());
    let of_row = |row: usize| {
        let new = batch.new_of(row);
        new.start / n_embedding_tokens..new.end / n_embedding_tokens
    };
    let rows = batch.rows();
    assert!((0..rows).all(|row| !of_row(row).is_empty()), "no blocks to take in");
    if (1..rows).all(|row| of_row(row).len() == of_row(0).len()) {
        let contexts = contexts.reshape([rows, of_row(0).len(), n_embedding_tokens, d_model]);
        let (window, recent) = ends.last_window(contexts, None, recent);
        return Context { window, recent };
    }
    if ends.context_blocks() == 1 {
        let last: Vec<usize> = (0..rows).map(|row| of_row(row).end - 1).collect();
        let window = contexts.select(1, indices(&last, &device));
        return Context { window: window.squeeze_dim(0), recent: None };
    }
    let of_each = (0..rows).map(|row| {
        let contexts = contexts.clone().slice(s![.., of_row(row), .., ..]);
        let recent = recent.clone().map(|recent| recent.narrow(0, row, 1));
        ends.last_window(contexts, None, recent)
    });
    let (windows, recent): (Vec<_>, Vec<_>) = of_each.unzip();
    let recent: Option<Vec<_>> = recent.into_iter().collect();
    Context { window: Tensor::cat(windows, 0), recent: recent.map(|recent| Tensor::cat(recent, 0)) }
}
