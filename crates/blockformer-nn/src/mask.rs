//! Which positions a query may see.

use burn::tensor::{Bool, Device, Tensor, TensorData};

/// Which keys each query sees: all (bidirectional) or those up to its own position or group (causal), and of these
/// only the ones a key mask marks as real.
///
/// A query for which nothing is left (it belongs to padding that comes first) sees its own position only, so that its
/// output stays finite; no real position ever reads that output.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    causal: bool,
    group: usize,
    keys: Option<Tensor<2, Bool>>,
}

impl AttentionMask {
    /// Each position sees itself and those before it.
    pub fn causal() -> Self {
        Self { causal: true, group: 1, keys: None }
    }

    /// Each position sees all.
    pub fn bidirectional() -> Self {
        Self { causal: false, group: 1, keys: None }
    }

    /// Causal between groups of `group` consecutive positions; positions of one group see each other. The block
    /// decoder uses this where a block has several embedding tokens.
    ///
    /// # Panics
    /// If `group` is zero.
    pub fn causal_groups(group: usize) -> Self {
        assert!(group > 0, "a group needs at least one position");
        Self { causal: true, group, keys: None }
    }

    /// The same, but hiding keys whose entry is false.
    ///
    /// # Shapes
    /// - `keys`: `[batch, positions]`, all positions the queries could see, those held by a cache included; true
    ///   marks real ones. `None` keeps the mask as it is.
    pub fn with_keys(mut self, keys: Option<Tensor<2, Bool>>) -> Self {
        self.keys = keys.or(self.keys);
        self
    }

    /// True where a query must not look, or nothing if every query sees every key.
    ///
    /// # Shapes
    /// - returns: `[batch or 1, 1, queries, keys]`
    ///
    /// # Panics
    /// If the key mask does not cover `n_keys` positions.
    pub(crate) fn hidden(&self, n_queries: usize, n_keys: usize, device: &Device) -> Option<Tensor<4, Bool>> {
        self.hidden_among(n_queries, n_keys, n_keys, device)
    }

    /// The same where `n_positions` stand in a cache whose last ones, behind the first `n_keys`, hold nothing.
    ///
    /// # Shapes
    /// - returns: `[batch or 1, 1, queries, positions]`
    ///
    /// # Panics
    /// If the key mask does not cover `n_keys` positions.
    pub(crate) fn hidden_among(
        &self,
        n_queries: usize,
        n_keys: usize,
        n_positions: usize,
        device: &Device,
    ) -> Option<Tensor<4, Bool>> {
        let hidden = self.hidden_keys(n_queries, n_keys, device);
        if n_positions == n_keys {
            return hidden;
        }
        let held = hidden.unwrap_or_else(|| bool_matrix(n_queries, n_keys, |_, _| false, device));
        let empty = Tensor::full([held.dims()[0], 1, n_queries, n_positions - n_keys], true, device);
        Some(Tensor::cat(vec![held, empty], 3))
    }

    fn hidden_keys(&self, n_queries: usize, n_keys: usize, device: &Device) -> Option<Tensor<4, Bool>> {
        let future = self.future(n_queries, n_keys, device);
        let Some(keys) = &self.keys else { return future };
        let [batch, covered] = keys.dims();
        assert_eq!(covered, n_keys, "the key mask covers {covered} positions, attention has {n_keys}");
        let shape = [batch, 1, n_queries, n_keys];
        let padded: Tensor<4, Bool> = keys.clone().bool_not().reshape([batch, 1, 1, n_keys]).expand(shape);
        let hidden = match future {
            Some(future) => padded.bool_or(future.expand(shape)),
            None => padded,
        };
        let blind = hidden.clone().all_dim(3).expand(shape); // queries that see nothing
        let past = n_keys - n_queries;
        let own = bool_matrix(n_queries, n_keys, |query, key| key == past + query, device).expand(shape);
        Some(hidden.bool_and(blind.bool_and(own).bool_not()))
    }

    /// Whether certain keys are hidden from all queries.
    pub(crate) fn hides_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// Whether this is plain causal attention, which fused kernels know without a mask.
    pub(crate) fn is_plain_causal(&self) -> bool {
        self.causal && self.group == 1 && self.keys.is_none()
    }

    fn future(&self, n_queries: usize, n_keys: usize, device: &Device) -> Option<Tensor<4, Bool>> {
        let past = n_keys - n_queries;
        // Whether the first new query already sees the last key: then nothing lies in the future.
        if !self.causal || past / self.group == (n_keys - 1) / self.group {
            return None;
        }
        Some(bool_matrix(n_queries, n_keys, |query, key| key / self.group > (past + query) / self.group, device))
    }
}

fn bool_matrix(
    n_queries: usize,
    n_keys: usize,
    entry: impl Fn(usize, usize) -> bool,
    device: &Device,
) -> Tensor<4, Bool> {
    let values: Vec<bool> = (0..n_queries * n_keys).map(|i| entry(i / n_keys, i % n_keys)).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, n_queries, n_keys]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(mask: Option<Tensor<4, Bool>>) -> Vec<String> {
        let mask = mask.expect("something is hidden");
        let [_, _, _, keys] = mask.dims();
        let values: Vec<bool> = mask.into_data().iter::<bool>().collect();
        values.chunks(keys).map(|row| row.iter().map(|hidden| if *hidden { '.' } else { 'x' }).collect()).collect()
    }

    #[test]
    fn causal_masks_hide_the_future_also_behind_a_cache() {
        let device = Device::flex();
        assert_eq!(rows(AttentionMask::causal().hidden(3, 3, &device)), ["x..", "xx.", "xxx"]);
        assert_eq!(rows(AttentionMask::causal().hidden(2, 4, &device)), ["xxx.", "xxxx"]);
        assert!(AttentionMask::causal().hidden(1, 7, &device).is_none());
        assert!(AttentionMask::bidirectional().hidden(3, 3, &device).is_none());
    }

    #[test]
    fn places_that_hold_nothing_are_hidden() {
        let device = Device::flex();
        assert_eq!(rows(AttentionMask::causal().hidden_among(1, 2, 4, &device)), ["xx.."]);
        assert_eq!(rows(AttentionMask::causal().hidden_among(2, 3, 5, &device)), ["xx...", "xxx.."]);
        assert!(AttentionMask::causal().hidden_among(1, 4, 4, &device).is_none());
        let keys = Tensor::<2, Bool>::from_data(TensorData::new(vec![false, true, true], [1, 3]), &device);
        assert_eq!(rows(AttentionMask::causal().with_keys(Some(keys)).hidden_among(1, 3, 4, &device)), [".xx."]);
    }

    #[test]
    fn positions_of_one_group_see_each_other() {
        let device = Device::flex();
        let mask = AttentionMask::causal_groups(2);
        assert_eq!(rows(mask.hidden(4, 4, &device)), ["xx..", "xx..", "xxxx", "xxxx"]);
        assert!(mask.hidden(2, 4, &device).is_none());
    }

    #[test]
    fn padding_is_hidden_and_padded_queries_stay_finite() {
        let device = Device::flex();
        let keys = Tensor::<2, Bool>::from_data(TensorData::new(vec![false, true, false, true], [1, 4]), &device);
        let mask = AttentionMask::causal().with_keys(Some(keys));
        // The first query sees nothing real and falls back to itself; the padded third one keeps the second.
        assert_eq!(rows(mask.hidden(4, 4, &device)), ["x...", ".x..", ".x..", ".x.x"]);
    }
}
