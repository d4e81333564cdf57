//! Rotary position embedding (Su et al. 2021) in the half-split form of GPT-NeoX and Llama.
//!
//! With `r` rotated features, `x₁` the first `r/2` and `x₂` the next `r/2` of a head at position `p`:
//!
//! ```text
//! θᵢ = p · base^(-2i/r)
//! y₁ = x₁ cos θ − x₂ sin θ,   y₂ = x₂ cos θ + x₁ sin θ,   the rest is unchanged
//! ```

use core::ops::Range;

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData, s};

/// Sines and cosines of every position; constants, not parameters.
#[derive(Module, Debug)]
pub struct RotaryTable {
    cos: Tensor<2>, // [max_positions, rotary_dim / 2]
    sin: Tensor<2>, // [max_positions, rotary_dim / 2]
}

impl RotaryTable {
    /// Tables for positions `0..max_positions` and `rotary_dim` rotated features.
    pub fn new(rotary_dim: usize, base: f64, max_positions: usize, device: &Device) -> Self {
        let half = rotary_dim / 2;
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / (base as f32).powf(2.0 * i as f32 / rotary_dim as f32)).collect();
        let angle = |index: usize| (index / half) as f32 * frequencies[index % half];
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> = (0..max_positions * half).map(|i| f(angle(i))).collect();
            Tensor::from_data(TensorData::new(values, [max_positions, half]), device)
        };
        Self { cos: table(f32::cos), sin: table(f32::sin) }
    }

    /// Positions the tables were made for.
    pub fn max_positions(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Rotates queries or keys whose first position is `start`.
    ///
    /// # Shapes
    /// - `x`: `[batch, heads, positions, head_dim]`, returns the same.
    ///
    /// # Panics
    /// If the last position lies beyond the tables.
    pub fn forward(&self, x: Tensor<4>, start: usize) -> Tensor<4> {
        self.rotation(start..start + x.dims()[2], x.dtype()).forward(x)
    }

    /// # Panics
    /// If positions up to `end` lie beyond the tables.
    pub(crate) fn assert_reach(&self, end: usize) {
        let max = self.max_positions();
        assert!(end <= max, "position {end} is beyond the {max} rotary positions");
    }

    /// Cosine and sine of all positions, `[max_positions, rotary_dim / 2]`.
    pub(crate) fn tables(&self) -> (&Tensor<2>, &Tensor<2>) {
        (&self.cos, &self.sin)
    }

    /// The rotation of consecutive positions.
    ///
    /// # Panics
    /// If the last position lies beyond the tables.
    pub(crate) fn rotation(&self, positions: Range<usize>, dtype: DType) -> Rotation {
        self.assert_reach(positions.end);
        Rotation::new([&self.cos, &self.sin].map(|table| table.clone().slice(s![positions.clone(), ..])), dtype)
    }

    /// The rotation of any positions.
    ///
    /// # Panics
    /// If one of them lies beyond the tables.
    pub(crate) fn rotation_at(&self, positions: &[usize], dtype: DType) -> Rotation {
        self.assert_reach(positions.iter().max().map_or(0, |last| last + 1));
        let indices: Vec<i32> = positions.iter().map(|position| *position as i32).collect();
        let indices: Tensor<1, Int> =
            Tensor::from_data(TensorData::new(indices, [positions.len()]), &self.cos.device());
        Rotation::new([&self.cos, &self.sin].map(|table| table.clone().select(0, indices.clone())), dtype)
    }
}

/// The rotation of certain positions.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor<4>, // [1, 1, positions, rotary_dim / 2]
    sin: Tensor<4>,
}

impl Rotation {
    /// By these rows of the tables, one a position.
    fn new(rows: [Tensor<2>; 2], dtype: DType) -> Self {
        let [cos, sin] = rows.map(|rows| rows.cast(dtype).unsqueeze());
        Self { cos, sin }
    }

    /// # Shapes
    /// - `x`: `[sequences, heads, positions, head_dim]`, returns the same.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (half, head_dim) = (self.cos.dims()[3], x.dims()[3]);
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let x1 = x.clone().slice(s![.., .., .., 0..half]);
        let x2 = x.clone().slice(s![.., .., .., half..2 * half]);
        let y1 = x1.clone() * cos.clone() - x2.clone() * sin.clone();
        let y2 = x2 * cos + x1 * sin;
        let mut parts = vec![y1, y2];
        if 2 * half < head_dim {
            parts.push(x.slice(s![.., .., .., 2 * half..head_dim]));
        }
        Tensor::cat(parts, 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn rotation_follows_the_formula_in_float64() {
        let device = Device::flex();
        let (head_dim, rotary_dim, base) = (8, 4, 100.0f64);
        let table = RotaryTable::new(rotary_dim, base, 16, &device);
        let x = Tensor::<4>::random([1, 1, 3, head_dim], Distribution::Normal(0.0, 1.0), &device);
        let values: Vec<f64> = x.to_data().iter::<f64>().collect();
        let mut expected = values.clone();
        for p in 0..3 {
            for i in 0..2 {
                let theta = (p + 5) as f64 * base.powf(-2.0 * i as f64 / rotary_dim as f64);
                let (a, b) = (values[p * head_dim + i], values[p * head_dim + i + 2]);
                expected[p * head_dim + i] = a * theta.cos() - b * theta.sin();
                expected[p * head_dim + i + 2] = b * theta.cos() + a * theta.sin();
            }
        }
        let expected: Vec<f32> = expected.iter().map(|v| *v as f32).collect();
        let got = table.forward(x, 5).into_data();
        got.assert_approx_eq::<f32>(&TensorData::new(expected, [1, 1, 3, head_dim]), Tolerance::absolute(1e-5));
    }

    #[test]
    #[should_panic(expected = "beyond the 4 rotary positions")]
    fn positions_beyond_the_tables_panic() {
        let device = Device::flex();
        RotaryTable::new(4, 10_000.0, 4, &device).forward(Tensor::zeros([1, 1, 2, 4], &device), 3);
    }
}
