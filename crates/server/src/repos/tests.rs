//! Mirrors, bases, results and landings against real repositories.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures::future::join_all;

use super::fixture::{Fixture, commit, exists, git, id, session};
use super::*;

fn branch(name: &str) -> Branch {
    name.parse().expect("a branch")
}

async fn base_on(
    fixture: &Fixture,
    number: u128,
    branch: Option<&Branch>,
) -> Result<Base, RepoError> {
    let request = BaseRequest {
        repository: &fixture.repository,
        session: session(number),
        attempt: Attempt::FIRST,
        branch,
        dependencies: &[],
    };
    fixture.repos.prepare_base(request).await
}

async fn base_after(
    fixture: &Fixture,
    number: u128,
    dependencies: &[(u128, &str)],
) -> Result<Base, RepoError> {
    let dependencies: Vec<DependencyCommit> = dependencies
        .iter()
        .map(|(number, commit)| DependencyCommit {
            session: session(*number),
            commit: (*commit).to_owned(),
        })
        .collect();
    let request = BaseRequest {
        repository: &fixture.repository,
        session: session(number),
        attempt: Attempt::FIRST,
        branch: None,
        dependencies: &dependencies,
    };
    fixture.repos.prepare_base(request).await
}

async fn land(
    fixture: &Fixture,
    commit: &str,
    base: &str,
    target: &str,
) -> Result<Landed, RepoError> {
    let target = branch(target);
    fixture
        .repos
        .land(&fixture.repository, commit, base, &target, "Land it")
        .await
}

/// Makes the remote run `script` before it takes a push.
fn hook(fixture: &Fixture, script: &str) {
    let path = fixture.remote().join("hooks/pre-receive");
    fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
}

#[tokio::test]
async fn the_base_is_the_tip_of_the_branch_or_of_the_default_branch() {
    let fixture = Fixture::empty();
    git(
        &fixture.remote(),
        &["symbolic-ref", "HEAD", "refs/heads/trunk"],
    );
    let trunk = fixture.pushed_by_others("trunk", &[("a", Some("1"))]);
    let other = fixture.pushed_by_others("feature/x", &[("b", Some("1"))]);

    let base = base_on(&fixture, 1, None).await.expect("a base");
    assert_eq!(base.commit, trunk);
    assert_eq!(id(&fixture.mirror(), &base.fetch_ref), trunk);
    assert_eq!(
        git(&fixture.mirror(), &["symbolic-ref", "HEAD"]),
        "refs/heads/trunk"
    );

    let existing = branch("feature/x");
    let base = base_on(&fixture, 2, Some(&existing)).await.expect("a base");
    assert_eq!(base.commit, other);
    let absent = branch("not-there-g1234567");
    let base = base_on(&fixture, 3, Some(&absent)).await.expect("a base");
    assert_eq!(base.commit, trunk);

    git(
        &fixture.remote(),
        &["symbolic-ref", "HEAD", "refs/heads/feature/x"],
    );
    assert_eq!(fixture.base(session(4)).await, other);
}

#[tokio::test]
async fn a_base_is_as_new_as_the_request_and_then_stays() {
    let fixture = Fixture::new();
    let first = fixture.base(session(1)).await;
    let newer = fixture.pushed_by_others("main", &[("b", Some("1"))]);
    assert_eq!(fixture.base(session(2)).await, newer);
    assert_eq!(fixture.base(session(1)).await, first);
    // Branches that go away there go away here, and make room for others.
    fixture.pushed_by_others("a", &[("b", Some("1"))]);
    fixture.base(session(3)).await;
    git(&fixture.remote(), &["update-ref", "-d", "refs/heads/a"]);
    fixture.pushed_by_others("a/b", &[("b", Some("2"))]);
    fixture.base(session(4)).await;
    assert!(exists(&fixture.mirror(), "refs/heads/a/b"));
    assert!(!exists(&fixture.mirror(), "refs/heads/a"));
}

