//! How each planned action is carried out. All of them may be repeated.

use std::sync::Arc;

use baton_domain::ending::{FailureCode, Outcome};
use baton_domain::pauses::launch_lost;
use baton_domain::plan::{Action, Volumes};
use baton_domain::sandbox::{Sandbox, SandboxState};
use baton_domain::session::SessionState;
use baton_domain::{Attempt, Kind, Session, SessionEvent, SessionId};

use super::{ReconcilerParts, named};
use crate::config::KindLimits;
use crate::failpoint;
use crate::gateway::Gate;
use crate::launch::JobError;
use crate::runtime::{Limits, RuntimeError, SandboxSpec};
use crate::transition::{TransitionError, apply};

/// How often a landing is tried while the remote doesn't answer: half an hour where it refuses at
/// once, longer where each try takes its time.
const CONCLUDE_TRIES_MAX: u32 = 65;
const GIB: u64 = 1024 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;

/// Carries actions out.
#[derive(Clone)]
pub struct Actions {
    parts: Arc<ReconcilerParts>,
}

/// What came of an action.
#[derive(Debug, Default)]
pub struct ActionDone {
    /// Whether it failed for a reason that may pass.
    pub retry: bool,
    /// Whether what is known of the sandboxes turned out to be wrong.
    pub look_again: bool,
    /// How many seconds a session took that completed.
    pub took: Option<(Kind, u64)>,
    /// What is known of the sandbox now; gone where there is none.
    pub seen: Option<((SessionId, Attempt), Option<Sandbox>)>,
}

impl ActionDone {
    fn again() -> Self {
        Self {
            retry: true,
            ..Self::default()
        }
    }
}

impl Actions {
    pub fn new(parts: Arc<ReconcilerParts>) -> Self {
        Self { parts }
    }

    /// Carries `action` out; it has failed `tries` times in a row before.
    pub async fn execute(&self, action: Action, tries: u32) -> ActionDone {
        match action {
            Action::Prepare(session) => self.prepare(&session).await,
            Action::Launch(session) => self.launch(&session).await,
            Action::TakeSlot(session) => self.take_slot(&session).await,
            Action::Conclude(session) => self.conclude(&session, tries).await,
            Action::Remove(sandbox, volumes) => self.remove(&sandbox, volumes).await,
            Action::Kill(sandbox) => {
                tracing::warn!(session = %sandbox.session, "did not stop in time and is killed");
                self.remove(&sandbox, Volumes::Keep).await
            }
        }
    }

    async fn prepare(&self, session: &Session) -> ActionDone {
        let spec = match self.spec(session) {
            Ok(spec) => spec,
            Err(error) => return self.no_directory(session, &error),
        };
        match self.parts.runtime.prepare(&spec).await {
            Ok(_) => {
                failpoint::reach("prepared");
                self.seen(session, &spec, SandboxState::Prepared)
            }
            Err(error @ RuntimeError::StateGone { .. }) => self.cannot_go_on(session, &error).await,
            // Nobody waits for it yet: the launch will tell what is wrong.
            Err(error) => {
                tracing::debug!(session = %session.id, %error, "not prepared");
                ActionDone {
                    look_again: error.is_unavailable(),
                    ..ActionDone::again()
                }
            }
        }
    }

    async fn launch(&self, session: &Session) -> ActionDone {
        if matches!(session.state, SessionState::Queued) {
            let event = SessionEvent::LaunchDecided(session.attempt);
            if let Err(error) = self.record(session.id, &event).await {
                tracing::debug!(session = %session.id, %error, "not launched");
                return ActionDone::default();
            }
        }
        failpoint::reach("launch_decided");
        let (spec, gate) = match (self.spec(session), self.parts.gateway.open(session)) {
            (Err(error), _) | (Ok(_), Err(error)) => return self.no_directory(session, &error),
            (Ok(spec), Ok(gate)) => (spec, gate),
        };
        // The code is made ready while the container starts.
        let (launched, has_job) = tokio::join!(
            self.parts.runtime.launch(&spec),
            self.make_job(session, &gate)
        );
        failpoint::reach("launched");
        if !has_job {
            return ActionDone {
                look_again: true,
                ..ActionDone::default()
            };
        }
        match launched {
            Ok(_) => {
                gate.launched(self.parts.clock.now());
                tracing::info!(session = %named(session), "launched");
                self.seen(session, &spec, SandboxState::Running)
            }
            Err(error) => self.not_launched(session, &gate, error).await,
        }
    }

