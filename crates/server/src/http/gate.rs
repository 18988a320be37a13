//! What every request passes first: which host it means, where it comes from, who sends it.
//!
//! Nothing of the body is read before that.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::api::{ApiError, Code};

/// How often a peer may fail to authenticate before it is told to wait.
pub const AUTH_FAILURES_PER_MINUTE: NonZeroU32 = match NonZeroU32::new(10) {
    Some(ten) => ten,
    None => NonZeroU32::MIN,
};

/// Longer ones are nobody's, and not worth hashing.
const TOKEN_BYTES_MAX: usize = 4 * 1024;
/// How many peers with failures are remembered before those long quiet are forgotten.
const PEERS_MAX: usize = 10_000;
/// The paths anybody may ask.
const OPEN_PATHS: [&str; 2] = ["/health", "/api/webhooks/health"];

/// Who is at the other end of a connection; put into each request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// The rules of entry.
pub(super) struct Gate {
    /// SHA-256 of each secret: equal length for a comparison in constant time, and nothing to
    /// leak.
    digests: Vec<[u8; 32]>,
    /// Lower case, without ports; IPv6 addresses in brackets.
    hosts: Vec<String>,
    /// Whether any address will do as a host. A page that rebinds a name to this server cannot
    /// make a browser send an address it was not opened by.
    any_address: bool,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
}

impl Gate {
    pub(super) fn new(secrets: &[SecretString], hosts: &[String], listen: SocketAddr) -> Self {
        let own = match listen.ip() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let known = ["localhost", "127.0.0.1", "[::1]", &own].map(str::to_owned);
        let configured = hosts.iter().map(|host| host.to_ascii_lowercase());
        Self {
            digests: secrets
                .iter()
                .map(|secret| Sha256::digest(secret.expose_secret()).into())
                .collect(),
            hosts: known.into_iter().chain(configured).collect(),
            any_address: listen.ip().is_unspecified(),
            failures: RateLimiter::keyed(Quota::per_minute(AUTH_FAILURES_PER_MINUTE)),
            clock: DefaultClock::default(),
        }
    }

    fn admit(&self, request: &Request) -> Result<(), ApiError> {
        self.check_host(request)?;
        if OPEN_PATHS.contains(&request.uri().path()) {
            return Ok(());
        }
        if self.knows(bearer(request.headers())) {
            return Ok(());
        }
        Err(self.refusal(request))
    }

    /// The host must be one of ours and the origin, where a browser names one, the same: or else
    /// a page from anywhere could speak to a server on its visitor's machine.
    fn check_host(&self, request: &Request) -> Result<(), ApiError> {
        let headers = request.headers();
        let host = text(headers, &HOST).unwrap_or("");
        // A request line with a whole URL means that host, whatever the header says.
        let in_line = request
            .uri()
            .authority()
            .map(|authority| authority.as_str());
        if headers.get_all(HOST).iter().nth(1).is_some()
            || !self.is_ours(host)
            || in_line.is_some_and(|authority| !self.is_ours(authority))
        {
            return Err(forbidden(
                "The Host header names no host of this server; names it goes by are added in its \
                 configuration",
            ));
        }
        let mut origins = headers.get_all(ORIGIN).iter();
        if origins.any(|origin| !origin.to_str().is_ok_and(|origin| is_same(origin, host))) {
            return Err(forbidden(
                "The Origin is another than this server; web pages of other origins are not \
                 let in",
            ));
        }
        Ok(())
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = without_port(host);
        let known = |own: &String| own.eq_ignore_ascii_case(name);
        self.hosts.iter().any(known) || (self.any_address && is_address(name))
    }

    fn knows(&self, token: Option<&[u8]>) -> bool {
        let Some(token) = token.filter(|token| token.len() <= TOKEN_BYTES_MAX) else {
            return false;
        };
        let digest: [u8; 32] = Sha256::digest(token).into();
        let known = self.digests.iter().map(|own| own.ct_eq(&digest));
        known
            .fold(subtle::Choice::from(0), |any, one| any | one)
            .into()
    }

    /// Counts the failure. A right token is let in all the same: many clients may share an
    /// address, and what is limited here is noise, since guessing a token of 32 random bytes is
    /// hopeless at any rate.
    fn refusal(&self, request: &Request) -> ApiError {
        let peer = request.extensions().get::<Peer>();
        let peer = network(peer.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |peer| peer.0));
        if self.failures.len() > PEERS_MAX {
            self.failures.retain_recent();
        }
        match self.failures.check_key(&peer) {
            Ok(()) => {
                let path = request.uri().path().escape_debug();
                tracing::warn!(%peer, %path, "request without a valid token");
                ApiError::new(
                    StatusCode::UNAUTHORIZED,
                    Code::Unauthorized,
                    "Send the header `Authorization: Bearer <CLAUDE_WEBHOOK_SECRET>`; the token \
                     is missing or wrong",
                )
            }
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                ApiError::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    Code::TooManyRequests,
                    "Too many requests without a valid token; wait, then send the right one",
                )
                .retry_after(wait.as_secs() + 1)
            }
        }
    }
}

