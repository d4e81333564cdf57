//! Texts that end at a string, of the bundled model.
#![cfg(feature = "flex")]

use blockformer::bundled;
use blockformer::generate::{Completion, Engine, EngineConfig, FinishReason, Request, Sampling};
use burn::tensor::Device;

/// A block is drawn whole on a device before its text is looked at: what stands behind the string is dropped.
#[test]
fn they_end_texts_alike_wherever_tokens_are_drawn() {
    let device = Device::flex();
    let (_, model, tokenizer) = bundled::load(&device).unwrap();
    let prompt = tokenizer.encode("The people of the United States").unwrap();
    let sampling = Sampling { temperature: 0.9, seed: 4, ..Sampling::default() };
    let request = Request::new(prompt).with_max_new_tokens(40).with_sampling(sampling);
    let run = |draw_on_device, request: Request| {
        let config = EngineConfig { draw_on_device: Some(draw_on_device), ..EngineConfig::default() };
        let mut engine = Engine::new(&model, config, &device).unwrap().with_tokenizer(tokenizer.clone());
        engine.submit(request).unwrap();
        let mut events = Vec::new();
        engine.run(|_, event| events.push(event));
        events
    };
    let text = |events: &[_]| Completion::from_events(events.to_vec()).unwrap().samples.remove(0);
    let whole = text(&run(false, request.clone())).text;
    let mut lengths = Vec::new();
    for from in [9, 30, 61, 77] {
        let stop: String = whole.chars().skip(from).take(3).collect();
        let request = request.clone().with_stop_strings(vec![stop.clone()]);
        let [there, here] = [true, false].map(|on_device| run(on_device, request.clone()));
        assert_eq!(there, here, "up to {stop:?}");
        let sample = text(&there);
        assert_eq!(sample.finish, FinishReason::Stop);
        assert_eq!(whole.find(&stop), Some(sample.text.len()), "up to {stop:?}: {:?}", sample.text);
        lengths.push(sample.tokens.len() % 4);
    }
    lengths.sort_unstable();
    lengths.dedup();
    assert!(lengths.len() > 1, "texts end at one place of a block alone: {lengths:?}");
}
