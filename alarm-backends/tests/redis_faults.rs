//! The Redis store when the server fails, is configured badly, loses data, or holds what is not ours.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "real servers fail in real time, and a test fails by panicking"
)]

#[path = "first_release/mod.rs"]
mod first_release;
#[path = "redis_faults/names.rs"]
mod names;
#[path = "redis_faults/steps.rs"]
mod steps;
#[path = "redis_faults/together.rs"]
mod together;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use alarm_backends::RedisStore;
use alarm_backends::testing::servers::{Redis, RedisCluster, RedisOptions};
use bytes::Bytes;
use stable_interfaces::store::{
    After, AlarmRow, Attempts, Batch, Claim, ClaimKind, DamageReason, DeadLetter, DeadRow, Epoch, Hint, Incarnation,
    InstanceName, Lane, Loaded, NewMessage, Op, Page, Placement, Presence, Read, ReadRange, ReadRows, Renewal,
    Revision, Rows, ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError, Timestamp};

const LEASE: Duration = Duration::from_secs(600);
/// Longer than anything takes that is not waited for in vain, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);
const ME: Incarnation = Incarnation(1);

fn name() -> InstanceName {
    InstanceName { interface: "order".into(), instance: "o-1".into() }
}

fn claim_of(incarnation: Incarnation, host: &str, shards: impl IntoIterator<Item = u32>, kind: ClaimKind) -> Claim {
    let shards = shards.into_iter().map(ShardId).collect();
    Claim {
        incarnation,
        host: host.into(),
        shards,
        given_up: Vec::new(),
        shard_count: 1024,
        hash_version: 1,
        lease: LEASE,
        kind,
        presence: Presence::default(),
    }
}

/// Starts host `a` as incarnation 1; all shards must be granted.
async fn start(store: &RedisStore, shards: impl IntoIterator<Item = u32>) {
    let claim = claim_of(ME, "a", shards, ClaimKind::Start);
    let claimed = at_last(async || store.claim(&claim).await).await.unwrap();
    assert_eq!(claimed.held, []);
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { name: name(), key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn delete(key: &str) -> Op {
    Op::Delete { name: name(), key: key.into() }
}

fn alarm(id: &str, due: i64) -> AlarmRow {
    AlarmRow {
        name: name(),
        id: id.into(),
        due: Timestamp::from_millis(due),
        scheduled_at: Timestamp::from_millis(due),
        revision: Revision { epoch: Epoch(1), counter: 1 },
        attempts: Attempts::default(),
        meta: Bytes::from_static(b"{}"),
    }
}

fn message(id: &str) -> NewMessage {
    NewMessage { shard: ShardId(0), name: name(), id: id.into(), headers: vec![], body: Bytes::from_static(b"hi") }
}

fn batch(shard: u32, ops: Vec<Op>) -> Batch {
    Batch { shard: ShardId(shard), epoch: Epoch(1), ops: ops.into() }
}

fn write(seq: u64, batches: Vec<Batch>) -> Write {
    Write { incarnation: ME, lane: Lane(0), seq, batches }
}

/// Commits to one shard; the answer of its batch.
async fn commit(store: &RedisStore, seq: u64, shard: u32, ops: Vec<Op>) -> Result<(), StoreError> {
    store.commit(&write(seq, vec![batch(shard, ops)])).await?.remove(0)
}

async fn keys(store: &RedisStore, shard: u32) -> BTreeSet<String> {
    let range = ReadRange::Storage("".into(), None);
    let read = Read::new(ShardId(shard), name(), range, 100_000);
    match at_last(async || store.read(&read).await).await.unwrap().rows {
        ReadRows::Storage(rows) => rows.into_iter().map(|(key, _)| key.to_string()).collect(),
        ReadRows::Alarms(_) => panic!("a read of storage has storage"),
    }
}

async fn load(store: &RedisStore, after: After) -> Loaded {
    let page = [Page::new(ShardId(0), after, 100)];
    at_last(async || store.load(&page).await).await.unwrap().remove(0)
}

async fn alarms(store: &RedisStore) -> Vec<AlarmRow> {
    match load(store, After::Alarms(None)).await.rows {
        Rows::Alarms(rows) => rows,
        other => panic!("a page of alarms has alarms, not {other:?}"),
    }
}

/// A store whose deadline is short enough to be waited for in vain.
fn quick(server: &Redis) -> alarm_backends::RedisStoreBuilder {
    RedisStore::builder(server.url()).timeout(Duration::from_secs(2))
}

fn patient(server: &Redis) -> alarm_backends::RedisStoreBuilder {
    RedisStore::builder(server.url()).timeout(PATIENCE)
}

/// The answer to a call that is repeated until it has a definite one, as a host does it.
async fn at_last<T>(call: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Err(error) if error.is_retryable() && Instant::now() < end => {}
            answer => return answer,
        }
    }
}

