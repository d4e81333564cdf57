//! How a prompt meets the block boundaries.

use blockformer_model::{BlockLayout, ModelConfig, PromptError};

/// What stands for padding in the content of a page, and for the learned start of text: no token has these ids.
const PADDING: u32 = u32::MAX;
const START: u32 = u32::MAX - 1;

/// Where the blocks of a prompt begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alignment {
    /// The prompt ends at a block boundary; what its first block lacks is padding on the left. For models that were
    /// trained with padded first blocks.
    #[default]
    PadFirstBlock,
    /// Blocks begin with the prompt. What is left of it behind the last whole block is forced through the token
    /// decoder, as the start of the block that is generated next. For models trained without padding. A prompt of less
    /// than a block is padded nevertheless if the model does not predict first blocks.
    ForceRest,
}

impl Alignment {
    /// The alignment that a model was trained with.
    pub fn of(config: &ModelConfig) -> Self {
        match config {
            ModelConfig::BlockTransformer(config) if !config.random_pad_first_block => Self::ForceRest,
            _ => Self::PadFirstBlock,
        }
    }

    /// Places of the first block in which padding stands before a prompt of `tokens`; with them, block boundaries lie
    /// at the multiples of the block length.
    pub fn padding(self, tokens: usize, layout: &BlockLayout) -> usize {
        let whole = tokens - self.rest(tokens, layout);
        whole.next_multiple_of(layout.block_length) - whole
    }

    /// Tokens at the end of a prompt that are forced.
    fn rest(self, tokens: usize, layout: &BlockLayout) -> usize {
        let forced = self == Self::ForceRest && (tokens >= layout.block_length || layout.predict_first_block);
        if forced { tokens % layout.block_length } else { 0 }
    }
}

/// A prompt in whole blocks, and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AlignedPrompt {
    /// Tokens of whole blocks, padding included.
    pub(crate) ids: Vec<u32>,
    /// False on padding.
    pub(crate) real: Vec<bool>,
    /// Tokens to be forced through the token decoder.
    pub(crate) rest: Vec<u32>,
}

impl AlignedPrompt {
    /// # Errors
    /// A [`PromptError`] if the prompt is empty (unless the model predicts first blocks), holds an id outside the
    /// vocabulary, or does not leave room for `new_tokens` in the context.
    pub(crate) fn new(
        prompt: &[u32],
        new_tokens: usize,
        alignment: Alignment,
        layout: &BlockLayout,
    ) -> Result<Self, PromptError> {
        let BlockLayout { block_length, max_length, .. } = *layout;
        let index = 0;
        layout.check_prompt(index, prompt)?;
        let padding = alignment.padding(prompt.len(), layout);
        let (whole, rest) = prompt.split_at(prompt.len() - alignment.rest(prompt.len(), layout));
        let blocks =
            layout.n_blocks(whole.len()).saturating_add(layout.n_blocks(rest.len().saturating_add(new_tokens)));
        if blocks.saturating_mul(block_length) > max_length {
            return Err(PromptError::TooLong { index, tokens: prompt.len(), new_tokens, max_length, block_length });
        }
        let ids = std::iter::repeat_n(layout.pad_token_id, padding).chain(whole.iter().copied()).collect();
        let real = (0..padding + whole.len()).map(|position| position >= padding).collect();
        Ok(Self { ids, real, rest: rest.to_vec() })
    }

    /// What determines the keys and values of each unit: the start of text, if there is one, and each block.
    pub(crate) fn contents(&self, layout: &BlockLayout) -> Vec<Vec<u32>> {
        let content = |(id, real): (&u32, &bool)| if *real { *id } else { PADDING };
        let tokens: Vec<u32> = self.ids.iter().zip(&self.real).map(content).collect();
        let start = layout.predict_first_block.then(|| vec![START]);
        start.into_iter().chain(tokens.chunks(layout.block_length).map(<[u32]>::to_vec)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: BlockLayout =
        BlockLayout { block_length: 4, max_length: 16, pad_token_id: 0, vocab_size: 100, predict_first_block: false };

    #[test]
    fn prompts_are_padded_or_their_rest_is_forced() {
        let new =
            |prompt: &[u32], alignment, layout: &BlockLayout| AlignedPrompt::new(prompt, 1, alignment, layout).unwrap();
        let padded = new(&[1, 2, 3, 4, 5, 6], Alignment::PadFirstBlock, &LAYOUT);
        assert_eq!((padded.ids.as_slice(), padded.rest.len()), (&[0, 0, 1, 2, 3, 4, 5, 6][..], 0));
        assert_eq!(Alignment::PadFirstBlock.padding(6, &LAYOUT), 2);
        assert_eq!(padded.contents(&LAYOUT), [[PADDING, PADDING, 1, 2], [3, 4, 5, 6]]);
        let forced = new(&[1, 2, 3, 4, 5, 6], Alignment::ForceRest, &LAYOUT);
        assert_eq!((forced.ids.as_slice(), forced.rest.as_slice()), (&[1, 2, 3, 4][..], &[5, 6][..]));
        assert_eq!([6, 2].map(|tokens| Alignment::ForceRest.padding(tokens, &LAYOUT)), [0, 2]);
        let short = new(&[1, 2], Alignment::ForceRest, &LAYOUT);
        assert_eq!((short.ids.as_slice(), short.rest.len()), (&[0, 0, 1, 2][..], 0));
        let start = BlockLayout { predict_first_block: true, ..LAYOUT };
        let short = new(&[1, 2], Alignment::ForceRest, &start);
        assert_eq!((short.ids.len(), short.rest.as_slice()), (0, &[1, 2][..]));
        assert_eq!(short.contents(&start), [[START]]);
    }

    #[test]
    fn prompts_that_cannot_be_served_are_refused() {
        let refused = |prompt: &[u32], new, alignment| AlignedPrompt::new(prompt, new, alignment, &LAYOUT).unwrap_err();
        assert_eq!(refused(&[], 1, Alignment::PadFirstBlock), PromptError::Empty { index: 0 });
        assert!(matches!(refused(&[100], 1, Alignment::ForceRest), PromptError::OutOfVocabulary { id: 100, .. }));
        assert!(matches!(refused(&[1; 9], 5, Alignment::PadFirstBlock), PromptError::TooLong { .. }));
        assert!(AlignedPrompt::new(&[1; 9], 7, Alignment::ForceRest, &LAYOUT).is_ok());
        assert!(matches!(refused(&[1; 9], 8, Alignment::ForceRest), PromptError::TooLong { .. }));
        assert!(matches!(refused(&[1], usize::MAX, Alignment::PadFirstBlock), PromptError::TooLong { .. }));
    }
}
