//! Hosts of a live fleet that give shards away, some of them or all: whoever asks meanwhile, through whatever door, is answered.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod town;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::clock::{Clock, Sleep};
use stable_interfaces::store::MemberState;
use stable_interfaces::testing::{Fault, FaultStore, Method, SimClock};
use stable_interfaces::{
    Alarm, Context, ContextError, Drained, Fleet, FleetClient, Handle, Health, Host, HostBuilder, InstanceRef,
    Interface, OnAlarm, RequestError, StableInterface, Timestamp,
};
use tokio::task::JoinHandle;

use self::town::{LEASE, Town};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SETTLE: Duration = Duration::from_secs(2);
const SHARDS: u32 = 64;

/// The handle of the host that an instance lives on.
type Desks = Arc<OnceLock<Interface<Desk>>>;

struct Desk {
    desks: Desks,
    clock: SimClock,
}

impl StableInterface for Desk {
    const NAME: &'static str = "desk";
    type Error = ContextError;
}

/// Adds one to a stored number, after a while.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Add {
    after: Duration,
}

impl Handle<Add> for Desk {
    type Reply = u64;

    async fn handle(&mut self, cx: &mut Context, Add { after }: Add) -> Result<u64, ContextError> {
        if !after.is_zero() {
            self.clock.sleep(after).await;
        }
        let sum = cx.get::<u64>("sum").await?.unwrap_or(0) + 1;
        cx.put("sum", &sum)?;
        Ok(sum)
    }
}

/// Has each instance of a list wait for a while and ask the next. Answers with the hosts that were visited, or with what went wrong.
#[derive(Debug, Serialize, Deserialize)]
struct Round(Vec<(String, Duration)>);

impl Handle<Round> for Desk {
    type Reply = Vec<String>;

    async fn handle(&mut self, cx: &mut Context, Round(mut rest): Round) -> Result<Vec<String>, ContextError> {
        let mut visited = vec![cx.host().to_owned()];
        if !rest.is_empty() {
            let (next, after) = rest.remove(0);
            self.clock.sleep(after).await;
            let answer = self.desks.get().unwrap().request(&next, Round(rest)).await;
            visited.extend(answer.unwrap_or_else(|error| vec![error.report()]));
        }
        Ok(visited)
    }
}

/// Begins a task that works until its host is leaving, and for so long after that; then it notes that in a turn.
#[derive(Debug, Serialize, Deserialize)]
struct Work(Duration);

impl Handle<Work> for Desk {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, Work(rest): Work) -> Result<(), ContextError> {
        let clock = self.clock.clone();
        cx.spawn(move |me: InstanceRef<Desk>| async move {
            me.leaving().await;
            clock.sleep(rest).await;
            // One that was cut off has nobody to tell.
            drop(me.turn(|_, cx| cx.put("ended", &true)).await);
        })
    }
}

/// Tells whether the task of [`Work`] came to its end.
#[derive(Debug, Serialize, Deserialize)]
struct HasEnded;

impl Handle<HasEnded> for Desk {
    type Reply = bool;

    async fn handle(&mut self, cx: &mut Context, _: HasEnded) -> Result<bool, ContextError> {
        Ok(cx.get("ended").await?.unwrap_or(false))
    }
}

impl OnAlarm for Desk {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
        let fired = (cx.host().to_owned(), cx.now());
        cx.put(alarm.id(), &fired)
    }
}

/// Tells where and when an alarm has fired.
#[derive(Debug, Serialize, Deserialize)]
struct Fired(String);

impl Handle<Fired> for Desk {
    type Reply = Option<(String, Timestamp)>;

    async fn handle(&mut self, cx: &mut Context, Fired(alarm): Fired) -> Result<Self::Reply, ContextError> {
        cx.get(&alarm).await
    }
}

#[derive(Clone)]
struct Site {
    host: Arc<Host>,
    desks: Interface<Desk>,
}

