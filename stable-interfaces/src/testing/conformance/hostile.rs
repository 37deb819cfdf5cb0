//! IDs that a store might split, fold, trim, escape, or sort as its language would.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::given::*;
use crate::store::{AlarmRow, DeadLetter, DeadRow, InboxRow, InstanceName, NewMessage, Op, Posted};

/// Valid IDs, all different, ascending by their bytes.
fn hostile_ids() -> Vec<String> {
    let plain = [
        "a",
        "b",
        "ab",
        "A",
        "Ab",
        "aB",
        "a:b",
        "a:b:c",
        "a::b",
        ":",
        "::",
        "a/b",
        "/",
        "//",
        ".",
        "..",
        "a.b",
        "a|b",
        "a,b",
        "(a,b)",
        "a\u{1}b",
        "\u{1}",
        "\u{1}\u{1}",
        "a\u{1}",
        "a\u{2}",
        "\u{7f}",
        "a\u{7f}",
        "a\u{1f}b",
        "\u{1e}",
        "\"",
        "a\"b",
        "'",
        "''",
        "a'b",
        "`",
        "\\",
        "\\\\",
        "\\0",
        "\\x00",
        "\\u0000",
        "\\n",
        "%",
        "%s",
        "%00",
        "a%b",
        "_",
        "a_b",
        "a-b",
        "-",
        "--",
        "\n",
        "a\nb",
        "\r",
        "\r\n",
        "\t",
        " ",
        "  ",
        " a",
        "a ",
        " a ",
        "{",
        "}",
        "{}",
        "{a}",
        "{a}b",
        "a{b}",
        "*",
        "a*",
        "?",
        "[a]",
        "[^a]",
        "$",
        "$1",
        "${a}",
        "@",
        "#",
        "~",
        "^",
        "&",
        "<a>",
        "+",
        "=",
        ";",
        "'; DROP TABLE alarms; --",
        "null",
        "NULL",
        "nil",
        "true",
        "0",
        "00",
        "-0",
        "1",
        "01",
        "10",
        "9",
        "1e3",
        "1000",
        "NaN",
        "inf",
        "é",
        "e\u{301}",
        "É",
        "ß",
        "ss",
        "SS",
        "ẞ",
        "ı",
        "i",
        "I",
        "İ",
        "ﬁ",
        "fi",
        "\u{c5}",
        "\u{212b}",
        "日本",
        "\u{80}",
        "\u{85}",
        "\u{a0}",
        "\u{a0}a",
        "\u{ad}",
        "\u{200b}",
        "a\u{200b}",
        "\u{200d}",
        "\u{202e}a",
        "\u{2028}",
        "\u{feff}",
        "\u{feff}a",
        "\u{d7ff}",
        "\u{e000}",
        "\u{fffd}",
        "\u{fffe}",
        "\u{ffff}",
        "\u{10000}",
        "\u{1f4a5}",
        "👩‍👩‍👧",
        "\u{10fffe}",
        "\u{10ffff}",
    ];
    let long =
        ["x".repeat(512), "x".repeat(511), format!("{}y", "x".repeat(511)), "é".repeat(256), "\u{10ffff}".repeat(128)];
    let ids: BTreeSet<String> = plain.into_iter().map(String::from).chain(long).collect();
    assert!(
        ids.len() > 140 && ids.iter().all(|id| crate::store::check_id(id).is_ok()),
        "the list is of different, valid IDs"
    );
    ids.into_iter().collect()
}

pub(super) async fn hostile_instance_ids_keep_apart_and_in_byte_order(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let ids = hostile_ids();
    // Two alarms each: an encoding that lets an ID run on into the next field shows in their order.
    let rows: Vec<AlarmRow> = ids.iter().flat_map(|id| [alarm(id, "\u{1}", 10), alarm(id, "\u{10ffff}", 10)]).collect();
    owner.commit(0, rows.iter().rev().cloned().map(Op::PutAlarm).collect()).await;
    owner.commit(0, ids.iter().rev().map(|id| put(id, "k", id)).collect()).await;
    assert_same(&alarms(&store, 0).await, &rows, "alarms in order of firing");
    for (id, rows) in ids.iter().zip(rows.chunks(2)) {
        assert_eq!(storage(&store, 0, id).await, [("k".into(), id.clone())], "{id:?}");
        assert_eq!(read_alarms(&store, 0, name(id), "", None, 10).await, rows, "{id:?}");
    }
}

