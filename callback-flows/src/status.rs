//! A flow as it is seen from outside: the row that it keeps of itself.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use stable_interfaces::Timestamp;

use crate::blocked::Blocked;

/// The storage key of a flow's status.
pub(crate) const STATUS_KEY: &str = "status";
/// The storage key of a flow's result, as JSON, if it is too long for the status.
pub(crate) const RESULT_KEY: &str = "result";
/// The most waits that a status names.
pub(crate) const MAX_WAITS: usize = 16;
/// About the most bytes of them.
const MAX_WAITS_BYTES: usize = 2_560;
/// The longest text in a status, in bytes.
const MAX_TEXT: usize = 1_024;

/// The state of a flow, as it was when it last parked, was blocked or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
#[non_exhaustive]
pub enum State {
    /// The flow waits, or a step of it runs.
    Going,
    /// The flow needs somebody to look at it.
    Blocked {
        /// The reason.
        why: Blocked,
    },
    /// The flow has ended with a result: [`Flows::result`](crate::Flows::result).
    Done,
    /// The flow has failed.
    Failed {
        /// The error, with its causes.
        error: String,
    },
    /// The flow was cancelled, and what it had registered to undo was undone.
    Cancelled,
    /// The flow ended so long ago that only its ID is kept, for a while.
    Purged,
}

impl State {
    /// Tells whether the flow is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !matches!(self, State::Going | State::Blocked { .. })
    }
}

/// Something that a flow waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The full name of the operation: `scope/kind:name[key]#ordinal`.
    pub name: String,
    /// The moment since which it waits.
    pub since: Timestamp,
    /// The moment up to which it waits at the latest: the deadline of a timer, or the next attempt of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Failed attempts of a step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// The error of the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The place in a script that waits for it: its file, line and column, such as `checkout.rhai:12:5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

impl Waiting {
    /// The parts of its name: the scope, which may be empty, the kind, and the rest.
    pub(crate) fn parts(&self) -> (&str, &str, &str) {
        let (scope, operation) = self.name.rsplit_once('/').unwrap_or(("", &self.name));
        let (kind, name) = operation.split_once(':').unwrap_or(("", operation));
        (scope, kind, name)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A flow, as it is seen from outside. It is written in the commit of what it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The state of the flow.
    #[serde(flatten)]
    pub state: State,
    /// The version of its code, fixed at its start.
    pub version: u32,
    /// The number of its run, from 1: one more each time its code continued it with another input.
    pub run: u32,
    /// The moment at which it was started.
    pub started_at: Timestamp,
    /// The moment of its last change.
    pub changed_at: Timestamp,
    /// The number of changes so far: two statuses of one flow with the same revision are the same.
    #[serde(default)]
    pub revision: u64,
    /// The operations that it waits for, oldest first; the first 16. Of a flow that is blocked, those that it waited for before that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<Waiting>,
    /// Messages that its code has not taken.
    #[serde(default)]
    pub unread: u64,
    /// The progress that its code has told last: [`Flow::progress`](crate::Flow::progress).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Value>,
    /// The URL of what it has made: [`Flow::resource`](crate::Flow::resource).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The number of its events, without its end: [`Flows::events`](crate::Flows::events).
    #[serde(default)]
    pub events: u64,
    /// Entries of its journal.
    pub entries: u64,
    /// About how many bytes they have.
    pub bytes: u64,
    /// A hash of its input.
    pub(crate) input: u64,
    /// The number of the first page of its run's journal.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub(crate) first_page: u64,
    /// The number of processes that its code has ended when it was blocked for that: so many are no reason to block it again.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub(crate) deaths: u64,
    /// The result of the flow, if that is short: a longer one has rows of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<ShortResult>,
}

/// A result that is kept in the status, so that the end of a flow writes one row less. It is a text there, as whoever wrote it has written it: a value in a
/// value would be nested deeper than it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ShortResult(Box<str>);

impl ShortResult {
    /// A result of this JSON, if it is short enough.
    pub(crate) fn of(value: &[u8]) -> Option<ShortResult> {
        let text = std::str::from_utf8(value).ok()?;
        (text.len() <= MAX_TEXT).then(|| ShortResult(text.into()))
    }

    /// The result, as JSON.
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_bytes())
    }
}

/// Shows its size alone: the result is the application's, and whoever logs a status does not want it there.
impl fmt::Debug for ShortResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_none_yet(number: &u64) -> bool {
    *number == 0
}

impl Status {
    /// The status that is stored under the key `status` of a flow, for tools without this host's code.
    ///
    /// # Errors
    /// If it is none, or of a newer version.
    pub fn from_stored(stored: &[u8]) -> Result<Status, serde_json::Error> {
        serde_json::from_slice(stored)
    }

