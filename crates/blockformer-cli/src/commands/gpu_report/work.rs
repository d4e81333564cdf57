//! The least bytes and operations that generation takes, to say which share of a device's limits it reaches.

use blockformer::bench::Workload;
use blockformer::model::{AnyModel, ModelConfig, ParameterCount};
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
                let tokens = ParameterCount::of(&model.token_decoder);
                // Every weight of the token decoder is used in every step, but of the token table some rows alone.
                let (width, tied) = output(&config.token_decoder);
                let table = (config.vocab_size * width) as f64;
                let token_weights = tokens.total as f64 - if tied { 0.0 } else { table };
                let contexts = config.token_decoder_sizes().n_contexts();
                let cache = config.token_decoder.cache_size(contexts, config.block_length, bytes_per_weight);
                let (positions, of_row) = (cache.0 as f64, cache.1 as f64);
                let layers = tokens.non_embedding as f64 * positions / length; // an average token
                // Every token reads the token decoder's cache, on average half full; a block reads the block decoder's.
                let token_kv = (rows * of_row).min(kv_bytes as f64);
                let block_kv = (kv_bytes as f64 - token_kv) * filled;
                let block_step = blocks.step_flops(seen / length * config.n_embedding_tokens as f64);
                Self {
                    prefill_flops: rows * blocks.flops(embeddings),
                    prefill_bytes: bytes * (blocks.weights + token_weights),
                    step_flops: 2.0 * rows * (layers + table)
                        + rows * block_step * config.n_embedding_tokens as f64 / length,
                    step_bytes: bytes * (token_weights + blocks.weights / length) + block_kv / length + token_kv / 2.0,
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