pub(super) async fn hostile_alarm_ids_keep_apart_and_in_byte_order(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let rows: Vec<AlarmRow> = hostile_ids().iter().map(|id| alarm("i", id, 10)).collect();
    owner.commit(0, rows.iter().rev().cloned().map(Op::PutAlarm).collect()).await;
    assert_same(&alarms(&store, 0).await, &rows, "alarms in order of firing");
    assert_same(&read_alarms(&store, 0, name("i"), "", None, 1_000).await, &rows, "alarms by ID");
    for (n, row) in rows.iter().enumerate() {
        assert_eq!(read_alarms(&store, 0, name("i"), &row.id, None, 1).await, rows[n..=n], "from {:?}", row.id);
    }
    // Every second is removed: the others stay.
    owner.commit(0, rows.iter().step_by(2).map(|row| remove_alarm(row, row.revision)).collect()).await;
    let left: Vec<AlarmRow> = rows.into_iter().skip(1).step_by(2).collect();
    assert_same(&alarms(&store, 0).await, &left, "alarms that were not removed");
}

pub(super) async fn hostile_storage_keys_keep_apart_and_in_byte_order(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let keys = hostile_ids();
    owner.commit(0, keys.iter().rev().map(|key| put("i", key, key)).collect()).await;
    let rows = storage(&store, 0, "i").await;
    let expected: Vec<_> = keys.iter().map(|key| (key.clone(), key.clone())).collect();
    assert_same(&rows, &expected, "keys and values");
    for (from, to) in keys.iter().zip(&keys[1..]) {
        let found = read_storage(&store, 0, name("i"), from, Some(to), 10).await;
        assert_eq!(found.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), [from], "from {from:?} to {to:?}");
    }
    owner.commit(0, keys.iter().step_by(2).map(|key| delete("i", key)).collect()).await;
    let left: Vec<String> = storage(&store, 0, "i").await.into_iter().map(|(key, _)| key).collect();
    let expected: Vec<String> = keys.into_iter().skip(1).step_by(2).collect();
    assert_same(&left, &expected, "keys that were not deleted");
}

pub(super) async fn hostile_message_ids_keep_apart(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let ids = hostile_ids();
    let sent: Vec<NewMessage> = ids.iter().flat_map(|id| [message(0, "i", id, id), message(0, id, "m", id)]).collect();
    for expected in [Posted::Inserted, Posted::Duplicate] {
        let posted = store.post(&sent).await.expect("a post is answered");
        let answers: Vec<_> = sent.iter().zip(posted).map(|(sent, posted)| (&sent.name, &sent.id, posted)).collect();
        let expected: Vec<_> = sent.iter().map(|sent| (&sent.name, &sent.id, expected)).collect();
        assert_same(&answers, &expected, "answers to a post");
    }
    let rows = inbox(&store, 0).await;
    let identity = |name: &InstanceName, id: &str| (name.clone(), id.to_string());
    let mut found: Vec<_> = rows.iter().map(|row| (identity(&row.name, &row.id), row.body.clone())).collect();
    let mut expected: Vec<_> = sent.iter().map(|sent| (identity(&sent.name, &sent.id), sent.body.clone())).collect();
    found.sort();
    expected.sort();
    assert_same(&found, &expected, "messages");
    owner.commit(0, rows.iter().step_by(2).map(|row| Op::RemoveMessage(row.key())).collect()).await;
    let left: Vec<InboxRow> = rows.into_iter().skip(1).step_by(2).collect();
    assert_same(&inbox(&store, 0).await, &left, "messages that were not removed");
}

