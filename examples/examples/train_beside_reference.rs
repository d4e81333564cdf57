//! Trains a checkpoint of the authors' implementation on a text, and writes the batches it trained on, so that the
//! same run can be done there. `scripts/train-beside-reference.sh` does both and compares them.
//!
//! ```sh
//! cargo run --release -p blockformer-examples --example train_beside_reference -- MODEL TEXT OUTPUT STEPS BATCH
//! ```
//! `OUTPUT/batches.i32` holds the token ids of all steps, `[steps, batch, blocks, block_length]`, little-endian;
//! `OUTPUT/run.json` the shape, and `OUTPUT/losses.csv` what each step gave.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use blockformer::data::{BatchOrder, Documents, InMemoryCorpus, PackedDataset, PackingConfig, TokenizerTraining};
use blockformer::model::AnyModel;
use blockformer::train::{TrainConfig, Trainer};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, output, steps, batch_size] = &arguments[..] else {
        return Err("give MODEL TEXT OUTPUT STEPS BATCH".into());
    };
    let (output, text) = (Path::new(output), vec![PathBuf::from(text)]);
    let (steps, batch_size) = (steps.parse()?, batch_size.parse()?);
    std::fs::create_dir_all(output)?;
    let device = blockformer::device("cpu")?.autodiff();
    let (config, model) = AnyModel::load(Path::new(model), &device)?;

    let tokenizer = TokenizerTraining::new(config.vocab_size()).train_byte_level_bpe_on_files(&text)?;
    let eos = tokenizer.eos_token_id().ok_or("the tokenizer has no end of text")?;
    let corpus = InMemoryCorpus::tokenize_stream(Documents::open(&text)?, &tokenizer)?;
    let packing = PackingConfig {
        random_pad_first_block: false, // one document: there is nothing to align
        pad_to_block_boundary: false,
        ..PackingConfig::new(config.block_length(), config.max_length(), eos)
    };
    let data = PackedDataset::new(corpus, packing)?;

    // The reference's schedule for short runs: warmup over a tenth, cosine to 10 %.
    let settings = TrainConfig { steps, batch_size, warmup_steps: steps / 10, ..TrainConfig::default() };
    write_batches(output, &data, &settings)?;
    let mut trainer = Trainer::new(model, data, settings, &device)?;
    let mut csv = String::from("step,loss,learning_rate,gradient_norm,tokens,seconds,data_seconds\n");
    while trainer.next_step() < steps {
        let r = trainer.step()?;
        let tail = format!("{},{},{},{}", r.gradient_norm, r.n_tokens, r.seconds, r.data_seconds);
        writeln!(csv, "{},{},{},{tail}", r.step, r.loss, r.learning_rate)?;
    }
    std::fs::write(output.join("losses.csv"), csv)?;
    Ok(())
}

fn write_batches(
    output: &Path,
    data: &PackedDataset<InMemoryCorpus>,
    settings: &TrainConfig,
) -> Result<(), Box<dyn Error>> {
    let order = BatchOrder::new(data.len(), settings.batch_size, settings.seed)?;
    let mut bytes = Vec::new();
    for step in 0..settings.steps as u64 {
        for index in order.indices(step) {
            let sample = data.sample(index);
            if sample.n_content() < sample.ids.len() {
                return Err("samples with padding are not for this comparison: give one long document".into());
            }
            bytes.extend(sample.ids.iter().flat_map(|&id| (id as i32).to_le_bytes()));
        }
    }
    std::fs::write(output.join("batches.i32"), bytes)?;
    let (length, block) = (data.config().max_length, data.config().block_length);
    let shape = format!("[{}, {}, {}, {block}]", settings.steps, settings.batch_size, length / block);
    let rates: Vec<f64> = (0..settings.steps).map(|step| settings.schedule().learning_rate(step)).collect();
    std::fs::write(output.join("run.json"), format!("{{\"shape\": {shape}, \"learning_rates\": {rates:?}}}\n"))?;
    Ok(())
}
