//! Helpers shared by the whole-system tests beside this file.
//!
//! A [`World`] is what outlives a host: a clock, a disk, and a store on it that fails on demand. Its instances are [`Probe`]s,
//! which do whatever the message tells them, so each test reads from top to bottom in one place. A probe notes when two
//! handlers of one instance ever run at once; [`World`] checks that when it is dropped, so every test is a test of that too.

pub mod broken;
pub mod browser;
pub mod example;
pub mod exercise;
pub mod flow_exercise;
mod hooks;
pub mod process;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alarm_backends::FjallStore;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stable_interfaces::store::{
    Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Page, Read, Renewal, Renewed,
    ShardId, Write,
};
use stable_interfaces::testing::{FaultStore, History, SeededRandom, SimClock, StoreDump, Witness};
use stable_interfaces::{
    Alarm, Context, ContextError, Fleet, Handle, Host, HostBuilder, Interface, InterfaceBuilder, MemoryStore, OnAlarm,
    Posted, RequestError, StableInterface, Store, StoreError, Timestamp,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub use hooks::{Peers, Taken};

/// The moment at which every world begins.
pub const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// The number in a variable of the environment; `default` without one.
#[must_use]
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A future of a handler.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The reason why a probe's handler failed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// Because the test said so.
    #[error("{0}")]
    Told(&'static str),
    /// Because the test said so, before anything was changed.
    #[error("{0}")]
    Refused(&'static str),
    /// Because its context refused.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Because what it asked another instance for failed; the text is that error.
    #[error("{0}")]
    Nested(String),
}

/// A probe's answer to a request.
pub type Answer<R> = Result<R, RequestError<Failed>>;

type Act<R> =
    Box<dyn for<'a> FnOnce(&'a mut Probe, &'a mut Context) -> BoxFuture<'a, Result<R, Failed>> + Send + 'static>;
type StartHook =
    Arc<dyn for<'a> Fn(&'a mut Probe, &'a mut Context) -> BoxFuture<'a, Result<(), Failed>> + Send + Sync + 'static>;
type AlarmHook = Arc<
    dyn for<'a> Fn(&'a mut Probe, &'a mut Context, &'a Alarm) -> BoxFuture<'a, Result<(), Failed>>
        + Send
        + Sync
        + 'static,
>;

/// A message that tells a probe what to do. Made by [`act`].
pub struct Do<R>(Act<R>);

/// A message that makes the probe run `handler`.
pub fn act<R>(
    handler: impl for<'a> FnOnce(&'a mut Probe, &'a mut Context) -> BoxFuture<'a, Result<R, Failed>> + Send + 'static,
) -> Do<R> {
    Do(Box::new(handler))
}

/// A message that stores a value.
#[must_use]
pub fn put(key: &'static str, value: i64) -> Do<()> {
    act(move |_, cx| Box::pin(async move { Ok(cx.put(key, &value)?) }))
}

/// A message that reads a stored value.
#[must_use]
pub fn get(key: &'static str) -> Do<Option<i64>> {
    act(move |_, cx| Box::pin(async move { Ok(cx.get(key).await?) }))
}

/// A message that adds one to a stored counter and answers with it.
#[must_use]
pub fn count(key: &'static str) -> Do<i64> {
    act(move |_, cx| {
        Box::pin(async move {
            let count = cx.get::<i64>(key).await?.unwrap_or(0) + 1;
            cx.put(key, &count)?;
            Ok(count)
        })
    })
}

/// A message that answers with the number of the probe's life, at once and without any effect.
#[must_use]
pub fn life() -> Do<u64> {
    act(|me, _| Box::pin(std::future::ready(Ok(me.life))))
}

/// A message whose handler takes this long.
#[must_use]
pub fn wait(duration: Duration) -> Do<()> {
    act(move |me, _| {
        let sleep = me.sleep(duration);
        Box::pin(async move {
            sleep.await;
            Ok(())
        })
    })
}

/// A message that sets an alarm.
#[must_use]
pub fn set(alarm: &'static str, at: Timestamp) -> Do<()> {
    act(move |_, cx| Box::pin(async move { Ok(cx.set_alarm(alarm, at, &())?) }))
}

/// Spawns a request, so that it runs beside the test.
#[must_use]
pub fn spawn<R: Send + 'static>(probes: &Interface<Probe>, id: &str, message: Do<R>) -> JoinHandle<Answer<R>> {
    let (probes, id) = (probes.clone(), id.to_owned());
    tokio::spawn(async move { probes.request(&id, message).await })
}

