//! A small thread beside the application's runtime: it renews the lease, and notices handlers that block.
//!
//! Both must work when every worker of the runtime is blocked. With a clock that is not the machine's there is no thread: the
//! lease is kept on the host's runtime, and blocking is not looked for.

use std::thread;
use std::time::Duration;

use super::lease;
use crate::instance::chain::Blocked;
use crate::quiet::guarded;
use crate::shared::HostCore;
use crate::store::Incarnation;
use crate::store::deadlines::Deadlines;
use crate::sync::Arc;

/// Threads are looked at this often; a handler seen twice in the same poll is blocking.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Starts what keeps the host's lease, and the look-out for blocking handlers where that is possible.
pub(crate) fn start(host: &Arc<HostCore>, store: Option<(Deadlines, Incarnation)>) {
    if host.clock.is_simulated() {
        if let (Some((store, incarnation)), Some(started)) = (store, host.started()) {
            let host = host.clone();
            started.system.spawn(async move {
                if let Some(rescue) = lease::keep(&host, &store, incarnation).await {
                    rescue.finish(&host, &store).await;
                }
            });
        }
        return;
    }
    let (core, failing) = (host.clone(), host.clone());
    let keep = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no runtime for the lease; this host stops when its lease runs out");
                return;
            }
        };
        runtime.block_on(async {
            let keep = async {
                match &store {
                    Some((store, incarnation)) => lease::keep(&core, store, *incarnation).await,
                    None => std::future::pending().await,
                }
            };
            let rescue = tokio::select! { biased;
                () = core.wait_stopped() => None,
                rescue = keep => rescue,
                () = look_out(&core) => None,
            };
            if let (Some(rescue), Some((store, _))) = (rescue, &store) {
                rescue.finish(&core, store).await;
            }
        });
    };
    let run = move || {
        if let Err(panic) = guarded(keep) {
            failing.fail("the thread that keeps its lease", &panic);
        }
    };
    if let Err(error) = thread::Builder::new().name("host-keeper".into()).spawn(run) {
        tracing::error!(%error, "no thread for the lease; this host stops when its lease runs out");
    }
}

/// Reports handlers that block their thread. Never ends by itself.
async fn look_out(host: &HostCore) {
    let mut blocked = Blocked::default();
    loop {
        host.clock.sleep(LOOK_EVERY).await;
        for instance in blocked.look(|address| host.name_instance(address)) {
            tracing::error!(%instance, "a handler blocks its thread; move blocking or long work to spawn_blocking");
            metrics::counter!(crate::metrics::BLOCKED).increment(1);
        }
    }
}
