//! Reading: pages of a shard, ranges of an instance. Each call reads one snapshot, so it sees a batch whole or not at all.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Iter, Readable, Snapshot};
use stable_interfaces::StoreError;
use stable_interfaces::store::{
    After, AlarmRow, DamageReason, Damaged, DeadLetter, Found, InboxKey, InboxRow, Loaded, Page, Read, ReadRange,
    ReadRows, Rows, ShardId,
};

use super::directory::{Directory, Table};
use super::key::{self, Reader};
use super::write::place;
use crate::codec;

/// The room for the rows of one answer.
struct Room {
    rows: usize,
    bytes: usize,
    /// The bytes of all rows that were met.
    met: usize,
    /// There was a row without room.
    is_full: bool,
}

impl Room {
    fn of(rows: usize, bytes: usize) -> Room {
        Room { rows, bytes, met: 0, is_full: false }
    }

    /// Tells whether there is room for a row behind so many others.
    fn is_left(&mut self, rows: usize) -> bool {
        self.is_full = rows >= self.rows;
        !self.is_full
    }

    /// Tells whether there is room for these bytes too. The first row has it, whatever it takes.
    fn takes(&mut self, bytes: usize, rows: usize) -> bool {
        self.met = self.met.saturating_add(bytes);
        self.is_full = self.met > self.bytes && rows > 0;
        !self.is_full
    }
}

/// One moment of the tables.
pub(super) struct Scan<'a> {
    directory: &'a Directory,
    snapshot: Snapshot,
}

