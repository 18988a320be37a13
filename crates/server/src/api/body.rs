//! Bodies of requests: short enough, in time.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::{ApiError, Code};

/// The most bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// All of a body.
///
/// # Errors
/// It is longer than [`BODY_BYTES_MAX`], takes longer than `timeout`, or breaks off.
pub async fn whole_body(body: Body, timeout: Duration) -> Result<Bytes, ApiError> {
    let read = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(timeout, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::request("The body ended before it was complete")),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            Code::RequestTimeout,
            format!(
                "The body did not arrive within {} seconds",
                timeout.as_secs_f32()
            ),
        )),
    }
}

/// The body is too long.
#[must_use]
pub fn too_large() -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        Code::TooLarge,
        format!("The body is longer than {BODY_BYTES_MAX} bytes"),
    )
}
