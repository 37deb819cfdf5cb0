//! The rules of a machine, said once more: one queue, one log, one gate, and no thought of what it costs.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::Mode;
use super::world::Seen;
use super::{Decision, Effect, End, How, Message, Out};
use crate::connection::Closed;

/// The outcomes of an incarnation's commits, in order; none of what is under way.
pub(super) type Outcomes = Rc<RefCell<Vec<Option<bool>>>>;

pub(super) fn settled(gate: &Outcomes) -> usize {
    gate.borrow().iter().take_while(|outcome| outcome.is_some()).count()
}

fn is_settled(gate: &Outcomes) -> bool {
    settled(gate) == gate.borrow().len()
}

fn has_failed(gate: &Outcomes) -> bool {
    gate.borrow().contains(&Some(false))
}

/// A commit that reads may have to see.
#[derive(Debug, Clone)]
struct Kept {
    ticket: usize,
    ops: Vec<(String, Option<(u8, u64, bool)>)>,
    is_in_memory: Rc<RefCell<bool>>,
    is_of_turn: bool,
}

impl Kept {
    fn is_in_memory(&self) -> bool {
        self.is_of_turn || *self.is_in_memory.borrow()
    }
}

/// A commit on its way, as its gate and its reads know it.
#[derive(Debug, Clone)]
pub(super) struct UnderWay {
    gate: Outcomes,
    ticket: usize,
    is_in_memory: Rc<RefCell<bool>>,
}

impl UnderWay {
    pub(super) fn settle(&self, outcome: bool) {
        self.gate.borrow_mut()[self.ticket - 1] = Some(outcome);
    }

    pub(super) fn leave_memory(&self) {
        *self.is_in_memory.borrow_mut() = false;
    }
}

/// An enlistment of the turn under way.
#[derive(Debug, Clone)]
pub(super) struct External {
    pub(super) under_way: UnderWay,
    pub(super) completes: bool,
    pub(super) decision: Rc<RefCell<Option<Decision>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) life: u32,
    is_cancelled: bool,
    has_ended: bool,
}

/// The turn under way.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    pub(super) message: Message,
    pub(super) state: Option<u32>,
    pub(super) epoch: u64,
}

#[derive(Debug)]
pub(super) struct Spec {
    pub(super) owned: Option<u64>,
    pub(super) may_act: bool,
    pub(super) is_firing: bool,
    pub(super) now: u64,
    pub(super) mode: Mode,
    pub(super) state: Option<u32>,
    pub(super) epoch: u64,
    pub(super) queue: Vec<Message>,
    pub(super) gate: Option<Outcomes>,
    kept: Vec<Kept>,
    /// ID and revision.
    pub(super) held: Vec<(u8, u64)>,
    pub(super) connections: Vec<usize>,
    connected: usize,
    pub(super) tasks: Vec<Task>,
    /// The tasks that the machine has a hand on, and those whose end it waits for.
    pub(super) own_tasks: Vec<usize>,
    ending: (Vec<usize>, Option<Outcomes>),
    pub(super) life: Option<u32>,
    lives: u32,
    pub(super) external: Option<External>,
    pub(super) interim: Option<u64>,
    pub(super) is_over: bool,
    /// Tells whether the end of an incarnation is waited for.
    pub(super) is_settling: bool,
    pub(super) turn: Option<Turn>,
    /// The lane's queue, oldest first.
    pub(super) lane: Vec<UnderWay>,
    /// Commits whose outcomes are known, and which are in memory a moment longer.
    pub(super) lingering: Vec<UnderWay>,
    /// The outcome that the oldest one will have in the middle of the next step.
    pub(super) armed: Option<bool>,
    /// Gates that are waited for, up to which commit.
    pub(super) gates: Vec<(Outcomes, usize)>,
    /// Lives of which somebody has a handle.
    pub(super) known: Vec<u32>,
    pub(super) seen: Seen,
}

