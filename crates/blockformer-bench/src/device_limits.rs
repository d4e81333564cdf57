//! What a device allows, measured through the operations that models are made of.

use std::time::Instant;

use burn::tensor::{Device, Distribution, FloatDType, Tensor};

use crate::BenchError;
use crate::error::guarded;

/// Bytes a second, read and written, at which `bytes` of float32 are copied to another place (with a sign changed: a mere
/// copy shares the memory).
///
/// # Errors
/// [`BenchError::Device`] if the device failed.
pub fn copy_rate(bytes: usize, tries: usize, device: &Device) -> Result<f64, BenchError> {
    guarded(|| {
        let from = Tensor::<1>::ones([bytes / 4], device);
        let seconds = best(tries, device, || from.clone().neg());
        2.0 * (bytes / 4 * 4) as f64 / seconds
    })
}

/// Floating-point operations a second of a product of two square matrices of `n` rows in a type.
///
/// # Errors
/// [`BenchError::Device`] if the device failed.
pub fn product_rate(n: usize, dtype: FloatDType, tries: usize, device: &Device) -> Result<f64, BenchError> {
    guarded(|| {
        let matrix = || Tensor::<2>::random([n, n], Distribution::Uniform(-1.0, 1.0), device).cast(dtype);
        let (a, b) = (matrix(), matrix());
        let seconds = best(tries, device, || a.clone().matmul(b.clone()));
        2.0 * (n as f64).powi(3) / seconds
    })
}

/// Seconds that a try lasts about: what it takes to launch and to wait counts little beside it.
const TRY: f64 = 0.05;

/// Seconds that the work takes in the fastest try, which does it so often that waiting for the device does not count. The first time, in
/// which kernels are compiled and tuned, does not count.
fn best<const D: usize>(tries: usize, device: &Device, work: impl Fn() -> Tensor<D>) -> f64 {
    let run = |times: usize| {
        let start = Instant::now();
        // Each result gives its memory to the next but one. What is dropped before it is computed is not computed.
        let mut result = work();
        for _ in 1..times {
            if let Err(error) = device.flush() {
                panic!("{error}");
            }
            result = work();
        }
        if let Err(error) = device.sync() {
            panic!("{error}");
        }
        drop(result);
        start.elapsed().as_secs_f64() / times as f64
    };
    run(1);
    let times = (TRY / run(1)).ceil().clamp(1.0, 1000.0) as usize;
    (0..tries.max(1)).map(|_| run(times)).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_measured_on_a_cpu_too() {
        let device = Device::flex();
        // Between a hundredth of what any machine does and more than any does.
        let bytes = copy_rate(4 << 20, 2, &device).unwrap();
        assert!((1e7..1e13).contains(&bytes), "{bytes}");
        let flops = product_rate(128, FloatDType::F32, 2, &device).unwrap();
        assert!((1e7..1e14).contains(&flops), "{flops}");
    }

    #[test]
    fn a_panic_of_the_device_is_an_error() {
        let error = guarded::<()>(|| panic!("out of memory:\n {} GiB", 80)).unwrap_err();
        assert_eq!(error.to_string(), "the device failed: out of memory: 80 GiB");
    }
}
