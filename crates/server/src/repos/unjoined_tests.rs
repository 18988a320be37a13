//! Dependencies that contradict each other, and whether a session has merged them, against real
//! repositories.

use expect_test::{Expect, expect};

use super::fixture::{Fixture, commit, exists, git, id, session, try_git};
use super::*;

/// Who depends on the others.
const DEPENDENT: u128 = 10;

/// A text with what looks like conflict markers, in a paragraph about them.
const ABOUT_MARKERS: &str = "Git writes\n<<<<<<< HEAD\nours\n=======\ntheirs\n>>>>>>> other\n";

async fn base_after(fixture: &Fixture, dependencies: &[(u128, &str)]) -> Base {
    let dependencies: Vec<DependencyCommit> = dependencies
        .iter()
        .map(|(number, commit)| DependencyCommit {
            session: session(*number),
            commit: (*commit).to_owned(),
        })
        .collect();
    let request = BaseRequest {
        repository: &fixture.repository,
        session: session(DEPENDENT),
        attempt: Attempt::FIRST,
        branch: None,
        dependencies: &dependencies,
    };
    fixture.repos.prepare_base(request).await.expect("a base")
}

/// The same server after a restart.
fn restarted(fixture: Fixture) -> Fixture {
    let repos = Repos::new(RepoSettings {
        root: fixture.folder.path().join("repos"),
        base_url: format!("file://{}", fixture.folder.path().join("remotes").display()),
        token: None,
    });
    Fixture { repos, ..fixture }
}

#[tokio::test]
async fn contradicting_dependencies_are_left_to_the_session_with_their_files() {
    let fixture = Fixture::new();
    let start = fixture.base(session(1)).await;
    let worked =
        |number, files: &[(&str, Option<&str>)]| fixture.worked(session(number), &start, files);
    let one = worked(1, &[("a b\nc", Some("1")), ("x", Some("1"))]);
    let two = worked(2, &[("a b\nc", Some("2")), ("y", Some("1"))]);
    let three = worked(3, &[("z", Some("1"))]);
    let four = worked(4, &[("z", Some("4")), ("x", Some("4"))]);
    let dependencies = [(4, four.as_str()), (3, &three), (2, &two), (1, &one)];
    let base = base_after(&fixture, &dependencies).await;

    // As much as goes together, in the order of the sessions.
    let files = git(
        &fixture.mirror(),
        &["ls-tree", "-rz", "--name-only", &base.commit],
    );
    assert_eq!(files, "README.md\0a b\nc\0src/lib.rs\0x\0z\0");
    let left: Vec<_> = base
        .unjoined
        .iter()
        .map(|left| (left.session, left.commit.as_str(), left.files.join(" ")))
        .collect();
    assert_eq!(
        left,
        [
            (session(2), two.as_str(), "a b\nc".to_owned()),
            (session(4), four.as_str(), "x z".to_owned()),
        ]
    );
    for left in &base.unjoined {
        assert_eq!(id(&fixture.mirror(), &left.fetch_ref), left.commit);
    }

    // Decided once: for whoever asks later, after a restart, and with everything packed.
    assert_eq!(base_after(&fixture, &dependencies[..1]).await, base);
    let fixture = restarted(fixture);
    assert_eq!(base_after(&fixture, &dependencies).await, base);
    let maintained = fixture.repos.maintain(&fixture.repository).await;
    maintained.expect("maintains");
    assert_eq!(base_after(&fixture, &dependencies).await, base);
    let removed = fixture
        .repos
        .remove_refs(&fixture.repository, session(DEPENDENT));
    removed.await.expect("removes");
    assert!(!exists(&fixture.mirror(), &base.unjoined[0].fetch_ref));
}

#[tokio::test]
async fn a_decision_that_a_crash_tore_is_made_again() {
    let fixture = Fixture::new();
    let start = fixture.base(session(1)).await;
    let one = fixture.worked(session(1), &start, &[("a", Some("1"))]);
    let two = fixture.worked(session(2), &start, &[("a", Some("2"))]);
    let dependencies = [(1, one.as_str()), (2, &two)];
    let base = base_after(&fixture, &dependencies).await;
    git(&fixture.mirror(), &["update-ref", "-d", &base.fetch_ref]);
    assert_eq!(base_after(&fixture, &dependencies).await, base);
}

#[tokio::test]
async fn results_without_a_common_commit_are_left_to_the_session() {
    let fixture = Fixture::new();
    let start = fixture.base(session(1)).await;
    let one = fixture.worked(session(1), &start, &[("a", Some("1"))]);
    let reference = result_ref(session(2), Attempt::FIRST);
    let two = commit(&fixture.mirror(), &reference, None, &[("a", Some("2"))]);
    let base = base_after(&fixture, &[(1, &one), (2, &two)]).await;
    assert_eq!(base.commit, one);
    assert_eq!(base.unjoined.len(), 1);
    assert_eq!(base.unjoined[0].files, ["a"]);
}

