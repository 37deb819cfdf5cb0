//! Group commits and posts, worked out before anything is written.
//!
//! [`Prepared`] is a batch whose rows are encoded: pure, done outside the store's lock. [`Changes`] are the keys and values it comes
//! to, given what the tables hold: made under the lock, at most one lookup for an operation, and either all of a batch or nothing.

use std::collections::HashSet;

use fjall::{PersistMode, UserKey, UserValue};
use stable_interfaces::store::{BoxError, DamageReason, Damaged, InboxRow, NewMessage, Op, Revision, ShardId};
use stable_interfaces::{Posted, StoreError, Timestamp};

use super::directory::{Directory, Table};
use super::key;
use crate::codec::{self, AlarmPlace};

/// The operations of one batch, encoded.
#[derive(Debug)]
pub(super) struct Prepared(Vec<Step>);

#[derive(Debug)]
enum Step {
    PutAlarm { identity: Vec<u8>, place: AlarmPlace, row: UserValue },
    RemoveAlarm { identity: Vec<u8>, revision: Revision },
    PutMessage { key: Vec<u8>, row: InboxRow },
    RemoveMessage { identity: Vec<u8>, arrived: Timestamp },
    Put { table: Table, key: UserKey, value: UserValue },
    Remove { table: Table, key: UserKey },
}

impl Prepared {
    /// Encodes operations on `shard`.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] if one cannot be stored.
    pub(super) fn new(shard: ShardId, ops: &[Op]) -> Result<Prepared, StoreError> {
        ops.iter().map(|op| Step::new(shard, op)).collect::<Result<_, _>>().map(Prepared)
    }
}

impl Step {
    fn new(shard: ShardId, op: &Op) -> Result<Step, StoreError> {
        Ok(match op {
            Op::PutAlarm(alarm) => Step::PutAlarm {
                identity: checked(&[&alarm.name.interface, &alarm.name.instance, &alarm.id], || {
                    key::identity(shard, &alarm.name, &alarm.id)
                })?,
                place: AlarmPlace { due: alarm.due, revision: alarm.revision },
                row: codec::encode_alarm(alarm).into(),
            },
            Op::RemoveAlarm { name, id, revision } => Step::RemoveAlarm {
                identity: checked(&[&name.interface, &name.instance, id], || key::identity(shard, name, id))?,
                revision: *revision,
            },
            Op::PutMessage(message) => {
                let identity = checked(&[&message.name.interface, &message.name.instance, &message.id], || {
                    key::identity(shard, &message.name, &message.id)
                })?;
                Step::PutMessage { key: key::timed(&identity, message.arrived), row: message.clone() }
            }
            Op::RemoveMessage(at) => Step::RemoveMessage {
                identity: checked(&[&at.name.interface, &at.name.instance, &at.id], || {
                    key::identity(shard, &at.name, &at.id)
                })?,
                arrived: at.arrived,
            },
            Op::PutDead(letter) => {
                let at = letter.key();
                let key = checked(&[&at.name.interface, &at.name.instance, &at.id], || key::dead(shard, &at))?;
                Step::Put { table: Table::Dead, key: key.into(), value: codec::encode_dead(letter).into() }
            }
            Op::RemoveDead(at) => {
                let key = checked(&[&at.name.interface, &at.name.instance, &at.id], || key::dead(shard, at))?;
                Step::Remove { table: Table::Dead, key: key.into() }
            }
            Op::Put { name, key, value } => {
                let key = checked(&[&name.interface, &name.instance, key], || key::identity(shard, name, key))?;
                Step::Put { table: Table::Storage, key: key.into(), value: codec::encode_stored(value).into() }
            }
            Op::Delete { name, key } => {
                let key = checked(&[&name.interface, &name.instance, key], || key::identity(shard, name, key))?;
                Step::Remove { table: Table::Storage, key: key.into() }
            }
        })
    }
}

