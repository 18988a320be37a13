//! Which results of an orchestration are to be merged: those that no other result holds.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::Leaf;
use crate::ids::SessionId;
use crate::session::{Session, SessionState};

/// The most characters of a leaf's title: a commit message's first line.
const TITLE_CHARS_MAX: usize = 60;

/// A session as a landing sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub session: SessionId,
    /// What it was asked for, in one line.
    pub title: String,
    /// Whether it completed.
    pub completed: bool,
    /// The commit with its work; none where it changed nothing.
    pub commit: Option<String>,
    /// Sessions whose results it started from.
    pub dependencies: Vec<SessionId>,
    /// When it took what it depends on for its base: before its Claude was started, and never again
    /// when it went on from what it had left itself.
    pub based_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

impl Candidate {
    /// A session's part in the landing of its orchestration.
    #[must_use]
    pub fn of(session: &Session) -> Self {
        let (completed, ended_at) = match &session.state {
            SessionState::Finished { outcome, at, .. } => (outcome.is_completed(), Some(*at)),
            _ => (false, None),
        };
        let result = session
            .report
            .as_ref()
            .and_then(|report| report.result.as_ref());
        let first_line = session.project.requirements.trim().lines().next();
        let title = session.title.as_deref().or(first_line);
        Self {
            session: session.id,
            title: shortened(title.unwrap_or_default().trim()),
            completed,
            commit: result
                .filter(|result| result.commit != result.base_commit)
                .map(|result| result.commit.clone()),
            dependencies: session.dependencies.clone(),
            based_at: session.steering.based_at.or(session.state.started_at()),
            ended_at,
        }
    }

    fn work(&self) -> Option<Leaf> {
        let commit = self.commit.clone().filter(|_| self.completed)?;
        Some(Leaf {
            session: self.session,
            commit,
            title: self.title.clone(),
        })
    }
}

fn shortened(line: &str) -> String {
    if line.chars().count() <= TITLE_CHARS_MAX {
        return line.to_owned();
    }
    let mut short: String = line.chars().take(TITLE_CHARS_MAX - 1).collect();
    short.push('…');
    short
}

/// The completed sessions with changes that no other such session builds on, in the given order;
/// those in `excluded` count as if they had not completed. Sessions without changes are looked
/// through: what they build on is still to land.
#[must_use]
pub fn leaves(sessions: &[Candidate], excluded: &HashSet<SessionId>) -> Vec<Leaf> {
    let counted = |one: &&Candidate| !excluded.contains(&one.session);
    let with_work: Vec<Leaf> = sessions
        .iter()
        .filter(counted)
        .filter_map(Candidate::work)
        .collect();
    let by_id = sessions
        .iter()
        .filter(counted)
        .map(|one| (one.session, one))
        .collect();
    let held = below(&by_id, with_work.iter().map(|leaf| leaf.session));
    let is_free = |leaf: &Leaf| !held.contains(&leaf.session);
    with_work.into_iter().filter(is_free).collect()
}

/// The sessions with changes that `leaves` bring along, themselves included, in the order of
/// `sessions`.
#[must_use]
pub fn held_by(sessions: &[Candidate], leaves: &[Leaf]) -> Vec<SessionId> {
    let by_id = sessions.iter().map(|one| (one.session, one)).collect();
    let mut held = below(&by_id, leaves.iter().map(|leaf| leaf.session));
    held.extend(leaves.iter().map(|leaf| leaf.session));
    let landed = sessions.iter().filter(|one| held.contains(&one.session));
    let with_work = landed.filter_map(Candidate::work);
    with_work.map(|leaf| leaf.session).collect()
}

/// All that `tops` started from, directly or not. A result that is newer than the start of the
/// session that depends on it is not in there: its session went on after that.
fn below(
    by_id: &HashMap<SessionId, &Candidate>,
    tops: impl Iterator<Item = SessionId>,
) -> HashSet<SessionId> {
    let mut held = HashSet::new();
    let mut open: Vec<SessionId> = tops.collect();
    let mut looked_at: HashSet<SessionId> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        let Some(one) = by_id.get(&id).filter(|one| one.completed) else {
            continue;
        };
        for dependency in &one.dependencies {
            let is_in = by_id
                .get(dependency)
                .is_some_and(|of| of.completed && of.ended_at <= one.based_at);
            if is_in {
                held.insert(*dependency);
                if looked_at.insert(*dependency) {
                    open.push(*dependency);
                }
            }
        }
    }
    held
}
