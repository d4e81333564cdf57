//! The cache of one attention layer.

use burn::tensor::{Bool, DType, Tensor, TensorCreationOptions, s};

use crate::CacheError;

/// Keys and values of one attention layer: two tensors `[batch, n_kv_heads, capacity, head_dim]`, allocated once and
/// written in place.
///
/// The in-place write needs the tensors to be uniquely owned: views returned by [`append`](Self::append) must be
/// dropped before the next call, or the backend copies the whole cache (the result is the same, only slower).
#[derive(Debug, Clone)]
pub struct LayerCache {
    keys: Tensor<4>,
    values: Tensor<4>,
    len: usize,
    /// Views cover a multiple of so many positions.
    view_multiple: usize,
    counted: Option<Counted>,
}

/// Positions that the device counts, so that the host launches the same whatever their number.
#[derive(Debug, Clone)]
pub struct Counted {
    /// Positions held, `[1]` in float32.
    pub count: Tensor<1>,
    /// True for positions that are padding, `[batch, 1, 1, capacity]`; `None` where there is none.
    pub hidden: Option<Tensor<4, Bool>>,
}

impl LayerCache {
    /// An empty cache on a device, in the device's default float type, or with `(device, dtype)` in another. If the first
    /// keys have yet another, it takes on theirs.
    ///
    /// # Shapes
    /// Holds `[batch, n_kv_heads, capacity, head_dim]` twice.
    pub fn new(
        batch: usize,
        n_kv_heads: usize,
        capacity: usize,
        head_dim: usize,
        options: impl Into<TensorCreationOptions>,
    ) -> Self {
        let options = options.into();
        let zeros = || Tensor::zeros([batch, n_kv_heads, capacity, head_dim], options.clone());
        Self { keys: zeros(), values: zeros(), len: 0, view_multiple: 1, counted: None }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions the cache was made for.
    pub fn capacity(&self) -> usize {
        self.keys.dims()[2]
    }

    /// Positions that still fit.
    pub fn remaining(&self) -> usize {
        self.capacity() - self.len
    }

    /// Sequences the cache was made for.
    pub fn batch(&self) -> usize {
        self.keys.dims()[0]
    }

    /// The type of the numbers.
    pub fn dtype(&self) -> DType {
        self.keys.dtype()
    }

    /// Bytes one stored number takes.
    pub fn bytes_per_value(&self) -> usize {
        self.keys.dtype().size()
    }

    /// From now on views cover a number of positions that is a multiple of `multiple`, as far as the capacity goes, so
    /// that few shapes come up while the cache fills. What stands behind the positions held are numbers without a
    /// meaning, which attention has to hide.
    ///
    /// # Panics
    /// If `multiple` is zero.
    pub fn round_views(&mut self, multiple: usize) {
        assert!(multiple > 0, "views of a multiple of no positions");
        self.view_multiple = multiple;
    }

    /// Positions that views cover once `new` more are held.
    pub fn view_len(&self, new: usize) -> usize {
        let len = self.len + new;
        len.next_multiple_of(self.view_multiple).min(self.capacity()).max(len)
    }

    /// Writes the keys and values of new positions behind those held and returns views of everything held.
    ///
    /// # Shapes
    /// - `keys`, `values`: `[batch, n_kv_heads, new, head_dim]`
    /// - returns: two views `[batch, n_kv_heads, len + new, head_dim]`, or longer ones where
    ///   [views are rounded](Self::round_views)
    ///
    /// # Errors
    /// [`CacheError::Full`] and [`CacheError::Shape`]; the cache is then unchanged.
    ///
    /// # Panics
    /// If positions of another float type are held, or if [the device counts](Self::count_on_device) them.
    pub fn append(&mut self, keys: Tensor<4>, values: Tensor<4>) -> Result<(Tensor<4>, Tensor<4>), CacheError> {
        let new = keys.dims()[2];
        assert!(self.counted.is_none(), "plain operations cannot write behind positions that the device counts");
        self.check("keys", keys.dims(), new)?;
        self.check("values", values.dims(), new)?;
        if new > self.remaining() {
            return Err(CacheError::Full { len: self.len, capacity: self.capacity(), requested: new });
        }
        if self.is_empty() && keys.dtype() != self.keys.dtype() {
            let zeros = || Tensor::zeros(self.keys.dims(), (&self.keys.device(), keys.dtype()));
            (self.keys, self.values) = (zeros(), zeros());
        }
        let (start, end) = (self.len, self.len + new);
        self.keys.inplace(|held| held.slice_assign(s![.., .., start..end, ..], keys));
        self.values.inplace(|held| held.slice_assign(s![.., .., start..end, ..], values));
        self.len = end;
        Ok((self.view(&self.keys), self.view(&self.values)))
    }

    /// From now on the device says how many positions are held, as graph capture needs it; the host sees a cache that lacks a
    /// single position. Only [`write_new`](Self::write_new) can then write, one position. [`reset`](Self::reset) and
    /// [`truncate`](Self::truncate) give the count back to the host.
    ///
    /// # Panics
    /// If there is room for none.
    pub fn count_on_device(&mut self, counted: Counted) {
        assert!(self.capacity() > 0, "a cache without room for a position");
        self.len = self.capacity() - 1;
        self.counted = Some(counted);
    }

    /// What the device counts, if it does.
    pub fn counted(&self) -> Option<&Counted> {
        self.counted.as_ref()
    }

    /// Lets `write` put keys and values of `new` positions behind those held: it is given both tensors and the number of
    /// positions they hold, and answers nothing if it has left them as they were.
    ///
    /// # Errors
    /// [`CacheError::Full`]; the cache is then unchanged.
    pub fn write_new<T>(
        &mut self,
        new: usize,
        write: impl FnOnce(&mut Tensor<4>, &mut Tensor<4>, usize) -> Option<T>,
    ) -> Result<Option<T>, CacheError> {
        if new > self.remaining() {
            return Err(CacheError::Full { len: self.len, capacity: self.capacity(), requested: new });
        }
        let written = write(&mut self.keys, &mut self.values, self.len);
        self.len += if written.is_some() { new } else { 0 };
        Ok(written)
    }

    /// Forgets everything held; the memory stays.
    pub fn reset(&mut self) {
        self.counted = None;
        self.len = 0;
    }

    /// Keeps the first `len` positions.
    ///
    /// # Errors
    /// [`CacheError::Truncate`] when fewer are held.
    pub fn truncate(&mut self, len: usize) -> Result<(), CacheError> {
        if len > self.len {
            return Err(CacheError::Truncate { len: self.len, requested: len });
        }
        self.counted = None;
        self.len = len;
        Ok(())
    }

    fn view(&self, held: &Tensor<4>) -> Tensor<4> {
        held.clone().slice(s![.., .., 0..self.view_len(0), ..])
    }

    fn check(&self, name: &'static str, got: [usize; 4], new: usize) -> Result<(), CacheError> {
        let expected = self.keys.dims();
        let [batch, heads, _, head_dim] = expected;
        if got != [batch, heads, new, head_dim] {
            return Err(CacheError::Shape { name, expected, got });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, FloatDType};

    use super::*;

    /// `[1, 1, values, 2]`, both features of a position holding its value.
    fn positions(values: &[f32]) -> Tensor<4> {
        let data: Vec<f32> = values.iter().flat_map(|v| [*v, *v]).collect();
        Tensor::<1>::from_floats(data.as_slice(), &Device::flex()).reshape([1, 1, values.len(), 2])
    }

    fn cache(capacity: usize) -> LayerCache {
        LayerCache::new(1, 1, capacity, 2, &Device::flex())
    }

    #[test]
    fn appended_positions_are_read_back_in_order() {
        let mut cache = cache(4);
        cache.append(positions(&[1.0, 2.0]), positions(&[-1.0, -2.0])).unwrap();
        let (k, v) = cache.append(positions(&[3.0]), positions(&[-3.0])).unwrap();
        k.into_data().assert_eq(&positions(&[1.0, 2.0, 3.0]).into_data(), true);
        v.into_data().assert_eq(&positions(&[-1.0, -2.0, -3.0]).into_data(), true);
        assert_eq!((cache.len(), cache.remaining(), cache.is_empty()), (3, 1, false));
    }

    #[test]
    fn a_full_cache_refuses_and_stays_as_it_was() {
        let mut cache = cache(2);
        cache.append(positions(&[1.0]), positions(&[1.0])).unwrap();
        let refused = cache.append(positions(&[2.0, 3.0]), positions(&[2.0, 3.0])).unwrap_err();
        assert_eq!(refused, CacheError::Full { len: 1, capacity: 2, requested: 2 });
        let (k, _) = cache.append(positions(&[9.0]), positions(&[9.0])).unwrap();
        k.into_data().assert_eq(&positions(&[1.0, 9.0]).into_data(), true);
    }

    #[test]
    fn shapes_of_another_cache_are_refused() {
        let mut cache = cache(4);
        let wide = Tensor::<4>::zeros([1, 1, 1, 3], &Device::flex());
        let refused = cache.append(positions(&[1.0]), wide).unwrap_err();
        assert!(matches!(refused, CacheError::Shape { name: "values", got: [1, 1, 1, 3], .. }), "{refused}");
        assert!(cache.is_empty());
    }

    #[test]
    fn a_reset_or_shortened_cache_is_written_from_there() {
        let mut cache = cache(3);
        cache.append(positions(&[1.0, 2.0, 3.0]), positions(&[1.0, 2.0, 3.0])).unwrap();
        cache.truncate(1).unwrap();
        let (k, _) = cache.append(positions(&[7.0]), positions(&[7.0])).unwrap();
        k.into_data().assert_eq(&positions(&[1.0, 7.0]).into_data(), true);
        assert_eq!(cache.truncate(3), Err(CacheError::Truncate { len: 2, requested: 3 }));
        cache.reset();
        let (k, _) = cache.append(positions(&[5.0]), positions(&[5.0])).unwrap();
        k.into_data().assert_eq(&positions(&[5.0]).into_data(), true);
    }

    #[test]
    fn a_position_that_somebody_else_wrote_is_held() {
        let mut cache = cache(2);
        cache.append(positions(&[1.0]), positions(&[-1.0])).unwrap();
        let declined = cache.write_new(1, |_, _, len| (len > 1).then_some(())).unwrap();
        assert_eq!((declined, cache.len()), (None, 1));
        let written = cache.write_new(1, |keys, values, len| {
            let at = s![.., .., len..len + 1, ..];
            keys.inplace(|held| held.slice_assign(at, positions(&[2.0])));
            values.inplace(|held| held.slice_assign(at, positions(&[-2.0])));
            Some(len)
        });
        assert_eq!((written, cache.len()), (Ok(Some(1)), 2));
        cache.view(&cache.keys).into_data().assert_eq(&positions(&[1.0, 2.0]).into_data(), true);
        cache.view(&cache.values).into_data().assert_eq(&positions(&[-1.0, -2.0]).into_data(), true);
        let refused = cache.write_new(1, |_, _, _| Some(()));
        assert_eq!(refused, Err(CacheError::Full { len: 2, capacity: 2, requested: 1 }));
    }

    #[test]
    fn a_counted_cache_is_the_hosts_again_when_it_is_shortened() {
        let mut cache = cache(3);
        cache.append(positions(&[1.0, 2.0]), positions(&[1.0, 2.0])).unwrap();
        let counted = Counted { count: Tensor::from_floats([1.0], &Device::flex()), hidden: None };
        cache.count_on_device(counted);
        assert_eq!((cache.len(), cache.remaining(), cache.counted().is_some()), (2, 1, true));
        assert_eq!(cache.write_new(1, |_, _, len| Some(len)), Ok(Some(2)));
        cache.truncate(1).unwrap();
        assert!(cache.counted().is_none());
        let (k, _) = cache.append(positions(&[5.0]), positions(&[5.0])).unwrap();
        k.into_data().assert_eq(&positions(&[1.0, 5.0]).into_data(), true);
    }

    #[test]
    #[should_panic = "that the device counts"]
    fn plain_operations_cannot_write_where_the_device_counts() {
        let mut cache = cache(2);
        cache.count_on_device(Counted { count: Tensor::from_floats([0.0], &Device::flex()), hidden: None });
        let _ = cache.append(positions(&[1.0]), positions(&[1.0]));
    }

    #[test]
    fn rounded_views_cover_multiples_up_to_the_capacity() {
        let mut cache = cache(7);
        cache.round_views(3);
        assert_eq!((cache.view_len(1), cache.view_len(3), cache.view_len(4), cache.view_len(7)), (3, 3, 6, 7));
        let (k, _) = cache.append(positions(&[1.0, 2.0]), positions(&[1.0, 2.0])).unwrap();
        k.into_data().assert_eq(&positions(&[1.0, 2.0, 0.0]).into_data(), true);
        let (k, _) = cache.append(positions(&[3.0, 4.0]), positions(&[3.0, 4.0])).unwrap();
        k.into_data().assert_eq(&positions(&[1.0, 2.0, 3.0, 4.0, 0.0, 0.0]).into_data(), true);
        assert_eq!((cache.len(), cache.remaining()), (4, 3));
    }

    #[test]
    fn an_empty_cache_takes_on_the_type_of_the_keys() {
        let mut cache = cache(2);
        let short = positions(&[1.5]).cast(FloatDType::BF16);
        let (k, v) = cache.append(short.clone(), short).unwrap();
        assert_eq!((k.dtype(), v.dtype(), cache.bytes_per_value()), (DType::BF16, DType::BF16, 2));
        k.cast(FloatDType::F32).into_data().assert_eq(&positions(&[1.5]).into_data(), true);
    }

    #[test]
    fn a_view_that_is_still_held_is_not_overwritten() {
        let mut cache = cache(3);
        let (held, _) = cache.append(positions(&[1.0]), positions(&[1.0])).unwrap();
        cache.reset();
        cache.append(positions(&[8.0]), positions(&[8.0])).unwrap();
        held.into_data().assert_eq(&positions(&[1.0]).into_data(), true);
    }
}