fn assert_lost<T: std::fmt::Debug>(answer: Result<T, StoreError>, said: &str) {
    match answer {
        Err(StoreError::Lost(error)) => assert!(error.to_string().contains(said), "{error}"),
        other => panic!("the store has lost data, not {other:?}"),
    }
}

/// A cluster whose servers go on when one of them is gone.
fn cluster() -> RedisCluster {
    let cluster = RedisCluster::start();
    for node in cluster.nodes() {
        node.execute(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    cluster
}

/// The server that has `key`; the others redirect, which is an error.
fn node_of<'a>(cluster: &'a RedisCluster, key: &str) -> &'a Redis {
    cluster.nodes().iter().find(|node| node.takes(&["EXISTS", key])).unwrap()
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_tried_again_and_named() {
    let server = Redis::start();
    server.kill9();
    let address = format!("127.0.0.1:{}", server.port());
    let gone = quick(&server).connect().await;
    let Err(StoreError::NotApplied(error)) = &gone else { panic!("nothing was done, not {gone:?}") };
    assert_eq!(error.to_string(), format!("no connection to {address} within 2s"));
    assert!(format!("{error:?}").contains("refused"), "{error:?}");
    let back = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart();
    };
    let (connected, ()) =
        tokio::join!(RedisStore::builder(server.url()).timeout(Duration::from_secs(30)).connect(), back);
    connected.unwrap();
    server.kill9();
    let store = quick(&server).build().unwrap();
    for _ in 0..3 {
        let error = store.renew(&Renewal::new(ME, LEASE)).await.unwrap_err();
        let StoreError::NotApplied(error) = &error else { panic!("nothing was done, not {error:?}") };
        assert!(error.to_string().starts_with(&address), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_given_them_again() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..300).await;
    for seq in 1..4 {
        server.execute(&["SCRIPT", "FLUSH"]);
        let batches = (0..50).map(|shard| batch(shard, vec![put("k", "v")])).collect();
        assert!(store.commit(&write(seq, batches)).await.unwrap().iter().all(Result::is_ok));
        server.execute(&["SCRIPT", "FLUSH"]);
        assert_eq!(keys(&store, 49).await.len(), 1);
        assert_eq!(store.renew(&Renewal::new(ME, LEASE)).await.unwrap().owned.len(), 300);
        assert_eq!(store.post(&[message(&seq.to_string())]).await.unwrap(), [Posted::Inserted]);
    }
}

#[tokio::test]
async fn a_key_of_another_type_leaves_nothing_half_written() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..2).await;
    // Each of these is written by the batch below after others have been.
    let everything = || vec![put("k", "v"), Op::PutAlarm(alarm("a", 10))];
    for (seq, key) in
        (1..).zip(["{stable:0}:storage.order", "{stable:0}:storage", "{stable:0}:alarms.ids", "{stable:0}:alarms.due"])
    {
        server.execute(&["SET", key, "not ours"]);
        let answers = store.commit(&write(seq, vec![batch(0, everything()), batch(1, everything())])).await.unwrap();
        match &answers[0] {
            Err(StoreError::Rejected(error)) => assert!(error.to_string().contains(key), "{error}"),
            other => panic!("rejected by name, not {other:?}"),
        }
        assert!(answers[1].is_ok(), "{answers:?}");
        server.execute(&["DEL", key]);
        let left = server.execute(&["KEYS", "{stable:0}:*"]);
        assert_eq!(left, "{stable:0}:own", "nothing of the batch is there");
    }
    server.execute(&["SET", "{stable:0}:alarms.due", "not ours"]);
    let loaded = load(&store, After::Alarms(None)).await;
    assert!(loaded.damaged.len() == 1 && loaded.damaged[0].place.contains("{stable:0}:alarms.due"), "{loaded:?}");
    server.execute(&["DEL", "{stable:0}:alarms.due"]);
    // A refused write did not take its number.
    commit(&store, 4, 0, everything()).await.unwrap();
    assert_eq!((keys(&store, 0).await.len(), alarms(&store).await.len()), (1, 1));

    // Where nothing new comes to it, too.
    server.execute(&["RENAME", "{stable:0}:alarms.ids", "{stable:0}:elsewhere"]);
    server.execute(&["SET", "{stable:0}:alarms.ids", "not ours"]);
    let set = alarm("a", 10);
    let removed = vec![delete("k"), Op::RemoveAlarm { name: set.name, id: set.id, revision: set.revision }];
    assert!(matches!(commit(&store, 5, 0, removed.clone()).await, Err(StoreError::Rejected(_))));
    server.execute(&["RENAME", "{stable:0}:elsewhere", "{stable:0}:alarms.ids"]);
    assert_eq!((keys(&store, 0).await.len(), alarms(&store).await.len()), (1, 1));
    commit(&store, 5, 0, removed).await.unwrap();
    assert_eq!((keys(&store, 0).await.len(), alarms(&store).await.len()), (0, 0));
}

