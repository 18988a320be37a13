//! Answers as HTTP.

use std::error::Error;

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use uuid::Uuid;

use crate::api::ApiError;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A body that is JSON already.
pub(super) struct RawJson(pub(super) StatusCode, pub(super) Bytes);

impl RawJson {
    pub(super) fn ok(body: impl Into<Bytes>) -> Self {
        Self(StatusCode::OK, body.into())
    }
}

impl IntoResponse for RawJson {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.1));
        *response.status_mut() = self.0;
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        response
    }
}

impl IntoResponse for ApiError {
    /// Failures of the server are logged here, under a name that the client gets to see.
    fn into_response(self) -> Response {
        let request_id = self
            .status
            .is_server_error()
            .then(|| Uuid::new_v4().to_string());
        if let Some(request_id) = &request_id {
            let cause = self.source.as_deref().map(|source| causes(source));
            tracing::error!(
                request_id,
                status = self.status.as_u16(),
                error = self.message,
                cause,
                "request failed"
            );
        }
        let body = self.body(request_id.as_deref());
        #[expect(
            clippy::expect_used,
            reason = "serialising our own plain types cannot fail"
        )]
        let body = serde_json::to_vec(&body).expect("plain types serialise");
        let mut response = RawJson(self.status, body.into()).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(Ok(request_id)) = request_id.map(HeaderValue::try_from) {
            headers.insert(REQUEST_ID, request_id);
        }
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The rest of the body will not be read; the connection is of no more use.
            StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// An error with all that is behind it, for the log.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
