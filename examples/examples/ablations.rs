//! The paper's ablations in small: every embedder, every token decoder and several block lengths are trained on the
//! same tokens of real text, and so are the options this library adds. Writes `ablations.csv` and `ablations.md`.
//!
//! ```text
//! scripts/fetch-corpus.sh
//! cargo run --release -p blockformer-examples --example ablations -- data/bundled-corpus docs/results
//! ```
//!
//! A third argument sets the optimizer steps (300). A run that was stopped goes on behind the variants that the CSV
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
use blockformer::train::{Batch, LossConfig, Trainable};
use burn::module::Module;
use burn::tensor::Device;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const D_MODEL: usize = 128;
const N_LAYERS: usize = 3;
/// Tokens a sample, before blocks of drawn lengths are padded.
const SAMPLE: usize = 512;
const BATCH: usize = 8;
const LEARNING_RATE: f64 = 2e-3;
/// Held-out samples.
const VALIDATION: usize = 96;
/// Tokens at the start of a sample that no variant is judged on: not all variants predict them.
const UNJUDGED: usize = 8;
const HEADER: &str = "group,variant,parameters,non_embedding,steps,tokens,loss,first_block_loss,seconds";

/// A model to compare.
struct Variant {
    group: &'static str,
    name: &'static str,
    config: BlockTransformerConfig,
    block_lengths: BlockLengths,
}

/// What came of it.
struct Row {
    group: String,
    name: String,
    line: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [corpus, output, steps @ ..] = arguments.as_slice() else {
        return Err("usage: ablations CORPUS OUTPUT [STEPS]".into());
    };
    let steps: usize = steps.first().map_or(Ok(300), |steps| steps.parse())?;
    let device = blockformer::device("cpu")?;
    let (_, _, tokenizer) = blockformer::bundled::load(&device)?;
    let corpus = InMemoryCorpus::tokenize_stream(Documents::open(&[PathBuf::from(corpus)])?, &tokenizer)?;
    let (train, held_out) = corpus.split_documents(0.05, 0)?;
    let csv = Path::new(output).join("ablations.csv");
    let mut rows = read_rows(&csv, steps)?;
    for variant in variants(&tokenizer)? {
        if rows.iter().any(|row| row.group == variant.group && row.name == variant.name) {
            continue;
        }
        eprintln!("{}: {}", variant.group, variant.name);
        let row = run(&variant, &train, &held_out, steps, &device)?;
        eprintln!("{}", row.line);
        rows.push(row);
        let lines: Vec<&str> = rows.iter().map(|row| row.line.as_str()).collect();
        std::fs::create_dir_all(output)?;
        std::fs::write(&csv, format!("{HEADER}\n{}\n", lines.join("\n")))?;
    }
    let page = Path::new(output).join("ablations.md");
    std::fs::write(&page, markdown(&rows, steps))?;
    println!("wrote {} and {}", csv.display(), page.display());
    Ok(())
}

/// The variants that an earlier run of as many steps has done.
fn read_rows(csv: &Path, steps: usize) -> Result<Vec<Row>, Box<dyn Error>> {
    if !csv.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(csv)?;
    let mut rows = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let [group, name, _, _, had_steps, ..] = fields.as_slice() else {
            return Err(format!("{}: not a row of ablations: {line:?}", csv.display()).into());
        };
        if had_steps.parse::<usize>()? != steps {
            return Err(format!("{} holds runs of {had_steps} steps, not {steps}: move it away", csv.display()).into());
        }
        rows.push(Row { group: (*group).into(), name: (*name).into(), line: line.into() });
    }
    Ok(rows)
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

/// An encoder of three layers of a third of the width, as in the paper's ablations.
fn encoder(n_cls: Option<usize>, token_id: u32) -> EmbedderConfig {
    let cls = n_cls.map(|n| ClsTokens { n, token_id });
    // Encoder states of all tokens, or of the CLS tokens, are joined to the block embedding.
    let d_encoder = D_MODEL / n_cls.unwrap_or(4);
    EmbedderConfig::Encoder(EncoderConfig { cls, ..EncoderConfig::roberta(d_encoder, 3, 2) })
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
    let drawn = BlockTransformerConfig { max_length: 2 * SAMPLE, embedder: lookup(8), block_length: 8, ..base.clone() };
    let fixed = |group, name, config| Variant { group, name, config, block_lengths: BlockLengths::Fixed };
    Ok(vec![
        fixed("baseline", "baseline", base.clone()),
        fixed("embedder", "encoder", with_embedder(encoder(None, eos))),
        fixed("embedder", "encoder with 2 CLS tokens", with_embedder(encoder(Some(2), eos))),
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
        },
        fixed("beyond the paper", "context_blocks = 2", BlockTransformerConfig { context_blocks: 2, ..base.clone() }),
        fixed("beyond the paper", "context_blocks = 4", BlockTransformerConfig { context_blocks: 4, ..base.clone() }),
        fixed("beyond the paper", "predict_first_block", BlockTransformerConfig { predict_first_block: true, ..base }),
    ])
}