#[tokio::test]
async fn a_server_that_may_evict_anything_is_refused() {
    let server = RedisOptions::new().set("maxmemory-policy", "allkeys-lru").start();
    match patient(&server).connect().await {
        Err(StoreError::Open(text, _)) => {
            assert!(text.contains("allkeys-lru") && text.contains("noeviction"), "{text}");
        }
        other => panic!("refused, not {other:?}"),
    }
    server.execute(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]);
    patient(&server).connect().await.unwrap();
}

#[tokio::test]
async fn what_a_weaker_append_only_file_can_lose_is_said() {
    let server = Redis::start();
    assert_eq!(patient(&server).connect().await.unwrap().warnings(), Vec::<String>::new());
    server.execute(&["CONFIG", "SET", "appendfsync", "everysec"]);
    let warnings = patient(&server).connect().await.unwrap().warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("last second"), "{warnings:?}");
    server.execute(&["CONFIG", "SET", "appendonly", "no"]);
    let warnings = patient(&server).connect().await.unwrap().warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("append-only"), "{warnings:?}");
}

#[tokio::test]
async fn a_user_with_the_documented_rights_can_do_everything_and_one_with_less_is_refused() {
    let server = Redis::start();
    let rights = "~{stable* &stable:* +eval +evalsha +script|load +info +wait +subscribe +publish +@hash +@sortedset +@set +@list +del +type +time";
    let user: Vec<&str> = ["ACL", "SETUSER", "app", "on", ">secret"].into_iter().chain(rights.split(' ')).collect();
    assert_eq!(server.execute(&user), "OK");
    let url = format!("redis://app:secret@127.0.0.1:{}", server.port());
    let store = RedisStore::builder(&url).connect().await.unwrap();
    start(&store, 0..3).await;
    let mut hints = store.watch(ME).await.unwrap();
    store.post(&[message("m")]).await.unwrap();
    assert_eq!(hints.next().await, Some(Hint::Inbox(ShardId(0))));
    commit(&store, 1, 0, vec![put("k", "v"), Op::PutAlarm(alarm("a", 10))]).await.unwrap();
    assert_eq!((keys(&store, 0).await.len(), alarms(&store).await.len()), (1, 1));
    assert_eq!(store.renew(&Renewal::new(ME, LEASE)).await.unwrap().inbox, [ShardId(0)]);
    store.release(ME, &[(ShardId(1), None)]).await.unwrap();
    drop(store);

    for less in ["-zadd", "-hset", "-evalsha", "-info"] {
        server.execute(&["ACL", "SETUSER", "app", less]);
        let refused = RedisStore::builder(&url).connect().await;
        assert!(matches!(refused, Err(StoreError::Open(..))), "without {less}: {refused:?}");
        server.execute(&["ACL", "SETUSER", "app", &less.replace('-', "+")]);
    }
    let wrong = RedisStore::connect(&url.replace("secret", "wrong")).await.unwrap_err();
    assert!(matches!(wrong, StoreError::Open(..)) && !format!("{wrong:?}").contains("wrong@"), "{wrong:?}");
}

#[tokio::test]
async fn kill_9_with_a_synced_append_only_file_loses_nothing_and_halves_nothing() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..4).await;
    let (mut acknowledged, mut seq) = (0, 0);
    for round in 0..5u64 {
        let end = seq + 10 + round;
        // The kill comes in the middle of a write: it is repeated until it is known.
        let killing = async {
            tokio::time::sleep(Duration::from_millis(5 * round)).await;
            server.kill9();
            server.restart();
        };
        let writing = async {
            while seq < end {
                seq += 1;
                let ops = |shard: u32| batch(shard, (0..50).map(|n| put(&format!("{seq}-{n}"), "v")).collect());
                let write = write(seq, (0..4).map(ops).collect());
                loop {
                    match store.commit(&write).await {
                        Ok(answers) if answers.iter().all(Result::is_ok) => break,
                        Ok(answers) => {
                            let may_be_repeated = |error: &StoreError| error.is_retryable();
                            assert!(answers.iter().filter_map(|answer| answer.as_ref().err()).all(may_be_repeated));
                        }
                        Err(StoreError::Unavailable(_) | StoreError::NotApplied(_)) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                }
                acknowledged += 1;
            }
        };
        tokio::join!(writing, killing);
        for shard in 0..4 {
            let found = keys(&store, shard).await;
            assert_eq!(found.len(), 50 * acknowledged, "of shard {shard}, all acknowledged and none twice");
        }
        assert_eq!(store.renew(&Renewal::new(ME, LEASE)).await.unwrap().owned.len(), 4);
    }
}

