//! Postgres, on a private server with its own defaults. Its limit is SQL on one connection: the rows that our commits wrote, into
//! a table of the same shape, with a fence row changed in the same statement.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use alarm_backends::postgres::PostgresStore;
use alarm_backends::testing::servers;
use async_trait::async_trait;
use stable_interfaces::Store;
use tokio_postgres::{Client, NoTls};

use super::{Backend, Place, shuffle};
#[cfg(feature = "queues")]
use crate::queues::{ApalisPostgres, Graphile, Queue};

/// [`PostgresStore`].
#[derive(Debug)]
pub struct Postgres;

/// One server for all places of this process.
static SERVER: LazyLock<servers::Postgres> = LazyLock::new(servers::Postgres::start);

/// A client of the database at `url`.
async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the database takes connections");
    tokio::spawn(connection);
    client
}

#[async_trait]
impl Backend for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn fresh(&self) -> Box<dyn Place> {
        Box::new(Database(SERVER.fresh_database()))
    }

    fn at(&self, address: &str) -> Box<dyn Place> {
        Box::new(Database(address.to_owned()))
    }

    #[cfg(feature = "queues")]
    async fn queues(&self) -> Vec<Box<dyn Queue>> {
        vec![
            Box::new(Graphile::new(SERVER.fresh_database(), false)),
            Box::new(ApalisPostgres::new(&SERVER.fresh_database(), None).await),
        ]
    }

    #[cfg(feature = "queues")]
    async fn due_queues(&self) -> Vec<(Box<dyn Queue>, u64)> {
        vec![
            (Box::new(Graphile::new(SERVER.fresh_database(), true)), 100_000),
            (Box::new(ApalisPostgres::new(&SERVER.fresh_database(), None).await), 20_000),
            (Box::new(ApalisPostgres::new(&SERVER.fresh_database(), Some(500)).await), 20_000),
        ]
    }

    #[cfg(feature = "queues")]
    fn timers(&self) -> Option<Box<dyn Queue>> {
        Some(Box::new(Graphile::new(SERVER.fresh_database(), false)))
    }
}

/// The URL of a database.
struct Database(String);

/// The columns of one alarm, as they are written and read.
struct Row {
    shard: i32,
    interface: String,
    instance: String,
    id: String,
    numbers: [i64; 6],
    started: bool,
    meta: Vec<u8>,
}

const COLUMNS: &str =
    "shard, interface, instance, id, due, scheduled_at, rev_epoch, rev_counter, attempt, crashes, started, meta";

