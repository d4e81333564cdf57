//! Small models whose weights are the same on every device.

use blockformer_embedder::{ClsTokens, EmbedderConfig, EncoderConfig, LookupConfig, Projection};
use blockformer_model::{BlockTransformer, BlockTransformerConfig, VanillaTransformer, VanillaTransformerConfig};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::{CrossAttentionConfig, Expansion, PrefixConfig, SummationConfig, TokenDecoderConfig};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

/// A device under check.
#[derive(Clone, PartialEq)]
pub(super) struct Subject {
    pub(super) device: Device,
    /// Whether weights are slightly wrong, as tests want to see it noticed.
    spoilt: bool,
}

impl Subject {
    pub(super) fn new(device: &Device) -> Self {
        Self { device: device.clone(), spoilt: false }
    }

    /// The CPU, if this build has it.
    pub(super) fn cpu() -> Option<Self> {
        crate::devices::flex().map(|device| Self::new(&device))
    }

    #[cfg(all(test, feature = "flex"))]
    pub(super) fn spoilt(self) -> Self {
        Self { spoilt: true, ..self }
    }

    /// Replaces the weights of a model by the fixed ones.
    pub(super) fn weights<M: Module>(&self, model: M) -> M {
        model.map(&mut FixedWeights { parameters: 0, spoilt: self.spoilt })
    }

    /// A model with the fixed weights, on `device`.
    pub(super) fn block(&self, config: &BlockTransformerConfig, device: &Device) -> BlockTransformer {
        match config.init(device) {
            Ok(model) => self.weights(model),
            Err(error) => unreachable!("the configurations of this module are sound: {error}"),
        }
    }

    /// A model with the fixed weights, on `device`.
    pub(super) fn vanilla(&self, config: &VanillaTransformerConfig, device: &Device) -> VanillaTransformer {
        match config.init(device) {
            Ok(model) => self.weights(model),
            Err(error) => unreachable!("the configurations of this module are sound: {error}"),
        }
    }
}

/// Numbers that look random, from -1 to 1, the same wherever they are made.
pub(super) fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

struct FixedWeights {
    parameters: u64,
    spoilt: bool,
}

impl ModuleMapper for FixedWeights {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.parameters += 1;
        let (seed, spoilt) = (self.parameters, self.spoilt);
        param.map(|drawn| {
            let (shape, trained) = (drawn.dims(), drawn.is_require_grad());
            let mut values = noise(seed, shape.iter().product());
            if spoilt && D == 2 {
                values.iter_mut().step_by(3).for_each(|value| *value += 0.02);
            }
            let values = Tensor::<D>::from_data(TensorData::new(values, shape), &drawn.device());
            // Norms and biases begin at ones and zeros.
            let fixed = if D == 1 { drawn + values.mul_scalar(0.1) } else { values.mul_scalar(0.3) };
            fixed.detach().set_require_grad(trained)
        })
    }
}

pub(super) const VOCAB_SIZE: usize = 61;
pub(super) const BLOCK_LENGTH: usize = 4;
const D_MODEL: usize = 32;

/// Ids of a row of text.
pub(super) fn ids(n: usize, salt: usize, vocab_size: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 5 + i * 7 + salt * 11 + 3) % vocab_size) as u32).collect()
}

/// Ids as a tensor.
pub(super) fn id_tensor<const D: usize>(ids: &[u32], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}

/// A mask over rows of `n` that is false for as many first places as `padding` says for the row.
pub(super) fn mask<const D: usize>(shape: [usize; D], padding: &[usize], device: &Device) -> Tensor<D, Bool> {
    let n = shape.iter().product::<usize>() / padding.len();
    let real: Vec<bool> = padding.iter().flat_map(|padding| (0..n).map(move |i| i >= *padding)).collect();
    Tensor::from_data(TensorData::new(real, shape), device)
}

/// A tensor's numbers on the host; this waits for the device.
pub(super) fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn gpt_neox() -> TransformerConfig {
    TransformerConfig::gpt_neox(D_MODEL, 2, 2)
}

fn llama() -> TransformerConfig {
    TransformerConfig::llama(D_MODEL, 2, 4).with_n_kv_heads(2)
}

