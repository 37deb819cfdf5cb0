//! The state that a flow's code and its engine share: the operations that the code has begun, and who waits for them.
//!
//! No waker is woken or dropped, and nothing of the application called, while the lock is held.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use stable_interfaces::Timestamp;
use stable_interfaces::clock::{Clock, Random};

use super::Undo;
use super::children::Children;
use super::due::Due;
use super::emitted::Emitted;
use super::faults::{beside_the_journal, out_of_place, too_many_open, two_at_once};
use super::names::{Kind, base_of};
use crate::blocked::{Blocked, BlockedKind};
use crate::by_name::ByName;
use crate::hash::hex;
use crate::journal::{Begun, Detail, Event, Key};
use crate::seldom::{Seldom, Unchanged};
use crate::token::Urls;

/// The most callbacks and signals that a flow's code may hold at once.
pub(super) const MAX_OPEN: usize = 2_000;

/// The most bytes of a page by default: two of them, a result and the events of a turn are less than a commit may have.
const MAX_PAGE_BYTES: usize = 1_280 * 1_024;

/// The most that may be in a flow's journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) entries: u64,
    pub(crate) bytes: usize,
    /// The largest value of a step, and the largest result.
    pub(crate) value_bytes: usize,
    /// About how many bytes are written in one commit, beside events and a result: one entry at least.
    pub(crate) page_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { entries: 10_000, bytes: 16 * 1024 * 1024, value_bytes: 256 * 1024, page_bytes: MAX_PAGE_BYTES }
    }
}

/// Something that the code may take from an operation that waits for it.
#[derive(Debug)]
pub(crate) struct Item {
    /// The entry that brought it.
    pub(crate) seq: u64,
    pub(crate) at: Timestamp,
    pub(crate) event: Event,
}

/// The reason for which the code is polled at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Nobody: the flow waits.
    Idle,
    /// An entry is being taken in.
    Settling,
    /// Steps are polled between entries. Nothing else may happen.
    Steps,
    /// The code is dropped: the flow has ended, is blocked, or leaves memory.
    Leaving,
    /// The code is dropped because it is blocked: callbacks stay open, and timers run.
    Blocking,
}

/// An operation that the code has begun and still holds.
pub(super) struct Op {
    pub(super) key: Key,
    pub(super) kind: Kind,
    /// The number of the operation among the flow's operations, in the order in which they began in this life.
    pub(super) number: u64,
    /// A step may start when [`State::open_to`] is greater.
    pub(super) opens_at: u64,
    /// The time of the entry because of which it began.
    pub(super) since: Timestamp,
    /// The items that it has to give, oldest first.
    pub(super) queue: VecDeque<Item>,
    /// The waker of who waits for it: set by a poll that found nothing released, kept until a release or until it is dropped.
    pub(super) waker: Option<Waker>,
    /// May answer its next poll.
    pub(super) is_released: bool,
    /// Of a timer, and of a step that waits for its next attempt.
    pub(super) due: Option<Timestamp>,
    /// A step has handed over its result.
    pub(super) is_over: bool,
    /// A step is to be polled now.
    pub(super) must_poll: bool,
    /// An attempt of a step has begun in this life.
    pub(super) has_started: bool,
    /// Failed attempts of a step, as journaled.
    pub(super) attempts: u32,
    pub(super) last_error: Option<Arc<str>>,
    /// The place in a script that waits for it.
    pub(super) at: Option<Arc<str>>,
    /// The intent to run it once is in the journal: since this life, or since an earlier one.
    pub(super) intent: Option<Life>,
    /// The item that a sabotaged engine has given to whoever waited.
    #[cfg(test)]
    pub(super) given: Option<Item>,
}

/// The life of a flow that something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    This,
    Earlier,
}

#[derive(Debug, Default)]
pub(super) struct Named {
    /// The number that have begun.
    pub(super) next: u32,
    /// The number of them that the code holds.
    pub(super) alive: u32,
}

/// Asks for turns of a flow, from any thread.
pub(crate) trait Nudge: Send + Sync {
    /// A step wants to be polled.
    fn step(&self);

    /// The code was woken by something that is not in its journal. Told once.
    fn stray(&self);
}

/// Nobody is asked: somebody else takes care that there are turns.
impl Nudge for () {
    fn step(&self) {}

    fn stray(&self) {}
}

