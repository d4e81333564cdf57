//! The least bytes and operations that generation takes, to say which share of a device's limits it reaches.

use blockformer::bench::Workload;
use blockformer::model::{AnyModel, BlockTransformer, BlockTransformerConfig, ModelConfig, ParameterCount};
use blockformer::token_decoder::TokenDecoderConfig;
use burn::module::Module;

/// Of a batch of sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Work {
    /// Operations from prompt to first token.
    pub(super) prefill_flops: f64,
    /// Bytes from prompt to first token: every weight once.
    pub(super) prefill_bytes: f64,
    /// Operations of a step, on average over the steps of a block.
    pub(super) step_flops: f64,
    /// Bytes of a step, on average: weights that are used, and keys and values at half of the new tokens.
    pub(super) step_bytes: f64,
}

/// One stack of layers.
struct Stack {
    weights: f64,
    n_layers: f64,
    width: f64,
}

impl Stack {
    fn of<M: Module>(module: &M, config: &blockformer::nn::TransformerConfig) -> Self {
        let weights = ParameterCount::of(module).non_embedding as f64;
        Self { weights, n_layers: config.n_layers as f64, width: (config.n_heads * config.head_dim) as f64 }
    }

    /// Operations of one position that sees `seen`: its weights, and two products of attention.
    fn step_flops(&self, seen: f64) -> f64 {
        2.0 * self.weights + 4.0 * self.n_layers * self.width * seen
    }

    /// Two operations a weight and position, and causal attention: two products of half of all pairs.
    fn flops(&self, positions: f64) -> f64 {
        2.0 * self.weights * positions + 2.0 * self.n_layers * self.width * positions * positions
    }
}

impl Work {
    pub(super) fn of(
        (config, model): (&ModelConfig, &AnyModel),
        workload: &Workload,
        batch: usize,
        (bytes_per_weight, kv_bytes): (usize, usize),
    ) -> Self {
        let (rows, bytes) = (batch as f64, bytes_per_weight as f64);
        let (prompt, new) = (workload.prompt_tokens as f64, workload.new_tokens as f64);
        // On average half of what is generated is there.
        let seen = prompt + new / 2.0;
        let filled = seen / (prompt + new);
        match (config, model) {
            (ModelConfig::BlockTransformer(config), AnyModel::Block(model)) => {
                let length = config.block_length as f64;
                let blocks = Stack::of(&model.block_decoder, &config.block_decoder);
                let embeddings = (prompt / length).ceil() * config.n_embedding_tokens as f64;
                let tokens = TokenWork::of(config, model, bytes_per_weight);
                // Every token reads the token decoder's cache, on average half full; a block reads the block decoder's.
                let token_kv = (rows * tokens.cache_bytes).min(kv_bytes as f64);
                let block_kv = (kv_bytes as f64 - token_kv) * filled;
                let block_step = blocks.step_flops(seen / length * config.n_embedding_tokens as f64);
                Self {
                    prefill_flops: rows * blocks.flops(embeddings),
                    prefill_bytes: bytes * (blocks.weights + tokens.weights),
                    step_flops: rows * tokens.flops + rows * block_step * config.n_embedding_tokens as f64 / length,
                    step_bytes: bytes * (tokens.weights + blocks.weights / length) + block_kv / length + token_kv / 2.0,
                }
            }
            (ModelConfig::VanillaTransformer(config), model) => {
                let stack = Stack::of(model, &config.transformer);
                let output = (config.vocab_size * config.transformer.d_model) as f64;
                Self {
                    prefill_flops: rows * (stack.flops(prompt) + 2.0 * output),
                    prefill_bytes: bytes * (stack.weights + output),
                    step_flops: rows * (stack.step_flops(seen) + 2.0 * output),
                    step_bytes: bytes * (stack.weights + output) + kv_bytes as f64 * filled,
                }
            }
            (ModelConfig::BlockTransformer(_), AnyModel::Vanilla(_)) => unreachable!("a configuration is its model's"),
        }
    }
}

/// What the token decoder does for a token, on average over a block.
struct TokenWork {
    /// Operations of its layers and of the output. Attention within a block is next to nothing.
    flops: f64,
    /// Weights that are used: all of them, but of a token table that makes no logits some rows alone.
    weights: f64,
    /// Bytes of its cache, for a sequence.
    cache_bytes: f64,
}

impl TokenWork {
    fn of(config: &BlockTransformerConfig, model: &BlockTransformer, bytes_per_weight: usize) -> Self {
        let tokens = ParameterCount::of(&model.token_decoder);
        let (width, tied) = output(&config.token_decoder);
        let table = (config.vocab_size * width) as f64;
        let contexts = config.token_decoder_sizes().n_contexts();
        let (positions, cache_bytes) = config.token_decoder.cache_size(contexts, config.block_length, bytes_per_weight);
        let layers = tokens.non_embedding as f64 * positions as f64 / config.block_length as f64;
        Self {
            flops: 2.0 * (layers + table),
            weights: tokens.total as f64 - if tied { 0.0 } else { table },
            cache_bytes: cache_bytes as f64,
        }
    }
}

