//! A pool of pages that many sequences share.

mod batch;
mod host_pages;
mod pages;
mod storage;
mod tensor_pages;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use burn::tensor::Device;

pub use batch::{PagedBatch, SharedPages};
pub use host_pages::{HostLayer, HostRows};
use pages::{Node, PageId, Pages};
use storage::Storage;
pub use storage::{KvPlace, KvStorage};

use crate::CacheError;

/// The size of a [`KvPool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Attention layers.
    pub n_layers: usize,
    /// Key/value heads a layer.
    pub n_kv_heads: usize,
    /// Features a head.
    pub head_dim: usize,
    /// Positions a page. In a Block Transformer's block decoder a position is an embedding of a block of tokens.
    pub page_length: usize,
    /// Bytes that keys and values may take altogether; as many whole pages as fit are allocated.
    pub budget: usize,
    /// How they are stored.
    pub storage: KvStorage,
    /// Where they are.
    pub place: KvPlace,
}

impl PoolConfig {
    /// Bytes of one position of one sequence.
    pub fn bytes_per_position(&self) -> usize {
        self.storage.bytes_per_position(self.n_layers, self.n_kv_heads, self.head_dim)
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_length * self.bytes_per_position()
    }

    /// Pages that the budget allows.
    pub fn n_pages(&self) -> usize {
        self.budget.checked_div(self.page_bytes()).unwrap_or(0)
    }

    /// Pages that `positions` take.
    pub fn pages_of(&self, positions: usize) -> usize {
        positions.div_ceil(self.page_length)
    }
}

/// Names a sequence of a [`KvPool`]; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// What a pool holds, in bytes of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUsage {
    /// Bytes of one page.
    pub page_bytes: usize,
    /// Allocated: all pages.
    pub total: usize,
    /// Pages that sequences hold, a shared page counted once.
    pub used: usize,
    /// Pages that nobody holds, kept because their content may come again. They are given to whoever needs them.
    pub reusable: usize,
    /// Pages with nothing in them.
    pub free: usize,
    /// The most that was ever used at once.
    pub peak: usize,
    /// Sequences that are open.
    pub sequences: usize,
    /// Reusable pages that were given away so far.
    pub evicted_pages: u64,
}

/// What one sequence holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceUsage {
    /// Positions held.
    pub len: usize,
    /// Positions it may hold.
    pub capacity: usize,
    /// Bytes of the positions held, `len · bytes_per_position`.
    pub bytes: usize,
    /// Bytes of its pages, those it has reserved but not yet filled and those it shares included.
    pub page_bytes: usize,
    /// Of these, bytes of pages that other sequences hold too.
    pub shared_bytes: usize,
}

#[derive(Debug)]
struct Sequence {
    len: usize,
    capacity: usize,
    /// Pages with positions in them, in order.
    table: Vec<PageId>,
    /// Pages that are reserved, the next one last.
    spare: Vec<PageId>,
    /// The nodes of its first pages, as far as they are published.
    nodes: Vec<Node>,
}

/// Keys and values of many sequences in pages of fixed length, allocated once.
///
/// A sequence is opened with a capacity, for which it gets its pages at once, so that a sequence that was opened can
/// always be filled. [Forks](Self::fork) share what is there and copy a page only when they write into it. Full pages
/// can be [published](Self::publish) by content; a sequence that begins with the same content is then opened on them,
/// even after the sequence that made them is closed, until the longest unused of them are evicted for lack of room.
///
/// Every operation that cannot be done is refused with an error, and changes nothing.
#[derive(Debug)]
pub struct KvPool {
    config: PoolConfig,
    storage: Storage,
    pages: Pages,
    sequences: HashMap<SequenceId, Sequence>,
    next_id: u64,
}

