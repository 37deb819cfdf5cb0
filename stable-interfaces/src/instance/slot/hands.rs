//! The hands of a slot's machine: its host's clock, lease and shards, its committer, its tasks.
//!
//! They are used under the slot's lock, so what they find that runs the application's code, or is shown in the log, waits until that is
//! free.

use std::fmt;
use std::time::Duration;

use super::{Left, Slot};
use crate::commit::committer::{Commit, QueuedCommit, host_has_stopped};
use crate::commit::gate::{Gate, Ticket};
use crate::connection::Closed;
use crate::error::{RequestError, WithCauses};
use crate::instance::job::Job;
use crate::instance::life::{Life, Member, Membership};
use crate::instance::machine::{Hands, Windows};
use crate::instance::recorded::{HandedOver, Output, TaskFuture, TaskWork};
use crate::instance::{StableInterface, chain};
use crate::quiet::{self, guarded};
use crate::shards::wake::{Failed, Wake};
use crate::shared::{Health, HostCore};
use crate::store::{AlarmRow, BoxError, Epoch, Op};
use crate::sync::Arc;
use crate::tasks::TaskHandle;

/// The hands of one machine, for one step of it.
pub(super) struct SlotHands<'a, I: StableInterface> {
    slot: &'a Arc<Slot<I>>,
    /// Commits that the committer did not take.
    commits: Vec<QueuedCommit>,
    /// The fate of the alarm or message whose handler failed.
    failure: Option<Failure>,
}

impl<'a, I: StableInterface> SlotHands<'a, I> {
    pub(super) fn of(slot: &'a Arc<Slot<I>>) -> SlotHands<'a, I> {
        SlotHands { slot, commits: Vec::new(), failure: None }
    }

    fn host(&self) -> &HostCore {
        &self.slot.interface.host
    }

    /// Says, wakes and drops what has waited for the slot's lock to be free.
    pub(super) fn let_go(self, left: Left<I>) {
        let SlotHands { slot, commits, failure } = self;
        for queued in commits {
            queued.withdraw(&host_has_stopped());
        }
        let Left { state, late, refused, recorded, outputs, links, .. } = left;
        for mut output in outputs {
            if let Output::Release(release) = &mut output {
                release.wake();
            }
        }
        for (_, waiting) in links {
            waiting.wake();
        }
        if let Some(failure) = failure {
            failure.report(&**slot);
        }
        drop((state, recorded));
        for job in late {
            slot.refuse_late(job);
        }
        for (job, refusal) in refused {
            job.refuse(refusal);
        }
    }
}

impl<I: StableInterface> Hands<Box<dyn Job<I>>> for SlotHands<'_, I> {
    fn owned(&self) -> Option<Epoch> {
        self.slot.owned()
    }

    fn owns(&self, epoch: Epoch) -> bool {
        self.owned() == Some(epoch)
    }

    fn may_act(&self) -> bool {
        self.host().lease_holds()
    }

    fn now(&self) -> Duration {
        self.host().clock.elapsed()
    }

    fn parting(&self) -> Closed {
        Closed::parting(self.host(), self.slot.shard)
    }

    fn is_firing(&self, epoch: Epoch, alarm: &AlarmRow) -> bool {
        self.host().shards.is_firing(self.slot.shard, epoch, alarm)
    }

    fn draft(&self, epoch: Epoch, ops: Vec<Op>, windows: Windows) -> Option<Commit> {
        self.host().committer()?;
        Some(Commit { shard: self.slot.shard, epoch, ops: ops.into(), is_shown: windows == Windows::Follow })
    }

    fn commit(&mut self, commit: QueuedCommit) {
        match self.host().committer() {
            Some(committer) => self.commits.extend(committer.push(commit)),
            None => self.commits.push(commit),
        }
    }

    fn failed(&mut self, wake: &Wake, error: &str) -> Vec<Op> {
        let host = self.host();
        let error: Arc<str> = truncate(error).into();
        let (wait, ops) = match wake.failed(&error, host.clock.now(), &self.slot.interface.options.retry, &*host.random)
        {
            Failed::Retry(wait, op) => (Some(wait), vec![op]),
            Failed::Dead(ops) => (None, ops.into()),
        };
        self.failure = Some(Failure { wake: wake.clone(), error, wait });
        ops
    }

