//! Cross-entropy over the vocabulary, in float32 and in chunks.
//!
//! Cross-entropy has a gradient in closed form, so it is computed outside the autodiff graph: for logits `z`, target
//! `y` and weight `w`
//!
//! ```text
//! loss = w · (log Σ exp(z) − z_y),   d loss / d z = w · (softmax(z) − onehot(y))
//! ```
//!
//! and handed to the graph as `Σ z · stop_gradient(d loss / d z)`, whose gradient is the same. The graph then holds one
//! tensor of the logits' size instead of the several that softmax, logarithm and gather would leave.

use blockformer_nn::constant;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, FloatDType, IndexingUpdateOp, Int, Tensor, s};

/// Rows of logits computed at once; bounds the memory that a large vocabulary takes.
pub(crate) const CHUNK_ELEMENTS: usize = 1 << 25;

/// Cross-entropy of predictions.
#[derive(Debug, Clone)]
pub struct TokenLoss {
    /// Call `backward` on this: its gradient is that of the loss, its value means nothing. Zero for models that are
    /// not on an autodiff device.
    pub graph: Tensor<1>,
    /// The loss of every prediction in nats, zero where it does not count, `[n]`; not part of the graph.
    pub per_token: Tensor<1>,
}

impl TokenLoss {
    /// The sum of the losses that count, in nats.
    pub fn sum(&self) -> f64 {
        f64::from(self.per_token.clone().sum().into_scalar::<f32>())
    }
}

/// Cross-entropy of `targets` under the logits that `project` gives for hidden states, divided by `normalizer`
/// (for the mean: the number of predictions that count; under accumulation: that of the whole batch).
///
/// # Shapes
/// - `hidden`: `[rows, n, d_model]`
/// - `targets`, `mask`: `[rows · n]`; false in `mask` means that a prediction does not count
/// - `project`: `[rows, n, d_model]` to `[rows, n, vocab_size]`
pub fn token_loss(
    project: impl Fn(Tensor<3>) -> Tensor<3>,
    hidden: Tensor<3>,
    targets: Tensor<1, Int>,
    mask: Option<Tensor<1, Bool>>,
    normalizer: f64,
    vocab_size: usize,
) -> TokenLoss {
    let [rows, n, _] = hidden.dims();
    let chunk_rows = (CHUNK_ELEMENTS / (n * vocab_size)).clamp(1, rows);
    let mut graph: Option<Tensor<1>> = None;
    let mut losses = Vec::new();
    for start in (0..rows).step_by(chunk_rows) {
        let end = (start + chunk_rows).min(rows);
        let logits = project(hidden.clone().slice(s![start..end, .., ..])).reshape([(end - start) * n, vocab_size]);
        let part = s![start * n..end * n];
        let weights = mask.clone().map(|mask| mask.slice(part).float().inner());
        let (term, loss) = chunk(logits, targets.clone().slice(part).inner(), weights, normalizer);
        graph = Some(match graph {
            Some(sum) => sum + term,
            None => term,
        });
        losses.push(loss);
    }
    let graph = graph.unwrap_or_else(|| Tensor::zeros([1], &hidden.device()));
    TokenLoss { graph, per_token: Tensor::cat(losses, 0) }
}

/// The graph's term and the losses of `[n, vocab_size]` logits.
fn chunk(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    weights: Option<Tensor<1>>,
    normalizer: f64,
) -> (Tensor<1>, Tensor<1>) {
    let graph = logits.is_autodiff().then(|| logits.clone());
    let values = if graph.is_some() { logits.inner() } else { logits };
    let values = Chunk { logits: values.cast(FloatDType::F32), targets, weights, normalizer, trains: graph.is_some() };
    let (loss, gradient) = values.loss_and_gradient();
    let (Some(graph), Some(gradient)) = (graph, gradient) else {
        return (Tensor::zeros([1], &loss.device()), loss);
    };
    let gradient = constant(gradient.cast(graph.dtype()), graph.gradient_checkpointing_strategy());
    ((graph * gradient).sum(), loss)
}

/// Rows of logits in float32, without a graph.
struct Chunk {
    /// `[n, vocab_size]`.
    logits: Tensor<2>,
    /// `[n]`.
    targets: Tensor<1, Int>,
    /// `[n]`, one for what counts and zero for what does not.
    weights: Option<Tensor<1>>,
    normalizer: f64,
    /// Whether there is a graph that wants the gradient.
    trains: bool,
}

