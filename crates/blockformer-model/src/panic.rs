//! What backends say when they fail.

use std::any::Any;

/// What a caught panic says, in one line: Burn reports failures of devices by panics, and backends report causes in lines
/// of their own.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no reason was given").split_whitespace().collect::<Vec<_>>().join(" ")
}
