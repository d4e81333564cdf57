//! The engine under random schedules: every request gets what it gets alone.

mod models;
mod schedules;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use blockformer_generate::{
    Alignment, Blocks, Completion, Context, Engine, EngineConfig, Event, GenerateError, PagedModel, Request, RequestId,
    Sampling, Speculation,
};
use blockformer_kv_cache::{KvStorage, PagedBatch, PoolConfig};
use blockformer_model::{AnyModel, BlockLayout, BlockTransformer};
use blockformer_token_decoder::AnyTokenDecoder;
use burn::tensor::{Device, Int, Tensor, s};
use models::{VOCAB_SIZE, all_models, block_model};
use proptest::prelude::*;
use schedules::{alone, arrivals, check_accounts, check_conversation, check_reuse, check_schedule, tight};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_runs_beside_it_a_request_gets_what_it_gets_alone(arrivals in arrivals(), forced in any::<bool>()) {
        let alignment = if forced { Alignment::ForceRest } else { Alignment::PadFirstBlock };
        for (name, model) in all_models() {
            let config = tight(&model, alignment);
            check_schedule(name, &model, &config, &arrivals, 0.0);
        }
    }

    /// Those that need the host among them.
    #[test]
    fn tokens_drawn_on_the_device_are_those_drawn_on_the_host(arrivals in arrivals(), forced in any::<bool>()) {
        let alignment = if forced { Alignment::ForceRest } else { Alignment::PadFirstBlock };
        for (name, model) in all_models() {
            let on = |draw_on_device| EngineConfig { draw_on_device: Some(draw_on_device), ..tight(&model, alignment) };
            check_schedule(name, &model, &on(true), &arrivals, 0.0);
            for arrival in &arrivals {
                let [on_device, on_host] = [true, false].map(|there| alone(&model, &on(there), &arrival.request()));
                assert_eq!(on_device, on_host, "{name}: {arrival:?}");
            }
        }
    }

    #[test]
    fn drafts_change_no_likeliest_token(arrivals in arrivals()) {
        for (name, model) in all_models() {
            let speculation = Some(Speculation { shortest: 1, longest: 3 });
            let config = EngineConfig { speculation, ..tight(&model, Alignment::PadFirstBlock) };
            // A whole pass rounds differently from single steps, and which of them a request gets depends on whether
            // one beside it has a draft; with and without drafts only the likeliest token can be compared.
            check_schedule(name, &model, &config, &arrivals, 1e-5);
            for arrival in arrivals.iter().filter(|arrival| arrival.kind == 0) {
                let with = alone(&model, &config, &arrival.request());
                let without = alone(&model, &tight(&model, Alignment::PadFirstBlock), &arrival.request());
                assert_eq!(with.samples, without.samples, "{name}: {arrival:?}");
            }
        }
    }
}

/// Counts how often tokens come from the host, and how often from the device.
struct Watched {
    model: BlockTransformer,
    from_host: Cell<usize>,
    from_device: Cell<usize>,
    /// Blocks of each sequence that were taken in, and whether they begin.
    taken_in: RefCell<Vec<(Vec<usize>, bool)>>,
}

impl Watched {
    fn new(model: BlockTransformer) -> Self {
        Self { model, from_host: Cell::new(0), from_device: Cell::new(0), taken_in: RefCell::default() }
    }
}

impl PagedModel for Watched {
    type Block = <BlockTransformer as PagedModel>::Block;

