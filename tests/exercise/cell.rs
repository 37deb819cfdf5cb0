//! The instances that are asked most: what a request may tell them to do, and that they do it one at a time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stable_interfaces::testing::{Began, Invariant, Life, What};
use stable_interfaces::{
    Alarm, Closed, Connecting, ConnectionId, Context, ContextError, Handle, KeyRange, Message, OnAlarm, OnConnect,
    OnMessage, Peer, StableInterface, Timestamp,
};

use super::asking::{Awaited, arrived, outcome, outcome_of_commit, said_arrived};
use super::kind::Kind;
use super::scout::Errand;
use super::{Failed, HANDLER_TIMEOUT, Odd, Running, Shared, whole};

/// One thing that a handler does.
#[derive(Serialize, Deserialize)]
pub(super) enum Step {
    Count(u64),
    Add,
    Read,
    Set(String, Timestamp, Value),
    SetIfAbsent(String, Timestamp, Value),
    Cancel(String),
    FireNow(String),
    List,
    Scratch,
    /// Makes what was done so far durable, and tells those who wait for that.
    Commit(Awaited),
    Sleep(Duration),
    /// Asks another instance to count.
    Ask(String, u64, Awaited),
    /// Sends a scout.
    Send(String, Errand, Awaited),
    /// Asks another instance to ask this one.
    Cycle(String, Awaited),
    /// Fails, panics or runs out of time, now and then.
    Stumble,
    /// Draws a number to reply with.
    Draw,
    /// Tells how many connections it has.
    Peers,
    /// Starts a task that counts these.
    Spawn(Vec<u64>),
    Passivate,
    Fail,
    /// Changes memory and fails before that is recorded.
    Spoil,
    Panic,
    Overrun,
}

/// A message that says what to do. What is odd about it stays on its host.
#[derive(Serialize, Deserialize)]
pub struct Do {
    pub(super) steps: Vec<Step>,
    #[serde(skip)]
    pub(super) odd: Option<Odd>,
}

/// The answer of an instance.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Said {
    /// The answers of the steps that answer something.
    pub(super) flags: Vec<bool>,
    pub(super) value: i64,
    pub(super) alarms: Vec<String>,
    /// Tells whether its host was the last of its name that had been started.
    pub(super) is_current: bool,
    /// The way in which what was read when it started did not fit together.
    pub(super) torn: Option<String>,
    #[serde(skip)]
    pub(super) odd: Option<Odd>,
}

/// An instance.
pub struct Cell {
    pub(super) id: String,
    pub(super) shared: Arc<Shared>,
    /// The number of this incarnation among those of all instances.
    pub(super) incarnation: u64,
    /// The number of times that any of its effects happened.
    pub(super) total: i64,
    /// The way in which what it read when it started does not fit together. It may be of two owners, but then nobody hears of it.
    pub(super) torn: Option<String>,
    /// Its connections, and how much was sent on each, and has come.
    pub(super) peers: BTreeMap<ConnectionId, (Peer<Reply>, u64, u64)>,
    /// The value that came with a message and stays until the next such one, or for as long as the instance.
    pub(super) kept: Option<Odd>,
    /// The last messages of its inbox.
    pub(super) messages: VecDeque<Message>,
}

impl Cell {
    fn life(&self) -> &Life {
        &self.shared.life
    }

    fn enter(&self) -> Running {
        if !self.shared.running.lock().insert(self.id.clone()) {
            self.life().history().violated(Invariant::OneAtATime, format!("two handlers at once in {}", self.id));
        }
        Running(self.shared.clone(), self.id.clone())
    }

    fn failure(&self) -> Failed {
        self.shared.failure(&self.id)
    }

    /// Holds on to what came with a message.
    fn keep(&mut self, odd: Option<Odd>) {
        if odd.is_some()
            && let Some(before) = std::mem::replace(&mut self.kept, odd)
        {
            before.arrived();
        }
    }

    async fn count(&mut self, cx: &mut Context, effect: u64) -> Result<i64, ContextError> {
        self.raise(cx, &format!("e/{effect}")).await
    }

