//! The routes, with their description in OpenAPI: one cannot be there without the other.
//!
//! Bodies of requests are read by hand, for errors that name the path of what is wrong; their
//! types here only describe them.

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::respond::RawJson;
use super::{HttpState, events, health, resources, webhook};
use crate::api::{
    ErrorBody, EventView, OrchestratedView, OrchestrationView, OutputView, SessionView,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Baton",
        description = "Runs many Claude Code sessions, each in its own sealed container, in the \
                       order their dependencies set."
    ),
    modifiers(&Bearer),
    security(("bearer" = [])),
    components(schemas(EventView<'static>)),
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The webhook secret"))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

fn described() -> OpenApiRouter<HttpState> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(webhook::webhook))
        .routes(routes!(resources::list_sessions, resources::create_session))
        .routes(routes!(resources::get_session))
        .routes(routes!(resources::start_session))
        .routes(routes!(resources::cancel_session))
        .routes(routes!(resources::retry_session))
        .routes(routes!(resources::message_session))
        .routes(routes!(resources::session_output))
        .routes(routes!(events::events))
        .routes(routes!(resources::orchestrate))
        .routes(routes!(resources::get_orchestration))
        .routes(routes!(resources::start_orchestration))
        .routes(routes!(resources::cancel_orchestration))
        .routes(routes!(health::health))
        .routes(routes!(health::webhook_health))
}

/// The description of the API.
#[must_use]
pub fn openapi() -> Document {
    described().into_openapi()
}

/// All routes, that of the description included.
pub(super) fn routes() -> Router<HttpState> {
    let (router, document) = described().split_for_parts();
    #[expect(
        clippy::expect_used,
        reason = "serialising the description cannot fail"
    )]
    let document = Bytes::from(serde_json::to_vec(&document).expect("a description serialises"));
    router.route(
        "/api/v1/openapi.json",
        get(move || std::future::ready(RawJson::ok(document.clone()))),
    )
}

/// What a session is to work on.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct ProjectBody {
    /// `owner/name`.
    #[schema(example = "owner/repo")]
    repository: String,
    /// The branch the result lands on; `baton/<id>` when absent.
    branch: Option<String>,
    /// What is to be done.
    #[schema(min_length = 1)]
    requirements: String,
    /// What else Claude should know.
    context: Option<String>,
}

/// How a session is run.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct OptionsBody {
    /// Whether it starts as soon as its dependencies allow. False when absent.
    auto_start: Option<bool>,
    /// Seconds Claude may run.
    #[schema(minimum = 1, maximum = 604_800)]
    timeout: Option<u64>,
    /// Whether the project's own Claude settings are let in. False when absent.
    project_settings: Option<bool>,
    /// Ready sessions of a higher priority start first. 50 when absent.
    #[schema(minimum = 0, maximum = 100)]
    priority: Option<u32>,
    /// US dollars it may cost before it pauses and asks; of an orchestration, all its sessions
    /// together. No limit when absent.
    #[schema(exclusive_minimum = 0, maximum = 1_000_000)]
    max_cost_usd: Option<f64>,
}

/// A session to be made.
#[derive(ToSchema)]
#[schema(as = NewSession)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct NewSessionBody {
    /// The id wanted; a new one when absent.
    id: Option<uuid::Uuid>,
    /// analysis, implementation (when absent), testing, review or coordination; also `sessionType`.
    #[schema(rename = "type")]
    kind: Option<String>,
    project: ProjectBody,
    /// Sessions that must complete first.
    #[schema(max_items = 1000)]
    dependencies: Option<Vec<uuid::Uuid>>,
    options: Option<OptionsBody>,
    /// The orchestration it is added to.
    #[schema(rename = "orchestrationId")]
    orchestration_id: Option<uuid::Uuid>,
}

/// Something to be said to a session's Claude.
#[derive(ToSchema)]
#[schema(as = NewMessage)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct NewMessageBody {
    /// What is said.
    #[schema(min_length = 1)]
    text: String,
    /// `maxCostUsd`: what all attempts of the session together may cost, those before included.
    options: Option<OptionsBody>,
}

/// How an orchestration goes on.
#[derive(ToSchema)]
#[schema(as = OrchestrationStart)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct OrchestrationStartBody {
    /// `maxCostUsd`: what all its sessions together may cost, what is spent included.
    options: Option<OptionsBody>,
}

