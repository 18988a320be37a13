//! The real git as the client of one export, over real sockets.

use std::path::Path;
use std::process::Output;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use baton_domain::{Attempt, SessionId};
use http_body_util::BodyExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::repos::fixture::{Fixture, commit, exists, git, id, noise, session, try_git};
use crate::repos::{base_ref, result_ref, unjoined_refs};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// One request as it came in.
#[derive(Debug, Clone)]
struct Seen {
    method: Method,
    headers: HeaderMap,
    body_bytes: Arc<Mutex<usize>>,
}

/// A mirror with work of three sessions, served to the first.
struct Served {
    fixture: Fixture,
    export: GitExport,
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    base: String,
}

const MINE: u128 = 1;
const OTHER: u128 = 2;

fn result_of(number: u128) -> String {
    result_ref(session(number), Attempt::FIRST)
}

fn base_of(number: u128) -> String {
    base_ref(session(number), Attempt::FIRST)
}

impl Served {
    async fn start(fixture: Fixture, may_push: bool) -> Self {
        let mine: SessionId = session(MINE);
        let base = fixture.base(mine).await;
        let other = fixture.base(session(OTHER)).await;
        fixture.worked(
            session(OTHER),
            &other,
            &[("secret", Some("of another session"))],
        );
        let push_ref = may_push.then(|| result_of(MINE));
        let export = GitExport::new(
            fixture.mirror(),
            base_of(MINE),
            unjoined_refs(mine, Attempt::FIRST),
            push_ref,
        );
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (served, notes) = (export.clone(), Arc::clone(&seen));
        let router = Router::new().fallback(move |request: Request| async move {
            serve(&served, noted(&notes, request)).await
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            fixture,
            export,
            url: format!("http://{address}/git/repository.git"),
            seen,
            base,
        }
    }

    /// Runs the real git in a folder beside the mirrors, without blocking the server.
    async fn git(&self, folder: &str, args: &[&str]) -> Output {
        let folder = self.fixture.folder.path().join(folder);
        let args: Vec<String> = args
            .iter()
            .map(|arg| arg.replace("{url}", &self.url))
            .collect();
        tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            try_git(&folder, &args)
        })
        .await
        .expect("git runs")
    }

    #[track_caller]
    fn assert_refused(&self, output: &Output, words: &str) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }

    async fn cloned(&self) {
        let output = self.git(".", &["clone", "--quiet", "{url}", "clone"]).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
    }

    /// Commits a file to the clone's branch `work`, on top of what the session started from.
    fn work(&self, files: &[(&str, Option<&str>)]) -> String {
        let clone = self.clone_path();
        let reference = "refs/heads/work";
        let from = exists(&clone, reference).then(|| id(&clone, reference));
        let from = from.as_deref().unwrap_or(&self.base);
        commit(&clone, reference, Some(from), files)
    }

    async fn push(&self, refspec: &str) -> Output {
        self.git("clone", &["push", "--quiet", "{url}", refspec])
            .await
    }

    fn clone_path(&self) -> PathBuf {
        self.fixture.folder.path().join("clone")
    }

    fn posts(&self) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let posts = seen.iter().filter(|seen| seen.method == Method::POST);
        posts.cloned().collect()
    }

    async fn status(&self, method: &str, path: &str) -> StatusCode {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .expect("a request");
        serve(&self.export, request).await.status()
    }
}

fn noted(notes: &Mutex<Vec<Seen>>, request: Request) -> Request {
    let seen = Seen {
        method: request.method().clone(),
        headers: request.headers().clone(),
        body_bytes: Arc::default(),
    };
    let count = Arc::clone(&seen.body_bytes);
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    notes.push(seen);
    request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            *count.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
            frame
        }))
    })
}

