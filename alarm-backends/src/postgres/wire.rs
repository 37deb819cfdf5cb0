//! The arguments sent to Postgres: the operations of a write, sorted by kind, as arrays of the composite types in `tables.sql`.
//!
//! Within an array, rows are in ascending order of their keys, so that any two transactions take their locks in one order.

use postgres_types::ToSql;
use stable_interfaces::StoreError;
use stable_interfaces::store::{
    AlarmRow, DeadLetter, DeadRow, InstanceName, MessageHeaders, NewMessage, Op, ShardId, Write,
};

/// A number that this store cannot hold.
#[derive(Debug, thiserror::Error)]
#[error("{what} {value} is greater than Postgres can hold")]
struct TooGreat {
    what: &'static str,
    value: u64,
}

/// A shard's number as a column holds it.
pub(super) fn shard(shard: ShardId) -> Result<i32, StoreError> {
    let refused = |_| StoreError::Rejected(TooGreat { what: "shard", value: shard.0.into() }.into());
    i32::try_from(shard.0).map_err(refused)
}

/// An epoch, counter, incarnation or sequence number as a column holds it.
pub(super) fn number(what: &'static str, value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Rejected(TooGreat { what, value }.into()))
}

/// Headers as a column holds them: a JSON array of pairs of strings.
pub(super) fn headers(headers: &MessageHeaders) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(headers).map_err(|error| StoreError::Rejected(error.into()))
}

#[derive(Debug, ToSql)]
#[postgres(name = "batch")]
pub(super) struct BatchHead {
    shard: i32,
    epoch: i64,
}

#[derive(Debug, ToSql)]
#[postgres(name = "alarm_put")]
pub(super) struct AlarmPut<'a> {
    shard: i32,
    interface: &'a str,
    instance: &'a str,
    id: &'a str,
    due: i64,
    scheduled_at: i64,
    rev_epoch: i64,
    rev_counter: i64,
    attempt: i64,
    crashes: i64,
    started: bool,
    last_error: Option<&'a str>,
    meta: &'a [u8],
}

#[derive(Debug, ToSql)]
#[postgres(name = "alarm_remove")]
pub(super) struct AlarmRemove<'a> {
    shard: i32,
    interface: &'a str,
    instance: &'a str,
    id: &'a str,
    rev_epoch: i64,
    rev_counter: i64,
}

#[derive(Debug, ToSql)]
#[postgres(name = "message_new")]
pub(super) struct MessageNew<'a> {
    pub(super) shard: i32,
    pub(super) interface: &'a str,
    pub(super) instance: &'a str,
    pub(super) id: &'a str,
    headers: Vec<u8>,
    body: &'a [u8],
}

#[derive(Debug, ToSql)]
#[postgres(name = "message_put")]
pub(super) struct MessagePut<'a> {
    shard: i32,
    interface: &'a str,
    instance: &'a str,
    id: &'a str,
    arrived: i64,
    due: i64,
    attempt: i64,
    crashes: i64,
    started: bool,
    last_error: Option<&'a str>,
}

#[derive(Debug, ToSql)]
#[postgres(name = "message_remove")]
pub(super) struct MessageRemove<'a> {
    shard: i32,
    interface: &'a str,
    instance: &'a str,
    id: &'a str,
    arrived: i64,
}

#[derive(Debug, ToSql)]
#[postgres(name = "dead_put")]
pub(super) struct DeadPut<'a> {
    shard: i32,
    died_at: i64,
    interface: &'a str,
    instance: &'a str,
    is_message: bool,
    id: &'a str,
    reason: &'a str,
    due: i64,
    scheduled_at: Option<i64>,
    rev_epoch: Option<i64>,
    rev_counter: Option<i64>,
    arrived: Option<i64>,
    headers: Option<Vec<u8>>,
    attempt: i64,
    crashes: i64,
    started: bool,
    last_error: Option<&'a str>,
    body: &'a [u8],
}

#[derive(Debug, ToSql)]
#[postgres(name = "dead_remove")]
pub(super) struct DeadRemove<'a> {
    shard: i32,
    died_at: i64,
    interface: &'a str,
    instance: &'a str,
    is_message: bool,
    id: &'a str,
}