/// An alarm that fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fired {
    /// The instance.
    pub instance: String,
    /// The alarm's ID.
    pub alarm: String,
    /// Milliseconds since [`START`], by the host's clock.
    pub at: i64,
    /// The number of the attempt.
    pub attempt: u32,
}

/// The script of all probes of a world, and a record of what they did.
#[derive(Clone, Default)]
pub struct Script(Arc<ScriptState>);

#[derive(Default)]
struct ScriptState {
    hooks: hooks::Hooks,
    on_start: Mutex<Option<StartHook>>,
    on_alarm: Mutex<Option<AlarmHook>>,
    lives: AtomicU64,
    stops: AtomicU64,
    fired: Mutex<Vec<Fired>>,
    notes: Mutex<Vec<String>>,
    /// Counts the hosts that were started.
    hosts: AtomicU64,
    /// The instances, each with its host, that run a handler.
    running: Mutex<BTreeSet<(u64, String)>>,
    overlaps: Mutex<Vec<String>>,
}

impl Script {
    /// Sets the hook for their start.
    pub fn on_start(
        &self,
        hook: impl for<'a> Fn(&'a mut Probe, &'a mut Context) -> BoxFuture<'a, Result<(), Failed>> + Send + Sync + 'static,
    ) {
        *self.0.on_start.lock() = Some(Arc::new(hook));
    }

    /// Sets the hook for an alarm that fires, after it was recorded.
    pub fn on_alarm(
        &self,
        hook: impl for<'a> Fn(&'a mut Probe, &'a mut Context, &'a Alarm) -> BoxFuture<'a, Result<(), Failed>>
        + Send
        + Sync
        + 'static,
    ) {
        *self.0.on_alarm.lock() = Some(Arc::new(hook));
    }

    /// Every alarm handler that began, in that order.
    #[must_use]
    pub fn fired(&self) -> Vec<Fired> {
        self.0.fired.lock().clone()
    }

    /// The IDs of the alarms whose handlers began, in that order.
    #[must_use]
    pub fn fired_ids(&self) -> Vec<String> {
        self.fired().into_iter().map(|fired| fired.alarm).collect()
    }

    /// Writes something down.
    pub fn note(&self, what: impl Into<String>) {
        self.0.notes.lock().push(what.into());
    }

    /// Gives what was written down, in order.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.0.notes.lock().clone()
    }

    /// Counts the probes that were built.
    #[must_use]
    pub fn lives(&self) -> u64 {
        self.0.lives.load(Ordering::SeqCst)
    }

    /// Counts the probes that were stopped in good order.
    #[must_use]
    pub fn stops(&self) -> u64 {
        self.0.stops.load(Ordering::SeqCst)
    }
}

/// An instance that does what it is told.
pub struct Probe {
    /// Its ID, as it was built with.
    pub id: String,
    /// The number of the probe among all that were ever built, from 1.
    pub life: u64,
    /// Lines that the probe keeps in memory.
    pub memory: Vec<String>,
    /// Its connections.
    pub peers: Peers,
    /// The script that all probes of this world share.
    pub script: Script,
    clock: SimClock,
    host: u64,
}

impl Probe {
    /// A sleep by the world's clock.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> stable_interfaces::clock::Sleep {
        stable_interfaces::clock::Clock::sleep(&self.clock, duration)
    }

    fn enter(&self) -> Running {
        let key = (self.host, self.id.clone());
        if !self.script.0.running.lock().insert(key.clone()) {
            self.script.0.overlaps.lock().push(self.id.clone());
        }
        Running(self.script.clone(), key)
    }
}

/// Exists while a handler of an instance runs.
struct Running(Script, (u64, String));

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.running.lock().remove(&self.1);
    }
}

impl StableInterface for Probe {
    const NAME: &'static str = "probe";
    type Error = Failed;

    fn keeps_memory(error: &Failed) -> bool {
        if matches!(error, Failed::Refused("and panics over it")) {
            // No message is printed for this one.
            std::panic::resume_unwind(Box::new("keeps_memory"));
        }
        matches!(error, Failed::Refused(_))
    }

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), Failed> {
        let _running = self.enter();
        let hook = self.script.0.on_start.lock().clone();
        match hook {
            Some(hook) => hook(self, cx).await,
            None => Ok(()),
        }
    }

    async fn on_stop(&mut self) {
        tracing::debug!("said goodbye");
        self.script.0.stops.fetch_add(1, Ordering::SeqCst);
    }
}

impl<R: Send + 'static> Handle<Do<R>> for Probe {
    type Reply = R;

    async fn handle(&mut self, cx: &mut Context, Do(act): Do<R>) -> Result<R, Failed> {
        let _running = self.enter();
        act(self, cx).await
    }
}

