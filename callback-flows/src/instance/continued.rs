//! The switch of a flow to its next run: one small commit, and the rows that are left over go later.
//!
//! Pages of the journal go on being numbered, and the status says with which one the run begins. Those before it are removed in pieces, but for
//! those with messages that the run has taken over: they stay where they are. The IDs of calls that were taken are kept in rows of
//! their own, for callbacks that go along, and for the flow's life.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stable_interfaces::{Alarm, Context, KeyRange};

use super::write::{ROW_BYTES, put_page, put_rows};
use super::{FlowInstance, Going, Loaded, TurnError};
use crate::by_name::ByName;
use crate::engine::is_signal;
use crate::flows::journals::{PAGES, carried, page_key, pages_of, taken_over};
use crate::journal::{Carried, Event, Key, Page};
use crate::seldom::{Seldom, Unchanged};

/// The beginning of the keys of rows with IDs of calls that earlier runs have taken. Before [`PAGES`], so that they are read together.
pub(super) const ONCE: &str = "once/";
/// The alarm for what an earlier run has left over.
pub(super) const LEFTOVERS: &str = "leftovers";
/// The most rows that are looked at, and removed, at once.
const AT_ONCE: usize = 250;
/// The number of bytes that are kept of the hash of an ID.
const ID_BYTES: usize = 16;

type Id = [u8; ID_BYTES];

/// The things that a run has from those before it.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// The run's number, and the number of its journal's first page.
    pub(super) run: u32,
    pub(super) first_page: u64,
    earlier: Seldom<Earlier>,
}

/// The things that only a run has that is not the first.
#[derive(Debug, Default)]
struct Earlier {
    /// Callbacks by the addresses that earlier runs have given them.
    addresses: BTreeMap<(u32, Key), Key>,
    /// The IDs of calls that were taken before this run.
    once: BTreeSet<Id>,
    /// The entries with messages that it has taken over.
    messages: BTreeSet<u64>,
}

impl Unchanged for Earlier {
    const UNCHANGED: &'static Earlier =
        &Earlier { addresses: BTreeMap::new(), once: BTreeSet::new(), messages: BTreeSet::new() };
}

/// The place from which leftovers are still to be removed.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Cursor {
    after: String,
}

impl Before {
    /// A first run.
    pub(super) fn none() -> Before {
        Before { run: super::RUN, ..Before::default() }
    }

    /// The things that the run with these pages has. `rows` are those of IDs.
    pub(super) fn of(run: u32, first_page: u64, pages: &[Page], rows: &[(Arc<str>, Bytes)]) -> Before {
        let addresses: BTreeMap<_, _> =
            carried(pages).map(|one| ((one.run, one.callback.clone()), one.key.clone())).collect();
        let ids = rows.iter().flat_map(|(_, row)| row.chunks_exact(ID_BYTES));
        let once: BTreeSet<_> = ids.filter_map(|id| Id::try_from(id).ok()).collect();
        let messages = taken_over(pages);
        let mut before = Before { run, first_page, ..Before::default() };
        if !(addresses.is_empty() && once.is_empty() && messages.is_empty()) {
            *before.earlier.made() = Earlier { addresses, once, messages };
        }
        before
    }

    /// The callback that a message is for, which was given the address of a run, or none; `None` if that is over.
    pub(super) fn callback(&self, run: Option<u32>, callback: &Key) -> Option<Key> {
        let Some(run) = run else { return Some(callback.clone()) };
        let carried = self.earlier.addresses.get(&(run, callback.clone())).cloned();
        carried.or_else(|| (run == self.run).then(|| callback.clone()))
    }

    /// Tells whether an entry is one of those that were taken over.
    pub(super) fn is_older(&self, seq: u64) -> bool {
        self.earlier.messages.contains(&seq)
    }

    /// Tells whether an earlier run has taken the call of this ID.
    pub(super) fn has_taken(&self, run: Option<u32>, callback: &str, id: &str) -> bool {
        !self.earlier.once.is_empty() && self.earlier.once.contains(&hash(run.unwrap_or(0), callback, id))
    }
}

fn hash(run: u32, callback: &str, id: &str) -> Id {
    let hash = Sha256::new().chain_update(run.to_le_bytes()).chain_update(callback).chain_update([0]).chain_update(id);
    hash.finalize()[..ID_BYTES].try_into().expect("32 bytes are more than 16")
}

