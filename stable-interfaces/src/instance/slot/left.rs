//! Things that a slot lets go, kept until its lock is free.
//!
//! States, replies, errors and wakers are the application's: none of them is dropped, woken or shown under a lock.

use std::time::Duration;

use crate::commit::committer::{Queued, host_has_stopped};
use crate::commit::gate::Gate;
use crate::connection::{AnyLink, Wakers};
use crate::instance::StableInterface;
use crate::instance::chain::{self, Link};
use crate::instance::job::{Job, Refusal, State};
use crate::instance::recorded::{Output, Recorded};
use crate::shards::wake::Wake;
use crate::sync::Arc;
use crate::tasks::TaskHandle;

/// The remains of an incarnation that ended: commits under way, and tasks that have been cancelled.
pub(crate) struct Ended {
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) tasks: Vec<TaskHandle>,
}

impl Ended {
    pub(crate) async fn wait(self) {
        for task in self.tasks {
            task.ended().await;
        }
        if let Some(gate) = self.gate {
            gate.wait_settled().await;
        }
    }
}

/// The values that a slot lets go: dropped, woken and told when its lock is free, because that runs the application's code.
pub(super) struct Left<I: StableInterface> {
    pub(super) state: State<I>,
    pub(super) refused: Vec<(Box<dyn Job<I>>, Refusal)>,
    /// The effects of a handler that do not happen.
    pub(super) recorded: Recorded,
    /// The outputs of a handler, with what is left of it.
    pub(super) outputs: Vec<Output>,
    /// Connections that the instance has let go, with those who wait on them.
    pub(super) links: Vec<(Arc<dyn AnyLink>, Wakers)>,
    /// Commits that the committer did not take.
    pub(super) commits: Vec<Queued>,
    /// The fate of the alarm or message whose handler failed.
    pub(super) failure: Option<Failure>,
}

impl<I: StableInterface> Default for Left<I> {
    fn default() -> Left<I> {
        Left {
            state: State::none(),
            refused: Vec::new(),
            recorded: Recorded::default(),
            outputs: Vec::new(),
            links: Vec::new(),
            commits: Vec::new(),
            failure: None,
        }
    }
}

impl<I: StableInterface> Left<I> {
    pub(super) fn clear(self, instance: &dyn Link) {
        let Left { state, refused, recorded, outputs, links, commits, failure } = self;
        for queued in commits {
            queued.withdraw(&host_has_stopped());
        }
        for mut output in outputs {
            if let Output::Release(release) = &mut output {
                release.wake();
            }
        }
        for (_, waiting) in links {
            waiting.wake();
        }
        if let Some(failure) = failure {
            failure.report::<I>(instance);
        }
        drop((state, recorded));
        for (job, refusal) in refused {
            job.refuse(refusal);
        }
    }
}

/// The fate of an alarm or message whose handler failed, to be said when no lock is held.
pub(super) struct Failure {
    pub(super) wake: Wake,
    pub(super) error: Arc<str>,
    /// The wait before it is tried again; `None` if it is a dead letter now.
    pub(super) wait: Option<Duration>,
}

impl Failure {
    fn report<I: StableInterface>(&self, instance: &dyn Link) {
        let Failure { wake, error, wait } = self;
        let (kind, id, attempt, instance) =
            (wake.kind(), wake.id(), wake.attempts().failed + 1, chain::Described(instance));
        match wait {
            Some(wait) => {
                tracing::warn!(%instance, kind, %id, attempt, %error, ?wait, "a handler failed; it will be tried again");
                metrics::counter!(crate::metrics::RETRIES, "interface" => I::NAME).increment(1);
            }
            None => {
                tracing::error!(%instance, kind, %id, attempt, %error, "given up after its last attempt; it is a dead letter now");
                metrics::counter!(crate::metrics::DEAD_LETTERS, "interface" => I::NAME).increment(1);
            }
        }
    }
}
