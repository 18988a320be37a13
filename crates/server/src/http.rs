//! The door for programs: webhook, resources, events, health. No SQL here and no rules.

mod body;
mod events;
mod gate;
mod health;
mod openapi;
mod operations;
mod resources;
mod respond;
mod serve;
mod webhook;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

pub use gate::{AUTH_FAILURES_PER_MINUTE, Peer};
pub use openapi::openapi;
pub use serve::{CONNECTIONS_MAX, DRAIN_TIMEOUT, HEADER_TIMEOUT, ServeSettings, serve};

use crate::api::{ApiError, Code, RenderedPages};
pub use crate::api::{BODY_BYTES_MAX, BODY_TIMEOUT};
use crate::orchestrator::Orchestrator;

/// What the HTTP door needs.
pub struct HttpParts {
    /// What it opens to.
    pub orchestrator: Orchestrator,
    /// Bearer tokens that are let in; several while one takes another's place.
    pub secrets: Vec<SecretString>,
    /// Names this server goes by besides `localhost` and its listen address, without ports.
    pub allowed_hosts: Vec<String>,
    /// The address it listens on.
    pub listen: SocketAddr,
    /// What else is served behind the same gate: the door for models.
    pub mcp: Router,
    /// How long a body may take to arrive; [`BODY_TIMEOUT`] for all but tests.
    pub body_timeout: Duration,
    /// Cancelled when the server stops: event streams end then.
    pub stopping: CancellationToken,
}

/// What handlers share.
#[derive(Clone)]
struct HttpState {
    orchestrator: Orchestrator,
    pages: Arc<RenderedPages>,
    body_timeout: Duration,
    stopping: CancellationToken,
}

/// All routes of the public API behind authentication, but for health.
pub fn router(parts: HttpParts) -> Router {
    let state = HttpState {
        orchestrator: parts.orchestrator,
        pages: Arc::default(),
        body_timeout: parts.body_timeout,
        stopping: parts.stopping,
    };
    let routes = openapi::routes()
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(state)
        .merge(parts.mcp);
    gated(routes, &parts.secrets, &parts.allowed_hosts, parts.listen)
}

/// Any routes behind the gate that those of the public API are behind.
pub fn gated(
    routes: Router,
    secrets: &[SecretString],
    allowed_hosts: &[String],
    listen: SocketAddr,
) -> Router {
    let gate = gate::Gate::new(secrets, allowed_hosts, listen);
    routes.layer(from_fn_with_state(Arc::new(gate), gate::gate))
}

async fn not_found() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        Code::NotFound,
        "There is nothing at this path; GET /api/v1/openapi.json lists what there is",
    )
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        Code::MethodNotAllowed,
        "This path does not take this method; the Allow header lists those it takes",
    )
}