    async fn take_slot(&self, session: &Session) -> ActionDone {
        let (store, clock) = (&self.parts.store, self.parts.clock.as_ref());
        let waits = &self.parts.waits;
        let taken = waits.take_slot_back(store, clock, session.id, session.attempt);
        match taken.await {
            Ok(()) => ActionDone::default(),
            Err(TransitionError::Invalid(error)) => {
                tracing::debug!(session = %session.id, %error, "needs no slot any more");
                ActionDone::default()
            }
            Err(error) => {
                tracing::warn!(session = %session.id, %error, "has no slot yet");
                ActionDone::again()
            }
        }
    }

    /// Makes the job; false when there can be none and the session has failed for it.
    async fn make_job(&self, session: &Session, gate: &Gate) -> bool {
        // A cancelled session needs no code, and a remote may take its time.
        let job = tokio::select! {
            job = gate.job() => job,
            () = gate.stopped() => return true,
        };
        match job {
            Ok(_) => true,
            // The link has asked too, a moment later: what was hopeless then was none any more.
            Err(JobError::Hopeless(_)) if !gate.withhold() => true,
            Err(JobError::Hopeless(outcome)) => {
                let event = SessionEvent::LaunchFailed(session.attempt, outcome);
                self.record_or_log(session.id, &event).await;
                false
            }
            // The link asks again when the agent connects.
            Err(JobError::Store(error)) => {
                tracing::warn!(session = %session.id, %error, "the job is not ready yet");
                true
            }
        }
    }

    async fn not_launched(
        &self,
        session: &Session,
        gate: &Gate,
        error: RuntimeError,
    ) -> ActionDone {
        let failed = |message: String| {
            let outcome = Outcome::failed(FailureCode::LaunchFailed, message);
            SessionEvent::LaunchFailed(session.attempt, outcome)
        };
        match error {
            RuntimeError::AlreadyExited { .. } | RuntimeError::Unavailable { .. } => {
                tracing::warn!(session = %session.id, %error, "not launched yet");
                ActionDone {
                    look_again: true,
                    ..ActionDone::again()
                }
            }
            RuntimeError::ImageMissing { image } => {
                // It was there when the session was accepted, and may come back.
                self.parts.health.image_missing(&image);
                ActionDone::again()
            }
            RuntimeError::StateGone { .. } => self.cannot_go_on(session, &error).await,
            error => {
                let event = match self.tries_again(session, gate, &error).await {
                    Some(again) => again,
                    None => {
                        tracing::error!(session = %session.id, %error, "cannot be launched");
                        failed(format!("the sandbox could not be started: {error}"))
                    }
                };
                self.record_or_log(session.id, &event).await;
                ActionDone {
                    look_again: true,
                    ..ActionDone::default()
                }
            }
        }
    }

    /// What it was to go on with is gone, and does not come back.
    async fn cannot_go_on(&self, session: &Session, error: &RuntimeError) -> ActionDone {
        tracing::warn!(session = %session.id, %error, "cannot go on");
        let text = format!("{error}; retry the session to start it anew");
        let outcome = Outcome::failed(FailureCode::ConversationLost, text);
        let event = SessionEvent::LaunchFailed(session.attempt, outcome);
        self.record_or_log(session.id, &event).await;
        ActionDone {
            look_again: true,
            ..ActionDone::default()
        }
    }

    /// The event of another try, where a refusal may pass and nothing can have been begun.
    async fn tries_again(
        &self,
        session: &Session,
        gate: &Gate,
        error: &RuntimeError,
    ) -> Option<SessionEvent> {
        if !matches!(error, RuntimeError::Refused { .. }) {
            return None;
        }
        let starting = self.parts.store.cached_session(session.id)?;
        let again = launch_lost(&starting, session.attempt).filter(|_| gate.withhold())?;
        tracing::warn!(session = %session.id, %error, "not launched; it is tried again");
        let text = format!("The sandbox could not be started and is tried again: {error}.");
        let now = self.parts.clock.now();
        if let Err(error) = self.parts.store.append_note(session.id, &text, now).await {
            tracing::warn!(session = %session.id, %error, "a note was not recorded");
        }
        Some(again)
    }

