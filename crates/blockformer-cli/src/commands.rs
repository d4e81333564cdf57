//! One file a subcommand.

pub(crate) mod bench;
pub(crate) mod convert;
pub(crate) mod evaluate;
pub(crate) mod generate;
pub(crate) mod gpu_report;
pub(crate) mod inspect;
pub(crate) mod self_check;
pub(crate) mod tokenize;
pub(crate) mod train;
pub(crate) mod uptrain;
pub(crate) mod verify;
#[cfg(feature = "remote")]
pub(crate) mod worker;

use blockformer::generate::{Decoding, DeviceDecoding};
use burn::tensor::Device;

/// Where tokens are drawn, and whether a device records blocks.
pub(crate) fn decoding(device: &Device, recorded: Option<bool>) -> Decoding {
    // No other thread of the command uses the device.
    match (blockformer::exclusive_decoding(device), recorded) {
        (Decoding::Device(decoding), Some(recorded)) => {
            let recorded_from = recorded.then_some(DeviceDecoding::RECORDED_FROM);
            Decoding::Device(DeviceDecoding { recorded_from, ..decoding })
        }
        (decoding, _) => decoding,
    }
}
