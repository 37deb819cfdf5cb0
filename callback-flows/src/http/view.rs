//! The status of a flow as clients see it.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use stable_interfaces::Timestamp;
use utoipa::ToSchema;

use super::problem::{FLOW_FAILED, type_url};
use crate::status::{Outcome, State, Status, Waiting};

/// A flow: where it stands, and its outcome when it is over.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FlowStatus {
    /// The ID that it was started under.
    id: String,
    /// The name of its code.
    name: String,
    /// The version of its code.
    version: u32,
    #[schema(inline)]
    status: Stage,
    /// The operations that it waits for, oldest first; the first 16.
    awaiting: Vec<Awaited>,
    /// Failed attempts of the steps that it waits for.
    attempts: u32,
    /// The progress that its code has told last: any JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    progress: Option<Value>,
    /// The URL of what it has made.
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    /// The reason, of one that is blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The result of the flow, when it has succeeded: any JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    result: Option<Box<RawValue>>,
    /// The reason, of one that has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Failure>,
    /// The moment at which it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    started_at: Option<String>,
    /// The moment of its last change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    changed_at: Option<String>,
}

/// The stage that a flow has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// The start is durable, and the flow's owner will begin it.
    Accepted,
    Running,
    /// The flow needs those who run the service, and goes on then.
    Blocked,
    Succeeded,
    Failed,
    Cancelled,
    /// Only its ID is left.
    Purged,
}

/// Something that a flow waits for.
#[derive(Debug, Serialize, ToSchema)]
struct Awaited {
    /// `step`, `callback`, `timer`, ..
    kind: String,
    /// The name of the operation, with those of its branches.
    name: String,
    #[schema(format = DateTime)]
    since: String,
    /// The end of a timer, or the next attempt of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    deadline: Option<String>,
}

/// The error of a flow, as a problem of its own.
#[derive(Debug, Serialize, ToSchema)]
struct Failure {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    detail: String,
}

impl FlowStatus {
    /// The view of a flow that is not purged. `outcome` is that of one that is over.
    pub(super) fn new(name: &str, id: &str, status: &Status, outcome: Option<Outcome>) -> FlowStatus {
        let (stage, reason) = match &status.state {
            State::Going => (Stage::Running, None),
            State::Blocked { why } => (Stage::Blocked, Some(why.message().to_owned())),
            State::Failed { .. } => (Stage::Failed, None),
            State::Cancelled => (Stage::Cancelled, None),
            State::Done => (Stage::Succeeded, None),
            State::Purged => (Stage::Purged, None),
        };
        let (result, problem) = match outcome {
            Some(Outcome::Done(result)) => (Some(result), None),
            Some(Outcome::Failed(detail)) => {
                (None, Some(Failure { kind: type_url(FLOW_FAILED), title: "The flow has failed", detail }))
            }
            _ => (None, None),
        };
        FlowStatus {
            id: id.to_owned(),
            name: name.to_owned(),
            version: status.version,
            status: stage,
            awaiting: status.waits.iter().map(Awaited::new).collect(),
            attempts: status.waits.iter().map(|wait| wait.attempts).sum(),
            progress: status.progress.clone(),
            resource: status.resource.clone(),
            reason,
            result,
            problem,
            started_at: Some(date_time(status.started_at)),
            changed_at: Some(date_time(status.changed_at)),
        }
    }

    /// The view of a flow that its owner has not taken.
    pub(super) fn accepted(name: &str, id: &str, version: u32) -> FlowStatus {
        FlowStatus {
            id: id.to_owned(),
            name: name.to_owned(),
            version,
            status: Stage::Accepted,
            awaiting: Vec::new(),
            attempts: 0,
            progress: None,
            resource: None,
            reason: None,
            result: None,
            problem: None,
            started_at: None,
            changed_at: None,
        }
    }

    /// The URL of what it has made.
    pub(super) fn resource(&self) -> Option<&str> {
        self.resource.as_deref()
    }

    pub(super) fn is_purged(&self) -> bool {
        self.status == Stage::Purged
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.status, Stage::Succeeded | Stage::Failed | Stage::Cancelled)
    }
}

impl Awaited {
    fn new(wait: &Waiting) -> Awaited {
        let (scope, kind, name) = wait.parts();
        let name = name.strip_suffix("#0").unwrap_or(name);
        Awaited {
            kind: kind.to_owned(),
            name: if scope.is_empty() { name.to_owned() } else { format!("{scope}/{name}") },
            since: date_time(wait.since),
            deadline: wait.until.map(date_time),
        }
    }
}

/// A moment as RFC 3339 writes it, in UTC with milliseconds.
pub(super) fn date_time(moment: Timestamp) -> String {
    const DAY: i64 = 24 * 3_600 * 1_000;
    let (days, millis) = (moment.as_millis().div_euclid(DAY), moment.as_millis().rem_euclid(DAY));
    // Years from March on, in cycles of 400 (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let since_march = days + 719_468;
    let (cycle, day) = (since_march.div_euclid(146_097), since_march.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + cycle * 400 + carry;
    let (hours, minutes, seconds) = (millis / 3_600_000, millis / 60_000 % 60, millis / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", millis % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339_has_them() {
        for (millis, written) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599_007, "2024-12-31T23:59:59.007Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (-2_203_891_200_000, "1900-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(date_time(Timestamp::from_millis(millis)), written);
        }
    }

    #[test]
    fn a_wait_is_shown_by_kind_and_by_name_with_its_branch() {
        let wait = |name: &str| {
            let name = name.to_owned();
            let since = Timestamp::UNIX_EPOCH;
            let shown = Awaited::new(&Waiting { name, since, until: None, attempts: 0, last_error: None, at: None });
            (shown.kind, shown.name)
        };
        assert_eq!(wait("callback:accepted#0"), ("callback".into(), "accepted".into()));
        assert_eq!(wait("a/b/step:fetch[17]#2"), ("step".into(), "a/b/fetch[17]#2".into()));
    }
}
