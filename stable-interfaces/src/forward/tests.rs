//! Tests of what crosses: requests, answers and errors come back as they were, and nothing else is taken for one.

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use proptest::prelude::*;

use super::told::{RemoteError, Told};
use super::wire::{Answer, MAX_CHAIN, Request, Unreadable};
use crate::error::{ContextError, JsonError, RequestError, WithCauses};
use crate::id::InvalidId;
use crate::store::{BoxError, DamageReason, Damaged, Epoch, Lane, ShardId, StoreError};
use crate::sync::Arc;
use crate::transport::MAX_MESSAGE_BYTES;

fn request<'a>(callers: Vec<&'a str>, body: &'a [u8]) -> Request<'a> {
    Request {
        interface: "order",
        message: "place",
        id: "17 \u{e9}",
        key: None,
        since: None,
        given: Duration::from_millis(29_999),
        waits: (!callers.is_empty()).then_some(Duration::from_secs(7)),
        sent_by: (callers.len() == 1).then_some("host-\u{e9}"),
        trace: callers.first().map(|_| "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        callers,
        body,
    }
}

#[test]
fn a_request_comes_back_from_its_bytes_as_it_was() {
    let links: Vec<_> = (0..MAX_CHAIN).map(|at| format!("order/{at}")).collect();
    for callers in [vec![], vec!["order/1", "stock/2"], links.iter().map(String::as_str).collect()] {
        for body in [&b""[..], b"{}", &[0; 300]] {
            let request = request(callers.clone(), body);
            assert_eq!(Request::decode(&request.encode()), Ok(request.clone()));
            for since in [None, Some(Duration::from_millis(7_001))] {
                let keyed = Request { key: Some("payment 7"), since, ..request.clone() };
                assert_eq!(Request::decode(&keyed.encode()), Ok(keyed));
            }
        }
    }
}

#[test]
fn a_request_with_a_key_is_none_to_a_reader_that_knows_no_keys() {
    let keyed = Request { key: Some("k"), ..request(vec![], b"{}") };
    // As a release reads it that steps over fields of these kinds.
    let without = |kinds: &[u8]| {
        let (mut bytes, mut at) = (keyed.encode().to_vec(), 1);
        while bytes[at] != 0 {
            let length = u16::from_be_bytes([bytes[at + 1], bytes[at + 2]]);
            if kinds.contains(&bytes[at]) {
                bytes[at] = 200;
            }
            at += 3 + usize::from(length);
        }
        bytes
    };
    assert_eq!(Request::decode(&without(&[])), Ok(keyed.clone()));
    assert_eq!(Request::decode(&without(&[7, 8])), Err(Unreadable::Missing("message")));
    assert_eq!(Request::decode(&without(&[8])), Err(Unreadable::Missing("key")));
}

#[test]
fn a_request_with_fields_of_a_newer_release_is_read_and_one_of_another_version_is_refused_by_number() {
    let request = request(vec!["order/1"], b"[1]");
    let bytes = request.encode();
    // Behind the version, as if it were the first field.
    let with_more = [&bytes[..1], &[200, 0, 3, 1, 2, 3], &bytes[1..]].concat();
    assert_eq!(Request::decode(&with_more), Ok(request));
    let newer = [&[2], &bytes[1..]].concat();
    assert_eq!(Request::decode(&newer), Err(Unreadable::Version(2)));
}

#[test]
fn a_request_that_is_cut_off_anywhere_in_its_head_or_lacks_a_field_is_none() {
    let bytes = request(vec!["order/1"], b"").encode();
    for length in 0..bytes.len() {
        assert!(Request::decode(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    assert_eq!(Request::decode(&[1, 0]), Err(Unreadable::Missing("interface")));
    let too_many = vec!["order/1"; MAX_CHAIN + 1];
    assert_eq!(Request::decode(&request(too_many, b"").encode()), Err(Unreadable::Chain));
}

fn all_errors() -> Vec<RequestError<Infallible>> {
    let cause = || -> BoxError {
        #[derive(Debug, thiserror::Error)]
        #[error("the disk failed")]
        struct Outer(#[source] std::io::Error);
        Outer(std::io::Error::other("no space left")).into()
    };
    let shard = ShardId(3);
    let damaged = |reason| StoreError::Damaged(Damaged { shard, place: "alarm 7".into(), reason });
    let stored = [
        StoreError::Fenced { shard, held: Epoch(1), newest: Epoch(2) },
        StoreError::Replaced,
        StoreError::Stale { lane: Lane(1), seq: 2, newest: 3 },
        StoreError::Unavailable(cause()),
        StoreError::NotApplied(cause()),
        StoreError::Rejected(cause()),
        StoreError::Full(cause()),
        StoreError::Stopped(cause()),
        StoreError::Lost(cause()),
        damaged(DamageReason::Undecodable("at byte 3".into())),
        damaged(DamageReason::NewerVersion(9)),
        StoreError::Open("no such directory".into(), Some(cause())),
    ];
    let json = serde_json::from_str::<u8>("[1,\n 2").unwrap_err();
    let mut all = vec![
        RequestError::NotOwner { holder: "host-1".into() },
        RequestError::Unreachable { host: "host-2".into() },
        RequestError::Overloaded("connections".into()),
        RequestError::TimedOut { after: Duration::from_millis(1_500), waited_for: "order/1".into() },
        RequestError::Panicked("index out of bounds".into()),
        RequestError::Cycle("a -> b -> a".into()),
        RequestError::Fenced,
        RequestError::LeaseLost,
        RequestError::Draining,
        RequestError::Replaced,
        RequestError::StoreLost,
        RequestError::Closed,
        RequestError::Rejected("no".into()),
        RequestError::Unhandled("alarms".into()),
        RequestError::InvalidId { what: "alarm".into(), text: "x\0".into(), reason: InvalidId::Nul },
        RequestError::InvalidId {
            what: "instance".into(),
            text: "".into(),
            reason: InvalidId::TooLong { bytes: 600, max: 512 },
        },
        RequestError::NotStarted,
        RequestError::NoStore,
        RequestError::TooLarge("a value".into()),
        RequestError::KeyReused { key: "payment-7".into() },
        RequestError::Json(Arc::new(JsonError::told(Some("the value \"k\"".into()), &json.to_string()))),
    ];
    all.extend(stored.into_iter().map(|error| RequestError::Store(Arc::new(error))));
    let unknown = RequestError::Unknown(Box::new(RequestError::Store(Arc::new(StoreError::Unavailable(cause())))));
    all.push(unknown);
    all
}

#[test]
fn each_error_of_the_library_crosses_as_the_variant_it_is_with_its_words_and_those_of_its_causes() {
    for error in all_errors() {
        let told = Told::decode(&Told::of(&error).encode()).unwrap();
        let read: RequestError<Infallible> = told.into_error();
        assert_eq!(WithCauses(&read).to_string(), WithCauses(&error).to_string());
        assert_eq!(std::mem::discriminant(&read), std::mem::discriminant(&error), "{error}");
        assert_eq!(read.is_retryable(), error.is_retryable(), "{error}");
        assert_eq!(read.may_have_happened(), error.may_have_happened(), "{error}");
        if let (RequestError::Store(read), RequestError::Store(error)) = (&read, &error) {
            assert_eq!(std::mem::discriminant(&**read), std::mem::discriminant(&**error), "{error}");
        }
    }
}

#[test]
fn an_error_of_any_size_fits_into_an_answer_and_keeps_its_first_words_and_whether_it_may_have_happened() {
    let long = || RequestError::<Infallible>::Panicked("\u{1}\u{e9}".repeat(MAX_MESSAGE_BYTES / 3));
    for (error, may_have_happened) in [(long(), false), (RequestError::unknown(long()), true)] {
        let bytes = Answer::<&[u8]>::Failed(Told::of(&error)).encode();
        assert!(bytes.len() <= MAX_MESSAGE_BYTES, "{} bytes", bytes.len());
        let Ok(Answer::Failed(told)) = Answer::decode(&bytes) else { unreachable!("it is an error") };
        let read: RequestError<Infallible> = told.into_error();
        assert_eq!(read.may_have_happened(), may_have_happened);
        let words = WithCauses(&read).to_string();
        assert!(words.contains("an error of") && words.len() < 100_000, "{} bytes of words", words.len());
    }
}

#[test]
fn an_error_of_a_newer_release_keeps_its_words_and_whether_it_may_have_happened() {
    for (may_have_happened, known) in
        [(false, "rejected: it rains"), (true, "outcome unknown: it may have happened: rejected: it rains")]
    {
        let told = serde_json::json!({
            "error": { "weather": { "sky": "grey" } },
            "says": { "text": "it rains" },
            "may_have_happened": may_have_happened,
            "since": "tomorrow",
        });
        let read: RequestError<Infallible> = Told::decode(told.to_string().as_bytes()).unwrap().into_error();
        assert_eq!(WithCauses(&read).to_string(), known);
        assert_eq!(read.may_have_happened(), may_have_happened);
    }
}

#[test]
fn an_error_of_a_context_is_read_as_it_was_written() {
    let json = serde_json::from_str::<u8>("[").unwrap_err();
    let errors = [
        ContextError::invalid("storage key", "", InvalidId::Empty),
        ContextError::TooLarge("a value".into()),
        ContextError::not_a::<u8>("the value", json),
        ContextError::NoStore,
        ContextError::Unhandled("alarms".into()),
        ContextError::Fenced,
        ContextError::store(StoreError::Full("no room".into())),
        ContextError::Unknown,
        ContextError::Closed,
        ContextError::NotHere("a commit inside a transaction".into()),
    ];
    for error in errors {
        let read: ContextError = serde_json::from_slice(&serde_json::to_vec(&error).unwrap()).unwrap();
        assert_eq!(format!("{read:?}").split(['(', ' ']).next(), format!("{error:?}").split(['(', ' ']).next());
        assert_eq!(WithCauses(&read).to_string(), WithCauses(&error).to_string());
    }
}

#[test]
fn a_remote_error_has_the_words_of_each_cause_and_no_more_causes_than_can_be_read_again() {
    #[derive(Debug, thiserror::Error)]
    #[error("level {0}")]
    struct Level(u32, #[source] Option<Box<Level>>);
    let deep = (0..500).fold(Level(0, None), |inner, level| Level(level + 1, Some(Box::new(inner))));
    let told = RemoteError::of(&deep);
    let read: RemoteError = serde_json::from_slice(&serde_json::to_vec(&told).unwrap()).unwrap();
    assert_eq!(read, told);
    assert_eq!((read.to_string(), read.source().unwrap().to_string()), ("level 500".into(), "level 499".into()));
    // In an error in an error, as deep as it can be.
    let nested: RequestError<Infallible> =
        RequestError::Unknown(Box::new(RequestError::Store(Arc::new(StoreError::Lost(told.into())))));
    assert!(Told::decode(&Told::of(&nested).encode()).is_some());
}

proptest! {
    #[test]
    fn whatever_bytes_come_are_a_request_that_comes_back_or_none(bytes: Vec<u8>) {
        if let Ok(request) = Request::decode(&bytes) {
            let again = request.encode();
            prop_assert_eq!(Request::decode(&again), Ok(request));
        }
    }

    #[test]
    fn an_answer_comes_back_from_its_bytes_as_it_was(body: Vec<u8>, kind in 0..3) {
        let answer = match kind {
            0 => Answer::Reply(&*body),
            1 => Answer::Handler { interim: false, error: &*body },
            _ => Answer::Handler { interim: true, error: &*body },
        };
        let bytes = answer.encode();
        prop_assert_eq!(Answer::decode(&bytes), Ok(answer));
    }
}
