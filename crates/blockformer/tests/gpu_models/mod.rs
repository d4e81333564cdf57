//! The device that tests of GPUs run on, and models for them.

use blockformer::embedder::EmbedderConfig;
use blockformer::model::{AnyModel, BlockTransformerConfig, VanillaTransformerConfig, presets};
use blockformer::nn::TransformerConfig;
use blockformer::token_decoder::{CrossAttentionConfig, Expansion, TokenDecoderConfig};
use burn::tensor::Device;

/// The one that is named, or the first of this build's backend.
pub(crate) fn device() -> Device {
    let name = std::env::var("BLOCKFORMER_TEST_DEVICE");
    let name = name.as_deref().unwrap_or(if cfg!(feature = "cuda") { "cuda:0" } else { "wgpu" });
    blockformer::device(name).expect("the device is there")
}

/// Small enough for a device in software; both decoders are alike.
pub(crate) fn block_model(transformer: TransformerConfig, max_length: usize) -> AnyModel {
    small_block(transformer.clone(), max_length, |token_decoder| {
        let TokenDecoderConfig::Prefix(prefix) = token_decoder else { panic!("a prefix decoder") };
        prefix.transformer = transformer;
    })
}

fn small_block(
    block_decoder: TransformerConfig,
    max_length: usize,
    change: impl FnOnce(&mut TokenDecoderConfig),
) -> AnyModel {
    let config = presets::block("block_main_b4_5").expect("a preset");
    let mut config = BlockTransformerConfig { vocab_size: 96, max_length, block_decoder, ..config };
    change(&mut config.token_decoder);
    let EmbedderConfig::Lookup(lookup) = &mut config.embedder else { panic!("a lookup embedder") };
    lookup.d_embedding = 8;
    AnyModel::Block(config.init(&Device::flex()).expect("a configuration that fits"))
}

/// Small, too.
pub(crate) fn vanilla_model(transformer: TransformerConfig, max_length: usize) -> AnyModel {
    vanilla_model_of(96, transformer, max_length)
}

/// The same with so many words.
#[allow(dead_code)] // one test of two has a use for it
pub(crate) fn vanilla_model_of(vocab_size: usize, transformer: TransformerConfig, max_length: usize) -> AnyModel {
    let config = presets::vanilla("vanilla_31").expect("a preset");
    let config = VanillaTransformerConfig { vocab_size, max_length, transformer, ..config };
    AnyModel::Vanilla(config.init(&Device::flex()).expect("a configuration that fits"))
}

/// The same block model with a token decoder that attends to the context.
#[allow(dead_code)] // one test of two has a use for it
pub(crate) fn cross_attention_model(transformer: TransformerConfig, max_length: usize) -> AnyModel {
    let (d_model, n_heads, head_dim) = (transformer.d_model, transformer.n_heads, transformer.head_dim);
    let cross_attention = CrossAttentionConfig {
        d_model,
        n_layers: 1,
        n_heads,
        head_dim,
        d_ff: 2 * d_model,
        norm_eps: 1e-6,
        expansion: Expansion::Layer,
        expansion_ratio: 2,
        start_token_id: 0,
        relative_buckets: 32,
        relative_max_distance: 128,
    };
    let cross_attention = TokenDecoderConfig::CrossAttention(cross_attention);
    small_block(transformer, max_length, |token_decoder| *token_decoder = cross_attention)
}
