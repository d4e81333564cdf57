//! The encoder of RoBERTa, as the authors embed blocks with.

use blockformer_nn::TransformerConfig;

use super::{Layout, Translation};

/// Where a tensor of the encoder belongs: `name` without the `embedder.` prefix, the answer below `embedder.`.
pub(super) fn translate(name: &str, config: &TransformerConfig) -> Translation {
    let same = |path: String| Translation::Parameter(path, Layout::Same);
    match name {
        "embeddings.word_embeddings.weight" => return same("word_embedding.weight".into()),
        "embeddings.position_embeddings.weight" => return same("position_embedding.weight".into()),
        "embeddings.token_type_embeddings.weight" => return same("token_type_embedding.weight".into()),
        "embeddings.position_ids" | "embeddings.token_type_ids" => return Translation::Ignored,
        _ => {}
    }
    if let Some(kind @ ("weight" | "bias")) = name.strip_prefix("embeddings.LayerNorm.") {
        return same(format!("norm.{kind}"));
    }
    let Some((index, rest)) = name.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.')) else {
        return Translation::Unknown;
    };
    let d = config.d_model;
    let rows = |part: usize| Layout::Rows { offset: part * d, total: 3 * d };
    let modules = [
        ("attention.self.query", "attention.qkv", rows(0)),
        ("attention.self.key", "attention.qkv", rows(1)),
        ("attention.self.value", "attention.qkv", rows(2)),
        ("attention.output.dense", "attention.output", Layout::Same),
        ("attention.output.LayerNorm", "attention_norm", Layout::Same),
        ("intermediate.dense", "feed_forward.up", Layout::Same),
        ("output.dense", "feed_forward.down", Layout::Same),
        ("output.LayerNorm", "feed_forward_norm", Layout::Same),
    ];
    for (theirs, ours, layout) in modules {
        if let Some(kind @ ("weight" | "bias")) = rest.strip_prefix(theirs).and_then(|kind| kind.strip_prefix('.')) {
            return Translation::Parameter(format!("transformer.layers.{index}.{ours}.{kind}"), layout);
        }
    }
    Translation::Unknown
}
