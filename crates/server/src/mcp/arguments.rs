//! Arguments of tools into operations.
//!
//! The rules for each field are those of the API: arguments are laid out as a request of the
//! webhook, which is read by [`crate::api`]. What is told of a field there is then told of the
//! argument it came from.

use baton_domain::waits::WaitMode;
use rmcp::model::JsonObject;
use serde_json::{Map, Value, json};

use super::tools::Tool;
use crate::api::{self, ApiError, Operation};

/// The most sessions that one call waits for.
pub(super) const WAITED_MAX: usize = 1_000;
/// The longest a wait may be asked to take, in seconds.
const WAIT_S_MAX: u64 = 7 * 86_400;
/// How many sessions a list holds when nothing else is asked for.
pub(super) const LIST_DEFAULT: usize = 20;
/// The most sessions in one list.
const LIST_MAX: u64 = 200;
/// The most characters of log that one answer may be asked to hold.
const OUTPUT_CHARS_MAX: u64 = 200_000;
const KEY_CHARS_MAX: usize = 200;

/// Other names that models give to arguments, each with ours.
const ALIASES: [(&str, &str); 8] = [
    ("type", "sessionType"),
    ("repo", "repository"),
    ("message", "text"),
    ("sessions_ids", "sessionIds"),
    ("dependsOn", "dependencies"),
    ("pollIntervalSeconds", ""),
    ("timeout", "timeoutSeconds"),
    ("maxCost", "maxCostUsd"),
];

/// Where an argument goes in a request of the webhook, each place with the argument's name.
const PLACES: [(&str, &str); 24] = [
    ("session.project.repository", "repository"),
    ("session.project.requirements", "requirements"),
    ("session.project.branch", "branch"),
    ("session.project.context", "context"),
    ("session.type", "sessionType"),
    ("session.dependencies", "dependencies"),
    ("session.orchestrationId", "orchestrationId"),
    ("session.options.autoStart", "autoStart"),
    ("session.options.timeout", "timeoutMinutes"),
    ("session.options.maxCostUsd", "maxCostUsd"),
    ("session.options.priority", "priority"),
    ("session.project", "repository"),
    ("project.repository", "repository"),
    ("project.requirements", "requirements"),
    ("project.branch", "branch"),
    ("project.context", "context"),
    ("plan.sessions", "sessions"),
    ("plan", "sessions"),
    ("options.maxCostUsd", "maxCostUsd"),
    ("options.priority", "priority"),
    ("strategy.dependencyMode", "dependencyMode"),
    ("strategy.planner", "planner"),
    ("strategy.parallelSessions", "parallelSessions"),
    ("strategy.gate", "gate"),
];

/// A tool's arguments, by our names.
pub(super) struct Arguments(Map<String, Value>);

/// How much of a session's output is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutputWanted {
    /// Whether all of the log is to be read, page by page.
    pub(super) detailed: bool,
    /// The most characters of log; the tool's own measure when absent.
    pub(super) chars_max: Option<usize>,
}

impl Arguments {
    /// Takes them by our names: `session_id` is `sessionId`. What is null is not there.
    pub(super) fn new(given: Option<JsonObject>) -> Self {
        let mut taken = Map::new();
        for (name, value) in given.unwrap_or_default() {
            if value.is_null() {
                continue;
            }
            let name = camel_case(&name);
            let alias = ALIASES.iter().find(|(other, _)| *other == name);
            let name = alias.map_or(name, |(_, ours)| (*ours).to_owned());
            // An argument under our own name counts before one under another.
            if alias.is_none() || !taken.contains_key(&name) {
                taken.insert(name, value);
            }
        }
        Self(taken)
    }

    /// Whether an argument is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The idempotency key, where one is given.
    pub(super) fn key(&self) -> Result<Option<&str>, ApiError> {
        let Some(key) = self.0.get("idempotencyKey") else {
            return Ok(None);
        };
        match key.as_str() {
            Some(key) if (1..=KEY_CHARS_MAX).contains(&key.chars().count()) => Ok(Some(key)),
            _ => {
                let rule = format!("must be a text of 1 to {KEY_CHARS_MAX} characters");
                Err(ApiError::field("idempotencyKey", rule))
            }
        }
    }

