//! What is in a sandbox and what can be reached from it: no secret, no network, one repository.

use serde_json::{Value, json};

use crate::docker::{inspect, try_docker};
use crate::world::{API_KEY, GITHUB_TOKEN, SECRET, SESSION_LIMIT, World, files_below, text};

const CANARIES: [&str; 3] = [SECRET, API_KEY, GITHUB_TOKEN];

/// Looks around with all that a session's Claude may do, so that what it finds is in its output.
const CURIOUS: &str = r#"
match = ["Look around"]
[[turn]]
text = "I look around."
hold = "looked-from-outside"
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; git config --list; cat .git/config; git remote -v"
[[turn]]
text = "{{last_tool_result}}"
"#;
const BEFORE: &str = "match = ['Leave something behind']\n[[turn]]\n[[turn.tool]]\nname = 'Write'\n\
    [turn.tool.input]\nfile_path = '{{cwd}}/private.txt'\ncontent = 'of another session'\n";

/// A session that runs and waits, so that it can be looked into.
struct Held {
    world: World,
    id: String,
    container: String,
}

impl Held {
    async fn begin() -> Self {
        let mut world = World::with_scripts([("curious", CURIOUS), ("before", BEFORE)]).await;
        world
            .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
            .await;
        world
            .remote("owner/other", &[("README.md", "Not yours.\n")])
            .await;
        world.start_server().await;
        // Its result is in the same mirror, and none of the other's business.
        let before = world.ran("Leave something behind").await;
        assert_eq!(before["status"], "completed", "{before:#}");
        let id = world.run("Look around", &[]).await;
        let journal = world.model.journal();
        let asked = journal.wait_until(SESSION_LIMIT, |entries| {
            entries.iter().any(|entry| entry.asks("curious", 0))
        });
        asked.await.expect("Claude asks the model");
        let container = text(&world.until(&id, "running").await["containerId"]);
        Self {
            world,
            id,
            container,
        }
    }

    /// Runs a shell in the sandbox as root with every capability; gives all it said.
    async fn as_root(&self, script: &str) -> (bool, String) {
        self.exec(&["--privileged", "--user=0"], script).await
    }

    /// Runs a shell in the sandbox as Claude's own user; gives all it said.
    async fn as_claude(&self, script: &str) -> (bool, String) {
        self.exec(&["--workdir=/workspace"], script).await
    }

