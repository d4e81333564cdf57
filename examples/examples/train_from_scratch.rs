//! Train a small Block Transformer on a text of its own, save it, load it again, and let it write.
//!
//! ```text
//! cargo run --release -p blockformer-examples --example train_from_scratch
//! ```

use std::error::Error;
use std::ops::ControlFlow;

use blockformer::data::character_level;
use blockformer::model::SavePrecision;
use blockformer::prelude::*;
use blockformer::token_decoder::TokenDecoderConfig;
use burn::module::Module;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let device = blockformer::device("cpu")?.autodiff();
    device.seed(1);

    // Text to tokens, tokens to packed blocks.
    let text = "one two three four five six seven eight nine ten, ".repeat(200);
    let tokenizer = character_level(&text)?;
    let corpus = InMemoryCorpus::tokenize(&[text], &tokenizer)?;
    let eos = tokenizer.eos_token_id().ok_or("a tokenizer with an end of text")?;
    let data = PackedDataset::new(corpus, PackingConfig::new(4, 64, eos))?;

    // The paper's smallest model, made smaller still.
    let mut config = presets::block("block_main_b4_5").ok_or("a preset")?;
    (config.vocab_size, config.max_length) = (tokenizer.vocab_size(), 128);
    config.block_decoder.n_layers = 1;
    if let TokenDecoderConfig::Prefix(prefix) = &mut config.token_decoder {
        prefix.transformer.n_layers = 1;
    }
    let config = ModelConfig::BlockTransformer(config);
    let model = AnyModel::new(&config, &device)?;
    println!("{} parameters", model.parameters().total);

    let settings = TrainConfig { steps: 80, batch_size: 4, warmup_steps: 10, ..TrainConfig::default() };
    let mut trainer = Trainer::new(model, data, settings, &device)?;
    while trainer.next_step() < 80 {
        let report = trainer.step()?;
        if report.step % 20 == 0 {
            println!("step {:>3}, loss {:.3}", report.step, report.loss);
        }
    }

    // A model directory, and back.
    let name = format!("blockformer-train-from-scratch-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    trainer.model().valid().save(&config, &directory, SavePrecision::Float32)?;
    let device = device.inner();
    let (_, model) = AnyModel::load(&directory, &device)?;
    let prompt = tokenizer.encode("one two three four five six seven")?;
    let options = GenerateOptions { max_new_tokens: 40, ..GenerateOptions::default() };
    let generated = generate(&model, &[&prompt], &options, &device, |_, _| ControlFlow::Continue(()))?;
    println!("one two three four five six seven|{}", tokenizer.decode(&generated[0].tokens)?);
    Ok(std::fs::remove_dir_all(directory)?)
}
