//! The contract's stage on real Docker, and what only real Docker can show.
//!
//! The agent of these sandboxes is a shell script that tells of its start and awaits orders
//! through two FIFOs in its run directory: no test waits by the clock.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use baton::runtime::{DockerRuntime, Runtime, RuntimeError, SandboxSpec, Volumes};
use baton_domain::{Attempt, SandboxState, SessionId};
use bollard::Docker;
use bollard::models::{ContainerConfig, ContainerCreateBody, VolumeCreateRequest};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, InspectContainerOptions,
    ListContainersOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveImageOptions, RemoveVolumeOptions, UploadToContainerOptionsBuilder,
};
use futures::StreamExt;
use jiff::Timestamp;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{IMAGE, Stage, exited, fresh_spec, seen, soon};

const AGENT: &str = r#"#!/bin/sh
echo started > /run/baton/starts
read -r order < /run/baton/orders
case $order in
exit*) exit "${order#exit }" ;;
memory) exec tail /dev/zero ;;
esac
"#;

pub struct DockerStage {
    instance: String,
    runtime: DockerRuntime,
    docker: Docker,
    run_dirs: Mutex<HashMap<SessionId, RunDir>>,
    /// An image made by this test.
    image: Mutex<Option<String>>,
}

struct RunDir {
    starts: File,
    orders: File,
    _dir: TempDir,
}

impl DockerStage {
    pub fn new() -> Self {
        let instance = format!("contract-{}", Uuid::new_v4().simple());
        Self {
            runtime: DockerRuntime::connect(&instance, None).expect("the default host is good"),
            docker: Docker::connect_with_unix_defaults().expect("a Docker daemon runs here"),
            instance,
            run_dirs: Mutex::default(),
            image: Mutex::default(),
        }
    }

    fn spec_with_agent(&self, agent: &str) -> SandboxSpec {
        let dir = TempDir::with_prefix("baton-contract-").expect("there is room");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("it is ours");
        let program = dir.path().join("agent");
        fs::write(&program, agent).expect("there is room");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("it is ours");
        let spec = fresh_spec(dir.path().to_owned());
        let run_dir = RunDir {
            starts: fifo(&dir.path().join("starts")),
            orders: fifo(&dir.path().join("orders")),
            _dir: dir,
        };
        let mut run_dirs = self.run_dirs.lock().expect("no test panicked");
        run_dirs.insert(spec.session, run_dir);
        spec
    }

    fn orders(&self, spec: &SandboxSpec, order: &str) {
        let run_dirs = self.run_dirs.lock().expect("no test panicked");
        let mut orders = &run_dirs[&spec.session].orders;
        writeln!(orders, "{order}").expect("a FIFO has room for a line");
    }

    /// Launches a sandbox whose agent is `script`, and gives the code it exits with.
    async fn runs(&self, spec: &SandboxSpec) -> i64 {
        let mut news = self.runtime.watch().await.expect("the daemon is there");
        self.runtime.launch(spec).await.expect("it is new");
        match seen(&mut news, spec, exited).await.state {
            SandboxState::Exited { code, .. } => code,
            other => panic!("{other:?} is no exit"),
        }
    }

    fn label(&self) -> String {
        format!("baton.instance={}", self.instance)
    }
}

/// Open at both ends on our side, so that neither side ever waits for the other to open it.
fn fifo(path: &Path) -> File {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("the path is new");
    fs::set_permissions(path, Permissions::from_mode(0o666)).expect("it is ours");
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag is small");
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(nonblocking);
    options.open(path).expect("it was just made")
}

