//! The paper's configurations by name.
//!
//! Sizes are those of the authors' trainer files (their repository, `conf/trainer`, and table 1 of the paper): 50,304
//! token ids (the GPT-NeoX-20B tokenizer), blocks of 4 tokens, a context of 2,048 tokens, GPT-NeoX layers, a lookup
//! embedder of concatenated embeddings, and a prefix token decoder with an expansion layer of ratio 2. The number in
//! a block model's name is that of its non-embedding parameters in millions (or, with a `b`, billions); in a vanilla
//! model's it is that of all parameters, as in Pythia's names.

use blockformer_embedder::{ClsTokens, EmbedderConfig, EncoderConfig, LookupConfig, Projection};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::{CrossAttentionConfig, Expansion, PrefixConfig, SummationConfig, TokenDecoderConfig};

use crate::{BlockTransformerConfig, ModelConfig, VanillaTransformerConfig};

/// Token ids of the paper's models.
pub const VOCAB_SIZE: usize = 50_304;
/// Context of the paper's models, in tokens.
pub const MAX_LENGTH: usize = 2048;
/// `<|endoftext|>` of the GPT-NeoX-20B tokenizer, which also serves as padding.
pub const EOS_TOKEN_ID: u32 = 0;

/// Name (that of the trainer file `conf/trainer/NAME.yaml` in the authors' repository), `d_model`, layers of the block
/// decoder, layers of the token decoder.
const BLOCK: [(&str, usize, usize, usize); 6] = [
    ("block_main_b4_5", 256, 3, 3),
    ("block_main_b4_19", 512, 3, 3),
    ("block_main_b4_85", 768, 6, 6),
    ("block_main_b4_300", 1024, 12, 12),
    ("block_main_b4_800", 2048, 8, 8),
    ("block_main_b4_1.2b", 2048, 12, 12),
];

/// Name (that of the trainer file `conf/trainer/NAME.yaml`), `d_model`, layers: the shapes of Pythia 31M to 6.9B
/// (Biderman et al. 2023, table 1); heads follow the authors' rule, which at 2.8B gives 20 of 128 features and Pythia 32 of
/// 80.
const VANILLA: [(&str, usize, usize); 7] = [
    ("vanilla_31", 256, 6),
    ("vanilla_70", 512, 6),
    ("vanilla_160", 768, 12),
    ("vanilla_410", 1024, 24),
    ("vanilla_1.4b", 2048, 24),
    ("vanilla_2.8b", 2560, 32),
    ("vanilla_6.9b", 4096, 32),
];

/// Block models that the paper times with random weights, without saying more than their sizes: the layers of Pythia 2.8B
/// and 6.9B, half of them in each decoder. Name, `d_model`, layers of each decoder.
const TIMED: [(&str, usize, usize); 2] = [("block_timed_b4_2.8b", 2560, 16), ("block_timed_b4_6.9b", 4096, 16)];

/// MEGABYTE as the paper reproduces it (section 4.2 and appendix; trainer files of the same names): summation, a wide
/// block decoder and a narrow token decoder. Name, `d_model` and layers of the block decoder, of the token decoder.
const MEGABYTE: [(&str, usize, usize, usize, usize); 3] = [
    ("block_megabyte_b4_5", 256, 5, 128, 4),
    ("block_megabyte_b4_19", 512, 5, 256, 4),
    ("block_megabyte_b4_85", 768, 11, 512, 4),
];

/// The ablations of the embedder, the token decoder and the block length (trainer files of the same names; those
/// of block lengths 2 and 8 follow the one of 4), all of 6 + 6 layers of 768 features.
const ABLATIONS: [&str; 7] = [
    "block_ablation_b4_85_lookup_prefix",
    "block_ablation_b4_85_roberta_prefix",
    "block_ablation_b4_85_cls_sum",
    "block_ablation_b4_85_cls_cross_attn",
    "block_vanilla_ablation_b1_85",
    "block_ablation_b2_85_lookup_prefix",
    "block_ablation_b8_85_lookup_prefix",
];

/// The names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    let blocks = BLOCK.iter().map(|preset| preset.0).chain(MEGABYTE.iter().map(|preset| preset.0)).chain(ABLATIONS);
    let blocks = blocks.chain(TIMED.iter().map(|preset| preset.0));
    blocks.chain(VANILLA.iter().map(|preset| preset.0))
}

/// A preset of either kind, or `None` if there is none of that name.
pub fn model(name: &str) -> Option<ModelConfig> {
    let block = block(name).map(ModelConfig::BlockTransformer);
    block.or_else(|| vanilla(name).map(ModelConfig::VanillaTransformer))
}

