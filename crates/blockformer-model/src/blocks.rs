//! From token ids to blocks and back.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::PromptError;

/// How a model cuts token ids into blocks; with blocks of one token, also how a vanilla transformer takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLayout {
    /// Tokens a block.
    pub block_length: usize,
    /// Context in tokens.
    pub max_length: usize,
    /// The token that stands where nothing is.
    pub pad_token_id: u32,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Whether the first block of a text is predicted too, from a learned start. An empty prompt can then be continued.
    pub predict_first_block: bool,
}

/// Prompts as blocks: each padded on the left to whole blocks, and to the number of blocks of the longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedPrompts {
    ids: Vec<u32>,
    real: Vec<bool>,
    pad: u32,
    batch: usize,
    n_blocks: usize,
    block_length: usize,
}

impl BlockLayout {
    /// Lays out prompts for generation. The tokens of a prompt end at a block boundary: what its first block lacks is
    /// padding on the left, as in training.
    ///
    /// # Errors
    /// A [`PromptError`] naming the first prompt that is empty (unless the model predicts first blocks), holds an id
    /// outside the vocabulary, or does not leave room for `new_tokens` in the context.
    pub fn block_prompts(&self, prompts: &[&[u32]], new_tokens: usize) -> Result<BlockedPrompts, PromptError> {
        for (index, prompt) in prompts.iter().enumerate() {
            self.check(index, prompt, new_tokens)?;
        }
        let longest = prompts.iter().map(|prompt| prompt.len()).max().ok_or(PromptError::None)?;
        let n_blocks = longest.div_ceil(self.block_length).max(1);
        let padded = n_blocks * self.block_length;
        let mut ids = Vec::with_capacity(prompts.len() * padded);
        let mut real = Vec::with_capacity(prompts.len() * padded);
        for prompt in prompts {
            let padding = padded - prompt.len();
            ids.extend(std::iter::repeat_n(self.pad_token_id, padding).chain(prompt.iter().copied()));
            real.extend((0..padded).map(|position| position >= padding));
        }
        let (batch, block_length, pad) = (prompts.len(), self.block_length, self.pad_token_id);
        Ok(BlockedPrompts { ids, real, pad, batch, n_blocks, block_length })
    }

    /// The first block that is predicted: 0 or, where a text's beginning is not, 1.
    pub fn first_predicted_block(&self) -> usize {
        usize::from(!self.predict_first_block)
    }

    /// Blocks that `tokens` take.
    pub fn n_blocks(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_length)
    }

    /// Checks that prompt `index` is one a model of this layout can go on from, whatever its length.
    ///
    /// # Errors
    /// [`PromptError::Empty`] unless the model predicts first blocks; as [`check_ids`](Self::check_ids).
    pub fn check_prompt(&self, index: usize, prompt: &[u32]) -> Result<(), PromptError> {
        if prompt.is_empty() && !self.predict_first_block {
            return Err(PromptError::Empty { index });
        }
        self.check_ids(index, prompt)
    }

    /// Checks that the ids of text `index` are in the vocabulary.
    ///
    /// # Errors
    /// [`PromptError::OutOfVocabulary`] naming the first that is not.
    pub fn check_ids(&self, index: usize, ids: &[u32]) -> Result<(), PromptError> {
        let vocab_size = self.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(PromptError::OutOfVocabulary { index, id, vocab_size }),
            None => Ok(()),
        }
    }

    fn check(&self, index: usize, prompt: &[u32], new_tokens: usize) -> Result<(), PromptError> {
        self.check_prompt(index, prompt)?;
        let Self { block_length, max_length, .. } = *self;
        let tokens = prompt.len();
        let blocks = self.n_blocks(tokens).saturating_add(self.n_blocks(new_tokens));
        if blocks.saturating_mul(block_length) > max_length {
            return Err(PromptError::TooLong { index, tokens, new_tokens, max_length, block_length });
        }
        Ok(())
    }
}

impl BlockedPrompts {
    /// `[batch, n_blocks, block_length]` token ids.
    pub fn ids(&self, device: &Device) -> Tensor<3, Int> {
        let ids: Vec<i32> = self.ids.iter().map(|&id| id as i32).collect();
        Tensor::from_data(TensorData::new(ids, self.shape()), device)
    }

    /// `[batch, n_blocks, block_length]`, false on padding; `None` where there is none.
    pub fn mask(&self, device: &Device) -> Option<Tensor<3, Bool>> {
        let padded = self.real.contains(&false);
        padded.then(|| Tensor::from_data(TensorData::new(self.real.clone(), self.shape()), device))
    }

    /// For each sequence, how many of its first blocks are nothing but padding.
    pub fn padded_blocks(&self) -> Vec<usize> {
        let padded = |row: &[bool]| row.iter().take_while(|real| !**real).count() / self.block_length;
        self.real.chunks(self.n_blocks * self.block_length).map(padded).collect()
    }

