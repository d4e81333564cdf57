//! The model that is generated with.

use blockformer_embedder::EmbedderConfig;
use blockformer_generate::LanguageModel;
use blockformer_kernels::{Level, Precision};
use blockformer_model::{AnyModel, BlockLayout, BlockedPrompts, ModelConfig};
use blockformer_token_decoder::TokenDecoderConfig;
use burn::tensor::{Device, Tensor, TensorData};

use crate::block::{BlockModel, BlockState};
use crate::stack::activation;
use crate::vanilla::{VanillaModel, VanillaState};
use crate::work::Spare;
use crate::{PackError, Profile};

/// A model whose weights are packed for the CPU: a [`LanguageModel`] and a
/// [`PagedModel`](blockformer_generate::PagedModel) that generates and scores, and does nothing else.
///
/// In float32 it computes what the model it was made of computes, up to rounding. The other precisions round the
/// weights, and the inputs of products with them, as [`Precision`] says; with [`Precision::Int4`] the projection to the
/// vocabulary is stored as [`Precision::Int8`]. Sums, keys and values are float32 always.
#[derive(Debug, Clone)]
pub struct CpuModel {
    pub(crate) kind: Kind,
    precision: Precision,
    pub(crate) level: Level,
    pub(crate) spare: Spare,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Block(BlockModel),
    Vanilla(VanillaModel),
}

/// The state of a [`CpuModel`] that generates.
#[derive(Debug, Clone)]
pub struct CpuState {
    kind: StateKind,
    /// Where logits are wanted.
    device: Device,
}

#[derive(Debug, Clone)]
enum StateKind {
    Block(BlockState),
    Vanilla(VanillaState),
}

impl CpuModel {
    /// Takes a model apart and packs its weights; each is freed as soon as it is packed. The widest instructions of
    /// the CPU are used ([`Level::current`]).
    ///
    /// # Errors
    /// [`PackError`] if a part has no packed form (see [`supports`](Self::supports)), or if `config` is not the
    /// model's.
    pub fn new(config: &ModelConfig, model: AnyModel, precision: Precision) -> Result<Self, PackError> {
        Self::supports(config)?;
        let kind = match (model, config) {
            (AnyModel::Block(model), ModelConfig::BlockTransformer(config)) => {
                Kind::Block(BlockModel::new(config, model, precision)?)
            }
            (AnyModel::Vanilla(model), ModelConfig::VanillaTransformer(config)) => {
                Kind::Vanilla(VanillaModel::new(config, model, precision)?)
            }
            _ => return Err(PackError::Mismatch),
        };
        Ok(Self { kind, precision, level: Level::current(), spare: Spare::default() })
    }

    /// Whether models of this configuration have a packed form, as all have that this version knows: a kind of part that
    /// a later one adds may have none yet.
    ///
    /// # Errors
    /// [`PackError::Unsupported`] naming the part that has none.
    pub fn supports(config: &ModelConfig) -> Result<(), PackError> {
        let stacks = match config {
            ModelConfig::BlockTransformer(config) => {
                let embedder = match &config.embedder {
                    EmbedderConfig::Encoder(config) => Some(&config.transformer),
                    EmbedderConfig::Lookup(_) => None,
                    _ => return Err(PackError::Unsupported { part: "embedder of this kind" }),
                };
                let token_decoder = match &config.token_decoder {
                    TokenDecoderConfig::Prefix(config) => Some(&config.transformer),
                    TokenDecoderConfig::Summation(config) => Some(&config.transformer),
                    TokenDecoderConfig::CrossAttention(_) => None,
                    _ => return Err(PackError::Unsupported { part: "token decoder of this kind" }),
                };
                [embedder, Some(&config.block_decoder), token_decoder]
            }
            ModelConfig::VanillaTransformer(config) => [Some(&config.transformer), None, None],
        };
        stacks.into_iter().flatten().try_for_each(|stack| activation(stack).map(|_| ()))
    }