pub(super) async fn hostile_dead_letters_keep_apart_and_in_byte_order(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let letters = |id: &String| {
        let rows = [
            DeadRow::Alarm(alarm("i", id, 10)),
            DeadRow::Message(inbox_row("i", id, 10)),
            DeadRow::Alarm(alarm(id, "x", 10)),
            DeadRow::Message(inbox_row(id, "x", 10)),
        ];
        rows.map(|row| dead(20, row))
    };
    let mut expected: Vec<DeadLetter> = hostile_ids().iter().flat_map(letters).collect();
    expected.sort_by_key(DeadLetter::key);
    // The instance `i` and the ID `x` are in the list themselves.
    expected.dedup_by_key(|letter| letter.key());
    owner.commit(0, expected.iter().rev().cloned().map(Op::PutDead).collect()).await;
    assert_same(&dead_letters(&store, 0).await, &expected, "dead letters");
    owner.commit(0, expected.iter().step_by(2).map(|letter| Op::RemoveDead(letter.key())).collect()).await;
    let left: Vec<DeadLetter> = expected.into_iter().skip(1).step_by(2).collect();
    assert_same(&dead_letters(&store, 0).await, &left, "dead letters that were not removed");
}

/// Pairs of two names each that read the same when put together by some separator.
fn joined_pairs() -> Vec<[(InstanceName, String); 2]> {
    let separators = [
        "",
        ":",
        "::",
        "/",
        "|",
        ",",
        ";",
        ".",
        "-",
        "_",
        " ",
        "\t",
        "\n",
        "\\",
        "\"",
        "'",
        "{",
        "}",
        "*",
        "%",
        "#",
        "=",
        "\u{1}",
        "\u{2}",
        "\u{1e}",
        "\u{1f}",
        "\u{7f}",
        "\u{ff}",
        "\u{ffff}",
        "\u{10ffff}",
    ];
    let mut pairs = Vec::new();
    for s in separators {
        pairs.push([(name("a"), format!("b{s}c")), (name(&format!("a{s}b")), "c".into())]);
        pairs.push([(name("a"), format!("{s}{s}b")), (name(&format!("a{s}")), format!("{s}b"))]);
    }
    for s in ["-", "_", ""] {
        pairs.push([(of("a", &format!("b{s}c")), "d".into()), (of(&format!("a{s}b"), "c"), "d".into())]);
    }
    // Fields whose lengths, written in front of them, read like part of them.
    pairs.push([(name("a1"), "1b".into()), (name("a"), "11b".into())]);
    for pair in &mut pairs {
        let same = pair[0] == pair[1];
        assert!(!same || pair[0].1 == "b", "only the empty separator makes a pair of equals");
    }
    pairs.retain(|pair| pair[0] != pair[1]);
    pairs
}

pub(super) async fn names_that_are_equal_when_joined_keep_apart(store: AnyStore) {
    let pairs = joined_pairs();
    let shards: Vec<u32> = (0..u32::try_from(pairs.len()).unwrap_or(0)).collect();
    let mut owner = Owner::start(&store, 1, "host-a", &shards).await;
    for (&shard, pair) in shards.iter().zip(&pairs) {
        let ops = (0_u8..).zip(pair).flat_map(|(n, (name, id))| {
            let meta = Bytes::from(n.to_string());
            let row = AlarmRow { meta: meta.clone(), ..alarm_of(name.clone(), id, 10) };
            let letter = dead(20, DeadRow::Message(InboxRow { name: name.clone(), ..inbox_row("", id, 10) }));
            [Op::PutAlarm(row), put_of(name.clone(), id, meta), Op::PutDead(letter)]
        });
        owner.commit(shard, ops.collect()).await;
        let sent = pair.clone().map(|(name, id)| NewMessage { name, id: id.into(), ..message(shard, "", "", "") });
        let posted = store.post(&sent).await.expect("a post is answered");
        assert_eq!(posted, [Posted::Inserted; 2], "{pair:?} are two messages");
        assert_eq!(dead_letters(&store, shard).await.len(), 2, "{pair:?} are two dead letters");
        let mut metas: Vec<_> = alarms(&store, shard).await.into_iter().map(|row| row.meta).collect();
        metas.sort();
        assert_eq!(metas, ["0", "1"], "{pair:?} are two alarms");
        for (n, (name, id)) in (0_u8..).zip(pair) {
            let rows = read_storage(&store, shard, name.clone(), "", None, 10).await;
            assert_eq!(rows, [(id.as_str().into(), Bytes::from(n.to_string()))], "{pair:?} are two values");
        }
        let (name, id) = pair[0].clone();
        owner.commit(shard, vec![Op::Delete { name: name.clone(), key: id.as_str().into() }]).await;
        let row = alarm_of(name, &id, 10);
        owner.commit(shard, vec![remove_alarm(&row, row.revision)]).await;
        assert_eq!(alarms(&store, shard).await.len(), 1, "one of {pair:?} is left");
        assert_eq!(
            read_storage(&store, shard, pair[1].0.clone(), "", None, 10).await.len(),
            1,
            "one of {pair:?} is left"
        );
    }
}

