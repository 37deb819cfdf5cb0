//! Rows that somebody else put there, and what people see.

use stable_interfaces::store::{
    After, AlarmRow, DamageReason, Epoch, Incarnation, Op, Page, Read, ReadRange, ReadRows, Renewal, Revision, Rows,
    ShardId,
};
use stable_interfaces::{Store, StoreError};
use tokio_postgres::Client;

use super::SERVER;
use super::given::*;
use alarm_backends::postgres::PostgresStore;
use alarm_backends::testing::servers::PostgresOptions;
use std::sync::Arc;

/// A store with five alarms, `a-0` to `a-4`, due in that order, and a connection to its tables.
async fn five_alarms() -> (Arc<PostgresStore>, Client) {
    let url = tokio::task::spawn_blocking(|| SERVER.fresh_database()).await.expect("a database is made");
    let (store, raw) = (store_on(&url).await, raw(&url).await);
    own(&store, 1).await;
    let ops = (0..5).map(|n| Op::PutAlarm(alarm(&format!("a-{n}"), n))).collect();
    commit(&store, &write(0, 1, ops)).await.expect("the owner writes");
    (store, raw)
}

async fn change(raw: &Client, sql: &str) {
    raw.batch_execute(&sql.replace("{s}", "stable_interfaces")).await.expect("the row is changed");
}

