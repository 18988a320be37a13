//! The agent from its start to its end, as a process, with a server of the test's own.

mod harness;
mod talk;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use baton_agent::protocol::{Cut, Exit, Frame, Merge};
use harness::{PUSH_REF, RESULT, Sandbox, Transcript, git, soon};
use talk::user;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A file in what was pushed.
fn pushed_file(sandbox: &Sandbox, name: &str) -> String {
    git(
        &sandbox.repository(),
        &["show", &format!("{PUSH_REF}:{name}")],
    )
}

#[tokio::test]
async fn work_is_done_saved_and_reported() {
    let sandbox = Sandbox::new(&format!(
        r#"
        echo "args $*"; echo "env $GREETING $HOME $CLAUDE_CONFIG_DIR"
        read -r line; echo "prompt $line"
        shift 4; cat "$1" > given-prompt
        echo b > b.txt && git add b.txt && git commit -qm "Add b"
        echo c > c.txt
        echo complaint >&2
        echo '{RESULT}'"#
    ));
    let transcript = sandbox.run().await;

    let state = sandbox.path("state");
    let expected = format!(
        "args -p --input-format stream-json --append-system-prompt-file {state}/system-prompt.md\nenv hello {home} {state}/claude\nprompt {prompt}\n{RESULT}\n",
        prompt = user("Do it."),
        state = state.display(),
        home = sandbox.path("home").display(),
    );
    assert_eq!(transcript.stdout_text(), expected);
    assert_eq!(transcript.stderr, b"complaint\n");
    assert_eq!(transcript.notes, ["clone", "claude", "started"]);
    let ending = transcript.ending();
    let result = ending.result.as_ref().expect("a result");
    assert_eq!(
        (result.subtype.as_str(), result.text.as_str()),
        ("success", "done")
    );
    assert_eq!(ending.exit, Some(Exit::Code(0)));
    assert_eq!((&ending.cut, &ending.salvage_failure), (&None, &None));
    assert_eq!(ending.stderr_tail, "complaint\n");

    let tip = git(&sandbox.repository(), &["rev-parse", PUSH_REF]);
    assert_eq!(ending.pushed.as_deref(), Some(tip.as_str()));
    assert_eq!(pushed_file(&sandbox, "b.txt"), "b");
    assert_eq!(pushed_file(&sandbox, "c.txt"), "c");
    let prompt = "Be brief.\n\nThe repository's CLAUDE.md:\n\nIndent by tabs.";
    assert_eq!(pushed_file(&sandbox, "given-prompt"), prompt);
    let log = git(&sandbox.repository(), &["log", "--format=%an %s", PUSH_REF]);
    let name = &sandbox.job.checkout.author_name;
    assert_eq!(
        log,
        format!("{name} Keep uncommitted work of session 0190-one\n{name} Add b\nTest Begin")
    );
    let branch = fs::read_to_string(sandbox.path("workspace/.git/HEAD")).expect("readable");
    assert_eq!(branch, "ref: refs/heads/baton/one\n");
}

#[tokio::test]
async fn nothing_is_pushed_where_nothing_changed_or_nothing_may() {
    let sandbox = Sandbox::new(&format!("echo '{RESULT}'"));
    let transcript = sandbox.run().await;
    assert_eq!(transcript.ending().pushed, None);
    assert_eq!(transcript.ending().salvage_failure, None);
    let mut sandbox = Sandbox::new(&format!("echo x > x; echo '{RESULT}'"));
    sandbox.job.push_ref = None;
    let transcript = sandbox.run().await;
    assert_eq!(transcript.ending().pushed, None);
    assert_eq!(transcript.ending().salvage_failure, None);
}

