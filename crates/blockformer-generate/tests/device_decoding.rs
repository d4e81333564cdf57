//! Decoding on the device against decoding on the host.

mod models;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use blockformer_generate::{
    Decoding, DeviceDecoding, GenerateError, GenerateOptions, Generation, LanguageModel, RecordableSteps, Rounds,
    Sampling, generate,
};
use blockformer_model::{AnyModel, BlockLayout, BlockedPrompts};
use burn::tensor::{Device, Int, Tensor};
use models::{all_models, block_model, prompt};

fn device(tokens_per_read: Option<usize>, static_shapes: bool) -> Decoding {
    let tokens_per_read = tokens_per_read.and_then(NonZeroUsize::new);
    Decoding::Device(DeviceDecoding { tokens_per_read, static_shapes, recorded_from: None })
}

fn recorded(tokens_per_read: Option<usize>, static_shapes: bool) -> Decoding {
    let tokens_per_read = tokens_per_read.and_then(NonZeroUsize::new);
    Decoding::Device(DeviceDecoding { tokens_per_read, static_shapes, recorded_from: Some(1) })
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 1.1, top_k: Some(60), top_p: Some(0.95), seed, ..Sampling::default() }
}

/// What was generated, and the tokens in the order they were handed out.
type Outcome = (Vec<Generation>, Vec<(usize, u32)>);

fn run<M: LanguageModel>(
    model: &M,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    decoding: Decoding,
) -> Result<Outcome, GenerateError> {
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let options = GenerateOptions { decoding, ..options.clone() };
    let mut handed_out = Vec::new();
    let generated = generate(model, &slices, &options, &Device::flex(), |row, token| {
        handed_out.push((row, token));
        ControlFlow::Continue(())
    })?;
    Ok((generated, handed_out))
}

fn prompts() -> Vec<Vec<u32>> {
    vec![prompt(11, 0), prompt(2, 1), prompt(5, 2)]
}

fn assert_all_the_same(model: &AnyModel, name: &str, prompts: &[Vec<u32>], options: &GenerateOptions) {
    let expected = run(model, prompts, options, Decoding::Host).unwrap();
    for tokens_per_read in [None, Some(1), Some(3), Some(8), Some(100)] {
        for static_shapes in [false, true] {
            let got = run(model, prompts, options, device(tokens_per_read, static_shapes)).unwrap();
            assert_eq!(got, expected, "{name}, a look each {tokens_per_read:?}, static {static_shapes}");
        }
    }
}

#[test]
fn every_model_generates_on_the_device_what_it_generates_on_the_host() {
    for (name, model) in all_models() {
        for sampling in [Sampling::greedy(), sampled(1)] {
            let options = GenerateOptions { max_new_tokens: 14, sampling, ..GenerateOptions::default() };
            assert_all_the_same(&model, name, &prompts(), &options);
        }
    }
}

#[test]
fn a_model_without_steps_to_record_goes_on_step_by_step() {
    let model = block_model();
    let watched = Watched::new(&model);
    let options = GenerateOptions { max_new_tokens: 14, sampling: sampled(1), ..GenerateOptions::default() };
    let expected = run(&model, &prompts(), &options, Decoding::Host).unwrap();
    assert_eq!(run(&watched, &prompts(), &options, recorded(None, false)).unwrap(), expected);
    assert_eq!(watched.shapes.into_inner(), [[3, 3]], "the state was given back");
}

#[test]
fn a_device_that_cannot_record_takes_everything_in_once_more() {
    for (name, model) in all_models() {
        let options = GenerateOptions { max_new_tokens: 14, sampling: sampled(1), ..GenerateOptions::default() };
        let expected = run(&model, &prompts(), &options, Decoding::Host).unwrap();
        for (tokens_per_read, static_shapes) in [(None, true), (Some(1), false), (Some(3), true), (Some(100), false)] {
            let watched = Watched { loses_states: true, ..Watched::new(&model) };
            let got = run(&watched, &prompts(), &options, recorded(tokens_per_read, static_shapes)).unwrap();
            assert_eq!(got, expected, "{name}, a look each {tokens_per_read:?}, static {static_shapes}");
            assert_eq!(watched.shapes.into_inner().len(), 2, "{name}");
        }
    }
}

