//! What the reconciler, Claude and the agents would do: each session that may run has run, and
//! left what it says.

use std::sync::Arc;

use baton::store::OutputLine;
use baton_agent::protocol::Stream;
use baton_domain::ending::{Ending, Outcome};
use baton_domain::session::{Report, Session, Status};
use baton_domain::{Attempt, SessionEvent};
use jiff::Timestamp;
use tokio::task::JoinHandle;

use crate::app::App;

/// Runs until it is dropped.
pub struct StandIn(JoinHandle<()>);

impl StandIn {
    pub fn new(app: &Arc<App>) -> Self {
        let app = Arc::clone(app);
        Self(tokio::spawn(async move {
            loop {
                while let Some(ready) = ready(&app) {
                    complete(&app, &ready).await;
                }
                app.wake.notified().await;
            }
        }))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One that waits for nothing but a slot.
fn ready(app: &App) -> Option<Arc<Session>> {
    let mut active = app.store.active().into_iter();
    active.find(|session| app.store.status(session) == Status::Queued)
}

async fn complete(app: &App, session: &Session) {
    let said = format!("This was the {} session.", session.kind.name());
    let line = serde_json::json!({
        "type": "assistant",
        "message": { "content": [{ "type": "text", "text": said }] },
    });
    let line = OutputLine {
        at: Timestamp::UNIX_EPOCH,
        stream: Stream::Stdout,
        bytes: line.to_string().into_bytes().into(),
        cut_bytes: 0,
        line_end: true,
    };
    let attempt = Attempt::FIRST;
    let begun = [
        SessionEvent::LaunchDecided(attempt),
        SessionEvent::ClaudeStarted(attempt),
    ];
    app.happens(session.id, &begun, None).await;
    let lines = [line];
    let stored = app.store.append_output(session.id, attempt, 1, &lines);
    stored.await.expect("stored");
    let ended = [
        SessionEvent::AgentEnded(attempt, Box::<Ending>::default()),
        SessionEvent::Concluded(attempt, Outcome::Completed),
    ];
    let report = Report {
        summary: said,
        ..Report::default()
    };
    app.happens(session.id, &ended, Some(report)).await;
}
