//! A flow as an instance: its journal is its storage, and its code is polled in its turns.
//!
//! A turn takes one thing in (a start, a message, a timer, what a step has come to), polls the code for as long as that leads
//! anywhere, and is one commit of all that was decided. Steps start when the commit that they began in is durable: then the
//! [`pump`], a task of the incarnation, brings the next turn. If a commit fails, the instance is built anew and its code replayed.

mod continued;
mod pump;
mod rehearsal;
mod sealed;
mod telling;
#[cfg(feature = "postgres")]
mod transaction;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stable_interfaces::transport::RemoteError;
use stable_interfaces::{
    Alarm, Context, ContextError, Handle, KeyRange, Message as Posted, OnAlarm, OnMessage, StableInterface, Timestamp,
};

use self::continued::{Before, LEFTOVERS, ONCE};
use self::pump::{Bell, Pumping};
pub(crate) use self::pump::{Strays, watch_strays};
use self::rehearsal::Rehearsal;
use self::sealed::{Seal, Sealed};
pub(crate) use self::telling::Look;
use self::telling::{News, Said, Unread};
use crate::blocked::{Blocked, BlockedKind};
use crate::by_name::ByName;
use crate::command::{Command, Parent};
use crate::courier::{self, Letter, Parents, Receipt};
use crate::engine::{Code, Engine, Phase, Shared};
use crate::events;
use crate::flows::journals::{PAGES, body_key, page_key, run_of};
use crate::flows::{Kept, Registry, joined, parts_of};
use crate::hash::hash_of;
use crate::journal::{ChildOutcome, Ended, Event, Message, Page, Unreadable, Written};
use crate::metrics;
use crate::seldom::{Seldom, Unchanged};
use crate::status::{MAX_WAITS, RESULT_KEY, STATUS_KEY, State, Status, Waiting, fitting, short};

/// The run of a flow that has not been continued under its ID.
pub(crate) const RUN: u32 = 1;
/// The number of things that the code is given in one turn.
const RELEASES: usize = 1_000;
/// The most bytes of one row of the journal.
const ROW_BYTES: usize = 250 * 1_024;
/// The most rows that one turn removes.
const PURGED_AT_ONCE: usize = 500;
/// The most messages that wait for one flow's code.
const MAX_UNREAD: usize = 10_000;
/// The alarm that finds what was running when a process died, and flows that are blocked.
pub(crate) const RUNNING: &str = "run";
/// The time after which it fires.
const RUNNING_AFTER: Duration = Duration::from_secs(1);
/// The alarm for a flow's next timer, for its expiry, and for its purge.
pub(crate) const NEXT: &str = "next";
/// No process.
const LEFT: u64 = 0;
/// In so many processes that died a step may have run, and no more.
const MAX_DEATHS: u32 = 2;
/// So many processes may die while a flow's code runs for one timer or message: after them the flow is blocked.
const MAX_CODE_DEATHS: u64 = 3;
/// The time after which a timer asks again whether it may fire, after a call that came before it.
const CALLS_FIRST: Duration = Duration::from_millis(10);
/// The time after which a flow is looked at again that was to be purged, and has parents that were not told.
const PARENTS_FIRST: Duration = Duration::from_secs(60);
/// The answer to a [`Command`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// The command had been carried out before.
    Already,
    /// A flow of this ID was started with another input.
    Conflict,
    /// There is no such flow.
    NotFound,
    /// The flow, or its callback, is over.
    Gone,
    /// Too many messages wait.
    Full,
    /// Messages that were stored before it are on their way, and a timer is due: it has to be stored behind them.
    Behind,
}

/// The reason why a turn failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnError {
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error("{0}")]
    Unreadable(Unreadable),
    #[error("{0}")]
    Sealed(Seal),
    #[error("its status cannot be read")]
    Status(#[source] serde_json::Error),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// A flow in memory.
pub(crate) struct FlowInstance {
    id: Arc<str>,
    registry: Arc<Registry>,
    loaded: Loaded,
    /// Other flows that want to know how it ends.
    parents: Parents,
    /// Posts to go out with the next commit.
    letters: Vec<Letter>,
    /// The times that the alarm `next` is set to, and that `run` was set to, if it is set or held.
    next: Option<Timestamp>,
    runs: Option<Timestamp>,
    /// A note says that this process leaves in good order.
    has_left: bool,
    /// The alarm `run` is set because not all that was decided is recorded.
    runs_for_rest: bool,
}

/// The processes that steps ran in, as the alarm `run` knows them.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Lives {
    /// The last of them; [`LEFT`] if it left in good order.
    process: u64,
    /// The number of those before it that died while the same steps ran.
    died: u32,
    /// The steps that ran then.
    steps: Vec<String>,
}

