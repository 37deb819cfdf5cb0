//! The keys under which an instance has answered, and the rows in which their replies are kept.
//!
//! A ledger holds *every* key whose reply is kept, and none else; a key has a number, which rises from one to the next, and the lowest number is
//! forgotten first. The rows are the library's own: they lie beside the instance's storage, under its interface's name and a `!`, where no
//! handler sees them. They are written in the commit of the handler that answered, and what is forgotten goes in such a commit too. Nothing
//! here reads a clock or does I/O.

#[cfg(all(test, not(shuttle)))]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::ContextError;
use crate::id::{beside, check_id};
use crate::store::{DamageReason, Damaged, InstanceName, Op, ShardId, StoreError};
use crate::sync::Arc;

/// The prefix of the rows that say which keys there are.
pub(crate) const KEYS: &str = "once/key/";
/// The prefix of the rows that hold their replies.
const REPLIES: &str = "once/reply/";

/// The form of a row that says which key there is.
const VERSION: u32 = 1;

/// The most keys that are forgotten with one answer, so that no commit is long for it: more than one, so that what is over its limit comes down.
const MOST_FORGOTTEN: usize = 16;

/// The most by which the clocks of hosts that answer are taken to differ, for what may have been forgotten.
const SKEW: Duration = Duration::from_secs(1);

/// The time for which replies are kept, and their number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    pub(crate) time: Duration,
    /// The most replies that are kept for each instance.
    pub(crate) most: usize,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep { time: Duration::from_secs(24 * 3600), most: 10_000 }
    }
}

/// The digest of a message: the 128 bits of XXH3 (Collet, xxHash 0.8) of its JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digest(u128);

impl Digest {
    fn of(message: &[u8]) -> Digest {
        Digest(xxhash_rust::xxh3::xxh3_128(message))
    }

    fn from_hex(text: &str) -> Option<Digest> {
        u128::from_str_radix(text, 16).ok().map(Digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A key, and the message that it is used for.
#[derive(Debug, Clone)]
pub(crate) struct OnceKey {
    pub(crate) key: Arc<str>,
    digest: Digest,
    /// The time of this host at which it was first asked by the one that asks again now, who does not know what became of it.
    pub(crate) first: Option<Timestamp>,
}

impl OnceKey {
    /// The key of a message, given as JSON.
    pub(crate) fn new(key: &str, message: &[u8]) -> Result<OnceKey, ContextError> {
        check_id(key).map_err(|reason| ContextError::invalid("request key", key, reason))?;
        Ok(OnceKey { key: key.into(), digest: Digest::of(message), first: None })
    }

    /// As [`new`](Self::new), of a message that another host has sent, `now`; `since` if it was first asked so long ago.
    pub(crate) fn sent(
        key: &str,
        message: &[u8],
        since: Option<Duration>,
        now: Timestamp,
    ) -> Result<OnceKey, ContextError> {
        Ok(OnceKey { first: since.map(|since| now - since), ..OnceKey::new(key, message)? })
    }

    /// The key of the same message, asked again.
    pub(crate) fn again(&self, first: Timestamp) -> OnceKey {
        OnceKey { first: Some(first), ..self.clone() }
    }
}

/// The word of a ledger about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// The key has not been answered under.
    No,
    /// The reply to this message is kept, under this number.
    Reply(u64),
    /// The key is that of another message.
    OtherMessage,
    /// If it was answered under when it was first asked, that is forgotten by now.
    Forgotten,
}

#[derive(Debug)]
struct Entry {
    key: Arc<str>,
    digest: Digest,
    at: Timestamp,
}

/// The keys under which one instance has answered.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: BTreeMap<u64, Entry>,
    numbers: BTreeMap<Arc<str>, u64>,
    /// The latest time of a reply that was forgotten before its time was over.
    forgotten: Option<Timestamp>,
}

/// The rows by which a reply is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) ops: Vec<Op>,
    /// The number of replies that were forgotten before their time, for there are too many.
    pub(crate) early: u64,
}

/// A row that says which key there is.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    v: u32,
    #[serde(borrow)]
    key: std::borrow::Cow<'a, str>,
    digest: String,
    /// Milliseconds since the Unix epoch, by the clock of the host that answered.
    at: i64,
    /// The latest such time of a reply that had been forgotten before its time was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgotten: Option<i64>,
}

/// The version of a row, whatever else there is in it.
#[derive(Deserialize)]
struct Version {
    v: u32,
}

impl Ledger {
    /// Reads the rows of all keys.
    pub(crate) fn read(rows: &[(Arc<str>, Bytes)]) -> Result<Ledger, Unreadable> {
        let mut ledger = Ledger::default();
        for (place, row) in rows {
            let unreadable = |reason| Unreadable { place: place.clone(), reason };
            let (number, entry, forgotten) = read_row(place, row).map_err(unreadable)?;
            ledger.insert(number, entry);
            ledger.forgotten = ledger.forgotten.max(forgotten);
        }
        Ok(ledger)
    }

