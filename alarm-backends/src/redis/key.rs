//! The names of keys, and members whose bytes are ordered as the key types of the contract are.
//!
//! All keys of a shard have one hash tag, `{prefix:shard}`, those of the fleet `{prefix}`: in a cluster each is on one server, and a
//! script may use all of them.
//!
//! A member is, in time-ordered sets, the time, then owner and ID, as [`ordered`](crate::ordered) has them. Sorted sets order members
//! of one score by their bytes; their scores are doubles, so all of ours are zero.

use stable_interfaces::Timestamp;
use stable_interfaces::store::{BoxError, DeadKey, InstanceName, ShardId};

use crate::ordered::{self, time_bytes};

/// Makes the names of keys.
#[derive(Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    /// # Errors
    /// A text that says what the prefix has and may not have.
    pub(super) fn new(prefix: &str) -> Result<Keys, String> {
        let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(is_fine) {
            return Err(format!("the key prefix {prefix:?} is not 1 to 64 letters, digits or any of -_./"));
        }
        Ok(Keys { prefix: prefix.to_owned() })
    }

    /// A key of the fleet.
    pub(super) fn fleet(&self, suffix: &str) -> String {
        format!("{{{}}}:{suffix}", self.prefix)
    }

    /// Keys of a shard.
    pub(super) fn shard<const N: usize>(&self, shard: ShardId, suffixes: [&str; N]) -> [String; N] {
        let tag = self.tag(shard);
        suffixes.map(|suffix| [&*tag, suffix].concat())
    }

    /// The beginning of each key of a shard.
    pub(super) fn tag(&self, shard: ShardId) -> String {
        format!("{{{}:{shard}}}:", self.prefix)
    }

    /// The channel on which nudges are published.
    pub(super) fn channel(&self) -> String {
        format!("{}:inbox", self.prefix)
    }
}

/// The cluster slot of a key: CRC-16/XMODEM of its hash tag, modulo 16,384 (the Redis cluster specification).
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = hashed.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    });
    crc % 16_384
}

/// The member of one instance's alarm, message or storage value.
///
/// # Errors
/// If a text has a NUL, which would make it look like another.
pub(super) fn identity(name: &InstanceName, id: &str) -> Result<Vec<u8>, BoxError> {
    check(name, id)?;
    let mut member = Vec::with_capacity(name.interface.len() + name.instance.len() + id.len() + 2);
    ordered::put_identity(&mut member, name, id);
    Ok(member)
}

/// `identity` behind a time.
pub(super) fn timed(time: Timestamp, identity: &[u8]) -> Vec<u8> {
    [time_bytes(time).as_slice(), identity].concat()
}

/// The member of a dead letter.
///
/// # Errors
/// As [`identity`].
pub(super) fn dead(key: &DeadKey) -> Result<Vec<u8>, BoxError> {
    check(&key.name, &key.id)?;
    let mut member = Vec::new();
    ordered::put_dead(&mut member, key);
    Ok(member)
}

/// The bytes that the members of one instance begin with.
///
/// # Errors
/// As [`identity`].
pub(super) fn prefix_of(name: &InstanceName) -> Result<Vec<u8>, BoxError> {
    identity(name, "")
}

fn check(name: &InstanceName, id: &str) -> Result<(), BoxError> {
    match [&name.interface, &name.instance, id].iter().any(|text| text.contains('\0')) {
        true => Err("a name, ID or key contains a NUL character".into()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::ordered::Reader;
    use crate::ordered::drawn::{alarm_key, assert_ordered, bytes, dead_key, name, text, time};

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        // `CLUSTER KEYSLOT` of Redis 7.0 gave these.
        assert_eq!(slot("123456789"), 12_739);
        assert_eq!(slot("foo"), 12_182);
        assert_eq!(slot("a{foo}b"), 12_182);
        assert_eq!(slot("{}foo"), 9_500);
    }

    #[test]
    fn keys_of_a_shard_share_a_slot_and_other_shards_have_others() {
        let keys = Keys::new("orders").unwrap();
        let [own, alarms] = keys.shard(ShardId(17), ["own", "alarms"]);
        assert_eq!((own.as_str(), slot(&own)), ("{orders:17}:own", slot(&alarms)));
        let slots: std::collections::BTreeSet<u16> =
            (0..1_000).map(|shard| slot(&keys.shard(ShardId(shard), ["own"])[0])).collect();
        assert!(slots.len() > 900, "{} slots", slots.len());
    }

    #[test]
    fn a_prefix_that_would_break_the_hash_tag_is_refused() {
        for prefix in ["", "a{b", "a}b", "a:b", "a b", &"x".repeat(65)] {
            assert!(Keys::new(prefix).is_err(), "{prefix:?}");
        }
        assert!(Keys::new("my-app/orders_2.0").is_ok());
    }

    #[test]
    fn members_are_ordered_as_what_they_were_made_of() {
        let rng = &mut Rng::with_seed(3);
        let (mut alarms, mut letters) = (Vec::new(), Vec::new());
        for _ in 0..600 {
            let key = alarm_key(rng);
            alarms.push((timed(key.due, &identity(&key.name, &key.id).unwrap()), key));
            let key = dead_key(rng);
            letters.push((dead(&key).unwrap(), key));
        }
        assert_ordered(&alarms);
        assert_ordered(&letters);
    }

    #[test]
    fn a_member_is_read_back_as_it_was_made() {
        let rng = &mut Rng::with_seed(4);
        let mut reader = Reader::default();
        for _ in 0..2_000 {
            let (time, name, id) = (time(rng), name(rng), text(rng));
            let identity = identity(&name, &id).unwrap();
            assert_eq!(reader.identity(&identity), Ok((name.clone(), id.clone())));
            assert_eq!(reader.timed(&timed(time, &identity)), Ok((time, name.clone(), id.clone())));
            let key = dead_key(rng);
            assert_eq!(reader.dead(&dead(&key).unwrap()), Ok(key));
        }
    }

    #[test]
    fn any_bytes_are_a_member_or_a_reason() {
        let rng = &mut Rng::with_seed(5);
        let mut reader = Reader::default();
        for _ in 0..20_000 {
            let bytes = bytes(rng);
            if let Ok((time, name, id)) = reader.timed(&bytes) {
                assert_eq!(timed(time, &identity(&name, &id).unwrap()), bytes, "one key, one way to write it");
            }
            let _ = reader.dead(&bytes);
        }
    }
}
