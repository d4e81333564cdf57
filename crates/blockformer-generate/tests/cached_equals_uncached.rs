//! Generation through the caches against whole forward passes.

use std::ops::ControlFlow;

use blockformer_generate::{FinishReason, GenerateError, GenerateOptions, LanguageModel, Sampling, generate};
use blockformer_model::{
    BlockTransformer, BlockTransformerConfig, PromptError, VanillaTransformer, VanillaTransformerConfig, presets,
};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::TokenDecoderConfig;
use burn::tensor::{Device, Int, Tensor, TensorData, s};

const VOCAB_SIZE: usize = 50;

fn block_model(style: fn(usize, usize, usize) -> TransformerConfig) -> BlockTransformer {
    widened_model(style, 1, false)
}

/// A model that decodes a block from the last few contexts, or its first block from a learned start.
fn widened_model(
    style: fn(usize, usize, usize) -> TransformerConfig,
    context_blocks: usize,
    predict_first_block: bool,
) -> BlockTransformer {
    let mut config = presets::block("block_main_b4_5").unwrap();
    let transformer = TransformerConfig { initializer_range: 0.15, ..style(32, 2, 4) };
    config.block_decoder = transformer.clone();
    let TokenDecoderConfig::Prefix(prefix) = &mut config.token_decoder else { panic!("a prefix decoder") };
    prefix.transformer = transformer;
    let blockformer_embedder::EmbedderConfig::Lookup(lookup) = &mut config.embedder else {
        panic!("a lookup embedder")
    };
    lookup.d_embedding = 8;
    let config = BlockTransformerConfig { vocab_size: VOCAB_SIZE, max_length: 64, ..config };
    let config = BlockTransformerConfig { context_blocks, predict_first_block, ..config };
    let mut model = config.init(&Device::flex()).unwrap();
    // As drawn, the learned ends are too small to be noticed if they were wrong.
    for end in [&mut model.context_ends.start, &mut model.context_ends.absent].into_iter().flatten() {
        *end = end.clone().map(|embedding| embedding.mul_scalar(50.0));
    }
    model
}

fn vanilla_model() -> VanillaTransformer {
    let transformer = TransformerConfig { initializer_range: 0.15, ..TransformerConfig::llama(32, 2, 4) };
    let config = presets::vanilla("vanilla_31").unwrap();
    let config = VanillaTransformerConfig { vocab_size: VOCAB_SIZE, max_length: 64, transformer, ..config };
    config.init(&Device::flex()).unwrap()
}

fn prompt(length: usize, salt: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * 7 + salt * 13 + 3) % VOCAB_SIZE) as u32).collect()
}

/// Logits of the token behind `tokens`, by a forward pass over everything without caches.
fn uncached_block(model: &BlockTransformer, prompt_len: usize, tokens: &[u32]) -> Tensor<1> {
    // The prompt ends at a block boundary; padding stands on the left of its first block.
    let padding = (4 - prompt_len % 4) % 4;
    let mut ids = vec![0i32; padding];
    ids.extend(tokens.iter().map(|&id| id as i32));
    let position = ids.len();
    ids.resize(position + 4 - position % 4, 0); // what lies ahead cannot matter
    let n_blocks = ids.len() / 4;
    let real: Vec<bool> = (0..ids.len()).map(|i| i >= padding).collect();
    let shape = [1, n_blocks, 4];
    let device = Device::flex();
    let ids = Tensor::<3, Int>::from_data(TensorData::new(ids, shape), &device);
    let output = model.forward(ids, Some(Tensor::from_data(TensorData::new(real, shape), &device)));
    let logits = model.logits(output.hidden); // [predicted blocks, 4, vocab_size]
    let first = model.layout().first_predicted_block();
    logits.slice(s![position / 4 - first, position % 4, ..]).reshape([VOCAB_SIZE])
}

fn uncached_vanilla(model: &VanillaTransformer, _prompt_len: usize, tokens: &[u32]) -> Tensor<1> {
    let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let n = ids.len();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, n]), &Device::flex());
    model.logits(model.forward(ids, None, None)).slice(s![.., n - 1.., ..]).reshape([VOCAB_SIZE])
}

/// Steps `new_tokens` through the caches from these prompts and compares every row of logits.
fn check<M: LanguageModel>(model: &M, prompts: &[Vec<u32>], uncached: impl Fn(&M, usize, &[u32]) -> Tensor<1>) {
    let device = Device::flex();
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let new_tokens = 9;
    let blocked = model.layout().block_prompts(&slices, new_tokens).unwrap();
    let (mut state, mut logits) = model.prefill(&blocked, new_tokens, &device);
    let mut sequences = prompts.to_vec();
    for step in 0..new_tokens {
        let mut next = Vec::new();
        for (row, sequence) in sequences.iter_mut().enumerate() {
            let expected = uncached(model, prompts[row].len(), sequence);
            let got = logits.clone().slice(s![row..row + 1, ..]).reshape([VOCAB_SIZE]);
            let error = (got.clone() - expected).abs().max().into_scalar::<f32>();
            assert!(error < 1e-4, "prompt of {}, row {row}, step {step}: {error}", prompts[row].len());
            next.push(got.argmax(0).into_scalar::<i32>() as u32);
        }
        for (sequence, token) in sequences.iter_mut().zip(&next) {
            sequence.push(*token);
        }
        if step + 1 < new_tokens {
            logits = model.step(&mut state, &next);
        }
    }
}

#[test]
fn block_logits_match_for_prompts_of_one_to_three_blocks() {
    for style in [TransformerConfig::gpt_neox, TransformerConfig::llama] {
        let model = block_model(style);
        for length in 1..=12 {
            check(&model, &[prompt(length, 0)], uncached_block);
            check(&model, &[prompt(length, 0), prompt(length, 1), prompt(length, 2)], uncached_block);
        }
    }
}

