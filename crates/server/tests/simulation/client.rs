//! The client: asks, and asks again with the same key until it is answered.

use baton::orchestrator::{
    Accepted, NewMessage, NewSession, Once, Orchestrator, OrchestratorError, SessionDetails,
};
use baton::store::{Idempotency, NewSessions, Store, Written};
use baton_domain::{OrchestrationId, SessionId};

use crate::graph::Graph;

/// What is asked for.
#[derive(Clone)]
pub enum Wish {
    Graph(Box<Graph>),
    Create(Box<NewSession>),
    Start(SessionId),
    Cancel(SessionId),
    CancelAll(OrchestrationId),
    Retry(SessionId),
    Message(SessionId, String),
    /// What an orchestration may cost, in US dollars.
    Budget(OrchestrationId, f64),
}

/// A wish with its key.
#[derive(Clone)]
pub struct Request {
    pub key: String,
    pub wish: Wish,
}

impl Request {
    /// Asks once.
    pub async fn ask(
        &self,
        orchestrator: &Orchestrator,
        store: &Store,
    ) -> Result<(), OrchestratorError> {
        let once = Once {
            key: self.key.clone(),
            digest: [0; 32],
            render: &|_: &SessionDetails| b"yes".to_vec(),
        };
        match &self.wish {
            Wish::Graph(graph) => {
                let new = NewSessions {
                    orchestration: graph.orchestration.clone(),
                    sessions: graph.sessions.clone(),
                    idempotency: Some(Idempotency {
                        key: self.key.clone(),
                        digest: [0; 32],
                        response: b"yes".to_vec(),
                    }),
                };
                let made = store.create(new).await?;
                assert!(matches!(made, Written::Now(_) | Written::Before { .. }));
                Ok(())
            }
            Wish::Create(new) => {
                let made = orchestrator
                    .create_session(*new.clone(), Some(once))
                    .await?;
                assert!(matches!(made, Accepted::Now(_) | Accepted::Before(_)));
                Ok(())
            }
            Wish::Start(id) => orchestrator.start_session(*id).await.map(drop),
            Wish::Cancel(id) => orchestrator.cancel_session(*id).await.map(drop),
            Wish::CancelAll(id) => orchestrator.cancel_orchestration(*id).await.map(drop),
            Wish::Retry(id) => orchestrator.retry_session(*id, Some(once)).await.map(drop),
            Wish::Budget(id, max_usd) => {
                let set = orchestrator.start_orchestration(*id, Some(*max_usd));
                set.await.map(drop)
            }
            Wish::Message(id, text) => {
                let message = NewMessage {
                    text: text.clone(),
                    max_cost_usd: None,
                };
                let said = orchestrator.message_session(*id, message, Some(once));
                said.await.map(drop)
            }
        }
    }
}
