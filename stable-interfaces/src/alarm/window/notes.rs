//! Notes of changes to a window's alarms while a page of it was loading.
//!
//! The page may have been read before or after any of it, so for every alarm that was put or removed since the page was
//! begun the notes, not the page, say what is true; unless the page has a greater revision than the notes, whose commit is
//! then still on its way. A put beyond the horizon is kept here, because the merged horizon may reach it.

use std::collections::BTreeMap;
use std::mem;

use hashbrown::HashTable;

use super::size;
use crate::clock::Timestamp;
use crate::store::{AlarmKey, AlarmRow, InstanceName, Revision};
use crate::sync::Arc;

#[derive(Debug)]
pub(super) struct Notes {
    /// One for each alarm that was put or removed.
    notes: HashTable<Note>,
    /// Alarms that were put beyond the horizon and are still there, all of them below the ceiling.
    late: BTreeMap<AlarmKey, Arc<AlarmRow>>,
    /// The least key of which the row was not kept for want of room. From here on there may be alarms that nobody noted.
    ceiling: Option<AlarmKey>,
    /// The most rows in `late`, and the most bytes. With more than that below a ceiling, the window would drop what is above it anyway.
    cap: usize,
    cap_bytes: usize,
    /// The bytes of the rows in `late`.
    bytes: usize,
}

#[derive(Debug)]
struct Note {
    hash: u64,
    name: InstanceName,
    id: Arc<str>,
    /// The greatest revision put or removed. What the page has of it or of an older one is out of date.
    newest: Revision,
    /// Due time and revision of the alarm, if it was put beyond the horizon.
    late: Option<(Timestamp, Revision)>,
}

impl Notes {
    pub(super) fn new(cap: usize, cap_bytes: usize) -> Notes {
        Notes { notes: HashTable::new(), late: BTreeMap::new(), ceiling: None, cap, cap_bytes, bytes: 0 }
    }

    fn take_late(&mut self, key: &AlarmKey) {
        self.bytes -= self.late.remove(key).map_or(0, |row| size(&row));
    }

    /// Notes a put, whose row the window itself keeps if it is `within` the horizon. `false` if a greater revision stays.
    pub(super) fn put(&mut self, hash: u64, row: &Arc<AlarmRow>, within: bool) -> bool {
        let note = note(&mut self.notes, hash, &row.name, &row.id, row.revision);
        if note.late.is_some_and(|(_, revision)| revision > row.revision) {
            return false;
        }
        let before = mem::replace(&mut note.late, (!within).then_some((row.due, row.revision)));
        if let Some((due, _)) = before {
            self.take_late(&AlarmKey { due, ..row.key() });
        }
        if !within && !self.is_above(row) {
            self.bytes += size(row);
            self.late.insert(row.key(), row.clone());
            while self.late.len() > self.cap || self.bytes > self.cap_bytes {
                let Some((key, dropped)) = self.late.pop_last() else { break };
                self.bytes -= size(&dropped);
                self.ceiling = Some(key);
            }
        }
        true
    }

    /// Notes a removal of this revision and older ones.
    pub(super) fn remove(&mut self, hash: u64, name: &InstanceName, id: &str, revision: Revision) {
        let note = note(&mut self.notes, hash, name, id, revision);
        if let Some((due, _)) = note.late.take_if(|(_, late)| *late <= revision) {
            let key = AlarmKey { due, name: note.name.clone(), id: note.id.clone() };
            self.take_late(&key);
        }
    }

    /// Tells whether a row of the page is not to be used.
    pub(super) fn supersede(&self, hash: u64, row: &AlarmRow) -> bool {
        self.notes.find(hash, |note| note.is(&row.name, &row.id)).is_some_and(|note| note.newest >= row.revision)
            || self.is_above(row)
    }

    /// The alarms put beyond the horizon, and the key from which on there may be others.
    pub(super) fn into_late(self) -> (BTreeMap<AlarmKey, Arc<AlarmRow>>, Option<AlarmKey>) {
        (self.late, self.ceiling)
    }

    #[cfg(test)]
    pub(super) fn has_ceiling(&self) -> bool {
        self.ceiling.is_some()
    }

    fn is_above(&self, row: &AlarmRow) -> bool {
        self.ceiling.as_ref().is_some_and(|ceiling| row.key() >= *ceiling)
    }
}

impl Note {
    fn is(&self, name: &InstanceName, id: &str) -> bool {
        *self.id == *id && self.name == *name
    }
}

/// The note of this alarm, new or not, now of at least this revision.
fn note<'a>(
    notes: &'a mut HashTable<Note>,
    hash: u64,
    name: &InstanceName,
    id: &str,
    revision: Revision,
) -> &'a mut Note {
    let note = notes
        .entry(hash, |note| note.is(name, id), |note| note.hash)
        .or_insert_with(|| Note { hash, name: name.clone(), id: id.into(), newest: revision, late: None })
        .into_mut();
    note.newest = note.newest.max(revision);
    note
}