#[test]
fn ragged_batches_give_each_prompt_what_it_gets_alone() {
    check(&block_model(TransformerConfig::gpt_neox), &[prompt(11, 0), prompt(2, 1), prompt(5, 2)], uncached_block);
    check(&vanilla_model(), &[prompt(11, 0), prompt(2, 1), prompt(5, 2)], uncached_vanilla);
}

#[test]
fn several_contexts_and_a_learned_start_generate_what_the_whole_pass_predicts() {
    for (context_blocks, start) in [(2, false), (3, false), (1, true), (3, true)] {
        let model = widened_model(TransformerConfig::gpt_neox, context_blocks, start);
        for length in [1, 4, 7, 12] {
            check(&model, &[prompt(length, 0)], uncached_block);
        }
        check(&model, &[prompt(11, 0), prompt(2, 1), prompt(5, 2)], uncached_block);
        if start {
            check(&model, &[vec![]], uncached_block);
            check(&model, &[vec![], prompt(9, 0), vec![]], uncached_block);
        }
    }
}

#[test]
fn vanilla_logits_match_for_every_prompt_length() {
    let model = vanilla_model();
    for length in 1..=12 {
        check(&model, &[prompt(length, 0), prompt(length, 1), prompt(length, 2)], uncached_vanilla);
    }
}

fn run<M: LanguageModel>(model: &M, prompts: &[&[u32]], options: &GenerateOptions) -> Vec<Vec<u32>> {
    let generated = generate(model, prompts, options, &Device::flex(), |_, _| ControlFlow::Continue(())).unwrap();
    generated.into_iter().map(|generation| generation.tokens).collect()
}

#[test]
fn exactly_as_many_tokens_come_back_as_were_asked_for() {
    let model = block_model(TransformerConfig::gpt_neox);
    for prompt_len in 1..=9 {
        for max_new_tokens in 1..=9 {
            let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
            assert_eq!(run(&model, &[&prompt(prompt_len, 0)], &options)[0].len(), max_new_tokens);
        }
    }
}

#[test]
fn sampled_tokens_follow_the_seed() {
    let model = block_model(TransformerConfig::gpt_neox);
    let with_seed = |seed| {
        let sampling = Sampling { temperature: 1.0, top_k: Some(20), top_p: Some(0.9), seed, ..Sampling::default() };
        let options = GenerateOptions { max_new_tokens: 20, sampling, ..GenerateOptions::default() };
        run(&model, &[&prompt(5, 0)], &options)
    };
    assert_eq!(with_seed(1), with_seed(1));
    assert_ne!(with_seed(1), with_seed(2));
}

#[test]
fn stop_tokens_and_cancelling_end_a_sequence() {
    let model = block_model(TransformerConfig::gpt_neox);
    let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let prompt = prompt(5, 0);
    let all = run(&model, &[&prompt], &options).remove(0);
    let stop = all[7];
    let first = all.iter().position(|token| *token == stop).unwrap();
    let options = GenerateOptions { stop_tokens: vec![stop], ..options };
    let generate = |options: &GenerateOptions, break_at: usize| {
        let mut n = 0;
        let flow = |_, _| {
            n += 1;
            if n == break_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        generate(&model, &[&prompt], options, &Device::flex(), flow).unwrap().remove(0)
    };
    let stopped = generate(&options, usize::MAX);
    assert_eq!((stopped.tokens.as_slice(), stopped.finish), (&all[..first], FinishReason::Stop));
    let cancelled = generate(&GenerateOptions { stop_tokens: vec![], ..options }, 3);
    assert_eq!((cancelled.tokens.as_slice(), cancelled.finish), (&all[..3], FinishReason::Cancelled));
}

#[test]
fn requests_that_cannot_be_served_are_refused() {
    let model = block_model(TransformerConfig::gpt_neox);
    let refused = |prompts: &[&[u32]], options: &GenerateOptions| {
        generate(&model, prompts, options, &Device::flex(), |_, _| panic!("nothing may be generated")).unwrap_err()
    };
    let options = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
    assert_eq!(refused(&[&[]], &options), GenerateError::Prompt(PromptError::Empty { index: 0 }));
    assert!(matches!(refused(&[&[1; 61]], &options), GenerateError::Prompt(PromptError::TooLong { .. })));
    assert!(matches!(refused(&[&[1, 50]], &options), GenerateError::Prompt(PromptError::OutOfVocabulary { .. })));
    let none = GenerateOptions { max_new_tokens: 0, ..options.clone() };
    assert_eq!(refused(&[&[1]], &none), GenerateError::NothingToGenerate);
    let cold = GenerateOptions { sampling: Sampling { temperature: -0.5, ..Sampling::default() }, ..options };
    assert!(matches!(refused(&[&[1]], &cold), GenerateError::Sampling { option: "temperature", .. }));
}

#[test]
fn caches_hold_one_entry_a_block_and_a_handful_for_the_token_decoder() {
    let model = block_model(TransformerConfig::gpt_neox);
    let prompt = prompt(12, 0);
    let blocked = model.layout().block_prompts(&[&prompt], 8).unwrap();
    let (state, _) = model.prefill(&blocked, 8, &Device::flex());
    // Block decoder: 3 prompt blocks and 1 new one (the last is never taken in); token decoder: prefix 2 + 3 tokens.
    let entry = 2 * 2 * 32 * 4; // keys and values, 2 layers, 32 features, float32
    assert_eq!(model.kv_bytes(&state), (4 + 5) * entry);
}
