//! Which context embeddings a block is decoded from.
//!
//! In the paper a block is decoded from the context embedding of the block before it, and the first block is not
//! predicted. Both can be widened; `E` stands for a learned start of text, `-` for a learned absence.
//!
//! ```text
//!                                    block 0    block 1    block 2    block 3
//! the paper                          (none)     c0         c1         c2
//! predict_first_block                cE         c0         c1         c2
//! context_blocks = 2                 (none)     -  c0      c0 c1      c1 c2
//! both                               -  cE      cE c0      c0 c1      c1 c2
//! ```

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Bool, Device, Tensor, s};

/// Standard deviation of the two learned embeddings at the start.
const STD: f64 = 0.02;

/// The learned embeddings that widen what a block is decoded from; it holds none for the paper's models.
#[derive(Module, Debug)]
pub struct ContextEnds {
    /// The block embedding that stands before a text, `[n_embedding_tokens, d_model]`.
    pub start: Option<Param<Tensor<2>>>,
    /// The context embedding that stands for a block before the beginning, `[n_embedding_tokens, d_model]`.
    pub absent: Option<Param<Tensor<2>>>,
    context_blocks: usize,
}

impl ContextEnds {
    /// Draws the embeddings that are needed.
    pub(crate) fn new(shape: [usize; 2], context_blocks: usize, predict_first_block: bool, device: &Device) -> Self {
        let draw = || Initializer::Normal { mean: 0.0, std: STD }.init(shape, device);
        Self { start: predict_first_block.then(draw), absent: (context_blocks > 1).then(draw), context_blocks }
    }

    /// How many context embeddings, counted in blocks, a block is decoded from.
    pub fn context_blocks(&self) -> usize {
        self.context_blocks
    }

    /// The start of text in front of block embeddings: for each sequence directly before its first real block, so that
    /// padding changes no distance. Without a learned start, everything as it is.
    ///
    /// # Shapes
    /// - `blocks`: `[batch, n_blocks, n_embedding_tokens, d_model]`
    /// - `real`: `[batch, n_blocks]`, false for blocks of padding; `None` where there are none
    /// - returns: the same with `n_blocks + 1`
    pub fn with_start(&self, blocks: Tensor<4>, real: Option<Tensor<2, Bool>>) -> (Tensor<4>, Option<Tensor<2, Bool>>) {
        let Some(start) = &self.start else { return (blocks, real) };
        let [batch, n_blocks, n, d_model] = blocks.dims();
        let start = start.val().reshape([1, 1, n, d_model]);
        let Some(real) = real else {
            return (Tensor::cat(vec![start.expand([batch, 1, n, d_model]), blocks], 1), None);
        };
        let device = real.device();
        let always = Tensor::<2, Bool>::full([batch, 1], true, &device);
        // How many real blocks come before each position of the longer sequence, and whether one stands on it.
        let before = Tensor::cat(vec![Tensor::zeros([batch, 1], &device), real.clone().int().cumsum(1)], 1);
        let on = Tensor::cat(vec![real.clone(), always.clone()], 1);
        let is_start = before.equal_elem(0).bool_and(on); // [batch, n_blocks + 1]
        let shifted = Tensor::cat(vec![Tensor::<2, Bool>::full([batch, 1], false, &device), real], 1);
        let shape = [batch, n_blocks + 1, n, d_model];
        let at: Tensor<4, Bool> = is_start.clone().reshape([batch, n_blocks + 1, 1, 1]).expand(shape);
        let blocks = Tensor::cat(vec![start.clone().expand([batch, 1, n, d_model]), blocks], 1);
        (blocks.mask_where(at, start.expand(shape)), Some(shifted.bool_or(is_start)))
    }

