//! The only place where an error becomes an HTTP status and a stable code.

use axum::http::StatusCode;
use baton_domain::SessionId;
use baton_domain::coordination::CoordinationRefusal;
use baton_domain::dependencies::DependencyError;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::orchestrator::{OrchestratorError, Refusal};
use crate::store::StoreError;

/// Seconds after which a refused request may be tried again.
const RETRY_AFTER_REFUSAL_S: u64 = 10;
/// Seconds after which the storage may be tried again.
const RETRY_AFTER_STORAGE_S: u64 = 5;
/// How many ids `details` names.
const NAMED_MAX: usize = 100;

/// A stable word for a kind of error. Programs decide by it; texts may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The body is no JSON.
    InvalidJson,
    /// The body, the query or the request is not of the demanded form.
    InvalidRequest,
    /// No operation has this `type`.
    UnknownType,
    /// A field's value breaks its rules.
    InvalidField,
    /// A dependency is no session id.
    InvalidDependency,
    /// A dependency is the id of no session.
    UnknownDependency,
    /// Sessions would wait for each other, or for themselves.
    DependencyCycle,
    /// The bearer token is missing or wrong.
    Unauthorized,
    /// The `Host` or `Origin` is not one this server answers to.
    ForbiddenOrigin,
    /// A coordination session asked for what is not its own.
    NotPermitted,
    /// A coordination session has made as many sessions, or levels of them, as it may.
    CoordinationLimit,
    /// No session has this id.
    SessionNotFound,
    /// No orchestration has this id.
    OrchestrationNotFound,
    /// There is nothing at this path.
    NotFound,
    /// This path does not take this method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The session's state forbids it.
    InvalidTransition,
    /// The id is taken.
    AlreadyExists,
    /// The body is longer than 1 MiB.
    TooLarge,
    /// The body is not `application/json`.
    UnsupportedMediaType,
    /// The idempotency key was used for another request.
    IdempotencyMismatch,
    /// Too many failed attempts to authenticate.
    TooManyRequests,
    /// A defect of this server.
    Internal,
    /// The container runtime does not answer.
    RuntimeUnavailable,
    /// The session image is not there.
    ImageMissing,
    /// The storage does not answer.
    StorageUnavailable,
}

/// An error as clients get it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// Stable, for programs.
    pub code: Code,
    /// What is wrong and what to do, for people.
    pub message: String,
    /// More, where there is more to say.
    pub details: Option<Value>,
    /// Seconds after which to try again.
    pub retry_after_s: Option<u64>,
    /// What is behind it; for our log alone.
    #[source]
    pub source: Option<Box<OrchestratorError>>,
}

/// The body of every answer that is an error.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody<'a> {
    /// Always false.
    pub success: bool,
    /// What is wrong and what to do, for people.
    pub error: &'a str,
    /// Stable, for programs.
    pub code: Code,
    /// More, where there is more to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<&'a Value>,
    /// Names this failure in the server's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<&'a str>,
}

impl ApiError {
    /// An error with a text.
    #[must_use]
    pub fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            details: None,
            retry_after_s: None,
            source: None,
        }
    }

    /// The body is no JSON.
    #[must_use]
    pub fn json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidJson, message)
    }

    /// The request has not the demanded form.
    #[must_use]
    pub fn request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidRequest, message)
    }

    /// The value at `path` breaks its rules; `rule` goes on from the path: `must be …`.
    #[must_use]
    pub fn field(path: &str, rule: impl std::fmt::Display) -> Self {
        Self {
            details: Some(json!({ "path": path })),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                Code::InvalidField,
                format!("{path} {rule}"),
            )
        }
    }

    /// The same error, to be tried again after some seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after_s: Some(seconds),
            ..self
        }
    }

    fn with(self, details: Value) -> Self {
        Self {
            details: Some(details),
            ..self
        }
    }

    /// The body, with the name of the failure in the log where it has one.
    #[must_use]
    pub fn body<'a>(&'a self, request_id: Option<&'a str>) -> ErrorBody<'a> {
        ErrorBody {
            success: false,
            error: &self.message,
            code: self.code,
            details: self.details.as_ref(),
            request_id,
        }
    }
}