#[async_trait]
impl Stage for DockerStage {
    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }

    fn spec(&self) -> SandboxSpec {
        self.spec_with_agent(AGENT)
    }

    async fn exits(&self, spec: &SandboxSpec, code: i64) {
        self.orders(spec, &format!("exit {code}"));
    }

    async fn runs_out_of_memory(&self, spec: &SandboxSpec) {
        self.orders(spec, "memory");
    }

    async fn vanishes(&self, spec: &SandboxSpec) {
        remove(&self.docker, &spec.id().0).await;
    }

    async fn starts(&self, spec: &SandboxSpec) -> usize {
        let run_dirs = self.run_dirs.lock().expect("no test panicked");
        let mut starts = &run_dirs[&spec.session].starts;
        let mut told = [0; 4_096];
        let length = starts.read(&mut told).expect("it started, and said so");
        told[..length].iter().filter(|byte| **byte == b'\n').count()
    }

    async fn volumes(&self, spec: &SandboxSpec) -> usize {
        let label = format!("baton.session={}", spec.session);
        volumes(&self.docker, label).await.len()
    }

    async fn occupies(&self, name: &str) {
        // Removed with the rest, but by this label no runtime of ours looks for anything.
        let labels = [("baton.test".to_owned(), self.instance.clone())].into();
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let body = ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            entrypoint: Some(vec!["/bin/true".to_owned()]),
            labels: Some(labels),
            ..ContainerCreateBody::default()
        };
        let made = self.docker.create_container(Some(options), body).await;
        made.expect("the name is free");
    }

    async fn is_occupied(&self, name: &str) -> bool {
        let options = None::<InspectContainerOptions>;
        self.docker.inspect_container(name, options).await.is_ok()
    }

    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

impl Drop for DockerStage {
    /// Removes what this stage made, after a failed test too. On a thread of its own: a test's
    /// own reactor cannot be waited for from within it.
    fn drop(&mut self) {
        let labels = [self.label(), format!("baton.test={}", self.instance)];
        let image = self.image.get_mut().map_or(None, |image| image.take());
        let cleaned = std::thread::spawn(move || {
            let reactor = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            reactor
                .expect("threads can be had")
                .block_on(clean(labels, image));
        });
        if cleaned.join().is_err() {
            eprintln!("containers labelled baton.instance={} stay", self.instance);
        }
    }
}

