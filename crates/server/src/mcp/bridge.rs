//! MCP over stdio for clients that speak nothing else: a bridge to a running server. It keeps
//! nothing. What is the same for every server it answers itself, so that a client that starts
//! before the server sees its tools; everything else it passes on, again and again if the server
//! was away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams,
    CompleteRequestParams, CompleteResult, ContentBlock, CreateTaskResult, ErrorCode, ErrorData,
    GetPromptRequestParams, GetPromptResponse, GetTaskParams, GetTaskResult, JsonObject,
    ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
    PaginatedRequestParams, ProgressNotificationParam, ReadResourceRequestParams,
    ReadResourceResponse, ReadResourceResult, ResourceUpdatedNotificationParam, ServerConfig,
    SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequestParams, UpdateTaskParams,
};
use rmcp::service::{Peer, RequestContext, RoleServer, SubscriptionContext};
use rmcp::{ServerHandler, ServiceExt};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::tools::Tool;
use super::upstream::{Call, Upstream, meta};
use super::{prompts, resources, server_config, tools, wait};

pub use super::upstream::UpstreamError;

/// How many resources a client of an earlier revision may follow: each takes a connection.
const FOLLOWED_MAX: usize = 32;
/// The pause before a server that is away is looked for again by who follows.
const FOLLOW_PAUSE: Duration = Duration::from_secs(2);

/// A bridge to a server.
pub struct Bridge {
    upstream: Upstream,
    /// What a client of an earlier revision follows, by URI.
    followed: Mutex<HashMap<String, AbortOnDropHandle<()>>>,
}

impl Bridge {
    /// A bridge to the server at `url`, where `token` is let in.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub fn new(url: &str, token: &SecretString) -> Result<Self, UpstreamError> {
        Ok(Self {
            upstream: Upstream::new(url, token)?,
            followed: Mutex::default(),
        })
    }

    /// Whether a server answers.
    pub async fn is_there(&self) -> bool {
        self.upstream.is_there().await
    }

    /// Where a server on this machine would listen to be found here; none for another machine.
    #[must_use]
    pub fn local(&self) -> Option<String> {
        self.upstream.local()
    }

    /// Serves the client at standard input and output until it closes them.
    ///
    /// # Errors
    /// When the client does not begin as MCP wants it.
    pub async fn run(self) -> anyhow::Result<()> {
        let client = self.serve(rmcp::transport::stdio()).await?;
        client.waiting().await?;
        Ok(())
    }

    async fn pass_on<T: DeserializeOwned>(
        &self,
        method: &str,
        name: Option<&str>,
        params: Value,
        context: &RequestContext<RoleServer>,
    ) -> Result<T, ErrorData> {
        let mut params = params;
        params["_meta"] = meta_of(context);
        let is_wait = name.and_then(Tool::named) == Some(Tool::Wait);
        let hears_progress = context.meta.get_progress_token().is_some();
        let call = Call {
            method,
            params,
            name,
            wait_within: (is_wait && !hears_progress).then_some(wait::SHORT),
        };
        let peer = context.peer.clone();
        let heard = move |message: Value| {
            let peer = peer.clone();
            async move { tell_progress(&peer, &message).await }.boxed()
        };
        let result = tokio::select! {
            result = self.upstream.answer(call, &heard) => result?,
            () = context.ct.cancelled() => {
                return Err(ErrorData::internal_error("the request was cancelled", None));
            }
        };
        serde_json::from_value(result).map_err(|error| {
            let text = format!("the server's answer to {method} was not understood: {error}");
            ErrorData::internal_error(text, None)
        })
    }

    async fn called(
        &self,
        mut request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if Tool::named(&request.name).is_some_and(Tool::makes) {
            let arguments = request.arguments.get_or_insert_default();
            let has_key = ["idempotencyKey", "idempotency_key"]
                .iter()
                .any(|name| arguments.get(*name).is_some_and(|key| !key.is_null()));
            if !has_key {
                // The call may have to be made again, when no answer came to the first.
                let key = format!("bridge-{}", uuid::Uuid::new_v4());
                arguments.remove("idempotency_key");
                arguments.insert("idempotencyKey".to_owned(), json!(key));
            }
        }
        let name = request.name.to_string();
        let params = json!({ "name": name, "arguments": request.arguments.unwrap_or_default() });
        let result: JsonObject = self
            .pass_on("tools/call", Some(&name), params, context)
            .await?;
        let result = Value::Object(result);
        let response = match result["resultType"] == "task" {
            true => serde_json::from_value::<CreateTaskResult>(result).map(CallToolResponse::Task),
            false => serde_json::from_value::<CallToolResult>(result).map(Into::into),
        };
        response.map_err(|error| ErrorData::internal_error(error.to_string(), None))
    }
}

/// Passes a word of progress on; a client that does not listen any more ends the request.
async fn tell_progress(peer: &Peer<RoleServer>, message: &Value) {
    let progress = serde_json::from_value::<ProgressNotificationParam>(message["params"].clone());
    if message["method"] == "notifications/progress"
        && let Ok(progress) = progress
    {
        let _unheard = peer.notify_progress(progress).await;
    }
}

