//! The bundled model, packed: what it generates, and how well it predicts a text that it was not trained on.

use std::ops::ControlFlow;

use blockformer::cpu::{CpuModel, Precision};
use blockformer::eval::{PerplexityConfig, Scorable, perplexity};
use blockformer::generate::{GenerateOptions, LanguageModel, generate};
use blockformer::{ServingModel, bundled};
use burn::tensor::Device;

/// The Gettysburg Address, and the beginning of the Declaration of Independence.
const TEXTS: [&str; 2] = [
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, \
     and dedicated to the proposition that all men are created equal.\nNow we are engaged in a great civil war, \
     testing whether that nation, or any nation so conceived and so dedicated, can long endure. We are met on a great \
     battle-field of that war. We have come to dedicate a portion of that field, as a final resting place for those \
     who here gave their lives that that nation might live. It is altogether fitting and proper that we should do \
     this.\nBut, in a larger sense, we can not dedicate -- we can not consecrate -- we can not hallow -- this ground. \
     The brave men, living and dead, who struggled here, have consecrated it, far above our poor power to add or \
     detract. The world will little note, nor long remember what we say here, but it can never forget what they did \
     here. It is for us the living, rather, to be dedicated here to the unfinished work which they who fought here \
     have thus far so nobly advanced. It is rather for us to be here dedicated to the great task remaining before us \
     -- that from these honored dead we take increased devotion to that cause for which they gave the last full \
     measure of devotion -- that we here highly resolve that these dead shall not have died in vain -- that this \
     nation, under God, shall have a new birth of freedom -- and that government of the people, by the people, for \
     the people, shall not perish from the earth.",
    "When in the Course of human events, it becomes necessary for one people to dissolve the political bands which \
     have connected them with another, and to assume among the powers of the earth, the separate and equal station to \
     which the Laws of Nature and of Nature's God entitle them, a decent respect to the opinions of mankind requires \
     that they should declare the causes which impel them to the separation.\nWe hold these truths to be \
     self-evident, that all men are created equal, that they are endowed by their Creator with certain unalienable \
     Rights, that among these are Life, Liberty and the pursuit of Happiness.--That to secure these rights, \
     Governments are instituted among Men, deriving their just powers from the consent of the governed, --That \
     whenever any Form of Government becomes destructive of these ends, it is the Right of the People to alter or to \
     abolish it, and to institute new Government, laying its foundation on such principles and organizing its powers \
     in such form, as to them shall seem most likely to effect their Safety and Happiness.",
];

fn packed(precision: Precision, device: &Device) -> CpuModel {
    let (config, model, _) = bundled::load(device).unwrap();
    CpuModel::new(&config, model, precision).unwrap()
}

fn greedy<M: LanguageModel>(model: &M, prompts: &[Vec<u32>], device: &Device) -> Vec<Vec<u32>> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let options = GenerateOptions { max_new_tokens: 200, ..GenerateOptions::default() };
    let generated = generate(model, &prompts, &options, device, |_, _| ControlFlow::Continue(())).unwrap();
    generated.into_iter().map(|generation| generation.tokens).collect()
}

#[test]
fn greedy_texts_of_the_packed_model_in_float32_are_those_of_plain_operations() {
    let device = Device::flex();
    let (_, plain, tokenizer) = bundled::load(&device).unwrap();
    let prompts = ["The people of the United States", "Call me Ishmael.", "We are met on a great"];
    let prompts: Vec<Vec<u32>> = prompts.iter().map(|prompt| tokenizer.encode(prompt).unwrap()).collect();
    let expected = greedy(&plain, &prompts, &device);
    assert!(expected.iter().all(|tokens| tokens.len() == 200));
    assert_eq!(greedy(&packed(Precision::F32, &device), &prompts, &device), expected);
}

#[test]
fn narrower_weights_predict_as_well_as_they_must() {
    let device = Device::flex();
    let (_, plain, tokenizer) = bundled::load(&device).unwrap();
    let loss = |model: &dyn Fn() -> ServingModel| loss_of(&model(), &tokenizer, &device);
    let exact = loss(&|| ServingModel::Plain(plain.clone()));
    // A trained model: it has learned something to lose.
    assert!(exact < 5.0, "{exact}");
    // By shares of the loss.
    for (precision, may) in
        [(Precision::F32, 1e-5), (Precision::Bf16, 0.005), (Precision::Int8, 0.01), (Precision::Int4, 0.01)]
    {
        let change = loss(&|| ServingModel::Packed(packed(precision, &device))) / exact - 1.0;
        assert!(change.abs() < may, "{}: {change}", precision.name());
    }
}

fn loss_of<M: Scorable>(model: &M, tokenizer: &blockformer::data::Tokenizer, device: &Device) -> f64 {
    // Stretches with context and without, and padding at both ends.
    let config = PerplexityConfig { stride: Some(64), ..PerplexityConfig::default() };
    perplexity(model, TEXTS.map(|text| Ok(text.into())), tokenizer, &config, device).unwrap().loss()
}