#[tokio::test]
async fn callers_at_the_same_time_share_a_fetch_that_began_after_they_asked() {
    let fixture = Fixture::new();
    let bases = join_all((0..16).map(|number| fixture.base(session(number)))).await;
    let tip = fixture.tip("main");
    assert!(bases.iter().all(|base| *base == tip));
    let state = fixture.repos.state(&fixture.repository);
    // The first caller's, and one for all who came while it ran.
    assert_eq!(state.fetches_begun.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn work_starts_in_an_empty_repository() {
    let fixture = Fixture::empty();
    let base = fixture.base(session(1)).await;
    assert_eq!(fixture.base(session(2)).await, base);
    assert_eq!(git(&fixture.mirror(), &["ls-tree", &base]), "");
    let one = fixture.worked(session(1), &base, &[("one", Some("1"))]);
    let two = fixture.worked(session(2), &base, &[("two", Some("2"))]);
    let landed = land(&fixture, &one, &base, "main").await.expect("lands");
    assert!(!landed.merged);
    let landed = land(&fixture, &two, &base, "main").await.expect("lands");
    assert!(landed.merged);
    assert_eq!(fixture.remote_files("main"), ["one", "two"]);
    assert_eq!(fixture.base(session(3)).await, landed.commit);
}

#[tokio::test]
async fn a_missing_default_branch_is_not_guessed() {
    let fixture = Fixture::empty();
    let dev = fixture.pushed_by_others("dev", &[("a", Some("1"))]);
    let error = base_on(&fixture, 1, None).await.expect_err("no default");
    assert!(
        matches!(&error, RepoError::BranchNotFound { branch, .. } if branch == "HEAD"),
        "{error}"
    );
    let named = branch("dev");
    let base = base_on(&fixture, 1, Some(&named)).await.expect("a base");
    assert_eq!(base.commit, dev);
}

#[tokio::test]
async fn a_missing_repository_is_told_from_a_remote_out_of_reach() {
    let fixture = Fixture::new();
    fs::remove_dir_all(fixture.remote()).expect("removed");
    let error = base_on(&fixture, 1, None).await.expect_err("no repository");
    assert!(
        matches!(error, RepoError::RepositoryNotFound { .. }),
        "{error}"
    );
    assert!(!error.is_retryable());

    let away = Repos::new(RepoSettings {
        root: fixture.folder.path().join("away"),
        // Nothing listens on port 1.
        base_url: "http://127.0.0.1:1".to_owned(),
        token: None,
    });
    let error = away
        .fetch(&fixture.repository)
        .await
        .expect_err("no server");
    assert!(
        matches!(error, RepoError::RemoteUnreachable { .. }),
        "{error}"
    );
    assert!(error.is_retryable());
}

#[tokio::test]
async fn dependencies_need_no_remote() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let one = fixture.worked(session(1), &base, &[("one", Some("1"))]);
    let two = fixture.worked(session(2), &one, &[("two", Some("2"))]);
    fs::remove_dir_all(fixture.remote()).expect("removed");
    let single = base_after(&fixture, 10, &[(1, &one)])
        .await
        .expect("a base");
    assert_eq!(single.commit, one);
    // Of a chain the last one holds the others, and an analysis changed nothing.
    let chain = [(1, one.as_str()), (2, &two), (3, &base), (4, &two)];
    let chain = base_after(&fixture, 11, &chain).await.expect("a base");
    assert_eq!(chain.commit, two);
    let missing = "1".repeat(40);
    let error = base_after(&fixture, 12, &[(1, &one), (2, &missing)]).await;
    assert!(error.is_err());
}

#[tokio::test]
async fn a_commit_lost_with_its_mirror_comes_from_the_remote_or_is_named() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    fs::remove_dir_all(fixture.mirror()).expect("removed");
    let found = base_after(&fixture, 10, &[(1, &base)])
        .await
        .expect("a base");
    assert_eq!(found.commit, base);
    let missing = "1".repeat(40);
    for dependencies in [
        &[(1, base.as_str()), (2, &missing)][..],
        &[(2, &missing)],
        &[(2, "--help")],
    ] {
        let error = base_after(&fixture, 11, dependencies)
            .await
            .expect_err("nowhere");
        assert!(matches!(error, RepoError::CommitNotFound { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains(dependencies.last().expect("one").1)
        );
    }
}

#[tokio::test]
async fn the_same_dependencies_give_the_same_merge_in_any_order() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let one = fixture.worked(session(1), &base, &[("one", Some("1"))]);
    let two = fixture.worked(session(2), &base, &[("two", Some("2"))]);
    let three = fixture.worked(session(3), &base, &[("src/lib.rs", Some("one\ntwo\n3\n"))]);
    let forward = [(1, one.as_str()), (2, &two), (3, &three)];
    let backward = [(3, three.as_str()), (2, &two), (1, &one), (4, &base)];
    let forward = base_after(&fixture, 10, &forward).await.expect("a base");
    let backward = base_after(&fixture, 11, &backward).await.expect("a base");
    assert_eq!(forward.commit, backward.commit);
    let files = git(
        &fixture.mirror(),
        &["ls-tree", "-r", "--name-only", &forward.commit],
    );
    assert_eq!(files, "README.md\none\nsrc/lib.rs\ntwo");
    let shown = git(
        &fixture.mirror(),
        &[
            "show",
            "--no-patch",
            "--format=%an <%ae> %ct %s",
            &forward.commit,
        ],
    );
    let names = [session(1), session(2), session(3)].map(|session| session.to_string());
    assert_eq!(
        shown,
        format!(
            "Baton <baton@localhost> 1700000000 Join the results of sessions {}, {} and {}",
            names[0], names[1], names[2]
        )
    );
}

#[tokio::test]
async fn a_result_lists_what_changed() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let nothing = fixture
        .repos
        .result_of(&fixture.repository, session(1), Attempt::FIRST, &base)
        .await
        .expect("a result");
    assert_eq!(
        (nothing.commit.as_str(), nothing.files_changed),
        (base.as_str(), 0)
    );

    let first = fixture.worked(
        session(1),
        &base,
        &[
            ("new\nfile \"x\"", Some("1\n2\n")),
            ("binary", Some("a\0b\n")),
        ],
    );
    let changes = [
        ("README.md", None),
        ("src/lib.rs", Some("one\n2\nthree\nfour\n")),
        (":weird", Some("1\n")),
    ];
    let second = fixture.worked(session(1), &first, &changes);
    let result = fixture
        .repos
        .result_of(&fixture.repository, session(1), Attempt::FIRST, &base)
        .await
        .expect("a result");
    assert_eq!(result.commit, second);
    assert_eq!(result.commits, [first, second]);
    let files: Vec<_> = result
        .files
        .iter()
        .map(|file| (file.path.as_str(), file.change))
        .collect();
    assert_eq!(
        files,
        [
            (":weird", Change::Created),
            ("README.md", Change::Deleted),
            ("binary", Change::Created),
            ("new\nfile \"x\"", Change::Created),
            ("src/lib.rs", Change::Changed),
        ]
    );
    let counts = (result.files_changed, result.insertions, result.deletions);
    assert_eq!(counts, (5, 5, 2));
}