/// A message that adds one to the stored counter of this name and answers with it, as [`count`] does: one that can be written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Raise(pub String);

impl Handle<Raise> for Probe {
    type Reply = i64;

    async fn handle(&mut self, cx: &mut Context, Raise(key): Raise) -> Result<i64, Failed> {
        let _running = self.enter();
        let count = cx.get::<i64>(&key).await?.unwrap_or(0) + 1;
        cx.put(&key, &count)?;
        Ok(count)
    }
}

impl OnAlarm for Probe {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), Failed> {
        let _running = self.enter();
        self.script.0.fired.lock().push(Fired {
            instance: alarm.instance().to_owned(),
            alarm: alarm.id().to_owned(),
            at: cx.now().as_millis() - START.as_millis(),
            attempt: alarm.attempt(),
        });
        let hook = self.script.0.on_alarm.lock().clone();
        match hook {
            Some(hook) => hook(self, cx, alarm).await,
            None => Ok(()),
        }
    }
}

/// The place of a world's rows when no host runs.
enum Disk {
    Memory(MemoryStore),
    Fjall(TempDir),
}

/// The things that outlive a host.
pub struct World {
    /// The clock of its hosts and its store.
    pub clock: SimClock,
    /// The store, which fails on demand.
    pub store: FaultStore,
    /// The script of the world's probes.
    pub script: Script,
    disk: Disk,
    /// The store that `store` wraps.
    inner: Arc<dyn Store>,
}

/// A host with its probes.
#[derive(Debug)]
pub struct Site {
    /// The host.
    pub host: Host,
    /// Its probes.
    pub probes: Interface<Probe>,
}

impl World {
    /// A world whose rows are in memory.
    #[must_use]
    pub fn in_memory() -> World {
        let clock = SimClock::new(START);
        let store = MemoryStore::with_clock(Arc::new(clock.clone()));
        let inner: Arc<dyn Store> = Arc::new(store.clone());
        let faults = FaultStore::seeded(inner.clone(), Arc::new(clock.clone()), 1);
        World { clock, store: faults, script: Script::default(), disk: Disk::Memory(store), inner }
    }

    /// A world whose rows are in memory, as in a store that is spread over machines: a part of it may be away.
    #[must_use]
    pub fn spread() -> World {
        let clock = SimClock::new(START);
        let store = MemoryStore::spread(Arc::new(clock.clone()));
        let inner: Arc<dyn Store> = Arc::new(store.clone());
        let faults = FaultStore::seeded(inner.clone(), Arc::new(clock.clone()), 1);
        World { clock, store: faults, script: Script::default(), disk: Disk::Memory(store), inner }
    }

    /// A world whose rows are in a directory.
    #[must_use]
    pub fn on_fjall() -> World {
        let clock = SimClock::new(START);
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let store = FjallStore::builder(dir.path()).clock(Arc::new(clock.clone())).open().expect("a new store opens");
        let inner: Arc<dyn Store> = Arc::new(store);
        let faults = FaultStore::seeded(inner.clone(), Arc::new(clock.clone()), 1);
        World { clock, store: faults, script: Script::default(), disk: Disk::Fjall(dir), inner }
    }

    /// The moment `millis` after [`START`].
    #[must_use]
    pub fn at(&self, millis: i64) -> Timestamp {
        Timestamp::from_millis(START.as_millis() + millis)
    }

    /// Milliseconds since [`START`] by the world's wall clock.
    #[must_use]
    pub fn now(&self) -> i64 {
        stable_interfaces::clock::Clock::now(&self.clock).as_millis() - START.as_millis()
    }

    /// Lets this much time pass.
    pub async fn pass(&self, duration: Duration) {
        stable_interfaces::clock::Clock::sleep(&self.clock, duration).await;
    }

    /// Lets everything run that can run without time passing; a paused clock then moves by one millisecond.
    pub async fn settle(&self) {
        self.pass(Duration::from_millis(1)).await;
    }

    /// A lone host on the world's store.
    #[must_use]
    pub fn local(&self) -> HostBuilder {
        self.equip(Host::local(self.store.clone()))
    }

    /// A lone host on the world's store, with something in between.
    #[must_use]
    pub fn local_behind(&self, between: impl FnOnce(Between) -> Between) -> HostBuilder {
        self.equip(Host::local(between(Between::new(self.store.clone()))))
    }