#[tokio::test]
async fn a_store_that_was_emptied_is_noticed_by_every_method() {
    let server = Redis::start();
    let fresh = async |prefix: &str| {
        let store = patient(&server).prefix(prefix).connect().await.unwrap();
        start(&store, 0..4).await;
        store
    };
    let stores = [fresh("a").await, fresh("b").await, fresh("c").await];
    server.execute(&["FLUSHALL"]);
    assert_lost(
        stores[0].commit(&write(1, vec![batch(0, vec![put("k", "v")])])).await,
        "epoch 1 was granted, 0 is stored",
    );
    assert_lost(stores[1].renew(&Renewal::new(ME, LEASE)).await, "record of the fleet is gone");
    assert_lost(stores[2].claim(&claim_of(ME, "a", 0..4, ClaimKind::Running)).await, "record of the fleet is gone");
    for store in &stores {
        assert_lost(store.claim(&claim_of(ME, "a", 0..4, ClaimKind::Start)).await, "lost data");
        assert_lost(store.renew(&Renewal::new(ME, LEASE)).await, "lost data");
        assert_lost(store.commit(&write(2, vec![])).await, "lost data");
        assert_lost(store.release(ME, &[(ShardId(0), None)]).await, "lost data");
    }
    assert_eq!(server.execute(&["KEYS", "{[abc]*"]), "", "and nothing was written to it");
    // Who owns nothing has lost nothing: this is how the hosts save what they know.
    assert_eq!(stores[1].post(&[message("m")]).await.unwrap(), [Posted::Inserted]);
    let anew = stores[1].claim(&claim_of(Incarnation(2), "a", 0..4, ClaimKind::Start)).await.unwrap();
    assert_eq!(anew.granted.len(), 4);
    assert_lost(stores[1].commit(&write(3, vec![batch(0, vec![put("k", "v")])])).await, "lost data");
    // A new process may begin anew, if it is allowed to.
    let refused = patient(&server).prefix("a").must_exist(true).connect().await.unwrap();
    let refused = refused.claim(&claim_of(ME, "a", 0..4, ClaimKind::Start)).await;
    assert!(matches!(&refused, Err(StoreError::Open(text, _)) if text.contains("must_exist")), "{refused:?}");
    fresh("a").await;
}

#[tokio::test]
async fn a_store_that_somebody_else_began_anew_is_noticed() {
    let server = Redis::start();
    let (store, second) = (patient(&server).connect().await.unwrap(), patient(&server).connect().await.unwrap());
    start(&store, 0..4).await;
    server.execute(&["FLUSHALL"]);
    // The other host gets the same epochs again.
    second.claim(&claim_of(Incarnation(2), "b", 0..4, ClaimKind::Start)).await.unwrap();
    assert_lost(commit(&store, 1, 0, vec![put("k", "v")]).await, "somebody else's");
    assert_eq!(keys(&second, 0).await.len(), 0);
}

#[tokio::test]
async fn a_server_without_an_append_only_file_that_restarted_is_noticed() {
    let server = RedisOptions::new().set("appendonly", "no").start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..4).await;
    commit(&store, 1, 0, vec![put("k", "v")]).await.unwrap();
    server.kill9();
    server.restart();
    let renewed = loop {
        match store.renew(&Renewal::new(ME, LEASE)).await {
            Err(StoreError::Unavailable(_) | StoreError::NotApplied(_)) => {}
            other => break other,
        }
    };
    assert_lost(renewed, "record of the fleet is gone");
}

#[tokio::test]
async fn a_server_that_came_back_from_an_old_file_is_noticed() {
    for by_commit in [false, true] {
        let server = RedisOptions::new().set("appendonly", "no").start();
        let store = patient(&server).connect().await.unwrap();
        start(&store, 0..4).await;
        commit(&store, 1, 0, vec![put("k", "v")]).await.unwrap();
        server.execute(&["SAVE"]);
        commit(&store, 2, 0, vec![put("k", "lost")]).await.unwrap();
        server.kill9();
        server.restart();
        let noticed = loop {
            let answer = if by_commit {
                commit(&store, 3, 0, vec![put("k", "next")]).await
            } else {
                store.renew(&Renewal::new(ME, LEASE)).await.map(drop)
            };
            match answer {
                Err(StoreError::Unavailable(_) | StoreError::NotApplied(_)) => {}
                other => break other,
            }
        };
        assert_lost(noticed, "shard 0");
    }
}

