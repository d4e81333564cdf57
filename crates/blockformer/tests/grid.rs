//! What must hold for every combination of parts, on small random configurations.

use blockformer::embedder::{ClsTokens, EmbedderConfig, EncoderConfig, LookupConfig, Projection};
use blockformer::generate::LanguageModel;
use blockformer::model::{BlockTransformer, BlockTransformerConfig, Checkpoint, SavePrecision, save_weights};
use blockformer::nn::{Residual, TransformerConfig};
use blockformer::token_decoder::{CrossAttentionConfig, Expansion, PrefixConfig, SummationConfig, TokenDecoderConfig};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, s};
use proptest::prelude::*;

const VOCAB_SIZE: usize = 23;
const D_MODEL: usize = 24;
const MAX_BLOCKS: usize = 8;

fn layers(style: usize, n_layers: usize) -> TransformerConfig {
    let neox = TransformerConfig::gpt_neox(D_MODEL, n_layers, 2);
    let llama = TransformerConfig::llama(D_MODEL, n_layers, 4);
    let config = match style {
        0 => neox,
        1 => TransformerConfig { residual: Residual::Sequential, ..neox },
        2 => llama,
        3 => llama.with_n_kv_heads(2),
        _ => llama.with_n_kv_heads(1),
    };
    // A quarter of 12 features is an odd number to rotate; half of them are not.
    let rotary =
        config.rotary.map(|rotary| blockformer::nn::RotaryConfig { fraction: rotary.fraction.max(0.5), ..rotary });
    TransformerConfig { rotary, initializer_range: 0.25, ..config }
}

/// Any combination of embedder, token decoder, layer styles, block length and embedding tokens.
fn configs() -> impl Strategy<Value = BlockTransformerConfig> {
    let lengths = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (6, 3), (8, 1), (64, 1)];
    let lengths = proptest::sample::select(lengths.to_vec());
    let contexts = (1..4usize, any::<bool>());
    (lengths, 0..4usize, 0..3usize, 0..5usize, 0..5usize, 1..4usize, any::<bool>(), contexts).prop_map(
        |((block_length, n), embedder, decoder, block_style, token_style, ratio, tied, (context_blocks, start))| {
            let per_embedding = block_length / n;
            let encoder = EncoderConfig::roberta(8, 1, 2);
            let encoder = match token_style {
                0 | 1 => encoder,
                2 => EncoderConfig { transformer: TransformerConfig::gpt_neox(8, 1, 1), ..encoder },
                _ => EncoderConfig { transformer: TransformerConfig::llama(8, 1, 2).with_n_kv_heads(1), ..encoder },
            };
            let embedder = match embedder {
                0 if D_MODEL.is_multiple_of(per_embedding) => EmbedderConfig::Lookup(LookupConfig {
                    d_embedding: D_MODEL / per_embedding,
                    projection: Projection::Concat,
                }),
                0 | 1 => {
                    EmbedderConfig::Lookup(LookupConfig { d_embedding: 7, projection: Projection::ProjectionLayer })
                }
                2 => EmbedderConfig::Encoder(encoder),
                _ => {
                    EmbedderConfig::Encoder(EncoderConfig { cls: Some(ClsTokens { n: 2 * n, token_id: 0 }), ..encoder })
                }
            };
            let transformer = layers(token_style, 2);
            let expansion = if ratio == 3 { Expansion::Repeat } else { Expansion::Layer };
            let token_decoder = match decoder {
                0 => TokenDecoderConfig::Prefix(PrefixConfig {
                    transformer,
                    expansion,
                    expansion_ratio: ratio,
                    tied_embeddings: tied,
                }),
                1 => TokenDecoderConfig::Summation(SummationConfig {
                    transformer,
                    expansion,
                    start_token_id: 0,
                    tied_embeddings: tied,
                }),
                _ => TokenDecoderConfig::CrossAttention(CrossAttentionConfig {
                    d_model: D_MODEL,
                    n_layers: 2,
                    n_heads: 2,
                    head_dim: 8,
                    d_ff: 32,
                    norm_eps: 1e-6,
                    expansion,
                    expansion_ratio: ratio,
                    start_token_id: 1,
                    relative_buckets: 32,
                    relative_max_distance: 128,
                }),
            };
            BlockTransformerConfig {
                vocab_size: VOCAB_SIZE,
                block_length,
                n_embedding_tokens: n,
                max_length: MAX_BLOCKS * block_length,
                pad_token_id: 0,
                eos_token_id: Some(0),
                random_pad_first_block: true,
                pad_to_block_boundary: true,
                context_blocks: if decoder == 0 { context_blocks } else { 1 },
                predict_first_block: start,
                embedder,
                block_decoder: layers(block_style, 2),
                token_decoder,
            }
        },
    )
}

fn ids(n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 5 + i * 3 + salt * 11 + 2) % VOCAB_SIZE) as u32).collect()
}

/// Logits of all blocks that are predicted, `[rows, tokens, vocab_size]`; `padding` tokens stand first in each row.
fn logits(model: &BlockTransformer, rows: &[Vec<u32>], padding: usize) -> Tensor<3> {
    let (device, length) = (Device::flex(), model.layout().block_length);
    let first = model.layout().first_predicted_block() * length;
    let (n_rows, n) = (rows.len(), rows[0].len());
    let shape = [n_rows, n / length, length];
    let values: Vec<i32> = rows.iter().flatten().map(|id| *id as i32).collect();
    let real: Vec<bool> = (0..n_rows * n).map(|i| i % n >= padding).collect();
    let mask = (padding > 0).then(|| Tensor::<3, Bool>::from_data(TensorData::new(real, shape), &device));
    let output = model.forward(Tensor::<3, Int>::from_data(TensorData::new(values, shape), &device), mask);
    model.logits(output.hidden).reshape([n_rows, n - first, VOCAB_SIZE])
}