impl Lives {
    /// No step runs in this process yet.
    fn of(process: u64) -> Lives {
        Lives { process, died: 0, steps: Vec::new() }
    }
}

enum Loaded {
    /// The flow was never started.
    Absent,
    Going(Box<Going>),
    /// The journal cannot be read here.
    Sealed(Box<Sealed>),
    Over(Box<Status>),
}

/// All of a stored status that is kept in memory: enough to tell whether there is news.
struct Stored {
    state: State,
    changed_at: Timestamp,
    revision: u64,
    deaths: u64,
    digest: u64,
}

impl From<&Status> for Stored {
    fn from(status: &Status) -> Stored {
        let Status { changed_at, revision, deaths, .. } = *status;
        Stored { state: status.state.clone(), changed_at, revision, deaths, digest: status.digest() }
    }
}

impl Stored {
    /// Tells whether another status says the same, whenever that was.
    fn is_same(&self, other: &Stored) -> bool {
        self.state == other.state && self.digest == other.digest
    }
}

struct Going {
    engine: Engine,
    bell: Arc<Bell>,
    pumping: Pumping,
    version: u32,
    started_at: Timestamp,
    input: u64,
    /// The number of the journal's next page.
    pages: u64,
    /// The things that its run has from those before it.
    before: Before,
    /// Messages that were taken, by callback and ID, and ends of children, by child.
    seen: ByName<()>,
    /// The status as it was last written, if there is one.
    stored: Option<Stored>,
    rare: Seldom<Rare>,
    unread: Unread,
    /// The journal, kept for replays, if flows are replayed as they park.
    rehearsal: Option<Rehearsal>,
}

/// The part of a flow in memory that few flows have.
#[derive(Default)]
struct Rare {
    /// The things that a flow waited for that was blocked as it was loaded.
    waited: Vec<Waiting>,
    said: Said,
}

impl Unchanged for Rare {
    const UNCHANGED: &'static Rare = &Rare { waited: Vec::new(), said: Said::NOTHING };
}

