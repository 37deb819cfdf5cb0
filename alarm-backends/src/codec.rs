//! Rows as bytes, for stores that keep opaque values.
//!
//! The first byte of a value is its format: 1 today, never above 31, so that a value of a newer version of this library is told
//! from something that is no row at all. Decoding takes any bytes: it returns a row or a [`DamageReason`], never panics, and never
//! allocates more than the bytes in front of it account for. A row's owner and ID are not in its value but in its key.
//!
//! Numbers are LEB128, times eight bytes big-endian, texts and byte strings their length and then themselves.

use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::Timestamp;
use stable_interfaces::store::{
    AlarmRow, Attempts, DamageReason, DeadLetter, DeadRow, Epoch, InboxRow, InstanceName, MessageHeaders, Revision,
};

/// The format this version writes.
const FORMAT: u8 = 1;
/// The greatest number a format will ever have; a value that begins with more is not ours.
const MAX_FORMAT: u8 = 31;

const STARTED: u8 = 1;
const HAS_ERROR: u8 = 2;

/// Everything of an alarm but its owner and ID.
pub(crate) fn encode_alarm(alarm: &AlarmRow) -> Vec<u8> {
    let mut out = value(64 + alarm.meta.len());
    put_alarm(&mut out, alarm);
    out
}

/// The reverse of [`encode_alarm`].
pub(crate) fn decode_alarm(name: InstanceName, id: Arc<str>, bytes: &[u8]) -> Result<AlarmRow, DamageReason> {
    decode(bytes, |from| take_alarm(from, name, id))
}

/// Everything of a message but its owner and ID.
pub(crate) fn encode_message(message: &InboxRow) -> Vec<u8> {
    let mut out = value(64 + message.body.len());
    put_message(&mut out, message);
    out
}

/// The reverse of [`encode_message`].
pub(crate) fn decode_message(name: InstanceName, id: Arc<str>, bytes: &[u8]) -> Result<InboxRow, DamageReason> {
    decode(bytes, |from| take_message(from, name, id))
}

/// Everything of a dead letter but its owner, kind and ID.
pub(crate) fn encode_dead(letter: &DeadLetter) -> Vec<u8> {
    let mut out = value(128);
    put_time(&mut out, letter.died_at);
    put_bytes(&mut out, letter.reason.as_bytes());
    match &letter.row {
        DeadRow::Alarm(alarm) => put_alarm(&mut out, alarm),
        DeadRow::Message(message) => put_message(&mut out, message),
    }
    out
}

/// The reverse of [`encode_dead`].
pub(crate) fn decode_dead(
    name: InstanceName,
    is_message: bool,
    id: Arc<str>,
    bytes: &[u8],
) -> Result<DeadLetter, DamageReason> {
    decode(bytes, |from| {
        let died_at = from.time("time of death")?;
        let reason = from.text("reason")?.into();
        let row = if is_message {
            DeadRow::Message(take_message(from, name, id)?)
        } else {
            DeadRow::Alarm(take_alarm(from, name, id)?)
        };
        Ok(DeadLetter { died_at, reason, row })
    })
}

/// The place of an alarm's row, and the setting of it that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AlarmPlace {
    pub(crate) due: Timestamp,
    pub(crate) revision: Revision,
}

pub(crate) fn encode_alarm_place(place: AlarmPlace) -> Vec<u8> {
    let mut out = value(24);
    put_time(&mut out, place.due);
    put_number(&mut out, place.revision.epoch.0);
    put_number(&mut out, place.revision.counter);
    out
}

pub(crate) fn decode_alarm_place(bytes: &[u8]) -> Result<AlarmPlace, DamageReason> {
    decode(bytes, |from| {
        let due = from.time("due time")?;
        let revision = Revision { epoch: Epoch(from.number("epoch")?), counter: from.number("counter")? };
        Ok(AlarmPlace { due, revision })
    })
}

/// The place of a message's row: its time of arrival.
pub(crate) fn encode_arrival(arrived: Timestamp) -> Vec<u8> {
    let mut out = value(9);
    put_time(&mut out, arrived);
    out
}

