//! A flow as its clients see it.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use stable_interfaces::Timestamp;

use super::problem::{Kind, Problem};
use crate::status::{State, Status, Waiting};

/// The document of a flow. Times are milliseconds since the Unix epoch.
#[derive(Debug, Serialize)]
pub(super) struct View<'a> {
    id: &'a str,
    name: &'a str,
    /// `accepted` until its owner has begun it.
    status: &'static str,
    #[serde(flatten)]
    known: Option<Known<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Known<'a> {
    version: u32,
    started_at: Timestamp,
    changed_at: Timestamp,
    awaiting: Vec<Awaiting<'a>>,
    /// The failed attempts of the step that has most.
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Awaiting<'a> {
    kind: &'a str,
    name: &'a str,
    since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<Timestamp>,
}

impl<'a> Awaiting<'a> {
    /// From a wait with its full name: `scope/kind:name[key]#ordinal`.
    fn new(wait: &'a Waiting) -> Awaiting<'a> {
        let (scope, rest) = wait.name.split_once(':').unwrap_or(("", &wait.name));
        let kind = scope.rsplit('/').next().unwrap_or_default();
        let name = rest.rsplit_once('#').map_or(rest, |(name, _)| name);
        Awaiting { kind, name, since: wait.since, deadline: wait.until }
    }
}

impl<'a> View<'a> {
    /// A flow that was accepted, and of which nothing is known yet.
    pub(super) fn accepted(name: &'a str, id: &'a str) -> View<'a> {
        View { id, name, status: "accepted", known: None, result: None, problem: None }
    }

    /// A flow with its status, and its result if it has one.
    pub(super) fn new(name: &'a str, id: &'a str, status: &'a Status, result: Option<&'a RawValue>) -> View<'a> {
        let known = Known {
            version: status.version,
            started_at: status.started_at,
            changed_at: status.changed_at,
            awaiting: status.waits.iter().map(Awaiting::new).collect(),
            attempts: status.waits.iter().map(|wait| wait.attempts).max().unwrap_or_default(),
            progress: status.progress.as_ref(),
            resource: status.resource.as_deref(),
        };
        let failed = |kind, why: &str| Some(Problem::new(kind, why.to_owned()).to_json());
        let (word, problem) = match &status.state {
            State::Going => ("running", None),
            State::Blocked { why } => ("blocked", failed(BLOCKED, why.message())),
            State::Done => ("succeeded", None),
            State::Failed { error } => ("failed", failed(FAILED, error)),
            State::Cancelled => ("cancelled", None),
            State::Purged => ("purged", None),
        };
        View { id, name, status: word, known: Some(known), result, problem }
    }

    /// As JSON, with its strong tag.
    pub(super) fn encode(&self) -> Result<(String, String), Problem> {
        let json = serde_json::to_string(self);
        let json = json.map_err(|_| Problem::new(Kind::INTERNAL, "The flow's status cannot be shown."))?;
        let digest = Sha256::digest(json.as_bytes());
        let tag = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Ok((json, format!("\"{tag}\"")))
    }
}

const FAILED: Kind = Kind("failed", axum::http::StatusCode::UNPROCESSABLE_ENTITY, "The flow has failed");
const BLOCKED: Kind = Kind("blocked", axum::http::StatusCode::CONFLICT, "The flow needs somebody to look at it");

/// The first place at which two JSON values differ, as a JSON pointer (RFC 6901).
pub(super) fn first_difference(one: &Value, other: &Value) -> Option<String> {
    let below = |key: &str, one: Option<&Value>, other: Option<&Value>| {
        let key = key.replace('~', "~0").replace('/', "~1");
        match (one, other) {
            (Some(one), Some(other)) => first_difference(one, other).map(|rest| format!("/{key}{rest}")),
            _ => Some(format!("/{key}")),
        }
    };
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
            keys.into_iter().find_map(|key| below(key, one.get(key), other.get(key)))
        }
        (Value::Array(one), Value::Array(other)) => {
            (0..one.len().max(other.len())).find_map(|at| below(&at.to_string(), one.get(at), other.get(at)))
        }
        _ => (one != other).then(String::new),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_field_that_differs_is_named_by_its_place() {
        let order = json!({"lines": [{"n": 1, "a/b": 2}], "to": "ada"});
        for (other, place) in [
            (order.clone(), None),
            (json!({"lines": [{"n": 1, "a/b": 3}], "to": "bob"}), Some("/lines/0/a~1b")),
            (json!({"lines": [{"n": 1, "a/b": 2}, 7], "to": "ada"}), Some("/lines/1")),
            (json!({"lines": [{"n": 1, "a/b": 2}]}), Some("/to")),
            (json!("a text"), Some("")),
        ] {
            assert_eq!(first_difference(&order, &other).as_deref(), place, "{other}");
        }
    }
}
