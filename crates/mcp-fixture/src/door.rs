//! The fixture behind the door of the product.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::handler::Fixture;

/// A server that listens.
pub struct Open {
    pub address: SocketAddr,
    stopping: CancellationToken,
    served: JoinHandle<()>,
}

impl Open {
    pub async fn close(self) {
        self.stopping.cancel();
        // A panic in there has been reported by the panic hook.
        let _reported = self.served.await;
    }
}

pub async fn open(listen: &str, token: String) -> anyhow::Result<Open> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("could not listen on {listen}"))?;
    let address = listener.local_addr().context("the socket has no address")?;
    let stopping = CancellationToken::new();
    let fixture = Fixture::default();
    let config = StreamableHttpServerConfig::default()
        .with_allowed_origins([format!("http://{address}")])
        .with_cancellation_token(stopping.clone());
    let service = StreamableHttpService::new(
        move || Ok(fixture.clone()),
        Arc::<LocalSessionManager>::default(),
        config,
    );
    let router = axum::Router::new()
        .nest_service("/mcp", service)
        .layer(from_fn(move |request, next| {
            admit(token.clone(), request, next)
        }));
    let stopped = stopping.clone();
    let served = tokio::spawn(async move {
        let serve = axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned());
        if let Err(error) = serve.await {
            eprintln!("the server ended: {error}");
        }
    });
    Ok(Open {
        address,
        stopping,
        served,
    })
}

async fn admit(token: String, request: Request, next: Next) -> Response {
    let known = request
        .headers()
        .get(AUTHORIZATION)
        .is_some_and(|sent| sent.as_bytes() == format!("Bearer {token}").as_bytes());
    if known {
        next.run(request).await
    } else {
        StatusCode::UNAUTHORIZED.into_response()
    }
}
