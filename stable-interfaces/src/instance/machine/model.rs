//! The machine against a model: one queue, one log, one gate.
//!
//! A case is a list of what may happen to one instance: requests, messages that wait, turns that end in every way, commits whose
//! outcomes come late or out of order, tasks, connections, alarms that are held, a shard that is lost and owned again, a lease that runs
//! out. After each step everything that could be seen of the machine, and everything that it keeps, must be as the model has it. The
//! model ([`spec`]) says what is to happen without a thought of what it costs: where the machine has a cold part or none, a quick end
//! of a turn or a slow one, the model has one rule.

#![allow(
    clippy::type_complexity,
    clippy::panic,
    reason = "what is compared is written out, and a model fails by panicking"
)]

mod spec;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

use self::spec::Spec;
use self::world::{Seen, World, alarm, brief};
use super::*;
use crate::cases::{self, Checked, Subject};
use crate::commit::gate::Failure;
use crate::commit::in_doubt::{CommitOutcome, InDoubt};
use crate::connection::ConnectionId;
use crate::instance::recorded::{Enlisted as Enlisting, Output, hand_over};
use crate::store::StoreError;

/// The most messages that may wait without a permit.
const MAX_WAITING: usize = 3;

/// A message that waits for its turn, or has it.
#[derive(Debug, Clone, Default)]
struct Message {
    number: u32,
    /// The second until which it waits.
    until: Option<u64>,
    holds_permit: bool,
    is_drain: bool,
    /// The alarm that it is, and the revision of its setting.
    alarm: Option<(u8, u64)>,
    must_mark: bool,
}

impl Waiter for Message {
    fn waits_until(&self) -> Duration {
        self.until.map_or(Duration::MAX, Duration::from_secs)
    }

    fn holds_permit(&self) -> bool {
        self.holds_permit
    }

    fn is_drain(&self) -> bool {
        self.is_drain
    }
}

/// An effect that a handler records.
#[derive(Debug, Clone, Copy)]
enum Effect {
    Put(u8),
    /// An alarm is set, with the revision it is given.
    Set(u8, u64),
    Cancel(u8, u64),
}

impl Effect {
    fn op(self) -> Op {
        let name = alarm(0, 0).name;
        match self {
            Effect::Put(key) => Op::Put { name, key: format!("put {key}").into(), value: bytes::Bytes::new() },
            Effect::Set(id, revision) => Op::PutAlarm(alarm(id, revision)),
            Effect::Cancel(id, revision) => {
                Op::RemoveAlarm { name, id: id.to_string().into(), revision: alarm(id, revision).revision }
            }
        }
    }

    /// Effects in words, and what each says of which alarm.
    fn all(effects: &[Effect]) -> Vec<(String, Option<(u8, u64, bool)>)> {
        let all = effects.iter().map(|effect| {
            let of_alarm = match *effect {
                Effect::Put(_) => None,
                Effect::Set(id, revision) => Some((id, revision, true)),
                Effect::Cancel(id, revision) => Some((id, revision, false)),
            };
            (brief(&effect.op()), of_alarm)
        });
        all.collect()
    }
}

/// An output of a handler.
#[derive(Debug, Clone, Copy)]
enum Out {
    Message,
    AfterCommit,
    /// A connection, unless the handler has closed it already.
    Connect(bool),
    /// Closes the first connection there is.
    Disconnect,
    Spawn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Ok,
    Fails,
    FailsOnStore,
    IsFenced,
    Panics,
    TimesOut,
    StopIsCut,
}

/// The end of a turn.
#[derive(Debug, Clone)]
struct End {
    how: How,
    /// Tells whether it builds an instance where there is none, and whether it drops what there is.
    builds: bool,
    is_gone: bool,
    effects: Vec<Effect>,
    outs: Vec<Out>,
    holds: bool,
    passivates: bool,
    ends: Option<Closed>,
    has_failed_start: bool,
    /// Tells whether it turned away from an enlistment in doubt.
    is_cut: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Committed,
    Refused,
    Lost,
}