impl Spec {
    pub(super) fn new() -> Spec {
        Spec {
            owned: Some(1),
            may_act: true,
            is_firing: true,
            now: 0,
            mode: Mode::Idle,
            state: None,
            epoch: 0,
            queue: Vec::new(),
            gate: None,
            kept: Vec::new(),
            held: Vec::new(),
            connections: Vec::new(),
            connected: 0,
            tasks: Vec::new(),
            own_tasks: Vec::new(),
            ending: Default::default(),
            life: None,
            lives: 0,
            external: None,
            interim: None,
            is_over: false,
            is_settling: false,
            turn: None,
            lane: Vec::new(),
            lingering: Vec::new(),
            armed: None,
            gates: Vec::new(),
            known: Vec::new(),
            seen: Seen::default(),
        }
    }

    fn has_failed(&self) -> bool {
        self.gate.as_ref().is_some_and(has_failed)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.gate.as_ref().is_none_or(is_settled)
    }

    /// The ticket that an output waits for.
    pub(super) fn pending(&self) -> Option<u64> {
        let gate = self.gate.as_ref()?;
        (!is_settled(gate) || has_failed(gate)).then(|| gate.borrow().len() as u64)
    }

    /// The operations that reads see beside the store, and those of them that are not settled.
    fn in_memory(&self) -> impl Iterator<Item = &Kept> {
        self.kept.iter().filter(|kept| kept.is_in_memory())
    }

    pub(super) fn unsettled(&self) -> Vec<Vec<String>> {
        let settled = self.gate.as_ref().map_or(0, settled);
        let unsettled = self.in_memory().filter(|kept| kept.ticket > settled);
        unsettled.map(|kept| kept.ops.iter().map(|(op, _)| op.clone()).collect()).collect()
    }

    /// The last setting of an alarm among what is not settled and what the turn under way has committed: whether it is set, under which revision.
    fn last_word(&self, id: u8) -> Option<(u64, bool)> {
        let settled = self.gate.as_ref().map_or(0, settled);
        let recent = self.in_memory().filter(|kept| kept.is_of_turn || kept.ticket > settled);
        let of_alarm = recent.flat_map(|kept| &kept.ops).filter_map(|(_, alarm)| *alarm);
        of_alarm
            .filter(|(of, ..)| *of == id)
            .map(|(_, revision, is_set)| (revision, is_set))
            .max_by_key(|(revision, _)| *revision)
    }

    fn is_replaced(&self, id: u8, revision: u64) -> bool {
        self.last_word(id).is_some_and(|last| last != (revision, true)) || !self.is_firing
    }

    fn is_busy_with_tasks(&self) -> bool {
        self.life.is_some_and(|life| self.tasks.iter().any(|task| task.life == life && !task.has_ended))
    }

    /// Takes a ticket.
    fn enlist(&mut self, ops: Vec<(String, Option<(u8, u64, bool)>)>) -> UnderWay {
        let gate = self.gate.get_or_insert_default().clone();
        let settled = settled(&gate);
        let still = self.kept.iter().position(|kept| kept.ticket > settled).unwrap_or(self.kept.len());
        self.kept.drain(..still);
        gate.borrow_mut().push(None);
        let (ticket, is_in_memory) = (gate.borrow().len(), Rc::new(RefCell::new(true)));
        self.kept.push(Kept { ticket, ops, is_in_memory: is_in_memory.clone(), is_of_turn: true });
        UnderWay { gate, ticket, is_in_memory }
    }

    fn push(
        &mut self,
        epoch: u64,
        ops: Vec<(String, Option<(u8, u64, bool)>)>,
        follow: bool,
        completes: Option<u64>,
    ) -> u64 {
        let names = ops.iter().map(|(op, _)| op.clone()).collect();
        let under_way = self.enlist(ops);
        let ticket = under_way.ticket as u64;
        self.seen.commits.push((epoch, ticket, names, follow, completes));
        self.lane.push(under_way);
        ticket
    }