    async fn raise(&mut self, cx: &mut Context, key: &str) -> Result<i64, ContextError> {
        let count = cx.get::<i64>(key).await?.unwrap_or(0) + 1;
        let total = self.total + 1;
        cx.put(key, &count)?;
        cx.put("total", &total)?;
        self.total = total;
        Ok(count)
    }

    /// Does what alarms and messages do alike.
    async fn handle_kind(&mut self, cx: &mut Context, kind: Kind, effect: u64, attempt: u32) -> Result<i64, Failed> {
        let is_healed = self.life().is_healed();
        match kind {
            Kind::Fails if attempt < 2 && !is_healed => {
                self.count(cx, effect).await?;
                return Err(self.failure());
            }
            Kind::Panics if attempt == 0 => {
                self.count(cx, effect).await?;
                // No message is printed for this one.
                std::panic::resume_unwind(Box::new("told to panic"));
            }
            Kind::Overruns if attempt == 0 => {
                self.count(cx, effect).await?;
                self.life().sleep(HANDLER_TIMEOUT * 2).await;
                // A host that stood still may have seen both times pass at once.
                return Ok(1);
            }
            Kind::Doomed if !is_healed => {
                self.count(cx, effect).await?;
                return Err(self.failure());
            }
            Kind::Slow => self.life().sleep(Duration::from_millis(300)).await,
            Kind::Halves => {
                // Its handler may run again with this part done.
                if cx.get::<i64>(&format!("e/{effect}")).await?.is_none() {
                    self.count(cx, effect).await?;
                }
                cx.commit().await?;
                self.life().sleep(Duration::from_millis(50)).await;
                cx.put("half", &effect)?;
                return Ok(1);
            }
            _ => {}
        }
        Ok(self.count(cx, effect).await?)
    }
}

impl StableInterface for Cell {
    const NAME: &'static str = "cell";
    type Error = Failed;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), Failed> {
        let _running = self.enter();
        let life = self.life().clone();
        if self.id.starts_with("o-") {
            // Its one alarm is to be seen to start when it starts, and a read takes its time.
            return Ok(());
        }
        self.total = cx.get("total").await?.unwrap_or(0);
        if life.random().chance(0.05) {
            // What the store says must fit together at any time.
            let rows = cx.list(KeyRange::prefix("e/")).await?;
            let sum: i64 = rows.iter().filter_map(|(_, value)| serde_json::from_slice::<i64>(value).ok()).sum();
            if sum != self.total {
                self.torn = Some(format!("{} starts with a total of {} over {sum}", self.id, self.total));
            }
        }
        if life.is_healed() {
            return Ok(());
        }
        if life.random().chance(0.1) {
            cx.put("born", &self.incarnation)?;
        }
        if life.random().chance(0.01) { Err(self.failure()) } else { Ok(()) }
    }

    async fn on_stop(&mut self) {
        let _running = self.enter();
        self.life().count("stop of an instance");
    }
}

impl Handle<Do> for Cell {
    type Reply = Said;

