//! `load` and `read`.
//!
//! Members of a sorted set come in pieces, each with its row from the same moment, until a page is full or the set ends. What cannot be
//! read is set aside and another row taken in its place.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use std::sync::Arc;

use redis::Value;
use stable_interfaces::store::{
    After, AlarmRow, DamageReason, Damaged, Found, InboxKey, InboxRow, InstanceName, Loaded, Page, Read, ReadRange,
    ReadRows, Rows, ShardId,
};
use stable_interfaces::{StoreError, Timestamp};

use super::failure::Failure;
use super::reply::{Texts, bytes};
use super::script::{Call, SCAN};
use super::write::{ALARM_HEADER, LAYOUT, MESSAGE_HEADER};
use super::{Inner, key, keys_of};
use crate::codec;
use crate::ordered::{Reader, TIME, split_time, wrong};

/// The most rows of one script, and the most bytes.
const ROWS_PER_CALL: usize = 1_000;
const BYTES_PER_CALL: usize = 4 * 1024 * 1024;

/// A walk through one sorted set.
struct Walk {
    shard: ShardId,
    table: Table,
    /// The next member, as `ZRANGEBYLEX` takes it.
    from: Vec<u8>,
    to: Vec<u8>,
    limit: usize,
    /// The most bytes of rows, unless the first has more; and how many have come.
    most_bytes: usize,
    bytes: usize,
    is_done: bool,
    /// Says whether the set has ended.
    is_last: bool,
    rows: Rows,
    values: Vec<(Arc<str>, bytes::Bytes)>,
    damaged: Vec<Damaged>,
    reader: Reader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    /// Alarms by the time they are due.
    Due,
    /// Alarms by identity.
    Alarms,
    Inbox,
    /// The keys of an inbox, without its rows.
    InboxKeys,
    Dead,
    Storage,
}

impl Table {
    /// The set, the rows, and for messages their progress.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Table::Due => &[keys_of::DUE, keys_of::ALARMS],
            Table::Alarms => &[keys_of::ALARM_IDS, keys_of::ALARMS],
            Table::Inbox => &[keys_of::INBOX_ORDER, keys_of::INBOX, keys_of::INBOX_PROGRESS],
            Table::InboxKeys => &[keys_of::INBOX_ORDER],
            Table::Dead => &[keys_of::DEAD_ORDER, keys_of::DEAD],
            Table::Storage => &[keys_of::STORAGE_ORDER, keys_of::STORAGE],
        }
    }

    /// The number of bytes of a member that stand in front of its row's field.
    fn strip(self) -> usize {
        match self {
            Table::Due | Table::Inbox | Table::InboxKeys => TIME,
            Table::Alarms | Table::Dead | Table::Storage => 0,
        }
    }
}

impl Walk {
    fn new(shard: ShardId, table: Table, from: Vec<u8>, to: Vec<u8>, limit: usize) -> Walk {
        let rows = match table {
            Table::Inbox | Table::InboxKeys => Rows::Inbox(Vec::new()),
            Table::Dead => Rows::Dead(Vec::new()),
            _ => Rows::Alarms(Vec::new()),
        };
        let (is_done, values, damaged) = (limit == 0, Vec::new(), Vec::new());
        let (most_bytes, bytes, is_last, reader) = (usize::MAX, 0, false, Reader::default());
        Walk { shard, table, from, to, limit, most_bytes, bytes, is_done, is_last, rows, values, damaged, reader }
    }

    fn of_page(page: &Page) -> Walk {
        // A key that could not be stored is after all that begins like it and is; there is nothing to find out about it.
        let after = |table, member: Option<Result<Vec<u8>, _>>| {
            let from = match member {
                Some(Ok(member)) => [b"(".as_slice(), &member].concat(),
                _ => b"-".to_vec(),
            };
            Walk { most_bytes: page.bytes, ..Walk::new(page.shard, table, from, b"+".to_vec(), page.limit) }
        };
        let timed =
            |time, name: &InstanceName, id: &str| key::identity(name, id).map(|identity| key::timed(time, &identity));
        match &page.after {
            After::Alarms(at) => after(Table::Due, at.as_ref().map(|at| timed(at.due, &at.name, &at.id))),
            After::Inbox(at) if page.keys_only => {
                after(Table::InboxKeys, at.as_ref().map(|at| timed(at.arrived, &at.name, &at.id)))
            }
            After::Inbox(at) => after(Table::Inbox, at.as_ref().map(|at| timed(at.arrived, &at.name, &at.id))),
            After::Dead(at) => after(Table::Dead, at.as_ref().map(key::dead)),
        }
    }

