//! Scores against generation through the caches, and against arithmetic on models whose probabilities are known.

use blockformer_data::{Tokenizer, character_level};
use blockformer_eval::{
    EvalError, Perplexity, PerplexityConfig, Request, Scorable, ScoreConfig, WordCount, perplexity, score,
};
use blockformer_generate::LanguageModel;
use blockformer_model::{
    BlockLayout, BlockTransformer, BlockTransformerConfig, VanillaTransformer, VanillaTransformerConfig, presets,
};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::TokenDecoderConfig;
use blockformer_train::Batch;
use burn::tensor::{Device, Tensor, TensorData};

const VOCAB_SIZE: usize = 50;

fn block_model() -> BlockTransformer {
    let mut config = presets::block("block_main_b4_5").unwrap();
    let transformer = TransformerConfig { initializer_range: 0.15, ..TransformerConfig::llama(32, 2, 4) };
    config.block_decoder = transformer.clone();
    let TokenDecoderConfig::Prefix(prefix) = &mut config.token_decoder else { panic!("a prefix decoder") };
    prefix.transformer = transformer;
    let blockformer_embedder::EmbedderConfig::Lookup(lookup) = &mut config.embedder else {
        panic!("a lookup embedder")
    };
    lookup.d_embedding = 8;
    let config = BlockTransformerConfig { vocab_size: VOCAB_SIZE, max_length: 32, ..config };
    config.init(&Device::flex()).unwrap()
}

fn vanilla_model() -> VanillaTransformer {
    let transformer = TransformerConfig { initializer_range: 0.15, ..TransformerConfig::llama(32, 2, 4) };
    let config = presets::vanilla("vanilla_31").unwrap();
    let config = VanillaTransformerConfig { vocab_size: VOCAB_SIZE, max_length: 32, transformer, ..config };
    config.init(&Device::flex()).unwrap()
}

fn ids(length: usize, salt: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * i * 7 + i * 5 + salt * 13 + 3) % VOCAB_SIZE) as u32).collect()
}

/// Requests of all kinds of lengths.
fn requests() -> Vec<Request> {
    let lengths = [(1, 1), (4, 4), (5, 3), (8, 9), (3, 20), (11, 2), (12, 5), (2, 0)];
    let request = |(salt, (context, n))| Request { context: ids(context, salt), continuation: ids(n, salt + 50) };
    lengths.into_iter().enumerate().map(request).collect()
}

/// Log-probabilities and likeliest tokens of a continuation, by prefill and single steps.
fn by_generation<M: LanguageModel>(model: &M, request: &Request) -> Vec<(f64, u32)> {
    let device = Device::flex();
    let Request { context, continuation } = request;
    let blocked = model.layout().block_prompts(&[context], continuation.len().max(1)).unwrap();
    let (mut state, mut logits) = model.prefill(&blocked, continuation.len().max(1), &device);
    let mut expected = Vec::new();
    for (index, &token) in continuation.iter().enumerate() {
        let row: Vec<f64> = logits.clone().into_data().iter::<f64>().collect();
        let largest = row.iter().copied().fold(f64::MIN, f64::max);
        let normalizer = largest + row.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln();
        let likeliest = row.iter().position(|&logit| logit == largest).unwrap();
        expected.push((row[token as usize] - normalizer, likeliest as u32));
        if index + 1 < continuation.len() {
            logits = model.step(&mut state, &[token]);
        }
    }
    expected
}

fn check_against_generation<M: Scorable + LanguageModel>(model: &M) {
    let requests = requests();
    let one_by_one = score(model, &requests, &ScoreConfig { batch_size: 1 }, &Device::flex()).unwrap();
    let together = score(model, &requests, &ScoreConfig { batch_size: 5 }, &Device::flex()).unwrap();
    for scores in [one_by_one, together] {
        for (request, score) in requests.iter().zip(&scores) {
            let expected = by_generation(model, request);
            assert_eq!(score.log_probabilities.len(), expected.len());
            for (index, (log_p, likeliest)) in expected.into_iter().enumerate() {
                let error = (f64::from(score.log_probabilities[index]) - log_p).abs();
                assert!(error < 1e-4, "token {index} of {request:?}: {error}");
                assert_eq!(score.likeliest[index], request.continuation[index] == likeliest);
            }
        }
    }
}

