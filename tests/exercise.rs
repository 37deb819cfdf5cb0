//! What the simulation of the whole library does: instances that use all of it, and clients that ask them to.
//!
//! There are two interfaces. Nothing that limits the one limits the other, and the scouts' limits and those of the host are drawn
//! for each life of a host.
//!
//! Every effect has a number. Whoever asks for it writes it down, and the instance counts under that number, in its storage, how
//! often it happened; beside that it counts all its effects in one total, in memory and stored, which must agree with them. So
//! what is left in the end tells whether each happened as often as was promised.
//!
//! Some values are [odd](Odd): messages, replies, states, errors and what closures have captured panic where they are dropped or
//! shown, or look at their instance.

mod odd;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use stable_interfaces::store::InstanceName;
use stable_interfaces::testing::{
    Began, Client, End, History, Invariant, Life, Outcome, Pending, SeededRandom, Setting, Site, StoreDump, What,
    Workload,
};
use stable_interfaces::{
    Alarm, Closed, Connecting, ConnectionId, Context, ContextError, DeadKind, Handle, HostBuilder, Interface, KeyRange,
    Message, NewPost, OnAlarm, OnConnect, OnMessage, Peer, Posted, RequestError, RetryPolicy, StableInterface,
    Timestamp,
};

pub use self::odd::Odd;

const INSTANCES: u64 = 24;
const HANDLER_TIMEOUT: Duration = Duration::from_secs(5);

/// How many scouts there are, and the tables of some hosts hold fewer.
const SCOUTS: u64 = 6;

/// How an application is broken on purpose, so that one sees of a run what one would see of a broken library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// One of its handles outlives everything, and the store with it.
    KeepsAHandle,
    /// Its instances exist twice, under two IDs of one shard: as if a table had two places for one.
    IsDoubled,
}

/// The simulated application on one host.
#[derive(Clone)]
pub struct App {
    handles: Arc<Handles>,
    shared: Arc<Shared>,
    flaw: Option<Flaw>,
}

#[derive(Debug)]
struct Handles {
    cells: Interface<Cell>,
    scouts: Interface<Scout>,
}

/// Before what tells an instance from its double.
const DOUBLE: char = '~';

impl App {
    fn scouts(&self) -> &Interface<Scout> {
        &self.handles.scouts
    }

    /// A message to an instance.
    fn message(&self, id: &str, steps: Vec<Step>) -> Do {
        Do { steps, odd: Odd::some(&self.shared, id) }
    }

    /// The ID by which an instance is asked.
    fn address(&self, client: &Client<App>, id: &str) -> String {
        if self.flaw != Some(Flaw::IsDoubled) || client.random().chance(0.5) {
            return id.to_owned();
        }
        let mut doubles = (0..10_000).map(|n| format!("{id}{DOUBLE}{n}"));
        doubles.find(|double| client.shard_of(double) == client.shard_of(id)).unwrap_or_else(|| id.to_owned())
    }
}

impl Deref for App {
    type Target = Interface<Cell>;

    fn deref(&self) -> &Interface<Cell> {
        &self.handles.cells
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("handles", &self.handles).finish_non_exhaustive()
    }
}

type Answer<R> = Result<R, RequestError<Failed>>;

/// Why a handler failed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// Because it was told to.
    #[error("told to fail")]
    Told,
    /// As [`Told`](Self::Told), with an error that is odd.
    #[error("{0}")]
    Odd(Odd),
    /// Because what it asked another instance for failed.
    #[error("asked another: {0}")]
    Nested(String),
    /// Because its context refused.
    #[error(transparent)]
    Context(#[from] ContextError),
}

/// An error that has come to whom it was meant for does nothing odd.
fn arrived<R>(answer: &Answer<R>) {
    if let Err(RequestError::Handler(Failed::Odd(odd), _)) = answer {
        odd.arrived();
    }
}

/// As [`arrived`], with the reply.
fn said_arrived(answer: &Answer<Said>) {
    arrived(answer);
    if let Ok(Said { odd: Some(odd), .. }) = answer {
        odd.arrived();
    }
}

fn outcome<R>(answer: &Answer<R>) -> Outcome {
    Outcome::of(answer, |error| matches!(error, Failed::Context(ContextError::Unknown)))
}

fn outcome_of_commit(result: &Result<(), ContextError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(ContextError::Unknown) => Outcome::Unknown,
        Err(_) => Outcome::Not,
    }
}

/// What was asked for, until whoever learns of its outcome takes it. Messages are made anew for each host they are sent to.
type Awaited = Arc<Mutex<Option<Pending>>>;

fn tell(awaited: &Awaited, outcome: Outcome) {
    if let Some(pending) = awaited.lock().take() {
        pending.told(outcome);
    }
}

/// What the handler of an alarm or message does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It counts.
    Plain,
    /// It counts and sets its alarm again, three times in all.
    Again,
    /// It fails the first times.
    Fails,
    /// It panics the first time.
    Panics,
    /// It runs out of time the first time.
    Overruns,
    /// It fails while anything fails: it becomes a dead letter.
    Doomed,
    /// It counts and keeps its alarm unacknowledged.
    Holds,
    /// It takes its time.
    Slow,
    /// It commits in the middle.
    Halves,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Plain, "plain"),
    (Kind::Again, "again"),
    (Kind::Fails, "fails"),
    (Kind::Panics, "panics"),
    (Kind::Overruns, "overruns"),
    (Kind::Doomed, "doomed"),
    (Kind::Holds, "holds"),
    (Kind::Slow, "slow"),
    (Kind::Halves, "halves"),
];

impl Kind {
    fn meta(self, effect: u64) -> Value {
        let name = KINDS.iter().find(|(kind, _)| *kind == self).map(|(_, name)| *name);
        json!([name, effect])
    }

