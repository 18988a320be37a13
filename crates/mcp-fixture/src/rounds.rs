//! Results that need something of the caller first, who then calls again with it (SEP-2322).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ErrorData, GetPromptRequestParams, GetPromptResponse,
    GetPromptResult, InputRequiredResult, InputResponses, PromptMessage, Role,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::Value;
use uuid::Uuid;

use crate::catalogue::CATALOGUE;
use crate::handler::Fixture;
use crate::tools::said;

/// Rounds that are remembered; when there are more, the first calls begin anew.
const ROUNDS_MAX: usize = 10_000;

type Answer = Result<CallToolResponse, ErrorData>;

/// Which handles were given out as state, and what each stands for. A handle that was changed on
/// the way is none of these.
#[derive(Default)]
pub struct Rounds(Mutex<HashMap<String, &'static str>>);

impl Rounds {
    fn begin(&self, at: &'static str) -> String {
        let handle = Uuid::new_v4().to_string();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ROUNDS_MAX {
            known.clear();
        }
        known.insert(handle.clone(), at);
        handle
    }

    fn at(&self, handle: &str) -> Result<&'static str, ErrorData> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.get(handle).copied();
        at.ok_or_else(|| ErrorData::invalid_params("requestState was not given out here", None))
    }
}

/// Answers if the tool is one of these.
pub fn call(
    fixture: &Fixture,
    call: &CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Option<Answer> {
    let responses = call.input_responses.as_ref();
    Some(match call.name.as_ref() {
        "test_input_required_result_elicitation" => Ok(match accepted(responses, "user_name") {
            Some(given) => said(format!("Hello, {}!", word(&given["name"]))),
            None => ask(&["user_name"]),
        }),
        "test_input_required_result_sampling" => Ok(match given(responses, "capital_question") {
            Some(answer) => said(word(&answer["content"]["text"])),
            None => ask(&["capital_question"]),
        }),
        "test_input_required_result_list_roots" => Ok(match given(responses, "client_roots") {
            Some(answer) => said(format!("These roots: {}", answer["roots"])),
            None => ask(&["client_roots"]),
        }),
        "test_input_required_result_request_state"
        | "test_input_required_result_tampered_state" => {
            with_state(fixture, call, &["confirm"], "state-ok")
        }
        "test_input_required_result_multiple_inputs" => {
            let keys = ["user_name", "greeting", "client_roots"];
            with_state(fixture, call, &keys, "All three are there.")
        }
        "test_input_required_result_multi_round" => one_after_the_other(fixture, call),
        "test_input_required_result_capabilities" => Ok(ask_for_what_can_be_given(context)),
        _ => return None,
    })
}

/// The prompt that needs something first.
pub fn prompt(request: &GetPromptRequestParams) -> Result<GetPromptResponse, ErrorData> {
    let Some(given) = accepted(request.input_responses.as_ref(), "user_context") else {
        let questions = CATALOGUE.questions(&["user_context"]);
        return Ok(InputRequiredResult::from_input_requests(questions).into());
    };
    let text = format!("The context is: {}", word(&given["context"]));
    let messages = vec![PromptMessage::new_text(Role::User, text)];
    Ok(GetPromptResult::new(messages).into())
}

/// What was given for `key`.
pub fn given<'a>(responses: Option<&'a InputResponses>, key: &str) -> Option<&'a Value> {
    responses?.get(key).filter(|answer| answer.is_object())
}

/// What a person filled in for `key` and sent.
pub fn accepted<'a>(responses: Option<&'a InputResponses>, key: &str) -> Option<&'a Value> {
    let answer = given(responses, key)?;
    (answer["action"] == "accept").then(|| &answer["content"])
}

/// A text, or what else stands in its place.
pub fn word(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Asks for all of `keys`.
pub fn ask(keys: &[&str]) -> CallToolResponse {
    InputRequiredResult::from_input_requests(CATALOGUE.questions(keys)).into()
}

fn ask_with_state(fixture: &Fixture, keys: &[&str], at: &'static str) -> CallToolResponse {
    let state = fixture.rounds.begin(at);
    InputRequiredResult::new(Some(CATALOGUE.questions(keys)), Some(state)).into()
}

/// Needs `keys` and the state of the first round.
fn with_state(
    fixture: &Fixture,
    call: &CallToolRequestParams,
    keys: &[&str],
    done: &str,
) -> Answer {
    let Some(state) = &call.request_state else {
        return Ok(ask_with_state(fixture, keys, "first"));
    };
    fixture.rounds.at(state)?;
    let responses = call.input_responses.as_ref();
    let complete = keys.iter().all(|key| given(responses, key).is_some());
    Ok(if complete {
        said(done)
    } else {
        ask_with_state(fixture, keys, "first")
    })
}

fn one_after_the_other(fixture: &Fixture, call: &CallToolRequestParams) -> Answer {
    let Some(state) = &call.request_state else {
        return Ok(ask_with_state(fixture, &["step1"], "step1"));
    };
    let at = fixture.rounds.at(state)?;
    let answered = accepted(call.input_responses.as_ref(), at).is_some();
    Ok(match (at, answered) {
        ("step1", true) => ask_with_state(fixture, &["step2"], "step2"),
        ("step2", true) => said("Both steps are done."),
        (again, _) => ask_with_state(fixture, &[again], again),
    })
}

fn ask_for_what_can_be_given(context: &RequestContext<RoleServer>) -> CallToolResponse {
    let can = context.client_capabilities().unwrap_or_default();
    let mut keys = Vec::new();
    if can.sampling.is_some() {
        keys.push("capital_question");
    }
    if can.elicitation.is_some() {
        keys.push("user_name");
    }
    if can.roots.is_some() {
        keys.push("client_roots");
    }
    if keys.is_empty() {
        said("There is nothing to ask of this caller.")
    } else {
        ask(&keys)
    }
}