fn ids(rows: &Rows) -> Vec<&str> {
    match rows {
        Rows::Alarms(rows) => rows.iter().map(|row| &*row.id).collect(),
        Rows::Inbox(rows) => rows.iter().map(|row| &*row.id).collect(),
        Rows::Dead(rows) => rows.iter().map(|row| &*row.key().id.to_string().leak()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbage_row_is_set_aside_and_the_page_goes_on() {
    let (store, raw) = five_alarms().await;
    change(&raw, "UPDATE {s}.alarm SET attempt = -1 WHERE id = 'a-1'").await;
    change(&raw, "UPDATE {s}.alarm SET scheduled_at = 9223372036854775807 WHERE id = 'a-2'").await;
    for limit in [2, 3, 10] {
        let loaded = load(&store, After::Alarms(None), limit).await;
        assert_eq!(ids(&loaded.rows), ["a-0", "a-3", "a-4"][..limit.min(3)]);
        assert_eq!(loaded.damaged.len(), 2);
        let first = &loaded.damaged[0];
        assert!(first.place.contains("alarm") && first.place.contains("a-1"), "{first:?}");
        assert!(matches!(&first.reason, DamageReason::Undecodable(what) if what.contains("attempt")), "{first:?}");
    }
    let read = Read::new(ShardId(0), name("i"), ReadRange::Alarms("".into(), None), 2);
    match store.read(&read).await.expect("a read is answered").rows {
        ReadRows::Alarms(rows) => assert_eq!(rows.iter().map(|row| &*row.id).collect::<Vec<_>>(), ["a-0", "a-3"]),
        other @ ReadRows::Storage(_) => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_newer_version_is_left_alone() {
    let (store, raw) = five_alarms().await;
    change(&raw, "UPDATE {s}.alarm SET format = 7, attempt = -5 WHERE id = 'a-0'").await;
    let loaded = load(&store, After::Alarms(None), 1).await;
    assert_eq!(ids(&loaded.rows), ["a-1"]);
    assert_eq!(loaded.damaged[0].reason, DamageReason::NewerVersion(7));
    let stored: i16 = raw
        .query_one_scalar("SELECT format FROM stable_interfaces.alarm WHERE id = 'a-0' AND attempt = -5", &[])
        .await
        .expect("the row is still there");
    assert_eq!(stored, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_newer_version_is_not_written_over_and_its_write_not_half_applied() {
    let (store, raw) = five_alarms().await;
    change(&raw, "UPDATE {s}.alarm SET format = 7, attempt = -5 WHERE id = 'a-0'").await;
    store.post(&[message(0, "m")]).await.expect("it is posted");
    change(&raw, "UPDATE {s}.inbox SET format = 7, attempt = -5").await;
    let greater = |n| Revision { epoch: Epoch(9), counter: n };
    let remove = |revision| Op::RemoveAlarm { name: name("i"), id: "a-0".into(), revision };
    for op in [
        Op::PutAlarm(AlarmRow { revision: greater(1), ..alarm("a-0", 77) }),
        Op::PutAlarm(AlarmRow { revision: Revision::default(), ..alarm("a-0", 77) }),
        remove(greater(1)),
        remove(Revision::default()),
    ] {
        let refused = commit(&store, &write(0, 2, vec![put("k", "v"), op])).await;
        let Err(StoreError::Rejected(error)) = refused else { panic!("{refused:?}") };
        assert!(format!("{error:?}").contains("a-0 is stored in the newer format 7"), "{error:?}");
    }
    assert_eq!(value(&store, "k").await, None);
    // A row that nobody here can read was handed to nobody, so a change of it comes from a mistake.
    let Rows::Inbox(rows) = load(&store, After::Inbox(None), 9).await.rows else { panic!("an inbox was asked for") };
    assert_eq!(rows, []);
    let left: i64 = raw
        .query_one_scalar(
            "SELECT (SELECT count(*) FROM stable_interfaces.alarm WHERE format = 7 AND attempt = -5 AND due = 0) \
             + (SELECT count(*) FROM stable_interfaces.inbox WHERE format = 7 AND attempt = -5)",
            &[],
        )
        .await
        .expect("the rows are counted");
    assert_eq!(left, 2);
    // The number was not taken.
    commit(&store, &write(0, 2, vec![put("k", "v")])).await.expect("the owner writes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_garbage_alone_ends() {
    let (store, raw) = five_alarms().await;
    change(&raw, "UPDATE {s}.alarm SET rev_epoch = -1").await;
    let loaded = load(&store, After::Alarms(None), 1).await;
    assert_eq!((ids(&loaded.rows), loaded.damaged.len()), (vec![], 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_headers_are_not_json_is_set_aside() {
    let (store, raw) = five_alarms().await;
    for id in ["m-0", "m-1"] {
        store.post(&[message(0, id)]).await.expect("the post is answered");
    }
    change(&raw, "UPDATE {s}.inbox SET headers = 'garbage' WHERE id = 'm-0'").await;
    let loaded = load(&store, After::Inbox(None), 1).await;
    assert_eq!(ids(&loaded.rows), ["m-1"]);
    assert!(matches!(&loaded.damaged[0].reason, DamageReason::Undecodable(what) if what.contains("headers")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_value_of_a_newer_version_is_an_error_of_the_read() {
    let (store, raw) = five_alarms().await;
    commit(&store, &write(0, 2, vec![put("k", "v")])).await.expect("the owner writes");
    change(&raw, "UPDATE {s}.storage SET format = 2").await;
    let read = Read::new(ShardId(0), name("i"), ReadRange::Storage("".into(), None), 1);
    match store.read(&read).await {
        Err(StoreError::Damaged(damaged)) => assert_eq!(damaged.reason, DamageReason::NewerVersion(2)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_can_read_what_is_waiting() {
    let (store, raw) = five_alarms().await;
    store.post(&[message(0, "m-0")]).await.expect("the post is answered");
    let dead = stable_interfaces::store::DeadLetter {
        died_at: stable_interfaces::Timestamp::from_millis(1_790_000_000_123),
        reason: "out of luck".into(),
        row: stable_interfaces::store::DeadRow::Alarm(AlarmRow {
            meta: bytes::Bytes::from_static(b"\xff not text"),
            ..alarm("late", stable_interfaces::Timestamp::MAX.as_millis())
        }),
    };
    commit(&store, &write(0, 2, vec![Op::PutDead(dead)])).await.expect("the owner writes");
    let rows = raw
        .query(
            "SELECT kind, id, content, error, to_json(at)::text FROM stable_interfaces.waiting ORDER BY kind, id",
            &[],
        )
        .await
        .expect("the view can be read");
    let kinds: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(kinds, ["alarm", "alarm", "alarm", "alarm", "alarm", "dead alarm", "message"]);
    assert_eq!(rows[0].get::<_, &str>(2), r#"{"café":1}"#);
    assert_eq!((rows[5].get::<_, &str>(2), rows[5].get::<_, &str>(3)), (r"\377 not text", "out of luck"));
    assert!(rows[5].get::<_, &str>(4).contains("2026-09-21T"), "{}", rows[5].get::<_, &str>(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_shards_are_loaded_in_one_query_along_the_index() {
    let (server, store) = server_with(PostgresOptions::new().set("log_statement", "all")).await;
    let shards: Vec<u32> = (0..1024).collect();
    let claim = claim(1, "host-a", &shards, stable_interfaces::store::ClaimKind::Start);
    store.claim(&claim).await.expect("the claim is answered");
    let raw = raw(&server.url("postgres")).await;
    change(
        &raw,
        "INSERT INTO {s}.alarm SELECT n % 1024, 'order', 'i-' || n, 'a', n, n, 1, 1, 0, 0, false, NULL, '{}', 1
         FROM generate_series(0, 20479) n",
    )
    .await;
    let pages: Vec<_> = shards.iter().map(|&shard| Page::new(ShardId(shard), After::Alarms(None), 7)).collect();
    store.load(&pages).await.expect("a load is answered");
    let before = server.log().matches("CROSS JOIN LATERAL").count();
    let loaded = store.load(&pages).await.expect("a load is answered");
    assert_eq!(server.log().matches("CROSS JOIN LATERAL").count() - before, 1, "one query");
    for (shard, loaded) in shards.iter().zip(&loaded) {
        let Rows::Alarms(rows) = &loaded.rows else { panic!("alarms were asked for") };
        let due: Vec<i64> = rows.iter().map(|row| row.due.as_millis()).collect();
        assert_eq!(due, (0..7).map(|n| i64::from(*shard) + n * 1024).collect::<Vec<_>>());
    }
    assert!(
        store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await.expect("the lease is renewed").owned.len() == 1024
    );
}
