//! Stream text from the bundled model.
//!
//! ```text
//! cargo run --release -p blockformer-examples --example stream_text
//! ```

use std::error::Error;
use std::io::Write;

use blockformer::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let device = blockformer::device("cpu")?;
    let (config, model, tokenizer) = blockformer::bundled::load(&device)?;
    let model = ServingModel::new(&config, model, &device)?;
    let prompt = tokenizer.encode("The whale")?;
    let engine_config = EngineConfig { alignment: Alignment::of(&config), ..EngineConfig::default() };
    let engine = EngineThread::spawn(Engine::new(model, engine_config, &device)?.with_tokenizer(tokenizer));
    let sampling = Sampling { temperature: 0.8, top_p: Some(0.95), seed: 7, ..Sampling::default() };
    print!("The whale");
    for event in engine.submit(Request::new(prompt).with_max_new_tokens(60).with_sampling(sampling))? {
        match event {
            Event::Token(token) => print!("{}", token.text),
            Event::Finished { text, .. } => println!("{text}"),
            Event::Failed(error) => return Err(error.into()),
            Event::Done(_) => {}
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
