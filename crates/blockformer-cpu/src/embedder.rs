//! Blocks of ids to block embeddings.

use blockformer_embedder::{AnyEmbedder, Embedder as _};
use blockformer_kernels::{Level, Precision};
use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, TensorData};

use crate::stack::room;
use crate::tokens::Table;
use crate::weights::{Linear, numbers};

/// A lookup embedder on packed weights; any other as it is, on Burn's operations (it runs once a block).
#[derive(Debug, Clone)]
pub(crate) enum Embedder {
    Lookup { table: Table, projection: Option<Linear> },
    Burn(Box<AnyEmbedder>),
}

/// Whole blocks of some sequences.
pub(crate) struct Blocks<'a> {
    /// `[sequences, n_blocks, block_length]`
    pub(crate) ids: &'a [u32],
    /// False on padding; `None` where there is none.
    pub(crate) real: Option<&'a [bool]>,
    /// `[sequences, n_blocks, block_length]`
    pub(crate) shape: [usize; 3],
}

impl Embedder {
    pub(crate) fn new(embedder: AnyEmbedder, precision: Precision) -> Self {
        match embedder {
            AnyEmbedder::Lookup(lookup) => {
                let width = lookup.embedding.weight.dims()[1];
                let table = Table { numbers: numbers(lookup.embedding.weight), width };
                Self::Lookup { table, projection: lookup.projection.layer.map(|layer| Linear::new(layer, precision)) }
            }
            other => Self::Burn(Box::new(other)),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Lookup { table, projection } => table.bytes() + projection.as_ref().map_or(0, Linear::bytes),
            Self::Burn(embedder) => 4 * embedder.num_params(),
        }
    }

    /// `[sequences, n_blocks, n_embedding_tokens, d_model]` into `out`, which has that size.
    pub(crate) fn forward(&self, level: Level, blocks: &Blocks<'_>, joined: &mut Vec<f32>, out: &mut [f32]) {
        match self {
            Self::Lookup { table, projection: None } => table.look_up(blocks.ids, out),
            Self::Lookup { table, projection: Some(projection) } => {
                let joined = room(joined, blocks.ids.len() * table.width);
                table.look_up(blocks.ids, joined);
                projection.forward(level, joined, out);
            }
            Self::Burn(embedder) => out.copy_from_slice(&burn_forward(embedder, blocks)),
        }
    }
}

fn burn_forward(embedder: &AnyEmbedder, blocks: &Blocks<'_>) -> Vec<f32> {
    let Some(device) = embedder.devices().into_iter().next() else { panic!("an embedder without parameters") };
    let ids: Vec<i32> = blocks.ids.iter().map(|&id| id as i32).collect();
    let ids = Tensor::<3, Int>::from_data(TensorData::new(ids, blocks.shape), &device);
    let mask =
        blocks.real.map(|real| Tensor::<3, Bool>::from_data(TensorData::new(real.to_vec(), blocks.shape), &device));
    let data = embedder.forward(ids, mask).into_data().convert::<f32>();
    match data.try_into_vec::<f32>() {
        Ok(values) => values,
        Err(error) => panic!("reading block embeddings: {error:?}"),
    }
}
