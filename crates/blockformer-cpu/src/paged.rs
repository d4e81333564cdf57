//! What the engine asks of a model, on packed weights.

use blockformer_generate::{Blocks, Context, PagedModel};
use blockformer_kv_cache::{KvPlace, KvStorage, PagedBatch, PoolConfig};
use blockformer_model::BlockLayout;
use blockformer_nn::TransformerConfig;
use burn::tensor::{Device, Tensor, TensorData};

use crate::CpuModel;
use crate::block::Text;
use crate::cache::Kv;
use crate::lengths::Lengths;
use crate::model::{Kind, on_pool, tensor};
use crate::token_decoder::Begin;
use crate::work::Lent;

/// The blocks that a [`CpuModel`] decodes for an engine.
#[derive(Debug)]
pub struct CpuBlock {
    work: Lent,
    rows: usize,
}

/// Keys and values are [on the host](KvPlace::Host). In the blocks of one text padding may stand at the
/// start of the first alone, where prompts have it.
impl PagedModel for CpuModel {
    type Block = CpuBlock;

    fn layout(&self) -> BlockLayout {
        self.layout()
    }

    fn pool_config(&self, page_blocks: usize, budget: usize, storage: KvStorage) -> PoolConfig {
        let stack = match &self.kind {
            Kind::Block(model) => model.pooled(),
            Kind::Vanilla(model) => model.pooled(),
        };
        let TransformerConfig { n_layers, n_kv_heads, head_dim, .. } = *stack.config();
        let page_length = page_blocks * self.positions_per_block();
        PoolConfig { n_layers, n_kv_heads, head_dim, page_length, budget, storage, place: KvPlace::Host }
    }

    fn positions_per_block(&self) -> usize {
        match &self.kind {
            Kind::Block(model) => model.n_embedding_tokens(),
            Kind::Vanilla(_) => 1,
        }
    }

    fn context_blocks(&self) -> usize {
        match &self.kind {
            Kind::Block(model) => model.context_blocks(),
            Kind::Vanilla(_) => 1,
        }
    }

    fn takes_in_alike(&self) -> bool {
        true
    }

    fn block_bytes(&self, _device: &Device) -> usize {
        match &self.kind {
            Kind::Block(model) => model.block_bytes(),
            Kind::Vanilla(_) => 0,
        }
    }

    fn take_in(&self, blocks: Blocks<'_>, before: Option<Context>, batch: &mut PagedBatch<'_>) -> Context {
        let Blocks { ids, real, n_blocks, begin, device } = blocks;
        let (rows, n_blocks) = (n_blocks.len(), Lengths::Each(n_blocks));
        let text = Text { ids, real, n_blocks, begin };
        let recent = before.and_then(|before| before.recent).map(numbers);
        let mut work = self.spare.take();
        let window = on_pool(|| match &self.kind {
            Kind::Block(model) => model.take_in_paged(self.level, text, recent.as_deref(), Kv::Pool(batch), &mut work),
            Kind::Vanilla(model) => model.take_in_paged(self.level, (ids, n_blocks), Kv::Pool(batch), &mut work),
        });
        let (n, k) = (self.positions_per_block(), self.context_blocks());
        let d_model = window.len() / (rows * k * n);
        let each = |window: &[f32]| window[n * d_model..].to_vec();
        let recent: Vec<f32> = window.chunks_exact(k * n * d_model).flat_map(each).collect();
        let recent = (k > 1).then(|| Tensor::from_data(TensorData::new(recent, [rows, k - 1, n, d_model]), device));
        Context { window: Tensor::from_data(TensorData::new(window, [rows, k * n, d_model]), device), recent }
    }

    fn begin_blocks(&self, window: Tensor<3>) -> (CpuBlock, Tensor<2>) {
        let (rows, device) = (window.dims()[0], window.device());
        let context = numbers(window);
        let mut work = self.spare.take();
        let logits = on_pool(|| match &self.kind {
            Kind::Block(model) => {
                model.begin(self.level, Begin { context: &context, rows, tokens: &[], known: 0 }, &mut work)
            }
            Kind::Vanilla(model) => model.logits(self.level, &context),
        });
        (CpuBlock { work, rows }, tensor(logits, rows, &device))
    }

