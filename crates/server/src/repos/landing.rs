//! Brings a result to a branch of the remote, beside whatever others push there.
//!
//! Nothing is ever forced: a push that would not continue the branch as we know it is refused by
//! the remote, and then fetched, merged and tried again.

use baton_domain::{Branch, Repository};

use super::{RepoError, Repos};

/// How often a landing merges and pushes again because others pushed meanwhile.
const ROUNDS_MAX: usize = 16;

/// How often a push may be refused as if the branch had moved when it had not: a lock held for a
/// moment clears up, a branch `a` in the way of `a/b` does not.
const UNMOVED_ROUNDS_MAX: usize = 3;

/// What a landing did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    /// The commit of the branch that has the work: the result itself, or the merge that brought
    /// it in. Where an earlier call had landed it already, the branch's tip.
    pub commit: String,
    /// Whether `commit` is more than the result: it was joined with what others had pushed.
    pub merged: bool,
}

pub(super) enum Push {
    Done,
    /// The branch has commits that the pushed one does not, or so the remote's words suggest.
    Behind(String),
}

impl Repos {
    /// Brings `commit` to branch `target` of the remote; `message` is for the merge commit, where
    /// one is needed. Landings on the same branch queue. Nothing but `target` is written, and
    /// nothing at all where `commit` is `base`. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`RepoError::MergeConflict`], [`RepoError::Rejected`], [`RepoError::Contended`] and those
    /// of reaching the remote. The work stays in the mirror.
    pub async fn land(
        &self,
        repository: &Repository,
        commit: &str,
        base: &str,
        target: &Branch,
        message: &str,
    ) -> Result<Landed, RepoError> {
        let unmerged = Landed {
            commit: commit.to_owned(),
            merged: false,
        };
        if commit == base {
            return Ok(unmerged);
        }
        let turn = self.branch_turn(repository, target);
        let _turn = turn.lock().await;
        // Most branches are new or stand still: pushing first saves asking.
        let mut next = unmerged;
        let mut tip = None;
        let mut unmoved_rounds = 0;
        for _ in 0..ROUNDS_MAX {
            let reason = match self.push(repository, &next.commit, target).await? {
                Push::Done => return Ok(next),
                Push::Behind(reason) => reason,
            };
            self.fetch(repository).await?;
            let tip_before = tip;
            tip = self.read_ref(repository, &format!("refs/heads/{target}"))?;
            unmoved_rounds = if tip == tip_before {
                unmoved_rounds + 1
            } else {
                0
            };
            if unmoved_rounds == UNMOVED_ROUNDS_MAX {
                return Err(RepoError::Rejected {
                    repository: repository.clone(),
                    branch: target.clone(),
                    reason,
                });
            }
            next = match &tip {
                None => Landed {
                    commit: commit.to_owned(),
                    merged: false,
                },
                Some(tip) => match self.onto(repository, tip, commit, target, message).await? {
                    Step::Landed(landed) => return Ok(landed),
                    Step::Push(next) => next,
                },
            };
        }
        Err(RepoError::Contended {
            repository: repository.clone(),
            branch: target.clone(),
            rounds: ROUNDS_MAX,
        })
    }

    async fn onto(
        &self,
        repository: &Repository,
        tip: &str,
        commit: &str,
        target: &Branch,
        message: &str,
    ) -> Result<Step, RepoError> {
        let ask = self.call(repository, ["merge-base", tip, commit]);
        let common = self
            .local_any_code(repository, "find the common commit", ask)
            .await?;
        let common = String::from_utf8_lossy(&common.stdout).trim().to_owned();
        if common == commit {
            return Ok(Step::Landed(Landed {
                commit: tip.to_owned(),
                merged: tip != commit,
            }));
        }
        if common == tip {
            return Ok(Step::Push(Landed {
                commit: commit.to_owned(),
                merged: false,
            }));
        }
        let merge = self.merge(repository, tip, commit, message).await?;
        match merge {
            Ok(merge) => Ok(Step::Push(Landed {
                commit: merge,
                merged: true,
            })),
            Err(files) => Err(RepoError::MergeConflict {
                sides: format!("branch {target} of {repository} and the result"),
                files,
            }),
        }
    }

    pub(super) async fn push(
        &self,
        repository: &Repository,
        commit: &str,
        target: &Branch,
    ) -> Result<Push, RepoError> {
        let url = self.remote_url(repository);
        let refspec = format!("{commit}:refs/heads/{target}");
        let args = ["push", "--porcelain", "--no-follow-tags", &url, &refspec];
        let output = self.remote(repository, "push", &args).await?;
        if output.code == 0 {
            return Ok(Push::Done);
        }
        let text = self.redacted(String::from_utf8_lossy(&output.stdout).into_owned());
        match refusal(&text) {
            None => Err(RepoError::of_remote("push", repository, output.stderr)),
            Some(summary) => {
                let reason = with_remote_words(summary, &output.stderr);
                if is_behind(summary) {
                    return Ok(Push::Behind(reason));
                }
                Err(RepoError::Rejected {
                    repository: repository.clone(),
                    branch: target.clone(),
                    reason,
                })
            }
        }
    }
}

enum Step {
    /// The branch has it already.
    Landed(Landed),
    /// This would continue the branch.
    Push(Landed),
}

/// The summary of the refused reference in the output of `push --porcelain`:
/// `! TAB from:to TAB [rejected] (fetch first)`.
fn refusal(porcelain: &str) -> Option<&str> {
    let line = porcelain
        .lines()
        .find_map(|line| line.strip_prefix("!\t"))?;
    Some(line.split_once('\t').map_or(line, |(_, summary)| summary))
}

/// Whether the branch moved, seen before the push or by the remote in the middle of it.
fn is_behind(summary: &str) -> bool {
    const MOVED: [&str; 9] = [
        "(fetch first)",
        "(non-fast-forward)",
        "(needs force)",
        "(stale info)",
        "cannot lock ref",
        "failed to lock",
        "failed to update ref",
        "incorrect old value",
        "reference already exists",
    ];
    MOVED.iter().any(|words| summary.contains(words))
}

/// What the remote printed for people says more than the summary: which rule, and where to read.
fn with_remote_words(summary: &str, stderr: &str) -> String {
    let said = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("remote:"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    if said.is_empty() {
        summary.to_owned()
    } else {
        format!("{summary} {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_branch_is_told_from_a_refusal() {
        let moved = "To /r\n!\tabc:refs/heads/x\t[rejected] (fetch first)\nDone\n";
        assert!(refusal(moved).is_some_and(is_behind));
        let race = "To /r\n!\tabc:refs/heads/x\t[remote rejected] (cannot lock ref 'refs/heads/x': \
                    is at 1 but expected 2)\n";
        assert!(refusal(race).is_some_and(is_behind));
        let refused = "!\tabc:refs/heads/x\t[remote rejected] (protected branch hook declined)\n";
        assert!(!refusal(refused).is_some_and(is_behind));
        assert_eq!(refusal("fatal: no line\n"), None);
    }

    #[test]
    fn a_refusal_carries_what_the_remote_said() {
        assert_eq!(
            with_remote_words(
                "[remote rejected] (declined)",
                "remote: error: GH006: Protected branch update failed.        \nremote: \nx"
            ),
            "[remote rejected] (declined) error: GH006: Protected branch update failed."
        );
    }
}
