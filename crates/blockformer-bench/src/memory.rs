//! Memory of this process, as the system counts it (Linux only), and of a device, as its allocator does.

use burn::tensor::Device;
use serde::Serialize;

/// Bytes of a device's memory that its allocator holds for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DeviceBytes {
    /// Of tensors that are alive.
    pub in_use: usize,
    /// Taken from the device, what is kept for later tensors included.
    pub reserved: usize,
}

/// What a device's allocator holds, or `None` where it does not tell, as on a CPU. Waits for the device.
pub fn device_bytes(device: &Device) -> Option<DeviceBytes> {
    // An error of the device shows where its numbers are read.
    let _ = device.sync();
    let usage = device.memory_pool_usage()?;
    Some(DeviceBytes { in_use: usage.bytes_in_use as usize, reserved: usage.bytes_reserved as usize })
}

/// Bytes in memory now, or `None` where the system does not tell.
pub fn resident_bytes() -> Option<usize> {
    status("VmRSS:")
}

/// Most bytes that were in memory since the process began or [`reset_peak`], or `None` where the system does not tell.
pub fn peak_bytes() -> Option<usize> {
    status("VmHWM:")
}

/// Begins a new peak; false where the system cannot.
pub fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Waits a second and a half, freeing memory at times: allocators give pages back to the system a while after they
/// were freed, and not before something else is. What loading took does not count then in the peak of generation.
pub fn settle() {
    for _ in 0..5 {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(std::hint::black_box(vec![1u8; 4 << 20]));
    }
}

fn status(field: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kilobytes: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}
