//! What can be wrong with a configuration.

use thiserror::Error;

/// A configuration whose values do not fit together.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A size that must not be zero.
    #[error("{field} must be at least 1")]
    Zero {
        /// The field's name.
        field: &'static str,
    },
    /// A size that must be a multiple of another.
    #[error("{field} is {value}, which is not a multiple of {divisor_field} ({divisor})")]
    NotMultiple {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The name of the field it must be a multiple of.
        divisor_field: &'static str,
        /// That field's value.
        divisor: usize,
    },
    /// Two sizes that must be equal.
    #[error("{field} is {value}, but {expected_field} needs {expected}")]
    Mismatch {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: usize,
        /// What it must agree with.
        expected_field: &'static str,
        /// The value that would agree.
        expected: usize,
    },
    /// A number outside its range.
    #[error("{field} is {value}, expected a number from {low} to {high}")]
    OutOfRange {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: f64,
        /// The lowest it may be.
        low: f64,
        /// The highest it may be.
        high: f64,
    },
}

impl ConfigError {
    /// Checks that `value` is not zero.
    ///
    /// # Errors
    /// [`ConfigError::Zero`].
    pub fn positive(field: &'static str, value: usize) -> Result<(), Self> {
        if value == 0 { Err(Self::Zero { field }) } else { Ok(()) }
    }

    /// Checks that `value` is not larger than any real model needs: a damaged file must not ask for all memory, and
    /// products of sizes must not overflow.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`].
    pub fn bounded(field: &'static str, value: usize) -> Result<(), Self> {
        Self::in_range(field, value as f64, 0.0, f64::from(1 << 20))
    }

    /// Checks that `value` is a number from `low` to `high`.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`].
    pub fn in_range(field: &'static str, value: f64, low: f64, high: f64) -> Result<(), Self> {
        if (low..=high).contains(&value) { Ok(()) } else { Err(Self::OutOfRange { field, value, low, high }) }
    }

    /// Checks that `value` is a multiple of `divisor`.
    ///
    /// # Errors
    /// [`ConfigError::NotMultiple`].
    pub fn multiple(
        field: &'static str,
        value: usize,
        divisor_field: &'static str,
        divisor: usize,
    ) -> Result<(), Self> {
        if divisor == 0 || !value.is_multiple_of(divisor) {
            return Err(Self::NotMultiple { field, value, divisor_field, divisor });
        }
        Ok(())
    }

    /// Checks that `value` equals `expected`.
    ///
    /// # Errors
    /// [`ConfigError::Mismatch`].
    pub fn equal(field: &'static str, value: usize, expected_field: &'static str, expected: usize) -> Result<(), Self> {
        if value == expected { Ok(()) } else { Err(Self::Mismatch { field, value, expected_field, expected }) }
    }
}
