//! A real pretrained model, where there is one: SmolLM2-135M-Instruct as a Hugging Face directory with its
//! tokenizer.json, named by `BLOCKFORMER_SMOLLM2`. docs/uptraining.md says how to make it from a registry package.
//!
//! The numbers come from the package's 4-bit file, dequantised to float32 and computed without this library.

use std::ops::ControlFlow;
use std::path::PathBuf;

use blockformer::generate::{GenerateOptions, generate};
use blockformer::model::AnyModel;
use blockformer::prelude::*;
use burn::tensor::{Int, Tensor};

const CAPITAL: &str = "The capital of France is";
const CAPITAL_IDS: [u32; 5] = [504, 3575, 282, 4649, 314];
/// The five likeliest tokens behind it and their logits.
const LIKELIEST: [(u32, &str, f32); 5] = [
    (7042, " Paris", 17.371),
    (260, " the", 14.889),
    (4528, " London", 13.245),
    (2250, " Le", 13.009),
    (1315, " New", 12.952),
];

#[test]
#[ignore = "needs a SmolLM2-135M directory, named by BLOCKFORMER_SMOLLM2"]
fn smollm2_gives_the_recorded_ids_and_logits() {
    let directory = PathBuf::from(std::env::var("BLOCKFORMER_SMOLLM2").expect("BLOCKFORMER_SMOLLM2 names a directory"));
    let device = blockformer::device("cpu").unwrap();
    let tokenizer = Tokenizer::from_file(directory.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.encode(CAPITAL).unwrap(), CAPITAL_IDS);
    assert_eq!(
        tokenizer.encode("Hello world, 2024!  two spaces\n\nnew").unwrap(),
        [19556, 905, 28, 216, 34, 32, 34, 36, 17, 216, 827, 5600, 198, 198, 2241]
    );

    let (_, model) = AnyModel::load(&directory, &device).unwrap();
    let AnyModel::Vanilla(vanilla) = &model else { panic!("a vanilla transformer") };
    let ids = Tensor::<2, Int>::from_ints([CAPITAL_IDS.map(|id| id as i32)], &device);
    let logits = vanilla.logits(vanilla.forward(ids, None, None)); // [1, 5, vocab_size]
    let last: Vec<f32> = logits.into_data().iter::<f32>().skip(4 * 49_152).collect();
    let mut order: Vec<usize> = (0..last.len()).collect();
    order.sort_by(|&a, &b| last[b].total_cmp(&last[a]));
    for ((id, text, expected), got) in LIKELIEST.into_iter().zip(order) {
        println!("{text:?}: {} for {expected}, difference {:.4}", last[got], (last[got] - expected).abs());
        assert_eq!((got as u32, tokenizer.decode(&[id]).unwrap().as_str()), (id, text));
        assert!((last[got] - expected).abs() < 0.05, "{text:?}: {} for {expected}", last[got]);
    }

    let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let generated = generate(&model, &[&CAPITAL_IDS], &options, &device, |_, _| ControlFlow::Continue(())).unwrap();
    let text = tokenizer.decode(&generated[0].tokens).unwrap();
    println!("{CAPITAL}{text}");
    assert!(text.starts_with(" Paris.\n\nThe answer is: "), "{text:?}");
}
