//! The paper's ablations in small: every embedder, every token decoder and several block lengths are trained on the
//! same tokens of real text, and so are the options this library adds. Writes `ablations.csv` and `ablations.md`.
//!
//! ```text
//! scripts/fetch-corpus.sh
//! cargo run --release -p blockformer-examples --example ablations -- data/bundled-corpus docs/results
//! ```
//!
//! A third argument sets the optimizer steps (250). A run that was stopped goes on behind the variants that the CSV
//! already holds. Every variant sees the same samples in the same order and is judged on the same held-out tokens.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blockformer::data::{BlockLengths, Documents, Tokenizer};
use blockformer::embedder::{ClsTokens, EmbedderConfig, EncoderConfig, LookupConfig, Projection};
use blockformer::model::BlockTransformerConfig;
use blockformer::nn::TransformerConfig;
use blockformer::prelude::*;
use blockformer::token_decoder::{CrossAttentionConfig, Expansion, PrefixConfig, SummationConfig, TokenDecoderConfig};
use blockformer::train::{Batch, Trainable};
use burn::module::Module;
use burn::tensor::Device;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const D_MODEL: usize = 128;
const N_LAYERS: usize = 2;
/// Tokens a sample, before blocks of drawn lengths are padded.
const SAMPLE: usize = 512;
const BATCH: usize = 4;
const LEARNING_RATE: f64 = 2e-3;
/// Held-out samples.
const VALIDATION: usize = 64;
/// Tokens at the start of a sample that no variant is judged on: not all variants predict them.
const UNJUDGED: usize = 8;
const HEADER: &str = "group,variant,settings,parameters,non_embedding,loss,first_block_loss,seconds";
const N_FIELDS: usize = 8;
/// The heading of the page's last section, which is written by hand.
const READING: &str = "\n## What they say";

/// A model to compare.
struct Variant {
    group: &'static str,
    name: &'static str,
    config: BlockTransformerConfig,
    block_lengths: BlockLengths,
    /// Of the initial weights.
    seed: u64,
}

/// What came of it, as it stands in the CSV.
struct Row(Vec<String>);

impl Row {
    fn is_of(&self, group: &str, name: &str) -> bool {
        self.0[0] == group && self.0[1] == name
    }
}

/// The text, packed alike for all.
struct Text {
    train: InMemoryCorpus,
    held_out: InMemoryCorpus,
    steps: usize,
}