    async fn exec(&self, options: &[&str], script: &str) -> (bool, String) {
        let args = [
            &["exec"],
            options,
            &[self.container.as_str(), "sh", "-c", script],
        ]
        .concat();
        let output = try_docker(args).await;
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// Runs a Python program in the sandbox that must succeed; gives what it printed.
    async fn python(&self, program: &str) -> String {
        let output = try_docker(["exec", &self.container, "python3", "-c", program]).await;
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

#[track_caller]
fn check_clean(place: &str, text: &str) {
    for canary in CANARIES {
        assert!(!text.contains(canary), "{canary} is in {place}");
    }
}

#[tokio::test]
async fn sandbox_holds_no_secret_and_neither_does_anything_that_is_kept() {
    let held = Held::begin().await;
    let inspected = inspect(&held.container).await.expect("the container runs");
    check_clean("docker inspect", &inspected.to_string());
    check_confined(&inspected);

    let (_, said) = held
        .as_root("cat /proc/[0-9]*/environ | tr '\\0' '\\n'")
        .await;
    assert!(
        said.contains("ANTHROPIC_BASE_URL="),
        "Claude's environment was not seen: {said}"
    );
    check_clean("an environment", &said);
    let (_, said) = held
        .as_root("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
        .await;
    assert!(
        said.contains("stream-json"),
        "Claude's arguments were not seen: {said}"
    );
    check_clean("a command line", &said);
    let patterns: Vec<String> = CANARIES
        .iter()
        .map(|canary| format!("-e {canary}"))
        .collect();
    let places = "/workspace /state /home /tmp /run /etc /root /var";
    let search = format!(
        "grep -rlFa --devices=skip {} {places}; true",
        patterns.join(" ")
    );
    let (_, found) = held.as_root(&search).await;
    assert!(
        !found.lines().any(|line| line.starts_with('/')),
        "found in {found}"
    );
    let (ok, said) = held
        .as_root("test -s /workspace/README.md && ls -A /state/claude")
        .await;
    assert!(ok, "the search saw nothing: {said}");
    let (_, said) = held
        .as_claude("git config --list --show-origin; git remote -v")
        .await;
    assert!(said.contains("remote.origin.url"), "{said}");
    check_clean("git's configuration", &said);

    held.world.model.release("looked-from-outside");
    held.world.completed(&held.id).await;
    let output = held.world.output(&held.id).await.to_string();
    assert!(output.contains("ANTHROPIC_BASE_URL="), "{output}");
    held.world.events(&held.id).await;
    held.world.api.get("/health").await;
    held.world.docker_is_empty().await;
    check_what_is_kept(held.world).await;
}

#[track_caller]
fn check_confined(inspected: &Value) {
    let host = &inspected["HostConfig"];
    assert_eq!(host["NetworkMode"], "none");
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges:true"]));
    assert!(
        host["Memory"].as_i64() > Some(0) && host["PidsLimit"].as_i64() > Some(0),
        "{host:#}"
    );
    assert_eq!(inspected["Config"]["User"], "10001:10001");
    let mounts = inspected["Mounts"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let writable = |mount: &&Value| mount["RW"] == true;
    let mut places: Vec<_> = mounts
        .iter()
        .filter(writable)
        .map(|of| text(&of["Destination"]))
        .collect();
    places.sort();
    assert_eq!(places, ["/state", "/workspace"]);
    let sockets = mounts
        .iter()
        .filter(|mount| text(&mount["Source"]).contains("docker.sock"));
    assert_eq!(sockets.count(), 0);
}

/// Database, write-ahead log, output, mirrors, the server's log, and every answer of the API.
async fn check_what_is_kept(mut world: World) {
    for answer in world.api.answers() {
        check_clean("an answer", &answer);
    }
    world.stop_server().await;
    let files = files_below(&world.data_dir());
    assert!(
        files.len() > 5,
        "the data directory was not seen: {files:?}"
    );
    for file in files {
        let bytes = std::fs::read(&file).expect("a file of the data directory");
        for canary in CANARIES {
            let found = memchr::memmem::find(&bytes, canary.as_bytes());
            assert_eq!(found, None, "{canary} is in {}", file.display());
        }
    }
    check_clean("the server's log", &world.log());
}

#[tokio::test]
async fn nothing_but_the_own_repository_and_the_model_is_reached_from_a_sandbox() {
    let held = Held::begin().await;
    let routes = held
        .python("print(open('/proc/net/route').read().count('\\n'))")
        .await;
    assert_eq!(routes, "1", "only the heading of the table of routes");
    let interfaces = held
        .python("import os; print(sorted(os.listdir('/sys/class/net')))")
        .await;
    assert_eq!(interfaces, "['lo']");
    let port = held
        .world
        .api
        .base_url()
        .rsplit(':')
        .next()
        .map(str::to_owned);
    let port = port.expect("the address has a port");
    for address in [
        "1.1.1.1 443",
        "172.17.0.1 22",
        &format!("172.17.0.1 {port}"),
    ] {
        let (host, port) = address.split_once(' ').expect("host and port");
        let dial = format!(
            "import socket\ntry:\n  socket.create_connection(('{host}', {port}), 3)\n  \
             print('reached')\nexcept OSError as error:\n  print('refused')"
        );
        assert_eq!(held.python(&dial).await, "refused", "{address}");
    }

    let base = "http://127.0.0.1:8377";
    let (ok, said) = held
        .as_claude(&format!("git ls-remote {base}/git/repository.git"))
        .await;
    assert!(ok && said.contains("refs/heads/main"), "{said}");
    assert!(
        !said.contains("refs/baton/result"),
        "others' results show: {said}"
    );
    let others = [
        format!("{base}/git/owner/other.git"),
        format!("{base}/git/other.git"),
        format!("{base}/git/../owner/other.git"),
        format!("{base}/git/repository.git/../other.git"),
        format!("{base}/git/repository.git/..%2f..%2fowner/other.git"),
    ];
    for url in others {
        let (ok, said) = held.as_claude(&format!("git ls-remote '{url}'")).await;
        assert!(!ok && !said.contains("refs/heads"), "{url}: {said}");
    }
    for path in [
        "/api/v1/sessions",
        "/api/webhooks/claude",
        "/health",
        "/metrics",
        "/mcp",
        "/",
    ] {
        let ask = format!("curl -s -o /dev/null -w '%{{http_code}}' {base}{path}");
        let (_, status) = held.as_claude(&ask).await;
        assert_eq!(status, "404", "{path}");
    }
    check_pushes(&held, base).await;
    held.world.model.release("looked-from-outside");
    held.world.completed(&held.id).await;
}

/// A session writes the reference of its own result and no other.
async fn check_pushes(held: &Held, base: &str) {
    let mirror = held.world.mirror("owner/repo");
    let before = mirror.git(&["for-each-ref"]).await;
    let commit = "git -c core.hooksPath=/dev/null commit --quiet --allow-empty -m Mine";
    let (ok, said) = held.as_claude(commit).await;
    assert!(ok, "{said}");
    let another = "00000000-0000-7000-8000-000000000001";
    for target in [
        "refs/heads/main".to_owned(),
        "refs/heads/new".to_owned(),
        "refs/tags/v1".to_owned(),
        format!("refs/baton/base/{}/1", held.id),
        format!("refs/baton/result/{}/2", held.id),
        format!("refs/baton/result/{another}/1"),
    ] {
        let push = format!("git push --force {base}/git/repository.git HEAD:{target}");
        let (ok, said) = held.as_claude(&push).await;
        assert!(!ok, "{target} was pushed: {said}");
        let delete = format!("git push --force {base}/git/repository.git :{target}");
        let (ok, said) = held.as_claude(&delete).await;
        assert!(!ok, "{target} was deleted: {said}");
    }
    let own = format!("refs/baton/result/{}/1", held.id);
    let after: Vec<_> = mirror
        .git(&["for-each-ref"])
        .await
        .lines()
        .map(str::to_owned)
        .collect();
    let after: Vec<_> = after.iter().filter(|line| !line.ends_with(&own)).collect();
    assert_eq!(after, before.lines().collect::<Vec<_>>());
    let push = format!("git push --force {base}/git/repository.git HEAD:{own}");
    let (ok, said) = held.as_claude(&push).await;
    assert!(ok, "{said}");
}