#[tokio::test]
async fn a_tag_that_a_sandbox_pushed_counts_as_its_commit() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let commit = fixture.worked(session(1), &base, &[("new.txt", Some("new\n"))]);
    let mirror = fixture.mirror();
    git(&mirror, &["tag", "-a", "-m", "x", "sneaky", &commit]);
    let tag = git(&mirror, &["rev-parse", "refs/tags/sneaky"]);
    let reference = result_ref(session(1), Attempt::FIRST);
    git(&mirror, &["update-ref", &reference, tag.trim()]);
    let work = fixture
        .repos
        .result_of(&fixture.repository, session(1), Attempt::FIRST, &base)
        .await
        .expect("a result");
    assert_eq!(work.commit, commit);
}

#[tokio::test]
async fn a_long_result_is_capped_and_counted_whole() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let count = RESULT_FILES_MAX + 7;
    let names: Vec<String> = (0..count).map(|number| format!("f/{number:05}")).collect();
    let files: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), Some("x\n")))
        .collect();
    fixture.worked(session(1), &base, &files);
    let result = fixture
        .repos
        .result_of(&fixture.repository, session(1), Attempt::FIRST, &base)
        .await
        .expect("a result");
    assert_eq!(result.files.len(), RESULT_FILES_MAX);
    assert_eq!(result.files_changed, count as u64);
    assert_eq!(result.insertions, count as u64);
}

#[tokio::test]
async fn landing_makes_a_branch_then_continues_it() {
    let fixture = Fixture::new();
    let main = fixture.tip("main");
    let base = fixture.base(session(1)).await;
    let one = fixture.worked(session(1), &base, &[("one", Some("1"))]);
    let two = fixture.worked(session(2), &one, &[("two", Some("2"))]);
    for commit in [&one, &two] {
        let landed = land(&fixture, commit, &base, "baton/1")
            .await
            .expect("lands");
        let expected = Landed {
            commit: commit.clone(),
            merged: false,
        };
        assert_eq!(landed, expected);
        assert_eq!(fixture.tip("baton/1"), *commit);
        // Repeated, as after a crash.
        let again = land(&fixture, commit, &base, "baton/1")
            .await
            .expect("lands");
        assert_eq!(again, expected);
    }
    // An older one is in there already.
    let older = land(&fixture, &one, &base, "baton/1").await.expect("lands");
    assert_eq!(older.commit, two);
    assert_eq!(fixture.tip("main"), main);
}

