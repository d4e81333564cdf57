//! Stream text from the bundled model.
//!
//! ```text
//! cargo run --release -p blockformer-examples --example stream_text
//! ```

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;

use blockformer::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let device = blockformer::device("cpu")?;
    let (_, model, tokenizer) = blockformer::bundled::load(&device)?;
    let prompt = tokenizer.encode("The whale")?;
    let sampling = Sampling { temperature: 0.8, top_p: Some(0.95), seed: 7, ..Sampling::default() };
    let options = GenerateOptions { max_new_tokens: 60, sampling, ..GenerateOptions::default() };
    let mut text = tokenizer.decode_stream();
    print!("The whale");
    generate(&model, &[&prompt], &options, &device, |_, token| {
        print!("{}", text.push(token).ok().flatten().unwrap_or_default());
        let _ = std::io::stdout().flush();
        ControlFlow::Continue(())
    })?;
    println!("{}", text.finish()?.unwrap_or_default());
    Ok(())
}
