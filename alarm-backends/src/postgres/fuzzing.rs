//! Any bytes as the columns of a row: see [`crate::fuzzing`].

#![allow(clippy::must_use_candidate, reason = "what it returns is for the tests")]

use std::collections::BTreeMap;

use bytes::BytesMut;
use postgres_types::{Field, FromSql, Kind, ToSql, Type};
use stable_interfaces::store::{
    Batch, BoxError, Epoch, InboxRow, Incarnation, InstanceName, Lane, NewMessage, Op, ShardId, Write,
};

use super::rows::{self, Columns};
use super::wire::{MessageNew, WireWrite};
use crate::fuzzing::Parts;

/// The columns of each table that a page has, and their types.
const ALARM: &[(&str, Type)] = &[
    ("interface", Type::TEXT),
    ("instance", Type::TEXT),
    ("id", Type::TEXT),
    ("due", Type::INT8),
    ("scheduled_at", Type::INT8),
    ("rev_epoch", Type::INT8),
    ("rev_counter", Type::INT8),
    ("attempt", Type::INT8),
    ("crashes", Type::INT8),
    ("started", Type::BOOL),
    ("last_error", Type::TEXT),
    ("meta", Type::BYTEA),
    ("format", Type::INT2),
];
const INBOX: &[(&str, Type)] = &[
    ("interface", Type::TEXT),
    ("instance", Type::TEXT),
    ("id", Type::TEXT),
    ("arrived", Type::INT8),
    ("due", Type::INT8),
    ("attempt", Type::INT8),
    ("crashes", Type::INT8),
    ("started", Type::BOOL),
    ("last_error", Type::TEXT),
    ("headers", Type::BYTEA),
    ("body", Type::BYTEA),
    ("format", Type::INT2),
];
const DEAD: &[(&str, Type)] = &[
    ("died_at", Type::INT8),
    ("interface", Type::TEXT),
    ("instance", Type::TEXT),
    ("is_message", Type::BOOL),
    ("id", Type::TEXT),
    ("reason", Type::TEXT),
    ("due", Type::INT8),
    ("scheduled_at", Type::INT8),
    ("rev_epoch", Type::INT8),
    ("rev_counter", Type::INT8),
    ("arrived", Type::INT8),
    ("headers", Type::BYTEA),
    ("attempt", Type::INT8),
    ("crashes", Type::INT8),
    ("started", Type::BOOL),
    ("last_error", Type::TEXT),
    ("body", Type::BYTEA),
    ("format", Type::INT2),
];
const STORAGE: &[(&str, Type)] = &[("key", Type::TEXT), ("value", Type::BYTEA), ("format", Type::INT2)];

/// The fields of the composite types of `tables.sql`, in their order.
const ALARM_PUT: &[&str] = &[
    "shard",
    "interface",
    "instance",
    "id",
    "due",
    "scheduled_at",
    "rev_epoch",
    "rev_counter",
    "attempt",
    "crashes",
    "started",
    "last_error",
    "meta",
];
const MESSAGE_NEW: &[&str] = &["shard", "interface", "instance", "id", "headers", "body"];
const MESSAGE_PUT: &[&str] =
    &["shard", "interface", "instance", "id", "arrived", "due", "attempt", "crashes", "started", "last_error"];
const DEAD_PUT: &[&str] = &[
    "shard",
    "died_at",
    "interface",
    "instance",
    "is_message",
    "id",
    "reason",
    "due",
    "scheduled_at",
    "rev_epoch",
    "rev_counter",
    "arrived",
    "headers",
    "attempt",
    "crashes",
    "started",
    "last_error",
    "body",
];
const VALUE_PUT: &[&str] = &["shard", "interface", "instance", "key", "value"];

