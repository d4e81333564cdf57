//! Memory of this process, as the system counts it (Linux only).

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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_counts_memory_that_was_touched() {
        let before = resident_bytes().unwrap();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        drop(touched);
        assert!(peak_bytes().unwrap() >= before + (60 << 20));
    }
}
