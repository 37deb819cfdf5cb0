//! The place of one instance: its state while no handler runs, and the messages that wait for it.
//!
//! A slot is *idle* (its state rests here, or there is none yet), *busy* (a turn has the state, or the end of an incarnation is
//! awaited) or *gone* (out of the table, never used again). Only who made it busy may run handlers, and hands that duty on
//! with [`Next`]. Nobody barges: a message takes an idle slot only, and a slot is idle only when nobody waits. Commits are
//! queued under this lock, so they enter the committer in the order in which turns end.
//!
//! An incarnation that is reset leaves its gate behind, and the slot stays busy until everything it had sent is settled;
//! nothing of the next incarnation runs before.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Weak;
use std::time::Duration;

use super::StableInterface;
use super::chain::{self, Deadline, Link};
use super::context::{Enlisted, HandedOver, Instance, Output, Recorded, TaskFuture};
use super::queue::{Queue, Waiter as _};
use super::table::Entry;
use super::task::{Life, Member, Membership};
use super::turn::{Answer, Ending, Job, NO_COMMIT, Refusal, State};
use crate::commit::committer::{Commit, Queued, host_has_stopped};
use crate::commit::effects;
use crate::commit::gate::{Gate, Ticket};
use crate::commit::in_doubt::InDoubt;
use crate::connection::{AnyLink, Closed, ConnectionId, Wakers};
use crate::directive::Needs;
use crate::error::{ContextError, RequestError, WithCauses};
use crate::interface::{InterfaceCore, stop_job};
use crate::quiet::{self, Quiet, guarded};
use crate::shards::delivery::Delivery;
use crate::shards::wake::{Failed, Wake};
use crate::shared::{Forget, Health, HostCore};
use crate::store::{BoxError, Epoch, ExternalTransaction, InstanceName, Op, ShardId};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, Notify, OwnedSemaphorePermit};
use crate::tasks::TaskHandle;

#[cfg(all(test, not(shuttle)))]
mod tests;

pub(crate) struct Slot<I: StableInterface> {
    pub(crate) id: Arc<str>,
    pub(crate) shard: ShardId,
    /// The table's time of its last use.
    used: AtomicU64,
    pub(crate) interface: Arc<InterfaceCore<I>>,
    /// Whether it is busy with a first poll, which is soon over. A hint: read without the lock by who waits for that.
    is_polled: AtomicBool,
    inner: Mutex<Inner<I>>,
}

struct Inner<I: StableInterface> {
    mode: Mode,
    /// The instance, while no turn has it.
    state: State<I>,
    /// The epoch of the shard when the instance was built, or its turn under way began.
    epoch: Epoch,
    /// What most instances do not need most of the time.
    extra: Option<Box<Extra<I>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Idle,
    Busy,
    Gone,
}

struct Extra<I: StableInterface> {
    /// Messages waiting for their turn.
    queue: Queue<Box<dyn Job<I>>>,
    /// Says whether one of them lets the instance leave memory because its host drains.
    is_draining: bool,
    /// The output gate of this incarnation, once it has committed anything.
    gate: Option<Arc<Gate>>,
    /// Commits that may not be durable yet, oldest first: what reads must see beside the store.
    unsettled: VecDeque<Unsettled>,
    /// Alarms that handlers left unacknowledged; they fire again when this incarnation ends.
    held: Vec<Delivery>,
    /// Known to what belongs to this incarnation, once there is anything.
    life: Option<Arc<Life>>,
    tasks: Vec<TaskHandle>,
    connections: BTreeMap<ConnectionId, (Arc<dyn AnyLink>, OwnedSemaphorePermit)>,
    /// The last enlistment that the turn under way has begun, with the number of its ticket.
    in_doubt: Option<(Arc<InDoubt>, u64)>,
    /// The first commit that the turn under way has made before its end, or [`NO_COMMIT`].
    interim: u64,
    /// Set when the incarnation of the turn under way may not go on: it ends with that turn.
    is_over: bool,
    /// Set while a task of the host waits on a turn: when it will look at the queue's deadlines next, and how to make it sooner.
    watch: Option<(Duration, Arc<Notify>)>,
}

/// A commit that may not be durable yet.
struct Unsettled {
    ticket: Ticket,
    /// Kept by the committer until it is settled.
    commit: Weak<Commit>,
    /// Kept here as well until the turn that made it has ended. No longer: an idle instance is to hold no memory for it.
    of_turn: Option<Arc<Commit>>,
}

impl Unsettled {
    fn commit(&self) -> Option<Arc<Commit>> {
        self.of_turn.clone().or_else(|| self.commit.upgrade())
    }
}

impl<I: StableInterface> Default for Extra<I> {
    fn default() -> Extra<I> {
        Extra {
            queue: Queue::default(),
            is_draining: false,
            gate: None,
            unsettled: VecDeque::new(),
            held: Vec::new(),
            life: None,
            tasks: Vec::new(),
            connections: BTreeMap::new(),
            in_doubt: None,
            is_over: false,
            interim: NO_COMMIT,
            watch: None,
        }
    }
}

impl<I: StableInterface> Extra<I> {
    fn pop_queue(&mut self) -> Option<Box<dyn Job<I>>> {
        let job = self.queue.pop()?;
        self.is_draining &= !job.is_drain();
        Some(job)
    }

