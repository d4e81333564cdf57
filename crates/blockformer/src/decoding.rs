//! Where tokens are drawn.

use blockformer_generate::{Decoding, DeviceDecoding};
use burn::tensor::Device;

use crate::devices::is_cuda;
use crate::is_cpu;

/// Where [`generate`](crate::generate::generate) should draw tokens of a model on `device`: on CPUs on the host, which
/// has the logits at hand; elsewhere on the device, with one look at the tokens a block and shapes of which there are
/// few. By CUDA the device records blocks and repeats them.
pub fn decoding(device: &Device) -> Decoding {
    if is_cpu(device) {
        return Decoding::Host;
    }
    let recorded_from = is_cuda(device).then_some(DeviceDecoding::RECORDED_FROM);
    Decoding::Device(DeviceDecoding { tokens_per_read: None, static_shapes: true, recorded_from })
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_draws_on_the_host() {
        assert_eq!(decoding(&Device::flex()), Decoding::Host);
    }
}
