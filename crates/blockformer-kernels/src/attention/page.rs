//! What attention does with one page of a head: scores of its keys, and its share of the output.

use std::ops::Range;

use super::Row;
use crate::simd::Simd;
use crate::stored::StoredRows;

/// `scores[r][key] = q[r] · k[key] / sqrt(head_dim)` for the keys of one page, which are numbers `at` of all and rows from
/// `first` on.
#[inline(always)]
pub(super) fn score_page<S: Simd, N: StoredRows, const R: usize>(
    s: S,
    rows: &[Row<'_>; R],
    keys: N,
    first: usize,
    at: Range<usize>,
    scores: &mut [f32],
) {
    let mut next = Keys { row: first, index: at.start };
    // Several keys at a time, so that a query is loaded once for all, additions do not wait for each other, and sums of
    // vectors can be taken together.
    while R == 1 && next.index + 8 <= at.end {
        next = score_keys::<S, N, R, 8>(s, rows, keys, next, scores);
    }
    while R > 1 && next.index + 2 <= at.end {
        next = score_keys::<S, N, R, 2>(s, rows, keys, next, scores);
    }
    while next.index < at.end {
        next = score_keys::<S, N, R, 1>(s, rows, keys, next, scores);
    }
}

/// The keys that are next.
struct Keys {
    /// Row of the first.
    row: usize,
    /// Which of all it is.
    index: usize,
}

/// The scores of `K` keys. Returns what comes behind them.
#[inline(always)]
fn score_keys<S: Simd, N: StoredRows, const R: usize, const K: usize>(
    s: S,
    rows: &[Row<'_>; R],
    keys: N,
    next: Keys,
    scores: &mut [f32],
) -> Keys {
    let (head_dim, n) = (rows[0].query.len(), scores.len() / R);
    let mut acc = [[s.splat(0.0); R]; K];
    let mut feature = 0;
    while R == 1 && feature + 4 * S::LANES <= head_dim {
        add_products::<S, N, R, K, 4>(s, rows, keys, next.row, feature, &mut acc);
        feature += 4 * S::LANES;
    }
    while feature + S::LANES <= head_dim {
        add_products::<S, N, R, K, 1>(s, rows, keys, next.row, feature, &mut acc);
        feature += S::LANES;
    }
    let sums = s.sums(acc);
    let scale = (head_dim as f32).sqrt().recip();
    for (key, sums) in sums.iter().enumerate() {
        let (row, index) = (next.row + key, next.index + key);
        for (r, sum) in sums.iter().enumerate() {
            let mut sum = *sum;
            for feature in feature..head_dim {
                sum += rows[r].query[feature] * keys.get(row * head_dim + feature);
            }
            scores[r * n + index] = sum * scale * keys.scale(row);
        }
    }
    Keys { row: next.row + K, index: next.index + K }
}

/// Adds the products of `C` vectors of features, from one on, with those of the keys from `row` on.
#[inline(always)]
fn add_products<S: Simd, N: StoredRows, const R: usize, const K: usize, const C: usize>(
    s: S,
    rows: &[Row<'_>; R],
    keys: N,
    row: usize,
    feature: usize,
    acc: &mut [[S::V; R]; K],
) {
    let head_dim = rows[0].query.len();
    let mut parts = [keys; K];
    for (row, part) in (row..).zip(&mut parts) {
        *part = keys.part(row * head_dim + feature, C * S::LANES);
    }
    for c in 0..C {
        let mut queries = [s.splat(0.0); R];
        for (query, row) in queries.iter_mut().zip(rows) {
            *query = s.load(&row.query[feature + c * S::LANES..]);
        }
        for (acc, part) in acc.iter_mut().zip(&parts) {
            let k = part.load(s, c * S::LANES);
            for (acc, query) in acc.iter_mut().zip(&queries) {
                *acc = s.mul_add(*query, k, *acc);
            }
        }
    }
}

/// The output of one row.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) first: *mut f32,
    pub(super) offset: usize,
    pub(super) scale: f32,
}

impl Part {
    #[inline(always)]
    fn slice(&mut self, feature: usize, features: usize) -> &mut [f32] {
        // SAFETY: `offset` is that of a whole head of the output, whose length `check` has compared, and `feature + features`
        // is at most `head_dim` (`mix_page` sees to it); a head belongs to one task, and a task holds one slice at a time.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(self.offset + feature), features) }
    }
}

/// The positions of a head in one page.
pub(super) struct Page {
    /// Row of the first.
    pub(super) first: usize,
    /// Which of all positions they are.
    pub(super) at: Range<usize>,
    /// All positions.
    pub(super) n: usize,
    pub(super) head_dim: usize,
}

/// `out[r] = scale[r] · Σ_key weights[r][key] v[key]`, page after page: each adds to what those before it left in `out`, and
/// the last also scales.
#[inline(always)]
pub(super) fn mix_page<S: Simd, N: StoredRows, const R: usize>(
    s: S,
    weights: &[f32],
    page: Page,
    values: N,
    out: &[Part; R],
) {
    let head_dim = page.head_dim;
    let mut feature = 0;
    // A single row needs more sums at a time, so that additions do not wait for each other.
    while R == 1 && feature + 8 * S::LANES <= head_dim {
        mix_features::<S, N, R, 8>(s, weights, &page, values, feature, out);
        feature += 8 * S::LANES;
    }
    while R == 1 && feature + 4 * S::LANES <= head_dim {
        mix_features::<S, N, R, 4>(s, weights, &page, values, feature, out);
        feature += 4 * S::LANES;
    }
    while feature + 2 * S::LANES <= head_dim {
        mix_features::<S, N, R, 2>(s, weights, &page, values, feature, out);
        feature += 2 * S::LANES;
    }
    while feature + S::LANES <= head_dim {
        mix_features::<S, N, R, 1>(s, weights, &page, values, feature, out);
        feature += S::LANES;
    }
    let (begins, ends) = (page.at.start == 0, page.at.end == page.n);
    for feature in feature..head_dim {
        let mut sums = [0.0; R];
        for ((weights, out), sum) in weights.chunks_exact(page.n).zip(out).zip(&mut sums) {
            let mut out = *out;
            *sum = if begins { 0.0 } else { out.slice(feature, 1)[0] };
            for (weight, row) in weights[page.at.clone()].iter().zip(page.first..) {
                *sum += weight * values.scale(row) * values.get(row * head_dim + feature);
            }
        }
        // Not before all are read: a row may be there twice.
        for (sum, out) in sums.iter().zip(out) {
            let mut out = *out;
            out.slice(feature, 1)[0] = if ends { sum * out.scale } else { *sum };
        }
    }
}

/// The same for `C` vectors of features, from one on.
#[inline(always)]
fn mix_features<S: Simd, N: StoredRows, const R: usize, const C: usize>(
    s: S,
    weights: &[f32],
    page: &Page,
    values: N,
    feature: usize,
    out: &[Part; R],
) {
    let Page { first, ref at, n, head_dim } = *page;
    let mut acc = [[s.splat(0.0); C]; R];
    if at.start > 0 {
        for (acc, out) in acc.iter_mut().zip(out) {
            let mut out = *out;
            for (acc, out) in acc.iter_mut().zip(out.slice(feature, C * S::LANES).chunks_exact(S::LANES)) {
                *acc = s.load(out);
            }
        }
    }
    for (row, key) in (first..).zip(at.clone()) {
        let part = values.part(row * head_dim + feature, C * S::LANES);
        let mut v = [s.splat(0.0); C];
        for (c, v) in v.iter_mut().enumerate() {
            *v = part.load(s, c * S::LANES);
        }
        let scale = values.scale(row);
        for (r, acc) in acc.iter_mut().enumerate() {
            let weight = s.splat(weights[r * n + key] * scale);
            for (acc, v) in acc.iter_mut().zip(&v) {
                *acc = s.mul_add(weight, *v, *acc);
            }
        }
    }
    for (acc, out) in acc.iter().zip(out) {
        let mut out = *out;
        // Before the last page sums are left as they are.
        let scale = s.splat(if at.end == n { out.scale } else { 1.0 });
        for (acc, out) in acc.iter().zip(out.slice(feature, C * S::LANES).chunks_exact_mut(S::LANES)) {
            s.store(out, s.mul(*acc, scale));
        }
    }
}