    /// Ends what belongs to the incarnation beside its handler: held alarms, tasks, connections. Tasks are still to be waited for.
    fn end_life(&mut self, left: &mut Left<I>, reason: &Closed) {
        self.held.clear();
        if let Some(life) = self.life.take() {
            life.end();
        }
        for task in &self.tasks {
            task.cancel();
        }
        for (link, _) in std::mem::take(&mut self.connections).into_values() {
            // At once: a message of its client may not reach the next incarnation.
            let waiting = link.close(reason.clone());
            left.links.push((link, waiting));
        }
    }

    /// Whether the instance may not leave memory by itself.
    fn is_needed(&self) -> bool {
        !self.connections.is_empty() || self.life.as_ref().is_some_and(|life| life.is_busy())
    }

    /// Whether nothing in here is in use.
    fn is_empty(&self) -> bool {
        // Whoever knows an incarnation must find out that it has ended.
        let life_is_known = self.life.as_ref().is_some_and(|life| Arc::strong_count(life) > 1);
        let gate_is_needed = self.gate.as_ref().is_some_and(|gate| !gate.is_settled() || gate.has_failed());
        !gate_is_needed
            && !life_is_known
            && self.queue.is_empty()
            && self.held.is_empty()
            && self.tasks.is_empty()
            && self.connections.is_empty()
    }
}

/// What whoever keeps a slot busy does next.
pub(crate) enum Next<I: StableInterface> {
    /// Nothing: the slot is idle.
    Idle,
    /// Runs this message.
    Run(Box<dyn Job<I>>, State<I>, Epoch),
    /// Waits for what an ended incarnation has left, then calls [`Slot::settled`].
    Settle(Ended),
}

