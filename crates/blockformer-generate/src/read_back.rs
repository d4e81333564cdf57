//! The one place where decoding waits for a device.

use burn::tensor::{Int, Tensor};

/// Reads token ids, row after row. Everything that leads to them has been computed then.
pub(crate) fn read_tokens<const D: usize>(ids: Tensor<D, Int>) -> Vec<i64> {
    ids.into_data().iter::<i64>().collect()
}

/// The same without blocking.
///
/// # Panics
/// If the device fails.
pub(crate) async fn read_tokens_async<const D: usize>(ids: Tensor<D, Int>) -> Vec<i64> {
    match ids.into_data_async().await {
        Ok(data) => data.iter::<i64>().collect(),
        Err(error) => panic!("the device failed: {error}"),
    }
}