impl fmt::Debug for FlowInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowInstance").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FlowInstance {
    pub(crate) fn new(id: &str, registry: Arc<Registry>) -> FlowInstance {
        let loaded = Loaded::Absent;
        let (parents, letters) = (Parents::default(), Vec::new());
        FlowInstance {
            id: id.into(),
            registry,
            loaded,
            parents,
            letters,
            next: None,
            runs: None,
            has_left: false,
            runs_for_rest: false,
        }
    }

    /// Reads what is stored, and replays the code to where it was.
    async fn load(&mut self, cx: &mut Context, resumes: bool) -> Result<(), TurnError> {
        match cx.get_bytes(STATUS_KEY).await? {
            Some(status) => Box::pin(self.load_stored(cx, status, resumes)).await,
            None => Ok(()),
        }
    }

    async fn load_stored(&mut self, cx: &mut Context, status: Bytes, resumes: bool) -> Result<(), TurnError> {
        let (clock, name) = (cx.clock(), self.name());
        let began = clock.elapsed();
        let stored = Status::from_stored(&status).map_err(TurnError::Status)?;
        let mut before: Option<Lives> = None;
        for alarm in cx.alarms().await? {
            match alarm.id() {
                // Set anew, it is no longer held, and nothing has died of it.
                NEXT => self.next = (!resumes).then(|| alarm.due()),
                RUNNING => {
                    self.runs = Some(alarm.scheduled_at());
                    before = alarm.meta().ok();
                }
                _ => {}
            }
        }
        if stored.state.is_over() {
            self.loaded = Loaded::Over(Box::new(stored));
            // It is set for as long as somebody is to be told.
            if self.runs.is_some() {
                let rows = cx.list(courier::PARENTS).await?;
                self.parents = Parents::read(&rows)?;
            }
            return self.tell(cx).await;
        }
        let was_killed = matches!(&stored.state, State::Blocked { why } if why.kind() == BlockedKind::CodeKilled);
        let deaths = u64::from(cx.crashes());
        if !resumes && was_killed {
            let why = Seal::Killed(stored.deaths);
            return self.seal(cx, &status, stored, why);
        }
        if !resumes && deaths >= MAX_CODE_DEATHS && deaths > stored.deaths {
            return self.seal(cx, &status, Status { deaths, ..stored }, Seal::Killed(deaths));
        }
        // With those of IDs, which come before them, and of parents, which come after them.
        let mut ids = cx.list(ONCE.."parent0").await?;
        let mut rows = ids.split_off(ids.partition_point(|(key, _)| key.starts_with(ONCE)));
        let parents = rows.split_off(rows.partition_point(|(key, _)| key.starts_with(PAGES)));
        self.parents = Parents::read(&parents)?;
        let (pages, next_page) = match run_of(rows, stored.first_page, None) {
            Ok(pages) => pages,
            Err(why) => return self.seal(cx, &status, stored, Seal::Unreadable(why)),
        };
        let before_it = Before::of(stored.run, stored.first_page, &pages, &ids);
        // Without the messages of earlier runs: their IDs are in rows of their own.
        let entries = pages.iter().flat_map(|page| &page.entries).filter(|entry| !before_it.is_older(entry.seq));
        let seen = entries.filter_map(|entry| match &entry.event {
            Event::Message { callback, message } => Some(seen_as(callback, &message.id)),
            Event::ChildEnded { child, .. } => Some(seen_as(child, "")),
            _ => None,
        });
        let seen = seen.collect();
        let going = self.begin(cx, (stored.version, stored.run), pages)?;
        (going.started_at, going.input) = (stored.started_at, stored.input);
        if let State::Blocked { why } = &stored.state
            && matches!(why.kind(), BlockedKind::StepFailed | BlockedKind::StepKilled)
            && !resumes
        {
            // It is for somebody to say that the step may be tried again.
            going.engine.replay();
            going.engine.block(why.clone());
        }
        going.pages = next_page;
        going.before = before_it;
        going.seen = seen;
        let said = Said::of(&stored);
        if said.events > 0 {
            going.rare.made().said = said;
        }
        going.stored = Some(Stored::from(&stored));
        going.engine.settle(usize::MAX);
        if matches!(going.engine.phase(), Phase::Blocked(_)) {
            going.rare.made().waited = stored.waits.clone();
        }
        // An earlier life may have ended between its commit and the word of it.
        self.registry.hub.tell(&self.id, &Arc::new(stored), Vec::new());
        metrics::replayed(&name, clock.elapsed().saturating_sub(began));
        self.address_posts(cx.now());
        if let Some(before) = before {
            self.look_for_killers(cx, &before)?;
        }
        self.tell(cx).await?;
        self.write(cx)?;
        self.write_rest(cx).await
    }

    /// An engine for this flow.
    fn begin(
        &mut self,
        cx: &mut Context,
        (version, run): (u32, u32),
        pages: Vec<Page>,
    ) -> Result<&mut Going, TurnError> {
        let bell = Arc::new(Bell::new(self.id.clone(), self.registry.strays.clone()));
        let shared = Shared::new(
            self.id.clone(),
            cx.clock(),
            cx.random(),
            self.registry.limits,
            self.registry.urls.clone(),
            bell.clone(),
        );
        #[cfg(feature = "testing")]
        if let Some(fakes) = &self.registry.fakes {
            shared.fakes.get_or_init(|| fakes.clone());
        }
        let (name, id) = parts_of(&self.id);
        let code = self.registry.code(name, version);
        let rehearsal = self.registry.rehearses.then(|| Rehearsal::of(&pages));
        let is_known = code.is_some();
        let nothing: Code = Arc::new(|_, _| Box::pin(std::future::pending()));
        let mut engine = Engine::new(shared, code.unwrap_or(nothing), pages);
        engine.set_span(tracing::info_span!("flow", name, id, version, run));
        if !is_known {
            engine.block(Blocked::unknown_version(name, version));
        }
        self.loaded = Loaded::Going(Box::new(Going {
            engine,
            bell,
            pumping: Pumping::default(),
            version,
            started_at: cx.now(),
            input: 0,
            pages: 0,
            before: Before::none(),
            seen: ByName::default(),
            stored: None,
            rare: Seldom::default(),
            unread: Unread::default(),
            rehearsal,
        }));
        match &mut self.loaded {
            Loaded::Going(going) => Ok(going),
            _ => unreachable!("it has just been set"),
        }
    }

    /// Takes something in, and goes on with what comes of it. `arrived` is the moment that counts.
    async fn take(&mut self, cx: &mut Context, command: Command, arrived: Timestamp) -> Result<Answer, TurnError> {
        self.write_rest(cx).await?;
        if let Loaded::Sealed(sealed) = &self.loaded
            && !matches!(command, Command::Start { .. } | Command::Resume)
        {
            return Err(sealed.refusal());
        }
        let answer = match command {
            // Boxed, as all that is rare in here: each turn makes room for the largest.
            Command::Resume => return Box::pin(self.resume(cx)).await,
            Command::Start { version, input, parent: None } => self.start(cx, version, input)?,
            Command::Start { version, input, parent: Some(parent) } => {
                let is_refused = self.start(cx, version, input)? == Answer::Conflict;
                self.parents.add(cx, Parent { is_refused, ..parent })?;
                Box::pin(self.tell(cx)).await?;
                Answer::Done
            }
            Command::Deliver { run, callback, message } => self.deliver(cx, (run, callback), message, arrived),
            Command::ChildEnded { run, child, outcome } => self.child_ended((run, child), outcome, arrived),
            Command::Cancel => match &mut self.loaded {
                Loaded::Absent => Answer::NotFound,
                Loaded::Over(_) => Answer::Gone,
                Loaded::Sealed(_) => Answer::Full,
                Loaded::Going(going) => {
                    going.engine.append(arrived, Event::Cancel);
                    Answer::Done
                }
            },
        };
        self.advance_fully(cx).await?;
        Ok(answer)
    }

    fn start(&mut self, cx: &mut Context, version: u32, input: Bytes) -> Result<Answer, TurnError> {
        let hash = hash_of(&input);
        let known = match &self.loaded {
            Loaded::Absent => None,
            Loaded::Going(going) => Some(going.input),
            Loaded::Sealed(sealed) => Some(sealed.status.input),
            Loaded::Over(status) => Some(status.input),
        };
        if let Some(known) = known {
            return Ok(if known == hash { Answer::Already } else { Answer::Conflict });
        }
        let (now, seed) = (cx.now(), cx.random().next_u64());
        let going = self.begin(cx, (version, RUN), Vec::new())?;
        going.input = hash;
        going.engine.append(now, Event::Start { version, run: RUN, seed, input });
        Ok(Answer::Done)
    }

    fn deliver(
        &mut self,
        cx: &Context,
        (run, address): (Option<u32>, Arc<str>),
        mut message: Message,
        arrived: Timestamp,
    ) -> Answer {
        let going = match &mut self.loaded {
            Loaded::Absent => return Answer::NotFound,
            Loaded::Over(_) => return Answer::Gone,
            Loaded::Sealed(_) => return Answer::Full,
            Loaded::Going(going) => going,
        };
        if message.id.is_empty() {
            message.id = format!("{:016x}", cx.random().next_u64()).into();
        }
        let Some(callback) = going.before.callback(run, &address) else { return Answer::Gone };
        let seen = seen_as(&callback, &message.id);
        if going.seen.get(&seen).is_some() || going.before.has_taken(run, &address, &message.id) {
            return Answer::Already;
        }
        going.pass_until(arrived);
        if matches!(going.engine.phase(), Phase::Ended(_)) || !going.engine.takes_messages(&callback) {
            return Answer::Gone;
        }
        if going.engine.unread() >= MAX_UNREAD || going.engine.has_too_many_early(&callback) {
            return Answer::Full;
        }
        going.seen.insert(seen, ());
        going.engine.append(arrived, Event::Message { callback, message });
        Answer::Done
    }

    fn child_ended(&mut self, (run, child): (u32, Arc<str>), outcome: ChildOutcome, arrived: Timestamp) -> Answer {
        let going = match &mut self.loaded {
            Loaded::Absent => return Answer::NotFound,
            Loaded::Over(_) => return Answer::Gone,
            Loaded::Sealed(_) => return Answer::Full,
            Loaded::Going(going) => going,
        };
        if run != going.before.run {
            return Answer::Gone;
        }
        let seen = seen_as(&child, "");
        if going.seen.get(&seen).is_some() {
            return Answer::Already;
        }
        going.seen.insert(seen, ());
        going.pass_until(arrived);
        if matches!(going.engine.phase(), Phase::Ended(_)) {
            return Answer::Gone;
        }
        going.engine.append(arrived, Event::ChildEnded { child, outcome });
        Answer::Done
    }

    async fn resume(&mut self, cx: &mut Context) -> Result<Answer, TurnError> {
        match &self.loaded {
            Loaded::Absent => return Ok(Answer::NotFound),
            Loaded::Over(_) => return Ok(Answer::Gone),
            Loaded::Sealed(_) => {}
            Loaded::Going(going) if matches!(going.engine.phase(), Phase::Blocked(_)) => {}
            Loaded::Going(_) => return Ok(Answer::Already),
        }
        // Set anew, it has killed nothing.
        cx.cancel_alarm(RUNNING)?;
        self.runs = None;
        self.load(cx, true).await?;
        self.advance_fully(cx).await?;
        Ok(Answer::Done)
    }

    /// Polls the code for as long as that leads anywhere, and records what was decided.
    fn advance(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        if !going.engine.settle(RELEASES) && going.engine.wants_steps_polled() {
            going.engine.poll_steps(cx.now());
            going.engine.settle(RELEASES);
        }
        self.address_posts(cx.now());
        self.write(cx)?;
        self.rehearse(cx)
    }

    /// Makes letters of what the code has to post, and tells it of what cannot be posted.
    fn address_posts(&mut self, now: Timestamp) {
        let Loaded::Going(going) = &mut self.loaded else { return };
        loop {
            let mut is_refused = false;
            for post in going.engine.take_posts().into_iter().map(Arc::new) {
                match Letter::to_child(&self.registry, &self.id, going.before.run, &post) {
                    Ok(letter) => self.letters.push(letter),
                    Err(outcome) => {
                        is_refused = true;
                        going.seen.insert(seen_as(&post.child, ""), ());
                        going.engine.append(now, Event::ChildEnded { child: post.child.clone(), outcome });
                    }
                }
            }
            if !is_refused {
                return;
            }
            going.engine.settle(usize::MAX);
        }
    }

    /// Lets couriers go who tell parents what is known.
    async fn tell(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let outcome = match &self.loaded {
            Loaded::Over(_) if self.parents.is_empty() => return Ok(()),
            Loaded::Over(status) => Some(match &status.state {
                State::Failed { error } => ChildOutcome::Failed(error.as_str().into()),
                State::Cancelled => ChildOutcome::Cancelled,
                State::Done => {
                    let rows = cx.list(RESULT_KEY).await?;
                    let value = joined(&rows);
                    if value.is_empty() {
                        ChildOutcome::Purged
                    } else {
                        courier::as_told(ChildOutcome::Done(value.into()))
                    }
                }
                _ => ChildOutcome::Purged,
            }),
            _ => None,
        };
        self.tell_of(cx, outcome.as_ref())
    }

    fn tell_of(&mut self, cx: &mut Context, outcome: Option<&ChildOutcome>) -> Result<(), TurnError> {
        let letters = self.parents.letters(&self.id, outcome);
        if !letters.is_empty() && self.runs.is_none() {
            self.set_running(cx, Lives::of(LEFT))?;
        }
        courier::send(cx, letters)
    }

    /// Takes note of what a courier has posted.
    pub(crate) fn posted(&mut self, cx: &mut Context, receipts: &[Receipt]) -> Result<(), TurnError> {
        self.parents.note(cx, receipts)?;
        match &mut self.loaded {
            Loaded::Going(going) => {
                for receipt in receipts {
                    if let Receipt::Child(post) = receipt {
                        going.engine.note_posted(post);
                    }
                }
                if going.engine.waits_for_posts() {
                    going.engine.record_posted(cx.now());
                }
                self.advance(cx)
            }
            Loaded::Over(_) if self.parents.is_empty() && self.runs.take().is_some() => Ok(cx.cancel_alarm(RUNNING)?),
            _ => Ok(()),
        }
    }

    /// Records what is new.
    fn write(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let (page, mark) = going.engine.take_page();
        if !page.is_empty() {
            put_page(cx, going.pages, &page)?;
            going.noted(|| page);
        }
        let Some(mark) = mark else { return self.write_a_part(cx) };
        courier::send(cx, std::mem::take(&mut self.letters))?;
        let events = going.store_events(&self.id, cx)?;
        let mark = if self.switch(cx)? { 0 } else { mark };
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let is_over = matches!(going.engine.phase(), Phase::Ended(_));
        if let Phase::Ended(Ended::Done(value)) = going.engine.phase() {
            let value = value.clone();
            put_rows(cx, format!("{RESULT_KEY}/"), value, ROW_BYTES)?;
        }
        let status = going.status_at(cx.now());
        // The time alone is no news.
        let mut over = None;
        let stored = Stored::from(&status);
        if going.stored.as_ref().is_none_or(|old| !old.is_same(&stored)) {
            cx.put(STATUS_KEY, &status)?;
            let before = going.stored.replace(stored);
            over = is_over.then(|| Box::new(status.clone()));
            let mut news = News::new(&self.id, &self.registry.hub, before.map(|before| before.state), status, events);
            if let Phase::Ended(ended) = going.engine.phase() {
                news.finished = Some((events::outcome(ended), going.engine.entries()));
            }
            if let Some(news) = going.pumping.leave(news) {
                news.tell_after(cx);
            }
        }
        let is_blocked = matches!(going.engine.phase(), Phase::Blocked(_));
        let has_steps = going.engine.has_running_steps();
        let next = match going.engine.phase() {
            Phase::Ended(_) => cx.now() + self.registry.retention,
            _ => going.engine.next_due().unwrap_or(going.started_at + self.registry.expiry),
        };
        let has_posts = (!is_over && going.engine.has_posts()) || self.parents.has_refused();
        let is_told = !is_over || self.parents.is_empty();
        let must_run = has_steps || is_blocked || has_posts || !is_told || going.engine.has_unseen();
        if !must_run && self.runs.take().is_some() {
            cx.cancel_alarm(RUNNING)?;
        }
        if self.next != Some(next) {
            cx.set_alarm(NEXT, next, &Kept { version: going.version, is_over })?;
            self.next = Some(next);
        }
        if must_run && (self.runs.is_none() || std::mem::take(&mut self.runs_for_rest)) {
            // A flow that is blocked or over runs no step that could end anything.
            let process = if is_blocked || is_over { LEFT } else { self.registry.process };
            self.set_running(cx, Lives::of(process))?;
        }
        self.pump(cx, mark)?;
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        if let Phase::Ended(ended) = going.engine.phase() {
            let outcome = match ended {
                Ended::Done(value) => courier::as_told(ChildOutcome::Done(value.clone())),
                Ended::Failed(error) => ChildOutcome::Failed(short(error).into()),
                Ended::Cancelled => ChildOutcome::Cancelled,
            };
            going.bell.end();
            if let Some(status) = over {
                self.loaded = Loaded::Over(status);
            }
            self.tell_of(cx, Some(&outcome))?;
        }
        Ok(())
    }

    /// Leaves a flow of whose page a part was recorded to the turn, or the commit, that records the next: it is there from the first one on, and
    /// goes on also if this process dies.
    fn write_a_part(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        if going.stored.is_none() {
            let status = Status { state: State::Going, ..going.status_at(cx.now()) };
            cx.put(STATUS_KEY, &status)?;
            going.stored = Some(Stored::from(&status));
            let expires = going.started_at + self.registry.expiry;
            cx.set_alarm(NEXT, expires, &Kept { version: going.version, is_over: false })?;
            self.next = Some(expires);
            News::new(&self.id, &self.registry.hub, None, status, Vec::new()).tell_after(cx);
        }
        if self.runs.is_none() {
            self.set_running(cx, Lives::of(LEFT))?;
            self.runs_for_rest = true;
        }
        self.pump(cx, 0)
    }

    /// Goes on, for a turn whose answer counts for all that comes of it.
    async fn advance_fully(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        self.advance(cx)?;
        self.write_rest(cx).await
    }

    /// Records the rest of what was decided, each part in a commit of its own.
    async fn write_rest(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        while let Loaded::Going(going) = &self.loaded
            && going.engine.has_rest()
        {
            cx.commit().await?;
            self.advance(cx)?;
        }
        Ok(())
    }

    /// Counts the processes that died while steps ran which are still to be run, and blocks the flow rather than let them end a
    /// third. `before` is what the last process has noted.
    fn look_for_killers(&mut self, cx: &mut Context, before: &Lives) -> Result<(), TurnError> {
        let Loaded::Going(going) = &mut self.loaded else { return Ok(()) };
        let running = going.engine.running_steps();
        // Rebuilt in the same process, nothing has died.
        if running.is_empty() || before.process == self.registry.process {
            return Ok(());
        }
        let running: Vec<String> = running.iter().map(ToString::to_string).collect();
        let again: Vec<_> =
            running.iter().filter(|step| before.steps.contains(step)).map(|s| format!("`{s}`")).collect();
        let died = match before.process {
            LEFT => 0,
            _ if again.is_empty() => 1,
            _ => before.died + 1,
        };
        if died >= MAX_DEATHS {
            let what = if again.len() == 1 { "step" } else { "steps" };
            let message = format!("its {what} {} ran in {died} processes that died", again.join(", "));
            going.engine.block(Blocked::new(BlockedKind::StepKilled, message));
        }
        let steps = running.into_iter().take(MAX_WAITS).collect();
        self.set_running(cx, Lives { process: self.registry.process, died, steps })
    }

    /// Sets the alarm `run`. It is committed before any step starts that began in this turn.
    fn set_running(&mut self, cx: &mut Context, lives: Lives) -> Result<(), TurnError> {
        let at = cx.now() + RUNNING_AFTER;
        cx.set_alarm(RUNNING, at, &lives)?;
        self.runs = Some(at);
        Ok(())
    }

    /// The arrival of the first message that other hosts have stored, where a timer is due that it may have come before: it is on its
    /// way, and nothing that came after it may come first. Looks into the inbox only then.
    async fn first_stored(&mut self, cx: &mut Context) -> Result<Option<Timestamp>, TurnError> {
        let Loaded::Going(going) = &self.loaded else { return Ok(None) };
        let now = cx.now();
        if !going.engine.awaits_messages() || going.engine.next_due().is_none_or(|due| due > now) {
            return Ok(None);
        }
        let stored = Box::pin(cx.inbox()).await?;
        Ok(stored.first().map(|message| message.arrived().min(now)))
    }

    /// Begins the flow with the first start of its ID that is stored, if there is one: whoever stored it may have been told so. It comes as a message
    /// as well, and does nothing then. One that is stored while this turn's commit is under way finds its status there, unless it is faster than that.
    async fn take_stored_start(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        if !matches!(self.loaded, Loaded::Absent) || !cx.may_have_messages() {
            return Ok(());
        }
        let stored = Box::pin(cx.inbox()).await?;
        let starts = stored.iter().map(|message| Command::decode(message.body()));
        if let Some(Command::Start { version, input, .. }) =
            starts.filter_map(Result::ok).find(|command| matches!(command, Command::Start { .. }))
        {
            self.start(cx, version, input)?;
        }
        Ok(())
    }

    /// Removes a part of what is kept of a flow that is over, and in the end its ID.
    async fn purge(&mut self, cx: &mut Context, mut status: Box<Status>) -> Result<(), TurnError> {
        if !self.parents.is_empty() {
            // It is not to be gone before they know.
            let again = cx.now() + PARENTS_FIRST;
            cx.set_alarm(NEXT, again, &Kept { version: status.version, is_over: true })?;
            self.next = Some(again);
            return Ok(());
        }
        if status.state == State::Purged {
            cx.delete(STATUS_KEY)?;
            self.loaded = Loaded::Absent;
            return Ok(());
        }
        let rows = cx.list(KeyRange::all().limit(PURGED_AT_ONCE)).await?;
        let is_last = rows.len() < PURGED_AT_ONCE;
        for (key, _) in rows.iter().filter(|(key, _)| **key != *STATUS_KEY) {
            cx.delete(key)?;
        }
        let next = if is_last { cx.now() + self.registry.tombstone } else { cx.now() };
        if is_last {
            let before = status.state.clone();
            (status.state, status.changed_at) = (State::Purged, cx.now());
            (status.progress, status.resource) = (None, None);
            status.revision += 1;
            cx.put(STATUS_KEY, &status)?;
            let hub = &self.registry.hub;
            News::new(&self.id, hub, Some(before), Status::clone(&status), Vec::new()).tell_after(cx);
        }
        cx.set_alarm(NEXT, next, &Kept { version: status.version, is_over: true })?;
        self.next = Some(next);
        self.loaded = Loaded::Over(status);
        Ok(())
    }
}

