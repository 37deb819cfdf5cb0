//! Libraries for durable functions on Postgres, each with the same job: a function is started, waits for a message with a limit, is
//! sent one, and its result is awaited.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The limit of the wait, which is not to be over.
const HOUR: Duration = Duration::from_secs(3_600);

mod with_durare {
    #![allow(
        missing_docs,
        unreachable_pub,
        missing_debug_implementations,
        reason = "the macro writes items of its own"
    )]

    use durare::{DurableContext, Result};

    #[durare::workflow]
    pub async fn wait_for_go(ctx: DurableContext, _caller: u64) -> Result<Option<u64>> {
        ctx.recv("go", super::HOUR).await
    }
}

/// Runs `once` with so many callers, for a quarter of `time` without counting and then for so long, and says how often it was done in a second.
async fn rate<F: Future<Output = ()> + Send>(
    callers: u64,
    time: Duration,
    once: impl Fn(u64) -> F + Clone + Send + 'static,
) -> f64 {
    let (next, from) = (Arc::new(AtomicU64::new(0)), Instant::now() + time / 4);
    let call = |_| {
        let (once, next) = (once.clone(), next.clone());
        tokio::spawn(async move {
            let mut done = 0_u64;
            while from.elapsed() < time {
                let is_counted = Instant::now() >= from;
                once(next.fetch_add(1, Ordering::Relaxed)).await;
                done += u64::from(is_counted);
            }
            done
        })
    };
    let mut done = 0;
    for call in (0..callers).map(call).collect::<Vec<_>>() {
        done += call.await.expect("no caller fails");
    }
    done as f64 / from.elapsed().as_secs_f64()
}

/// durare, on the database at `url`.
pub async fn durare(url: &str, callers: u64, time: Duration) -> f64 {
    use durare::{DurableEngine, WorkflowOptions};

    let engine = DurableEngine::connect(url).await.expect("it connects").build().await.expect("it starts");
    let engine = Arc::new(engine);
    rate(callers, time, move |number| {
        let engine = engine.clone();
        async move {
            let id = format!("flow-{number}");
            let options = WorkflowOptions::with_id(&id);
            let started = engine.start_with(with_durare::WaitForGo, number, options).await.expect("it starts");
            engine.send(&id, 1_u64, "go").await.expect("it is sent");
            assert_eq!(started.result().await.expect("it has a result"), Some(1));
        }
    })
    .await
}

/// dbos, on the database at `url`.
pub async fn dbos(url: &str, callers: u64, time: Duration) -> f64 {
    use dbos::{Config, DBOS};

    let config = Config { app_version: Some("1".to_owned()), max_connections: 32, ..Config::new("benches", url) };
    let dbos = DBOS::new(config);
    let waits = dbos.register_workflow("waits", |()| async {
        let got: Option<u64> = dbos::recv(None, HOUR).await?;
        Ok::<_, dbos::Error>(got)
    });
    let waits = Arc::new(waits.expect("its name is good"));
    dbos.launch().await.expect("it starts");
    let sender = dbos.clone();
    let rate = rate(callers, time, move |_| {
        let (waits, sender) = (waits.clone(), sender.clone());
        async move {
            let started = waits.start(()).await.expect("it starts");
            sender.send(started.workflow_id(), &1_u64).await.expect("it is sent");
            assert_eq!(started.result().await.expect("it has a result"), Some(1));
        }
    })
    .await;
    dbos.shutdown().await;
    rate
}
