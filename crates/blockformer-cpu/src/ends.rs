//! Which context embeddings a block is decoded from: what `blockformer_model::ContextEnds` says.

use blockformer_model::ContextEnds;

use crate::weights::numbers;

/// The learned embeddings at the start of a text, each `[n_embedding_tokens, d_model]`, and the width of windows.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    /// The block embedding that stands before a text.
    pub(crate) start: Option<Vec<f32>>,
    /// The context embedding that stands for a block before the beginning.
    absent: Vec<f32>,
    context_blocks: usize,
}

impl Ends {
    pub(crate) fn new(ends: ContextEnds) -> Self {
        let context_blocks = ends.context_blocks();
        Self { start: ends.start.map(numbers), absent: ends.absent.map(numbers).unwrap_or_default(), context_blocks }
    }

    pub(crate) fn context_blocks(&self) -> usize {
        self.context_blocks
    }

    pub(crate) fn bytes(&self) -> usize {
        self.start.as_deref().map_or(0, size_of_val) + size_of_val(&self.absent[..])
    }

    /// Units that stand before the blocks of a text: one, with a learned start.
    pub(crate) fn before(&self) -> usize {
        usize::from(self.start.is_some())
    }

    /// The window that decodes what comes behind unit `last` of a sequence, oldest first.
    ///
    /// # Shapes
    /// - `contexts`: of consecutive units, `each` numbers a unit; the first `padded` are padding
    /// - `recent`: those of the `context_blocks - 1` units before; `None` at the beginning
    /// - `window`: `context_blocks` units
    pub(crate) fn window(&self, contexts: Units<'_>, recent: Option<&[f32]>, last: usize, window: &mut [f32]) {
        let Units { numbers, each, padded } = contexts;
        for (slot, window) in window.chunks_exact_mut(each).enumerate() {
            // How many units before `last`.
            let back = self.context_blocks - 1 - slot;
            let unit = match (last.checked_sub(back), recent) {
                (Some(unit), _) if unit >= padded => &numbers[unit * each..(unit + 1) * each],
                (None, Some(recent)) => {
                    let at = self.context_blocks - 1 - (back - last);
                    &recent[at * each..(at + 1) * each]
                }
                _ => &self.absent[..],
            };
            window.copy_from_slice(unit);
        }
    }
}

/// Context embeddings of consecutive units of one sequence: blocks, and the start of text.
#[derive(Clone, Copy)]
pub(crate) struct Units<'a> {
    pub(crate) numbers: &'a [f32],
    /// Numbers of a unit.
    pub(crate) each: usize,
    /// Units at the beginning that are padding.
    pub(crate) padded: usize,
}