/// A Block Transformer of the paper, or `None` if there is none of that name.
pub fn block(name: &str) -> Option<BlockTransformerConfig> {
    if let Some(&(_, d_model, block_layers, token_layers)) = BLOCK.iter().find(|preset| preset.0 == name) {
        let token_decoder = prefix(stack(d_model, token_layers), 2);
        return Some(with_parts(4, lookup(d_model / 4), stack(d_model, block_layers), token_decoder));
    }
    if let Some(&(_, d_model, layers)) = TIMED.iter().find(|preset| preset.0 == name) {
        let token_decoder = prefix(stack(d_model, layers), 2);
        return Some(with_parts(4, lookup(d_model / 4), stack(d_model, layers), token_decoder));
    }
    if let Some(&(_, d_block, block_layers, d_token, token_layers)) = MEGABYTE.iter().find(|preset| preset.0 == name) {
        let token_decoder = summation(stack(d_token, token_layers));
        return Some(with_parts(4, lookup(d_block / 4), stack(d_block, block_layers), token_decoder));
    }
    ablation(name)
}

fn ablation(name: &str) -> Option<BlockTransformerConfig> {
    let layers = || stack(768, 6);
    let encoder = || EncoderConfig::roberta(256, 3, 256 / head_dim(256));
    let cls = || EncoderConfig { cls: Some(ClsTokens { n: 3, token_id: 0 }), ..encoder() };
    let (block_length, embedder, token_decoder) = match name {
        "block_ablation_b4_85_lookup_prefix" => (4, lookup(192), prefix(layers(), 1)),
        "block_ablation_b4_85_roberta_prefix" => (4, EmbedderConfig::Encoder(encoder()), prefix(layers(), 1)),
        "block_ablation_b4_85_cls_sum" => (4, EmbedderConfig::Encoder(cls()), summation(layers())),
        "block_ablation_b4_85_cls_cross_attn" => (4, EmbedderConfig::Encoder(cls()), cross_attention()),
        "block_vanilla_ablation_b1_85" => (1, lookup(768), prefix(layers(), 1)),
        "block_ablation_b2_85_lookup_prefix" => (2, lookup(384), prefix(layers(), 1)),
        "block_ablation_b8_85_lookup_prefix" => (8, lookup(96), prefix(layers(), 1)),
        _ => return None,
    };
    Some(with_parts(block_length, embedder, layers(), token_decoder))
}

fn stack(d_model: usize, n_layers: usize) -> TransformerConfig {
    TransformerConfig::gpt_neox(d_model, n_layers, d_model / head_dim(d_model))
}

fn lookup(d_embedding: usize) -> EmbedderConfig {
    EmbedderConfig::Lookup(LookupConfig { d_embedding, projection: Projection::Concat })
}

fn prefix(transformer: TransformerConfig, expansion_ratio: usize) -> TokenDecoderConfig {
    let (expansion, tied_embeddings) = (Expansion::Layer, false);
    TokenDecoderConfig::Prefix(PrefixConfig { transformer, expansion, expansion_ratio, tied_embeddings })
}

fn summation(transformer: TransformerConfig) -> TokenDecoderConfig {
    let (expansion, start_token_id, tied_embeddings) = (Expansion::Layer, EOS_TOKEN_ID, false);
    TokenDecoderConfig::Summation(SummationConfig { transformer, expansion, start_token_id, tied_embeddings })
}

/// T5's decoder at the size of the ablations, with the start token the authors' code gives it.
fn cross_attention() -> TokenDecoderConfig {
    TokenDecoderConfig::CrossAttention(CrossAttentionConfig {
        d_model: 768,
        n_layers: 6,
        n_heads: 12,
        head_dim: 64,
        d_ff: 3072,
        norm_eps: 1e-6,
        expansion: Expansion::Layer,
        expansion_ratio: 4,
        start_token_id: 1,
        relative_buckets: 32,
        relative_max_distance: 128,
    })
}

fn with_parts(
    block_length: usize,
    embedder: EmbedderConfig,
    block_decoder: TransformerConfig,
    token_decoder: TokenDecoderConfig,
) -> BlockTransformerConfig {
    BlockTransformerConfig {
        vocab_size: VOCAB_SIZE,
        block_length,
        n_embedding_tokens: 1,
        max_length: MAX_LENGTH,
        pad_token_id: EOS_TOKEN_ID,
        eos_token_id: Some(EOS_TOKEN_ID),
        random_pad_first_block: true,
        pad_to_block_boundary: true,
        context_blocks: 1,
        predict_first_block: false,
        embedder,
        block_decoder,
        token_decoder,
    }
}