    fn step(&self, block: &mut CpuBlock, tokens: &[u32], device: &Device) -> Tensor<2> {
        assert_eq!(tokens.len(), block.rows, "one token a block");
        let logits = on_pool(|| match &self.kind {
            Kind::Block(model) => model.next(self.level, tokens, &mut block.work),
            Kind::Vanilla(_) => panic!("a block of one token has no second one"),
        });
        tensor(logits, tokens.len(), device)
    }

    fn decode_whole(&self, window: Tensor<3>, tokens: &[u32], known: usize) -> Tensor<3> {
        let (rows, device) = (window.dims()[0], window.device());
        let context = numbers(window);
        let mut work = self.spare.take();
        let logits = on_pool(|| match &self.kind {
            Kind::Block(model) => model.begin(self.level, Begin { context: &context, rows, tokens, known }, &mut work),
            Kind::Vanilla(model) => model.logits(self.level, &context),
        });
        let vocab_size = self.layout().vocab_size;
        let shape = [rows, logits.len() / (rows * vocab_size), vocab_size];
        Tensor::from_data(TensorData::new(logits, shape), &device)
    }

    fn teacher_forced(&self, blocks: Blocks<'_>, from: usize) -> Tensor<2> {
        let Blocks { ids, device, .. } = blocks;
        let real = self.real_of_text(&blocks);
        let logits = on_pool(|| match &self.kind {
            Kind::Block(model) => model.teacher_forced(self.level, ids, real, from),
            Kind::Vanilla(model) => model.teacher_forced(self.level, ids, from),
        });
        tensor(logits, ids.len() - from, device)
    }

    fn context_embeddings(&self, blocks: Blocks<'_>) -> Tensor<2> {
        let Blocks { ids, device, .. } = blocks;
        let real = self.real_of_text(&blocks);
        let contexts = on_pool(|| match &self.kind {
            Kind::Block(model) => model.text_contexts(self.level, ids, real),
            Kind::Vanilla(model) => model.text_hidden(self.level, ids),
        });
        tensor(contexts, ids.len() / self.layout().block_length, device)
    }
}

impl CpuModel {
    /// The hidden states that predict every token of one text from token `from` on: as
    /// [`teacher_forced`](PagedModel::teacher_forced), before the projection to the vocabulary.
    ///
    /// # Shapes
    /// - returns: `[tokens - from, d_model]`, row by row
    ///
    /// # Panics
    /// As [`teacher_forced`](PagedModel::teacher_forced).
    pub fn predicting(&self, blocks: Blocks<'_>, from: usize) -> Vec<f32> {
        let real = self.real_of_text(&blocks);
        on_pool(|| match &self.kind {
            Kind::Block(model) => model.predicting(self.level, blocks.ids, real, from),
            Kind::Vanilla(model) => model.predicting(self.level, blocks.ids, from),
        })
    }

    /// Logits of hidden states.
    ///
    /// # Shapes
    /// - `hidden`: `[rows, d_model]`, row by row
    /// - returns: `[rows, vocab_size]`, row by row
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        on_pool(|| match &self.kind {
            Kind::Block(model) => model.logits(self.level, hidden),
            Kind::Vanilla(model) => model.logits(self.level, hidden),
        })
    }

    /// What of one text is not padding.
    ///
    /// # Panics
    /// If padding stands behind the first block, or is all of it.
    fn real_of_text<'a>(&self, blocks: &Blocks<'a>) -> Option<&'a [bool]> {
        let real = blocks.real?;
        let length = self.layout().block_length;
        assert!(real[length - 1..].iter().all(|real| *real), "padding elsewhere than at the start of the first block");
        Some(real)
    }
}

fn numbers<const D: usize>(contexts: Tensor<D>) -> Vec<f32> {
    match contexts.into_data().convert::<f32>().try_into_vec() {
        Ok(numbers) => numbers,
        Err(error) => panic!("reading context embeddings: {error:?}"),
    }
}