pub(crate) fn decode_arrival(bytes: &[u8]) -> Result<Timestamp, DamageReason> {
    decode(bytes, |from| from.time("arrival time"))
}

/// A storage value behind its format byte.
pub(crate) fn encode_stored(bytes: &[u8]) -> Vec<u8> {
    let mut out = value(1 + bytes.len());
    out.extend_from_slice(bytes);
    out
}

pub(crate) fn decode_stored(bytes: &[u8]) -> Result<Bytes, DamageReason> {
    decode(bytes, |from| Ok(Bytes::copy_from_slice(std::mem::take(&mut from.0))))
}

/// The last epoch of a shard, and whether somebody owns it under that epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardRow {
    pub(crate) epoch: Epoch,
    pub(crate) owned: bool,
}

pub(crate) fn encode_shard(row: ShardRow) -> Vec<u8> {
    let mut out = value(12);
    put_number(&mut out, row.epoch.0);
    out.push(u8::from(row.owned));
    out
}

pub(crate) fn decode_shard(bytes: &[u8]) -> Result<ShardRow, DamageReason> {
    decode(bytes, |from| {
        let epoch = Epoch(from.number("epoch")?);
        let owned = match from.byte("mark of an owner")? {
            0 => false,
            1 => true,
            _ => return Err("the mark of an owner is neither 0 nor 1"),
        };
        Ok(ShardRow { epoch, owned })
    })
}

/// The numbers that a fleet must agree on: its shard count and hash version.
pub(crate) fn encode_fleet(shard_count: u32, hash_version: u32) -> Vec<u8> {
    let mut out = value(12);
    put_number(&mut out, shard_count.into());
    put_number(&mut out, hash_version.into());
    out
}

pub(crate) fn decode_fleet(bytes: &[u8]) -> Result<(u32, u32), DamageReason> {
    decode(bytes, |from| Ok((from.small("shard count")?, from.small("hash version")?)))
}

fn value(capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity);
    out.push(FORMAT);
    out
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(low_byte(number) | 0x80);
        number >>= 7;
    }
    out.push(low_byte(number));
}

