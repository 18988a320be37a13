//! One test's world: a server with a data directory, a model, remotes, and an end to all of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use scripted_model::{Options, ScriptedModel, Scripts};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::{Answer, Api};
use crate::docker::{self, ContainerEvents};
use crate::fake_claude;
use crate::remote::Remote;

/// The bearer token of every test.
pub const SECRET: &str = "canary-webhook-secret-4f0f6a1c9e";
/// The model credential of every test: only with it does the model answer.
pub const API_KEY: &str = "canary-api-key-8d27c1b5a3";
/// The token for the remote of every test.
pub const GITHUB_TOKEN: &str = "canary-github-token-62b9e07d14";

/// How long a server may take to listen, or to end.
const SERVER_LIMIT: Duration = Duration::from_secs(30);
/// How long a session of a test may take, on a busy machine.
pub const SESSION_LIMIT: Duration = Duration::from_secs(90);
/// How often something is looked at that cannot be waited for.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How often what is left in Docker is looked for at the end.
const DISCARD_TRIES_MAX: usize = 100;
/// How much of the server's log a failed test shows.
const LOG_LINES_SHOWN: usize = 60;

/// Whether `seen` came true within `limit`.
pub async fn eventually(limit: Duration, mut seen: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if seen().await {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// See the module.
pub struct World {
    /// The server's client.
    pub api: Api,
    /// What Claude talks to.
    pub model: ScriptedModel,
    /// The label of everything in Docker.
    pub instance: String,
    dir: TempDir,
    data_dir: PathBuf,
    environment: BTreeMap<&'static str, String>,
    server: Option<Child>,
}

/// Chosen here, so that what happens in Docker can be watched from the beginning.
fn name_instance(data_dir: &Path, instance: &str) {
    std::fs::write(data_dir.join("instance"), instance).expect("the instance's name");
}

/// A file system of a few MiB, gone with this. To make one takes root.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(path: &Path, mib: u64) -> Self {
        std::fs::create_dir(path).expect("a place for the disk");
        let size = format!("size={mib}m,mode=0700");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "baton-test"])
            .arg(path)
            .output()
            .expect("mount can be run");
        let complaints = String::from_utf8_lossy(&mount.stderr);
        assert!(mount.status.success(), "no disk: {complaints}");
        Self {
            path: path.to_owned(),
        }
    }

    /// Leaves no room on it.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file");
        let block = [0; 4096];
        let full = loop {
            if let Err(full) = filler.write_all(&block) {
                break full;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    }

    /// Gives the room back.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The server may have files open on it; it goes when they are closed.
        let _ended = Command::new("umount")
            .arg("--lazy")
            .arg(&self.path)
            .status();
    }
}

impl World {
    /// The real CLI with `scripts`, by name; of those that match, the first by name plays.
    pub async fn with_scripts<const N: usize>(scripts: [(&str, &str); N]) -> Self {
        Self::new(
            Scripts::from_texts(scripts).expect("the scripts are valid"),
            None,
        )
        .await
    }

    /// The real CLI with the scripts that come with the scripted model, in the folder of that name.
    pub async fn with_script_folder(name: &str) -> Self {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripted-model/scripts");
        let scripts = Scripts::load(&scripts.join(name));
        Self::new(scripts.expect("the scripts are valid"), None).await
    }

    /// The misbehaving stand-in for the CLI.
    pub async fn with_fake_claude() -> Self {
        let script = ("fake-start", "match = ['fake start']");
        let scripts = Scripts::from_texts([script]).expect("the script is valid");
        Self::new(scripts, Some(fake_claude::image().await)).await
    }

    async fn new(scripts: Scripts, image: Option<String>) -> Self {
        let require_key = Some(API_KEY.to_owned());
        let model = ScriptedModel::start("127.0.0.1:0", scripts, Options { require_key })
            .await
            .expect("a free port");
        let dir = tempfile::Builder::new()
            .prefix("baton-e2e-")
            .tempdir()
            .expect("a directory");
        let instance = format!("e2e-{}", uuid::Uuid::new_v4().simple());
        let data_dir = dir.path().join("data");
        std::fs::create_dir(&data_dir).expect("a data directory");
        name_instance(&data_dir, &instance);
        let remotes = dir.path().join("remotes");
        std::fs::create_dir(&remotes).expect("a directory for remotes");
        let mut environment = BTreeMap::from([
            ("CLAUDE_WEBHOOK_SECRET", SECRET.to_owned()),
            ("ANTHROPIC_API_KEY", API_KEY.to_owned()),
            ("ANTHROPIC_BASE_URL", model.base_url()),
            ("GITHUB_TOKEN", GITHUB_TOKEN.to_owned()),
            ("BATON_LISTEN", "127.0.0.1:0".to_owned()),
            ("BATON_DATA_DIR", data_dir.display().to_string()),
            (
                "BATON_GIT_BASE_URL",
                format!("file://{}", remotes.display()),
            ),
            ("HOME", dir.path().display().to_string()),
            ("RUST_LOG", "info,baton=debug".to_owned()),
        ]);
        for inherited in ["PATH", "DOCKER_HOST"] {
            if let Ok(value) = std::env::var(inherited) {
                environment.insert(inherited, value);
            }
        }
        environment.extend(image.map(|image| ("CLAUDE_CONTAINER_IMAGE", image)));
        Self {
            api: Api::new(SECRET),
            model,
            instance,
            dir,
            data_dir,
            environment,
            server: None,
        }
    }

