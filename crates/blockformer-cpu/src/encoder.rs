//! The encoder embedder on packed weights.
//!
//! Attention sees a range of positions, and padding stands at the start of a block. CLS tokens, which stand before
//! the block and are always seen, are put behind it instead: apart from rotary positions, which are kept, the order
//! changes nothing but the order of sums.

use blockformer_embedder::{EncoderConfig, EncoderEmbedder};
use blockformer_kernels::{Level, Precision};

use crate::PackError;
use crate::cache::{Cache, Kv};
use crate::embedder::Blocks;
use crate::lengths::Lengths;
use crate::stack::{Positions, Scratch, Stack, room};
use crate::tokens::Table;
use crate::weights::{Linear, Norm, numbers};

/// Reads each block with layers that see all of it.
#[derive(Debug, Clone)]
pub(crate) struct Encoder {
    words: Table,
    /// The embedding of the token type, which is the same everywhere, is added to each.
    positions: Table,
    norm: Norm,
    stack: Stack,
    projection: Option<Linear>,
    padding_idx: usize,
    n_cls: usize,
    cls_token_id: u32,
}

/// Buffers that an encoder uses anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct EncoderWork {
    x: Vec<f32>,
    normed: Vec<f32>,
    padded: Vec<usize>,
    /// Keys and values, which nothing is kept of.
    cache: Option<Cache>,
}

impl EncoderWork {
    pub(crate) fn bytes(&self) -> usize {
        let floats = size_of_val(&self.x[..]) + size_of_val(&self.normed[..]);
        floats + size_of_val(&self.padded[..]) + self.cache.as_ref().map_or(0, Cache::bytes)
    }
}

impl Encoder {
    pub(crate) fn new(
        encoder: EncoderEmbedder,
        config: &EncoderConfig,
        precision: Precision,
    ) -> Result<Self, PackError> {
        let width = config.transformer.d_model;
        let token_type = numbers(encoder.token_type_embedding.weight);
        let mut positions = numbers(encoder.position_embedding.weight);
        for position in positions.chunks_exact_mut(width) {
            position.iter_mut().zip(&token_type).for_each(|(x, token_type)| *x += token_type);
        }
        Ok(Self {
            words: Table::new(&numbers(encoder.word_embedding.weight), width),
            positions: Table::new(&positions, width),
            norm: Norm::new(encoder.norm, config.transformer.norm_eps),
            stack: Stack::new(encoder.transformer, &config.transformer, precision)?,
            projection: encoder.projection.layer.map(|layer| Linear::new(layer, precision)),
            padding_idx: config.padding_idx,
            n_cls: config.cls.map_or(0, |cls| cls.n),
            cls_token_id: config.cls.map_or(0, |cls| cls.token_id),
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        let tables = self.words.bytes() + self.positions.bytes();
        tables + self.norm.bytes() + self.stack.bytes() + self.projection.as_ref().map_or(0, Linear::bytes)
    }

    /// # Panics
    /// If padding stands elsewhere than at the start of a block.
    pub(crate) fn forward(
        &self,
        level: Level,
        blocks: Blocks<'_>,
        work: &mut EncoderWork,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let Blocks { ids, real, block_length } = blocks;
        let (rows, n, width) = (ids.len() / block_length, block_length + self.n_cls, self.words.width);
        let x = room(&mut work.x, rows * n * width);
        for (ids, x) in ids.chunks_exact(block_length).zip(x.chunks_exact_mut(n * width)) {
            self.embed(ids, x);
        }
        let normed = room(&mut work.normed, x.len());
        self.norm.forward(level, x, normed);
        work.padded.clear();
        for real in real.iter().flat_map(|real| real.chunks_exact(block_length)) {
            let padded = real.iter().take_while(|real| !**real).count();
            assert!(real[padded..].iter().all(|real| *real), "padding behind the start of a block");
            work.padded.push(padded);
        }
        let cache = work.cache.get_or_insert_with(|| Cache::new(self.stack.config(), rows, n));
        cache.grow(rows);
        let new = Lengths::Same { length: n, rows };
        let positions = Positions { new, wanted: None, group: n, padded: &work.padded, turned: self.n_cls };
        self.stack.forward(level, normed, positions, Kv::Together { cache, sequences: 0..rows }, scratch);
        let joined = if self.n_cls > 0 {
            for row in 0..rows {
                let cls = (row * n + block_length) * width..(row + 1) * n * width;
                normed.copy_within(cls, row * self.n_cls * width);
            }
            &normed[..rows * self.n_cls * width]
        } else {
            &*normed
        };
        match &self.projection {
            Some(projection) => projection.forward(level, joined, &mut scratch.workspace, out),
            None => out.copy_from_slice(joined),
        }
    }

    /// One block and, behind it, the CLS tokens, which come first in the count of positions.
    fn embed(&self, ids: &[u32], x: &mut [f32]) {
        let mut counted = 0;
        let cls = (0..self.n_cls).map(|slot| (ids.len() + slot, self.cls_token_id));
        for (slot, id) in cls.chain(ids.iter().copied().enumerate()) {
            let counts = id as usize != self.padding_idx;
            counted += usize::from(counts);
            let position = self.padding_idx + if counts { counted } else { 0 };
            let width = self.words.width;
            let x = &mut x[slot * width..(slot + 1) * width];
            self.words.look_up(&[id], x);
            let position = &self.positions.numbers[position * width..(position + 1) * width];
            x.iter_mut().zip(position).for_each(|(x, position)| *x += position);
        }
    }
}