fn low_byte(number: u64) -> u8 {
    number.to_le_bytes()[0]
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend_from_slice(&time.as_millis().to_be_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_attempts(out: &mut Vec<u8>, attempts: &Attempts) {
    let Attempts { failed, crashes, started, ref last_error } = *attempts;
    out.push(if started { STARTED } else { 0 } | if last_error.is_some() { HAS_ERROR } else { 0 });
    put_number(out, failed.into());
    put_number(out, crashes.into());
    if let Some(error) = last_error {
        put_bytes(out, error.as_bytes());
    }
}

fn put_alarm(out: &mut Vec<u8>, alarm: &AlarmRow) {
    put_time(out, alarm.due);
    put_time(out, alarm.scheduled_at);
    put_number(out, alarm.revision.epoch.0);
    put_number(out, alarm.revision.counter);
    put_attempts(out, &alarm.attempts);
    put_bytes(out, &alarm.meta);
}

fn put_message(out: &mut Vec<u8>, message: &InboxRow) {
    put_time(out, message.arrived);
    put_time(out, message.due);
    put_attempts(out, &message.attempts);
    put_number(out, message.headers.len() as u64);
    for (header, value) in &message.headers {
        put_bytes(out, header.as_bytes());
        put_bytes(out, value.as_bytes());
    }
    put_bytes(out, &message.body);
}

/// The fault of a value, in words.
type Wrong = &'static str;

fn decode<T>(bytes: &[u8], fields: impl FnOnce(&mut Input<'_>) -> Result<T, Wrong>) -> Result<T, DamageReason> {
    let undecodable = |what: Wrong| DamageReason::Undecodable(what.to_owned());
    let (format, rest) = bytes.split_first().ok_or_else(|| undecodable("it is empty"))?;
    match *format {
        FORMAT => {}
        newer if (FORMAT..=MAX_FORMAT).contains(&newer) => return Err(DamageReason::NewerVersion(newer.into())),
        _ => return Err(undecodable("its first byte is no row format")),
    }
    let mut from = Input(rest);
    let row = fields(&mut from).map_err(undecodable)?;
    if from.0.is_empty() { Ok(row) } else { Err(undecodable("bytes are left over at its end")) }
}

/// The bytes not yet decoded.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize, what: Wrong) -> Result<&'a [u8], Wrong> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(what)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self, what: Wrong) -> Result<u8, Wrong> {
        Ok(self.take(1, what)?[0])
    }

    fn number(&mut self, what: Wrong) -> Result<u64, Wrong> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(what);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(what)
    }

    fn small(&mut self, what: Wrong) -> Result<u32, Wrong> {
        u32::try_from(self.number(what)?).map_err(|_| what)
    }

    fn time(&mut self, what: Wrong) -> Result<Timestamp, Wrong> {
        let bytes = self.take(8, what)?.try_into().map_err(|_| what)?;
        let millis = i64::from_be_bytes(bytes);
        let time = Timestamp::from_millis(millis);
        if time.as_millis() == millis { Ok(time) } else { Err(what) }
    }

    fn bytes(&mut self, what: Wrong) -> Result<&'a [u8], Wrong> {
        let count = usize::try_from(self.number(what)?).map_err(|_| what)?;
        self.take(count, what)
    }

    fn text(&mut self, what: Wrong) -> Result<&'a str, Wrong> {
        std::str::from_utf8(self.bytes(what)?).map_err(|_| what)
    }

    fn attempts(&mut self) -> Result<Attempts, Wrong> {
        let flags = self.byte("flags")?;
        if flags & !(STARTED | HAS_ERROR) != 0 {
            return Err("flags");
        }
        Ok(Attempts {
            started: flags & STARTED != 0,
            failed: self.small("attempt")?,
            crashes: self.small("crashes")?,
            last_error: if flags & HAS_ERROR != 0 { Some(self.text("last error")?.into()) } else { None },
        })
    }
}

fn take_alarm(from: &mut Input<'_>, name: InstanceName, id: Arc<str>) -> Result<AlarmRow, Wrong> {
    let due = from.time("due time")?;
    let scheduled_at = from.time("scheduled time")?;
    let revision = Revision { epoch: Epoch(from.number("epoch")?), counter: from.number("counter")? };
    let attempts = from.attempts()?;
    let meta = Bytes::copy_from_slice(from.bytes("meta")?);
    Ok(AlarmRow { name, id, due, scheduled_at, revision, attempts, meta })
}

fn take_message(from: &mut Input<'_>, name: InstanceName, id: Arc<str>) -> Result<InboxRow, Wrong> {
    let arrived = from.time("arrival time")?;
    let due = from.time("due time")?;
    let attempts = from.attempts()?;
    let mut headers = MessageHeaders::new();
    // The count is not trusted with an allocation: each header is paid for by bytes that are there.
    for _ in 0..from.number("number of headers")? {
        headers.push((from.text("header name")?.to_owned(), from.text("header value")?.to_owned()));
    }
    let body = Bytes::copy_from_slice(from.bytes("body")?);
    Ok(InboxRow { name, id, arrived, due, attempts, headers, body })
}

#[cfg(test)]
pub(crate) mod tests {
    use fastrand::Rng;

    use super::*;

    pub(crate) fn name() -> InstanceName {
        InstanceName { interface: "order".into(), instance: "o-1".into() }
    }

    /// An alarm of which each part is there.
    pub(crate) fn alarm() -> AlarmRow {
        AlarmRow {
            name: name(),
            id: "timeout".into(),
            due: Timestamp::from_millis(1_700_000_000_000),
            scheduled_at: Timestamp::from_millis(-1),
            revision: Revision { epoch: Epoch(3), counter: 300 },
            attempts: Attempts { failed: 2, crashes: 1, started: true, last_error: Some("no".into()) },
            meta: Bytes::from_static(b"{}"),
        }
    }

