//! Any bytes as an entry of a table: see [`crate::fuzzing`].

#![allow(clippy::must_use_candidate, reason = "what it returns is for the tests")]

use stable_interfaces::Timestamp;
use stable_interfaces::store::InstanceName;
#[cfg(test)]
use stable_interfaces::store::{Op, ShardId};

use super::key::{self, Reader};
use super::scan;
use crate::codec;
use crate::fuzzing::Parts;

fn timed(key: &[u8], name: &InstanceName, id: &str, time: Timestamp) -> Vec<u8> {
    let shard = key::shard_of(key).expect("a key that was read has a shard");
    key::timed(&key::identity(shard, name, id), time)
}

/// A table (1 byte), a key (its length and itself) and a value: one row has one key, and reads the same when it is written again.
pub fn rows(data: &[u8]) -> bool {
    let mut parts = Parts(data);
    let (table, key, mut reader) = (parts.byte() % 4, parts.bytes(), Reader::default());
    let value = parts.0;
    match table {
        0 => {
            let Ok(row) = scan::alarm(&mut reader, key, value) else { return false };
            assert_eq!(timed(key, &row.name, &row.id, row.due), key);
            assert_eq!(scan::alarm(&mut reader, key, &codec::encode_alarm(&row)), Ok(row));
        }
        1 => {
            let Ok(row) = scan::message(&mut reader, key, value) else { return false };
            assert_eq!(timed(key, &row.name, &row.id, row.arrived), key);
            assert_eq!(scan::message(&mut reader, key, &codec::encode_message(&row)), Ok(row));
        }
        2 => {
            let Ok(letter) = scan::dead(&mut reader, key, value) else { return false };
            let shard = key::shard_of(key).expect("a key that was read has a shard");
            assert_eq!(key::dead(shard, &letter.key()), key);
            assert_eq!(scan::dead(&mut reader, key, &codec::encode_dead(&letter)), Ok(letter));
        }
        // What is found by identity: the ID behind the prefix of an instance, which is the value here.
        _ => {
            let Ok(id) = key::id_after(value, key) else { return false };
            assert_eq!(&key[value.len()..], id.as_bytes());
        }
    }
    true
}

/// Table, key and value of a row that is stored by an operation.
#[cfg(test)]
pub(crate) fn seed(shard: ShardId, op: &Op) -> (u8, Vec<u8>, Vec<u8>) {
    let timed = |name, id, time| key::timed(&key::identity(shard, name, id), time);
    match op {
        Op::PutAlarm(row) => (0, timed(&row.name, &row.id, row.due), codec::encode_alarm(row)),
        Op::PutMessage(row) => (1, timed(&row.name, &row.id, row.arrived), codec::encode_message(row)),
        Op::PutDead(letter) => (2, key::dead(shard, &letter.key()), codec::encode_dead(letter)),
        Op::Put { name, key, .. } => (3, key::identity(shard, name, key), key::identity(shard, name, "")),
        _ => unreachable!("it stores no row"),
    }
}
