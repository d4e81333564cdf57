//! The form in which a model serves fastest.

use blockformer_cpu::{CpuBlock, CpuModel, PackError, Precision};
use blockformer_eval::Scorable;
use blockformer_generate::{Blocks, Context, PagedModel, RecordableBlock, RecordableTakeIn};
use blockformer_kv_cache::{KvStorage, PagedBatch, PoolConfig, SharedPages};
use blockformer_model::{AnyModel, BlockLayout, ModelConfig};
use blockformer_token_decoder::AnyTokenCache;
use blockformer_train::Batch;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::devices::is_cpu;

/// A model for the [`Engine`](crate::generate::Engine), plain or packed.
///
/// ```
/// use blockformer::prelude::*;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = blockformer::device("cpu")?;
/// let (config, model, tokenizer) = blockformer::bundled::load(&device)?;
/// let model = ServingModel::new(&config, model, &device)?;
/// assert!(matches!(model, ServingModel::Packed(_)));
///
/// let settings = EngineConfig { alignment: Alignment::of(&config), ..EngineConfig::default() };
/// let engine = EngineThread::spawn(Engine::new(model, settings, &device)?);
/// let whale = Request::new(tokenizer.encode("The whale")?).with_max_new_tokens(4);
/// assert_eq!(engine.submit(whale)?.wait()?.samples[0].tokens.len(), 4);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum ServingModel {
    /// On Burn's operations, on any device.
    Plain(AnyModel),
    /// On the CPU's kernels.
    Packed(CpuModel),
}

impl ServingModel {
    /// Packs the weights in float32 where `device` is a CPU (every model of this library has a packed form); leaves the
    /// model as it is elsewhere, all of its weights read. (For another precision, make [`ServingModel::Packed`] of a [`CpuModel`].)
    ///
    /// # Errors
    /// [`PackError::Mismatch`] if `config` is not the model's.
    ///
    /// # Panics
    /// As [`plain`](Self::plain); so does packing.
    pub fn new(config: &ModelConfig, model: AnyModel, device: &Device) -> Result<Self, PackError> {
        if is_cpu(device) && CpuModel::supports(config).is_ok() {
            return CpuModel::new(config, model, Precision::F32).map(Self::Packed);
        }
        Ok(Self::plain(model))
    }

    /// A model on Burn's operations, all of whose weights are there: none is read when the first request comes.
    ///
    /// # Panics
    /// If a weight of a model [whose weights are read when they are used](AnyModel::load_deferred) cannot be read.
    pub fn plain(model: AnyModel) -> Self {
        model.read_weights();
        Self::Plain(model)
    }
}

/// The blocks that a [`ServingModel`] decodes.
#[derive(Debug)]
pub enum ServingBlock {
    /// Of a plain model.
    Plain(Option<AnyTokenCache>),
    /// Of a packed one.
    Packed(CpuBlock),
}

/// Calls the model inside, whichever it is.
macro_rules! inner {
    ($self:ident, $model:ident => $call:expr) => {
        match $self {
            ServingModel::Plain($model) => $call,
            ServingModel::Packed($model) => $call,
        }
    };
}

impl PagedModel for ServingModel {
    type Block = ServingBlock;

