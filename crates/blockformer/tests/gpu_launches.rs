//! How many kernels a step of decoding launches on a GPU (Mesa's software device will do), where hosts are slower than the
//! kernels they launch. One test alone: launches of the whole process are counted.
#![cfg(any(feature = "wgpu", feature = "cuda"))]

use blockformer::bench::{MeasureOptions, Subject, Workload, measure, step_kernels};
use blockformer::cubecl::KERNELS_OFF_VARIABLE;
use blockformer::embedder::EmbedderConfig;
use blockformer::model::{AnyModel, BlockTransformerConfig, VanillaTransformerConfig, presets};
use blockformer::nn::TransformerConfig;
use blockformer::token_decoder::TokenDecoderConfig;
use burn::module::Module;
use burn::tensor::Device;

fn device() -> Device {
    let name = std::env::var("BLOCKFORMER_TEST_DEVICE");
    let name = name.as_deref().unwrap_or(if cfg!(feature = "cuda") { "cuda:0" } else { "wgpu" });
    blockformer::device(name).expect("the device is there")
}

/// With as many layers in each decoder.
fn block_model(n_layers: usize, style: fn(usize, usize, usize) -> TransformerConfig) -> AnyModel {
    let config = presets::block("block_main_b4_5").expect("a preset");
    let mut config = BlockTransformerConfig { vocab_size: 96, max_length: 128, ..config };
    config.block_decoder = style(32, n_layers, 4);
    let TokenDecoderConfig::Prefix(prefix) = &mut config.token_decoder else { panic!("a prefix decoder") };
    prefix.transformer = style(32, n_layers, 4);
    let EmbedderConfig::Lookup(lookup) = &mut config.embedder else { panic!("a lookup embedder") };
    lookup.d_embedding = 8;
    AnyModel::Block(config.init(&Device::flex()).expect("a configuration that fits"))
}

fn vanilla_model(n_layers: usize) -> AnyModel {
    let config = presets::vanilla("vanilla_31").expect("a preset");
    let transformer = TransformerConfig::gpt_neox(32, n_layers, 4);
    let config = VanillaTransformerConfig { vocab_size: 96, max_length: 128, transformer, ..config };
    AnyModel::Vanilla(config.init(&Device::flex()).expect("a configuration that fits"))
}

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

#[test]
fn a_layer_launches_few_kernels() {
    let device = device();
    // A layer's step: the projection to queries, keys and values, attention, the projection back, and two of the
    // feed-forward network. Four of them in the token decoder are a block, and one in the block decoder.
    let of_step = 5.0;
    let of_block = 5.0 / 4.0 * of_step;
    for (name, one, two, most) in [
        ("vanilla", vanilla_model(1), vanilla_model(2), of_step),
        (
            "gpt-neox",
            block_model(1, TransformerConfig::gpt_neox),
            block_model(2, TransformerConfig::gpt_neox),
            of_block,
        ),
        ("llama", block_model(1, TransformerConfig::llama), block_model(2, TransformerConfig::llama), of_block),
    ] {
        let (one, two) = (launches(one, &device), launches(two, &device));
        println!("{name}: {one} launches a step with one layer, {two} with two");
        if std::env::var_os(KERNELS_OFF_VARIABLE).is_some() {
            continue; // somebody compares
        }
        // Of operations between the kernels, which Burn fuses as it sees fit, a few may come or go.
        assert!(two - one <= most + 0.25, "{name}: a layer adds {} launches, not {most}", two - one);
        assert!(one - most <= 9.0, "{name}: what is no layer launches {}", one - most);
    }
}