/// How requirements should be divided into sessions.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct StrategyBody {
    /// parallel, sequential or wait_for_core.
    dependency_mode: Option<String>,
    /// How many sessions may run at once.
    parallel_sessions: Option<u64>,
    /// Names of phases.
    phases: Option<Vec<String>>,
    /// Milliseconds that all of it may take; for a single session, what that one may run.
    timeout: Option<u64>,
    /// Who divides the requirements: words (when absent) or claude.
    planner: Option<String>,
    /// A shell command that must pass on the merged results before they land.
    gate: Option<String>,
}

/// An orchestration to be made.
#[derive(ToSchema)]
#[schema(as = NewOrchestration)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct NewOrchestrationBody {
    project: ProjectBody,
    /// What its one session is for.
    session_type: Option<String>,
    strategy: Option<StrategyBody>,
    plan: Option<PlanBody>,
    options: Option<OptionsBody>,
    /// Whether its sessions start at once. True when absent.
    auto_start: Option<bool>,
}

/// A client's own division of the work.
#[derive(ToSchema)]
#[schema(as = Plan)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct PlanBody {
    /// What it comes to, in a sentence or two.
    summary: Option<String>,
    /// 1 to 10,000.
    sessions: Vec<PlannedSessionBody>,
}

/// One session of a plan.
#[derive(ToSchema)]
#[schema(as = PlannedSession)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct PlannedSessionBody {
    /// Names it within the plan.
    key: String,
    /// analysis, implementation, testing or review.
    #[schema(rename = "type")]
    kind: Option<String>,
    /// A few words for lists.
    title: Option<String>,
    /// What is to be done.
    requirements: String,
    /// Keys of sessions that must complete first.
    dependencies: Option<Vec<String>>,
}

/// An operation by `type`, as the object itself or as `data` of one.
#[derive(ToSchema)]
#[schema(as = Webhook)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub(super) struct WebhookBody {
    /// Holds all other fields, where it is there.
    #[schema(value_type = Option<Object>)]
    data: Option<()>,
    /// session.create, session.start, session.get, session.output, session.list, session.cancel,
    /// session.retry, session.message, orchestrate, orchestration.get, orchestration.start or
    /// orchestration.cancel.
    #[schema(rename = "type")]
    kind: Option<String>,
    session: Option<NewSessionBody>,
    /// Of session.message: what is said.
    text: Option<String>,
    options: Option<OptionsBody>,
    session_id: Option<uuid::Uuid>,
    orchestration_id: Option<uuid::Uuid>,
    status: Option<String>,
    cursor: Option<String>,
    limit: Option<u64>,
    project: Option<ProjectBody>,
    session_type: Option<String>,
    strategy: Option<StrategyBody>,
    plan: Option<PlanBody>,
    auto_start: Option<bool>,
}

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* })*) => {$(
        $(#[$doc])*
        #[derive(ToSchema)]
        #[serde(rename_all = "camelCase")]
        #[expect(dead_code, reason = "describes an answer that is put together elsewhere")]
        pub(super) struct $name {
            success: bool,
            message: Option<String>,
            $($field: $type),*
        }
    )*};
}

/// `{"session":…}`.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes an answer that is put together elsewhere"
)]
pub(super) struct SessionOnly {
    session: SessionView<'static>,
    /// When it was started: the dependencies it waits for.
    waiting_for: Option<Vec<uuid::Uuid>>,
}

/// `{"sessions":[…]}`.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes an answer that is put together elsewhere"
)]
pub(super) struct SessionList {
    sessions: Vec<SessionView<'static>>,
    /// Where the next page begins; absent on the last.
    next_cursor: Option<String>,
}

/// What a session put out.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes an answer that is put together elsewhere"
)]
pub(super) struct SessionOutputData {
    session_id: uuid::Uuid,
    status: String,
    output: Option<OutputView<'static>>,
    /// Where to read on, when there is more.
    next_cursor: Option<String>,
}

/// `{"orchestration":…}`.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "describes an answer that is put together elsewhere"
)]
pub(super) struct OrchestrationOnly {
    orchestration: OrchestrationView<'static>,
}

answers! {
    /// An answer with a session.
    SessionAnswer { data: SessionOnly }
    /// An answer with sessions.
    SessionListAnswer { data: SessionList }
    /// An answer with what a session put out.
    OutputAnswer { data: SessionOutputData }
    /// An answer with what was made.
    OrchestratedAnswer { data: OrchestratedView<'static> }
    /// An answer with an orchestration.
    OrchestrationAnswer { data: OrchestrationOnly }
}

/// An answer that is an error.
pub(super) type ErrorAnswer = ErrorBody<'static>;