    fn layout(&self) -> BlockLayout {
        PagedModel::layout(&self.model)
    }
    fn pool_config(&self, page_blocks: usize, budget: usize, storage: KvStorage) -> PoolConfig {
        self.model.pool_config(page_blocks, budget, storage)
    }
    fn positions_per_block(&self) -> usize {
        self.model.positions_per_block()
    }
    fn context_blocks(&self) -> usize {
        self.model.context_blocks()
    }
    fn block_bytes(&self, device: &Device) -> usize {
        self.model.block_bytes(device)
    }
    fn take_in(&self, blocks: Blocks<'_>, before: Option<Context>, batch: &mut PagedBatch<'_>) -> Context {
        self.taken_in.borrow_mut().push((blocks.n_blocks.to_vec(), blocks.begin));
        self.model.take_in(blocks, before, batch)
    }
    fn begin_blocks(&self, window: Tensor<3>) -> (Self::Block, Tensor<2>) {
        self.model.begin_blocks(window)
    }
    fn step(&self, block: &mut Self::Block, tokens: &[u32], device: &Device) -> Tensor<2> {
        self.from_host.set(self.from_host.get() + 1);
        PagedModel::step(&self.model, block, tokens, device)
    }
    fn step_on_device(&self, block: &mut Self::Block, tokens: Tensor<2, Int>) -> Tensor<2> {
        self.from_device.set(self.from_device.get() + 1);
        PagedModel::step_on_device(&self.model, block, tokens)
    }
    fn decode_whole(&self, window: Tensor<3>, tokens: &[u32], known: usize) -> Tensor<3> {
        self.model.decode_whole(window, tokens, known)
    }
    fn teacher_forced(&self, blocks: Blocks<'_>, from: usize) -> Tensor<2> {
        self.model.teacher_forced(blocks, from)
    }
    fn context_embeddings(&self, blocks: Blocks<'_>) -> Tensor<2> {
        self.model.context_embeddings(blocks)
    }
}

#[test]
fn no_token_goes_through_the_host_and_no_step_is_wasted_behind_the_last() {
    for (draw_on_device, steps) in [(Some(true), (0, 3 + 3 + 1)), (Some(false), (3 + 3 + 1, 0)), (None, (7, 0))] {
        let model = Watched::new(block_model());
        let config = EngineConfig { draw_on_device, ..EngineConfig::default() };
        let mut engine = Engine::new(model, config, &Device::flex()).unwrap();
        for len in [5, 9] {
            engine.submit(Request::new(models::prompt(len, len)).with_max_new_tokens(10)).unwrap();
        }
        engine.run(|_, _| {});
        let model = engine.model();
        assert_eq!((model.from_host.get(), model.from_device.get()), steps, "{draw_on_device:?}");
    }
}

#[test]
fn prompts_are_taken_in_together_as_far_as_a_round_goes() {
    let config = EngineConfig { prefill_blocks: 10, page_blocks: 2, ..EngineConfig::default() };
    let mut engine = Engine::new(Watched::new(block_model()), config, &Device::flex()).unwrap();
    let length = engine.model().layout().block_length;
    for (seed, blocks) in [3, 1, 9, 2].into_iter().enumerate() {
        engine.submit(Request::new(models::prompt(blocks * length, seed)).with_max_new_tokens(length)).unwrap();
    }
    let mut rounds = || {
        engine.step();
        engine.model().taken_in.take()
    };
    // The third is cut. What has one block to write is never taken in again.
    assert_eq!(rounds(), [(vec![3, 1, 6], false)]);
    assert_eq!(rounds(), [(vec![3, 2], false)]);
    // Prompts that begin with what is known go on behind it, beside one that is new.
    engine.run(|_, _| {});
    for (blocks, seed) in [(8, 2), (3, 7), (5, 2)] {
        engine.submit(Request::new(models::prompt(blocks * length, seed)).with_max_new_tokens(1)).unwrap();
    }
    engine.step();
    assert_eq!(engine.model().taken_in.take(), [(vec![2, 3, 1], false)]);
}

#[test]
fn prompts_of_different_kinds_are_taken_in_one_after_the_other() {
    // Beginning with a learned start, and with more contexts to a window than one.
    let models = all_models().into_iter().filter_map(|(_, model)| match model {
        AnyModel::Block(model) if model.layout().predict_first_block && model.context_ends.context_blocks() > 1 => {
            Some(model)
        }
        _ => None,
    });
    let mut n_models = 0;
    for model in models {
        n_models += 1;
        let config = EngineConfig { prefill_blocks: 6, page_blocks: 2, ..EngineConfig::default() };
        let mut engine = Engine::new(Watched::new(model), config, &Device::flex()).unwrap();
        let length = engine.model().layout().block_length;
        for (seed, blocks) in [9, 2, 4].into_iter().enumerate() {
            engine.submit(Request::new(models::prompt(blocks * length, seed)).with_max_new_tokens(1)).unwrap();
        }
        let mut rounds = || {
            engine.step();
            engine.model().taken_in.take()
        };
        // Of six units, one of which is the start.
        assert_eq!(rounds(), [(vec![5], true)]);
        assert_eq!(rounds(), [(vec![4], false), (vec![1], true)]);
        assert_eq!(rounds(), [(vec![1], false), (vec![4], true)]);
        engine.run(|_, _| {});
    }
    assert!(n_models > 0);
}

