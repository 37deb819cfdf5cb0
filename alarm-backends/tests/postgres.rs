//! The Postgres store on real servers: the list that every store must pass, and what only a database can do to us.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time")]

#[path = "postgres/faults.rs"]
mod faults;
#[path = "first_release/mod.rs"]
mod first_release;
#[path = "postgres/given.rs"]
mod given;
#[path = "postgres/opening.rs"]
mod opening;
#[path = "postgres/ownership.rs"]
mod ownership;
#[path = "postgres/pooling.rs"]
mod pooling;
#[path = "postgres/posting.rs"]
mod posting;
#[path = "postgres/proxy.rs"]
mod proxy;
#[path = "postgres/rounds.rs"]
mod rounds;
#[path = "postgres/rows.rs"]
mod rows;
#[path = "postgres/steps.rs"]
mod steps;
#[path = "postgres/transactions.rs"]
mod transactions;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use alarm_backends::postgres::PostgresStore;
use alarm_backends::testing::servers::Postgres;

/// One server for this binary. Tests that do something to a server start their own.
static SERVER: LazyLock<Postgres> = LazyLock::new(Postgres::start);

/// Two databases, each test in a schema of its own: a schema is made ten times faster.
static BYTEWISE: LazyLock<String> = LazyLock::new(|| SERVER.fresh_database());
static ICU: LazyLock<String> = LazyLock::new(|| SERVER.fresh_icu_database());

async fn fresh_store(url: &str) -> PostgresStore {
    static SCHEMAS: AtomicU32 = AtomicU32::new(0);
    let schema = format!("test_{}", SCHEMAS.fetch_add(1, Ordering::Relaxed));
    let builder = PostgresStore::builder(url).expect("the server's URL can be read");
    // However busy the machine is.
    builder.schema(schema).timeout(given::PATIENCE).connect().await.expect("a new schema can be made")
}

mod bytewise {
    stable_interfaces::testing::store_tests!(|| async { super::fresh_store(&super::BYTEWISE).await });
}

mod icu {
    stable_interfaces::testing::store_tests!(|| async { super::fresh_store(&super::ICU).await });
}
