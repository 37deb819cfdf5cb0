//! Tests of the ledger: it says of each key what the rows say, and forgets in order.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use super::*;
use crate::clock::Timestamp;

fn name() -> InstanceName {
    name_of(&InstanceName { interface: "order".into(), instance: "17".into() })
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1_000)
}

fn asked(key: &str, message: &str) -> OnceKey {
    OnceKey::new(key, message.as_bytes()).unwrap()
}

const LIMITS: Keep = Keep { time: Duration::from_secs(100), most: 3 };

/// A ledger beside the rows that it has asked for.
#[derive(Default)]
struct Kept {
    ledger: Ledger,
    rows: BTreeMap<Arc<str>, Bytes>,
    early: u64,
}

impl Kept {
    fn keep(&mut self, key: &str, now: Timestamp, limits: Keep) {
        let kept = self.ledger.keep(asked(key, "m"), Bytes::from(format!("\"{key}\"")), now, limits, &name());
        self.early += kept.early;
        for op in kept.ops {
            match op {
                Op::Put { name: of, key, value } => {
                    assert_eq!(of, name());
                    self.rows.insert(key, value);
                }
                Op::Delete { name: of, key } => {
                    assert_eq!(of, name());
                    assert!(self.rows.remove(&key).is_some(), "{key} is forgotten and was not there");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The rows that say which keys there are.
    fn key_rows(&self) -> Vec<(Arc<str>, Bytes)> {
        self.rows.clone().into_iter().filter(|(key, _)| key.starts_with(KEYS)).collect()
    }

    /// The keys that are known, by the ledger and by one that is read anew.
    fn known(&self) -> Vec<String> {
        let rows = self.key_rows();
        let read = Ledger::read(&rows).unwrap();
        assert_eq!(rows.len() * 2, self.rows.len(), "each key has a reply, and each reply a key");
        let keys = |ledger: &Ledger| ledger.entries.values().map(|entry| entry.key.to_string()).collect::<Vec<_>>();
        assert_eq!(keys(&read), keys(&self.ledger));
        for key in keys(&read) {
            let Known::Reply(number) = read.find(&asked(&key, "m")) else { panic!("{key} is not known") };
            assert_eq!(self.rows[&*reply_key(number)], format!("\"{key}\""));
        }
        keys(&read)
    }
}

#[test]
fn a_key_is_known_with_its_message_and_with_no_other() {
    let mut kept = Kept::default();
    kept.keep("a \u{e9}\"", at(0), LIMITS);
    assert_eq!(kept.known(), ["a \u{e9}\""]);
    assert_eq!(kept.ledger.find(&asked("a \u{e9}\"", "m")), Known::Reply(1));
    assert_eq!(kept.ledger.find(&asked("a \u{e9}\"", "n")), Known::OtherMessage);
    assert_eq!(kept.ledger.find(&asked("a", "m")), Known::No);
}

#[test]
fn the_oldest_is_forgotten_when_there_are_too_many_or_its_time_is_over() {
    let mut kept = Kept::default();
    for (second, key) in (0..).zip(["a", "b", "c"]) {
        kept.keep(key, at(second), LIMITS);
    }
    assert_eq!((kept.known(), kept.early), (vec!["a".into(), "b".into(), "c".into()], 0));
    kept.keep("d", at(3), LIMITS);
    assert_eq!((kept.known(), kept.early), (vec!["b".into(), "c".into(), "d".into()], 1));
    // As old as `b` and `c` may be, and not `d`.
    kept.keep("e", at(102), LIMITS);
    assert_eq!((kept.known(), kept.early), (vec!["d".into(), "e".into()], 1));
    kept.keep("f", at(1_000), LIMITS);
    assert_eq!((kept.known(), kept.early), (vec!["f".into()], 1));
    // The clock has gone back: nothing is old.
    kept.keep("g", at(0), LIMITS);
    assert_eq!(kept.known(), ["f", "g"]);
}

#[test]
fn a_request_that_may_have_been_answered_and_forgotten_since_it_was_first_asked_is_said_to_be_that() {
    let mut kept = Kept::default();
    for (second, key) in (10..).zip(["a", "b", "c", "d"]) {
        kept.keep(key, at(second), LIMITS);
    }
    let first_at = |key: &str, first: i64| asked(key, "m").again(at(first));
    // `a` was kept at 10 s, and is forgotten; the clock of another host may have been behind by a second.
    for ledger in [&kept.ledger, &Ledger::read(&kept.key_rows()).unwrap()] {
        assert_eq!(ledger.find(&first_at("a", 9)), Known::Forgotten);
        assert_eq!(ledger.find(&first_at("z", 11)), Known::Forgotten);
        assert_eq!(ledger.find(&first_at("z", 12)), Known::No);
        assert_eq!(ledger.find(&asked("a", "m")), Known::No, "by somebody who has not asked before");
        assert_eq!(ledger.find(&first_at("b", 9)), Known::Reply(2));
    }
    // What went when its time was over is not missed by anybody who still asks.
    let mut kept = Kept::default();
    kept.keep("a", at(0), LIMITS);
    kept.keep("b", at(1_000), LIMITS);
    assert_eq!((kept.known(), kept.ledger.find(&first_at("z", 0))), (vec!["b".into()], Known::No));
}

#[test]
fn a_limit_that_was_lowered_is_reached_in_steps_and_one_answer_is_always_kept() {
    let mut kept = Kept::default();
    for number in 0..100 {
        kept.keep(&number.to_string(), at(0), Keep { most: 100, ..LIMITS });
    }
    let lower = Keep { time: Duration::ZERO, most: 1 };
    let mut left = Vec::new();
    for number in 100..108 {
        kept.keep(&number.to_string(), at(0), lower);
        left.push(kept.known().len());
    }
    assert_eq!(left, [85, 70, 55, 40, 25, 10, 1, 1]);
    assert_eq!(kept.known(), ["107"]);
}

#[test]
fn a_key_that_cannot_be_one_is_refused() {
    for (key, reason) in [("", crate::InvalidId::Empty), ("a\0", crate::InvalidId::Nul)] {
        let error = OnceKey::new(key, b"m").unwrap_err();
        assert!(matches!(&error, ContextError::InvalidId { reason: found, .. } if *found == reason), "{error}");
    }
    assert!(OnceKey::new(&"x".repeat(512), b"m").is_ok());
    assert!(OnceKey::new(&"x".repeat(513), b"m").is_err());
}

#[test]
fn a_row_that_is_none_or_of_a_newer_version_is_said_to_be_that() {
    let place: Arc<str> = key_of(KEYS, 7).into();
    let row = |text: &'static str| [(place.clone(), Bytes::from_static(text.as_bytes()))];
    let good = r#"{"v":1,"key":"a","digest":"00000000000000000000000000000001","at":5}"#;
    assert_eq!(Ledger::read(&row(good)).unwrap().entries.keys().copied().collect::<Vec<_>>(), [7]);
    for (text, is_newer) in [
        (r#"{"v":2,"who":"knows"}"#, true),
        (r#"{"v":1,"key":"a","at":5}"#, false),
        (r#"{"v":1,"key":"a","digest":"xyz","at":5}"#, false),
        ("", false),
    ] {
        let error = Ledger::read(&row(text)).unwrap_err().of(ShardId(3), &name());
        let ContextError::Store(error) = error else { panic!("{error}") };
        let StoreError::Damaged(Damaged { shard, reason, place }) = &*error else { panic!("{error}") };
        assert_eq!((*shard, matches!(reason, DamageReason::NewerVersion(2))), (ShardId(3), is_newer));
        assert!(place.contains("once/key/0000000000000007") && place.contains("order!/17"), "{place}");
        assert!(!error.is_retryable());
    }
}