#[test]
fn sequences_that_stop_at_different_places_stop_where_they_should() {
    for (name, model) in all_models() {
        let options = GenerateOptions { max_new_tokens: 18, sampling: sampled(2), ..GenerateOptions::default() };
        let (free, _) = run(&model, &prompts(), &options, Decoding::Host).unwrap();
        // Tokens from the middle of two of the texts, of different places in their blocks.
        let stop_tokens = vec![free[0].tokens[6], free[1].tokens[9]];
        let options = GenerateOptions { stop_tokens, ..options };
        let (stopped, _) = run(&model, &prompts(), &options, Decoding::Host).unwrap();
        assert!(stopped[0].tokens.len() < 7 && stopped[1].tokens.len() < 10, "{name}");
        assert_all_the_same(&model, name, &prompts(), &options);
    }
}

#[test]
fn limits_inside_a_block_are_kept() {
    let model = AnyModel::Block(block_model());
    for max_new_tokens in 1..=9 {
        let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
        for prompt_len in [1, 4, 6] {
            let (expected, _) = run(&model, &[prompt(prompt_len, 0)], &options, Decoding::Host).unwrap();
            for static_shapes in [false, true] {
                let (got, _) = run(&model, &[prompt(prompt_len, 0)], &options, device(None, static_shapes)).unwrap();
                assert_eq!(got, expected, "{max_new_tokens} tokens behind {prompt_len}");
                assert_eq!(got[0].tokens.len(), max_new_tokens);
            }
        }
    }
}

#[test]
fn a_context_that_is_full_leaves_no_room_to_fill_up() {
    let model = AnyModel::Block(block_model());
    let options = GenerateOptions { max_new_tokens: 9, ..GenerateOptions::default() };
    assert_all_the_same(&model, "full", &[prompt(114, 0), prompt(3, 1), prompt(115, 2)], &options);
}

#[test]
fn empty_prompts_are_continued_where_the_first_block_is_predicted() {
    let (name, model) = all_models().into_iter().find(|(_, model)| model.layout().predict_first_block).unwrap();
    let options = GenerateOptions { max_new_tokens: 7, sampling: sampled(5), ..GenerateOptions::default() };
    assert_all_the_same(&model, name, &[vec![], prompt(9, 0), vec![]], &options);
}

#[test]
fn penalties_and_bias_are_those_of_the_host() {
    let (name, model) = all_models().remove(0);
    let penalties = Sampling { repetition_penalty: 1.5, presence_penalty: 0.3, frequency_penalty: 0.2, ..sampled(6) };
    let bias = Sampling { logit_bias: vec![(3, 4.0), (9, f32::NEG_INFINITY)], ..Sampling::greedy() };
    for sampling in [penalties, bias] {
        let options = GenerateOptions { max_new_tokens: 14, sampling, ..GenerateOptions::default() };
        assert_all_the_same(&model, name, &prompts(), &options);
    }
}

#[test]
fn options_that_need_the_host_are_drawn_there() {
    let model = AnyModel::Block(block_model());
    let sampling = Sampling { typical_p: Some(0.5), ..sampled(7) };
    let options = GenerateOptions { max_new_tokens: 14, sampling, ..GenerateOptions::default() };
    assert_all_the_same(&model, "typical", &prompts(), &options);
}

#[test]
fn a_receiver_that_wants_no_more_is_given_no_more() {
    let model = block_model();
    let decoding = device(Some(8), false);
    let options = GenerateOptions { max_new_tokens: 12, decoding, ..GenerateOptions::default() };
    let mut n = 0;
    let generated = generate(&model, &[&prompt(5, 0)], &options, &Device::flex(), |_, _| {
        n += 1;
        if n == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((n, generated.unwrap()[0].tokens.len()), (3, 3));
}

/// Counts how often the host asks for logits, and how often it hands in tokens that it has seen.
struct Watched<'a, M> {
    model: &'a M,
    steps: std::cell::Cell<usize>,
    host_steps: std::cell::Cell<usize>,
    shapes: std::cell::RefCell<Vec<[usize; 2]>>,
    /// Has states go with steps that no device records.
    loses_states: bool,
}

impl<'a, M> Watched<'a, M> {
    fn new(model: &'a M) -> Self {
        let (steps, host_steps, shapes) = Default::default();
        Self { model, steps, host_steps, shapes, loses_states: false }
    }
}

impl<M: LanguageModel> LanguageModel for Watched<'_, M> {
    type State = M::State;

    fn layout(&self) -> BlockLayout {
        self.model.layout()
    }

    fn prefill(&self, prompts: &BlockedPrompts, new_tokens: usize, device: &Device) -> (M::State, Tensor<2>) {
        let [rows, n_blocks, _] = prompts.shape();
        self.shapes.borrow_mut().push([rows, n_blocks]);
        self.model.prefill(prompts, new_tokens, device)
    }

    fn step(&self, state: &mut M::State, tokens: &[u32]) -> Tensor<2> {
        self.host_steps.set(self.host_steps.get() + 1);
        self.model.step(state, tokens)
    }

    fn step_on_device(&self, state: &mut M::State, tokens: Tensor<2, Int>) -> Tensor<2> {
        self.steps.set(self.steps.get() + 1);
        self.model.step_on_device(state, tokens)
    }

    fn round_positions(&self, state: &mut M::State, multiple: usize) {
        self.model.round_positions(state, multiple);
    }

    fn kv_bytes(&self, state: &M::State) -> usize {
        self.model.kv_bytes(state)
    }

    fn recordable_steps<'a>(&'a self, state: M::State) -> Result<RecordableSteps<'a>, M::State> {
        match self.loses_states {
            true => Ok(RecordableSteps { held: 0, step: Box::new(|_| panic!("the CPU records nothing")) }),
            false => Err(state),
        }
    }
}

