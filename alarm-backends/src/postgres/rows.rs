//! Rows of Postgres turned into the types of the contract, each or the reason why it could not be.
//!
//! A row whose `format` is newer than [`FORMAT`] is not looked at any further.

use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::Timestamp;
use stable_interfaces::store::{
    AlarmRow, Attempts, BoxError, DamageReason, DeadLetter, DeadRow, Epoch, InboxRow, InstanceName, MessageHeaders,
    Revision,
};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

/// The format of the rows that this code writes.
const FORMAT: i16 = 1;

/// A row by the names of its columns.
pub(super) trait Columns {
    /// The value of a column, or why there is none of this type.
    fn column<'a, T: FromSql<'a>>(&'a self, name: &str) -> Result<T, BoxError>;
}

impl Columns for Row {
    fn column<'a, T: FromSql<'a>>(&'a self, name: &str) -> Result<T, BoxError> {
        self.try_get(name).map_err(|error| match std::error::Error::source(&error) {
            Some(cause) => cause.to_string().into(),
            None => error.into(),
        })
    }
}

pub(super) fn alarm(row: &impl Columns) -> Result<AlarmRow, DamageReason> {
    check_format(row)?;
    alarm_with(row, "meta")
}

fn alarm_with(row: &impl Columns, meta: &str) -> Result<AlarmRow, DamageReason> {
    let revision = Revision { epoch: Epoch(unsigned(row, "rev_epoch")?), counter: unsigned(row, "rev_counter")? };
    Ok(AlarmRow {
        name: name(row)?,
        id: text(row, "id")?,
        due: time(row, "due")?,
        scheduled_at: time(row, "scheduled_at")?,
        revision,
        attempts: attempts(row)?,
        meta: bytes(row, meta)?,
    })
}

pub(super) fn message(row: &impl Columns) -> Result<InboxRow, DamageReason> {
    check_format(row)?;
    let headers: MessageHeaders = serde_json::from_slice(get(row, "headers")?)
        .map_err(|error| DamageReason::Undecodable(format!("headers: {error}")))?;
    Ok(InboxRow {
        name: name(row)?,
        id: text(row, "id")?,
        arrived: time(row, "arrived")?,
        due: time(row, "due")?,
        attempts: attempts(row)?,
        headers,
        body: bytes(row, "body")?,
    })
}

pub(super) fn dead(row: &impl Columns) -> Result<DeadLetter, DamageReason> {
    check_format(row)?;
    let dead = if get(row, "is_message")? {
        DeadRow::Message(message(row)?)
    } else {
        DeadRow::Alarm(alarm_with(row, "body")?)
    };
    Ok(DeadLetter { died_at: time(row, "died_at")?, reason: text(row, "reason")?, row: dead })
}

pub(super) fn value(row: &impl Columns) -> Result<(Arc<str>, Bytes), DamageReason> {
    check_format(row)?;
    Ok((text(row, "key")?, bytes(row, "value")?))
}

fn attempts(row: &impl Columns) -> Result<Attempts, DamageReason> {
    Ok(Attempts {
        failed: unsigned(row, "attempt")?,
        crashes: unsigned(row, "crashes")?,
        started: get(row, "started")?,
        last_error: get::<Option<&str>>(row, "last_error")?.map(Arc::from),
    })
}

fn check_format(row: &impl Columns) -> Result<(), DamageReason> {
    match get::<i16>(row, "format")? {
        FORMAT => Ok(()),
        newer @ 2.. => Err(DamageReason::NewerVersion(newer.unsigned_abs().into())),
        other => Err(DamageReason::Undecodable(format!("there is no row format {other}"))),
    }
}

fn get<'a, T: FromSql<'a>>(row: &'a impl Columns, column: &str) -> Result<T, DamageReason> {
    row.column(column).map_err(|cause| DamageReason::Undecodable(format!("{column}: {cause}")))
}

fn text(row: &impl Columns, column: &str) -> Result<Arc<str>, DamageReason> {
    get::<&str>(row, column).map(Arc::from)
}

fn bytes(row: &impl Columns, column: &str) -> Result<Bytes, DamageReason> {
    get::<&[u8]>(row, column).map(Bytes::copy_from_slice)
}

fn name(row: &impl Columns) -> Result<InstanceName, DamageReason> {
    Ok(InstanceName { interface: text(row, "interface")?, instance: text(row, "instance")? })
}

fn unsigned<N: TryFrom<i64>>(row: &impl Columns, column: &str) -> Result<N, DamageReason> {
    let stored: i64 = get(row, column)?;
    stored.try_into().map_err(|_| DamageReason::Undecodable(format!("{column}: {stored} is out of range")))
}

/// A time outside the years that a [`Timestamp`] has would come back as another, and pages would lose their place.
fn time(row: &impl Columns, column: &str) -> Result<Timestamp, DamageReason> {
    let millis: i64 = get(row, column)?;
    let time = Timestamp::from_millis(millis);
    if time.as_millis() == millis {
        return Ok(time);
    }
    Err(DamageReason::Undecodable(format!("{column}: {millis} is not a time between the years 1 and 9999")))
}
