//! What is known of all sessions without asking the database.
//!
//! An entry of about 80 bytes for every session there ever was; the whole of each that is not
//! over; and as many of the others as fit in [`OVER_BYTES_MAX`]. It follows the database: only the
//! writer changes it, after a commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use baton_domain::budget::Spending;
use baton_domain::landing::Landing;
use baton_domain::session::Standing;
use baton_domain::{
    Attempt, Branch, OrchestrationId, Repository, Session, SessionId, Status, Version,
};

use super::types::{Orchestration, SessionQuery, Unlanded};

/// How many bytes of sessions that are over stay in memory.
const OVER_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// About how many sessions that is; the cache sizes its tables by it.
const OVER_SESSIONS_EXPECTED: usize = 4_096;

/// Where an entry is in the order of creation.
pub(super) type Place = u32;

/// What is known of every session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) id: SessionId,
    /// Its row.
    pub(super) ordinal: u64,
    pub(super) version: Version,
    /// The number of its newest event.
    pub(super) last_seq: u64,
    /// Its status, if it is over.
    pub(super) over: Option<Status>,
    /// See [`Session::spent_usd`].
    pub(super) spent_usd: f64,
}

/// What is known of every orchestration.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrchestrationEntry {
    /// How many of its sessions may run at once.
    pub(super) parallel_max: Option<u32>,
    /// US dollars that they may cost together.
    pub(super) max_cost_usd: Option<f64>,
}

/// What is known of every orchestration that lands as a whole.
#[derive(Debug, Clone)]
pub(super) struct LandingEntry {
    target: (Repository, Branch),
    pub(super) version: Version,
    changes: u64,
    /// Up to which of these it has seen.
    seen: u64,
    is_over: bool,
    is_under_way: bool,
}

/// What a commit changed.
#[derive(Debug)]
pub(super) enum Change {
    Orchestration(
        OrchestrationId,
        OrchestrationEntry,
        Option<Box<LandingEntry>>,
    ),
    /// What it may cost.
    Budget(OrchestrationId, f64),
    Landing(OrchestrationId, Box<Landing>),
    /// A session of it was reopened, or added.
    Reopened(OrchestrationId),
    /// A session that is new, or is loaded at the start.
    New {
        ordinal: u64,
        last_seq: u64,
        session: Arc<Session>,
    },
    Moved {
        place: Place,
        last_seq: u64,
        session: Arc<Session>,
    },
    /// Events without a change of state.
    Counted {
        place: Place,
        last_seq: u64,
    },
}

/// The sessions of one page: those in memory, and the rows of those that aren't.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) found: Vec<Found>,
    /// The last row of this page, if there is another page.
    pub(super) more_after: Option<u64>,
}

/// A session in memory, or the row to load it from.
#[derive(Debug, Clone)]
pub(super) enum Found {
    Here(Arc<Session>),
    Row(u64),
}

#[derive(Debug, Clone)]
struct Weight;

impl quick_cache::Weighter<Place, Arc<Session>> for Weight {
    fn weight(&self, _: &Place, session: &Arc<Session>) -> u64 {
        bytes_of(session) as u64
    }
}

type Over = quick_cache::sync::Cache<Place, Arc<Session>, Weight>;

/// The tables, under one lock.
#[derive(Default)]
pub(super) struct Tables {
    entries: Vec<Entry>,
    places: HashMap<SessionId, Place>,
    live: BTreeMap<Place, Arc<Session>>,
    orchestrations: HashMap<OrchestrationId, OrchestrationEntry>,
    landings: HashMap<OrchestrationId, LandingEntry>,
    unlanded: BTreeSet<OrchestrationId>,
    members: HashMap<OrchestrationId, Vec<Place>>,
}

pub(super) struct Directory {
    tables: RwLock<Tables>,
    over: Over,
    changes: AtomicU64,
}

impl Directory {
    pub(super) fn new() -> Self {
        Self {
            tables: RwLock::default(),
            over: Over::with_weighter(OVER_SESSIONS_EXPECTED, OVER_BYTES_MAX, Weight),
            changes: AtomicU64::new(0),
        }
    }

    /// To look at several things at one moment. Not to be held across an `await`.
    pub(super) fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session, if it is in memory.
    pub(super) fn session(&self, id: SessionId) -> Option<Arc<Session>> {
        let tables = self.tables();
        let place = tables.place(id)?;
        self.at(&tables, place)
    }