#[derive(Debug, ToSql)]
#[postgres(name = "value_put")]
pub(super) struct ValuePut<'a> {
    shard: i32,
    interface: &'a str,
    instance: &'a str,
    key: &'a str,
    value: &'a [u8],
}

#[derive(Debug, ToSql)]
#[postgres(name = "value_remove")]
pub(super) struct ValueRemove<'a> {
    shard: i32,
    interface: &'a str,
    instance: &'a str,
    key: &'a str,
}

/// The place of a write among those of its lane.
pub(super) struct Place {
    incarnation: i64,
    lane: i32,
    seq: i64,
    /// The greatest number that was answered as done.
    known: i64,
}

impl Place {
    pub(super) fn new(write: &Write, known: u64) -> Result<Place, StoreError> {
        Ok(Place {
            incarnation: number("incarnation", write.incarnation.0)?,
            lane: i32::from(write.lane.0),
            seq: number("sequence number", write.seq)?,
            known: number("sequence number", known)?,
        })
    }
}

/// The arguments of the function `write`.
#[derive(Debug, Default)]
pub(super) struct WireWrite<'a> {
    pub(super) batches: Vec<BatchHead>,
    pub(super) alarm_puts: Vec<AlarmPut<'a>>,
    pub(super) alarm_removes: Vec<AlarmRemove<'a>>,
    pub(super) message_puts: Vec<MessagePut<'a>>,
    pub(super) message_removes: Vec<MessageRemove<'a>>,
    pub(super) dead_puts: Vec<DeadPut<'a>>,
    pub(super) dead_removes: Vec<DeadRemove<'a>>,
    pub(super) value_puts: Vec<ValuePut<'a>>,
    pub(super) value_removes: Vec<ValueRemove<'a>>,
}

impl<'a> WireWrite<'a> {
    pub(super) fn new(write: &'a Write) -> Result<WireWrite<'a>, StoreError> {
        let mut wire = WireWrite::default();
        for batch in &write.batches {
            let shard = shard(batch.shard)?;
            wire.batches.push(BatchHead { shard, epoch: number("epoch", batch.epoch.0)? });
            for op in batch.ops.iter() {
                wire.push(shard, op)?;
            }
        }
        wire.alarm_puts.sort_unstable_by_key(|row| (row.shard, row.interface, row.instance, row.id));
        wire.alarm_removes.sort_unstable_by_key(|row| (row.shard, row.interface, row.instance, row.id));
        wire.message_puts.sort_unstable_by_key(|row| (row.shard, row.interface, row.instance, row.id));
        wire.message_removes.sort_unstable_by_key(|row| (row.shard, row.interface, row.instance, row.id));
        wire.dead_puts.sort_unstable_by_key(|r| (r.shard, r.died_at, r.interface, r.instance, r.is_message, r.id));
        wire.dead_removes.sort_unstable_by_key(|r| (r.shard, r.died_at, r.interface, r.instance, r.is_message, r.id));
        wire.value_puts.sort_unstable_by_key(|row| (row.shard, row.interface, row.instance, row.key));
        wire.value_removes.sort_unstable_by_key(|row| (row.shard, row.interface, row.instance, row.key));
        Ok(wire)
    }

    /// The arguments, in the order of the function's.
    pub(super) fn params<'p>(&'p self, place: &'p Place) -> [&'p (dyn ToSql + Sync); 13] {
        [
            &place.incarnation,
            &place.lane,
            &place.seq,
            &self.batches,
            &self.alarm_puts,
            &self.alarm_removes,
            &self.message_puts,
            &self.message_removes,
            &self.dead_puts,
            &self.dead_removes,
            &self.value_puts,
            &self.value_removes,
            &place.known,
        ]
    }

