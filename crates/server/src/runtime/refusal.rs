//! Docker's errors, sorted into ours: nobody there, or a refusal.

use bollard::errors::Error as DockerError;

use super::{MESSAGE_CHARS_MAX, RuntimeError};

pub(super) fn is_status(error: &DockerError, status: u16) -> bool {
    matches!(error, DockerError::DockerResponseServerError { status_code, .. }
        if *status_code == status)
}

/// At `create`, 404 may also be about a volume driver.
pub(super) fn is_image_missing(error: &DockerError) -> bool {
    matches!(error, DockerError::DockerResponseServerError { status_code: 404, message }
        if message.to_ascii_lowercase().contains("no such image"))
}

/// Sorts Docker's error: nobody there, or a refusal of `step` for `id`.
pub(super) fn failed(step: &'static str, id: &str) -> impl FnOnce(DockerError) -> RuntimeError {
    move |error| {
        let message = match error {
            DockerError::DockerResponseServerError {
                status_code,
                message,
            } if status_code != 503 && !is_containerd_away(&message) => message,
            DockerError::DockerResponseServerError { .. }
            | DockerError::SocketNotFoundError(_)
            | DockerError::RequestTimeoutError
            | DockerError::IOError { .. }
            | DockerError::HyperResponseError { .. }
            | DockerError::HyperLegacyError { .. } => {
                return RuntimeError::Unavailable {
                    step,
                    source: Box::new(error),
                };
            }
            other => other.to_string(),
        };
        RuntimeError::Refused {
            step,
            id: id.to_owned(),
            message: message.chars().take(MESSAGE_CHARS_MAX).collect(),
        }
    }
}

/// While it stops, a daemon still answers, but with what its own connection to containerd said.
fn is_containerd_away(message: &str) -> bool {
    message.contains("code = Unavailable") || message.contains("transport is closing")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status_code: u16, message: &str) -> DockerError {
        DockerError::DockerResponseServerError {
            status_code,
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_stopping_daemon_is_unavailable_and_a_refusal_is_not() {
        let away = [
            answered(503, "shutting down"),
            answered(500, "rpc error: code = Unavailable desc = connection error"),
            DockerError::RequestTimeoutError,
        ];
        for error in away {
            let text = error.to_string();
            assert!(failed("start", "it")(error).is_unavailable(), "{text}");
        }
        let error = failed("start", "it")(answered(400, "no such file"));
        assert_eq!(
            error.to_string(),
            "the container runtime refused to start it: no such file"
        );
    }

    #[test]
    fn a_refusal_quotes_a_bounded_message() {
        let error = failed("start", "it")(answered(500, &"é".repeat(10_000)));
        assert!(error.to_string().chars().count() < MESSAGE_CHARS_MAX + 100);
    }

    #[test]
    fn a_missing_volume_driver_is_no_missing_image() {
        assert!(is_image_missing(&answered(404, "No such image: x:latest")));
        assert!(!is_image_missing(&answered(404, "plugin \"x\" not found")));
    }
}
