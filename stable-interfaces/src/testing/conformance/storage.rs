//! Storage of instances, written by `commit` and looked at by `read`.

use bytes::Bytes;

use super::given::*;
use crate::store::{AlarmRow, Found, Op, Read, ReadRange, ReadRows, ShardId};

pub(super) async fn a_value_is_put_replaced_and_deleted(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    owner.commit(0, vec![put("i", "a", "1"), put("i", "b", "1")]).await;
    owner.commit(0, vec![put("i", "a", "2"), put("i", "c", "1")]).await;
    assert_eq!(storage(&store, 0, "i").await, [("a", "2"), ("b", "1"), ("c", "1")].map(|(k, v)| (k.into(), v.into())));
    owner.commit(0, vec![delete("i", "b"), put("i", "c", "")]).await;
    assert_eq!(storage(&store, 0, "i").await, [("a", "2"), ("c", "")].map(|(k, v)| (k.into(), v.into())));
    owner.commit(0, vec![put("i", "b", "3")]).await;
    assert_eq!(value(&store, 0, "i", "b").await.as_deref(), Some("3"));
}

pub(super) async fn deleting_an_absent_value_does_nothing(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    owner.commit(0, vec![put("i", "a", "1")]).await;
    owner.commit(0, vec![delete("i", "aa"), delete("ii", "a"), delete("j", "x")]).await;
    assert_eq!(storage(&store, 0, "i").await, [("a".into(), "1".into())]);
}

pub(super) async fn values_are_any_bytes(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let large: Vec<u8> = (0..=255).rev().cycle().take(crate::store::MAX_VALUE_BYTES).collect();
    let values = [vec![], vec![0], (0..=255).collect(), vec![0xff, 0xfe, 0], b"null".to_vec(), large].map(Bytes::from);
    owner
        .commit(
            0,
            (0..).zip(&values).map(|(n, value): (u8, _)| put_of(name("i"), &n.to_string(), value.clone())).collect(),
        )
        .await;
    let rows = read_storage(&store, 0, name("i"), "", None, 100).await;
    assert_eq!(rows.len(), values.len());
    for ((key, found), value) in rows.iter().zip(&values) {
        assert!(found == value, "value {key} came back changed: {} bytes", found.len());
    }
}

/// The keys of instance `i` in a range, joined by spaces.
async fn keys(store: &AnyStore, from: &str, to: Option<&str>, limit: usize) -> String {
    let rows = read_storage(store, 0, name("i"), from, to, limit).await;
    rows.iter().map(|(key, _)| &**key).collect::<Vec<_>>().join(" ")
}

async fn put_keys(store: &AnyStore, keys: &[&str]) -> Owner {
    let mut owner = Owner::start(store, 1, "host-a", &[0]).await;
    owner.commit(0, keys.iter().map(|key| put("i", key, "v")).collect()).await;
    owner
}

pub(super) async fn a_range_has_its_start_and_not_its_end(store: AnyStore) {
    put_keys(&store, &["a", "b", "b1", "b2", "c", "d"]).await;
    assert_eq!(keys(&store, "b", Some("c"), 100).await, "b b1 b2");
    assert_eq!(keys(&store, "b1", Some("b2"), 100).await, "b1");
    assert_eq!(keys(&store, "aa", Some("b10"), 100).await, "b b1");
    assert_eq!(keys(&store, "b3", None, 100).await, "c d");
    assert_eq!(keys(&store, "", Some("b"), 100).await, "a");
    assert_eq!(keys(&store, "", None, 100).await, "a b b1 b2 c d");
}

pub(super) async fn an_empty_or_reversed_range_has_nothing(store: AnyStore) {
    put_keys(&store, &["a", "b", "c"]).await;
    for (from, to) in [("b", "b"), ("c", "a"), ("aa", "ab"), ("d", "e"), ("", "")] {
        assert_eq!(keys(&store, from, Some(to), 100).await, "", "from {from:?} to {to:?}");
    }
    assert_eq!(keys(&store, "d", None, 100).await, "");
}

pub(super) async fn a_read_is_limited_and_starts_at_the_smallest_key(store: AnyStore) {
    put_keys(&store, &["10", "9", "a", "B", "ä"]).await;
    assert_eq!(keys(&store, "", None, 100).await, "10 9 B a ä", "keys ascend by their bytes");
    assert_eq!(keys(&store, "", None, 1).await, "10");
    assert_eq!(keys(&store, "", None, 5).await, "10 9 B a ä");
    assert_eq!(keys(&store, "2", Some("b"), 2).await, "9 B");
}

pub(super) async fn a_read_sees_one_instance_of_one_interface(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0, 1]).await;
    let names = [of("order", "i"), of("order", "j"), of("order", "ii"), of("orders", "i"), of("orde", "i")];
    let value = |n: u8| Bytes::from(vec![n]);
    owner.commit(0, (0..).zip(&names).map(|(n, name)| put_of(name.clone(), "k", value(n))).collect()).await;
    owner.commit(1, vec![put_of(names[0].clone(), "k", value(9))]).await;
    for (n, name) in (0..).zip(&names) {
        assert_eq!(read_storage(&store, 0, name.clone(), "", None, 100).await, [("k".into(), value(n))], "{name}");
    }
    assert_eq!(read_storage(&store, 1, names[0].clone(), "", None, 100).await, [("k".into(), value(9))], "in shard 1");
    owner.commit(0, vec![delete("i", "k")]).await;
    assert_eq!(read_storage(&store, 0, names[0].clone(), "", None, 100).await, []);
    for name in &names[1..] {
        assert_eq!(read_storage(&store, 0, name.clone(), "", None, 100).await.len(), 1, "{name} is another");
    }
}