    /// The same with more rows, which repeat the first prompt, and more blocks, of padding, in front.
    ///
    /// # Panics
    /// If there are more rows or blocks already.
    pub fn fill_up(mut self, rows: usize, n_blocks: usize) -> Self {
        let [batch, held, length] = self.shape();
        assert!(batch <= rows && held <= n_blocks, "{batch} rows of {held} blocks do not fit in {rows} of {n_blocks}");
        let row = |row: usize| if row < batch { row } else { 0 };
        let range = |row: usize| row * held * length..(row + 1) * held * length;
        let padding = (n_blocks - held) * length;
        let ids =
            (0..rows).flat_map(|r| std::iter::repeat_n(self.pad, padding).chain(self.ids[range(row(r))].to_vec()));
        let real = (0..rows).flat_map(|r| std::iter::repeat_n(false, padding).chain(self.real[range(row(r))].to_vec()));
        (self.ids, self.real) = (ids.collect(), real.collect());
        (self.batch, self.n_blocks) = (rows, n_blocks);
        self
    }

    /// `[batch, n_blocks, block_length]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.batch, self.n_blocks, self.block_length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: BlockLayout =
        BlockLayout { block_length: 4, max_length: 16, pad_token_id: 0, vocab_size: 100, predict_first_block: false };

    #[test]
    fn prompts_are_padded_on_the_left_to_the_longest() {
        let blocked = LAYOUT.block_prompts(&[&[1, 2, 3, 4, 5, 6], &[7], &[8, 9, 10, 11]], 8).unwrap();
        assert_eq!(blocked.shape(), [3, 2, 4]);
        let expected = [0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 8, 9, 10, 11];
        assert_eq!(blocked.ids, expected);
        assert_eq!(blocked.padded_blocks(), [0, 1, 1]);
        assert_eq!(blocked.real.iter().filter(|real| **real).count(), 11);
    }

    #[test]
    fn filled_up_prompts_have_padding_in_front_and_copies_behind() {
        let layout = BlockLayout { pad_token_id: 9, ..LAYOUT };
        let blocked = layout.block_prompts(&[&[1, 2, 3, 4], &[5, 6]], 8).unwrap();
        let filled = blocked.clone().fill_up(3, 2);
        assert_eq!(filled.shape(), [3, 2, 4]);
        let first = [9, 9, 9, 9, 1, 2, 3, 4];
        assert_eq!(filled.ids, [first, [9, 9, 9, 9, 9, 9, 5, 6], first].concat());
        assert_eq!(filled.padded_blocks(), [1, 1, 1]);
        assert_eq!(filled.real.iter().filter(|real| **real).count(), 4 + 2 + 4);
        assert_eq!(blocked.clone().fill_up(2, 1), blocked);
    }

    #[test]
    fn full_blocks_need_no_mask() {
        let blocked = LAYOUT.block_prompts(&[&[1, 2, 3, 4], &[5, 6, 7, 8]], 1).unwrap();
        assert!(blocked.mask(&Device::flex()).is_none());
    }

    #[test]
    fn empty_prompts_are_served_where_the_first_block_is_predicted() {
        let layout = BlockLayout { predict_first_block: true, ..LAYOUT };
        let blocked = layout.block_prompts(&[&[], &[1]], 12).unwrap();
        assert_eq!((blocked.shape(), blocked.padded_blocks()), ([2, 1, 4], vec![1, 0]));
        let blocked = layout.block_prompts(&[&[], &[]], 16).unwrap();
        assert_eq!((blocked.shape(), blocked.padded_blocks()), ([2, 1, 4], vec![1, 1]));
        assert!(matches!(layout.block_prompts(&[&[]], 17), Err(PromptError::TooLong { .. })));
    }

    #[test]
    fn prompts_that_cannot_be_served_are_named() {
        assert_eq!(LAYOUT.block_prompts(&[], 1), Err(PromptError::None));
        assert_eq!(LAYOUT.block_prompts(&[&[1], &[]], 1), Err(PromptError::Empty { index: 1 }));
        let out = PromptError::OutOfVocabulary { index: 0, id: 100, vocab_size: 100 };
        assert_eq!(LAYOUT.block_prompts(&[&[1, 100]], 1), Err(out));
        assert!(LAYOUT.block_prompts(&[&[1; 9]], 4).is_ok());
        assert!(matches!(LAYOUT.block_prompts(&[&[1; 9]], 5), Err(PromptError::TooLong { tokens: 9, .. })));
        assert!(matches!(LAYOUT.block_prompts(&[&[1]], usize::MAX), Err(PromptError::TooLong { .. })));
    }
}
