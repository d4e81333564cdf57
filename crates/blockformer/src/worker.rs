//! This machine's devices for other processes and machines, by Burn's remote backend over WebSocket.
//!
//! A worker executes what a client asks of it, operation by operation; graphs of gradients, the optimizer and the data
//! stay with the client. [`device`](crate::device()) opens a worker as `remote:ws://HOST:PORT`.
//!
//! The connection is not encrypted. A token keeps strangers away from a worker on a network that is trusted not to be
//! read; other networks need a tunnel.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = std::net::TcpListener::bind("127.0.0.1:4000")?;
//! blockformer::worker::serve(blockformer::device("cpu")?, listener, None)?; // until Ctrl-C
//! # Ok(())
//! # }
//! ```

use std::net::TcpListener;

use burn::server::{RemoteServer, TokenAuthorizer, WebSocketTransport};
use burn::tensor::Device;
use thiserror::Error;

/// The environment variable with the token that [`device`](crate::device()) shows to workers.
pub const TOKEN_VARIABLE: &str = "BLOCKFORMER_WORKER_TOKEN";

/// Why a device could not be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A token of no characters, which would keep nobody away.
    #[error("the token is empty")]
    EmptyToken,
    /// The device cannot be served, or the connection failed.
    #[error("cannot serve the device: {reason}")]
    Serve {
        /// What Burn said.
        reason: String,
    },
}

/// Serves a device until Ctrl-C or SIGTERM, to all who connect, or to those who show the token.
///
/// # Errors
/// A [`WorkerError`] if the token is empty or the device is itself a remote one.
pub fn serve(device: Device, listener: TcpListener, token: Option<&str>) -> Result<(), WorkerError> {
    let server = RemoteServer::new([device]);
    let server = match token {
        Some(token) => server.with_authorizer(TokenAuthorizer::new(token).map_err(|_| WorkerError::EmptyToken)?),
        None => server,
    };
    let served = server.serve(WebSocketTransport::from_listener(listener));
    served.map_err(|error| WorkerError::Serve { reason: error.to_string() })
}
