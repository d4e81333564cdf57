//! The contexts of sequences that come and go.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};

use crate::paged::{Context, indices};

/// The context of one sequence: a row of what was computed for several, which stay together as long as they go on together.
#[derive(Debug, Clone)]
pub(super) struct RowContext {
    of: Arc<Context>,
    row: usize,
}

impl RowContext {
    /// Those of all rows of `context`.
    pub(super) fn each(context: Context) -> impl Iterator<Item = Self> {
        let (rows, of) = (context.window.dims()[0], Arc::new(context));
        (0..rows).map(move |row| Self { of: Arc::clone(&of), row })
    }

    /// Whether the windows of later blocks need more than the window.
    pub(super) fn has_recent(&self) -> bool {
        self.of.recent.is_some()
    }

    /// The windows of all that it was computed with.
    pub(super) fn window(&self) -> &Tensor<3> {
        &self.of.window
    }

    /// The windows of several sequences and, up to so many rows, any: the very tensor, where they are the first of its rows.
    pub(super) fn filled_windows(rows: &[&Self], n: usize) -> Tensor<3> {
        let window = rows[0].window();
        let lead = |(index, row): (usize, &&Self)| Arc::ptr_eq(&row.of, &rows[0].of) && row.row == index;
        if window.dims()[0] == n && rows.iter().enumerate().all(lead) {
            return window.clone();
        }
        let windows = Self::windows(rows);
        if rows.len() == n {
            return windows;
        }
        let last = windows.clone().narrow(0, rows.len() - 1, 1).repeat_dim(0, n - rows.len());
        Tensor::cat(vec![windows, last], 0)
    }

    /// The windows of several sequences, `[rows, n_contexts, d_model]`.
    pub(super) fn windows(rows: &[&Self]) -> Tensor<3> {
        gathered(rows, |context| context.window.clone())
    }

    /// The contexts of several sequences as one.
    pub(super) fn join(rows: &[&Self]) -> Context {
        let recent = rows.iter().all(|row| row.of.recent.is_some());
        let recent = recent.then(|| {
            gathered(rows, |context| match &context.recent {
                Some(recent) => recent.clone(),
                None => unreachable!("all have them"),
            })
        });
        Context { window: Self::windows(rows), recent }
    }
}

/// Rows of some tensors as one: the very tensor, where they are all of its rows in order.
fn gathered<const D: usize>(rows: &[&RowContext], of: impl Fn(&Context) -> Tensor<D>) -> Tensor<D> {
    let mut runs: Vec<(&Arc<Context>, Vec<usize>)> = Vec::new();
    for row in rows {
        match runs.last_mut() {
            Some((context, run)) if Arc::ptr_eq(context, &row.of) => run.push(row.row),
            _ => runs.push((&row.of, vec![row.row])),
        }
    }
    let part = |(context, run): (&Arc<Context>, Vec<usize>)| {
        let x = of(context);
        let indices = indices_of(&run, &x.device());
        rows_of(x, &run, indices.as_ref())
    };
    let mut parts: Vec<_> = runs.into_iter().map(part).collect();
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
}

/// Whether each row follows the one before.
fn are_neighbours(rows: &[usize]) -> bool {
    rows.iter().enumerate().all(|(index, row)| *row == rows[0] + index)
}

/// Rows for [`rows_of`], if it takes them by their indices.
pub(super) fn indices_of(rows: &[usize], device: &Device) -> Option<Tensor<1, Int>> {
    (!are_neighbours(rows)).then(|| indices(rows, device))
}

/// These rows of a tensor, in this order; `indices` are those that [`indices_of`] gives.
pub(super) fn rows_of<const D: usize>(x: Tensor<D>, rows: &[usize], indices: Option<&Tensor<1, Int>>) -> Tensor<D> {
    match indices {
        Some(indices) => x.select(0, indices.clone()),
        None if rows.len() == x.dims()[0] => x,
        None => x.narrow(0, rows[0], rows.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts(first: f32, rows: usize) -> Vec<RowContext> {
        let numbers: Vec<f32> = (0..rows).map(|row| first + row as f32).collect();
        let column = Tensor::<1>::from_floats(numbers.as_slice(), &Device::flex());
        let (window, recent) = (column.clone().reshape([rows, 1, 1]), column.add_scalar(0.5).reshape([rows, 1, 1, 1]));
        RowContext::each(Context { window, recent: Some(recent) }).collect()
    }

    #[test]
    fn windows_are_filled_up() {
        let (a, b) = (contexts(10.0, 4), contexts(20.0, 1));
        for (rows, n, expected) in [
            (vec![&a[0], &a[1], &a[2]], 4, [10.0, 11.0, 12.0, 13.0].as_slice()),
            (vec![&a[0], &a[1]], 2, &[10.0, 11.0]),
            (vec![&a[1], &a[2], &a[3]], 4, &[11.0, 12.0, 13.0, 13.0]),
            (vec![&a[0], &b[0], &a[2]], 4, &[10.0, 20.0, 12.0, 12.0]),
            (vec![&b[0]], 1, &[20.0]),
        ] {
            let filled = RowContext::filled_windows(&rows, n);
            assert_eq!(filled.into_data().iter::<f32>().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn sequences_keep_their_contexts_whoever_comes_and_goes() {
        let (a, b) = (contexts(10.0, 4), contexts(20.0, 1));
        for rows in [
            vec![&a[0], &a[1], &a[2], &a[3]],
            vec![&a[1], &a[2]],
            vec![&a[0], &a[3]],
            vec![&a[2], &a[2], &a[2]],
            vec![&b[0], &b[0]],
            vec![&a[0], &a[1], &b[0]],
            vec![&a[3], &b[0], &a[0], &a[1]],
        ] {
            let expected: Vec<f32> = rows
                .iter()
                .map(|row| row.row as f32 + if Arc::ptr_eq(&row.of, &a[0].of) { 10.0 } else { 20.0 })
                .collect();
            let joined = RowContext::join(&rows);
            assert_eq!(joined.window.dims(), [rows.len(), 1, 1]);
            assert_eq!(joined.window.into_data().iter::<f32>().collect::<Vec<_>>(), expected);
            let recent: Vec<f32> = joined.recent.unwrap().into_data().iter::<f32>().map(|x| x - 0.5).collect();
            assert_eq!(recent, expected);
        }
    }
}