    /// A number that two statuses of one flow in one state share if they say the same, whenever that was. Progress and resource go by
    /// the number of events.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.version, self.run, self.started_at, self.unread).hash(&mut hasher);
        (self.events, self.entries, self.bytes, self.input, self.first_page, self.deaths).hash(&mut hasher);
        for Waiting { name, since, until, attempts, last_error, at } in &self.waits {
            (name, since, until, attempts, last_error, at).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Tells whether a step of the flow runs, as far as it says what it waits for: more of that is then in the memory of the flow's owner.
    pub(crate) fn has_steps(&self) -> bool {
        self.waits.iter().any(|wait| wait.parts().1 == "step")
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Status {
        Status {
            state: State::Going,
            version: 1,
            run: 1,
            started_at: Timestamp::UNIX_EPOCH,
            changed_at: Timestamp::UNIX_EPOCH,
            revision: 1,
            waits: Vec::new(),
            unread: 0,
            progress: None,
            resource: None,
            events: 0,
            entries: 1,
            bytes: 1,
            input: 0,
            first_page: 0,
            deaths: 0,
            result: None,
        }
    }
}

/// The waits that fit into a status, the oldest first: so many, and not too many bytes of them.
pub(crate) fn fitting(waits: impl Iterator<Item = Waiting>) -> Vec<Waiting> {
    let mut left = MAX_WAITS_BYTES;
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let size = |wait: &Waiting| wait.name.len() + length(&wait.last_error) + length(&wait.at) + 100;
    let fits = |wait: &Waiting| {
        let fits = size(wait) <= left;
        left = left.saturating_sub(size(wait));
        fits
    };
    let mut fitting = Vec::with_capacity(waits.size_hint().0.min(MAX_WAITS));
    fitting.extend(waits.take(MAX_WAITS).take_while(fits));
    fitting
}

/// A text that fits into a status.
pub(crate) fn short(text: &str) -> String {
    cut_to(text, MAX_TEXT)
}

/// The beginning of a text, of at most so many bytes, with a sign if that is not all.
pub(crate) fn cut_to(text: &str, most: usize) -> String {
    let end = text.floor_char_boundary(most);
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

/// The end of a flow.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Outcome {
    /// The flow has this result, as JSON.
    Done(Box<RawValue>),
    /// The flow has failed with this error.
    Failed(String),
    /// The flow was cancelled.
    Cancelled,
    /// The flow ended so long ago that its result is gone.
    Purged,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_a_status_tells_news_from_the_mere_passing_of_time() {
        let wait = Waiting {
            name: "step:pay#0".into(),
            since: Timestamp::UNIX_EPOCH,
            until: None,
            attempts: 1,
            last_error: Some("refused".into()),
            at: None,
        };
        let status = Status { waits: vec![wait.clone()], ..Status::for_tests() };
        let later = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(1);
        assert_eq!(status.digest(), Status { changed_at: later, revision: 7, ..status.clone() }.digest());
        let others = [
            Status { version: 2, ..status.clone() },
            Status { run: 2, ..status.clone() },
            Status { started_at: later, ..status.clone() },
            Status { waits: Vec::new(), ..status.clone() },
            Status { waits: vec![Waiting { attempts: 2, ..wait.clone() }], ..status.clone() },
            Status { waits: vec![Waiting { until: Some(later), ..wait.clone() }], ..status.clone() },
            Status { waits: vec![Waiting { last_error: None, ..wait.clone() }], ..status.clone() },
            Status { waits: vec![Waiting { at: Some("line 3".into()), ..wait }], ..status.clone() },
            Status { unread: 1, ..status.clone() },
            Status { events: 1, ..status.clone() },
            Status { entries: 2, ..status.clone() },
            Status { bytes: 2, ..status.clone() },
            Status { first_page: 1, ..status.clone() },
            Status { deaths: 1, ..status.clone() },
        ];
        for other in others {
            assert_ne!(status.digest(), other.digest(), "{other:?}");
        }
    }

    #[test]
    fn a_short_result_is_read_from_the_status_as_it_was_written_and_is_not_shown() {
        let deep = ["[".repeat(200), "]".repeat(200)].concat();
        for json in [r#"{ "secret": [1.50, "\u00e9"] }"#, "null", &deep] {
            let result = ShortResult::of(json.as_bytes());
            let status = Status { state: State::Done, result, ..Status::for_tests() };
            let read = Status::from_stored(&serde_json::to_vec(&status).unwrap()).unwrap();
            assert_eq!(read, status);
            assert_eq!(&*read.result.as_ref().unwrap().bytes(), json.as_bytes());
            assert!(!format!("{status:?}").contains("secret"));
        }
        assert_eq!(ShortResult::of(format!("{:?}", "s".repeat(MAX_TEXT - 1)).as_bytes()), None);
    }

    #[test]
    fn a_status_that_says_all_that_it_may_has_about_four_kib() {
        let wait = |n: usize| Waiting {
            name: format!("step:{n}{}", "x".repeat(500)),
            since: Timestamp::UNIX_EPOCH,
            until: Some(Timestamp::UNIX_EPOCH),
            attempts: 7,
            last_error: Some(short(&"e".repeat(5_000))),
            at: Some("checkout.rhai:12:5".into()),
        };
        let full = Status {
            waits: fitting((0..2_000).map(wait)),
            progress: Some(Value::String("p".repeat(1_000))),
            resource: Some("r".repeat(1_000)),
            ..Status::for_tests()
        };
        let bytes = serde_json::to_vec(&full).unwrap();
        assert!(!full.waits.is_empty() && bytes.len() <= 5 * 1_024, "{}", bytes.len());
        assert_eq!(Status::from_stored(&bytes).unwrap(), full);
        let few = fitting((0..3).map(|n| Waiting { name: format!("timer:{n}"), last_error: None, ..wait(n) }));
        assert_eq!(few.len(), 3, "those that fit are all there");
    }
}
