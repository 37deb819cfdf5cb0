//! graphile_worker, as it comes and tuned for throughput.

use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, JobSpecBuilder, LocalQueueConfig, RawJobSpec, TaskHandler, Worker, WorkerContext,
    WorkerOptions, WorkerUtils,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{Adder, Job, Queue, handle};

#[derive(Debug, Serialize, Deserialize)]
struct Count(Job);

impl TaskHandler for Count {
    const IDENTIFIER: &'static str = "count";

    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        handle(self.0);
        Ok::<(), String>(())
    }
}

/// A queue in one database.
#[derive(Debug)]
pub struct Graphile {
    url: String,
    is_tuned: bool,
}

impl Graphile {
    /// On an empty database.
    #[must_use]
    pub fn new(url: String, is_tuned: bool) -> Graphile {
        Graphile { url, is_tuned }
    }

    async fn worker(&self) -> Worker {
        let options = WorkerOptions::default().database_url(&self.url).define_job::<Count>();
        let options = if self.is_tuned {
            options
                .local_queue(LocalQueueConfig::builder().size(5_000).build())
                .concurrency(500)
                .max_pg_conn(20)
                .complete_job_batch_delay(Duration::from_millis(5))
        } else {
            options
        };
        options.listen_os_shutdown_signals(false).init().await.expect("the worker starts")
    }
}

struct Utils(WorkerUtils);

#[async_trait]
impl Adder for Utils {
    async fn add(&mut self, job: Job) {
        let at = UNIX_EPOCH + Duration::from_secs_f64(job.at / 1e3);
        let spec = JobSpecBuilder::new().run_at(at).build();
        self.0.add_job(Count(job), spec).await.expect("a job can be added");
    }
}

#[async_trait]
impl Queue for Graphile {
    fn name(&self) -> &'static str {
        if self.is_tuned { "graphile_worker, tuned" } else { "graphile_worker" }
    }

    async fn adder(&self) -> Box<dyn Adder> {
        Box::new(Utils(self.worker().await.create_utils()))
    }

    async fn fill(&self, jobs: Vec<Job>) {
        let utils = self.worker().await.create_utils();
        for some in jobs.chunks(1_000) {
            let raw = |job: &Job| RawJobSpec {
                identifier: Count::IDENTIFIER.into(),
                payload: serde_json::to_value(Count(*job)).expect("a job is plain"),
                spec: JobSpec::default(),
            };
            utils.add_raw_jobs(&some.iter().map(raw).collect::<Vec<_>>()).await.expect("jobs can be added");
        }
    }

    async fn work(&self) -> JoinHandle<()> {
        let worker = self.worker().await;
        tokio::spawn(async move { worker.run().await.expect("the worker runs") })
    }
}
