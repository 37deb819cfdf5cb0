//! All that can be done with an instance besides a request, through any door: alarms, dead letters, a stop.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod town;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use stable_interfaces::store::{
    Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Page, Posted, Read, ReadRows,
    Renewal, Renewed, ShardId, Write,
};
use stable_interfaces::{
    Alarm, Context, ContextError, Dead, Fleet, Handle, Host, HostBuilder, Interface, MemoryStore, OnAlarm,
    RequestError, RetryPolicy, StableInterface, Store, StoreError, Timestamp,
};

use self::town::Town;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// Counts its alarms, unless it is told to fail.
struct Bell(Told);

impl StableInterface for Bell {
    const NAME: &'static str = "bell";
    // Nothing that could cross: what is done here needs no message of it.
    type Error = ContextError;

    async fn on_stop(&mut self) {
        self.0.stops.fetch_add(1, Ordering::SeqCst);
    }
}

impl OnAlarm for Bell {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
        if self.0.fails.load(Ordering::SeqCst) {
            return Err(ContextError::NotHere("told to".into()));
        }
        let rung = cx.get::<u64>("rung").await?.unwrap_or(0) + 1;
        cx.put("rung", &rung)?;
        cx.put("last", alarm.id())
    }
}

/// Asks an instance of another kind, from within a handler.
struct StopOther(Interface<Bell>, String);

impl Handle<StopOther> for Bell {
    type Reply = String;

    async fn handle(&mut self, _: &mut Context, StopOther(bells, id): StopOther) -> Result<String, ContextError> {
        Ok(bells.stop(&id).await.map_or_else(RequestError::report, |()| "stopped".to_owned()))
    }
}

/// A store that counts the alarms that are read of it by instance.
#[derive(Debug)]
struct Counted {
    inner: MemoryStore,
    rows: AtomicU64,
}

#[async_trait]
impl Store for Counted {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.inner.claim(claim).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        self.inner.renew(renewal).await
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

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.inner.commit(write).await
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.inner.post(messages).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.inner.watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.inner.load(pages).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        let found = self.inner.read(read).await?;
        if let ReadRows::Alarms(rows) = &found.rows {
            self.rows.fetch_add(rows.len() as u64, Ordering::SeqCst);
        }
        Ok(found)
    }
}

struct Site {
    _host: Host,
    bells: Interface<Bell>,
}

/// The orders of a town's bells, and what they did.
#[derive(Clone, Default)]
struct Told {
    fails: Arc<AtomicBool>,
    stops: Arc<AtomicU64>,
}

async fn start(town: &Town, name: &str, fleet: &Fleet, told: &Told, has_alarms: bool) -> Site {
    start_with(town.member(name, fleet).transport(town.network.transport()), told, has_alarms).await
}

async fn start_with(mut host: HostBuilder, told: &Told, has_alarms: bool) -> Site {
    let told = told.clone();
    let interface = host.interface(move |_| Bell(told.clone()));
    let interface = interface.retry(RetryPolicy::new().attempts(1));
    let interface = if has_alarms { interface.with_alarms() } else { interface };
    let bells = interface.register().unwrap();
    Site { _host: host.start().await.unwrap(), bells }
}

async fn two(town: &Town, told: &Told) -> (Site, Site) {
    let zero = start(town, "host-0", &town.fleet, told, true).await;
    (zero, start(town, "host-1", &town.fleet, told, true).await)
}

async fn rung(site: &Site, id: &str) -> u64 {
    let stored = site.bells.stored(id, "rung").await.unwrap();
    stored.first().map_or(0, |(_, count)| serde_json::from_slice(count).unwrap())
}

fn now(town: &Town) -> Timestamp {
    stable_interfaces::clock::Clock::now(&town.clock)
}