/// The state that a flow's code and its engine share.
pub(crate) struct Shared {
    /// `name/id`.
    pub(crate) identity: Arc<str>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) limits: Limits,
    /// The keys that callback URLs are made with.
    pub(crate) urls: Option<Arc<Urls>>,
    /// The host is about to leave.
    pub(crate) is_draining: AtomicBool,
    /// The attempts of steps that a test counts or makes up.
    #[cfg(feature = "testing")]
    pub(crate) fakes: std::sync::OnceLock<Arc<crate::testing::fakes::Fakes>>,
    /// The flow's waker was woken by the engine, an operation, or the code itself.
    pub(super) self_woken: AtomicBool,
    /// The flow's waker was woken by something that is not in the journal.
    pub(super) foreign_woken: AtomicBool,
    /// Steps that asked to be polled.
    pub(super) woken: Mutex<Vec<(usize, u64)>>,
    /// Attempts of steps that wait for a transaction.
    #[cfg(feature = "postgres")]
    pub(super) transactions: Mutex<VecDeque<crate::transaction::Asked>>,
    pub(super) nudge: Arc<dyn Nudge>,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) mode: Mode,
    pub(super) ops: Vec<Option<Box<Op>>>,
    pub(super) free: Vec<usize>,
    pub(super) by_key: ByName<usize>,
    /// By the keys without ordinals.
    pub(super) named: ByName<Named>,
    /// Operations that wait and have something, by their oldest entry.
    pub(super) ready: BTreeSet<(u64, usize)>,
    /// Deadlines of timers, and of steps that wait for their next attempt.
    pub(super) due: Due,
    /// The number of operations that wait.
    pub(super) waiting: usize,
    /// The number of operations that began in this life.
    pub(super) numbers: u64,
    /// Steps with a number below this may start.
    pub(super) open_to: u64,
    pub(super) run: u32,
    pub(super) seed: u64,
    /// The time of the newest entry that the code has seen.
    pub(super) now: Timestamp,
    /// The operations that the code began because of the entry that is being taken in.
    pub(super) begun: Vec<Begun>,
    /// The operations that it began the first time, if that is known.
    pub(super) expected: Option<Vec<Begun>>,
    /// The number of callbacks and signals that it holds.
    pub(super) open: usize,
    /// The entries that steps have handed over.
    pub(super) handed_in: VecDeque<Event>,
    /// The entries that the code has been told in this run, and about how many bytes they have.
    pub(super) told_entries: u64,
    pub(super) told_bytes: usize,
    pub(super) rare: Seldom<Rare>,
}

/// The part of that state that few flows have.
#[derive(Default)]
pub(super) struct Rare {
    /// Operations that were dropped by a panic, which may have blocked the flow.
    pub(super) unwound: Vec<usize>,
    /// Messages for callbacks that the code has not begun.
    pub(super) early: BTreeMap<Key, VecDeque<Item>>,
    /// The events that the code emitted because of the entry that is being taken in.
    pub(super) emitted: Vec<Emitted>,
    /// The names of all patches in the journal.
    pub(super) patched: BTreeSet<Key>,
    pub(super) patches: BTreeMap<Key, bool>,
    pub(super) undo: Vec<Undo>,
    /// The code has failed, and its undo steps run.
    pub(super) is_undoing: bool,
    pub(super) children: Children,
    /// The code is about to go on as another run: callbacks that it drops are kept, with their messages.
    pub(super) is_continuing: bool,
    pub(super) kept: BTreeMap<Key, VecDeque<Item>>,
    /// The addresses of callbacks that an earlier run has opened: the number of that run, and the operation that it was there.
    pub(super) carried: BTreeMap<Key, (u32, Key)>,
    pub(super) fault: Option<Blocked>,
}

impl Unchanged for Rare {
    const UNCHANGED: &'static Rare = &Rare {
        unwound: Vec::new(),
        early: BTreeMap::new(),
        emitted: Vec::new(),
        patched: BTreeSet::new(),
        patches: BTreeMap::new(),
        undo: Vec::new(),
        is_undoing: false,
        children: Children::NONE,
        is_continuing: false,
        kept: BTreeMap::new(),
        carried: BTreeMap::new(),
        fault: None,
    };
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("flow", &self.identity).finish_non_exhaustive()
    }
}

