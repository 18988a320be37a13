//! Tells an account's usage limit, which is lifted in hours, from a call that came too early, which
//! Claude Code repeats by itself.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use baton_domain::pauses::UsageLimit;
use jiff::{SignedDuration, Timestamp};

const STATUS: HeaderName = HeaderName::from_static("anthropic-ratelimit-unified-status");
/// Seconds since the epoch.
const RESET: HeaderName = HeaderName::from_static("anthropic-ratelimit-unified-reset");
/// Whether Claude Code asks again; without it, it does so for minutes.
pub(super) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// What `STATUS` is when the account is refused; `allowed` or `allowed_warning` otherwise.
const REJECTED: &str = "rejected";

/// The usage limit that an answer of the API tells of, if it refuses for one. One that answers in
/// spite of a limit, for what is paid extra, is none.
pub(super) fn usage_limit(status: StatusCode, headers: &HeaderMap) -> Option<UsageLimit> {
    let number = |name: HeaderName| headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
    let refused = status == StatusCode::TOO_MANY_REQUESTS
        && headers.get(STATUS).is_some_and(|status| status == REJECTED);
    refused.then(|| UsageLimit {
        resets_at: number(RESET).and_then(|second| Timestamp::from_second(second).ok()),
        retry_after: number(header::RETRY_AFTER).map(SignedDuration::from_secs),
    })
}

/// Makes Claude Code end its turn instead of asking again.
pub(super) fn end_turn(headers: &mut HeaderMap) {
    headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
}
