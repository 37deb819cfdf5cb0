//! The state of a flow's code: the operations that it has begun, who waits for them, and what has come for them.
//!
//! It is locked by [`Shared`](super::Shared). Nothing here wakes or drops a waker.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use stable_interfaces::Timestamp;

use super::children::Children;
use super::due::Due;
use super::emitted::Emitted;
use super::names::Kind;
use super::run::Undo;
use crate::blocked::Blocked;
use crate::by_name::ByName;
use crate::journal::{Begun, Event, Key};
use crate::seldom::{Seldom, Unchanged};

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
    /// The code is not polled: the flow waits.
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
    /// The operation may answer its next poll.
    pub(super) is_released: bool,
    /// The deadline of a timer, or of a step that waits for its next attempt.
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

impl Op {
    /// An operation of this number that has begun now, and of which nothing has come.
    pub(super) fn new(key: Key, kind: Kind, number: u64, now: Timestamp) -> Op {
        Op {
            key,
            kind,
            number,
            opens_at: number,
            since: now,
            queue: VecDeque::new(),
            waker: None,
            is_released: false,
            due: None,
            is_over: false,
            must_poll: false,
            has_started: false,
            attempts: 0,
            last_error: None,
            at: None,
            intent: None,
            #[cfg(test)]
            given: None,
        }
    }
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

pub(super) struct State {
    pub(super) mode: Mode,
    pub(super) ops: Vec<Option<Box<Op>>>,
    pub(super) free: Vec<usize>,
    pub(super) by_key: ByName<usize>,
    /// The names that operations have had, by their keys without ordinals.
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
    pub(super) cold: Seldom<Cold>,
}

/// The part of that state that few flows have.
#[derive(Default)]
pub(super) struct Cold {
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

impl Unchanged for Cold {
    const UNCHANGED: &'static Cold = &Cold {
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

impl State {
    pub(super) fn op(&mut self, index: usize) -> Option<&mut Op> {
        self.ops.get_mut(index).and_then(Option::as_deref_mut)
    }

    /// The operations of this name, without an ordinal.
    pub(super) fn named(&mut self, base: &str) -> &mut Named {
        if self.named.get(base).is_none() {
            self.named.insert(base.into(), Named::default());
        }
        self.named.get_mut(base).expect("invariant: it has just been put there")
    }

    /// The operation of this name that the code began the first time because of the same entry, in a replay.
    pub(super) fn known(&self, name: &str) -> Option<&Begun> {
        let expected = self.expected.as_ref()?;
        // Mostly the code begins all of it in the same order.
        let same = expected.get(self.begun.len()).filter(|begun| *begun.key == *name);
        same.or_else(|| expected.iter().find(|begun| *begun.key == *name))
    }

    /// Adds an operation to those that the code holds: its callback is open, its timer armed.
    pub(super) fn hold(&mut self, op: Box<Op>) -> usize {
        let index = self.free.pop().unwrap_or(self.ops.len());
        self.by_key.insert(op.key.clone(), index);
        self.open += usize::from(op.kind.takes_messages());
        if let Some(due) = op.due {
            self.due.insert((due, index));
        }
        if index == self.ops.len() {
            self.ops.push(Some(op));
        } else {
            self.ops[index] = Some(op);
        }
        index
    }

    /// Has the flow blocked as soon as its code has been polled, unless there is a reason for that already.
    pub(super) fn blame(&mut self, why: impl FnOnce() -> Blocked) {
        self.cold.made().fault.get_or_insert_with(why);
    }

    /// Takes the reason why the flow is to be blocked, if there is one.
    pub(super) fn take_fault(&mut self) -> Option<Blocked> {
        self.cold.there()?.fault.take()
    }

    /// Takes the events that the code emitted because of the entry that is being taken in.
    pub(super) fn take_emitted(&mut self) -> Vec<Emitted> {
        self.cold.there().map_or_else(Vec::new, |cold| std::mem::take(&mut cold.emitted))
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
    pub(super) fn let_go(&mut self, index: usize) -> Option<Box<Op>> {
        let mut op = self.ops.get_mut(index)?.take()?;
        self.free.push(index);
        self.open -= usize::from(op.kind.takes_messages());
        if op.kind == Kind::Signal && !op.queue.is_empty() {
            // They are for whoever waits for it next.
            self.cold.made().early.insert(op.key.clone(), std::mem::take(&mut op.queue));
        }
        if op.kind == Kind::Callback && self.cold.is_continuing && self.mode == Mode::Settling {
            self.cold.made().kept.insert(op.key.clone(), std::mem::take(&mut op.queue));
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
        let unwound = self.cold.there().map_or_else(Vec::new, |cold| std::mem::take(&mut cold.unwound));
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
