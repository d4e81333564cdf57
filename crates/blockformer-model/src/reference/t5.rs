//! The decoder of T5, as the authors decode blocks with by cross-attention.

use super::{Layout, Translation};

/// The modules of a layer, and what they are called here.
const MODULES: [(&str, &str); 13] = [
    ("layer.0.SelfAttention.q", "self_attention.query"),
    ("layer.0.SelfAttention.k", "self_attention.key"),
    ("layer.0.SelfAttention.v", "self_attention.value"),
    ("layer.0.SelfAttention.o", "self_attention.output"),
    ("layer.0.layer_norm", "self_norm"),
    ("layer.1.EncDecAttention.q", "cross_attention.query"),
    ("layer.1.EncDecAttention.k", "cross_attention.key"),
    ("layer.1.EncDecAttention.v", "cross_attention.value"),
    ("layer.1.EncDecAttention.o", "cross_attention.output"),
    ("layer.1.layer_norm", "cross_norm"),
    ("layer.2.DenseReluDense.wi", "up"),
    ("layer.2.DenseReluDense.wo", "down"),
    ("layer.2.layer_norm", "feed_forward_norm"),
];

const RELATIVE_BIAS: &str = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias";

/// The names of all modules of the decoder.
pub(super) fn stems(n_layers: usize) -> Vec<String> {
    let layers = (0..n_layers).flat_map(|i| MODULES.map(|(module, _)| format!("decoder.block.{i}.{module}")));
    let others = ["shared", "decoder.final_layer_norm", RELATIVE_BIAS].map(String::from);
    layers.chain(others).map(|stem| format!("token_decoder.{stem}")).collect()
}

/// Where a tensor of the decoder belongs: `name` without the `token_decoder.` prefix, the answer below
/// `token_decoder.`.
pub(super) fn translate(name: &str) -> Translation {
    let same = |path: String| Translation::Parameter(path, Layout::Same);
    match name {
        "shared.weight" => return same("vocabulary.embedding.weight".into()),
        // The same matrix under its other names.
        "decoder.embed_tokens.weight" | "lm_head.weight" => return Translation::Ignored,
        "decoder.final_layer_norm.weight" => return same("final_norm.weight".into()),
        _ if name.strip_suffix(".weight") == Some(RELATIVE_BIAS) => {
            return same("relative_bias.embedding.weight".into());
        }
        _ => {}
    }
    let Some((index, rest)) = name.strip_prefix("decoder.block.").and_then(|rest| rest.split_once('.')) else {
        return Translation::Unknown;
    };
    let module = rest.strip_suffix(".weight").unwrap_or(rest);
    match MODULES.iter().find(|(theirs, _)| *theirs == module) {
        Some((_, ours)) if module != rest => same(format!("layers.{index}.{ours}.weight")),
        _ => Translation::Unknown,
    }
}