/// Admits or refuses, catches what panics, and sets the headers that all answers have.
pub(super) async fn gate(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let mut response = match gate.admit(&request) {
        Err(error) => error.into_response(),
        Ok(()) => {
            let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            answer.unwrap_or_else(|_| {
                // The panic itself was reported by the panic hook, with its place.
                ApiError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    Code::Internal,
                    "This is a defect of the server; its log has more under the request id",
                )
                .into_response()
            })
        }
    };
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.insert(name, value);
    }
    response
}

const SECURITY_HEADERS: [(HeaderName, HeaderValue); 3] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
];

fn forbidden(message: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, Code::ForbiddenOrigin, message)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The one bearer token; none where there are several.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// The host part of `host:port`; brackets of an IPv6 address stay.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_address(name: &str) -> bool {
    let inner = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    match inner {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<std::net::Ipv4Addr>().is_ok(),
    }
}

fn is_same(origin: &str, host: &str) -> bool {
    let web = ["http://", "https://"];
    let named = web.iter().find_map(|scheme| origin.strip_prefix(scheme));
    named.is_some_and(|named| named.eq_ignore_ascii_case(host))
}

/// What failures are counted by: one IPv6 customer has a whole /64 of addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_of(host: &str, listen: &str) -> bool {
        let listen = listen.parse().expect("an address");
        Gate::new(&[], &["Baton.example".to_owned()], listen).is_ours(host)
    }

    #[test]
    fn only_names_of_this_server_are_hosts() {
        for ours in [
            "localhost:3002",
            "LOCALHOST",
            "127.0.0.1:1",
            "[::1]:3002",
            "[::1]",
            "10.0.0.7:3002",
            "baton.example:443",
        ] {
            assert!(host_of(ours, "10.0.0.7:3002"), "{ours}");
        }
        for other in [
            "",
            "evil.example",
            "localhost.evil.example",
            "10.0.0.8",
            "::1",
            "[::2]",
        ] {
            assert!(!host_of(other, "10.0.0.7:3002"), "{other}");
        }
        assert!(host_of("10.0.0.8:3002", "0.0.0.0:3002"));
        assert!(host_of("[fd00::1]:3002", "[::]:3002"));
        assert!(!host_of("evil.example", "0.0.0.0:3002"));
    }

    #[test]
    fn an_origin_is_the_same_or_another() {
        assert!(is_same("http://localhost:3002", "localhost:3002"));
        assert!(is_same("https://Baton.example", "baton.example"));
        for other in ["null", "", "http://localhost:8080", "file://localhost:3002"] {
            assert!(!is_same(other, "localhost:3002"), "{other}");
        }
    }

    #[test]
    fn a_token_is_known_whole_or_not() {
        let secrets = ["one".into(), "two".into()];
        let gate = Gate::new(&secrets, &[], "127.0.0.1:1".parse().expect("an address"));
        assert!(gate.knows(Some(b"one")) && gate.knows(Some(b"two")));
        assert!(!gate.knows(Some(b"on")) && !gate.knows(Some(b"")) && !gate.knows(None));
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_keeps_its_text_to_itself() {
        use axum::body::Body;
        use axum::middleware::from_fn_with_state;
        use http_body_util::BodyExt;
        use hyper::service::Service;
        use hyper_util::service::TowerToHyperService;

        async fn panics() {
            panic!("a secret thing");
        }
        let gate = Gate::new(
            &["one".into()],
            &[],
            "127.0.0.1:1".parse().expect("an address"),
        );
        let router = axum::Router::new()
            .route("/", axum::routing::get(panics))
            .layer(from_fn_with_state(Arc::new(gate), super::gate));
        let request = Request::get("/")
            .header(HOST, "localhost")
            .header(AUTHORIZATION, "Bearer one")
            .body(Body::empty())
            .expect("a request");
        let answer = TowerToHyperService::new(router)
            .call(request)
            .await
            .expect("an answer");
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(answer.headers().contains_key("x-request-id"));
        let body = answer
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(
            body.contains("\"code\":\"internal\"") && !body.contains("secret"),
            "{body}"
        );
    }
}