impl Text {
    /// What rows of one table must have in common.
    fn settings(&self) -> String {
        let n_tokens = self.train.n_tokens();
        format!("{N_LAYERS}x{D_MODEL} {}x{BATCH}x{SAMPLE} of {n_tokens} tokens lr {LEARNING_RATE}", self.steps)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [corpus, output, steps @ ..] = arguments.as_slice() else {
        return Err("usage: ablations CORPUS OUTPUT [STEPS]".into());
    };
    let steps: usize = steps.first().map_or(Ok(250), |steps| steps.parse())?;
    let device = blockformer::device("cpu")?;
    let (_, _, tokenizer) = blockformer::bundled::load(&device)?;
    let corpus = InMemoryCorpus::tokenize_stream(Documents::open(&[PathBuf::from(corpus)])?, &tokenizer)?;
    let (train, held_out) = corpus.split_documents(0.05, 0)?;
    let text = Text { train, held_out, steps };
    std::fs::create_dir_all(output)?;
    let csv = Path::new(output).join("ablations.csv");
    let mut rows = read_rows(&csv, &text.settings())?;
    let page = Path::new(output).join("ablations.md");
    // What somebody wrote about the figures stays.
    let reading = std::fs::read_to_string(&page).ok().and_then(|old| old.find(READING).map(|at| old[at..].to_string()));
    let markdown = |rows: &[Row]| markdown(rows, steps) + reading.as_deref().unwrap_or_default();
    std::fs::write(&page, markdown(&rows))?;
    for variant in variants(&tokenizer)? {
        if rows.iter().any(|row| row.is_of(variant.group, variant.name)) {
            continue;
        }
        eprintln!("{}: {}", variant.group, variant.name);
        rows.extend(run(&variant, &text, &device)?);
        let lines: Vec<String> = rows.iter().map(|row| row.0.join(",") + "\n").collect();
        let unfinished = csv.with_extension("csv.part");
        std::fs::write(&unfinished, format!("{HEADER}\n{}", lines.concat()))?;
        std::fs::rename(unfinished, &csv)?;
        std::fs::write(&page, markdown(&rows))?;
    }
    println!("wrote {} and {}", csv.display(), page.display());
    Ok(())
}

/// The variants that an earlier run with the same settings has done.
fn read_rows(csv: &Path, settings: &str) -> Result<Vec<Row>, Box<dyn Error>> {
    if !csv.exists() {
        return Ok(Vec::new());
    }
    let row = |line: &str| {
        let fields: Vec<String> = line.split(',').map(String::from).collect();
        match fields.get(2) {
            Some(had) if fields.len() == N_FIELDS && had == settings => Ok(Row(fields)),
            _ => {
                Err(format!("{}: not a row of a run of {settings}: {line:?}; move the file away", csv.display()).into())
            }
        }
    };
    std::fs::read_to_string(csv)?.lines().skip(1).map(row).collect()
}

fn layers(n_layers: usize) -> TransformerConfig {
    TransformerConfig::gpt_neox(D_MODEL, n_layers, 4)
}

fn prefix(expansion_ratio: usize) -> TokenDecoderConfig {
    let (transformer, expansion) = (layers(N_LAYERS), Expansion::Layer);
    TokenDecoderConfig::Prefix(PrefixConfig { transformer, expansion, expansion_ratio, tied_embeddings: false })
}

fn summation(start_token_id: u32) -> TokenDecoderConfig {
    let (transformer, expansion) = (layers(N_LAYERS), Expansion::Layer);
    TokenDecoderConfig::Summation(SummationConfig { transformer, expansion, start_token_id, tied_embeddings: false })
}

fn cross_attention(start_token_id: u32) -> TokenDecoderConfig {
    TokenDecoderConfig::CrossAttention(CrossAttentionConfig {
        d_model: D_MODEL,
        n_layers: N_LAYERS,
        n_heads: 4,
        head_dim: 32,
        d_ff: 4 * D_MODEL,
        norm_eps: 1e-6,
        expansion: Expansion::Layer,
        expansion_ratio: 4,
        start_token_id,
        relative_buckets: 32,
        relative_max_distance: 128,
    })
}

/// An encoder of three layers of about a third of the width, as in the paper's ablations.
fn encoder(n_cls: Option<usize>, token_id: u32) -> EmbedderConfig {
    let cls = n_cls.map(|n| ClsTokens { n, token_id });
    // The end of text, never inside a block, is the id that has no position.
    EmbedderConfig::Encoder(EncoderConfig { cls, padding_idx: token_id as usize, ..EncoderConfig::roberta(42, 3, 2) })
}

fn variants(tokenizer: &Tokenizer) -> Result<Vec<Variant>, Box<dyn Error>> {
    let eos = tokenizer.eos_token_id().ok_or("the bundled tokenizer has an end of text")?;
    let lookup =
        |length| EmbedderConfig::Lookup(LookupConfig { d_embedding: D_MODEL / length, projection: Projection::Concat });
    let base = BlockTransformerConfig {
        vocab_size: tokenizer.vocab_size(),
        block_length: 4,
        n_embedding_tokens: 1,
        max_length: SAMPLE,
        pad_token_id: eos,
        eos_token_id: Some(eos),
        random_pad_first_block: false,
        pad_to_block_boundary: false,
        context_blocks: 1,
        predict_first_block: false,
        embedder: lookup(4),
        block_decoder: layers(N_LAYERS),
        token_decoder: prefix(1),
    };
    let with_embedder = |embedder| BlockTransformerConfig { embedder, ..base.clone() };
    let with_decoder = |token_decoder| BlockTransformerConfig { token_decoder, ..base.clone() };
    let of_length =
        |block_length| BlockTransformerConfig { block_length, embedder: lookup(block_length), ..base.clone() };
    let drawn = BlockTransformerConfig {
        // Blocks are padded behind, and a lookup embedder must be able to tell that from an end of text.
        vocab_size: base.vocab_size + 1,
        pad_token_id: base.vocab_size as u32,
        max_length: 2 * SAMPLE,
        ..of_length(8)
    };
    let contexts = |context_blocks| BlockTransformerConfig { context_blocks, ..base.clone() };
    let fixed = |group, name, config| Variant { group, name, config, block_lengths: BlockLengths::Fixed, seed: 1 };
    Ok(vec![
        fixed("baseline", "baseline", base.clone()),
        fixed("embedder", "encoder", with_embedder(encoder(None, eos))),
        fixed("embedder", "encoder with 3 CLS tokens", with_embedder(encoder(Some(3), eos))),
        fixed("token decoder", "prefix of 2", with_decoder(prefix(2))),
        fixed("token decoder", "prefix of 4", with_decoder(prefix(4))),
        fixed("token decoder", "summation", with_decoder(summation(eos))),
        fixed("token decoder", "cross-attention", with_decoder(cross_attention(eos))),
        fixed("block length", "1", of_length(1)),
        fixed("block length", "2", of_length(2)),
        fixed("block length", "8", of_length(8)),
        Variant {
            group: "block length",
            name: "drawn from 1 to 8",
            config: drawn,
            block_lengths: BlockLengths::Uniform { shortest: 1 },
            seed: 1,
        },
        fixed("beyond the paper", "context_blocks = 2", contexts(2)),
        fixed("beyond the paper", "context_blocks = 4", contexts(4)),
        fixed(
            "beyond the paper",
            "predict_first_block",
            BlockTransformerConfig { predict_first_block: true, ..base.clone() },
        ),
        Variant { seed: 2, ..fixed("other initial weights", "seed 2", base.clone()) },
        Variant { seed: 3, ..fixed("other initial weights", "seed 3", base) },
    ])
}

/// What the baseline is in the table of a group.
fn baseline_in(group: &str) -> &'static str {
    match group {
        "embedder" => "lookup",
        "token decoder" => "prefix of 1",
        "block length" => "4",
        "other initial weights" => "seed 1",
        _ => "the paper's",
    }
}

