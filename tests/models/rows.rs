//! The rows of the model: few names, IDs, times and contents, so that steps meet, and such as are alike.

use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::Timestamp;
use stable_interfaces::store::{
    AlarmKey, AlarmRow, Attempts, DeadKey, DeadLetter, DeadRow, Epoch, InboxKey, InboxRow, InstanceName, Revision,
};

pub(super) const SHARDS: u32 = 3;
/// The number of lives of hosts that there are at once: every other one of the same host.
pub(super) const LIVES: u64 = 6;
/// Few, so that steps meet, and such as are alike.
pub(super) const NAMES: [(&str, &str); 3] = [("order", "a"), ("order", "ab"), ("order-2", "a")];
pub(super) const IDS: [&str; 7] = ["a", "ab", "A", "a:b", "d", "é", "\u{10ffff}"];

pub(super) const TIMES: [Timestamp; 6] = [
    Timestamp::MIN,
    Timestamp::from_millis(-1),
    Timestamp::UNIX_EPOCH,
    Timestamp::from_millis(255),
    Timestamp::from_millis(256),
    Timestamp::MAX,
];

pub(super) const TEXTS: [&str; 4] = ["", "no", "\u{1}\"'\\", "ü\n\u{10ffff}"];
pub(super) const CONTENTS: [&[u8]; 4] = [b"null", b"{\"a\": [1, 2.50]}", b"\"\\u0000 text\"", b"0"];
pub(super) const BODIES: [&[u8]; 4] = [b"", b"\0\xff\x01", b"text", b"{}"];

pub(super) fn name(who: usize) -> InstanceName {
    let (interface, instance) = NAMES[who % NAMES.len()];
    InstanceName { interface: interface.into(), instance: instance.into() }
}

pub(super) fn id(id: usize) -> Arc<str> {
    IDS[id % IDS.len()].into()
}

pub(super) fn time(time: usize) -> Timestamp {
    TIMES[time % TIMES.len()]
}

pub(super) fn host_of(life: u64) -> &'static str {
    ["host-a", "host-b"][usize::from(life % 2 == 1)]
}

/// The owner and the name: the identity of an alarm, a message, or a storage value.
pub(super) type Item = (InstanceName, Arc<str>);

/// The part that rows of both kinds have beside their identity.
#[derive(Debug, Clone)]
pub(crate) struct Rest {
    pub(super) attempt: u32,
    pub(super) crashes: u32,
    pub(super) started: bool,
    pub(super) error: Option<usize>,
    pub(super) content: usize,
}

pub(super) fn alarm_row(who: usize, alarm: usize, due: usize, revision: (u64, u64), rest: &Rest) -> AlarmRow {
    AlarmRow {
        name: name(who),
        id: id(alarm),
        due: time(due),
        scheduled_at: time(due + 1),
        revision: Revision { epoch: Epoch(revision.0), counter: revision.1 },
        attempts: Attempts {
            failed: rest.attempt,
            crashes: rest.crashes,
            started: rest.started,
            last_error: rest.error.map(|error| TEXTS[error].into()),
        },
        meta: Bytes::from_static(CONTENTS[rest.content]),
    }
}

pub(super) fn inbox_row(item: &Item, arrived: Timestamp, due: Timestamp, progress: &Rest, body: usize) -> InboxRow {
    InboxRow {
        name: item.0.clone(),
        id: item.1.clone(),
        arrived,
        due,
        attempts: Attempts {
            failed: progress.attempt,
            crashes: progress.crashes,
            started: progress.started,
            last_error: progress.error.map(|error| TEXTS[error].into()),
        },
        headers: headers(body),
        body: Bytes::from_static(BODIES[body]),
    }
}

pub(super) fn headers(body: usize) -> Vec<(String, String)> {
    TEXTS[..body].iter().map(|text| (format!("h{text}"), (*text).to_owned())).collect()
}

pub(super) fn letter(who: usize, of: usize, died: usize, is_message: bool, rest: &Rest) -> DeadLetter {
    let row = if is_message {
        DeadRow::Message(inbox_row(&(name(who), id(of)), time(died + 1), time(died + 2), rest, rest.content))
    } else {
        DeadRow::Alarm(alarm_row(who, of, died + 1, (2, 3), rest))
    };
    DeadLetter { died_at: time(died), reason: TEXTS[rest.content].into(), row }
}

pub(super) fn dead_key(who: usize, of: usize, died: usize, is_message: bool) -> DeadKey {
    DeadKey { died_at: time(died), name: name(who), is_message, id: id(of) }
}

/// A row of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    Alarm(AlarmRow),
    Message(InboxRow),
    Dead(DeadLetter),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Alarm(AlarmKey),
    Message(InboxKey),
    Dead(DeadKey),
}

impl Stored {
    pub(super) fn key(&self) -> Key {
        match self {
            Stored::Alarm(row) => Key::Alarm(row.key()),
            Stored::Message(row) => Key::Message(row.key()),
            Stored::Dead(letter) => Key::Dead(letter.key()),
        }
    }
}