async fn clean(labels: [String; 2], image: Option<String>) {
    let docker = Docker::connect_with_unix_defaults().expect("a Docker daemon runs here");
    for label in labels {
        let filters = HashMap::from([("label", vec![label.clone()])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let listed = docker.list_containers(Some(options)).await;
        for container in listed.expect("the daemon is there") {
            remove(&docker, &container.id.expect("each has one")).await;
        }
        for volume in volumes(&docker, label).await {
            let options = None::<RemoveVolumeOptions>;
            let removed = docker.remove_volume(&volume, options).await;
            removed.expect("nothing holds it");
        }
    }
    if let Some(image) = image {
        let options = None::<RemoveImageOptions>;
        let removed = docker.remove_image(&image, options, None).await;
        removed.expect("nothing holds it");
    }
}

async fn remove(docker: &Docker, container: &str) {
    let options = RemoveContainerOptionsBuilder::new()
        .force(true)
        .v(true)
        .build();
    let removed = docker.remove_container(container, Some(options)).await;
    removed.expect("it is there");
}

async fn volumes(docker: &Docker, label: String) -> Vec<String> {
    let filters = HashMap::from([("label", vec![label])]);
    let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
    let listed = docker.list_volumes(Some(options)).await;
    let listed = listed.expect("the daemon is there").volumes;
    let names = listed.unwrap_or_default().into_iter();
    names.map(|volume| volume.name).collect()
}

#[tokio::test]
async fn other_instances_sandboxes_are_not_listed_watched_or_removed() {
    let [ours, theirs] = [DockerStage::new(), DockerStage::new()];
    let [our_spec, their_spec] = [ours.spec(), theirs.spec()];
    let mut our_news = ours.runtime.watch().await.expect("the daemon is there");
    theirs.runtime.launch(&their_spec).await.expect("it is new");
    ours.runtime.launch(&our_spec).await.expect("it is new");

    let listed = ours.runtime.list().await.expect("the daemon is there");
    let ids: Vec<_> = listed.into_iter().map(|sandbox| sandbox.id).collect();
    assert_eq!(ids, [our_spec.id()]);

    let refused = ours.runtime.remove(&their_spec.id(), Volumes::Remove).await;
    let message = refused.expect_err("it is theirs").to_string();
    assert!(message.contains(&theirs.instance), "{message}");
    assert_eq!(theirs.volumes(&their_spec).await, 2);

    let mut their_news = theirs.runtime.watch().await.expect("the daemon is there");
    theirs.exits(&their_spec, 0).await;
    seen(&mut their_news, &their_spec, exited).await;
    ours.exits(&our_spec, 0).await;
    let first = soon("our exit", our_news.next()).await;
    assert_eq!(first.map(|sandbox| sandbox.id), Some(our_spec.id()));
}

/// The session's id may be a client's choice, and so may come twice on one host.
#[tokio::test]
async fn volumes_kept_by_another_instance_are_not_mounted() {
    let [ours, theirs] = [DockerStage::new(), DockerStage::new()];
    let spec = theirs.spec();
    theirs.runtime.prepare(&spec).await.expect("it is new");
    let removed = theirs.runtime.remove(&spec.id(), Volumes::Keep).await;
    removed.expect("it is theirs");

    let refused = ours.runtime.launch(&spec).await;
    assert!(
        matches!(&refused, Err(RuntimeError::NameTaken { name, holder, .. })
            if name.ends_with("-workspace") && holder.contains(&theirs.instance)),
        "{refused:?}"
    );
    assert!(!ours.is_occupied(&spec.id().0).await, "nothing is left");
    assert_eq!(theirs.volumes(&spec).await, 2, "theirs are untouched");
}

/// Whatever bears the name of an earlier attempt's state must also be labelled as that.
#[tokio::test]
async fn an_earlier_state_that_is_not_the_sessions_own_is_not_mounted() {
    let stage = DockerStage::new();
    let spec = SandboxSpec {
        attempt: Attempt(2),
        earlier: Some(Attempt::FIRST),
        ..stage.spec()
    };
    let name = format!("baton-{}-1-state", spec.session);
    let mut labels: HashMap<String, String> = [
        ("baton.instance", stage.instance.as_str()),
        ("baton.session", &Uuid::now_v7().to_string()),
        ("baton.attempt", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for step in ["another session's", "another attempt's", "nobody's"] {
        let request = VolumeCreateRequest {
            name: Some(name.clone()),
            labels: Some(labels.clone()),
            ..VolumeCreateRequest::default()
        };
        stage.docker.create_volume(request).await.expect("made");
        for refused in [
            stage.runtime.prepare(&spec).await,
            stage.runtime.launch(&spec).await,
        ] {
            assert!(
                matches!(&refused, Err(RuntimeError::NameTaken { name: taken, .. }) if *taken == name),
                "{step}: {refused:?}"
            );
        }
        assert!(!stage.is_occupied(&spec.id().0).await, "nothing is made");
        let removed = stage
            .docker
            .remove_volume(&name, None::<RemoveVolumeOptions>);
        removed.await.expect("nothing holds it");
        labels.insert("baton.session".to_owned(), spec.session.to_string());
        if step == "another session's" {
            labels.insert("baton.attempt".to_owned(), "3".to_owned());
        } else {
            labels.remove("baton.instance");
        }
    }
}

/// The state is there to be read, and nothing else of the earlier attempt is.
#[tokio::test]
async fn an_earlier_state_is_seen_from_within_and_cannot_be_written() {
    let stage = DockerStage::new();
    let spec = stage.spec_with_agent(
        r#"#!/bin/sh
if [ ! -e /earlier ]; then mkdir /state/claude && echo said > /state/claude/x; exit; fi
[ "$(cat /earlier/claude/x)" = said ]     || exit 10
! touch /earlier/y 2>/dev/null            || exit 11
[ -z "$(ls -A /state /workspace | grep x)" ] || exit 12
"#,
    );
    assert_eq!(stage.runs(&spec).await, 0);
    let second = SandboxSpec {
        attempt: Attempt(2),
        earlier: Some(spec.attempt),
        ..spec
    };
    assert_eq!(stage.runs(&second).await, 0, "a number names the check");
}

/// Checked from within, by what the kernel says: the flags of the request are pinned elsewhere.
#[tokio::test]
async fn a_sandbox_is_sealed_as_seen_from_within() {
    let stage = DockerStage::new();
    let spec = stage.spec_with_agent(
        r#"#!/bin/sh
fail() { echo "$2" >&2; exit "$1"; }
status() { grep -qE "^$1:[[:space:]]+$2\$" /proc/self/status; }
[ "$(id -u):$(id -g)" = 10001:10001 ]     || fail 10 user
[ "$(ls /sys/class/net)" = lo ]           || fail 11 network
status CapBnd 0000000000000000            || fail 12 capabilities
status NoNewPrivs 1                       || fail 13 no-new-privileges
status Seccomp 2                          || fail 14 seccomp
! touch /usr/x 2>/dev/null                || fail 15 root
! touch /run/baton/x 2>/dev/null          || fail 16 run-directory
[ "$HOME" = /home/agent ]                 || fail 17 home
[ "$(pwd)" = /workspace ]                 || fail 18 directory
touch /workspace/x /state/x /tmp/x "$HOME/x" || fail 19 writable
[ "$(ulimit -c)" = 0 ]                    || fail 20 core
[ "$(ulimit -n)" = 1024 ]                 || fail 21 files
printf '#!/bin/sh\nexit 0\n' > /tmp/run && chmod +x /tmp/run && /tmp/run || fail 22 exec
"#,
    );
    assert_eq!(stage.runs(&spec).await, 0, "a number names the check");
}

/// A user's own image has no `/workspace`, or one that is root's.
#[tokio::test]
async fn volumes_on_a_foreign_image_belong_to_the_session() {
    let stage = DockerStage::new();
    let image = foreign_image(&stage).await;
    let spec = SandboxSpec {
        image,
        ..stage.spec_with_agent("#!/bin/sh\ntouch /workspace/x && touch /state/x\n")
    };
    let check = stage.runtime.image_exists(&spec.image).await;
    let check = check.expect("the daemon is there").expect("it was made");
    assert_eq!(check.baton_label, None);
    assert!(check.id.starts_with("sha256:"));

    assert_eq!(stage.runs(&spec).await, 0);
    let listed = stage.runtime.list().await.expect("the daemon is there");
    assert_eq!(listed.len(), 1, "nothing else is listed");
    let removed = stage.runtime.remove(&spec.id(), Volumes::Remove).await;
    removed.expect("it is ours");
    assert_eq!(volumes(&stage.docker, stage.label()).await.len(), 0);
}

/// An image whose `/workspace` and `/state` are root's, without our label.
async fn foreign_image(stage: &DockerStage) -> String {
    let docker = &stage.docker;
    let source = format!("{}-source", stage.instance);
    stage.occupies(&source).await;
    let dir = TempDir::with_prefix("baton-contract-").expect("there is room");
    for directory in ["workspace", "state"] {
        fs::create_dir(dir.path().join(directory)).expect("it is new");
    }
    let tar = std::process::Command::new("tar")
        .args(["--create", "--owner=0", "--group=0", "--mode=0755"])
        .args(["workspace", "state"])
        .current_dir(dir.path())
        .output()
        .expect("tar is installed");
    let options = UploadToContainerOptionsBuilder::new().path("/").build();
    let archive = bollard::body_full(tar.stdout.into());
    let uploaded = docker.upload_to_container(&source, Some(options), archive);
    uploaded.await.expect("its root is writable");

    let (repository, tag) = ("baton-contract-foreign", stage.instance.as_str());
    let options = CommitContainerOptionsBuilder::new()
        .container(&source)
        .repo(repository)
        .tag(tag)
        .build();
    let config = ContainerConfig {
        labels: Some([("dev.baton.image".to_owned(), String::new())].into()),
        ..ContainerConfig::default()
    };
    let committed = docker.commit_container(options, config).await;
    committed.expect("the source is there");
    let image = format!("{repository}:{tag}");
    *stage.image.lock().expect("no test panicked") = Some(image.clone());
    image
}

#[tokio::test]
async fn an_absent_daemon_is_unavailable_until_it_comes() {
    let dir = TempDir::with_prefix("baton-contract-").expect("there is room");
    let socket = dir.path().join("docker.sock");
    let host = format!("unix://{}", socket.display());
    let runtime = DockerRuntime::connect("contract-absent", Some(&host));
    let runtime = runtime.expect("connecting dials nothing");
    let spec = fresh_spec("/nowhere".into());
    let tries = [
        runtime.ping().await,
        runtime.prepare(&spec).await.map(|_| ()),
        runtime.launch(&spec).await.map(|_| ()),
        runtime.list().await.map(|_| ()),
        runtime.watch().await.map(|_| ()),
        runtime.remove(&spec.id(), Volumes::Remove).await,
        runtime.image_exists(IMAGE).await.map(|_| ()),
        runtime
            .remove_kept_volumes(Timestamp::now(), &HashSet::new())
            .await
            .map(|_| ()),
    ];
    for refused in tries {
        assert!(
            refused.as_ref().is_err_and(RuntimeError::is_unavailable),
            "{refused:?}"
        );
    }
    // The daemon comes: its socket appears at that path. It goes: the path leads nowhere.
    std::os::unix::fs::symlink("/var/run/docker.sock", &socket).expect("the path is free");
    runtime.ping().await.expect("the daemon came");
    fs::remove_file(&socket).expect("it is ours");
    let refused = runtime.ping().await;
    assert!(
        refused.as_ref().is_err_and(RuntimeError::is_unavailable),
        "{refused:?}"
    );
}

/// A daemon that goes away in the middle of a watch, played by a proxy to the real one.
#[tokio::test]
async fn a_watch_ends_with_the_connection_and_can_be_begun_anew() {
    let stage = DockerStage::new();
    let spec = stage.spec();
    let dir = TempDir::with_prefix("baton-contract-").expect("there is room");
    let socket = dir.path().join("docker.sock");
    let host = format!("unix://{}", socket.display());
    let runtime = DockerRuntime::connect(&stage.instance, Some(&host));
    let runtime = runtime.expect("connecting dials nothing");

    let proxy = Proxy::at(&socket);
    let mut news = runtime.watch().await.expect("the proxy is there");
    runtime.launch(&spec).await.expect("it is new");
    proxy.goes_away().await;
    assert_eq!(soon("the end", news.next()).await, None);
    let refused = runtime.list().await;
    assert!(refused.is_err_and(|error| error.is_unavailable()));
    let refused = runtime.watch().await;
    assert!(refused.is_err_and(|error| error.is_unavailable()));

    fs::remove_file(&socket).expect("it is ours");
    let _proxy = Proxy::at(&socket);
    let mut news = runtime.watch().await.expect("the proxy is back");
    let listed = runtime.list().await.expect("the proxy is back");
    assert_eq!(listed[0].state, SandboxState::Running);
    stage.exits(&spec, 0).await;
    seen(&mut news, &spec, exited).await;
}

/// Passes connections on to the daemon until told to drop them all.
struct Proxy(tokio::task::JoinHandle<()>);

impl Proxy {
    fn at(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("the path is free");
        Self(tokio::spawn(async move {
            // Dropping the set ends every connection in it.
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut far = UnixStream::connect("/var/run/docker.sock").await?;
                    copy_bidirectional(&mut near, &mut far).await
                });
            }
        }))
    }

    async fn goes_away(self) {
        self.0.abort();
        let ended = self.0.await;
        assert!(ended.is_err_and(|error| error.is_cancelled()));
    }
}

#[tokio::test]
async fn a_missing_run_directory_is_refused_in_dockers_words() {
    let stage = DockerStage::new();
    let spec = SandboxSpec {
        run_dir: "/nowhere/at/all".into(),
        ..stage.spec()
    };
    let refused = stage.runtime.launch(&spec).await;
    let message = refused.expect_err("there is nothing to mount").to_string();
    assert!(message.contains(&spec.id().0), "{message}");
    assert!(message.contains("/nowhere/at/all"), "{message}");
}
