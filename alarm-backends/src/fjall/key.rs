//! Keys whose bytes are ordered as the key types of the contract are.
//!
//! A key is its shard (4 bytes), in time-ordered tables the time, then owner and ID, as [`ordered`] has them. An entry that finds a
//! row by identity has the row's key without the time; [`timed`] puts it in.

use std::ops::Bound;
use std::sync::Arc;

use stable_interfaces::Timestamp;
use stable_interfaces::store::{DamageReason, DeadKey, InstanceName, ShardId};

use crate::ordered::{self, TIME, text, time_bytes, wrong};

/// The longest key that the underlying store takes.
pub(super) const MAX_KEY: usize = 65_535;

const SHARD: usize = 4;

/// The key of one instance's alarm, message or storage value.
pub(super) fn identity(shard: ShardId, name: &InstanceName, id: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(SHARD + TIME + name.interface.len() + name.instance.len() + id.len() + 3);
    key.extend_from_slice(&shard.0.to_be_bytes());
    ordered::put_identity(&mut key, name, id);
    key
}

/// `identity` with a time behind its shard: the key of a row in order of that time.
pub(super) fn timed(identity: &[u8], time: Timestamp) -> Vec<u8> {
    let (shard, rest) = identity.split_at(SHARD);
    let mut key = Vec::with_capacity(identity.len() + TIME);
    key.extend_from_slice(shard);
    key.extend_from_slice(&time_bytes(time));
    key.extend_from_slice(rest);
    key
}

/// Tells that `key` is [`timed`] of `identity` and some time.
pub(super) fn is_timed_of(key: &[u8], identity: &[u8]) -> bool {
    key.len() == identity.len() + TIME && key[..SHARD] == identity[..SHARD] && key[SHARD + TIME..] == identity[SHARD..]
}

/// The key of a dead letter.
pub(super) fn dead(shard: ShardId, key: &DeadKey) -> Vec<u8> {
    let mut out = shard.0.to_be_bytes().to_vec();
    ordered::put_dead(&mut out, key);
    out
}

/// The first possible key behind `key`.
pub(super) fn successor(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// The first key that `shard` can have.
pub(super) fn first_of(shard: ShardId) -> Vec<u8> {
    shard.0.to_be_bytes().to_vec()
}

/// The end of the keys of `shard`.
pub(super) fn end_of(shard: ShardId) -> Bound<Vec<u8>> {
    shard.0.checked_add(1).map_or(Bound::Unbounded, |next| Bound::Excluded(first_of(ShardId(next))))
}

/// The end of the keys of one instance.
pub(super) fn end_of_instance(shard: ShardId, name: &InstanceName) -> Vec<u8> {
    let mut key = identity(shard, name, "");
    // The last byte is the zero behind the instance's ID.
    if let Some(last) = key.last_mut() {
        *last = 1;
    }
    key
}

/// The shard of any key.
pub(super) fn shard_of(key: &[u8]) -> Option<ShardId> {
    Some(ShardId(u32::from_be_bytes(*key.first_chunk()?)))
}

/// Reads keys, as [`ordered::Reader`] does what follows the shard.
#[derive(Debug, Default)]
pub(super) struct Reader(ordered::Reader);

impl Reader {
    /// Time, owner and ID of a key made by [`timed`].
    pub(super) fn timed(&mut self, key: &[u8]) -> Result<(Timestamp, InstanceName, Arc<str>), DamageReason> {
        self.0.timed(after_shard(key)?)
    }

    /// The parts of a key made by [`dead`].
    pub(super) fn dead(&mut self, key: &[u8]) -> Result<DeadKey, DamageReason> {
        self.0.dead(after_shard(key)?)
    }
}

fn after_shard(key: &[u8]) -> Result<&[u8], DamageReason> {
    key.get(SHARD..).ok_or_else(|| wrong("its key ends within the shard"))
}

/// The ID at the end of a key made by [`identity`] for an instance whose keys all begin with `prefix`.
pub(super) fn id_after<'a>(prefix: &[u8], key: &'a [u8]) -> Result<&'a str, DamageReason> {
    text(key.get(prefix.len()..).ok_or_else(|| wrong("its key is too short"))?)
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::ordered::drawn::{alarm_key, assert_ordered, bytes, dead_key, name, text, time};

    fn shard(rng: &mut Rng) -> ShardId {
        ShardId([0, 1, 255, 256, u32::MAX][rng.usize(..5)])
    }

    #[test]
    fn keys_are_ordered_as_what_they_were_made_of() {
        let rng = &mut Rng::with_seed(3);
        let (mut alarms, mut letters) = (Vec::new(), Vec::new());
        for _ in 0..600 {
            let (shard, key) = (shard(rng), alarm_key(rng));
            alarms.push((timed(&identity(shard, &key.name, &key.id), key.due), (shard, key)));
            let key = dead_key(rng);
            letters.push((dead(shard, &key), (shard, key)));
        }
        assert_ordered(&alarms);
        assert_ordered(&letters);
    }

    #[test]
    fn a_key_is_read_back_as_it_was_made() {
        let rng = &mut Rng::with_seed(4);
        let mut reader = Reader::default();
        for _ in 0..2_000 {
            let (shard, time, name, id) = (shard(rng), time(rng), name(rng), text(rng));
            let identity = identity(shard, &name, &id);
            let key = timed(&identity, time);
            assert!(is_timed_of(&key, &identity));
            assert_eq!(shard_of(&key), Some(shard));
            assert_eq!(reader.timed(&key), Ok((time, name.clone(), id.clone())));
            let key = dead_key(rng);
            assert_eq!(reader.dead(&dead(shard, &key)), Ok(key));
        }
    }

    #[test]
    fn any_bytes_are_a_key_or_a_reason() {
        let rng = &mut Rng::with_seed(5);
        let mut reader = Reader::default();
        for _ in 0..20_000 {
            let bytes = bytes(rng);
            if let Ok((time, name, id)) = reader.timed(&bytes) {
                let shard = shard_of(&bytes).unwrap();
                assert_eq!(timed(&identity(shard, &name, &id), time), bytes, "one key, one way to write it");
            }
            let _ = reader.dead(&bytes);
        }
    }

    #[test]
    fn bounds_hold_a_shard_and_an_instance_and_nothing_else() {
        let rng = &mut Rng::with_seed(6);
        let name = InstanceName { interface: "a".into(), instance: "b".into() };
        let inside = |shard: ShardId, key: &[u8]| {
            let (first, end) = (identity(shard, &name, ""), end_of_instance(shard, &name));
            first.as_slice() <= key && key < end.as_slice()
        };
        for _ in 0..2_000 {
            let (shard, other) = (shard(rng), self::name(rng));
            assert!(inside(shard, &identity(shard, &name, &text(rng))));
            assert_eq!(inside(shard, &identity(shard, &other, &text(rng))), other == name);
        }
        assert_eq!(end_of(ShardId(1)), Bound::Excluded(vec![0, 0, 0, 2]));
        assert_eq!(end_of(ShardId(u32::MAX)), Bound::Unbounded);
    }
}