#[tokio::test]
async fn rows_that_are_garbage_or_newer_are_reported_and_left_alone() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..1).await;
    let ids = ["a", "b", "c", "d", "e"];
    commit(&store, 1, 0, ids.iter().map(|id| Op::PutAlarm(alarm(id, 10))).collect()).await.unwrap();
    let field = |id: &str| format!("order\\x00o-1\\x00{id}");
    let set = |key: &str, id: &str, value: &str| {
        // redis-cli reads quoted strings with escapes from its standard input only, so a script says them.
        let script = format!("redis.call('HSET', KEYS[1], '{}', '{value}')", field(id).replace("\\x00", "\\0"));
        server.execute(&["EVAL", &script, "1", key]);
    };
    let alarms_key = "{stable:0}:alarms";
    set(alarms_key, "a", "garbage");
    set(alarms_key, "b", "\\2 something of the future");
    server.execute(&["EVAL", "redis.call('HDEL', KEYS[1], 'order\\0o-1\\0c')", "1", alarms_key]);
    server.execute(&["EVAL", "redis.call('ZADD', KEYS[1], 0, 'no member of ours')", "1", "{stable:0}:alarms.due"]);

    let loaded = load(&store, After::Alarms(None)).await;
    let Rows::Alarms(rows) = &loaded.rows else { panic!("{loaded:?}") };
    assert_eq!(rows, &[alarm("d", 10), alarm("e", 10)]);
    let newer = loaded.damaged.iter().filter(|damaged| damaged.reason == DamageReason::NewerVersion(2)).count();
    assert_eq!((loaded.damaged.len(), newer), (4, 1), "{loaded:?}");
    // Damaged rows do not count towards the limit.
    let page = Page::new(ShardId(0), After::Alarms(None), 2);
    assert_eq!(store.load(&[page]).await.unwrap().remove(0).rows, loaded.rows);

    // A newer row is not written over, and its batch not half applied; a garbled one may be set anew.
    let revision = Revision { epoch: Epoch(9), counter: 9 };
    for op in [
        Op::PutAlarm(AlarmRow { revision, ..alarm("b", 20) }),
        Op::RemoveAlarm { name: name(), id: "b".into(), revision },
    ] {
        let refused = commit(&store, 2, 0, vec![put("k", "v"), op]).await;
        assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    }
    assert_eq!(keys(&store, 0).await.len(), 0);
    commit(&store, 2, 0, vec![Op::PutAlarm(alarm("a", 10)), Op::PutAlarm(alarm("c", 10))]).await.unwrap();
    assert_eq!(alarms(&store).await, ["a", "c", "d", "e"].map(|id| alarm(id, 10)));

    commit(&store, 3, 0, vec![put("k", "v")]).await.unwrap();
    set("{stable:0}:storage", "k", "garbage");
    let read = Read::new(ShardId(0), name(), ReadRange::Storage("".into(), None), 10);
    assert!(matches!(store.read(&read).await, Err(StoreError::Damaged(_))));
}

#[tokio::test]
async fn when_memory_is_full_nothing_is_half_written_and_deletes_and_leases_go_on() {
    let server = Redis::start();
    let store = patient(&server).connect().await.unwrap();
    start(&store, 0..2).await;
    let ops = ["a", "b"].map(|key| put(key, &"x".repeat(100_000)));
    commit(&store, 1, 0, ops.into_iter().chain([Op::PutAlarm(alarm("a", 10))]).collect()).await.unwrap();
    store.post(&[message("m")]).await.unwrap();
    server.execute(&["CONFIG", "SET", "maxmemory", "1"]);

    let refused = commit(&store, 2, 0, vec![put("c", "v"), delete("a")]).await;
    assert!(matches!(&refused, Err(StoreError::Full(error)) if error.to_string().contains("OOM")), "{refused:?}");
    assert!(matches!(store.post(&[message("n")]).await, Err(StoreError::Full(_))));
    assert_eq!(keys(&store, 0).await.len(), 2);
    let revision = alarm("a", 10).revision;
    let removals = vec![delete("a"), delete("b"), Op::RemoveAlarm { name: name(), id: "a".into(), revision }];
    commit(&store, 3, 0, removals).await.unwrap();
    assert_eq!((keys(&store, 0).await.len(), alarms(&store).await.len()), (0, 0));
    assert_eq!(store.renew(&Renewal::new(ME, LEASE)).await.unwrap().owned.len(), 2);
    let next = patient(&server).connect().await.unwrap();
    let claimed = next.claim(&claim_of(Incarnation(2), "a", 0..2, ClaimKind::Start)).await.unwrap();
    assert_eq!(claimed.granted.len(), 2);
    next.release(Incarnation(2), &[(ShardId(0), None)]).await.unwrap();

    server.execute(&["CONFIG", "SET", "maxmemory", "0"]);
    let write = Write {
        incarnation: Incarnation(2),
        lane: Lane(0),
        seq: 1,
        batches: vec![Batch { epoch: Epoch(2), ..batch(1, vec![put("c", "v")]) }],
    };
    assert!(next.commit(&write).await.unwrap()[0].is_ok());
}

#[tokio::test]
async fn a_call_that_may_have_been_done_is_not_called_undone_because_its_repeat_went_nowhere() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    start(&store, 0..2).await;
    server.pause();
    // Sent and not answered; and sent again, where no connection is to be had.
    let claim = store.claim(&claim_of(ME, "a", 0..3, ClaimKind::Running)).await;
    assert!(matches!(claim, Err(StoreError::Unavailable(_))), "{claim:?}");
    let next = store.claim(&claim_of(ME, "a", 0..3, ClaimKind::Running)).await;
    assert!(matches!(next, Err(StoreError::NotApplied(_))), "it was never sent: {next:?}");
    server.resume();
}

