//! An embedder and a token decoder of your own: train them, save them, load them, and let them write.
//!
//! The embedder averages the embeddings of a block's tokens, weighted by a learned gate. The token decoder has no
//! attention: it adds up the context embedding and the embeddings of the tokens so far, and puts a small network on
//! the sum. Neither is good; both show what there is to implement.
//!
//! ```text
//! cargo run --release -p blockformer-examples --example own_parts
//! ```

use std::error::Error;
use std::ops::ControlFlow;

use blockformer::embedder::EmbedderSizes;
use blockformer::model::{Checkpoint, SavePrecision, save_weights};
use blockformer::prelude::*;
use blockformer::token_decoder::{TokenCache, TokenDecoderSizes, TokenInput, Vocabulary};
use blockformer::train::latest_checkpoint;
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::activation::{sigmoid, silu};
use burn::tensor::{Bool, Int, Tensor, s};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BLOCK_LENGTH: usize = 4;
const D_MODEL: usize = 256;

/// The mean of the tokens' embeddings, each weighted by a gate of its own.
#[derive(Module, Debug)]
struct GatedMean {
    embedding: Embedding,
    gate: Linear,
    #[module(skip)]
    sizes: EmbedderSizes,
}

impl Embedder for GatedMean {
    fn forward(&self, ids: Tensor<3, Int>, mask: Option<Tensor<3, Bool>>) -> Tensor<4> {
        let [batch, n_blocks, length] = ids.dims();
        let tokens = self.embedding.forward(ids.reshape([batch * n_blocks, length])); // [blocks, length, d_model]
        let mut weights = sigmoid(self.gate.forward(tokens.clone())); // [blocks, length, 1]
        if let Some(mask) = mask {
            weights = weights * mask.float().reshape([batch * n_blocks, length, 1]);
        }
        let mean = (tokens * weights.clone()).sum_dim(1) / (weights.sum_dim(1) + 1e-6); // [blocks, 1, d_model]
        mean.reshape([batch, n_blocks, 1, D_MODEL])
    }

    fn sizes(&self) -> EmbedderSizes {
        self.sizes
    }
}

/// The context embedding and a linear map of each token so far, summed, through a small network.
#[derive(Module, Debug)]
struct RunningSum {
    vocabulary: Vocabulary,
    shift: Linear,
    inner: Linear,
    #[module(skip)]
    sizes: TokenDecoderSizes,
}

/// The sum so far, `[rows, 1, d_model]`, and how many tokens are in it.
#[derive(Debug, Clone, Default)]
struct Sum(Option<(Tensor<3>, usize)>);

impl TokenCache for Sum {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |(sum, _)| sum.shape().num_elements() * 4)
    }
}

impl TokenDecoder for RunningSum {
    type Cache = Sum;

    fn forward(&self, input: TokenInput, cache: Option<&mut Sum>) -> Tensor<3> {
        let begins = input.context.is_some();
        let held = cache.as_ref().and_then(|cache| cache.0.clone());
        let (start, done) = match input.context {
            Some(context) => (context, 0),
            None => held.expect("a block that has begun"),
        };
        let mut states = vec![start];
        if let Some(ids) = input.ids {
            let mut steps = self.shift.forward(self.vocabulary.embed(ids)); // [rows, n, d_model]
            if let Some(mask) = input.mask {
                steps = steps * mask.float().unsqueeze_dim::<3>(2);
            }
            for i in 0..steps.dims()[1] {
                let step = steps.clone().slice(s![.., i..i + 1, ..]) * (1.0 + i as f32 + done as f32); // order matters
                let sum = states[states.len() - 1].clone() + step;
                states.push(sum);
            }
        }
        let n_tokens = states.len() - 1;
        let last = states[n_tokens].clone();
        let given = if begins { states } else { states.split_off(1) };
        if let Some(cache) = cache {
            cache.0 = Some((last, done + n_tokens));
        }
        let x = Tensor::cat(given, 1);
        x.clone() + silu(self.inner.forward(x))
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.vocabulary.logits(hidden)
    }

    fn new_cache(&self, _rows: usize, _device: &Device) -> Sum {
        Sum::default()
    }

    fn sizes(&self) -> TokenDecoderSizes {
        self.sizes
    }
}

type Model = BlockTransformer<GatedMean, RunningSum>;

fn new_model(config: &BlockTransformerConfig, device: &Device) -> Result<Model, Box<dyn Error>> {
    let linear = |input, output| LinearConfig::new(input, output).init(device);
    let embedder = GatedMean {
        embedding: EmbeddingConfig::new(config.vocab_size, D_MODEL).init(device),
        gate: linear(D_MODEL, 1),
        sizes: config.embedder_sizes(),
    };
    config.token_decoder_sizes().check_one_context_block("a running sum")?;
    let decoder = RunningSum {
        vocabulary: Vocabulary::new(config.vocab_size, D_MODEL, false, 0.02, device),
        shift: linear(D_MODEL, D_MODEL),
        inner: linear(D_MODEL, D_MODEL),
        sizes: config.token_decoder_sizes(),
    };
    Ok(config.init_with(embedder, decoder, device)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = blockformer::device("cpu")?.autodiff();
    device.seed(1);
    let text = "one two three four five six seven eight nine ten, ".repeat(6);
    let tokenizer = blockformer::data::character_level(&text)?;
    let corpus = InMemoryCorpus::tokenize(&vec![text; 30], &tokenizer)?;
    let data = PackedDataset::new(corpus, PackingConfig::new(BLOCK_LENGTH, 64, 0))?;

    let mut config = presets::block("block_main_b4_5").ok_or("a preset")?;
    (config.vocab_size, config.max_length, config.block_decoder.n_layers) = (tokenizer.vocab_size(), 128, 1);
    let settings = TrainConfig { steps: 120, batch_size: 8, warmup_steps: 10, ..TrainConfig::default() };
    let mut trainer = Trainer::new(new_model(&config, &device)?, data.clone(), settings, &device)?;
    while trainer.next_step() < 120 {
        let report = trainer.step()?;
        if report.step % 40 == 0 {
            println!("step {:>3}, loss {:.3}", report.step, report.loss);
        }
    }
    println!("loss on {} samples: {:.3}", data.len(), trainer.evaluate(&data, usize::MAX)?.loss);

    // A checkpoint, from which a new trainer goes on.
    let checkpoints = std::env::temp_dir().join(format!("blockformer-own-parts-{}", std::process::id()));
    trainer.save_checkpoint(&checkpoints, 1)?;
    let newest = latest_checkpoint(&checkpoints)?.path.ok_or("the checkpoint")?;
    let other = Trainer::new(new_model(&config, &device)?, data.clone(), trainer.config().clone(), &device)?;
    println!("a checkpoint of step {}", other.resume(&newest)?.next_step());
    std::fs::remove_dir_all(checkpoints)?;

    // Weights out and in again.
    let path = std::env::temp_dir().join(format!("blockformer-own-parts-{}.safetensors", std::process::id()));
    save_weights(&trainer.model().valid(), &path, SavePrecision::Float32)?;
    let device = device.inner();
    let model = Checkpoint::open(&path)?.load_into(new_model(&config, &device)?)?;
    std::fs::remove_file(path)?;

    let prompt = tokenizer.encode("one two three four five six")?;
    let options = GenerateOptions { max_new_tokens: 24, ..GenerateOptions::default() };
    let generated = generate(&model, &[&prompt], &options, &device, |_, _| ControlFlow::Continue(()))?;
    println!("one two three four five six|{}", tokenizer.decode(&generated[0].tokens)?);
    Ok(())
}
