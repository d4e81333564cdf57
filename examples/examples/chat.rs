//! A chat in the terminal, without a server. The bundled model was not trained to talk: it goes on from what was said.
//! What was said stays in the cache, so that each turn takes in nothing but the last lines.
//!
//! ```text
//! cargo run --release -p blockformer-examples --example chat
//! ```

use std::error::Error;
use std::io::{BufRead, Write};

use blockformer::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NEW_TOKENS: usize = 48;

fn main() -> Result<(), Box<dyn Error>> {
    let device = blockformer::device("cpu")?;
    let (config, model, tokenizer) = blockformer::bundled::load(&device)?;
    let model = ServingModel::new(&config, model, &device)?;
    // Blocks begin where the chat begins, so that what was said before is found again in the cache.
    let engine_config = EngineConfig { alignment: Alignment::ForceRest, page_blocks: 4, ..EngineConfig::default() };
    let engine = Engine::new(model, engine_config, &device)?.with_tokenizer(tokenizer.clone());
    let engine = EngineThread::spawn(engine);
    let mut said = Vec::new();
    eprintln!("Say something; Ctrl-D ends the chat.");
    for (turn, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line?;
        said.extend(tokenizer.encode(&format!("{line}\n"))?);
        // The oldest words are forgotten when the context is full.
        let room = config.max_length() - NEW_TOKENS - config.block_length();
        said.drain(..said.len().saturating_sub(room));
        let sampling = Sampling { temperature: 0.8, top_p: Some(0.9), seed: turn as u64, ..Sampling::default() };
        let request = Request::new(said.clone())
            .with_max_new_tokens(NEW_TOKENS)
            .with_sampling(sampling)
            .with_stop_strings(vec!["\n".into()]);
        for event in engine.submit(request)? {
            match event {
                Event::Token(token) => {
                    said.push(token.token);
                    print!("{}", token.text);
                    std::io::stdout().flush()?;
                }
                Event::Finished { text, .. } => println!("{text}"),
                Event::Done(usage) => {
                    eprintln!("[{} of {} prompt tokens were in the cache]", usage.reused_tokens, usage.prompt_tokens);
                }
                Event::Failed(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