/// The next step. One that is not possible where it stands does nothing, so that anything may be left out of a case.
#[derive(Debug, Clone)]
enum Step {
    /// A message tries to take it, under the epoch that was known a moment ago or the one before.
    Request {
        message: Message,
        is_stale: bool,
    },
    /// A message is to wait.
    Send(Message),
    End(End),
    /// The turn under way commits a part, a mark, or has a transaction take a part along.
    Interim(Vec<Effect>, Vec<Out>),
    Mark,
    Enlist {
        completes: bool,
        effects: Vec<Effect>,
    },
    Decide(Decision),
    LetOut(Vec<Out>),
    NoteDurable,
    /// The message whose turn it is, and all behind it, are refused: the lease is over.
    RefuseNext,
    /// The outcome of the oldest commit in the lane.
    Outcome(bool),
    /// The same, in the middle of the next step.
    OutcomeMeanwhile(bool),
    /// The newest one is withdrawn.
    Withdraw,
    /// Commits whose outcomes are known leave memory.
    LeaveMemory,
    /// The remains of an incarnation are looked at.
    Settled,
    RunTasks,
    /// A task ends by itself, counted from the last, and says so or is about to.
    EndTask(usize, bool),
    /// Handles of incarnations are let go.
    DropHandles,
    /// A number of seconds pass; whoever watches the queue looks at it.
    Wait(u64),
    Lose,
    Own,
    Lease(bool),
    /// Says whether the window knows the alarm that is handled.
    Fires(bool),
    Passivate {
        even_held: bool,
    },
    Forget {
        is_all: bool,
    },
    LeaveIfEmpty,
    ClientLeaves,
    Abandon,
}

struct Cases;

impl ReferenceStateMachine for Cases {
    type State = ();
    type Transition = Step;

    fn init_state() -> BoxedStrategy<()> {
        Just(()).boxed()
    }

    fn transitions((): &()) -> BoxedStrategy<Step> {
        let message = (
            1..1_000_000_u32,
            option::of(0..30_u64),
            0..8_u8,
            option::weighted(0.4, (0..2_u8, 1..100_u64)),
            any::<bool>(),
        );
        let message = message.prop_map(|(number, until, kind, alarm, must_mark)| Message {
            number,
            // A host that drains waits for as long as that takes.
            until: until.filter(|_| kind != 2),
            holds_permit: kind <= 2 || alarm.is_some(),
            is_drain: kind == 2,
            alarm,
            must_mark,
        });
        let effect = || {
            prop_oneof![
                3 => (0..3_u8).prop_map(Effect::Put),
                // Later than every alarm that has fired.
                1 => (0..2_u8, 100..200_u64).prop_map(|(id, revision)| Effect::Set(id, revision)),
                1 => (0..2_u8, 100..200_u64).prop_map(|(id, revision)| Effect::Cancel(id, revision)),
            ]
        };
        let outs = || {
            let out = prop_oneof![
                1 => Just(Out::Message),
                1 => Just(Out::AfterCommit),
                3 => any::<bool>().prop_map(Out::Connect),
                2 => Just(Out::Disconnect),
                4 => Just(Out::Spawn),
            ];
            prop_oneof![3 => Just(Vec::new()), 2 => vec(out, 1..3)]
        };
        let effects = || prop_oneof![1 => Just(Vec::new()), 1 => vec(effect(), 1..3)];
        let how = prop_oneof![
            12 => Just(How::Ok),
            4 => Just(How::Fails),
            1 => Just(How::FailsOnStore),
            1 => Just(How::IsFenced),
            1 => Just(How::Panics),
            1 => Just(How::TimesOut),
            1 => Just(How::StopIsCut),
        ];
        let rarely = || prop::bool::weighted(0.08);
        let ends =
            option::weighted(0.08, prop_oneof![Just(Closed::Reset), Just(Closed::Stopped), Just(Closed::Draining)]);
        let end = (
            (how, prop::bool::weighted(0.8), rarely(), effects(), outs()),
            (any::<bool>(), rarely(), ends, rarely(), rarely()),
        );
        let end = end.prop_map(
            |((how, builds, is_gone, effects, outs), (holds, passivates, ends, has_failed_start, is_cut))| End {
                how,
                builds,
                is_gone,
                effects,
                outs,
                holds,
                passivates,
                ends,
                has_failed_start,
                is_cut,
            },
        );
        // What needs no instance, such as an alarm that is set from outside.
        let without_instance = vec(effect(), 1..3).prop_map(|effects| End {
            how: How::Ok,
            builds: false,
            is_gone: false,
            effects,
            outs: Vec::new(),
            holds: false,
            passivates: false,
            ends: None,
            has_failed_start: false,
            is_cut: false,
        });
        let end = prop_oneof![4 => end, 1 => without_instance];
        let decision =
            prop_oneof![2 => Just(Decision::Committed), 1 => Just(Decision::Refused), 1 => Just(Decision::Lost)];
        prop_oneof![
            20 => (message.clone(), rarely()).prop_map(|(message, is_stale)| Step::Request { message, is_stale }),
            10 => message.prop_map(Step::Send),
            26 => end.prop_map(Step::End),
            3 => (effects(), outs()).prop_map(|(effects, outs)| Step::Interim(effects, outs)),
            2 => Just(Step::Mark),
            3 => (any::<bool>(), effects()).prop_map(|(completes, effects)| Step::Enlist { completes, effects }),
            4 => decision.prop_map(Step::Decide),
            1 => outs().prop_map(Step::LetOut),
            1 => Just(Step::NoteDurable),
            1 => Just(Step::RefuseNext),
            14 => prop::bool::weighted(0.93).prop_map(Step::Outcome),
            3 => prop::bool::weighted(0.5).prop_map(Step::OutcomeMeanwhile),
            1 => Just(Step::Withdraw),
            8 => Just(Step::LeaveMemory),
            6 => Just(Step::Settled),
            4 => Just(Step::RunTasks),
            8 => (0..2_usize, prop::bool::weighted(0.7)).prop_map(|(number, says)| Step::EndTask(number, says)),
            1 => Just(Step::DropHandles),
            3 => (0..9_u64).prop_map(Step::Wait),
            2 => Just(Step::Lose),
            5 => Just(Step::Own),
            2 => prop::bool::weighted(0.8).prop_map(Step::Lease),
            2 => prop::bool::weighted(0.8).prop_map(Step::Fires),
            6 => any::<bool>().prop_map(|even_held| Step::Passivate { even_held }),
            1 => any::<bool>().prop_map(|is_all| Step::Forget { is_all }),
            6 => Just(Step::LeaveIfEmpty),
            1 => Just(Step::ClientLeaves),
            1 => prop::bool::weighted(0.3).prop_map(|is_over| if is_over { Step::Abandon } else { Step::Settled }),
        ]
        .boxed()
    }