    // --- before the start -------------------------------------------------------------------------

    /// Sets a variable of the server's environment, for its next start.
    pub fn set(&mut self, name: &'static str, value: impl ToString) {
        self.environment.insert(name, value.to_string());
    }

    /// Has every server of this world listen on the same port, for clients that outlive one.
    pub fn listen_on_a_free_port(&mut self) {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("its address");
        self.set("BATON_LISTEN", address);
    }

    /// Gives the server a data directory on a disk of its own, of so many MiB.
    pub fn on_a_disk_of(&mut self, mib: u64) -> SmallDisk {
        let disk = SmallDisk::mount(&self.dir.path().join("disk"), mib);
        name_instance(&disk.path, &self.instance);
        self.data_dir.clone_from(&disk.path);
        self.set("BATON_DATA_DIR", disk.path.display().to_string());
        disk
    }

    /// Removes a variable from the server's environment, for its next start.
    pub fn unset(&mut self, name: &'static str) {
        self.environment.remove(name);
    }

    /// Writes `baton.toml` where the server looks for it.
    pub fn configure(&self, toml: &str) {
        std::fs::write(self.dir.path().join("baton.toml"), toml).expect("a configuration file");
    }

    /// A remote repository with one commit of `files` on `main`.
    pub async fn remote(&self, name: &str, files: &[(&str, &str)]) -> Remote {
        Remote::create(&self.remotes(), name, files).await
    }

    // --- the server -------------------------------------------------------------------------------

    /// Starts the server and waits until it listens.
    pub async fn start_server(&mut self) {
        let log = self.log();
        let skip = log.len();
        let file = File::options()
            .create(true)
            .append(true)
            .open(self.log_path());
        let file = file.expect("the server's log");
        let child = Command::new(env!("CARGO_BIN_EXE_baton"))
            .arg("serve")
            .current_dir(self.dir.path())
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle of the log"))
            .stderr(file)
            .spawn()
            .expect("the server can be run");
        self.server = Some(child);
        let mut address = None;
        let listens = eventually(SERVER_LIMIT, async || {
            let log = self.log();
            address = log[skip..].lines().find_map(|line| {
                line.strip_prefix("baton listens on ")
                    .map(|url| url.trim().to_owned())
            });
            address.is_some() || self.has_ended().is_some()
        })
        .await;
        match address {
            Some(address) => self.api.listens_on(&address),
            None => panic!(
                "the server does not listen (in time: {listens}):\n{}",
                self.log()
            ),
        }
    }

