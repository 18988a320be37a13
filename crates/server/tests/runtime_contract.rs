//! What every runtime must do, run against the fake one and against real Docker.
//!
//! The Docker half wants a daemon and the image `claudecode:latest`. Each test has an instance
//! of its own and cleans up by that label alone.

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use async_trait::async_trait;
use baton::runtime::{FakeRuntime, Limits, Runtime, RuntimeError, SandboxSpec, Volumes, fake};
use baton_domain::{Attempt, Kind, Sandbox, SandboxId, SandboxState, SessionId};
use futures::stream::{BoxStream, StreamExt};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

mod docker_stage;

use docker_stage::DockerStage;

const IMAGE: &str = "claudecode:latest";
const IMAGE_MISSING: &str = "baton-contract/no-such-image:none";
/// Nothing here takes a tenth of it on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The world around a runtime: what happens to sandboxes without the server asking.
#[async_trait]
trait Stage: Send + Sync {
    fn runtime(&self) -> &dyn Runtime;
    /// A session that was never seen, on an image that is there.
    fn spec(&self) -> SandboxSpec;
    /// The first process of a running sandbox ends by itself.
    async fn exits(&self, spec: &SandboxSpec, code: i64);
    /// The first process is killed for want of memory.
    async fn runs_out_of_memory(&self, spec: &SandboxSpec);
    /// Somebody removes the container by hand.
    async fn vanishes(&self, spec: &SandboxSpec);
    /// How often the first process was started. Only asked once it has ended.
    async fn starts(&self, spec: &SandboxSpec) -> usize;
    async fn volumes(&self, spec: &SandboxSpec) -> usize;
    /// Somebody else's container takes this name.
    async fn occupies(&self, name: &str);
    async fn is_occupied(&self, name: &str) -> bool;
    fn now(&self) -> Timestamp;
}

struct FakeStage(FakeRuntime);

#[async_trait]
impl Stage for FakeStage {
    fn runtime(&self) -> &dyn Runtime {
        &self.0
    }

    fn spec(&self) -> SandboxSpec {
        fresh_spec("/nowhere".into())
    }

    async fn exits(&self, spec: &SandboxSpec, code: i64) {
        self.0.exits(spec.session, code, false);
    }

    async fn runs_out_of_memory(&self, spec: &SandboxSpec) {
        self.0.exits(spec.session, 137, true);
    }

    async fn vanishes(&self, spec: &SandboxSpec) {
        self.0.vanishes(spec.session);
    }

    async fn starts(&self, spec: &SandboxSpec) -> usize {
        let launched = self.0.launched().into_iter();
        launched.filter(|session| *session == spec.session).count()
    }

    async fn volumes(&self, spec: &SandboxSpec) -> usize {
        self.0.volumes_of(spec.session)
    }

    async fn occupies(&self, name: &str) {
        self.0.occupies(name);
    }

    async fn is_occupied(&self, name: &str) -> bool {
        self.0.is_occupied(name)
    }

    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }
}