/// Trains and judges a variant: one row, or two where it is judged on full blocks as well.
fn run(variant: &Variant, text: &Text, device: &Device) -> Result<Vec<Row>, Box<dyn Error>> {
    let Variant { group, name, config, block_lengths, seed } = variant;
    let packing = PackingConfig {
        random_pad_first_block: false,
        pad_to_block_boundary: false,
        pad_token_id: config.pad_token_id,
        block_lengths: *block_lengths,
        ..PackingConfig::new(config.block_length, SAMPLE, config.eos_token_id.ok_or("an end of text")?)
    };
    let mut model_config = config.clone();
    // The learned start takes a position more.
    model_config.block_decoder.max_positions = model_config.block_decoder.max_positions.max(SAMPLE + 1);
    let autodiff = device.clone().autodiff();
    autodiff.seed(*seed);
    let model = AnyModel::new(&ModelConfig::BlockTransformer(model_config), &autodiff)?;
    let count = model.parameters();
    let started = Instant::now();
    let model = train(model, text, packing, &autodiff)?;
    let seconds = started.elapsed().as_secs_f64();
    let mut rows = Vec::new();
    let full = PackingConfig { block_lengths: BlockLengths::Fixed, ..packing };
    for (name, packing) in [(String::from(*name), packing), (format!("{name}; judged in full blocks"), full)] {
        if !rows.is_empty() && *block_lengths == BlockLengths::Fixed {
            break;
        }
        let (loss, first) = judge(&model, &PackedDataset::new(text.held_out.clone(), packing)?, device);
        let first = first.map_or(String::new(), |loss| format!("{loss:.4}"));
        let (total, non_embedding) = (count.total.to_string(), count.non_embedding.to_string());
        let (loss, seconds) = (format!("{loss:.4}"), format!("{seconds:.0}"));
        eprintln!("  {name}: {loss}, {seconds} s");
        rows.push(Row(vec![String::from(*group), name, text.settings(), total, non_embedding, loss, first, seconds]));
    }
    Ok(rows)
}

