//! A server to talk to, and a client that sends what it is told, byte for byte.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use baton::clock::Clock;
use baton::http::{BODY_TIMEOUT, HttpParts, ServeSettings, router, serve};
use baton::mcp;
use baton::open_waits::OpenWaits;
use baton::orchestrator::{Admission, Ids, Orchestrator, OrchestratorParts, Refusal};
use baton::store::{Store, StoreSettings, Transition};
use baton_domain::coordination::CoordinationLimits;
use baton_domain::ending::Usage;
use baton_domain::session::Report;
use baton_domain::{ClaudeSessionId, OrchestrationId, SessionEvent, SessionId};
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const SECRET: &str = "a secret of the tests that is long enough";
pub const OLD_SECRET: &str = "the secret before that one, still let in";
/// Longer than anything here takes; hit only when something hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stands still, so that answers can be compared as they are.
struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        "2026-11-22T07:38:22.005Z".parse().expect("a time")
    }
}

/// Counts.
#[derive(Default)]
struct CountedIds(AtomicU64);

impl CountedIds {
    fn next(&self, version: u128) -> Uuid {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        Uuid::from_u128((version << 76) | (2 << 62) | u128::from(count))
    }
}

impl Ids for CountedIds {
    fn session(&self) -> SessionId {
        SessionId(self.next(7))
    }

    fn orchestration(&self) -> OrchestrationId {
        OrchestrationId(self.next(7))
    }

    fn claude_session(&self) -> ClaudeSessionId {
        ClaudeSessionId(Uuid::from_u128(4 << 76 | 2 << 62 | 0xc1a0de))
    }
}

#[derive(Default)]
pub struct StubAdmission(Mutex<Option<Refusal>>);

impl StubAdmission {
    pub fn set(&self, refusal: Option<Refusal>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }
}

impl Admission for StubAdmission {
    fn check(&self) -> Result<(), Refusal> {
        let refusal = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        refusal.map_or(Ok(()), Err)
    }
}

/// What every attempt that runs is estimated to have used.
pub const METERED: Usage = Usage {
    input_tokens: 7,
    output_tokens: 5,
    cost_usd: 0.25,
};

pub struct App {
    pub address: SocketAddr,
    pub store: Store,
    pub admission: Arc<StubAdmission>,
    pub wake: Arc<Notify>,
    pub stopping: CancellationToken,
    pub served: Option<tokio::task::JoinHandle<()>>,
    _directory: TempDir,
}

impl App {
    pub async fn new() -> Self {
        Self::with(ServeSettings::default(), BODY_TIMEOUT).await
    }

