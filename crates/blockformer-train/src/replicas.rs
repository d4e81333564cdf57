//! Data-parallel gradients: copies of the model on several devices, each with a share of the batch.
//!
//! Copies are made and gradients gathered through Burn's transfers between devices, which every backend has. Burn's
//! collective operations would spare the first device some of this traffic; of its backends, CUDA alone implements
//! them (version 0.22).

use std::thread;

use burn::optim::GradientsParams;
use burn::tensor::Device;

use crate::device_failure::guard;
use crate::{Batch, GradientAccumulator, Objective, TrainError, Trainable};

/// The backward passes over `shares`, one for each device, of which the first holds `model`. Returns the sum of the
/// cross-entropies of tokens, in nats, and the summed gradients, on the first device.
///
/// The shares are summed in the order of devices, whichever is ready first: the same devices give the same bits.
///
/// # Errors
/// [`TrainError::Device`] or [`TrainError::Work`] naming a device that failed.
pub(crate) fn backward<M: Trainable>(
    model: &M,
    devices: &[Device],
    shares: &[Vec<Batch>],
    objective: &Objective,
) -> Result<(f64, GradientAccumulator), TrainError> {
    thread::scope(|scope| {
        let mut others = Vec::new();
        for (index, device) in devices.iter().enumerate().skip(1) {
            let copy = guard(devices, index, || model.clone().fork(device))?;
            let share = &shares[index];
            others.push(scope.spawn(move || guard(devices, index, || worker(&copy, share, objective))));
        }
        let (mut sum, mut gradients) = guard(devices, 0, || share(model, &shares[0], objective))?;
        let home = devices[0].clone().inner();
        for (other, index) in others.into_iter().zip(1..) {
            let (part, found) = match other.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            sum += part;
            guard(devices, index, || gradients.merge(model, found.to_device(&home, model)))?;
        }
        Ok((sum, gradients))
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