#[tokio::test]
async fn a_sandbox_clones_and_pushes_its_own_result() {
    let served = Served::start(Fixture::new(), true).await;
    served.cloned().await;
    assert_eq!(
        git(&served.clone_path(), &["symbolic-ref", "HEAD"]),
        "refs/heads/main"
    );
    assert!(served.clone_path().join("src/lib.rs").exists());
    let fetched = served
        .git("clone", &["fetch", "--quiet", "{url}", &base_of(MINE)])
        .await;
    assert!(fetched.status.success());

    let first = served.work(&[("one", Some("1"))]);
    let mine = result_of(MINE);
    let pushed = served.push(&format!("work:{mine}")).await;
    assert!(pushed.status.success(), "{pushed:?}");
    assert_eq!(id(&served.fixture.mirror(), &mine), first);

    // It may think again, and see what it pushed.
    let second = commit(
        &served.clone_path(),
        "refs/heads/again",
        Some(&served.base),
        &[("two", Some("2"))],
    );
    let pushed = served.push(&format!("+again:{mine}")).await;
    assert!(pushed.status.success(), "{pushed:?}");
    assert_eq!(id(&served.fixture.mirror(), &mine), second);
    let seen = served.git("clone", &["ls-remote", "{url}", &mine]).await;
    assert!(String::from_utf8_lossy(&seen.stdout).starts_with(&second));
}

#[tokio::test]
async fn a_sandbox_writes_nothing_but_its_own_result() {
    let served = Served::start(Fixture::new(), true).await;
    served.cloned().await;
    let commit = served.work(&[("one", Some("1"))]);
    let mirror = served.fixture.mirror();
    let before = git(&mirror, &["for-each-ref"]);
    for target in [
        "refs/heads/main".to_owned(),
        "refs/heads/new".to_owned(),
        "refs/tags/v1".to_owned(),
        "refs/baton/remote-head".to_owned(),
        base_of(MINE),
        base_of(OTHER),
        result_of(OTHER),
        format!("{}0", result_of(MINE)),
    ] {
        let output = served.push(&format!("+{commit}:{target}")).await;
        served.assert_refused(&output, "hidden ref");
    }
    let created = format!("{} commit\t{}\n", served.base, result_of(MINE));
    let after = git(&mirror, &["for-each-ref"]);
    assert_eq!(
        format!("{after}\n").replace(&created, "").trim(),
        before.trim()
    );

    let mine = result_of(MINE);
    assert!(served.push(&format!("work:{mine}")).await.status.success());
    let deleted = served.push(&format!(":{mine}")).await;
    served.assert_refused(&deleted, "403");
    assert_eq!(id(&mirror, &mine), commit);
}

#[test]
fn deletions_are_found_wherever_the_beginning_is_cut() {
    let zeros = "0".repeat(40);
    let line = |old: &str, new: &str| {
        let line = format!("{old} {new} refs/baton/result/x\0 report-status\n");
        format!("{:04x}{line}", line.len() + 4)
    };
    let id = "1".repeat(40);
    let shallow = format!("0034shallow {id}");
    let push = format!("{shallow}{}0000PACK", line(&zeros, &id));
    for end in 0..push.len() {
        let is_whole = end >= push.len() - 4;
        let found = commands(&push.as_bytes()[..end]);
        assert_eq!(matches!(found, Ok(Commands::Finished)), is_whole, "{end}");
        assert!(found.is_ok(), "{end}");
    }
    let delete = format!("{shallow}{}{}0000", line(&zeros, &id), line(&id, &zeros));
    assert!(commands(delete.as_bytes()).is_err());
    // In a certificate git would find the deletion.
    let certificate = "push-cert\0 report-status";
    let certificate = format!("{:04x}{certificate}", certificate.len() + 4);
    assert!(commands(certificate.as_bytes()).is_err());
    // The client's trial before a large push.
    assert!(matches!(commands(b"0000"), Ok(Commands::Finished)));
    assert!(commands(b"0003").is_err());
    assert!(commands(b"PACK").is_err());
}