    /// `None` for an instance that cannot be stored, and so has no rows.
    fn of_read(read: &Read) -> Option<Walk> {
        let (table, from, to) = match &read.range {
            ReadRange::Storage(from, to) => (Table::Storage, from, to),
            ReadRange::Alarms(from, to) => (Table::Alarms, from, to),
        };
        let prefix = key::prefix_of(&read.name).ok()?;
        let to = match to {
            Some(to) => [b"(".as_slice(), &prefix, to.as_bytes()].concat(),
            // The last byte is the zero behind the instance's ID.
            None => [b"(".as_slice(), &prefix[..prefix.len() - 1], &[1]].concat(),
        };
        let from = [b"[".as_slice(), &prefix, from.as_bytes()].concat();
        Some(Walk { most_bytes: read.bytes, ..Walk::new(read.shard, table, from, to, read.limit) })
    }

    fn found(&self) -> usize {
        match &self.rows {
            Rows::Alarms(rows) => rows.len() + self.values.len(),
            Rows::Inbox(rows) => rows.len(),
            Rows::Dead(rows) => rows.len(),
        }
    }

    fn call(&self, inner: &Inner) -> Call {
        let keys: Vec<String> =
            self.table.keys().iter().flat_map(|suffix| inner.keys.shard(self.shard, [*suffix])).collect();
        Call::new(&SCAN, &keys)
            .arg(&self.from)
            .arg(&self.to)
            .arg((self.limit - self.found()).min(ROWS_PER_CALL))
            .arg((self.most_bytes - self.bytes.min(self.most_bytes)).min(BYTES_PER_CALL))
            .arg(self.table.strip())
    }