/// What two sessions made of the same code, and what the one that depends on both makes of that.
struct Joining {
    fixture: Fixture,
    base: Base,
    clone: PathBuf,
}

impl Joining {
    /// `before` is in the code of all; what each made of it contradicts the others.
    async fn new(before: &[(&str, Option<&str>)], made: &[&[(&str, Option<&str>)]]) -> Self {
        let fixture = Fixture::new();
        fixture.pushed_by_others("main", before);
        let start = fixture.base(session(1)).await;
        let results: Vec<(u128, String)> = (1..)
            .zip(made)
            .map(|(number, files)| (number, fixture.worked(session(number), &start, files)))
            .collect();
        let dependencies: Vec<(u128, &str)> = results
            .iter()
            .map(|(number, commit)| (*number, commit.as_str()))
            .collect();
        let base = base_after(&fixture, &dependencies).await;
        assert_eq!(base.commit, results[0].1);
        assert_eq!(base.unjoined.len(), made.len() - 1, "they contradict it");
        let clone = fixture.folder.path().join("clone");
        let mirror = fixture.mirror().display().to_string();
        git(
            fixture.folder.path(),
            &["clone", "-q", "--no-local", &mirror, "clone"],
        );
        let unjoined = base.unjoined.iter().map(|left| &left.fetch_ref);
        for reference in unjoined.chain([&base.fetch_ref]) {
            git(&clone, &["fetch", "-q", "origin", reference]);
        }
        git(&clone, &["checkout", "-q", "--detach", &base.commit]);
        Self {
            fixture,
            base,
            clone,
        }
    }

    fn merge(&self, at: usize) {
        let commit = &self.base.unjoined[at].commit;
        let merged = try_git(
            &self.clone,
            &["merge", "-q", "--no-ff", "--no-commit", commit],
        );
        assert!(!merged.status.success(), "a conflict");
    }

    fn write(&self, path: &str, text: &str) {
        std::fs::write(self.clone.join(path), text).expect("a file");
    }

    /// Commits all there is, as Claude or the agent would.
    fn commit(&self) -> String {
        git(&self.clone, &["add", "--all"]);
        git(
            &self.clone,
            &["commit", "-q", "--allow-empty", "-m", "Join"],
        );
        let commit = id(&self.clone, "HEAD");
        let target = format!("HEAD:{}", result_ref(session(DEPENDENT), Attempt::FIRST));
        let mirror = self.fixture.mirror().display().to_string();
        git(&self.clone, &["push", "-q", "--force", &mirror, &target]);
        commit
    }

    async fn unresolved(&self, commit: &str, unmerged: &[&str]) -> Option<Unresolved> {
        let unjoined = self
            .fixture
            .repos
            .unjoined_of(&self.fixture.repository, session(DEPENDENT), Attempt::FIRST)
            .expect("readable");
        let started = Started {
            repository: &self.fixture.repository,
            base: &self.base.commit,
            unjoined: &unjoined,
        };
        let unmerged: Vec<String> = unmerged.iter().map(|path| (*path).to_owned()).collect();
        let unresolved = self.fixture.repos.unresolved(started, commit, &unmerged);
        unresolved.await.expect("readable")
    }

    async fn check(&self, unmerged: &[&str], expected: Expect) {
        let commit = self.commit();
        let unresolved = self.unresolved(&commit, unmerged).await;
        let text = unresolved.map_or_else(|| "all merged".to_owned(), |left| left.to_string());
        expected.assert_eq(&text);
    }
}

#[tokio::test]
async fn a_merge_that_was_resolved_is_seen_as_such() {
    let joining = Joining::new(
        &[("a", Some("0\n"))],
        &[&[("a", Some("1\n"))], &[("a", Some("2\n"))]],
    )
    .await;
    joining.merge(0);
    joining.write("a", "1 and 2\n");
    // Whether Claude said `git add` to it does not matter.
    joining.check(&["a"], expect!["all merged"]).await;
    joining.write("other", "more\n");
    joining.check(&[], expect!["all merged"]).await;
    // Keeping one side is a decision too.
    joining.write("a", "1\n");
    joining.check(&[], expect!["all merged"]).await;
}

#[tokio::test]
async fn markers_that_are_left_are_seen_wherever_they_were_committed() {
    let joining = Joining::new(
        &[("a", Some("0\n")), ("b", Some("0\n"))],
        &[
            &[("a", Some("1\n")), ("b", Some("1\n"))],
            &[("a", Some("2\n")), ("b", Some("2\n"))],
        ],
    )
    .await;
    joining.merge(0);
    joining.write("b", "1 and 2\n");
    joining
        .check(&["a", "b"], expect!["conflicts are left in a"])
        .await;
    joining.write("b", "1 and 2\n>>>>>>> their side\n");
    joining
        .check(&[], expect!["conflicts are left in a, b"])
        .await;
    // They may come with the merge and go later.
    joining.write("a", "1 and 2\n");
    joining.write("b", "1 and 2\n");
    joining.check(&[], expect!["all merged"]).await;
}

