//! Tools that go on as a task where the caller knows tasks (SEP-2663).

use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ContentBlock,
    CreateTaskResult, ErrorData,
};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::task_manager::{TaskContext, TaskExit, TaskOptions};
use serde_json::Value;

use crate::catalogue::CATALOGUE;
use crate::handler::Fixture;
use crate::rounds::{accepted, ask, word};
use crate::tools::said;

/// The longest a call takes.
const SECONDS_MAX: f64 = 120.0;
/// How often a caller is asked to look.
const POLL_MS: u64 = 200;

type Answer = Result<CallToolResponse, ErrorData>;
type Ended = Result<CallToolResult, TaskExit>;

/// Answers if the tool is one of these.
pub async fn call(
    fixture: &Fixture,
    call: &CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Option<Answer> {
    let capabilities = context.client_capabilities();
    let knows_tasks = capabilities.is_some_and(|has| has.supports_tasks());
    let argument = |name: &str| {
        let given = call.arguments.as_ref().and_then(|all| all.get(name));
        given.cloned().unwrap_or_default()
    };
    Some(match call.name.as_ref() {
        "greet" => Ok(said(format!("Hello, {}!", word(&argument("name"))))),
        "slow_compute" => {
            let took = argument("seconds").as_f64().unwrap_or(1.0);
            let took = Duration::from_secs_f64(took.clamp(0.0, SECONDS_MAX));
            if knows_tasks {
                Ok(spawn(fixture, move |task| compute(took, task)))
            } else {
                tokio::time::sleep(took).await;
                Ok(computed(took).into())
            }
        }
        name @ ("failing_job" | "protocol_error_job" | "confirm_delete" | "multi_input")
            if knows_tasks =>
        {
            Ok(match name {
                "failing_job" => spawn(fixture, |_| async { Ok(failed()) }),
                "protocol_error_job" => spawn(fixture, |_| async {
                    Err(ErrorData::internal_error("this job breaks", None).into())
                }),
                "confirm_delete" => spawn(fixture, confirm),
                _ => spawn(fixture, confirm_both),
            })
        }
        "test_tool_with_task" if knows_tasks => {
            Ok(match accepted(call.input_responses.as_ref(), "user_name") {
                None => ask(&["user_name"]),
                Some(given) => {
                    let name = word(&given["name"]);
                    spawn(fixture, |_| async move {
                        Ok(text(format!("Hello, {name}, from the background!")))
                    })
                }
            })
        }
        "failing_job"
        | "protocol_error_job"
        | "confirm_delete"
        | "multi_input"
        | "test_tool_with_task" => {
            let needed = ClientCapabilities::builder().enable_tasks().build();
            Err(ErrorData::missing_required_client_capability(needed))
        }
        _ => return None,
    })
}

fn spawn<F>(
    fixture: &Fixture,
    work: impl FnOnce(TaskContext) -> F + Send + 'static,
) -> CallToolResponse
where
    F: Future<Output = Ended> + Send + 'static,
{
    let options = TaskOptions::new().with_poll_interval_ms(POLL_MS);
    let task = fixture
        .running
        .spawn(options, |context| Box::pin(work(context)));
    CreateTaskResult::new(task).into()
}

async fn compute(took: Duration, task: TaskContext) -> Ended {
    tokio::select! {
        () = tokio::time::sleep(took) => Ok(computed(took)),
        () = task.cancelled() => Err(TaskExit::Cancelled),
    }
}

async fn confirm(task: TaskContext) -> Ended {
    let answer = task.request_input("confirm", CATALOGUE.question("confirm"));
    Ok(text(format!("Confirmed: {}", answer.await?["action"])))
}

async fn confirm_both(task: TaskContext) -> Ended {
    let one = task.request_input("confirm", CATALOGUE.question("confirm"));
    let other = task.request_input("also_confirm", CATALOGUE.question("also_confirm"));
    let (one, other): (Value, Value) = tokio::try_join!(one, other)?;
    Ok(text(format!(
        "Confirmed: {}, {}",
        one["action"], other["action"]
    )))
}

fn computed(took: Duration) -> CallToolResult {
    text(format!("Computed for {} s", took.as_secs_f64()))
}

fn failed() -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text("This job always fails.")])
}

fn text(text: String) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}
