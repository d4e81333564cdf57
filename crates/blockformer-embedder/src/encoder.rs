//! The encoder embedders: a small RoBERTa-style encoder reads each block (Ho et al. 2024, section 2.2).
//!
//! The encoder embedder joins the hidden states of the block's tokens; the CLS embedder puts CLS tokens in front and
//! joins theirs alone. Both follow RoBERTa: learned positions counted from `padding_idx + 1`, where tokens of id
//! `padding_idx` keep position `padding_idx`; the table rows at `padding_idx` are not trained; post-norm layers that
//! see the whole block, but not its padding.

use blockformer_nn::{AttentionMask, ConfigError, Norm, Transformer, TransformerConfig, normal_embedding};
use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::{Bool, Device, Int, Tensor, s};
use serde::{Deserialize, Serialize};

use crate::{BlockProjection, Embedder, EmbedderSizes, Projection};

/// Configuration of an [`EncoderEmbedder`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// The layers; see [`TransformerConfig::roberta`].
    pub transformer: TransformerConfig,
    /// Rows of the position table, more than `padding_idx` plus the tokens read.
    pub n_positions: usize,
    /// The token id, and the position, that stand for nothing; 1 in RoBERTa.
    pub padding_idx: usize,
    /// How hidden states are joined.
    pub projection: Projection,
    /// CLS tokens in front of the block; with any, their hidden states alone are joined.
    pub cls: Option<ClsTokens>,
}

/// The CLS tokens in front of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClsTokens {
    /// How many.
    pub n: usize,
    /// Their token id, the same for all; positions tell them apart.
    pub token_id: u32,
}

impl EncoderConfig {
    /// RoBERTa's conventions: 514 positions, padding index 1, a projection layer, no CLS tokens.
    pub fn roberta(d_model: usize, n_layers: usize, n_heads: usize) -> Self {
        Self {
            transformer: TransformerConfig::roberta(d_model, n_layers, n_heads),
            n_positions: 514,
            padding_idx: 1,
            projection: Projection::ProjectionLayer,
            cls: None,
        }
    }

    /// Initialises the embedder.
    ///
    /// # Errors
    /// A [`ConfigError`] if the sizes do not fit together.
    pub fn init(&self, sizes: &EmbedderSizes, device: &Device) -> Result<EncoderEmbedder, ConfigError> {
        self.transformer.validate()?;
        let TransformerConfig { d_model, initializer_range: std, norm, norm_eps, .. } = self.transformer;
        let n_cls = self.cls.map_or(0, |cls| cls.n);
        if let Some(cls) = self.cls {
            ConfigError::positive("embedder.cls.n", cls.n)?;
            ConfigError::bounded("embedder.cls.n", cls.n)?;
            let (id, last) = (f64::from(cls.token_id), sizes.vocab_size as f64 - 1.0);
            ConfigError::in_range("embedder.cls.token_id", id, 0.0, last)?;
        }
        ConfigError::bounded("embedder.n_positions", self.n_positions)?;
        ConfigError::bounded("embedder.padding_idx", self.padding_idx)?;
        let needed = self.padding_idx + 1 + n_cls + sizes.block_length;
        if self.n_positions < needed {
            let (field, value) = ("embedder.n_positions", self.n_positions);
            return Err(ConfigError::Mismatch { field, value, expected_field: "a block", expected: needed });
        }
        // Only the joined tokens count as the block for the projection.
        let joined = EmbedderSizes { block_length: if n_cls > 0 { n_cls } else { sizes.block_length }, ..*sizes };
        let table = |rows| normal_embedding(rows, d_model, std, device);
        Ok(EncoderEmbedder {
            word_embedding: table(sizes.vocab_size),
            position_embedding: table(self.n_positions),
            token_type_embedding: table(1),
            norm: Norm::new(norm, d_model, norm_eps, device),
            transformer: self.transformer.init(device),
            projection: BlockProjection::new(self.projection, d_model, &joined, device)?,
            padding_idx: self.padding_idx,
            n_cls,
            cls_token_id: self.cls.map_or(0, |cls| cls.token_id as usize),
            sizes: *sizes,
        })
    }
}

/// Reads each block with a bidirectional encoder.
#[derive(Module, Debug)]
pub struct EncoderEmbedder {
    /// `[vocab_size, d_model]`.
    pub word_embedding: Embedding,
    /// `[n_positions, d_model]`.
    pub position_embedding: Embedding,
    /// `[1, d_model]`, added everywhere.
    pub token_type_embedding: Embedding,
    /// On the sum of the three.
    pub norm: Norm,
    /// The layers.
    pub transformer: Transformer,
    /// Joins hidden states.
    pub projection: BlockProjection,
    padding_idx: usize,
    n_cls: usize,
    cls_token_id: usize,
    #[module(skip)]
    sizes: EmbedderSizes,
}

