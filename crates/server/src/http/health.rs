//! Whether the server can do its work; for anybody to ask.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::HttpState;
use super::respond::RawJson;

/// How the server is.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok` or `degraded`.
    status: &'static str,
    /// What does not work: `storage`, `runtime`, `image`. Why is said where it is asked for, to
    /// those who may know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    degraded: Vec<&'static str>,
}

/// Whether the server can do its work.
///
/// Answers 200 as long as the server itself answers, also when a part it needs does not: killing
/// and starting it anew would mend nothing.
#[utoipa::path(
    get,
    path = "/health",
    tag = "health",
    security(()),
    responses((status = 200, description = "How it is", body = Health)),
)]
pub(super) async fn health(State(state): State<HttpState>) -> RawJson {
    answer(&state).await
}

/// The same, where clients of the original look for it.
#[utoipa::path(
    get,
    path = "/api/webhooks/health",
    tag = "health",
    security(()),
    responses((status = 200, description = "How it is", body = Health)),
)]
pub(super) async fn webhook_health(State(state): State<HttpState>) -> RawJson {
    answer(&state).await
}

async fn answer(state: &HttpState) -> RawJson {
    let degraded = state.orchestrator.degraded().await;
    let health = Health {
        status: match degraded.is_empty() {
            true => "ok",
            false => "degraded",
        },
        degraded,
    };
    #[expect(
        clippy::expect_used,
        reason = "serialising our own plain types cannot fail"
    )]
    let body = serde_json::to_vec(&health).expect("plain types serialise");
    RawJson::ok(body)
}
