//! The settings of an engine, and what requests can be served with them.

use blockformer_kv_cache::{KvPool, KvStorage, PoolConfig};
use blockformer_model::BlockLayout;
use burn::tensor::Device;

use crate::prompt::AlignedPrompt;
use crate::{Alignment, GenerateError, PagedModel, Request};

/// The settings of an [`Engine`](crate::Engine).
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Bytes for keys and values of all sequences together, allocated at once.
    pub kv_budget: usize,
    /// How keys and values are stored.
    pub kv_storage: KvStorage,
    /// Blocks a page. Prefixes are reused in whole pages.
    pub page_blocks: usize,
    /// Sequences that are decoded at the same time.
    pub max_batch: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Blocks of prompts that are taken in between two decoded blocks, so that a long prompt does not hold up running
    /// sequences.
    pub prefill_blocks: usize,
    /// Where the blocks of prompts begin.
    pub alignment: Alignment,
    /// Whether prompts that begin alike share keys and values.
    pub reuse_prefixes: bool,
    /// Whether prompts also share keys and values with texts that were generated, as where a prompt is a conversation that has gone on.
    /// `None`: where [the model takes blocks in alike](crate::PagedModel::takes_in_alike) one by one and together, and no padding moves the
    /// blocks of a text that has grown ([`Alignment::ForceRest`], or blocks of one token). With `Some(true)` and another model what follows
    /// such a prompt may differ by rounding from what follows it alone. Needs [`reuse_prefixes`](Self::reuse_prefixes).
    pub reuse_generated: Option<bool>,
    /// Whether several tokens of a block are tried at once. What is drawn then is drawn on the host.
    pub speculation: Option<Speculation>,
    /// Whether tokens are drawn where the logits are and read a block at a time, so that the host waits once a block. The tokens are
    /// the same, up to rounding. Requests with penalties, [`logit_bias`](crate::Sampling::logit_bias),
    /// [`typical_p`](crate::Sampling::typical_p), a hook, log probabilities or a ranking of samples need the host for each token all
    /// the same, and blocks that are decoded together with theirs wait with them. `None`: where the device has
    /// [kernels](blockformer_cubecl::has_kernels) for it and [the model goes on from there](crate::PagedModel::keeps_tokens_on_device).
    pub draw_on_device: Option<bool>,
    /// Graph capture: after how many rounds of one shape a device records what decodes a block of all sequences, where their tokens are all
    /// drawn [on the device](Self::draw_on_device), and what takes it in, and from then on repeats each by one call
    /// ([`Recording`](blockformer_cubecl::Recording)), where [the model](crate::PagedModel::recordable_take_in) and the device can. A
    /// shape is a number of sequences, filled up to a power of two, with the kinds of filters that they have, and the pages that a
    /// sequence has, up to the next power of two; recording one takes the time of some rounds. `None`: never. The tokens are the same,
    /// up to rounding. While it records, **no other thread may use the device**, or what that
    /// computes is lost. The model should have been made on the thread that makes the engine, which may then step on any: devices
    /// record nothing that computes with what [another stream](burn::tensor::StreamId) made.
    pub recorded_after: Option<usize>,
}

impl Default for EngineConfig {
    /// 256 MiB in float32, pages of 16 blocks, 32 sequences, 1,024 waiting requests, 128 blocks of prompts at a time,
    /// padded prompts, prefixes reused (generated ones where nothing is changed by it and they are found again), no speculation, tokens drawn where it suits the device, nothing recorded.
    fn default() -> Self {
        Self {
            kv_budget: 256 << 20,
            kv_storage: KvStorage::Float32,
            page_blocks: 16,
            max_batch: 32,
            max_waiting: 1024,
            prefill_blocks: 128,
            alignment: Alignment::PadFirstBlock,
            reuse_prefixes: true,
            reuse_generated: None,
            speculation: None,
            draw_on_device: None,
            recorded_after: None,
        }
    }
}

impl EngineConfig {
    /// A sensible [`recorded_after`](Self::recorded_after).
    pub const RECORDED_AFTER: usize = 4;