#[test]
fn long_prompts_do_not_overtake_each_other() {
    let config = EngineConfig { prefill_blocks: 10, page_blocks: 4, ..EngineConfig::default() };
    let mut engine = Engine::new(Watched::new(block_model()), config, &Device::flex()).unwrap();
    let length = engine.model().layout().block_length;
    let ids = [1, 20, 20, 20].map(|blocks| {
        engine.submit(Request::new(models::prompt(blocks * length, blocks)).with_max_new_tokens(1)).unwrap()
    });
    let mut ended = Vec::new();
    engine.run(|id, event| {
        if matches!(event, Event::Done(_)) {
            ended.push(id);
        }
    });
    assert_eq!(ended, ids);
    let pieces = engine.model().taken_in.take().into_iter().map(|(n_blocks, _)| n_blocks).collect::<Vec<_>>();
    assert_eq!(pieces, [vec![1, 8], vec![8], vec![4, 4], vec![8], vec![8, 4], vec![8], vec![8]]);
}

#[test]
fn a_row_without_numbers_fails_alone_where_tokens_are_drawn_on_the_device() {
    let model = block_model();
    let config = EngineConfig { draw_on_device: Some(true), ..tight(&model, Alignment::ForceRest) };
    let good = Request::new([1, 2, 3, 4, 5]).with_max_new_tokens(9);
    let expected = alone(&model, &config, &good);
    // Behind a token that the good text lacks, the token decoder finds no numbers.
    let poison = (6..).find(|id| !expected.samples[0].tokens.contains(id)).unwrap();
    let mut poisoned = model.clone();
    let AnyTokenDecoder::Prefix(prefix) = &mut poisoned.token_decoder else { panic!("a prefix decoder") };
    let embedding = &mut prefix.vocabulary.embedding.weight;
    let nan = Tensor::<2>::full([1, embedding.dims()[1]], f32::NAN, &Device::flex());
    *embedding = embedding.clone().map(|weight| weight.slice_assign(s![poison as usize..poison as usize + 1, ..], nan));
    let mut engine = Engine::new(poisoned, config, &Device::flex()).unwrap();
    let id = engine.submit(good).unwrap();
    let bad = engine.submit(Request::new([1, 2, 3, 4, poison]).with_max_new_tokens(9)).unwrap();
    let (mut events, mut failed) = (Vec::new(), Vec::new());
    engine.run(|of, event| if of == id { events.push(event) } else { failed.push((of, event)) });
    assert_eq!(failed, [(bad, Event::Failed(GenerateError::NotANumber))]);
    assert_eq!(Completion::from_events(events).unwrap().samples, expected.samples);
    assert_eq!(engine.stats().pool.used, 0);
}

