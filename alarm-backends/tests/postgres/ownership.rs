//! Writes and changes of ownership that meet. Each schedule is made exact by a transaction held open by hand.

use alarm_backends::postgres::PostgresStore;
use stable_interfaces::store::{ClaimKind, Incarnation, ShardId};
use stable_interfaces::{Store, StoreError};
use std::sync::Arc;
use tokio_postgres::Client;

use super::SERVER;
use super::given::*;

/// A database with a store whose shard 0 belongs to incarnation 1, and a connection beside it.
async fn owned() -> (Arc<PostgresStore>, Client) {
    let url = tokio::task::spawn_blocking(|| SERVER.fresh_database()).await.expect("a database is made");
    let (store, raw) = (store_on(&url).await, raw(&url).await);
    own(&store, 1).await;
    (store, raw)
}

/// The statement that the store sends for a claim of shard 0 by incarnation 2 of the same host.
const CLAIM: &str = "SELECT stable_interfaces.claim(2, 'host-a', '{0}', 1024, 1, 3600000, true, false)";

/// The statement that the store sends for write 2 of lane 0 by incarnation 1.
const WRITE: &str = "SELECT stable_interfaces.write(1, 0, 2, ARRAY[(0, 1)::stable_interfaces.batch], \
    '{}', '{}', '{}', '{}', '{}', '{}', ARRAY[(0, 'order', 'i', 'k', 'second')::stable_interfaces.value_put], '{}', 0)";

