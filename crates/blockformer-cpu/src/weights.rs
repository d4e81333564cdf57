//! From Burn's parameters to packed weights. Each parameter is freed as soon as it is packed.

use blockformer_kernels::{
    Activation, Epilogue, LayerNorm, Level, PackedMatrix, Precision, RmsNorm, Store, Workspace, likeliest, matmul,
};
use blockformer_nn::Norm as BurnNorm;
use burn::module::Param;
use burn::nn::Linear as BurnLinear;
use burn::tensor::Tensor;

/// The numbers of a parameter, row by row.
///
/// # Panics
/// If the device cannot be read.
pub(crate) fn numbers<const D: usize>(parameter: Param<Tensor<D>>) -> Vec<f32> {
    let data = parameter.into_value().into_data().convert::<f32>();
    match data.try_into_vec::<f32>() {
        Ok(values) => values,
        Err(error) => panic!("reading a parameter: {error:?}"),
    }
}

/// `y = x W + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    matrix: PackedMatrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    pub(crate) fn new(linear: BurnLinear, precision: Precision) -> Self {
        let [n_inputs, n_outputs] = linear.weight.dims();
        let bias = linear.bias.map(numbers);
        Self { matrix: PackedMatrix::new(&numbers(linear.weight), n_inputs, n_outputs, precision), bias }
    }

    /// Projections of the same inputs as one, each multiplied by a factor; their outputs lie side by side.
    pub(crate) fn side_by_side<const N: usize>(parts: [(BurnLinear, f32); N], precision: Precision) -> Self {
        let n_inputs = parts[0].0.weight.dims()[0];
        let widths = parts.each_ref().map(|(part, _)| part.weight.dims()[1]);
        let n_outputs = widths.iter().sum();
        let (mut weights, mut bias) = (vec![0.0; n_inputs * n_outputs], None);
        let mut first = 0;
        let copy = |to: &mut [f32], from: &[f32], factor: f32| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = factor * from);
        };
        for ((part, factor), width) in parts.into_iter().zip(widths) {
            if let Some(part) = part.bias.map(numbers) {
                let bias = bias.get_or_insert_with(|| vec![0.0; n_outputs]);
                copy(&mut bias[first..first + width], &part, factor);
            }
            let part = numbers(part.weight);
            for (row, part) in weights.chunks_exact_mut(n_outputs).zip(part.chunks_exact(width)) {
                copy(&mut row[first..first + width], part, factor);
            }
            first += width;
        }
        Self { matrix: PackedMatrix::new(&weights, n_inputs, n_outputs, precision), bias }
    }

    /// The projection to the vocabulary that is an embedding table, `[vocab_size, d_model]`.
    pub(crate) fn of_table(table: &[f32], d_model: usize, precision: Precision) -> Self {
        Self { matrix: PackedMatrix::transposed(table, d_model, table.len() / d_model, precision), bias: None }
    }

    pub(crate) fn n_outputs(&self) -> usize {
        self.matrix.n_outputs()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.matrix.bytes() + self.bias.as_deref().map_or(0, size_of_val)
    }

    pub(crate) fn forward(&self, level: Level, x: &[f32], workspace: &mut Workspace, out: &mut [f32]) {
        self.run(level, x, (Activation::Identity, Store::Write), workspace, out);
    }

    /// The first of the largest outputs of each row.
    pub(crate) fn likeliest(&self, level: Level, x: &[f32], workspace: &mut Workspace) -> Vec<Option<u32>> {
        let found = likeliest(level, x, &self.matrix, self.bias.as_deref(), workspace);
        found.map(|output| output.map(|output| output as u32)).collect()
    }

    pub(crate) fn run(
        &self,
        level: Level,
        x: &[f32],
        (activation, store): (Activation, Store),
        workspace: &mut Workspace,
        out: &mut [f32],
    ) {
        let epilogue = Epilogue { bias: self.bias.as_deref(), activation, store };
        matmul(level, x, &self.matrix, epilogue, workspace, out);
    }
}

/// Layer norm or RMS norm.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    gamma: Vec<f32>,
    /// `None` for RMS norm, whose formula has none; a layer norm without shift keeps zeros.
    beta: Option<Vec<f32>>,
    eps: f32,
}

impl Norm {
    pub(crate) fn new(norm: BurnNorm, eps: f64) -> Self {
        let eps = eps as f32;
        match norm {
            BurnNorm::LayerNorm(norm) => {
                let gamma = numbers(norm.gamma);
                let beta = norm.beta.map_or_else(|| vec![0.0; gamma.len()], numbers);
                Self { gamma, beta: Some(beta), eps }
            }
            BurnNorm::RmsNorm(norm) => Self { gamma: numbers(norm.gamma), beta: None, eps },
        }
    }

    /// The same norm, its output multiplied.
    pub(crate) fn times(mut self, factor: f32) -> Self {
        self.gamma.iter_mut().chain(self.beta.iter_mut().flatten()).for_each(|x| *x *= factor);
        self
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.gamma.as_slice()) + self.beta.as_deref().map_or(0, size_of_val)
    }

    pub(crate) fn forward(&self, level: Level, x: &[f32], out: &mut [f32]) {
        let Self { gamma, beta, eps } = self;
        match beta {
            Some(_) => LayerNorm { gamma, beta: beta.as_deref(), eps: *eps }.apply(level, x, out),
            None => RmsNorm { gamma, eps: *eps }.apply(level, x, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use blockformer_nn::linear_init;
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn projections_side_by_side_give_what_each_gives_in_every_precision() {
        let device = Device::flex();
        // Widths that do not end with a panel, inputs that do not end with a group.
        let parts = || [(5, true), (33, false)].map(|(width, bias)| linear_init(45, width, bias, 0.5, &device));
        let x: Vec<f32> = (0..3 * 45).map(|i| (i as f32 * 0.37).sin()).collect();
        for precision in Precision::ALL {
            let [mut first, second] = parts();
            // Weights are drawn when they are first looked at, of every clone anew.
            first.weight.val();
            second.weight.val();
            first.bias = first.bias.map(|bias| bias.map(|bias| bias.add_scalar(0.5)));
            let run = |linear: &Linear, width: usize| {
                let mut out = vec![0.0; 3 * width];
                linear.forward(Level::current(), &x, &mut Workspace::default(), &mut out);
                out
            };
            // A factor that scales without rounding.
            let both = Linear::side_by_side([(first.clone(), 4.0), (second.clone(), 1.0)], precision);
            let (both, first) = (run(&both, 38), run(&Linear::new(first, precision), 5));
            let second = run(&Linear::new(second, precision), 33);
            for row in 0..3 {
                let (got, expected) = (&both[row * 38..][..38], &first[row * 5..][..5]);
                assert_eq!(got[..5], expected.iter().map(|x| 4.0 * x).collect::<Vec<_>>(), "{}", precision.name());
                assert_eq!(got[5..], second[row * 33..][..33], "{}", precision.name());
            }
        }
    }
}