    fn push(&mut self, shard: i32, op: &'a Op) -> Result<(), StoreError> {
        match op {
            Op::PutAlarm(row) => self.alarm_puts.push(alarm_put(shard, row)?),
            Op::RemoveAlarm { name, id, revision } => {
                let (interface, instance) = split(name);
                let rev_epoch = number("epoch", revision.epoch.0)?;
                let rev_counter = number("revision", revision.counter)?;
                self.alarm_removes.push(AlarmRemove { shard, interface, instance, id, rev_epoch, rev_counter });
            }
            Op::PutMessage(row) => {
                let (interface, instance) = split(&row.name);
                self.message_puts.push(MessagePut {
                    shard,
                    interface,
                    instance,
                    id: &row.id,
                    arrived: row.arrived.as_millis(),
                    due: row.due.as_millis(),
                    attempt: row.attempts.failed.into(),
                    crashes: row.attempts.crashes.into(),
                    started: row.attempts.started,
                    last_error: row.attempts.last_error.as_deref(),
                });
            }
            Op::RemoveMessage(key) => {
                let ((interface, instance), arrived) = (split(&key.name), key.arrived.as_millis());
                self.message_removes.push(MessageRemove { shard, interface, instance, id: &key.id, arrived });
            }
            Op::PutDead(letter) => self.dead_puts.push(dead_put(shard, letter)?),
            Op::RemoveDead(key) => {
                let ((interface, instance), died_at) = (split(&key.name), key.died_at.as_millis());
                let is_message = key.is_message;
                self.dead_removes.push(DeadRemove { shard, died_at, interface, instance, is_message, id: &key.id });
            }
            Op::Put { name, key, value } => {
                let (interface, instance) = split(name);
                self.value_puts.push(ValuePut { shard, interface, instance, key, value });
            }
            Op::Delete { name, key } => {
                let (interface, instance) = split(name);
                self.value_removes.push(ValueRemove { shard, interface, instance, key });
            }
        }
        Ok(())
    }
}

impl<'a> MessageNew<'a> {
    pub(super) fn new(message: &'a NewMessage) -> Result<MessageNew<'a>, StoreError> {
        let (interface, instance) = split(&message.name);
        Ok(MessageNew {
            shard: shard(message.shard)?,
            interface,
            instance,
            id: &message.id,
            headers: headers(&message.headers)?,
            body: &message.body,
        })
    }

    /// The names that make it the same message as another.
    pub(super) fn identity(&self) -> (i32, &'a str, &'a str, &'a str) {
        (self.shard, self.interface, self.instance, self.id)
    }
}

fn split(name: &InstanceName) -> (&str, &str) {
    (&name.interface, &name.instance)
}

fn alarm_put(shard: i32, row: &AlarmRow) -> Result<AlarmPut<'_>, StoreError> {
    let (interface, instance) = split(&row.name);
    Ok(AlarmPut {
        shard,
        interface,
        instance,
        id: &row.id,
        due: row.due.as_millis(),
        scheduled_at: row.scheduled_at.as_millis(),
        rev_epoch: number("epoch", row.revision.epoch.0)?,
        rev_counter: number("revision", row.revision.counter)?,
        attempt: row.attempts.failed.into(),
        crashes: row.attempts.crashes.into(),
        started: row.attempts.started,
        last_error: row.attempts.last_error.as_deref(),
        meta: &row.meta,
    })
}

fn dead_put(shard: i32, letter: &DeadLetter) -> Result<DeadPut<'_>, StoreError> {
    let (died_at, reason) = (letter.died_at.as_millis(), &*letter.reason);
    Ok(match &letter.row {
        DeadRow::Alarm(row) => {
            let put = alarm_put(shard, row)?;
            DeadPut {
                shard,
                died_at,
                interface: put.interface,
                instance: put.instance,
                is_message: false,
                id: put.id,
                reason,
                due: put.due,
                scheduled_at: Some(put.scheduled_at),
                rev_epoch: Some(put.rev_epoch),
                rev_counter: Some(put.rev_counter),
                arrived: None,
                headers: None,
                attempt: put.attempt,
                crashes: put.crashes,
                started: put.started,
                last_error: put.last_error,
                body: put.meta,
            }
        }
        DeadRow::Message(row) => {
            let (interface, instance) = split(&row.name);
            DeadPut {
                shard,
                died_at,
                interface,
                instance,
                is_message: true,
                id: &row.id,
                reason,
                due: row.due.as_millis(),
                scheduled_at: None,
                rev_epoch: None,
                rev_counter: None,
                arrived: Some(row.arrived.as_millis()),
                headers: Some(headers(&row.headers)?),
                attempt: row.attempts.failed.into(),
                crashes: row.attempts.crashes.into(),
                started: row.attempts.started,
                last_error: row.attempts.last_error.as_deref(),
                body: &row.body,
            }
        }
    })
}
