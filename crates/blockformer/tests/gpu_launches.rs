//! How many kernels a step of decoding launches on a GPU (Mesa's software device will do), where hosts are slower than the
//! kernels they launch. One test alone: launches of the whole process are counted.
#![cfg(any(feature = "wgpu", feature = "cuda"))]

mod gpu_models;

use blockformer::bench::{MeasureOptions, Subject, Workload, measure, step_kernels};
use blockformer::cubecl::{KERNELS_OFF_VARIABLE, Observe, PagedPositions, attend_paged, observe_kernels};
use blockformer::generate::{Engine, EngineConfig, RecordingState, Request};
use blockformer::model::AnyModel;
use blockformer::nn::TransformerConfig;
use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use gpu_models::{block_model, device, vanilla_model, vanilla_model_of};

/// Kernels launched a step, when all is compiled and tuned.
fn launches(model: AnyModel, device: &Device) -> f64 {
    let model = model.to_device(device);
    let subject = Subject::new("model", &model);
    let workload = Workload { name: "short".into(), prompt_tokens: 8, new_tokens: 48 };
    let decoding = blockformer::decoding(device);
    let options = MeasureOptions { repeats: 1, warm_up: 1, decoding, ..MeasureOptions::default() };
    measure(&subject, &workload, &options, device).expect("a workload that fits");
    let kernels = step_kernels(&subject, &workload, &options, device).expect("a workload that fits");
    let kernels = kernels.expect("steps launch kernels");
    for kernel in &kernels.kernels {
        println!("{:6.2} {}", kernel.launches, kernel.kernel);
    }
    kernels.launches
}

/// Attention over pages: no launch too many, above all none that copies the pool.
fn a_pool_is_written_in_place(device: &Device) {
    let (n_heads, head_dim, page_length) = (2, 8, 4);
    let launches = |held: usize, new: usize, shared: bool| {
        let n_pages = held / page_length + 2;
        let qkv = Tensor::<3>::ones([1, new, 3 * n_heads * head_dim], device);
        let table = |position: usize| std::iter::once(position).chain(0..n_pages).map(|x| x as i32);
        let tables: Vec<i32> = (held..held + new).flat_map(table).collect();
        let tables = Tensor::<2, Int>::from_data(TensorData::new(tables, [new, n_pages + 1]), (device, DType::I32));
        let pool = || Tensor::<2>::ones([n_pages * page_length, n_heads * head_dim], device);
        let (mut keys, mut values) = (pool(), pool());
        let of = PagedPositions {
            qkv: &qkv,
            rotation: None,
            n_heads,
            head_dim,
            tables: &tables,
            page_length,
            longest: held + new - 1,
            see_each_other: new > 1,
            stays: false,
        };
        let mut attend = || {
            attend_paged(of, &mut keys, &mut values).expect("there is a kernel");
            device.sync().expect("a device that works");
        };
        attend(); // when all is compiled
        let others = shared.then(|| (keys.clone(), values.clone()));
        let mut attend = || {
            attend_paged(of, &mut keys, &mut values).expect("there is a kernel");
            device.sync().expect("a device that works");
        };
        let ((), kernels) = observe_kernels(Observe::Launches, &mut attend);
        drop(others);
        let kernels = kernels.expect("attention launches kernels");
        assert_eq!(shared, kernels.iter().any(|kernel| kernel.kernel == "UnaryNumeric | Copy"), "{kernels:?}");
        kernels.iter().map(|kernel| kernel.launches).sum::<usize>()
    };
    assert_eq!(launches(5, 1, false), 1);
    assert_eq!(launches(100, 1, false), 2, "parts are put together");
    assert_eq!(launches(5, 3, false), 2, "written before");
    assert_eq!(launches(100, 3, false), 3);
    assert_eq!(launches(5, 1, true), 3, "keys and values of somebody else are copied");
}

/// Kernels launched for a block of all rows of an engine, and the passes that were repeated for it.
fn of_engine(model: AnyModel, rows: usize, recorded_after: Option<usize>, device: &Device) -> (usize, u64) {
    let model = model.to_device(device);
    let config = EngineConfig { kv_budget: 1 << 20, recorded_after, ..EngineConfig::default() };
    let mut engine = Engine::new(model, config, device).expect("a pool of some pages");
    for row in 0..rows {
        let prompt: Vec<u32> = (0..8 + 4 * row as u32).map(|i| (i * 7 + i * i) % 96).collect();
        engine.submit(Request::new(prompt).with_max_new_tokens(64)).expect("a request that fits");
    }
    (0..3).for_each(|_| drop(engine.step())); // when all is compiled and tuned, and everybody there
    let sync = || device.sync().expect("a device that works");
    sync();
    let before = engine.stats().repeated_passes;
    let (events, kernels) = observe_kernels(Observe::Launches, || {
        let events = engine.step();
        sync();
        events
    });
    assert_eq!(events.len(), 4 * rows, "a block of each");
    let kernels = kernels.expect("blocks launch kernels");
    // What the pool's memory would be copied by, if somebody else held it.
    let compared = std::env::var_os(KERNELS_OFF_VARIABLE).is_some();
    assert!(compared || kernels.iter().all(|kernel| kernel.kernel != "UnaryNumeric | Copy"), "{kernels:?}");
    for kernel in &kernels {
        println!("{:6} {}", kernel.launches, kernel.kernel);
    }
    (kernels.iter().map(|kernel| kernel.launches).sum(), engine.stats().repeated_passes - before)
}