/// Tells a client that a resource has changed; false where nobody hears it.
type Tell = Arc<dyn Fn(String) -> BoxFuture<'static, bool> + Send + Sync>;

/// What the client says of itself, whichever revision it speaks.
fn meta_of(context: &RequestContext<RoleServer>) -> Value {
    let client = context.client_info();
    let client = client.map_or_else(
        || json!({ "name": "unknown", "version": "0" }),
        |client| json!({ "name": client.name, "version": client.version }),
    );
    let capabilities = context.client_capabilities().unwrap_or_default();
    let capabilities = serde_json::to_value(capabilities).unwrap_or_else(|_| json!({}));
    meta(&context.meta, client, capabilities)
}

/// Tells of each change of these resources for as long as it is let. What changed before the
/// server listened, or while it was away, nobody knows: all of them are told of then.
async fn follow(upstream: &Upstream, uris: &[String], meta: &Value, tell: &Tell) {
    loop {
        let params = json!({
            "notifications": { "resourceSubscriptions": uris },
            "_meta": meta,
        });
        let call = Call {
            method: "subscriptions/listen",
            params,
            name: None,
            wait_within: None,
        };
        let (tell, all) = (Arc::clone(tell), uris.to_vec());
        let heard = move |message: Value| {
            let changed = match message["method"].as_str() {
                Some("notifications/resources/updated") => {
                    let uri = message["params"]["uri"].as_str();
                    uri.map(str::to_owned).into_iter().collect()
                }
                Some("notifications/subscriptions/acknowledged") => all.clone(),
                _ => Vec::new(),
            };
            let tell = Arc::clone(&tell);
            async move {
                for uri in changed {
                    let _unheard = tell(uri).await;
                }
            }
            .boxed()
        };
        match upstream.answer(call, &heard).await {
            Err(error) if error.code != ErrorCode::INTERNAL_ERROR => return,
            // It ended in order, or is away for long: it may come back.
            _ => tokio::time::sleep(FOLLOW_PAUSE).await,
        }
    }
}

impl ServerHandler for Bridge {
    fn get_info(&self) -> ServerConfig {
        server_config()
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::definitions(false)))
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

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(resources::templates())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        tools::known(&request.name, false)?;
        Ok(match self.called(request, &context).await {
            Ok(response) => response,
            // For the model to read, which would not get to see an error of the protocol.
            Err(error) => {
                let text = json!({ "error": error.message }).to_string();
                CallToolResult::error(vec![ContentBlock::text(text)]).into()
            }
        })
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let cursor = request.and_then(|request| request.cursor);
        let params = cursor.map_or_else(|| json!({}), |cursor| json!({ "cursor": cursor }));
        self.pass_on("resources/list", None, params, &context).await
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let params = json!({ "uri": request.uri });
        let read: ReadResourceResult = self
            .pass_on("resources/read", Some(&request.uri), params, &context)
            .await?;
        Ok(read.into())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let params = serde_json::to_value(&request).unwrap_or_default();
        self.pass_on("completion/complete", None, params, &context)
            .await
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let id = request.task_id;
        let params = json!({ "taskId": id });
        self.pass_on("tasks/get", Some(&id), params, &context).await
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let id = request.task_id;
        let params = json!({ "taskId": id, "inputResponses": request.input_responses });
        let _done: Value = self
            .pass_on("tasks/update", Some(&id), params, &context)
            .await?;
        Ok(())
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let id = request.task_id;
        let params = json!({ "taskId": id });
        let _done: Value = self
            .pass_on("tasks/cancel", Some(&id), params, &context)
            .await?;
        Ok(())
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(resources::followable(requested))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let accepted = context.accepted().resource_subscriptions.clone();
        let uris = accepted.unwrap_or_default();
        let meta = meta_of(context.request_context());
        let sink = context.sink().clone();
        let tell: Tell = Arc::new(move |uri| {
            let sink = sink.clone();
            async move { sink.notify_resource_updated(uri).await.is_ok() }.boxed()
        });
        tokio::select! {
            () = follow(&self.upstream, &uris, &meta, &tell), if !uris.is_empty() => {}
            () = context.cancelled() => {}
        }
        Ok(())
    }

    // For clients before revision 2026-07-28.
    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        // Tells of one that is not there.
        let params = json!({ "uri": request.uri });
        let _read: ReadResourceResult = self
            .pass_on("resources/read", Some(&request.uri), params, &context)
            .await?;
        let upstream = self.upstream.clone();
        let uris = vec![request.uri.clone()];
        let meta = meta_of(&context);
        let following = tokio::spawn(async move {
            let peer = context.peer;
            let tell: Tell = Arc::new(move |uri| {
                let told = ResourceUpdatedNotificationParam::new(uri);
                let peer = peer.clone();
                async move { peer.notify_resource_updated(told).await.is_ok() }.boxed()
            });
            follow(&upstream, &uris, &meta, &tell).await;
        });
        let following = AbortOnDropHandle::new(following);
        let mut all = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= FOLLOWED_MAX && !all.contains_key(&request.uri) {
            let text = format!("At most {FOLLOWED_MAX} resources can be followed at once");
            return Err(ErrorData::invalid_params(text, None));
        }
        all.insert(request.uri, following);
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
}