fn fresh_spec(run_dir: std::path::PathBuf) -> SandboxSpec {
    SandboxSpec {
        session: SessionId(Uuid::now_v7()),
        attempt: Attempt::FIRST,
        kind: Kind::Testing,
        image: IMAGE.to_owned(),
        run_dir,
        limits: Limits {
            memory_bytes: 48 << 20,
            cpus: 1.0,
            pids: 64,
            nofile: 1_024,
            tmp_bytes: 8 << 20,
        },
        runtime: None,
        earlier: None,
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// The first news of `spec`'s attempt in a state that is `wanted`.
async fn seen(
    news: &mut BoxStream<'static, Sandbox>,
    spec: &SandboxSpec,
    wanted: fn(&SandboxState) -> bool,
) -> Sandbox {
    let of_spec = news.filter(|sandbox| {
        let found = (sandbox.session, sandbox.attempt) == (spec.session, spec.attempt)
            && wanted(&sandbox.state);
        std::future::ready(found)
    });
    let sandbox = soon("news of a sandbox", pin!(of_spec).next()).await;
    sandbox.expect("the runtime stays, and so does its stream")
}

fn exited(state: &SandboxState) -> bool {
    matches!(state, SandboxState::Exited { .. })
}

fn removed(state: &SandboxState) -> bool {
    *state == SandboxState::Removed
}

async fn listed(stage: &impl Stage) -> Vec<Sandbox> {
    stage.runtime().list().await.expect("the runtime is there")
}

/// What the suite asks of every runtime.
mod behaviour {
    use super::*;

    pub async fn preparing_twice_makes_one(stage: impl Stage) {
        let spec = stage.spec();
        let first = stage.runtime().prepare(&spec).await.expect("it is new");
        let second = stage.runtime().prepare(&spec).await.expect("it is ours");
        assert_eq!(first, second);
        assert_eq!(first, spec.id());
        let listed = listed(&stage).await;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].id, first);
        assert_eq!(
            (listed[0].session, listed[0].attempt),
            (spec.session, spec.attempt)
        );
        assert_eq!(listed[0].state, SandboxState::Prepared);
        assert_eq!(stage.volumes(&spec).await, 2);
    }

    pub async fn launching_twice_starts_once(stage: impl Stage) {
        let spec = stage.spec();
        let mut news = stage.runtime().watch().await.expect("it is there");
        stage.runtime().prepare(&spec).await.expect("it is new");
        stage.runtime().launch(&spec).await.expect("it is ours");
        stage.runtime().launch(&spec).await.expect("it runs");
        stage.runtime().prepare(&spec).await.expect("it runs");
        assert_eq!(listed(&stage).await[0].state, SandboxState::Running);
        stage.exits(&spec, 0).await;
        seen(&mut news, &spec, exited).await;
        assert_eq!(stage.starts(&spec).await, 1);
    }

    pub async fn launches_at_once_start_once(stage: impl Stage) {
        let spec = stage.spec();
        let mut news = stage.runtime().watch().await.expect("it is there");
        let launches = (0..4).map(|_| stage.runtime().launch(&spec));
        for launched in futures::future::join_all(launches).await {
            assert_eq!(launched.expect("any of them may be first"), spec.id());
        }
        stage.exits(&spec, 0).await;
        seen(&mut news, &spec, exited).await;
        assert_eq!(stage.starts(&spec).await, 1);
    }

    pub async fn an_exit_is_seen_by_watch_and_list(stage: impl Stage) {
        let spec = stage.spec();
        let mut news = stage.runtime().watch().await.expect("it is there");
        stage.runtime().launch(&spec).await.expect("it is new");
        stage.exits(&spec, 7).await;
        let seen = seen(&mut news, &spec, exited).await;
        assert_eq!(seen.id, spec.id());
        let SandboxState::Exited {
            code, oom_killed, ..
        } = seen.state
        else {
            panic!("{seen:?} has not exited");
        };
        assert_eq!((code, oom_killed), (7, false));
        let listed = listed(&stage).await;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].state, seen.state);
    }

    pub async fn an_exited_sandbox_is_not_started_again(stage: impl Stage) {
        let spec = stage.spec();
        let mut news = stage.runtime().watch().await.expect("it is there");
        stage.runtime().launch(&spec).await.expect("it is new");
        stage.exits(&spec, 0).await;
        seen(&mut news, &spec, exited).await;
        for refused in [
            stage.runtime().launch(&spec).await,
            stage.runtime().prepare(&spec).await,
        ] {
            assert!(
                matches!(&refused, Err(RuntimeError::AlreadyExited { session, attempt })
                    if (*session, *attempt) == (spec.session, spec.attempt)),
                "{refused:?}"
            );
        }
        assert_eq!(stage.starts(&spec).await, 1);
    }

    pub async fn the_next_attempt_is_another_sandbox(stage: impl Stage) {
        let first = stage.spec();
        let second = SandboxSpec {
            attempt: Attempt(2),
            ..first.clone()
        };
        for spec in [&first, &second] {
            stage.runtime().prepare(spec).await.expect("it is new");
        }
        let ids: HashSet<_> = listed(&stage).await.into_iter().map(|it| it.id).collect();
        assert_eq!(ids, HashSet::from([first.id(), second.id()]));
        assert_eq!(stage.volumes(&first).await, 4);
        let removed = stage.runtime().remove(&first.id(), Volumes::Remove).await;
        removed.expect("it is ours");
        assert_eq!(listed(&stage).await[0].id, second.id());
        assert_eq!(stage.volumes(&first).await, 2);
    }

    pub async fn lack_of_memory_is_told(stage: impl Stage) {
        let spec = stage.spec();
        let mut news = stage.runtime().watch().await.expect("it is there");
        stage.runtime().launch(&spec).await.expect("it is new");
        stage.runs_out_of_memory(&spec).await;
        let seen = seen(&mut news, &spec, exited).await;
        let listed = &listed(&stage).await[0];
        for state in [&seen.state, &listed.state] {
            let SandboxState::Exited {
                code, oom_killed, ..
            } = state
            else {
                panic!("{state:?} is no exit");
            };
            assert_eq!((*code, *oom_killed), (137, true));
        }
    }

    pub async fn a_sandbox_removed_by_hand_is_seen_to_be_gone(stage: impl Stage) {
        let spec = stage.spec();
        let mut news = stage.runtime().watch().await.expect("it is there");
        stage.runtime().launch(&spec).await.expect("it is new");
        stage.vanishes(&spec).await;
        let gone = seen(&mut news, &spec, removed).await;
        assert_eq!(gone.id, spec.id());
        assert_eq!(listed(&stage).await, []);
    }

    pub async fn removing_twice_is_a_success(stage: impl Stage) {
        let spec = stage.spec();
        let runtime = stage.runtime();
        runtime.launch(&spec).await.expect("it is new");
        for _ in 0..2 {
            let removed = runtime.remove(&spec.id(), Volumes::Remove).await;
            removed.expect("it is ours, running or gone");
        }
        assert_eq!(listed(&stage).await, []);
        assert_eq!(stage.volumes(&spec).await, 0);
    }

    pub async fn volumes_are_kept_until_they_are_old(stage: impl Stage) {
        let [kept, held, spared] = [stage.spec(), stage.spec(), stage.spec()];
        let runtime = stage.runtime();
        for spec in [&kept, &held, &spared] {
            runtime.prepare(spec).await.expect("it is new");
        }
        for spec in [&kept, &spared] {
            let removed = runtime.remove(&spec.id(), Volumes::Keep).await;
            removed.expect("it is ours");
            assert_eq!(stage.volumes(spec).await, 2);
        }

        let hour = SignedDuration::from_hours(1);
        let open = HashSet::from([spared.session]);
        let count = runtime.remove_kept_volumes(stage.now() - hour, &open).await;
        assert_eq!(count.expect("it is there"), 0, "they are young");
        let count = runtime.remove_kept_volumes(stage.now() + hour, &open).await;
        assert_eq!(count.expect("it is there"), 2);
        assert_eq!(stage.volumes(&kept).await, 0);
        assert_eq!(stage.volumes(&held).await, 2, "a sandbox holds them");
        assert_eq!(stage.volumes(&spared).await, 2, "they may be needed");
    }

    pub async fn an_attempt_goes_on_from_what_an_earlier_one_left(stage: impl Stage) {
        let first = stage.spec();
        let runtime = stage.runtime();
        let second = SandboxSpec {
            attempt: Attempt(2),
            earlier: Some(first.attempt),
            ..first.clone()
        };
        let gone = |refused: &Result<SandboxId, RuntimeError>| {
            let Err(RuntimeError::StateGone { session, attempt }) = refused else {
                panic!("{refused:?}");
            };
            (*session, *attempt) == (first.session, first.attempt)
        };
        assert!(gone(&runtime.launch(&second).await));
        assert!(gone(&runtime.prepare(&second).await));
        assert_eq!(
            stage.volumes(&first).await,
            0,
            "nothing is made in its place"
        );

        runtime.prepare(&first).await.expect("it is new");
        let removed = runtime.remove(&first.id(), Volumes::KeepState).await;
        removed.expect("it is ours");
        assert_eq!(stage.volumes(&first).await, 1);
        runtime.prepare(&second).await.expect("the state is there");
        runtime.launch(&second).await.expect("it is ours");
        assert_eq!(stage.volumes(&first).await, 3);
        let hour = SignedDuration::from_hours(1);
        let count = runtime
            .remove_kept_volumes(stage.now() + hour, &HashSet::from([first.session]))
            .await;
        assert_eq!(count.expect("it is there"), 0);

        let removed = runtime.remove(&second.id(), Volumes::Remove).await;
        removed.expect("it is ours");
        assert_eq!(stage.volumes(&first).await, 1, "the earlier state stays");
        for _ in 0..2 {
            let removed = runtime.remove(&first.id(), Volumes::KeepState).await;
            removed.expect("it is gone");
        }
        assert_eq!(stage.volumes(&first).await, 1);
    }

    pub async fn kept_volumes_go_with_a_later_remove(stage: impl Stage) {
        let spec = stage.spec();
        let runtime = stage.runtime();
        runtime.prepare(&spec).await.expect("it is new");
        for volumes in [Volumes::Keep, Volumes::Remove] {
            let removed = runtime.remove(&spec.id(), volumes).await;
            removed.expect("it is ours, there or gone");
        }
        assert_eq!(stage.volumes(&spec).await, 0);
    }

    pub async fn a_taken_name_is_told_and_its_holder_left_alone(stage: impl Stage) {
        let spec = stage.spec();
        let name = spec.id();
        stage.occupies(&name.0).await;
        let runtime = stage.runtime();
        for refused in [
            runtime.prepare(&spec).await.map(|_| ()),
            runtime.launch(&spec).await.map(|_| ()),
            runtime.remove(&name, Volumes::Remove).await,
        ] {
            assert!(
                matches!(&refused, Err(RuntimeError::NameTaken { name: taken, .. })
                    if *taken == name.0),
                "{refused:?}"
            );
        }
        assert!(stage.is_occupied(&name.0).await);
        assert_eq!(listed(&stage).await, []);
    }

    pub async fn ids_that_end_alike_clash_clearly(stage: impl Stage) {
        let spec = stage.spec();
        let other = SandboxSpec {
            session: SessionId(Uuid::from_u128(spec.session.0.as_u128() ^ (1 << 100))),
            ..spec.clone()
        };
        stage.runtime().prepare(&spec).await.expect("it is new");
        let refused = stage.runtime().launch(&other).await;
        let message = refused.expect_err("the name is taken").to_string();
        let holder = format!("session {} attempt 1", spec.session);
        assert!(message.contains(&holder), "{message}");
    }

    pub async fn a_missing_image_is_told(stage: impl Stage) {
        let spec = SandboxSpec {
            image: IMAGE_MISSING.to_owned(),
            ..stage.spec()
        };
        for refused in [
            stage.runtime().prepare(&spec).await,
            stage.runtime().launch(&spec).await,
        ] {
            assert!(
                matches!(&refused, Err(RuntimeError::ImageMissing { image })
                    if *image == spec.image),
                "{refused:?}"
            );
        }
        assert_eq!(listed(&stage).await, []);
    }
}