#[test]
fn a_block_transformer_scores_as_it_generates() {
    check_against_generation(&block_model());
}

#[test]
fn a_vanilla_transformer_scores_as_it_generates() {
    check_against_generation(&vanilla_model());
}

#[test]
fn of_a_long_context_the_last_whole_blocks_count() {
    let model = block_model();
    let continuation = ids(6, 9); // two blocks of the 32 tokens
    let scores = |context: Vec<u32>| {
        let request = Request { context, continuation: continuation.clone() };
        score(&model, &[request], &ScoreConfig::default(), &Device::flex()).unwrap()
    };
    let context = ids(100, 1);
    assert_eq!(scores(context.clone()), scores(context[76..].to_vec()));
    assert_ne!(scores(context.clone()), scores(context[77..].to_vec()));
}

#[test]
fn requests_that_cannot_be_answered_are_named() {
    let model = block_model();
    let error = |context: Vec<u32>, n: usize| {
        let bad = Request { context, continuation: ids(n, 0) };
        let requests = [Request { context: vec![1], continuation: vec![2] }, bad];
        score(&model, &requests, &ScoreConfig::default(), &Device::flex()).unwrap_err()
    };
    assert!(matches!(error(vec![], 1), EvalError::NoContext { index: 1 }));
    assert!(matches!(error(vec![50], 1), EvalError::OutOfVocabulary { index: 1, id: 50, vocab_size: 50 }));
    assert!(matches!(error(vec![1], 29), EvalError::TooLong { index: 1, tokens: 29, .. }));
}

/// The probability of a token depends on the one before alone, by a table.
struct Bigrams {
    block_length: usize,
    max_length: usize,
    vocab_size: usize,
}

impl Bigrams {
    /// Each token's logit after another: any numbers will do.
    fn logit(&self, before: u32, token: u32) -> f64 {
        f64::from((before * 31 + token * 17 + before * token) % 11) / 3.0
    }

    fn nats(&self, before: u32, token: u32) -> f64 {
        let sum: f64 = (0..self.vocab_size as u32).map(|other| self.logit(before, other).exp()).sum();
        sum.ln() - self.logit(before, token)
    }
}

impl Scorable for Bigrams {
    /// Marks the token before each.
    fn hidden(&self, batch: &Batch) -> Tensor<3> {
        let [rows, n_blocks, length] = batch.ids.dims();
        let (n, n_predicted) = (n_blocks * length, (n_blocks - 1) * length);
        let before = batch.ids.clone().reshape([rows, n]).narrow(1, length - 1, n_predicted);
        let before: Vec<i64> = before.into_data().iter().collect();
        let mut marks = vec![0.0_f32; before.len() * self.vocab_size];
        for (row, id) in before.iter().enumerate() {
            marks[row * self.vocab_size + *id as usize] = 1.0;
        }
        Tensor::from_data(TensorData::new(marks, [rows, n_predicted, self.vocab_size]), &Device::flex())
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let n = self.vocab_size as u32;
        let table = (0..n).flat_map(|before| (0..n).map(move |token| self.logit(before, token) as f32)).collect();
        let table = Tensor::<2>::from_data(
            TensorData::new::<f32, _>(table, [self.vocab_size, self.vocab_size]),
            &Device::flex(),
        );
        hidden.matmul(table.unsqueeze())
    }

    fn layout(&self) -> BlockLayout {
        let Self { block_length, max_length, vocab_size } = *self;
        BlockLayout { block_length, max_length, pad_token_id: 0, vocab_size, predict_first_block: false }
    }
}

const DOCUMENTS: [&str; 4] = ["the cat  sat\non the mat\n", "a", "", "that hat is a cat's hat, not a mat"];

fn tokenizer() -> Tokenizer {
    character_level(&DOCUMENTS.concat()).unwrap()
}

fn bigrams(block_length: usize, max_length: usize) -> Bigrams {
    Bigrams { block_length, max_length, vocab_size: tokenizer().vocab_size() }
}

fn measure(model: &Bigrams, config: &PerplexityConfig) -> Result<Perplexity, EvalError> {
    let documents = DOCUMENTS.map(|document| Ok(document.to_owned()));
    perplexity(model, documents, &tokenizer(), config, &Device::flex())
}