    /// The server's process.
    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().expect("a server runs").id()
    }

    /// How the server ended, once it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        let server = self.server.as_mut()?;
        server.try_wait().expect("the server is our child")
    }

    /// Waits until the server has ended by itself.
    pub async fn server_ended(&mut self) -> ExitStatus {
        let mut ended = None;
        eventually(SERVER_LIMIT, async || {
            ended = self.has_ended();
            ended.is_some()
        })
        .await;
        ended.expect("the server ends in time")
    }

    /// Waits until the server has died by SIGKILL, as a reached failpoint makes it.
    pub async fn server_died(&mut self) {
        let status = self.server_ended().await;
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}");
    }

    /// `kill -9`.
    pub fn kill_server(&mut self) {
        let server = self.server.as_mut().expect("a server runs");
        server.kill().expect("the server is our child");
        server.wait().expect("the server is our child");
    }

    /// Asks the server to end and waits until it has.
    pub async fn stop_server(&mut self) -> ExitStatus {
        let pid = Pid::from_raw(self.server_pid().cast_signed()).expect("a process id");
        kill_process(pid, Signal::TERM).expect("the server is our child");
        self.server_ended().await
    }

    /// All that the servers of this test logged.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// The server's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone()
    }

    /// The directory with all remotes.
    pub fn remotes(&self) -> PathBuf {
        self.dir.path().join("remotes")
    }

    /// How many directories with sockets for sandboxes there are.
    pub fn run_dirs(&self) -> usize {
        let run_dirs = std::fs::read_dir(self.data_dir().join("run"));
        run_dirs.expect("the server has made it").count()
    }

    /// The server's mirror of a repository.
    pub fn mirror(&self, name: &str) -> Remote {
        Remote::at(self.data_dir().join("repos").join(format!("{name}.git")))
    }

    /// The server's resident memory in KiB.
    pub fn server_rss_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.server_pid());
        let status = std::fs::read_to_string(path).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let figure = line.and_then(|line| line.trim().strip_suffix(" kB"));
        figure
            .and_then(|figure| figure.parse().ok())
            .expect("the kernel tells the memory")
    }

    // --- sessions ---------------------------------------------------------------------------------

    /// Creates an implementation session on `owner/repo`; gives its id.
    pub async fn create(&self, requirements: &str, dependencies: &[&str]) -> String {
        self.create_with(json!({ "dependencies": dependencies }), requirements)
            .await
    }

    /// The same with more fields of `session`.
    pub async fn create_with(&self, fields: Value, requirements: &str) -> String {
        let mut session = json!({
            "type": "implementation",
            "project": { "repository": "owner/repo", "requirements": requirements },
        });
        if let (Some(session), Value::Object(fields)) = (session.as_object_mut(), fields) {
            session.extend(fields);
        }
        let answer = self
            .api
            .call("session.create", json!({ "session": session }))
            .await;
        text(&answer["data"]["session"]["id"])
    }

    /// Asks for a session to start.
    pub async fn start(&self, id: &str) -> Value {
        self.api
            .call("session.start", json!({ "sessionId": id }))
            .await
    }

    /// Creates a session and starts it.
    pub async fn run(&self, requirements: &str, dependencies: &[&str]) -> String {
        let id = self.create(requirements, dependencies).await;
        self.start(&id).await;
        id
    }

    /// Creates a session, starts it, and waits until it is over; gives it.
    pub async fn ran(&self, requirements: &str) -> Value {
        let id = self.run(requirements, &[]).await;
        self.over(&id).await
    }

    /// Asks for a session to stop.
    pub async fn cancel(&self, id: &str) -> Value {
        self.api
            .call("session.cancel", json!({ "sessionId": id }))
            .await
    }

    /// Says something to a session's Claude.
    pub async fn say(&self, id: &str, text: &str) -> Value {
        let fields = json!({ "sessionId": id, "text": text });
        self.api.call("session.message", fields).await
    }

    /// Asks for a new attempt of a session.
    pub async fn retry(&self, id: &str) -> Value {
        self.api
            .call("session.retry", json!({ "sessionId": id }))
            .await
    }

    /// A session as it is now.
    pub async fn session(&self, id: &str) -> Value {
        let mut answer = self
            .api
            .call("session.get", json!({ "sessionId": id }))
            .await;
        answer["data"]["session"].take()
    }

    /// A session's log lines and what else `output` holds.
    pub async fn output(&self, id: &str) -> Value {
        let fields = json!({ "sessionId": id, "limit": 10_000 });
        let mut answer = self.api.call("session.output", fields).await;
        answer["data"]["output"].take()
    }

    /// Waits until a session has `status`, and gives it.
    pub async fn until(&self, id: &str, status: &str) -> Value {
        let mut session = Value::Null;
        eventually(SESSION_LIMIT, async || {
            session = self.session(id).await;
            session["status"] == status || is_over(&session)
        })
        .await;
        assert_eq!(session["status"], status, "{session:#}");
        session
    }

    /// Waits until a session is over, whatever became of it, and gives it.
    pub async fn over(&self, id: &str) -> Value {
        let mut session = Value::Null;
        let over = eventually(SESSION_LIMIT, async || {
            session = self.session(id).await;
            is_over(&session)
        })
        .await;
        assert!(over, "not over in time: {session:#}");
        session
    }

    /// Waits until a session has completed, and gives it.
    pub async fn completed(&self, id: &str) -> Value {
        let session = self.over(id).await;
        assert_eq!(session["status"], "completed", "{session:#}");
        session
    }

    /// Waits until a session has failed with `code`, and gives it.
    pub async fn failed(&self, id: &str, code: &str) -> Value {
        let session = self.over(id).await;
        assert_eq!(session["errorCode"], code, "{session:#}");
        assert_eq!(session["status"], "failed", "{session:#}");
        session
    }

    /// Waits until one of a session's log lines is `line`.
    pub async fn printed(&self, id: &str, line: &str) {
        let mut output = Value::Null;
        let printed = eventually(SESSION_LIMIT, async || {
            output = self.output(id).await;
            lines_of(&output).contains(&line)
        })
        .await;
        assert!(printed, "{line:?} was never printed: {output:#}");
    }

    /// All events of a session that is over, checked to be numbered from 1 without a gap.
    pub async fn events(&self, id: &str) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        let mut last_seq = 0;
        loop {
            let page = self.events_after(id, last_seq).await;
            if page.is_empty() {
                return events;
            }
            for event in page {
                let seq = event["seq"].as_u64().expect("events have numbers");
                assert_eq!(seq, last_seq + 1, "a gap or a repetition before {event}");
                last_seq = event["lastSeq"].as_u64().unwrap_or(seq);
                events.push(event);
            }
        }
    }

    /// A page of a session's events, from the one after `seq` on.
    pub async fn events_after(&self, id: &str, seq: u64) -> Vec<Value> {
        let path = format!("/api/v1/sessions/{id}/events?after={seq}");
        let Answer { status, text, .. } = self.api.get(&path).await;
        assert_eq!(status, 200, "{text}");
        let parsed = text
            .lines()
            .filter(|line| !line.is_empty())
            .map(serde_json::from_str);
        parsed
            .collect::<Result<_, _>>()
            .expect("events are JSON, one a line")
    }

    /// Listens to what happens to this world's containers.
    pub fn container_events(&self) -> ContainerEvents {
        ContainerEvents::listen(&self.instance)
    }

    /// Waits until nothing of this world's is left in Docker, neither containers nor volumes, but
    /// the conversations of sessions that are over.
    pub async fn docker_is_empty(&self) {
        let mut left = Vec::new();
        let empty = eventually(SESSION_LIMIT, async || {
            left = docker::containers(&self.instance).await;
            let volumes = docker::volumes(&self.instance).await.into_iter();
            left.extend(volumes.filter(|volume| !volume.ends_with("-state")));
            left.is_empty()
        })
        .await;
        assert!(empty, "left in Docker: {left:?}");
    }

    /// Waits until this world has no container any more.
    pub async fn no_container(&self) {
        let mut left = Vec::new();
        let empty = eventually(SESSION_LIMIT, async || {
            left = docker::containers(&self.instance).await;
            left.is_empty()
        })
        .await;
        assert!(empty, "left in Docker: {left:?}");
    }

    fn show(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        eprintln!("--- the server's log:\n{}", tail.join("\n"));
        for name in docker_now(&["ps", "--all", "--format", "{{.Names}}"], &self.instance) {
            let output = Command::new("docker")
                .args(["logs", "--tail", "20", &name])
                .output();
            let said = output.map(|output| [output.stdout, output.stderr].concat());
            eprintln!(
                "--- {name}:\n{}",
                String::from_utf8_lossy(&said.unwrap_or_default())
            );
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It may have died before; nothing here may panic.
            let _ = server.kill();
            let _ = server.wait();
        }
        if std::thread::panicking() {
            self.show();
        }
        // A removal that the server asked for may be under way, and holds the volumes until it ends.
        for _ in 0..DISCARD_TRIES_MAX {
            discard(
                &["rm", "--force"],
                &docker_now(&["ps", "--all", "--quiet"], &self.instance),
            );
            let volumes = docker_now(&["volume", "ls", "--quiet"], &self.instance);
            if volumes.is_empty() {
                return;
            }
            discard(&["volume", "rm", "--force"], &volumes);
            std::thread::sleep(LOOK_PAUSE);
        }
        eprintln!("something of {} is left in Docker", self.instance);
    }
}