    /// The operation that a tool is called for; `wait_for_session` is none.
    pub(super) fn operation_of(&self, tool: Tool) -> Result<Option<Operation>, ApiError> {
        let operation = match tool {
            Tool::Wait => return Ok(None),
            Tool::Create => self.create(),
            Tool::Start => self.start(),
            Tool::Status => self.of_session("session.get"),
            Tool::Output => self.output(),
            Tool::List => self.list(),
            Tool::Cancel => self.cancel(),
            Tool::Retry => self.of_session("session.retry"),
            Tool::Message => self.message(),
            Tool::Orchestrate => self.orchestrate(),
            Tool::Orchestration => self.of_orchestration("orchestration.get"),
        };
        operation.map(Some)
    }

    /// `create_claude_session`
    fn create(&self) -> Result<Operation, ApiError> {
        if !self.has("sessionType") {
            return Err(ApiError::field(
                "sessionType",
                "is missing; it is analysis, implementation, testing, review or coordination",
            ));
        }
        let mut options = self.picked(&["autoStart", "maxCostUsd", "priority"]);
        if let Some(minutes) = self.number("timeoutMinutes", 1..=api::TIMEOUT_S_MAX / 60)? {
            options.insert("timeout".to_owned(), json!(minutes * 60));
        }
        let mut session = self.picked(&["dependencies", "orchestrationId"]);
        session.insert("type".to_owned(), self.0["sessionType"].clone());
        session.insert("project".to_owned(), self.project().into());
        session.insert("options".to_owned(), options.into());
        self.operation("session.create", json!({ "session": session }))
    }

    /// Operations on one session that need no more than its id.
    fn of_session(&self, operation: &str) -> Result<Operation, ApiError> {
        self.operation(operation, self.picked(&["sessionId"]).into())
    }

    /// `start_claude_session`: one session, or all of an orchestration.
    fn start(&self) -> Result<Operation, ApiError> {
        if !self.names_an_orchestration()? {
            return self.of_session("session.start");
        }
        let mut fields = self.picked(&["orchestrationId"]);
        let options = self.picked(&["maxCostUsd"]);
        if !options.is_empty() {
            fields.insert("options".to_owned(), options.into());
        }
        self.operation("orchestration.start", fields.into())
    }

    /// `cancel_session`: one session, or all of an orchestration.
    fn cancel(&self) -> Result<Operation, ApiError> {
        match self.names_an_orchestration()? {
            true => self.of_orchestration("orchestration.cancel"),
            false => self.of_session("session.cancel"),
        }
    }

    /// `message_session`
    fn message(&self) -> Result<Operation, ApiError> {
        let mut fields = self.picked(&["sessionId", "text"]);
        let options = self.picked(&["maxCostUsd"]);
        if !options.is_empty() {
            fields.insert("options".to_owned(), options.into());
        }
        self.operation("session.message", fields.into())
    }

    /// `list_sessions`
    fn list(&self) -> Result<Operation, ApiError> {
        let mut fields = self.picked(&["orchestrationId", "status", "cursor"]);
        let limit = self.number("limit", 1..=LIST_MAX)?;
        fields.insert(
            "limit".to_owned(),
            json!(limit.unwrap_or(LIST_DEFAULT as u64)),
        );
        self.operation("session.list", fields.into())
    }

    /// `orchestrate`
    fn orchestrate(&self) -> Result<Operation, ApiError> {
        let strategy = self.picked(&["dependencyMode", "planner", "parallelSessions", "gate"]);
        let mut fields = self.picked(&["autoStart", "sessionType"]);
        fields.insert("project".to_owned(), self.project().into());
        if !strategy.is_empty() {
            fields.insert("strategy".to_owned(), strategy.into());
        }
        let options = self.picked(&["maxCostUsd", "priority"]);
        if !options.is_empty() {
            fields.insert("options".to_owned(), options.into());
        }
        if let Some(sessions) = self.0.get("sessions") {
            let sessions = planned(sessions);
            fields.insert("plan".to_owned(), json!({ "sessions": sessions }));
        }
        self.operation("orchestrate", fields.into())
    }

    /// Operations on an orchestration that need no more than its id.
    fn of_orchestration(&self, operation: &str) -> Result<Operation, ApiError> {
        self.operation(operation, self.picked(&["orchestrationId"]).into())
    }