fn difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_combination_of_parts_holds(config in configs(), changed in 0..1000usize, padding in 0..1000usize) {
        let device = Device::flex();
        let mut model = config.init(&device).unwrap();
        // As drawn, the learned ends are too small to be noticed if they were wrong.
        for end in [&mut model.context_ends.start, &mut model.context_ends.absent].into_iter().flatten() {
            *end = end.clone().map(|embedding| embedding.mul_scalar(50.0));
        }
        let length = config.block_length;
        let n = 5 * length;
        let (row, other) = (ids(n, 1), ids(n, 2));
        let full = logits(&model, std::slice::from_ref(&row), 0);

        // No future token changes a past logit, and some token changes some logit.
        let first = model.layout().first_predicted_block() * length;
        let at = first + changed % (n - first);
        let mut spoiled = row.clone();
        spoiled[at] = (spoiled[at] + 1) % VOCAB_SIZE as u32;
        let after = logits(&model, &[spoiled], 0);
        let past = at - first + 1; // the logits of the changed token itself come before it
        prop_assert!(difference(full.clone().slice(s![.., 0..past, ..]), after.clone().slice(s![.., 0..past, ..])) < 1e-5);
        if past < n - first {
            prop_assert!(difference(full.clone(), after) > 1e-6);
        }

        // A batch gives each row what it gets alone.
        let both = logits(&model, &[other.clone(), row.clone()], 0);
        prop_assert!(difference(both.slice(s![1..2, .., ..]), full.clone()) < 1e-4);
        let prompts = [&row[..3 * length - changed % length], &other[..1 + padding % length]];
        let steps = |prompts: &[&[u32]]| {
            let blocked = model.layout().block_prompts(prompts, length + 2).unwrap();
            let (mut state, logits) = model.prefill(&blocked, length + 2, &device);
            let tokens = vec![5; prompts.len()];
            let more = (0..length + 1).map(|_| model.step(&mut state, &tokens)).collect::<Vec<_>>();
            Tensor::stack::<3>([vec![logits], more].concat(), 1) // [batch, steps, vocab_size]
        };
        let ragged = steps(&prompts);
        for (index, prompt) in prompts.into_iter().enumerate() {
            prop_assert!(difference(ragged.clone().slice(s![index..index + 1, .., ..]), steps(&[prompt])) < 1e-4);
        }

        // Steps through the caches give what the whole pass gives, whatever the prompt's length.
        let prompt_len = changed % (2 * length) + usize::from(first > 0); // an empty one, where a start is known
        let lead = (length - prompt_len % length) % length;
        let text = &row[..n - lead];
        let blocked = model.layout().block_prompts(&[&text[..prompt_len]], text.len() - prompt_len + 1).unwrap();
        let (mut state, mut step) = model.prefill(&blocked, text.len() - prompt_len + 1, &device);
        let mut padded = vec![0; lead];
        padded.extend_from_slice(text);
        padded.resize(padded.len().next_multiple_of(length) + length, 0);
        let whole = logits(&model, &[padded], lead);
        for (position, token) in text.iter().enumerate().skip(prompt_len) {
            let expected = whole.clone().slice(s![0, lead + position - first, ..]).reshape([1, VOCAB_SIZE]);
            let error = difference(step.clone(), expected);
            prop_assert!(error < 1e-4, "prompt of {}, position {}: {}", prompt_len, position, error);
            step = model.step(&mut state, &[*token]);
        }

        // What padding holds changes nothing that is predicted from real tokens. Lookup embedders and joined encoder
        // states see the ids of padding within a block, as the authors' do; blocks of padding alone nobody sees.
        let padding = padding % (3 * length);
        let sees_ids = match &config.embedder {
            EmbedderConfig::Encoder(encoder) => encoder.cls.is_none(),
            _ => true,
        };
        let noise = if sees_ids { padding / length * length } else { padding };
        let mut noisy = row.clone();
        noisy[..noise].iter_mut().for_each(|id| *id = (*id + 7) % VOCAB_SIZE as u32);
        let a = logits(&model, std::slice::from_ref(&row), padding);
        let b = logits(&model, &[noisy], padding);
        // Without a learned start, the first real block follows nothing real; with one, its first token follows padding.
        let from = if first == 0 && padding > 0 { padding + 1 } else { (padding / length + 1) * length };
        let judged = s![.., from.min(n - 1) - first.., ..];
        prop_assert!(difference(a.slice(judged), b.slice(judged)) < 1e-4);

        // Saved and loaded, the weights give the same logits.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        save_weights(&model, &path, SavePrecision::Unchanged).unwrap();
        let loaded = Checkpoint::open(&path).unwrap().load_into(config.init(&device).unwrap()).unwrap();
        prop_assert_eq!(difference(logits(&loaded, std::slice::from_ref(&row), 0), full.clone()), 0.0);

        // So they do in a model of concrete types, and its weights in one of enums.
        if let (EmbedderConfig::Lookup(embedder), TokenDecoderConfig::Prefix(decoder)) =
            (&config.embedder, &config.token_decoder)
        {
            let embedder = embedder.init(&config.embedder_sizes(), &device).unwrap();
            let decoder = decoder.init(&config.token_decoder_sizes(), &device).unwrap();
            let concrete = config.init_with(embedder, decoder, &device).unwrap();
            let concrete = Checkpoint::open(&path).unwrap().load_into(concrete).unwrap();
            save_weights(&concrete, &path, SavePrecision::Unchanged).unwrap();
            let back = Checkpoint::open(&path).unwrap().load_into(config.init(&device).unwrap()).unwrap();
            prop_assert_eq!(difference(logits(&back, &[row], 0), full), 0.0);
        }
    }
}