#[tokio::test]
async fn other_sessions_stay_out_of_sight() {
    let served = Served::start(Fixture::new(), true).await;
    served.cloned().await;
    let listed = served.git("clone", &["ls-remote", "{url}"]).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let names: Vec<_> = listed
        .lines()
        .filter_map(|line| line.split('\t').nth(1))
        .collect();
    assert_eq!(names, ["HEAD", &base_of(MINE), "refs/heads/main"]);

    let hidden = result_of(OTHER);
    let output = served.git("clone", &["fetch", "{url}", &hidden]).await;
    served.assert_refused(&output, "couldn't find remote ref");
    // Nor by its id, in any version of the protocol.
    let commit = id(&served.fixture.mirror(), &hidden);
    for version in ["0", "1", "2"] {
        let setting = format!("protocol.version={version}");
        let args = ["-c", &setting, "fetch", "{url}", &commit];
        let output = served.git("clone", &args).await;
        served.assert_refused(&output, "");
        assert!(!exists(
            &served.clone_path(),
            &format!("{commit}^{{commit}}")
        ));
    }
}

#[tokio::test]
async fn what_contradicts_the_base_of_a_session_is_there_for_it_alone() {
    let served = Served::start(Fixture::new(), true).await;
    served.cloned().await;
    let unjoined = |number, attempt| format!("{}/0-x", unjoined_refs(session(number), attempt));
    let (mine, other) = (
        unjoined(MINE, Attempt::FIRST),
        unjoined(OTHER, Attempt::FIRST),
    );
    let of_a_later_attempt = unjoined(MINE, Attempt(11));
    for (name, text) in [(&mine, "1"), (&other, "2"), (&of_a_later_attempt, "3")] {
        let files = [("a", Some(text))];
        commit(&served.fixture.mirror(), name, Some(&served.base), &files);
    }
    let fetched = served
        .git("clone", &["fetch", "--quiet", "{url}", &mine])
        .await;
    assert!(fetched.status.success(), "{fetched:?}");
    for hidden in [other, of_a_later_attempt] {
        let output = served.git("clone", &["fetch", "{url}", &hidden]).await;
        served.assert_refused(&output, "couldn't find remote ref");
    }
}

/// The ids are the client's to send, whatever its own git would refuse.
#[tokio::test]
async fn a_client_of_its_own_making_gets_no_hidden_commit() {
    let served = Served::start(Fixture::new(), true).await;
    let commit = id(&served.fixture.mirror(), &result_of(OTHER));
    let want = format!("0032want {commit}\n00000009done\n");
    let two = format!(
        "0012command=fetch\n0001{}0000",
        want.replace("00000009", "0009")
    );
    for (body, version) in [(want, "version=0"), (two, "version=2")] {
        let request = Request::builder()
            .method("POST")
            .uri("/git/repository.git/git-upload-pack")
            .header("content-type", "application/x-git-upload-pack-request")
            .header("git-protocol", version)
            .body(Body::from(body))
            .expect("a request");
        let response = serve(&served.export, request).await;
        let body = response.into_body().collect().await.expect("an answer");
        let body = body.to_bytes();
        assert!(
            memchr::memmem::find(&body, b"PACK").is_none(),
            "{version}: {}",
            String::from_utf8_lossy(&body)
        );
    }
}

