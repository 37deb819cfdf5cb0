//! The work of the simulation of the whole library: instances that use all of it, and clients that ask them to.
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

mod asking;
mod cell;
mod clients;
mod kind;
mod odd;
mod scout;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stable_interfaces::store::{AlarmRow, InstanceName};
use stable_interfaces::testing::{Client, End, History, Invariant, Life, Outside, SeededRandom, StoreDump, Workload};
use stable_interfaces::{ContextError, HostBuilder, Interface, RequestError, RetryPolicy, StartError};

use self::asking::{Awaiting, ask};
use self::cell::Step;
pub use self::cell::{Cell, Do, Item, Reply, Said};
use self::kind::Kind;
pub use self::odd::Odd;
pub use self::scout::{Errand, Scout};

const INSTANCES: u64 = 24;
const HANDLER_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of scouts, and the tables of some hosts hold fewer.
const SCOUTS: u64 = 6;

/// The way in which an application is broken on purpose, so that one sees of a run what one would see of a broken library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// One of its handles outlives everything, and the store with it.
    KeepsAHandle,
    /// Its instances exist twice, under two IDs of one shard: as if a table had two places for one.
    IsDoubled,
    /// It takes a new key whenever it asks again, as if keys were forgotten.
    DrawsKeys,
}

/// The simulated application on one host.
#[derive(Clone)]
pub struct App {
    handles: Arc<Handles>,
    shared: Arc<Shared>,
    flaw: Option<Flaw>,
    /// Says whether this process is none of the hosts.
    is_outside: bool,
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

/// The reason why a handler failed.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum Failed {
    /// Because it was told to.
    #[error("told to fail")]
    Told,
    /// As [`Told`](Self::Told), with an error that is odd, and cannot cross to another host.
    #[error("{0}")]
    #[serde(skip)]
    Odd(Odd),
    /// Because what it asked another instance for failed.
    #[error("asked another: {0}")]
    Nested(String),
    /// Because its context refused.
    #[error(transparent)]
    Context(#[from] ContextError),
}

/// The whole name of an effect.
fn whole(id: &str, effect: u64) -> String {
    format!("{id}/{effect}")
}

/// The things that all instances of one life of a host share.
struct Shared {
    life: Life,
    /// Those of them that run a handler.
    running: Mutex<BTreeSet<String>>,
    handles: OnceLock<Weak<Handles>>,
    awaiting: Arc<Awaiting>,
}

impl Shared {
    /// The application of this host, for a handler that asks others.
    fn app(self: &Arc<Self>) -> Result<App, Failed> {
        let handles = self.handles.get().and_then(Weak::upgrade);
        let handles = handles.ok_or_else(|| Failed::Nested("the application has ended".to_owned()))?;
        Ok(App { handles, shared: self.clone(), flaw: None, is_outside: false })
    }

    /// Looks at this instance and at others.
    fn look_at(&self, id: &str) {
        if let Some(handles) = self.handles.get().and_then(Weak::upgrade) {
            let Handles { cells, scouts } = &*handles;
            let _seen = (cells.is_running(id), cells.is_running("i-0"), scouts.is_running(id), cells.running());
        }
    }

    /// The reason of a handler that fails because it was told to.
    fn failure(self: &Arc<Self>, id: &str) -> Failed {
        Odd::some(self, id).map_or(Failed::Told, Failed::Odd)
    }
}

/// Exists while a handler of an instance runs.
struct Running(Arc<Shared>, String);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.lock().remove(&self.1);
    }
}

/// Clients that use everything the library offers, drawn at random.
#[derive(Debug, Default)]
pub struct Exercise {
    effects: AtomicU64,
    incarnations: Arc<AtomicU64>,
    /// The number of hosts that have been configured.
    hosts: AtomicU64,
    /// Tells whether the last of them has almost no room.
    is_cramped: AtomicBool,
    awaiting: Arc<Awaiting>,
    flaw: Option<Flaw>,
}

impl Exercise {
    /// An application that is broken like this.
    #[must_use]
    pub fn flawed(flaw: Flaw) -> Exercise {
        Exercise { flaw: Some(flaw), ..Exercise::default() }
    }
}

impl Workload for Exercise {
    type App = App;