    /// The window of context embeddings that each block is decoded from: those of the last
    /// [`context_blocks`](Self::context_blocks) blocks, oldest first.
    ///
    /// # Shapes
    /// - `contexts`: `[batch, n, n_embedding_tokens, d_model]`, of consecutive blocks
    /// - `real`: `[batch, n]`, false for blocks of padding; `None` where there are none
    /// - `recent`: what the call for the blocks before gave back; `None` at the beginning
    /// - returns: `[batch, n, context_blocks · n_embedding_tokens, d_model]`, one window a block; that of block `i`
    ///   decodes block `i + 1`; and the last context embeddings, which the call for the blocks behind needs,
    ///   `[batch, context_blocks - 1, n_embedding_tokens, d_model]` (`None` if a block is decoded from one alone)
    pub fn windows(
        &self,
        contexts: Tensor<4>,
        real: Option<Tensor<2, Bool>>,
        recent: Option<Tensor<4>>,
    ) -> (Tensor<4>, Option<Tensor<4>>) {
        if self.context_blocks == 1 {
            return (contexts, None);
        }
        let n = contexts.dims()[1];
        let known = self.known(contexts, real, recent);
        let parts = (0..self.context_blocks).map(|i| known.clone().slice(s![.., i..i + n, .., ..])).collect();
        (Tensor::cat(parts, 2), Some(known.slice(s![.., n.., .., ..])))
    }

    /// The window of the last block alone, and what [`windows`](Self::windows) gives beside it.
    ///
    /// # Shapes
    /// - `contexts`, `real`, `recent`: as for [`windows`](Self::windows)
    /// - returns: `[batch, context_blocks · n_embedding_tokens, d_model]`
    pub fn last_window(
        &self,
        contexts: Tensor<4>,
        real: Option<Tensor<2, Bool>>,
        recent: Option<Tensor<4>>,
    ) -> (Tensor<3>, Option<Tensor<4>>) {
        let n = contexts.dims()[1];
        // The contexts that the window holds: where there are as many, no older ones are asked for.
        let first = n.saturating_sub(self.context_blocks);
        let contexts = contexts.slice(s![.., first.., .., ..]);
        let (windows, recent) = self.windows(contexts, real.map(|real| real.slice(s![.., first..])), recent);
        let last = windows.dims()[1] - 1;
        (windows.slice(s![.., last.., .., ..]).squeeze_dim(1), recent)
    }

