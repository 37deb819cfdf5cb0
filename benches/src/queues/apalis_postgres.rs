//! apalis on Postgres, as it comes and with a batch of 500. Its times are whole seconds.

use std::time::{Duration, UNIX_EPOCH};

use ::apalis_postgres::{Config, PgPool, PostgresStorage};
use apalis::prelude::{BoxDynError, TaskBuilder, TaskSink, WorkerBuilder};
use async_trait::async_trait;
use tokio::task::JoinHandle;

use super::{Adder, Job, Queue, handle};

/// A queue in one database.
#[derive(Debug)]
pub struct ApalisPostgres {
    pool: PgPool,
    batch: Option<usize>,
}

impl ApalisPostgres {
    /// On an empty database.
    ///
    /// # Panics
    /// If it cannot be set up.
    pub async fn new(url: &str, batch: Option<usize>) -> ApalisPostgres {
        let pool = PgPool::connect(url).await.expect("the database takes connections");
        PostgresStorage::setup(&pool).await.expect("its tables can be made");
        ApalisPostgres { pool, batch }
    }

    fn storage(&self) -> PostgresStorage<Job> {
        let config = Config::default();
        let config = match self.batch {
            Some(batch) => config.batch_size(batch),
            None => config,
        };
        PostgresStorage::new(&self.pool).with_config(config)
    }
}

struct Storage(PostgresStorage<Job>);

#[async_trait]
impl Adder for Storage {
    async fn add(&mut self, job: Job) {
        let at = UNIX_EPOCH + Duration::from_secs_f64(job.at / 1e3);
        self.0.push_task(TaskBuilder::new(job).run_at_time(at).build()).await.expect("a job can be added");
    }
}

#[async_trait]
impl Queue for ApalisPostgres {
    fn name(&self) -> &'static str {
        if self.batch.is_some() { "apalis-postgres, batch 500" } else { "apalis-postgres" }
    }

    async fn adder(&self) -> Box<dyn Adder> {
        Box::new(Storage(self.storage()))
    }

    async fn fill(&self, jobs: Vec<Job>) {
        let mut storage = self.storage();
        for some in jobs.chunks(1_000) {
            storage.push_bulk(some.to_vec()).await.expect("jobs can be added");
        }
    }

    async fn work(&self) -> JoinHandle<()> {
        async fn count(job: Job) -> Result<(), BoxDynError> {
            handle(job);
            Ok(())
        }
        let worker = WorkerBuilder::new("worker").backend(self.storage()).build(count);
        tokio::spawn(async move { worker.run().await.expect("the worker runs") })
    }
}
