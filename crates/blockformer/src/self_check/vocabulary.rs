//! A vocabulary of the paper's size, whose logits go beyond what some devices allow for one launch of a kernel, and then
//! beyond what they allow for a buffer.

use blockformer_train::{Batch, GradientAccumulator, Trainable};
use burn::tensor::{Tensor, s};

use super::answers::{Answer, Part};
use super::models::{self, Subject, id_tensor, ids, numbers};
use super::training;

/// 512 rows of 50,304 logits take 98 MiB, less than the 128 MiB that WebGPU promises for a binding; 26 million numbers are
/// more than 65,535 groups of 256 threads.
const ROWS: usize = 2;
const LENGTH: usize = 256;

/// 768 rows take 147 MiB, more than that. Training on a device that refuses them needs smaller batches, or `accumulation`.
pub(super) fn buffer(subject: &Subject) -> Answer {
    let n = 3 * LENGTH * models::large_vocabulary().vocab_size;
    let tensor = Tensor::<1>::ones([n], &subject.device).mul_scalar(0.5);
    let ends = [0, n / 2, n - 1].map(|at| numbers(tensor.clone().slice(s![at..at + 1])));
    vec![Part::equal("147 MiB", vec![0.5; 3], ends.concat())]
}

pub(super) fn large(subject: &Subject) -> Answer {
    let config = models::large_vocabulary();
    let model = subject.vanilla(&config, &subject.device);
    let text: Vec<u32> = (0..ROWS).flat_map(|row| ids(LENGTH, row, config.vocab_size)).collect();
    let logits = model.logits(model.forward(id_tensor(&text, [ROWS, LENGTH], &subject.device), None, None));
    let mut answer = vec![
        Part::new("last logits", numbers(logits.clone().slice(s![ROWS - 1.., LENGTH - 2.., ..]))),
        Part::new("largest logits", numbers(logits.max_dim(2))),
    ];
    let device = subject.device.clone().autodiff();
    let model = subject.vanilla(&config, &device);
    let ids = id_tensor(&text[..LENGTH], [1, LENGTH, 1], &device);
    let n_predicted = LENGTH - 1;
    let batch = Batch { ids, mask: None, counted: None, first_predicted_block: 1, n_predicted };
    let loss = model.loss(&batch, n_predicted as f64);
    answer.push(Part::new("losses", numbers(loss.per_token.clone())));
    let mut accumulator = GradientAccumulator::new();
    accumulator.add(&model, loss.graph.backward());
    answer.push(Part::new("gradients", training::gradients_of(&model, &accumulator.finish(&model))));
    answer
}