    /// Contexts behind the `context_blocks - 1` before them, `[batch, context_blocks - 1 + n, n_embedding_tokens,
    /// d_model]`, the absent one in place of those of padding.
    fn known(&self, contexts: Tensor<4>, real: Option<Tensor<2, Bool>>, recent: Option<Tensor<4>>) -> Tensor<4> {
        let Some(absent) = &self.absent else { return contexts };
        let shape = contexts.dims();
        let [batch, n, n_embedding_tokens, d_model] = shape;
        let absent = absent.val().reshape([1, 1, n_embedding_tokens, d_model]);
        let contexts = match real {
            Some(real) => {
                let padding: Tensor<4, Bool> = real.bool_not().reshape([batch, n, 1, 1]).expand(shape);
                contexts.mask_where(padding, absent.clone().expand(shape))
            }
            None => contexts,
        };
        let before = [batch, self.context_blocks - 1, n_embedding_tokens, d_model];
        Tensor::cat(vec![recent.unwrap_or_else(|| absent.expand(before)), contexts], 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{TensorData, Tolerance};

    /// One embedding of one feature a block; the start is 100, the absent one -1.
    fn ends(context_blocks: usize, predict_first_block: bool) -> ContextEnds {
        let device = Device::flex();
        let constant = |value: f32| Param::from_tensor(Tensor::<2>::full([1, 1], value, &device));
        let drawn = ContextEnds::new([1, 1], context_blocks, predict_first_block, &device);
        ContextEnds {
            start: drawn.start.map(|_| constant(100.0)),
            absent: drawn.absent.map(|_| constant(-1.0)),
            ..drawn
        }
    }

    fn blocks(values: &[f32], batch: usize) -> Tensor<4> {
        let shape = [batch, values.len() / batch, 1, 1];
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    }

    fn mask(values: &[bool], batch: usize) -> Option<Tensor<2, Bool>> {
        Some(Tensor::from_data(TensorData::new(values.to_vec(), [batch, values.len() / batch]), &Device::flex()))
    }

    fn assert_values<const D: usize>(got: Tensor<D>, expected: &[f32]) {
        let shape = got.dims();
        got.into_data().assert_approx_eq::<f32>(&TensorData::new(expected.to_vec(), shape), Tolerance::default());
    }

    #[test]
    fn the_start_stands_directly_before_the_first_real_block() {
        let ends = ends(1, true);
        let (with_start, real) = ends.with_start(blocks(&[1.0, 2.0, 3.0], 1), None);
        assert!(real.is_none());
        assert_values(with_start, &[100.0, 1.0, 2.0, 3.0]);
        // Rows: no padding, one block of padding, nothing but padding, padding in the middle.
        let real = [true, true, true, false, true, true, false, false, false, true, false, true];
        let (with_start, real) = ends.with_start(blocks(&[1.0, 2.0, 3.0].repeat(4), 4), mask(&real, 4));
        let expected = [100.0, 1.0, 2.0, 3.0, 100.0, 100.0, 2.0, 3.0, 100.0, 1.0, 2.0, 100.0, 100.0, 1.0, 2.0, 3.0];
        assert_values(with_start, &expected);
        let real: Vec<bool> = real.expect("a mask").into_data().iter::<bool>().collect();
        let expected = "xxxx .xxx ...x xx.x".replace(' ', "");
        assert_eq!(real.iter().map(|real| if *real { 'x' } else { '.' }).collect::<String>(), expected);
    }

    #[test]
    fn windows_hold_the_last_contexts_oldest_first() {
        let ends = ends(3, false);
        let real = mask(&[true, true, true, true, false, true, true, true], 2);
        let (windows, _) = ends.windows(blocks(&[1.0, 2.0, 3.0, 4.0].repeat(2), 2), real, None);
        assert_eq!(windows.dims(), [2, 4, 3, 1]);
        let full = [-1.0, -1.0, 1.0, -1.0, 1.0, 2.0, 1.0, 2.0, 3.0, 2.0, 3.0, 4.0];
        let padded = [-1.0, -1.0, -1.0, -1.0, -1.0, 2.0, -1.0, 2.0, 3.0, 2.0, 3.0, 4.0];
        assert_values(windows, &[full, padded].concat());
    }

    #[test]
    fn windows_go_on_where_they_stopped() {
        for context_blocks in [1, 2, 4] {
            let ends = ends(context_blocks, false);
            let all = blocks(&[1.0, 2.0, 3.0, 4.0, 5.0], 1);
            let (whole, _) = ends.windows(all.clone(), None, None);
            let (mut recent, mut parts) = (None, Vec::new());
            for range in [0..1, 1..2, 2..5] {
                let part = all.clone().slice(s![.., range, .., ..]);
                let (window, also_last) = ends.last_window(part.clone(), None, recent.clone());
                let (windows, last) = ends.windows(part, None, recent);
                let n = windows.dims()[1];
                window
                    .into_data()
                    .assert_eq(&windows.clone().slice(s![.., n - 1.., .., ..]).squeeze_dim::<3>(1).into_data(), true);
                assert_eq!(also_last.map(Tensor::into_data), last.clone().map(Tensor::into_data));
                parts.push(windows);
                recent = last;
            }
            whole.into_data().assert_eq(&Tensor::cat(parts, 1).into_data(), true);
        }
    }

    #[test]
    fn the_papers_models_hold_nothing() {
        let ends = ends(1, false);
        assert_eq!(ends.num_params(), 0);
        let contexts = blocks(&[1.0, 2.0], 1);
        assert_values(ends.windows(contexts.clone(), None, None).0, &[1.0, 2.0]);
        assert_values(ends.with_start(contexts, None).0, &[1.0, 2.0]);
    }
}