#[test]
fn drafts_do_not_change_the_distribution() {
    let model = block_model();
    let allowed = [3u32, 10, 20];
    let hook = blockformer_generate::LogitsHook::new(move |_, logits| {
        let forbidden = |id: &usize| !allowed.contains(&(*id as u32));
        (0..logits.len()).filter(forbidden).for_each(|id| logits[id] = f32::NEG_INFINITY);
    });
    let prompt = [3, 10, 20, 3, 3, 10, 10, 20, 3, 10, 3]; // every pair has come before
    let speculation = Some(Speculation { shortest: 1, longest: 2 });
    let config = EngineConfig { speculation, max_waiting: 3000, ..EngineConfig::default() };
    let mut engine = Engine::new(&model, config, &Device::flex()).unwrap();
    let n = 3000;
    for seed in 0..n {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let request = Request::new(prompt).with_max_new_tokens(2).with_sampling(sampling);
        engine.submit(Request { hook: Some(hook.clone()), ..request }).unwrap();
    }
    let mut pairs: HashMap<RequestId, Vec<u32>> = HashMap::new();
    let mut lost = 0;
    engine.run(|id, event| match event {
        Event::Token(token) => pairs.entry(id).or_default().push(token.token),
        Event::Failed(_) => lost += 1,
        _ => {}
    });
    let stats = engine.stats();
    assert!(stats.accepted_tokens > 0 && stats.accepted_tokens < stats.drafted_tokens && lost == 0);
    let whole: Vec<&Vec<u32>> = pairs.values().collect();
    assert_eq!(whole.len(), 3000);
    for first in allowed {
        for second in allowed {
            let expected = models::restricted_logprob(&model, &prompt, &[first, second], &allowed).exp();
            let got = whole.iter().filter(|pair| ***pair == [first, second]).count() as f64 / whole.len() as f64;
            let deviation = (expected * (1.0 - expected) / whole.len() as f64).sqrt();
            assert!((got - expected).abs() < 4.5 * deviation + 1e-9, "{first} {second}: {got} instead of {expected}");
        }
    }
}

#[test]
fn shared_beginnings_are_reused_and_evicted_without_changing_a_token() {
    for (name, model) in all_models() {
        check_reuse(name, &model);
    }
}

#[test]
fn what_was_generated_is_reused_if_it_is_asked_for() {
    for (name, model) in all_models() {
        let [asked, by_itself] = [(Some(true), 1e-5), (None, 0.0)].map(|(reuse_generated, rounding)| {
            let settings = EngineConfig { alignment: Alignment::ForceRest, reuse_generated, ..EngineConfig::default() };
            check_conversation(name, &model, settings, rounding)
        });
        assert!(asked > by_itself, "{name}: {asked} and {by_itself} tokens were reused");
    }
}

#[test]
fn requests_that_cannot_be_served_fail_at_once_and_touch_nobody() {
    let model = block_model();
    let config = tight(&model, Alignment::PadFirstBlock);
    let mut engine = Engine::new(&model, config.clone(), &Device::flex()).unwrap();
    let good = Request::new([1, 2, 3, 4, 5]).with_max_new_tokens(9);
    let id = engine.submit(good.clone()).unwrap();
    let mut events = engine.step();
    let sampled = Sampling { temperature: 1.0, ..Sampling::default() };
    for (request, message) in [
        (Request::new([]), "prompt 0 is empty"),
        (Request::new([1; 200]), "does not fit the context"),
        (Request::new([VOCAB_SIZE as u32]), "the vocabulary has"),
        (good.clone().with_max_new_tokens(0), "max_new_tokens is 0"),
        (Request { n: 0, ..good.clone() }, "n is 0"),
        (Request { n: 2, ..good.clone() }, "they would all be the same"),
        (Request { n: 6, ..good.clone().with_sampling(sampled.clone()) }, "6 sequences at a time"),
        (Request { n: 2, best_of: Some(1), ..good.clone().with_sampling(sampled.clone()) }, "best_of and n"),
        (Request { beams: Some(2), ..good.clone().with_sampling(sampled) }, "a beam search does not sample"),
        (good.clone().with_stop_strings(vec!["x".into()]), "the engine has no tokenizer"),
        (good.clone().with_stop_tokens(vec![VOCAB_SIZE as u32]), "stop_tokens names token"),
        (Request::new([1; 60]).with_max_new_tokens(60), "bytes of keys and values"),
    ] {
        let error = engine.submit(request).unwrap_err().to_string();
        assert!(error.contains(message), "{error:?} instead of {message:?}");
    }
    engine.run(|id, event| events.push((id, event)));
    assert!(events.iter().all(|(of, _)| *of == id));
    let got = Completion::from_events(events.into_iter().map(|(_, event)| event)).unwrap();
    assert_eq!(got.samples, alone(&model, &config, &good).samples);
}