#[tokio::test]
async fn output_has_no_gap_and_no_duplicate_however_often_the_server_dies() {
    let sandbox = Sandbox::new(&format!("seq 1 2000000; echo oops >&2; echo '{RESULT}'"));
    let mut transcript = Transcript::default();
    let mut agent = sandbox.start(0);
    for life in 1..=6_usize {
        let server = sandbox.listen();
        let mut connection = server.accept().await;
        assert!(connection.hello.last_seq >= transcript.last_seq);
        assert_eq!(connection.hello.has_job, life > 1);
        let enough = transcript.stdout.len() + 300_000 * life;
        connection
            .receive(&mut transcript, |now| now.stdout.len() >= enough)
            .await;
        if life % 2 == 0 {
            connection.send(&Frame::Ack(transcript.last_seq - 1)).await;
        }
    }
    let server = sandbox.listen();
    server.accept().await.receive_to_end(&mut transcript).await;
    assert!(agent.exit().await.success());

    let mut expected: String = (1..=2_000_000).map(|n| format!("{n}\n")).collect();
    expected += RESULT;
    expected += "\n";
    assert!(
        transcript.stdout == expected.as_bytes(),
        "the output is another"
    );
    assert_eq!(transcript.stderr, b"oops\n");
    assert!(transcript.repeated > 0, "nothing was ever sent again");
    assert!(transcript.ending().result.is_some());
    assert_eq!(spool_files(&sandbox), 1);
}

fn spool_files(sandbox: &Sandbox) -> usize {
    fs::read_dir(sandbox.path("state/spool"))
        .expect("readable")
        .count()
}

#[tokio::test]
async fn a_line_of_50_mb_comes_through() {
    let sandbox = Sandbox::new(&format!(
        "head -c 50000000 /dev/zero | tr '\\0' x; echo; echo '{RESULT}'"
    ));
    let transcript = sandbox.run().await;
    assert_eq!(transcript.stdout.len(), 50_000_000 + 1 + RESULT.len() + 1);
    assert!(
        transcript.stdout[..50_000_000]
            .iter()
            .all(|byte| *byte == b'x')
    );
    assert!(transcript.ending().result.is_some());
}