    fn stop(&self) -> Box<dyn Job<I>> {
        (self.slot.interface.stop)()
    }

    fn after_commit(&mut self, behind: Option<Ticket>, notify: &HandedOver<Box<dyn FnOnce() + Send>>) {
        let (slot, notify) = (self.slot.clone(), notify.clone());
        self.host().spawn_turn(async move {
            if opens(behind).await
                && let Some(notify) = take(&notify)
                && let Err(panic) = guarded(notify)
            {
                let instance = chain::Described(&*slot);
                tracing::error!(%instance, %panic, "what was to run after a commit panicked");
            }
        });
    }

    fn spawn(&mut self, behind: Option<Ticket>, task: &HandedOver<TaskWork>, life: Arc<Life>) -> Option<TaskHandle> {
        let (slot, task) = (self.slot.clone(), task.clone());
        let membership = Membership(Arc::new(Member::new(life)));
        self.host().spawn_instance_task(async move {
            // Built here: it is the application's code, and the slot's lock is free here.
            if opens(behind).await
                && let Some(task) = take(&task)
                && let Err(panic) = run_task(task, membership.0.clone()).await
            {
                tracing::error!(instance = %chain::Described(&*slot), %panic, "a task of an instance panicked");
            }
            let life = membership.0.life().clone();
            drop(membership);
            slot.task_ended(&life);
        })
    }

    fn when_settled(&mut self, gate: Arc<Gate>) {
        let slot = self.slot.clone();
        self.host().spawn_turn(async move {
            gate.wait_settled().await;
            slot.leave_if_empty();
        });
    }

    fn gone(&mut self) {
        self.slot.interface.table.remove(self.slot);
        if self.host().health() >= Health::Draining {
            self.host().instance_left.notify_one();
        }
        self.host().hand_on(self.slot.shard);
    }
}

/// The fate of an alarm or message whose handler failed, to be said when no lock is held.
struct Failure {
    wake: Wake,
    error: Arc<str>,
    /// The wait before it is tried again; `None` if it is a dead letter now.
    wait: Option<Duration>,
}

impl Failure {
    fn report<I: StableInterface>(&self, slot: &Slot<I>) {
        let Failure { wake, error, wait } = self;
        let (kind, id, attempt, instance) =
            (wake.kind(), wake.id(), wake.attempts().failed + 1, chain::Described(slot));
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

/// An error that nobody waits for, with its causes. A handler's own is used up by that, and leaves its text.
pub(super) fn explain<E>(error: &mut RequestError<E>) -> String
where
    E: fmt::Debug + fmt::Display + Into<BoxError> + 'static,
{
    if !matches!(error, RequestError::Handler(..)) {
        return WithCauses(error).to_string();
    }
    let own = std::mem::replace(error, RequestError::Closed);
    let text = quiet::text_of(|| own.report());
    *error = RequestError::Rejected(text.clone());
    text
}

/// The longest error text kept with an alarm.
const MAX_ERROR_BYTES: usize = 1024;

fn truncate(error: &str) -> String {
    // Not every store can hold NUL in a text.
    error[..error.floor_char_boundary(MAX_ERROR_BYTES)].replace('\0', "\u{fffd}")
}

/// Waits for the commits up to a ticket, also past the time at which callers are told that they are unknown; tells whether they became durable.
async fn opens(behind: Option<Ticket>) -> bool {
    match behind {
        Some(ticket) => ticket.known().await.is_ok(),
        None => true,
    }
}

/// The work that a task was handed over, if nobody has taken it yet.
fn take<T>(handed_over: &HandedOver<T>) -> Option<T> {
    let taken = handed_over.lock().take();
    taken.into_inner()
}

/// Builds a task of the application's and runs it to its end.
async fn run_task(task: impl FnOnce(Arc<Member>) -> TaskFuture, member: Arc<Member>) -> Result<(), String> {
    let task = guarded(|| task(member))?;
    quiet::run(task).await
}
