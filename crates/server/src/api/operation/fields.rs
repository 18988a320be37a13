//! Fields and parameters that more than one operation has, and the rules each must meet.

use std::str::FromStr;

use baton_domain::schedule::PRIORITY_MAX;
use baton_domain::{Branch, Kind, Project, Repository, SessionId, Status};

use super::super::json::{self, Object};
use super::super::{ApiError, Code};
use crate::orchestrator::OutputCursor;

/// The most dependencies of one session.
pub const DEPENDENCIES_MAX: usize = 1_000;
/// What every number of an event fits in, and the database's integers hold.
const NUMBER_MAX: u64 = i64::MAX as u64;
const CURSOR_BYTES_MAX: usize = 256;
/// The largest budget, in US dollars.
pub(super) const COST_USD_MAX: f64 = 1_000_000.0;
pub(super) const OPTION_FIELDS: [&str; 5] = [
    "autoStart",
    "timeout",
    "projectSettings",
    "priority",
    "maxCostUsd",
];
pub(super) const PROJECT_FIELDS: [&str; 4] = ["repository", "branch", "requirements", "context"];

/// What an operation holds.
pub(super) type Fields<'a> = Object<'a, 15>;
/// What is in `options`.
pub(super) type Options<'a> = Object<'a, 5>;

/// Reads a parameter that is a number.
///
/// # Errors
/// [`Code::InvalidField`].
pub fn number_param(name: &str, value: Option<&str>) -> Result<Option<u64>, ApiError> {
    let number = value.map(|value| {
        json::integer(value, 0..=NUMBER_MAX).map_err(|rule| ApiError::field(name, rule))
    });
    number.transpose()
}

/// Reads a parameter that is `true` or `false`.
///
/// # Errors
/// [`Code::InvalidField`].
pub fn flag_param(name: &str, value: Option<&str>) -> Result<Option<bool>, ApiError> {
    match value {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(ApiError::field(name, "must be true or false")),
    }
}

pub(super) fn budget_option(fields: &Fields<'_>) -> Result<Option<f64>, ApiError> {
    match fields.object("options", OPTION_FIELDS)? {
        Some(options) => options.amount("maxCostUsd", COST_USD_MAX),
        None => Ok(None),
    }
}