#[tokio::test]
async fn markers_that_a_side_had_as_text_are_no_conflict() {
    let (ours, theirs) = (
        format!("One.\n{ABOUT_MARKERS}"),
        format!("Two.\n{ABOUT_MARKERS}"),
    );
    let joining = Joining::new(
        &[("git.md", Some(ABOUT_MARKERS))],
        &[&[("git.md", Some(&ours))], &[("git.md", Some(&theirs))]],
    )
    .await;
    joining.merge(0);
    joining.write("git.md", &format!("One.\nTwo.\n{ABOUT_MARKERS}"));
    // Nobody merged this one.
    joining.write("other.md", ABOUT_MARKERS);
    joining.check(&["git.md"], expect!["all merged"]).await;
    joining.write(
        "git.md",
        &format!("<<<<<<< HEAD\nOne.\n>>>>>>> c0ffee\n{ABOUT_MARKERS}"),
    );
    joining
        .check(&[], expect!["conflicts are left in git.md"])
        .await;
}

#[tokio::test]
async fn a_result_that_is_not_merged_is_named() {
    let joining = Joining::new(
        &[("a", Some("0\n"))],
        &[&[("a", Some("1\n"))], &[("a", Some("2\n"))]],
    )
    .await;
    joining.write("other", "more\n");
    let expected = expect![
        "conflicts are left in a; not merged are the results of sessions 00000000-0000-0000-0000-000000000002"
    ];
    joining.check(&[], expected).await;
    let base = joining.base.commit.clone();
    let unresolved = joining.unresolved(&base, &[]).await.expect("not merged");
    assert_eq!(unresolved.sessions, [session(2)]);
    assert!(!unresolved.without_base);

    git(
        &joining.clone,
        &["reset", "-q", "--hard", &joining.base.unjoined[0].commit],
    );
    let expected = expect!["the code it started from is no longer in it"];
    joining.check(&[], expected).await;
}

#[tokio::test]
async fn conflicts_without_markers_are_left_where_nobody_decided() {
    let joining = Joining::new(
        &[("gone", Some("0\n")), ("image", Some("\0"))],
        &[
            &[("gone", None), ("image", Some("\u{0}1"))],
            &[("gone", Some("2\n")), ("image", Some("\u{0}2"))],
        ],
    )
    .await;
    joining.merge(0);
    let expected = expect!["conflicts are left in gone, image"];
    joining.check(&["gone", "image"], expected).await;
    joining
        .check(&["image"], expect!["conflicts are left in image"])
        .await;
    joining.check(&[], expect!["all merged"]).await;
}

#[tokio::test]
async fn files_that_both_added_or_renamed_are_looked_at() {
    let long = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
    let theirs = long.replace('5', "five");
    let ours = long.replace('5', "V");
    let joining = Joining::new(
        &[("old", Some(long))],
        &[
            &[("old", None), ("new", Some(&ours)), ("both", Some("1\n"))],
            &[("old", Some(&theirs)), ("both", Some("2\n"))],
        ],
    )
    .await;
    assert_eq!(joining.base.unjoined[0].files, ["both", "new"]);
    joining.merge(0);
    let expected = expect!["conflicts are left in both, new"];
    joining.check(&["both", "new"], expected).await;
    joining.write("both", "1\n2\n");
    joining.write("new", &long.replace('5', "V, five"));
    joining.check(&[], expect!["all merged"]).await;
}

#[tokio::test]
async fn each_of_several_merges_is_looked_at() {
    let joining = Joining::new(
        &[("a", Some("0\n")), ("b", Some("0\n"))],
        &[
            &[("a", Some("1\n"))],
            &[("a", Some("2\n")), ("b", Some("2\n"))],
            &[("a", Some("3\n")), ("b", Some("3\n"))],
        ],
    )
    .await;
    joining.merge(0);
    joining.write("a", "1 and 2\n");
    let expected = expect![
        "conflicts are left in a; not merged are the results of sessions 00000000-0000-0000-0000-000000000003"
    ];
    joining.check(&[], expected).await;
    // What conflicts now is more than what conflicted with the base.
    assert_eq!(joining.base.unjoined[1].files, ["a"]);
    joining.merge(1);
    joining.write("a", "1, 2 and 3\n");
    joining
        .check(&["a", "b"], expect!["conflicts are left in b"])
        .await;
    joining.write("b", "2 and 3\n");
    joining.check(&[], expect!["all merged"]).await;
}
