//! Steps of flows that are transactions of the application on Postgres: their rows and the journal's are there together or not at
//! all, whoever dies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a server runs in real time")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use alarm_backends::PostgresStore;
use alarm_backends::postgres::tokio_postgres;
use alarm_backends::testing::servers::Postgres;
use callback_flows::{BlockedKind, Flow, FlowResult, Flows, FlowsBuilder, Outcome, Retry, State};
use stable_interfaces::{Fleet, Host};
use system_tests::{World, in_time};
use tokio::sync::Semaphore;

const SECOND: Duration = Duration::from_secs(1);

/// The database of one test: the store, and a table of the application.
struct Database {
    server: Postgres,
    store: Arc<PostgresStore>,
}

impl Database {
    async fn start() -> Database {
        let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
        server.execute("CREATE TABLE bookings (flow text, attempt int, UNIQUE (flow) DEFERRABLE INITIALLY DEFERRED)");
        let store = PostgresStore::connect(&server.url("postgres")).await.unwrap();
        Database { server, store: Arc::new(store) }
    }

    async fn boot(&self, flows: FlowsBuilder) -> (Host, Flows) {
        let fleet = Fleet::new(["only"], 16).unwrap();
        let mut host = Host::builder("only", fleet).shared_store(self.store.clone());
        let flows = flows.register(&mut host).unwrap();
        (host.start().await.unwrap(), flows)
    }

    fn rows(&self) -> u32 {
        self.server.execute("SELECT count(*) FROM bookings").parse().unwrap()
    }
}

/// Books once, and says how many rows there are of it then.
async fn book(attempts: Arc<AtomicU32>, gate: Arc<Semaphore>, flow: Flow, id: String) -> FlowResult<i64> {
    let booked = flow.step("book").in_transaction(move |tx| {
        let (id, gate) = (id.clone(), gate.clone());
        let attempt = i32::try_from(attempts.fetch_add(1, Ordering::SeqCst) + 1).unwrap();
        Box::pin(async move {
            tx.execute("INSERT INTO bookings (flow, attempt) VALUES ($1, $2)", &[&id, &attempt]).await?;
            let row = tx.query_one("SELECT count(*) FROM bookings WHERE flow = $1", &[&id]).await?;
            // Where a test stops it, its statements have been carried out, and nothing is committed.
            let _permit = gate.acquire().await.unwrap();
            row.try_get::<_, i64>(0)
        })
    });
    Ok(booked.await?)
}

fn booking(attempts: &Arc<AtomicU32>, gate: &Arc<Semaphore>) -> FlowsBuilder {
    let (attempts, gate) = (attempts.clone(), gate.clone());
    Flows::builder().flow("book", 1, move |flow, id| book(attempts.clone(), gate.clone(), flow, id))
}

async fn result(flows: &Flows, id: &str) -> i64 {
    match in_time(flows.ended("book", id)).await.unwrap() {
        Outcome::Done(value) => value.get().parse().unwrap(),
        other => panic!("{other:?}, {:?}", flows.get("book", id).await),
    }
}

