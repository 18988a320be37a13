//! `/api/v1`: the same operations as resources.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::HttpState;
use super::body::{JsonBody, OptionalJsonBody};
use super::openapi::{
    ErrorAnswer, NewMessageBody, NewOrchestrationBody, NewSessionBody, OrchestratedAnswer,
    OrchestrationAnswer, OrchestrationStartBody, OutputAnswer, SessionAnswer, SessionListAnswer,
};
use super::operations::idempotency_key;
use super::respond::RawJson;
use crate::api::{self, ApiError};

/// The `{id}` of a path.
pub(super) struct PathId(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        match id {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(ApiError::field("id", "must be a UUID")),
        }
    }
}

/// The query of a URL, each parameter still as text.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        match query {
            Ok(Query(params)) => Ok(Self(params)),
            Err(_) => Err(ApiError::request(
                "The query cannot be read; each parameter may come once, as name=value in UTF-8",
            )),
        }
    }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only sessions of this orchestration.
    orchestration_id: Option<String>,
    /// Only sessions with one of these statuses, parted by commas.
    status: Option<String>,
    /// `nextCursor` of the page before.
    cursor: Option<String>,
    /// How many at most, from 1 to 1000.
    limit: Option<String>,
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct OutputParams {
    /// `nextCursor` of the answer before, or the number of an event.
    cursor: Option<String>,
    /// How many lines at most, from 1 to 10000.
    limit: Option<String>,
}

/// Lists sessions in order of creation.
#[utoipa::path(
    get,
    path = "/api/v1/sessions",
    tag = "sessions",
    params(ListParams),
    responses(
        (status = 200, description = "A page of them", body = SessionListAnswer),
        (status = "4XX", description = "Not done", body = ErrorAnswer),
    ),
)]
pub(super) async fn list_sessions(
    State(state): State<HttpState>,
    Params(params): Params<ListParams>,
) -> Result<RawJson, ApiError> {
    let query = api::list_query(
        params.orchestration_id.as_deref(),
        params.status.as_deref(),
        params.cursor,
        params.limit.as_deref(),
    )?;
    let page = state.pages.answer(&state.orchestrator, query).await?;
    Ok(RawJson::ok(page))
}

/// Creates a session.
#[utoipa::path(
    post,
    path = "/api/v1/sessions",
    tag = "sessions",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request answer as the first did")),
    request_body = NewSessionBody,
    responses(
        (status = 201, description = "Created", body = SessionAnswer),
        (status = "4XX", description = "Not done", body = ErrorAnswer),
        (status = 503, description = "Not possible for now", body = ErrorAnswer),
    ),
)]
pub(super) async fn create_session(
    State(state): State<HttpState>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<RawJson, ApiError> {
    let key = idempotency_key(&headers)?;
    let answer = state.create_session(api::new_session(&body)?, key).await?;
    Ok(RawJson(StatusCode::CREATED, answer))
}

/// One session with all there is to say.
#[utoipa::path(
    get,
    path = "/api/v1/sessions/{id}",
    tag = "sessions",
    params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "It", body = SessionAnswer),
        (status = "4XX", description = "Not there", body = ErrorAnswer),
    ),
)]
pub(super) async fn get_session(
    State(state): State<HttpState>,
    PathId(id): PathId,
) -> Result<RawJson, ApiError> {
    let details = state.orchestrator.session(api::session_id(&id)?).await?;
    Ok(RawJson::ok(api::session_got(&state.orchestrator, &details)))
}

/// Asks for a session to run.
#[utoipa::path(
    post,
    path = "/api/v1/sessions/{id}/start",
    tag = "sessions",
    params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "It starts, or waits", body = SessionAnswer),
        (status = "4XX", description = "Not done", body = ErrorAnswer),
        (status = 503, description = "Not possible for now", body = ErrorAnswer),
    ),
)]
pub(super) async fn start_session(
    State(state): State<HttpState>,
    PathId(id): PathId,
) -> Result<RawJson, ApiError> {
    let details = state
        .orchestrator
        .start_session(api::session_id(&id)?)
        .await?;
    Ok(RawJson::ok(api::session_started(&details)))
}

/// Asks for a session to stop.
#[utoipa::path(
    post,
    path = "/api/v1/sessions/{id}/cancel",
    tag = "sessions",
    params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "It stops, or has stopped", body = SessionAnswer),
        (status = "4XX", description = "Not done", body = ErrorAnswer),
    ),
)]
pub(super) async fn cancel_session(
    State(state): State<HttpState>,
    PathId(id): PathId,
) -> Result<RawJson, ApiError> {
    let details = state
        .orchestrator
        .cancel_session(api::session_id(&id)?)
        .await?;
    Ok(RawJson::ok(api::session_told(&details)))
}

/// Asks for a new attempt of a session that failed, was cancelled or is blocked.
#[utoipa::path(
    post,
    path = "/api/v1/sessions/{id}/retry",
    tag = "sessions",
    params(
        ("id" = uuid::Uuid, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request answer as the first did"),
    ),
    responses(
        (status = 200, description = "It starts anew, or waits", body = SessionAnswer),
        (status = "4XX", description = "Not done", body = ErrorAnswer),
        (status = 503, description = "Not possible for now", body = ErrorAnswer),
    ),
)]
pub(super) async fn retry_session(
    State(state): State<HttpState>,
    PathId(id): PathId,
    headers: HeaderMap,
) -> Result<RawJson, ApiError> {
    let key = idempotency_key(&headers)?;
    let answer = state.retry_session(api::session_id(&id)?, key).await?;
    Ok(RawJson::ok(answer))
}