    pub(super) fn external(&mut self, completes: bool, effects: &[Effect]) {
        let under_way = self.enlist(Effect::all(effects));
        let before = self.external.replace(External { under_way, completes, decision: Rc::default() });
        if let Some(before) = before
            && matches!(*before.decision.borrow(), Some(Decision::Committed))
        {
            self.note_interim(before.under_way.ticket as u64);
        }
    }

    pub(super) fn note_interim(&mut self, ticket: u64) {
        self.interim = Some(self.interim.unwrap_or(u64::MAX).min(ticket));
    }

    pub(super) fn interim(&mut self, effects: &[Effect], outs: &[Out]) {
        let epoch = self.turn.as_ref().map_or(0, |turn| turn.epoch);
        let ticket = self.push(epoch, Effect::all(effects), true, None);
        self.note_interim(ticket);
        self.let_out(outs, Some(ticket));
        self.seen.said = format!("behind {ticket}");
    }

    pub(super) fn mark(&mut self) {
        if let Some(turn) = self.turn.clone()
            && let Some((id, revision)) = turn.message.alarm
        {
            let set = format!("set {id} {revision}");
            self.push(turn.epoch, vec![(set, Some((id, revision, true)))], false, None);
        }
    }

    /// Lets outputs go. One that closes a connection means the one that was the first before.
    pub(super) fn let_out(&mut self, outs: &[Out], behind: Option<u64>) {
        let first = self.connections.first().copied();
        for out in outs {
            match out {
                Out::Message => self.seen.outputs.push(("message", behind)),
                Out::AfterCommit => self.seen.outputs.push(("after commit", behind)),
                Out::Connect(is_attached) => {
                    if *is_attached {
                        self.connections.push(self.connected);
                    }
                    self.connected += 1;
                }
                Out::Disconnect => {
                    let before = self.connections.len();
                    self.connections.retain(|connection| Some(*connection) != first);
                    self.seen.links += before - self.connections.len();
                }
                Out::Spawn => {
                    self.seen.outputs.push(("task", behind));
                    if self.life.is_none() {
                        self.lives += 1;
                        self.life = Some(self.lives);
                    }
                    self.own_tasks.retain(|task| !self.tasks[*task].has_ended);
                    self.own_tasks.push(self.tasks.len());
                    if (self.tasks.len() + 1).is_multiple_of(2) {
                        self.known.push(self.lives);
                    }
                    self.tasks.push(Task { life: self.lives, is_cancelled: false, has_ended: false });
                }
            }
        }
    }

    pub(super) fn request(&mut self, message: Message, epoch: u64) {
        match self.mode {
            Mode::Gone => self.seen.said = "gone".into(),
            Mode::Busy => self.seen.said = "busy".into(),
            Mode::Idle => {
                self.mode = Mode::Busy;
                if (self.epoch != epoch && self.state.is_some()) || self.has_failed() {
                    self.seen.dropped = self.state.take();
                    let waits = self.end(&Closed::Reset);
                    self.epoch = epoch;
                    self.seen.said = if waits { "unsettled" } else { "free none" }.into();
                    if !waits {
                        self.turn = Some(Turn { message, state: None, epoch });
                    }
                    return;
                }
                self.epoch = epoch;
                let state = self.state.take();
                self.seen.said = format!("free {state:?}");
                self.turn = Some(Turn { message, state, epoch });
            }
        }
    }

    pub(super) fn send(&mut self, message: Message, max: usize) {
        let bounded = self.queue.iter().filter(|waiting| !waiting.holds_permit).count();
        self.seen.said = match self.mode {
            Mode::Gone => "gone",
            Mode::Idle => "free",
            Mode::Busy if message.is_drain && self.queue.iter().any(|waiting| waiting.is_drain) => "needless",
            Mode::Busy if !message.holds_permit && bounded >= max => "full",
            Mode::Busy => {
                self.queue.push(message);
                "queued"
            }
        }
        .into();
    }

