//! A model of some thousand parameters, and documents for it.

use blockformer_data::{InMemoryCorpus, PackedDataset, PackingConfig};
use blockformer_embedder::{EmbedderConfig, LookupConfig, Projection};
use blockformer_model::{BlockTransformer, BlockTransformerConfig, presets};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::TokenDecoderConfig;
use blockformer_train::{TrainConfig, Trainer};
use burn::tensor::Device;

pub(crate) fn config() -> BlockTransformerConfig {
    let mut config = presets::block("block_main_b4_5").unwrap();
    config.block_decoder = TransformerConfig::llama(32, 1, 2);
    config.embedder = EmbedderConfig::Lookup(LookupConfig { d_embedding: 8, projection: Projection::Concat });
    if let TokenDecoderConfig::Prefix(prefix) = &mut config.token_decoder {
        prefix.transformer = TransformerConfig::llama(32, 1, 2);
    }
    BlockTransformerConfig { vocab_size: 16, max_length: 64, ..config }
}

pub(crate) fn model() -> BlockTransformer {
    let device = Device::flex().autodiff();
    device.seed(3);
    config().init(&device).unwrap()
}

pub(crate) fn data() -> PackedDataset<InMemoryCorpus> {
    // Documents of many lengths, so that samples differ in how much of them is padding.
    let documents = (3..60u32).map(|n| (0..n).map(|i| 1 + (i * i + n) % 15).collect::<Vec<_>>());
    PackedDataset::new(InMemoryCorpus::from_documents(documents), PackingConfig::new(4, 32, 0)).unwrap()
}

pub(crate) fn trainer(model: BlockTransformer, config: TrainConfig) -> Trainer<BlockTransformer, InMemoryCorpus> {
    Trainer::new(model, data(), config, &Device::flex().autodiff()).unwrap()
}