#[tokio::test]
async fn bytes_stay_as_they_are() {
    let sandbox = Sandbox::new(r#"printf 'a\xff\xfe\x00b\r\n\n\xc3'; printf '\xe9' >&2"#);
    let transcript = sandbox.run().await;
    assert_eq!(transcript.stdout, b"a\xff\xfe\x00b\r\n\n\xc3");
    assert_eq!(transcript.stderr, b"\xe9");
}

#[tokio::test]
async fn exit_0_without_a_result_is_told_as_it_is() {
    let transcript = Sandbox::new("echo '{\"type\":\"system\"}'").run().await;
    let ending = transcript.ending();
    assert_eq!(
        (&ending.result, ending.exit, ending.cut),
        (&None, Some(Exit::Code(0)), None)
    );
}

#[tokio::test]
async fn a_hang_after_the_result_is_ended() {
    let mut sandbox = Sandbox::new(&format!("echo '{RESULT}'; echo x > x; exec sleep 1000"));
    sandbox.job.timers.result_grace_ms = 200;
    let transcript = sandbox.run().await;
    let ending = transcript.ending();
    assert_eq!(
        (ending.cut, ending.exit),
        (Some(Cut::HungAfterResult), Some(Exit::Signal(15)))
    );
    assert!(ending.result.is_some());
    assert_eq!(pushed_file(&sandbox, "x"), "x");
}

#[tokio::test]
async fn silence_is_ended() {
    let mut sandbox = Sandbox::new("echo hello; exec sleep 1000");
    sandbox.job.timers.silence_ms = 200;
    assert_eq!(sandbox.run().await.ending().cut, Some(Cut::Stalled));
    let mut sandbox = Sandbox::new("exec sleep 1000");
    sandbox.job.timers.first_byte_ms = 200;
    assert_eq!(sandbox.run().await.ending().cut, Some(Cut::NoFirstByte));
}

#[tokio::test]
async fn silence_while_the_server_is_away_is_forgiven() {
    let mut sandbox = Sandbox::new(&format!(
        "echo hello; until [ -e \"$HOME/go\" ]; do sleep 0.01; done; echo '{RESULT}'"
    ));
    sandbox.job.timers.silence_ms = 1_500;
    let mut agent = sandbox.start(0);
    let mut transcript = Transcript::default();
    let server = sandbox.listen();
    let mut connection = server.accept().await;
    connection
        .receive(&mut transcript, |now| !now.stdout.is_empty())
        .await;
    drop((connection, server));
    // The passing of time itself is what is tested.
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    let server = sandbox.listen();
    let mut connection = server.accept().await;
    fs::write(sandbox.path("home/go"), "").expect("written");
    connection.receive_to_end(&mut transcript).await;
    assert!(agent.exit().await.success());
    assert_eq!(transcript.ending().cut, None);
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed() {
    let mut sandbox =
        Sandbox::new("trap '' TERM; echo x > x; while :; do echo busy; sleep 0.05; done");
    sandbox.job.timers.timeout_ms = 600;
    sandbox.job.timers.term_grace_ms = 100;
    let transcript = sandbox.run().await;
    let ending = transcript.ending();
    assert_eq!(
        (ending.cut, ending.exit),
        (Some(Cut::TimedOut), Some(Exit::Signal(9)))
    );
    assert_eq!(pushed_file(&sandbox, "x"), "x");
}

#[tokio::test]
async fn what_keeps_the_pipes_open_does_not_keep_the_session() {
    let sandbox = Sandbox::new(&format!(
        "setsid sleep 20 & echo '{RESULT}'; printf 'no line end'; exit 3"
    ));
    let transcript = sandbox.run().await;
    assert_eq!(transcript.ending().exit, Some(Exit::Code(3)));
    assert_eq!(transcript.stdout_text(), format!("{RESULT}\nno line end"));
}

#[tokio::test]
async fn a_cancellation_stops_claude_and_keeps_its_work() {
    for by_signal in [false, true] {
        let sandbox = Sandbox::new("echo x > x; echo hello; exec sleep 1000");
        let server = sandbox.listen();
        let mut agent = sandbox.start(0);
        let mut transcript = Transcript::default();
        let mut connection = server.accept().await;
        connection
            .receive(&mut transcript, |now| !now.stdout.is_empty())
            .await;
        if by_signal {
            agent.terminate();
        } else {
            connection.send(&Frame::Cancel).await;
        }
        connection.receive_to_end(&mut transcript).await;
        assert!(agent.exit().await.success());
        assert_eq!(transcript.ending().cut, Some(Cut::Cancelled));
        assert_eq!(pushed_file(&sandbox, "x"), "x");
    }
}

#[tokio::test]
async fn claude_is_started_at_most_once() {
    let sandbox =
        Sandbox::new("echo start >> \"$HOME/starts\"; echo x > x; echo $$; exec sleep 1000");
    let server = sandbox.listen();
    let mut agent = sandbox.start(0);
    let mut transcript = Transcript::default();
    let mut connection = server.accept().await;
    connection
        .receive(&mut transcript, |now| !now.stdout.is_empty())
        .await;
    agent.kill().await;
    kill(&transcript.stdout_text());

    let mut agent = sandbox.start(0);
    let mut connection = server.accept().await;
    assert_eq!(connection.hello.last_seq, transcript.last_seq);
    connection.receive_to_end(&mut transcript).await;
    assert!(agent.exit().await.success());
    let ending = transcript.ending();
    let failure = ending.setup_failure.as_ref().expect("a failure");
    assert_eq!(failure.step, "interrupted");
    assert!(ending.pushed.is_some(), "{ending:?}");
    assert_eq!(pushed_file(&sandbox, "x"), "x");
    let starts = fs::read_to_string(sandbox.path("home/starts")).expect("readable");
    assert_eq!(starts, "start\n");
}

/// In a sandbox, Claude does not outlive PID 1.
fn kill(pid: &str) {
    let status = std::process::Command::new("kill")
        .args(["-9", pid.trim()])
        .status();
    assert!(status.expect("kill runs").success());
}

#[tokio::test]
async fn an_end_that_was_not_acknowledged_is_told_again_and_only_that() {
    let sandbox = Sandbox::new(&format!("echo '{RESULT}'"));
    let server = sandbox.listen();
    let mut agent = sandbox.start(0);
    let mut first = Transcript::default();
    let mut connection = server.accept().await;
    connection
        .receive(&mut first, |now| now.ending.is_some())
        .await;
    agent.kill().await;

    let mut agent = sandbox.start(0);
    let mut second = Transcript::default();
    server.accept().await.receive_to_end(&mut second).await;
    assert!(agent.exit().await.success());
    assert_eq!(second.last_seq, first.last_seq);
    assert_eq!(second.ending, first.ending);
}

#[tokio::test]
async fn code_that_cannot_be_had_is_a_failure_before_claude() {
    let mut sandbox = Sandbox::new("echo never");
    sandbox.job.checkout.fetch_ref = "refs/heads/nowhere".into();
    let transcript = sandbox.run().await;
    let failure = transcript
        .ending()
        .setup_failure
        .as_ref()
        .expect("a failure");
    assert_eq!(failure.step, "clone");
    assert!(
        failure.message.contains("refs/heads/nowhere"),
        "{failure:?}"
    );
    assert_eq!(transcript.notes, ["clone"]);
    assert!(transcript.stdout.is_empty());
}

#[tokio::test]
async fn a_missing_claude_is_a_failure_and_no_start() {
    let mut sandbox = Sandbox::new("");
    sandbox.job.claude.program = "no-such-program".into();
    let transcript = sandbox.run().await;
    let failure = transcript
        .ending()
        .setup_failure
        .as_ref()
        .expect("a failure");
    assert_eq!(failure.step, "claude");
    assert!(!sandbox.path("state/started").exists());
}

#[tokio::test]
async fn a_workspace_in_disorder_is_saved_as_it_stands() {
    let sandbox = Sandbox::new(
        r#"
        git config core.hooksPath hooks; mkdir hooks
        git checkout -q -b other; echo theirs > a.txt; git commit -qam theirs
        git checkout -q baton/one; echo ours > a.txt; git commit -qam ours
        git checkout -q --detach; git merge -q other; git status --short
        printf '#!/bin/sh\nexit 1\n' | tee hooks/pre-commit hooks/pre-push > /dev/null; chmod +x hooks/*
        git config commit.gpgSign true
        touch .git/index.lock .git/HEAD.lock .git/refs/heads/baton/one.lock"#,
    );
    let transcript = sandbox.run().await;
    assert!(
        transcript.stdout_text().contains("UU a.txt"),
        "{}",
        transcript.stdout_text()
    );
    assert_eq!(transcript.ending().salvage_failure, None);
    assert!(pushed_file(&sandbox, "a.txt").contains("<<<<<<<"));
    let parents = git(
        &sandbox.repository(),
        &["log", "-1", "--format=%P", PUSH_REF],
    );
    assert_eq!(parents.split(' ').count(), 2, "the merge is concluded");
}

/// A sandbox whose code and two results contradict each other: all three changed `a.txt`.
fn contradicting(script: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(script);
    let work = tempfile::tempdir().expect("a directory");
    let url = sandbox.repository().display().to_string();
    git(work.path(), &["clone", "-q", &url, "."]);
    git(work.path(), &["tag", "start"]);
    for name in ["base", "one", "two"] {
        git(work.path(), &["checkout", "-q", "--detach", "start"]);
        fs::write(work.path().join("a.txt"), format!("{name}\n")).expect("written");
        fs::write(work.path().join(name), "more\n").expect("written");
        git(work.path(), &["add", "--all"]);
        git(work.path(), &["commit", "-q", "-m", name]);
        let fetch_ref = format!("refs/baton/of/{name}");
        git(
            work.path(),
            &["push", "-q", "origin", &format!("HEAD:{fetch_ref}")],
        );
        let commit = git(work.path(), &["rev-parse", "HEAD"]);
        let checkout = &mut sandbox.job.checkout;
        if name == "base" {
            (checkout.fetch_ref, checkout.commit) = (fetch_ref, commit);
        } else {
            checkout.merges.push(Merge { fetch_ref, commit });
        }
    }
    sandbox.job.checkout.begin_merge = true;
    sandbox
}

/// The parents of what was pushed.
fn parents(sandbox: &Sandbox) -> Vec<String> {
    let args = ["log", "-1", "--format=%P", PUSH_REF];
    let parents = git(&sandbox.repository(), &args);
    parents.split(' ').map(str::to_owned).collect()
}

#[tokio::test]
async fn claude_starts_in_the_middle_of_a_merge_that_conflicts() {
    let mut sandbox = contradicting(&format!(
        r#"
        git status --short; cat a.txt; git rev-parse HEAD MERGE_HEAD
        printf 'base and one\n' > a.txt; git commit -qam "Join one"
        git merge -q --no-ff $(head -n 1 | grep -oE '[0-9a-f]{{40}}') > /dev/null; git status --short
        printf 'all three\n' > a.txt; git commit -qam "Join two"
        echo '{RESULT}'"#
    ));
    let [one, two] = [0, 1].map(|at: usize| sandbox.job.checkout.merges[at].commit.clone());
    sandbox.job.claude.prompt = two.clone();
    let transcript = sandbox.run().await;
    let base = &sandbox.job.checkout.commit;
    let expected = format!(
        "UU a.txt\nA  one\n<<<<<<< HEAD\nbase\n||||||| START\na\n=======\none\n>>>>>>> {one}\n\
         {base}\n{one}\nUU a.txt\nA  two\n{RESULT}\n"
    );
    let seen = transcript.stdout_text();
    // The common side has the short name of its commit.
    let start = seen.lines().find_map(|line| line.strip_prefix("||||||| "));
    let expected = expected.replace("START", start.expect("the common side is shown"));
    assert_eq!(seen, expected);
    assert_eq!(transcript.ending().salvage_failure, None);
    assert_eq!(transcript.ending().unmerged, Vec::<String>::new());
    assert_eq!(pushed_file(&sandbox, "a.txt"), "all three");
    assert_eq!(pushed_file(&sandbox, "one"), "more");
    assert_eq!(parents(&sandbox)[1], two);
}

#[tokio::test]
async fn a_merge_that_claude_leaves_in_the_middle_is_saved_with_its_markers() {
    let sandbox = contradicting(&format!("echo x > x; echo '{RESULT}'"));
    let transcript = sandbox.run().await;
    let ending = transcript.ending();
    assert_eq!(ending.salvage_failure, None);
    assert_eq!(ending.unmerged, ["a.txt"]);
    assert!(pushed_file(&sandbox, "a.txt").contains(">>>>>>> "));
    assert_eq!(pushed_file(&sandbox, "x"), "x");
    let checkout = &sandbox.job.checkout;
    let expected = [checkout.commit.clone(), checkout.merges[0].commit.clone()];
    assert_eq!(parents(&sandbox), expected);
}

#[tokio::test]
async fn a_merge_that_changes_nothing_is_committed_for_claude() {
    let sandbox = contradicting(&format!(
        "git checkout -q HEAD -- a.txt; git rm -q -f one; git status --short; echo '{RESULT}'"
    ));
    let transcript = sandbox.run().await;
    assert_eq!(transcript.stdout_text(), format!("{RESULT}\n"));
    assert_eq!(parents(&sandbox).len(), 2);
    assert_eq!(pushed_file(&sandbox, "a.txt"), "base");
}

#[tokio::test]
async fn who_only_reads_gets_contradicting_results_beside_its_code() {
    let mut sandbox = contradicting(&format!(
        "git status --short; git show $(head -n 1 | grep -oE '[0-9a-f]{{40}}'):a.txt; cat a.txt; echo '{RESULT}'"
    ));
    sandbox.job.checkout.begin_merge = false;
    sandbox.job.push_ref = None;
    sandbox.job.claude.prompt = sandbox.job.checkout.merges[1].commit.clone();
    let seen = sandbox.run().await.stdout_text();
    assert_eq!(seen, format!("two\nbase\n{RESULT}\n"));
}

#[tokio::test]
async fn a_merge_of_what_is_not_there_is_a_failure_before_claude() {
    let mut sandbox = contradicting("echo never");
    sandbox.job.checkout.merges[0].commit = "1".repeat(40);
    let transcript = sandbox.run().await;
    let failure = transcript.ending().setup_failure.as_ref();
    assert_eq!(failure.expect("a failure").step, "clone");
    assert!(transcript.stdout.is_empty());
}

#[tokio::test]
async fn a_workspace_beyond_saving_is_told() {
    let transcript = Sandbox::new(&format!("rm -rf .git; echo '{RESULT}'"))
        .run()
        .await;
    let ending = transcript.ending();
    assert_eq!(ending.pushed, None);
    let failure = ending.salvage_failure.as_ref().expect("a failure");
    assert!(failure.contains("not a git repository"), "{failure}");
    assert!(ending.result.is_some());
}

#[tokio::test]
async fn a_push_that_is_refused_is_tried_again() {
    let sandbox = Sandbox::new(&format!("echo x > x; echo '{RESULT}'"));
    let hook = sandbox.repository().join("hooks/pre-receive");
    let once = sandbox.path("once");
    let script = format!(
        "#!/bin/sh\n[ -e {0} ] || {{ touch {0}; exit 1; }}\n",
        once.display()
    );
    write_executable(&hook, &script);
    let transcript = sandbox.run().await;
    assert!(once.exists(), "the hook has run");
    assert_eq!(transcript.ending().salvage_failure, None);
    assert_eq!(pushed_file(&sandbox, "x"), "x");
}

fn write_executable(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

#[tokio::test]
async fn a_linked_claude_md_stays_in_the_workspace() {
    for (target, expected) in [("a.txt", true), ("../home/secret", false)] {
        let mut sandbox = Sandbox::new(&format!("cat \"$5\"; echo '{RESULT}'"));
        fs::write(sandbox.path("home/secret"), "secret").expect("written");
        sandbox.job.checkout.commit = with_linked_claude_md(&sandbox, target);
        let text = sandbox.run().await.stdout_text();
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(text.contains("CLAUDE.md:\n\na\n"), expected, "{text}");
    }
}

fn with_linked_claude_md(sandbox: &Sandbox, target: &str) -> String {
    let work = tempfile::tempdir().expect("a directory");
    let url = sandbox.repository().display().to_string();
    git(work.path(), &["clone", "-q", &url, "."]);
    fs::remove_file(work.path().join("CLAUDE.md")).expect("removed");
    std::os::unix::fs::symlink(target, work.path().join("CLAUDE.md")).expect("linked");
    git(work.path(), &["commit", "-qam", "Link"]);
    git(work.path(), &["push", "-q", "origin", "HEAD:main"]);
    git(work.path(), &["rev-parse", "HEAD"])
}

#[tokio::test]
async fn loopback_leads_to_the_server_even_when_that_comes_later() {
    let sandbox = Sandbox::new("exec sleep 1000");
    let port = free_port();
    let server = sandbox.listen();
    let mut agent = sandbox.start(port);
    let mut connection = server.accept().await;
    let mut transcript = Transcript::default();
    connection
        .receive(&mut transcript, |now| now.notes.len() == 3)
        .await;
    drop((connection, server));

    let mut client = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("connected");
    client.write_all(b"request").await.expect("sent");
    let server = sandbox.listen();
    // Which of the two connections comes first is open.
    let mut client_seen = false;
    for _ in 0..2 {
        let mut stream = server.accept_raw().await;
        let mut start = [0; 7];
        soon(stream.read_exact(&mut start)).await.expect("readable");
        if &start != b"request" {
            continue;
        }
        client_seen = true;
        client.shutdown().await.expect("half closed");
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.expect("readable");
        assert!(rest.is_empty());
        stream.write_all(&vec![7; 3_000_000]).await.expect("sent");
        drop(stream);
    }
    assert!(client_seen);
    let mut answer = Vec::new();
    soon(client.read_to_end(&mut answer))
        .await
        .expect("readable");
    assert_eq!(answer.len(), 3_000_000);
    agent.kill().await;
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