#[tokio::test]
async fn a_server_that_is_gone_or_hangs_is_given_up_on_in_time() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    start(&store, 0..2).await;
    commit(&store, 1, 0, vec![put("k", "v")]).await.unwrap();
    let in_time = |began: Instant| assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());

    server.pause();
    let began = Instant::now();
    let hung = commit(&store, 2, 0, vec![put("l", "v")]).await;
    assert!(matches!(hung, Err(StoreError::Unavailable(_))), "{hung:?}");
    assert!(store.renew(&Renewal::new(ME, LEASE)).await.unwrap_err().is_retryable());
    in_time(began);
    server.resume();
    // The late write and its repeat are one.
    loop {
        match commit(&store, 2, 0, vec![put("l", "v")]).await {
            Ok(()) => break,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
    commit(&store, 3, 0, vec![delete("l")]).await.unwrap();
    assert_eq!(keys(&store, 0).await.len(), 1, "no ghost of write 2 came after write 3");

    server.kill9();
    let began = Instant::now();
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(commit(&store, 4, 0, vec![put("m", "v")]).await.unwrap_err());
    }
    // The first may have been under way; the others cannot even be sent.
    assert!(answers[1..].iter().all(|error| matches!(error, StoreError::NotApplied(_))), "{answers:?}");
    in_time(began);
    server.restart();
    loop {
        match commit(&store, 4, 0, vec![put("m", "v")]).await {
            Ok(()) => break,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
    assert_eq!(keys(&store, 0).await.len(), 2);
}

#[tokio::test]
async fn a_write_that_too_few_replicas_have_is_not_acknowledged() {
    let server = Redis::start();
    let store = quick(&server).replicas(1).connect().await.unwrap();
    start(&store, 0..1).await;
    for _ in 0..2 {
        let answer = commit(&store, 1, 0, vec![put("k", "v")]).await;
        assert!(
            matches!(&answer, Err(StoreError::Unavailable(error)) if error.to_string().contains("replicas")),
            "{answer:?}"
        );
    }
    let replica = RedisOptions::new().set("replicaof", format!("127.0.0.1 {}", server.port())).start();
    let refused = RedisStore::connect(&replica.url()).await;
    assert!(matches!(refused, Err(StoreError::Open(..))), "{refused:?}");
    loop {
        match commit(&store, 1, 0, vec![put("k", "v")]).await {
            Ok(()) => break,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
    assert_eq!(replica.execute(&["HLEN", "{stable:0}:storage"]), "1");
}

#[tokio::test]
async fn a_listener_learns_that_its_connection_is_gone() {
    let server = Redis::start();
    let store = quick(&server).connect().await.unwrap();
    let mut hints = store.watch(ME).await.unwrap();
    server.kill9();
    assert_eq!(hints.next().await, None);
    assert!(matches!(store.watch(ME).await, Err(StoreError::Unavailable(_))));
    server.restart();
    let mut hints = store.watch(ME).await.unwrap();
    loop {
        match store.post(&[message("m")]).await {
            Ok(_) => break,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
    assert_eq!(hints.next().await, Some(Hint::Inbox(ShardId(0))));
}

#[tokio::test]
async fn a_store_opened_in_the_wrong_mode_says_so() {
    let (server, cluster) = (Redis::start(), RedisCluster::start());
    for refused in [RedisStore::cluster([server.url()]).connect().await, RedisStore::connect(&cluster.urls()[0]).await]
    {
        assert!(matches!(&refused, Err(StoreError::Open(text, _)) if text.contains("cluster")), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_starts_of_one_host_at_once_the_last_owns_everything_and_the_others_know() {
    // In a cluster a claim is many steps: those of an earlier start come between and after those of a later one.
    let cluster = cluster();
    for round in 0..5 {
        let store = RedisStore::cluster(cluster.urls()).prefix(format!("round-{round}")).connect().await.unwrap();
        let starts = (1..=8).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut claim = claim_of(Incarnation(n), "a", 0..40, ClaimKind::Start);
                // Each asks for some that the others do not.
                claim.shards.rotate_left(usize::try_from(n).unwrap() * 5);
                claim.shards.truncate(30);
                store.claim(&claim).await
            })
        });
        let mut living = Vec::new();
        for (start, n) in starts.collect::<Vec<_>>().into_iter().zip(1..) {
            let claimed = match start.await.unwrap() {
                Err(StoreError::Replaced) => continue,
                claimed => claimed.unwrap(),
            };
            let mut granted: Vec<_> = claimed.granted.iter().map(|grant| grant.shard).collect();
            granted.sort_unstable();
            match store.renew(&Renewal::new(Incarnation(n), LEASE)).await {
                Ok(renewed) => living.push((n, renewed.owned, granted)),
                Err(error) => assert!(matches!(error, StoreError::Replaced), "{error:?}"),
            }
        }
        assert_eq!(living.len(), 1, "round {round}: {living:?}");
        let (_, owned, granted) = &living[0];
        assert_eq!((owned.len(), owned), (30, granted), "round {round}");
    }
}

#[tokio::test]
async fn when_a_server_of_a_cluster_is_gone_its_shards_wait_and_the_others_go_on() {
    let cluster = cluster();
    let store = RedisStore::cluster(cluster.urls()).timeout(Duration::from_secs(2)).connect().await.unwrap();
    start(&store, 0..30).await;
    let all = |seq, value: &str| {
        write(seq, (0..30).map(|shard| batch(shard, vec![put("k", value), put(&format!("{seq}"), "")])).collect())
    };
    assert!(store.commit(&all(1, "first")).await.unwrap().iter().all(Result::is_ok));

    let gone = node_of(&cluster, "{stable}:fleet");
    let gone_shards: BTreeSet<u32> =
        (0..30).filter(|shard| node_of(&cluster, &format!("{{stable:{shard}}}:own")).port() == gone.port()).collect();
    assert!(!gone_shards.is_empty() && gone_shards.len() < 30);
    // One that waits for much longer than the test does.
    let patient = RedisStore::cluster(cluster.urls()).timeout(2 * PATIENCE).connect().await.unwrap();
    gone.kill9();

    // A write to the others alone is not held up, and one to all is answered shard by shard.
    let others =
        write(2, all(2, "second").batches.into_iter().filter(|batch| !gone_shards.contains(&batch.shard.0)).collect());
    let written = tokio::time::timeout(PATIENCE, patient.commit(&others)).await.expect("it is not held up");
    assert!(written.unwrap().iter().all(Result::is_ok));
    for round in 0..2 {
        let answers = store.commit(&all(3, "third")).await.unwrap();
        for (shard, answer) in (0..30).zip(&answers) {
            match answer {
                Ok(()) => assert!(!gone_shards.contains(&shard)),
                // The first may find the connection still there, and so cannot know.
                Err(StoreError::Unavailable(_)) if round == 0 => assert!(gone_shards.contains(&shard)),
                Err(StoreError::NotApplied(_)) => assert!(gone_shards.contains(&shard)),
                other => panic!("shard {shard}: {other:?}"),
            }
        }
    }
    // What is known is left out of the repeats, and the others go on under greater numbers.
    let of = |write: Write, is_gone: bool| Write {
        batches: write.batches.into_iter().filter(|batch| gone_shards.contains(&batch.shard.0) == is_gone).collect(),
        ..write
    };
    assert!(store.commit(&of(all(4, "fourth"), false)).await.unwrap().iter().all(Result::is_ok));
    assert!(store.commit(&of(all(3, "third"), true)).await.unwrap().iter().all(Result::is_err));
    // The record of the fleet was there too: a host that runs goes on all the same, and does not know of what cannot be reached.
    let renewed = store.renew(&Renewal::new(ME, LEASE)).await.unwrap();
    assert_eq!(
        renewed.owned.iter().map(|shard| shard.0).collect::<Vec<_>>(),
        (0..30).filter(|shard| !gone_shards.contains(shard)).collect::<Vec<_>>()
    );
    assert_eq!(renewed.unknown.iter().map(|shard| shard.0).collect::<BTreeSet<_>>(), gone_shards);

    gone.restart();
    // One of them has been given up meanwhile.
    let given_up = ShardId(*gone_shards.first().unwrap());
    let wanted = Claim { given_up: vec![(given_up, Epoch(1))], ..claim_of(ME, "a", 0..30, ClaimKind::Running) };
    let again = loop {
        match store.claim(&wanted).await {
            Ok(claimed) if claimed.held.is_empty() => break claimed,
            Ok(_) | Err(StoreError::NotApplied(_) | StoreError::Unavailable(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    };
    let epoch = |shard: ShardId| if shard == given_up { Epoch(2) } else { Epoch(1) };
    assert!(again.granted.iter().all(|grant| grant.epoch == epoch(grant.shard)), "nobody else had them: {again:?}");
    // What was sent before finds its shard as it was, or a greater epoch.
    for (batch, answer) in
        of(all(3, ""), true).batches.iter().zip(store.commit(&of(all(3, "third"), true)).await.unwrap())
    {
        match answer {
            Ok(()) => assert!(batch.shard != given_up),
            Err(StoreError::Fenced { newest: Epoch(2), .. }) => assert!(batch.shard == given_up),
            other => panic!("{other:?}"),
        }
    }
    let mut last = all(5, "fifth");
    last.batches.iter_mut().for_each(|batch| batch.epoch = epoch(batch.shard));
    assert!(store.commit(&last).await.unwrap().iter().all(Result::is_ok));
    for shard in 0..30 {
        let keys = keys(&store, shard).await;
        assert!(keys.contains("1") && keys.contains("5"), "shard {shard}: {keys:?}");
        assert_eq!(keys.contains("3"), shard != given_up.0, "shard {shard}: {keys:?}");
    }
}

#[tokio::test]
async fn a_slot_that_moved_is_followed() {
    let cluster = cluster();
    let store = RedisStore::cluster(cluster.urls()).timeout(Duration::from_secs(2)).connect().await.unwrap();
    start(&store, 0..4).await;
    commit(&store, 1, 0, vec![put("k", "v"), Op::PutAlarm(alarm("a", 10))]).await.unwrap();
    let (from, key) = (node_of(&cluster, "{stable:0}:own"), "{stable:0}:own");
    let to = cluster.nodes().iter().find(|node| node.port() != from.port()).unwrap();
    let (slot, port) = (from.execute(&["CLUSTER", "KEYSLOT", key]), to.port().to_string());
    let (from_id, to_id) = (from.execute(&["CLUSTER", "MYID"]), to.execute(&["CLUSTER", "MYID"]));
    assert_eq!(to.execute(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]), "OK");
    assert_eq!(from.execute(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]), "OK");
    let moving = from.execute(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
    let keys_there: Vec<&str> = moving.lines().collect();
    assert!(keys_there.len() >= 6, "{keys_there:?}");
    let (half, rest): (Vec<&str>, Vec<&str>) =
        keys_there.iter().partition(|key| key.ends_with(":alarms") || key.ends_with(":storage"));
    let migrate = |keys: &[&str]| {
        let command = [&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"], keys].concat();
        assert_eq!(from.execute(&command), "OK");
    };
    // Half here and half there: no server can run the script, and it says so before it starts.
    migrate(&half);
    for op in [put("l", "v"), Op::PutAlarm(alarm("b", 20))] {
        let answer = commit(&store, 2, 0, vec![op]).await;
        assert!(matches!(answer, Err(StoreError::NotApplied(_))), "{answer:?}");
    }
    // All there, and the slot not yet given: the old server sends on for once who reads, and who writes with keys that are there. A key that
    // neither has may be on either side, and who needs it waits for the end of the move.
    migrate(&rest);
    assert_eq!(keys(&store, 0).await.len(), 1);
    commit(&store, 2, 0, vec![put("l", "v")]).await.unwrap();
    let letter = DeadLetter { died_at: Timestamp::UNIX_EPOCH, reason: "".into(), row: DeadRow::Alarm(alarm("a", 10)) };
    let dies = || vec![Op::PutDead(letter.clone())];
    let answer = commit(&store, 3, 0, dies()).await;
    assert!(matches!(answer, Err(StoreError::NotApplied(_))), "{answer:?}");
    for node in [to, from] {
        assert_eq!(node.execute(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]), "OK");
    }
    commit(&store, 3, 0, dies()).await.unwrap();
    assert_eq!((keys(&store, 0).await.len(), alarms(&store).await.len()), (2, 1));
    assert_eq!(store.renew(&Renewal::new(ME, LEASE)).await.unwrap().owned.len(), 4);
}

#[tokio::test]
async fn every_option_at_its_ends_is_refused_by_name_or_works() {
    let server = RedisOptions::new().start();
    let builder = || RedisStore::builder(server.url());
    let refused = [
        (builder().timeout(Duration::ZERO), "timeout"),
        (builder().timeout(Duration::from_nanos(999_999)), "timeout"),
        (builder().replicas(u32::MAX), "replicas"),
    ];
    for (builder, option) in refused {
        let error = builder.connect().await.expect_err("it cannot work");
        assert!(matches!(&error, StoreError::Open(text, _) if text.contains(option)), "{error}");
    }
    for (n, timeout) in
        [Duration::MAX, Duration::from_secs(u64::MAX / 2), Duration::from_secs(1)].into_iter().enumerate()
    {
        let store = builder().prefix(format!("end-{n}")).timeout(timeout).connect().await.unwrap();
        let _hints = store.watch(ME).await.unwrap();
        start(&store, [0]).await;
        commit(&store, 1, 0, vec![put("k", "v"), Op::PutAlarm(alarm("a", 1))]).await.unwrap();
        assert_eq!((keys(&store, 0).await.len(), alarms(&store).await.len()), (1, 1));
        store.renew(&Renewal::new(ME, Duration::MAX)).await.unwrap();
        store.release(ME, &[(ShardId(0), None)]).await.unwrap();
    }
    // However long it may wait for a replica, that is a number which the server takes.
    let store = builder().prefix("wait").timeout(Duration::MAX).replicas(1).connect().await.unwrap();
    start(&store, [0]).await;
    let waiting = commit(&store, 1, 0, vec![put("k", "v")]);
    let late = tokio::time::timeout(Duration::from_millis(300), waiting).await;
    assert!(late.is_err(), "it waits for the replica, not {late:?}");
}