/// What a list of Docker's has of an instance, without an executor; for the end of a test.
fn docker_now(list: &[&str], instance: &str) -> Vec<String> {
    let filter = format!("label=baton.instance={instance}");
    let output = Command::new("docker")
        .args(list)
        .args(["--filter", &filter])
        .output();
    let names = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    names
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn discard(verb: &[&str], names: &[String]) {
    if !names.is_empty() {
        let _ = Command::new("docker").args(verb).args(names).output();
    }
}

/// Whether a session is over.
pub fn is_over(session: &Value) -> bool {
    let over = ["completed", "failed", "cancelled", "blocked"];
    over.iter().any(|status| session["status"] == *status)
}

/// A JSON string's text.
#[track_caller]
pub fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("not a text: {value}"))
        .to_owned()
}

/// The log lines of an output.
pub fn lines_of(output: &Value) -> Vec<&str> {
    let lines = output["logs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    lines.iter().filter_map(Value::as_str).collect()
}

/// What Claude printed to its stdout, by event, each line in one canonical form.
pub fn stdout_lines(events: &[Value]) -> Vec<String> {
    let line = |event: &Value| match event["type"].as_str() {
        Some("claude") => Some(event["message"].to_string()),
        Some("stdout") => Some(text(&event["line"])),
        _ => None,
    };
    events.iter().filter_map(line).collect()
}

/// How often `event` happened to the session.
pub fn count_of(events: &[Value], event: &str) -> usize {
    events
        .iter()
        .filter(|of| of["type"] == "session" && of["event"] == event)
        .count()
}

/// All regular files below `dir`.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}
