//! An HTTP service in the shape of the OpenAI completions API, in front of the engine of `blockformer-generate`.
//!
//! It is an example: it shows how requests of many clients meet in one engine, how tokens become server-sent events, how
//! a client that goes away ends its request, and how a service stops. `README.md` beside the manifest lists what it
//! understands.
//!
//! A [`Service`] is made of an engine, whatever its model, and a tokenizer; [`serve`] lets it answer on a socket.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use blockformer::generate::{Engine, EngineConfig};
//! use blockformer_http_service::{Service, ServiceConfig, serve};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let device = blockformer::device("cpu")?;
//! let (config, model, tokenizer) = blockformer::bundled::load(&device)?;
//! let engine = Engine::new(model, EngineConfig::default(), &device)?;
//! let settings = ServiceConfig { eos_token_id: config.eos_token_id(), ..ServiceConfig::new("my-model") };
//! let service = Arc::new(Service::new(engine, tokenizer, settings));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! serve(listener, service, std::future::pending()).await?;
//! # Ok(())
//! # }
//! ```

mod choice;
mod completions;
mod error;
mod logprobs;
mod models;
mod observe;
mod prompt;
mod request;
mod response;
mod running;
mod server;
mod service;
mod spelling;
mod streaming;

pub use server::{ServeError, router, serve};
pub use service::{Service, ServiceConfig};
