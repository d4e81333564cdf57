//! Devices that fail in the middle of a run. Burn reports them by a panic where a tensor is read; whoever trains wants an
//! error that names the device, and a checkpoint to go on from.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::Device;

use crate::TrainError;

/// Runs work on `devices[index]`.
///
/// # Errors
/// [`TrainError::Device`] if it panics. A device that waits for a tensor of another fails with it: those that no longer
/// answer are named, or this one if all do.
pub(crate) fn guard<R>(devices: &[Device], index: usize, work: impl FnOnce() -> R) -> Result<R, TrainError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let silent: Vec<usize> = (0..devices.len()).filter(|&index| !answers(&devices[index])).collect();
        let devices = if silent.is_empty() { vec![index] } else { silent };
        TrainError::Device { devices, reason: panic_message(panic.as_ref()) }
    })
}

fn answers(device: &Device) -> bool {
    matches!(catch_unwind(AssertUnwindSafe(|| device.sync())), Ok(Ok(())))
}

/// What a panic says, in one line: backends report causes in lines of their own.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no reason was given").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_names_the_device() {
        let devices = [Device::flex(), Device::flex()];
        assert_eq!(guard(&devices, 1, || 7).unwrap(), 7);
        let error = guard::<()>(&devices, 1, || panic!("the {} is gone\nCaused by:\n  heat", "card")).unwrap_err();
        assert_eq!(error.to_string(), "devices [1] failed (counted from 0): the card is gone Caused by: heat");
    }
}
