//! Reads of a handler: the store, and over it what is not durable yet.
//!
//! A read sees what its handler has recorded, everything that earlier handlers committed, and then the store. What is not settled is
//! looked up *before* the store is read: what settles meanwhile is in the store by then.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{Context, Instance, invalid_key};
use crate::alarm::Alarm;
use crate::commit::effects::{find_alarm, find_value};
use crate::error::ContextError;
use crate::id::check_key;
use crate::instance::range::KeyRange;
use crate::store::paging::{Ranged, just_after};
use crate::store::{AlarmRow, Epoch, InstanceName, Op, StoreError};
use crate::sync::Arc;

/// The most that a read asks the store for. Each page has one row at least, so there may be a little more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Most {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

impl Most {
    pub(crate) const ALL: Most = Most { rows: usize::MAX, bytes: usize::MAX };
}

impl Context {
    /// All alarms of this instance, by ID.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be read.
    pub async fn alarms(&mut self) -> Result<Vec<Alarm>, ContextError> {
        Ok(self.alarms_from("".into(), Most::ALL).await?.0)
    }

    /// The alarms of this instance from an ID on, by ID: about so many, and the ID from which to go on if there may be more.
    pub(crate) async fn alarms_from(
        &mut self,
        from: Arc<str>,
        most: Most,
    ) -> Result<(Vec<Alarm>, Option<Arc<str>>), ContextError> {
        let (rows, next) = self.read_alarms(KeyRange { from, ..KeyRange::all() }, most).await?;
        Ok((rows.into_iter().map(|row| Alarm::new(Arc::new(row))).collect(), next))
    }

    /// The value under `key` in this instance's storage, from JSON.
    ///
    /// # Errors
    /// [`ContextError::Json`] if it is not a `T`, [`ContextError::Store`] if the store could not be read, and as
    /// [`delete`](Self::delete).
    pub async fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, ContextError> {
        match self.get_bytes(key).await? {
            Some(value) => {
                let value = serde_json::from_slice(&value);
                Ok(Some(value.map_err(|error| ContextError::not_a::<T>(self.value_under(key), error))?))
            }
            None => Ok(None),
        }
    }

    /// Names a value for a person.
    pub(super) fn value_under(&self, key: &str) -> String {
        format!("the value of {} under {key:?}", self.instance.name())
    }

    /// The bytes under `key` in this instance's storage.
    ///
    /// # Errors
    /// As [`get`](Self::get), without [`ContextError::Json`].
    pub async fn get_bytes(&mut self, key: &str) -> Result<Option<Bytes>, ContextError> {
        check_key(key).map_err(|reason| invalid_key(key, reason))?;
        self.value_of(&self.instance.name(), key).await
    }

    /// As [`get_bytes`](Self::get_bytes), also of the library's own rows.
    pub(crate) async fn value_of(&mut self, name: &InstanceName, key: &str) -> Result<Option<Bytes>, ContextError> {
        self.require_store()?;
        if let Some(found) = find_value(self.recorded.ops().iter(), name, key) {
            return Ok(found);
        }
        let unsettled = self.instance.unsettled();
        if let Some(found) = find_value(unsettled.iter().flat_map(|commit| commit.ops.iter()), name, key) {
            return Ok(found);
        }
        let one = Most { rows: 1, ..Most::ALL };
        let (rows, _) = self.read(name, (key.into(), Some(just_after(key))), one).await?;
        Ok(rows.into_iter().next().map(|(_, value)| value))
    }

    /// Keys and values of this instance's storage within a range, ascending by key: `cx.list("item/")` lists by prefix,
    /// [`KeyRange`] does the rest.
    ///
    /// # Errors
    /// [`ContextError::Store`] if the store could not be read, [`ContextError::NoStore`] if there is none.
    pub async fn list(&mut self, range: impl Into<KeyRange> + Send) -> Result<Vec<(Arc<str>, Bytes)>, ContextError> {
        self.values_of(&self.instance.name(), range.into()).await
    }