/// Operations of a forward pass in training, on average over the tokens of a sample of `length`.
pub(super) fn forward_flops((config, model): (&ModelConfig, &AnyModel), length: usize) -> f64 {
    let n = length as f64;
    match (config, model) {
        (ModelConfig::BlockTransformer(config), AnyModel::Block(model)) => {
            let blocks = Stack::of(&model.block_decoder, &config.block_decoder);
            let embeddings = n / config.block_length as f64 * config.n_embedding_tokens as f64;
            blocks.flops(embeddings) / n + TokenWork::of(config, model, 4).flops
        }
        (ModelConfig::VanillaTransformer(config), model) => {
            let output = (config.vocab_size * config.transformer.d_model) as f64;
            Stack::of(model, &config.transformer).flops(n) / n + 2.0 * output
        }
        (ModelConfig::BlockTransformer(_), AnyModel::Vanilla(_)) => unreachable!("a configuration is its model's"),
    }
}

/// Features that logits are made of, and whether the token table makes them.
fn output(config: &TokenDecoderConfig) -> (usize, bool) {
    match config {
        TokenDecoderConfig::Prefix(config) => (config.transformer.d_model, config.tied_embeddings),
        TokenDecoderConfig::Summation(config) => (config.transformer.d_model, config.tied_embeddings),
        TokenDecoderConfig::CrossAttention(config) => (config.d_model, false),
        _ => (0, true),
    }
}

#[cfg(test)]
mod tests {
    use blockformer::model::presets;

    use super::*;

    fn work(preset: &str, workload: &Workload, kv_bytes: usize) -> Work {
        let config = presets::model(preset).unwrap();
        let model = AnyModel::new(&config, &blockformer::device("cpu").unwrap()).unwrap();
        Work::of((&config, &model), workload, 2, (4, kv_bytes))
    }

    /// Within a hundredth: biases and norms are not in the formulas.
    fn assert_near(got: f64, expected: f64) {
        assert!((got / expected - 1.0).abs() < 0.01, "{got:e}, expected {expected:e}");
    }

    #[test]
    fn a_vanilla_transformer_uses_all_its_weights_for_every_token() {
        let (d, layers, vocabulary, n) = (1024f64, 24.0, 50_304.0, 2048.0);
        let weights = layers * 12.0 * d * d;
        let work = work("vanilla_410", &Workload::prefill_heavy(), 2176);
        assert_near(work.prefill_flops, 2.0 * (2.0 * n * weights + 2.0 * layers * d * n * n + 2.0 * vocabulary * d));
        let seen = n + 64.0;
        assert_near(work.step_flops, 2.0 * (2.0 * (weights + vocabulary * d) + 4.0 * layers * d * seen));
        assert_near(work.step_bytes - 2112.0, 4.0 * (weights + vocabulary * d));
    }

    #[test]
    fn a_training_step_goes_forward_through_all_weights() {
        let forward = |preset: &str| {
            let config = presets::model(preset).unwrap();
            let model = AnyModel::new(&config, &blockformer::device("cpu").unwrap()).unwrap();
            forward_flops((&config, &model), 2048)
        };
        let (d, n, vocabulary) = (256f64, 2048.0, 50_304.0);
        let weights = 3.0 * 12.0 * d * d;
        assert_near(forward("vanilla_31"), 2.0 * (2.0 * weights + vocabulary * d) + 2.0 * 6.0 * d * n);
        let blocks = 2.0 * weights + 2.0 * 3.0 * d * n / 4.0;
        let expansion = 2.0 * d * d;
        let tokens = 2.0 * (5.0 / 4.0 * (weights + expansion) + vocabulary * d);
        assert_near(forward("block_main_b4_5"), blocks / 4.0 + tokens);
    }

    #[test]
    fn a_block_model_uses_its_block_decoder_once_a_block() {
        let (d, layers, vocabulary, n) = (1024f64, 12.0, 50_304.0, 512.0);
        let weights = layers * 12.0 * d * d;
        let work = work("block_main_b4_300", &Workload::prefill_heavy(), 0);
        assert_near(work.prefill_flops, 2.0 * (2.0 * n * weights + 2.0 * layers * d * n * n));
        // A block of four takes the token decoder through two positions of context and three tokens.
        let layers_of_a_token = weights * 5.0 / 4.0 + weights / 4.0;
        let attention = 4.0 * layers * d * (n + 16.0) / 4.0;
        assert_near(work.step_flops, 2.0 * (2.0 * (layers_of_a_token + vocabulary * d) + attention));
        let expansion = 2.0 * d * d;
        assert_near(work.step_bytes, 4.0 * (weights + vocabulary * d + expansion + weights / 4.0));
    }
}
