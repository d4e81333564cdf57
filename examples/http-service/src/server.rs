//! From a socket to answers, and the end of it.

use std::future::{Future, IntoFuture};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::completions::completions;
use crate::error::ApiError;
use crate::service::{Phase, Service};
use crate::{models, observe};

/// How long clients have to take what was said to them at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a service ended that was not asked to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The socket failed.
    #[error("the service's socket failed: {source}")]
    Socket {
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The engine's thread panicked.
    #[error("the engine has stopped: its thread panicked")]
    Engine,
}

/// All that the service answers to.
pub fn router(service: Arc<Service>) -> Router {
    let max_body = service.config.max_body;
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/health", get(observe::health))
        .route("/metrics", get(observe::metrics))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| ApiError::wrong_method(&method, &uri))
        .fallback(async |method: Method, uri: Uri| ApiError::unknown_url(&method, &uri))
        .layer(DefaultBodyLimit::max(max_body))
        .with_state(service)
}

/// Answers requests until `stop` comes. Then no connection is accepted any more, and requests that run may go on for the
/// service's grace; those that have not ended by then are told so.
///
/// # Errors
/// A [`ServeError`] if it ends without `stop`.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let stopping = Arc::clone(&service);
    let listener = listener.tap_io(|connection| {
        // Tokens should not wait for others to fill a packet; without it they only come later.
        let _slower = connection.set_nodelay(true);
    });
    let server = axum::serve(listener, router(Arc::clone(&service)));
    let server = server.with_graceful_shutdown(async move { stopping.reached(Phase::Stopping).await });
    let mut server = pin!(server.into_future());
    let result = tokio::select! {
        result = &mut server => return result.map_err(|source| ServeError::Socket { source }),
        () = stop => Ok(()),
        () = engine_end(&service) => Err(ServeError::Engine),
    };
    service.enter(Phase::Stopping);
    if timeout(service.config.grace, &mut server).await.is_err() {
        service.enter(Phase::Over);
        let _closed = timeout(LAST_WORDS, &mut server).await;
    }
    result
}

/// Waits until the engine is gone.
async fn engine_end(service: &Service) {
    let mut look = interval(Duration::from_secs(1));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while service.engine.is_running() {
        look.tick().await;
    }
}
