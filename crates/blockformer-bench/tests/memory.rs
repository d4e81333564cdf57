//! Memory of the process. In a process of its own: other tests free memory, and begin new peaks.
#![cfg(target_os = "linux")]

use blockformer_bench::{peak_bytes, reset_peak, resident_bytes};

#[test]
fn the_peak_counts_memory_that_was_touched() {
    let touch = |mebibytes: usize| drop(std::hint::black_box(vec![1u8; mebibytes << 20]));
    let before = resident_bytes().unwrap();
    touch(64);
    assert!(peak_bytes().unwrap() >= before + (60 << 20));
    if reset_peak() {
        assert!(peak_bytes().unwrap() < before + (32 << 20), "a new peak");
    }
}
