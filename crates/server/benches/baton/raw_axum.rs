//! The baseline of the requests: axum with a bearer check, JSON in and out, and a map behind a
//! lock; in a process of its own. What it leaves out is what the server adds.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, RwLock};

use anyhow::{Context as _, Result};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::http::{SECRET, WEBHOOK};

/// The argument that makes this program the baseline: the number of sessions follows.
pub const ARGUMENT: &str = "raw-axum";

/// The baseline's process; killed when dropped.
pub struct RawAxum {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl RawAxum {
    pub fn start(sessions: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([ARGUMENT, &sessions.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the baseline has no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line
            .trim()
            .parse()
            .context("the baseline does not listen")?;
        Ok(Self { child, address })
    }
}

impl Drop for RawAxum {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The id of the baseline's session with that number.
pub fn id(number: usize) -> String {
    uuid::Uuid::from_u128(number as u128).to_string()
}

#[derive(Default)]
struct Sessions {
    by_id: HashMap<String, Session>,
    order: Vec<String>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    status: String,
    container_id: String,
    project: Project,
    dependencies: Vec<String>,
    created_at: String,
}

#[derive(Clone, Serialize)]
struct Project {
    repository: String,
    requirements: String,
}

#[derive(Deserialize)]
struct Wrapped {
    data: Request,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Request {
    #[serde(rename = "session.get", rename_all = "camelCase")]
    Get { session_id: String },
    #[serde(rename = "session.list")]
    List { limit: usize },
}

#[derive(Serialize)]
struct Envelope<T> {
    success: bool,
    data: T,
}

#[derive(Serialize)]
struct One<'a> {
    session: &'a Session,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Many<'a> {
    sessions: Vec<&'a Session>,
    next_cursor: &'a str,
}

/// Serves until stdin ends.
pub fn run(arguments: &[String]) -> Result<()> {
    let count = arguments.first().context("how many sessions?")?.parse()?;
    let sessions = Arc::new(RwLock::new(sessions(count)));
    let router = Router::new()
        .route(WEBHOOK, routing::post(answer))
        .with_state(sessions);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        axum::serve(listener, router).await
    });
    // Whoever started us is gone when it ends.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn sessions(count: usize) -> Sessions {
    let mut sessions = Sessions::default();
    for number in 0..count {
        let session = Session {
            id: id(number),
            kind: "implementation".into(),
            status: "initializing".into(),
            container_id: format!("claude-implementation-{number:012}"),
            project: Project {
                repository: crate::home::REPOSITORY.into(),
                requirements: crate::requests::REQUIREMENTS.into(),
            },
            dependencies: Vec::new(),
            created_at: "2026-01-01T00:00:00.000Z".into(),
        };
        sessions.order.push(session.id.clone());
        sessions.by_id.insert(session.id.clone(), session);
    }
    sessions
}

async fn answer(
    State(sessions): State<Arc<RwLock<Sessions>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let token = headers
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes());
    let token = token
        .and_then(|token| token.strip_prefix(b"Bearer "))
        .unwrap_or_default();
    if !bool::from(token.ct_eq(SECRET.as_bytes())) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Ok(Wrapped { data }) = serde_json::from_slice(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let Ok(sessions) = sessions.read() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    match data {
        Request::Get { session_id } => match sessions.by_id.get(&session_id) {
            Some(session) => Json(Envelope {
                success: true,
                data: One { session },
            })
            .into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        Request::List { limit } => {
            let listed = sessions.order.iter().take(limit);
            let listed = listed.filter_map(|id| sessions.by_id.get(id)).collect();
            let next_cursor = sessions.order.get(limit).map_or("", String::as_str);
            Json(Envelope {
                success: true,
                data: Many {
                    sessions: listed,
                    next_cursor,
                },
            })
            .into_response()
        }
    }
}
