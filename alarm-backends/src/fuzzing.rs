//! The functions that the fuzz targets of this crate try on any bytes: each decodes what a store may hold. It gives a row or a reason, and a
//! row that is written again reads the same. The functions panic where that does not hold, and tell whether there was a row.
//!
//! `tests/run fuzz` feeds them what a fuzzer makes up; the test below, on every run, what is in `fuzz/corpus`.

#![allow(
    clippy::must_use_candidate,
    clippy::panic,
    missing_docs,
    reason = "not for programs; what does not hold ends the fuzzer"
)]

#[cfg(feature = "fjall")]
pub use crate::fjall::fuzzing::rows as fjall_rows;
#[cfg(feature = "postgres")]
pub use crate::postgres::fuzzing::rows as postgres_rows;
#[cfg(feature = "redis")]
pub use crate::redis::fuzzing::rows as redis_rows;

/// Takes parts off the front of what the fuzzer made up.
#[derive(Debug)]
pub(crate) struct Parts<'a>(pub(crate) &'a [u8]);

impl<'a> Parts<'a> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Takes as many bytes as the next one says, or what is left.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte()).min(self.0.len());
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }
}

/// A kind (1 byte) and a value as Fjall and Redis keep it.
#[cfg(any(feature = "fjall", feature = "redis"))]
pub fn values(data: &[u8]) -> bool {
    use stable_interfaces::store::InstanceName;

    use crate::codec::*;

    let name = || InstanceName { interface: "order".into(), instance: "17".into() };
    let mut parts = Parts(data);
    let (kind, value) = (parts.byte() % 9, parts.0);
    match kind {
        0 => same(value, |bytes| decode_alarm(name(), "a".into(), bytes), encode_alarm),
        1 => same(value, |bytes| decode_message(name(), "m".into(), bytes), encode_message),
        2 => same(value, |bytes| decode_dead(name(), false, "a".into(), bytes), encode_dead),
        3 => same(value, |bytes| decode_dead(name(), true, "m".into(), bytes), encode_dead),
        4 => same(value, decode_alarm_place, |place| encode_alarm_place(*place)),
        5 => same(value, decode_arrival, |arrived| encode_arrival(*arrived)),
        6 => same(value, decode_stored, |stored| encode_stored(stored)),
        7 => same(value, decode_shard, |shard| encode_shard(*shard)),
        _ => same(value, decode_fleet, |(shards, version)| encode_fleet(*shards, *version)),
    }
}

/// Checks that `decode` takes what `encode` makes of a row that it took, and that the row is the same.
#[cfg(any(feature = "fjall", feature = "redis"))]
fn same<T: PartialEq + std::fmt::Debug, E: std::fmt::Debug>(
    bytes: &[u8],
    mut decode: impl FnMut(&[u8]) -> Result<T, E>,
    encode: impl FnOnce(&T) -> Vec<u8>,
) -> bool {
    let Ok(row) = decode(bytes) else { return false };
    let again = encode(&row);
    match decode(&again) {
        Ok(second) => assert_eq!(second, row, "written again"),
        Err(error) => panic!("{row:?} written again: {error:?}"),
    }
    true
}

#[cfg(all(test, feature = "fjall", feature = "postgres", feature = "redis"))]
mod tests;