    fn at(&self, tables: &Tables, place: Place) -> Option<Arc<Session>> {
        match tables.entry(place).over {
            Some(_) => self.over.get(&place),
            None => tables.live.get(&place).cloned(),
        }
    }

    /// Keeps a session that was loaded, unless it was changed since or isn't over.
    pub(super) fn keep(&self, session: &Arc<Session>) {
        let tables = self.tables();
        let Some(place) = tables.place(session.id) else {
            return;
        };
        let entry = tables.entry(place);
        if entry.over.is_some() && entry.version == session.version {
            self.over.insert(place, Arc::clone(session));
        }
    }

    pub(super) fn active(&self) -> Vec<Arc<Session>> {
        self.tables().live.values().cloned().collect()
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Enters all sessions at the start: an entry each, and those that are not over.
    pub(super) fn load(
        &self,
        orchestrations: Vec<(OrchestrationId, OrchestrationEntry)>,
        landings: Vec<(OrchestrationId, LandingEntry)>,
        entries: Vec<(Entry, Option<OrchestrationId>)>,
        live: Vec<Arc<Session>>,
    ) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.orchestrations = orchestrations.into_iter().collect();
        for (id, entry) in landings {
            tables.enter_landing(id, entry);
        }
        tables.entries.reserve_exact(entries.len());
        tables.places.reserve(entries.len());
        for (entry, orchestration) in entries {
            tables.enter(entry, orchestration);
        }
        for session in live {
            if let Some(place) = tables.place(session.id) {
                tables.live.insert(place, session);
            }
        }
    }

    /// Follows a commit.
    pub(super) fn apply(&self, changes: Vec<Change>) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let mut seen = 0;
        for change in changes {
            match change {
                Change::Budget(id, max_usd) => {
                    if let Some(entry) = tables.orchestrations.get_mut(&id) {
                        entry.max_cost_usd = Some(max_usd);
                    }
                }
                Change::Orchestration(id, entry, landing) => {
                    tables.orchestrations.insert(id, entry);
                    if let Some(entry) = landing {
                        tables.enter_landing(id, *entry);
                    }
                }
                Change::Landing(id, landing) => {
                    tables.change_landing(id, |entry| {
                        entry.version = entry.version.next();
                        entry.follow(&landing);
                    });
                    seen += 1;
                }
                Change::Reopened(id) => tables.change_landing(id, |entry| entry.changes += 1),
                Change::New {
                    ordinal,
                    last_seq,
                    session,
                } => {
                    let entry = Entry::of(&session, ordinal, last_seq);
                    let place = tables.enter(entry, session.orchestration_id);
                    self.put(&mut tables, place, session);
                    seen += 1;
                }
                Change::Moved {
                    place,
                    last_seq,
                    session,
                } => {
                    let ordinal = tables.entry(place).ordinal;
                    tables.entries[place as usize] = Entry::of(&session, ordinal, last_seq);
                    self.put(&mut tables, place, session);
                    seen += 1;
                }
                Change::Counted { place, last_seq } => {
                    tables.entries[place as usize].last_seq = last_seq;
                }
            }
        }
        self.changes.fetch_add(seen, Ordering::AcqRel);
    }

    fn put(&self, tables: &mut Tables, place: Place, session: Arc<Session>) {
        if session.state.is_over() {
            tables.live.remove(&place);
            self.over.insert(place, session);
        } else {
            self.over.remove(&place);
            tables.live.insert(place, session);
        }
    }

    /// At most `limit` sessions that `query` asks for, with rows beyond `after`: greater ones, or
    /// smaller ones where the newest come first and it is not 0.
    pub(super) fn list(&self, query: &SessionQuery, after: u64, limit: usize) -> Listing {
        let tables = self.tables();
        let places = match query.newest_first {
            false => tables.places_above(after)..Place::MAX,
            true if after == 0 => 0..Place::MAX,
            true => 0..tables.places_above(after - 1),
        };
        let found = tables.asked_for(query, places);
        match query.newest_first {
            false => self.take(&tables, found, limit),
            true => self.take(&tables, found.rev(), limit),
        }
    }

    /// How many sessions `query` asks for.
    pub(super) fn count(&self, query: &SessionQuery) -> usize {
        let tables = self.tables();
        tables.asked_for(query, 0..Place::MAX).count()
    }

    fn take(&self, tables: &Tables, places: impl Iterator<Item = Place>, limit: usize) -> Listing {
        let mut listing = Listing::default();
        let mut last = 0;
        for place in places {
            if listing.found.len() == limit {
                listing.more_after = Some(last);
                break;
            }
            last = tables.entry(place).ordinal;
            listing.found.push(match self.at(tables, place) {
                Some(session) => Found::Here(session),
                None => Found::Row(last),
            });
        }
        listing
    }
}