fn prefix(transformer: TransformerConfig) -> TokenDecoderConfig {
    let (expansion, expansion_ratio, tied_embeddings) = (Expansion::Layer, 2, false);
    TokenDecoderConfig::Prefix(PrefixConfig { transformer, expansion, expansion_ratio, tied_embeddings })
}

fn lookup() -> EmbedderConfig {
    let d_embedding = D_MODEL / BLOCK_LENGTH;
    EmbedderConfig::Lookup(LookupConfig { d_embedding, projection: Projection::Concat })
}

fn block(
    embedder: EmbedderConfig,
    block_decoder: TransformerConfig,
    token_decoder: TokenDecoderConfig,
) -> BlockTransformerConfig {
    BlockTransformerConfig {
        vocab_size: VOCAB_SIZE,
        block_length: BLOCK_LENGTH,
        n_embedding_tokens: 1,
        max_length: 640,
        pad_token_id: 0,
        eos_token_id: Some(0),
        random_pad_first_block: true,
        pad_to_block_boundary: true,
        context_blocks: 1,
        predict_first_block: false,
        embedder,
        block_decoder,
        token_decoder,
    }
}

/// The paper's model.
pub(super) fn lookup_prefix() -> BlockTransformerConfig {
    block(lookup(), gpt_neox(), prefix(gpt_neox()))
}

pub(super) fn lookup_summation() -> BlockTransformerConfig {
    let (expansion, start_token_id, tied_embeddings) = (Expansion::Layer, 0, true);
    let decoder = SummationConfig { transformer: llama(), expansion, start_token_id, tied_embeddings };
    let embedder = EmbedderConfig::Lookup(LookupConfig { d_embedding: 20, projection: Projection::ProjectionLayer });
    block(embedder, gpt_neox(), TokenDecoderConfig::Summation(decoder))
}

pub(super) fn encoder_prefix() -> BlockTransformerConfig {
    block(EmbedderConfig::Encoder(EncoderConfig::roberta(16, 2, 2)), llama(), prefix(llama()))
}

pub(super) fn cls_cross_attention() -> BlockTransformerConfig {
    let decoder = CrossAttentionConfig {
        d_model: D_MODEL,
        n_layers: 2,
        n_heads: 2,
        head_dim: 16,
        d_ff: 64,
        norm_eps: 1e-6,
        expansion: Expansion::Layer,
        expansion_ratio: 2,
        start_token_id: 1,
        relative_buckets: 32,
        relative_max_distance: 128,
    };
    let cls = Some(ClsTokens { n: 2, token_id: 0 });
    let embedder = EncoderConfig { cls, ..EncoderConfig::roberta(16, 1, 2) };
    block(EmbedderConfig::Encoder(embedder), gpt_neox(), TokenDecoderConfig::CrossAttention(decoder))
}

/// A block decoder over two embeddings a block, a token decoder that sees the last two blocks, and a learned start.
pub(super) fn two_embeddings() -> BlockTransformerConfig {
    let d_embedding = 2 * D_MODEL / BLOCK_LENGTH;
    let embedder = EmbedderConfig::Lookup(LookupConfig { d_embedding, projection: Projection::Concat });
    let (n_embedding_tokens, context_blocks, predict_first_block) = (2, 2, true);
    let config = block(embedder, gpt_neox(), prefix(gpt_neox()));
    BlockTransformerConfig { n_embedding_tokens, context_blocks, predict_first_block, ..config }
}

pub(super) fn vanilla() -> VanillaTransformerConfig {
    VanillaTransformerConfig {
        vocab_size: VOCAB_SIZE,
        max_length: 640,
        eos_token_id: Some(0),
        tied_embeddings: false,
        transformer: llama(),
    }
}

/// As many words as the paper's models have, and little else.
pub(super) fn large_vocabulary() -> VanillaTransformerConfig {
    let transformer = TransformerConfig::gpt_neox(16, 1, 2);
    VanillaTransformerConfig { vocab_size: blockformer_model::presets::VOCAB_SIZE, transformer, ..vanilla() }
}