/// What the first of several objects holds that holds anything; all are checked.
pub(super) fn first_of<T>(
    places: &[Options<'_>],
    read: impl Fn(&Options<'_>) -> Result<Option<T>, ApiError>,
) -> Result<Option<T>, ApiError> {
    let mut first = None;
    for place in places {
        let value = read(place)?;
        first = first.or(value);
    }
    Ok(first)
}

pub(super) fn priority_option(places: &[Options<'_>]) -> Result<i32, ApiError> {
    let priority = first_of(places, |options| {
        options.signed("priority", -PRIORITY_MAX..=PRIORITY_MAX)
    });
    Ok(priority?.unwrap_or(0))
}

pub(super) fn project_field<const N: usize>(fields: &Object<'_, N>) -> Result<Project, ApiError> {
    let project = fields.object("project", PROJECT_FIELDS)?;
    let project = fields.required("project", project)?;
    let repository = project.text("repository")?;
    let repository = project.required("repository", repository)?;
    let requirements = project.text("requirements")?;
    let requirements = project.required("requirements", requirements)?;
    if requirements.trim().is_empty() {
        return Err(project.invalid("requirements", "must say what is to be done"));
    }
    let branch = project.text("branch")?.map(|branch| {
        let branch = Branch::from_str(&branch);
        branch.map_err(|rule| project.invalid("branch", rule))
    });
    let context = project.text("context")?;
    Ok(Project {
        repository: Repository::from_str(&repository)
            .map_err(|rule| project.invalid("repository", rule))?,
        branch: branch.transpose()?,
        requirements: requirements.into(),
        context: context.map(Into::into),
    })
}

/// Dependencies without what clients send for "none": null, the empty string and the word.
pub(super) fn dependencies_field(session: &Object<'_, 7>) -> Result<Vec<SessionId>, ApiError> {
    let entries = session.list("dependencies")?.unwrap_or_default();
    if entries.len() > DEPENDENCIES_MAX {
        let rule = format!("must hold at most {DEPENDENCIES_MAX} ids");
        return Err(session.invalid("dependencies", rule));
    }
    let mut dependencies = Vec::with_capacity(entries.len());
    for (at, entry) in entries.iter().enumerate() {
        if entry.get() == "null" {
            continue;
        }
        let text = json::text(entry.get());
        if matches!(text.as_deref(), Ok("" | "none")) {
            continue;
        }
        let id = text.ok().and_then(|text| SessionId::from_str(&text).ok());
        dependencies.push(id.ok_or_else(|| {
            let path = session.path("dependencies");
            ApiError {
                code: Code::InvalidDependency,
                ..ApiError::field(
                    &format!("{path}[{at}]"),
                    "must be the id of a session, a UUID",
                )
            }
        })?);
    }
    Ok(dependencies)
}

pub(super) fn kind_field<const N: usize>(
    fields: &Object<'_, N>,
    name: &str,
) -> Result<Option<Kind>, ApiError> {
    let kind = fields.text(name)?.map(|word| {
        let kind = Kind::from_str(&word);
        kind.map_err(|rule| fields.invalid(name, format!("is an {rule}")))
    });
    kind.transpose()
}

pub(super) fn optional_id_field<T: FromStr, const N: usize>(
    fields: &Object<'_, N>,
    name: &str,
) -> Result<Option<T>, ApiError> {
    let id = fields.text(name)?;
    id.map(|id| parsed(&id, &fields.path(name))).transpose()
}

pub(super) fn id_field<T: FromStr, const N: usize>(
    fields: &Object<'_, N>,
    name: &str,
) -> Result<T, ApiError> {
    let id = optional_id_field(fields, name)?;
    fields.required(name, id)
}

pub(super) fn parsed<T: FromStr>(text: &str, path: &str) -> Result<T, ApiError> {
    T::from_str(text).map_err(|_| {
        ApiError::field(
            path,
            "must be a UUID of the form 8-4-4-4-12 hexadecimal digits",
        )
    })
}

/// One status, or a list of them.
pub(super) fn status_field(fields: &Fields<'_>) -> Result<Vec<Status>, ApiError> {
    let Some(raw) = fields.raw("status") else {
        return Ok(Vec::new());
    };
    if !raw.starts_with('[') {
        let text = fields.text("status")?.unwrap_or_default();
        return statuses_of(text.split(','), "status");
    }
    let entries = fields.list("status")?.unwrap_or_default();
    let words: Result<Vec<_>, _> = entries
        .iter()
        .map(|entry| json::text(entry.get()))
        .collect();
    let words = words.map_err(|rule| fields.invalid("status", rule))?;
    statuses_of(words.iter().map(AsRef::as_ref), "status")
}

/// Known statuses, each once, in one order: so that equal questions look equal.
pub(super) fn statuses_of<'a>(
    words: impl Iterator<Item = &'a str>,
    path: &str,
) -> Result<Vec<Status>, ApiError> {
    let mut wanted = [false; Status::ALL.len()];
    for word in words {
        let known = Status::ALL
            .iter()
            .position(|status| status.name() == word.trim());
        let known = known.ok_or_else(|| {
            let names = Status::ALL.map(Status::name).join(", ");
            ApiError::field(path, format!("must be one of {names}"))
        })?;
        wanted[known] = true;
    }
    let all = Status::ALL.into_iter().zip(wanted);
    Ok(all
        .filter_map(|(status, wanted)| wanted.then_some(status))
        .collect())
}

pub(super) fn limit_field(fields: &Fields<'_>, max: usize) -> Result<Option<usize>, ApiError> {
    let limit = fields.integer("limit", 1..=max as u64)?;
    Ok(limit.and_then(|limit| usize::try_from(limit).ok()))
}

pub(super) fn limit_param(limit: Option<&str>, max: usize) -> Result<Option<usize>, ApiError> {
    let limit = limit.map(|limit| {
        json::integer(limit, 1..=max as u64).map_err(|rule| ApiError::field("limit", rule))
    });
    Ok(limit
        .transpose()?
        .and_then(|limit| usize::try_from(limit).ok()))
}

pub(super) fn cursor_field(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let cursor = fields.text("cursor")?;
    cursor
        .map(|cursor| short_cursor(cursor.into_owned()))
        .transpose()
}

pub(super) fn short_cursor(cursor: String) -> Result<String, ApiError> {
    match cursor.len() <= CURSOR_BYTES_MAX {
        true => Ok(cursor),
        false => Err(ApiError::field(
            "cursor",
            "must be the nextCursor of an answer to the same query",
        )),
    }
}

/// The number of an event, alone or in a string, where needed with a number of lines: `17`,
/// `"17"`, `"17.2"`.
pub(super) fn output_cursor_field(fields: &Fields<'_>) -> Result<Option<OutputCursor>, ApiError> {
    match fields.raw("cursor") {
        None => Ok(None),
        Some(raw) if raw.starts_with('"') => {
            let text = fields.text("cursor")?.unwrap_or_default();
            output_cursor(&text).map(Some)
        }
        Some(raw) => output_cursor(raw).map(Some),
    }
}

pub(super) fn output_cursor(text: &str) -> Result<OutputCursor, ApiError> {
    let (seq, lines) = text.split_once('.').unwrap_or((text, "0"));
    let number = |digits| json::integer(digits, 0..=NUMBER_MAX);
    match (number(seq), number(lines).map(usize::try_from)) {
        (Ok(seq), Ok(Ok(lines))) => Ok(OutputCursor { seq, lines }),
        _ => Err(ApiError::field(
            "cursor",
            "must be the nextCursor of an answer, or the number of an event",
        )),
    }
}