#[tokio::test]
async fn a_result_without_changes_touches_nothing() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    fs::remove_dir_all(fixture.remote()).expect("removed");
    let landed = land(&fixture, &base, &base, "main")
        .await
        .expect("nothing to do");
    assert_eq!(
        landed,
        Landed {
            commit: base,
            merged: false
        }
    );
}

#[tokio::test]
async fn eight_results_land_on_one_branch_at_once() {
    let fixture = Fixture::new();
    let base = fixture.base(session(0)).await;
    let names: Vec<String> = (0..8).map(|number| format!("file-{number}")).collect();
    let commits: Vec<String> = names
        .iter()
        .zip(1..)
        .map(|(name, number)| fixture.worked(session(number), &base, &[(name, Some("x"))]))
        .collect();
    let landings = join_all(
        commits
            .iter()
            .map(|commit| land(&fixture, commit, &base, "main")),
    );
    for landed in landings.await {
        landed.expect("lands");
    }
    let files = fixture.remote_files("main");
    assert!(names.iter().all(|name| files.contains(name)), "{files:?}");
    let count = git(&fixture.remote(), &["rev-list", "--count", "main"]);
    // The first commit, eight results, and merges of all but the first.
    assert_eq!(count, "16");
    for commit in &commits {
        land(&fixture, commit, &base, "main")
            .await
            .expect("is there");
    }
    assert_eq!(
        git(&fixture.remote(), &["rev-list", "--count", "main"]),
        count
    );
}

#[tokio::test]
async fn someone_pushing_in_the_middle_is_merged_with() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let ours = fixture.worked(session(1), &base, &[("ours", Some("1"))]);
    // Their commit is ready, and moves the branch while the remote takes ours.
    let theirs = commit(
        &fixture.remote(),
        "refs/others",
        Some(&base),
        &[("theirs", Some("1"))],
    );
    hook(
        &fixture,
        &format!(
            "[ -e raced ] && exit 0; touch raced; unset GIT_QUARANTINE_PATH\n\
             git update-ref refs/heads/main {theirs}"
        ),
    );
    let landed = land(&fixture, &ours, &base, "main").await.expect("lands");
    assert!(fixture.remote().join("raced").exists());
    assert!(landed.merged);
    assert_eq!(fixture.tip("main"), landed.commit);
    let files = fixture.remote_files("main");
    assert_eq!(files, ["README.md", "ours", "src/lib.rs", "theirs"]);
    let parents = git(&fixture.remote(), &["log", "-1", "--format=%P %s", "main"]);
    assert_eq!(parents, format!("{theirs} {ours} Land it"));
}

#[tokio::test]
async fn a_branch_that_never_rests_is_given_up_for_now() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let ours = fixture.worked(session(1), &base, &[("ours", Some("1"))]);
    hook(
        &fixture,
        "unset GIT_QUARANTINE_PATH\n\
         export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b\n\
         unset GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES\n\
         git update-ref refs/heads/main $(git commit-tree -p main -m more main^{tree})",
    );
    let error = land(&fixture, &ours, &base, "main")
        .await
        .expect_err("a race");
    assert!(matches!(error, RepoError::Contended { .. }), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_conflict_leaves_the_branch_alone_and_names_files() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let ours = fixture.worked(session(1), &base, &[("README.md", Some("ours\n"))]);
    let theirs = fixture.pushed_by_others("main", &[("README.md", Some("theirs\n"))]);
    let error = land(&fixture, &ours, &base, "main")
        .await
        .expect_err("a conflict");
    assert_eq!(
        error.to_string(),
        "branch main of owner/project and the result conflict in README.md"
    );
    assert_eq!(fixture.tip("main"), theirs);
}