    fn apply((): (), _: &Step) {}
}

/// Counts of what a case must be able to bring about.
type Met = BTreeMap<&'static str, usize>;

/// An enlistment of the turn under way.
struct Enlisted {
    in_doubt: Arc<InDoubt>,
    ticket: Ticket,
    /// Kept by the transaction until it is decided.
    _commit: Arc<Commit>,
    of_model: spec::External,
}

/// A machine, its model, and what was taken out of both.
struct Model<'a> {
    machine: Machine<u32, Message>,
    world: World,
    spec: Spec,
    ended: Option<Ended>,
    turn: Option<(Message, State<u32>, Epoch)>,
    /// Tells whether its handler has begun.
    has_begun: bool,
    delivery: Option<Delivery>,
    enlisted: Option<Enlisted>,
    last_epoch: u64,
    built: u32,
    is_abandoned: bool,
    met: &'a RefCell<Met>,
}

impl<'a> Model<'a> {
    fn new(met: &'a RefCell<Met>) -> Model<'a> {
        Model {
            machine: Machine::new(),
            world: World::new(),
            spec: Spec::new(),
            ended: None,
            turn: None,
            has_begun: false,
            delivery: None,
            enlisted: None,
            last_epoch: 1,
            built: 0,
            is_abandoned: false,
            met,
        }
    }

    fn note(&self, what: &'static str) {
        *self.met.borrow_mut().entry(what).or_default() += 1;
    }

    /// Begins the turn of a message, with the delivery of the alarm that it is.
    fn begin(&mut self, message: Message, state: State<u32>, epoch: Epoch) {
        self.delivery = message.alarm.map(|(id, revision)| self.world.delivery(id, revision, message.must_mark));
        self.turn = Some((message, state, epoch));
        self.has_begun = false;
    }

    fn went_on(&mut self, next: Next<u32, Message>) -> String {
        match next {
            Next::Idle => "idle".to_owned(),
            Next::Settle(ended) => {
                self.note("incarnations waited for");
                self.ended = Some(ended);
                "settle".to_owned()
            }
            Next::Run(message, state, epoch) => {
                self.note("messages whose turn came");
                let said =
                    format!("run {} with {:?} at {}", message.number, state.as_ref().map(|state| **state), epoch.0);
                self.begin(message, state, epoch);
                said
            }
        }
    }

    /// Does something to the machine; everything that could be seen of it.
    fn act(&mut self, act: impl FnOnce(&mut Model<'_>, &mut Left<u32, Message>) -> String) -> Seen {
        *self.world.notes.lock() = Seen::default();
        let mut left = Left::default();
        let said = act(self, &mut left);
        let mut seen = std::mem::take(&mut *self.world.notes.lock());
        seen.said = said;
        seen.dropped = left.state.as_ref().map(|state| **state);
        seen.links = left.links.len();
        seen.refused.extend(left.late.iter().map(|message| (message.number, "late".to_owned())));
        seen.refused.extend(left.refused.iter().map(|(message, refusal)| {
            let why = format!("{refusal:?}");
            (message.number, why.split(['(', ' ']).next().unwrap_or_default().to_owned())
        }));
        seen
    }

    fn outputs(&mut self, outs: &[Out]) -> Vec<Output> {
        let first = self.spec.connections.first().map(|number| self.world.connections[*number]);
        let output = |out: &Out| match out {
            Out::Message => Some(Output::Release(self.world.message())),
            Out::AfterCommit => Some(Output::AfterCommit(hand_over(Box::new(|| ())))),
            Out::Connect(is_attached) => Some(Output::Connect(Some(self.world.connection(*is_attached)))),
            Out::Disconnect => first.map(Output::Disconnect),
            Out::Spawn => Some(Output::Spawn(hand_over(Box::new(|_| Box::pin(async {}))))),
        };
        outs.iter().filter_map(output).collect()
    }

    fn recorded(&mut self, end: &End) -> Recorded {
        let mut recorded = Recorded::default();
        let is_plain = end.effects.is_empty() && end.outs.is_empty() && end.ends.is_none();
        if is_plain && !(end.holds || end.passivates || end.has_failed_start || end.is_cut) {
            return recorded;
        }
        let outputs = self.outputs(&end.outs);
        let cold = recorded.cold();
        for effect in &end.effects {
            cold.effects.record_own(effect.op());
        }
        cold.outputs.get_mut().extend(outputs);
        cold.holds_alarm = end.holds;
        cold.wants_passivation = end.passivates;
        cold.ends = end.ends.clone();
        cold.failed_start = end.has_failed_start.then(|| "why".to_owned());
        if end.is_cut {
            recorded.set_enlisted(Enlisting::Cut);
        }
        recorded
    }

    /// Builds the instance, if the turn under way has none yet.
    fn build(&mut self) {
        if let (Some((_, state, _)), Some(turn)) = (&mut self.turn, &mut self.spec.turn)
            && state.is_none()
        {
            self.built += 1;
            *state = State::new(Box::new(self.built));
            turn.state = Some(self.built);
        }
    }

    /// Ends the turn under way as a slot does.
    fn finish(&mut self, end: &End, left: &mut Left<u32, Message>) -> String {
        let (message, mut state, epoch) = self.turn.take().expect("there is a turn");
        let recorded = self.recorded(end);
        let delivery = self.delivery.take();
        if end.is_gone {
            state = State::none();
        } else if state.is_none() && end.builds {
            state = State::new(Box::new(self.built));
        }
        let was_woken = message.alarm.is_some();
        let store = || Arc::new(StoreError::NotApplied("why".into()));
        let result: Outcome<(), ContextError> = match end.how {
            How::Ok => Ok(()),
            How::FailsOnStore => Err(RequestError::Store(store()).into()),
            How::IsFenced => Err(RequestError::Fenced.into()),
            _ => Err(RequestError::Rejected("why".into()).into()),
        };
        let ending = match end.how {
            How::Panics | How::TimesOut => {
                Ending::Broken { error: RequestError::Panicked("why".into()), reason: Closed::Reset }
            }
            How::StopIsCut => Ending::Broken { error: RequestError::Panicked("why".into()), reason: Closed::Stopped },
            _ if state.is_some() && recorded.is_empty() && delivery.is_none() => {
                match self.machine.finish_quietly(epoch, state, || self.world.owned()) {
                    Ok(()) => {
                        self.note("quiet ends");
                        let reply = if result.is_ok() { "ok" } else { "failed" };
                        return format!("{reply} behind None interim None reset false, idle");
                    }
                    Err(state) => Ending::Returned { state, recorded, result },
                }
            }
            _ => Ending::Returned { state, recorded, result },
        };
        let is_tried = !matches!(end.how, How::Ok | How::IsFenced | How::StopIsCut);
        let failure = (was_woken && is_tried).then(|| "why".to_owned());
        let finished = self.machine.finish(&mut self.world, left, epoch, ending, delivery, failure);
        let Answer { result, behind, interim } = finished.answer;
        let reply = match result.map_err(|error| *error) {
            Ok(()) => "ok",
            Err(RequestError::Unknown(_)) => "unknown",
            Err(_) => "failed",
        };
        let is_withheld = finished.withheld.is_some();
        assert_eq!(
            is_withheld,
            (end.is_cut || self.spec.owned != Some(epoch.0)) && end.how == How::Ok,
            "a reply is withheld where the handler has turned away, or its shard is not this host's any more"
        );
        let interim = (interim != NO_COMMIT).then_some(interim);
        let behind = behind.map(|ticket| ticket.number());
        let is_reset = finished.is_reset;
        let next = self.went_on(finished.next);
        format!("{reply} behind {behind:?} interim {interim:?} reset {is_reset}, {next}")
    }

    /// Everything that the machine keeps, beside the model's.
    fn check(&self) -> Checked {
        let (machine, spec) = (&self.machine, &self.spec);
        let cold = machine.cold.as_ref();
        prop_assert_eq!(machine.mode, spec.mode);
        prop_assert!(machine.mode == Mode::Idle || machine.state.is_none(), "a state rests in an idle machine only");
        prop_assert_eq!(machine.state.as_ref().map(|state| **state), spec.state);
        if spec.mode != Mode::Gone {
            prop_assert_eq!(machine.epoch.0, spec.epoch);
        }
        let queue: Vec<_> = cold.iter().flat_map(|cold| cold.queue.waiting()).map(|message| message.number).collect();
        prop_assert_eq!(queue, spec.queue.iter().map(|message| message.number).collect::<Vec<_>>());
        let is_draining = cold.is_some_and(|cold| cold.is_draining);
        prop_assert_eq!(is_draining, spec.queue.iter().any(|message| message.is_drain));
        let held = cold.iter().flat_map(|cold| &cold.held).map(|delivery| match delivery.wake() {
            Wake::Alarm(alarm) => alarm.revision.counter,
            Wake::Message(_) => 0,
        });
        prop_assert_eq!(held.collect::<Vec<_>>(), spec.held.iter().map(|(_, revision)| *revision).collect::<Vec<_>>());
        let connections: Vec<ConnectionId> = cold.iter().flat_map(|cold| cold.connections.keys().copied()).collect();
        let of_model = spec.connections.iter().map(|number| self.world.connections[*number]);
        prop_assert_eq!(connections, of_model.collect::<Vec<_>>());
        prop_assert_eq!(cold.map_or(0, |cold| cold.tasks.len()), spec.own_tasks.len());
        let unsettled =
            machine.unsettled().iter().map(|commit| commit.ops.iter().map(brief).collect()).collect::<Vec<Vec<_>>>();
        prop_assert_eq!(unsettled, spec.unsettled());
        prop_assert_eq!(machine.pending().map(|ticket| ticket.number()), spec.pending());
        let settled = cold.and_then(|cold| cold.gate.as_ref()).map_or(0, |gate| gate.settled());
        prop_assert_eq!(settled, spec.gate.as_ref().map_or(0, |gate| spec::settled(gate) as u64));
        prop_assert_eq!(cold.map_or(NO_COMMIT, |cold| cold.interim), spec.interim.unwrap_or(NO_COMMIT));
        prop_assert_eq!(cold.is_some_and(|cold| cold.is_over), spec.is_over);
        prop_assert_eq!(cold.is_some_and(|cold| cold.in_doubt.is_some()), spec.external.is_some());
        prop_assert_eq!(self.turn.is_some(), spec.turn.is_some());
        for (life, task) in self.world.lives.iter().zip(&spec.tasks) {
            if let Some(life) = life.upgrade() {
                prop_assert_eq!(
                    life.has_ended(),
                    spec.life != Some(task.life),
                    "who belongs to an incarnation knows its end"
                );
            }
        }
        let may_settle = self.ended.as_ref().is_some_and(|ended| {
            ended.gate.as_ref().is_none_or(|gate| gate.is_settled()) && ended.tasks.iter().all(|task| task.has_ended())
        });
        prop_assert_eq!(may_settle, spec.may_settle());
        Ok(())
    }
}

impl Subject<Cases> for Model<'_> {
    fn apply(&mut self, (): &(), step: &Step) -> Checked {
        self.spec.seen = Seen::default();
        let is_of_turn =
            matches!(step, Step::Interim(..) | Step::Mark | Step::Enlist { .. } | Step::LetOut(_) | Step::NoteDurable);
        self.has_begun |= is_of_turn;
        if let Step::Interim(_, outs) | Step::LetOut(outs) = step
            && !outs.is_empty()
        {
            self.build();
        }
        let seen = match step {
            Step::Request { message, is_stale } => {
                // Nothing of a shard that is not owned gets as far as this.
                let Some(owned) = self.spec.owned else { return Ok(()) };
                let epoch = if *is_stale { owned.saturating_sub(1).max(1) } else { owned };
                self.spec.request(message.clone(), epoch);
                self.act(|model, left| {
                    let epoch = Epoch(epoch);
                    match model.machine.take(epoch) {
                        Take::Busy => "busy".into(),
                        Take::Gone => "gone".into(),
                        Take::Free(state) => {
                            model.note("turns of idle instances");
                            let said = format!("free {:?}", state.as_ref().map(|state| **state));
                            model.begin(message.clone(), state, epoch);
                            said
                        }
                        Take::Stale => {
                            model.note("incarnations that nothing may follow in");
                            match model.machine.renew(epoch, left) {
                                Some(Next::Settle(ended)) => {
                                    model.ended = Some(ended);
                                    "unsettled".into()
                                }
                                Some(_) => "something else".into(),
                                None => {
                                    model.begin(message.clone(), State::none(), epoch);
                                    "free none".into()
                                }
                            }
                        }
                    }
                })
            }
            Step::Send(message) => {
                self.spec.send(message.clone(), MAX_WAITING);
                self.act(|model, _| match model.machine.enqueue(message.clone(), MAX_WAITING) {
                    Ok(()) => "queued".into(),
                    Err(Enqueue::Gone(_)) => "gone".into(),
                    Err(Enqueue::Free(_)) => "free".into(),
                    Err(Enqueue::Full(_)) => {
                        model.note("full queues");
                        "full".into()
                    }
                    Err(Enqueue::Needless(_)) => {
                        model.note("needless messages");
                        "needless".into()
                    }
                })
            }
            Step::End(end) => {
                if self.turn.is_none() {
                    return Ok(());
                }
                self.built += 1;
                self.note("ends");
                self.note(match end.how {
                    How::Ok => "handlers that succeed",
                    How::Fails | How::FailsOnStore | How::IsFenced => "handlers that fail",
                    How::Panics | How::TimesOut | How::StopIsCut => "handlers that break",
                });
                // Only an instance lets anything out, and one that leaves says so.
                let end = End {
                    holds: end.holds && self.delivery.is_some(),
                    builds: end.builds || !end.outs.is_empty(),
                    ends: end.ends.clone().or(end.is_gone.then_some(Closed::Stopped)),
                    ..end.clone()
                };
                let (built, is_mine) = (
                    self.built,
                    self.enlisted.as_ref().is_some_and(|enlisted| enlisted.of_model.decision.borrow().is_some()),
                );
                let seen = self.act(|model, left| model.finish(&end, left));
                self.spec.finish(&end, built);
                if is_mine {
                    self.enlisted = None;
                }
                seen
            }
            Step::Interim(effects, outs) => {
                let Some((_, _, epoch)) = &self.turn else { return Ok(()) };
                let epoch = *epoch;
                let outputs = self.outputs(outs);
                self.spec.interim(effects, outs);
                self.note("interim commits");
                self.act(|model, left| {
                    left.outputs = outputs;
                    let ops = effects.iter().map(|effect| effect.op()).collect();
                    let ticket = model.machine.commit_interim(&mut model.world, left, epoch, ops);
                    format!("behind {}", ticket.map_or(0, |ticket| ticket.number()))
                })
            }
            Step::Mark => {
                let (Some((_, _, epoch)), Some(delivery)) = (&self.turn, &self.delivery) else { return Ok(()) };
                let (epoch, mark) = (*epoch, delivery.wake().mark());
                self.spec.mark();
                self.act(|model, _| {
                    _ = model.machine.commit_mark(&mut model.world, epoch, mark);
                    String::new()
                })
            }
            Step::Enlist { completes, effects } => {
                let is_free =
                    self.enlisted.as_ref().is_none_or(|enlisted| enlisted.of_model.decision.borrow().is_some());
                let Some((_, _, epoch)) = self.turn.as_ref().filter(|_| is_free) else { return Ok(()) };
                self.note("enlistments");
                let (epoch, in_doubt) = (*epoch, Arc::new(InDoubt::new(*completes)));
                let ops = effects.iter().map(|effect| effect.op()).collect();
                let commit = self.world.draft(epoch, ops, Windows::Follow).expect("there is a store");
                self.spec.external(*completes, effects);
                let of_model = self.spec.external.clone().expect("it has one");
                let (ticket, commit) = self.machine.commit_externally(commit, &in_doubt);
                self.enlisted = Some(Enlisted { in_doubt, ticket, _commit: commit, of_model });
                self.act(|_, _| String::new())
            }
            Step::Decide(decision) => {
                let Some(enlisted) = self.enlisted.take_if(|enlisted| enlisted.of_model.decision.borrow().is_none())
                else {
                    return Ok(());
                };
                let store = || Arc::new(StoreError::NotApplied("why".into()));
                let told = enlisted.in_doubt.decide(match decision {
                    Decision::Committed => CommitOutcome::Committed,
                    Decision::Refused => CommitOutcome::Refused(store()),
                    Decision::Lost => CommitOutcome::Lost(Failure::Unknown),
                });
                *enlisted.of_model.decision.borrow_mut() = Some(*decision);
                enlisted.of_model.under_way.settle(told.is_ok());
                enlisted.of_model.under_way.leave_memory();
                enlisted.ticket.settle(told);
                drop(enlisted);
                self.act(|_, _| String::new())
            }
            Step::LetOut(outs) => {
                if self.turn.is_none() {
                    return Ok(());
                }
                let outputs = self.outputs(outs);
                self.spec.let_out(outs, None);
                self.act(|model, left| {
                    left.outputs = outputs;
                    model.machine.release(&mut model.world, left, None);
                    String::new()
                })
            }
            Step::NoteDurable => {
                if self.turn.is_none() {
                    return Ok(());
                }
                self.spec.note_interim(0);
                self.machine.note_interim(0);
                self.act(|_, _| String::new())
            }
            Step::RefuseNext => {
                let Some((message, state, _)) = self.turn.take_if(|_| !self.has_begun) else { return Ok(()) };
                self.delivery = None;
                self.note("messages refused when their turn had come");
                self.spec.refuse_next();
                self.act(|model, left| {
                    let next = model.machine.refuse_next(&mut model.world, left, message, state);
                    model.went_on(next)
                })
            }
            Step::Outcome(is_ok) => {
                self.spec.settle_oldest(*is_ok);
                if !self.world.settle_oldest(*is_ok) {
                    return Ok(());
                }
                self.act(|_, _| String::new())
            }
            Step::OutcomeMeanwhile(is_ok) => {
                self.spec.armed = Some(*is_ok);
                self.world.armed.set(Some(*is_ok));
                return Ok(());
            }
            Step::Withdraw => {
                let Some(queued) = self.world.under_way.get_mut().pop_back() else { return Ok(()) };
                let newest = self.spec.lane.pop().expect("it is as long");
                newest.settle(false);
                newest.leave_memory();
                queued.settle(Err(Failure::Fenced));
                self.act(|_, _| String::new())
            }
            Step::LeaveMemory => {
                self.world.lingering.get_mut().clear();
                self.spec.lingering.drain(..).for_each(|commit| commit.leave_memory());
                self.act(|_, _| String::new())
            }
            Step::Settled => {
                if !self.spec.may_settle() {
                    return Ok(());
                }
                self.ended = None;
                self.spec.settled();
                self.act(|model, left| {
                    let next = model.machine.settled(&mut model.world, left);
                    model.went_on(next)
                })
            }
            Step::RunTasks => {
                self.spec.run_tasks(None);
                self.world.run_tasks(None);
                self.act(|_, _| String::new())
            }
            Step::EndTask(number, says) => {
                let Some(number) = self.spec.tasks.len().checked_sub(*number + 1) else { return Ok(()) };
                let life = self.world.lives[number].upgrade();
                self.spec.run_tasks(Some(number));
                self.world.run_tasks(Some(number));
                if let Some(life) = life.filter(|_| *says) {
                    self.note("tasks that ended");
                    self.spec.task_ended(number);
                    self.machine.task_ended(&life, TaskHandle::has_ended);
                }
                self.act(|_, _| String::new())
            }
            Step::DropHandles => {
                self.world.known.clear();
                self.spec.known.clear();
                self.act(|_, _| String::new())
            }
            Step::Wait(seconds) => {
                self.spec.now += seconds;
                self.world.now += Duration::from_secs(*seconds);
                if self.machine.mode != Mode::Busy {
                    return Ok(());
                }
                self.spec.refuse_late();
                let of_model = self.spec.queue.iter().filter_map(|message| message.until).min();
                self.act(|model, left| {
                    let sooner = Arc::new(Notify::new());
                    let (late, next_look) = model.machine.take_late(model.world.now, &sooner);
                    left.late = late;
                    assert!(next_look <= of_model.map_or(Duration::MAX, Duration::from_secs), "it is looked in time");
                    let is_told = || {
                        let mut told = std::pin::pin!(sooner.notified());
                        let mut task = std::task::Context::from_waker(std::task::Waker::noop());
                        told.as_mut().poll(&mut task).is_ready()
                    };
                    // A message that waits for less long has it look sooner, any other does not.
                    let probes = match next_look {
                        Duration::MAX => vec![(model.spec.now + 1_000, true)],
                        look if look.is_zero() => vec![(0, false)],
                        look => vec![(look.as_secs(), false), (look.as_secs() - 1, true)],
                    };
                    for (until, is_sooner) in probes {
                        let message = Message { number: 7, until: Some(until), ..Message::default() };
                        if model.machine.enqueue(message.clone(), MAX_WAITING).is_ok() {
                            model.spec.queue.push(message);
                            assert_eq!(is_told(), is_sooner, "whoever watches is told");
                        }
                    }
                    model.machine.stop_watching();
                    assert!(model.machine.cold.as_ref().is_none_or(|cold| cold.watch.is_none()));
                    String::new()
                })
            }
            Step::Lose => {
                (self.spec.owned, self.world.owned) = (None, None);
                self.act(|_, _| String::new())
            }
            Step::Own => {
                if self.is_abandoned || self.spec.owned.is_some() {
                    return Ok(());
                }
                self.last_epoch += 1;
                (self.spec.owned, self.world.owned) = (Some(self.last_epoch), Some(Epoch(self.last_epoch)));
                self.act(|_, _| String::new())
            }
            Step::Lease(holds) => {
                (self.spec.may_act, self.world.may_act) = (*holds, *holds);
                self.act(|_, _| String::new())
            }
            Step::Fires(is_firing) => {
                (self.spec.is_firing, self.world.is_firing) = (*is_firing, *is_firing);
                self.act(|_, _| String::new())
            }
            Step::Passivate { even_held } => {
                let Some(owned) = self.spec.owned else { return Ok(()) };
                self.spec.passivate(owned, *even_held);
                self.act(|model, _| match model.machine.take_idle(&model.world, Epoch(owned), *even_held) {
                    Some(next) => {
                        model.note("passivations");
                        model.went_on(next)
                    }
                    None => "no".into(),
                })
            }
            Step::Forget { is_all } => {
                self.spec.forget(*is_all);
                self.act(|model, left| match model.machine.forget(&mut model.world, left, *is_all) {
                    Some(next) => {
                        model.note("idle instances forgotten");
                        model.went_on(next)
                    }
                    None => "no".into(),
                })
            }
            Step::LeaveIfEmpty => {
                let Some(at) = self.spec.gates.iter().position(|(gate, queued)| spec::settled(gate) >= *queued) else {
                    return Ok(());
                };
                self.spec.gates.remove(at);
                self.world.gates.remove(at);
                self.note("gates waited for");
                self.spec.leave_if_empty();
                self.act(|model, _| {
                    model.machine.leave_if_empty(&mut model.world);
                    String::new()
                })
            }
            Step::ClientLeaves => {
                let Some(first) = self.spec.connections.first() else { return Ok(()) };
                let id = self.world.connections[*first];
                self.spec.client_left();
                prop_assert!(self.machine.client_left(id).is_some() && self.machine.client_left(id).is_none());
                self.act(|_, _| String::new())
            }
            Step::Abandon => {
                self.is_abandoned = true;
                self.note("machines abandoned");
                (self.spec.owned, self.world.owned) = (None, None);
                self.spec.abandon();
                self.spec.seen.said = String::new();
                self.act(|model, left| {
                    model.machine.abandon(left, &Closed::Draining);
                    String::new()
                })
            }
        };
        // Those that are late are told first.
        self.spec.seen.refused.sort_by_key(|(_, why)| why != "late");
        prop_assert_eq!(&seen, &self.spec.seen);
        if seen.said.ends_with("idle") && self.spec.mode == Mode::Idle {
            prop_assert_eq!(self.machine.cold.is_some(), self.spec.is_anything_kept(), "an idle instance is small");
        }
        self.check()
    }

    fn end(self, (): &()) -> Checked {
        Ok(())
    }
}

#[test]
fn a_machine_does_what_a_model_of_one_queue_one_log_and_one_gate_does() {
    let met = RefCell::default();
    cases::check::<Cases, _>(3_000, 160, |()| Model::new(&met));
    if std::env::var_os("CASES").is_some() {
        return;
    }
    let met = met.take();
    for what in [
        "turns of idle instances",
        "incarnations that nothing may follow in",
        "incarnations waited for",
        "messages whose turn came",
        "full queues",
        "needless messages",
        "quiet ends",
        "ends",
        "handlers that succeed",
        "handlers that fail",
        "handlers that break",
        "interim commits",
        "enlistments",
        "passivations",
        "idle instances forgotten",
        "gates waited for",
        "tasks that ended",
        "messages refused when their turn had come",
        "machines abandoned",
    ] {
        let times = met.get(what).copied().unwrap_or_default();
        assert!(times >= 20, "{what}: only {times}");
    }
}