    async fn handle(&mut self, cx: &mut Context, message: Do) -> Result<Said, Failed> {
        let _running = self.enter();
        // Until it is kept, it acts when the handler fails or is dropped.
        let Do { steps, odd } = message;
        let mut said = Said::default();
        for step in steps {
            match step {
                Step::Count(effect) => drop(self.count(cx, effect).await?),
                Step::Add => said.value = self.raise(cx, "e/n").await?,
                Step::Read => said.value = cx.get("e/n").await?.unwrap_or(0),
                Step::Set(alarm, due, meta) => cx.set_alarm(&alarm, due, &meta)?,
                Step::SetIfAbsent(alarm, due, meta) => {
                    said.flags.push(cx.set_alarm_if_absent(&alarm, due, &meta).await?);
                }
                Step::Cancel(alarm) => cx.cancel_alarm(&alarm)?,
                Step::FireNow(alarm) => said.flags.push(cx.fire_now(&alarm).await?),
                Step::List => said.alarms = cx.alarms().await?.iter().map(|alarm| alarm.id().to_owned()).collect(),
                Step::Scratch => {
                    cx.put("scratch/a", &1)?;
                    cx.put("scratch/b", &2)?;
                    cx.delete("scratch/a")?;
                    let rows = cx.list("scratch/").await?;
                    let keys: Vec<_> = rows.iter().map(|(key, _)| &**key).collect();
                    if keys != ["scratch/b"] {
                        self.life().history().violated(Invariant::Read, format!("{keys:?} instead of one's own write"));
                    }
                }
                Step::Commit(awaited) => {
                    let result = cx.commit().await;
                    self.shared.awaiting.tell(awaited, outcome_of_commit(&result));
                    result?;
                }
                Step::Sleep(duration) => self.life().sleep(duration).await,
                Step::Ask(other, effect, awaited) => {
                    let cells = self.shared.app()?;
                    let answer = cells.request(&other, cells.message(&other, vec![Step::Count(effect)])).await;
                    said_arrived(&answer);
                    self.shared.awaiting.tell(awaited, outcome(&answer));
                    answer.map_err(|error| Failed::Nested(error.to_string()))?;
                }
                Step::Send(scout, errand, awaited) => {
                    let answer = self.shared.app()?.scouts().request(&scout, errand).await;
                    arrived(&answer);
                    self.shared.awaiting.tell(awaited, outcome(&answer));
                    answer.map_err(|error| Failed::Nested(error.to_string()))?;
                }
                Step::Cycle(other, awaited) => {
                    let (cells, back) = (self.shared.app()?, Step::Ask(self.id.clone(), u64::MAX, awaited));
                    let answer = cells.request(&other, cells.message(&other, vec![back])).await;
                    said_arrived(&answer);
                    // The other owner's refusal or a deadline is as good an end as the cycle itself.
                    said.flags.push(answer.is_err());
                }
                Step::Stumble => self.stumble().await?,
                Step::Draw => said.value = i64::try_from(self.life().random().below(1 << 40)).unwrap_or(0),
                Step::Peers => said.value = i64::try_from(self.peers.len()).unwrap_or(0),
                Step::Spawn(effects) => self.spawn(cx, effects)?,
                Step::Passivate => cx.passivate(),
                Step::Fail => return Err(Failed::Told),
                Step::Spoil => {
                    // Nothing of this is recorded; were it kept, the next handler would store it.
                    self.total += 1_000;
                    return Err(self.failure());
                }
                Step::Panic => std::panic::resume_unwind(Box::new("told to panic")),
                Step::Overrun => self.life().sleep(HANDLER_TIMEOUT * 2).await,
            }
        }
        self.keep(odd);
        said.is_current = self.life().is_current();
        said.torn = self.torn.clone();
        said.odd = Odd::some(&self.shared, &self.id);
        Ok(said)
    }
}

impl Cell {
    async fn stumble(&self) -> Result<(), Failed> {
        let drawn = if self.life().is_healed() { u64::MAX } else { self.life().random().below(12) };
        match drawn {
            0 => return Err(self.failure()),
            1 => std::panic::resume_unwind(Box::new("stumbled")),
            2 => self.life().sleep(HANDLER_TIMEOUT * 2).await,
            _ => {}
        }
        Ok(())
    }

    /// Starts a task of this incarnation that counts these effects, one turn each.
    fn spawn(&self, cx: &mut Context, effects: Vec<u64>) -> Result<(), ContextError> {
        let (life, id, incarnation) = (self.life().clone(), self.id.clone(), self.incarnation);
        let (shared, odd) = (self.shared.clone(), Odd::some(&self.shared, &self.id));
        cx.spawn::<Cell, _>(move |me| async move {
            let _held = odd;
            for effect in effects {
                // One that is not parked has something to bring to an end before its host may go.
                let parked = life.random().chance(0.5).then(|| me.park());
                life.sleep(Duration::from_millis(200)).await;
                drop(parked);
                let asked = life.history().ask(What::Effect(whole(&id, effect)));
                let history = life.history().clone();
                let odd = Odd::some(&shared, &id);
                let turn = me.turn(move |cell, cx| {
                    cell.keep(odd);
                    if cell.incarnation != incarnation {
                        let what = format!("a turn of a task of {} in another incarnation", cell.id);
                        history.violated(Invariant::OneAtATime, what);
                    }
                    let total = cell.total + 1;
                    cx.put(&format!("e/{effect}"), &1)?;
                    cx.put("total", &total)?;
                    cell.total = total;
                    Ok(())
                });
                let answer = turn.await;
                arrived(&answer);
                asked.told(outcome(&answer));
                match answer {
                    Ok(()) => life.count("turn of a task"),
                    Err(_) => return,
                }
            }
        })
    }
}

