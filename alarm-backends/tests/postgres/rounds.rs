//! Posts of many callers at once: a round is nobody's in particular, and waits for nobody in particular.

use std::sync::Arc;

use alarm_backends::postgres::PostgresStore;
use alarm_backends::testing::servers::PostgresOptions;
use stable_interfaces::{Posted, Store, StoreError};
use tokio::task::JoinHandle;

use super::faults::{hold_up_commits, set};
use super::given::*;
use super::transactions::database;

fn posting(store: &Arc<PostgresStore>, id: &str) -> JoinHandle<Result<Vec<Posted>, StoreError>> {
    let (store, message) = (store.clone(), message(0, id));
    tokio::spawn(async move { store.post(&[message]).await })
}

async fn posted(posting: JoinHandle<Result<Vec<Posted>, StoreError>>) -> Posted {
    posting.await.expect("it ends").expect("it is posted")[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_takes_nobodys_post_along() {
    let (server, store) = server_with(PostgresOptions::new()).await;
    let raw = raw(&server.url("postgres")).await;
    hold_up_commits(&server).await;
    let first = posting(&store, "first");
    until(&raw, "SELECT EXISTS(SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')").await;
    let sql = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let process: i32 = raw.query_one_scalar(sql, &[]).await.expect("it waits");
    // These queue behind it, and go together, as soon as it is given up, on another connection.
    let mut others: Vec<_> = (0..5).map(|n| posting(&store, &n.to_string())).collect();
    tokio::time::sleep(DEADLINE / 10).await;
    first.abort();
    let again =
        format!("SELECT EXISTS(SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid <> {process})");
    until(&raw, &again).await;
    others.remove(0).abort();
    tokio::time::sleep(DEADLINE / 10).await;
    set(&server, "synchronous_standby_names = ''").await;
    for other in others {
        assert_eq!(posted(other).await, Posted::Inserted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_that_holds_a_message_stops_no_other_post() {
    for commits in [true, false] {
        let (url, mut other) = database().await;
        let store = store_on(&url).await;
        let hold = "INSERT INTO stable_interfaces.inbox (shard, interface, instance, id, arrived, due, headers, body) \
                    VALUES (0, 'order', 'i', $1, 0, 0, '', '')";
        let tx = other.transaction().await.expect("a transaction");
        for id in ["held-1", "held-2"] {
            tx.execute(hold, &[&id]).await.expect("a row");
        }
        let mut held = Vec::new();
        let mut others = Vec::new();
        for n in 0..50 {
            if n % 10 == 3 {
                held.push(posting(&store, if n % 20 == 3 { "held-1" } else { "held-2" }));
            }
            others.push(posting(&store, &n.to_string()));
        }
        for other in others {
            assert_eq!(posted(other).await, Posted::Inserted);
        }
        assert!(held.iter().all(|held| !held.is_finished()), "the transaction may end in either way");
        // Once it is known to be held it does not even cost a try.
        assert_eq!(store.post(&[message(0, "alone")]).await.expect("it is posted"), [Posted::Inserted]);
        if commits {
            tx.commit().await.expect("it is committed");
        } else {
            tx.rollback().await.expect("it is rolled back");
        }
        let mut inserted = 0;
        for held in held {
            inserted += usize::from(posted(held).await == Posted::Inserted);
        }
        assert_eq!(inserted, if commits { 0 } else { 2 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_waits_for_a_row_until_its_deadline_surely_did_not_happen() {
    let (url, mut other) = database().await;
    let store = open(|| PostgresStore::builder(&url).expect("a URL").timeout(DEADLINE)).await;
    let tx = other.transaction().await.expect("a transaction");
    let hold = "INSERT INTO stable_interfaces.inbox (shard, interface, instance, id, arrived, due, headers, body) \
                VALUES (0, 'order', 'i', 'held', 0, 0, '', '')";
    tx.execute(hold, &[]).await.expect("a row");
    let refused = store.post(&[message(0, "held")]).await.expect_err("it is held");
    let is_definite = matches!(&refused, StoreError::NotApplied(why) if why.to_string().contains("has not ended"));
    assert!(is_definite, "{refused:?}");
    tx.rollback().await.expect("it is rolled back");
    let posted = at_last(async || store.post(&[message(0, "held")]).await).await;
    assert_eq!(posted.expect("it is posted"), [Posted::Inserted]);
}
