//! The alarms of one shard, packed: most of them wait for long, and there may be millions.
//!
//! An alarm is one row and one piece of text: instance, ID and meta one behind the other. Both orders, by instance and by time, refer to
//! the same row, and have the same rows. A row is unpacked for whoever reads it.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;

use bytes::Bytes;

use super::items::{ByName, Named, named};
use crate::clock::Timestamp;
use crate::store::{AlarmKey, AlarmRow, Attempts, InstanceName, Revision};
use crate::sync::Arc;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Alarms {
    by_name: BTreeSet<ByName<Packed>>,
    by_due: BTreeSet<ByDue>,
}

struct Packed {
    interface: Arc<str>,
    /// The instance's ID, the alarm's, and the meta.
    text: Box<[u8]>,
    /// The ends of the first two.
    instance_end: u32,
    id_end: u32,
    due: Timestamp,
    revision: Revision,
    /// `None` if it was never tried or moved, as most: then it is due when it was set for.
    tried: Option<Box<Tried>>,
}

/// 88 bytes with its two reference counts, the most that the system's allocator has room for in a piece of 96.
const _: () = assert!(size_of::<Packed>() == 72);

struct Tried {
    scheduled_at: Timestamp,
    attempts: Attempts,
}

impl Packed {
    fn of(row: &AlarmRow) -> Packed {
        let AlarmRow { name, id, due, scheduled_at, revision, attempts, meta } = row;
        let is_as_set = scheduled_at == due && *attempts == Attempts::default();
        let end = |end: usize| u32::try_from(end).expect("IDs are of a few kilobytes at most");
        Packed {
            interface: name.interface.clone(),
            text: [name.instance.as_bytes(), id.as_bytes(), meta].concat().into(),
            instance_end: end(name.instance.len()),
            id_end: end(name.instance.len() + id.len()),
            due: *due,
            revision: *revision,
            tried: (!is_as_set).then(|| Box::new(Tried { scheduled_at: *scheduled_at, attempts: attempts.clone() })),
        }
    }

    fn unpacked(&self) -> AlarmRow {
        let text = |bytes| str::from_utf8(bytes).expect("it was a text when it was packed");
        let (_, instance, id) = self.parts();
        let (scheduled_at, attempts) = match self.tried.as_deref() {
            Some(Tried { scheduled_at, attempts }) => (*scheduled_at, attempts.clone()),
            None => (self.due, Attempts::default()),
        };
        AlarmRow {
            name: InstanceName { interface: self.interface.clone(), instance: text(instance).into() },
            id: text(id).into(),
            due: self.due,
            scheduled_at,
            revision: self.revision,
            attempts,
            meta: Bytes::copy_from_slice(&self.text[self.id_end as usize..]),
        }
    }
}

impl Named for Packed {
    fn parts(&self) -> (&[u8], &[u8], &[u8]) {
        let (instance, id) = self.text[..self.id_end as usize].split_at(self.instance_end as usize);
        (self.interface.as_bytes(), instance, id)
    }
}

/// A row, or the key of one, in the order of firing.
trait Timed: Named {
    fn due(&self) -> Timestamp;
}

impl Timed for AlarmKey {
    fn due(&self) -> Timestamp {
        self.due
    }
}

impl Named for AlarmKey {
    fn parts(&self) -> (&[u8], &[u8], &[u8]) {
        named(&self.name, &self.id)
    }
}

struct ByDue(Arc<Packed>);

impl Named for ByDue {
    fn parts(&self) -> (&[u8], &[u8], &[u8]) {
        self.0.parts()
    }
}

impl Timed for ByDue {
    fn due(&self) -> Timestamp {
        self.0.due
    }
}

impl Ord for dyn Timed + '_ {
    fn cmp(&self, other: &(dyn Timed + '_)) -> Ordering {
        self.due().cmp(&other.due()).then_with(|| self.parts().cmp(&other.parts()))
    }
}

impl PartialOrd for dyn Timed + '_ {
    fn partial_cmp(&self, other: &(dyn Timed + '_)) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Timed + '_ {
    fn eq(&self, other: &(dyn Timed + '_)) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn Timed + '_ {}

impl<'a> Borrow<dyn Timed + 'a> for ByDue {
    fn borrow(&self) -> &(dyn Timed + 'a) {
        self
    }
}

impl Ord for ByDue {
    fn cmp(&self, other: &ByDue) -> Ordering {
        (self as &dyn Timed).cmp(other)
    }
}

impl PartialOrd for ByDue {
    fn partial_cmp(&self, other: &ByDue) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByDue {
    fn eq(&self, other: &ByDue) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByDue {}

impl Alarms {
    /// Puts a row in the place of one of the same identity, unless that has a greater revision.
    pub(super) fn put(&mut self, row: &AlarmRow) {
        let stored = self.by_name.get(&(&row.name, &row.id) as &dyn Named).map(|stored| stored.0.clone());
        if stored.as_ref().is_some_and(|stored| stored.revision > row.revision) {
            return;
        }
        let packed = Arc::new(Packed::of(row));
        self.by_name.replace(ByName(packed.clone()));
        self.by_due.replace(ByDue(packed));
        // Its old place, unless that is the new one. Not before: the order is seldom empty in between.
        if let Some(stored) = stored.filter(|stored| stored.due != row.due) {
            self.by_due.remove(&ByDue(stored));
        }
    }

    /// Removes the row of this identity, unless it has a greater revision.
    pub(super) fn remove(&mut self, name: &InstanceName, id: &Arc<str>, revision: Revision) {
        let key = &(name, id) as &dyn Named;
        if self.by_name.get(key).is_some_and(|stored| stored.0.revision <= revision)
            && let Some(ByName(stored)) = self.by_name.take(key)
        {
            self.by_due.remove(&ByDue(stored));
        }
    }

    /// The rows behind a key, or all, in the order of firing.
    pub(super) fn after(&self, key: Option<&AlarmKey>) -> impl Iterator<Item = AlarmRow> {
        let from = key.map_or(Bound::Unbounded, |key| Bound::Excluded(key as &dyn Timed));
        self.by_due.range::<dyn Timed + '_, _>((from, Bound::Unbounded)).map(|row| row.0.unpacked())
    }

    /// The rows of an instance from an ID on, by ID.
    pub(super) fn of(&self, name: &InstanceName, from: &Arc<str>) -> impl Iterator<Item = AlarmRow> {
        let from = Bound::Included(&(name, from) as &dyn Named);
        let rows = self.by_name.range::<dyn Named + '_, _>((from, Bound::Unbounded)).map(|row| row.0.unpacked());
        rows.take_while(move |row| row.name == *name)
    }
}
