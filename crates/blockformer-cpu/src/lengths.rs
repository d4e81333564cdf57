//! How much there is of each of some sequences.

/// Of each sequence the same, or not.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lengths<'a> {
    /// So many of each of so many sequences.
    Same { length: usize, rows: usize },
    /// One number a sequence.
    Each(&'a [usize]),
}

impl<'a> Lengths<'a> {
    /// Sequences.
    pub(crate) fn rows(self) -> usize {
        match self {
            Self::Same { rows, .. } => rows,
            Self::Each(lengths) => lengths.len(),
        }
    }

    /// Those of one sequence.
    pub(crate) fn of(self, row: usize) -> usize {
        match self {
            Self::Same { length, .. } => length,
            Self::Each(lengths) => lengths[row],
        }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> + use<'a> {
        (0..self.rows()).map(move |row| self.of(row))
    }

    /// Those of all sequences together.
    pub(crate) fn total(self) -> usize {
        match self {
            Self::Same { length, rows } => length * rows,
            Self::Each(lengths) => lengths.iter().sum(),
        }
    }

    /// `more` more of each sequence, and all of that `times` as many.
    pub(crate) fn scaled(self, more: usize, times: usize, buffer: &'a mut Vec<usize>) -> Self {
        let scaled = |length: usize| (length + more) * times;
        match self {
            Self::Same { length, rows } => Self::Same { length: scaled(length), rows },
            Self::Each(lengths) => {
                buffer.clear();
                buffer.extend(lengths.iter().map(|length| scaled(*length)));
                Self::Each(buffer)
            }
        }
    }
}
