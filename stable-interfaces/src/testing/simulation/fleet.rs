//! The hosts of a simulation: who lives, who is being started, who has been replaced and does not know.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};

use super::life::{Life, LifeState, Site};
use super::link::{HostClock, Link, described, set_chances};
use super::network::Network;
use super::outside::{Outside, Outsiders};
use super::{Common, Run, Workload};
use crate::clock::{Clock, within};
use crate::fleet::Fleet;
use crate::fleet_client::FleetClient;
use crate::host::{Health, Host, HostBuilder};
use crate::shards::handoff::Handoff;
use crate::store::{ShardId, Store};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, Notify};
use crate::testing::{Answer, Fault, FaultStore, Invariant, Method, SeededRandom};

/// The time for which a host keeps what it does not renew, where that ends.
pub(super) const LEASE: Duration = Duration::from_secs(6);

/// A host that was started.
pub(super) struct Running<A> {
    pub(super) site: Site<A>,
    /// Taken out while somebody drains it.
    host: Arc<Mutex<Option<Host>>>,
    /// Tells who drains it that it dies.
    killed: Arc<Notify>,
    pub(super) link: Link,
    since: Duration,
}

impl<A> Running<A> {
    fn clock(&self) -> &HostClock {
        &self.site.life.0.clock
    }

    pub(super) fn pause(&self, is_on: bool) {
        self.clock().pause.set(is_on);
    }

    pub(super) fn step(&self, millis: i64) {
        self.clock().step(millis);
    }

    /// Sets the wall right.
    pub(super) fn set_right(&self) {
        let clock = self.clock();
        let off = clock.now().as_millis() - self.site.life.0.common.clock.now().as_millis();
        clock.step(-off);
    }

    fn health(&self) -> Option<Health> {
        self.host.lock().as_ref().map(Host::health)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.clock().pause.is_on()
    }

    /// Tells whether a shard that belongs to another host is here on this stretch of its way there.
    pub(super) fn has_on_its_way(&self, stretch: Handoff) -> bool {
        let host = self.host.lock();
        let Some(host) = host.as_ref() else { return false };
        let assigned = host.assigned();
        host.shards()
            .iter()
            .any(|shard| assigned.binary_search(shard).is_err() && host.handoff(*shard) == Some(stretch))
    }

    /// Tells whether a task of an instance has something to bring to an end here, and whether a handler runs.
    pub(super) fn is_busy(&self) -> (bool, bool) {
        self.host.lock().as_ref().map(Host::is_busy).unwrap_or_default()
    }

    /// The shards of a host that runs and says that nothing of them is due.
    pub(super) fn idle_shards(&self) -> Option<Vec<ShardId>> {
        let host = self.host.lock();
        let host = host.as_ref().filter(|host| host.health() == Health::Running && host.overdue() == Duration::ZERO)?;
        Some(host.shards())
    }
}

struct State<A> {
    /// The hosts that there are to be; in a live fleet they do not know it.
    fleet: Fleet,
    living: BTreeMap<Arc<str>, Running<A>>,
    /// Hosts that have been replaced and may not know.
    replaced: Vec<Running<A>>,
    starting: BTreeMap<Arc<str>, AbortHandle>,
    /// The ways to the store of those.
    claiming: BTreeMap<Arc<str>, FaultStore>,
    lives: u64,
    /// The ways of all hosts there ever were: what is late on them arrives after their end.
    links: Vec<FaultStore>,
    host_time: Duration,
    starts: JoinSet<()>,
    drains: JoinSet<()>,
}

type Register<A> = dyn Fn(HostBuilder, &Life) -> (HostBuilder, A) + Send + Sync;

pub(super) struct World<A> {
    pub(super) common: Arc<Common>,
    store: Arc<dyn Store>,
    /// The way of hosts to each other, where they have one.
    pub(super) network: Option<Network>,
    /// Processes that are no hosts.
    pub(super) outside: Outsiders<A>,
    register: Box<Register<A>>,
    pub(super) shape: Shape,
    /// The number of shards that hosts have handed over.
    handed_over: Arc<AtomicU64>,
    state: Mutex<State<A>>,
}

