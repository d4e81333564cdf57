//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use blockformer::generate::{Alignment, EngineConfig};
use blockformer::kv_cache::KvStorage;
use blockformer::model::ModelConfig;
use blockformer::prelude::Device;
use blockformer_http_service::ServiceConfig;
use clap::Parser;

/// Serve a model over HTTP, in the shape of the OpenAI completions API.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Arguments {
    /// A model directory; the bundled model if not given
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// The name under which clients ask for the model; by default the directory's, or "bundled"
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// The address to listen on; there are no keys, so whoever reaches it can use it
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// The port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// Where to compute: cpu, cuda:0, wgpu, …
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// MiB for keys and values of all requests together
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    kv_budget: usize,
    /// Bits of a number in keys and values: fewer hold more text in the same memory
    #[arg(long, default_value = "32", value_parser = kv_storage, value_name = "32|16|8")]
    kv_bits: KvStorage,
    /// Sequences that are decoded at the same time
    #[arg(long, default_value_t = 32, value_name = "N")]
    max_batch: usize,
    /// Requests that may wait; more are told to come again later
    #[arg(long, default_value_t = 1024, value_name = "N")]
    max_waiting: usize,
    /// Seconds that running requests have when the service is stopped
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    grace: u64,
}

impl Arguments {
    /// Of an engine that has `device` to itself.
    pub(crate) fn engine(&self, config: &ModelConfig, device: &Device) -> EngineConfig {
        EngineConfig {
            kv_budget: self.kv_budget.saturating_mul(1 << 20),
            kv_storage: self.kv_bits,
            max_batch: self.max_batch,
            max_waiting: self.max_waiting,
            alignment: Alignment::of(config),
            recorded_after: blockformer::exclusive_recording(device),
            ..EngineConfig::default()
        }
    }

    pub(crate) fn service(&self, config: &ModelConfig) -> ServiceConfig {
        let directory = self.model.as_ref().and_then(|path| path.file_name());
        let of_directory = directory.map(|name| name.to_string_lossy().into_owned());
        let name = self.model_name.clone().or(of_directory).unwrap_or_else(|| "bundled".into());
        ServiceConfig {
            eos_token_id: config.eos_token_id(),
            grace: Duration::from_secs(self.grace),
            ..ServiceConfig::new(name)
        }
    }
}

fn kv_storage(bits: &str) -> Result<KvStorage, String> {
    match bits {
        "32" => Ok(KvStorage::Float32),
        "16" => Ok(KvStorage::Float16),
        "8" => Ok(KvStorage::Int8),
        _ => Err("32, 16 or 8 are known".into()),
    }
}
