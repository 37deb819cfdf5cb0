//! Any bytes as a member of a sorted set and its row: see [`crate::fuzzing`].

#![allow(clippy::must_use_candidate, reason = "what it returns is for the tests")]

use stable_interfaces::store::Op;

#[cfg(test)]
use super::super::write::Encoded;
use super::super::write::encoded;
use super::*;
use crate::fuzzing::Parts;

fn walk(table: Table) -> Walk {
    Walk::new(ShardId(0), table, Vec::new(), Vec::new(), 1)
}

/// A table (1 byte, and whether there is a progress), a member and the progress (each its length and itself) and a row: one row
/// has one member, and reads the same when it is written again.
pub fn rows(data: &[u8]) -> bool {
    let mut parts = Parts(data);
    let kind = parts.byte();
    let table = [Table::Due, Table::Alarms, Table::Inbox, Table::Dead, Table::Storage][usize::from(kind & 0x7f) % 5];
    let (member, progress) = (parts.bytes(), (kind & 0x80 != 0).then(|| parts.bytes().to_vec()));
    let mut found = walk(table);
    if found.take_row(member, Some(parts.0.to_vec()), progress).is_err() {
        return false;
    }
    let mut again = walk(table);
    match (&found.rows, found.values.first()) {
        (_, Some((key, value))) => {
            let (name, _) = found.reader.identity(member).expect("it was read");
            let stored = encoded(&Op::Put { name, key: key.clone(), value: value.clone() }).expect("it was stored");
            assert_eq!(stored.name, member);
            again.take_row(member, Some(stored.value), None).expect("what was written is read");
        }
        (Rows::Alarms(rows), _) => {
            let stored = encoded(&Op::PutAlarm(rows[0].clone())).expect("it was stored");
            let own = if table == Table::Due { key::timed(rows[0].due, &stored.name) } else { stored.name.clone() };
            assert_eq!(own, member);
            again.take_row(member, Some(stored.value), None).expect("what was written is read");
        }
        (Rows::Inbox(rows), _) => {
            let stored = encoded(&Op::PutMessage(rows[0].clone())).expect("it was stored");
            assert_eq!(stored.name, member);
            // Headers and body are not in the progress.
            let row = [&[LAYOUT][..], &member[..TIME], &codec::encode_message(&rows[0])].concat();
            again.take_row(member, Some(row), Some(stored.value)).expect("what was written is read");
        }
        (Rows::Dead(rows), _) => {
            let stored = encoded(&Op::PutDead(rows[0].clone())).expect("it was stored");
            assert_eq!(stored.name, member);
            again.take_row(member, Some(stored.value), None).expect("what was written is read");
        }
    }
    assert_eq!((again.rows, again.values), (found.rows, found.values), "written again");
    true
}

/// Table, member, progress and row.
#[cfg(test)]
pub(crate) type Seed = (u8, Vec<u8>, Option<Vec<u8>>, Vec<u8>);

/// The rows that an operation stores, for each way in which they are found.
#[cfg(test)]
pub(crate) fn seeds(op: &Op) -> Vec<Seed> {
    let Encoded { name: member, value: row, .. } = encoded(op).unwrap();
    match op {
        Op::PutAlarm(alarm) => vec![(0, key::timed(alarm.due, &member), None, row.clone()), (1, member, None, row)],
        Op::PutMessage(message) => {
            let posted = [&[LAYOUT][..], &member[..TIME], &codec::encode_message(message)].concat();
            vec![(2, member.clone(), None, posted.clone()), (0x80 | 2, member, Some(row), posted)]
        }
        Op::PutDead(_) => vec![(3, member, None, row)],
        _ => vec![(4, member, None, row)],
    }
}