/// The options that a simulation has drawn for all its hosts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// The number of hosts there are at first, and of shards.
    pub(super) hosts: u64,
    pub(super) shards: u32,
    /// The likelihood that a call of the store meets a fault.
    pub(super) calls: f64,
    /// Says whether the store may be away in part.
    pub(super) is_spread: bool,
    /// The time for which a renewal counts.
    pub(super) lease: Duration,
    /// Says whether hosts know no list of each other.
    pub(super) is_live: bool,
}

impl Shape {
    /// Says whether what a dead host had comes to others in the end.
    pub(super) fn leases_end(&self) -> bool {
        self.lease < Duration::MAX
    }
}

pub(super) fn fleet_of(hosts: u64, shards: u32) -> Fleet {
    Fleet::new((0..hosts).map(|n| format!("host-{n}")), shards).expect("fewer hosts than shards")
}

impl<A: Clone + Send + Sync + 'static> World<A> {
    pub(super) fn new<W: Workload<App = A>>(
        common: Arc<Common>,
        store: Arc<dyn Store>,
        network: Option<Network>,
        workload: &Arc<W>,
        shape: Shape,
    ) -> Arc<World<A>> {
        let state = State {
            fleet: fleet_of(shape.hosts, shape.shards),
            living: BTreeMap::new(),
            replaced: Vec::new(),
            starting: BTreeMap::new(),
            claiming: BTreeMap::new(),
            lives: 0,
            links: Vec::new(),
            host_time: Duration::ZERO,
            starts: JoinSet::new(),
            drains: JoinSet::new(),
        };
        let workload = workload.clone();
        let register = move |host: HostBuilder, life: &Life| {
            let mut host = workload.configure(host);
            let app = workload.register(&mut host, life);
            (host, app)
        };
        let (register, state) = (Box::new(register), Mutex::new(state));
        let (outside, handed_over) = (Outsiders::default(), Arc::default());
        Arc::new(World { common, store, network, outside, register, shape, handed_over, state })
    }

    pub(super) fn shard_of(&self, id: &str) -> Option<ShardId> {
        self.state.lock().fleet.shard_of(id).ok()
    }

    pub(super) fn owner_of(&self, id: &str) -> Option<Site<A>> {
        let state = self.state.lock();
        let is_owner = |running: &&Running<A>| {
            let host = running.host.lock();
            host.as_ref().is_some_and(|host| host.owns(id) == Ok(true))
        };
        // While a shard has no owner, anybody can say so.
        let running = match self.shape.is_live {
            true => state.living.values().find(is_owner).or_else(|| state.living.values().next())?,
            false => state.living.get(state.fleet.locate(id).ok()?.host)?,
        };
        Some(running.site.clone())
    }

    pub(super) fn named(&self, name: &str) -> Option<Site<A>> {
        self.state.lock().living.get(name).map(|running| running.site.clone())
    }

    pub(super) fn sites(&self) -> Vec<Site<A>> {
        let state = self.state.lock();
        state.living.values().chain(&state.replaced).map(|running| running.site.clone()).collect()
    }

    /// A process that is no host, as it starts; `None` where hosts cannot be asked from there.
    pub(super) fn start_outside(&self, name: &str) -> Option<Outside> {
        let network = self.network.clone()?;
        let clock = Arc::new(HostClock::new(self.common.clock.separate()));
        let faults = self.faults();
        set_chances(&faults, self.shape.calls);
        let (life, fleet) = {
            let mut state = self.state.lock();
            state.links.push(faults.clone());
            (self.next_life(&mut state, &name.into(), &clock), self.fleet_known(&state)?)
        };
        Some(Outside { link: self.link(faults, &life), life, fleet, network })
    }

    /// A life that begins.
    fn next_life(&self, state: &mut State<A>, name: &Arc<str>, clock: &Arc<HostClock>) -> Life {
        state.lives += 1;
        self.common.history.life_began(state.lives);
        Life(Arc::new(LifeState {
            number: state.lives,
            name: name.clone(),
            clock: clock.clone(),
            common: self.common.clone(),
            is_current: AtomicBool::new(true),
        }))
    }

    /// The way of a life to the store.
    fn link(&self, faults: FaultStore, life: &Life) -> Link {
        let pause = life.0.clock.pause.clone();
        Link::new(faults, pause, self.handed_over.clone(), self.common.history.clone())
    }

    /// A way to the store of its own.
    fn faults(&self) -> FaultStore {
        let (clock, seed) = (self.common.clock.clone(), self.common.random.below(u64::MAX));
        FaultStore::seeded(self.store.clone(), Arc::new(clock), seed)
    }

    /// The fleet as a process that starts now knows it.
    fn fleet_known(&self, state: &State<A>) -> Option<Fleet> {
        let shards = state.fleet.shards();
        if self.shape.is_live { Fleet::live(shards).ok() } else { Some(state.fleet.clone()) }
    }

    /// The names of the hosts that live.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.state.lock().living.keys().cloned().collect()
    }

    /// The names of the hosts that there are to be.
    pub(super) fn wanted(&self) -> Vec<Arc<str>> {
        self.state.lock().fleet.hosts().to_vec()
    }

    pub(super) fn hosts_and_shards(&self) -> (usize, u32) {
        let state = self.state.lock();
        (state.fleet.hosts().len(), state.fleet.shards())
    }

    /// From now on hosts are started with this list.
    pub(super) fn set_fleet(&self, fleet: Fleet) {
        self.state.lock().fleet = fleet;
    }

    /// Does something with a host that lives.
    pub(super) fn with<T>(&self, name: &str, f: impl FnOnce(&Running<A>) -> T) -> Option<T> {
        self.state.lock().living.get(name).map(f)
    }

    /// The life of the living host of this name.
    pub(super) fn life_of(&self, name: &str) -> Option<u64> {
        self.with(name, |running| running.site.life.number())
    }

    /// Does something with every host.
    pub(super) fn each(&self, mut f: impl FnMut(&Running<A>)) {
        let state = self.state.lock();
        state.living.values().chain(&state.replaced).for_each(&mut f);
    }

    /// Does something with every host that has not been replaced.
    pub(super) fn each_living(&self, f: impl FnMut(&Running<A>)) {
        self.state.lock().living.values().for_each(f);
    }

    pub(super) fn start_all(self: &Arc<Self>) {
        for name in self.wanted() {
            self.start(&name, Duration::ZERO);
        }
    }

    /// Starts a host, beside one of the same name if there is one. Tries again until it runs.
    pub(super) fn start(self: &Arc<Self>, name: &Arc<str>, after: Duration) {
        let mut state = self.state.lock();
        if state.starting.contains_key(name) {
            return;
        }
        let (world, host) = (Arc::downgrade(self), name.clone());
        let clock = self.common.clock.clone();
        let task = async move {
            clock.sleep(after).await;
            loop {
                let Some(world) = world.upgrade() else { return };
                if !world.wanted().contains(&host) {
                    // The list has changed meanwhile.
                    let mut state = world.state.lock();
                    state.starting.remove(&host);
                    // Left by an attempt that failed.
                    state.claiming.remove(&host);
                    return;
                }
                if let Some(running) = world.begin(&host).await {
                    world.install(host, running);
                    return;
                }
                world.common.fault("a start that failed");
                drop(world);
                clock.sleep(Duration::from_secs(1)).await;
            }
        };
        while state.starts.try_join_next().is_some() {}
        let started = state.starts.spawn(task);
        state.starting.insert(name.clone(), started);
    }

    /// One attempt to start a host.
    async fn begin(&self, name: &Arc<str>) -> Option<Running<A>> {
        let common = &self.common;
        let own = common.clock.separate();
        let is_far_off = common.random.chance(0.08) && !common.is_healed.load(Ordering::SeqCst);
        let most = if is_far_off { 3_600_000 } else { 500 };
        own.step(i64::try_from(common.random.below(2 * most)).unwrap_or(0) - i64::try_from(most).unwrap_or(0));
        if is_far_off {
            common.fault("host whose wall is off from the start");
        }
        let clock = Arc::new(HostClock::new(own));
        let (faults, life, fleet) = {
            let mut state = self.state.lock();
            if let Some(before) = state.living.get(name) {
                before.site.life.0.is_current.store(false, Ordering::SeqCst);
            }
            let faults = self.faults();
            state.links.push(faults.clone());
            state.claiming.insert(name.clone(), faults.clone());
            let life = self.next_life(&mut state, name, &clock);
            let fleet = self.fleet_known(&state)?;
            (faults, life, fleet)
        };
        if !life.is_healed() {
            set_chances(&faults, self.shape.calls);
        }
        let link = self.link(faults, &life);
        let second = Duration::from_secs(1);
        let builder = Host::builder(&**name, fleet)
            .store(link.clone())
            .clock(clock)
            .random(Arc::new(SeededRandom::new(common.random.below(u64::MAX))))
            .lease(self.shape.lease)
            .store_timeout(second * 2)
            .commit_timeout(second * 4)
            .start_timeout(second * 10)
            .max_firing(32)
            .alarm_window(16)
            .settle(second * 3)
            .handoff_batch(4)
            .handoff_timeout(second * 2);
        let builder = match &self.network {
            Some(network) => builder.shared_transport(network.transport(&link)),
            None => builder,
        };
        let (builder, app) = (self.register)(builder, &life);
        let since = common.clock.elapsed();
        let faults = link.faults.clone();
        let host = tokio::select! { biased;
            () = self.dies_while_it_claims(&faults) => return None,
            host = builder.start() => host.ok()?,
        };
        let site = Site { life, app };
        Some(Running { site, host: Arc::new(Mutex::new(Some(host))), killed: Arc::default(), link, since })
    }

    /// Ends when a host is to die at its first claim, as some are.
    async fn dies_while_it_claims(&self, faults: &FaultStore) {
        let random = &self.common.random;
        let is_healed = self.common.is_healed.load(Ordering::SeqCst);
        if is_healed || self.shape.calls == 0.0 || !random.chance(0.05) {
            return std::future::pending().await;
        }
        faults.fail_at(0, if random.chance(0.5) { Fault::Hang } else { Fault::HangAfter });
        faults.until_begun(0).await;
        self.common.fault("crash");
        self.note_places(faults, "crash");
    }

    /// Counts where a host is that dies.
    fn note_places(&self, faults: &FaultStore, how: &str) {
        let under_way = faults.under_way();
        for call in &under_way {
            let place = if call.is_done { "after" } else { "before" };
            self.common.fault(&format!("{how} {place} {:?} was answered", call.method));
        }
        if under_way.iter().all(|call| call.method == Method::Watch) {
            self.common.fault(&format!("{how} between calls"));
        }
    }

    fn install(&self, name: Arc<str>, running: Running<A>) {
        let mut state = self.state.lock();
        state.starting.remove(&name);
        state.claiming.remove(&name);
        if let Some(before) = state.living.insert(name, running) {
            state.replaced.push(before);
        }
    }

    /// A host dies: nothing goes out of it any more, then its tasks are dropped. `false` if there was none to die.
    pub(super) fn crash(&self, name: &str) -> bool {
        let (running, starting) = {
            let mut state = self.state.lock();
            (state.living.remove(name), state.starting.remove(name))
        };
        if let Some(starting) = &starting {
            starting.abort();
            self.common.fault("crash of a host that was starting");
            let faults = self.state.lock().claiming.remove(name);
            faults.iter().for_each(|faults| self.note_places(faults, "crash"));
        }
        if let Some(running) = running {
            self.end(&running, "crash");
            return true;
        }
        starting.is_some()
    }

    /// Kills the hosts that have been replaced.
    pub(super) fn crash_replaced(&self) {
        let replaced = std::mem::take(&mut self.state.lock().replaced);
        for running in replaced {
            self.end(&running, "end of a host that had been replaced");
        }
    }

    /// A host is dropped without ceremony, which it may not mind.
    pub(super) fn drop_host(&self, name: &str) -> bool {
        let Some(running) = self.state.lock().living.remove(name) else { return false };
        self.common.fault("drop");
        let host = running.host.lock().take();
        drop(host);
        self.end(&running, "");
        true
    }

    fn end(&self, running: &Running<A>, how: &str) {
        running.link.is_dead.store(true, Ordering::SeqCst);
        if !how.is_empty() {
            self.common.fault(how);
            self.note_places(&running.link.faults, how);
        }
        self.common.history.note(&format!("end {}", running.site.life.number()));
        let host = running.host.lock().take();
        match host {
            Some(host) => host.crash(),
            None => {
                if !how.is_empty() {
                    self.common.fault(&format!("{how} while it drained"));
                }
                running.killed.notify_one();
            }
        }
        // Whoever waits for it to go on finds it dead.
        running.pause(false);
        let lived = self.common.clock.elapsed().saturating_sub(running.since);
        self.state.lock().host_time += lived;
    }

    /// A host ends in good order, or dies on the way; then it is gone.
    pub(super) fn drain(self: &Arc<Self>, name: &Arc<str>, deadline: Duration) {
        let mut state = self.state.lock();
        let Some(running) = state.living.get(name) else { return };
        let Some(host) = running.host.lock().take() else { return };
        let (killed, name, world) = (running.killed.clone(), name.clone(), Arc::downgrade(self));
        let life = running.site.life.clone();
        let task = async move {
            let drained = tokio::select! { biased;
                () = killed.notified() => None,
                drained = host.drain(deadline) => Some(drained),
            };
            match drained {
                None => host.crash(),
                Some(drained) => {
                    drop(host);
                    let Some(world) = world.upgrade() else { return };
                    world.common.fault(if drained.released { "drain" } else { "drain past its deadline" });
                    let mut state = world.state.lock();
                    let is_same = |running: &Running<A>| running.site.life.number() == life.number();
                    let gone =
                        if state.living.get(&name).is_some_and(is_same) { state.living.remove(&name) } else { None };
                    drop(state);
                    if let Some(running) = gone {
                        world.end(&running, "");
                    }
                }
            }
        };
        while state.drains.try_join_next().is_some() {}
        state.drains.spawn(task);
    }

    /// Starts hosts that have found themselves replaced, as a supervisor does, and those that nobody starts.
    pub(super) fn supervise(self: &Arc<Self>) {
        for name in self.wanted() {
            let health = self.with(&name, Running::health);
            if let Some(Some(ended @ (Health::Replaced | Health::Stopped | Health::Failed | Health::StoreLost))) =
                health
            {
                if matches!(ended, Health::Failed | Health::StoreLost) {
                    self.common.history.violated(Invariant::Handled, format!("{name} has ended by itself: {ended:?}"));
                } else {
                    self.common.fault("a host that was replaced by a late claim");
                }
                let running = self.state.lock().living.remove(&name);
                if let Some(running) = running {
                    self.end(&running, "");
                }
            }
            if !self.state.lock().living.contains_key(&name) {
                self.start(&name, Duration::from_millis(500));
            }
        }
    }

    /// Ends all faults, and waits until each host has what belongs to it; tells whether that happened.
    pub(super) async fn heal(self: &Arc<Self>) -> bool {
        let clock = self.common.clock.clone();
        for faults in &self.state.lock().links {
            faults.heal();
            faults.release_hanging();
        }
        if let Some(network) = &self.network {
            network.heal();
        }
        self.each(|running| {
            running.pause(false);
            running.set_right();
        });
        for name in self.wanted() {
            self.cordon(&name, false).await;
        }
        self.crash_replaced();
        let mut drains = std::mem::take(&mut self.state.lock().drains);
        while drains.join_next().await.is_some() {}
        let healthy = async {
            let mut since = None;
            loop {
                self.supervise();
                clock.sleep(Duration::from_millis(500)).await;
                let extra: Vec<_> = self.names().into_iter().filter(|name| !self.wanted().contains(name)).collect();
                for name in extra {
                    self.crash(&name);
                }
                let unsettled = self.unsettled();
                if unsettled.is_none() {
                    break;
                }
                since = if self.is_up() { since.or(Some(clock.elapsed())) } else { None };
                if since.is_some_and(|since| clock.elapsed() > since + LEASE * 3) {
                    let what = format!("after three leases without faults {}", unsettled.unwrap_or_default());
                    self.common.history.violated(Invariant::Settled, what);
                    break;
                }
            }
        };
        within(&clock, Duration::from_secs(600), healthy).await.is_some()
    }

    /// Tells whether every host that is to be there is ready and says that nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let is_idle = |running: &Running<A>| {
            let host = running.host.lock();
            host.as_ref().is_some_and(|host| host.is_ready(Duration::ZERO) && host.overdue() == Duration::ZERO)
        };
        state.fleet.hosts().iter().all(|name| state.living.get(name).is_some_and(is_idle))
    }

    /// Tells whether every host that is to be there runs.
    fn is_up(&self) -> bool {
        let state = self.state.lock();
        let is_up = |running: &Running<A>| running.health() == Some(Health::Running);
        state.fleet.hosts().iter().all(|name| state.living.get(name).is_some_and(is_up))
    }

    /// Names something that is not as it is to be in the end: every shard owned by the host it belongs to, and by no other.
    fn unsettled(&self) -> Option<String> {
        let state = self.state.lock();
        let mut owners = vec![Vec::new(); state.fleet.shards() as usize];
        for name in state.fleet.hosts() {
            let host = state.living.get(name).map(|running| running.host.lock());
            let Some(host) = host.as_ref().and_then(|host| host.as_ref()) else {
                return Some(format!("{name} is not there"));
            };
            if host.health() != Health::Running {
                return Some(format!("{name} is {:?}", host.health()));
            }
            let (shards, assigned) = (host.shards(), host.assigned());
            if shards != assigned {
                return Some(format!("{name} owns {shards:?}, and {assigned:?} are placed on it"));
            }
            shards.iter().for_each(|shard| owners[shard.0 as usize].push(name.clone()));
        }
        let odd = owners.iter().position(|owners| owners.len() != 1)?;
        Some(format!("shard {odd} is owned by {:?}", owners[odd]))
    }

    /// Marks a host as one to empty, or takes the mark away.
    pub(super) async fn cordon(&self, name: &str, is_cordoned: bool) {
        let client = FleetClient::new(self.store.clone(), self.state.lock().fleet.clone());
        let done = client.clock(Arc::new(self.common.clock.clone())).cordon(name, is_cordoned).await;
        debug_assert!(done.is_ok(), "the store itself does not fail");
    }

    pub(super) async fn drain_all(self: &Arc<Self>) {
        self.outside.end();
        for name in self.names() {
            self.drain(&name, Duration::from_secs(60));
        }
        let mut drains = std::mem::take(&mut self.state.lock().drains);
        while drains.join_next().await.is_some() {}
        for name in self.names() {
            self.crash(&name);
        }
        let mut starts = std::mem::take(&mut self.state.lock().starts);
        starts.shutdown().await;
        if let Some(network) = &self.network {
            network.end().await;
        }
    }

    /// Adds up what happened to the calls of the store.
    pub(super) fn tally(&self, run: &mut Run) {
        let state = self.state.lock();
        run.host_time += state.host_time;
        run.handed_over = self.handed_over.load(Ordering::SeqCst);
        run.forwarded = self.network.as_ref().map_or(0, Network::taken);
        for faults in &state.links {
            for call in faults.log() {
                if let Some(fault) = call.fault {
                    run.faults.add(&format!("{} {:?}", described(fault), call.method), 1);
                }
                let is_ambiguous = call.is_done && call.answer != Answer::Done;
                run.ambiguous_commits += u64::from(is_ambiguous && call.method == Method::Commit);
            }
        }
    }
}