    /// Takes in one answer.
    fn take(&mut self, inner: &Inner, answer: Result<Value, Failure>) -> Result<(), Failure> {
        let mut answer = match answer {
            Ok(answer) => Texts::new(answer)?,
            // Somebody else's key in place of ours: it is reported, and the shard goes on without it.
            Err(Failure::Refused(error)) if error.code() == "WRONGTYPE" => {
                let reason = wrong("one of its keys holds something else than ours");
                self.set_aside(inner, b"", reason);
                (self.is_done, self.is_last) = (true, true);
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
        let has_more = answer.text()? == "1";
        while !answer.is_done() {
            let member = bytes(answer.item()?)?.unwrap_or_default();
            let (row, progress) = (bytes(answer.item()?)?, bytes(answer.item()?)?);
            let size = row.as_ref().map_or(0, Vec::len);
            if self.found() > 0 && self.bytes.saturating_add(size) > self.most_bytes {
                // The first of a later script: the page ends before it.
                self.is_done = true;
                return Ok(());
            }
            self.bytes = self.bytes.saturating_add(size);
            if let Err(reason) = self.take_row(&member, row, progress) {
                self.set_aside(inner, &member, reason);
            }
            self.from = [b"(".as_slice(), &member].concat();
        }
        self.is_last = !has_more;
        self.is_done = !has_more || self.found() >= self.limit || (self.bytes >= self.most_bytes && self.found() > 0);
        Ok(())
    }

    fn set_aside(&mut self, inner: &Inner, member: &[u8], reason: DamageReason) {
        let [key] = inner.keys.shard(self.shard, [self.table.keys()[0]]);
        self.damaged.push(Damaged { shard: self.shard, place: format!("{key} {}", member.escape_ascii()), reason });
    }

    fn take_row(&mut self, member: &[u8], row: Option<Vec<u8>>, progress: Option<Vec<u8>>) -> Result<(), DamageReason> {
        if let (Table::InboxKeys, Rows::Inbox(rows)) = (self.table, &mut self.rows) {
            let (arrived, name, id) = self.reader.timed(member)?;
            rows.push(InboxKey { arrived, name, id }.into_row());
            return Ok(());
        }
        let row = row.ok_or_else(|| wrong("its row is missing"))?;
        match (self.table, &mut self.rows) {
            (Table::Due, Rows::Alarms(rows)) => {
                let (due, name, id) = self.reader.timed(member)?;
                let alarm = alarm(name, id, &row)?;
                if alarm.due != due {
                    return Err(wrong("it is listed under another time than it is due"));
                }
                rows.push(alarm);
            }
            (Table::Alarms, Rows::Alarms(rows)) => {
                let (name, id) = self.reader.identity(member)?;
                rows.push(alarm(name, id, &row)?);
            }
            (Table::Inbox, Rows::Inbox(rows)) => {
                let (arrived, name, id) = self.reader.timed(member)?;
                rows.push(message(arrived, name, id, &row, progress)?);
            }
            (Table::Dead, Rows::Dead(rows)) => {
                let at = self.reader.dead(member)?;
                let letter = codec::decode_dead(at.name, at.is_message, at.id, &row)?;
                if letter.died_at != at.died_at {
                    return Err(wrong("it is listed under another time than its row says"));
                }
                rows.push(letter);
            }
            (Table::Storage, _) => {
                let (_, key) = self.reader.identity(member)?;
                self.values.push((key, codec::decode_stored(&row)?));
            }
            _ => return Err(wrong("it is of another kind")),
        }
        Ok(())
    }
}

fn alarm(name: InstanceName, id: Arc<str>, value: &[u8]) -> Result<AlarmRow, DamageReason> {
    let row = behind_header(value, ALARM_HEADER)?;
    let alarm = codec::decode_alarm(name, id, row)?;
    let (due, _) = split_time(&value[ALARM_HEADER - TIME..])?;
    if alarm.due != due { Err(wrong("its header has another due time than its row")) } else { Ok(alarm) }
}

fn message(
    arrived: Timestamp,
    name: InstanceName,
    id: Arc<str>,
    value: &[u8],
    progress: Option<Vec<u8>>,
) -> Result<InboxRow, DamageReason> {
    let row = behind_header(value, MESSAGE_HEADER)?;
    let (stamped, _) = split_time(&value[MESSAGE_HEADER - TIME..])?;
    if stamped != arrived {
        return Err(wrong("it is listed under another time than it arrived"));
    }
    let posted = codec::decode_message(name.clone(), id.clone(), row)?;
    Ok(match progress {
        None => InboxRow { arrived, due: arrived, ..posted },
        Some(progress) => {
            let progress = codec::decode_message(name, id, &progress)?;
            InboxRow { arrived, headers: posted.headers, body: posted.body, ..progress }
        }
    })
}

/// The row behind a header of this version.
fn behind_header(value: &[u8], header: usize) -> Result<&[u8], DamageReason> {
    match value.first() {
        Some(&LAYOUT) => value.get(header..).ok_or_else(|| wrong("it ends within its header")),
        Some(&newer) if newer > LAYOUT && newer < 32 => Err(DamageReason::NewerVersion(newer.into())),
        _ => Err(wrong("its first byte is no layout")),
    }
}

impl Inner {
    pub(super) async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let mut walks: Vec<Walk> = pages.iter().map(Walk::of_page).collect();
        self.walk(&mut walks).await?;
        Ok(walks
            .into_iter()
            .map(|walk| Loaded { rows: walk.rows, damaged: walk.damaged, is_last: walk.is_last })
            .collect())
    }

    pub(super) async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        let mut walks: Vec<Walk> = Walk::of_read(read).into_iter().collect();
        self.walk(&mut walks).await?;
        let walk = walks.pop();
        let is_last = walk.as_ref().is_none_or(|walk| walk.is_last);
        let rows = match read.range {
            ReadRange::Storage(..) => match walk {
                Some(Walk { mut damaged, .. }) if !damaged.is_empty() => {
                    return Err(StoreError::Damaged(damaged.remove(0)));
                }
                walk => ReadRows::Storage(walk.map(|walk| walk.values).unwrap_or_default()),
            },
            ReadRange::Alarms(..) => ReadRows::Alarms(match walk.map(|walk| walk.rows) {
                Some(Rows::Alarms(rows)) => rows,
                _ => Vec::new(),
            }),
        };
        Ok(Found { rows, is_last })
    }

    /// Goes on with all walks at once until each is done.
    async fn walk(&self, walks: &mut [Walk]) -> Result<(), StoreError> {
        loop {
            let mut going: Vec<&mut Walk> = walks.iter_mut().filter(|walk| !walk.is_done).collect();
            if going.is_empty() {
                return Ok(());
            }
            let calls: Vec<Call> = going.iter().map(|walk| walk.call(self)).collect();
            for (walk, answer) in going.iter_mut().zip(self.reads.run(&calls).await) {
                // Nothing was written, but the contract knows one answer for reading.
                walk.take(self, answer).map_err(|failure| match failure.into_store_error() {
                    StoreError::NotApplied(error) | StoreError::Rejected(error) => StoreError::Unavailable(error),
                    other => other,
                })?;
            }
        }
    }
}