#[tokio::test]
async fn a_rewritten_branch_without_common_history_is_a_conflict() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let ours = fixture.worked(session(1), &base, &[("ours", Some("1"))]);
    commit(
        &fixture.remote(),
        "refs/heads/main",
        None,
        &[("other", Some("1"))],
    );
    let error = land(&fixture, &ours, &base, "main")
        .await
        .expect_err("a conflict");
    assert!(matches!(error, RepoError::MergeConflict { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_says_what_the_remote_said() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let ours = fixture.worked(session(1), &base, &[("ours", Some("1"))]);
    hook(
        &fixture,
        "echo 'main is protected: see the handbook'; exit 1",
    );
    let error = land(&fixture, &ours, &base, "main")
        .await
        .expect_err("refused");
    assert!(matches!(error, RepoError::Rejected { .. }), "{error}");
    assert!(error.to_string().contains("see the handbook"), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_branch_in_the_way_of_another_is_a_refusal() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let ours = fixture.worked(session(1), &base, &[("ours", Some("1"))]);
    let error = land(&fixture, &ours, &base, "main/sub")
        .await
        .expect_err("in the way");
    assert!(matches!(error, RepoError::Rejected { .. }), "{error}");
}

#[tokio::test]
async fn what_a_crash_left_is_cleared_and_branches_are_not() {
    let fixture = Fixture::new();
    fixture.pushed_by_others("tmp_old", &[("a", Some("1"))]);
    let base = fixture.base(session(1)).await;
    let mirror = fixture.mirror();
    let old = SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60);
    let aged = |path: &Path| {
        let file = fs::File::options().create(true).append(true).open(path);
        file.and_then(|file| file.set_modified(old))
            .expect("an old file");
    };
    let left_over = [
        "packed-refs.lock",
        "refs/heads/main.lock",
        "objects/pack/tmp_pack_x",
    ];
    for name in left_over.iter().chain(&["refs/heads/tmp_old"]) {
        aged(&mirror.join(name));
    }
    // A young lock may belong to somebody.
    fs::write(mirror.join("refs/heads/other.lock"), "").expect("a file");
    let newer = fixture.pushed_by_others("main", &[("b", Some("1"))]);
    let restarted = Repos::new(RepoSettings {
        root: fixture.folder.path().join("repos"),
        base_url: format!("file://{}", fixture.folder.path().join("remotes").display()),
        token: None,
    });
    let fixture = Fixture {
        repos: restarted,
        ..fixture
    };
    assert_ne!(base, newer);
    assert_eq!(fixture.base(session(2)).await, newer);
    for name in left_over {
        assert!(!mirror.join(name).exists(), "{name}");
    }
    assert!(mirror.join("refs/heads/other.lock").exists());
    assert!(mirror.join("refs/heads/tmp_old").exists());
}

#[tokio::test]
async fn a_lock_left_while_we_run_is_cleared_too() {
    let fixture = Fixture::new();
    fixture.base(session(1)).await;
    let lock = fixture.mirror().join("refs/heads/main.lock");
    let file = fs::File::create(&lock).expect("a file");
    file.set_modified(SystemTime::now() - Duration::from_secs(60))
        .expect("an old file");
    let newer = fixture.pushed_by_others("main", &[("b", Some("1"))]);
    assert_eq!(fixture.base(session(2)).await, newer);
}

#[tokio::test]
async fn maintenance_keeps_everything_and_removal_takes_one_session() {
    let fixture = Fixture::new();
    let base = fixture.base(session(1)).await;
    let one = fixture.worked(session(1), &base, &[("one", Some("1"))]);
    fixture.base(session(2)).await;
    fixture
        .repos
        .maintain(&fixture.repository)
        .await
        .expect("maintains");
    assert!(
        !fixture
            .mirror()
            .join(base_ref(session(1), Attempt::FIRST))
            .exists()
    );
    // Read from packed references now.
    assert_eq!(fixture.base(session(1)).await, base);
    let result = fixture
        .repos
        .result_of(&fixture.repository, session(1), Attempt::FIRST, &base)
        .await
        .expect("a result");
    assert_eq!(result.commit, one);
    for _ in 0..2 {
        fixture
            .repos
            .remove_refs(&fixture.repository, session(1))
            .await
            .expect("removes");
    }
    assert!(!exists(
        &fixture.mirror(),
        &base_ref(session(1), Attempt::FIRST)
    ));
    assert!(!exists(
        &fixture.mirror(),
        &result_ref(session(1), Attempt::FIRST)
    ));
    assert!(exists(
        &fixture.mirror(),
        &base_ref(session(2), Attempt::FIRST)
    ));
}

#[tokio::test]
async fn hooks_in_a_mirror_do_not_run() {
    let fixture = Fixture::new();
    fixture.base(session(1)).await;
    let hooks = fixture.mirror().join("hooks");
    fs::create_dir_all(&hooks).expect("a folder");
    let path = hooks.join("reference-transaction");
    let proof = fixture.folder.path().join("ran");
    fs::write(&path, format!("#!/bin/sh\ntouch {}\n", proof.display())).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
    fixture.base(session(2)).await;
    assert!(!proof.exists());
}

#[tokio::test]
async fn git_is_there_and_new_enough() {
    let version = Repos::git_version().await.expect("a version");
    let mut numbers = version
        .split('.')
        .filter_map(|part| part.parse::<u32>().ok());
    assert!(
        (numbers.next(), numbers.next()) >= (Some(2), Some(38)),
        "{version}"
    );
}
