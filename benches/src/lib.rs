//! What the benches share.

use blockformer::prelude::*;

/// Burn's CPU backend allocates a tensor for every operation; mimalloc makes that several times faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The device named by `BLOCKFORMER_BENCH_DEVICE`, the CPU by default.
///
/// # Panics
/// If there is no such device.
pub fn device() -> Device {
    let name = std::env::var("BLOCKFORMER_BENCH_DEVICE").unwrap_or_else(|_| "cpu".into());
    match blockformer::device(&name) {
        Ok(device) => device,
        Err(error) => panic!("BLOCKFORMER_BENCH_DEVICE: {error}"),
    }
}

/// The name of the device named by `BLOCKFORMER_BENCH_DEVICE`, and the number type, for a bench's id.
pub fn device_id() -> String {
    format!("{}/f32", std::env::var("BLOCKFORMER_BENCH_DEVICE").unwrap_or_else(|_| "cpu".into()))
}

/// A preset with random weights and a vocabulary of 4,096 tokens.
///
/// # Panics
/// If there is no such preset.
pub fn model(preset: &str, device: &Device) -> AnyModel {
    init(preset, config(preset), device)
}

/// The same for texts of up to `max_length` tokens, with the preset's own vocabulary, in the form in which it serves fastest.
///
/// # Panics
/// If there is no such preset.
pub fn serving_model(preset: &str, max_length: usize, device: &Device) -> ServingModel {
    let Some(mut config) = presets::model(preset) else { panic!("no preset {preset}") };
    match &mut config {
        ModelConfig::BlockTransformer(config) => {
            config.block_decoder.max_positions = max_length / config.block_length;
            config.max_length = max_length;
        }
        ModelConfig::VanillaTransformer(config) => {
            config.transformer.max_positions = max_length;
            config.max_length = max_length;
        }
    }
    let model = init(preset, config.clone(), device);
    match ServingModel::new(&config, model, device) {
        Ok(model) => model,
        Err(error) => panic!("{preset}: {error}"),
    }
}

fn config(preset: &str) -> ModelConfig {
    let Some(mut config) = presets::model(preset) else { panic!("no preset {preset}") };
    match &mut config {
        ModelConfig::BlockTransformer(config) => config.vocab_size = 4096,
        ModelConfig::VanillaTransformer(config) => config.vocab_size = 4096,
    }
    config
}

fn init(preset: &str, config: ModelConfig, device: &Device) -> AnyModel {
    match AnyModel::new(&config, device) {
        Ok(model) => model,
        Err(error) => panic!("{preset}: {error}"),
    }
}

/// A prompt of token ids that mean nothing.
pub fn prompt(length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| 1 + i.wrapping_mul(2_654_435_761) % 4000).collect()
}