    /// The same with other instructions.
    pub fn with_level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// How prompts are cut into blocks, and the context.
    pub fn layout(&self) -> BlockLayout {
        match &self.kind {
            Kind::Block(model) => model.layout(),
            Kind::Vanilla(model) => model.layout(),
        }
    }

    /// The precision that was asked for. With [`Precision::Int4`] the projection to the vocabulary has 8 bits
    /// ([`Precision::Int8`]).
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The instructions it uses.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Bytes of the weights as they are stored.
    pub fn weight_bytes(&self) -> usize {
        match &self.kind {
            Kind::Block(model) => model.bytes(),
            Kind::Vanilla(model) => model.bytes(),
        }
    }
}

impl CpuState {
    /// Where the time since the prefill began was spent.
    pub fn profile(&self) -> Profile {
        match &self.kind {
            StateKind::Block(state) => state.profile,
            StateKind::Vanilla(state) => state.profile,
        }
    }

    /// Bytes of the working buffers beside keys and values, logits among them: the most there were at once.
    pub fn buffer_bytes(&self) -> usize {
        match &self.kind {
            StateKind::Block(state) => state.buffer_bytes(),
            StateKind::Vanilla(state) => state.buffer_bytes(),
        }
    }

    fn batch(&self) -> usize {
        match &self.kind {
            StateKind::Block(state) => state.batch(),
            StateKind::Vanilla(state) => state.batch(),
        }
    }
}

/// Runs `f` on a thread of the pool, so that its many small parallel parts need not wake one each.
pub(crate) fn on_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| f())
}

pub(crate) fn tensor(logits: Vec<f32>, batch: usize, device: &Device) -> Tensor<2> {
    let vocab_size = logits.len() / batch;
    Tensor::from_data(TensorData::new(logits, [batch, vocab_size]), device)
}

impl LanguageModel for CpuModel {
    type State = CpuState;

    fn layout(&self) -> BlockLayout {
        self.layout()
    }

    fn prefill(&self, prompts: &BlockedPrompts, new_tokens: usize, device: &Device) -> (CpuState, Tensor<2>) {
        let [batch, _, _] = prompts.shape();
        let (state, logits) = on_pool(|| match &self.kind {
            Kind::Block(model) => {
                let (state, logits) = model.prefill(self.level, prompts, new_tokens, device);
                (CpuState { kind: StateKind::Block(state), device: device.clone() }, logits)
            }
            Kind::Vanilla(model) => {
                let (state, logits) = model.prefill(self.level, prompts, new_tokens, device);
                (CpuState { kind: StateKind::Vanilla(state), device: device.clone() }, logits)
            }
        });
        (state, tensor(logits, batch, device))
    }

    fn step(&self, state: &mut CpuState, tokens: &[u32]) -> Tensor<2> {
        let mut logits = Vec::new();
        self.step_into(state, tokens, &mut logits);
        tensor(logits, state.batch(), &state.device)
    }

    fn step_into(&self, state: &mut CpuState, tokens: &[u32], logits: &mut Vec<f32>) {
        on_pool(|| match (&self.kind, &mut state.kind) {
            (Kind::Block(model), StateKind::Block(state)) => model.step(self.level, state, tokens, logits),
            (Kind::Vanilla(model), StateKind::Vanilla(state)) => model.step(self.level, state, tokens, logits),
            _ => panic!("the state of another kind of model"),
        });
    }

    fn step_likeliest(&self, state: &mut CpuState, tokens: &[u32]) -> Vec<Option<u32>> {
        on_pool(|| match (&self.kind, &mut state.kind) {
            (Kind::Block(model), StateKind::Block(state)) => model.step_likeliest(self.level, state, tokens),
            (Kind::Vanilla(model), StateKind::Vanilla(state)) => model.step_likeliest(self.level, state, tokens),
            _ => panic!("the state of another kind of model"),
        })
    }

    fn kv_bytes(&self, state: &CpuState) -> usize {
        match &state.kind {
            StateKind::Block(state) => state.kv_bytes(),
            StateKind::Vanilla(state) => state.kv_bytes(),
        }
    }
}