/// A row as it comes over the wire.
#[derive(Debug, Default)]
pub(crate) struct WireRow(BTreeMap<&'static str, (Type, Option<Vec<u8>>)>);

impl Columns for WireRow {
    fn column<'a, T: FromSql<'a>>(&'a self, name: &str) -> Result<T, BoxError> {
        let (ty, raw) = self.0.get(name).ok_or("there is no such column")?;
        if !T::accepts(ty) {
            return Err(format!("it is of type {ty}").into());
        }
        T::from_sql_nullable(ty, raw.as_deref())
    }
}

fn type_of(column: &str) -> Type {
    let columns = [ALARM, INBOX, DEAD, STORAGE].into_iter().flatten();
    columns.into_iter().find(|(name, _)| *name == column).map_or(Type::INT4, |(_, ty)| ty.clone())
}

impl WireRow {
    /// The row of these bytes: for each column its length and itself; 255 for NULL.
    fn new(columns: &'static [(&'static str, Type)], parts: &mut Parts<'_>) -> WireRow {
        let mut column = |(name, ty): &(&'static str, Type)| {
            let raw = if parts.0.first() == Some(&255) {
                parts.byte();
                None
            } else {
                Some(parts.bytes().to_vec())
            };
            (*name, (ty.clone(), raw))
        };
        WireRow(columns.iter().map(&mut column).collect())
    }

    /// Takes in the fields of a composite as they are sent, under the names of the columns that they become.
    fn write(&mut self, name: &str, fields: &[&'static str], value: &dyn ToSql) {
        let field = |name: &&str| Field::new((*name).to_owned(), type_of(name));
        let kind = Kind::Composite(fields.iter().map(field).collect());
        let ty = Type::new(name.to_owned(), 100_000, kind, "public".to_owned());
        let mut out = BytesMut::new();
        value.to_sql_checked(&ty, &mut out).expect("what was read can be sent");
        let mut rest = &out[4..];
        for field in fields {
            // Its type, its length or -1, and itself.
            let length = i32::from_be_bytes(rest[4..8].try_into().expect("four bytes"));
            rest = &rest[8..];
            let raw = usize::try_from(length).ok().map(|length| rest[..length].to_vec());
            rest = &rest[raw.as_ref().map_or(0, Vec::len)..];
            self.0.insert(field, (type_of(field), raw));
        }
        assert!(rest.is_empty(), "a composite has more fields than its type");
        self.0.insert("format", (Type::INT2, Some(vec![0, 1])));
    }

    /// The bytes that [`new`](Self::new) makes this of.
    #[cfg(test)]
    fn bytes(&self, columns: &'static [(&'static str, Type)]) -> Vec<u8> {
        let column = |(name, _): &(&'static str, Type)| match &self.0[name].1 {
            None => vec![255],
            Some(raw) => [&[u8::try_from(raw.len()).expect("seeds are short")][..], raw].concat(),
        };
        columns.iter().flat_map(column).collect()
    }
}

/// The row that is stored by an operation.
pub(crate) fn written(op: &Op) -> WireRow {
    let mut row = WireRow::default();
    let batches = vec![Batch { shard: ShardId(0), epoch: Epoch(1), ops: [op.clone()].into() }];
    let write = Write { incarnation: Incarnation(1), lane: Lane(0), seq: 1, batches };
    let wire = WireWrite::new(&write).expect("what was read can be sent");
    match op {
        Op::PutAlarm(_) => row.write("alarm_put", ALARM_PUT, &wire.alarm_puts[0]),
        Op::PutDead(_) => row.write("dead_put", DEAD_PUT, &wire.dead_puts[0]),
        Op::Put { .. } => row.write("value_put", VALUE_PUT, &wire.value_puts[0]),
        Op::PutMessage(InboxRow { name, id, headers, body, .. }) => {
            let (name, id, headers, body) = (name.clone(), id.clone(), headers.clone(), body.clone());
            let posted = NewMessage { shard: ShardId(0), name, id, headers, body };
            row.write("message_new", MESSAGE_NEW, &MessageNew::new(&posted).expect("what was read can be sent"));
            row.write("message_put", MESSAGE_PUT, &wire.message_puts[0]);
        }
        _ => {}
    }
    row
}

/// A table (1 byte) and a row's columns: it is a row or there is a reason, and it reads the same when it is written again.
pub fn rows(data: &[u8]) -> bool {
    let mut parts = Parts(data);
    match parts.byte() % 4 {
        0 => {
            let Ok(row) = rows::alarm(&WireRow::new(ALARM, &mut parts)) else { return false };
            assert_eq!(rows::alarm(&written(&Op::PutAlarm(row.clone()))), Ok(row));
        }
        1 => {
            let Ok(row) = rows::message(&WireRow::new(INBOX, &mut parts)) else { return false };
            assert_eq!(rows::message(&written(&Op::PutMessage(row.clone()))), Ok(row));
        }
        2 => {
            let Ok(letter) = rows::dead(&WireRow::new(DEAD, &mut parts)) else { return false };
            assert_eq!(rows::dead(&written(&Op::PutDead(letter.clone()))), Ok(letter));
        }
        _ => {
            let Ok((key, value)) = rows::value(&WireRow::new(STORAGE, &mut parts)) else { return false };
            let name = InstanceName { interface: "order".into(), instance: "17".into() };
            let again = written(&Op::Put { name, key: key.clone(), value: value.clone() });
            assert_eq!(rows::value(&again), Ok((key, value)));
        }
    }
    true
}

/// The inputs that the fuzzer is to begin with, of a row that an operation stores.
#[cfg(test)]
pub(crate) fn seed(op: &Op) -> Vec<u8> {
    let (table, columns) = match op {
        Op::PutAlarm(_) => (0, ALARM),
        Op::PutMessage(_) => (1, INBOX),
        Op::PutDead(_) => (2, DEAD),
        _ => (3, STORAGE),
    };
    [vec![table], written(op).bytes(columns)].concat()
}
