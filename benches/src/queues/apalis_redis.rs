//! apalis on Redis, as it comes and with a batch of 500. Its times are whole seconds.

use std::time::{Duration, UNIX_EPOCH};

use ::apalis_redis::{Config, RedisStorage, connect};
use alarm_backends::testing::servers::Redis;
use apalis::prelude::{BoxDynError, TaskBuilder, TaskSink, WorkerBuilder};
use async_trait::async_trait;
use tokio::task::JoinHandle;

use super::{Adder, Job, Queue, handle};

/// A queue on a server of its own: a second worker of the same name is refused for a while.
#[derive(Debug)]
pub struct ApalisRedis {
    server: Redis,
    batch: Option<usize>,
}

impl ApalisRedis {
    /// On an empty server.
    #[must_use]
    pub fn new(server: Redis, batch: Option<usize>) -> ApalisRedis {
        ApalisRedis { server, batch }
    }

    async fn storage(&self) -> RedisStorage<Job> {
        let config = Config::default();
        let config = match self.batch {
            Some(batch) => config.batch_size(batch),
            None => config,
        };
        RedisStorage::new(connect(&*self.server.url()).await.expect("the server takes connections")).with_config(config)
    }
}

struct Storage(RedisStorage<Job>);

#[async_trait]
impl Adder for Storage {
    async fn add(&mut self, job: Job) {
        let at = UNIX_EPOCH + Duration::from_secs_f64(job.at / 1e3);
        self.0.push_task(TaskBuilder::new(job).run_at_time(at).build()).await.expect("a job can be added");
    }
}

#[async_trait]
impl Queue for ApalisRedis {
    fn name(&self) -> &'static str {
        if self.batch.is_some() { "apalis-redis, batch 500" } else { "apalis-redis" }
    }

    async fn adder(&self) -> Box<dyn Adder> {
        Box::new(Storage(self.storage().await))
    }

    async fn fill(&self, jobs: Vec<Job>) {
        let mut storage = self.storage().await;
        for some in jobs.chunks(1_000) {
            storage.push_bulk(some.to_vec()).await.expect("jobs can be added");
        }
    }

    async fn work(&self) -> JoinHandle<()> {
        async fn count(job: Job) -> Result<(), BoxDynError> {
            handle(job);
            Ok(())
        }
        let worker = WorkerBuilder::new("worker").backend(self.storage().await).build(count);
        tokio::spawn(async move { worker.run().await.expect("the worker runs") })
    }
}