impl Going {
    /// Counts a page that was put, and keeps it for replays, if flows are replayed as they park.
    fn noted(&mut self, page: impl FnOnce() -> Page) {
        self.pages += 1;
        if let Some(rehearsal) = &mut self.rehearsal {
            rehearsal.note(page());
        }
    }

    /// Lets everything happen that was due before something came: it came after that.
    fn pass_until(&mut self, arrived: Timestamp) {
        let before = arrived - Duration::from_millis(1);
        while self.engine.fire_due(before, None) > 0 {
            self.engine.settle(usize::MAX);
        }
    }

    fn status_at(&self, now: Timestamp) -> Status {
        let state = match self.engine.phase() {
            Phase::Going | Phase::Continued => State::Going,
            Phase::Blocked(why) => State::Blocked { why: why.clone() },
            Phase::Ended(Ended::Done(_)) => State::Done,
            Phase::Ended(Ended::Failed(error)) => State::Failed { error: short(error) },
            Phase::Ended(Ended::Cancelled) => State::Cancelled,
        };
        let waits = match self.engine.phase() {
            // Its code did not come so far again as to say.
            Phase::Blocked(_) if !self.rare.waited.is_empty() => self.rare.waited.clone(),
            _ => fitting(self.engine.waits().into_iter().map(|wait| Waiting {
                name: short(&wait.key),
                since: wait.since,
                until: wait.until,
                attempts: wait.attempts,
                last_error: wait.last_error.as_deref().map(short),
                at: wait.at.as_deref().map(short),
            })),
        };
        Status {
            state,
            version: self.version,
            run: self.before.run,
            started_at: self.started_at,
            changed_at: now,
            revision: self.stored.as_ref().map_or(1, |before| before.revision + 1),
            waits,
            unread: self.engine.unread() as u64,
            progress: self.rare.said.progress.clone(),
            resource: self.rare.said.resource.clone(),
            events: self.rare.said.events,
            entries: self.engine.entries(),
            bytes: self.engine.bytes() as u64,
            input: self.input,
            first_page: self.before.first_page,
            deaths: self.stored.as_ref().map_or(0, |before| before.deaths),
        }
    }
}