#[tokio::test(start_paused = true)]
async fn alarms_are_set_listed_fired_and_cancelled_through_any_door() {
    let town = Town::new(2);
    let (zero, one) = two(&town, &Told::default()).await;
    let id = town.id("host-1");
    zero.bells.set_alarm(&id, "a", now(&town) + HOUR, &serde_json::json!({ "n": 1.5 })).await.unwrap();
    assert!(zero.bells.set_alarm_if_absent(&id, "b", now(&town) + SECOND, &"first").await.unwrap());
    assert!(!zero.bells.set_alarm_if_absent(&id, "b", now(&town) + HOUR, &"second").await.unwrap());
    assert!(!one.bells.is_running(&id) && !zero.bells.is_running(&id), "it is not built for that");
    let through = zero.bells.alarms(&id).await.unwrap();
    assert_eq!(through, one.bells.alarms(&id).await.unwrap(), "they are told as they are");
    assert_eq!(through.iter().map(Alarm::id).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((through[1].instance(), through[1].meta::<String>().unwrap()), (&*id, "first".to_owned()));
    assert_eq!(through[0].meta_json(), br#"{"n":1.5}"#);

    town.pass(2 * SECOND).await;
    assert_eq!(rung(&zero, &id).await, 1);
    assert!(zero.bells.fire_now(&id, "a").await.unwrap());
    assert!(!zero.bells.fire_now(&id, "nothing").await.unwrap());
    town.settle().await;
    assert_eq!(rung(&zero, &id).await, 2);
    zero.bells.set_alarm(&id, "c", now(&town) + SECOND, &()).await.unwrap();
    zero.bells.cancel_alarm(&id, "c").await.unwrap();
    town.pass(HOUR).await;
    assert_eq!(rung(&zero, &id).await, 2);
    assert_eq!(zero.bells.alarms(&id).await.unwrap(), []);
    assert!(!zero.bells.is_running(&id), "it lives in one place");
}

#[tokio::test(start_paused = true)]
async fn alarms_that_are_too_much_for_one_answer_come_in_several() {
    let town = Town::new(2);
    let (zero, one) = two(&town, &Told::default()).await;
    let id = town.id("host-1");
    // Each quotation mark is two bytes on the way, as many as there can be.
    let meta = "\"".repeat(100_000);
    for number in 0..12 {
        zero.bells.set_alarm(&id, &format!("{number:02}"), now(&town) + HOUR, &meta).await.unwrap();
    }
    let sent = town.network.requests();
    let alarms = zero.bells.alarms(&id).await.unwrap();
    assert_eq!((alarms.len(), &alarms), (12, &one.bells.alarms(&id).await.unwrap()));
    assert_eq!(town.network.requests() - sent, 12, "one of 200 kB in each");
    for number in 12..1_500 {
        one.bells.set_alarm(&id, &format!("{number}"), now(&town) + HOUR, &()).await.unwrap();
    }
    assert_eq!(zero.bells.alarms(&id).await.unwrap(), one.bells.alarms(&id).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn alarms_whose_ids_grow_on_their_way_come_in_as_many_answers_as_they_need() {
    let town = Town::new(2);
    let (zero, one) = two(&town, &Told::default()).await;
    let id = town.id("host-1");
    // One byte is six in JSON.
    let long = "\u{1}".repeat(500);
    for number in 0..600 {
        one.bells.set_alarm(&id, &format!("{long}{number}"), now(&town) + HOUR, &()).await.unwrap();
    }
    assert_eq!(zero.bells.alarms(&id).await.unwrap(), one.bells.alarms(&id).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn each_alarm_is_read_once_however_many_answers_they_come_in() {
    let town = Town::new(2);
    let store = Arc::new(Counted { inner: town.store.clone(), rows: AtomicU64::new(0) });
    let host = town.member("host-1", &town.fleet).shared_store(store.clone()).transport(town.network.transport());
    let one = start_with(host, &Told::default(), true).await;
    let zero = start(&town, "host-0", &town.fleet, &Told::default(), true).await;
    let id = town.id("host-1");
    let meta = "m".repeat(10_000);
    for number in 0..200 {
        one.bells.set_alarm(&id, &format!("{number:03}"), now(&town) + HOUR, &meta).await.unwrap();
    }
    let before = (town.network.requests(), store.rows.load(Ordering::SeqCst));
    assert_eq!(zero.bells.alarms(&id).await.unwrap().len(), 200);
    let (answers, rows) = (town.network.requests() - before.0, store.rows.load(Ordering::SeqCst) - before.1);
    assert!(answers >= 8, "{answers} answers to 2 MB");
    assert!(rows <= 200 + 2 * answers, "{rows} alarms were read to tell 200 in {answers} answers");
}

#[tokio::test(start_paused = true)]
async fn alarms_that_change_between_two_answers_are_told_as_they_were_before_or_after() {
    let town = Town::new(2);
    let (zero, one) = two(&town, &Told::default()).await;
    let id = town.id("host-1");
    let meta = "m".repeat(10_000);
    for number in 0..100 {
        one.bells.set_alarm(&id, &format!("{number:03}"), now(&town) + HOUR, &meta).await.unwrap();
    }
    let looks = tokio::spawn({
        let (bells, id) = (zero.bells.clone(), id.clone());
        async move { bells.alarms(&id).await.unwrap() }
    });
    for number in (0..100).step_by(2) {
        one.bells.cancel_alarm(&id, &format!("{number:03}")).await.unwrap();
        one.bells.set_alarm(&id, &format!("{number:03}-new"), now(&town) + HOUR, &()).await.unwrap();
    }
    let seen: Vec<_> = looks.await.unwrap().iter().map(|alarm| alarm.id().to_owned()).collect();
    assert!(seen.is_sorted() && seen.windows(2).all(|pair| pair[0] != pair[1]), "in order, each once: {seen:?}");
    for number in (1..100).step_by(2) {
        assert!(seen.contains(&format!("{number:03}")), "nobody touched {number}: {seen:?}");
    }
    let after = zero.bells.alarms(&id).await.unwrap();
    assert_eq!(after, one.bells.alarms(&id).await.unwrap());
    assert_eq!(after.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_brought_back_and_discarded_through_any_door() {
    let (town, told) = (Town::new(2), Told::default());
    let (zero, one) = two(&town, &told).await;
    told.fails.store(true, Ordering::SeqCst);
    let id = town.id("host-1");
    for alarm in ["a", "b"] {
        zero.bells.set_alarm(&id, alarm, now(&town), &()).await.unwrap();
    }
    town.pass(SECOND).await;
    told.fails.store(false, Ordering::SeqCst);
    let mut dead = one.bells.dead_letters(None, 10).await.unwrap();
    dead.sort_by(|a, b| a.id().cmp(b.id()));
    assert_eq!(dead.iter().map(Dead::id).collect::<Vec<_>>(), ["a", "b"]);
    assert!(zero.bells.requeue(&dead[0]).await.unwrap());
    assert!(!zero.bells.requeue(&dead[0]).await.unwrap(), "it is not there any more");
    assert!(zero.bells.discard(&dead[1]).await.unwrap());
    assert!(!zero.bells.discard(&dead[1]).await.unwrap());
    town.settle().await;
    assert_eq!(rung(&zero, &id).await, 1);
    assert_eq!(one.bells.dead_letters(None, 10).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_stopped_through_any_door_and_a_handler_that_would_wait_for_itself_is_told() {
    let (town, told) = (Town::new(2), Told::default());
    let (zero, one) = two(&town, &told).await;
    let id = town.id("host-1");
    zero.bells.set_alarm(&id, "a", now(&town), &()).await.unwrap();
    town.settle().await;
    assert!(one.bells.is_running(&id));
    zero.bells.stop(&id).await.unwrap();
    assert!(!one.bells.is_running(&id));
    assert_eq!(told.stops.load(Ordering::SeqCst), 1);

    let (here, there) = (town.id("host-0"), id);
    let stop_other = |bells: &Interface<Bell>, id: &str| StopOther(bells.clone(), id.to_owned());
    assert_eq!(zero.bells.request(&here, stop_other(&zero.bells, &there)).await.unwrap(), "stopped");
    let said = zero.bells.request(&here, stop_other(&one.bells, &here)).await.unwrap();
    assert!(said.contains(&format!("call cycle: bell/{here}")), "{said}");
}

#[tokio::test(start_paused = true)]
async fn what_the_owner_refuses_is_refused_through_another_door_as_it_is_there() {
    let (town, told) = (Town::new(2), Told::default());
    let zero = start(&town, "host-0", &town.fleet, &told, true).await;
    let one = start(&town, "host-1", &town.fleet, &told, false).await;
    let (id, at) = (town.id("host-1"), now(&town));
    for site in [&zero, &one] {
        let refused = site.bells.set_alarm(&id, "a", at, &()).await.unwrap_err();
        assert!(matches!(refused, RequestError::Unhandled(_)), "it has no alarms there: {refused}");
        let refused = site.bells.set_alarm_if_absent(&id, "a", at, &()).await.unwrap_err();
        assert!(matches!(refused, RequestError::Unhandled(_)), "{refused}");
        let refused = site.bells.set_alarm(&id, "a", at, &"x".repeat(300_000)).await.unwrap_err();
        assert!(matches!(refused, RequestError::TooLarge(_)), "{refused}");
        for refused in [site.bells.stop("").await, site.bells.cancel_alarm(&id, "").await] {
            assert!(matches!(refused, Err(RequestError::InvalidId { .. })), "{refused:?}");
        }
        site.bells.cancel_alarm(&id, "a").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_and_has_no_answer_is_unknown_and_is_done_no_more_than_once() {
    let (town, told) = (Town::new(2), Told::default());
    let (zero, one) = two(&town, &told).await;
    let id = town.id("host-1");
    town.network.lose_answers("host-1", "host-0", 1);
    let error = zero.bells.set_alarm(&id, "a", now(&town) + HOUR, &()).await.unwrap_err();
    assert!(error.may_have_happened(), "{error}");
    assert_eq!(one.bells.alarms(&id).await.unwrap().len(), 1);
    town.network.cut("host-0", "host-1", true);
    let error = zero.bells.stop(&id).await.unwrap_err();
    assert!(matches!(error, RequestError::Unreachable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_host_without_transport_names_the_owner() {
    let (town, told) = (Town::new(2), Told::default());
    let _one = start(&town, "host-1", &town.fleet, &told, true).await;
    let mut host = town.member("host-0", &town.fleet);
    let bells = host.interface(move |_| Bell(told.clone())).register().unwrap();
    let _zero = host.start().await.unwrap();
    let error = bells.stop(&town.id("host-1")).await.unwrap_err();
    assert!(matches!(&error, RequestError::NotOwner { holder } if **holder == *"host-1"), "{error}");
}