/// Says something to a session's Claude; one that has ended goes on in its conversation.
#[utoipa::path(
    post,
    path = "/api/v1/sessions/{id}/message",
    tag = "sessions",
    params(
        ("id" = uuid::Uuid, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request answer as the first did"),
    ),
    request_body = NewMessageBody,
    responses(
        (status = 200, description = "Claude is told as soon as it listens", body = SessionAnswer),
        (status = "4XX", description = "Not done", body = ErrorAnswer),
        (status = 503, description = "Not possible for now", body = ErrorAnswer),
    ),
)]
pub(super) async fn message_session(
    State(state): State<HttpState>,
    PathId(id): PathId,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<RawJson, ApiError> {
    let key = idempotency_key(&headers)?;
    let message = api::new_message(&body)?;
    let answer = state
        .message_session(api::session_id(&id)?, message, key)
        .await?;
    Ok(RawJson::ok(answer))
}

/// What a session put out, as lines for people, and what it left.
#[utoipa::path(
    get,
    path = "/api/v1/sessions/{id}/output",
    tag = "sessions",
    params(("id" = uuid::Uuid, Path), OutputParams),
    responses(
        (status = 200, description = "A stretch of it", body = OutputAnswer),
        (status = "4XX", description = "Not there", body = ErrorAnswer),
    ),
)]
pub(super) async fn session_output(
    State(state): State<HttpState>,
    PathId(id): PathId,
    Params(params): Params<OutputParams>,
) -> Result<RawJson, ApiError> {
    let id = api::session_id(&id)?;
    let (cursor, lines_max) = api::output_query(params.cursor.as_deref(), params.limit.as_deref())?;
    let output = state
        .orchestrator
        .session_output(id, cursor, lines_max)
        .await?;
    Ok(RawJson::ok(api::output(&output)))
}

/// Creates an orchestration, and starts it unless told not to.
#[utoipa::path(
    post,
    path = "/api/v1/orchestrations",
    tag = "orchestrations",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request answer as the first did")),
    request_body = NewOrchestrationBody,
    responses(
        (status = 201, description = "Created", body = OrchestratedAnswer),
        (status = "4XX", description = "Not done", body = ErrorAnswer),
        (status = 503, description = "Not possible for now", body = ErrorAnswer),
    ),
)]
pub(super) async fn orchestrate(
    State(state): State<HttpState>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<RawJson, ApiError> {
    let key = idempotency_key(&headers)?;
    let answer = state
        .orchestrate(api::new_orchestration(&body)?, key)
        .await?;
    Ok(RawJson(StatusCode::CREATED, answer))
}

/// One orchestration with its sessions.
#[utoipa::path(
    get,
    path = "/api/v1/orchestrations/{id}",
    tag = "orchestrations",
    params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "It", body = OrchestrationAnswer),
        (status = "4XX", description = "Not there", body = ErrorAnswer),
    ),
)]
pub(super) async fn get_orchestration(
    State(state): State<HttpState>,
    PathId(id): PathId,
) -> Result<RawJson, ApiError> {
    let id = api::orchestration_id(&id)?;
    let details = state.orchestrator.orchestration(id).await?;
    Ok(RawJson::ok(api::orchestration(&details)))
}

/// Asks for all sessions of an orchestration to run that were only created; may set its budget.
#[utoipa::path(
    post,
    path = "/api/v1/orchestrations/{id}/start",
    tag = "orchestrations",
    params(("id" = uuid::Uuid, Path)),
    request_body = Option<OrchestrationStartBody>,
    responses(
        (status = 200, description = "They start, or wait", body = OrchestrationAnswer),
        (status = "4XX", description = "Not there", body = ErrorAnswer),
        (status = 503, description = "Not possible for now", body = ErrorAnswer),
    ),
)]
pub(super) async fn start_orchestration(
    State(state): State<HttpState>,
    PathId(id): PathId,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<RawJson, ApiError> {
    let id = api::orchestration_id(&id)?;
    let max_cost_usd = api::orchestration_start(&body)?;
    let started = state.orchestrator.start_orchestration(id, max_cost_usd);
    let details = started.await?;
    Ok(RawJson::ok(api::orchestration(&details)))
}

/// Asks for all sessions of an orchestration to stop that are not over.
#[utoipa::path(
    post,
    path = "/api/v1/orchestrations/{id}/cancel",
    tag = "orchestrations",
    params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, description = "They stop, or are over", body = OrchestrationAnswer),
        (status = "4XX", description = "Not there", body = ErrorAnswer),
    ),
)]
pub(super) async fn cancel_orchestration(
    State(state): State<HttpState>,
    PathId(id): PathId,
) -> Result<RawJson, ApiError> {
    let id = api::orchestration_id(&id)?;
    let details = state.orchestrator.cancel_orchestration(id).await?;
    Ok(RawJson::ok(api::orchestration(&details)))
}