impl LandingEntry {
    pub(super) fn of(orchestration: &Orchestration) -> Self {
        let mut entry = Self {
            target: (orchestration.repository.clone(), orchestration.target()),
            version: orchestration.landing_version,
            changes: orchestration.changes,
            seen: 0,
            is_over: false,
            is_under_way: false,
        };
        entry.follow(&orchestration.landing);
        entry
    }

    pub(super) fn repository(&self) -> &Repository {
        &self.target.0
    }

    fn follow(&mut self, landing: &Landing) {
        self.seen = landing.seen;
        self.is_over = landing.is_over();
        self.is_under_way = landing.is_under_way();
    }

    fn is_settled(&self) -> bool {
        self.is_over && self.seen == self.changes
    }
}

impl OrchestrationEntry {
    pub(super) fn of(orchestration: &Orchestration) -> Self {
        Self {
            parallel_max: orchestration.parallel_max,
            max_cost_usd: orchestration.max_cost_usd,
        }
    }
}

impl Entry {
    pub(super) fn of(session: &Session, ordinal: u64, last_seq: u64) -> Self {
        Self {
            id: session.id,
            ordinal,
            version: session.version,
            last_seq,
            // What it waits for has no part in the status of one that is over.
            over: session.state.is_over().then(|| session.state.status(false)),
            spent_usd: session.spent_usd(),
        }
    }

    pub(super) fn standing(&self) -> Standing {
        match self.over {
            None => Standing::Open,
            Some(Status::Completed) => Standing::Completed,
            Some(_) => Standing::Lost,
        }
    }
}

impl Tables {
    pub(super) fn place(&self, id: SessionId) -> Option<Place> {
        self.places.get(&id).copied()
    }

    pub(super) fn entry(&self, place: Place) -> Entry {
        self.entries[place as usize]
    }

    pub(super) fn find(&self, id: SessionId) -> Option<Entry> {
        self.place(id).map(|place| self.entry(place))
    }

    pub(super) fn has_orchestration(&self, id: OrchestrationId) -> bool {
        self.orchestrations.contains_key(&id)
    }

    /// The orchestrations of these sessions that are bounded by anything, with how many of their
    /// sessions may run at once.
    pub(super) fn bounded(
        &self,
        sessions: &[Arc<Session>],
    ) -> HashMap<OrchestrationId, Option<u32>> {
        let ids = sessions.iter().filter_map(|one| one.orchestration_id);
        let entries = ids.filter_map(|id| Some((id, self.orchestrations.get(&id)?)));
        let bounded = entries
            .filter(|(_, entry)| entry.parallel_max.is_some() || entry.max_cost_usd.is_some());
        bounded
            .map(|(id, entry)| (id, entry.parallel_max))
            .collect()
    }

    pub(super) fn max_cost_usd(&self, id: OrchestrationId) -> Option<f64> {
        self.orchestrations.get(&id)?.max_cost_usd
    }

    /// What the sessions of an orchestration reported, and whose attempts are under way.
    pub(super) fn spending(&self, id: OrchestrationId) -> (Spending, Vec<(SessionId, Attempt)>) {
        let mut spending = Spending::default();
        let mut running = Vec::new();
        for place in self.members.get(&id).map_or(&[][..], Vec::as_slice) {
            let entry = self.entry(*place);
            if entry.spent_usd > 0.0 {
                spending.reported_usd += entry.spent_usd;
                spending.reported_by += 1;
            }
            let live = self.live.get(place).filter(|_| entry.over.is_none());
            let is_used = |session: &&Arc<Session>| {
                session.state.holds_slot() || session.state.stands_still()
            };
            if let Some(session) = live.filter(is_used) {
                running.push((session.id, session.attempt));
            }
        }
        (spending, running)
    }

    /// Of one that lands as a whole.
    pub(super) fn landing(&self, id: OrchestrationId) -> Option<&LandingEntry> {
        self.landings.get(&id)
    }

