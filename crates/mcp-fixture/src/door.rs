//! The fixture behind the door of the product: its transport, its gate, its server.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use baton::http::{ServeSettings, gated, serve};
use baton::mcp::{MCP_PATH, service};
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
    let service = service(move || fixture.clone(), stopping.clone());
    let routes = Router::new().route_service(MCP_PATH, service);
    let router = gated(routes, &[token.into()], &[], address);
    let settings = ServeSettings::default();
    let served = tokio::spawn(serve(listener, router, settings, stopping.clone()));
    Ok(Open {
        address,
        stopping,
        served,
    })
}