#[test]
fn a_request_whose_hook_forbids_everything_fails_alone() {
    let model = block_model();
    let config = tight(&model, Alignment::PadFirstBlock);
    let mut engine = Engine::new(&model, config.clone(), &Device::flex()).unwrap();
    let good = Request::new([1, 2, 3, 4, 5]).with_max_new_tokens(9);
    let id = engine.submit(good.clone()).unwrap();
    let hook = blockformer_generate::LogitsHook::new(|tokens, logits| {
        if tokens.len() > 6 {
            logits.fill(f32::NEG_INFINITY);
        }
    });
    let bad = engine.submit(Request { hook: Some(hook), ..good.clone() }).unwrap();
    let (mut events, mut failed) = (Vec::new(), Vec::new());
    engine.run(|of, event| if of == id { events.push(event) } else { failed.push((of, event)) });
    assert_eq!(failed.last(), Some(&(bad, Event::Failed(GenerateError::NothingAllowed))));
    assert_eq!(Completion::from_events(events).unwrap().samples, alone(&model, &config, &good).samples);
    assert_eq!(engine.stats().pool.used, 0);
}

#[test]
fn a_long_prompt_does_not_hold_up_a_running_sequence() {
    let model = block_model();
    let config = EngineConfig { prefill_blocks: 2, page_blocks: 2, ..EngineConfig::default() };
    let mut engine = Engine::new(&model, config, &Device::flex()).unwrap();
    let short = engine.submit(Request::new([1, 2, 3]).with_max_new_tokens(40)).unwrap();
    engine.step();
    let long = engine.submit(Request::new([7; 80]).with_max_new_tokens(4)).unwrap();
    let mut rounds = 0;
    loop {
        let events = engine.step();
        rounds += 1;
        if events.iter().any(|(id, _)| *id == long) {
            break;
        }
        let tokens = events.iter().filter(|(id, event)| *id == short && matches!(event, Event::Token(_))).count();
        assert_eq!(tokens, 4, "a block in every round");
    }
    assert_eq!(rounds, 10, "20 blocks of prompt, two a round");
}

#[test]
fn accounts_of_keys_and_values_are_those_of_the_formula() {
    for (name, model) in all_models() {
        check_accounts(name, &model);
    }
}

#[test]
fn beams_find_what_an_exhaustive_search_finds() {
    // With as many beams as there are pairs of tokens, a search over two tokens misses nothing.
    let model = block_model();
    let allowed = [3u32, 10, 20];
    let hook = blockformer_generate::LogitsHook::new(move |_, logits| {
        logits
            .iter_mut()
            .enumerate()
            .filter(|(id, _)| !allowed.contains(&(*id as u32)))
            .for_each(|(_, x)| *x = f32::NEG_INFINITY);
    });
    let request =
        Request { beams: Some(9), hook: Some(hook), ..Request::new([1, 2, 3, 4, 5, 6]).with_max_new_tokens(2) };
    let config = EngineConfig::default();
    let mut engine = Engine::new(&model, config, &Device::flex()).unwrap();
    engine.submit(Request { n: 9, ..request }).unwrap();
    let mut found = Vec::new();
    let mut scores = Vec::new();
    engine.run(|_, event| match event {
        Event::Token(token) if token.sample == found.len() => found.push(vec![token.token]),
        Event::Token(token) => found[token.sample].push(token.token),
        Event::Finished { logprob, .. } => scores.push(logprob.unwrap()),
        _ => {}
    });
    // The reference: every pair, scored by the whole forward pass, over the allowed tokens alone.
    let mut expected: Vec<(Vec<u32>, f64)> = Vec::new();
    for first in allowed {
        for second in allowed {
            let score = models::restricted_logprob(&model, &[1, 2, 3, 4, 5, 6], &[first, second], &allowed);
            expected.push((vec![first, second], score));
        }
    }
    expected.sort_by(|a, b| b.1.total_cmp(&a.1));
    assert_eq!(found, expected.iter().map(|(pair, _)| pair.clone()).collect::<Vec<_>>());
    assert!(
        scores.iter().zip(&expected).all(|(got, (_, score))| (got - score).abs() < 1e-4),
        "{scores:?} {expected:?}"
    );
}