/// The IDs of calls that a run has taken for what goes along.
fn ids(seen: &ByName<()>, carried: &[(Key, Carried)]) -> BytesMut {
    let carried: HashMap<&str, &Carried> = carried.iter().map(|(key, one)| (&**key, one)).collect();
    let mut ids = BytesMut::new();
    // In an order that each host would write them in.
    let mut seen: Vec<&str> = seen.names().collect();
    seen.sort_unstable();
    for (callback, id) in seen.into_iter().filter_map(|seen| seen.split_once('\0')) {
        if let Some(one) = carried.get(callback) {
            ids.extend_from_slice(&hash(one.run, &one.callback, id));
        } else if is_signal(callback) {
            ids.extend_from_slice(&hash(0, callback, id));
        }
    }
    ids
}

impl FlowInstance {
    /// Begins the next run, if the one that there is has ended so. Says whether it has.
    pub(super) fn switch(&mut self, cx: &mut Context) -> Result<bool, TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(false) };
        let Some(continuation) = going.engine.take_continuation() else { return Ok(false) };
        let run = going.before.run + 1;
        let ids = ids(&going.seen, &continuation.carried).freeze();
        let once = ids.chunks_exact(ID_BYTES).filter_map(|id| Id::try_from(id).ok());
        let once: BTreeSet<_> = going.before.earlier.once.iter().copied().chain(once).collect();
        put_rows(cx, format!("{ONCE}{run:010}/"), ids.clone(), ROW_BYTES - ROW_BYTES % ID_BYTES)?;
        let began_with = going.version;
        let version = self.registry.version_after(&self.name(), began_with, &continuation.input);
        let Loaded::Going(old) = std::mem::replace(&mut self.loaded, Loaded::Absent) else { return Ok(false) };
        let old = *old;
        let taken_along = Page { entries: continuation.messages, ..Page::default() };
        let seed = cx.random().next_u64();
        let carried: Vec<Carried> = continuation.carried.into_iter().map(|(_, carried)| carried).collect();
        let event = Event::Continued { version, run, seed, input: continuation.input, carried };
        let now = cx.now();
        let going = self.begin(cx, (version, run), vec![taken_along])?;
        going.engine.count_from(continuation.next_seq);
        going.engine.append(now, event);
        if continuation.is_cancelled {
            going.engine.append(now, Event::Cancel);
        }
        let (page, _) = going.engine.take_all();
        going.before = Before::of(run, old.pages, std::slice::from_ref(&page), &[]);
        if !once.is_empty() {
            going.before.earlier.made().once = once;
        }
        put_page(cx, old.pages, &page)?;
        going.pages = old.pages;
        going.noted(|| page);
        let Going { started_at, input, stored, mut cold, bell, .. } = old;
        (going.started_at, going.input, going.stored) = (started_at, input, stored);
        if let Some(cold) = cold.there() {
            going.cold.made().said = std::mem::take(&mut cold.said);
        }
        // Another pump brings the turn in which the run begins.
        bell.end();
        cx.set_alarm(LEFTOVERS, now, &Cursor::default())?;
        Ok(true)
    }

    /// Removes a piece of what earlier runs have left over.
    pub(super) async fn clear_leftovers(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let to = page_key(going.before.first_page);
        let Cursor { after } = alarm.meta().unwrap_or_default();
        let from = if after.is_empty() { PAGES.to_owned() } else { format!("{after}\u{1}") };
        let mut rows = cx.list(KeyRange::from(from.as_str()..to.as_str()).limit(AT_ONCE)).await?;
        let is_last = rows.len() < AT_ONCE;
        if !is_last {
            // The last page may be cut.
            let page = |key: &str| key.rsplit_once('/').map_or(key.len(), |(page, _)| page.len());
            let last = rows.last().map_or_else(String::new, |(key, _)| key[..page(key)].to_owned());
            let whole = rows.partition_point(|(key, _)| !key.starts_with(&last));
            if whole > 0 {
                rows.truncate(whole);
            }
        }
        let Some((last, _)) = rows.last() else { return Ok(()) };
        let after = last.to_string();
        for page in rows.chunk_by(|(a, _), (b, _)| a.rsplit_once('/').map(|a| a.0) == b.rsplit_once('/').map(|b| b.0)) {
            // One that cannot be read may have something that is needed.
            let Ok((pages, _)) = pages_of(page.to_vec(), None) else { continue };
            let mut entries = pages.iter().flat_map(|page| &page.entries);
            if !entries.any(|entry| going.before.earlier.messages.contains(&entry.seq)) {
                for (key, _) in page {
                    cx.delete(key)?;
                }
            }
        }
        if !is_last {
            cx.set_alarm(LEFTOVERS, cx.now(), &Cursor { after })?;
        }
        Ok(())
    }
}