#[test]
fn perplexity_a_token_a_word_and_a_byte_is_what_arithmetic_says() {
    let model = bigrams(1, 8);
    // Each document by itself, from the end of text (token 0) on.
    let nats: f64 = DOCUMENTS
        .iter()
        .map(|document| {
            let tokens = tokenizer().encode(document).unwrap();
            let before = std::iter::once(0).chain(tokens.iter().copied());
            before.zip(&tokens).map(|(before, &token)| model.nats(before, token)).sum::<f64>()
        })
        .sum();
    let n_tokens = DOCUMENTS.concat().chars().count();
    let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-5, "{a} and {b}");
    for (block_length, max_length, stride) in
        [(1, 8, None), (1, 64, Some(3)), (4, 8, Some(4)), (4, 12, None), (2, 40, Some(38))]
    {
        let model = bigrams(block_length, max_length);
        let config = PerplexityConfig { stride, scoring: ScoreConfig { batch_size: 2 }, ..PerplexityConfig::default() };
        let result = measure(&model, &config).unwrap();
        near(result.nats, nats);
        assert_eq!((result.n_documents, result.n_tokens), (3, n_tokens));
        near(result.per_token(), (nats / n_tokens as f64).exp());
        near(result.per_word(), (nats / (6.0 + 1.0 + 9.0)).exp());
        near(result.per_byte(), (nats / n_tokens as f64).exp()); // one byte a character
        near(result.bits_per_byte(), nats / n_tokens as f64 / 2.0_f64.ln());
        let config = PerplexityConfig { words: WordCount::WhitespaceAndLineEnds, ..config };
        near(measure(&model, &config).unwrap().per_word(), (nats / (8.0 + 2.0 + 10.0)).exp());
        let by_position = result.by_block_position.means(1);
        assert_eq!(by_position.len(), block_length);
        near(by_position.iter().map(|(_, n, loss)| *n as f64 * loss).sum(), nats);
    }
}

#[test]
fn positions_in_the_context_count_what_the_model_has_seen() {
    let model = bigrams(1, 8);
    let config = PerplexityConfig { stride: Some(3), ..PerplexityConfig::default() };
    let document = "the cat sat".to_owned(); // 11 tokens: stretches of 3, 3, 3 and 2
    let result = perplexity(&model, [Ok(document)], &tokenizer(), &config, &Device::flex()).unwrap();
    // Before the stretches stand 0, 3, 5 and 5 tokens.
    let counts: Vec<(usize, usize)> = result.by_context_length.means(1).iter().map(|(at, n, _)| (*at, *n)).collect();
    assert_eq!(counts, [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 3), (6, 2), (7, 1)]);
}

#[test]
fn the_beginning_of_documents_counts_for_its_share() {
    let config = PerplexityConfig { max_document_tokens: Some(5), ..PerplexityConfig::default() };
    let model = bigrams(1, 8);
    let document = "one two be".replace(['o', 'n', 'w', 'b'], "a").replace('e', "t");
    let result = perplexity(&model, [Ok(document)], &tokenizer(), &config, &Device::flex()).unwrap();
    assert_eq!((result.n_tokens, result.n_words, result.n_bytes), (5, 1.5, 5.0));
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    let stride =
        |stride| measure(&bigrams(4, 12), &PerplexityConfig { stride: Some(stride), ..PerplexityConfig::default() });
    for bad in [0, 3, 12] {
        let error = stride(bad).unwrap_err().to_string();
        assert_eq!(error, format!("stride is {bad}, expected a multiple of 4 from 4 to 8"));
    }
    assert!(stride(8).is_ok());
    let nothing =
        perplexity(&bigrams(1, 8), [Ok(String::new())], &tokenizer(), &PerplexityConfig::default(), &Device::flex());
    assert_eq!(nothing.unwrap_err().to_string(), "the text is empty: there is nothing to evaluate");
    let small = Bigrams { vocab_size: 3, ..bigrams(1, 8) };
    assert!(matches!(measure(&small, &PerplexityConfig::default()), Err(EvalError::OutOfVocabulary { .. })));
}
