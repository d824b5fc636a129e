//! Edge: `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

/// What the pages show.
pub trait Pages: Send + Sync + 'static {
    /// The exposition in Prometheus' text format, or why there is none.
    ///
    /// # Errors
    /// The text of an internal error.
    fn metrics(&self) -> Result<String, String>;

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

/// Serves until the task is dropped.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: TcpListener, pages: Arc<impl Pages>) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|State(pages): State<Arc<dyn Pages>>| async move { verdict(pages.healthy()) }))
        .route("/readyz", get(|State(pages): State<Arc<dyn Pages>>| async move { verdict(pages.ready()) }))
        .with_state(pages as Arc<dyn Pages>);
    axum::serve(listener, router).await
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