    pub(crate) fn validate(&self) -> Result<(), GenerateError> {
        let limits = [
            ("page_blocks", self.page_blocks),
            ("max_batch", self.max_batch),
            ("max_waiting", self.max_waiting),
            ("prefill_blocks", self.prefill_blocks),
        ];
        for (option, limit) in limits {
            if limit == 0 {
                return Err(GenerateError::Sampling { option, value: 0.0, expected: "at least 1" });
            }
        }
        match self.speculation {
            Some(Speculation { shortest, longest }) if shortest == 0 || shortest > longest => {
                let (options, reason) = ("speculation", "shortest must be at least 1 and at most longest");
                Err(GenerateError::Contradiction { options, reason })
            }
            _ => Ok(()),
        }
    }
}

/// Block self-speculation. The rest of a block is guessed from the text so far: what followed the last time the same
/// few tokens came. One pass of the token decoder gives the logits of all tokens of the block; each is drawn as ever,
/// and as long as the guess was right the next one's logits are good too. Every token is drawn from the very
/// distribution it is drawn from without guesses, with the same random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    /// The fewest tokens that must have come before.
    pub shortest: usize,
    /// The most that are looked for.
    pub longest: usize,
}

impl Default for Speculation {
    fn default() -> Self {
        Self { shortest: 2, longest: 4 }
    }
}

/// What decides whether a request can be served at all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) layout: BlockLayout,
    pub(crate) has_tokenizer: bool,
    pub(crate) positions_per_block: usize,
    pub(crate) context_blocks: usize,
    pub(crate) block_bytes: usize,
    alignment: Alignment,
    max_batch: usize,
    pool: PoolConfig,
}

impl Limits {
    pub(crate) fn new<M: PagedModel>(model: &M, config: &EngineConfig, pool: &KvPool, device: &Device) -> Self {
        Self {
            layout: model.layout(),
            has_tokenizer: false,
            positions_per_block: model.positions_per_block(),
            context_blocks: model.context_blocks(),
            block_bytes: model.block_bytes(device),
            alignment: config.alignment,
            max_batch: config.max_batch,
            pool: pool.config(),
        }
    }

    /// The prompt in blocks, if the request can be served.
    pub(crate) fn check(&self, request: &Request) -> Result<AlignedPrompt, GenerateError> {
        request.validate(self.layout.vocab_size, self.has_tokenizer)?;
        let prompt = AlignedPrompt::new(&request.prompt, request.max_new_tokens, self.alignment, &self.layout)?;
        let (width, max_batch) = (request.width(), self.max_batch);
        if width > max_batch {
            return Err(GenerateError::TooWide { width, max_batch });
        }
        let pages = self.pool.pages_of(self.capacity(request, &prompt)) + self.reserved_pages(request, &prompt);
        if pages > self.pool.n_pages() {
            let bytes = |pages: usize| pages * self.pool.page_bytes();
            return Err(GenerateError::Budget { needed: bytes(pages), budget: bytes(self.pool.n_pages()) });
        }
        Ok(prompt)
    }

    /// Units that a prompt's whole blocks take, the start of text included.
    pub(crate) fn prompt_units(&self, prompt: &AlignedPrompt) -> usize {
        usize::from(self.layout.predict_first_block) + prompt.ids.len() / self.layout.block_length
    }

    /// Positions that a sequence may come to hold: the last block that is decoded is never taken in.
    pub(crate) fn capacity(&self, request: &Request, prompt: &AlignedPrompt) -> usize {
        let decoded = self.layout.n_blocks(prompt.rest.len() + request.max_new_tokens);
        (self.prompt_units(prompt) + decoded - 1) * self.positions_per_block
    }

    /// Pages of one sequence of a request that it does not share with the others.
    pub(crate) fn own_pages(&self, request: &Request, prompt: &AlignedPrompt) -> usize {
        let shared = self.prompt_units(prompt) * self.positions_per_block / self.pool.page_length;
        self.pool.pages_of(self.capacity(request, prompt)) - shared
    }

    /// Pages that the forks of a request will need beside those of its first sequence.
    pub(crate) fn reserved_pages(&self, request: &Request, prompt: &AlignedPrompt) -> usize {
        let width = request.width();
        if width == 1 {
            return 0;
        }
        let own = self.own_pages(request, prompt);
        // A page that two are about to write into is needed once more; beams are forked again with every block.
        (width - 1) * own + if request.beams.is_some() { width } else { 1 }
    }
}