#[tokio::test]
async fn a_session_without_a_result_may_not_push() {
    let served = Served::start(Fixture::new(), false).await;
    served.cloned().await;
    served.work(&[("one", Some("1"))]);
    let output = served.push(&format!("work:{}", result_of(MINE))).await;
    served.assert_refused(&output, "403");
    let path = "/git/repository.git/git-receive-pack";
    assert_eq!(served.status("POST", path).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn nothing_is_served_but_the_smart_protocol() {
    let served = Served::start(Fixture::new(), true).await;
    for (method, path) in [
        ("GET", "/git/repository.git/info/refs"),
        (
            "GET",
            "/git/repository.git/info/refs?service=git-upload-archive",
        ),
        (
            "GET",
            "/git/repository.git/info/refs?service=git-upload-pack&x=1",
        ),
        ("GET", "/git/repository.git/HEAD"),
        ("GET", "/git/repository.git/config"),
        ("GET", "/git/repository.git/objects/info/packs"),
        ("GET", "/git/repository.git/../other.git/HEAD"),
        ("GET", "/git/other.git/info/refs?service=git-upload-pack"),
        (
            "POST",
            "/git/repository.git/info/refs?service=git-upload-pack",
        ),
        ("GET", "/git/repository.git/git-upload-pack"),
        ("POST", "/git/repository.git/git-upload-archive"),
        ("GET", "/"),
    ] {
        assert_eq!(
            served.status(method, path).await,
            StatusCode::NOT_FOUND,
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn a_push_sends_what_is_new_and_no_more() {
    let fixture = Fixture::new();
    let large = noise(3 << 20);
    fixture.pushed_by_others("main", &[("large", Some(&large))]);
    let served = Served::start(fixture, true).await;
    served.cloned().await;
    served.work(&[("one", Some("1"))]);
    let pushed = served.push(&format!("work:{}", result_of(MINE))).await;
    assert!(pushed.status.success(), "{pushed:?}");
    let posts = served.posts();
    let sent = posts.last().expect("a push");
    let bytes = *sent
        .body_bytes
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    assert!(bytes < 10_000, "{bytes} bytes for a file of one");
}

#[tokio::test]
async fn large_and_compressed_bodies_pass() {
    let fixture = Fixture::new();
    // Enough branches that the client compresses what it asks for.
    for number in 0..40 {
        let name = format!("branch-{number}");
        fixture.pushed_by_others(&name, &[("file", Some(&name))]);
    }
    let served = Served::start(fixture, true).await;
    served.cloned().await;
    // Enough that the client sends it in chunks.
    let large = noise(4 << 20);
    let commit = served.work(&[("large", Some(&large))]);
    let pushed = served.push(&format!("work:{}", result_of(MINE))).await;
    assert!(pushed.status.success(), "{pushed:?}");
    assert_eq!(id(&served.fixture.mirror(), &result_of(MINE)), commit);
    let has = |name: HeaderName, value: &str| {
        let posts = served.posts();
        posts
            .iter()
            .any(|seen| seen.headers.get(&name).is_some_and(|found| found == value))
    };
    assert!(has(header::CONTENT_ENCODING, "gzip"));
    assert!(has(header::TRANSFER_ENCODING, "chunked"));
}

/// Waits until no git of the export runs.
async fn all_ended(export: &GitExport) {
    let all = u32::try_from(OPEN_MAX).expect("few");
    let _all = tokio::time::timeout(PATIENCE, export.open.acquire_many(all))
        .await
        .expect("every git ends")
        .expect("never closed");
}

#[tokio::test]
async fn git_ends_when_its_client_goes_away() {
    let served = Served::start(Fixture::new(), true).await;
    let address = served.url.trim_start_matches("http://");
    let address = address.split('/').next().expect("an address");
    let mut clients = Vec::new();
    for _ in 0..OPEN_MAX {
        let mut client = TcpStream::connect(address).await.expect("connects");
        let head = "POST /git/repository.git/git-receive-pack HTTP/1.1\r\nHost: x\r\n\
                    Content-Type: application/x-git-receive-pack-request\r\n\
                    Transfer-Encoding: chunked\r\n\r\n4\r\n00b0\r\n";
        client.write_all(head.as_bytes()).await.expect("writes");
        clients.push(client);
    }
    let busy = async {
        while served.export.open.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, busy)
        .await
        .expect("all are open");
    // One more than a sandbox may have.
    let path = "/git/repository.git/info/refs?service=git-upload-pack";
    assert_eq!(
        served.status("GET", path).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    drop(clients);
    all_ended(&served.export).await;
    assert_eq!(served.status("GET", path).await, StatusCode::OK);
    all_ended(&served.export).await;
    let leftovers = left_over_files(&served.fixture.mirror());
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

fn left_over_files(mirror: &Path) -> Vec<String> {
    let found = std::process::Command::new("find")
        .arg(mirror)
        .args(["-name", "*.lock"])
        .output()
        .expect("find runs");
    let text = String::from_utf8_lossy(&found.stdout);
    text.lines().map(str::to_owned).collect()
}