    async fn conclude(&self, session: &Session, tries: u32) -> ActionDone {
        let last_try = tries + 1 >= CONCLUDE_TRIES_MAX;
        let metered = self.parts.gateway.metered(session.id, session.attempt);
        match self
            .parts
            .concluder
            .conclude(session, metered, last_try)
            .await
        {
            Ok(()) => {
                tracing::info!(session = %named(session), "concluded");
                failpoint::reach("concluded");
                ActionDone {
                    took: self.took(session.id),
                    ..ActionDone::default()
                }
            }
            Err(error) => {
                tracing::warn!(session = %session.id, %error, "not concluded yet");
                ActionDone::again()
            }
        }
    }

    fn took(&self, id: SessionId) -> Option<(Kind, u64)> {
        let session = self.parts.store.cached_session(id)?;
        Some((session.kind, session.state.seconds_to_completion()?))
    }

    async fn remove(&self, sandbox: &Sandbox, volumes: Volumes) -> ActionDone {
        let session = self.parts.store.session(sandbox.session).await;
        let volumes = match session {
            // A command leaves no work, however it ended.
            Ok(session) if session.command.is_some() => Volumes::Remove,
            _ => volumes,
        };
        match self.parts.runtime.remove(&sandbox.id, volumes).await {
            Ok(()) => {
                failpoint::reach("removed");
                if let Err(error) = self.parts.gateway.close(sandbox.session, sandbox.attempt) {
                    tracing::warn!(session = %sandbox.session, %error, "its directory was not removed");
                }
                let key = (sandbox.session, sandbox.attempt);
                let gone = Sandbox {
                    state: SandboxState::Removed,
                    ..sandbox.clone()
                };
                let live = self.parts.store.active().iter().any(|session| {
                    session.id == sandbox.session && session.state.live_attempt().is_some()
                });
                let seen = Some((key, live.then_some(gone)));
                ActionDone {
                    seen,
                    ..ActionDone::default()
                }
            }
            Err(error) => {
                tracing::warn!(sandbox = %sandbox.id, %error, "not removed yet");
                ActionDone {
                    look_again: true,
                    ..ActionDone::again()
                }
            }
        }
    }

    fn spec(&self, session: &Session) -> std::io::Result<SandboxSpec> {
        let settings = &self.parts.settings;
        let run_dir = self.parts.gateway.prepare(session.id, session.attempt)?;
        Ok(SandboxSpec {
            session: session.id,
            attempt: session.attempt,
            kind: session.kind,
            image: settings.image.clone(),
            run_dir,
            limits: limits(settings.limits.get(&session.kind), session.kind),
            runtime: settings.oci_runtime.clone(),
            earlier: session.steering.resume.as_ref().map(|resume| resume.from),
        })
    }

    fn no_directory(&self, session: &Session, error: &std::io::Error) -> ActionDone {
        tracing::error!(session = %session.id, %error, "the directory for its socket was not made");
        ActionDone::again()
    }

    fn seen(&self, session: &Session, spec: &SandboxSpec, state: SandboxState) -> ActionDone {
        let sandbox = Sandbox {
            id: spec.id(),
            session: session.id,
            attempt: session.attempt,
            state,
            created_at: self.parts.clock.now(),
        };
        let seen = Some(((session.id, session.attempt), Some(sandbox)));
        ActionDone {
            seen,
            ..ActionDone::default()
        }
    }

    async fn record(&self, id: SessionId, event: &SessionEvent) -> Result<(), TransitionError> {
        apply(
            &self.parts.store,
            self.parts.clock.as_ref(),
            id,
            event,
            None,
        )
        .await
        .map(drop)
    }

    async fn record_or_log(&self, id: SessionId, event: &SessionEvent) {
        if let Err(error) = self.record(id, event).await {
            tracing::warn!(session = %id, %error, event = event.name(), "not recorded");
        }
    }
}

/// What a session may use of the host: as configured for its kind, else enough for a build.
fn limits(configured: Option<&KindLimits>, kind: Kind) -> Limits {
    let configured = configured.copied().unwrap_or_default();
    let memory_default = if kind.writes() { 4 * GIB } else { 2 * GIB };
    Limits {
        memory_bytes: configured
            .memory_mib
            .map_or(memory_default, |mib| mib * MIB),
        cpus: configured.cpus.unwrap_or(2.0),
        pids: configured.pids.unwrap_or(512),
        nofile: 16 * 1024,
        tmp_bytes: GIB / 2,
    }
}