    /// Ends the incarnation; whether that has to be waited for.
    fn end(&mut self, reason: &Closed) -> bool {
        self.is_over = false;
        self.end_life(reason);
        let ending = std::mem::take(&mut self.own_tasks);
        if !self.is_settled() || ending.iter().any(|task| !self.tasks[*task].has_ended) {
            self.ending = (ending, self.gate.clone());
            self.is_settling = true;
            return true;
        }
        self.gate = None;
        self.kept.clear();
        false
    }

    fn end_life(&mut self, reason: &Closed) {
        self.held.clear();
        self.life = None;
        for task in &self.own_tasks {
            self.tasks[*task].is_cancelled = true;
        }
        let closed = std::mem::take(&mut self.connections).into_iter();
        self.seen.links += closed.len();
        self.seen.closed.extend(closed.map(|connection| (connection, reason.clone())));
    }

    fn end_and_go_on(&mut self, reason: &Closed) {
        if self.end(reason) {
            self.seen.said = "settle".into();
        } else {
            self.next();
        }
    }

    /// Tells whether what the last incarnation has left is done.
    pub(super) fn may_settle(&self) -> bool {
        let (tasks, gate) = &self.ending;
        self.is_settling && gate.as_ref().is_none_or(is_settled) && tasks.iter().all(|task| self.tasks[*task].has_ended)
    }

    pub(super) fn settled(&mut self) {
        self.is_settling = false;
        self.end_and_go_on(&Closed::Reset);
    }

    fn refuse_all(&mut self, reason: &str) {
        self.seen.refused.extend(self.queue.drain(..).map(|message| (message.number, reason.to_owned())));
    }

    fn is_late(&self, message: &Message) -> bool {
        message.until.is_some_and(|until| until <= self.now)
    }

    /// Refuses those whose time is over.
    pub(super) fn refuse_late(&mut self) {
        let (late, waiting) = std::mem::take(&mut self.queue).into_iter().partition(|message| self.is_late(message));
        self.queue = waiting;
        self.seen.refused.extend(Vec::into_iter(late).map(|message: Message| (message.number, "late".to_owned())));
    }

    pub(super) fn settle_oldest(&mut self, outcome: bool) {
        if !self.lane.is_empty() {
            let oldest = self.lane.remove(0);
            oldest.settle(outcome);
            self.lingering.push(oldest);
        }
    }

    fn next(&mut self) {
        if let Some(outcome) = self.armed.take() {
            self.settle_oldest(outcome);
        }
        if self.owned != Some(self.epoch) && self.state.is_some() {
            self.seen.dropped = self.state.take();
            if self.end(&Closed::Draining) {
                self.seen.said = "settle".into();
                return;
            }
        }
        match self.owned {
            None => self.refuse_all("Fenced"),
            Some(_) if !self.may_act => self.refuse_all("LeaseLost"),
            Some(epoch) => {
                self.refuse_late();
                if !self.queue.is_empty() {
                    let message = self.queue.remove(0);
                    self.epoch = epoch;
                    let state = self.state.take();
                    self.seen.said = format!("run {} with {state:?} at {epoch}", message.number);
                    self.turn = Some(Turn { message, state, epoch });
                    return;
                }
            }
        }
        if !self.is_anything_kept() {
            self.forget_the_rest();
        }
        self.mode = Mode::Idle;
        self.seen.said = "idle".into();
        if self.state.is_none() {
            if self.is_settled() {
                self.leave();
            } else {
                self.seen.waits += 1;
                self.gates.extend(self.gate.clone().map(|gate| (gate.clone(), gate.borrow().len())));
            }
        }
    }

    pub(super) fn is_anything_kept(&self) -> bool {
        !self.is_settled()
            || self.has_failed()
            || self.is_busy_with_tasks()
            || self.life.is_some_and(|life| self.known.contains(&life))
            || !(self.queue.is_empty() && self.held.is_empty() && self.own_tasks.is_empty())
            || !self.connections.is_empty()
    }