/// What an incarnation has left when it ended: commits under way, and tasks that have been cancelled.
pub(crate) struct Ended {
    gate: Option<Arc<Gate>>,
    tasks: Vec<TaskHandle>,
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

/// What a slot lets go: dropped, woken and told when its lock is free, because that runs the application's code.
struct Left<I: StableInterface> {
    state: State<I>,
    refused: Vec<(Box<dyn Job<I>>, Refusal)>,
    /// What a handler had recorded that does not happen.
    recorded: Recorded,
    /// What a handler has let out, with what is left of it.
    outputs: Vec<Output>,
    /// Connections that the instance has let go, with those who wait on them.
    links: Vec<(Arc<dyn AnyLink>, Wakers)>,
    /// Commits that the committer did not take.
    commits: Vec<Queued>,
    /// What became of the alarm or message whose handler failed.
    failure: Option<Failure>,
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
    fn clear(self, instance: &dyn Link) {
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

/// What became of an alarm or message whose handler failed, to be said when no lock is held.
struct Failure {
    wake: Wake,
    error: Arc<str>,
    /// How long it waits before it is tried again; `None` if it is a dead letter now.
    wait: Option<Duration>,
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

/// What became of an attempt to take a slot.
pub(crate) enum Taken<I: StableInterface> {
    /// It is the caller's now: run a turn with this state.
    Free(State<I>),
    /// Somebody has it: queue the message.
    Busy,
    /// It was idle, but its last incarnation has to be waited for: queue the message, then do this.
    Unsettled(Next<I>),
    /// It is out of the table: look the ID up again.
    Gone,
}

/// How often a message looks whether an instance has become free before it queues.
const SPINS: u32 = if cfg!(shuttle) { 2 } else { 40 };

impl<I: StableInterface> Slot<I> {
    pub(crate) fn new(id: &str, shard: ShardId, interface: Arc<InterfaceCore<I>>) -> Slot<I> {
        let inner = Inner { mode: Mode::Idle, state: State::none(), epoch: Epoch(0), extra: None };
        Slot {
            id: id.into(),
            shard,
            used: AtomicU64::new(0),
            interface,
            is_polled: AtomicBool::new(false),
            inner: Mutex::new(inner),
        }
    }

    /// Tries to take the slot for a turn under `epoch`.
    #[inline]
    pub(crate) fn take(&self, epoch: Epoch) -> Taken<I> {
        let mut inner = self.inner.lock();
        match inner.mode {
            Mode::Gone => return Taken::Gone,
            Mode::Busy => return Taken::Busy,
            Mode::Idle => inner.mode = Mode::Busy,
        }
        let is_stale = inner.epoch != epoch && inner.state.is_some();
        let has_failed =
            inner.extra.as_ref().and_then(|extra| extra.gate.as_ref()).is_some_and(|gate| gate.has_failed());
        if is_stale || has_failed {
            let mut left = Left { state: inner.state.take(), ..Left::default() };
            let next = Self::end(&mut inner, &mut left, &Closed::Reset);
            inner.epoch = epoch;
            drop(inner);
            left.clear(self);
            return match next {
                Some(next) => Taken::Unsettled(next),
                None => Taken::Free(State::none()),
            };
        }
        inner.epoch = epoch;
        self.is_polled.store(true, Ordering::Relaxed);
        Taken::Free(inner.state.take())
    }

    /// Waits a moment, shorter than it takes to queue a message and wake its sender, if the slot is about to become free.
    #[inline]
    pub(crate) fn spin(&self) {
        for _ in 0..SPINS {
            if !self.is_polled.load(Ordering::Relaxed) {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// What the slot is busy with will not be over soon.
    pub(crate) fn stays_busy(&self) {
        self.is_polled.store(false, Ordering::Relaxed);
    }

    /// Lets a message wait for its turn. Its turn comes without the sender's doing.
    pub(crate) fn enqueue(self: &Arc<Self>, job: Box<dyn Job<I>>) -> Result<(), Enqueue<I>> {
        let mut inner = self.inner.lock();
        match inner.mode {
            Mode::Gone => return Err(Enqueue::Gone(job)),
            Mode::Idle => return Err(Enqueue::Free(job)),
            Mode::Busy => {}
        }
        let extra = inner.extra.get_or_insert_default();
        let waits_until = job.waits_until();
        let is_drain = job.is_drain();
        if is_drain && extra.is_draining {
            return Ok(());
        }
        if let Err(job) = extra.queue.push(job, self.interface.options.max_waiting) {
            return Err(Enqueue::Full(job));
        }
        extra.is_draining |= is_drain;
        if let Some((next_look, sooner)) = &extra.watch
            && waits_until < *next_look
        {
            sooner.notify_one();
        }
        Ok(())
    }

    /// Ends a turn: commits what it recorded, puts the state back, and says what comes next.
    #[inline]
    pub(crate) fn finish<R>(
        self: &Arc<Self>,
        epoch: Epoch,
        mut ending: Ending<I, R>,
        woken_by: Option<Delivery>,
    ) -> (Answer<R, I::Error>, Next<I>) {
        // The application's code, so before the lock is taken.
        let failure = match &mut ending {
            // What ends because the shard is not this host's any more, or may not be, has not been tried.
            Ending::Returned { result: Err(error), .. }
                if woken_by.is_some() && !matches!(**error, RequestError::Fenced | RequestError::LeaseLost) =>
            {
                Some(explain(error))
            }
            Ending::Returned { .. } => None,
            Ending::Panicked(text) => {
                tracing::error!(instance = %chain::Described(&**self), panic = %text, "a handler panicked; its instance is reset");
                Some(format!("panicked: {text}"))
            }
            Ending::TimedOut(after) => {
                tracing::error!(instance = %chain::Described(&**self), ?after, "a handler ran out of time; its instance is reset");
                Some(format!("timed out after {after:?}"))
            }
            Ending::StopCut(after) => {
                tracing::error!(instance = %chain::Described(&**self), ?after, "an instance took too long to stop; its `on_stop` was cut off");
                None
            }
        };
        let mut inner = self.inner.lock();
        match ending {
            // Most turns record nothing, and nobody waits for their end.
            Ending::Returned { state, recorded, result }
                if state.is_some()
                    && recorded.is_empty()
                    && woken_by.is_none()
                    && inner.extra.is_none()
                    && self.interface.host.shards.epoch(self.shard) == Some(epoch) =>
            {
                inner.state = state;
                inner.epoch = epoch;
                inner.mode = Mode::Idle;
                self.is_polled.store(false, Ordering::Relaxed);
                (Answer { result, behind: None, interim: NO_COMMIT }, Next::Idle)
            }
            ending => self.finish_turn(inner, epoch, ending, woken_by, failure),
        }
    }

    fn finish_turn<R>(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, Inner<I>>,
        epoch: Epoch,
        ending: Ending<I, R>,
        woken_by: Option<Delivery>,
        failure: Option<String>,
    ) -> (Answer<R, I::Error>, Next<I>) {
        let mut left = Left::default();
        let mut failed_start = None;
        // A reply that is not given, until the lock is free.
        let mut replaced = Quiet::none();
        let (in_doubt, mut interim) = match &mut inner.extra {
            Some(extra) => (extra.in_doubt.take(), std::mem::replace(&mut extra.interim, NO_COMMIT)),
            None => (None, NO_COMMIT),
        };
        let (woken_by, may_have_committed) = match &in_doubt {
            Some((in_doubt, _)) => in_doubt.end_turn(woken_by),
            None => (woken_by, false),
        };
        if let Some((_, number)) = in_doubt.filter(|_| may_have_committed) {
            interim = interim.min(number);
        }
        let (result, ends) = match ending {
            Ending::Returned { state, mut recorded, result } => {
                inner.state = state;
                inner.epoch = epoch;
                let is_cut = recorded.enlisted() == Enlisted::Cut;
                let result = match result {
                    Ok(reply) if is_cut => {
                        replaced = Quiet::new(reply);
                        Err(RequestError::from(ContextError::Unknown).into())
                    }
                    result => result,
                };
                failed_start = recorded.take_failed_start();
                let ends = match &result {
                    Ok(_) => {
                        left.outputs = self.commit_turn(&mut inner, &mut left, epoch, &mut recorded, woken_by);
                        recorded.take_end()
                    }
                    Err(_) => {
                        if let (Some(delivery), Some(error)) = (woken_by, &failure) {
                            self.push_failure(&mut inner, &mut left, epoch, delivery, error);
                        }
                        let ends = recorded.take_end().or((is_cut || failed_start.is_some()).then_some(Closed::Reset));
                        if ends.is_none() {
                            Self::take_back(&inner, &mut left, &mut recorded);
                        }
                        ends
                    }
                };
                if recorded.wants_passivation() && ends.is_none() {
                    let is_queued = inner.extra.get_or_insert_default().queue.push(stop_job(), 0);
                    debug_assert!(is_queued.is_ok(), "it needs none of the queue's places");
                }
                left.recorded = recorded;
                (result, ends)
            }
            Ending::Panicked(text) => {
                if let (Some(delivery), Some(error)) = (woken_by, &failure) {
                    self.push_failure(&mut inner, &mut left, epoch, delivery, error);
                }
                (Err(RequestError::Panicked(text).into()), Some(Closed::Reset))
            }
            Ending::StopCut(after) => {
                let host = &self.interface.host;
                let is_draining = host.health() > Health::Running;
                host.stops_cut.fetch_add(usize::from(is_draining), Ordering::AcqRel);
                let waited_for = chain::Described(&**self).to_string();
                let reason = if is_draining { Closed::parting(host.health()) } else { Closed::Stopped };
                (Err(RequestError::TimedOut { after, waited_for }.into()), Some(reason))
            }
            Ending::TimedOut(after) => {
                if let (Some(delivery), Some(error)) = (woken_by, &failure) {
                    self.push_failure(&mut inner, &mut left, epoch, delivery, error);
                }
                let waited_for = chain::Described(&**self).to_string();
                (Err(RequestError::TimedOut { after, waited_for }.into()), Some(Closed::Reset))
            }
        };
        let gate = inner.extra.as_ref().and_then(|extra| extra.gate.as_ref());
        let has_failed = gate.is_some_and(|gate| gate.has_failed());
        let behind = gate.and_then(Gate::pending);
        self.release(&mut inner, &mut left, behind.as_ref());
        if let Some(error) = failed_start
            && let Some(extra) = &mut inner.extra
        {
            extra.is_draining = false;
            let refusal = match result.as_ref().err().map(|error| &**error) {
                Some(RequestError::Store(cause)) => Refusal::Store(cause.clone()),
                _ => Refusal::NotStarted(error),
            };
            left.refused.extend(extra.queue.take_all().into_iter().map(|job| (job, refusal.clone())));
        }
        // Whatever ended it, a part of it is durable or may be.
        let result = match result {
            Err(error) if interim != NO_COMMIT => Err(Box::new(error.in_doubt())),
            result => result,
        };
        let answer = Answer { result, behind, interim };
        let is_over = inner.extra.as_ref().is_some_and(|extra| extra.is_over);
        let ends = ends
            .or(has_failed.then_some(Closed::Reset))
            .or_else(|| is_over.then(|| Closed::parting(self.interface.host.health())));
        let is_reset = ends == Some(Closed::Reset);
        for commit in inner.extra.iter_mut().flat_map(|extra| &mut extra.unsettled) {
            commit.of_turn = None;
        }
        let next = match ends {
            Some(reason) => {
                left.state = inner.state.take();
                match Self::end(&mut inner, &mut left, &reason) {
                    Some(next) => next,
                    None => self.next(&mut inner, &mut left),
                }
            }
            None => self.next(&mut inner, &mut left),
        };
        drop(inner);
        if is_reset {
            metrics::counter!(crate::metrics::RESETS, "interface" => I::NAME).increment(1);
        }
        drop(replaced);
        left.clear(&**self);
        (answer, next)
    }

    /// Queues the effects of a handler that succeeded, and returns its outputs.
    fn commit_turn(
        &self,
        inner: &mut Inner<I>,
        left: &mut Left<I>,
        epoch: Epoch,
        recorded: &mut Recorded,
        woken_by: Option<Delivery>,
    ) -> Vec<Output> {
        let ops = recorded.take_ops();
        let touches_alarms = ops.iter().any(|op| matches!(op, Op::PutAlarm(_) | Op::RemoveAlarm { .. }));
        match woken_by {
            Some(delivery) if recorded.holds_alarm() => {
                // The mark that it was started, if there is one, goes with the commit that holds it.
                let ops = match delivery.wake() {
                    Wake::Alarm(alarm) if delivery.must_mark && !self.is_replaced(inner, epoch, &delivery) => {
                        let attempts = alarm.attempts.unmarked();
                        let unmarked = Op::PutAlarm(crate::store::AlarmRow { attempts, ..(**alarm).clone() });
                        self.push(inner, left, epoch, vec![unmarked], None, Shown::Hidden);
                        ops
                    }
                    _ => ops,
                };
                if !ops.is_empty() {
                    self.push(inner, left, epoch, ops, None, Shown::ToWindow);
                }
                inner.extra.get_or_insert_default().held.push(delivery.hold());
            }
            None if ops.is_empty() => {}
            woken_by => drop(self.push(inner, left, epoch, ops, woken_by, Shown::ToWindow)),
        }
        if touches_alarms && let Some(extra) = &mut inner.extra {
            let Extra { held, unsettled, .. } = &mut **extra;
            let unsettled: Vec<_> = unsettled.iter().filter_map(Unsettled::commit).collect();
            held.retain(|delivery| {
                let ops = unsettled.iter().flat_map(|commit| &commit.ops);
                // Set or cancelled meanwhile: nothing is held any more.
                effects::find_alarm(ops, delivery.wake().id()).is_none_or(|found| delivery.is_setting(found))
            });
        }
        recorded.take_outputs()
    }

    /// Lets the outputs of a handler go, behind the commits they depend on.
    ///
    /// They stay in `left`, for nothing of the application is called, dropped or woken here.
    fn release(self: &Arc<Self>, inner: &mut Inner<I>, left: &mut Left<I>, behind: Option<&Ticket>) {
        let Left { outputs, links, .. } = left;
        if outputs.is_empty() {
            return;
        }
        let host = &self.interface.host;
        let extra = inner.extra.get_or_insert_default();
        for output in outputs {
            match output {
                Output::Release(release) => release.release(behind.cloned()),
                Output::Connect(connection) => {
                    // The handler that accepted it may have closed it.
                    if let Some((link, permit)) = connection.take_if(|(link, _)| link.is_attached()) {
                        extra.connections.insert(link.id(), (link, permit));
                    }
                }
                Output::Disconnect(id) => {
                    links.extend(extra.connections.remove(id).map(|(link, _)| (link, Wakers::default())));
                }
                Output::AfterCommit(notify) => {
                    let (behind, slot, notify) = (behind.cloned(), self.clone(), notify.clone());
                    host.spawn_turn(async move {
                        if opens(behind).await
                            && let Some(notify) = take(&notify)
                            && let Err(panic) = guarded(notify)
                        {
                            let instance = chain::Described(&*slot);
                            tracing::error!(%instance, %panic, "what was to run after a commit panicked");
                        }
                    });
                }
                Output::Spawn(task) => {
                    let life = extra.life.get_or_insert_default().clone();
                    let (behind, slot, task) = (behind.cloned(), self.clone(), task.clone());
                    let membership = Membership(Arc::new(Member::new(life)));
                    let handle = host.spawn_instance_task(async move {
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
                    });
                    extra.tasks.retain(|task| !task.has_ended());
                    extra.tasks.extend(handle);
                }
            }
        }
    }

    /// Undoes what a handler that failed, and whose instance stays, has let out at once.
    fn take_back(inner: &Inner<I>, left: &mut Left<I>, recorded: &mut Recorded) {
        for output in recorded.outputs() {
            if let Output::Disconnect(id) = output
                && let Some((link, _)) = inner.extra.as_ref().and_then(|extra| extra.connections.get(id))
            {
                left.links.push((link.clone(), link.stay_open()));
            }
        }
    }

    /// The client of a connection has closed it; whether the instance did not know yet.
    pub(crate) fn client_left(&self, id: ConnectionId) -> bool {
        let mut inner = self.inner.lock();
        let left = inner.extra.as_mut().and_then(|extra| extra.connections.remove(&id));
        drop(inner);
        left.is_some()
    }

    /// Whether a task of it is not parked.
    pub(crate) fn has_busy_tasks(&self) -> bool {
        let inner = self.inner.lock();
        inner.extra.as_ref().and_then(|extra| extra.life.as_ref()).is_some_and(|life| life.is_busy())
    }

    /// A task has ended by itself: nothing of it is kept.
    fn task_ended(&self, life: &Arc<Life>) {
        self.interface.host.task_rested.notify_one();
        if let Some(extra) = &mut self.inner.lock().extra
            && extra.life.as_ref().is_some_and(|current| Arc::ptr_eq(current, life))
        {
            extra.tasks.retain(|task| !task.is_current());
        }
    }

    /// Ends the incarnation: cancels its tasks, closes its connections, lets its held alarms go. What it still has under way is
    /// returned to be waited for.
    fn end(inner: &mut Inner<I>, left: &mut Left<I>, reason: &Closed) -> Option<Next<I>> {
        let extra = inner.extra.as_mut()?;
        extra.is_over = false;
        extra.end_life(left, reason);
        let tasks = std::mem::take(&mut extra.tasks);
        let gate = extra.gate.clone().filter(|gate| !gate.is_settled());
        if gate.is_some() || tasks.iter().any(|task| !task.has_ended()) {
            return Some(Next::Settle(Ended { gate, tasks }));
        }
        extra.gate = None;
        extra.unsettled.clear();
        None
    }

    /// What the incarnation that ended had left is done.
    pub(crate) fn settled(self: &Arc<Self>) -> Next<I> {
        self.interface.host.task_rested.notify_one();
        let mut left = Left::default();
        let mut inner = self.inner.lock();
        let next = match Self::end(&mut inner, &mut left, &Closed::Reset) {
            Some(next) => next,
            None => self.next(&mut inner, &mut left),
        };
        drop(inner);
        left.clear(&**self);
        next
    }

    /// The next message may not begin, for the lease is over: it is refused, as all that wait behind it.
    pub(crate) fn refuse_next(self: &Arc<Self>, job: Box<dyn Job<I>>, state: State<I>) -> Next<I> {
        let mut left = Left { refused: vec![(job, Refusal::LeaseLost)], ..Left::default() };
        let mut inner = self.inner.lock();
        inner.state = state;
        let next = self.next(&mut inner, &mut left);
        drop(inner);
        left.clear(&**self);
        next
    }

    /// The next message, or idleness. A slot with nothing in memory leaves the table.
    fn next(self: &Arc<Self>, inner: &mut Inner<I>, left: &mut Left<I>) -> Next<I> {
        let host = &self.interface.host;
        let epoch = host.shards.epoch(self.shard);
        if epoch != Some(inner.epoch) && inner.state.is_some() {
            left.state = inner.state.take();
            if let Some(next) = Self::end(inner, left, &Closed::parting(host.health())) {
                return next;
            }
        }
        if let Some(extra) = &mut inner.extra {
            match epoch {
                Some(_) if extra.queue.is_empty() => {}
                Some(epoch) if host.lease_holds() => {
                    let late = extra.queue.take_late(|| host.clock.elapsed());
                    left.refused.extend(late.into_iter().map(|job| self.is_late(job)));
                    if let Some(job) = extra.pop_queue() {
                        inner.epoch = epoch;
                        return Next::Run(job, inner.state.take(), epoch);
                    }
                }
                epoch => {
                    let refusal = if epoch.is_some() { Refusal::LeaseLost } else { Refusal::Fenced };
                    left.refused.extend(extra.queue.take_all().into_iter().map(|job| (job, refusal.clone())));
                    extra.is_draining = false;
                }
            }
            if extra.is_empty() {
                inner.extra = None;
            }
        }
        inner.mode = Mode::Idle;
        self.is_polled.store(false, Ordering::Relaxed);
        if inner.state.is_none() {
            match inner.extra.as_ref().and_then(|extra| extra.gate.clone()) {
                Some(gate) if !gate.is_settled() => {
                    let slot = self.clone();
                    host.spawn_turn(async move {
                        gate.wait_settled().await;
                        slot.leave_if_empty();
                    });
                }
                _ => self.leave(inner),
            }
        }
        Next::Idle
    }

    /// Takes an idle instance that nothing keeps in memory, to be stopped. `even_held` if alarms held by it do not keep it.
    pub(crate) fn take_idle(&self, epoch: Epoch, even_held: bool) -> Option<Next<I>> {
        let mut inner = self.inner.lock();
        let is_needed =
            inner.extra.as_ref().is_some_and(|extra| extra.is_needed() || (!even_held && !extra.held.is_empty()));
        if inner.mode != Mode::Idle || inner.state.is_none() || is_needed {
            return None;
        }
        inner.mode = Mode::Busy;
        Some(Next::Run(stop_job(), inner.state.take(), epoch))
    }

    /// Drops an instance that this host may not run any more. One that is busy goes with its turn, what belongs to it now.
    pub(crate) fn forget(self: &Arc<Self>, which: Forget) -> Option<Next<I>> {
        let mut inner = self.inner.lock();
        let is_lost = self.interface.host.shards.epoch(self.shard) != Some(inner.epoch);
        if inner.mode == Mode::Gone || !(is_lost || which == Forget::All) {
            return None;
        }
        if inner.mode == Mode::Busy {
            let mut left = Left::default();
            let extra = inner.extra.get_or_insert_default();
            extra.is_over = true;
            extra.end_life(&mut left, &Closed::parting(self.interface.host.health()));
            drop(inner);
            left.clear(&**self);
            return None;
        }
        inner.mode = Mode::Busy;
        let mut left = Left { state: inner.state.take(), ..Left::default() };
        let next = match Self::end(&mut inner, &mut left, &Closed::parting(self.interface.host.health())) {
            Some(next) => next,
            None => self.next(&mut inner, &mut left),
        };
        drop(inner);
        left.clear(&**self);
        Some(next)
    }

    /// Takes the slot out of the table if nothing of it is in memory.
    fn leave_if_empty(&self) {
        let mut inner = self.inner.lock();
        let is_settled =
            inner.extra.as_ref().and_then(|extra| extra.gate.as_ref()).is_none_or(|gate| gate.is_settled());
        if inner.mode == Mode::Idle && inner.state.is_none() && is_settled {
            self.leave(&mut inner);
        }
    }

    fn leave(&self, inner: &mut Inner<I>) {
        inner.mode = Mode::Gone;
        inner.extra = None;
        self.interface.table.remove(self);
        let host = &self.interface.host;
        if host.health() >= Health::Draining {
            host.instance_left.notify_one();
        }
    }

    /// Says whether it is busy with a handler, or with the end of an incarnation.
    pub(crate) fn is_busy(&self) -> bool {
        self.inner.lock().mode == Mode::Busy
    }

    /// Whether the instance is in memory, or about to be.
    pub(crate) fn is_running(&self) -> bool {
        let inner = self.inner.lock();
        inner.state.is_some() || inner.mode == Mode::Busy
    }

    /// Drops what rests here, without ceremony: the host is going away.
    pub(crate) fn abandon(&self) {
        let mut inner = self.inner.lock();
        inner.mode = Mode::Gone;
        let mut left = Left { state: inner.state.take(), ..Left::default() };
        // Its connections are told; its tasks are the host's to end.
        let ended = Self::end(&mut inner, &mut left, &Closed::parting(self.interface.host.health()));
        let extra = inner.extra.take();
        drop(inner);
        drop(ended);
        let waiting = extra.into_iter().flat_map(|mut extra| extra.queue.take_all());
        left.refused.extend(waiting.map(|job| (job, Refusal::Stopped)));
        left.clear(self);
    }

    /// The moment `duration` from now, by the lease clock.
    pub(crate) fn moment_in(&self, duration: Duration) -> Duration {
        self.interface.host.clock.elapsed().saturating_add(duration)
    }

    /// The moment by which an `on_stop` that starts now must be done. Unlike a handler's it is known from the start: stopping is rare.
    pub(crate) fn stop_deadline(&self) -> Deadline {
        const LATEST: Duration = Duration::from_nanos(u64::MAX - 1);
        Deadline::at(self.moment_in(self.interface.options.stop_timeout).min(LATEST))
    }

    /// Refuses the queued messages whose time is over, and says when to look again. `sooner` is told if that changes.
    pub(crate) fn expire_queued(&self, now: Duration, sooner: &Arc<Notify>) -> Duration {
        let mut inner = self.inner.lock();
        let extra = inner.extra.get_or_insert_default();
        let late = extra.queue.take_late(|| now);
        let next_look = extra.queue.earliest();
        extra.watch = Some((next_look, sooner.clone()));
        drop(inner);
        for job in late {
            let (job, refusal) = self.is_late(job);
            job.refuse(refusal);
        }
        next_look
    }

    /// A message whose time is over before its turn has come, and what it is told.
    fn is_late(&self, job: Box<dyn Job<I>>) -> (Box<dyn Job<I>>, Refusal) {
        let refusal = Refusal::TimedOut { after: job.given(), waited_for: chain::Described(self).to_string() };
        (job, refusal)
    }

    /// Nobody looks at the queue's deadlines any more.
    pub(crate) fn stop_watching(&self) {
        if let Some(extra) = &mut self.inner.lock().extra {
            extra.watch = None;
        }
    }

    /// Queues a commit of this incarnation and returns its ticket.
    fn push(
        &self,
        inner: &mut Inner<I>,
        left: &mut Left<I>,
        epoch: Epoch,
        ops: Vec<Op>,
        woken_by: Option<Delivery>,
        shown: Shown,
    ) -> Option<Ticket> {
        let committer = self.interface.host.committer()?;
        let (ticket, commit) = self.enlist(inner, epoch, ops, shown);
        left.commits.extend(committer.push(Queued::new(commit, ticket.clone(), woken_by)));
        Some(ticket)
    }

    /// Gives a commit of this incarnation its place at the gate, and shows it to reads.
    fn enlist(&self, inner: &mut Inner<I>, epoch: Epoch, ops: Vec<Op>, shown: Shown) -> (Ticket, Arc<Commit>) {
        let extra = inner.extra.get_or_insert_default();
        let gate = extra.gate.get_or_insert_default().clone();
        let settled = gate.settled();
        while extra.unsettled.front().is_some_and(|commit| commit.ticket.is_within(settled)) {
            extra.unsettled.pop_front();
        }
        let ticket = gate.take_ticket();
        let commit = Arc::new(Commit { shard: self.shard, epoch, ops, is_shown: shown == Shown::ToWindow });
        extra.unsettled.push_back(Unsettled {
            ticket: ticket.clone(),
            commit: Arc::downgrade(&commit),
            of_turn: Some(commit.clone()),
        });
        (ticket, commit)
    }

    /// Whether the handler has committed another setting of the alarm that woke it, or cancelled it.
    fn is_replaced(&self, inner: &Inner<I>, epoch: Epoch, delivery: &Delivery) -> bool {
        let Wake::Alarm(alarm) = delivery.wake() else { return false };
        let unsettled = inner.extra.iter().flat_map(|extra| &extra.unsettled);
        let unsettled: Vec<_> = unsettled.filter_map(Unsettled::commit).collect();
        let ops = unsettled.iter().flat_map(|commit| &commit.ops);
        effects::find_alarm(ops, &alarm.id).is_some_and(|found| !delivery.is_setting(found))
            || !self.interface.host.shards.is_firing(self.shard, epoch, alarm)
    }

    /// Queues what becomes of an alarm or message whose handler failed: another attempt later, or a dead letter.
    ///
    /// It goes through the gate of the incarnation that failed, so the next one begins after it. If that gate has failed
    /// already nothing can follow it, and the alarm fires again as it is.
    fn push_failure(&self, inner: &mut Inner<I>, left: &mut Left<I>, epoch: Epoch, delivery: Delivery, error: &str) {
        let host = &self.interface.host;
        let wake = delivery.wake();
        let ops = if self.is_replaced(inner, epoch, &delivery) {
            Vec::new()
        } else {
            let error: Arc<str> = truncate(error).into();
            let failed = wake.failed(&error, host.clock.now(), &self.interface.options.retry, &*host.random);
            let (wait, ops) = match failed {
                Failed::Retry(wait, op) => (Some(wait), vec![op]),
                Failed::Dead(ops) => (None, ops.into()),
            };
            left.failure = Some(Failure { wake: wake.clone(), error, wait });
            ops
        };
        self.push(inner, left, epoch, ops, Some(delivery), Shown::ToWindow);
    }
}

/// Whether the shard's windows are to follow a commit. A mark changes nothing about what is due when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    ToWindow,
    Hidden,
}

/// Waits for the commits up to a ticket; whether they became durable.
async fn opens(behind: Option<Ticket>) -> bool {
    match behind {
        Some(ticket) => ticket.wait().await.is_ok(),
        None => true,
    }
}

/// An error that nobody waits for, with its causes. A handler's own is used up by that, and leaves its text.
fn explain<E>(error: &mut RequestError<E>) -> String
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

/// What a task was handed over, if nobody has taken it yet.
fn take<T>(handed_over: &HandedOver<T>) -> Option<T> {
    let taken = handed_over.lock().take();
    taken.into_inner()
}

/// Builds a task of the application's and runs it to its end.
async fn run_task(task: impl FnOnce(Arc<Member>) -> TaskFuture, member: Arc<Member>) -> Result<(), String> {
    let task = guarded(|| task(member))?;
    quiet::run(task).await
}

/// The longest error text kept with an alarm.
const MAX_ERROR_BYTES: usize = 1024;

fn truncate(error: &str) -> String {
    // Not every store can hold NUL in a text.
    error[..error.floor_char_boundary(MAX_ERROR_BYTES)].replace('\0', "\u{fffd}")
}

/// Why a message could not be queued.
pub(crate) enum Enqueue<I: StableInterface> {
    /// The slot left the table meanwhile.
    Gone(Box<dyn Job<I>>),
    /// The slot became idle meanwhile.
    Free(Box<dyn Job<I>>),
    /// Too many wait already.
    Full(Box<dyn Job<I>>),
}

impl<I: StableInterface> fmt::Debug for Slot<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("id", &self.id).field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl<I: StableInterface> Entry for Slot<I> {
    fn id(&self) -> &str {
        &self.id
    }

    fn used(&self) -> &AtomicU64 {
        &self.used
    }
}

impl<I: StableInterface> Link for Slot<I> {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", I::NAME, self.id)
    }

    fn handler_timeout(&self) -> Duration {
        self.interface.options.handler_timeout
    }
}

impl<I: StableInterface> Instance for Slot<I> {
    fn id(&self) -> &Arc<str> {
        &self.id
    }

    fn shard(&self) -> ShardId {
        self.shard
    }

    fn name(&self) -> InstanceName {
        InstanceName { interface: self.interface.name.clone(), instance: self.id.clone() }
    }

    fn host(&self) -> &Arc<HostCore> {
        &self.interface.host
    }

    fn require(&self, needs: Needs) -> Result<(), ContextError> {
        self.interface.require(needs)
    }

    fn unsettled(&self) -> Vec<Arc<Commit>> {
        let inner = self.inner.lock();
        let Some(extra) = &inner.extra else { return Vec::new() };
        let settled = extra.gate.as_ref().map_or(0, |gate| gate.settled());
        extra
            .unsettled
            .iter()
            .filter(|commit| !commit.ticket.is_within(settled))
            .filter_map(Unsettled::commit)
            .collect()
    }

    fn commit(self: Arc<Self>, epoch: Epoch, ops: Vec<Op>, outputs: Vec<Output>) -> Result<Ticket, ContextError> {
        let mut left = Left { outputs, ..Left::default() };
        let mut inner = self.inner.lock();
        let ticket = self.push(&mut inner, &mut left, epoch, ops, None, Shown::ToWindow);
        if let Some(ticket) = &ticket {
            let extra = inner.extra.get_or_insert_default();
            extra.interim = extra.interim.min(ticket.number());
            self.release(&mut inner, &mut left, Some(ticket));
        }
        drop(inner);
        left.clear(&*self);
        ticket.ok_or(ContextError::NoStore)
    }

    fn commit_mark(&self, epoch: Epoch, mark: Op) -> Result<Ticket, ContextError> {
        let mut left = Left::default();
        let mut inner = self.inner.lock();
        let ticket = self.push(&mut inner, &mut left, epoch, vec![mark], None, Shown::Hidden);
        drop(inner);
        left.clear(self);
        ticket.ok_or(ContextError::NoStore)
    }

    fn pending(&self) -> Option<Ticket> {
        self.inner.lock().extra.as_ref()?.gate.as_ref()?.pending()
    }

    fn commit_externally(
        self: Arc<Self>,
        epoch: Epoch,
        ops: Vec<Op>,
        completes: bool,
        transaction: Box<dyn ExternalTransaction>,
    ) -> Result<(Arc<Commit>, Ticket, Arc<InDoubt>), ContextError> {
        let host = &self.interface.host;
        let committer = host.committer().ok_or(ContextError::NoStore)?.clone();
        let in_doubt = Arc::new(InDoubt::new(completes));
        let mut inner = self.inner.lock();
        let (ticket, commit) = self.enlist(&mut inner, epoch, ops, Shown::ToWindow);
        let extra = inner.extra.get_or_insert_default();
        let before = extra.in_doubt.replace((in_doubt.clone(), ticket.number()));
        if let Some((_, number)) = before.filter(|(before, _)| before.has_committed()) {
            extra.interim = extra.interim.min(number);
        }
        drop(inner);
        let queued = Queued::new(commit.clone(), ticket.clone(), None);
        let outcome = in_doubt.clone();
        host.spawn_turn(async move { committer.commit_externally(queued, &outcome, transaction).await });
        Ok((commit, ticket, in_doubt))
    }

    fn note_durable(&self) {
        self.inner.lock().extra.get_or_insert_default().interim = 0;
    }

    fn let_out(self: Arc<Self>, outputs: Vec<Output>) {
        let mut left = Left { outputs, ..Left::default() };
        let mut inner = self.inner.lock();
        self.release(&mut inner, &mut left, None);
        drop(inner);
        left.clear(&*self);
    }
}
