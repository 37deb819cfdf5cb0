//! Handlers that a host cuts off, for their shard moves on without them: none begins there any more, and none answers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod town;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::clock::Clock;
use stable_interfaces::testing::{Fault, FaultStore, Method, SimClock};
use stable_interfaces::{
    Alarm, Context, ContextError, Fleet, FleetClient, Handle, Host, Interface, OnAlarm, RequestError, StableInterface,
};

use self::town::{LEASE, Town};

const SECOND: Duration = Duration::from_secs(1);
const SHARDS: u32 = 16;

/// The hosts on which an alarm's handler began.
type Began = Arc<Mutex<Vec<String>>>;

struct Meter {
    clock: SimClock,
    began: Began,
}

impl StableInterface for Meter {
    const NAME: &'static str = "meter";
    type Error = ContextError;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), ContextError> {
        cx.get::<u64>("n").await.map(drop)
    }
}

impl OnAlarm for Meter {
    async fn on_alarm(&mut self, cx: &mut Context, _: &Alarm) -> Result<(), ContextError> {
        self.began.lock().unwrap().push(cx.host().to_owned());
        Ok(())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Put(u64);

impl Handle<Put> for Meter {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, Put(n): Put) -> Result<(), ContextError> {
        cx.put("n", &n)
    }
}

/// Reads the same twice, after so long.
#[derive(Debug, Serialize, Deserialize)]
struct ReadTwice(Duration);

impl Handle<ReadTwice> for Meter {
    type Reply = [Option<u64>; 2];

    async fn handle(&mut self, cx: &mut Context, ReadTwice(after): ReadTwice) -> Result<Self::Reply, ContextError> {
        let first = cx.get("n").await?;
        self.clock.sleep(after).await;
        Ok([first, cx.get("n").await?])
    }
}

struct Site {
    host: Host,
    meters: Interface<Meter>,
}

async fn start(town: &Town, name: &str, store: &FaultStore, began: &Began) -> Site {
    let host = town.member(name, &Fleet::live(SHARDS).unwrap()).store(store.clone()).settle(SECOND);
    let mut host = host.transport(town.network.transport());
    let (clock, began) = (town.clock.clone(), began.clone());
    let build = move |_: &str| Meter { clock: clock.clone(), began: began.clone() };
    let meters = host.interface(build).with_alarms().forward::<Put>("put").forward::<ReadTwice>("read-twice");
    let meters = meters.register().unwrap();
    Site { host: host.start().await.unwrap(), meters }
}

/// Two hosts with ways of their own to the store, the handlers that began, and an ID of the first.
async fn two(town: &Town) -> ([(Site, FaultStore); 2], Began, String) {
    let store = || FaultStore::seeded(Arc::new(town.store.clone()), Arc::new(town.clock.clone()), 1);
    let (began, stores) = (Began::default(), [store(), store()]);
    let (a, b) = tokio::join!(start(town, "a", &stores[0], &began), start(town, "b", &stores[1], &began));
    town.pass(2 * LEASE).await;
    let id = (0..).map(|n| format!("id-{n}")).find(|id| a.host.owns(id).unwrap()).unwrap();
    a.meters.request(&id, Put(1)).await.unwrap();
    let [of_a, of_b] = stores;
    ([(a, of_a), (b, of_b)], began, id)
}

async fn empty(town: &Town, host: &str) {
    let client = FleetClient::new(Arc::new(town.store.clone()), Fleet::live(SHARDS).unwrap());
    assert!(client.cordon(host, true).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_was_cut_off_and_reads_what_the_next_owner_has_written_answers_nothing() {
    let town = Town::new(1);
    let ([(a, _), (b, _)], _, id) = two(&town).await;
    assert_eq!(a.meters.request(&id, ReadTwice(SECOND)).await.unwrap(), [Some(1), Some(1)]);
    let (meters, asked) = (a.meters.clone(), id.clone());
    let asking = tokio::spawn(async move { meters.request(&asked, ReadTwice(3 * SECOND)).await });
    town.settle().await;
    empty(&town, "a").await;
    town.pass(2 * SECOND).await;
    assert!(b.host.owns(&id).unwrap() && !asking.is_finished());
    b.meters.request(&id, Put(2)).await.unwrap();
    let error = asking.await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Fenced), "{error}");
    assert_eq!(a.meters.request(&id, ReadTwice(SECOND)).await.unwrap(), [Some(2), Some(2)]);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_whose_shard_moves_on_while_its_instance_starts_begins_at_the_next_owner_alone() {
    let town = Town::new(1);
    let ([(a, store), (b, _)], began, id) = two(&town).await;
    a.meters.set_alarm(&id, "x", town.clock.now() + SECOND, &()).await.unwrap();
    a.meters.stop(&id).await.unwrap();
    store.fail_next(Method::Read, Fault::HangAfter);
    town.pass(SECOND + SECOND / 10).await;
    assert!(a.meters.is_running(&id) && began.lock().unwrap().is_empty(), "it waits for its store");
    empty(&town, "a").await;
    town.pass(2 * SECOND).await;
    assert!(b.host.owns(&id).unwrap());
    store.release_hanging();
    town.pass(SECOND).await;
    assert_eq!(*began.lock().unwrap(), ["b"]);
}