impl EncoderEmbedder {
    /// `[blocks, n]` token ids to `[blocks, n, d_model]`.
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let padding = self.padding_idx as i64;
        let counts = ids.clone().not_equal_elem(padding); // [blocks, n]
        let positions = counts.clone().int().cumsum(1) * counts.clone().int() + padding;
        let words = self.word_embedding.forward(ids);
        let trained = counts.float().cast(words.dtype()).unsqueeze_dim::<3>(2); // [blocks, n, 1]
        let words = without_gradient_where_zero(words, trained.clone());
        let positions = without_gradient_where_zero(self.position_embedding.forward(positions), trained);
        let token_type = self.token_type_embedding.weight.val().unsqueeze::<3>(); // [1, 1, d_model]
        self.norm.forward(words + positions + token_type)
    }
}

/// The same values; where `trained` is 0, no gradient flows.
fn without_gradient_where_zero(x: Tensor<3>, trained: Tensor<3>) -> Tensor<3> {
    let fixed = trained.clone().neg().add_scalar(1.0);
    x.clone() * trained + x.detach() * fixed
}

impl Embedder for EncoderEmbedder {
    fn forward(&self, ids: Tensor<3, Int>, mask: Option<Tensor<3, Bool>>) -> Tensor<4> {
        let [batch, n_blocks, length] = ids.dims();
        assert_eq!(
            length, self.sizes.block_length,
            "blocks of {length} tokens, the embedder wants {}",
            self.sizes.block_length
        );
        let (blocks, device) = (batch * n_blocks, ids.device());
        let mut ids = ids.reshape([blocks, length]);
        let mut mask = mask.map(|mask| mask.reshape([blocks, length]));
        if self.n_cls > 0 {
            let cls = Tensor::<2, Int>::full([blocks, self.n_cls], self.cls_token_id as i64, &device);
            ids = Tensor::cat(vec![cls, ids], 1);
            let real = Tensor::<2, Bool>::full([blocks, self.n_cls], true, &device);
            mask = mask.map(|mask| Tensor::cat(vec![real, mask], 1));
        }
        let attention = AttentionMask::bidirectional().with_keys(mask);
        let mut hidden = self.transformer.forward(self.embed(ids), &attention, None);
        if self.n_cls > 0 {
            hidden = hidden.slice(s![.., 0..self.n_cls, ..]);
        }
        self.projection.forward(hidden).reshape([batch, n_blocks, self.sizes.n_embedding_tokens, self.sizes.d_model])
    }

    fn sizes(&self) -> EmbedderSizes {
        self.sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    const SIZES: EmbedderSizes = EmbedderSizes { vocab_size: 11, block_length: 4, n_embedding_tokens: 2, d_model: 6 };

    fn configs() -> [EncoderConfig; 2] {
        let plain = EncoderConfig::roberta(8, 2, 2);
        [plain.clone(), EncoderConfig { cls: Some(ClsTokens { n: 4, token_id: 0 }), ..plain }]
    }

    fn difference(a: Tensor<4>, b: Tensor<4>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn blocks_do_not_see_each_other() {
        let device = Device::flex();
        for config in configs() {
            let embedder = config.init(&SIZES, &device).unwrap();
            let a = embedder.forward(Tensor::from_ints([[[2, 3, 4, 5], [6, 7, 8, 9]]], &device), None);
            let b = embedder.forward(Tensor::from_ints([[[2, 3, 4, 5], [9, 0, 2, 1]]], &device), None);
            assert_eq!(a.dims(), [1, 2, 2, 6]);
            let block = |x: &Tensor<4>, i: usize| x.clone().slice(s![.., i..i + 1, .., ..]);
            assert_eq!(difference(block(&a, 0), block(&b, 0)), 0.0);
            assert!(difference(block(&a, 1), block(&b, 1)) > 0.0);
        }
    }

    #[test]
    fn cls_states_do_not_depend_on_what_padding_holds() {
        let device = Device::flex();
        let embedder = configs()[1].init(&SIZES, &device).unwrap();
        let mask = TensorData::new(vec![true, true, false, false], [1, 1, 4]);
        let run = |padding: i32| {
            let ids = Tensor::<3, Int>::from_ints([[[2, 3, padding, padding]]], &device);
            embedder.forward(ids, Some(Tensor::from_data(mask.clone(), &device)))
        };
        assert!(difference(run(5), run(9)) < 1e-6);
    }

    #[test]
    fn a_position_table_that_is_too_short_is_refused() {
        let config = EncoderConfig { n_positions: 5, ..EncoderConfig::roberta(8, 1, 2) };
        let error = config.init(&SIZES, &Device::flex()).unwrap_err().to_string();
        assert_eq!(error, "embedder.n_positions is 5, but a block needs 6");
    }
}