fn train(model: AnyModel, text: &Text, packing: PackingConfig, device: &Device) -> Result<AnyModel, Box<dyn Error>> {
    let settings = TrainConfig {
        steps: text.steps,
        batch_size: BATCH,
        learning_rate: LEARNING_RATE,
        warmup_steps: text.steps / 10,
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(model, PackedDataset::new(text.train.clone(), packing)?, settings, device)?;
    while trainer.next_step() < text.steps {
        let report = trainer.step()?;
        if report.step % 50 == 0 {
            eprintln!("  step {}, loss {:.3}", report.step, report.loss);
        }
    }
    Ok(trainer.model().valid())
}

/// Mean loss of the tokens all variants are judged on, and of first blocks where they are predicted.
fn judge(model: &AnyModel, data: &PackedDataset<InMemoryCorpus>, device: &Device) -> (f64, Option<f64>) {
    let layout = model.layout();
    let (mut judged, mut first) = ((0.0, 0), (0.0, 0));
    for index in 0..VALIDATION.min(data.len()) {
        let sample = data.sample(index);
        let batch = Batch::new(std::slice::from_ref(&sample), &layout, device);
        let losses = model.loss(&batch, 1.0).per_token.into_data();
        let skipped = layout.first_predicted_block() * layout.block_length;
        let mut place = sample.mask[..skipped].iter().filter(|real| **real).count();
        for ((loss, real), position) in losses.iter::<f64>().zip(&sample.mask[skipped..]).zip(skipped..) {
            if !real {
                continue;
            }
            let sum = if position < layout.block_length { &mut first } else { &mut judged };
            if place >= UNJUDGED || position < layout.block_length {
                *sum = (sum.0 + loss, sum.1 + 1);
            }
            place += 1;
        }
    }
    (judged.0 / f64::from(judged.1), (first.1 > 0).then(|| first.0 / f64::from(first.1)))
}

fn markdown(rows: &[Row], steps: usize) -> String {
    let tokens = steps * BATCH * SAMPLE;
    let mut page = format!(
        "# Ablations\n\n\
         Every variant was trained on the same {tokens} tokens ({steps} steps of {BATCH} samples of {SAMPLE}) of the\n\
         bundled model's corpus, with the bundled tokenizer, {N_LAYERS} layers of {D_MODEL} features in each decoder\n\
         (an encoder embedder has 3 more of 42), a learning rate of {LEARNING_RATE} with warmup and cosine. The loss is\n\
         that of the same held-out tokens for all, in nats a token; the first {UNJUDGED} tokens of a sample are left\n\
         out, since not all variants predict them. Written by\n\n\
         ```text\n\
         scripts/fetch-corpus.sh\n\
         cargo run --release -p blockformer-examples --example ablations -- data/bundled-corpus docs/results {steps}\n\
         ```\n\n\
         with all rows in `ablations.csv`. Runs as short as these tell large differences from small ones and no more;\n\
         the last table shows how much the initial weights alone change.\n"
    );
    let row =
        |name: &str, row: &Row| format!("| {name} | {} | {} | {} | {} |\n", row.0[3], row.0[4], row.0[5], row.0[6]);
    let mut group = "";
    for variant in rows.iter().filter(|row| row.0[0] != "baseline") {
        if variant.0[0] != group {
            group = &variant.0[0];
            let heading = group[..1].to_uppercase() + &group[1..];
            page += &format!("\n## {heading}\n\n| variant | parameters | in layers | loss | first block |\n");
            page += "| --- | ---: | ---: | ---: | ---: |\n";
            if let Some(baseline) = rows.iter().find(|row| row.0[0] == "baseline") {
                page += &row(baseline_in(group), baseline);
            }
        }
        page += &row(&variant.0[1], variant);
    }
    page
}