impl From<OrchestratorError> for ApiError {
    fn from(error: OrchestratorError) -> Self {
        use OrchestratorError as E;
        let answer = match &error {
            E::Store(error) => of_store(error),
            E::Dependency(error) => of_dependency(error),
            E::InvalidTransition { verb, status, .. } => Self::new(
                StatusCode::CONFLICT,
                Code::InvalidTransition,
                format!("Session cannot be {verb} in status: {}", status.name()),
            )
            .with(json!({ "status": status.name() })),
            E::Blocked {
                dependency,
                dependency_status,
                ..
            } => {
                let stands = dependency_status.map_or("is gone".to_owned(), |status| {
                    format!("is {}", status.name())
                });
                Self::new(
                    StatusCode::CONFLICT,
                    Code::InvalidTransition,
                    format!(
                        "Session cannot be started in status: blocked. Its dependency \
                         {dependency} {stands} and will not complete unless it is retried: \
                         session.retry on that one lets this session wait again"
                    ),
                )
                .with(json!({ "status": "blocked", "blockedBy": dependency }))
            }
            E::BudgetSpent { spent_usd, .. } | E::OrchestrationBudgetSpent { spent_usd, .. } => {
                Self::field(
                    "options.maxCostUsd",
                    format!("must be more than the ${spent_usd:.2} that are spent already"),
                )
            }
            E::Coordination(refusal) => of_coordination(refusal),
            E::Refused(refusal) => of_refusal(refusal),
        };
        Self {
            source: Some(Box::new(error)),
            ..answer
        }
    }
}

fn of_store(error: &StoreError) -> ApiError {
    use StoreError as E;
    match error {
        E::SessionNotFound(id) => ApiError::new(
            StatusCode::NOT_FOUND,
            Code::SessionNotFound,
            format!("Session not found: {id}"),
        ),
        E::OrchestrationNotFound(id) => ApiError::new(
            StatusCode::NOT_FOUND,
            Code::OrchestrationNotFound,
            format!("Orchestration not found: {id}"),
        ),
        E::SessionExists(id) => ApiError::new(
            StatusCode::CONFLICT,
            Code::AlreadyExists,
            format!("Session {id} exists already; leave the id out to get a new one"),
        ),
        E::OrchestrationExists(id) => ApiError::new(
            StatusCode::CONFLICT,
            Code::AlreadyExists,
            format!("Orchestration {id} exists already"),
        ),
        E::IdempotencyMismatch => ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            Code::IdempotencyMismatch,
            "This Idempotency-Key was used with a different request; use a new key",
        ),
        E::InvalidCursor => ApiError::field(
            "cursor",
            "must be the nextCursor of an answer to the same query",
        ),
        E::Conflict { id, .. } => storage_unavailable(format!(
            "Session {id} is being changed by others; try again"
        )),
        E::LandingConflict(id) => storage_unavailable(format!(
            "The landing of orchestration {id} is being changed; try again"
        )),
        E::LineTooLong { .. }
        | E::InUse { .. }
        | E::Corrupt { .. }
        | E::Schema { .. }
        | E::Unavailable { .. } => storage_unavailable(
            "The storage does not answer, and nothing was changed; try again. If it lasts, look \
             at the server's log and its disk",
        ),
    }
}

fn storage_unavailable(message: impl Into<String>) -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        Code::StorageUnavailable,
        message,
    )
    .retry_after(RETRY_AFTER_STORAGE_S)
}

fn of_dependency(error: &DependencyError) -> ApiError {
    use DependencyError as E;
    let (code, details) = match error {
        E::SelfDependency(id) => (Code::DependencyCycle, json!({ "path": [id, id] })),
        E::Cycle { path } => (Code::DependencyCycle, json!({ "path": first(path) })),
        E::Unknown(ids) => (Code::UnknownDependency, json!({ "unknown": first(ids) })),
    };
    ApiError::new(StatusCode::BAD_REQUEST, code, capitalised(error)).with(details)
}

fn first(ids: &[SessionId]) -> &[SessionId] {
    &ids[..ids.len().min(NAMED_MAX)]
}

fn of_coordination(refusal: &CoordinationRefusal) -> ApiError {
    use CoordinationRefusal as R;
    let (status, code) = match refusal {
        R::NotYours(_)
        | R::NotYourOrchestration(_)
        | R::OtherRepository { .. }
        | R::OtherBranch { .. }
        | R::NotForYou => (StatusCode::FORBIDDEN, Code::NotPermitted),
        R::TooDeep { .. } | R::NoLevelLeft { .. } | R::TooMany { .. } | R::Budget { .. } => {
            (StatusCode::FORBIDDEN, Code::CoordinationLimit)
        }
        R::NotAtWork { .. } | R::NoOrchestration(_) => {
            (StatusCode::CONFLICT, Code::InvalidTransition)
        }
    };
    ApiError::new(status, code, capitalised(refusal))
}

fn capitalised(error: &impl std::fmt::Display) -> String {
    let mut message = error.to_string();
    message[..1].make_ascii_uppercase();
    message
}

fn of_refusal(refusal: &Refusal) -> ApiError {
    let code = match refusal {
        Refusal::RuntimeUnavailable => Code::RuntimeUnavailable,
        Refusal::ImageMissing { .. } => Code::ImageMissing,
    };
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, capitalised(refusal))
        .retry_after(RETRY_AFTER_REFUSAL_S)
}