impl KvPool {
    /// Allocates the pages.
    ///
    /// # Errors
    /// [`CacheError::Zero`] if a size is zero, [`CacheError::Budget`] if the budget is less than a page,
    /// [`CacheError::Storage`] if the device cannot store numbers so.
    pub fn new(config: PoolConfig, device: &Device) -> Result<Self, CacheError> {
        let sizes = [
            ("n_layers", config.n_layers),
            ("n_kv_heads", config.n_kv_heads),
            ("head_dim", config.head_dim),
            ("page_length", config.page_length),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(CacheError::Zero { name });
        }
        let n_pages = config.n_pages();
        if n_pages == 0 {
            return Err(CacheError::Budget { budget: config.budget, page_bytes: config.page_bytes() });
        }
        let (storage, dtype) = (config.storage, config.storage.dtype());
        if config.place == KvPlace::Device && !device.supports_dtype(dtype) {
            return Err(CacheError::Storage { storage, dtype });
        }
        let storage = Storage::new(&config, n_pages, device);
        Ok(Self { config, storage, pages: Pages::new(n_pages), sequences: HashMap::new(), next_id: 0 })
    }

    /// The size it was made with.
    pub fn config(&self) -> PoolConfig {
        self.config
    }

    /// Positions that the pool could hold for one sequence if no other were open.
    pub fn capacity(&self) -> usize {
        self.pages.total() * self.config.page_length
    }

    /// Whether a sequence of `capacity` positions, its first `shared` pages being in use already, could be opened now.
    pub fn has_room(&self, capacity: usize, shared: usize) -> bool {
        self.config.pages_of(capacity).saturating_sub(shared) <= self.pages.available()
    }

    /// Opens an empty sequence that may hold `capacity` positions.
    ///
    /// # Errors
    /// [`CacheError::OutOfPages`] if there are not pages enough.
    pub fn open(&mut self, capacity: usize) -> Result<SequenceId, CacheError> {
        self.open_with_prefix(capacity, &[]).map(|(id, _)| id)
    }

    /// Opens a sequence that may hold `capacity` positions and begins with the longest prefix of `contents` that is
    /// published: `contents[i]` is the content of page `i`, as given to [`publish`](Self::publish). Also returns the
    /// positions it begins with, a whole number of pages.
    ///
    /// # Errors
    /// [`CacheError::OutOfPages`] if there are not pages enough.
    pub fn open_with_prefix(
        &mut self,
        capacity: usize,
        contents: &[&[u32]],
    ) -> Result<(SequenceId, usize), CacheError> {
        let (mut table, mut nodes) = (Vec::new(), Vec::new());
        for content in contents.iter().take(capacity / self.config.page_length) {
            let Some((page, node)) = self.pages.find(nodes.last().copied(), content) else { break };
            self.pages.share(page); // so that making room does not evict it
            table.push(page);
            nodes.push(node);
        }
        let spare = match self.take(self.config.pages_of(capacity) - table.len()) {
            Ok(spare) => spare,
            Err(error) => {
                table.iter().rev().for_each(|page| self.pages.give_back(*page));
                return Err(error);
            }
        };
        let len = table.len() * self.config.page_length;
        Ok((self.insert(Sequence { len, capacity, table, spare, nodes }), len))
    }

    /// How many pages from the start of `contents` are published.
    pub fn published_prefix(&self, contents: &[&[u32]]) -> usize {
        let mut node = None;
        let known = |content: &&&[u32]| match self.pages.find(node, content) {
            Some((_, next)) => {
                node = Some(next);
                true
            }
            None => false,
        };
        contents.iter().take_while(known).count()
    }