    fn layout(&self) -> BlockLayout {
        inner!(self, model => model.layout())
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

    fn takes_in_alike(&self) -> bool {
        inner!(self, model => model.takes_in_alike())
    }

    fn begin_blocks(&self, window: Tensor<3>) -> (ServingBlock, Tensor<2>) {
        match self {
            Self::Plain(model) => {
                let (block, logits) = model.begin_blocks(window);
                (ServingBlock::Plain(block), logits)
            }
            Self::Packed(model) => {
                let (block, logits) = model.begin_blocks(window);
                (ServingBlock::Packed(block), logits)
            }
        }
    }

    fn step(&self, block: &mut ServingBlock, tokens: &[u32], device: &Device) -> Tensor<2> {
        match (self, block) {
            (Self::Plain(model), ServingBlock::Plain(block)) => model.step(block, tokens, device),
            (Self::Packed(model), ServingBlock::Packed(block)) => model.step(block, tokens, device),
            _ => panic!("the block of another kind of model"),
        }
    }

    fn keeps_tokens_on_device(&self) -> bool {
        inner!(self, model => model.keeps_tokens_on_device())
    }

    fn step_on_device(&self, block: &mut ServingBlock, tokens: Tensor<2, Int>) -> Tensor<2> {
        match (self, block) {
            (Self::Plain(model), ServingBlock::Plain(block)) => PagedModel::step_on_device(model, block, tokens),
            (Self::Packed(model), ServingBlock::Packed(block)) => PagedModel::step_on_device(model, block, tokens),
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

impl Scorable for ServingModel {
    fn hidden(&self, batch: &Batch) -> Tensor<3> {
        match self {
            Self::Plain(model) => Scorable::hidden(model, batch),
            Self::Packed(model) => hidden(model, batch),
        }
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Plain(model) => Scorable::logits(model, hidden),
            Self::Packed(model) => {
                let ([rows, n, _], device) = (hidden.dims(), hidden.device());
                let hidden: Vec<f32> = hidden.into_data().iter::<f32>().collect();
                let shape = [rows, n, model.layout().vocab_size];
                Tensor::from_data(TensorData::new(model.logits(&hidden), shape), &device)
            }
        }
    }

    fn layout(&self) -> BlockLayout {
        PagedModel::layout(self)
    }
}

/// Text after text, `[batch, n_predicted_blocks · block_length, d_model]`.
fn hidden(model: &CpuModel, batch: &Batch) -> Tensor<3> {
    let ([rows, n_blocks, length], device) = (batch.ids.dims(), batch.ids.device());
    let from = batch.first_predicted_block * length;
    let ids: Vec<u32> = batch.ids.clone().into_data().iter::<u32>().collect();
    let real: Option<Vec<bool>> = batch.mask.clone().map(|mask| mask.into_data().iter::<bool>().collect());
    let of = |row: usize| row * n_blocks * length..(row + 1) * n_blocks * length;
    let one = |row: usize| {
        let ids = &ids[of(row)];
        // Padding behind a text changes no prediction within it.
        let real = real.as_ref().map(|real| [&real[of(row)][..length], &vec![true; ids.len() - length]].concat());
        // A block that begins with padding is asked for nothing.
        let padded = real.as_ref().is_some_and(|real| !real[0]);
        let first = if padded { from.max(length) } else { from };
        let blocks = Blocks { ids, real: real.as_deref(), n_blocks: &[n_blocks], begin: true, device: &device };
        let hidden = model.predicting(blocks, first);
        let d_model = hidden.len() / (ids.len() - first);
        [vec![0.0; (first - from) * d_model], hidden].concat()
    };
    let hidden: Vec<f32> = (0..rows).flat_map(one).collect();
    let n = n_blocks * length - from;
    let d_model = hidden.len() / (rows * n);
    Tensor::from_data(TensorData::new(hidden, [rows, n, d_model]), &device)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::module::{Module, ModuleVisitor, Param};

    use super::*;

    #[derive(Default)]
    struct Unread(usize);

    impl ModuleVisitor for Unread {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            self.0 += usize::from(!parameter.is_initialized());
        }
    }

    #[test]
    fn a_packed_model_takes_blocks_in_alike() {
        let (config, model, _) = crate::bundled::load(&Device::flex()).unwrap();
        assert!(ServingModel::new(&config, model, &Device::flex()).unwrap().takes_in_alike());
    }

    #[test]
    fn a_model_that_stays_plain_has_read_its_weights() {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases/cls_cross_attention_b4");
        let device = Device::flex();
        let (_, model) = AnyModel::load_deferred(&case, &device).unwrap();
        let unread = |model: &AnyModel| {
            let mut unread = Unread::default();
            model.visit(&mut unread);
            unread.0
        };
        assert!(unread(&model) > 0);
        let serving = ServingModel::plain(model);
        assert!(!serving.takes_in_alike());
        let ServingModel::Plain(model) = serving else { panic!("it was packed") };
        assert_eq!(unread(&model), 0);
    }
}
