//! Steps: questions to a store, one after the other, and the way in which they are drawn.

use std::collections::BTreeMap;

use proptest::prelude::*;
use stable_interfaces::store::ClaimKind;

use super::rows::{BODIES, CONTENTS, IDS, NAMES, Rest, TEXTS, TIMES};

/// An operation, of which the store's own times are not known.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    PutAlarm {
        who: usize,
        id: usize,
        due: usize,
        revision: (u64, u64),
        rest: Rest,
    },
    RemoveAlarm {
        who: usize,
        id: usize,
        revision: (u64, u64),
    },
    PutMessage {
        who: usize,
        id: usize,
        due: usize,
        rest: Rest,
    },
    /// If `other`, under another arrival than it has.
    RemoveMessage {
        who: usize,
        id: usize,
        other: bool,
    },
    PutDead {
        who: usize,
        id: usize,
        died: usize,
        is_message: bool,
        rest: Rest,
    },
    RemoveDead {
        who: usize,
        id: usize,
        died: usize,
        is_message: bool,
    },
    Put {
        who: usize,
        key: usize,
        value: usize,
    },
    Delete {
        who: usize,
        key: usize,
    },
}

impl Change {
    /// The target, which no two operations of a batch may share.
    pub(super) fn target(&self) -> (u8, usize, usize, usize) {
        match *self {
            Change::PutAlarm { who, id, .. } | Change::RemoveAlarm { who, id, .. } => (0, who, id, 0),
            Change::PutMessage { who, id, .. } | Change::RemoveMessage { who, id, .. } => (1, who, id, 0),
            Change::PutDead { who, id, died, is_message, .. } | Change::RemoveDead { who, id, died, is_message } => {
                (2 + u8::from(is_message), who, id, died)
            }
            Change::Put { who, key, .. } | Change::Delete { who, key } => (4, who, key, 0),
        }
    }
}

/// The epoch under which a batch is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Under {
    /// The one its writer was granted last.
    Granted,
    /// The one the shard has, whoever was granted it.
    Newest,
    Future,
}

/// The number of a write.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Number {
    /// So much above the last of its lane.
    Next(u64),
    /// The last write of the lane comes again.
    Repeated,
    /// One that so many have overtaken comes again.
    Overtaken(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Alarms,
    Inbox,
    Dead,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Claim {
        life: u64,
        shards: Vec<u32>,
        /// Those of them that it has had and gives up, to be granted them under a greater epoch.
        gives_up: Vec<u32>,
        is_long: bool,
        kind: ClaimKind,
        is_configured_otherwise: bool,
    },
    Renew {
        life: u64,
        is_long: bool,
    },
    Release {
        life: u64,
        shards: Vec<u32>,
        /// Under an epoch that is so much older than the shard's; `None` under whichever it is owned.
        back: Option<u64>,
    },
    Commit {
        life: u64,
        lane: u16,
        number: Number,
        batches: BTreeMap<u32, (Under, Vec<Change>)>,
    },
    Post(Vec<(u32, usize, usize, usize)>),
    /// Each page: of which shard and kind, after which of its rows, and how many.
    Load(Vec<(u32, Kind, Option<usize>, usize)>),
    Read {
        shard: u32,
        who: usize,
        is_storage: bool,
        from: usize,
        to: Option<usize>,
        limit: usize,
    },
    /// The store is closed and opened again.
    Reopen,
}

pub(super) fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Alarms), Just(Kind::Inbox), Just(Kind::Dead)]
}

pub(super) fn rest() -> impl Strategy<Value = Rest> {
    let count = || prop_oneof![3 => 0..3_u32, 1 => Just(u32::MAX)];
    let error = proptest::option::of(0..TEXTS.len());
    (count(), count(), any::<bool>(), error, 0..CONTENTS.len())
        .prop_map(|(attempt, crashes, started, error, content)| Rest { attempt, crashes, started, error, content })
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    let at = 0..TIMES.len();
    let item = || (0..NAMES.len(), 0..IDS.len());
    let revision = || (1..4_u64, prop_oneof![4 => 0..4_u64, 1 => Just(i64::MAX.unsigned_abs())]);
    prop_oneof![
        6 => (item(), at.clone(), revision(), rest()).prop_map(|((who, id), due, revision, rest)| {
            Change::PutAlarm { who, id, due, revision, rest }
        }),
        3 => (item(), revision()).prop_map(|((who, id), revision)| Change::RemoveAlarm { who, id, revision }),
        2 => (item(), at.clone(), rest()).prop_map(|((who, id), due, rest)| Change::PutMessage { who, id, due, rest }),
        2 => (item(), prop::bool::weighted(0.2)).prop_map(|((who, id), other)| {
            Change::RemoveMessage { who, id, other }
        }),
        2 => (item(), at.clone(), any::<bool>(), rest()).prop_map(|((who, id), died, is_message, rest)| {
            Change::PutDead { who, id, died, is_message, rest }
        }),
        1 => (item(), at, any::<bool>()).prop_map(|((who, id), died, is_message)| {
            Change::RemoveDead { who, id, died, is_message }
        }),
        4 => (item(), 0..BODIES.len()).prop_map(|((who, key), value)| Change::Put { who, key, value }),
        2 => item().prop_map(|(who, key)| Change::Delete { who, key }),
    ]
}
