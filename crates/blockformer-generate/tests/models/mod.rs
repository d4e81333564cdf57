//! Small models with random weights, and their predictions by whole forward passes.
#![allow(dead_code)] // not every test needs all of it

use std::sync::{Arc, Mutex};

use blockformer_embedder::EmbedderConfig;
use blockformer_generate::{Engine, EngineConfig, LogitsHook, PagedModel, Request};
use blockformer_model::{
    AnyModel, BlockTransformer, BlockTransformerConfig, ModelConfig, VanillaTransformer, VanillaTransformerConfig,
    presets,
};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::{CrossAttentionConfig, Expansion, PrefixConfig, SummationConfig, TokenDecoderConfig};
use burn::tensor::{Device, Int, Tensor, TensorData, s};

pub(crate) const VOCAB_SIZE: usize = 300;

pub(crate) fn prompt(length: usize, salt: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * 7 + salt * 13 + 3) % VOCAB_SIZE) as u32).collect()
}

fn llama() -> TransformerConfig {
    TransformerConfig { initializer_range: 0.15, ..TransformerConfig::llama(32, 2, 4).with_n_kv_heads(2) }
}

fn gpt_neox() -> TransformerConfig {
    TransformerConfig { initializer_range: 0.15, ..TransformerConfig::gpt_neox(32, 2, 4) }
}

/// Blocks of four tokens, a context of 128.
pub(crate) fn block_config() -> BlockTransformerConfig {
    let config = presets::block("block_main_b4_5").unwrap();
    let transformer = gpt_neox();
    let (expansion, expansion_ratio, tied_embeddings) = (Expansion::Layer, 2, false);
    let prefix = PrefixConfig { transformer: transformer.clone(), expansion, expansion_ratio, tied_embeddings };
    let EmbedderConfig::Lookup(lookup) = &config.embedder else { panic!("a lookup embedder") };
    let mut lookup = lookup.clone();
    lookup.d_embedding = 8;
    BlockTransformerConfig {
        vocab_size: VOCAB_SIZE,
        max_length: 128,
        embedder: EmbedderConfig::Lookup(lookup),
        block_decoder: transformer,
        token_decoder: TokenDecoderConfig::Prefix(prefix),
        ..config
    }
}

/// The same model in every run: weights are drawn from a seed when they are first used, one model at a time.
pub(crate) fn drawn<M: PagedModel>(init: impl FnOnce() -> M) -> M {
    static DRAWING: Mutex<()> = Mutex::new(());
    let _one = DRAWING.lock().unwrap();
    Device::flex().seed(7);
    let model = init();
    engine_logits(&model, EngineConfig::default(), &[1, 2, 3, 4, 5], &[6, 7, 8, 9, 10]);
    model
}

pub(crate) fn block_model() -> BlockTransformer {
    drawn(|| block_config().init(&Device::flex()).unwrap())
}

fn vanilla_config() -> VanillaTransformerConfig {
    let config = presets::vanilla("vanilla_31").unwrap();
    VanillaTransformerConfig { vocab_size: VOCAB_SIZE, max_length: 128, transformer: llama(), ..config }
}

pub(crate) fn vanilla_model() -> VanillaTransformer {
    drawn(|| vanilla_config().init(&Device::flex()).unwrap())
}

fn summation() -> TokenDecoderConfig {
    let (expansion, start_token_id, tied_embeddings) = (Expansion::Layer, 1, true);
    TokenDecoderConfig::Summation(SummationConfig {
        transformer: gpt_neox(),
        expansion,
        start_token_id,
        tied_embeddings,
    })
}

fn cross_attention() -> TokenDecoderConfig {
    TokenDecoderConfig::CrossAttention(CrossAttentionConfig {
        d_model: 32,
        n_layers: 2,
        n_heads: 4,
        head_dim: 8,
        d_ff: 48,
        norm_eps: 1e-6,
        expansion: Expansion::Layer,
        expansion_ratio: 3,
        start_token_id: 0,
        relative_buckets: 32,
        relative_max_distance: 128,
    })
}

/// Every kind of token decoder, one and two embedding tokens a block, several contexts and a learned start, and a vanilla
/// transformer.
pub(crate) fn all_models() -> Vec<(&'static str, AnyModel)> {
    all_configured().into_iter().map(|(name, _, model)| (name, model)).collect()
}

/// The same with their configurations.
pub(crate) fn all_configured() -> Vec<(&'static str, ModelConfig, AnyModel)> {
    let config = block_config();
    let block = |config: BlockTransformerConfig| {
        let model = drawn(|| AnyModel::Block(config.init(&Device::flex()).unwrap()));
        (ModelConfig::BlockTransformer(config), model)
    };
    let mut two = BlockTransformerConfig { n_embedding_tokens: 2, block_decoder: llama(), ..config.clone() };
    if let EmbedderConfig::Lookup(lookup) = &mut two.embedder {
        lookup.d_embedding = 16;
    }
    let models = [
        ("prefix", block(config.clone())),
        ("two embedding tokens", block(two)),
        ("summation", block(BlockTransformerConfig { token_decoder: summation(), ..config.clone() })),
        ("cross-attention", block(BlockTransformerConfig { token_decoder: cross_attention(), ..config.clone() })),
        ("three contexts and a start", widened(&config)),
        ("vanilla", (ModelConfig::VanillaTransformer(vanilla_config()), AnyModel::Vanilla(vanilla_model()))),
    ];
    models.into_iter().map(|(name, (config, model))| (name, config, model)).collect()
}

