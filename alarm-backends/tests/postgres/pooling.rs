//! A pooler between the store and its server.

use std::sync::LazyLock;

use alarm_backends::postgres::PostgresStore;
use alarm_backends::testing::servers::{PgBouncer, PoolMode};
use stable_interfaces::StoreError;

use super::SERVER;
use super::given::*;

/// A pooler that gives every client a session of its own.
static SESSIONS: LazyLock<PgBouncer> = LazyLock::new(|| PgBouncer::start(&SERVER, PoolMode::Session, false));
static DATABASE: LazyLock<String> = LazyLock::new(|| SESSIONS.url(&SERVER.fresh_database()));

mod session {
    stable_interfaces::testing::store_tests!(|| async { super::super::fresh_store(&super::DATABASE).await });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_shares_sessions_between_transactions_is_refused_with_the_way_out() {
    for (mode, is_round_robin) in [
        (PoolMode::Transaction, false),
        (PoolMode::Transaction, true),
        (PoolMode::Statement, false),
        (PoolMode::Statement, true),
    ] {
        let start = move || (PgBouncer::start(&SERVER, mode, is_round_robin), SERVER.fresh_database());
        let (bouncer, url) = tokio::task::spawn_blocking(start).await.expect("the pooler starts");
        let through = bouncer.url(&url);
        let others = [raw(&through).await, raw(&through).await, raw(&through).await];
        for sessions in 0..=3 {
            // So many the pool has at least, as in a service that has used it. Where it pools transactions, exactly so many the first time.
            for other in &others[..sessions] {
                let begin = if mode == PoolMode::Statement { "SELECT pg_sleep(0.01)" } else { "BEGIN" };
                other.batch_execute(begin).await.expect("the pooler serves it");
            }
            for other in &others[..sessions] {
                other.batch_execute("ROLLBACK").await.expect("the pooler serves it");
            }
            let refused = PostgresStore::connect(&through).await;
            let Err(StoreError::Open(text, _)) = &refused else { panic!("{mode:?} {is_round_robin}: {refused:?}") };
            assert!(text.contains("pool_mode = session") && text.contains("127.0.0.1:"), "{text}");
        }
        // Nothing was left in the sessions that others use, nor in the database.
        for setting in others[0].simple_query("SHOW statement_timeout").await.expect("it is answered") {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = setting {
                assert_eq!(row.get(0), Some("0"));
            }
        }
        let direct = raw(&url).await;
        let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'stable_interfaces'";
        assert_eq!(direct.query_one_scalar::<i64, _>(schemas, &[]).await.expect("it is answered"), 0);
        store_on(&url).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pooler_of_sessions_loses_nothing_and_is_used_again() {
    let start = || (PgBouncer::start(&SERVER, PoolMode::Session, false), SERVER.fresh_database());
    let (bouncer, url) = tokio::task::spawn_blocking(start).await.expect("the pooler starts");
    let through = bouncer.url(&url);
    let store = open(|| PostgresStore::builder(&through).expect("the URL can be read").timeout(DEADLINE)).await;
    own(&store, 1).await;
    for seq in 1..=3 {
        bouncer.kill9();
        let write = write(0, seq, vec![put(&format!("k-{seq}"), "v")]);
        let refused = commit(&store, &write).await.expect_err("nobody is there");
        assert!(refused.is_retryable(), "{refused:?}");
        bouncer.restart();
        while let Err(error) = commit(&store, &write).await {
            assert!(error.is_retryable(), "{error:?}");
        }
        assert_eq!(value(&store, &format!("k-{seq}")).await.as_deref(), Some("v"));
    }
}