fn column<'a, T>(rows: &'a [Row], of: impl Fn(&'a Row) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}

impl Database {
    async fn rows(&self) -> Vec<Row> {
        let sql = format!("SELECT {COLUMNS} FROM stable_interfaces.alarm");
        let rows = client(&self.0).await.query(&sql, &[]).await.expect("the table can be read");
        let row = |row: &tokio_postgres::Row| Row {
            shard: row.get(0),
            interface: row.get(1),
            instance: row.get(2),
            id: row.get(3),
            numbers: [4, 5, 6, 7, 8, 9].map(|column: usize| row.get(column)),
            started: row.get(10),
            meta: row.get(11),
        };
        rows.iter().map(row).collect()
    }

    /// An empty table like that of the alarms, and a fence row.
    async fn raw_tables(client: &Client) {
        let sql = "CREATE TABLE raw_alarm (LIKE stable_interfaces.alarm INCLUDING ALL);
            CREATE TABLE raw_fence (seq bigint) WITH (fillfactor = 50); INSERT INTO raw_fence VALUES (0)";
        client.batch_execute(sql).await.expect("tables can be made");
    }
}

#[async_trait]
impl Place for Database {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(PostgresStore::connect(&self.0).await.expect("the store can be opened"))
    }

    fn address(&self) -> Option<String> {
        Some(self.0.clone())
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn raw_set(&self, rows: usize) -> f64 {
        let mut alarms = self.rows().await;
        shuffle(&mut alarms);
        let client = client(&self.0).await;
        Database::raw_tables(&client).await;
        let sql = format!(
            "WITH fence AS (UPDATE raw_fence SET seq = seq + 1 RETURNING 1)
            INSERT INTO raw_alarm ({COLUMNS}) SELECT r.* FROM fence, unnest($1::int[], $2::text[], $3::text[], $4::text[],
            $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bool[], $12::bytea[]) r
            ON CONFLICT (shard, interface, instance, id) DO UPDATE SET due = EXCLUDED.due"
        );
        let insert = client.prepare(&sql).await.expect("the statement is right");
        let started = Instant::now();
        for rows in alarms.chunks(rows.max(1)) {
            let numbers: [Vec<i64>; 6] = [0, 1, 2, 3, 4, 5].map(|place| column(rows, |row| row.numbers[place]));
            let (shard, started) = (column(rows, |row| row.shard), column(rows, |row| row.started));
            let interface = column(rows, |row| row.interface.as_str());
            let (instance, id) = (column(rows, |row| row.instance.as_str()), column(rows, |row| row.id.as_str()));
            let meta = column(rows, |row| row.meta.as_slice());
            let [due, scheduled, epoch, counter, attempt, crashes] = &numbers;
            client
                .execute(
                    &insert,
                    &[
                        &shard, &interface, &instance, &id, due, scheduled, epoch, counter, attempt, crashes, &started,
                        &meta,
                    ],
                )
                .await
                .expect("the table takes rows");
        }
        alarms.len() as f64 / started.elapsed().as_secs_f64()
    }

    async fn raw_drain(&self, rows: usize) -> f64 {
        let client = client(&self.0).await;
        Database::raw_tables(&client).await;
        let delete = client
            .prepare(
                "WITH fence AS (UPDATE raw_fence SET seq = seq + 1 RETURNING 1)
                DELETE FROM stable_interfaces.alarm a USING fence, unnest($1::int[], $2::text[], $3::text[], $4::text[]) r (s, f, n, i)
                WHERE a.shard = r.s AND a.interface = r.f AND a.instance = r.n AND a.id = r.i",
            )
            .await
            .expect("the statement is right");
        let started = Instant::now();
        let alarms = self.rows().await;
        for rows in alarms.chunks(rows.max(1)) {
            let interface = column(rows, |row| row.interface.as_str());
            let (instance, id) = (column(rows, |row| row.instance.as_str()), column(rows, |row| row.id.as_str()));
            let shard = column(rows, |row| row.shard);
            client.execute(&delete, &[&shard, &interface, &instance, &id]).await.expect("rows can be removed");
        }
        alarms.len() as f64 / started.elapsed().as_secs_f64()
    }

    async fn singles(&self) -> Option<f64> {
        const CONNECTIONS: usize = 64;
        let mut alarms = self.rows().await;
        shuffle(&mut alarms);
        alarms.truncate(40_000);
        let first = client(&self.0).await;
        first.batch_execute("CREATE TABLE single (LIKE stable_interfaces.alarm INCLUDING ALL)").await.expect("a table");
        let sql = format!("INSERT INTO single ({COLUMNS}) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12)");
        let count = alarms.len();
        let mut parts: Vec<Vec<Row>> = (0..CONNECTIONS).map(|_| Vec::new()).collect();
        for (number, row) in alarms.into_iter().enumerate() {
            parts[number % CONNECTIONS].push(row);
        }
        let mut ready = Vec::new();
        for part in parts {
            let client = client(&self.0).await;
            let insert = client.prepare(&sql).await.expect("the statement is right");
            ready.push((client, insert, part));
        }
        let started = Instant::now();
        let writers = ready.into_iter().map(|(client, insert, part)| {
            tokio::spawn(async move {
                for row in &part {
                    let [due, scheduled, epoch, counter, attempt, crashes] = &row.numbers;
                    let Row { shard, interface, instance, id, started, meta, .. } = row;
                    client
                        .execute(
                            &insert,
                            &[
                                shard, interface, instance, id, due, scheduled, epoch, counter, attempt, crashes,
                                started, meta,
                            ],
                        )
                        .await
                        .expect("the table takes rows");
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("no writer fails");
        }
        Some(count as f64 / started.elapsed().as_secs_f64())
    }

    async fn tidy_often(&self, often: bool) {
        let client = client(&self.0).await;
        let sql =
            if often { "ALTER SYSTEM SET autovacuum_naptime = '1s'" } else { "ALTER SYSTEM RESET autovacuum_naptime" };
        client.execute(sql, &[]).await.expect("its own server can be configured");
        client.execute("SELECT pg_reload_conf()", &[]).await.expect("its own server can be configured");
    }

    async fn megabytes(&self) -> Option<f64> {
        // A database that no store was opened on yet has none of them.
        let sql = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
            JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'stable_interfaces' AND c.relkind = 'r'";
        let row = client(&self.0).await.query_one(sql, &[]).await.expect("sizes can be asked for");
        Some(row.get::<_, i64>(0) as f64 / 1e6)
    }
}