impl<'a> Scan<'a> {
    pub(super) fn new(directory: &'a Directory) -> Scan<'a> {
        Scan { directory, snapshot: directory.database.snapshot() }
    }

    pub(super) fn load(&self, page: &Page) -> Result<Loaded, StoreError> {
        let mut reader = Reader::default();
        let (mut room, mut damaged) = (Room::of(page.limit, page.bytes), Vec::new());
        let from = |after: Option<Vec<u8>>| after.map_or_else(|| key::first_of(page.shard), key::successor);
        let rows = match &page.after {
            After::Alarms(after) => {
                let after = after.as_ref().map(|at| key::timed(&key::identity(page.shard, &at.name, &at.id), at.due));
                let decode = |key: &[u8], value: &[u8]| alarm(&mut reader, key, value);
                Rows::Alarms(self.rows(page, Table::Alarms, from(after), (&mut room, &mut damaged), decode)?)
            }
            After::Inbox(after) => {
                let after =
                    after.as_ref().map(|at| key::timed(&key::identity(page.shard, &at.name, &at.id), at.arrived));
                if page.keys_only {
                    return self.inbox_keys(page, from(after));
                }
                let decode = |key: &[u8], value: &[u8]| message(&mut reader, key, value);
                Rows::Inbox(self.rows(page, Table::Inbox, from(after), (&mut room, &mut damaged), decode)?)
            }
            After::Dead(after) => {
                let after = after.as_ref().map(|at| key::dead(page.shard, at));
                let decode = |key: &[u8], value: &[u8]| dead(&mut reader, key, value);
                Rows::Dead(self.rows(page, Table::Dead, from(after), (&mut room, &mut damaged), decode)?)
            }
        };
        Ok(Loaded { rows, damaged, is_last: !room.is_full })
    }

    /// The keys of a page, without reading what is behind them.
    fn inbox_keys(&self, page: &Page, from: Vec<u8>) -> Result<Loaded, StoreError> {
        let (mut reader, mut rows, mut room) = (Reader::default(), Vec::new(), Room::of(page.limit, page.bytes));
        for guard in self.range(Table::Inbox, from, key::end_of(page.shard)) {
            if !room.is_left(rows.len()) {
                break;
            }
            // A key that cannot be read is reported when its row is asked for.
            if let Ok((arrived, name, id)) = reader.timed(&guard.key().map_err(unavailable)?) {
                rows.push(InboxKey { arrived, name, id }.into_row());
            }
        }
        Ok(Loaded { rows: Rows::Inbox(rows), damaged: Vec::new(), is_last: !room.is_full })
    }

    /// The rows of a page, as far as there is room; those that cannot be read are put aside.
    fn rows<T>(
        &self,
        page: &Page,
        table: Table,
        from: Vec<u8>,
        (room, damaged): (&mut Room, &mut Vec<Damaged>),
        mut decode: impl FnMut(&[u8], &[u8]) -> Result<T, DamageReason>,
    ) -> Result<Vec<T>, StoreError> {
        let mut rows = Vec::new();
        for guard in self.range(table, from, key::end_of(page.shard)) {
            if !room.is_left(rows.len()) {
                break;
            }
            let (key, value) = guard.into_inner().map_err(unavailable)?;
            if !room.takes(value.len(), rows.len()) {
                break;
            }
            match decode(&key, &value) {
                Ok(row) => rows.push(row),
                Err(reason) => damaged.push(Damaged { shard: page.shard, place: place(table, &key), reason }),
            }
        }
        Ok(rows)
    }

    pub(super) fn read(&self, read: &Read) -> Result<Found, StoreError> {
        let mut room = Room::of(read.limit, read.bytes);
        let rows = match &read.range {
            ReadRange::Storage(first, end) => ReadRows::Storage(self.stored(read, first, end.as_deref(), &mut room)?),
            ReadRange::Alarms(first, end) => ReadRows::Alarms(self.alarms(read, first, end.as_deref(), &mut room)?),
        };
        Ok(Found { rows, is_last: !room.is_full })
    }

    /// The values of an instance from key `first` up to `end`, as far as there is room.
    fn stored(
        &self,
        read: &Read,
        first: &str,
        end: Option<&str>,
        room: &mut Room,
    ) -> Result<Vec<(Arc<str>, Bytes)>, StoreError> {
        let prefix = key::identity(read.shard, &read.name, "");
        let mut rows = Vec::new();
        for guard in self.of_instance(Table::Storage, read, first, end) {
            if !room.is_left(rows.len()) {
                break;
            }
            let (key, value) = guard.into_inner().map_err(unavailable)?;
            if !room.takes(value.len(), rows.len()) {
                break;
            }
            let row = key::id_after(&prefix, &key).and_then(|id| Ok((id.into(), codec::decode_stored(&value)?)));
            rows.push(row.map_err(|reason| {
                StoreError::Damaged(Damaged { shard: read.shard, place: place(Table::Storage, &key), reason })
            })?);
        }
        Ok(rows)
    }

    /// The alarms of an instance from ID `first` up to `end`, as far as there is room.
    fn alarms(
        &self,
        read: &Read,
        first: &str,
        end: Option<&str>,
        room: &mut Room,
    ) -> Result<Vec<AlarmRow>, StoreError> {
        let prefix = key::identity(read.shard, &read.name, "");
        let mut rows = Vec::new();
        for guard in self.of_instance(Table::AlarmIds, read, first, end) {
            if !room.is_left(rows.len()) {
                break;
            }
            let (key, value) = guard.into_inner().map_err(unavailable)?;
            let Ok(at) = codec::decode_alarm_place(&value) else { continue };
            let Ok(id) = key::id_after(&prefix, &key) else { continue };
            let alarms = self.directory.table(Table::Alarms);
            let row = self.snapshot.get(alarms, key::timed(&key, at.due)).map_err(unavailable)?;
            if !room.takes(row.as_ref().map_or(0, |row| row.len()), rows.len()) {
                break;
            }
            rows.extend(row.and_then(|row| codec::decode_alarm(read.name.clone(), id.into(), &row).ok()));
        }
        Ok(rows)
    }

    /// The entries of an instance in a table, by their keys or IDs: from `first` up to `end`.
    fn of_instance(&self, table: Table, read: &Read, first: &str, end: Option<&str>) -> Iter {
        let identity = |id: &str| key::identity(read.shard, &read.name, id);
        let end = end.map_or_else(|| key::end_of_instance(read.shard, &read.name), identity);
        self.range(table, identity(first), Bound::Excluded(end))
    }

    /// Selects those of `shards` that have inbox rows.
    pub(super) fn with_inbox(&self, shards: impl IntoIterator<Item = ShardId>) -> Result<Vec<ShardId>, StoreError> {
        let mut found = Vec::new();
        for shard in shards {
            let first = self.range(Table::Inbox, key::first_of(shard), key::end_of(shard)).next();
            if first.map(fjall::Guard::key).transpose().map_err(unavailable)?.is_some() {
                found.push(shard);
            }
        }
        Ok(found)
    }

    /// All shards that have inbox rows, with one seek for each.
    pub(super) fn all_with_inbox(&self) -> fjall::Result<Vec<ShardId>> {
        let mut found = Vec::new();
        let mut from = Vec::new();
        while let Some(guard) = self.range(Table::Inbox, from, Bound::Unbounded).next() {
            let Some(shard) = key::shard_of(&guard.key()?) else { break };
            found.push(shard);
            match key::end_of(shard) {
                Bound::Excluded(next) => from = next,
                _ => break,
            }
        }
        Ok(found)
    }

    /// The keys from `first` up to `end`; none if they are the wrong way round.
    fn range(&self, table: Table, first: Vec<u8>, end: Bound<Vec<u8>>) -> Iter {
        let end = match end {
            Bound::Excluded(end) if end < first => Bound::Excluded(first.clone()),
            end => end,
        };
        self.snapshot.range(self.directory.table(table), (Bound::Included(first), end))
    }
}

/// An alarm from its place in the order of firing.
pub(super) fn alarm(reader: &mut Reader, key: &[u8], value: &[u8]) -> Result<AlarmRow, DamageReason> {
    let (due, name, id) = reader.timed(key)?;
    let row = codec::decode_alarm(name, id, value)?;
    if row.due == due { Ok(row) } else { Err(misplaced()) }
}

/// A message from its place in the order of arrival.
pub(super) fn message(reader: &mut Reader, key: &[u8], value: &[u8]) -> Result<InboxRow, DamageReason> {
    let (arrived, name, id) = reader.timed(key)?;
    let row = codec::decode_message(name, id, value)?;
    if row.arrived == arrived { Ok(row) } else { Err(misplaced()) }
}

/// A dead letter.
pub(super) fn dead(reader: &mut Reader, key: &[u8], value: &[u8]) -> Result<DeadLetter, DamageReason> {
    let at = reader.dead(key)?;
    let row = codec::decode_dead(at.name, at.is_message, at.id, value)?;
    if row.died_at == at.died_at { Ok(row) } else { Err(misplaced()) }
}

fn misplaced() -> DamageReason {
    DamageReason::Undecodable("its time is not the one in its key".to_owned())
}

pub(super) fn unavailable(error: fjall::Error) -> StoreError {
    StoreError::Unavailable(error.into())
}