thread_local! {
    /// The flow whose code, or whose operation's waker, runs on this thread; 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Marks this thread as running a flow's code, until it is dropped.
pub(super) struct Entered(usize);

impl Entered {
    pub(super) fn into(flow: usize) -> Entered {
        Entered(CURRENT.replace(flow))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// The waker that the code is polled with.
pub(super) struct FlowWaker(pub(super) Arc<Shared>);

impl Wake for FlowWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if CURRENT.get() == self.0.address() {
            self.0.self_woken.store(true, Ordering::Relaxed);
        } else if !self.0.foreign_woken.swap(true, Ordering::AcqRel) {
            self.0.nudge.stray();
        }
    }
}

/// The waker that a step is polled with.
pub(super) struct StepWaker {
    shared: Arc<Shared>,
    step: (usize, u64),
}

impl Wake for StepWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.shared.wants_polled(self.step) {
            self.shared.nudge.step();
        }
    }
}

impl Shared {
    pub(crate) fn new(
        identity: Arc<str>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        limits: Limits,
        urls: Option<Arc<Urls>>,
        nudge: Arc<dyn Nudge>,
    ) -> Arc<Shared> {
        let state = State {
            mode: Mode::Idle,
            ops: Vec::new(),
            free: Vec::new(),
            by_key: ByName::default(),
            named: ByName::default(),
            ready: BTreeSet::new(),
            due: Due::default(),
            waiting: 0,
            numbers: 0,
            open_to: 0,
            run: 0,
            seed: 0,
            now: Timestamp::MIN,
            begun: Vec::new(),
            expected: None,
            open: 0,
            handed_in: VecDeque::new(),
            told_entries: 0,
            told_bytes: 0,
            rare: Seldom::default(),
        };
        Arc::new(Shared {
            identity,
            clock,
            random,
            limits,
            urls,
            is_draining: AtomicBool::new(false),
            #[cfg(feature = "testing")]
            fakes: std::sync::OnceLock::new(),
            self_woken: AtomicBool::new(false),
            foreign_woken: AtomicBool::new(false),
            woken: Mutex::default(),
            #[cfg(feature = "postgres")]
            transactions: Mutex::default(),
            nudge,
            state: Mutex::new(state),
        })
    }

    /// Has an attempt carried out in a turn of its own.
    #[cfg(feature = "postgres")]
    pub(crate) fn ask_for_transaction(&self, asked: crate::transaction::Asked) {
        self.transactions.lock().push_back(asked);
    }

    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Has a step polled in the next turn. Says whether it is the first one that asks for that turn.
    pub(super) fn wants_polled(&self, step: (usize, u64)) -> bool {
        let mut woken = self.woken.lock();
        let is_new = !woken.contains(&step);
        if is_new {
            woken.push(step);
        }
        is_new && woken.len() == 1
    }

    /// The time of the newest entry that the code has seen.
    pub(crate) fn now(&self) -> Timestamp {
        self.state.lock().now
    }

    /// Tells whether the code sees again what it has seen in an earlier life.
    pub(crate) fn is_replaying(&self) -> bool {
        self.state.lock().expected.is_some()
    }

    /// Registers something to run, last first, if the flow fails or is cancelled.
    pub(crate) fn push_undo(&self, undo: Undo) {
        self.state.lock().rare.made().undo.push(undo);
    }

    pub(crate) fn pop_undo(&self) -> Option<Undo> {
        self.state.lock().rare.there()?.undo.pop()
    }

    /// 256 bits that are the same in every replay, and different for each `kind` in each scope at each call.
    pub(crate) fn draw(&self, scope: &str, kind: &str) -> [u8; 32] {
        let mut state = self.state.lock();
        let (seed, base) = (state.seed, format!("{scope}/{kind}:"));
        let named = state.named(&base);
        let ordinal = named.next;
        named.next += 1;
        drop(state);
        Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(base)
            .chain_update(ordinal.to_le_bytes())
            .finalize()
            .into()
    }

    /// A text that is the same in every attempt of a step, and of no other.
    pub(crate) fn idempotency_key(&self, step: &str) -> String {
        let run = self.state.lock().run;
        let hash = Sha256::new()
            .chain_update(self.identity.as_bytes())
            .chain_update([0])
            .chain_update(run.to_le_bytes())
            .chain_update(step.as_bytes())
            .finalize();
        hex(&hash[..16])
    }

