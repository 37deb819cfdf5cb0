//! The hands of a machine under test: they note what they are asked for, and answer as a case says.

use std::cell::{Cell, RefCell};
use std::sync::Weak;

use tokio::runtime::Runtime;

use super::super::*;
use super::Message;
use crate::Timestamp;
use crate::commit::gate::Failure;
use crate::connection::{AnyLink, ConnectionId, Wakers};
use crate::instance::life::{Member, Membership};
use crate::instance::recorded::Release;
use crate::shards::Shards;
use crate::shards::firing::Limits;
use crate::store::Attempts;
use crate::store::{InstanceName, Revision, ShardId};
use crate::sync::{Mutex, Semaphore, oneshot};
use crate::tasks::Tasks;
use crate::testing::SimClock;

/// Everything that can be seen of one step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The answer to whoever made the step, in words.
    pub(super) said: String,
    /// Commits that were queued: epoch, ticket, operations, whether windows follow, and the revision of the alarm they complete.
    pub(super) commits: Vec<(u64, u64, Vec<String>, bool, Option<u64>)>,
    /// Messages that never have a turn, and why.
    pub(super) refused: Vec<(u32, String)>,
    /// States that were let go.
    pub(super) dropped: Option<u32>,
    /// Connections that were closed for a reason, and those whose last words were taken back.
    pub(super) closed: Vec<(usize, Closed)>,
    pub(super) stay_open: Vec<usize>,
    /// The number of connections that are woken when the lock is free.
    pub(super) links: usize,
    /// The outputs that were let out, each with the ticket it is behind.
    pub(super) outputs: Vec<(&'static str, Option<u64>)>,
    /// The number of times that a gate was to be waited for, and that it left the table.
    pub(super) waits: usize,
    pub(super) gone: usize,
}

/// A connection that notes what is done to it.
pub(super) struct Connection {
    id: ConnectionId,
    number: usize,
    is_attached: bool,
    notes: Notes,
}

type Notes = Arc<Mutex<Seen>>;

impl AnyLink for Connection {
    fn id(&self) -> ConnectionId {
        self.id
    }

    fn is_attached(&self) -> bool {
        self.is_attached
    }

    fn close(&self, reason: Closed) -> Wakers {
        self.notes.lock().closed.push((self.number, reason));
        Wakers::default()
    }

    fn stay_open(&self) -> Wakers {
        self.notes.lock().stay_open.push(self.number);
        Wakers::default()
    }
}

/// A message to a client.
pub(super) struct Released(Notes);

impl Release for Released {
    fn release(&mut self, behind: Option<Ticket>) {
        self.0.lock().outputs.push(("message", behind.map(|ticket| ticket.number())));
    }

    fn wake(&mut self) {}
}

/// The world around a machine.
pub(super) struct World {
    pub(super) owned: Option<Epoch>,
    pub(super) may_act: bool,
    pub(super) is_firing: bool,
    pub(super) now: Duration,
    pub(super) notes: Notes,
    /// Commits under way, oldest first.
    pub(super) under_way: RefCell<VecDeque<QueuedCommit>>,
    /// The outcome that the oldest of them will have in the middle of the next step.
    pub(super) armed: Cell<Option<bool>>,
    /// Commits whose outcomes are known, and which are in memory a moment longer.
    pub(super) lingering: RefCell<Vec<Arc<Commit>>>,
    /// Gates whose settlement is waited for.
    pub(super) gates: Vec<Arc<Gate>>,
    pub(super) connections: Vec<ConnectionId>,
    semaphore: Arc<Semaphore>,
    runtime: Runtime,
    tasks: Tasks,
    /// The life of each task that was spawned, and handles of lives that are kept beyond their tasks.
    pub(super) lives: Vec<Weak<Life>>,
    pub(super) known: Vec<Arc<Life>>,
    /// One for each task that was spawned: it ends with that.
    ends: RefCell<Vec<Option<oneshot::Sender<()>>>>,
    shards: Arc<Shards>,
    deliveries: u64,
}

const SHARD: ShardId = ShardId(0);

impl World {
    pub(super) fn new() -> World {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be made");
        let tasks = Tasks::new(runtime.handle().clone(), |panic| panic!("{panic}"));
        let limits =
            Limits { max_firing: 1_000, max_fires_per_second: u32::MAX, max_crashes: 1, window_bytes: 1 << 30 };
        let shards = Arc::new(Shards::new(1, limits, Arc::new(SimClock::new(Timestamp::from_millis(1_000)))));
        shards.own(SHARD, Epoch(1), true, 10_000, 1 << 30);
        for page in shards.begin_pages(1) {
            shards.merge_alarms(&page, Vec::new(), true);
            shards.merge_inbox(&page, Vec::new(), true);
        }
        World {
            owned: Some(Epoch(1)),
            may_act: true,
            is_firing: true,
            now: Duration::ZERO,
            notes: Notes::default(),
            under_way: RefCell::default(),
            armed: Cell::new(None),
            lingering: RefCell::default(),
            gates: Vec::new(),
            connections: Vec::new(),
            semaphore: Arc::new(Semaphore::new(10_000)),
            runtime,
            tasks,
            lives: Vec::new(),
            known: Vec::new(),
            ends: RefCell::default(),
            shards,
            deliveries: 0,
        }
    }