    /// Opens a sequence that goes on from what `id` holds and may hold `capacity` positions. Nothing is copied until
    /// one of the two writes.
    ///
    /// # Errors
    /// [`CacheError::UnknownSequence`], [`CacheError::OutOfPages`], or [`CacheError::Full`] if `capacity` is less than
    /// what is held.
    pub fn fork(&mut self, id: SequenceId, capacity: usize) -> Result<SequenceId, CacheError> {
        let parent = self.sequence(id)?;
        if parent.len > capacity {
            return Err(CacheError::Full { len: 0, capacity, requested: parent.len });
        }
        let page_length = self.config.page_length;
        let (len, nodes) = (parent.len, parent.nodes.clone());
        let table = parent.table[..self.config.pages_of(len)].to_vec();
        // The page that both would write into is copied by the one that writes first, so the parent needs one more.
        let partial = usize::from(!len.is_multiple_of(page_length));
        let extra = (partial + self.need(parent.capacity)).saturating_sub(parent.table.len() + parent.spare.len());
        let own = self.config.pages_of(capacity) - len / page_length;
        let mut taken = self.take(own + extra)?;
        let for_parent = taken.split_off(own);
        if let Some(parent) = self.sequences.get_mut(&id) {
            parent.spare.splice(0..0, for_parent);
        }
        table.iter().for_each(|page| self.pages.share(*page));
        Ok(self.insert(Sequence { len, capacity, table, spare: taken, nodes }))
    }

    /// Lets a sequence hold `capacity` positions in all; less than it has already is no error and changes nothing.
    ///
    /// # Errors
    /// [`CacheError::UnknownSequence`] or [`CacheError::OutOfPages`].
    pub fn grow(&mut self, id: SequenceId, capacity: usize) -> Result<(), CacheError> {
        let sequence = self.sequence(id)?;
        let (old, held) = (sequence.capacity, self.need(sequence.capacity));
        if capacity <= old {
            return Ok(());
        }
        let more = self.take(self.need(capacity) - held)?;
        let sequence = self.sequence_mut(id)?;
        sequence.spare.splice(0..0, more);
        sequence.capacity = capacity;
        Ok(())
    }

    /// Makes the page after those already published known by its content, so that other sequences can begin with it.
    /// Contents must determine the keys and values: what went in, in this and all earlier pages, and how.
    ///
    /// # Errors
    /// [`CacheError::UnknownSequence`], or [`CacheError::PageNotFull`] if that page is not full yet.
    pub fn publish(&mut self, id: SequenceId, content: &[u32]) -> Result<(), CacheError> {
        let sequence = self.sequence(id)?;
        let index = sequence.nodes.len();
        if sequence.len < (index + 1) * self.config.page_length {
            return Err(CacheError::PageNotFull { page: index, len: sequence.len });
        }
        let (page, before) = (sequence.table[index], sequence.nodes.last().copied());
        let node = match self.pages.node(page) {
            Some(node) => node,
            None => self.pages.publish(page, before, content),
        };
        self.sequence_mut(id)?.nodes.push(node);
        Ok(())
    }

    /// Pages of a sequence that are published.
    ///
    /// # Errors
    /// [`CacheError::UnknownSequence`].
    pub fn published(&self, id: SequenceId) -> Result<usize, CacheError> {
        self.sequence(id).map(|sequence| sequence.nodes.len())
    }

    /// Keeps the first `len` positions of a sequence; its capacity stays.
    ///
    /// # Errors
    /// [`CacheError::UnknownSequence`], [`CacheError::Truncate`] when fewer are held, or [`CacheError::OutOfPages`] if
    /// the page that is cut is shared and there is none to copy it to later.
    pub fn truncate(&mut self, id: SequenceId, len: usize) -> Result<(), CacheError> {
        let sequence = self.sequence(id)?;
        if len > sequence.len {
            return Err(CacheError::Truncate { len: sequence.len, requested: len });
        }
        let keep = self.config.pages_of(len);
        let (kept, dropped) = sequence.table.split_at(keep);
        let dropped = dropped.to_vec();
        let own = dropped.iter().filter(|page| self.pages.holders(**page) == 1).count();
        let cut = !len.is_multiple_of(self.config.page_length);
        let to_copy = usize::from(cut && self.pages.holders(kept[keep - 1]) > 1);
        let need = self.need(sequence.capacity) + to_copy;
        let mut spare = self.take(need.saturating_sub(keep + sequence.spare.len() + own))?;
        for page in dropped.into_iter().rev() {
            if self.pages.holders(page) == 1 {
                self.pages.withdraw(page);
                spare.push(page);
            } else {
                self.pages.give_back(page);
            }
        }
        let full = len / self.config.page_length;
        let sequence = self.sequence_mut(id)?;
        sequence.spare.splice(0..0, spare);
        sequence.table.truncate(keep);
        sequence.nodes.truncate(full);
        sequence.len = len;
        Ok(())
    }