    /// The URL of a callback.
    pub(crate) fn url(&self, callback: &str) -> String {
        let Some(urls) = &self.urls else {
            let message = "it asks for the URL of a callback, and there is none: set `Flows::builder().callbacks(..)`";
            self.fail(Blocked::new(BlockedKind::NotConfigured, message.into()));
            return String::new();
        };
        let state = self.state.lock();
        let (run, callback) = match state.rare.carried.get(callback) {
            Some((run, callback)) => (*run, callback.clone()),
            None => (state.run, callback.into()),
        };
        drop(state);
        urls.of(&self.identity, run, &callback)
    }

    /// Tells whether code of a version before or after a change runs.
    pub(crate) fn is_patched(self: &Arc<Self>, scope: &str, name: &str) -> bool {
        let key: Key = format!("{}#0", base_of(scope, Kind::Patch, name, None)).into();
        let mut state = self.state.lock();
        if let Some(known) = state.rare.patches.get(&key) {
            return *known;
        }
        let is_replay = state.expected.is_some();
        let is_patched = !is_replay || state.rare.patched.contains(&key);
        state.rare.made().patches.insert(key.clone(), is_patched);
        if is_patched {
            state.begun.push(Begun { key, detail: Detail::None });
        }
        is_patched
    }

    /// Begins an operation.
    pub(crate) fn claim(
        self: &Arc<Self>,
        scope: &str,
        kind: Kind,
        name: &str,
        key: Option<&str>,
        detail: Detail,
    ) -> Ticket {
        let mut base = base_of(scope, kind, name, key);
        let mut state = self.state.lock();
        if state.mode != Mode::Settling || CURRENT.get() != self.address() {
            if !matches!(state.mode, Mode::Leaving | Mode::Blocking) {
                state.blame(|| out_of_place(&base));
            }
            return Ticket { shared: self.clone(), index: usize::MAX, key: base.into(), at: (0, None) };
        }
        state.let_go_of_unwound();
        let named = state.named(&base);
        if kind.is_exclusive() && named.alive > 0 {
            state.blame(|| two_at_once(kind, name));
            return Ticket { shared: self.clone(), index: usize::MAX, key: base.into(), at: (0, None) };
        }
        let ordinal = named.next;
        // A signal is found by its name alone, whoever waits for it.
        named.next += u32::from(kind != Kind::Signal);
        named.alive += 1;
        let _ = write!(base, "#{ordinal}");
        let known = state.expected.as_ref().and_then(|expected| {
            // Mostly the code begins all of it in the same order.
            let same = expected.get(state.begun.len()).filter(|begun| *begun.key == *base);
            same.or_else(|| expected.iter().find(|begun| *begun.key == *base))
        });
        let (key, detail) = match known {
            // The deadline of a timer is the one that it was given first.
            Some(known) if matches!(detail, Detail::Due(_)) => (known.key.clone(), known.detail),
            Some(known) => (known.key.clone(), detail),
            None => (base.into(), detail),
        };
        if state.begun.capacity() == 0 {
            state.begun.reserve_exact(1);
        }
        state.begun.push(Begun { key: key.clone(), detail });
        let due = if let Detail::Due(due) = detail { Some(due) } else { None };
        let (number, now) = (state.numbers, state.now);
        state.numbers += 1;
        let early = state.rare.there().and_then(|rare| rare.early.remove(&key));
        let op = Box::new(Op {
            key: key.clone(),
            kind,
            number,
            opens_at: number,
            since: now,
            queue: early.unwrap_or_default(),
            waker: None,
            is_released: false,
            due,
            is_over: false,
            must_poll: false,
            has_started: false,
            attempts: 0,
            last_error: None,
            at: None,
            intent: None,
            #[cfg(test)]
            given: None,
        });
        let index = state.free.pop().unwrap_or(state.ops.len());
        if index == state.ops.len() {
            state.ops.push(Some(op));
        } else {
            state.ops[index] = Some(op);
        }
        state.by_key.insert(key.clone(), index);
        state.open += usize::from(kind.takes_messages());
        if state.open > MAX_OPEN {
            state.blame(too_many_open);
        }
        if let Some(due) = due {
            state.due.insert((due, index));
        }
        Ticket { shared: self.clone(), index, key, at: (number, due) }
    }

    /// Notes something that the code has done, which a replay has to do too.
    pub(crate) fn note(self: &Arc<Self>, scope: &str, kind: Kind, name: &str) {
        drop(self.claim(scope, kind, name, None, Detail::None));
    }

