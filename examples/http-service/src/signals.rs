//! When to stop.

use std::future::pending;

/// Waits for Ctrl-C or SIGTERM. Another Ctrl-C, while requests that run are waited for, ends the program at once.
pub(crate) async fn stop() {
    tokio::select! {
        () = interrupt() => {}
        () = termination() => {}
    }
    eprintln!("stopping: requests that run may go on for a while; Ctrl-C ends them");
    tokio::spawn(async {
        interrupt().await;
        std::process::exit(130);
    });
}

async fn interrupt() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        eprintln!("warning: Ctrl-C ends the program at once: {error}");
        pending::<()>().await;
    }
}

#[cfg(unix)]
async fn termination() {
    use tokio::signal::unix::{SignalKind, signal};

    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(error) => {
            eprintln!("warning: SIGTERM ends the program at once: {error}");
            pending::<()>().await;
        }
    }
}

#[cfg(not(unix))]
async fn termination() {
    pending::<()>().await;
}