    fn from_meta(meta: &Value) -> (Kind, u64) {
        let kind = KINDS.iter().find(|(_, name)| meta[0] == *name).map_or(Kind::Plain, |(kind, _)| *kind);
        (kind, meta[1].as_u64().unwrap_or(0))
    }

    /// How often its effect happens.
    fn times(self) -> (i64, i64) {
        match self {
            Kind::Again => (3, 3),
            Kind::Holds => (1, i64::MAX),
            _ => (1, 1),
        }
    }
}

/// One thing that a handler does.
enum Step {
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
    Commit(Vec<Awaited>),
    Sleep(Duration),
    /// Asks another instance to count.
    Ask(App, String, u64, Awaited),
    /// Sends a scout.
    Send(App, String, Errand, Awaited),
    /// Asks another instance to ask this one.
    Cycle(App, String),
    /// Starts a task that counts these.
    Spawn(Vec<u64>),
    Passivate,
    Fail,
    /// Changes memory and fails before that is recorded.
    Spoil,
    Panic,
    Overrun,
}

/// A message that says what to do.
pub struct Do {
    steps: Vec<Step>,
    odd: Option<Odd>,
}

/// What an instance says.
#[derive(Debug, Default)]
pub struct Said {
    /// What the steps that answer something answered.
    flags: Vec<bool>,
    value: i64,
    alarms: Vec<String>,
    odd: Option<Odd>,
}

/// What all instances of one life of a host share.
struct Shared {
    life: Life,
    /// Which of them run a handler.
    running: Mutex<BTreeSet<String>>,
    handles: OnceLock<Weak<Handles>>,
}

impl Shared {
    /// Looks at this instance and at others.
    fn look_at(&self, id: &str) {
        if let Some(handles) = self.handles.get().and_then(Weak::upgrade) {
            let Handles { cells, scouts } = &*handles;
            let _seen = (cells.is_running(id), cells.is_running("i-0"), scouts.is_running(id), cells.running());
        }
    }

    /// Why a handler fails that was told to.
    fn failure(self: &Arc<Self>, id: &str) -> Failed {
        Odd::some(self, id).map_or(Failed::Told, Failed::Odd)
    }
}

/// An instance.
pub struct Cell {
    id: String,
    shared: Arc<Shared>,
    /// Which of all incarnations of all instances it is.
    incarnation: u64,
    /// How often any of its effects happened.
    total: i64,
    /// Its connections, and how much was sent on each.
    peers: BTreeMap<ConnectionId, (Peer<Reply>, u64)>,
    /// What came with a message and stays until the next such one, or for as long as the instance.
    kept: Option<Odd>,
    /// The last messages of its inbox.
    messages: VecDeque<Message>,
}

/// Exists while a handler of an instance runs.
struct Running(Arc<Shared>, String);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.lock().remove(&self.1);
    }
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

    /// What alarms and messages do alike.
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
        let (history, life) = (self.life().history().clone(), self.life().clone());
        if self.id.starts_with("o-") {
            // Its one alarm is to be seen to start when it starts, and a read takes its time.
            return Ok(());
        }
        self.total = cx.get("total").await?.unwrap_or(0);
        if life.random().chance(0.05) {
            // What the store says must fit together at any time.
            let rows = cx.list(KeyRange::prefix("e/")).await?;
            let sum: i64 = rows.iter().filter_map(|(_, value)| serde_json::from_slice::<i64>(value).ok()).sum();
            if sum != self.total && life.is_current() {
                let what = format!("{} starts with a total of {} over {sum}", self.id, self.total);
                history.violated(Invariant::Read, what);
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
                    for awaited in awaited {
                        tell(&awaited, outcome_of_commit(&result));
                    }
                    result?;
                }
                Step::Sleep(duration) => self.life().sleep(duration).await,
                Step::Ask(cells, other, effect, awaited) => {
                    let answer = cells.request(&other, cells.message(&other, vec![Step::Count(effect)])).await;
                    said_arrived(&answer);
                    tell(&awaited, outcome(&answer));
                    answer.map_err(|error| Failed::Nested(error.to_string()))?;
                }
                Step::Send(app, scout, errand, awaited) => {
                    let answer = app.scouts().request(&scout, errand).await;
                    arrived(&answer);
                    tell(&awaited, outcome(&answer));
                    answer.map_err(|error| Failed::Nested(error.to_string()))?;
                }
                Step::Cycle(cells, other) => {
                    let back = Step::Ask(cells.clone(), self.id.clone(), u64::MAX, Awaited::default());
                    let answer = cells.request(&other, cells.message(&other, vec![back])).await;
                    said_arrived(&answer);
                    // The other owner's refusal or a deadline is as good an end as the cycle itself.
                    said.flags.push(answer.is_err());
                }
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
        said.odd = Odd::some(&self.shared, &self.id);
        Ok(said)
    }
}

