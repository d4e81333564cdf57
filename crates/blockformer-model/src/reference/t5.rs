//! The decoder of T5, as the authors decode blocks with by cross-attention.

use super::{Layout, Translation};

/// Where a tensor of the decoder belongs: `name` without the `token_decoder.` prefix, the answer below
/// `token_decoder.`.
pub(super) fn translate(name: &str) -> Translation {
    let same = |path: String| Translation::Parameter(path, Layout::Same);
    match name {
        "shared.weight" => return same("vocabulary.embedding.weight".into()),
        // The same matrix under its other names.
        "decoder.embed_tokens.weight" | "lm_head.weight" => return Translation::Ignored,
        "decoder.final_layer_norm.weight" => return same("final_norm.weight".into()),
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" => {
            return same("relative_bias.embedding.weight".into());
        }
        _ => {}
    }
    let Some((index, rest)) = name.strip_prefix("decoder.block.").and_then(|rest| rest.split_once('.')) else {
        return Translation::Unknown;
    };
    let modules = [
        ("layer.0.SelfAttention.q.weight", "self_attention.query.weight"),
        ("layer.0.SelfAttention.k.weight", "self_attention.key.weight"),
        ("layer.0.SelfAttention.v.weight", "self_attention.value.weight"),
        ("layer.0.SelfAttention.o.weight", "self_attention.output.weight"),
        ("layer.0.layer_norm.weight", "self_norm.weight"),
        ("layer.1.EncDecAttention.q.weight", "cross_attention.query.weight"),
        ("layer.1.EncDecAttention.k.weight", "cross_attention.key.weight"),
        ("layer.1.EncDecAttention.v.weight", "cross_attention.value.weight"),
        ("layer.1.EncDecAttention.o.weight", "cross_attention.output.weight"),
        ("layer.1.layer_norm.weight", "cross_norm.weight"),
        ("layer.2.DenseReluDense.wi.weight", "up.weight"),
        ("layer.2.DenseReluDense.wo.weight", "down.weight"),
        ("layer.2.layer_norm.weight", "feed_forward_norm.weight"),
    ];
    match modules.iter().find(|(theirs, _)| *theirs == rest) {
        Some((_, ours)) => same(format!("layers.{index}.{ours}")),
        None => Translation::Unknown,
    }
}
