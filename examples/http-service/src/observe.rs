//! `GET /health` and `GET /metrics`, for those who run the service.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use blockformer::generate::{EngineStats, RecordingState};

use crate::error::ApiError;
use crate::service::{Phase, Service};

/// Whether requests are taken.
pub(crate) async fn health(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    if service.phase() > Phase::Running {
        return Err(ApiError::stopping());
    }
    if !service.engine.is_running() {
        return Err(ApiError::engine_gone());
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#).into_response())
}

/// What the engine is doing and has done, in Prometheus' text format.
pub(crate) async fn metrics(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    // The engine answers between two rounds, so this waits.
    let stats = tokio::task::spawn_blocking(move || service.engine.stats()).await;
    let stats = stats.map_err(|error| ApiError::internal(error.to_string()))?;
    let text = prometheus(&stats.map_err(|error| ApiError::refused(error, 0))?);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

fn prometheus(stats: &EngineStats) -> String {
    let EngineStats { waiting, prefilling, running, pool, block_cache, .. } = *stats;
    let recording = stats.recording == RecordingState::Works;
    let gauges = [
        ("requests_waiting", "Requests that wait for room.", waiting),
        ("requests_prefilling", "Requests whose prompts are being taken in.", prefilling),
        ("sequences_running", "Sequences that are being decoded.", running),
        ("kv_total_bytes", "Bytes of the pool of keys and values.", pool.total),
        ("kv_used_bytes", "Bytes of the pool that sequences hold.", pool.used),
        ("kv_reusable_bytes", "Bytes of the pool kept because their content may come again.", pool.reusable),
        ("kv_free_bytes", "Bytes of the pool with nothing in them.", pool.free),
        ("kv_peak_bytes", "The most of the pool that was ever used at once.", pool.peak),
        ("block_cache_bytes", "Bytes of the token decoder's cache.", block_cache),
        ("recording", "Whether the device records rounds and repeats them.", usize::from(recording)),
    ];
    let counters = [
        ("generated_tokens_total", "Tokens drawn.", stats.generated_tokens),
        ("drafted_tokens_total", "Tokens that were drafted.", stats.drafted_tokens),
        ("accepted_tokens_total", "Drafted tokens that the model drew.", stats.accepted_tokens),
        ("verifications_total", "Token-decoder passes that verified drafts.", stats.verifications),
        ("repeated_passes_total", "Passes that the device repeated as it had recorded them.", stats.repeated_passes),
        ("evicted_pages_total", "Reusable pages that were given away.", pool.evicted_pages),
    ];
    let line = |kind: &str, name: &str, help: &str, value: u64| {
        format!("# HELP blockformer_{name} {help}\n# TYPE blockformer_{name} {kind}\nblockformer_{name} {value}\n")
    };
    let gauges = gauges.map(|(name, help, value)| line("gauge", name, help, value as u64));
    let counters = counters.map(|(name, help, value)| line("counter", name, help, value));
    gauges.into_iter().chain(counters).collect()
}
