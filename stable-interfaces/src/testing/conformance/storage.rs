//! Storage of instances, written by `commit` and looked at by `read`.

use bytes::Bytes;

use super::given::*;

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

pub(super) async fn anyone_may_read(store: AnyStore) {
    let owner = put_keys(&store, &["a"]).await;
    claim(&store, &start(2, "host-a", &[0])).await;
    assert_eq!(keys(&store, "", None, 100).await, "a", "after a change of owner");
    store.release(life(2), &[crate::store::ShardId(0)]).await.expect("a release is answered");
    assert_eq!(keys(&store, "", None, 100).await, "a", "without an owner, after {:?}", owner.incarnation);
}
