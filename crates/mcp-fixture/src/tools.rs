//! Tools that speak to the caller while they run.

#![expect(
    deprecated,
    reason = "the older suite tests logs, which are deprecated since"
)]

use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ContentBlock,
    ErrorData, InputRequest, InputRequiredResult, LoggingLevel, LoggingMessageNotificationParam,
    ProgressNotificationParam, ProtocolVersion, ServerRequest,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::{Value, json};

use crate::catalogue::CATALOGUE;
use crate::handler::{Change, Fixture};

/// Between one message and the next, as the suites ask for.
const PAUSE: Duration = Duration::from_millis(50);

type Answer = Result<CallToolResponse, ErrorData>;

/// Answers if the tool is one of these.
pub async fn call(
    fixture: &Fixture,
    call: &CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Option<Answer> {
    let argument = |name: &str| {
        let given = call.arguments.as_ref().and_then(|all| all.get(name));
        given.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    Some(match call.name.as_ref() {
        "test_tool_with_logging" => log_three_times(context).await,
        "test_logging_tool" => log_if_asked(context).await,
        "test_tool_with_progress" => tell_progress(context).await,
        "test_sampling" => sample(&argument("prompt"), context).await,
        "test_elicitation" => elicit("test_elicitation", Some(argument("message")), context).await,
        name @ ("test_elicitation_sep1034_defaults" | "test_elicitation_sep1330_enums") => {
            elicit(name, None, context).await
        }
        "test_missing_capability" => need_sampling(context),
        "test_streaming_elicitation" => tell_then_ask(context).await,
        "test_trigger_tool_change" => change(fixture, Change::Tools),
        "test_trigger_prompt_change" => change(fixture, Change::Prompts),
        _ => return None,
    })
}

/// A result of one text.
pub fn said(text: impl Into<String>) -> CallToolResponse {
    CallToolResult::success(vec![ContentBlock::text(text)]).into()
}

async fn log_three_times(context: &RequestContext<RoleServer>) -> Answer {
    for (at, text) in [
        "Tool execution started",
        "Tool processing data",
        "Tool execution completed",
    ]
    .into_iter()
    .enumerate()
    {
        if at > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        log(text, context).await;
    }
    Ok(said("Logged three times."))
}

/// In the newer revision a request says whether it wants to hear of logs.
async fn log_if_asked(context: &RequestContext<RoleServer>) -> Answer {
    if context.meta.log_level().is_some() {
        log("Logged, as it was asked for", context).await;
    }
    Ok(said("Logged where it was asked for."))
}

async fn log(text: &str, context: &RequestContext<RoleServer>) {
    let message = LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(text));
    // A caller that is gone does not hear it.
    let _gone = context.peer.notify_logging_message(message).await;
}

async fn tell_progress(context: &RequestContext<RoleServer>) -> Answer {
    for progress in [0.0, 50.0, 100.0] {
        if progress > 0.0 {
            tokio::time::sleep(PAUSE).await;
        }
        tell(progress, context).await;
    }
    Ok(said("Told its progress three times."))
}

async fn tell(progress: f64, context: &RequestContext<RoleServer>) {
    if let Some(token) = context.meta.get_progress_token() {
        let told = ProgressNotificationParam::new(token, progress).with_total(100.0);
        // A caller that is gone does not hear it.
        let _gone = context.peer.notify_progress(told).await;
    }
}

async fn sample(prompt: &str, context: &RequestContext<RoleServer>) -> Answer {
    let question = json!({
        "method": "sampling/createMessage",
        "params": {
            "messages": [{ "role": "user", "content": { "type": "text", "text": prompt } }],
            "maxTokens": 100,
        },
    });
    let question = serde_json::from_value(question).expect("this is a request");
    let answer = ask(question, context).await?;
    let text = &answer["content"]["text"];
    let text = text
        .as_str()
        .map_or_else(|| answer.to_string(), str::to_owned);
    Ok(said(format!("LLM response: {text}")))
}

async fn elicit(
    key: &str,
    message: Option<String>,
    context: &RequestContext<RoleServer>,
) -> Answer {
    let mut question = json!(CATALOGUE.question(key));
    if let Some(message) = message {
        question["params"]["message"] = json!(message);
    }
    let question = serde_json::from_value(question).expect("this is a request");
    let answer = ask(question, context).await?;
    let action = answer["action"].as_str().unwrap_or("none");
    Ok(said(format!(
        "Elicitation completed: action={action}, content={}",
        answer["content"]
    )))
}

/// Asks while the call runs, as only the older revision allows.
async fn ask(
    question: InputRequest,
    context: &RequestContext<RoleServer>,
) -> Result<Value, ErrorData> {
    let question = match question {
        InputRequest::CreateMessage(question) => ServerRequest::CreateMessageRequest(question),
        InputRequest::Elicitation(question) => ServerRequest::ElicitRequest(question),
        _ => return Err(ErrorData::internal_error("nobody asks this way", None)),
    };
    let failed = |error: &dyn std::fmt::Display| {
        ErrorData::internal_error(format!("the caller did not answer: {error}"), None)
    };
    let answer = context.peer.send_request(question).await;
    let answer = answer.map_err(|error| failed(&error))?;
    serde_json::to_value(answer).map_err(|error| failed(&error))
}

fn need_sampling(context: &RequestContext<RoleServer>) -> Answer {
    let has = context.client_capabilities();
    if has.is_some_and(|has| has.sampling.is_some()) {
        return Ok(said("The caller samples."));
    }
    let needed = ClientCapabilities::builder().enable_sampling().build();
    Err(ErrorData::missing_required_client_capability(needed))
}

async fn tell_then_ask(context: &RequestContext<RoleServer>) -> Answer {
    tell(50.0, context).await;
    let version = context.protocol_version();
    if version.is_some_and(|version| version.as_str() < ProtocolVersion::V_2026_07_28.as_str()) {
        return Ok(said("Told its progress."));
    }
    let questions = CATALOGUE.questions(&["user_name"]);
    Ok(InputRequiredResult::from_input_requests(questions).into())
}

fn change(fixture: &Fixture, change: Change) -> Answer {
    // Nobody may be listening.
    let _unheard = fixture.changes.send(change);
    Ok(said("Told all who listen."))
}