macro_rules! suite {
    ($($behaviour:ident,)*) => {
        mod on_fake {
            use super::*;
            $(
                #[tokio::test]
                async fn $behaviour() {
                    let fake = FakeRuntime::new();
                    fake.lacks_image(IMAGE_MISSING);
                    behaviour::$behaviour(FakeStage(fake)).await;
                }
            )*
        }

        mod on_docker {
            use super::*;
            $(
                #[tokio::test]
                async fn $behaviour() {
                    behaviour::$behaviour(DockerStage::new()).await;
                }
            )*
        }
    };
}

suite! {
    preparing_twice_makes_one,
    launching_twice_starts_once,
    launches_at_once_start_once,
    an_exit_is_seen_by_watch_and_list,
    an_exited_sandbox_is_not_started_again,
    the_next_attempt_is_another_sandbox,
    lack_of_memory_is_told,
    a_sandbox_removed_by_hand_is_seen_to_be_gone,
    removing_twice_is_a_success,
    volumes_are_kept_until_they_are_old,
    an_attempt_goes_on_from_what_an_earlier_one_left,
    kept_volumes_go_with_a_later_remove,
    a_taken_name_is_told_and_its_holder_left_alone,
    ids_that_end_alike_clash_clearly,
    a_missing_image_is_told,
}

