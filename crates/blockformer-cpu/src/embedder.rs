//! Blocks of ids to block embeddings.

use blockformer_embedder::{AnyEmbedder, EmbedderConfig};
use blockformer_kernels::{Level, Precision};

use crate::PackError;
use crate::encoder::{Encoder, EncoderWork};
use crate::stack::{Scratch, room};
use crate::tokens::Table;
use crate::weights::{Linear, numbers};

/// An embedder on packed weights.
#[derive(Debug, Clone)]
pub(crate) enum Embedder {
    Lookup { table: Table, projection: Option<Linear> },
    Encoder(Box<Encoder>),
}

/// Whole blocks, one after the other.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'a> {
    /// `[blocks, block_length]`
    pub(crate) ids: &'a [u32],
    /// False on padding, which stands at the start of a block; `None` where there is none.
    pub(crate) real: Option<&'a [bool]>,
    pub(crate) block_length: usize,
}

/// Buffers that an embedder uses anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct EmbedderWork {
    joined: Vec<f32>,
    /// Block embeddings that are to be put behind a start of text.
    pub(crate) blocks: Vec<f32>,
    encoder: EncoderWork,
}

impl EmbedderWork {
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.joined[..]) + size_of_val(&self.blocks[..]) + self.encoder.bytes()
    }
}

impl Embedder {
    pub(crate) fn new(embedder: AnyEmbedder, config: &EmbedderConfig, precision: Precision) -> Result<Self, PackError> {
        match (embedder, config) {
            (AnyEmbedder::Lookup(lookup), EmbedderConfig::Lookup(_)) => {
                let width = lookup.embedding.weight.dims()[1];
                let table = Table::new(&numbers(lookup.embedding.weight), width);
                let projection = lookup.projection.layer.map(|layer| Linear::new(layer, precision));
                Ok(Self::Lookup { table, projection })
            }
            (AnyEmbedder::Encoder(encoder), EmbedderConfig::Encoder(config)) => {
                Ok(Self::Encoder(Box::new(Encoder::new(encoder, config, precision)?)))
            }
            _ => Err(PackError::Mismatch),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Lookup { table, projection } => table.bytes() + projection.as_ref().map_or(0, Linear::bytes),
            Self::Encoder(encoder) => encoder.bytes(),
        }
    }

    /// `[blocks, n_embedding_tokens, d_model]` into `out`, which has that size.
    pub(crate) fn forward(
        &self,
        level: Level,
        blocks: Blocks<'_>,
        work: &mut EmbedderWork,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        match self {
            Self::Lookup { table, projection: None } => table.look_up(blocks.ids, out),
            Self::Lookup { table, projection: Some(projection) } => {
                let joined = room(&mut work.joined, blocks.ids.len() * table.width);
                table.look_up(blocks.ids, joined);
                projection.forward(level, joined, &mut scratch.workspace, out);
            }
            Self::Encoder(encoder) => encoder.forward(level, blocks, &mut work.encoder, scratch, out),
        }
    }
}
