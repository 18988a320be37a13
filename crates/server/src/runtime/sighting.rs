//! What Docker's answers and events say of a sandbox.

use std::collections::HashMap;
use std::sync::OnceLock;

use baton_domain::{Attempt, Sandbox, SandboxId, SandboxState};
use bollard::Docker;
use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum as Status, EventMessage,
};
use bollard::query_parameters::InspectContainerOptions;
use jiff::Timestamp;

use super::RuntimeError;
use super::body::{LABEL_ATTEMPT, LABEL_SESSION};
use super::refusal::{failed, is_status};

/// What an event says of a sandbox; `Some(None)` for one that says nothing, `None` when the
/// daemon went away. The filter let only our own containers through.
pub(super) async fn news(client: &Docker, event: EventMessage) -> Option<Option<Sandbox>> {
    let at = event
        .time_nano
        .and_then(|nanos| Timestamp::from_nanosecond(nanos.into()).ok())
        .unwrap_or_default();
    let actor = event.actor.unwrap_or_default();
    let labels = actor.attributes.unwrap_or_default();
    let owner = labels
        .get(LABEL_SESSION)
        .and_then(|session| session.parse().ok())
        .zip(labels.get(LABEL_ATTEMPT).and_then(|text| text.parse().ok()));
    let (Some((session, attempt)), Some(name), Some(container)) =
        (owner, labels.get("name"), actor.id)
    else {
        return Some(None);
    };
    let mut sandbox = Sandbox {
        id: SandboxId(name.clone()),
        session,
        attempt: Attempt(attempt),
        state: SandboxState::Removed,
        created_at: at,
    };
    if event.action.as_deref() != Some("destroy") {
        match inspect(client, &container).await {
            Ok(Some(found)) => {
                sandbox.created_at = created_at(&found);
                sandbox.state = state_of(found.state.as_ref(), sandbox.created_at);
            }
            Ok(None) => {}
            Err(error) if error.is_unavailable() => return None,
            Err(error) => {
                tracing::warn!(%error, %session, "a sandbox's exit could not be looked at");
                return Some(None);
            }
        }
    }
    Some(Some(sandbox))
}

/// `None`: there is no such container.
async fn inspect(
    client: &Docker,
    container: &str,
) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
    match client
        .inspect_container(container, None::<InspectContainerOptions>)
        .await
    {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_status(&error, 404) => Ok(None),
        Err(error) => Err(failed("inspect", container)(error)),
    }
}

pub(super) async fn inspected_state(
    client: &Docker,
    container: &str,
) -> Result<SandboxState, RuntimeError> {
    Ok(match inspect(client, container).await? {
        Some(found) => state_of(found.state.as_ref(), created_at(&found)),
        None => SandboxState::Removed,
    })
}

pub(super) fn state_of(state: Option<&ContainerState>, created_at: Timestamp) -> SandboxState {
    let Some(state) = state else {
        return SandboxState::Prepared;
    };
    match state.status {
        Some(Status::CREATED | Status::EMPTY) | None => SandboxState::Prepared,
        Some(Status::RUNNING | Status::PAUSED | Status::RESTARTING | Status::STOPPING) => {
            SandboxState::Running
        }
        Some(Status::EXITED | Status::DEAD) => SandboxState::Exited {
            code: state.exit_code.unwrap_or_default(),
            oom_killed: state.oom_killed.unwrap_or_default(),
            finished_at: state
                .finished_at
                .as_deref()
                .and_then(|text| text.parse().ok())
                .unwrap_or(created_at),
        },
        Some(Status::REMOVING) => SandboxState::Removed,
    }
}

pub(super) fn created_at(found: &ContainerInspectResponse) -> Timestamp {
    let text = found.created.as_deref();
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

pub(super) fn labels_of(found: &ContainerInspectResponse) -> &HashMap<String, String> {
    static NONE: OnceLock<HashMap<String, String>> = OnceLock::new();
    let labels = found.config.as_ref().and_then(|it| it.labels.as_ref());
    labels.unwrap_or_else(|| NONE.get_or_init(HashMap::new))
}
