//! The encoder of RoBERTa, as the authors embed blocks with.

use blockformer_nn::TransformerConfig;

use super::{Layout, Translation};

/// The modules of a layer, and what they are called here.
const MODULES: [(&str, &str); 8] = [
    ("attention.self.query", "attention.qkv"),
    ("attention.self.key", "attention.qkv"),
    ("attention.self.value", "attention.qkv"),
    ("attention.output.dense", "attention.output"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "feed_forward.up"),
    ("output.dense", "feed_forward.down"),
    ("output.LayerNorm", "feed_forward_norm"),
];

/// The names of all modules of the encoder.
pub(super) fn stems(n_layers: usize) -> Vec<String> {
    let layers = (0..n_layers).flat_map(|i| MODULES.map(|(module, _)| format!("encoder.layer.{i}.{module}")));
    let tables = ["word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"];
    let stems = layers.chain(tables.map(|table| format!("embeddings.{table}")));
    stems.map(|stem| format!("embedder.{stem}")).collect()
}

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
    for (theirs, ours) in MODULES {
        let rows = |part: usize| Layout::Rows { offset: part * d, rows: d, total: 3 * d };
        let layout = match theirs {
            "attention.self.query" => rows(0),
            "attention.self.key" => rows(1),
            "attention.self.value" => rows(2),
            _ => Layout::Same,
        };
        if let Some(kind @ ("weight" | "bias")) = rest.strip_prefix(theirs).and_then(|kind| kind.strip_prefix('.')) {
            return Translation::Parameter(format!("transformer.layers.{index}.{ours}.{kind}"), layout);
        }
    }
    Translation::Unknown
}