    /// `get_session_output`
    fn output(&self) -> Result<Operation, ApiError> {
        let fields = self.picked(&["sessionId", "cursor"]);
        self.operation("session.output", fields.into())
    }

    /// How much `get_session_output` is to give.
    pub(super) fn output_wanted(&self) -> Result<OutputWanted, ApiError> {
        let detailed = match self.0.get("detail").map(Value::as_str) {
            None | Some(Some("concise")) => false,
            Some(Some("detailed")) => true,
            Some(_) => return Err(ApiError::field("detail", "must be concise or detailed")),
        };
        let chars_max = self.number("maxChars", 100..=OUTPUT_CHARS_MAX)?;
        Ok(OutputWanted {
            detailed,
            chars_max: chars_max.and_then(|chars| usize::try_from(chars).ok()),
        })
    }

    /// `wait_for_session`: for whom, for how many of them, and how many seconds at most.
    pub(super) fn wait(
        &self,
    ) -> Result<(Vec<baton_domain::SessionId>, WaitMode, Option<u64>), ApiError> {
        let named = match (self.0.get("sessionIds"), self.0.get("sessionId")) {
            (Some(Value::Array(ids)), _) => ids.clone(),
            (Some(one @ Value::String(_)), _) | (None, Some(one)) => vec![one.clone()],
            (Some(_), _) => {
                return Err(ApiError::field(
                    "sessionIds",
                    "must be a list of session ids",
                ));
            }
            (None, None) => {
                let rule = "is missing; give the ids of the sessions to wait for";
                return Err(ApiError::field("sessionIds", rule));
            }
        };
        if named.is_empty() || named.len() > WAITED_MAX {
            let rule = format!("must hold 1 to {WAITED_MAX} session ids");
            return Err(ApiError::field("sessionIds", rule));
        }
        let mut ids = Vec::with_capacity(named.len());
        for (at, id) in named.iter().enumerate() {
            let id = id.as_str().and_then(|id| id.parse().ok()).ok_or_else(|| {
                let rule = "must be the id of a session, a UUID, as create_claude_session gave it";
                ApiError::field(&format!("sessionIds[{at}]"), rule)
            })?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let mode = match self.0.get("mode").map(Value::as_str) {
            None | Some(Some("all")) => WaitMode::All,
            Some(Some("any")) => WaitMode::Any,
            Some(_) => return Err(ApiError::field("mode", "must be all or any")),
        };
        Ok((ids, mode, self.number("timeoutSeconds", 0..=WAIT_S_MAX)?))
    }

    /// Whether it is all of an orchestration that is meant, not one session.
    fn names_an_orchestration(&self) -> Result<bool, ApiError> {
        match (self.has("sessionId"), self.has("orchestrationId")) {
            (false, false) => Err(ApiError::request(
                "sessionId or orchestrationId is required",
            )),
            (is_session, _) => Ok(!is_session),
        }
    }

    fn project(&self) -> Map<String, Value> {
        self.picked(&["repository", "requirements", "branch", "context"])
    }

    fn picked(&self, names: &[&str]) -> Map<String, Value> {
        let picked = names
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), self.0.get(*name)?.clone())));
        picked.collect()
    }

    /// A whole number; a text of digits counts, as models send them.
    fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.0.get(name) else {
            return Ok(None);
        };
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            value => value.as_u64(),
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let (least, most) = range.into_inner();
                let rule = format!("must be a whole number from {least} to {most}");
                Err(ApiError::field(name, rule))
            }
        }
    }

    fn operation(&self, kind: &str, mut fields: Value) -> Result<Operation, ApiError> {
        fields["type"] = json!(kind);
        // Texts with a number or a truth in them, as models send them, stay what they are: the
        // reader of the API says what is wrong with them.
        api::operation(fields.to_string().as_bytes())
    }
}

/// The sessions of a plan, `dependsOn` being what the API calls `dependencies`.
fn planned(sessions: &Value) -> Value {
    let Value::Array(sessions) = sessions else {
        return sessions.clone();
    };
    let renamed = sessions.iter().map(|session| {
        let Value::Object(fields) = session else {
            return session.clone();
        };
        let fields = fields.iter().filter(|(_, value)| !value.is_null());
        let fields = fields.map(|(name, value)| {
            let name = match camel_case(name).as_str() {
                "dependsOn" => "dependencies".to_owned(),
                "sessionType" => "type".to_owned(),
                other => other.to_owned(),
            };
            (name, value.clone())
        });
        Value::Object(fields.collect())
    });
    Value::Array(renamed.collect())
}