/// A model that decodes a block from the last three contexts, and its first block from a learned start.
fn widened(config: &BlockTransformerConfig) -> (ModelConfig, AnyModel) {
    let config = BlockTransformerConfig { context_blocks: 3, predict_first_block: true, ..config.clone() };
    let mut model = drawn(|| config.init(&Device::flex()).unwrap());
    // As drawn, the learned ends are too small to be noticed if they were wrong.
    for end in [&mut model.context_ends.start, &mut model.context_ends.absent].into_iter().flatten() {
        *end = end.clone().map(|embedding| embedding.mul_scalar(50.0));
    }
    (ModelConfig::BlockTransformer(config), AnyModel::Block(model))
}

/// Logits of the token behind `tokens`, of which `prompt_len` are the prompt, by a forward pass over everything
/// without caches. The prompt ends at a block boundary; padding stands on the left of its first block.
pub(crate) fn uncached(model: &AnyModel, prompt_len: usize, tokens: &[u32]) -> Vec<f32> {
    let device = Device::flex();
    match model {
        AnyModel::Block(model) => {
            let length = model.layout().block_length;
            uncached_block(model, (length - prompt_len % length) % length, tokens)
        }
        AnyModel::Vanilla(model) => {
            let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
            let n = ids.len();
            let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, n]), &device);
            let logits = model.logits(model.forward(ids, None, None)).slice(s![.., n - 1.., ..]);
            logits.into_data().iter::<f32>().collect()
        }
    }
}

/// The same for a Block Transformer, with `padding` before the text.
pub(crate) fn uncached_block(model: &BlockTransformer, padding: usize, tokens: &[u32]) -> Vec<f32> {
    let device = Device::flex();
    let length = model.layout().block_length;
    let mut ids = vec![0i32; padding];
    ids.extend(tokens.iter().map(|&id| id as i32));
    let position = ids.len();
    ids.resize(position + length - position % length, 0); // what lies ahead cannot matter
    let n_blocks = ids.len() / length;
    let real: Vec<bool> = (0..ids.len()).map(|i| i >= padding).collect();
    let shape = [1, n_blocks, length];
    let ids = Tensor::<3, Int>::from_data(TensorData::new(ids, shape), &device);
    let output = model.forward(ids, Some(Tensor::from_data(TensorData::new(real, shape), &device)));
    let logits = model.logits(output.hidden); // [predicted blocks, block_length, vocab_size]
    let first = model.layout().first_predicted_block();
    let logits = logits.slice(s![position / length - first, position % length, ..]);
    logits.into_data().iter::<f32>().collect()
}

/// The log probability of `new` behind a prompt, where only `allowed` tokens may come.
pub(crate) fn restricted_logprob(model: &BlockTransformer, prompt: &[u32], new: &[u32], allowed: &[u32]) -> f64 {
    let padding = (4 - prompt.len() % 4) % 4;
    let mut tokens = prompt.to_vec();
    let mut total = 0.0;
    for &token in new {
        let logits = uncached_block(model, padding, &tokens);
        let sum: f64 = allowed.iter().map(|id| f64::from(logits[*id as usize]).exp()).sum();
        total += f64::from(logits[token as usize]) - sum.ln();
        tokens.push(token);
    }
    total
}

/// The logits that an engine has before each of the tokens of `text` behind the prompt, which it is made to write.
pub(crate) fn engine_logits<M: PagedModel>(
    model: M,
    config: EngineConfig,
    prompt: &[u32],
    text: &[u32],
) -> Vec<Vec<f32>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (recorder, forced, prompt_len) = (Arc::clone(&seen), text.to_vec(), prompt.len());
    let hook = LogitsHook::new(move |tokens, logits| {
        recorder.lock().unwrap().push(logits.to_vec());
        let next = forced[tokens.len() - prompt_len];
        logits.iter_mut().enumerate().filter(|(id, _)| *id as u32 != next).for_each(|(_, x)| *x = f32::NEG_INFINITY);
    });
    let config = EngineConfig { kv_budget: 1 << 20, ..config };
    let mut engine = Engine::new(model, config, &Device::flex()).unwrap();
    let request = Request::new(prompt).with_max_new_tokens(text.len());
    engine.submit(Request { hook: Some(hook), ..request }).unwrap();
    engine.run(|_, _| {});
    drop(engine);
    let seen = seen.lock().unwrap();
    seen.clone()
}