    /// As [`list`](Self::list), also of the library's own rows.
    pub(crate) async fn values_of(
        &mut self,
        of: &InstanceName,
        range: KeyRange,
    ) -> Result<Vec<(Arc<str>, Bytes)>, ContextError> {
        self.require_store()?;
        // Taken before the read begins: what is durable by then is read, what is not is in here.
        let unsettled = self.instance.unsettled();
        // Each key deleted since may be one of those read.
        let is_deletion = |op: &&Op| matches!(op, Op::Delete { key, name } if range.contains(key) && name == of);
        let deleted = unsettled.iter().flat_map(|commit| commit.ops.iter()).filter(is_deletion).count()
            + self.recorded.ops().iter().filter(is_deletion).count();
        let most = range.limit.saturating_add(deleted);
        let most = Most { rows: most, ..Most::ALL };
        let found = if range.limit > 0 { self.read(of, range.ends(), most).await?.0 } else { Vec::new() };
        let mut rows: BTreeMap<Arc<str>, Bytes> = found.into_iter().collect();
        for op in unsettled.iter().flat_map(|commit| commit.ops.iter()).chain(self.recorded.ops()) {
            match op {
                Op::Put { key, value, name } if range.contains(key) && name == of => {
                    rows.insert(key.clone(), value.clone());
                }
                Op::Delete { key, name } if name == of => drop(rows.remove(key)),
                _ => {}
            }
        }
        Ok(rows.into_iter().take(range.limit).collect())
    }

    /// The first rows from a key up to another that the store has, in pages; and the key from which to go on if there may be more.
    async fn read<R: Ranged>(
        &mut self,
        of: &InstanceName,
        ends: (Arc<str>, Option<Arc<str>>),
        most: Most,
    ) -> Result<(Vec<R>, Option<Arc<str>>), ContextError> {
        let read = async {
            let client = self.instance.host().reader()?;
            let mut pages = client.range::<R>(self.shard(), of.clone(), ends);
            let (mut rows, mut left) = (Vec::new(), most.bytes);
            while left > 0
                && let Some(page) = pages.next_of(most.rows - rows.len(), left).await?
            {
                left = left.saturating_sub(page.iter().map(R::bytes).sum());
                rows.extend(page);
            }
            Ok((rows, pages.rest()))
        };
        let read: Result<(Vec<R>, _), StoreError> = read.await;
        read.map_err(|error| {
            let error = Arc::new(error);
            self.recorded.cold().failed_read = Some(error.clone());
            ContextError::Store(error)
        })
    }

    /// The alarms of a range, about so many, and the ID from which to go on if there may be more.
    async fn read_alarms(
        &mut self,
        mut range: KeyRange,
        most: Most,
    ) -> Result<(Vec<AlarmRow>, Option<Arc<str>>), ContextError> {
        self.require_store()?;
        let unsettled = self.instance.unsettled();
        let (found, next) = self.read::<AlarmRow>(&self.instance.name(), range.ends(), most).await?;
        // What is set behind those that were read is told with the rest.
        range.to = next.clone().or(range.to);
        let mut rows: BTreeMap<Arc<str>, AlarmRow> = found.into_iter().map(|row| (row.id.clone(), row)).collect();
        for op in unsettled.iter().flat_map(|commit| commit.ops.iter()).chain(self.recorded.ops()) {
            match op {
                // The read may have seen a later commit than this one, of which it is the overlay.
                Op::PutAlarm(row)
                    if range.contains(&row.id)
                        && rows.get(&row.id).is_none_or(|found| found.revision <= row.revision) =>
                {
                    rows.insert(row.id.clone(), row.clone());
                }
                Op::RemoveAlarm { id, revision, .. }
                    if rows.get(id).is_some_and(|found| found.revision <= *revision) =>
                {
                    rows.remove(id);
                }
                _ => {}
            }
        }
        Ok((rows.into_values().collect(), next))
    }

    pub(crate) async fn find_alarm(&mut self, id: &str) -> Result<Option<AlarmRow>, ContextError> {
        let range = KeyRange { from: id.into(), to: Some(just_after(id)), limit: 1 };
        Ok(self.read_alarms(range, Most::ALL).await?.0.into_iter().next())
    }

    /// Tells whether this setting of the alarm is still the live one: not moved, cancelled or completed since it was taken to fire.
    pub(crate) fn is_live(&self, alarm: &AlarmRow) -> bool {
        is_live(&*self.instance, self.epoch, alarm)
    }
}

/// As [`Context::is_live`], of an instance that the caller has.
pub(crate) fn is_live(instance: &dyn Instance, epoch: Epoch, alarm: &AlarmRow) -> bool {
    // Unsettled commits first: what settles meanwhile has reached the window before it leaves this list.
    let unsettled = instance.unsettled();
    let ops = unsettled.iter().flat_map(|commit| commit.ops.iter());
    let is_this = |row: &AlarmRow| row.revision == alarm.revision && row.attempts.failed == alarm.attempts.failed;
    find_alarm(ops, &alarm.id).is_none_or(|found| found.is_some_and(is_this))
        && instance.host().shards.is_firing(instance.shard(), epoch, alarm)
}
