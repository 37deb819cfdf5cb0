use std::path::{Path, PathBuf};

use bytes::Bytes;
use stable_interfaces::Timestamp;
use stable_interfaces::store::{AlarmRow, Attempts, DeadLetter, DeadRow, Epoch, InboxRow, Op, Revision, ShardId};

use super::*;
use crate::codec::tests::name;
use crate::codec::{self, AlarmPlace, ShardRow};

type Target = (&'static str, fn(&[u8]) -> bool);

const TARGETS: [Target; 4] =
    [("values", values), ("fjall_rows", fjall_rows), ("redis_rows", redis_rows), ("postgres_rows", postgres_rows)];

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

#[test]
fn what_the_fuzzers_of_stored_rows_begin_with_holds() {
    for (target, run) in TARGETS {
        let corpus = corpus(target);
        let mut useful = 0;
        for file in std::fs::read_dir(&corpus).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            useful += usize::from(run(&std::fs::read(&path).unwrap()));
        }
        assert!(useful >= 7, "{} has {useful} useful files", corpus.display());
    }
}

fn alarm() -> AlarmRow {
    AlarmRow { meta: Bytes::from_static(b"{\"n\":1.5}"), ..codec::tests::alarm() }
}

fn message() -> InboxRow {
    InboxRow {
        name: name(),
        id: "m-1".into(),
        arrived: Timestamp::from_millis(1_700_000_000_001),
        due: Timestamp::from_millis(1_700_000_000_002),
        attempts: Attempts { failed: 3, crashes: 0, started: false, last_error: Some("é".into()) },
        headers: vec![("a".into(), "b".into()), ("a".into(), String::new())],
        body: Bytes::from_static(b"\0\xff"),
    }
}

/// One that stores each kind of row, or two where a part of a row may be missing.
fn ops() -> Vec<Op> {
    let letter = |row| DeadLetter { died_at: Timestamp::from_millis(256), reason: "why".into(), row };
    let plain = AlarmRow { due: Timestamp::MIN, attempts: Attempts::default(), ..alarm() };
    vec![
        Op::PutAlarm(alarm()),
        Op::PutAlarm(plain),
        Op::PutMessage(message()),
        Op::PutMessage(InboxRow {
            attempts: Attempts { last_error: None, ..message().attempts },
            headers: vec![],
            body: Bytes::new(),
            ..message()
        }),
        Op::PutDead(letter(DeadRow::Alarm(alarm()))),
        Op::PutDead(letter(DeadRow::Message(message()))),
        Op::Put { name: name(), key: "k".into(), value: Bytes::from_static(b"value") },
    ]
}

/// Writes what each fuzzer begins with into `fuzz/corpus`: run it with `--ignored` when a format is added.
#[test]
#[ignore = "writes into the source tree"]
fn the_seeds_are_written() {
    let write = |target, number: usize, bytes: Vec<u8>| {
        std::fs::create_dir_all(corpus(target)).unwrap();
        std::fs::write(corpus(target).join(format!("seed-{number:02}")), bytes).unwrap();
    };
    let sized = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let place = AlarmPlace { due: Timestamp::MAX, revision: Revision { epoch: Epoch(1), counter: u64::MAX } };
    let mut stored = vec![
        (4, codec::encode_alarm_place(place)),
        (5, codec::encode_arrival(Timestamp::from_millis(-256))),
        (6, codec::encode_stored(b"value")),
        (7, codec::encode_shard(ShardRow { epoch: Epoch(7), owned: true })),
        (8, codec::encode_fleet(1024, 1)),
    ];
    for (number, op) in ops().iter().enumerate() {
        write("postgres_rows", number, crate::postgres::fuzzing::seed(op));
        let (table, key, value) = crate::fjall::fuzzing::seed(ShardId(7), op);
        write("fjall_rows", number, [vec![table], sized(&key), value.clone()].concat());
        match op {
            Op::PutDead(letter) => stored.push((2 + u8::from(letter.key().is_message), value)),
            Op::Put { .. } => {}
            _ => stored.push((table, value)),
        }
        for (way, (table, member, progress, row)) in crate::redis::fuzzing::seeds(op).into_iter().enumerate() {
            let progress = progress.map(|progress| sized(&progress)).unwrap_or_default();
            write("redis_rows", 2 * number + way, [vec![table], sized(&member), progress, row].concat());
        }
    }
    for (number, (kind, value)) in stored.into_iter().enumerate() {
        write("values", number, [vec![kind], value].concat());
    }
}
