//! `POST /api/webhooks/claude`: decode, call one operation, encode. No decisions here.

use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::HttpState;
use super::body::JsonBody;
use super::openapi::{ErrorAnswer, WebhookBody};
use super::operations::idempotency_key;
use super::respond::RawJson;
use crate::api::{self, ApiError, Operation};

/// All operations, told apart by `type`.
///
/// The body is `{"data":{"type":…,…}}` or the same object unwrapped; both mean the same and are
/// answered the same.
#[utoipa::path(
    post,
    path = "/api/webhooks/claude",
    tag = "webhook",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request answer as the first did")),
    request_body = WebhookBody,
    responses(
        (status = 200, description = "Done; `data` depends on `type`", body = Object),
        (status = "4XX", description = "Not done; `code` says why", body = ErrorAnswer),
        (status = 503, description = "Not possible for now; see Retry-After", body = ErrorAnswer),
    ),
)]
pub(super) async fn webhook(State(state): State<HttpState>, request: Request) -> Response {
    match answer(&state, request).await {
        Ok(body) => RawJson::ok(body).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn answer(state: &HttpState, request: Request) -> Result<Bytes, ApiError> {
    let key = idempotency_key(request.headers())?;
    let JsonBody(body) = JsonBody::from_request(request, state).await?;
    let orchestrator = &state.orchestrator;
    Ok(match api::operation(&body)? {
        Operation::SessionGet(id) => {
            api::session_got(orchestrator, &orchestrator.session(id).await?).into()
        }
        Operation::SessionList(query) => state.pages.answer(orchestrator, query).await?,
        Operation::SessionCreate(new) => state.create_session(*new, key).await?,
        Operation::SessionStart(id) => {
            api::session_started(&orchestrator.start_session(id).await?).into()
        }
        Operation::SessionCancel(id) => {
            api::session_told(&orchestrator.cancel_session(id).await?).into()
        }
        Operation::SessionRetry(id) => state.retry_session(id, key).await?,
        Operation::SessionMessage(id, message) => state.message_session(id, message, key).await?,
        Operation::SessionOutput {
            id,
            cursor,
            lines_max,
        } => api::output(&orchestrator.session_output(id, cursor, lines_max).await?).into(),
        Operation::Orchestrate(new) => enveloped(&state.orchestrate(*new, key).await?),
        Operation::OrchestrationGet(id) => {
            api::orchestration(&orchestrator.orchestration(id).await?).into()
        }
        Operation::OrchestrationStart(id, max_cost_usd) => {
            let started = orchestrator.start_orchestration(id, max_cost_usd).await?;
            api::orchestration(&started).into()
        }
        Operation::OrchestrationCancel(id) => {
            api::orchestration(&orchestrator.cancel_orchestration(id).await?).into()
        }
    })
}

/// `orchestrate` alone is answered in the envelope of the original's webhooks.
fn enveloped(result: &[u8]) -> Bytes {
    let head =
        br#"{"message":"Webhook processed","event":"orchestrate","handlerCount":1,"results":["#;
    [&head[..], result, b"]}"].concat().into()
}
