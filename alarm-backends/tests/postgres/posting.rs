//! Posting and setting alarms in the transactions of somebody who is no host.

use std::time::Duration;

use alarm_backends::postgres::Poster;
use stable_interfaces::{ContextError, Directive, NewPost, Posted, StoreError};

use super::given::*;
use super::transactions::{database, site};

const HOUR: Duration = Duration::from_secs(3600);

fn in_an_hour() -> std::time::SystemTime {
    std::time::SystemTime::now() + HOUR
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_and_a_message_exist_if_and_only_if_the_callers_transaction_commits() {
    let site = site().await;
    let (mut other, poster) = (raw(&site.url).await, Poster::default());
    for commits in [false, true] {
        let tx = other.transaction().await.expect("a transaction");
        tx.execute("INSERT INTO ledger (note) VALUES ('of another service')", &[]).await.expect("a row");
        let posted = poster.set_alarm_in(&tx, "account", "a-1", "remind", in_an_hour(), &"gently").await;
        assert_eq!(posted.expect("it is posted"), Posted::Inserted);
        let posted = poster.post_in(&tx, "account", "a-1", NewPost::json(&7).expect("JSON").id("m")).await;
        assert_eq!(posted.expect("it is posted"), Posted::Inserted);
        let posted = poster.post_in(&tx, "account", "a-1", NewPost::new("again").id("m")).await;
        assert_eq!(posted.expect("it is there already"), Posted::Duplicate);
        if commits {
            tx.commit().await.expect("it commits");
        } else {
            tx.rollback().await.expect("it is rolled back");
        }
        // The owner has had its chance to see what is not to be seen.
        site.accounts.post("a-1", NewPost::new("after")).await.expect("it is posted");
        let alarms = i64::from(commits);
        site.eventually(&format!("{alarms}/0/-/{alarms}/0")).await;
        assert_eq!(site.script.wakes(), if commits { 3 } else { 1 }, "the messages that were committed");
    }
    let alarms = site.accounts.alarms("a-1").await.expect("the alarms are read");
    let found = (alarms[0].id(), alarms[0].meta::<String>().expect("a text"), alarms.len());
    assert_eq!(found, ("remind", "gently".to_owned(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_set_again_from_outside_moves_and_can_be_cancelled() {
    let site = site().await;
    let (other, poster) = (raw(&site.url).await, Poster::default());
    let set = async |id: &str, hours: u32| {
        let directive = Directive::set_alarm("remind", in_an_hour() + HOUR * hours, &hours).expect("a good one").id(id);
        poster.direct_in(&other, "account", "a-1", directive).await.expect("it is posted")
    };
    for hours in 1..=3 {
        assert_eq!(set("set", hours).await, Posted::Inserted, "the one before was carried out");
        site.eventually("0/0/-/1/0").await;
        let alarms = site.accounts.alarms("a-1").await.expect("the alarms are read");
        assert_eq!(alarms[0].meta::<u32>().expect("hours"), hours);
    }
    let cancel = Directive::cancel_alarm("remind").expect("a good ID");
    poster.direct_in(&other, "account", "a-1", cancel).await.expect("it is posted");
    site.eventually("0/0/-/0/0").await;
    assert_eq!(site.script.wakes(), 0, "the instance has nothing to do with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handlers_own_transaction_may_post_to_others() {
    use alarm_backends::postgres::PostgresContext;
    let site = site().await;
    let poster = Poster::default();
    site.ask(move |_, cx| {
        Box::pin(async move {
            cx.transaction(async |tx| {
                poster.post_in(&**tx, "account", "a-2", NewPost::new("from a-1")).await?;
                Ok::<_, super::transactions::Failed>(0)
            })
            .await
        })
    })
    .await
    .expect("it is committed");
    while site.script.wakes() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_instance_is_found_in_the_shard_that_the_fleet_says() {
    let site = site().await;
    let (other, poster) = (raw(&site.url).await, Poster::default());
    let ids: Vec<_> = (0..50).map(|n| format!("é-{n}")).collect();
    for id in &ids {
        poster.post_in(&other, "account", id, NewPost::new("x")).await.expect("it is posted");
    }
    site.eventually("0/0/-/0/0").await;
    assert_eq!(site.script.wakes(), ids.len(), "none was set aside for being in another's shard");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_any_post_refuses_is_refused_before_the_database_is_asked() {
    let (url, raw_client) = database().await;
    let _store = store_on(&url).await;
    let (mut other, poster) = (raw(&url).await, Poster::default());
    drop(raw_client);
    let tx = other.transaction().await.expect("a transaction");
    for (interface, id, message) in [
        ("Account", "a-1", NewPost::new("x")),
        ("account!", "a-1", NewPost::new("x")),
        ("account", "", NewPost::new("x")),
        ("account", "a\0b", NewPost::new("x")),
        ("account", "a-1", NewPost::new("x").id("")),
    ] {
        let refused = poster.post_in(&tx, interface, id, message).await;
        assert!(matches!(refused, Err(ContextError::InvalidId { .. })), "{interface:?} {id:?}: {refused:?}");
    }
    let large = poster.post_in(&tx, "account", "a-1", NewPost::new(vec![0; 256 * 1024 + 1])).await;
    assert!(matches!(large, Err(ContextError::TooLarge(_))), "{large:?}");
    // No host has ever said how many shards there are.
    let early = poster.post_in(&tx, "account", "a-1", NewPost::new("x")).await;
    let is_open = matches!(&early, Err(ContextError::Store(error)) if matches!(**error, StoreError::Open(..)));
    assert!(is_open, "{early:?}");
    tx.batch_execute("SELECT 1").await.expect("the transaction can go on after all these");
    assert!(Poster::new("not a name").is_err());
}