    /// An alarm that has fired, of this revision.
    pub(super) fn delivery(&mut self, id: u8, revision: u64, must_mark: bool) -> Delivery {
        // Each of an instance of its own, so that none waits for another.
        self.deliveries += 1;
        let name = InstanceName { interface: "model".into(), instance: self.deliveries.to_string().into() };
        let row = AlarmRow { name, ..alarm(id, revision) };
        self.shards.apply(SHARD, Epoch(1), &[Op::PutAlarm(row)]);
        let now = crate::clock::Moment { wall: Timestamp::from_millis(1_000), elapsed: Duration::ZERO };
        let mut delivery = self.shards.pop_due(now).expect("it is due");
        delivery.must_mark = must_mark;
        delivery
    }

    pub(super) fn connection(&mut self, is_attached: bool) -> (Arc<dyn AnyLink>, crate::sync::OwnedSemaphorePermit) {
        let (id, number) = (ConnectionId::next(), self.connections.len());
        self.connections.push(id);
        let permit = self.semaphore.clone().try_acquire_owned().expect("there are enough");
        (Arc::new(Connection { id, number, is_attached, notes: self.notes.clone() }), permit)
    }

    pub(super) fn message(&self) -> Box<dyn Release> {
        Box::new(Released(self.notes.clone()))
    }

    /// Tells the oldest commit under way its outcome; whether there was one.
    pub(super) fn settle_oldest(&self, is_ok: bool) -> bool {
        let Some(queued) = self.under_way.borrow_mut().pop_front() else { return false };
        self.lingering.borrow_mut().push(queued.contents().0.clone());
        queued.settle(if is_ok { Ok(()) } else { Err(Failure::Fenced) });
        true
    }

    /// Lets tasks run as far as they go; the one of this number to its end.
    pub(super) fn run_tasks(&mut self, end: Option<usize>) {
        if let Some(end) = end {
            drop(self.ends.borrow_mut()[end].take());
        }
        self.runtime.block_on(async {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        });
    }
}

pub(super) fn alarm(id: u8, revision: u64) -> AlarmRow {
    let due = Timestamp::from_millis(1);
    AlarmRow {
        name: InstanceName { interface: "model".into(), instance: "one".into() },
        id: id.to_string().into(),
        due,
        scheduled_at: due,
        revision: Revision { epoch: Epoch(1), counter: revision },
        attempts: Attempts::default(),
        meta: bytes::Bytes::new(),
    }
}

/// An operation in a few words.
pub(super) fn brief(op: &Op) -> String {
    match op {
        Op::Put { key, .. } => key.to_string(),
        Op::PutAlarm(row) => format!("set {} {}", row.id, row.revision.counter),
        Op::RemoveAlarm { id, revision, .. } => format!("cancel {id} {}", revision.counter),
        other => format!("{other:?}"),
    }
}

impl Hands<Message> for World {
    fn owned(&self) -> Option<Epoch> {
        if let Some(outcome) = self.armed.take() {
            self.settle_oldest(outcome);
        }
        self.owned
    }

    fn owns(&self, epoch: Epoch) -> bool {
        self.owned == Some(epoch)
    }

    fn may_act(&self) -> bool {
        self.may_act
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn parting(&self) -> Closed {
        Closed::Draining
    }

    fn is_firing(&self, _: Epoch, _: &AlarmRow) -> bool {
        self.is_firing
    }

    fn draft(&self, epoch: Epoch, ops: Vec<Op>, windows: Windows) -> Option<Commit> {
        Some(Commit { shard: SHARD, epoch, ops: ops.into(), is_shown: windows == Windows::Follow })
    }

    fn commit(&mut self, queued: QueuedCommit) {
        let (commit, ticket, delivery) = queued.contents();
        let revision = delivery.map(|delivery| match delivery.wake() {
            Wake::Alarm(alarm) => alarm.revision.counter,
            Wake::Message(_) => 0,
        });
        let ops = commit.ops.iter().map(brief).collect();
        self.notes.lock().commits.push((commit.epoch.0, ticket, ops, commit.is_shown, revision));
        self.under_way.get_mut().push_back(queued);
    }

    fn failed(&mut self, wake: &Wake, error: &str) -> Vec<Op> {
        let name = wake.name().clone();
        vec![Op::Put { name, key: format!("{error} {}", wake.id()).into(), value: bytes::Bytes::new() }]
    }

    fn stop(&self) -> Message {
        Message { holds_permit: true, ..Message::default() }
    }

    fn after_commit(&mut self, behind: Option<Ticket>, _: &HandedOver<Box<dyn FnOnce() + Send>>) {
        self.notes.lock().outputs.push(("after commit", behind.map(|ticket| ticket.number())));
    }

    fn spawn(&mut self, behind: Option<Ticket>, _: &HandedOver<TaskWork>, life: Arc<Life>) -> Option<TaskHandle> {
        self.notes.lock().outputs.push(("task", behind.map(|ticket| ticket.number())));
        self.lives.push(Arc::downgrade(&life));
        if self.lives.len().is_multiple_of(2) {
            self.known.push(life.clone());
        }
        let membership = Membership(Arc::new(Member::new(life)));
        let (end, ended) = oneshot::channel();
        self.ends.borrow_mut().push(Some(end));
        self.tasks.spawn_handled(async move {
            let _membership = membership;
            let _ended = ended.await;
        })
    }

    fn when_settled(&mut self, gate: Arc<Gate>) {
        self.notes.lock().waits += 1;
        self.gates.push(gate);
    }

    fn gone(&mut self) {
        self.notes.lock().gone += 1;
    }
}