impl Cell {
    /// Starts a task of this incarnation that counts these effects, one turn each.
    fn spawn(&self, cx: &mut Context, effects: Vec<u64>) -> Result<(), ContextError> {
        let (life, id, incarnation) = (self.life().clone(), self.id.clone(), self.incarnation);
        let (shared, odd) = (self.shared.clone(), Odd::some(&self.shared, &self.id));
        cx.spawn::<Cell, _>(move |me| async move {
            let _held = odd;
            for effect in effects {
                let parked = me.park();
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

/// What an instance sends to a client: how many it has sent before, and which effect has happened.
#[derive(Debug)]
pub struct Reply(u64, u64, Option<Odd>);

impl OnConnect for Cell {
    type Meta = bool;
    type Incoming = (u64, Option<Odd>);
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
            self.peers.insert(peer.id(), (peer, 0));
        } else {
            client.reject("not welcome");
        }
        Ok(())
    }

    async fn on_receive(
        &mut self,
        cx: &mut Context,
        from: ConnectionId,
        (effect, odd): (u64, Option<Odd>),
    ) -> Result<(), Failed> {
        let _running = self.enter();
        self.count(cx, effect).await?;
        self.keep(odd);
        if let Some((peer, sent)) = self.peers.get_mut(&from)
            && peer.try_send(cx, Reply(*sent, effect, Odd::some(&self.shared, &self.id))).is_ok()
        {
            *sent += 1;
            if self.shared.life.random().chance(0.03) {
                peer.close(cx, "enough");
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

/// An instance of the other interface, which counts what it was sent for and asks a cell to do so.
pub struct Scout {
    id: String,
    shared: Arc<Shared>,
    total: i64,
}

/// A message that sends a scout to a cell.
pub struct Errand {
    app: App,
    cell: String,
    /// What the scout counts, and what the cell.
    effects: (u64, u64),
    /// Told what the cell said.
    awaited: Awaited,
    sleeps: Duration,
}

impl Scout {
    fn enter(&self) -> Running {
        if !self.shared.running.lock().insert(self.id.clone()) {
            self.shared.life.history().violated(Invariant::OneAtATime, format!("two handlers at once in {}", self.id));
        }
        Running(self.shared.clone(), self.id.clone())
    }

    async fn count(&mut self, cx: &mut Context, effect: u64) -> Result<(), ContextError> {
        let key = format!("e/{effect}");
        let (count, total) = (cx.get::<i64>(&key).await?.unwrap_or(0) + 1, self.total + 1);
        cx.put(&key, &count)?;
        cx.put("total", &total)?;
        self.total = total;
        Ok(())
    }
}

impl StableInterface for Scout {
    const NAME: &'static str = "scout";
    type Error = Failed;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), Failed> {
        let _running = self.enter();
        self.total = cx.get("total").await?.unwrap_or(0);
        Ok(())
    }
}

impl Handle<Errand> for Scout {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, errand: Errand) -> Result<(), Failed> {
        let _running = self.enter();
        let Errand { app, cell, effects, awaited, sleeps } = errand;
        self.count(cx, effects.0).await?;
        let answer = app.request(&cell, app.message(&cell, vec![Step::Count(effects.1)])).await;
        said_arrived(&answer);
        tell(&awaited, outcome(&answer));
        answer.map_err(|error| Failed::Nested(error.to_string()))?;
        self.shared.life.sleep(sleeps).await;
        Ok(())
    }
}

impl OnAlarm for Scout {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), Failed> {
        let _running = self.enter();
        let (kind, effect) = Kind::from_meta(&alarm.meta()?);
        let life = self.shared.life.clone();
        life.history().began(Began {
            effect: whole(&self.id, effect),
            life: life.number(),
            at: life.latest(),
            due: alarm.due(),
            attempt: alarm.attempt(),
            is_current: life.is_current(),
        });
        self.count(cx, effect).await?;
        if kind == Kind::Fails && alarm.attempt() < 2 && !life.is_healed() {
            return Err(self.shared.failure(&self.id));
        }
        cx.after_commit(move || life.count("alarm of a scout handled"));
        Ok(())
    }
}

/// The whole name of an effect.
fn whole(id: &str, effect: u64) -> String {
    format!("{id}/{effect}")
}

/// Clients that use everything the library offers, drawn at random.
#[derive(Debug, Default)]
pub struct Exercise {
    effects: AtomicU64,
    incarnations: Arc<AtomicU64>,
    /// How many hosts have been configured.
    hosts: AtomicU64,
    flaw: Option<Flaw>,
}

impl Exercise {
    /// An application that is broken like this.
    #[must_use]
    pub fn flawed(flaw: Flaw) -> Exercise {
        Exercise { flaw: Some(flaw), ..Exercise::default() }
    }
}

/// Asks the owner of an instance, and the host it names if it is not the owner. Gives the last answer, and who gave it.
async fn ask<R, F>(client: &Client<App>, id: &str, operation: impl Fn(App) -> F) -> Option<(Answer<R>, Site<App>)>
where
    F: Future<Output = Answer<R>>,
{
    let is_astray = client.random().chance(0.1);
    let site = if is_astray { client.any().await } else { client.owner_of(id).await };
    let site = site?;
    let answer = in_time(client, operation(site.app().clone())).await;
    if let Err(RequestError::NotOwner { holder }) = &answer
        && let Some(other) = client.named(holder).await
    {
        let answer = in_time(client, operation(other.app().clone())).await;
        return Some((answer, other));
    }
    Some((answer, site))
}

/// Whoever is told that a time was over has waited for that time.
async fn in_time<R>(client: &Client<App>, asking: impl Future<Output = Answer<R>>) -> Answer<R> {
    let sent = client.now();
    let answer = asking.await;
    arrived(&answer);
    let took = client.now().since(sent) + Duration::from_millis(2);
    if let Err(RequestError::TimedOut { after, waited_for }) = &answer
        && took < *after
    {
        let what = format!("told after {took:?} that the {after:?} of {waited_for} are over");
        client.history().violated(Invariant::Handled, what);
    }
    answer
}

/// Asks an instance to do these steps.
async fn request(
    client: &Client<App>,
    id: &str,
    steps: impl Fn(App) -> Vec<Step>,
) -> Option<(Answer<Said>, Site<App>)> {
    ask(client, id, |app| {
        let (steps, address) = (steps(app.clone()), app.address(client, id));
        async move {
            let answer = app.request(&address, app.message(id, steps)).await;
            said_arrived(&answer);
            answer
        }
    })
    .await
}

/// Writes an answer down; whether it was done.
fn settle<R>(client: &Client<App>, asked: Pending, answer: &Option<(Answer<R>, Site<App>)>, kind: &str) -> bool {
    settle_if(client, asked, answer, kind, |_| true)
}

/// As [`settle`], where the reply says whether anything was done.
fn settle_if<R>(
    client: &Client<App>,
    asked: Pending,
    answer: &Option<(Answer<R>, Site<App>)>,
    kind: &str,
    was_done: impl FnOnce(&R) -> bool,
) -> bool {
    let Some((answer, site)) = answer else {
        asked.told(Outcome::Not);
        return false;
    };
    if answer.is_ok() {
        client.count(kind);
    }
    let outcome = match answer {
        Ok(reply) if !was_done(reply) => Outcome::Not,
        answer => outcome(answer),
    };
    asked.told_by(outcome, site.life().number(), site.life().now());
    outcome == Outcome::Done
}

impl Workload for Exercise {
    type App = App;

    fn configure(&self, host: HostBuilder) -> HostBuilder {
        let random = SeededRandom::new(self.hosts.fetch_add(1, Ordering::Relaxed));
        let number = |all: &[usize]| random.pick(all).copied().unwrap_or(1);
        let host = host.max_firing(number(&[8, 32, usize::MAX])).alarm_window(number(&[0, 16, usize::MAX]));
        let host = host.max_queued_commits(number(&[256, usize::MAX]));
        host.lanes(random.pick(&[1, 2, 7, u16::MAX]).copied().unwrap_or(2))
    }

    fn register(&self, host: &mut HostBuilder, life: &Life) -> App {
        let shared = Arc::new(Shared { life: life.clone(), running: Mutex::default(), handles: OnceLock::new() });
        let incarnations = self.incarnations.clone();
        let (all, scouting) = (shared.clone(), shared.clone());
        let build = move |id: &str| Cell {
            id: id.split(DOUBLE).next().unwrap_or(id).to_owned(),
            shared: shared.clone(),
            incarnation: incarnations.fetch_add(1, Ordering::Relaxed),
            total: 0,
            peers: BTreeMap::new(),
            kept: None,
            messages: VecDeque::new(),
        };
        let retry = RetryPolicy::new().first(Duration::from_millis(300)).longest(Duration::from_secs(3)).attempts(4);
        let cells = host.interface(build).with_alarms().with_inbox().retry(retry);
        let cells = cells.handler_timeout(HANDLER_TIMEOUT).idle_timeout(Duration::from_secs(20)).max_instances(256);
        let cells = cells.register().expect("it is the first interface");

        let build = move |id: &str| Scout { id: id.to_owned(), shared: scouting.clone(), total: 0 };
        let random = life.random();
        let millis = |all: &[u64]| Duration::from_millis(random.pick(all).copied().unwrap_or(0));
        let number = |all: &[usize]| random.pick(all).copied().unwrap_or(1);
        let retry = RetryPolicy::new().first(millis(&[0, 100, 1_000])).longest(millis(&[500, 2_000])).attempts(4);
        let scouts = host.interface(build).with_alarms().retry(retry);
        let scouts = scouts.handler_timeout(millis(&[300, 1_000, 30_000])).idle_timeout(millis(&[2_000, 600_000]));
        let scouts = scouts.stop_timeout(millis(&[0, 30_000])).max_waiting(number(&[0, 2, usize::MAX]));
        let scouts = scouts.max_instances(number(&[3, usize::MAX])).register().expect("it is the second");
        if self.flaw == Some(Flaw::KeepsAHandle) {
            std::mem::forget(cells.clone());
        }
        let handles = Arc::new(Handles { cells, scouts });
        // Instances that held their own handles would hold themselves.
        all.handles.set(Arc::downgrade(&handles)).expect("it is new");
        App { handles, shared: all, flaw: self.flaw }
    }

    async fn client(self: Arc<Self>, client: Client<App>) {
        while !client.is_over() {
            client.sleep(client.random().up_to(Duration::from_secs(14))).await;
            self.something(&client).await;
        }
    }

    async fn finish(self: Arc<Self>, client: Client<App>) {
        let (mut round, mut dead_letters) = (0, 0);
        // A dead letter cannot come back while a message with its ID waits, which a wall that was ahead can make an hour.
        while round < 6 || (dead_letters > 0 && round < 150) {
            for n in 0..INSTANCES {
                // Lets go what it holds.
                let id = format!("i-{n}");
                let _stopped = ask(&client, &id, |cells| {
                    let id = id.clone();
                    async move { cells.stop(&id).await }
                })
                .await;
            }
            dead_letters = 0;
            for site in client.all() {
                let Ok(mut dead) = site.app().dead_letters(None, 10_000).await else { continue };
                let Ok(of_scouts) = site.app().scouts().dead_letters(None, 10_000).await else { continue };
                dead.extend(of_scouts);
                dead_letters += dead.len();
                for dead in dead {
                    self.requeue_or_discard(&client, &site, &dead, true).await;
                }
            }
            client.sleep(Duration::from_secs(if round < 6 { 10 } else { 60 })).await;
            round += 1;
        }
    }

    fn end(&self, store: &StoreDump, history: &History) -> End {
        let mut end = End::default();
        let mut totals = BTreeMap::<&InstanceName, (i64, i64)>::new();
        for ((name, key), value) in store.shards.values().flat_map(|shard| &shard.storage) {
            let number = || serde_json::from_slice::<i64>(value).unwrap_or(i64::MIN);
            if let Some(effect) = key.strip_prefix("e/") {
                end.effects.insert(format!("{}/{effect}", name.instance), number());
                totals.entry(name).or_default().0 += number();
            } else if &**key == "total" {
                totals.entry(name).or_default().1 = number();
            }
        }
        for (name, (sum, total)) in totals.into_iter().filter(|(_, (sum, total))| sum != total) {
            history.violated(Invariant::Once, format!("the total of {name} is {total} over effects of {sum}"));
        }
        let effect = |name: &InstanceName, meta: &[u8]| {
            let meta = serde_json::from_slice(meta).unwrap_or_default();
            whole(&name.instance, Kind::from_meta(&meta).1)
        };
        for alarm in store.alarms() {
            end.waiting.insert(effect(&alarm.name, &alarm.meta));
        }
        for message in store.inbox() {
            end.waiting.insert(effect(&message.name, &message.body));
        }
        for dead in store.dead() {
            match &dead.row {
                stable_interfaces::store::DeadRow::Alarm(row) => end.waiting.insert(effect(&row.name, &row.meta)),
                stable_interfaces::store::DeadRow::Message(row) => end.waiting.insert(effect(&row.name, &row.body)),
            };
        }
        end
    }
}

type Operation = (u64, &'static str);

/// What clients do, and how often of a hundred.
const OPERATIONS: [Operation; 22] = [
    (17, "count"),
    (12, "alarm from inside"),
    (10, "alarm from outside"),
    (12, "shared alarm"),
    (4, "cancel"),
    (3, "list"),
    (6, "add"),
    (5, "read"),
    (9, "post"),
    (4, "connection"),
    (4, "task"),
    (2, "hold"),
    (2, "passivate"),
    (2, "stop"),
    (4, "dead"),
    (3, "nested"),
    (4, "errand"),
    (3, "alarm of a scout"),
    (1, "cycle"),
    (3, "order"),
    (2, "burst"),
    (3, "dropped"),
];

impl Exercise {
    fn next(&self) -> u64 {
        self.effects.fetch_add(1, Ordering::Relaxed)
    }

    fn some_instance(client: &Client<App>) -> String {
        let random = client.random();
        // Some are asked much more than others.
        let n = if random.chance(0.4) { random.below(3) } else { random.below(INSTANCES) };
        format!("i-{n}")
    }

    async fn something(&self, client: &Client<App>) {
        let mut drawn = client.random().below(OPERATIONS.iter().map(|(weight, _)| weight).sum());
        let operation = OPERATIONS.iter().find(|(weight, _)| match drawn.checked_sub(*weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
        let id = Self::some_instance(client);
        match operation.map_or("", |(_, name)| *name) {
            "count" => self.count(client, &id).await,
            "alarm from inside" => self.alarm(client, &id, true).await,
            "alarm from outside" => self.alarm(client, &id, false).await,
            "shared alarm" => self.shared_alarm(client, &id).await,
            "cancel" => self.cancel(client, &id).await,
            "list" => self.list(client, &id).await,
            "add" => self.add(client, &id).await,
            "read" => self.read(client, &id).await,
            "post" => self.post(client, &id).await,
            "connection" => self.connection(client, &id).await,
            "task" => self.task(client, &id).await,
            "hold" => self.set(client, &id, Kind::Holds, true, None).await,
            "passivate" => {
                let answer = request(client, &id, |_| vec![Step::Passivate]).await;
                if matches!(answer, Some((Ok(_), _))) {
                    client.count("passivate");
                }
            }
            "stop" => {
                let answer = ask(client, &id, |cells| {
                    let id = id.clone();
                    async move { cells.stop(&id).await }
                });
                if matches!(answer.await, Some((Ok(()), _))) {
                    client.count("stop");
                }
            }
            "dead" => self.dead(client).await,
            "nested" => self.nested(client, &id).await,
            "errand" => self.errand(client, &id).await,
            "alarm of a scout" => self.scout_alarm(client).await,
            "cycle" => {
                let other = Self::some_instance(client);
                let answer = request(client, &id, |cells| vec![Step::Cycle(cells, other.clone())]).await;
                if let Some((Ok(said), _)) = answer {
                    client.count("cycle found");
                    if said.flags == [false] {
                        client.history().violated(Invariant::OneAtATime, "a call cycle came to a good end");
                    }
                }
            }
            "order" => self.order(client).await,
            "burst" => self.burst(client, &id).await,
            _ => self.dropped(client, &id).await,
        }
    }

    /// Some effects together, perhaps with a commit in between, and not always with a good end.
    async fn count(&self, client: &Client<App>, id: &str) {
        let random = client.random();
        let ask = |effect| client.history().ask(What::Effect(whole(id, effect)));
        let (first, last) = (self.next(), self.next());
        let commits = random.chance(0.3);
        let early: Awaited = Arc::new(Mutex::new(commits.then(|| ask(first))));
        let asked = ask(last);
        let both = (!commits).then(|| ask(first));
        let (sleeps, ends, scratches) =
            (random.up_to(Duration::from_millis(300)), random.below(100), random.chance(0.2));
        let answer = request(client, id, |_| {
            let mut steps = vec![Step::Count(first)];
            if commits {
                steps.push(Step::Commit(vec![early.clone()]));
            }
            if ends % 3 == 0 {
                steps.push(Step::Sleep(sleeps));
            }
            if scratches {
                steps.push(Step::Scratch);
            }
            steps.push(Step::Count(last));
            match ends {
                0..8 => steps.push(Step::Fail),
                8..12 => steps.push(Step::Panic),
                12..14 => steps.push(Step::Overrun),
                14..17 => steps.push(Step::Spoil),
                17..20 => steps = vec![Step::Spoil],
                _ => {}
            }
            steps
        })
        .await;
        if let Some(both) = both {
            settle(client, both, &answer, "storage");
        } else if let Some((answer, _)) = &answer {
            if outcome(answer) == Outcome::Not {
                client.history().denied(&whole(id, first));
            }
        } else {
            tell(&early, Outcome::Not);
        }
        let rest = answer.as_ref().map(|(answer, site)| (Outcome::of_rest(answer), site));
        match rest {
            // A definite word on the one effect, though not on the other.
            Some((Outcome::Not, site)) if commits => {
                asked.told_by(Outcome::Not, site.life().number(), site.life().now());
            }
            _ => drop(settle(client, asked, &answer, "request")),
        }
    }

    /// An alarm that nobody else touches.
    async fn alarm(&self, client: &Client<App>, id: &str, inside: bool) {
        let kinds = [
            Kind::Plain,
            Kind::Plain,
            Kind::Plain,
            Kind::Again,
            Kind::Fails,
            Kind::Panics,
            Kind::Overruns,
            Kind::Doomed,
            Kind::Slow,
            Kind::Halves,
        ];
        let kind = client.random().pick(&kinds).copied().unwrap_or(Kind::Plain);
        self.set(client, id, kind, inside, None).await;
    }

    fn some_delay(client: &Client<App>) -> Duration {
        let most = client.random().pick(&[0, 1_000, 5_000, 60_000]).copied().unwrap_or(0);
        client.random().up_to(Duration::from_millis(most))
    }

    /// Sets an alarm; with `shared` one that has been set before, perhaps.
    async fn set(&self, client: &Client<App>, id: &str, kind: Kind, inside: bool, shared: Option<&str>) {
        let effect = self.next();
        let alarm = shared.map_or_else(|| format!("a-{effect}"), str::to_owned);
        let due = client.now() + Self::some_delay(client);
        let meta = kind.meta(effect);
        let if_absent = client.random().chance(if shared.is_some() { 0.3 } else { 0.05 });
        let setting = Setting {
            alarm: format!("{id}/{alarm}"),
            effect: whole(id, effect),
            due,
            times: kind.times(),
            alone: None,
        };
        let asked = client.history().ask(What::Set(setting));
        if !inside {
            let (alarm, meta) = (&alarm, &meta);
            if if_absent {
                let answer =
                    ask(client, id, |cells| async move { cells.set_alarm_if_absent(id, alarm, due, meta).await });
                settle_if(client, asked, &answer.await, "alarm set from outside", |set| *set);
            } else {
                let answer = ask(client, id, |cells| async move { cells.set_alarm(id, alarm, due, meta).await });
                settle(client, asked, &answer.await, "alarm set from outside");
            }
            return;
        }
        let counted = self.next();
        let counts = client.history().ask(What::Effect(whole(id, counted)));
        let answer = request(client, id, |_| {
            let set = if if_absent {
                Step::SetIfAbsent(alarm.clone(), due, meta.clone())
            } else {
                Step::Set(alarm.clone(), due, meta.clone())
            };
            vec![Step::Count(counted), set]
        })
        .await;
        settle(client, counts, &answer, "request");
        settle_if(client, asked, &answer, "alarm set from inside", |said| !if_absent || said.flags == [true]);
    }

    /// An alarm that others set, move, cancel and hurry as well.
    async fn shared_alarm(&self, client: &Client<App>, id: &str) {
        let random = client.random();
        let alarm = format!("s-{}", random.below(2));
        let name = format!("{id}/{alarm}");
        let inside = random.chance(0.5);
        match random.below(10) {
            0..5 => self.set(client, id, Kind::Plain, inside, Some(&alarm)).await,
            5..8 => {
                let asked = client.history().ask(What::Cancel(name));
                self.cancel_it(client, id, &alarm, inside, asked).await;
            }
            _ => {
                let asked = client.history().ask(What::FireNow(name));
                if inside {
                    let answer = request(client, id, |_| vec![Step::FireNow(alarm.clone())]).await;
                    settle_if(client, asked, &answer, "alarm fired now", |said| said.flags == [true]);
                } else {
                    let alarm = &alarm;
                    let answer = ask(client, id, |cells| async move { cells.fire_now(id, alarm).await }).await;
                    settle_if(client, asked, &answer, "alarm fired now", |fired| *fired);
                }
            }
        }
    }

    async fn cancel_it(&self, client: &Client<App>, id: &str, alarm: &str, inside: bool, asked: Pending) {
        if inside {
            let answer = request(client, id, |_| vec![Step::Cancel(alarm.to_owned())]).await;
            settle(client, asked, &answer, "alarm cancelled");
        } else {
            let answer = ask(client, id, |cells| async move { cells.cancel_alarm(id, alarm).await }).await;
            settle(client, asked, &answer, "alarm cancelled");
        }
    }

    /// Sets an alarm, and cancels it at about the time when it fires.
    async fn cancel(&self, client: &Client<App>, id: &str) {
        let alarm = format!("c-{}", self.next());
        self.set(client, id, Kind::Slow, client.random().chance(0.5), Some(&alarm)).await;
        client.sleep(client.random().up_to(Duration::from_secs(2))).await;
        let asked = client.history().ask(What::Cancel(format!("{id}/{alarm}")));
        self.cancel_it(client, id, &alarm, client.random().chance(0.5), asked).await;
    }

    /// An alarm just set is listed.
    async fn list(&self, client: &Client<App>, id: &str) {
        let effect = self.next();
        let alarm = format!("l-{effect}");
        let due = client.now() + Duration::from_secs(30);
        let setting =
            Setting { alarm: format!("{id}/{alarm}"), effect: whole(id, effect), due, times: (1, 1), alone: None };
        let asked = client.history().ask(What::Set(setting));
        let meta = Kind::Plain.meta(effect);
        let (alarm, meta) = (&alarm, &meta);
        let answer = ask(client, id, |cells| async move { cells.set_alarm(id, alarm, due, meta).await }).await;
        if !settle(client, asked, &answer, "alarm set from outside") {
            return;
        }
        let listed = if client.random().chance(0.5) {
            let answer = request(client, id, |_| vec![Step::List]).await;
            answer.and_then(|(answer, site)| Some((answer.ok()?.alarms, site)))
        } else {
            let answer = ask(client, id, |cells| async move { cells.alarms(id).await }).await;
            let ids = |alarms: Vec<Alarm>| alarms.iter().map(|alarm| alarm.id().to_owned()).collect();
            answer.and_then(|(answer, site)| Some((answer.ok().map(ids)?, site)))
        };
        let Some((listed, site)) = listed else { return };
        client.count("alarms listed");
        let is_early = site.life().latest() < due && client.now() < due;
        if is_early && site.life().is_current() && !listed.contains(alarm) {
            let what = format!("{id}/{alarm} was set and is not listed by life {}", site.life().number());
            client.history().violated(Invariant::Read, what);
        }
    }

    /// Raises a counter that is read as well.
    async fn add(&self, client: &Client<App>, id: &str) {
        let asked = client.history().ask(What::Effect(format!("{id}/n")));
        let answer = request(client, id, |_| vec![Step::Add]).await;
        settle(client, asked, &answer, "request");
    }

    async fn read(&self, client: &Client<App>, id: &str) {
        let look = client.history().look(&format!("{id}/n"));
        let answer = request(client, id, |_| vec![Step::Read]).await;
        if let Some((Ok(said), site)) = answer {
            client.count("read");
            // One that has been replaced may answer from memory until it learns of that.
            if site.life().is_current() {
                look.saw(said.value);
            }
        }
    }

    async fn post(&self, client: &Client<App>, id: &str) {
        let kinds = [Kind::Plain, Kind::Plain, Kind::Fails, Kind::Panics, Kind::Doomed, Kind::Slow, Kind::Halves];
        let kind = client.random().pick(&kinds).copied().unwrap_or(Kind::Plain);
        let effect = self.next();
        let Some(site) = client.any().await else { return };
        let post = || {
            let message = NewPost::json(&kind.meta(effect)).expect("JSON").id(format!("m-{effect}"));
            site.app().post(id, message.header("kind", "simulated"))
        };
        let what = || What::Post { message: format!("{id}/m-{effect}"), effect: whole(id, effect) };
        let asked = client.history().ask(what());
        let answer = post().await;
        if answer.is_ok() {
            client.count("post");
        }
        asked.told(outcome(&answer));
        if client.random().chance(0.1) {
            // Dropped while the first is there.
            let asked = client.history().ask(what());
            let answer = post().await;
            asked.told(if matches!(answer, Ok(Posted::Duplicate)) { Outcome::Not } else { outcome(&answer) });
        }
    }

    /// A client that sends some messages and waits for their answers, in order.
    async fn connection(&self, client: &Client<App>, id: &str) {
        let is_welcome = client.random().chance(0.9);
        let Some((Ok(connection), site)) =
            ask(client, id, |cells| async move { cells.connect(id, is_welcome).await }).await
        else {
            return;
        };
        let mut waiting = BTreeMap::new();
        for _ in 0..client.random().below(8) + 1 {
            let effect = self.next();
            let asked = client.history().ask(What::Effect(whole(id, effect)));
            match connection.send((effect, Odd::some(&site.app().shared, id))).await {
                Ok(()) => drop(waiting.insert(effect, asked)),
                Err(_) => {
                    asked.told(Outcome::Not);
                    break;
                }
            }
            if client.random().chance(0.3) {
                client.sleep(client.random().up_to(Duration::from_millis(500))).await;
            }
        }
        let mut expected = 0;
        while !waiting.is_empty() {
            let received = tokio::select! { biased;
                received = connection.recv() => received,
                // A handler that fails without having done anything says nothing.
                () = client.sleep(Duration::from_secs(20)) => break,
            };
            let Ok(Reply(number, effect, odd)) = received else { break };
            odd.iter().for_each(Odd::arrived);
            if number != expected {
                let what = format!("{id} sent {number} when {expected} was to come");
                client.history().violated(Invariant::InOrder, what);
            }
            expected += 1;
            if let Some(asked) = waiting.remove(&effect) {
                asked.told(Outcome::Done);
                client.count("message on a connection");
            }
        }
    }

    async fn task(&self, client: &Client<App>, id: &str) {
        let effects: Vec<_> = (0..client.random().below(4) + 1).map(|_| self.next()).collect();
        let counted = self.next();
        let asked = client.history().ask(What::Effect(whole(id, counted)));
        let answer = request(client, id, |_| vec![Step::Count(counted), Step::Spawn(effects.clone())]).await;
        settle(client, asked, &answer, "task started");
    }

    async fn dead(&self, client: &Client<App>) {
        let Some(site) = client.any().await else { return };
        let Ok(dead) = site.app().dead_letters(None, 20).await else { return };
        client.count("dead letters listed");
        if let Some(dead) = client.random().pick(&dead) {
            self.requeue_or_discard(client, &site, dead, client.random().chance(0.7)).await;
        }
    }

    async fn requeue_or_discard(
        &self,
        client: &Client<App>,
        site: &Site<App>,
        dead: &stable_interfaces::Dead,
        requeue: bool,
    ) {
        let meta = match dead.kind() {
            DeadKind::Alarm(alarm) => alarm.meta(),
            DeadKind::Message(message) => message.json(),
            _ => return,
        };
        let Ok(meta) = meta else { return };
        let effect = whole(dead.instance(), Kind::from_meta(&meta).1);
        let Handles { cells, scouts } = &*site.app().handles;
        let is_scouts = dead.instance().starts_with("r-");
        if requeue {
            let asked = client.history().ask(What::Requeue(effect));
            let answer = if is_scouts { scouts.requeue(dead).await } else { cells.requeue(dead).await };
            settle_if(client, asked, &Some((answer, site.clone())), "dead letter requeued", |done| *done);
        } else {
            let asked = client.history().ask(What::Discard(effect));
            let answer = if is_scouts { scouts.discard(dead).await } else { cells.discard(dead).await };
            settle_if(client, asked, &Some((answer, site.clone())), "dead letter discarded", |done| *done);
        }
    }

    /// An instance asks another.
    async fn nested(&self, client: &Client<App>, id: &str) {
        let other = Self::some_instance(client);
        let (outer, inner) = (self.next(), self.next());
        let asked = client.history().ask(What::Effect(whole(id, outer)));
        let awaited: Awaited = Arc::default();
        let answer = request(client, id, |cells| {
            let asked_inner = client.history().ask(What::Effect(whole(&other, inner)));
            // What was asked for by an earlier try was refused for certain.
            if let Some(before) = awaited.lock().replace(asked_inner) {
                before.told(Outcome::Not);
            }
            vec![Step::Count(outer), Step::Ask(cells, other.clone(), inner, awaited.clone())]
        })
        .await;
        settle(client, asked, &answer, "nested request");
    }

    fn some_scout(client: &Client<App>) -> String {
        format!("r-{}", client.random().below(SCOUTS))
    }

    /// A scout is sent to a cell, by a client or by another cell, which then takes its time.
    async fn errand(&self, client: &Client<App>, cell: &str) {
        let (scout, sender) = (Self::some_scout(client), Self::some_instance(client));
        let (mine, its, senders) = (self.next(), self.next(), self.next());
        let (sleeps, lasts) =
            (client.random().up_to(Duration::from_millis(600)), client.random().up_to(Duration::from_secs(2)));
        let by_cell = client.random().chance(0.5);
        let (of_scout, of_cell): (Awaited, Awaited) = (Arc::default(), Arc::default());
        let again = |awaited: &Awaited, effect: String| {
            // What was asked for by an earlier try was refused for certain.
            if let Some(before) = awaited.lock().replace(client.history().ask(What::Effect(effect))) {
                before.told(Outcome::Not);
            }
            awaited.clone()
        };
        let errand = |app: App| Errand {
            app,
            cell: cell.to_owned(),
            effects: (mine, its),
            awaited: again(&of_cell, whole(cell, its)),
            sleeps,
        };
        if by_cell {
            let asked = client.history().ask(What::Effect(whole(&sender, senders)));
            let answer = request(client, &sender, |app| {
                let errand = errand(app.clone());
                let send = Step::Send(app, scout.clone(), errand, again(&of_scout, whole(&scout, mine)));
                vec![Step::Count(senders), send, Step::Sleep(lasts)]
            });
            settle(client, asked, &answer.await, "nested request by way of a scout");
        } else {
            let asked = client.history().ask(What::Effect(whole(&scout, mine)));
            let answer = ask(client, &scout, |app| {
                let (errand, scout) = (errand(app.clone()), scout.clone());
                async move { app.scouts().request(&scout, errand).await }
            });
            settle(client, asked, &answer.await, "errand of a scout");
        }
    }

    async fn scout_alarm(&self, client: &Client<App>) {
        let (scout, effect) = (Self::some_scout(client), self.next());
        let kind = if client.random().chance(0.3) { Kind::Fails } else { Kind::Plain };
        let (alarm, due) = (format!("a-{effect}"), client.now() + Self::some_delay(client));
        let setting = Setting {
            alarm: format!("{scout}/{alarm}"),
            effect: whole(&scout, effect),
            due,
            times: kind.times(),
            alone: None,
        };
        let asked = client.history().ask(What::Set(setting));
        let (id, alarm, meta) = (&scout, &alarm, &kind.meta(effect));
        let answer = ask(client, id, |app| async move { app.scouts().set_alarm(id, alarm, due, meta).await });
        settle(client, asked, &answer.await, "alarm of a scout");
    }

    /// Alarms of instances that nothing else happens to, in one shard, about the same time: they have to start in order.
    async fn order(&self, client: &Client<App>) {
        let Some(shard) = client.shard_of(&Self::some_instance(client)) else { return };
        let due = client.now() + Duration::from_secs(3);
        for _ in 0..4 {
            let effect = self.next();
            let Some(id) = (0..10_000).map(|n| format!("o-{effect}-{n}")).find(|id| client.shard_of(id) == Some(shard))
            else {
                return;
            };
            let due = due + Duration::from_millis(client.random().below(3));
            let setting = Setting {
                alarm: format!("{id}/x"),
                effect: whole(&id, effect),
                due,
                times: (1, 1),
                alone: Some((shard, id.clone())),
            };
            let asked = client.history().ask(What::Set(setting));
            let (meta, id) = (Kind::Plain.meta(effect), id.as_str());
            let meta = &meta;
            let answer = ask(client, id, |cells| async move { cells.set_alarm(id, "x", due, meta).await }).await;
            settle(client, asked, &answer, "alarm set from outside");
        }
    }

    /// Many requests of one instance at once.
    async fn burst(&self, client: &Client<App>, id: &str) {
        let one = || async {
            let effect = self.next();
            let asked = client.history().ask(What::Effect(whole(id, effect)));
            let answer = request(client, id, |_| vec![Step::Count(effect)]).await;
            settle(client, asked, &answer, "request");
        };
        let mut all: Vec<_> = (0..12).map(|_| Box::pin(one())).collect();
        std::future::poll_fn(|cx| {
            all.retain_mut(|one| one.as_mut().poll(cx).is_pending());
            if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    /// A request that its sender does not wait for.
    async fn dropped(&self, client: &Client<App>, id: &str) {
        let effect = self.next();
        let asked = client.history().ask(What::Effect(whole(id, effect)));
        let work = request(client, id, |_| vec![Step::Count(effect), Step::Sleep(Duration::from_millis(100))]);
        let answer = tokio::select! { biased;
            answer = work => answer,
            () = client.sleep(client.random().up_to(Duration::from_millis(120))) => return drop(asked),
        };
        settle(client, asked, &answer, "request");
    }
}

impl fmt::Debug for Do {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Do").field("steps", &self.steps.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Errand").field("cell", &self.cell).field("effects", &self.effects).finish_non_exhaustive()
    }
}

impl fmt::Debug for Scout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scout").field("id", &self.id).field("total", &self.total).finish_non_exhaustive()
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell").field("id", &self.id).field("total", &self.total).finish_non_exhaustive()
    }
}