impl OnAlarm for Cell {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), Failed> {
        let _running = self.enter();
        let (kind, effect) = Kind::from_meta(&alarm.meta()?);
        let life = self.life().clone();
        life.history().began(Began {
            effect: whole(&self.id, effect),
            life: life.number(),
            at: life.latest(),
            due: alarm.due(),
            attempt: alarm.attempt(),
            is_current: life.is_current(),
        });
        let times = self.handle_kind(cx, kind, effect, alarm.attempt()).await?;
        if kind == Kind::Again && times < kind.times().1 {
            // Not before the first time, though a retry may be due before it when a wall that was ahead has been set right.
            let due = alarm.scheduled_at() + Duration::from_millis(700);
            cx.set_alarm(alarm.id(), due, &kind.meta(effect))?;
        }
        if kind == Kind::Holds && !life.is_healed() {
            cx.hold_alarm();
        }
        let odd = Odd::some(&self.shared, &self.id);
        cx.after_commit(move || {
            life.count("alarm handled");
            drop(odd);
        });
        Ok(())
    }
}

impl OnMessage for Cell {
    async fn on_message(&mut self, cx: &mut Context, message: &Message) -> Result<(), Failed> {
        let _running = self.enter();
        let (kind, effect) = Kind::from_meta(&message.json()?);
        self.handle_kind(cx, kind, effect, message.attempt()).await?;
        self.messages.push_back(message.clone());
        self.messages.truncate(3);
        let (life, odd) = (self.life().clone(), Odd::some(&self.shared, &self.id));
        cx.after_commit(move || {
            life.count("message handled");
            drop(odd);
        });
        Ok(())
    }
}

/// A message of an instance to a client: the number of those sent before, and the effect that has happened.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply(pub(super) u64, pub(super) u64, #[serde(skip)] pub(super) Option<Odd>);

/// A message of a client to an instance: the number of those sent before, and the effect that is to happen.
#[derive(Debug, Serialize, Deserialize)]
pub struct Item(pub(super) u64, pub(super) u64, #[serde(skip)] pub(super) Option<Odd>);

impl OnConnect for Cell {
    type Meta = bool;
    type Incoming = Item;
    type Outgoing = Reply;

    async fn on_connect(
        &mut self,
        _: &mut Context,
        client: &mut Connecting<Reply>,
        is_welcome: bool,
    ) -> Result<(), Failed> {
        let _running = self.enter();
        if is_welcome {
            let peer = client.accept();
            self.peers.insert(peer.id(), (peer, 0, 0));
        } else {
            client.reject("not welcome");
        }
        Ok(())
    }

    async fn on_receive(
        &mut self,
        cx: &mut Context,
        from: ConnectionId,
        Item(number, effect, odd): Item,
    ) -> Result<(), Failed> {
        let _running = self.enter();
        if let Some((_, _, received)) = self.peers.get_mut(&from) {
            let expected = std::mem::replace(received, number + 1);
            if number != expected {
                let what = format!("{} was sent {number} by a client when {expected} was to come", self.id);
                self.life().history().violated(Invariant::Connected, what);
            }
        }
        self.count(cx, effect).await?;
        self.keep(odd);
        let Some((peer, sent, _)) = self.peers.get_mut(&from) else { return Ok(()) };
        if peer.try_send(cx, Reply(*sent, effect, Odd::some(&self.shared, &self.id))).is_ok() {
            *sent += 1;
            if self.shared.life.random().chance(0.03) {
                peer.close(cx, "enough");
                self.peers.remove(&from);
            }
        }
        Ok(())
    }

    async fn on_disconnect(&mut self, _: &mut Context, from: ConnectionId, _: Closed) -> Result<(), Failed> {
        let _running = self.enter();
        self.peers.remove(&from);
        Ok(())
    }
}

impl fmt::Debug for Do {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Do").field("steps", &self.steps.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell").field("id", &self.id).field("total", &self.total).finish_non_exhaustive()
    }
}