async fn until(what: impl Fn() -> bool) {
    in_time(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_of_a_step_are_there_once_whether_its_process_dies_before_or_after_their_commit() {
    let database = Database::start().await;
    let (attempts, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let (host, flows) = database.boot(booking(&attempts, &gate)).await;
    flows.start("book", "a", "a").await.unwrap();
    until(|| attempts.load(Ordering::SeqCst) == 1).await;
    // Its statements have been sent, and it waits at the gate.
    tokio::time::sleep(Duration::from_millis(100)).await;
    host.crash();
    assert_eq!(database.rows(), 0, "nothing of it was committed");

    let gate = Arc::new(Semaphore::new(1));
    let (host, flows) = database.boot(booking(&attempts, &gate)).await;
    until(|| database.rows() == 1).await;
    host.crash();
    let (host, flows_again) = database.boot(booking(&attempts, &gate)).await;
    drop(flows);
    assert_eq!(result(&flows_again, "a").await, 1);
    assert_eq!((database.rows(), attempts.load(Ordering::SeqCst)), (1, 2), "committed, it is not run again");
    host.drain(SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_of_thirty_flows_are_there_once_each_over_crashes_of_the_host_and_of_the_server() {
    let database = Database::start().await;
    let (attempts, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(64)));
    let ids: Vec<String> = (0..30).map(|n| format!("flow-{n}")).collect();
    let mut random = fastrand::Rng::with_seed(7);
    let (mut host, mut flows) = database.boot(booking(&attempts, &gate)).await;
    for (n, id) in ids.iter().enumerate() {
        while flows.start("book", id, id).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if n % 6 == 5 {
            tokio::time::sleep(Duration::from_millis(random.u64(0..6))).await;
            host.crash();
            (host, flows) = database.boot(booking(&attempts, &gate)).await;
        }
        if n == 15 {
            database.server.kill9();
            database.server.restart();
        }
    }
    for id in &ids {
        loop {
            // Hosts have died while it ran: that is for somebody to look at.
            match flows.get("book", id).await {
                Ok(Some(status)) if status.state.is_over() => break,
                Ok(Some(status)) if matches!(status.state, State::Blocked { .. }) => {
                    let _ = flows.resume("book", id).await;
                }
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(result(&flows, id).await, 1);
    }
    assert_eq!(database.rows(), 30);
    assert_eq!(database.server.execute("SELECT count(DISTINCT flow) FROM bookings"), "30");
    host.drain(SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_fails_leaves_nothing_and_is_tried_again_or_given_up() {
    let database = Database::start().await;
    let may_succeed = Arc::new(AtomicBool::new(false));
    let asked = may_succeed.clone();
    let code = Flows::builder().flow("fails", 1, move |flow: Flow, how: String| {
        let may_succeed = asked.clone();
        async move {
            // The others are to have all the time that a busy machine takes.
            let limit = if how == "slow" { SECOND } else { 60 * SECOND };
            let step = flow.step("book").retry(Retry::default().attempts(2)).timeout(limit);
            let booked = step.in_transaction(move |tx| {
                let (how, may_succeed) = (how.clone(), may_succeed.clone());
                Box::pin(async move {
                    tx.execute("INSERT INTO bookings (flow) VALUES ($1)", &[&how]).await?;
                    match how.as_str() {
                        "statement" => tx.execute("SELECT 1 / 0", &[]).await.map(drop)?,
                        // Found out by the commit itself.
                        "constraint" => {
                            tx.execute("INSERT INTO bookings (flow) VALUES ($1)", &[&how]).await?;
                        }
                        "slow" => tx.execute("SELECT pg_sleep(60)", &[]).await.map(drop)?,
                        "once" if !may_succeed.swap(true, Ordering::SeqCst) => {
                            tx.execute("SELECT 1 / 0", &[]).await?;
                        }
                        _ => {}
                    }
                    Ok::<_, tokio_postgres::Error>(())
                })
            });
            Ok(booked.await.map_err(|error| error.to_string()).err())
        }
    });
    let (host, flows) = database.boot(code).await;
    let cases = [
        ("statement", Some("division by zero")),
        ("constraint", Some("duplicate key")),
        ("slow", Some("it did not end within 1s (attempt 2)")),
        ("once", None),
    ];
    for (how, expected) in cases {
        flows.start("fails", how, how).await.unwrap();
        let Outcome::Done(error) = in_time(flows.ended("fails", how)).await.unwrap() else {
            panic!("it has no result")
        };
        let error: Option<String> = serde_json::from_str(error.get()).unwrap();
        match (&error, expected) {
            (None, None) => {}
            (Some(error), Some(expected)) if error.contains(expected) && error.ends_with("(attempt 2)") => {}
            _ => panic!("{how}: {error:?}"),
        }
        assert_eq!(database.rows(), u32::from(expected.is_none()), "{how}");
    }
    host.drain(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_transaction_on_another_store_blocks_its_flow_and_says_why() {
    let world = World::in_memory();
    let code = Flows::builder().flow("book", 1, async |flow: Flow, (): ()| {
        let booked =
            flow.step("book").in_transaction(|_| Box::pin(std::future::ready(Ok::<_, tokio_postgres::Error>(()))));
        Ok(booked.await?)
    });
    let mut host = world.local();
    let flows = code.register(&mut host).unwrap();
    let host = host.start().await.unwrap();
    flows.start("book", "a", &()).await.unwrap();
    world.settle().await;
    let State::Blocked { why } = flows.get("book", "a").await.unwrap().unwrap().state else {
        panic!("it is not blocked")
    };
    let message = "its step `step:book#0` is a transaction, and the store of its host is not Postgres";
    assert_eq!((why.kind(), why.message()), (BlockedKind::NotConfigured, message));
    host.drain(SECOND).await;
}
