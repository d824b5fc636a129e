//! Edge: the pages over HTTP, on a TCP port and on a socket for root on this host.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::{TcpListener, UnixListener};

/// What the pages show.
pub trait Pages: Send + Sync + 'static {
    /// The exposition in Prometheus' text format, or why there is none.
    ///
    /// # Errors
    /// The text of an internal error.
    fn metrics(&self) -> Result<String, String>;

    /// The last drifts and what became of them, oldest first, as a JSON array.
    ///
    /// # Errors
    /// The text of an internal error.
    fn journal(&self) -> Result<String, String>;

    /// Whether the loops turn, and if not which does not.
    ///
    /// # Errors
    /// What does not turn.
    fn healthy(&self) -> Result<(), String>;

    /// Whether a complete snapshot was applied.
    ///
    /// # Errors
    /// What is still missing.
    fn ready(&self) -> Result<(), String>;
}

/// Serves on a TCP port until the task is dropped.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: TcpListener, pages: Arc<impl Pages>) -> io::Result<()> {
    axum::serve(listener, router(pages)).await
}

/// Serves on a socket until the task is dropped.
///
/// # Errors
/// The listener failed.
pub async fn serve_locally(listener: UnixListener, pages: Arc<impl Pages>) -> io::Result<()> {
    axum::serve(listener, router(pages)).await
}

/// Listens on a socket that only its owner may use. What an earlier process left at the path gives way.
///
/// # Errors
/// The path cannot be used.
pub fn bind_locally(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn router(pages: Arc<impl Pages>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/journal", get(journal))
        .route("/healthz", get(|State(pages): State<Arc<dyn Pages>>| async move { verdict(pages.healthy()) }))
        .route("/readyz", get(|State(pages): State<Arc<dyn Pages>>| async move { verdict(pages.ready()) }))
        .with_state(pages as Arc<dyn Pages>)
}

async fn journal(State(pages): State<Arc<dyn Pages>>) -> Response {
    match pages.journal() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

async fn metrics(State(pages): State<Arc<dyn Pages>>) -> Response {
    match pages.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

fn verdict(verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}
