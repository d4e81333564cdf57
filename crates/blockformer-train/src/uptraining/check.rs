//! Whether two configurations go together.

use blockformer_embedder::{EmbedderConfig, LookupConfig, Projection};
use blockformer_model::{BlockTransformerConfig, VanillaTransformerConfig};
use blockformer_nn::TransformerConfig;
use blockformer_token_decoder::TokenDecoderConfig;

use super::layers::LayerSources;
use super::{UptrainingError, UptrainingOptions};

/// Settings of a stack that may differ between the models.
const FREE: [&str; 3] = ["n_layers", "max_positions", "initializer_range"];

/// Checks that layers and tables can be copied and initialised as the options say.
pub(super) fn configs(
    vanilla: &VanillaTransformerConfig,
    block: &BlockTransformerConfig,
    options: &UptrainingOptions,
) -> Result<LayerSources, UptrainingError> {
    if vanilla.vocab_size != block.vocab_size {
        return Err(mismatch("the model", "vocab_size", block.vocab_size, vanilla.vocab_size));
    }
    let (token, tied) = token_decoder(&block.token_decoder)?;
    same_style("the block decoder", &block.block_decoder, &vanilla.transformer)?;
    same_style("the token decoder", token, &vanilla.transformer)?;
    if tied && !vanilla.tied_embeddings {
        return Err(mismatch("the token decoder", "tied_embeddings", tied, vanilla.tied_embeddings));
    }
    let d_model = vanilla.transformer.d_model;
    let unsupported = |what, needs| Err(UptrainingError::Unsupported { what, needs });
    if options.mean_projection && !projects_mean(&block.embedder, d_model) {
        let needs = "a lookup embedder with a projection layer and token embeddings as wide as the vanilla transformer";
        return unsupported("a projection that starts as the mean", needs);
    }
    if options.compute_token_embeddings {
        let what = "computing the token decoder's embeddings with the block decoder";
        if tied {
            return unsupported(what, "an output projection that is not the embedding table");
        }
        if block.n_embedding_tokens != 1 || !lookup_of_width(&block.embedder, d_model) {
            let needs = "one embedding token a block and a lookup embedder as wide as the vanilla transformer";
            return unsupported(what, needs);
        }
    }
    options.layers.sources(vanilla.transformer.n_layers, block.block_decoder.n_layers, token.n_layers)
}

/// The layers of a token decoder that has the vanilla transformer's kind, and whether its tables are tied.
fn token_decoder(config: &TokenDecoderConfig) -> Result<(&TransformerConfig, bool), UptrainingError> {
    match config {
        TokenDecoderConfig::Prefix(config) => Ok((&config.transformer, config.tied_embeddings)),
        TokenDecoderConfig::Summation(config) => Ok((&config.transformer, config.tied_embeddings)),
        _ => Err(UptrainingError::Unsupported {
            what: "uptraining",
            needs: "a prefix or summation token decoder, whose layers are the vanilla transformer's",
        }),
    }
}

/// Whether the embedder looks tokens up in a table of `d_model` features.
pub(super) fn lookup_of_width(embedder: &EmbedderConfig, d_model: usize) -> bool {
    matches!(embedder, EmbedderConfig::Lookup(LookupConfig { d_embedding, .. }) if *d_embedding == d_model)
}

fn projects_mean(embedder: &EmbedderConfig, d_model: usize) -> bool {
    let projects =
        matches!(embedder, EmbedderConfig::Lookup(config) if config.projection == Projection::ProjectionLayer);
    projects && lookup_of_width(embedder, d_model)
}

/// Checks that a stack has the vanilla transformer's sizes and style.
fn same_style(
    part: &'static str,
    block: &TransformerConfig,
    vanilla: &TransformerConfig,
) -> Result<(), UptrainingError> {
    let fields = |config| match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => unreachable!("a configuration is a JSON object"),
    };
    let vanilla = fields(vanilla);
    let differs = fields(block).into_iter().find(|(field, value)| {
        !FREE.contains(&field.as_str()) && vanilla.get(field).is_none_or(|theirs| theirs != value)
    });
    match differs {
        Some((field, value)) => Err(mismatch(part, &field, value, &vanilla[&field])),
        None => Ok(()),
    }
}

fn mismatch(part: &'static str, field: &str, block: impl ToString, vanilla: impl ToString) -> UptrainingError {
    UptrainingError::Mismatch { part, field: field.into(), block: block.to_string(), vanilla: vanilla.to_string() }
}