impl Town {
    /// A host of a live fleet with so many shards.
    fn live(&self, name: &str, shards: u32) -> HostBuilder {
        self.member(name, &Fleet::live(shards).unwrap()).settle(SETTLE).handoff_batch(8)
    }

    async fn launch(&self, mut host: HostBuilder) -> Site {
        let (handle, clock) = (Desks::default(), self.clock.clone());
        let desks = handle.clone();
        let build = move |_: &str| Desk { desks: desks.clone(), clock: clock.clone() };
        let interface = host.interface(build).with_alarms().forward::<Add>("add").forward::<Round>("round");
        let interface = interface.forward::<Work>("work").forward::<HasEnded>("has-ended").forward::<Fired>("fired");
        let desks = interface.register().unwrap();
        handle.set(desks.clone()).unwrap();
        Site { host: Arc::new(host.start().await.unwrap()), desks }
    }

    async fn start(&self, name: &str) -> Site {
        self.launch(self.live(name, SHARDS).transport(self.network.transport())).await
    }

    /// Two hosts that have their parts.
    async fn two(&self) -> [Site; 2] {
        let (a, b) = tokio::join!(self.start("a"), self.start("b"));
        self.pass(2 * LEASE).await;
        assert_eq!(a.host.shards().len() + b.host.shards().len(), SHARDS as usize);
        [a, b]
    }
}

impl Site {
    /// IDs whose shards this host owns.
    fn ids(&self) -> impl Iterator<Item = String> {
        (0..).map(|number| format!("id-{number}")).filter(|id| self.host.owns(id).unwrap())
    }

    fn id(&self) -> String {
        self.ids().next().unwrap()
    }

    fn drain(&self, deadline: Duration) -> JoinHandle<Drained> {
        let host = self.host.clone();
        tokio::spawn(async move { host.drain(deadline).await })
    }

    fn ask(&self, id: &str, add: Add) -> JoinHandle<Result<u64, RequestError<ContextError>>> {
        let (desks, id) = (self.desks.clone(), id.to_owned());
        tokio::spawn(async move { desks.request(&id, add).await })
    }
}

/// Asks for one ID again and again through one door, until it is told to stop. Returns how often, and the longest wait.
struct Caller(JoinHandle<(u64, Duration)>);

impl Caller {
    fn begin(town: &Town, door: &Site, id: String, is_over: &Arc<OnceLock<()>>) -> Caller {
        let (clock, desks, is_over) = (town.clock.clone(), door.desks.clone(), is_over.clone());
        Caller(tokio::spawn(async move {
            let (mut answers, mut longest) = (0, Duration::ZERO);
            while is_over.get().is_none() {
                let began = clock.elapsed();
                let answer = desks.request(&id, Add::default()).await;
                answers += 1;
                assert_eq!(answer.unwrap(), answers, "{id}: each has happened once");
                longest = longest.max(clock.elapsed() - began);
                clock.sleep(5 * MILLI).await;
            }
            (answers, longest)
        }))
    }
}

/// Callers of this many IDs through each of these doors; each ID has one caller.
fn callers(town: &Town, doors: &[&Site], ids: usize, is_over: &Arc<OnceLock<()>>) -> Vec<Caller> {
    let each = |door: &&Site| {
        let id = |number| format!("id-{number}-of-{}", door.host.name());
        (0..ids).map(|number| Caller::begin(town, door, id(number), is_over)).collect::<Vec<_>>()
    };
    doors.iter().flat_map(each).collect()
}

async fn longest_wait(callers: Vec<Caller>) -> Duration {
    let mut longest = Duration::ZERO;
    for Caller(caller) in callers {
        let (answers, wait) = caller.await.unwrap();
        assert!(answers > 20, "it was asked {answers} times only");
        longest = longest.max(wait);
    }
    longest
}

