//! The device that tests of GPUs run on, and models for them.

use blockformer::embedder::EmbedderConfig;
use blockformer::model::{AnyModel, BlockTransformerConfig, VanillaTransformerConfig, presets};
use blockformer::nn::TransformerConfig;
use blockformer::token_decoder::TokenDecoderConfig;
use burn::tensor::Device;

/// The one that is named, or the first of this build's backend.
pub(crate) fn device() -> Device {
    let name = std::env::var("BLOCKFORMER_TEST_DEVICE");
    let name = name.as_deref().unwrap_or(if cfg!(feature = "cuda") { "cuda:0" } else { "wgpu" });
    blockformer::device(name).expect("the device is there")
}

/// Small enough for a device in software; both decoders are alike.
pub(crate) fn block_model(transformer: TransformerConfig, max_length: usize) -> AnyModel {
    let config = presets::block("block_main_b4_5").expect("a preset");
    let mut config = BlockTransformerConfig { vocab_size: 96, max_length, ..config };
    config.block_decoder = transformer.clone();
    let TokenDecoderConfig::Prefix(prefix) = &mut config.token_decoder else { panic!("a prefix decoder") };
    prefix.transformer = transformer;
    let EmbedderConfig::Lookup(lookup) = &mut config.embedder else { panic!("a lookup embedder") };
    lookup.d_embedding = 8;
    AnyModel::Block(config.init(&Device::flex()).expect("a configuration that fits"))
}

/// Small, too.
pub(crate) fn vanilla_model(transformer: TransformerConfig, max_length: usize) -> AnyModel {
    let config = presets::vanilla("vanilla_31").expect("a preset");
    let config = VanillaTransformerConfig { vocab_size: 96, max_length, transformer, ..config };
    AnyModel::Vanilla(config.init(&Device::flex()).expect("a configuration that fits"))
}