pub(super) async fn an_instance_without_rows_reads_as_empty(store: AnyStore) {
    assert_eq!(storage(&store, 5, "i").await, [], "in a store that nobody ever wrote to");
    assert_eq!(read_alarms(&store, 5, name("i"), "", None, 10).await, []);
    put_keys(&store, &["a"]).await;
    assert_eq!(storage(&store, 0, "nobody").await, []);
    assert_eq!(read_alarms(&store, 0, name("i"), "", None, 10).await, []);
}

/// A read of an instance's storage, or of its alarms, from `from` on.
fn read_of(is_storage: bool, from: &str, limit: usize, bytes: usize) -> Read {
    let range = if is_storage { ReadRange::Storage(from.into(), None) } else { ReadRange::Alarms(from.into(), None) };
    Read { bytes, ..Read::new(ShardId(0), name("i"), range, limit) }
}

/// The IDs of what was found, and whether that is said to be the last.
fn ids(found: Found) -> (Vec<String>, bool) {
    let ids = match found.rows {
        ReadRows::Storage(rows) => rows.iter().map(|(key, _)| key.to_string()).collect(),
        ReadRows::Alarms(rows) => rows.iter().map(|row| row.id.to_string()).collect(),
    };
    (ids, found.is_last)
}

pub(super) async fn a_read_has_no_more_bytes_than_it_may_and_one_row_at_least(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let value = |n: usize| Bytes::from(format!("\"{}\"", "x".repeat(9_998 + usize::from(n == 4) * 60_000)));
    let alarms = (0..8).map(|n| Op::PutAlarm(AlarmRow { meta: value(n), ..alarm("i", &format!("{n}"), 10) }));
    owner.commit(0, alarms.collect()).await;
    owner.commit(0, (0..8).map(|n| put_of(name("i"), &format!("{n}"), value(n))).collect()).await;
    // Beside them, of other instances.
    owner.commit(0, vec![put("h", "1", "v"), put("j", "1", "v"), Op::PutAlarm(alarm("j", "1", 10))]).await;
    // What a store keeps beside meta and value may count as well, so a limit is not exact.
    for (bytes, sizes) in
        [(1, vec![1; 8]), (26_000, vec![2, 2, 1, 2, 1]), (85_000, vec![4, 2, 2]), (1_000_000, vec![8])]
    {
        for is_storage in [true, false] {
            let (mut found, mut all, mut from) = (Vec::new(), Vec::new(), String::new());
            loop {
                let read = read_of(is_storage, &from, 100, bytes);
                let (rows, is_last) = ids(store.read(&read).await.expect("a read is answered"));
                found.push(rows.len());
                assert!(is_last || !rows.is_empty(), "an answer before the last has a row");
                all.extend(rows);
                if is_last {
                    break;
                }
                from = format!("{}!", all.last().expect("there is one"));
            }
            assert_eq!(found, sizes, "storage: {is_storage}, by {bytes} bytes");
            assert_eq!(all.join(""), "01234567", "storage: {is_storage}, by {bytes} bytes");
        }
    }
}

pub(super) async fn the_end_of_a_range_is_told(store: AnyStore) {
    let mut owner = put_keys(&store, &["a", "b", "c", "d"]).await;
    let alarms = ["a", "b", "c", "d"].map(|id| Op::PutAlarm(alarm("i", id, 10)));
    owner.commit(0, alarms.into_iter().chain([put("j", "a", "v")]).collect()).await;
    for is_storage in [true, false] {
        for (from, limit, rows, is_last) in
            [("", 5, 4, true), ("", 3, 3, false), ("b", 4, 3, true), ("e", 1, 0, true), ("c", 1, 1, false)]
        {
            let read = read_of(is_storage, from, limit, usize::MAX);
            let found = ids(store.read(&read).await.expect("a read is answered"));
            assert_eq!((found.0.len(), found.1), (rows, is_last), "storage: {is_storage}, {limit} from {from:?}");
        }
        let mut read = read_of(is_storage, "a", 10, usize::MAX);
        let (ReadRange::Storage(_, to) | ReadRange::Alarms(_, to)) = &mut read.range;
        *to = Some("c".into());
        let found = ids(store.read(&read).await.expect("a read is answered"));
        assert_eq!(found, (vec!["a".to_owned(), "b".to_owned()], true), "up to where the range ends");
    }
}

pub(super) async fn anyone_may_read(store: AnyStore) {
    let owner = put_keys(&store, &["a"]).await;
    claim(&store, &start(2, "host-a", &[0])).await;
    assert_eq!(keys(&store, "", None, 100).await, "a", "after a change of owner");
    store.release(life(2), &[(ShardId(0), None)]).await.expect("a release is answered");
    assert_eq!(keys(&store, "", None, 100).await, "a", "without an owner, after {:?}", owner.incarnation);
}