    /// Closes a sequence. Its pages become free, or reusable where they are published.
    ///
    /// # Errors
    /// [`CacheError::UnknownSequence`].
    pub fn close(&mut self, id: SequenceId) -> Result<(), CacheError> {
        let sequence = self.sequences.remove(&id).ok_or(CacheError::UnknownSequence { id: id.0 })?;
        // The last page first: where pages must go, the end of a text goes before its beginning.
        sequence.spare.iter().chain(sequence.table.iter().rev()).for_each(|page| self.pages.give_back(*page));
        Ok(())
    }

    /// Allocates the pages anew, as when what they hold is lost, and forgets every prefix. [Shared](Self::shared_pages) ones are
    /// others' from now on.
    ///
    /// # Errors
    /// [`CacheError::Open`] if a sequence is open.
    pub fn renew(&mut self, device: &Device) -> Result<(), CacheError> {
        if !self.sequences.is_empty() {
            return Err(CacheError::Open { sequences: self.sequences.len() });
        }
        self.pages.evict_idle();
        let nothing = PoolConfig { place: KvPlace::Host, ..self.config };
        self.storage = Storage::new(&nothing, 0, device); // so that there is room
        self.storage = Storage::new(&self.config, self.pages.total(), device);
        Ok(())
    }

    /// Frees all reusable pages.
    pub fn clear_reusable(&mut self) {
        self.pages.evict_idle();
    }

    /// What the pool holds.
    pub fn usage(&self) -> PoolUsage {
        let page_bytes = self.config.page_bytes();
        let pages = &self.pages;
        PoolUsage {
            page_bytes,
            total: pages.total() * page_bytes,
            used: pages.held() * page_bytes,
            reusable: pages.idle() * page_bytes,
            free: (pages.total() - pages.held() - pages.idle()) * page_bytes,
            peak: pages.peak() * page_bytes,
            sequences: self.sequences.len(),
            evicted_pages: pages.evicted(),
        }
    }

    /// What a sequence holds.
    ///
    /// # Errors
    /// [`CacheError::UnknownSequence`].
    pub fn sequence_usage(&self, id: SequenceId) -> Result<SequenceUsage, CacheError> {
        let sequence = self.sequence(id)?;
        let page_bytes = self.config.page_bytes();
        let shared = sequence.table.iter().filter(|page| self.pages.holders(**page) > 1).count();
        Ok(SequenceUsage {
            len: sequence.len,
            capacity: sequence.capacity,
            bytes: sequence.len * self.config.bytes_per_position(),
            page_bytes: (sequence.table.len() + sequence.spare.len()) * page_bytes,
            shared_bytes: shared * page_bytes,
        })
    }

    /// Positions a sequence holds.
    ///
    /// # Errors
    /// [`CacheError::UnknownSequence`].
    pub fn len(&self, id: SequenceId) -> Result<usize, CacheError> {
        self.sequence(id).map(|sequence| sequence.len)
    }

    fn need(&self, capacity: usize) -> usize {
        self.config.pages_of(capacity)
    }

    fn take(&mut self, n: usize) -> Result<Vec<PageId>, CacheError> {
        let available = self.pages.available();
        let mut taken = self.pages.take(n).ok_or(CacheError::OutOfPages { requested: n, available })?;
        taken.reverse(); // the next one last
        Ok(taken)
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.sequences.insert(id, sequence);
        id
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence, CacheError> {
        self.sequences.get(&id).ok_or(CacheError::UnknownSequence { id: id.0 })
    }

    fn sequence_mut(&mut self, id: SequenceId) -> Result<&mut Sequence, CacheError> {
        self.sequences.get_mut(&id).ok_or(CacheError::UnknownSequence { id: id.0 })
    }
}
