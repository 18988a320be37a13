//! Requirements in a person's words → the sessions that do the work, and what waits for what.
//!
//! No model is asked: the same text gives the same graph, in time linear in the text. What the
//! words in it mean stands in `vocabulary`; `pieces` cuts the text, `mentions` reads a piece,
//! `demand` puts together what is asked for, `phases` orders it, `graph` draws the edges.
//! [`proposal`] checks a graph that Claude drew instead.
//!
//! # What is asked for
//! Six components are looked for ([`Component`]), by whole words and phrases in English, German,
//! Spanish and French. Code blocks, addresses and paths of files are not read: they say where.
//! What a text denies ("no frontend", "the backend already exists", a section "Out of scope") is
//! left out, wherever else it is mentioned. Items of lists that ask for one thing each become
//! sessions of their own where a component can be built side by side; what is tiny is put together.
//!
//! # What waits for what
//! Stages: analysis, implementations, testing beside deployment, review. Deployment and testing
//! both need what was built, and neither needs the other; review joins them.
//!
//! - [`WaitForCore`](DependencyMode::WaitForCore): each stage waits for all of the one before.
//!   Implementations run together as far as they can: API and authentication wait for the
//!   database, the frontend for the API, because dependencies carry code and these import it.
//! - [`Parallel`](DependencyMode::Parallel): the client says that its pieces are independent. The
//!   implementations wait for nothing, not even for the analysis, which runs beside them and
//!   informs those who judge. Testing, deployment and review still wait: there is nothing to test
//!   before it is there. The mode says what waits and never what there is; `phases` says that.
//! - [`Sequential`](DependencyMode::Sequential): one chain. A text that gives an order by its words
//!   or its numbers keeps it; otherwise whoever builds on another comes after it.
//!
//! Without a mode: one chain where the text asks for an order ("first … then") or for one
//! implementation; `parallel` where it says that its pieces are independent of each other;
//! otherwise `wait_for_core`, since pieces of one system meet somewhere and a plan helps.
//!
//! # When little is said
//! A text that names no component is one implementation between analysis, testing and review: a
//! bug report is that. One that asks for tests alone gets no implementation; one that asks for
//! an analysis or a review alone ("review the payment module") gets just that. An empty text
//! is one analysis.

mod component;
mod demand;
mod graph;
mod mentions;
mod mode;
mod phases;
mod pieces;
mod planning;
pub mod proposal;
mod vocabulary;
mod wording;
mod words;

pub use component::Component;
pub use mode::DependencyMode;
pub use planning::{Answer, Planning, planned_sessions};
pub use proposal::{PlanError, PlanLimits, plan_prompt, plan_schema};

use serde::Serialize;

use crate::project::Kind;
use demand::Demand;

/// The most sessions of one graph, whoever drew it.
pub const SESSIONS_MAX: usize = 50;

/// What is to be divided.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// What is to be done, in the client's words; any length.
    pub requirements: &'a str,
    /// What else the client said. It tells what there is and not what is wanted: only what it
    /// denies is taken from it ("the backend already exists"). Sessions have it in their project,
    /// so it is not in their requirements.
    pub context: Option<&'a str>,
    /// What waits for what; chosen from the requirements when absent.
    pub mode: Option<DependencyMode>,
    /// Which phases there are, in their order; all when empty.
    ///
    /// `analysis`, `implementation`, `testing`, `review` and what else these are called, or a
    /// component's name for a phase of its own. Any other name is one implementation session of
    /// that title. Each phase waits for the one before, by the rules of the mode. Names that come
    /// twice count once; [`SESSIONS_MAX`] limits them all.
    pub phases: &'a [String],
    /// How many may run at once: the scheduler sees to it, the summary tells it.
    pub parallel_sessions: Option<u64>,
}

/// Sessions to be made together, each after those it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProposedGraph {
    /// What waits for what, as asked or as chosen.
    pub mode: DependencyMode,
    /// 1 to [`SESSIONS_MAX`], in an order in which they could run one by one.
    pub sessions: Vec<ProposedSession>,
    /// The division in a sentence or two, for people.
    pub summary: String,
}

/// One session of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProposedSession {
    /// What it is for; never a coordination.
    pub kind: Kind,
    /// What it builds, where that is known.
    pub component: Option<Component>,
    /// A few words for lists and logs: one line, at most 80 characters.
    pub title: String,
    /// All it is told: its first line says what it is for.
    pub requirements: String,
    /// Places of earlier entries in [`ProposedGraph::sessions`], ascending, each once.
    pub dependencies: Vec<usize>,
}

/// The sessions that do what `request` asks for.
#[must_use]
pub fn decompose(request: &Request<'_>) -> ProposedGraph {
    let demand = Demand::of(request.requirements, request.context.unwrap_or_default());
    let stages = phases::stages(request, &demand);
    let mode = request.mode.unwrap_or_else(|| mode_of(&demand, &stages));
    let stages = graph::ordered(stages, mode, &demand);
    let edges = graph::edges(&stages, mode);
    wording::graph(request, mode, &demand, &stages, edges)
}

fn mode_of(demand: &Demand<'_>, stages: &[Vec<phases::Draft<'_>>]) -> DependencyMode {
    let all = stages.iter().flatten();
    let implementations = all
        .filter(|draft| draft.kind == Kind::Implementation)
        .count();
    if implementations < 2 || demand.ordered {
        DependencyMode::Sequential
    } else if demand.separated {
        DependencyMode::Parallel
    } else {
        DependencyMode::WaitForCore
    }
}