/// What the baseline is in the table of a group.
fn baseline_in(group: &str) -> &'static str {
    match group {
        "embedder" => "lookup",
        "token decoder" => "prefix of 1",
        "block length" => "4",
        _ => "the paper's",
    }
}

fn run(
    variant: &Variant,
    train: &InMemoryCorpus,
    held_out: &InMemoryCorpus,
    steps: usize,
    device: &Device,
) -> Result<Row, Box<dyn Error>> {
    let Variant { group, name, config, block_lengths } = variant;
    let eos = config.eos_token_id.ok_or("an end of text")?;
    let packing = PackingConfig {
        random_pad_first_block: false,
        pad_to_block_boundary: false,
        block_lengths: *block_lengths,
        ..PackingConfig::new(config.block_length, SAMPLE, eos)
    };
    let mut model_config = config.clone();
    // The learned start takes a position more.
    model_config.block_decoder.max_positions = model_config.block_decoder.max_positions.max(SAMPLE + 1);
    let autodiff = device.clone().autodiff();
    autodiff.seed(1);
    let model = AnyModel::new(&ModelConfig::BlockTransformer(model_config), &autodiff)?;
    let count = model.parameters();
    let settings = TrainConfig {
        steps,
        batch_size: BATCH,
        learning_rate: LEARNING_RATE,
        warmup_steps: steps / 10,
        ..TrainConfig::default()
    };
    let started = Instant::now();
    let mut trainer = Trainer::new(model, PackedDataset::new(train.clone(), packing)?, settings, &autodiff)?;
    while trainer.next_step() < steps {
        let report = trainer.step()?;
        if report.step % 50 == 0 {
            eprintln!("  step {}, loss {:.3}, {:.0} s", report.step, report.loss, started.elapsed().as_secs_f64());
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let held_out = PackedDataset::new(held_out.clone(), packing)?;
    let (loss, first) = judge(&trainer.model().valid(), &held_out, device);
    let first = first.map_or(String::new(), |loss| format!("{loss:.4}"));
    let (total, non_embedding, tokens) = (count.total, count.non_embedding, steps * BATCH * SAMPLE);
    let line = format!("{group},{name},{total},{non_embedding},{steps},{tokens},{loss:.4},{first},{seconds:.0}");
    Ok(Row { group: (*group).into(), name: (*name).into(), line })
}

/// Mean loss of the tokens all variants are judged on, and of first blocks where they are predicted.
fn judge(model: &AnyModel, data: &PackedDataset<InMemoryCorpus>, device: &Device) -> (f64, Option<f64>) {
    let layout = model.layout();
    let (mut judged, mut first) = ((0.0, 0), (0.0, 0));
    for index in 0..VALIDATION.min(data.len()) {
        let sample = data.sample(index);
        let batch = Batch::new(std::slice::from_ref(&sample), &layout, device);
        let losses = model.losses(&batch, &LossConfig::default(), 1.0).tokens.per_token.into_data();
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
         bundled model's corpus, with the bundled tokenizer, {N_LAYERS} layers of {D_MODEL} in each decoder (an encoder\n\
         embedder has 3 more), a learning rate of {LEARNING_RATE} with warmup and cosine, one seed. The loss is that of\n\
         the same held-out tokens for all, in nats a token; the first {UNJUDGED} tokens of a sample are left out. Written by\n\n\
         ```text\n\
         scripts/fetch-corpus.sh\n\
         cargo run --release -p blockformer-examples --example ablations -- data/bundled-corpus docs/results {steps}\n\
         ```\n\n\
         Runs as short as these tell large differences from small ones and no more: with one seed, differences of\n\
         about 0.02 nats mean nothing. The rows are in `ablations.csv`.\n"
    );
    let fields = |row: &Row| row.line.split(',').map(String::from).collect::<Vec<_>>();
    let row = |name: &str, row: &Row| {
        let fields = fields(row);
        format!("| {name} | {} | {} | {} |\n", fields[2], fields[6], fields[7])
    };
    let mut group = "";
    for variant in rows.iter().filter(|row| row.group != "baseline") {
        if variant.group != group {
            group = &variant.group;
            let heading = group[..1].to_uppercase() + &group[1..];
            page += &format!(
                "\n## {heading}\n\n| variant | parameters | loss | first block |\n| --- | ---: | ---: | ---: |\n"
            );
            if let Some(baseline) = rows.iter().find(|row| row.group == "baseline") {
                page += &row(baseline_in(group), baseline);
            }
        }
        page += &row(&variant.name, variant);
    }
    page
}