#[tokio::test(start_paused = true)]
async fn who_asks_through_any_door_while_a_host_joins_and_another_drains_waits_for_milliseconds() {
    let town = Town::new(1);
    let [a, b] = town.two().await;
    let is_over = Arc::new(OnceLock::new());
    let mut asking = callers(&town, &[&a, &b], 10, &is_over);
    let c = town.start("c").await;
    asking.extend(callers(&town, &[&c], 10, &is_over));
    // The server of the host that is drained goes on for a second, as one whose clients are slow.
    let server = {
        let (stopping, clock) = (b.host.stopping(), town.clock.clone());
        async move {
            stopping.await;
            clock.sleep(SECOND).await;
        }
    };
    let serving = tokio::spawn(b.host.serving(server));
    town.pass(SETTLE + SECOND).await;
    let parts = [&a, &b, &c].map(|site| site.host.shards().len());
    assert!(parts.iter().all(|part| *part > 10), "{parts:?}");
    let draining = b.drain(10 * SECOND);
    town.pass(SECOND / 2).await;
    assert!(!draining.is_finished() && b.host.shards().is_empty(), "it is a door and nothing else");
    town.pass(SECOND / 4).await;
    is_over.set(()).unwrap();
    let longest = longest_wait(asking).await;
    assert!(longest <= 60 * MILLI, "the longest wait was {longest:?}");
    serving.await.unwrap();
    let drained = draining.await.unwrap();
    let taken = BTreeMap::from([
        ("a".into(), a.host.shards().len() - parts[0]),
        ("c".into(), c.host.shards().len() - parts[2]),
    ]);
    assert_eq!(drained, Drained { unfinished: 0, instances: 0, tasks: 0, released: true, handed_over: taken });
    assert_eq!(drained.handed_over.values().sum::<usize>(), parts[1]);
    assert_eq!(a.host.members().len(), 2, "it is gone");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_runs_in_a_shard_that_leaves_is_served_there_also_by_way_of_another_host() {
    let town = Town::new(1);
    let first = town.live("a", SHARDS).transport(town.network.transport()).handoff_batch(SHARDS as usize);
    let (a, b) = tokio::join!(town.launch(first), town.start("b"));
    town.pass(2 * LEASE).await;
    // Both are to be the third host's, as soon as all know of that.
    let c = town.start("c").await;
    town.pass(SECOND / 10).await;
    let mut moving = a.ids().filter(|id| &*a.host.owner_of(id).unwrap() == "c");
    let (first, last) = (moving.next().unwrap(), moving.next().unwrap());
    drop(moving);
    let between = b.ids().find(|id| &*b.host.owner_of(id).unwrap() == "b").unwrap();
    // It asks when its shard takes nothing in any more, and neither does the one that it comes back to, which has work until then.
    town.pass(SETTLE - SECOND * 3 / 5).await;
    let began = town.clock.elapsed();
    let busy = a.ask(&last, Add { after: SECOND });
    let round = Round(vec![(between.clone(), SECOND * 3 / 4), (last.clone(), Duration::ZERO)]);
    let (desks, asked) = (c.desks.clone(), first.clone());
    let asking = tokio::spawn(async move { desks.request(&asked, round).await });
    town.pass(SECOND * 3 / 4 - 10 * MILLI).await;
    assert!(!asking.is_finished() && a.host.owns(&first).unwrap() && a.host.owns(&last).unwrap());
    assert!(a.host.shards().iter().all(|shard| !c.host.shards().contains(shard)) && !c.host.shards().is_empty());
    // Whoever is no part of it waits at the next owner.
    let waiting = c.ask(&last, Add::default());
    let visited = asking.await.unwrap().unwrap();
    assert_eq!(visited, ["a", "b", "a"], "each was served where it was");
    let took = town.clock.elapsed() - began;
    assert!(took < SECOND + 50 * MILLI, "nobody waited for itself: {took:?}");
    assert_eq!((busy.await.unwrap().unwrap(), waiting.await.unwrap().unwrap()), (1, 2));
    assert!(c.host.owns(&last).unwrap() && town.clock.elapsed() - began < SECOND * 5 / 4);
    assert_eq!(c.desks.request(&first, Round(vec![])).await.unwrap(), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_asks_an_instance_that_has_left_is_sent_after_it() {
    let town = Town::new(1);
    let [a, b] = town.two().await;
    let (first, last) = (a.id(), a.ids().nth(20).unwrap());
    let desks = a.desks.clone();
    let round = Round(vec![(last.clone(), 2 * SECOND)]);
    let asking = tokio::spawn(async move { desks.request(&first, round).await });
    town.pass(SECOND).await;
    let draining = a.drain(20 * SECOND);
    town.pass(SECOND / 2).await;
    assert!(b.host.owns(&last).unwrap(), "a handler that takes long holds up no other shard");
    assert_eq!(a.host.shards().len(), 1);
    assert_eq!(asking.await.unwrap().unwrap(), ["a", "b"]);
    let drained = draining.await.unwrap();
    assert_eq!((drained.unfinished, drained.released), (0, true));
    assert_eq!(b.host.shards().len(), SHARDS as usize);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_tasks_and_serves_their_shards_and_fires_their_alarms_until_they_end() {
    let town = Town::new(1);
    let [a, b] = town.two().await;
    let (busy, idle) = (a.id(), a.ids().nth(20).unwrap());
    a.desks.request(&busy, Work(3 * SECOND)).await.unwrap();
    town.pass(MILLI).await;
    for (id, alarm) in [(&busy, "x"), (&idle, "y")] {
        a.desks.set_alarm(id, alarm, town.clock.now() + SECOND, &()).await.unwrap();
    }
    let (began, due) = (town.clock.elapsed(), town.clock.now() + SECOND);
    let draining = a.drain(20 * SECOND);
    town.pass(SECOND / 2).await;
    assert_eq!((a.host.health(), a.host.shards().len()), (Health::Draining, 1), "the others went at once");
    for door in [&a, &b] {
        door.desks.request(&busy, Add::default()).await.unwrap();
        door.desks.request(&idle, Add::default()).await.unwrap();
    }
    assert!(a.desks.is_running(&busy) && !a.desks.is_running(&idle), "it is served where its task is");
    let drained = draining.await.unwrap();
    assert_eq!((drained.unfinished, drained.tasks, drained.released), (0, 0, true));
    assert_eq!((town.clock.elapsed() - began).as_secs(), 3, "as soon as the task had ended");
    town.pass(SECOND).await;
    assert!(b.desks.request(&busy, HasEnded).await.unwrap(), "its turn was served");
    for (id, alarm, host) in [(&busy, "x", "a"), (&idle, "y", "b")] {
        let (fired_on, at) = b.desks.request(id, Fired(alarm.into())).await.unwrap().unwrap();
        assert_eq!(fired_on, host);
        assert!(at.since(due) < SECOND / 10, "{alarm} was late by {:?}", at.since(due));
    }
}

#[tokio::test(start_paused = true)]
async fn tasks_that_do_not_end_are_cut_off_at_half_the_deadline_or_after_the_handoff_timeout_and_counted() {
    for (handoff_timeout, wanted) in [(30 * SECOND, 5), (2 * SECOND, 2)] {
        let town = Town::new(1);
        let host = town.live("a", SHARDS).transport(town.network.transport()).handoff_timeout(handoff_timeout);
        let (a, b) = tokio::join!(town.launch(host), town.start("b"));
        town.pass(2 * LEASE).await;
        let id = a.id();
        a.desks.request(&id, Work(100 * SECOND)).await.unwrap();
        town.pass(MILLI).await;
        let began = town.clock.elapsed();
        let drained = a.drain(10 * SECOND).await.unwrap();
        assert_eq!((drained.unfinished, drained.tasks, drained.released), (0, 1, true));
        assert_eq!((town.clock.elapsed() - began).as_secs(), wanted);
        town.pass(SECOND / 10).await;
        assert!(!b.desks.request(&id, HasEnded).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_by_the_deadline_of_a_drain_is_cut_off_and_the_rest_is_elsewhere_long_before() {
    let town = Town::new(1);
    let [a, b] = town.two().await;
    let mut ids = a.ids();
    let (stuck, fine) = (ids.next().unwrap(), ids.nth(20).unwrap());
    drop(ids);
    assert_eq!(a.desks.request(&fine, Add::default()).await.unwrap(), 1);
    let cut_off = a.ask(&stuck, Add { after: 25 * SECOND });
    town.pass(MILLI).await;
    let began = town.clock.elapsed();
    let draining = a.drain(5 * SECOND);
    town.pass(SECOND / 2).await;
    assert_eq!(b.desks.request(&fine, Add::default()).await.unwrap(), 2);
    let drained = draining.await.unwrap();
    assert_eq!((drained.unfinished, drained.instances, drained.released), (1, 1, false));
    assert!(drained.handed_over.contains_key("b"), "{drained:?}");
    assert_eq!(b.host.shards().len(), SHARDS as usize - 1);
    assert_eq!((town.clock.elapsed() - began).as_secs(), 5);
    assert!(cut_off.await.unwrap().is_err());
    // It may have been what kills processes, so it goes on like what a dead host had.
    town.pass(2 * LEASE).await;
    assert_eq!(b.desks.request(&stuck, Add::default()).await.unwrap(), 1, "it had not ended");
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_comes_in_the_middle_of_a_handoff_goes_on_with_it() {
    for moment in [0, 2, 10, 40] {
        let town = Town::new(1);
        let [a, b] = town.two().await;
        let is_over = Arc::new(OnceLock::new());
        let asking = callers(&town, &[&b], 5, &is_over);
        let slow: Vec<_> = a.ids().take(8).collect();
        let _c = town.start("c").await;
        town.pass(SETTLE - 20 * MILLI).await;
        let running: Vec<_> = slow.iter().map(|id| a.ask(id, Add { after: SECOND / 2 })).collect();
        town.pass(20 * MILLI + moment * MILLI).await;
        let drained = a.drain(10 * SECOND).await.unwrap();
        assert_eq!((drained.unfinished, drained.released), (0, true), "after {moment} ms");
        town.pass(SECOND).await;
        for running in running {
            running.await.unwrap().unwrap();
        }
        is_over.set(()).unwrap();
        let longest = longest_wait(asking).await;
        assert!(longest < SECOND, "after {moment} ms: {longest:?}");
    }
}

/// A clock whose host begins to drain as one of its sleeps ends, before whoever slept goes on.
#[derive(Debug, Clone)]
struct Tripwire {
    clock: SimClock,
    armed: Arc<Mutex<Option<Armed>>>,
}

/// The host that is to drain, and the number of sleeps that are to end first.
type Armed = (u32, Arc<Host>);

impl Tripwire {
    fn trip(&self) {
        let host = match &mut *self.armed.lock().unwrap() {
            Some((left, _)) if *left > 0 => return *left -= 1,
            armed => armed.take(),
        };
        if let Some((_, host)) = host {
            let begun = pin!(host.drain(10 * SECOND)).poll(&mut std::task::Context::from_waker(Waker::noop()));
            assert!(begun.is_pending() && host.health() == Health::Draining);
        }
    }

    fn wired(&self, sleep: Sleep) -> Sleep {
        let this = self.clone();
        Box::pin(async move {
            sleep.await;
            this.trip();
        })
    }
}

impl Clock for Tripwire {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.wired(self.clock.sleep(duration))
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        self.wired(self.clock.sleep_exact(until))
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_begins_at_any_moment_of_a_handoff_gives_all_the_rest_away_at_once() {
    let ids: Vec<_> = (0..40).map(|number| format!("id-{number}")).collect();
    let mut moments = 0;
    loop {
        let town = Town::new(1);
        let wire = Tripwire { clock: town.clock.clone(), armed: Arc::default() };
        let first = town.live("a", SHARDS).transport(town.network.transport()).clock(Arc::new(wire.clone()));
        let (a, b) = tokio::join!(town.launch(first), town.start("b"));
        town.pass(2 * LEASE).await;
        let client = FleetClient::new(Arc::new(town.store.clone()), Fleet::live(SHARDS).unwrap());
        // Some run in each batch, and what ends last in it is waited for.
        let running: Vec<_> =
            (0..8).cycle().zip(&ids).map(|(n, id)| b.ask(id, Add { after: n * 10 * MILLI })).collect();
        town.pass(MILLI).await;
        *wire.armed.lock().unwrap() = Some((moments, a.host.clone()));
        assert!(client.cordon("a", true).await.unwrap());
        town.pass(SECOND / 2).await;
        if a.host.health() == Health::Running {
            assert!(a.host.shards().is_empty(), "the handoffs are over before the wire is");
            *wire.armed.lock().unwrap() = None;
            break;
        }
        let drained = a.drain(10 * SECOND);
        town.pass(SECOND / 2).await;
        assert!(drained.is_finished(), "moment {moments}: it does not wait for its deadline");
        let drained = drained.await.unwrap();
        assert_eq!((drained.unfinished, drained.released), (0, true), "moment {moments}");
        assert_eq!(b.host.shards().len(), SHARDS as usize, "moment {moments}");
        for (id, running) in ids.iter().zip(running) {
            assert_eq!(running.await.unwrap().unwrap(), 1, "moment {moments}: {id}");
            assert_eq!(b.desks.request(id, Add::default()).await.unwrap(), 2, "moment {moments}: {id}");
        }
        moments += 1;
    }
    assert!(moments > 4, "only {moments} moments");
}

#[tokio::test(start_paused = true)]
async fn the_last_host_of_a_live_fleet_refuses_what_is_new_while_it_drains() {
    let town = Town::new(1);
    let [a, b] = town.two().await;
    assert!(b.drain(SECOND).await.unwrap().released);
    town.pass(SECOND).await;
    let (id, other) = (a.id(), a.ids().nth(3).unwrap());
    let running = a.ask(&id, Add { after: 3 * SECOND });
    town.pass(MILLI).await;
    let draining = a.drain(10 * SECOND);
    town.pass(SECOND).await;
    let error = a.desks.request(&other, Add::default()).await.unwrap_err();
    assert!(matches!(error, RequestError::Draining), "{error}");
    running.await.unwrap().unwrap();
    let drained = draining.await.unwrap();
    assert_eq!((drained.unfinished, drained.released, drained.handed_over.len()), (0, true, 0));
}

#[tokio::test(start_paused = true)]
async fn all_hosts_that_drain_at_once_end_and_lose_nothing() {
    let town = Town::new(1);
    let [a, b] = town.two().await;
    let ids: Vec<_> = (0..40).map(|number| format!("id-{number}")).collect();
    for id in &ids {
        assert_eq!(a.desks.request(id, Add::default()).await.unwrap(), 1);
    }
    let began = town.clock.elapsed();
    for drained in [a.drain(10 * SECOND), b.drain(10 * SECOND)] {
        assert!(drained.await.unwrap().released);
    }
    assert!(town.clock.elapsed() - began < SECOND);
    let c = town.start("c").await;
    for id in &ids {
        assert_eq!(c.desks.request(id, Add::default()).await.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_emptied_and_stays_answers_through_its_door_all_the_time() {
    let town = Town::new(1);
    let [a, b] = town.two().await;
    let is_over = Arc::new(OnceLock::new());
    let asking = callers(&town, &[&a, &b], 10, &is_over);
    let client = FleetClient::new(Arc::new(town.store.clone()), Fleet::live(SHARDS).unwrap());
    for is_cordoned in [true, false] {
        assert!(client.cordon("b", is_cordoned).await.unwrap());
        town.pass(SECOND).await;
        assert_eq!(b.host.shards().is_empty(), is_cordoned);
    }
    is_over.set(()).unwrap();
    let longest = longest_wait(asking).await;
    assert!(longest <= 60 * MILLI, "the longest wait was {longest:?}");
    assert!(a.host.members().iter().all(|member| member.state == MemberState::Up));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_the_network_held_back_frees_no_shard_that_has_come_back() {
    let town = Town::new(1);
    let faults = FaultStore::seeded(Arc::new(town.store.clone()), Arc::new(town.clock.clone()), 1);
    let host = town.live("b", SHARDS).shared_store(Arc::new(faults.clone())).transport(town.network.transport());
    let (_a, b) = tokio::join!(town.start("a"), town.launch(host));
    town.pass(2 * LEASE).await;
    let before = b.host.shards();
    // The store answers to the second try of the first batch; the first one is still on its way.
    faults.fail_next(Method::Release, Fault::LateUntilTold);
    let client = FleetClient::new(Arc::new(town.store.clone()), Fleet::live(SHARDS).unwrap());
    for is_cordoned in [true, false] {
        assert!(client.cordon("b", is_cordoned).await.unwrap());
        town.pass(5 * SECOND).await;
        assert_eq!(b.host.shards().is_empty(), is_cordoned);
    }
    assert_eq!(b.host.shards(), before);
    let epochs = || b.ids().take(200).map(|id| (b.desks.epoch(&id), id)).collect::<Vec<_>>();
    let owned = epochs();
    assert_eq!(faults.deliver_late().await, 1);
    town.pass(LEASE).await;
    assert_eq!(epochs(), owned, "nobody has had them meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_live_fleet_without_transport_works_and_requests_elsewhere_name_the_owner() {
    let town = Town::new(1);
    let (a, b) = tokio::join!(town.launch(town.live("a", SHARDS)), town.launch(town.live("b", SHARDS)));
    town.pass(SECOND).await;
    let id = b.id();
    let error = a.desks.request(&id, Add::default()).await.unwrap_err();
    assert!(matches!(&error, RequestError::NotOwner { holder } if **holder == *"b"), "{error}");
    assert_eq!(b.desks.request(&id, Add::default()).await.unwrap(), 1);
    let running = b.ask(&b.ids().nth(5).unwrap(), Add { after: SECOND });
    town.pass(MILLI).await;
    // While it drains too, until it is gone.
    let draining = b.drain(10 * SECOND);
    town.pass(SECOND / 2).await;
    let error = b.desks.request(&id, Add::default()).await.unwrap_err();
    assert!(matches!(&error, RequestError::NotOwner { holder } if **holder == *"a"), "{error}");
    assert_eq!(a.desks.request(&id, Add::default()).await.unwrap(), 2);
    running.await.unwrap().unwrap();
    assert!(draining.await.unwrap().released);
}

#[tokio::test(start_paused = true)]
async fn hosts_for_which_there_is_no_shard_are_ready_and_doors() {
    let town = Town::new(1);
    let start = |name: &'static str| town.launch(town.live(name, 2).transport(town.network.transport()));
    let (a, b, c, d) = tokio::join!(start("a"), start("b"), start("c"), start("d"));
    town.pass(LEASE).await;
    let parts = [&a, &b, &c, &d].map(|site| site.host.shards().len());
    assert_eq!(parts.iter().sum::<usize>(), 2, "{parts:?}");
    let mut counted = 0;
    for door in [&a, &b, &c, &d] {
        assert!(door.host.is_ready(Duration::ZERO));
        counted += 1;
        assert_eq!(door.desks.request("x", Add::default()).await.unwrap(), counted);
    }
    for site in [&a, &b, &c, &d] {
        assert!(site.drain(SECOND).await.unwrap().released);
        town.pass(SECOND).await;
    }
}