    /// Those whose landing is not over, oldest first.
    pub(super) fn unlanded(&self) -> Vec<Unlanded> {
        let entries = self.unlanded.iter().filter_map(|id| {
            let entry = self.landings.get(id)?;
            Some(Unlanded {
                id: *id,
                target: entry.target.clone(),
                is_under_way: entry.is_under_way,
            })
        });
        entries.collect()
    }

    fn enter_landing(&mut self, id: OrchestrationId, entry: LandingEntry) {
        if !entry.is_settled() {
            self.unlanded.insert(id);
        }
        self.landings.insert(id, entry);
    }

    fn change_landing(&mut self, id: OrchestrationId, change: impl FnOnce(&mut LandingEntry)) {
        let Some(entry) = self.landings.get_mut(&id) else {
            return;
        };
        change(entry);
        match entry.is_settled() {
            true => self.unlanded.remove(&id),
            false => self.unlanded.insert(id),
        };
    }

    pub(super) fn ordinal_max(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.ordinal)
    }

    /// The status people see of a session; see [`super::Store::status`].
    pub(super) fn status(&self, session: &Session) -> Status {
        let waits = session.dependencies.iter().any(|id| {
            self.find(*id)
                .is_none_or(|entry| entry.standing() != Standing::Completed)
        });
        session.state.status(waits)
    }

    pub(super) fn status_of(&self, id: SessionId) -> Option<Status> {
        self.status_at(self.place(id)?)
    }

    fn status_at(&self, place: Place) -> Option<Status> {
        let live = || self.live.get(&place).map(|session| self.status(session));
        self.entry(place).over.or_else(live)
    }

    /// The first place whose row is greater than `ordinal`.
    fn places_above(&self, ordinal: u64) -> Place {
        let at = self
            .entries
            .partition_point(|entry| entry.ordinal <= ordinal);
        Place::try_from(at).unwrap_or(Place::MAX)
    }

    /// The places, of those within `range`, of the sessions that `query` asks for.
    fn asked_for<'a>(
        &'a self,
        query: &'a SessionQuery,
        range: Range<Place>,
    ) -> Box<dyn DoubleEndedIterator<Item = Place> + 'a> {
        let fits = |place: &Place| self.fits(*place, &query.statuses);
        let live_only =
            !query.statuses.is_empty() && query.statuses.iter().all(|status| !is_over(*status));
        if let Some(id) = query.orchestration {
            let members = self.members.get(&id).map_or(&[][..], Vec::as_slice);
            let from = members.partition_point(|place| *place < range.start);
            let to = members.partition_point(|place| *place < range.end);
            Box::new(members[from..to].iter().copied().filter(fits))
        } else if live_only {
            let live = self.live.range(range).map(|(place, _)| *place);
            Box::new(live.filter(fits))
        } else {
            let end = Place::try_from(self.entries.len()).unwrap_or(Place::MAX);
            Box::new((range.start.min(end)..range.end.min(end)).filter(fits))
        }
    }

    fn fits(&self, place: Place, statuses: &[Status]) -> bool {
        if statuses.is_empty() {
            return true;
        }
        let status = self.status_at(place);
        status.is_some_and(|status| statuses.contains(&status))
    }

    fn enter(&mut self, entry: Entry, orchestration: Option<OrchestrationId>) -> Place {
        // Four billion sessions would need more memory than their entries leave.
        let place = Place::try_from(self.entries.len()).unwrap_or(Place::MAX);
        self.entries.push(entry);
        self.places.insert(entry.id, place);
        if let Some(id) = orchestration {
            self.members.entry(id).or_default().push(place);
        }
        place
    }
}

fn is_over(status: Status) -> bool {
    matches!(
        status,
        Status::Completed | Status::Failed | Status::Cancelled | Status::Blocked
    )
}

/// About how much memory a session takes.
fn bytes_of(session: &Session) -> usize {
    const PER_TEXT: usize = 32;
    let project = &session.project;
    let mut bytes = size_of::<Session>()
        + project.requirements.len()
        + project.context.as_ref().map_or(0, |context| context.len())
        + session.dependencies.len() * size_of::<SessionId>()
        + 4 * PER_TEXT;
    if let Some(report) = &session.report {
        let texts = report.next_steps.iter().chain(&report.warnings);
        bytes += report.summary.len()
            + texts.map(|text| text.len() + PER_TEXT).sum::<usize>()
            + report.artifacts.len() * 4 * PER_TEXT;
    }
    bytes
}
