//! The door for models: MCP over HTTP at `/mcp`, for both revisions that clients speak, and for
//! coordination sessions over the sockets of their sandboxes. No SQL here and no rules.
//!
//! What is told is told small: see [`answers`].

mod answers;
mod arguments;
mod bridge;
mod call;
mod clients;
mod prompts;
mod resources;
mod tools;
mod upstream;
mod wait;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use rmcp::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CancelTaskParams, CompleteRequestParams,
    CompleteResult, ErrorData, GetPromptRequestParams, GetPromptResponse, GetTaskParams,
    GetTaskResult, Implementation, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams,
    ReadResourceResponse, ResourceUpdatedNotificationParam, ServerCapabilities, ServerConfig,
    SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequestParams, UpdateTaskParams,
};
use rmcp::service::{RequestContext, RoleServer, SubscriptionContext};
use rmcp::transport::streamable_http_server::session::SessionStore;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use arguments::Arguments;
use clients::Clients;
use resources::FOLLOWED_MAX;
use tools::Tool;

pub use bridge::{Bridge, UpstreamError};
pub use tools::DEFINITIONS_BYTES_MAX;

use crate::api::{ApiError, BODY_BYTES_MAX, BODY_TIMEOUT, whole_body};
use crate::orchestrator::{Caller, Orchestrator};

/// Where the door is.
pub const MCP_PATH: &str = "/mcp";
/// How long a client of an earlier revision may say nothing before its session is let go of; it is
/// taken up again when the client comes back.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(30 * 60);
/// How long calls under way have, when the server stops, until what still streams is cut off.
const CUT_AFTER: Duration = Duration::from_secs(3);

/// Any handler over streamable HTTP, as the product's own is: stateless for clients of revision
/// 2026-07-28, with sessions for those before. Who may come in is for the caller to check, hosts
/// and origins included.
pub fn service<H: ServerHandler>(
    handler: impl Fn() -> H + Send + Sync + 'static,
    stopping: CancellationToken,
) -> StreamableHttpService<H, LocalSessionManager> {
    service_for(handler, stopping, None)
}

fn service_for<H: ServerHandler>(
    handler: impl Fn() -> H + Send + Sync + 'static,
    stopping: CancellationToken,
    clients: Option<Arc<dyn SessionStore>>,
) -> StreamableHttpService<H, LocalSessionManager> {
    let mut config = StreamableHttpServerConfig::default()
        .disable_allowed_hosts()
        .with_max_request_body_bytes(BODY_BYTES_MAX)
        .with_cancellation_token(stopping);
    config.session_store = clients;
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.keep_alive = Some(SESSION_IDLE_MAX);
    StreamableHttpService::new(move || Ok(handler()), Arc::new(sessions), config)
}

/// The door for clients, to be put behind the gate.
pub fn routes(orchestrator: Orchestrator, stopping: CancellationToken) -> Router {
    let clients = Arc::new(Clients(orchestrator.clone()));
    let cut = cut_after(stopping.clone());
    let handler = move || Handler::new(orchestrator.clone(), Caller::Client, stopping.clone());
    Router::new()
        .route_service(MCP_PATH, service_for(handler, cut, Some(clients)))
        .layer(from_fn(
            async |request: Request, next: Next| match with_whole_body(request).await {
                Ok(request) => next.run(request).await,
                Err(error) => error.into_response(),
            },
        ))
}

/// Cancelled some time after the server begins to stop: calls of tools end before, and waits by
/// themselves.
fn cut_after(stopping: CancellationToken) -> CancellationToken {
    let cut = CancellationToken::new();
    let cutting = cut.clone();
    tokio::spawn(async move {
        stopping.cancelled().await;
        tokio::time::sleep(CUT_AFTER).await;
        cutting.cancel();
    });
    cut
}

/// The request once all of its body is there; the library would wait for that for ever.
async fn with_whole_body(request: Request) -> Result<Request, ApiError> {
    let (head, body) = request.into_parts();
    let body = whole_body(body, BODY_TIMEOUT).await?;
    Ok(Request::from_parts(head, Body::from(body)))
}

/// The door for coordination sessions.
#[derive(Clone)]
pub struct SandboxDoor {
    orchestrator: Orchestrator,
    stopping: CancellationToken,
}

impl SandboxDoor {
    /// A door to this orchestrator, until the server stops.
    #[must_use]
    pub fn new(orchestrator: Orchestrator, stopping: CancellationToken) -> Self {
        Self {
            orchestrator,
            stopping,
        }
    }

    /// Answers a request that came over a session's own socket.
    pub async fn answer(&self, session: baton_domain::SessionId, request: Request) -> Response {
        let request = match with_whole_body(request).await {
            Ok(request) => request,
            Err(error) => return error.into_response(),
        };
        let (orchestrator, stopping) = (self.orchestrator.clone(), self.stopping.clone());
        let caller = Caller::Session(session);
        let handler = move || Ok(Handler::new(orchestrator.clone(), caller, stopping.clone()));
        // Nothing is kept from one request to the next: the server may be another by then.
        let config = StreamableHttpServerConfig::default()
            .disable_allowed_hosts()
            .with_max_request_body_bytes(BODY_BYTES_MAX)
            .with_legacy_session_mode(false);
        let service =
            StreamableHttpService::new(handler, Arc::<LocalSessionManager>::default(), config);
        service.handle(request).await.map(Body::new)
    }
}

