//! Which answer a request gets; no IO.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::conversation::Conversation;
use crate::script::{Script, Scripts, Turn, Usage};

/// What is played for one request.
#[derive(Debug, Clone, Copy)]
pub enum Choice<'s> {
    Turn {
        script: &'s Script,
        index: usize,
        turn: &'s Turn,
    },
    /// Every turn of the script is played.
    Closing {
        script: &'s Script,
        index: usize,
    },
    /// The CLI asks something beside the conversation, e.g. for a title.
    Side,
    NoScript,
}

/// What `conversation` gets from `scripts`.
pub fn choose<'s>(scripts: &'s Scripts, conversation: &Conversation) -> Choice<'s> {
    let index = conversation.answers;
    match scripts.find(conversation) {
        Some(script) => match script.turns.get(index) {
            Some(turn) => Choice::Turn {
                script,
                index,
                turn,
            },
            None => Choice::Closing { script, index },
        },
        None if !conversation.offers_tools => Choice::Side,
        None => Choice::NoScript,
    }
}

/// What is said when every turn of `script` is played.
pub fn closing_turn(script: &Script) -> Turn {
    Turn {
        text: Some(script.closing.clone()),
        ..Turn::default()
    }
}

/// The answer to a side request: plain, or the JSON of a title where JSON is asked for.
pub fn side_turn(conversation: &Conversation) -> Turn {
    let text = if conversation.wants_json || conversation.system.contains("\"title\"") {
        r#"{"title":"Scripted session"}"#
    } else {
        "OK"
    };
    // Counted as nothing, so that a script's own usage adds up.
    let usage = Usage {
        input_tokens: Some(0),
        output_tokens: Some(0),
        ..Usage::default()
    };
    Turn {
        text: Some(text.into()),
        usage,
        ..Turn::default()
    }
}

/// The API's name of the error behind a status.
pub fn error_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        504 => "timeout_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    }
}

/// The status behind the API's name of an error; 500 for names that have none.
pub fn error_status(error_type: &str) -> u16 {
    match error_type {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => 500,
    }
}

/// What an error of `status` says where the script is silent.
pub fn error_message(status: u16) -> String {
    match status {
        401 => "invalid x-api-key".into(),
        429 => "This request would exceed your rate limit.".into(),
        500 => "Internal server error".into(),
        529 => "Overloaded".into(),
        _ => {
            let known = StatusCode::from_u16(status).ok();
            known
                .and_then(|status| status.canonical_reason())
                .unwrap_or("Error")
                .into()
        }
    }
}

/// An error in the API's shape, without the request's id.
pub fn error_json(error_type: &str, message: &str) -> Value {
    json!({"type": "error", "error": {"type": error_type, "message": message}})
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPTS: [(&str, &str); 1] = [(
        "store",
        "match = ['store']\n[[turn]]\ntext = 'one'\n[[turn]]\ntext = 'two'\nstop_reason = 'max_tokens'",
    )];

    fn chosen(conversation: &Conversation) -> String {
        let scripts = Scripts::from_texts(SCRIPTS).expect("the script is valid");
        match choose(&scripts, conversation) {
            Choice::Turn {
                script,
                index,
                turn,
            } => {
                format!(
                    "{} {index} {}",
                    script.name,
                    turn.text.as_deref().unwrap_or_default()
                )
            }
            Choice::Closing { script, index } => format!("{} {index} closing", script.name),
            Choice::Side => "side".into(),
            Choice::NoScript => "none".into(),
        }
    }

    fn conversation(prompt: &str, answers: usize) -> Conversation {
        Conversation {
            prompt: prompt.into(),
            answers,
            offers_tools: true,
            ..Conversation::default()
        }
    }

    #[test]
    fn turn_is_the_number_of_answers_so_far() {
        assert_eq!(chosen(&conversation("store", 0)), "store 0 one");
        assert_eq!(chosen(&conversation("store", 1)), "store 1 two");
        assert_eq!(chosen(&conversation("store", 2)), "store 2 closing");
        assert_eq!(chosen(&conversation("store", 9)), "store 9 closing");
    }

    #[test]
    fn request_without_tools_consumes_no_turn() {
        let title = Conversation {
            offers_tools: false,
            ..conversation("store", 0)
        };
        assert_eq!(chosen(&title), "side");
    }

    #[test]
    fn unknown_prompt_gets_no_script() {
        assert_eq!(chosen(&conversation("sing", 0)), "none");
    }

    #[test]
    fn statuses_and_names_of_errors_agree() {
        for status in [400, 401, 403, 404, 413, 429, 500, 504, 529] {
            assert_eq!(error_status(error_type(status)), status);
        }
    }
}