fn assert_fenced(answer: &Result<(), StoreError>) {
    let fenced = matches!(answer, Err(StoreError::Fenced { held, newest, .. }) if (held.0, newest.0) == (1, 2));
    assert!(fenced, "the write is fenced by epoch 2, not {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_while_a_claim_commits_is_fenced() {
    let (store, raw) = owned().await;
    commit(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    raw.batch_execute(&format!("BEGIN; {CLAIM}")).await.expect("the claim runs");
    let late = committing(&store, write(0, 2, vec![put("k", "late")]));
    until_blocked(&raw).await;
    raw.batch_execute("COMMIT").await.expect("the claim commits");
    assert_fenced(&late.await.expect("the write ends"));
    assert_eq!(value(&store, "k").await.as_deref(), Some("first"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_write_of_a_lane_that_waits_while_a_claim_commits_is_fenced() {
    let (store, raw) = owned().await;
    // No lane has a fence row yet: the claim has none to change.
    raw.batch_execute(&format!("BEGIN; {CLAIM}")).await.expect("the claim runs");
    let late = committing(&store, write(7, 1, vec![put("k", "late")]));
    until_blocked(&raw).await;
    raw.batch_execute("COMMIT").await.expect("the claim commits");
    assert_fenced(&late.await.expect("the write ends"));
    assert_eq!(value(&store, "k").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_while_another_host_takes_an_expired_shard_is_fenced() {
    let (store, raw) = owned().await;
    commit(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    raw.batch_execute("UPDATE stable_interfaces.host SET lease_until = stable_interfaces.now_ms() - 1")
        .await
        .expect("the lease runs out");
    let take = "SELECT stable_interfaces.claim(2, 'host-b', '{0}', 1024, 1, 3600000, false, false)";
    raw.batch_execute(&format!("BEGIN; {take}")).await.expect("the claim runs");
    let late = committing(&store, write(0, 2, vec![put("k", "late")]));
    until_blocked(&raw).await;
    raw.batch_execute("COMMIT").await.expect("the claim commits");
    assert_fenced(&late.await.expect("the write ends"));
    assert_eq!(value(&store, "k").await.as_deref(), Some("first"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_while_its_shard_is_released_and_claimed_is_fenced() {
    let (store, raw) = owned().await;
    commit(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    raw.batch_execute("BEGIN; SELECT stable_interfaces.release(1, '{0}')").await.expect("the release runs");
    let late = committing(&store, write(0, 2, vec![put("k", "late")]));
    until_blocked(&raw).await;
    let other = "SELECT stable_interfaces.claim(2, 'host-b', '{0}', 1024, 1, 3600000, false, false)";
    raw.batch_execute(&format!("{other}; COMMIT")).await.expect("both commit");
    assert_fenced(&late.await.expect("the write ends"));
    assert_eq!(value(&store, "k").await.as_deref(), Some("first"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_waits_for_a_write_under_way_and_sees_it() {
    let (store, raw) = owned().await;
    commit(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    raw.batch_execute(&format!("BEGIN; {WRITE}")).await.expect("the write runs");
    let claimer = store.clone();
    let claiming = tokio::spawn(async move { claimer.claim(&claim(2, "host-a", &[0], ClaimKind::Start)).await });
    until_blocked(&raw).await;
    assert!(!claiming.is_finished(), "the claim waits");
    raw.batch_execute("COMMIT").await.expect("the write commits");
    let claimed = claiming.await.expect("the claim ends").expect("the claim is answered");
    assert_eq!(claimed.granted[0].epoch.0, 2);
    assert_eq!(value(&store, "k").await.as_deref(), Some("second"), "the write came before the claim");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_waits_for_a_write_under_way() {
    let (store, raw) = owned().await;
    commit(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    raw.batch_execute(&format!("BEGIN; {WRITE}")).await.expect("the write runs");
    let releaser = store.clone();
    let releasing = tokio::spawn(async move { releaser.release(Incarnation(1), &[(ShardId(0), None)]).await });
    until_blocked(&raw).await;
    assert!(!releasing.is_finished(), "the release waits");
    raw.batch_execute("COMMIT").await.expect("the write commits");
    releasing.await.expect("the release ends").expect("the release is answered");
    assert_eq!(value(&store, "k").await.as_deref(), Some("second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_renewed_while_a_claim_waits_is_not_taken() {
    let (store, raw) = owned().await;
    raw.batch_execute("UPDATE stable_interfaces.host SET lease_until = stable_interfaces.now_ms() - 1")
        .await
        .expect("the lease runs out");
    raw.batch_execute("BEGIN; SELECT stable_interfaces.renew_2(1, 3600000, NULL, '', false, false, 0)")
        .await
        .expect("the renewal runs");
    let claimer = store.clone();
    let claiming = tokio::spawn(async move { claimer.claim(&claim(2, "host-b", &[0], ClaimKind::Running)).await });
    until_blocked(&raw).await;
    raw.batch_execute("COMMIT").await.expect("the renewal commits");
    let claimed = claiming.await.expect("the claim ends").expect("the claim is answered");
    assert_eq!((claimed.granted.len(), claimed.held.len()), (0, 1));
    assert!(claimed.held[0].remaining.as_secs() > 3000, "{:?}", claimed.held[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_that_meets_its_own_ghost_is_done_once() {
    let (store, raw) = owned().await;
    commit(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    // The ghost: the same write, still under way on a connection that its sender has given up.
    raw.batch_execute(&format!("BEGIN; {WRITE}")).await.expect("the ghost runs");
    let repeat = committing(&store, write(0, 2, vec![put("k", "again")]));
    until_blocked(&raw).await;
    raw.batch_execute("COMMIT").await.expect("the ghost commits");
    repeat.await.expect("the repeat ends").expect("the repeat is done");
    assert_eq!(value(&store, "k").await.as_deref(), Some("second"), "only the ghost wrote");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stricter_default_isolation_does_not_weaken_the_fence() {
    let (store, raw) = owned().await;
    raw.batch_execute(
        "ALTER DATABASE {d} SET default_transaction_isolation = 'repeatable read'"
            .replace(
                "{d}",
                &raw.query_one_scalar::<String, _>("SELECT current_database()::text", &[]).await.expect("a name"),
            )
            .as_str(),
    )
    .await
    .expect("the default is changed");
    commit(&store, &write(0, 1, vec![put("k", "first")])).await.expect("the owner writes");
    raw.batch_execute(&format!("BEGIN ISOLATION LEVEL READ COMMITTED; {CLAIM}")).await.expect("the claim runs");
    let late = committing(&store, write(0, 2, vec![put("k", "late")]));
    until_blocked(&raw).await;
    raw.batch_execute("COMMIT").await.expect("the claim commits");
    assert_fenced(&late.await.expect("the write ends"));
}