fn seen_as(callback: &str, id: &str) -> Arc<str> {
    [callback, "\0", id].concat().into()
}

/// Records a page of a journal, in as many rows as it needs.
fn put_page(cx: &mut Context, number: u64, page: &Page) -> Result<(), ContextError> {
    let Written { page, bodies, .. } = page.encode();
    put_rows(cx, page_key(number), page, ROW_BYTES)?;
    let mut bodies = bodies.into_iter().enumerate();
    bodies.try_for_each(|(n, body)| put_rows(cx, body_key(number, n), body, ROW_BYTES))
}

/// Records bytes in as many rows of this size as they need, under this prefix and their numbers.
fn put_rows(cx: &mut Context, prefix: String, bytes: Bytes, size: usize) -> Result<(), ContextError> {
    if bytes.len() <= size {
        // Not a part of them, so that nothing is copied.
        return if bytes.is_empty() { Ok(()) } else { cx.put_bytes(&(prefix + "0000"), bytes) };
    }
    for (n, at) in (0..bytes.len()).step_by(size).enumerate() {
        cx.put_bytes(&format!("{prefix}{n:04}"), bytes.slice(at..bytes.len().min(at + size)))?;
    }
    Ok(())
}

impl StableInterface for FlowInstance {
    const NAME: &'static str = "flow";
    type Error = TurnError;

