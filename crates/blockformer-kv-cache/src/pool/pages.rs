//! Which pages are free, held, or kept for reuse. Knows nothing of tensors.

use std::collections::{BTreeMap, HashMap};

/// A page's place in the pool.
pub(crate) type PageId = usize;

/// The place of a published page in the tree of known prefixes; never used twice, so a page whose predecessor was
/// evicted can no longer be reached by mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Node(u64);

/// What a published page holds: the page before it and its own content. Equality of keys is equality of the whole
/// prefix, so a hash collision can never hand out another text's keys and values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    before: Option<Node>,
    content: Box<[u32]>,
}

#[derive(Debug, Clone, Default)]
struct Page {
    holders: usize,
    published: Option<(Node, Key)>,
    /// When it was last given up, for pages that nobody holds.
    idle_since: u64,
}

/// Pages, their holders, and the published ones by content.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: Vec<Page>,
    by_content: HashMap<Key, PageId>,
    /// Published pages that nobody holds, oldest first.
    idle: BTreeMap<u64, PageId>,
    clock: u64,
    next_node: u64,
    held: usize,
    peak: usize,
    evicted: u64,
}

impl Pages {
    pub(crate) fn new(n: usize) -> Self {
        Self {
            pages: vec![Page::default(); n],
            by_content: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
            next_node: 0,
            held: 0,
            peak: 0,
            evicted: 0,
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that a sequence holds.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Pages that nobody holds but that can be reused by content.
    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// The most pages ever held at once.
    pub(crate) fn peak(&self) -> usize {
        self.peak
    }

    /// Published pages that were given to others since the pool was made.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(crate) fn holders(&self, page: PageId) -> usize {
        self.pages[page].holders
    }

    /// Pages that can be taken, eviction included.
    pub(crate) fn available(&self) -> usize {
        self.total() - self.held
    }

    /// Takes `n` pages, in one run where there is one, or nothing if there are not so many. Pages kept for reuse are
    /// evicted only as far as needed, the longest unused first.
    pub(crate) fn take(&mut self, n: usize) -> Option<Vec<PageId>> {
        if n > self.available() {
            return None;
        }
        while self.total() - self.held - self.idle.len() < n {
            self.evict_oldest();
        }
        let taken = self.choose(n);
        for &page in &taken {
            self.pages[page].holders = 1;
        }
        self.held += n;
        self.peak = self.peak.max(self.held);
        Some(taken)
    }

    /// One more holder of a page that is held or idle.
    pub(crate) fn share(&mut self, page: PageId) {
        if self.pages[page].holders == 0 {
            let since = self.pages[page].idle_since;
            self.idle.remove(&since);
            self.held += 1;
            self.peak = self.peak.max(self.held);
        }
        self.pages[page].holders += 1;
    }

    /// One holder less; without a holder a page is free, or idle if it was published.
    pub(crate) fn give_back(&mut self, page: PageId) {
        let entry = &mut self.pages[page];
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        self.held -= 1;
        if entry.published.is_some() {
            self.clock += 1;
            entry.idle_since = self.clock;
            self.idle.insert(self.clock, page);
        }
    }

    /// Makes a held page known by its content. Where that content is known already, the page stays private and the
    /// node of the known one is returned.
    pub(crate) fn publish(&mut self, page: PageId, before: Option<Node>, content: &[u32]) -> Node {
        let key = Key { before, content: content.into() };
        if let Some(&known) = self.by_content.get(&key)
            && let Some((node, _)) = &self.pages[known].published
        {
            return *node;
        }
        let node = Node(self.next_node);
        self.next_node += 1;
        self.by_content.insert(key.clone(), page);
        self.pages[page].published = Some((node, key));
        node
    }

    /// The published page with this content behind `before`.
    pub(crate) fn find(&self, before: Option<Node>, content: &[u32]) -> Option<(PageId, Node)> {
        let page = *self.by_content.get(&Key { before, content: content.into() })?;
        self.pages[page].published.as_ref().map(|(node, _)| (page, *node))
    }

    /// The node of a published page.
    pub(crate) fn node(&self, page: PageId) -> Option<Node> {
        self.pages[page].published.as_ref().map(|(node, _)| *node)
    }

    /// Withdraws a held page that is about to be written to.
    pub(crate) fn withdraw(&mut self, page: PageId) {
        if let Some((_, key)) = self.pages[page].published.take() {
            self.by_content.remove(&key);
        }
    }

    /// Forgets every page that nobody holds.
    pub(crate) fn evict_idle(&mut self) {
        while !self.idle.is_empty() {
            self.evict_oldest();
        }
    }

    fn evict_oldest(&mut self) {
        if let Some((_, page)) = self.idle.pop_first() {
            self.evicted += 1;
            if let Some((_, key)) = self.pages[page].published.take() {
                self.by_content.remove(&key);
            }
        }
    }

    fn is_free(&self, page: PageId) -> bool {
        self.pages[page].holders == 0 && self.pages[page].published.is_none()
    }

    /// `n` free pages: the shortest run that has them all, or else the longest runs.
    fn choose(&self, n: usize) -> Vec<PageId> {
        let mut runs: Vec<(usize, PageId)> = Vec::new(); // (length, first page)
        for page in (0..self.total()).filter(|page| self.is_free(*page)) {
            match runs.last_mut() {
                Some((length, first)) if *first + *length == page => *length += 1,
                _ => runs.push((1, page)),
            }
        }
        if let Some((_, first)) = runs.iter().filter(|(length, _)| *length >= n).min() {
            return (*first..*first + n).collect();
        }
        runs.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        runs.into_iter().flat_map(|(length, first)| first..first + length).take(n).collect()
    }

    /// Checks that the books agree with each other; for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let held = self.pages.iter().filter(|page| page.holders > 0).count();
        assert_eq!(held, self.held);
        let idle = self.pages.iter().filter(|page| page.holders == 0 && page.published.is_some()).count();
        assert_eq!(idle, self.idle.len());
        assert!(self.idle.iter().all(|(since, page)| self.pages[*page].idle_since == *since));
        assert_eq!(self.by_content.len(), self.pages.iter().filter(|page| page.published.is_some()).count());
    }
}
