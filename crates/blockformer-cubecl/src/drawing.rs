//! Tokens from logits.

use burn::tensor::{Int, Tensor};

use crate::MAX_CUBES;
#[cfg(feature = "_kernels")]
use crate::kernels;

/// The most words that tokens are drawn of: ids pass through float32.
const MAX_VOCABULARY: usize = 1 << 24;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// The likeliest; of several, the first.
    Likeliest,
    /// By their probabilities.
    Sampled(Filters),
}

/// What narrows the choice, one after another; tokens that are equally likely count in the order of their ids.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filters {
    /// The logits are divided by it.
    pub temperature: f64,
    /// Only so many of the likeliest.
    pub top_k: Option<usize>,
    /// Only the likeliest that make up this share.
    pub top_p: Option<f64>,
    /// Only those that are this share of the likeliest at least.
    pub min_p: Option<f64>,
}

impl Filters {
    /// What kernels take: the inverse of the temperature, never 0, which stands for the likeliest, and finite; `top_p`, 1 where there is none; and
    /// `min_p`, 0 where there is none.
    pub(crate) fn numbers(&self) -> [f32; 3] {
        // A share of nothing is still the likeliest token.
        let top_p = (self.top_p.unwrap_or(1.0) as f32).max(f32::MIN_POSITIVE);
        let inverse_temperature = (1.0 / self.temperature as f32).clamp(f32::MIN_POSITIVE, f32::MAX);
        [inverse_temperature, top_p, self.min_p.unwrap_or(0.0) as f32]
    }
}

/// Draws a token of every row, in one launch: the first whose cumulative weight is beyond `uniform` times the sum of all,
/// where weights are `exp((logit - max) / temperature)`, added up in float32.
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]`
/// - `uniform`: `[rows, 1]` in float32, from 0 to less than 1; not looked at for [`Choice::Likeliest`]
/// - returns: `[rows, 1]`, -1 where a logit is not a number or infinite, or none is finite; `None` where there is no
///   kernel: on backends other than CubeCL's, under autodiff, for more than 65,535 rows, and for shapes that do not fit
pub fn draw(logits: &Tensor<2>, uniform: Option<&Tensor<2>>, choice: Choice) -> Option<Tensor<2, Int>> {
    let [rows, vocab_size] = logits.dims();
    let given = match choice {
        Choice::Likeliest => true,
        Choice::Sampled(_) => uniform.is_some_and(|uniform| uniform.dims() == [rows, 1]),
    };
    if !given || !draws(logits, rows, vocab_size) {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        kernels::draw(logits, uniform, choice)
    }
    #[cfg(not(feature = "_kernels"))]
    None
}

/// How tokens of several rows are drawn, each in its own way, as numbers that [`draw_each`] takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Ways {
    /// `[rows, 4]`, row after row.
    pub numbers: Vec<f32>,
    /// What rows narrow the choice by; rows without are the longer at it where another has one.
    pub narrowed: Narrowed,
}

/// Which of the filters that take time there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Narrowed {
    /// Whether a row has a [`top_k`](Filters::top_k).
    pub by_top_k: bool,
    /// Whether a row has a [`top_p`](Filters::top_p).
    pub by_top_p: bool,
}

impl Ways {
    /// Of rows over a vocabulary of so many.
    pub fn new(choices: impl IntoIterator<Item = Choice>, vocab_size: usize) -> Self {
        let (mut numbers, mut narrowed) = (Vec::new(), Narrowed::default());
        for choice in choices {
            let Choice::Sampled(filters) = choice else {
                numbers.extend([0.0, vocab_size as f32, 1.0, 0.0]);
                continue;
            };
            let top_k = filters.top_k.unwrap_or(vocab_size).min(vocab_size);
            let [inverse_temperature, top_p, min_p] = filters.numbers();
            numbers.extend([inverse_temperature, top_k as f32, top_p, min_p]);
            narrowed.by_top_k |= top_k < vocab_size;
            narrowed.by_top_p |= top_p < 1.0;
        }
        Self { numbers, narrowed }
    }
}

/// Whether [`draw`] and [`draw_each`] have a kernel for so many rows of logits in the type of `x` and on its device.
pub fn draws<const D: usize>(x: &Tensor<D>, rows: usize, vocab_size: usize) -> bool {
    let fits = (1..=MAX_CUBES).contains(&rows) && (1..=MAX_VOCABULARY).contains(&vocab_size);
    #[cfg(feature = "_kernels")]
    {
        fits && kernels::draws(x)
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = (fits, x);
        false
    }
}

/// As [`draw`], each row in its own way: so ways may change where everything else is the same, as in a [`Recording`](crate::Recording).
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]`
/// - `uniform`: `[rows, 1]` in float32
/// - `ways`: `[rows, 4]` in float32, [those](Ways::numbers) of [`Ways`], narrowed by no more than `narrowed`
/// - returns: as [`draw`]
pub fn draw_each(
    logits: &Tensor<2>,
    uniform: &Tensor<2>,
    ways: &Tensor<2>,
    narrowed: Narrowed,
) -> Option<Tensor<2, Int>> {
    let [rows, vocab_size] = logits.dims();
    if !draws(logits, rows, vocab_size) || uniform.dims() != [rows, 1] || ways.dims() != [rows, 4] {
        return None;
    }
    #[cfg(feature = "_kernels")]
    {
        kernels::draw_each(logits, uniform, ways, [narrowed.by_top_k, narrowed.by_top_p])
    }
    #[cfg(not(feature = "_kernels"))]
    {
        let _ = narrowed;
        None
    }
}
