//! The functions that the fuzz targets of this crate try on any bytes. Each function panics where something does not hold, and tells whether the
//! bytes were of any use: a fleet, an ID, a meta, a directive, a request of another host, what comes over a link.
//!
//! `tests/run fuzz` feeds them what a fuzzer makes up; the test below, on every run, what is in `fuzz/corpus`.

#![allow(
    clippy::must_use_candidate,
    clippy::panic,
    missing_docs,
    reason = "not for programs; what does not hold ends the fuzzer"
)]

use std::sync::LazyLock;

use crate::alarm::{Alarm, encode_meta};
use crate::clock::Timestamp;
use crate::directive::Directive;
use crate::error::RequestError;
use crate::fleet::{Fleet, FleetError, MAX_HOST_BYTES, MAX_HOSTS, MAX_SHARDS};
use crate::forward::wire::{Answer, Request};
use crate::id::{
    InvalidId, MAX_ID_BYTES, MAX_KEY_BYTES, beside, check_id, check_interface_name, check_key, interface_of,
    is_interface_name,
};
use crate::store::{AlarmRow, Attempts, Epoch, InstanceName, NewMessage, Revision, ShardId};
use crate::sync::Arc;

/// Above this a fleet is not built here: it takes milliseconds, and a test builds the largest.
const MOST_HOSTS: usize = 40;

/// The hosts that a pattern stands for, found out in another way than [`Fleet::expand`] does.
enum Pattern {
    Malformed,
    Names(u128, Vec<Range>, String),
}

/// The text before a range, its numbers and their width.
struct Range {
    before: String,
    first: u64,
    last: u64,
    width: usize,
}

fn pattern(text: &str) -> Pattern {
    let (mut ranges, mut rest, mut count) = (Vec::new(), text, 1_u128);
    while let Some((before, more)) = rest.split_once('{') {
        let Some((inside, after)) = more.split_once('}') else { return Pattern::Malformed };
        let Some((first, last)) = inside.split_once("..") else { return Pattern::Malformed };
        let is_number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        let width = if first.starts_with('0') && first != "0" { first.len() } else { 0 };
        let (Ok(from), Ok(to)) = (first.parse::<u64>(), last.parse::<u64>()) else { return Pattern::Malformed };
        if before.contains('}') || !is_number(first) || !is_number(last) || from > to || width > MAX_HOST_BYTES {
            return Pattern::Malformed;
        }
        count = count.saturating_mul(u128::from(to - from) + 1);
        ranges.push(Range { before: before.to_owned(), first: from, last: to, width });
        rest = after;
    }
    if rest.contains('}') { Pattern::Malformed } else { Pattern::Names(count, ranges, rest.to_owned()) }
}

fn names(ranges: &[Range], end: &str) -> Vec<String> {
    let Some((range, others)) = ranges.split_first() else { return vec![end.to_owned()] };
    let tails = names(others, end);
    let numbers =
        (range.first..=range.last).map(|number| format!("{}{number:0width$}", range.before, width = range.width));
    numbers.flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}"))).collect()
}

/// A shard count (4 bytes) and a host pattern: it is refused for a reason that is there, or is the fleet that it stands for.
pub fn fleet(data: &[u8]) -> bool {
    let Some((shards, text)) = data.split_first_chunk() else { return false };
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let shards = match u32::from_be_bytes(*shards) {
        many @ 65..=MAX_SHARDS => 1 + many % 64,
        shards => shards,
    };
    let names = match pattern(text) {
        Pattern::Malformed => {
            assert!(matches!(Fleet::expand(text, shards), Err(FleetError::Pattern { .. })), "{text:?}");
            return false;
        }
        Pattern::Names(count, ..) if count > MAX_HOSTS as u128 => {
            assert!(matches!(Fleet::expand(text, shards), Err(FleetError::TooManyHosts)), "{text:?}");
            return false;
        }
        Pattern::Names(count, ..) if count > MOST_HOSTS as u128 => return false,
        Pattern::Names(_, ranges, end) => names(&ranges, &end),
    };
    let is_bad = |name: &String| name.is_empty() || name.len() > MAX_HOST_BYTES || name.chars().any(char::is_control);
    let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
    match Fleet::expand(text, shards) {
        Ok(fleet) => {
            assert_eq!((fleet.shards(), fleet.hosts().len()), (shards, names.len()));
            assert!(fleet.hosts().iter().map(|host| &**host).eq(&names), "{text:?}");
            assert!(!names.iter().any(is_bad) && distinct.len() == names.len() && shards as usize >= names.len());
            routes(&fleet);
            return true;
        }
        Err(FleetError::HostName { name, .. }) => assert!(is_bad(&name) && names.contains(&name), "{name:?}"),
        Err(FleetError::DuplicateHost(name)) => assert!(distinct.len() < names.len() && distinct.contains(&name)),
        Err(FleetError::NoShards) => assert_eq!(shards, 0),
        Err(FleetError::TooManyShards { shards: said }) => assert!(said == shards && shards > MAX_SHARDS),
        Err(FleetError::FewerShardsThanHosts { shards: said, hosts }) => {
            assert_eq!((said, hosts), (shards, names.len()));
            assert!((shards as usize) < hosts);
        }
        Err(error) => panic!("{text:?} and {shards} shards: {error}"),
    }
    false
}

