//! Recordings, by what they are of.

/// Recordings of either kind at a time: each keeps memory of the device.
pub(super) const MOST_RECORDINGS: usize = 32;

/// Shapes of either kind that are counted at a time.
const MOST_COUNTED: usize = 64;

/// Recordings by their shapes.
#[derive(Debug)]
pub(super) struct Shelf<K, R> {
    /// The one used last at the end.
    recordings: Vec<(K, R)>,
    /// How often others were asked for; nothing for those that cannot be recorded.
    counts: Vec<(K, Option<usize>)>,
}

/// Where a recording is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    At(usize),
    /// Nowhere yet, and it is to be.
    ToRecord,
    Nothing,
}

impl<K, R> Default for Shelf<K, R> {
    fn default() -> Self {
        Self { recordings: Vec::new(), counts: Vec::new() }
    }
}

impl<K: PartialEq + Copy, R> Shelf<K, R> {
    /// Where the recording of this shape is. If there is none, it is to be recorded when it was asked for more than `after`
    /// times; without a limit it is not even counted.
    pub(super) fn find(&mut self, shape: &K, after: Option<usize>) -> Found {
        if let Some(at) = self.recordings.iter().position(|(of, _)| of == shape) {
            let used = self.recordings.remove(at);
            self.recordings.push(used);
            return Found::At(self.recordings.len() - 1);
        }
        let Some(after) = after else { return Found::Nothing };
        let counted = self.counts.iter().position(|(of, _)| of == shape).map(|at| self.counts.remove(at).1);
        let count = counted.unwrap_or(Some(0)).map(|count| count + 1);
        self.count(*shape, count);
        if count.is_some_and(|count| count > after) { Found::ToRecord } else { Found::Nothing }
    }

    /// A shape that cannot be recorded.
    pub(super) fn refuse(&mut self, shape: &K) {
        self.counts.retain(|(of, _)| of != shape);
        self.count(*shape, None);
    }

    /// What cannot be recorded is remembered longest.
    fn count(&mut self, shape: K, count: Option<usize>) {
        while self.counts.len() >= MOST_COUNTED {
            let first = self.counts.iter().position(|(_, count)| count.is_some()).unwrap_or(0);
            self.counts.remove(first);
        }
        self.counts.push((shape, count));
    }

    /// How many recordings there are.
    pub(super) fn len(&self) -> usize {
        self.recordings.len()
    }

    /// Gives up all recordings.
    pub(super) fn clear(&mut self) {
        self.recordings.clear();
    }

    /// Its place.
    pub(super) fn keep(&mut self, shape: K, recording: R) -> usize {
        self.counts.retain(|(of, _)| *of != shape);
        if self.recordings.len() == MOST_RECORDINGS {
            self.recordings.remove(0);
        }
        self.recordings.push((shape, recording));
        self.recordings.len() - 1
    }

    pub(super) fn recording(&mut self, at: usize) -> &mut R {
        &mut self.recordings[at].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_recorded_when_they_came_often_enough_and_the_least_used_go() {
        let mut shelf = Shelf::<usize, usize>::default();
        assert_eq!(
            [1, 1, 2, 1].map(|shape| shelf.find(&shape, Some(2))),
            [Found::Nothing, Found::Nothing, Found::Nothing, Found::ToRecord]
        );
        assert_eq!(shelf.find(&7, Some(0)), Found::ToRecord);
        assert_eq!(shelf.find(&7, None), Found::Nothing);
        shelf.refuse(&7);
        assert_eq!(shelf.find(&7, Some(0)), Found::Nothing);
        for shape in 100..100 + MOST_RECORDINGS {
            let at = shelf.keep(shape, 10 * shape);
            assert_eq!(*shelf.recording(at), 10 * shape);
        }
        // What comes once takes nobody's place.
        (1000..1000 + 2 * MOST_COUNTED).for_each(|shape| assert_eq!(shelf.find(&shape, Some(1)), Found::Nothing));
        assert_eq!(shelf.find(&7, Some(0)), Found::Nothing, "refused for good");
        let Found::At(at) = shelf.find(&100, None) else { panic!("the first is there") };
        assert_eq!(*shelf.recording(at), 1000);
        shelf.keep(1, 1);
        assert_eq!([101, 100, 1].map(|shape| shelf.find(&shape, None) == Found::Nothing), [true, false, false]);
    }
}