/// Names the argument where the API named a field.
pub(super) fn told_of_arguments(mut error: ApiError) -> ApiError {
    if let Some(message) = named(&error.message) {
        error.message = message;
    }
    let path = error
        .details
        .as_ref()
        .and_then(|details| details["path"].as_str());
    if let Some(path) = path.and_then(named) {
        error.details = Some(json!({ "path": path }));
    }
    error
}

/// A text that begins with the place of a field, beginning with its argument instead.
fn named(text: &str) -> Option<String> {
    PLACES.iter().find_map(|(place, argument)| {
        let rest = text.strip_prefix(place)?;
        if rest.starts_with(|next: char| next == '.' || next.is_alphanumeric()) {
            return None;
        }
        let rest = match place.starts_with("plan") {
            true => rest.replace(".dependencies", ".dependsOn"),
            false => rest.to_owned(),
        };
        Some(format!("{argument}{rest}"))
    })
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut joined = words.next().unwrap_or("").to_owned();
    for word in words {
        let mut letters = word.chars();
        joined.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        joined.extend(letters);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(given: Value) -> Arguments {
        let Value::Object(given) = given else {
            unreachable!("tests give objects")
        };
        Arguments::new(Some(given))
    }

    #[track_caller]
    fn refused(outcome: Result<Operation, ApiError>, expected: &str) {
        let error = told_of_arguments(outcome.expect_err("a refusal"));
        let told = error.message;
        assert!(told.starts_with(expected), "{told:?} is not {expected:?}");
    }

    #[test]
    fn names_are_taken_as_models_write_them() {
        let given = json!({
            "session_type": "testing",
            "repo": "o/r",
            "requirements": "Do it",
            "timeout_minutes": "5",
            "context": null,
        });
        let Ok(Operation::SessionCreate(new)) = arguments(given).create() else {
            panic!("no operation");
        };
        assert_eq!(new.kind.name(), "testing");
        assert_eq!(new.timeout_s, Some(300));
        assert_eq!(new.project.repository.as_str(), "o/r");
        assert!(!new.auto_start);
    }

    #[test]
    fn what_is_wrong_is_told_of_the_argument() {
        let with = |name: &str, value: Value| {
            let mut given =
                json!({ "sessionType": "testing", "repository": "o/r", "requirements": "x" });
            given[name] = value;
            arguments(given).create()
        };
        refused(
            with("sessionType", json!("documentation")),
            "sessionType is an unknown session type; known are analysis, implementation",
        );
        refused(with("repository", json!(7)), "repository must be ");
        refused(with("autoStart", json!("x")), "autoStart must be ");
        refused(
            with("timeoutMinutes", json!(0)),
            "timeoutMinutes must be a whole number from 1 to 10080",
        );
        refused(
            with("dependencies", json!(["analysis-123"])),
            "dependencies[0] must be the id of a session",
        );
        refused(
            arguments(json!({ "repository": "o/r" })).orchestrate(),
            "requirements is required",
        );
        refused(
            arguments(
                json!({ "repository": "o/r", "requirements": "x", "sessions": [
                { "key": "a", "requirements": "x", "dependsOn": ["b"] }
            ] }),
            )
            .orchestrate(),
            "sessions[0].dependsOn[0] ",
        );
    }

    #[test]
    fn a_wait_takes_one_id_or_many_each_once() {
        let id = "0192d1f6-0000-7000-8000-000000000001";
        let (ids, mode, timeout) = arguments(json!({ "sessionIds": [id, id], "mode": "any" }))
            .wait()
            .expect("a wait");
        assert_eq!((ids.len(), mode, timeout), (1, WaitMode::Any, None));
        assert!(arguments(json!({ "session_id": id })).wait().is_ok());
        assert!(arguments(json!({ "sessionIds": [] })).wait().is_err());
        assert!(arguments(json!({ "sessionIds": ["x"] })).wait().is_err());
    }
}
