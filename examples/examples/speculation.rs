//! What block self-speculation gives on the bundled model, one sequence at a time: tokens a second with and without,
//! and how many of the drafted tokens the model draws.
//!
//! ```text
//! cargo run --release -p blockformer-examples --example speculation
//! ```

use std::error::Error;
use std::time::Instant;

use blockformer::generate::Speculation;
use blockformer::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PROMPTS: [&str; 4] = [
    "The people of the United States",
    "The whale",
    "The Congress of the United States. The Congress of the United States. The Congress",
    "one two three four, one two three four, one two three four, one two",
];
const NEW_TOKENS: usize = 160;
const REPEATS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let device = blockformer::device("cpu")?;
    let (config, model, tokenizer) = blockformer::bundled::load(&device)?;
    let model = ServingModel::new(&config, model, &device)?;
    for (name, temperature) in [("greedy", 0.0), ("temperature 0.7", 0.7)] {
        for (drafts, speculation) in [
            ("none", None),
            ("2 to 4 tokens", Some(Speculation { shortest: 2, longest: 4 })),
            ("1 to 4 tokens", Some(Speculation { shortest: 1, longest: 4 })),
        ] {
            let alignment = Alignment::of(&config);
            let settings = EngineConfig { alignment, speculation, reuse_prefixes: false, ..EngineConfig::default() };
            let mut engine = Engine::new(&model, settings, &device)?;
            let mut speeds = Vec::new();
            for _ in 0..REPEATS {
                let (before, started) = (engine.stats().generated_tokens, Instant::now());
                for (seed, prompt) in PROMPTS.iter().enumerate() {
                    let sampling = Sampling { temperature, seed: seed as u64, ..Sampling::default() };
                    let request = Request::new(tokenizer.encode(prompt)?).with_max_new_tokens(NEW_TOKENS);
                    engine.submit(request.with_sampling(sampling))?;
                    engine.run(|_, _| {});
                }
                let tokens = engine.stats().generated_tokens - before;
                speeds.push(tokens as f64 / started.elapsed().as_secs_f64());
            }
            speeds.sort_by(f64::total_cmp);
            let stats = engine.stats();
            let a_pass = stats.generated_tokens as f64 / stats.verifications.max(1) as f64;
            println!(
                "{name:<16} drafts after {drafts:<14} {:>6.1} tokens/s, {} of {} drafted tokens drawn, {a_pass:.2} tokens a pass",
                speeds[REPEATS / 2],
                stats.accepted_tokens,
                stats.drafted_tokens,
            );
        }
    }
    Ok(())
}
