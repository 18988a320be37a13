//! A server's side of the socket, a repository and a Claude made of a few lines of shell, so that
//! the real agent can be run as an ordinary process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use baton_agent::protocol::{
    Body, Checkout, ClaudeCommand, Ending, Frame, Hello, Job, Note, Numbered, Say, Stream, Timers,
    UPGRADE,
};
use bytes::BytesMut;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Where the agent pushes to.
pub const PUSH_REF: &str = "refs/baton/results/one";
/// A test that waits longer than this for one thing waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// The line with which a session ends well.
pub const RESULT: &str = r#"{"subtype":"success","is_error":false,"result":"done","total_cost_usd":0.5,"usage":{"input_tokens":1,"output_tokens":2},"type":"result"}"#;

/// What a sandbox is made of: directories, a repository with one commit, a job.
pub struct Sandbox {
    dir: TempDir,
    /// To be changed before the agent gets it.
    pub job: Job,
}

impl Sandbox {
    /// One whose Claude is `script`, run by bash in the workspace.
    pub fn new(script: &str) -> Self {
        let dir = TempDir::new().expect("a directory");
        for part in ["run", "state", "earlier", "workspace", "home"] {
            fs::create_dir(dir.path().join(part)).expect("a directory");
        }
        let claude = dir.path().join("claude");
        fs::write(&claude, format!("#!/bin/bash\n{script}\n")).expect("a script");
        fs::set_permissions(&claude, fs::Permissions::from_mode(0o755)).expect("executable");
        let repository = dir.path().join("repository.git");
        let commit = make_repository(&repository);
        let job = Job {
            session: "0190-one".into(),
            attempt: 1,
            checkout: Checkout {
                path: format!("file://{}", repository.display()),
                fetch_ref: "refs/heads/main".into(),
                commit,
                branch: "baton/one".into(),
                author_name: "A \"quoted\" \\ Name".into(),
                author_email: "session@example.org".into(),
                merges: Vec::new(),
                begin_merge: false,
            },
            push_ref: Some(PUSH_REF.into()),
            claude: ClaudeCommand {
                program: claude.display().to_string(),
                listens: true,
                args: vec!["-p".into()],
                env: vec![("GREETING".into(), "hello".into())],
                prompt: "Do it.".into(),
                pass_claude_md: true,
                system_prompt: "Be brief.".into(),
            },
            timers: Timers {
                first_byte_ms: 30_000,
                silence_ms: 30_000,
                result_grace_ms: 30_000,
                term_grace_ms: 30_000,
                timeout_ms: 60_000,
            },
            conversation: None,
        };
        Self { dir, job }
    }

    pub fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    pub fn repository(&self) -> PathBuf {
        self.path("repository.git")
    }