    /// Blocks the flow, as soon as its code has been polled.
    pub(crate) fn fail(&self, why: Blocked) {
        self.state.lock().blame(|| why);
    }
}

impl State {
    pub(super) fn op(&mut self, index: usize) -> Option<&mut Op> {
        self.ops.get_mut(index).and_then(Option::as_deref_mut)
    }

    /// The operations of this name, without an ordinal.
    fn named(&mut self, base: &str) -> &mut Named {
        if self.named.get(base).is_none() {
            self.named.insert(base.into(), Named::default());
        }
        self.named.get_mut(base).expect("invariant: it has just been put there")
    }

    /// Has the flow blocked as soon as its code has been polled, unless there is a reason for that already.
    pub(super) fn blame(&mut self, why: impl FnOnce() -> Blocked) {
        self.rare.made().fault.get_or_insert_with(why);
    }

    /// Takes the reason why the flow is to be blocked, if there is one.
    pub(super) fn take_fault(&mut self) -> Option<Blocked> {
        self.rare.there()?.fault.take()
    }

    /// Takes the events that the code emitted because of the entry that is being taken in.
    pub(super) fn take_emitted(&mut self) -> Vec<Emitted> {
        self.rare.there().map_or_else(Vec::new, |rare| std::mem::take(&mut rare.emitted))
    }

    /// Gives an operation something to give.
    pub(super) fn push(&mut self, index: usize, item: Item) {
        let Some(op) = self.op(index) else { return };
        let seq = item.seq;
        if op.queue.capacity() == 0 {
            op.queue.reserve_exact(1);
        }
        op.queue.push_back(item);
        if op.queue.len() == 1 && op.waker.is_some() && !op.is_released {
            self.ready.insert((seq, index));
        }
    }

    /// Removes an operation: its callback is closed, its timer disarmed.
    fn let_go(&mut self, index: usize) -> Option<Box<Op>> {
        let mut op = self.ops.get_mut(index)?.take()?;
        self.free.push(index);
        self.open -= usize::from(op.kind.takes_messages());
        if op.kind == Kind::Signal && !op.queue.is_empty() {
            // They are for whoever waits for it next.
            self.rare.made().early.insert(op.key.clone(), std::mem::take(&mut op.queue));
        }
        if op.kind == Kind::Callback && self.rare.is_continuing && self.mode == Mode::Settling {
            self.rare.made().kept.insert(op.key.clone(), std::mem::take(&mut op.queue));
        }
        self.by_key.remove(&op.key);
        if let Some((base, _)) = op.key.rsplit_once('#')
            && let Some(named) = self.named.get_mut(base)
        {
            named.alive -= 1;
        }
        if let Some(due) = op.due {
            self.due.remove((due, index));
        }
        Some(op)
    }

    /// Removes what a panic has dropped that the code has caught.
    pub(super) fn let_go_of_unwound(&mut self) {
        let unwound = self.rare.there().map_or_else(Vec::new, |rare| std::mem::take(&mut rare.unwound));
        for index in unwound {
            self.let_go(index);
        }
    }

    /// Forgets who waits for an operation.
    pub(super) fn unregister(&mut self, index: usize) -> Option<Waker> {
        let op = self.op(index)?;
        let front = op.queue.front().map(|item| item.seq);
        let waker = op.waker.take();
        if waker.is_some() {
            self.waiting -= 1;
        }
        if let Some(seq) = front {
            self.ready.remove(&(seq, index));
        }
        waker
    }
}

/// The code's hold on an operation that it has begun.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    index: usize,
    key: Key,
    /// The number of the operation, and the deadline of a timer.
    at: (u64, Option<Timestamp>),
}

impl Ticket {
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// Tells whether the operation was begun where it may be; the flow is blocked else.
    pub(super) fn is_in_place(&self) -> bool {
        self.index != usize::MAX
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The deadline of a timer.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.at.1
    }

