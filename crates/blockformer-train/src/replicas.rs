//! Data-parallel gradients: copies of the model on several devices, each with a share of the batch.
//!
//! Copies are made and gradients gathered through Burn's transfers between devices, which every backend has. Burn's
//! collective operations would spare the first device some of this traffic; of its backends, CUDA alone implements
//! them (version 0.22).

use std::thread;

use burn::optim::GradientsParams;
use burn::tensor::Device;

use crate::{Batch, GradientAccumulator, Objective, Trainable};

/// The backward passes over `shares`, one for each device, of which the first holds `model`. Returns the sum of the
/// cross-entropies of tokens, in nats, and the summed gradients, on the first device.
///
/// The shares are summed in the order of devices, whichever is ready first: the same devices give the same bits.
pub(crate) fn backward<M: Trainable>(
    model: &M,
    devices: &[Device],
    shares: &[Vec<Batch>],
    objective: &Objective,
) -> (f64, GradientAccumulator) {
    let copies: Vec<M> = devices[1..].iter().map(|device| model.clone().fork(device)).collect();
    thread::scope(|scope| {
        let others: Vec<_> = copies
            .into_iter()
            .zip(&shares[1..])
            .map(|(copy, share)| scope.spawn(move || worker(&copy, share, objective)))
            .collect();
        let (mut sum, mut gradients) = share(model, &shares[0], objective);
        let home = devices[0].clone().inner();
        for other in others {
            let (part, found) = match other.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            sum += part;
            gradients.merge(model, found.to_device(&home, model));
        }
        (sum, gradients)
    })
}

fn worker<M: Trainable>(model: &M, batches: &[Batch], objective: &Objective) -> (f64, GradientsParams) {
    let (sum, gradients) = share(model, batches, objective);
    (sum, gradients.into_sum())
}

/// One device's passes.
fn share<M: Trainable>(model: &M, batches: &[Batch], objective: &Objective) -> (f64, GradientAccumulator) {
    let mut gradients = GradientAccumulator::new();
    let sum = batches.iter().map(|batch| model.backward(batch, objective, &mut gradients)).sum();
    (sum, gradients)
}
