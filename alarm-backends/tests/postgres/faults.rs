//! A server that hangs, dies, waits, refuses or has no room. Each test has a server of its own to do it to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alarm_backends::postgres::PostgresStore;
use alarm_backends::testing::servers::{Postgres, PostgresOptions};
use stable_interfaces::store::{ClaimKind, Incarnation, Renewal, Write};
use stable_interfaces::{Store, StoreError};

use super::SERVER;
use super::given::*;

/// Runs something that blocks, such as ending a server.
async fn blocking(server: &Arc<Postgres>, work: impl FnOnce(&Postgres) + Send + 'static) {
    let server = server.clone();
    tokio::task::spawn_blocking(move || work(&server)).await.expect("it was done");
}

fn assert_unknown(answer: &Result<(), StoreError>) {
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "the outcome is unknown, not {answer:?}");
}

fn assert_not_applied<T: std::fmt::Debug>(answer: &Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::NotApplied(_))), "nothing was written, not {answer:?}");
}

/// The answer to a write that got as far as the server: for a connection within its deadline a busy machine may have had no time.
async fn commit_sent(store: &PostgresStore, write: &Write) -> Result<(), StoreError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match commit(store, write).await {
            Err(StoreError::NotApplied(_)) if Instant::now() < end => {}
            answer => return answer,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_costs_the_deadline_and_no_more() {
    let (server, store) = server_with_deadline(PostgresOptions::new()).await;
    own(&store, 1).await;
    commit_at_last(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    assert_eq!(value(&store, "k").await.as_deref(), Some("first"));
    blocking(&server, |server| server.pause()).await;

    let began = Instant::now();
    assert_unknown(&commit(&store, &write(0, 2, vec![put("k", "second")])).await);
    let took = began.elapsed();
    assert!(took >= DEADLINE && took < PATIENCE, "it took {took:?}");
    // The connection it was on is gone, and a new one is not to be had.
    assert_not_applied(&commit(&store, &write(0, 2, vec![put("k", "second")])).await);
    let renewed = store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await;
    assert!(renewed.as_ref().is_err_and(StoreError::is_retryable), "{renewed:?}");

    blocking(&server, |server| server.resume()).await;
    commit_at_last(&store, &write(0, 2, vec![put("k", "second")])).await.expect("the repeat is done");
    commit_at_last(&store, &write(0, 3, vec![put("l", "third")])).await.expect("the next one too");
    assert_eq!(value(&store, "k").await.as_deref(), Some("second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_acknowledged_and_is_used_again() {
    let (server, store) = server_with_deadline(PostgresOptions::new()).await;
    own(&store, 1).await;
    let mut acknowledged = 0;
    let mut unknown = 0;
    for round in 0.. {
        // Where the writer has little of the machine, most kills meet none of its writes.
        if round >= 3 && unknown > 0 {
            break;
        }
        assert!(round < 30, "no kill met a commit under way");
        let killer = {
            let server = server.clone();
            tokio::task::spawn_blocking(move || {
                std::thread::sleep(Duration::from_millis(150));
                server.kill9();
                std::thread::sleep(Duration::from_millis(100));
                server.restart();
            })
        };
        let until = acknowledged + 50;
        // It ends with an answer that is known, so that the count at the end is exact.
        loop {
            let seq = acknowledged + 1;
            match commit(&store, &write(0, seq, vec![put(&format!("{seq:06}"), "v")])).await {
                Ok(()) => acknowledged = seq,
                Err(error) if error.is_retryable() => {
                    unknown += u32::from(error.may_have_happened());
                    continue;
                }
                Err(error) => panic!("round {round}: {error:?}"),
            }
            if acknowledged >= until && killer.is_finished() {
                break;
            }
        }
        killer.await.expect("the server came back");
    }
    let raw = raw(&server.url("postgres")).await;
    let stored: i64 = raw
        .query_one_scalar("SELECT count(*) FROM stable_interfaces.storage", &[])
        .await
        .expect("the rows can be counted");
    assert_eq!(u64::try_from(stored).ok(), Some(acknowledged), "every acknowledged write once, and no other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_missing_replica_is_unknown_until_the_replica_is_no_longer_asked_for() {
    let (server, store) = server_with_deadline(PostgresOptions::new()).await;
    own(&store, 1).await;
    commit_at_last(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    hold_up_commits(&server).await;

    assert_unknown(&commit_sent(&store, &write(0, 2, vec![put("k", "second")])).await);
    // It is on this server's disk by now, and still not as durable as is asked for: so a repeat waits, too.
    assert_unknown(&commit_sent(&store, &write(0, 2, vec![put("k", "again")])).await);

    set(&server, "synchronous_standby_names = ''").await;
    commit_at_last(&store, &write(0, 2, vec![put("k", "again")])).await.expect("the repeat is done");
    assert_eq!(value(&store, "k").await.as_deref(), Some("second"), "the repeat was not applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_wait_for_a_replica_is_cancelled_is_not_acknowledged() {
    let (server, _) = server_with(PostgresOptions::new()).await;
    // A deadline that is never reached: what is answered is the server's answer.
    let store = PostgresStore::builder(&server.url("postgres")).expect("a URL").timeout(2 * PATIENCE);
    let store = Arc::new(store.connect().await.expect("the store can be opened"));
    own(&store, 1).await;
    let raw = raw(&server.url("postgres")).await;
    hold_up_commits(&server).await;
    let waiting = committing(&store, write(0, 1, vec![put("k", "first")]));
    until(&raw, "SELECT EXISTS(SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')").await;
    // The server then answers the commit with success, and a warning.
    raw.batch_execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        .await
        .expect("the wait is cancelled");
    let answer = tokio::time::timeout(PATIENCE, waiting).await.expect("it is answered").expect("the write ends");
    assert_unknown(&answer);
    set(&server, "synchronous_standby_names = ''").await;
    commit(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the repeat is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_turned_read_only_applies_nothing_and_is_used_again() {
    let (server, store) = server_with_deadline(PostgresOptions::new()).await;
    own(&store, 1).await;
    commit_at_last(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    set(&server, "default_transaction_read_only = on").await;
    assert_not_applied(&commit(&store, &write(0, 2, vec![put("k", "second")])).await);
    // Now for want of a connection that can write.
    assert_not_applied(&commit(&store, &write(0, 2, vec![put("k", "second")])).await);
    set(&server, "default_transaction_read_only = off").await;
    commit_at_last(&store, &write(0, 2, vec![put("k", "second")])).await.expect("the repeat is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_the_one_that_takes_writes_is_used() {
    let start = || async { Arc::new(tokio::task::spawn_blocking(Postgres::start).await.expect("the server starts")) };
    let (first, second) = tokio::join!(start(), start());
    for server in [&first, &second] {
        set(server, "default_transaction_read_only = on").await;
    }
    let (one, two) = (first.port(), second.port());
    let url = format!("postgres://postgres@127.0.0.1:{one},127.0.0.1:{two}/postgres?sslmode=disable");
    let builder = || PostgresStore::builder(&url).expect("the URL can be read").timeout(DEADLINE);
    let nobody = builder().connect().await;
    assert!(matches!(nobody, Err(StoreError::NotApplied(_))), "neither takes writes: {nobody:?}");
    set(&second, "default_transaction_read_only = off").await;
    // The second takes writes.
    let store = open(builder).await;
    own(&store, 1).await;
    commit_at_last(&store, &write(0, 1, vec![put("k", "v")])).await.expect("the owner writes");
    assert_eq!(value(&store, "k").await.as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_one_whose_machine_is_gone_does_not_take_all_the_time() {
    // With its queue full it answers no new connection, as nobody would.
    let gone = tokio::net::TcpSocket::new_v4().expect("a socket");
    gone.bind("127.0.0.1:0".parse().expect("an address")).expect("a port is free");
    let address = gone.local_addr().expect("it is bound");
    let gone = gone.listen(1).expect("it listens");
    let mut queue = Vec::new();
    while let Ok(Ok(waiting)) = tokio::time::timeout(DEADLINE / 10, tokio::net::TcpStream::connect(address)).await {
        queue.push(waiting);
    }
    let url = SERVER.url("postgres").replace("127.0.0.1:", &format!("127.0.0.1:{},127.0.0.1:", address.port()));
    // Each has its part of the time, which is to do on a slow machine.
    let store = open(|| PostgresStore::builder(&url).expect("the URL can be read").timeout(DEADLINE * 3)).await;
    let posted = at_last(async || store.post(&[message(0, "m")]).await).await;
    assert_eq!(posted.expect("the second is there").len(), 1);
    drop((gone, queue));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_connection_is_replaced() {
    let (server, store) = server_with(PostgresOptions::new()).await;
    own(&store, 1).await;
    let raw = raw(&server.url("postgres")).await;
    let mut hints = store.watch(Incarnation(1)).await.expect("the store is watched");
    for seq in 1..=3 {
        // Whoever is asked may be told by the server before it is told that its connection has ended.
        commit_at_last(&store, &write(0, seq, vec![put("k", "v")])).await.expect("the owner writes");
        let renewal = Renewal::new(Incarnation(1), DEADLINE);
        at_last(async || store.renew(&renewal).await).await.expect("the lease is renewed");
        assert_eq!(value(&store, "k").await.as_deref(), Some("v"));
        raw.batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'stable-interfaces'",
        )
        .await
        .expect("the connections are ended");
        until(&raw, "SELECT NOT EXISTS(SELECT FROM pg_stat_activity WHERE application_name = 'stable-interfaces')")
            .await;
    }
    let ended = tokio::time::timeout(PATIENCE, hints.next()).await.expect("the listener is told");
    assert_eq!(ended, None, "the stream of hints ends with its connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_idle_sessions_ends_none_of_the_stores() {
    let (server, store) = server_with(PostgresOptions::new().set("idle_session_timeout", "1s")).await;
    own(&store, 1).await;
    let sessions = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity
                    WHERE application_name = 'stable-interfaces'";
    let mut hints = store.watch(Incarnation(1)).await.expect("the store is watched");
    store.post(&[message(0, "m-0")]).await.expect("the post is answered");
    hints.next().await.expect("the post is heard of");
    let before = server.execute(sessions);
    let ended = tokio::time::timeout(Duration::from_secs(2), async { while hints.next().await.is_some() {} }).await;
    assert!(ended.is_err(), "the stream of hints has ended");
    assert_eq!(server.execute(sessions), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_free_connection_is_waited_for() {
    let options = PostgresOptions::new().set("max_connections", "5").set("superuser_reserved_connections", "0");
    // Reserved for nobody, so all five are there; walsenders have their own.
    let (server, store) = server_with_deadline(options.set("max_wal_senders", "0")).await;
    own(&store, 1).await;
    let url = server.url("postgres");
    let mut others = Vec::new();
    // Connections that the store has closed leave room only when the server has seen that.
    for _ in 0..10 {
        while let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
            tokio::spawn(connection);
            others.push(client);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!others.is_empty(), "there was room for somebody");
    let began = Instant::now();
    assert_not_applied(&commit(&store, &write(0, 1, vec![put("k", "v")])).await);
    let took = began.elapsed();
    assert!(took > DEADLINE / 3 && took < PATIENCE, "it waits for its deadline, not longer: {took:?}");

    let write = write(0, 1, vec![put("k", "v")]);
    let waiting = tokio::spawn(async move { commit_at_last(&store, &write).await });
    tokio::time::sleep(DEADLINE / 4).await;
    drop(others);
    waiting.await.expect("the write ends").expect("there is room now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_made_anew_under_a_running_host_is_not_written_to() {
    let (server, store) = server_with(PostgresOptions::new()).await;
    own(&store, 1).await;
    let raw = raw(&server.url("postgres")).await;
    raw.batch_execute("DROP SCHEMA stable_interfaces CASCADE").await.expect("the schema is dropped");
    let other = store_on(&server.url("postgres")).await;
    own(&other, 2).await;
    commit(&store, &write(0, 1, vec![put("k", "v")])).await.expect_err("it is not the owner's");
    assert_eq!(value(&other, "k").await, None);
    // The other one has the same epoch; but of this life there is no trace.
    assert_lost(&store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await, "its record of this host is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_dropped_under_a_running_host_is_noticed_at_once() {
    for method in ["commit", "renew", "claim"] {
        let (server, store) = server_with(PostgresOptions::new()).await;
        own(&store, 1).await;
        commit(&store, &write(0, 1, vec![put("k", "v")])).await.expect("the owner writes");
        store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await.expect("the lease is renewed");
        let raw = raw(&server.url("postgres")).await;
        raw.batch_execute("DROP SCHEMA stable_interfaces CASCADE").await.expect("the schema is dropped");
        let said = "its schema is gone";
        match method {
            "commit" => assert_lost(&commit(&store, &write(0, 2, vec![put("k", "v")])).await, said),
            "renew" => assert_lost(&store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await, said),
            _ => assert_lost(&store.claim(&claim(1, "host-a", &[0], ClaimKind::Running)).await, said),
        }
        assert_lost(&store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await, said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_made_anew_is_used_by_whoever_lost_nothing_by_it() {
    let (server, store) = server_with(PostgresOptions::new()).await;
    store.post(&[message(0, "m")]).await.expect("it is posted");
    let raw = raw(&server.url("postgres")).await;
    raw.batch_execute("DROP SCHEMA stable_interfaces CASCADE").await.expect("the schema is dropped");
    drop(store_on(&server.url("postgres")).await);
    // What its connection has prepared is of the old tables, so the first may fail for that.
    let again = match store.post(&[message(0, "m")]).await {
        Err(StoreError::NotApplied(_)) => store.post(&[message(0, "m")]).await,
        posted => posted,
    };
    assert_eq!(again.expect("it is posted"), [stable_interfaces::Posted::Inserted]);
}

fn assert_lost<T: std::fmt::Debug>(answer: &Result<T, StoreError>, said: &str) {
    assert!(matches!(answer, Err(StoreError::Lost(error)) if error.to_string().contains(said)), "{answer:?}");
}

/// Copies the files of a server that is not running.
fn copy(server: &Postgres, from: &str, to: &str) {
    let path = |name: &str| server.directory().join(name);
    if path(to).exists() {
        std::fs::remove_dir_all(path(to)).expect("an old copy can be removed");
    }
    let copied = std::process::Command::new("cp").arg("-a").args([path(from), path(to)]).status();
    assert!(copied.expect("cp can be run").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_without_what_it_acknowledged_is_noticed_by_writes_and_renewals() {
    for by_commit in [true, false] {
        let (server, store) = server_with(PostgresOptions::new()).await;
        own(&store, 1).await;
        commit(&store, &write(0, 1, vec![put("k", "kept")])).await.expect("the owner writes");
        let keep = |server: &Postgres| {
            server.kill9();
            copy(server, "data", "old");
            server.restart();
        };
        blocking(&server, keep).await;
        // Nothing is lost yet: a crash that forgets nothing is no reason to complain.
        while let Err(error) = store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await {
            assert!(error.is_retryable(), "{error:?}");
        }
        while let Err(error) = commit(&store, &write(0, 2, vec![put("k", "lost")])).await {
            assert!(error.is_retryable(), "{error:?}");
        }
        let lose = |server: &Postgres| {
            server.kill9();
            copy(server, "old", "data");
            server.restart();
        };
        blocking(&server, lose).await;
        let answer = loop {
            let answer = if by_commit {
                commit(&store, &write(0, 3, vec![put("l", "next")])).await
            } else {
                store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await.map(drop)
            };
            match answer {
                Err(error) if error.is_retryable() => {}
                answer => break answer,
            }
        };
        assert_lost(&answer, "write 2 of lane 0 was taken, 1 is stored");
        // For good, and nothing was written.
        assert_lost(&commit(&store, &write(0, 4, vec![put("l", "next")])).await, "write 2");
        assert_lost(&store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await, "write 2");
        assert_lost(&store.claim(&claim(1, "host-a", &[0], ClaimKind::Running)).await, "write 2");
        assert_eq!((value(&store, "k").await.as_deref(), value(&store, "l").await), (Some("kept"), None));
        // Who owns nothing is served, and so is the next life.
        assert_eq!(store.post(&[message(0, "m")]).await.expect("it is posted"), [stable_interfaces::Posted::Inserted]);
        let anew = store.claim(&claim(2, "host-a", &[0], ClaimKind::Start)).await.expect("the claim is answered");
        assert_eq!(anew.granted.len(), 1);
        store.renew(&Renewal::new(Incarnation(2), DEADLINE)).await.expect("it has a lease");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_lost_a_claim_is_noticed_by_the_next_write() {
    let (server, store) = server_with(PostgresOptions::new()).await;
    own(&store, 1).await;
    blocking(&server, |server| {
        server.kill9();
        copy(server, "data", "old");
        server.restart();
    })
    .await;
    let second = loop {
        match store.claim(&claim(2, "host-a", &[0], ClaimKind::Start)).await {
            Ok(claimed) => break claimed.granted[0].epoch,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    };
    assert_eq!(second, stable_interfaces::store::Epoch(2));
    blocking(&server, |server| {
        server.kill9();
        copy(server, "old", "data");
        server.restart();
    })
    .await;
    let mut write = write(0, 1, vec![put("k", "v")]);
    (write.incarnation, write.batches[0].epoch) = (Incarnation(2), second);
    let answer = loop {
        match commit(&store, &write).await {
            Err(error) if error.is_retryable() => {}
            answer => break answer,
        }
    };
    assert_lost(&answer, "epoch 2 was granted, 1 is stored");
    assert_eq!(value(&store, "k").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_post_in_few_transactions() {
    let (server, store) = server_with(PostgresOptions::new().set("log_statement", "all")).await;
    let posts: Vec<_> = (0..100)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.post(&[message(n, &format!("m-{n}"))]).await })
        })
        .collect();
    for post in posts {
        let posted = post.await.expect("the post ends").expect("the post is answered");
        assert_eq!(posted, [stable_interfaces::Posted::Inserted]);
    }
    let inserts = server.log().matches("INSERT INTO \"stable_interfaces\".inbox").count();
    assert!((1..50).contains(&inserts), "{inserts} transactions for 100 posts");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_post_that_cannot_be_stored_does_not_fail_those_sent_along() {
    let (_server, store) = server_with(PostgresOptions::new()).await;
    let posts: Vec<_> = (0..40)
        .map(|n| {
            let (store, id) = (store.clone(), if n % 10 == 0 { format!("nul\0{n}") } else { format!("m-{n}") });
            tokio::spawn(async move { (n, store.post(&[message(0, &id)]).await) })
        })
        .collect();
    for post in posts {
        match post.await.expect("the post ends") {
            (n, Err(StoreError::Rejected(_))) if n % 10 == 0 => {}
            (n, Ok(_)) if n % 10 != 0 => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_server_leaves_nothing_behind() {
    let (server, store) = server_with(PostgresOptions::new()).await;
    drop(store);
    let (dir, port) = (server.directory().to_owned(), server.port());
    assert!(dir.exists());
    tokio::task::spawn_blocking(|| drop(server)).await.expect("the server is dropped");
    assert!(!dir.exists(), "{} is still there", dir.display());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "somebody still listens");
}

/// Has commits wait for a replica that is not there.
pub(crate) async fn hold_up_commits(server: &Arc<Postgres>) {
    const WAITS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')";
    set(server, "synchronous_standby_names = 'nobody'").await;
    // They do when yet another process of the server has read that, between its other work.
    let url = server.url("postgres");
    let (watching, other) = (raw(&url).await, raw(&url).await);
    let writing =
        tokio::spawn(async move { while other.batch_execute("CREATE TABLE w (); DROP TABLE w").await.is_ok() {} });
    until(&watching, WAITS).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    watching.batch_execute(end).await.expect("its wait is ended");
    writing.await.expect("it ends with its connection");
    until(&watching, &format!("SELECT NOT ({WAITS})")).await;
}

/// Changes a setting of the running server and waits until every session has it.
pub(crate) async fn set(server: &Arc<Postgres>, setting: &str) {
    let setting = setting.to_owned();
    blocking(server, move |server| {
        let (name, value) = setting.split_once(" = ").expect("name = value");
        server.execute(&format!("ALTER SYSTEM SET {setting}"));
        server.execute("SELECT pg_reload_conf()");
        // The server signals its sessions when it has read the file, and starts a new one after that: once a new one has the
        // value, all others have it before their next statement.
        let end = Instant::now() + PATIENCE;
        while server.execute(&format!("SHOW {name}")) != value.trim_matches('\'') {
            assert!(Instant::now() < end, "{setting} is not taken");
        }
    })
    .await;
}