/// What only the fake can be made to do.
mod fake_alone {
    use super::*;
    use fake::Verb;

    #[tokio::test]
    async fn a_planned_fault_has_no_effect_and_comes_once() {
        let runtime = FakeRuntime::new();
        let spec = fresh_spec("/nowhere".into());
        runtime.fail_next(Verb::Launch, fake::unreachable());
        assert!(runtime.launch(&spec).await.is_err());
        assert_eq!(runtime.launched(), []);
        runtime.launch(&spec).await.expect("the fault is spent");
        assert_eq!(runtime.launched(), [spec.session]);
    }

    #[tokio::test]
    async fn a_lost_reply_has_its_effect() {
        let runtime = FakeRuntime::new();
        let spec = fresh_spec("/nowhere".into());
        runtime.lose_reply_of_next(Verb::Launch, fake::unreachable());
        assert!(runtime.launch(&spec).await.is_err());
        assert_eq!(runtime.launched(), [spec.session]);
        runtime.launch(&spec).await.expect("it runs");
        assert_eq!(runtime.launched(), [spec.session]);
    }

    #[tokio::test]
    async fn streams_end_and_calls_fail_while_it_is_away() {
        let runtime = FakeRuntime::new();
        let spec = fresh_spec("/nowhere".into());
        runtime.launch(&spec).await.expect("it is new");
        let mut news = runtime.watch().await.expect("it is there");
        runtime.goes_away();
        assert_eq!(soon("the end", news.next()).await, None);
        let refused = runtime.list().await;
        assert!(refused.is_err_and(|error| error.is_unavailable()));
        runtime.comes_back();
        assert_eq!(runtime.running(), [spec.session]);
        runtime.restarts();
        assert_eq!(runtime.running(), []);
    }
}