    /// Takes what has been released to this operation, or waits for that.
    pub(crate) fn poll(&self, task: &Context<'_>) -> Poll<Item> {
        let mut state = self.shared.state.lock();
        let mode = state.mode;
        let Some(op) = state.op(self.index) else { return Poll::Pending };
        #[cfg(test)]
        if let Some(item) = op.given.take() {
            return Poll::Ready(item);
        }
        if op.is_released {
            op.is_released = false;
            if let Some(item) = op.queue.pop_front() {
                return Poll::Ready(item);
            }
        }
        let Some(op) = state.op(self.index) else { return Poll::Pending };
        if mode == Mode::Settling && op.must_poll {
            // It was to be polled when nobody looked at it.
            self.shared.woken.lock().push((self.index, op.number));
        }
        let mut old = None;
        match &mut op.waker {
            Some(waker) if waker.will_wake(task.waker()) => {}
            Some(waker) => old = Some(std::mem::replace(waker, task.waker().clone())),
            None => {
                let front = op.queue.front().map(|item| item.seq);
                op.waker = Some(task.waker().clone());
                // It may have been let start before it was polled.
                let step =
                    (op.kind == Kind::Step && !op.is_over && op.due.is_none()).then_some((self.index, op.number));
                if mode == Mode::Settling
                    && let Some(step) = step
                {
                    self.shared.woken.lock().push(step);
                }
                state.waiting += 1;
                if let Some(seq) = front {
                    state.ready.insert((seq, self.index));
                    if mode == Mode::Steps {
                        let what = format!("begun to wait for `{}`", self.key);
                        state.blame(|| beside_the_journal(&what));
                    }
                }
            }
        }
        // Dropping a waker may run anything, and so it may want the lock.
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Nobody waits for it any more. What was released goes back.
    pub(crate) fn unregister(&self) {
        let mut state = self.shared.state.lock();
        if let Some(op) = state.op(self.index) {
            op.is_released = false;
            #[cfg(test)]
            drop(op.given.take());
        }
        let waker = state.unregister(self.index);
        drop(state);
        drop(waker);
    }

    /// Tells whether the step is to be polled now. If so, says how many of its attempts have failed in the journal, and whether its
    /// intent is in there.
    pub(crate) fn may_run(&self) -> Option<(u32, Option<Life>)> {
        let mut state = self.shared.state.lock();
        let (mode, open_to) = (state.mode, state.open_to);
        // A host that is about to leave lets steps end, and begins none.
        let is_draining = self.shared.is_draining.load(Ordering::Relaxed);
        let op = state.op(self.index)?;
        let may_run = mode == Mode::Steps
            && (op.has_started || !is_draining)
            && op.must_poll
            && !op.is_over
            && op.opens_at < open_to
            && op.due.is_none();
        may_run.then(|| {
            op.must_poll = false;
            op.has_started = true;
            (op.attempts, op.intent)
        })
    }

    /// The step has ended, for good or for now.
    pub(crate) fn hand_in(&self, event: Event) {
        let mut state = self.shared.state.lock();
        let Some(op) = state.op(self.index) else { return };
        op.is_over = true;
        state.handed_in.push_back(event);
    }

    /// An attempt has failed, and the next one follows in this process.
    pub(crate) fn note_failure(&self, attempt: u32, error: Arc<str>) {
        if let Some(op) = self.shared.state.lock().op(self.index) {
            op.attempts = attempt;
            op.last_error = Some(error);
        }
    }

    /// Names the place in a script that waits for it, for the flow's status.
    #[cfg(feature = "rhai")]
    pub(crate) fn show_at(&self, place: Arc<str>) {
        if let Some(op) = self.shared.state.lock().op(self.index) {
            op.at = Some(place);
        }
    }

    /// The waker to poll the step with.
    pub(crate) fn step_waker(&self) -> Waker {
        Waker::from(Arc::new(StepWaker { shared: self.shared.clone(), step: (self.index, self.at.0) }))
    }

    /// Runs a part of a step: what it does to the code's waker is not the code's doing.
    pub(crate) fn outside_of_code<T>(run: impl FnOnce() -> T) -> T {
        let _outside = Entered::into(0);
        run()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let waker = state.unregister(self.index);
        if state.mode == Mode::Steps && self.index != usize::MAX {
            let what = format!("let go of `{}`", self.key);
            state.blame(|| beside_the_journal(&what));
        }
        let op = if state.mode == Mode::Blocking {
            None
        } else if std::thread::panicking() {
            // The flow is about to be blocked, unless its code catches that.
            state.rare.made().unwound.push(self.index);
            None
        } else {
            state.let_go(self.index)
        };
        drop(state);
        drop((waker, op));
    }
}