fn an_engine_launches_as_many_whatever_its_rows(device: &Device) {
    let model = |n_layers| block_model(TransformerConfig::gpt_neox(32, n_layers, 4), 128);
    // The first pass of a block has two positions of each: eight rows, as many as the kernels of products take.
    let launches = |n_layers, rows| of_engine(model(n_layers), rows, None, device).0;
    let (one, four, two_layers) = (launches(1, 1), launches(1, 4), launches(2, 4));
    println!("an engine: {one} launches a block, {four} for four rows, {two_layers} with two layers");
    if std::env::var_os(KERNELS_OFF_VARIABLE).is_none() {
        // Of what Burn fuses as it sees fit, a few may come or go.
        assert!(four.abs_diff(one) <= 2, "four rows launch {four}, one row {one}");
        assert!((two_layers - four).abs_diff(25) <= 2, "a layer adds {} launches to a block", two_layers - four);
    }
    let (recorded, passes) = of_engine(model(2), 4, Some(0), device);
    println!("an engine that records: {recorded} launches a block of two layers and {passes} repeated passes");
    assert!(passes == 0 || recorded <= 12, "{recorded} launches beside {passes} repeated passes");
}

/// Each graph keeps the pages of memory that it computes in, which are as large as the largest tensor outside of memory of its own.
fn recordings_keep_memory_for_a_step_and_not_for_the_pool(device: &Device) {
    let reserved = || {
        device.sync().expect("a device that works");
        device.memory_pool_usage().map(|usage| usage.bytes_reserved)
    };
    // Logits of 128 KiB and more: what is smaller has pages of its own.
    let model = vanilla_model_of(1 << 15, TransformerConfig::gpt_neox(32, 2, 4), 128).to_device(device);
    // Four tensors of 128 MiB.
    let config =
        EngineConfig { kv_budget: 512 << 20, recorded_after: Some(0), max_batch: 4, ..EngineConfig::default() };
    let mut engine = Engine::new(model, config, device).expect("a pool of some pages");
    let before = reserved().expect("memory is counted");
    engine.record_ahead();
    for rows in [1, 2, 4] {
        for row in 0..rows {
            engine.submit(Request::new([row, 2, 3, 4, 5]).with_max_new_tokens(6)).expect("a request that fits");
        }
        engine.run(|_, _| {});
    }
    let more = reserved().expect("memory is counted").saturating_sub(before);
    let passes = engine.stats().repeated_passes;
    println!("recording took {} MiB for {passes} repeated passes", more >> 20);
    assert!(passes > 0 || engine.stats().recording != RecordingState::Works, "it repeats what it records");
    assert!(more < 128 << 20, "recording took {more} bytes");
    drop(engine);
    let given_back = (before + more).saturating_sub(reserved().expect("memory is counted"));
    assert!(given_back >= 512 << 20, "{given_back} bytes were given back with the engine");
}

#[test]
fn a_layer_launches_few_kernels() {
    let device = device();
    // A layer's step: the projection to queries, keys and values, attention, the projection back, and two of the
    // feed-forward network. Four of them in the token decoder are a block, and one in the block decoder.
    let of_step = 5.0;
    let of_block = 5.0 / 4.0 * of_step;
    let neox = |n_layers| TransformerConfig::gpt_neox(32, n_layers, 4);
    let llama = |n_layers| TransformerConfig::llama(32, n_layers, 4);
    for (name, [one, two], most) in [
        ("vanilla", [1, 2].map(|n_layers| vanilla_model(neox(n_layers), 128)), of_step),
        ("gpt-neox", [1, 2].map(|n_layers| block_model(neox(n_layers), 128)), of_block),
        ("llama", [1, 2].map(|n_layers| block_model(llama(n_layers), 128)), of_block),
    ] {
        let (one, two) = (launches(one, &device), launches(two, &device));
        println!("{name}: {one} launches a step with one layer, {two} with two");
        if std::env::var_os(KERNELS_OFF_VARIABLE).is_some() {
            continue; // somebody compares
        }
        // Of operations between the kernels, which Burn fuses as it sees fit, a few may come or go.
        assert!((two - one - most).abs() <= 0.25, "{name}: a layer adds {} launches, not {most}", two - one);
        assert!(one - most <= 9.0, "{name}: what is no layer launches {}", one - most);
    }
    an_engine_launches_as_many_whatever_its_rows(&device);
    recordings_keep_memory_for_a_step_and_not_for_the_pool(&device);
    if std::env::var_os(KERNELS_OFF_VARIABLE).is_none() {
        a_pool_is_written_in_place(&device);
    }
}
