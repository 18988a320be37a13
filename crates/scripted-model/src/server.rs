//! A running server and what it remembers.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::http::router;
use crate::journal::Journal;
use crate::script::{Fault, ScriptError, Scripts, Turn};

/// The longest that a request hangs, stalls or is held; then its connection breaks.
const SILENCE_MAX: Duration = Duration::from_secs(60 * 60);
/// Conversations whose faults are counted. Beyond that, counting starts over.
const FAULT_COUNTS_MAX: usize = 10_000;
/// Names that may be released.
const RELEASES_MAX: usize = 10_000;

pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// How a server differs from the plain one.
#[derive(Clone, Default)]
pub struct Options {
    /// Where set, a call to the API needs exactly this value, as `x-api-key` or as bearer token.
    pub require_key: Option<String>,
}

/// A running server. It ends, and breaks the connections it holds, when this is dropped.
#[derive(Debug)]
pub struct ScriptedModel {
    address: SocketAddr,
    shared: Arc<Shared>,
    closing: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its scripts are no good.
    #[error(transparent)]
    Scripts(#[from] ScriptError),
    /// Its address could not be listened on.
    #[error("could not listen on {address}")]
    Listen {
        /// As it was given.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What every request may use.
pub(crate) struct Shared {
    pub(crate) scripts: Scripts,
    options: Options,
    pub(crate) journal: Journal,
    /// Names that no longer hold a turn back.
    released: watch::Sender<HashSet<String>>,
    /// How often a fault happened.
    faults: Mutex<HashMap<FaultKey, u32>>,
    closing: watch::Receiver<bool>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the options: they hold the key.
        f.debug_struct("Shared")
            .field("scripts", &self.scripts)
            .finish_non_exhaustive()
    }
}

/// What one count of faults is kept for.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct FaultKey {
    pub(crate) script: String,
    pub(crate) turn: usize,
    /// None where all conversations share one count.
    pub(crate) conversation: Option<String>,
}

impl ScriptedModel {
    /// Starts a server on `listen`, e.g. `127.0.0.1:0` for any free port.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub async fn start(
        listen: &str,
        scripts: Scripts,
        options: Options,
    ) -> Result<Self, StartError> {
        let fail = |source| StartError::Listen {
            address: listen.to_owned(),
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let (closing, closed) = watch::channel(false);
        let shared = Arc::new(Shared {
            scripts,
            options,
            journal: Journal::new(),
            released: watch::Sender::new(HashSet::new()),
            faults: Mutex::new(HashMap::new()),
            closing: closed,
        });
        let serve = axum::serve(listener, router(shared.clone())).with_graceful_shutdown({
            let shared = shared.clone();
            async move { shared.closed().await }
        });
        let serving = tokio::spawn(async move { serve.await });
        Ok(Self {
            address,
            shared,
            closing,
            serving,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The value for `ANTHROPIC_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked so far.
    pub fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// Lets every turn with `hold = "<name>"` be played, now and later.
    pub fn release(&self, name: &str) {
        self.shared.release(name);
    }

    /// Ends the server: connections in use break, and the address is free again on return.
    pub async fn stop(self) {
        self.closing.send_replace(true);
        // How it ended changes nothing for the caller: it is gone either way.
        let _ = self.serving.await;
    }
}

impl Shared {
    /// Returns when the server ends, also when its owner is dropped.
    async fn closed(&self) {
        let mut closing = self.closing.clone();
        let _ = closing.wait_for(|closing| *closing).await;
    }

    pub(crate) fn release(&self, name: &str) {
        self.released.send_modify(|released| {
            if released.len() < RELEASES_MAX {
                released.insert(name.to_owned());
            }
        });
    }

    /// Waits for `wait`; false where the server ended or [`SILENCE_MAX`] passed before.
    pub(crate) async fn waited(&self, wait: impl Future<Output = ()>) -> bool {
        tokio::select! {
            waited = tokio::time::timeout(SILENCE_MAX, wait) => waited.is_ok(),
            () = self.closed() => false,
        }
    }

    pub(crate) async fn released(&self, name: &str) {
        let mut released = self.released.subscribe();
        // The sender lives in `self`, so the only way out is the name.
        let _ = released.wait_for(|released| released.contains(name)).await;
    }

    /// Whether the fault of this turn happens once more.
    pub(crate) fn fault<'t>(&self, turn: &'t Turn, key: FaultKey) -> Option<&'t Fault> {
        let fault = turn.fault.as_ref()?;
        let Some(times) = turn.fault_times else {
            return Some(fault);
        };
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() >= FAULT_COUNTS_MAX && !faults.contains_key(&key) {
            faults.clear();
        }
        let happened = faults.entry(key).or_default();
        *happened = happened.saturating_add(1);
        (*happened <= times).then_some(fault)
    }

    pub(crate) fn allows(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.options.require_key else {
            return true;
        };
        let value = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        value(&API_KEY) == Some(key)
            || value(&AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")) == Some(key)
    }
}