    fn configure(&self, host: HostBuilder) -> HostBuilder {
        let random = SeededRandom::new(self.hosts.fetch_add(1, Ordering::Relaxed));
        let number = |all: &[usize]| random.pick(all).copied().unwrap_or(1);
        let millis = |all: &[u64]| Duration::from_millis(random.pick(all).copied().unwrap_or(0));
        let host = host.max_firing(number(&[2, 8, 32, usize::MAX])).alarm_window(number(&[0, 16, usize::MAX]));
        // Every second has almost no room, for what it has in memory or for what it writes.
        let is_cramped = random.chance(0.5);
        self.is_cramped.store(is_cramped, Ordering::Relaxed);
        let host = host.max_connections(number(&[1, 9, usize::MAX]));
        let host = if is_cramped {
            let host = host.alarm_window_bytes(number(&[0, 1, 200, 4_096])).max_queued_commits(number(&[1, 256]));
            host.max_queued_bytes(number(&[1, 4_099]))
        } else {
            host.alarm_window_bytes(usize::MAX).max_queued_commits(usize::MAX).max_queued_bytes(usize::MAX)
        };
        let host = host.max_fires_per_second(random.pick(&[3, 1_000, u32::MAX]).copied().unwrap_or(1_000));
        let host = host.max_crashes(random.pick(&[1, 3, u32::MAX]).copied().unwrap_or(3));
        // Odd ones: nothing may depend on which of two that are equal is over first.
        let host = host.store_timeout(millis(&[777, 2_000, 6_999])).commit_timeout(millis(&[0, 1_001, 4_000, 900_000]));
        host.lanes(random.pick(&[1, 2, 7, u16::MAX]).copied().unwrap_or(2))
    }

    fn register(&self, host: &mut HostBuilder, life: &Life) -> App {
        if self.is_cramped.load(Ordering::Relaxed) {
            life.history().no_order_in(life.number());
        }
        let (running, awaiting) = (Mutex::default(), self.awaiting.clone());
        let shared = Arc::new(Shared { life: life.clone(), running, handles: OnceLock::new(), awaiting });
        let incarnations = self.incarnations.clone();
        let (all, scouting) = (shared.clone(), shared.clone());
        let build = move |id: &str| Cell {
            id: id.split(DOUBLE).next().unwrap_or(id).to_owned(),
            shared: shared.clone(),
            incarnation: incarnations.fetch_add(1, Ordering::Relaxed),
            total: 0,
            torn: None,
            peers: BTreeMap::new(),
            kept: None,
            messages: VecDeque::new(),
        };
        let retry = RetryPolicy::new().first(Duration::from_millis(300)).longest(Duration::from_secs(3)).attempts(4);
        let cells =
            host.interface(build).with_alarms().with_inbox().retry(retry).forward::<Do>("do").forward_connections();
        let cells = cells.handler_timeout(HANDLER_TIMEOUT).idle_timeout(Duration::from_secs(20)).max_instances(256);
        let cells = cells.register().expect("it is the first interface");

        let build = move |id: &str| Scout { id: id.to_owned(), shared: scouting.clone(), total: 0 };
        let random = life.random();
        let millis = |all: &[u64]| Duration::from_millis(random.pick(all).copied().unwrap_or(0));
        let number = |all: &[usize]| random.pick(all).copied().unwrap_or(1);
        let retry = RetryPolicy::new().first(millis(&[0, 100, 1_000])).longest(millis(&[500, 2_000])).attempts(4);
        let scouts = host.interface(build).with_alarms().retry(retry).forward::<Errand>("errand");
        let scouts = scouts.handler_timeout(millis(&[300, 1_000, 30_000])).idle_timeout(millis(&[2_000, 600_000]));
        let scouts = scouts.stop_timeout(millis(&[0, 30_000])).max_waiting(number(&[0, 2, usize::MAX]));
        let scouts = scouts.max_instances(number(&[3, usize::MAX])).register().expect("it is the second");
        if self.flaw == Some(Flaw::KeepsAHandle) {
            std::mem::forget(cells.clone());
        }
        let handles = Arc::new(Handles { cells, scouts });
        // Instances that held their own handles would hold themselves.
        all.handles.set(Arc::downgrade(&handles)).expect("it is new");
        App { handles, shared: all, flaw: self.flaw, is_outside: false }
    }

    async fn outside(&self, process: &Outside) -> Result<Option<App>, StartError> {
        let cells = process.interface::<Cell>().forward::<Do>("do").forward_connections().timeout(HANDLER_TIMEOUT);
        let scouts = process.interface::<Scout>().forward::<Errand>("errand").timeout(HANDLER_TIMEOUT);
        let handles = Arc::new(Handles { cells: cells.open().await?, scouts: scouts.open().await? });
        let (life, running, awaiting) = (process.life().clone(), Mutex::default(), self.awaiting.clone());
        let shared = Arc::new(Shared { life, running, handles: OnceLock::new(), awaiting });
        shared.handles.set(Arc::downgrade(&handles)).expect("it is new");
        Ok(Some(App { handles, shared, flaw: self.flaw, is_outside: true }))
    }

    async fn client(self: Arc<Self>, client: Client<App>) {
        while !client.is_over() {
            client.sleep(client.random().up_to(Duration::from_secs(14))).await;
            self.something(&client).await;
        }
    }

    async fn finish(self: Arc<Self>, client: Client<App>) {
        self.look_for_connections(&client).await;
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

    fn rests(&self, alarm: &AlarmRow) -> bool {
        Kind::from_meta(&serde_json::from_slice(&alarm.meta).unwrap_or_default()).0 == Kind::Holds
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