/// A vanilla transformer of Pythia's shape, or `None` if there is none of that name.
pub fn vanilla(name: &str) -> Option<VanillaTransformerConfig> {
    let &(_, d_model, layers) = VANILLA.iter().find(|preset| preset.0 == name)?;
    let n_heads = d_model / head_dim(d_model);
    Some(VanillaTransformerConfig {
        vocab_size: VOCAB_SIZE,
        max_length: MAX_LENGTH,
        eos_token_id: Some(EOS_TOKEN_ID),
        tied_embeddings: false,
        transformer: TransformerConfig::gpt_neox(d_model, layers, n_heads),
    })
}

/// The authors' rule for the features of a head.
pub(crate) fn head_dim(d_model: usize) -> usize {
    match d_model {
        ..=256 => 32,
        257..=1536 => 64,
        _ => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ParameterCount;
    use burn::tensor::Device;

    /// Rounds as the paper prints: three digits.
    fn rounds_to(got: usize, printed: f64, unit: f64) -> bool {
        let digits = printed.log10().floor() as i32;
        let step = 10f64.powi(digits - 2) * unit;
        (got as f64 - printed * unit).abs() <= step
    }

    #[test]
    fn parameter_counts_are_those_the_paper_prints() {
        let printed = [
            ("block_main_b4_5", 33.8e6, 4.7e6),
            ("block_main_b4_19", 77.4e6, 18.9e6),
            ("block_main_b4_85", 173e6, 85e6),
            ("block_main_b4_300", 420e6, 302e6),
            ("block_main_b4_800", 1.05e9, 806e6),
            ("block_main_b4_1.2b", 1.45e9, 1209e6),
        ];
        for (name, total, non_embedding) in printed {
            let count = ParameterCount::of(&block(name).unwrap().init(&Device::flex()).unwrap());
            assert!(rounds_to(count.total, total, 1.0), "{name}: {} of {total}", count.total);
            assert!((count.non_embedding as f64 / non_embedding - 1.0).abs() < 0.01, "{name}: {count:?}");
        }
    }

    #[test]
    fn vanilla_parameter_counts_are_those_of_pythia() {
        // Published totals and non-embedding counts of Pythia (Biderman et al. 2023, table 1); 31M is not in it.
        let printed = [
            ("vanilla_70", 70_426_624, 18_915_328),
            ("vanilla_160", 162_322_944, 85_056_000),
            ("vanilla_410", 405_334_016, 302_311_424),
            ("vanilla_1.4b", 1_414_647_808, 1_208_602_624),
            ("vanilla_2.8b", 2_775_208_960, 2_517_652_480),
            // Its vocabulary is padded to 50,432.
            ("vanilla_6.9b", 6_857_302_016 - 2 * (50_432 - 50_304) * 4096, 6_444_163_072),
        ];
        for (name, total, non_embedding) in printed {
            let count = ParameterCount::of(&vanilla(name).unwrap().init(&Device::flex()).unwrap());
            assert_eq!((count.total, count.non_embedding), (total, non_embedding), "{name}");
        }
        let count = ParameterCount::of(&vanilla("vanilla_31").unwrap().init(&Device::flex()).unwrap());
        assert!((30e6..31e6).contains(&(count.total as f64)), "{count:?}");
    }

    #[test]
    fn layers_of_ablations_and_megabyte_are_counted() {
        // 12 d² weights a layer and its biases and norms: 85 M in 6 + 6 layers of 768, as their names say; T5's layers
        // have a second attention and no biases, an encoder adds 3 layers of 256.
        let printed = [
            ("block_ablation_b4_85_lookup_prefix", 85.1e6),
            ("block_ablation_b8_85_lookup_prefix", 85.1e6),
            ("block_ablation_b4_85_roberta_prefix", 85.1e6 + 2.4e6),
            ("block_ablation_b4_85_cls_cross_attn", 42.5e6 + 6.0 * 16.0 * 768.0 * 768.0 + 2.4e6),
            ("block_megabyte_b4_85", 11.0 * 12.0 * 768.0 * 768.0 + 4.0 * 12.0 * 512.0 * 512.0),
        ];
        for (name, expected) in printed {
            let count = ParameterCount::of(&block(name).unwrap().init(&Device::flex()).unwrap());
            assert!((count.non_embedding as f64 / expected - 1.0).abs() < 0.01, "{name}: {count:?}, {expected}");
        }
    }

    #[test]
    fn every_preset_is_found_by_its_name() {
        for name in names() {
            let config = model(name).unwrap_or_else(|| panic!("no preset {name}"));
            assert!(crate::AnyModel::new(&config, &Device::flex()).is_ok(), "{name}");
        }
        assert_eq!(model("block_main_b4_7"), None);
    }
}