    /// A host of a fleet on the world's store.
    #[must_use]
    pub fn member(&self, name: &str, fleet: &Fleet) -> HostBuilder {
        self.equip(Host::builder(name, fleet.clone()).store(self.store.clone()))
    }

    /// The same host on the world's clock and with random numbers that repeat.
    #[must_use]
    pub fn equip(&self, builder: HostBuilder) -> HostBuilder {
        let seed = self.script.0.hosts.fetch_add(1, Ordering::SeqCst);
        builder.clock(Arc::new(self.clock.clone())).random(Arc::new(SeededRandom::new(seed)))
    }

    /// Makes the function that builds this world's probes.
    pub fn factory(&self) -> impl Fn(&str) -> Probe + Send + Sync + 'static {
        let (script, clock) = (self.script.clone(), self.clock.clone());
        let host = script.0.hosts.load(Ordering::SeqCst);
        move |id| {
            let life = script.0.lives.fetch_add(1, Ordering::SeqCst) + 1;
            Probe {
                id: id.to_owned(),
                life,
                memory: Vec::new(),
                peers: Peers::default(),
                script: script.clone(),
                clock: clock.clone(),
                host,
            }
        }
    }

    /// Starts a lone host.
    pub async fn start(&self) -> Site {
        self.launch(self.local(), |probes| probes).await
    }

    /// Starts a host with probes on it.
    pub async fn launch(
        &self,
        mut host: HostBuilder,
        configure: impl for<'a> FnOnce(InterfaceBuilder<'a, Probe>) -> InterfaceBuilder<'a, Probe>,
    ) -> Site {
        let probes =
            configure(host.interface(self.factory()).with_alarms().with_inbox()).register().expect("probes register");
        let host = host.start().await.expect("the host starts");
        Site { host, probes }
    }

    /// Everything stored. Only in memory.
    #[must_use]
    pub fn dump(&self) -> StoreDump {
        match &self.disk {
            Disk::Memory(store) => store.dump(),
            Disk::Fjall(_) => StoreDump::default(),
        }
    }

    /// From now on `history` is told of who writes what. Before any host is started.
    pub fn witness(&mut self, history: &History) {
        let witness = Witness::new(self.inner.clone(), history.clone());
        self.store = FaultStore::seeded(Arc::new(witness), Arc::new(self.clock.clone()), 1);
    }

    /// Makes the store as a new process would find it. All hosts have to be gone, with all handles on their interfaces.
    pub async fn reopen(&mut self) {
        let clock = Arc::new(self.clock.clone());
        let store: Arc<dyn Store> = match &self.disk {
            Disk::Memory(store) => Arc::new(store.clone()),
            Disk::Fjall(dir) => {
                let path = dir.path().to_owned();
                self.inner = Arc::new(MemoryStore::new());
                self.store = FaultStore::new(self.inner.clone());
                let mut tries = 0;
                loop {
                    // Tasks of the host that has ended are dropped when the runtime comes to them.
                    self.settle().await;
                    match FjallStore::builder(&path).clock(clock.clone()).open() {
                        Ok(store) => break Arc::new(store),
                        Err(error) => assert!(tries < 1_000, "something still holds the store: {error}"),
                    }
                    tries += 1;
                }
            }
        };
        self.store = FaultStore::seeded(store.clone(), clock, 1);
        self.inner = store;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let overlaps = self.script.0.overlaps.lock();
            assert!(overlaps.is_empty(), "two handlers at once in {overlaps:?}");
        }
    }
}

impl Site {
    /// Ends the host as a crash would, and forgets its handles.
    pub fn crash(self) {
        self.host.crash();
    }
}

type Answers = Result<Vec<Result<(), StoreError>>, StoreError>;
type OnCommit = dyn Fn(&Write) -> Option<Answers> + Send + Sync;
type OnWrite = dyn Fn(&mut Write) + Send + Sync;
type OnAnswer = dyn Fn(&Write, &Answers) + Send + Sync;
type OnRenew = dyn Fn() -> Option<StoreError> + Send + Sync;
type OnRead = dyn Fn(&Read, Found) -> Result<Found, StoreError> + Send + Sync;
type OnLoad = dyn Fn(&[Page], &mut Vec<Loaded>) + Send + Sync;

/// Wraps a store for what [`FaultStore`] cannot do: refuse some content, break promises, show rows that nobody could write.
pub struct Between {
    inner: Arc<dyn Store>,
    on_renew: Box<OnRenew>,
    on_commit: Box<OnCommit>,
    on_write: Box<OnWrite>,
    on_answer: Box<OnAnswer>,
    on_load: Box<OnLoad>,
    on_read: Box<OnRead>,
}