#[test]
fn no_token_goes_through_the_host_and_no_step_is_wasted_behind_the_last() {
    let model = block_model();
    let watched = Watched::new(&model);
    let options = GenerateOptions { max_new_tokens: 11, ..GenerateOptions::default() };
    run(&watched, &prompts(), &options, device(None, false)).unwrap();
    assert_eq!((watched.steps.get(), watched.host_steps.get()), (10, 0));
    assert_eq!(watched.shapes.into_inner(), [[3, 3]]);
}

#[test]
fn batches_and_prompts_of_many_sizes_run_in_few_shapes() {
    let model = block_model();
    let watched = Watched::new(&model);
    let options = GenerateOptions { max_new_tokens: 2, ..GenerateOptions::default() };
    for batch in [5, 6, 7, 8] {
        for prompt_len in [33, 40, 41] {
            let prompts: Vec<_> = (0..batch).map(|row| prompt(prompt_len - row, row)).collect();
            run(&watched, &prompts, &options, device(None, true)).unwrap();
        }
    }
    let mut shapes = watched.shapes.into_inner();
    shapes.dedup();
    assert_eq!(shapes.iter().map(|shape| shape[0]).collect::<Vec<_>>(), vec![8; shapes.len()]);
    shapes.sort();
    shapes.dedup();
    assert_eq!(shapes, [[8, 10], [8, 12]]);
}

#[test]
fn rounds_give_what_generate_gives_and_the_first_token_by_itself_if_wanted() {
    let (model, prompts) = (block_model(), prompts());
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    for tokens_per_read in [None, Some(1), Some(3)] {
        let decoding = device(tokens_per_read, true);
        let options =
            GenerateOptions { max_new_tokens: 9, sampling: sampled(4), decoding, ..GenerateOptions::default() };
        let expected = run(&model, &prompts, &options, decoding).unwrap().0;
        for alone in [false, true] {
            let mut rounds = Rounds::begin(&model, &slices, &options, &Device::flex()).unwrap();
            let mut tokens: Vec<Vec<u32>> = Vec::new();
            if alone {
                tokens.extend(rounds.next_token().unwrap());
                assert_eq!(tokens.len(), 1);
            }
            while let Some(round) = rounds.next_tokens().unwrap() {
                tokens.extend(round);
            }
            let rows = (0..prompts.len()).map(|row| tokens.iter().map(|tokens| tokens[row]).collect::<Vec<_>>());
            assert!(
                rows.eq(expected.iter().map(|generation| generation.tokens.clone())),
                "{tokens_per_read:?} {alone}"
            );
        }
    }
}

#[test]
fn rounds_refuse_what_is_drawn_on_the_host() {
    let model = block_model();
    let typical = Sampling { typical_p: Some(0.2), ..sampled(1) };
    for (sampling, decoding) in [(typical, device(None, false)), (sampled(1), Decoding::Host)] {
        let options = GenerateOptions { max_new_tokens: 4, sampling, decoding, ..GenerateOptions::default() };
        let refused = Rounds::begin(&model, &[&[1, 2, 3]], &options, &Device::flex());
        assert!(matches!(refused, Err(GenerateError::Contradiction { .. })));
    }
}
