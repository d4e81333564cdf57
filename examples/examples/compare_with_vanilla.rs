//! The same parameters as a Block Transformer and as a vanilla transformer: KV memory and decoding speed, with random
//! weights.
//!
//! ```text
//! cargo run --release -p blockformer-examples --example compare_with_vanilla
//! ```

use std::error::Error;
use std::ops::ControlFlow;
use std::time::Instant;

use blockformer::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let device = blockformer::device("cpu")?;
    for name in ["block_main_b4_5", "vanilla_31"] {
        let mut config = presets::model(name).ok_or("a preset")?;
        match &mut config {
            ModelConfig::BlockTransformer(config) => config.vocab_size = 4096,
            ModelConfig::VanillaTransformer(config) => config.vocab_size = 4096,
        }
        let model = AnyModel::new(&config, &device)?;
        let prompt: Vec<u32> = (0..256).map(|i| 1 + i % 4000).collect();
        let prompts = vec![prompt.as_slice(); 8];
        let blocked = model.layout().block_prompts(&prompts, 64)?;
        let (state, _) = model.prefill(&blocked, 64, &device); // also draws the weights
        let options = GenerateOptions { max_new_tokens: 64, ..GenerateOptions::default() };
        let started = Instant::now();
        generate(&model, &prompts, &options, &device, |_, _| ControlFlow::Continue(()))?;
        let speed = 8.0 * 64.0 / started.elapsed().as_secs_f64();
        let count = model.parameters();
        println!(
            "{name:<16} {:>8} non-embedding parameters, {:>8} bytes of KV cache, {speed:>6.0} tokens/s at batch 8",
            count.non_embedding,
            model.kv_bytes(&state)
        );
    }
    Ok(())
}