/// The last host takes shards from the others and moves none between them.
fn routes(fleet: &Fleet) {
    let (last, hosts) = (fleet.hosts().len() - 1, fleet.hosts());
    assert_eq!(fleet.index_of(&hosts[last]), Some(last));
    if let Ok(before) = Fleet::new(&hosts[..last], fleet.shards()) {
        for shard in (0..fleet.shards()).map(ShardId) {
            let owner = fleet.owner_of(shard);
            assert!(owner == last || owner == before.owner_of(shard), "{shard} moves between others");
        }
    }
}

/// Any text: it is an ID, a key, an interface's name or none for a reason that is there, and an ID has one place.
pub fn ids(data: &[u8]) -> bool {
    static FLEETS: LazyLock<[Fleet; 2]> =
        LazyLock::new(|| [1000, 2000].map(|shards| Fleet::expand("host-{0..6}", shards).expect("a good pattern")));
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let expected = |max| match text.len() {
        0 => Err(InvalidId::Empty),
        bytes if bytes > max => Err(InvalidId::TooLong { bytes, max }),
        _ if text.contains('\0') => Err(InvalidId::Nul),
        _ => Ok(()),
    };
    assert_eq!(check_id(text), expected(MAX_ID_BYTES));
    assert_eq!(check_key(text), expected(MAX_KEY_BYTES));
    assert_eq!(check_interface_name(text).is_ok(), is_interface_name(text));
    assert_eq!(interface_of(&beside(text)), (text, true), "the inbox of its directives");
    assert!(!is_interface_name(&beside(text)));
    match FLEETS[0].locate(text) {
        Ok(location) => {
            assert!(check_id(text).is_ok() && location.shard.0 < 1000);
            assert_eq!(&**FLEETS[0].host_of(location.shard), location.host);
            let twice = FLEETS[1].shard_of(text).expect("it is an ID");
            assert_eq!(twice.0 / 2, location.shard.0, "twice the shards splits each in two");
        }
        Err(error) => assert_eq!(check_id(text), Err(error)),
    }
    check_id(text).is_ok()
}

fn name() -> InstanceName {
    InstanceName { interface: "order".into(), instance: "17".into() }
}

/// Any bytes as the meta of an alarm: they are no JSON, or the value comes back as it was.
pub fn meta(data: &[u8]) -> bool {
    let alarm = |meta| {
        Alarm::new(Arc::new(AlarmRow {
            name: name(),
            id: "a".into(),
            due: Timestamp::UNIX_EPOCH,
            scheduled_at: Timestamp::UNIX_EPOCH,
            revision: Revision { epoch: Epoch(1), counter: 1 },
            attempts: Attempts::default(),
            meta,
        }))
    };
    let read = alarm(bytes::Bytes::copy_from_slice(data));
    assert_eq!(read.meta_json(), data);
    let Ok(value) = read.meta::<serde_json::Value>() else { return false };
    let again = alarm(encode_meta("a", &value).expect("it is not larger than it was by much"));
    assert_eq!(again.meta::<serde_json::Value>().expect("it is JSON"), value);
    true
}

/// Any bytes as the headers (a line each, `name=value`) and the body (behind an empty line) of a message in the inbox of
/// directives: it is none, or reads the same when it is written again.
pub fn directive(data: &[u8]) -> bool {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let (head, body) = end.map_or((data, [].as_slice()), |end| (&data[..end], &data[end + 2..]));
    let Ok(head) = std::str::from_utf8(head) else { return false };
    let header = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let message = NewMessage {
        shard: ShardId(0),
        name: InstanceName { interface: beside("order"), ..name() },
        id: "d".into(),
        headers: head.lines().filter_map(header).collect(),
        body: bytes::Bytes::copy_from_slice(body),
    };
    Directive::try_out(&message.into_row(Timestamp::UNIX_EPOCH))
}

/// Any bytes as a request of another host and as an answer: each is none, or reads the same when it is written again.
pub fn forwarded(data: &[u8]) -> bool {
    let request = Request::decode(data);
    if let Ok(request) = &request {
        assert_eq!(Request::decode(&request.encode()).as_ref(), Ok(request));
    }
    let answer = Answer::decode(data);
    if let Ok(answer) = &answer {
        assert_eq!(Answer::decode(&answer.encode()).as_ref(), Ok(answer));
        if let Answer::Failed(told) = answer {
            let error: RequestError<std::convert::Infallible> = told.clone().into_error();
            assert!(!(error.is_retryable() && error.may_have_happened()), "{error}");
        }
    }
    request.is_ok() || answer.is_ok()
}

/// Any bytes as what comes over a link: the same frames wherever it was cut, and the same again when they are written.
#[cfg(feature = "tcp")]
pub fn frames(data: &[u8]) -> bool {
    crate::transport::tcp::fuzzing::stream(data)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    type Target = (&'static str, fn(&[u8]) -> bool);

    #[test]
    fn what_the_fuzzers_of_routing_ids_metas_and_requests_begin_with_holds() {
        let targets: &[Target] = &[
            ("fleet", fleet),
            ("ids", ids),
            ("meta", meta),
            ("directive", directive),
            ("forwarded", forwarded),
            #[cfg(feature = "tcp")]
            ("frames", frames),
        ];
        for (target, run) in targets {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
            let mut useful = 0;
            for file in std::fs::read_dir(&corpus).unwrap() {
                let path = file.unwrap().path();
                println!("{}", path.display());
                useful += usize::from(run(&std::fs::read(&path).unwrap()));
            }
            assert!(useful >= 5, "{} has {useful} useful files", corpus.display());
        }
    }
}