    pub async fn with(settings: ServeSettings, body_timeout: Duration) -> Self {
        let directory = TempDir::new().expect("a directory");
        let store = Store::open(directory.path(), StoreSettings::default())
            .await
            .expect("a store");
        let admission = Arc::new(StubAdmission::default());
        let wake = Arc::new(Notify::new());
        let orchestrator = Orchestrator::new(OrchestratorParts {
            store: store.clone(),
            clock: Arc::new(StoppedClock),
            ids: Arc::new(CountedIds::default()),
            wake: Arc::clone(&wake),
            admission: Arc::clone(&admission) as Arc<dyn Admission>,
            slots_max: 2,
            meter: Arc::new(|_, _| Some(METERED)),
            overlaps: Arc::new(|_| Vec::new()),
            waits: OpenWaits::default(),
            coordination: CoordinationLimits::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let stopping = CancellationToken::new();
        let router = router(HttpParts {
            mcp: mcp::routes(orchestrator.clone(), stopping.clone()),
            orchestrator,
            secrets: vec![SECRET.into(), OLD_SECRET.into()],
            allowed_hosts: vec!["baton.example".to_owned()],
            listen: address,
            body_timeout,
            stopping: stopping.clone(),
        });
        let served = tokio::spawn(serve(listener, router, settings, stopping.clone()));
        Self {
            address,
            store,
            admission,
            wake,
            stopping,
            served: Some(served),
            _directory: directory,
        }
    }

    /// A request with a good bearer, host and, where there is a body, content type.
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        head.push_str("Connection: close\r\n");
        if !headers.to_ascii_lowercase().contains("authorization:") {
            head.push_str(&format!("Authorization: Bearer {SECRET}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
            if !headers.to_ascii_lowercase().contains("content-type:") {
                head.push_str("Content-Type: application/json\r\n");
            }
        }
        head.push_str(headers);
        head.push_str("\r\n");
        [head.as_bytes(), body].concat()
    }

    pub async fn send(&self, raw: &[u8]) -> Reply {
        let mut connection = self.connect().await;
        connection.write(raw).await;
        connection.reply().await
    }

    pub async fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address)
            .await
            .expect("a connection");
        Connection(BufReader::new(stream))
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(&self.request("GET", path, "", b"")).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        let body = body.to_string();
        self.send(&self.request("POST", path, "", body.as_bytes()))
            .await
    }

    /// An operation in the bare form.
    pub async fn webhook(&self, body: &Value) -> Reply {
        self.post("/api/webhooks/claude", body).await
    }

    /// A session made with these dependencies; its id.
    pub async fn created(&self, dependencies: &[SessionId], auto_start: bool) -> SessionId {
        let reply = self
            .webhook(&json!({
                "type": "session.create",
                "session": {
                    "project": { "repository": "owner/repo", "requirements": "Do it" },
                    "dependencies": dependencies,
                    "options": { "autoStart": auto_start },
                },
            }))
            .await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["data"]["session"]["id"]
            .as_str()
            .expect("an id")
            .parse()
            .expect("a UUID")
    }

    /// What the reconciler would do.
    pub async fn happens(&self, id: SessionId, events: &[SessionEvent], report: Option<Report>) {
        for event in events {
            let session = self.store.session(id).await.expect("the session");
            let now = StoppedClock.now();
            let mut next = session.after(event, now).expect("a possible event");
            if next.state.is_over() {
                next.report = report.clone().or(next.report);
            }
            let change = Transition {
                event: event.clone(),
                next,
                at: now,
                told: None,
            };
            self.store
                .record(vec![change], None)
                .await
                .expect("recorded");
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub async fn write(&mut self, raw: &[u8]) {
        // A server that refuses early may not read all of it.
        let _refused = self.0.get_mut().write_all(raw).await;
    }

    /// A line without its end; none at the end of the connection.
    pub async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = self.0.read_until(b'\n', &mut line);
        let read = tokio::time::timeout(PATIENCE, read)
            .await
            .expect("no line in time");
        match read {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(
                String::from_utf8(line)
                    .expect("UTF-8")
                    .trim_end()
                    .to_owned(),
            ),
        }
    }

    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = self.0.read_exact(&mut bytes);
        let read = tokio::time::timeout(PATIENCE, read)
            .await
            .expect("no bytes in time");
        read.expect("bytes");
        bytes
    }

    /// Status and headers.
    pub async fn head(&mut self) -> Reply {
        let line = self.line().await.unwrap_or_default();
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let mut headers = Vec::new();
        while let Some(line) = self.line().await.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").expect("a header");
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Reply {
            status: status.unwrap_or(0),
            headers,
            body: Vec::new(),
        }
    }

    /// A whole answer, on a connection that is closed after it.
    pub async fn reply(&mut self) -> Reply {
        let mut reply = self.head().await;
        if reply.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk().await {
                reply.body.extend(chunk);
            }
        } else if let Some(length) = reply.header("content-length") {
            reply.body = self.bytes(length.parse().expect("a length")).await;
        }
        reply
    }

    /// The next chunk of a chunked body; none after the last.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.line().await?;
        let size = usize::from_str_radix(&size, 16).expect("a chunk's size");
        let mut chunk = self.bytes(size + 2).await;
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) {
        let body = self.json();
        assert_eq!(
            (self.status, body["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
        assert_eq!(body["success"], false, "{body}");
        assert!(
            body["error"].as_str().is_some_and(|text| !text.is_empty()),
            "{body}"
        );
        assert_eq!(self.header("content-type"), Some("application/json"));
    }

    /// Status and indented body, to compare as text.
    pub fn pretty(&self) -> String {
        let body = serde_json::to_string_pretty(&self.json()).expect("JSON");
        format!("{}\n{body}\n", self.status)
    }
}
