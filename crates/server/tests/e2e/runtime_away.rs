//! A server whose container runtime does not answer, or has no image.

use std::path::{Path, PathBuf};

use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::api::wrapped;
use crate::fake_claude::steps;
use crate::world::{SESSION_LIMIT, World, eventually, text};

fn create() -> serde_json::Value {
    let project = json!({ "repository": "owner/repo", "requirements": "Do it" });
    wrapped(
        "session.create",
        json!({ "session": { "project": project } }),
    )
}

#[tokio::test]
async fn server_without_a_runtime_starts_says_so_and_can_be_read() {
    let mut world = World::with_scripts([]).await;
    world.set("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    world.start_server().await;
    for path in ["/health", "/api/webhooks/health"] {
        let health = world.api.get(path).await;
        assert_eq!(health.json()["status"], "degraded", "{}", health.text);
    }
    world
        .api
        .webhook(&create())
        .await
        .unavailable("runtime_unavailable");
    let listed = world.api.call("session.list", json!({})).await;
    assert_eq!(listed["data"]["sessions"], json!([]));
}

#[tokio::test]
async fn session_that_was_accepted_waits_for_the_runtime_to_come_back() {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("BATON_MAX_PREPARED", 0);
    world.start_server().await;
    let id = world
        .create(&steps(json!([["result", "Done."]])), &[])
        .await;
    world.stop_server().await;
    let docker_host = std::env::var("DOCKER_HOST").ok();
    world.set("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    world.start_server().await;
    assert_eq!(world.session(&id).await["status"], "initializing");
    let start = wrapped("session.start", json!({ "sessionId": id }));
    world
        .api
        .webhook(&start)
        .await
        .unavailable("runtime_unavailable");
    world.stop_server().await;
    match docker_host {
        Some(docker_host) => world.set("DOCKER_HOST", docker_host),
        None => world.unset("DOCKER_HOST"),
    }
    world.start_server().await;
    world.start(&id).await;
    world.completed(&id).await;
}

#[tokio::test]
async fn missing_image_is_named_and_never_pulled() {
    let mut world = World::with_scripts([]).await;
    world.set("CLAUDE_CONTAINER_IMAGE", "baton-test-no-such-image:none");
    world.start_server().await;
    let health = world.api.get("/health").await;
    assert_eq!(health.json()["status"], "degraded", "{}", health.text);
    let answer = world.api.webhook(&create()).await;
    answer.unavailable("image_missing");
    assert!(
        answer.text.contains("baton-test-no-such-image:none"),
        "{}",
        answer.text
    );
    let listed = world.api.call("session.list", json!({})).await;
    assert_eq!(listed["data"]["sessions"], json!([]));
}

/// A way to Docker that can be cut.
struct Way {
    path: PathBuf,
    open: Option<JoinHandle<()>>,
}

impl Way {
    fn open(path: PathBuf) -> Self {
        let open = Some(tokio::spawn(forward(path.clone())));
        Self { path, open }
    }

    /// Breaks every connection and takes no new one.
    async fn cut(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort();
            // Ended by that, on purpose.
            let _ = open.await;
        }
        std::fs::remove_file(&self.path).expect("the socket is ours");
    }

    fn mend(&mut self) {
        self.open = Some(tokio::spawn(forward(self.path.clone())));
    }
}

async fn forward(path: PathBuf) {
    let docker = std::env::var("DOCKER_HOST").unwrap_or_default();
    let docker = docker
        .strip_prefix("unix://")
        .unwrap_or("/var/run/docker.sock");
    let listener = UnixListener::bind(&path).expect("a socket of our own");
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.expect("the socket is open");
        let mut far = UnixStream::connect(Path::new(docker))
            .await
            .expect("Docker listens");
        connections.spawn(async move {
            // Whoever ends it, both ends are closed with it.
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
}

#[tokio::test]
async fn session_runs_on_while_the_runtime_is_out_of_reach() {
    let mut world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    let socket = world.data_dir().with_file_name("docker.sock");
    let mut way = Way::open(socket.clone());
    world.set("DOCKER_HOST", format!("unix://{}", socket.display()));
    world.start_server().await;
    let health = async |status: &str| {
        let seen = eventually(SESSION_LIMIT, async || {
            world.api.get("/health").await.json()["status"] == status
        });
        assert!(seen.await, "health is never {status}");
    };
    health("ok").await;
    let requirements = steps(json!([["numbered", 100, 20], ["result", "Done."]]));
    let id = world.run(&requirements, &[]).await;
    world.until(&id, "running").await;
    way.cut().await;
    health("degraded").await;
    world
        .api
        .webhook(&create())
        .await
        .unavailable("runtime_unavailable");
    // Its link to the server does not go by way of Docker.
    let session = world.completed(&id).await;
    assert_eq!(session["output"]["summary"], "Done.");
    assert!(
        crate::docker::inspect(&text(&session["containerId"]))
            .await
            .is_some()
    );
    way.mend();
    health("ok").await;
    world.docker_is_empty().await;
    let next = world.ran(&steps(json!([["result", "Done again."]]))).await;
    assert_eq!(next["status"], "completed", "{next:#}");
}