    /// Starts the agent at `port`, 0 for any.
    pub fn start(&self, port: u16) -> Agent {
        let child = Command::new(env!("CARGO_BIN_EXE_baton-agent"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--earlier-dir")
            .arg(self.path("earlier"))
            .arg("--workspace-dir")
            .arg(self.path("workspace"))
            .arg("--home-dir")
            .arg(self.path("home"))
            .args(["--port", &port.to_string()])
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the agent starts");
        Agent(child)
    }

    /// Takes the socket; what a dead server left there is removed.
    pub fn listen(&self) -> Server {
        let path = self.path("run/session.sock");
        let _ = fs::remove_file(&path);
        Server {
            listener: UnixListener::bind(path).expect("a socket"),
            job: self.job.clone(),
        }
    }

    /// The usual: one server, one agent, to the end.
    pub async fn run(&self) -> Transcript {
        let server = self.listen();
        let mut agent = self.start(0);
        let mut transcript = Transcript::default();
        let mut connection = server.accept().await;
        connection.receive_to_end(&mut transcript).await;
        assert!(agent.exit().await.success());
        transcript
    }
}

/// The agent's process.
pub struct Agent(Child);

impl Agent {
    pub async fn exit(&mut self) -> ExitStatus {
        soon(self.0.wait()).await.expect("a status")
    }

    pub async fn kill(&mut self) {
        self.0.kill().await.expect("killed");
    }

    pub fn terminate(&self) {
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid
            .and_then(rustix::process::Pid::from_raw)
            .expect("it runs");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    }
}

/// Listens on the socket.
pub struct Server {
    listener: UnixListener,
    job: Job,
}

impl Server {
    pub async fn accept_raw(&self) -> UnixStream {
        soon(self.listener.accept()).await.expect("a connection").0
    }

    /// Accepts the agent and gives it its job.
    pub async fn accept(&self) -> Connection {
        let mut stream = self.accept_raw().await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(stream.read_u8()).await.expect("a request"));
        }
        let head = String::from_utf8(head).expect("text");
        assert!(head.starts_with("GET /agent HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("Upgrade: {UPGRADE}\r\n")), "{head}");
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await.expect("answered");
        let mut connection = Connection {
            stream,
            buffer: BytesMut::new(),
            hello: Hello::default(),
        };
        match connection.next().await {
            Some(Frame::Hello(hello)) => connection.hello = hello,
            other => panic!("not a greeting: {other:?}"),
        }
        connection
            .send(&Frame::Job(Box::new(self.job.clone())))
            .await;
        connection
    }
}

/// The agent, connected.
pub struct Connection {
    stream: UnixStream,
    buffer: BytesMut,
    pub hello: Hello,
}

impl Connection {
    pub async fn send(&mut self, frame: &Frame) {
        let mut wire = BytesMut::new();
        frame.encode(&mut wire);
        self.stream.write_all(&wire).await.expect("sent");
    }

    pub async fn say(&mut self, number: u64, text: &str) {
        let text = text.to_owned();
        self.send(&Frame::Say(Say { number, text })).await;
    }

    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer).expect("a frame") {
                return Some(frame);
            }
            let read = soon(self.stream.read_buf(&mut self.buffer)).await;
            if read.expect("readable") == 0 {
                return None;
            }
        }
    }

    /// Receives until `enough`; false when the agent closed before.
    pub async fn receive(
        &mut self,
        transcript: &mut Transcript,
        mut enough: impl FnMut(&Transcript) -> bool,
    ) -> bool {
        while !enough(transcript) {
            match self.next().await {
                Some(Frame::Numbered(frame)) => transcript.take(frame),
                Some(other) => panic!("unexpected {other:?}"),
                None => return false,
            }
        }
        true
    }

    /// Receives and acknowledges until the agent closes, which it does after its last frame.
    pub async fn receive_to_end(&mut self, transcript: &mut Transcript) {
        loop {
            let before = transcript.last_seq;
            if !self.receive(transcript, |now| now.last_seq > before).await {
                break;
            }
            self.send(&Frame::Ack(transcript.last_seq)).await;
            if transcript.ending.is_some() {
                assert!(self.next().await.is_none(), "nothing comes after the end");
                break;
            }
        }
        assert!(transcript.ending.is_some(), "the agent went without a word");
    }
}

/// All that an agent told, by number.
#[derive(Default)]
pub struct Transcript {
    pub last_seq: u64,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub notes: Vec<String>,
    pub ending: Option<Ending>,
    /// Frames that came again.
    pub repeated: u64,
}

impl Transcript {
    fn take(&mut self, frame: Numbered) {
        if frame.seq <= self.last_seq {
            self.repeated += 1;
            return;
        }
        assert_eq!(frame.seq, self.last_seq + 1, "a gap");
        assert!(self.ending.is_none(), "a frame after the last one");
        self.last_seq = frame.seq;
        match frame.body {
            Body::Output {
                stream: Stream::Stdout,
                bytes,
                ..
            } => self.stdout.extend_from_slice(&bytes),
            Body::Output { bytes, .. } => self.stderr.extend_from_slice(&bytes),
            Body::Note(Note::Setup { step }) => self.notes.push(step),
            Body::Note(Note::ClaudeStarted) => self.notes.push("started".into()),
            Body::Note(Note::Told { number }) => self.notes.push(format!("told {number}")),
            Body::Note(Note::Ended(ending)) => self.ending = Some(*ending),
        }
    }

    #[track_caller]
    pub fn ending(&self) -> &Ending {
        self.ending.as_ref().expect("it ended")
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs git and gives its stdout.
#[track_caller]
pub fn git(dir: &Path, args: &[&str]) -> String {
    let output = std::process::Command::new("git")
        .args(["-c", "user.name=Test", "-c", "user.email=test@example.org"])
        .args(args)
        .current_dir(dir)
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git {args:?}: {output:?}");
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

/// Waits, but not for ever.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

fn make_repository(path: &Path) -> String {
    fs::create_dir(path).expect("a directory");
    git(path, &["init", "-q", "--bare", "-b", "main"]);
    let work = TempDir::new().expect("a directory");
    git(work.path(), &["init", "-q", "-b", "main"]);
    fs::write(work.path().join("CLAUDE.md"), "Indent by tabs.\n").expect("written");
    fs::write(work.path().join("a.txt"), "a\n").expect("written");
    git(work.path(), &["add", "-A"]);
    git(work.path(), &["commit", "-q", "-m", "Begin"]);
    let url = path.display().to_string();
    git(work.path(), &["push", "-q", &url, "main"]);
    git(work.path(), &["rev-parse", "HEAD"])
}