    fn keeps_memory(error: &TurnError) -> bool {
        // It is said before anything is changed.
        matches!(error, TurnError::Unreadable(_) | TurnError::Sealed(_))
    }

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), TurnError> {
        self.load(cx, false).await
    }
}

impl Handle<Command> for FlowInstance {
    type Reply = Answer;

    async fn handle(&mut self, cx: &mut Context, command: Command) -> Result<Answer, TurnError> {
        let now = cx.now();
        if matches!(command, Command::Deliver { .. }) && self.first_stored(cx).await?.is_some() {
            return Ok(Answer::Behind);
        }
        if matches!(command, Command::Start { .. }) {
            self.take_stored_start(cx).await?;
        }
        self.take(cx, command, now).await
    }
}

impl OnMessage for FlowInstance {
    async fn on_message(&mut self, cx: &mut Context, posted: &Posted) -> Result<(), TurnError> {
        let mut command = Command::decode(posted.body()).map_err(TurnError::Unreadable)?;
        if let Command::Deliver { message, .. } = &mut command
            && message.id.is_empty()
        {
            message.id = posted.id().into();
        }
        // By the store's clock, which may be ahead.
        let arrived = posted.arrived().min(cx.now());
        let answer = self.take(cx, command, arrived).await?;
        if matches!(answer, Answer::NotFound | Answer::Gone | Answer::Full | Answer::Conflict) {
            tracing::warn!(flow = &*self.id, posted = posted.id(), ?answer, "a message for a flow was dropped");
        }
        if answer == Answer::NotFound {
            metrics::unknown();
        }
        Ok(())
    }
}

