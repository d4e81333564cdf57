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