/// Answers one client. Those before revision 2026-07-28 get one for each of their sessions.
struct Handler {
    orchestrator: Orchestrator,
    caller: Caller,
    stopping: CancellationToken,
    /// What a client of an earlier revision follows, by URI.
    followed: Mutex<HashMap<String, AbortOnDropHandle<()>>>,
}

impl Handler {
    fn new(orchestrator: Orchestrator, caller: Caller, stopping: CancellationToken) -> Self {
        Self {
            orchestrator,
            caller,
            stopping,
            followed: Mutex::default(),
        }
    }

    fn is_session(&self) -> bool {
        matches!(self.caller, Caller::Session(_))
    }

    async fn called(
        &self,
        tool: Tool,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ApiError> {
        let arguments = Arguments::new(request.arguments);
        let Some(operation) = arguments.operation_of(tool)? else {
            let wait = wait::wait(&self.orchestrator, self.caller, &arguments, context);
            return tokio::select! {
                answer = wait => answer,
                // Asked again, the next server goes on with it.
                () = self.stopping.cancelled() => {
                    wait::at_once(&self.orchestrator, self.caller, &arguments).await
                }
            };
        };
        let answer = call::call(&self.orchestrator, self.caller, operation, &arguments).await?;
        Ok(answer.into_result().into())
    }
}

/// What is told of this server to every client.
fn server_config() -> ServerConfig {
    let capabilities = ServerCapabilities::builder()
        .enable_tools()
        .enable_resources()
        .enable_resources_subscribe()
        .enable_prompts()
        .enable_completions()
        .enable_tasks()
        .build();
    ServerConfig::new(capabilities)
        .with_server_info(
            Implementation::new("baton", env!("CARGO_PKG_VERSION")).with_title("Baton"),
        )
        .with_instructions(include_str!("mcp/instructions.md"))
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        server_config()
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let definitions = tools::definitions(self.is_session());
        Ok(ListToolsResult::with_all_items(definitions))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let tool = tools::known(&request.name, self.is_session())?;
        // What goes wrong is for the model to read, and no error of the protocol, which it would
        // not get to see.
        Ok(match self.called(tool, request, &context).await {
            Ok(response) => response,
            Err(error) => {
                if let Some(source) = &error.source
                    && error.status.is_server_error()
                {
                    tracing::warn!(error = source as &dyn std::error::Error, "a tool failed");
                }
                call::refused(error).into()
            }
        })
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let cursor = request.and_then(|request| request.cursor);
        resources::list(&self.orchestrator, self.caller, cursor).await
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(resources::templates())
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let read = resources::read(&self.orchestrator, self.caller, &request.uri).await?;
        Ok(read.into())
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(resources::followable(requested))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let accepted = context.accepted().resource_subscriptions.iter().flatten();
        let accepted: HashSet<&String> = accepted.collect();
        let following = accepted.into_iter().map(|uri| {
            let sink = context.sink().clone();
            resources::follow(&self.orchestrator, self.caller, uri, move || {
                let sink = sink.clone();
                let uri = uri.clone();
                async move { sink.notify_resource_updated(uri).await.is_ok() }
            })
        });
        let all = futures::future::join_all(following);
        tokio::select! {
            // One that is not there is not followed; the others are.
            _ = all => context.cancelled().await,
            () = context.cancelled() => {}
            () = self.stopping.cancelled() => {}
        }
        Ok(())
    }

    // For clients before revision 2026-07-28.
    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let uri = request.uri;
        resources::check(&self.orchestrator, self.caller, &uri).await?;
        let (orchestrator, caller) = (self.orchestrator.clone(), self.caller);
        let followed = uri.clone();
        let following = tokio::spawn(async move {
            let tell = || {
                let told = ResourceUpdatedNotificationParam::new(followed.clone());
                let peer = context.peer.clone();
                async move { peer.notify_resource_updated(told).await.is_ok() }
            };
            // It ends when nobody hears it, or what is followed cannot be read any more.
            let _ended = resources::follow(&orchestrator, caller, &followed, tell).await;
        });
        let mut all = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, following| !following.is_finished());
        if all.len() >= FOLLOWED_MAX {
            following.abort();
            let text = format!("At most {FOLLOWED_MAX} resources can be followed at once");
            return Err(ErrorData::invalid_params(text, None));
        }
        all.insert(uri, AbortOnDropHandle::new(following));
        Ok(())
    }

    // For clients before revision 2026-07-28.
    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let mut all = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&request.uri);
        Ok(())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(prompts::list()))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        Ok(prompts::get(&request)?.into())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let completion = prompts::complete(&self.orchestrator, self.caller, &request).await;
        let completion = completion
            .map_err(|error| ErrorData::internal_error(ApiError::from(error).message, None))?;
        Ok(CompleteResult::new(completion))
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let task = wait::get(&self.orchestrator, self.caller, &request.task_id).await?;
        Ok(GetTaskResult::new(task))
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        // No task of ours asks for anything; what is not asked for is passed over.
        wait::get(&self.orchestrator, self.caller, &request.task_id)
            .await
            .map(drop)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        wait::cancel(&self.orchestrator, self.caller, &request.task_id).await
    }
}
