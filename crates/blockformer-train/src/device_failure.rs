//! Work on devices that ends in a panic. Burn reports what goes wrong on a device so, where a tensor is read; whoever
//! trains wants an error that names the device, and a checkpoint to go on from.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use blockformer_model::panic_message;
use burn::tensor::Device;

use crate::TrainError;

/// How long a device may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs work on `devices[index]`.
///
/// # Errors
/// If it panics: [`TrainError::Device`] naming the devices that no longer answer (one that waits for a tensor of another
/// fails with it), [`TrainError::Work`] if all of them do.
pub(crate) fn guard<R>(devices: &[Device], index: usize, work: impl FnOnce() -> R) -> Result<R, TrainError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let reason = panic_message(panic.as_ref());
        let silent = silent(devices, PATIENCE, |device| matches!(device.sync(), Ok(())));
        if silent.is_empty() {
            return TrainError::Work { device: index, reason };
        }
        TrainError::Device { devices: silent, reason }
    })
}

/// The devices of which `answers` panics, is false, or is not known in time. They are asked all at once, each in a thread
/// that is left behind if it hangs.
fn silent(devices: &[Device], patience: Duration, answers: fn(&Device) -> bool) -> Vec<usize> {
    let deadline = Instant::now() + patience;
    let ask = |device: &Device| {
        let (sender, receiver) = mpsc::channel();
        let device = device.clone();
        // Whoever waits may have given up.
        thread::spawn(move || sender.send(answers(&device)));
        receiver
    };
    let answers: Vec<_> = devices.iter().map(ask).collect();
    let answered = |receiver: &mpsc::Receiver<bool>| {
        receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or(false)
    };
    (0..devices.len()).filter(|&index| !answered(&answers[index])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_a_device_that_still_answers_is_not_called_a_lost_device() {
        let devices = [Device::flex(), Device::flex()];
        assert_eq!(guard(&devices, 1, || 7).unwrap(), 7);
        let error =
            guard::<()>(&devices, 1, || panic!("the {} is full\nCaused by:\n  a large batch", "card")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the work on device 1 (counted from 0) failed, though the device answers: \
             the card is full Caused by: a large batch"
        );
    }

    #[test]
    fn devices_that_refuse_panic_or_hang_are_silent() {
        let devices = [Device::flex(), Device::flex()];
        let ask = |answers| silent(&devices, Duration::from_millis(200), answers);
        assert_eq!(ask(|_| true), [] as [usize; 0]);
        assert_eq!(ask(|_| false), [0, 1]);
        assert_eq!(ask(|_| panic!("no connection")), [0, 1]);
        assert_eq!(
            ask(|_| loop {
                thread::park()
            }),
            [0, 1]
        );
    }
}