impl OnAlarm for FlowInstance {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), TurnError> {
        if matches!(self.loaded, Loaded::Sealed(_)) {
            // For a host that can read its journal.
            cx.hold_alarm();
            return Ok(());
        }
        self.write_rest(cx).await?;
        if alarm.id() == LEFTOVERS {
            return Box::pin(self.clear_leftovers(cx, alarm)).await;
        }
        if alarm.id() == RUNNING {
            match &mut self.loaded {
                Loaded::Going(going) => going.engine.record_posted(cx.now()),
                Loaded::Over(_) if self.parents.is_empty() => self.runs = None,
                _ => {}
            }
            self.advance_fully(cx).await?;
            // It may have been set anew in this turn.
            if self.runs == Some(alarm.scheduled_at()) {
                cx.hold_alarm();
            }
            return Ok(());
        }
        let first = self.first_stored(cx).await?;
        // It is completed with this turn, unless it is set again.
        self.next = None;
        match &mut self.loaded {
            Loaded::Absent | Loaded::Sealed(_) => Ok(()),
            Loaded::Over(status) => {
                let status = status.clone();
                Box::pin(self.purge(cx, status)).await
            }
            Loaded::Going(going) => {
                let now = cx.now();
                if let Some(first) = first {
                    going.pass_until(first);
                    self.advance_fully(cx).await?;
                    if let Loaded::Going(going) = &self.loaded {
                        let again = now + CALLS_FIRST;
                        cx.set_alarm(NEXT, again, &Kept { version: going.version, is_over: false })?;
                        self.next = Some(again);
                    }
                    return Ok(());
                }
                if going.engine.fire_due(now, Some(now)) == 0 && going.started_at + self.registry.expiry <= now {
                    tracing::warn!(flow = &*self.id, "a flow has been waiting for longer than it is expected to");
                    going.started_at = now;
                }
                self.advance_fully(cx).await
            }
        }
    }
}
