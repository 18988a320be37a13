//! Bodies: of the right type, and read by [`crate::api::whole_body`].

use axum::body::HttpBody as _;
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;

use super::HttpState;
use crate::api::{ApiError, BODY_BYTES_MAX, Code, too_large, whole_body};

/// A body that says it is JSON.
pub(super) struct JsonBody(pub(super) Bytes);

impl FromRequest<HttpState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &HttpState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        check_type(&parts.headers)?;
        check_length(&parts.headers)?;
        Ok(Self(whole_body(body, state.body_timeout).await?))
    }
}

/// The same, or nothing at all.
pub(super) struct OptionalJsonBody(pub(super) Bytes);

impl FromRequest<HttpState> for OptionalJsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &HttpState) -> Result<Self, ApiError> {
        if request.body().is_end_stream() {
            return Ok(Self(Bytes::new()));
        }
        let JsonBody(body) = JsonBody::from_request(request, state).await?;
        Ok(Self(body))
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let (kind, parameters) = match given.map(|given| given.split_once(';').unwrap_or((given, ""))) {
        Some((kind, parameters)) => (kind.trim(), parameters),
        None => ("", ""),
    };
    let utf8 = parameters
        .split(';')
        .all(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
                value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        });
    if kind.eq_ignore_ascii_case("application/json") && utf8 {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::UnsupportedMediaType,
        "The body must be JSON in UTF-8; send the header `Content-Type: application/json`",
    ))
}

/// Refuses before the first byte what says itself that it is too long.
fn check_length(headers: &HeaderMap) -> Result<(), ApiError> {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    match length.and_then(|length| length.parse::<u64>().ok()) {
        Some(length) if length > BODY_BYTES_MAX as u64 => Err(too_large()),
        _ => Ok(()),
    }
}