    fn insert(&mut self, number: u64, entry: Entry) {
        self.numbers.insert(entry.key.clone(), number);
        self.entries.insert(number, entry);
    }

    pub(crate) fn find(&self, asked: &OnceKey) -> Known {
        let Some(number) = self.numbers.get(&asked.key) else {
            // Whatever was answered under since then, and is not here, was forgotten before its time.
            let is_forgotten = |first| self.forgotten.is_some_and(|forgotten| forgotten + SKEW >= first);
            return if asked.first.is_some_and(is_forgotten) { Known::Forgotten } else { Known::No };
        };
        match self.entries.get(number) {
            Some(entry) if entry.digest == asked.digest => Known::Reply(*number),
            _ => Known::OtherMessage,
        }
    }

    /// Keeps a reply, and forgets those that are over the limits by now. `name` is the name of the library's own rows.
    pub(crate) fn keep(
        &mut self,
        asked: OnceKey,
        reply: Bytes,
        now: Timestamp,
        limits: Keep,
        name: &InstanceName,
    ) -> Kept {
        let number = self.entries.last_key_value().map_or(1, |(last, _)| last.saturating_add(1));
        self.insert(number, Entry { key: asked.key.clone(), digest: asked.digest, at: now });
        let (mut forgotten_keys, mut early) = (Vec::new(), 0);
        for _ in 0..MOST_FORGOTTEN {
            let Some(oldest) = self.entries.first_entry().filter(|oldest| *oldest.key() != number) else { break };
            let is_old = now.since(oldest.get().at) >= limits.time;
            if !is_old && self.numbers.len() <= limits.most {
                break;
            }
            let (forgotten, entry) = oldest.remove_entry();
            self.numbers.remove(&entry.key);
            forgotten_keys.push(forgotten);
            if !is_old {
                early += 1;
                self.forgotten = self.forgotten.max(Some(entry.at));
            }
        }
        let row = Row {
            v: VERSION,
            key: (&*asked.key).into(),
            digest: asked.digest.to_string(),
            at: now.as_millis(),
            forgotten: self.forgotten.map(Timestamp::as_millis),
        };
        let row = serde_json::to_vec(&row).expect("texts and numbers can be written as JSON");
        let put = |prefix, value| Op::Put { name: name.clone(), key: key_of(prefix, number).into(), value };
        let mut ops = vec![put(KEYS, row.into()), put(REPLIES, reply)];
        for forgotten in forgotten_keys {
            let delete = |prefix| Op::Delete { name: name.clone(), key: key_of(prefix, forgotten).into() };
            ops.extend([delete(KEYS), delete(REPLIES)]);
        }
        Kept { ops, early }
    }
}

/// The name under which the library keeps the rows of an instance.
pub(crate) fn name_of(instance: &InstanceName) -> InstanceName {
    InstanceName { interface: beside(&instance.interface), instance: instance.instance.clone() }
}

/// The storage key of the reply of this number.
pub(crate) fn reply_key(number: u64) -> String {
    key_of(REPLIES, number)
}

/// The key of a row: all are of equal length, so that they are in the order of their numbers.
fn key_of(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:016x}")
}

/// A row that is none.
#[derive(Debug)]
pub(crate) struct Unreadable {
    place: Arc<str>,
    reason: DamageReason,
}

impl Unreadable {
    /// The error of the instance that the row belongs to.
    pub(crate) fn of(self, shard: ShardId, name: &InstanceName) -> ContextError {
        damaged(shard, name, &self.place, self.reason)
    }
}

/// The reply of a key that is known is not there.
pub(crate) fn missing(shard: ShardId, name: &InstanceName, number: u64) -> ContextError {
    damaged(shard, name, &reply_key(number), DamageReason::Undecodable("it is missing".into()))
}

fn damaged(shard: ShardId, name: &InstanceName, key: &str, reason: DamageReason) -> ContextError {
    let place = format!("the row of {name} under {key:?}");
    ContextError::store(StoreError::Damaged(Damaged { shard, place, reason }))
}

fn read_row(place: &str, row: &[u8]) -> Result<(u64, Entry, Option<Timestamp>), DamageReason> {
    let undecodable = |what: &str| DamageReason::Undecodable(what.to_owned());
    let number = place.strip_prefix(KEYS).and_then(|number| u64::from_str_radix(number, 16).ok());
    let number = number.ok_or_else(|| undecodable("its key is no number"))?;
    let Version { v } = serde_json::from_slice(row).map_err(|error| undecodable(&error.to_string()))?;
    if v != VERSION {
        return Err(DamageReason::NewerVersion(v));
    }
    let row: Row<'_> = serde_json::from_slice(row).map_err(|error| undecodable(&error.to_string()))?;
    let Row { key, digest, at, forgotten, .. } = row;
    let digest = Digest::from_hex(&digest).ok_or_else(|| undecodable("its digest is no number"))?;
    let entry = Entry { key: key.into(), digest, at: Timestamp::from_millis(at) };
    Ok((number, entry, forgotten.map(Timestamp::from_millis)))
}
