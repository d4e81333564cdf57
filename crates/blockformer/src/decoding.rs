//! Where tokens are drawn, and what is recorded.

use blockformer_generate::{Decoding, DeviceDecoding, EngineConfig};
use burn::tensor::Device;

use crate::devices::is_cuda;
use crate::is_cpu;

/// Where [`generate`](crate::generate::generate) should draw tokens of a model on `device`: on CPUs on the host, which
/// has the logits at hand; elsewhere on the device, with one look at 16 tokens and shapes of which there are
/// few. A program that has the device to itself may ask for [`exclusive_decoding`].
pub fn decoding(device: &Device) -> Decoding {
    decoding_with(device, None)
}

/// The same where **no other thread uses the device** while blocks are generated: by CUDA, the device then records blocks and repeats
/// them ([`DeviceDecoding::recorded_from`]). While a graph is captured, CUDA refuses to every thread what could wait for the device,
/// and what such a thread computes is lost.
pub fn exclusive_decoding(device: &Device) -> Decoding {
    decoding_with(device, is_cuda(device).then_some(DeviceDecoding::RECORDED_FROM))
}

/// The [`EngineConfig::recorded_after`] of an engine on `device` where **no other thread uses the device** while the engine steps, for the
/// reason that [`exclusive_decoding`] has: by CUDA it records; elsewhere nothing is recorded.
pub fn exclusive_recording(device: &Device) -> Option<usize> {
    is_cuda(device).then_some(EngineConfig::RECORDED_AFTER)
}

fn decoding_with(device: &Device, recorded_from: Option<usize>) -> Decoding {
    if is_cpu(device) {
        return Decoding::Host;
    }
    Decoding::Device(DeviceDecoding { tokens_per_read: None, static_shapes: true, recorded_from })
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_draws_on_the_host() {
        assert_eq!([decoding(&Device::flex()), exclusive_decoding(&Device::flex())], [Decoding::Host; 2]);
        assert_eq!(exclusive_recording(&Device::flex()), None);
    }
}
