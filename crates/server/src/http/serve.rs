//! Accepts connections and serves them, within limits, until told to stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Peer;

/// How many connections are served at once; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 256;
/// How long a request's head may take to arrive, and a connection may be idle.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long requests may go on after the server was told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be accepted: mostly, there are no file descriptors
/// left, and trying at once would only burn time.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long a client may take to read what was sent to it, and how long one that is gone without a
/// word keeps its place. Whoever comes again reads on by the number of the last event.
const UNREAD_MAX: Duration = Duration::from_secs(300);
/// How long a connection is quiet before it is asked whether the client is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The limits of [`serve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeSettings {
    /// See [`CONNECTIONS_MAX`].
    pub connections_max: usize,
    /// See [`HEADER_TIMEOUT`].
    pub header_timeout: Duration,
    /// See [`DRAIN_TIMEOUT`].
    pub drain_timeout: Duration,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            header_timeout: HEADER_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}

/// A connection's place among those that are served; free when nobody holds it any more. In the
/// extensions of requests for an upgrade, for what goes on after the connection was handed over.
#[derive(Clone)]
pub(super) struct Place {
    _held: Arc<(OwnedSemaphorePermit, TaskTrackerToken)>,
    cut_off: CancellationToken,
}

impl Place {
    /// Runs what a connection was handed over to, in its place; cut off at the end of the server.
    pub(super) async fn hold(self, work: impl Future<Output = ()>) {
        self.cut_off.run_until_cancelled(work).await;
    }
}

/// Serves `router` on `listener` until `stopping` is cancelled; then lets the requests under way
/// come to their end, and cuts off those that have not after `drain_timeout`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: ServeSettings,
    stopping: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(settings.connections_max));
    let connections = TaskTracker::new();
    let cut_off = CancellationToken::new();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else {
            break;
        };
        let place = Place {
            _held: Arc::new((place, connections.token())),
            cut_off: cut_off.clone(),
        };
        let connection = serve_connection(
            builder.clone(),
            stream,
            peer,
            place.clone(),
            router.clone(),
            stopping.clone(),
        );
        tokio::spawn(place.hold(connection));
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(settings.drain_timeout, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "requests cut off at the end"
        );
        cut_off.cancel();
        connections.wait().await;
    }
}

/// The next connection, once there is a place for it; none when there will be no more places.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Some((stream, peer, place)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections for now");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn serve_connection(
    builder: http1::Builder,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    router: Router,
    stopping: CancellationToken,
) {
    // Answers are small and written whole; waiting to fill packets only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    if let Err(error) = let_go_of_the_gone(&stream) {
        tracing::debug!(%error, "no time limits of TCP");
    }
    let peer = Peer(peer.ip());
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        // Others are over with their connection; whoever goes on by itself must not keep it.
        if request.headers().contains_key(hyper::header::UPGRADE) {
            request.extensions_mut().insert(place.clone());
        }
        let answer = router.call(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        // Clients go away all the time.
        tracing::debug!(%error, "connection ended with an error");
    }
}

/// Has the kernel end a connection whose client is gone, or does not read.
fn let_go_of_the_gone(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    let unread_ms = u32::try_from(UNREAD_MAX.as_millis()).unwrap_or(u32::MAX);
    // With it the kernel also gives up who lets no more bytes come, not only who does not answer.
    Ok(sockopt::set_tcp_user_timeout(stream, unread_ms)?)
}