pub(super) async fn an_id_that_begins_another_is_not_read_with_it(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let family = ["a", "a\u{1}", "a ", "a!", "a0", "a:", "aa", "a\u{7f}", "aé", "a\u{10ffff}"];
    for instance in family {
        let ops = family.iter().flat_map(|id| [put(instance, id, instance), Op::PutAlarm(alarm(instance, id, 10))]);
        owner.commit(0, ops.collect()).await;
    }
    for instance in family {
        let rows = storage(&store, 0, instance).await;
        assert_eq!(rows, family.map(|id| (id.to_string(), instance.to_string())), "of {instance:?}");
        let rows = read_alarms(&store, 0, name(instance), "", None, 100).await;
        assert_eq!(rows, family.map(|id| alarm(instance, id, 10)), "of {instance:?}");
        let rows = read_storage(&store, 0, name(instance), "a", Some("a\u{1}"), 100).await;
        assert_eq!(rows.len(), 1, "of {instance:?}, from \"a\" to its successor");
    }
}

pub(super) async fn ids_of_512_bytes_and_keys_of_1024_bytes_fit(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let interface = "x".repeat(64);
    // Text that does not compress, for stores whose limit counts the compressed size.
    let noise = |bytes: usize, seed: u32| -> String {
        let next = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(char::from(b'!' + u8::try_from(*state >> 24).unwrap_or(0) % 90))
        };
        std::iter::repeat_n((), bytes).scan(seed, |state, ()| next(state)).collect()
    };
    let ids = [noise(512, 1), noise(512, 2), "\u{10ffff}".repeat(128), format!("{}é", "x".repeat(510))];
    let keys =
        [noise(1024, 3), "\u{10ffff}".repeat(256), format!("{}a", "k".repeat(1023)), format!("{}b", "k".repeat(1023))];
    for instance in &ids {
        let name = of(&interface, instance);
        let rows: Vec<AlarmRow> = ids.iter().map(|id| alarm_of(name.clone(), id, 10)).collect();
        let letters = rows.iter().cloned().map(|row| dead(20, DeadRow::Alarm(row)));
        let puts = keys.iter().map(|key| put_of(name.clone(), key, Bytes::copy_from_slice(key.as_bytes())));
        let ops = rows.iter().cloned().map(Op::PutAlarm).chain(letters.map(Op::PutDead)).chain(puts).collect();
        owner.commit(0, ops).await;
        let sent: Vec<_> = ids.iter().map(|id| NewMessage { name: name.clone(), ..message(0, "", id, "") }).collect();
        assert_eq!(store.post(&sent).await.expect("a post is answered"), [Posted::Inserted; 4]);
        assert_eq!(read_alarms(&store, 0, name.clone(), "", None, 10).await.len(), 4);
        let found = read_storage(&store, 0, name, "", None, 10).await;
        assert!(
            found.len() == 4 && found.iter().all(|(key, value)| key.as_bytes() == value),
            "long keys come back whole"
        );
    }
    assert_eq!(alarms(&store, 0).await.len(), 16);
    assert_eq!(inbox(&store, 0).await.len(), 16);
    assert_eq!(dead_letters(&store, 0).await.len(), 16);
}
