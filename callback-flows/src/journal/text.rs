//! A journal as a text: what [`Flows::journal`](crate::Flows::journal) gives out and [`Flows::check`](crate::Flows::check) takes.
//!
//! The format has a version of its own, apart from that of what is stored; every version that was ever written can be read.

use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use stable_interfaces::Timestamp;

use super::{
    Begun, Carried, ChildOutcome, Detail, Ended, Entry, Event, Key, Message, Page, Settled, StepOutcome, begun_of,
};
use crate::hash::hex;

/// The version that is written.
const FORMAT: u32 = 1;

/// The journal of a flow, taken out of its store: all that has happened to it, and all that its code began because of that.
///
/// As a text it is JSON, for a person to read, to be kept beside a program's tests, and to be [checked](crate::Flows::check) against
/// its code from then on:
///
/// ```json
/// {
///   "format": 1,
///   "flow": "order",
///   "id": "17",
///   "settled": 2,
///   "entries": [
///     {
///       "at": 1700000000000,
///       "event": { "start": { "version": 1, "run": 1, "seed": "1f2e3d4c5b6a7988", "input": {"item":"pizza"} } },
///       "begun": [{ "name": "callback:accepted#0" }, { "name": "step:offer#0", "input": "00c0ffee00c0ffee" }]
///     },
///     {
///       "at": 1700000000007,
///       "event": { "result": { "step": "step:offer#0", "value": null } },
///       "begun": [{ "name": "timer:5s#0", "due": 1700000005007 }]
///     },
///     {
///       "at": 1700000004000,
///       "event": { "message": { "callback": "callback:accepted#0", "id": "c-1", "body": "\"ada\"" } }
///     }
///   ],
///   "ended": { "done": "accepted by ada" }
/// }
/// ```
///
/// Moments are milliseconds since 1970. `settled` is the number of entries that the code has taken in. Other events are `failure` (a step
/// that failed for good), `interrupted`, `too_large`, `attempt`, `intent`, `fired`, `cancel`, `child_ended`, `posted`
/// and `continued` (after the messages that its run has taken over, by their numbers here); a body that is no
/// text is in `body_hex`; other ends are `failed` and `cancelled`. It has all that the flow was told, so it is as secret as that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    name: String,
    id: String,
    pages: Vec<Page>,
}

impl Journal {
    pub(crate) fn new(name: &str, id: &str, pages: Vec<Page>) -> Journal {
        Journal { name: name.into(), id: id.into(), pages }
    }

    /// The name of the flow's code.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ID that the flow was started under.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The input that the flow's run began with.
    #[cfg(feature = "rhai")]
    pub(crate) fn input(&self) -> Option<&[u8]> {
        self.pages.iter().flat_map(|page| &page.entries).find_map(|entry| match &entry.event {
            Event::Start { input, .. } | Event::Continued { input, .. } => Some(&**input),
            _ => None,
        })
    }

    /// The version of the code that the flow began with; 0 if the journal has no start.
    #[must_use]
    pub fn version(&self) -> u32 {
        let entries = self.pages.iter().flat_map(|page| &page.entries);
        let version = |entry: &Entry| match &entry.event {
            Event::Start { version, .. } | Event::Continued { version, .. } => Some(*version),
            _ => None,
        };
        entries.filter_map(version).next().unwrap_or_default()
    }