impl Chunk {
    /// The losses, zero where they do not count, `[n]`; and their gradient if it is wanted, `[n, vocab_size]`.
    fn loss_and_gradient(self) -> (Tensor<1>, Option<Tensor<2>>) {
        #[cfg(feature = "flex")]
        if blockformer_nn::kernels_serve(&self.logits.device()) {
            return self.by_kernel();
        }
        self.by_operations()
    }

    fn by_operations(self) -> (Tensor<1>, Option<Tensor<2>>) {
        let [n, _] = self.logits.dims();
        let targets = self.targets.reshape([n, 1]);
        let log_p = log_softmax(self.logits, 1);
        let loss = log_p.clone().gather(1, targets.clone()).neg(); // [n, 1]
        let weights = self.weights.map(|weights| weights.reshape([n, 1]));
        let loss = match weights.clone() {
            Some(weights) => loss * weights,
            None => loss,
        };
        let gradient = self.trains.then(|| {
            let minus_one = Tensor::<2>::full([n, 1], -1.0, &log_p.device());
            let gradient = log_p.exp().scatter(1, targets, minus_one, IndexingUpdateOp::Add); // [n, vocab_size]
            match weights {
                Some(weights) => gradient * weights.mul_scalar(1.0 / self.normalizer),
                None => gradient.mul_scalar(1.0 / self.normalizer),
            }
        });
        (loss.reshape([n]), gradient)
    }

    /// The same in this process's memory, in one pass.
    #[cfg(feature = "flex")]
    fn by_kernel(self) -> (Tensor<1>, Option<Tensor<2>>) {
        use blockformer_kernels::{Level, cross_entropy};
        use blockformer_nn::{in_place, own};
        use burn::tensor::DType;

        let ([n, vocab_size], device) = (self.logits.dims(), self.logits.device());
        let targets: Vec<usize> = self.targets.into_data().iter::<i64>().map(|target| target as usize).collect();
        let scale = if self.trains { 1.0 / self.normalizer } else { 1.0 };
        let scales: Vec<f32> = match self.weights {
            Some(weights) => {
                weights.into_data().iter::<f32>().map(|weight| (f64::from(weight) * scale) as f32).collect()
            }
            None => vec![scale as f32; n],
        };
        let logits = if self.trains { own(self.logits) } else { self.logits }; // the graph holds them
        let mut losses = vec![0.0; n];
        let gradient = in_place(logits, |logits| {
            cross_entropy(Level::current(), logits, vocab_size, &targets, &scales, &mut losses);
        });
        (Tensor::from_data(losses.as_slice(), (&device, DType::F32)), self.trains.then_some(gradient))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::loss::CrossEntropyLossConfig;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn loss_and_gradient_are_those_of_burn_on_the_tokens_that_count() {
        let device = Device::flex().autodiff();
        let hidden = Tensor::<3>::random([3, 2, 11], Distribution::Normal(0.0, 2.0), &device).require_grad();
        let targets = Tensor::<1, Int>::from_ints([1, 0, 10, 4, 4, 7], &device);
        let mask = Tensor::<1, Bool>::from_bool([true, true, false, true, false, true], &device);
        let ours = token_loss(|h| h, hidden.clone(), targets.clone(), Some(mask), 4.0, 11);
        let kept = Tensor::<1, Int>::from_ints([0, 1, 3, 5], &device);
        let logits = hidden.clone().reshape([6, 11]).select(0, kept.clone());
        let theirs = CrossEntropyLossConfig::new().init(&device).forward(logits, targets.select(0, kept));
        let error = ours.sum() / 4.0 - f64::from(theirs.clone().into_scalar::<f32>());
        assert!(error.abs() < 1e-6, "{error}");
        let ours = hidden.grad(&ours.graph.backward()).expect("a gradient");
        let theirs = hidden.grad(&theirs.backward()).expect("a gradient");
        assert!((ours - theirs).abs().max().into_scalar::<f32>() < 1e-6);
    }

    #[test]
    fn very_unlikely_targets_have_a_finite_exact_loss() {
        let device = Device::flex();
        let logits = Tensor::<3>::from_floats([[[300.0, 0.0, 0.0]]], &device);
        let loss = token_loss(|h| h, logits, Tensor::from_ints([1], &device), None, 1.0, 3);
        assert_eq!(loss.sum(), 300.0);
    }
}
