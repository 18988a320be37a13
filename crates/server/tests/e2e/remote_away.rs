//! A remote that does not answer when a session is to begin.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::fake_claude::steps;
use crate::world::{SESSION_LIMIT, World, eventually};

/// Serves files at a port of loopback, as the plainest of git's remotes does; ends when dropped.
struct Files(Child);

impl Files {
    fn serve(root: &Path, port: u16) -> Self {
        let server = Command::new("python3")
            .args(["-m", "http.server", "--bind", "127.0.0.1"])
            .arg("--directory")
            .arg(root)
            .arg(port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(server.expect("python3 can be run"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("its address").port()
}

#[tokio::test]
async fn session_waits_for_a_remote_that_is_away_and_begins_when_it_is_back() {
    let mut world = World::with_fake_claude().await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    remote.git(&["update-server-info"]).await;
    let port = free_port();
    world.set("BATON_GIT_BASE_URL", format!("http://127.0.0.1:{port}"));
    world.start_server().await;
    let requirements = steps(json!([["result", "Read."]]));
    let reading = json!({ "type": "analysis" });
    let id = world.create_with(reading.clone(), &requirements).await;
    let other = world.create_with(reading, &requirements).await;
    world.start(&id).await;
    world.start(&other).await;
    for id in [&id, &other] {
        let told = eventually(SESSION_LIMIT, async || {
            let events = world.events_after(id, 0).await;
            events
                .iter()
                .any(|event| event.to_string().contains("is asked for again"))
        });
        assert!(told.await, "nothing says what is waited for");
        assert_eq!(world.session(id).await["status"], "initializing");
    }
    // Who waits for it can be stopped all the same.
    world.cancel(&other).await;
    assert_eq!(world.over(&other).await["status"], "cancelled");

    let _files = Files::serve(&world.remotes(), port);
    let session = world.completed(&id).await;
    assert_eq!(session["output"]["summary"], "Read.");
    assert_eq!(session["attempt"], 1);
}