impl Between {
    /// A wrapper that changes nothing.
    pub fn new(inner: impl Store) -> Between {
        Between {
            inner: Arc::new(inner),
            on_renew: Box::new(|| None),
            on_commit: Box::new(|_| None),
            on_write: Box::new(|_| {}),
            on_answer: Box::new(|_, _| {}),
            on_load: Box::new(|_, _| {}),
            on_read: Box::new(|_, found| Ok(found)),
        }
    }

    /// Changes what the store has found, or says something else instead.
    #[must_use]
    pub fn on_read(
        mut self,
        change: impl Fn(&Read, Found) -> Result<Found, StoreError> + Send + Sync + 'static,
    ) -> Between {
        self.on_read = Box::new(change);
        self
    }

    /// Refuses those renewals for which `answer` has an error; the store does not see them.
    #[must_use]
    pub fn on_renew(mut self, answer: impl Fn() -> Option<StoreError> + Send + Sync + 'static) -> Between {
        self.on_renew = Box::new(answer);
        self
    }

    /// Answers those writes for which `answer` has one; the store does not see them.
    #[must_use]
    pub fn on_commit(mut self, answer: impl Fn(&Write) -> Option<Answers> + Send + Sync + 'static) -> Between {
        self.on_commit = Box::new(answer);
        self
    }

    /// Changes what is written, behind the host's back.
    #[must_use]
    pub fn on_write(mut self, change: impl Fn(&mut Write) + Send + Sync + 'static) -> Between {
        self.on_write = Box::new(change);
        self
    }

    /// Sees what the store answered to each write.
    #[must_use]
    pub fn on_answer(mut self, look: impl Fn(&Write, &Answers) + Send + Sync + 'static) -> Between {
        self.on_answer = Box::new(look);
        self
    }

    /// Changes what the store has loaded.
    #[must_use]
    pub fn on_load(mut self, change: impl Fn(&[Page], &mut Vec<Loaded>) + Send + Sync + 'static) -> Between {
        self.on_load = Box::new(change);
        self
    }
}

impl fmt::Debug for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Between").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Store for Between {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.inner.claim(claim).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        match (self.on_renew)() {
            Some(error) => Err(error),
            None => self.inner.renew(renewal).await,
        }
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.inner.release(incarnation, given_up).await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.inner.cordon(member, is_cordoned, seen).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.inner.members().await
    }

    async fn commit(&self, write: &Write) -> Answers {
        if let Some(answers) = (self.on_commit)(write) {
            return answers;
        }
        let mut changed = write.clone();
        (self.on_write)(&mut changed);
        let answers = self.inner.commit(&changed).await;
        (self.on_answer)(&changed, &answers);
        answers
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.inner.post(messages).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.inner.watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let mut loaded = self.inner.load(pages).await?;
        (self.on_load)(pages, &mut loaded);
        Ok(loaded)
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        (self.on_read)(read, self.inner.read(read).await?)
    }
}

/// Waits for what must not take longer than a month of simulated time, nor turn round and round on the spot: a test that hangs
/// fails.
pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(tokio::time::timeout(Duration::from_secs(30 * 86_400), work));
    let mut polls = 0_u64;
    let done = std::future::poll_fn(|cx| {
        polls += 1;
        assert!(polls < 10_000_000, "it turns on the spot");
        work.as_mut().poll(cx)
    });
    match done.await {
        Ok(done) => done,
        Err(_) => unreachable!("it hangs"),
    }
}

/// Gives what is ready without waiting for anything.
pub async fn now_or_never<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match work.as_mut().poll(cx) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

impl<R> fmt::Debug for Do<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Do").finish_non_exhaustive()
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("lives", &self.lives()).field("fired", &self.fired()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("id", &self.id).field("life", &self.life).finish_non_exhaustive()
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("clock", &self.clock).field("store", &self.store).finish_non_exhaustive()
    }
}

/// Runs a test once on the memory store and once on Fjall, each under the paused clock.
#[macro_export]
macro_rules! on_each_store {
    ($(#[$attribute:meta])* async fn $name:ident($world:ident: World) $body:block) => {
        $(#[$attribute])*
        async fn $name(#[allow(unused_mut, reason = "few tests reopen the store")] mut $world: $crate::World) $body

        mod $name {
            #[tokio::test(start_paused = true)]
            async fn in_memory() {
                $crate::in_time(super::$name($crate::World::in_memory())).await;
            }

            #[tokio::test(start_paused = true)]
            async fn on_fjall() {
                $crate::in_time(super::$name($crate::World::on_fjall())).await;
            }
        }
    };
}