    pub(crate) fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// The journal as a text, which [`from_json`](Self::from_json) reads.
    ///
    /// # Errors
    /// If a value in it is no JSON, which no flow writes.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut entries: Vec<TextEntry> = Vec::new();
        // Those of a run that goes on do not begin with 0.
        let seqs: Vec<u64> = self.pages.iter().flat_map(|page| &page.entries).map(|entry| entry.seq).collect();
        for entry in self.pages.iter().flat_map(|page| &page.entries) {
            let mut event = TextEvent::of(&entry.event)?;
            if let TextEvent::Continued { carried, .. } = &mut event {
                for seq in carried.iter_mut().flat_map(|one| &mut one.unread) {
                    *seq = seqs.partition_point(|known| known < seq) as u64;
                }
            }
            entries.push(TextEntry { at: entry.at, event, begun: Vec::new() });
        }
        let (begun, settled_to, _) = begun_of(&mut self.pages.clone());
        for Settled { seq, begun } in begun {
            let entry = seqs.binary_search(&seq).ok().and_then(|at| entries.get_mut(at));
            let entry =
                entry.ok_or_else(|| serde_json::Error::custom("something was begun by an entry that is not there"))?;
            entry.begun = begun.iter().map(TextBegun::of).collect();
        }
        let ended = self.pages.iter().find_map(|page| page.ended.as_ref()).map(TextEnded::of);
        let text = Text {
            format: FORMAT,
            flow: self.name.clone(),
            id: self.id.clone(),
            settled: seqs.partition_point(|seq| *seq < settled_to) as u64,
            entries,
            ended: ended.transpose()?,
        };
        serde_json::to_string_pretty(&text)
    }

    /// The journal that a text tells of.
    ///
    /// # Errors
    /// If it is none, or of a newer format.
    pub fn from_json(text: &str) -> Result<Journal, serde_json::Error> {
        let Format { format } = serde_json::from_str(text)?;
        if !(1..=FORMAT).contains(&format) {
            let message = format!("the journal has format {format}, and this program reads formats up to {FORMAT}");
            return Err(serde_json::Error::custom(message));
        }
        let text: Text = serde_json::from_str(text)?;
        let mut page = Page { settled_to: text.settled, ..Page::default() };
        for (seq, entry) in (0..).zip(text.entries) {
            page.entries.push(Entry { seq, at: entry.at, event: entry.event.read()? });
            if !entry.begun.is_empty() {
                let begun = entry.begun.into_iter().map(TextBegun::read).collect::<Result<_, _>>()?;
                page.settled.push(Settled { seq, begun });
            }
        }
        page.ended = text.ended.map(|ended| match ended {
            TextEnded::Done(value) => Ended::Done(bytes_of(&value)),
            TextEnded::Failed(error) => Ended::Failed(error.into()),
            TextEnded::Cancelled => Ended::Cancelled,
        });
        Ok(Journal { name: text.flow, id: text.id, pages: vec![page] })
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Text {
    format: u32,
    flow: String,
    id: String,
    settled: u64,
    entries: Vec<TextEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<TextEnded>,
}

#[derive(Serialize, Deserialize)]
struct TextEntry {
    at: Timestamp,
    event: TextEvent,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    begun: Vec<TextBegun>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TextEvent {
    Start {
        version: u32,
        run: u32,
        seed: String,
        input: Box<RawValue>,
    },
    Result {
        step: String,
        value: Box<RawValue>,
    },
    Failure {
        step: String,
        error: String,
        attempts: u32,
    },
    Interrupted {
        step: String,
    },
    TooLarge {
        step: String,
        bytes: u64,
    },
    Attempt {
        step: String,
        attempt: u32,
        error: String,
        again_at: Timestamp,
    },
    Intent {
        step: String,
    },
    Message {
        callback: String,
        id: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<(String, String)>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body_hex: Option<String>,
    },
    Fired {
        timer: String,
    },
    Cancel,
    ChildEnded {
        child: String,
        outcome: TextOutcome,
    },
    Posted {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        starts: Vec<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cancels: Vec<String>,
    },
    Continued {
        version: u32,
        run: u32,
        seed: String,
        input: Box<RawValue>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        carried: Vec<TextCarried>,
    },
}

#[derive(Serialize, Deserialize)]
struct TextCarried {
    name: String,
    run: u32,
    opened_as: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unread: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TextOutcome {
    Done(Box<RawValue>),
    Failed(String),
    Cancelled,
    Purged,
    TooLarge(u64),
    Conflict,
    Unknown(String),
    Refused(String),
}

#[derive(Serialize, Deserialize)]
struct TextBegun {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TextEnded {
    Done(Box<RawValue>),
    Failed(String),
    Cancelled,
}

impl TextEvent {
    fn of(event: &Event) -> Result<TextEvent, serde_json::Error> {
        Ok(match event {
            Event::Start { version, run, seed, input } => {
                TextEvent::Start { version: *version, run: *run, seed: format!("{seed:016x}"), input: json(input)? }
            }
            Event::Result { step, outcome } => {
                let step = step.to_string();
                match outcome {
                    StepOutcome::Done(value) => TextEvent::Result { step, value: json(value)? },
                    StepOutcome::Failed { error, attempts } => {
                        TextEvent::Failure { step, error: error.to_string(), attempts: *attempts }
                    }
                    StepOutcome::Interrupted => TextEvent::Interrupted { step },
                    StepOutcome::TooLarge(bytes) => TextEvent::TooLarge { step, bytes: *bytes },
                }
            }
            Event::Attempt { step, attempt, error, again_at } => TextEvent::Attempt {
                step: step.to_string(),
                attempt: *attempt,
                error: error.to_string(),
                again_at: *again_at,
            },
            Event::Intent { step } => TextEvent::Intent { step: step.to_string() },
            Event::Message { callback, message } => {
                let body = String::from_utf8(message.body.to_vec());
                let (body, body_hex) = match body {
                    Ok(text) => (Some(text), None),
                    Err(_) => (None, Some(hex(&message.body))),
                };
                let (callback, id) = (callback.to_string(), message.id.to_string());
                let headers = message.headers.iter();
                let headers = headers.map(|(name, value)| (name.to_string(), value.to_string())).collect();
                TextEvent::Message { callback, id, headers, body, body_hex }
            }
            Event::Fired { timer } => TextEvent::Fired { timer: timer.to_string() },
            Event::Cancel => TextEvent::Cancel,
            Event::ChildEnded { child, outcome } => {
                TextEvent::ChildEnded { child: child.to_string(), outcome: TextOutcome::of(outcome)? }
            }
            Event::Posted { starts, cancels } => {
                let texts = |keys: &[Key]| keys.iter().map(ToString::to_string).collect();
                TextEvent::Posted { starts: texts(starts), cancels: texts(cancels) }
            }
            Event::Continued { version, run, seed, input, carried } => {
                let carried = carried.iter().map(|one| TextCarried {
                    name: one.key.to_string(),
                    run: one.run,
                    opened_as: one.callback.to_string(),
                    unread: one.unread.clone(),
                });
                let (seed, carried) = (format!("{seed:016x}"), carried.collect());
                TextEvent::Continued { version: *version, run: *run, seed, input: json(input)?, carried }
            }
        })
    }

    fn read(self) -> Result<Event, serde_json::Error> {
        let result = |step: String, outcome| Event::Result { step: step.into(), outcome };
        Ok(match self {
            TextEvent::Start { version, run, seed, input } => {
                Event::Start { version, run, seed: number_of(&seed)?, input: bytes_of(&input) }
            }
            TextEvent::Result { step, value } => result(step, StepOutcome::Done(bytes_of(&value))),
            TextEvent::Failure { step, error, attempts } => {
                result(step, StepOutcome::Failed { error: error.into(), attempts })
            }
            TextEvent::Interrupted { step } => result(step, StepOutcome::Interrupted),
            TextEvent::TooLarge { step, bytes } => result(step, StepOutcome::TooLarge(bytes)),
            TextEvent::Attempt { step, attempt, error, again_at } => {
                Event::Attempt { step: step.into(), attempt, error: error.into(), again_at }
            }
            TextEvent::Intent { step } => Event::Intent { step: step.into() },
            TextEvent::Message { callback, id, headers, body, body_hex } => {
                let body = match (body, body_hex) {
                    (Some(text), None) => Bytes::from(text),
                    (None, Some(hex)) => bytes_of_hex(&hex)?,
                    _ => return Err(serde_json::Error::custom("a message has either `body` or `body_hex`")),
                };
                let headers = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
                Event::Message { callback: callback.into(), message: Message { id: id.into(), headers, body } }
            }
            TextEvent::Fired { timer } => Event::Fired { timer: timer.into() },
            TextEvent::Cancel => Event::Cancel,
            TextEvent::ChildEnded { child, outcome } => {
                Event::ChildEnded { child: child.into(), outcome: outcome.read() }
            }
            TextEvent::Posted { starts, cancels } => {
                let keys = |texts: Vec<String>| texts.into_iter().map(Key::from).collect();
                Event::Posted { starts: keys(starts), cancels: keys(cancels) }
            }
            TextEvent::Continued { version, run, seed, input, carried } => {
                let carried = carried.into_iter().map(|one| Carried {
                    key: one.name.into(),
                    run: one.run,
                    callback: one.opened_as.into(),
                    unread: one.unread,
                });
                let (seed, carried) = (number_of(&seed)?, carried.collect());
                Event::Continued { version, run, seed, input: bytes_of(&input), carried }
            }
        })
    }
}

impl TextOutcome {
    fn of(outcome: &ChildOutcome) -> Result<TextOutcome, serde_json::Error> {
        Ok(match outcome {
            ChildOutcome::Done(value) => TextOutcome::Done(json(value)?),
            ChildOutcome::Failed(error) => TextOutcome::Failed(error.to_string()),
            ChildOutcome::Cancelled => TextOutcome::Cancelled,
            ChildOutcome::Purged => TextOutcome::Purged,
            ChildOutcome::TooLarge(bytes) => TextOutcome::TooLarge(*bytes),
            ChildOutcome::Conflict => TextOutcome::Conflict,
            ChildOutcome::Unknown(name) => TextOutcome::Unknown(name.to_string()),
            ChildOutcome::Refused(reason) => TextOutcome::Refused(reason.to_string()),
        })
    }

    fn read(self) -> ChildOutcome {
        match self {
            TextOutcome::Done(value) => ChildOutcome::Done(bytes_of(&value)),
            TextOutcome::Failed(error) => ChildOutcome::Failed(error.into()),
            TextOutcome::Cancelled => ChildOutcome::Cancelled,
            TextOutcome::Purged => ChildOutcome::Purged,
            TextOutcome::TooLarge(bytes) => ChildOutcome::TooLarge(bytes),
            TextOutcome::Conflict => ChildOutcome::Conflict,
            TextOutcome::Unknown(name) => ChildOutcome::Unknown(name.into()),
            TextOutcome::Refused(reason) => ChildOutcome::Refused(reason.into()),
        }
    }
}

impl TextBegun {
    fn of(begun: &Begun) -> TextBegun {
        let name = begun.key.to_string();
        match begun.detail {
            Detail::None => TextBegun { name, input: None, due: None },
            Detail::Input(hash) => TextBegun { name, input: Some(format!("{hash:016x}")), due: None },
            Detail::Due(due) => TextBegun { name, input: None, due: Some(due) },
        }
    }

    fn read(self) -> Result<Begun, serde_json::Error> {
        let detail = match (self.input, self.due) {
            (None, None) => Detail::None,
            (Some(hash), None) => Detail::Input(number_of(&hash)?),
            (None, Some(due)) => Detail::Due(due),
            (Some(_), Some(_)) => {
                return Err(serde_json::Error::custom("something begun has `input` or `due`, not both"));
            }
        };
        Ok(Begun { key: self.name.into(), detail })
    }
}

impl TextEnded {
    fn of(ended: &Ended) -> Result<TextEnded, serde_json::Error> {
        Ok(match ended {
            Ended::Done(value) => TextEnded::Done(json(value)?),
            Ended::Failed(error) => TextEnded::Failed(error.to_string()),
            Ended::Cancelled => TextEnded::Cancelled,
        })
    }
}

/// The value as it is, to its last byte.
fn json(value: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::from_slice(value)
}

fn bytes_of(value: &RawValue) -> Bytes {
    Bytes::copy_from_slice(value.get().as_bytes())
}

fn number_of(hex: &str) -> Result<u64, serde_json::Error> {
    u64::from_str_radix(hex, 16).map_err(serde_json::Error::custom)
}

fn bytes_of_hex(hex: &str) -> Result<Bytes, serde_json::Error> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16);
    let byte = |pair: &[u8]| u8::try_from(digit(&pair[0])? << 4 | digit(pair.get(1)?)?).ok();
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
    bytes.map(Bytes::from).ok_or_else(|| serde_json::Error::custom("`body_hex` is to be pairs of hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{full_page, page_of_a_continued_run, page_of_children};
    use super::*;

    #[test]
    fn a_journal_with_everything_that_there_is_comes_back_from_its_text() {
        let mut page = full_page();
        page.entries.push(Entry {
            seq: 10,
            at: Timestamp::from_millis(1_700_000_000_010),
            event: Event::Message {
                callback: "callback:raw#0".into(),
                message: Message { id: "m-2".into(), headers: Vec::new(), body: Bytes::from_static(&[0, 0xff, 0x7f]) },
            },
        });
        for ended in [
            None,
            Some(Ended::Done(Bytes::from_static(b"{\"b\":1.50,\"a\":[ ]}"))),
            Some(Ended::Cancelled),
            page.ended.clone(),
        ] {
            let journal = Journal::new("order", "17", vec![Page { ended, ..page.clone() }]);
            let text = journal.to_json().unwrap();
            assert_eq!(Journal::from_json(&text).unwrap(), journal, "{text}");
            assert_eq!(journal.version(), 2);
        }
    }

    #[test]
    fn a_journal_about_children_comes_back_from_its_text() {
        let journal = Journal::new("order", "17", vec![page_of_children()]);
        let text = journal.to_json().unwrap();
        assert_eq!(Journal::from_json(&text).unwrap(), journal, "{text}");
    }

    #[test]
    fn a_journal_of_a_continued_run_is_the_same_journal_when_it_comes_back_from_its_text() {
        let journal = Journal::new("order", "17", vec![page_of_a_continued_run()]);
        let text = journal.to_json().unwrap();
        let again = Journal::from_json(&text).unwrap();
        assert_eq!(again.to_json().unwrap(), text);
        assert_eq!(again.version(), 2);
        let seqs: Vec<u64> = again.pages()[0].entries.iter().map(|entry| entry.seq).collect();
        assert_eq!((seqs, again.pages()[0].settled[0].seq, again.pages()[0].settled_to), (vec![0, 1, 2], 2, 3));
        let Event::Continued { carried, .. } = &again.pages()[0].entries[2].event else { panic!("{text}") };
        assert_eq!(carried[0].unread, [0, 1], "by their numbers there");
    }

    #[test]
    fn a_text_of_a_newer_format_says_so_whatever_else_is_in_it() {
        let newer = Journal::from_json("{\"format\": 2, \"something\": \"new\"}").unwrap_err();
        assert_eq!(newer.to_string(), "the journal has format 2, and this program reads formats up to 1");
        assert!(Journal::from_json("{}").is_err() && Journal::from_json("").is_err());
        assert!(
            bytes_of_hex("0").is_err()
                && bytes_of_hex("0g").is_err()
                && bytes_of_hex("+1").is_err()
                && bytes_of_hex("ää").is_err()
        );
    }
}
