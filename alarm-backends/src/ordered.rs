//! Bytes that are ordered as the key types of the contract are, for stores that order keys by their bytes.
//!
//! A time is 8 bytes, big-endian, its sign bit flipped. Interface and instance are each ended by a zero byte, and the ID comes
//! last. Texts hold no NUL, so the zero byte sorts a text before every longer one that begins with it. What goes before all that
//! is the store's own.

use std::sync::Arc;

use stable_interfaces::Timestamp;
use stable_interfaces::store::{DamageReason, DeadKey, InstanceName};

/// Bytes of a time.
pub(crate) const TIME: usize = 8;

/// A time as bytes in its order.
pub(crate) fn time_bytes(time: Timestamp) -> [u8; TIME] {
    (time.as_millis().cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

/// The time that [`time_bytes`] wrote, and what follows it.
pub(crate) fn split_time(bytes: &[u8]) -> Result<(Timestamp, &[u8]), DamageReason> {
    let (time, rest) = bytes.split_first_chunk().ok_or_else(|| wrong("its key ends within the time"))?;
    let millis = (u64::from_be_bytes(*time) ^ (1 << 63)).cast_signed();
    let time = Timestamp::from_millis(millis);
    if time.as_millis() == millis { Ok((time, rest)) } else { Err(wrong("its key has an impossible time")) }
}

/// Writes owner and ID: behind a time, or where a row is found by its identity.
pub(crate) fn put_identity(out: &mut Vec<u8>, name: &InstanceName, id: &str) {
    put_name(out, name);
    out.extend_from_slice(id.as_bytes());
}

/// Writes the parts of a dead letter's key: its time, its owner, a byte that says whether it is a message, and its ID.
pub(crate) fn put_dead(out: &mut Vec<u8>, key: &DeadKey) {
    out.extend_from_slice(&time_bytes(key.died_at));
    put_name(out, &key.name);
    out.push(u8::from(key.is_message));
    out.extend_from_slice(key.id.as_bytes());
}

fn put_name(out: &mut Vec<u8>, name: &InstanceName) {
    for text in [&name.interface, &name.instance] {
        out.extend_from_slice(text.as_bytes());
        out.push(0);
    }
}

/// Reads what a store has written, and shares the name of an interface among neighbours: a page of alarms is usually of one.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    interface: Option<Arc<str>>,
}

impl Reader {
    /// Time, owner and ID.
    pub(crate) fn timed(&mut self, bytes: &[u8]) -> Result<(Timestamp, InstanceName, Arc<str>), DamageReason> {
        let (time, rest) = split_time(bytes)?;
        let (name, id) = self.identity(rest)?;
        Ok((time, name, id))
    }

    /// Owner and ID.
    pub(crate) fn identity(&mut self, bytes: &[u8]) -> Result<(InstanceName, Arc<str>), DamageReason> {
        let (name, id) = self.name(bytes)?;
        Ok((name, text(id)?.into()))
    }

    /// The parts of a dead letter's key: its time, its owner, a byte that says whether it is a message, and its ID.
    pub(crate) fn dead(&mut self, bytes: &[u8]) -> Result<DeadKey, DamageReason> {
        let (died_at, rest) = split_time(bytes)?;
        let (name, rest) = self.name(rest)?;
        let (kind, id) = rest.split_first().ok_or_else(|| wrong("its key ends before the kind"))?;
        let is_message = match kind {
            0 => false,
            1 => true,
            _ => return Err(wrong("its key has an unknown kind")),
        };
        Ok(DeadKey { died_at, name, is_message, id: text(id)?.into() })
    }

    fn name<'a>(&mut self, bytes: &'a [u8]) -> Result<(InstanceName, &'a [u8]), DamageReason> {
        let (interface, rest) = split_text(bytes)?;
        let (instance, rest) = split_text(rest)?;
        let interface = match &self.interface {
            Some(known) if **known == *interface => known.clone(),
            _ => self.interface.insert(interface.into()).clone(),
        };
        Ok((InstanceName { interface, instance: instance.into() }, rest))
    }
}

/// A text at the end of a key.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, DamageReason> {
    if bytes.contains(&0) {
        return Err(wrong("its key has a NUL in its ID"));
    }
    std::str::from_utf8(bytes).map_err(|_| wrong("its key is not UTF-8"))
}

pub(crate) fn wrong(what: &str) -> DamageReason {
    DamageReason::Undecodable(what.to_owned())
}

fn split_text(bytes: &[u8]) -> Result<(&str, &[u8]), DamageReason> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or_else(|| wrong("its key ends within a name"))?;
    Ok((text(&bytes[..end])?, &bytes[end + 1..]))
}

/// Keys drawn for the tests of the stores, close enough to one another to be mistaken.
#[cfg(test)]
pub(crate) mod drawn {
    use fastrand::Rng;
    use stable_interfaces::store::AlarmKey;

    use super::*;

    /// Short texts of few letters, so that many are equal or begin with one another.
    pub(crate) fn text(rng: &mut Rng) -> Arc<str> {
        let letters = ['\u{1}', 'a', 'b', '~', 'é', '\u{10ffff}'];
        (0..rng.usize(..4)).map(|_| letters[rng.usize(..letters.len())]).collect::<String>().into()
    }

    pub(crate) fn name(rng: &mut Rng) -> InstanceName {
        InstanceName { interface: text(rng), instance: text(rng) }
    }

    pub(crate) fn time(rng: &mut Rng) -> Timestamp {
        let times = [i64::MIN, -1_000_000_000_000, -256, -1, 0, 1, 255, 256, 999_999_999_999, i64::MAX];
        Timestamp::from_millis(times[rng.usize(..times.len())])
    }

    pub(crate) fn alarm_key(rng: &mut Rng) -> AlarmKey {
        AlarmKey { due: time(rng), name: name(rng), id: text(rng) }
    }

    pub(crate) fn dead_key(rng: &mut Rng) -> DeadKey {
        DeadKey { died_at: time(rng), name: name(rng), is_message: rng.bool(), id: text(rng) }
    }

    pub(crate) fn bytes(rng: &mut Rng) -> Vec<u8> {
        (0..rng.usize(..30)).map(|_| if rng.bool() { 0 } else { rng.u8(..) }).collect()
    }

    /// Compares the order of bytes with the order of what they were made of, each with each.
    pub(crate) fn assert_ordered<K: Ord + std::fmt::Debug>(made: &[(Vec<u8>, K)]) {
        for (bytes, key) in made {
            for (other_bytes, other_key) in made {
                assert_eq!(bytes.cmp(other_bytes), key.cmp(other_key), "{key:?} and {other_key:?}");
            }
        }
    }
}