    fn forget_the_rest(&mut self) {
        (self.gate, self.external, self.interim, self.is_over, self.life) = (None, None, None, false, None);
        self.kept.clear();
        self.held.clear();
        self.own_tasks.clear();
        self.connections.clear();
    }

    fn leave(&mut self) {
        self.mode = Mode::Gone;
        self.forget_the_rest();
        self.seen.gone += 1;
    }

    pub(super) fn refuse_next(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.seen.refused.push((turn.message.number, "LeaseLost".into()));
            self.state = turn.state;
            self.next();
        }
    }

    pub(super) fn leave_if_empty(&mut self) {
        if self.mode == Mode::Idle && self.state.is_none() && self.is_settled() {
            self.leave();
        }
    }

    pub(super) fn passivate(&mut self, epoch: u64, even_held: bool) {
        let is_kept =
            !self.connections.is_empty() || self.is_busy_with_tasks() || (!even_held && !self.held.is_empty());
        if self.mode != Mode::Idle || self.state.is_none() || is_kept {
            self.seen.said = "no".into();
            return;
        }
        self.mode = Mode::Busy;
        let (message, state) = (Message { holds_permit: true, ..Message::default() }, self.state.take());
        self.seen.said = format!("run 0 with {state:?} at {epoch}");
        self.turn = Some(Turn { message, state, epoch });
    }

    pub(super) fn forget(&mut self, is_all: bool) {
        self.seen.said = "no".into();
        if self.mode != Mode::Gone
            && !is_all
            && let Some(outcome) = self.armed.take()
        {
            self.settle_oldest(outcome);
        }
        if self.mode == Mode::Gone || !(is_all || self.owned != Some(self.epoch)) {
            return;
        }
        if self.mode == Mode::Busy {
            self.is_over = true;
            self.end_life(&Closed::Draining);
            return;
        }
        self.mode = Mode::Busy;
        self.seen.dropped = self.state.take();
        self.end_and_go_on(&Closed::Draining);
    }

    pub(super) fn abandon(&mut self) {
        self.mode = Mode::Gone;
        self.seen.dropped = self.state.take();
        // Tasks are the host's to end, and what is under way the committer's.
        let before = (self.is_settling, self.ending.clone());
        self.end(&Closed::Draining);
        (self.is_settling, self.ending) = before;
        self.refuse_all("Stopped");
        self.forget_the_rest();
    }

    pub(super) fn client_left(&mut self) {
        if !self.connections.is_empty() {
            self.connections.remove(0);
        }
    }

    /// A task says that it has ended.
    pub(super) fn task_ended(&mut self, number: usize) {
        if self.life == Some(self.tasks[number].life) {
            self.own_tasks.retain(|task| !self.tasks[*task].has_ended);
        }
    }

    pub(super) fn run_tasks(&mut self, end: Option<usize>) {
        for (number, task) in self.tasks.iter_mut().enumerate() {
            task.has_ended |= task.is_cancelled || end == Some(number);
        }
    }

    /// The turn ends.
    pub(super) fn finish(&mut self, end: &End, fresh: u32) {
        let Some(turn) = self.turn.take() else { return };
        let mut interim = self.interim.take();
        let mut alarm = turn.message.alarm;
        if let Some(external) = self.external.take() {
            let is_refused = matches!(*external.decision.borrow(), Some(Decision::Refused));
            if !is_refused {
                interim = Some(interim.unwrap_or(u64::MAX).min(external.under_way.ticket as u64));
                alarm = alarm.filter(|_| !external.completes);
            }
        }
        let (mut is_ok, mut has_failed_start) = (false, false);
        let ends = match end.how {
            How::Panics | How::TimesOut | How::StopIsCut => {
                if end.how != How::StopIsCut {
                    self.push_failure(turn.epoch, alarm);
                }
                Some(if end.how == How::StopIsCut { Closed::Stopped } else { Closed::Reset })
            }
            How::Ok | How::Fails | How::FailsOnStore | How::IsFenced => {
                self.state = if end.is_gone { None } else { turn.state.or(end.builds.then_some(fresh)) };
                self.epoch = turn.epoch;
                has_failed_start = end.has_failed_start;
                is_ok = end.how == How::Ok && !end.is_cut && self.owned == Some(turn.epoch);
                let ends = if is_ok {
                    self.commit_turn(&turn, alarm, end);
                    end.ends.clone()
                } else {
                    // What was replaced by a doubt, or is not this host's any more, is not told to the store as a failure.
                    let is_tried = end.how != How::Ok && end.how != How::IsFenced;
                    self.push_failure(turn.epoch, alarm.filter(|_| is_tried));
                    let ends = end.ends.clone().or((end.is_cut || end.has_failed_start).then_some(Closed::Reset));
                    if ends.is_none() {
                        let first = self.connections.first().copied();
                        let disconnects = end.outs.iter().filter(|out| matches!(out, Out::Disconnect)).count();
                        let stay: Vec<_> = first.into_iter().cycle().take(disconnects).collect();
                        self.seen.links += stay.len();
                        self.seen.stay_open.extend(stay);
                    }
                    ends
                };
                if end.passivates && ends.is_none() {
                    self.queue.push(Message { holds_permit: true, ..Message::default() });
                }
                ends
            }
        };
        let has_failed = self.has_failed();
        let behind = self.pending();
        if is_ok {
            self.let_out(&end.outs, behind);
        } else {
            self.connected += end.outs.iter().filter(|out| matches!(out, Out::Connect(_))).count();
        }
        if has_failed_start {
            self.refuse_all(if end.how == How::FailsOnStore { "Store" } else { "NotStarted" });
        }
        let ends = ends.or(has_failed.then_some(Closed::Reset)).or(self.is_over.then_some(Closed::Draining));
        let is_reset = ends == Some(Closed::Reset);
        for kept in &mut self.kept {
            kept.is_of_turn = false;
        }
        match ends {
            Some(reason) => {
                self.seen.dropped = self.state.take();
                self.end_and_go_on(&reason);
            }
            None => self.next(),
        }
        let reply = if is_ok {
            "ok"
        } else if interim.is_some() || (end.is_cut && end.how == How::Ok) {
            "unknown"
        } else {
            "failed"
        };
        let next = std::mem::take(&mut self.seen.said);
        self.seen.said = format!("{reply} behind {behind:?} interim {interim:?} reset {is_reset}, {next}");
    }

    fn push_failure(&mut self, epoch: u64, alarm: Option<(u8, u64)>) {
        if let Some((id, revision)) = alarm {
            let ops = if self.is_replaced(id, revision) { Vec::new() } else { vec![(format!("why {id}"), None)] };
            self.push(epoch, ops, true, Some(revision));
        }
    }

    fn commit_turn(&mut self, turn: &Turn, alarm: Option<(u8, u64)>, end: &End) {
        let ops = Effect::all(&end.effects);
        let touches_alarms = ops.iter().any(|(_, alarm)| alarm.is_some());
        match alarm {
            Some((id, revision)) if end.holds => {
                if turn.message.must_mark && !self.is_replaced(id, revision) {
                    let set = format!("set {id} {revision}");
                    self.push(turn.epoch, vec![(set, Some((id, revision, true)))], false, None);
                }
                if !ops.is_empty() {
                    self.push(turn.epoch, ops, true, None);
                }
                self.held.push((id, revision));
            }
            None if ops.is_empty() => {}
            alarm => _ = self.push(turn.epoch, ops, true, alarm.map(|(_, revision)| revision)),
        }
        if touches_alarms {
            let held = std::mem::take(&mut self.held);
            self.held = held
                .into_iter()
                .filter(|(id, revision)| self.last_word(*id).is_none_or(|last| last == (*revision, true)))
                .collect();
        }
    }
}