/// The key of these texts, if they can be told apart in it and it is not too long.
fn checked(texts: &[&str], key: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, StoreError> {
    if texts.iter().any(|text| text.as_bytes().contains(&0)) {
        return Err(StoreError::Rejected("a name, ID or key contains a NUL character".into()));
    }
    let key = key();
    // The time that some rows have in their key counts as well.
    if key.len() + size_of::<Timestamp>() > key::MAX_KEY {
        return Err(StoreError::Rejected(format!("name, ID and key make {} bytes, too many", key.len()).into()));
    }
    Ok(key)
}

/// The changes of one durable write.
pub(super) struct Changes<'a> {
    directory: &'a Directory,
    changes: Vec<(Table, UserKey, Option<UserValue>)>,
    /// The identities of messages that are inserted.
    inserted: HashSet<Vec<u8>>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(directory: &'a Directory) -> Changes<'a> {
        Changes { directory, changes: Vec::new(), inserted: HashSet::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn put(&mut self, table: Table, key: impl Into<UserKey>, value: impl Into<UserValue>) {
        self.changes.push((table, key.into(), Some(value.into())));
    }

    fn remove(&mut self, table: Table, key: impl Into<UserKey>) {
        self.changes.push((table, key.into(), None));
    }

    /// Adds what `batch` comes to, given what the tables hold.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] if it meets a row of a newer version, [`StoreError::NotApplied`] if the tables cannot be read.
    /// Nothing of the batch was added.
    pub(super) fn add(&mut self, batch: Prepared) -> Result<(), StoreError> {
        let before = self.changes.len();
        let added = batch.0.into_iter().try_for_each(|step| self.add_step(step));
        if added.is_err() {
            self.changes.truncate(before);
        }
        added
    }

    fn add_step(&mut self, step: Step) -> Result<(), StoreError> {
        match step {
            Step::PutAlarm { identity, place, row } => {
                let known = self.get(Table::AlarmIds, &identity)?;
                for old in self.alarm_places(&identity, known.as_ref())? {
                    if old.revision > place.revision {
                        return Ok(());
                    }
                    if old.due != place.due {
                        self.remove(Table::Alarms, key::timed(&identity, old.due));
                    }
                }
                self.put(Table::Alarms, key::timed(&identity, place.due), row);
                let place = codec::encode_alarm_place(place);
                // The mark of one that starts changes nothing here.
                if known.is_none_or(|known| *known != *place) {
                    self.put(Table::AlarmIds, identity, place);
                }
            }
            Step::RemoveAlarm { identity, revision } => {
                let known = self.get(Table::AlarmIds, &identity)?;
                for old in self.alarm_places(&identity, known.as_ref())? {
                    if old.revision > revision {
                        return Ok(());
                    }
                    self.remove(Table::Alarms, key::timed(&identity, old.due));
                    self.remove(Table::AlarmIds, identity.as_slice());
                }
            }
            Step::PutMessage { key, row } => {
                let Some(bytes) = self.get(Table::Inbox, &key)? else { return Ok(()) };
                // A row that this version cannot read was never handed out, so nobody has anything to say about it.
                if let Ok(old) = codec::decode_message(row.name.clone(), row.id.clone(), &bytes) {
                    let new = InboxRow { arrived: old.arrived, headers: old.headers, body: old.body, ..row };
                    self.put(Table::Inbox, key, codec::encode_message(&new));
                }
            }
            Step::RemoveMessage { identity, arrived } => {
                if self.arrivals(&identity)?.contains(&arrived) {
                    self.remove(Table::Inbox, key::timed(&identity, arrived));
                    self.remove(Table::InboxIds, identity);
                }
            }
            Step::Put { table, key, value } => self.put(table, key, value),
            Step::Remove { table, key } => self.remove(table, key),
        }
        Ok(())
    }

    /// Adds the messages that are not there yet, all of them having arrived `now`.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn add_messages(&mut self, messages: Vec<Incoming>, now: Timestamp) -> Result<Vec<Posted>, StoreError> {
        let is_new = messages
            .iter()
            .map(|new| Ok(!self.inserted.contains(&new.identity) && self.arrivals(&new.identity)?.is_empty()))
            .collect::<Result<Vec<_>, StoreError>>()?;
        let insert = |(Incoming { identity, message }, is_new): (Incoming, bool)| {
            if !is_new || self.inserted.contains(&identity) {
                return Posted::Duplicate;
            }
            let row = codec::encode_message(&message.into_row(now));
            self.put(Table::Inbox, key::timed(&identity, now), row);
            self.put(Table::InboxIds, identity.as_slice(), codec::encode_arrival(now));
            self.inserted.insert(identity);
            Posted::Inserted
        };
        Ok(messages.into_iter().zip(is_new).map(insert).collect())
    }

    /// Writes everything at once and waits until the disk has it.
    ///
    /// # Errors
    /// Whatever the database says. It takes no further writes then, and whether it took this one is not known.
    pub(super) fn commit(self) -> fjall::Result<()> {
        // The least after which a machine that loses its power keeps it.
        let mut batch = self.directory.batch(self.changes.len(), PersistMode::SyncData);
        let bytes = |(_, key, value): &(Table, UserKey, Option<UserValue>)| {
            key.len() + value.as_ref().map_or(0, |value| value.len())
        };
        self.directory.has_written(self.changes.iter().map(bytes).sum::<usize>() as u64);
        for (table, key, value) in self.changes {
            let table = self.directory.table(table);
            match value {
                Some(value) => batch.insert(table, key, value),
                None => batch.remove(table, key),
            }
        }
        batch.commit()
    }

    /// The places of an alarm's rows: none or one, unless its entry is damaged.
    fn alarm_places(&self, identity: &[u8], entry: Option<&UserValue>) -> Result<Vec<AlarmPlace>, StoreError> {
        let found = |due| AlarmPlace { due, revision: Revision::default() };
        self.places((Table::AlarmIds, Table::Alarms), identity, entry, codec::decode_alarm_place, found)
    }

    /// The arrival times of a message's rows: none or one, unless its entry is damaged.
    fn arrivals(&self, identity: &[u8]) -> Result<Vec<Timestamp>, StoreError> {
        let entry = self.get(Table::InboxIds, identity)?;
        self.places((Table::InboxIds, Table::Inbox), identity, entry.as_ref(), codec::decode_arrival, |arrived| arrived)
    }

    fn places<T>(
        &self,
        (ids, rows): (Table, Table),
        identity: &[u8],
        entry: Option<&UserValue>,
        decode: fn(&[u8]) -> Result<T, DamageReason>,
        found: fn(Timestamp) -> T,
    ) -> Result<Vec<T>, StoreError> {
        let Some(bytes) = entry else { return Ok(Vec::new()) };
        match decode(bytes) {
            Ok(place) => Ok(vec![place]),
            // What it means cannot be known here, and writing over it would lose it.
            Err(reason @ DamageReason::NewerVersion(_)) => {
                let shard = key::shard_of(identity).unwrap_or(ShardId(0));
                Err(StoreError::Rejected(
                    StoreError::Damaged(Damaged { shard, place: place(ids, identity), reason }).into(),
                ))
            }
            // The rows themselves still say where they are; so the entry can be replaced and nothing is left behind.
            Err(DamageReason::Undecodable(_)) => Ok(self.search(rows, identity)?.into_iter().map(found).collect()),
        }
    }

    /// Goes through a whole shard for the rows of one identity.
    fn search(&self, rows: Table, identity: &[u8]) -> Result<Vec<Timestamp>, StoreError> {
        let shard = key::shard_of(identity).unwrap_or(ShardId(0));
        let mut times = Vec::new();
        for guard in self.directory.table(rows).prefix(key::first_of(shard)) {
            let key = guard.key().map_err(not_applied)?;
            if key::is_timed_of(&key, identity)
                && let Ok((time, ..)) = key::Reader::default().timed(&key)
            {
                times.push(time);
            }
        }
        Ok(times)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<UserValue>, StoreError> {
        self.directory.table(table).get(key).map_err(not_applied)
    }
}

/// A message that can be stored.
#[derive(Debug)]
pub(super) struct Incoming {
    identity: Vec<u8>,
    message: NewMessage,
}

impl Incoming {
    /// # Errors
    /// [`StoreError::Rejected`] if it cannot be stored.
    pub(super) fn new(message: NewMessage) -> Result<Incoming, StoreError> {
        let identity = checked(&[&message.name.interface, &message.name.instance, &message.id], || {
            key::identity(message.shard, &message.name, &message.id)
        })?;
        Ok(Incoming { identity, message })
    }

    pub(super) fn shard(&self) -> ShardId {
        self.message.shard
    }

    /// The size of its body.
    pub(super) fn bytes(&self) -> usize {
        self.message.body.len()
    }
}

/// A row's place, for a person who looks for it.
pub(super) fn place(table: Table, key: &[u8]) -> String {
    format!("{}/{}", table.name(), key.escape_ascii())
}

fn not_applied(error: fjall::Error) -> StoreError {
    StoreError::NotApplied(BoxError::from(error))
}

#[cfg(test)]
mod tests {
    use stable_interfaces::store::{AlarmRow, Attempts, Epoch, InstanceName};

    use super::*;

    /// The tables that a write of this row changes, and how often.
    fn written(directory: &Directory, row: &AlarmRow) -> Vec<Table> {
        let mut changes = Changes::new(directory);
        changes.add(Prepared::new(ShardId(3), &[Op::PutAlarm(row.clone())]).unwrap()).unwrap();
        let tables = changes.changes.iter().map(|(table, ..)| *table).collect();
        changes.commit().unwrap();
        tables
    }

    #[test]
    fn the_mark_of_an_alarm_that_starts_writes_its_row_and_not_the_entry_that_finds_it() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(&place.path().join("store"), 1 << 20, false).unwrap();
        let new = AlarmRow {
            name: InstanceName { interface: "order".into(), instance: "1".into() },
            id: "a".into(),
            due: Timestamp::from_millis(5),
            scheduled_at: Timestamp::from_millis(5),
            revision: Revision { epoch: Epoch(1), counter: 1 },
            attempts: Attempts::default(),
            meta: "null".into(),
        };
        assert_eq!(written(&directory, &new), [Table::Alarms, Table::AlarmIds]);
        let marked = AlarmRow { attempts: Attempts { started: true, ..Attempts::default() }, ..new };
        assert_eq!(written(&directory, &marked), [Table::Alarms]);
        let retried = AlarmRow { due: Timestamp::from_millis(9), ..marked };
        assert_eq!(written(&directory, &retried), [Table::Alarms, Table::Alarms, Table::AlarmIds], "it has moved");
        let newer = AlarmRow { revision: Revision { epoch: Epoch(1), counter: 2 }, ..retried };
        assert_eq!(written(&directory, &newer), [Table::Alarms, Table::AlarmIds]);
        // Also an entry that cannot be read is written anew.
        let identity = key::identity(ShardId(3), &newer.name, &newer.id);
        directory.table(Table::AlarmIds).insert(identity, [255]).unwrap();
        assert_eq!(written(&directory, &newer), [Table::Alarms, Table::AlarmIds]);
    }
}