    fn message() -> InboxRow {
        InboxRow {
            name: name(),
            id: "m-1".into(),
            arrived: Timestamp::from_millis(1),
            due: Timestamp::from_millis(2),
            attempts: Attempts::default(),
            headers: vec![("a".into(), "b".into())],
            body: Bytes::from_static(b"hi"),
        }
    }

    /// Bytes that are in people's directories: when one of these lines has to change, the format number must as well.
    #[test]
    fn the_bytes_of_format_1_never_change() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let alarm_body = "0000018bcfe56800ffffffffffffffff03ac02030201026e6f027b7d";
        let message_body = "000000000000000100000000000000020000000101610162026869";
        assert_eq!(hex(&encode_alarm(&alarm())), format!("01{alarm_body}"));
        assert_eq!(hex(&encode_message(&message())), format!("01{message_body}"));
        let died_at = Timestamp::from_millis(256);
        let letter = DeadLetter { died_at, reason: "why".into(), row: DeadRow::Alarm(alarm()) };
        assert_eq!(hex(&encode_dead(&letter)), format!("01000000000000010003776879{alarm_body}"));
        let letter = DeadLetter { died_at, reason: "why".into(), row: DeadRow::Message(message()) };
        assert_eq!(hex(&encode_dead(&letter)), format!("01000000000000010003776879{message_body}"));
        let place = AlarmPlace { due: died_at, revision: Revision { epoch: Epoch(1), counter: 128 } };
        assert_eq!(hex(&encode_alarm_place(place)), "010000000000000100018001");
        assert_eq!(hex(&encode_arrival(died_at)), "010000000000000100");
        assert_eq!(hex(&encode_stored(b"v")), "0176");
        assert_eq!(hex(&encode_shard(ShardRow { epoch: Epoch(7), owned: true })), "010701");
        assert_eq!(hex(&encode_fleet(1024, 1)), "01800801");
    }

    fn random_text(rng: &mut Rng) -> String {
        (0..rng.usize(..20)).map(|_| rng.char(..)).collect()
    }

    fn random_bytes(rng: &mut Rng) -> Bytes {
        (0..rng.usize(..300)).map(|_| rng.u8(..)).collect()
    }

    fn random_number(rng: &mut Rng) -> u64 {
        rng.u64(..) >> rng.u32(..64)
    }

    fn random_time(rng: &mut Rng) -> Timestamp {
        Timestamp::from_millis(rng.i64(..) >> rng.u32(..64))
    }

    fn random_alarm(rng: &mut Rng) -> AlarmRow {
        AlarmRow {
            due: random_time(rng),
            scheduled_at: random_time(rng),
            revision: Revision { epoch: Epoch(random_number(rng)), counter: random_number(rng) },
            attempts: Attempts {
                failed: rng.u32(..) >> rng.u32(..32),
                crashes: rng.u32(..) >> rng.u32(..32),
                started: rng.bool(),
                last_error: rng.bool().then(|| random_text(rng).into()),
            },
            meta: random_bytes(rng),
            ..alarm()
        }
    }

    fn random_message(rng: &mut Rng) -> InboxRow {
        InboxRow {
            arrived: random_time(rng),
            due: random_time(rng),
            attempts: Attempts {
                failed: rng.u32(..) >> rng.u32(..32),
                crashes: rng.u32(..) >> rng.u32(..32),
                started: rng.bool(),
                last_error: rng.bool().then(|| random_text(rng).into()),
            },
            headers: (0..rng.usize(..5)).map(|_| (random_text(rng), random_text(rng))).collect(),
            body: random_bytes(rng),
            ..message()
        }
    }

    fn random_letter(rng: &mut Rng) -> DeadLetter {
        let row = if rng.bool() { DeadRow::Alarm(random_alarm(rng)) } else { DeadRow::Message(random_message(rng)) };
        DeadLetter { died_at: random_time(rng), reason: random_text(rng).into(), row }
    }

    #[test]
    fn every_row_comes_back_as_it_was() {
        let rng = &mut Rng::with_seed(1);
        for _ in 0..2_000 {
            let alarm = random_alarm(rng);
            assert_eq!(decode_alarm(name(), alarm.id.clone(), &encode_alarm(&alarm)), Ok(alarm));
            let message = random_message(rng);
            assert_eq!(decode_message(name(), message.id.clone(), &encode_message(&message)), Ok(message));
            let letter = random_letter(rng);
            let (is_message, id) = (letter.key().is_message, letter.key().id);
            assert_eq!(decode_dead(name(), is_message, id, &encode_dead(&letter)), Ok(letter));
            let place = AlarmPlace {
                due: random_time(rng),
                revision: Revision { epoch: Epoch(random_number(rng)), counter: random_number(rng) },
            };
            assert_eq!(decode_alarm_place(&encode_alarm_place(place)), Ok(place));
            assert_eq!(decode_arrival(&encode_arrival(place.due)), Ok(place.due));
            let value = random_bytes(rng);
            assert_eq!(decode_stored(&encode_stored(&value)), Ok(value));
            let shard = ShardRow { epoch: Epoch(random_number(rng)), owned: rng.bool() };
            assert_eq!(decode_shard(&encode_shard(shard)), Ok(shard));
        }
    }

    /// Tells that some row decoder takes these bytes.
    fn is_decodable(bytes: &[u8]) -> [bool; 6] {
        [
            decode_alarm(name(), "a".into(), bytes).is_ok(),
            decode_message(name(), "m".into(), bytes).is_ok(),
            decode_dead(name(), false, "a".into(), bytes).is_ok(),
            decode_dead(name(), true, "m".into(), bytes).is_ok(),
            decode_alarm_place(bytes).is_ok(),
            decode_shard(bytes).is_ok(),
        ]
    }

    #[test]
    fn a_row_cut_short_or_with_bytes_behind_it_is_not_a_row() {
        let encoded = [encode_alarm(&alarm()), encode_message(&message())];
        for (kind, row) in encoded.into_iter().enumerate() {
            for length in 0..row.len() {
                assert!(!is_decodable(&row[..length])[kind], "{length} bytes of row {kind}");
            }
            assert!(is_decodable(&row)[kind]);
            assert!(!is_decodable(&[row, vec![0]].concat())[kind]);
        }
    }

    #[test]
    fn any_bytes_decode_to_a_row_or_a_reason() {
        let rng = &mut Rng::with_seed(2);
        for _ in 0..20_000 {
            let mut bytes = match rng.u8(..4) {
                0 => encode_alarm(&random_alarm(rng)),
                1 => encode_message(&random_message(rng)),
                2 => encode_dead(&random_letter(rng)),
                _ => random_bytes(rng).to_vec(),
            };
            for _ in 0..rng.usize(1..4) {
                if let Some(byte) = rng.choice(&mut bytes) {
                    *byte = rng.choice([0, 1, 0x7f, 0x80, 0xff]).unwrap_or(0);
                }
            }
            is_decodable(&bytes);
        }
    }

    #[test]
    fn a_length_that_is_not_there_is_not_allocated() {
        let mut bytes = vec![FORMAT];
        put_time(&mut bytes, Timestamp::UNIX_EPOCH);
        put_time(&mut bytes, Timestamp::UNIX_EPOCH);
        put_attempts(&mut bytes, &Attempts::default());
        put_number(&mut bytes, u64::MAX);
        let reason = decode_message(name(), "m".into(), &bytes);
        assert_eq!(reason, Err(DamageReason::Undecodable("header name".into())));
    }

    #[test]
    fn a_newer_format_is_told_from_garbage() {
        let mut row = encode_alarm(&alarm());
        row[0] = 2;
        assert_eq!(decode_alarm(name(), "a".into(), &row), Err(DamageReason::NewerVersion(2)));
        for first in [0, 32, b'{', 255] {
            row[0] = first;
            let decoded = decode_alarm(name(), "a".into(), &row);
            assert!(matches!(decoded, Err(DamageReason::Undecodable(_))), "{first}: {decoded:?}");
        }
    }
}
