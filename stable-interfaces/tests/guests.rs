//! A process that is no host: it asks the owners, follows them wherever they go, and is nobody's business otherwise.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod town;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::clock::Clock as _;
use stable_interfaces::{
    Alarm, Closed, Connecting, ConnectionId, Context, ContextError, Fleet, FleetClient, Handle, Host, Interface,
    Message, NewPost, OnAlarm, OnConnect, OnMessage, Peer, RequestError, StableInterface, StartError, Store,
};

use self::town::{LEASE, Town};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Till(Option<Peer<u64>>);

#[derive(Serialize, Deserialize)]
struct Add(u64);

impl StableInterface for Till {
    const NAME: &'static str = "till";
    type Error = ContextError;
}

async fn add(cx: &mut Context, number: u64) -> Result<u64, ContextError> {
    let sum = cx.get::<u64>("sum").await?.unwrap_or(0) + number;
    cx.put("sum", &sum)?;
    Ok(sum)
}

impl Handle<Add> for Till {
    type Reply = u64;

    async fn handle(&mut self, cx: &mut Context, Add(number): Add) -> Result<u64, ContextError> {
        add(cx, number).await
    }
}

impl OnAlarm for Till {
    async fn on_alarm(&mut self, cx: &mut Context, _: &Alarm) -> Result<(), ContextError> {
        add(cx, 100).await.map(drop)
    }
}

impl OnMessage for Till {
    async fn on_message(&mut self, cx: &mut Context, _: &Message) -> Result<(), ContextError> {
        add(cx, 1_000).await.map(drop)
    }
}

impl OnConnect for Till {
    type Meta = ();
    type Incoming = u64;
    type Outgoing = u64;

    async fn on_connect(&mut self, _: &mut Context, client: &mut Connecting<u64>, (): ()) -> Result<(), ContextError> {
        self.0 = Some(client.accept());
        Ok(())
    }

    async fn on_receive(&mut self, cx: &mut Context, _: ConnectionId, number: u64) -> Result<(), ContextError> {
        let sum = add(cx, number).await?;
        match &self.0 {
            Some(client) => Ok(client.send(cx, sum).await?),
            None => Ok(()),
        }
    }
}

struct Site {
    host: Host,
    tills: Interface<Till>,
}

async fn start_as(town: &Town, name: &str, fleet: &Fleet) -> Site {
    let mut host = town.member(name, fleet).transport(town.network.transport());
    let interface = host.interface(|_| Till::default()).with_alarms().with_inbox().forward::<Add>("add");
    let tills = interface.forward_connections().register().unwrap();
    Site { host: host.start().await.unwrap(), tills }
}

fn client(town: &Town, fleet: &Fleet) -> FleetClient {
    FleetClient::new(Arc::new(town.store.clone()), fleet.clone()).clock(Arc::new(town.clock.clone()))
}

async fn guest(town: &Town, fleet: &Fleet) -> Interface<Till> {
    let guest = client(town, fleet).interface::<Till>(town.network.transport()).name("web-1");
    guest.forward::<Add>("add").forward_connections().open().await.unwrap()
}

fn live() -> Fleet {
    Fleet::live(64).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_no_host_asks_each_owner_directly_and_is_no_member() {
    for fleet in [Town::new(2).fleet, live()] {
        let town = Town::new(2);
        let (zero, one) = tokio::join!(start_as(&town, "host-0", &fleet), start_as(&town, "host-1", &fleet));
        town.pass(SECOND).await;
        let tills = guest(&town, &fleet).await;
        for round in 1..=3 {
            for number in 0..40 {
                assert_eq!(tills.request(&format!("id-{number}"), Add(1)).await.unwrap(), round);
            }
        }
        assert_eq!(town.network.requests(), 120, "each goes to its owner at once");
        assert_eq!(tills.running(), 0);
        assert!(zero.tills.running() > 10 && zero.tills.running() + one.tills.running() == 40);
        let members = client(&town, &fleet).members().await.unwrap();
        assert_eq!(members.iter().map(|member| &*member.name).collect::<Vec<_>>(), ["host-0", "host-1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn all_that_a_host_does_with_an_instance_elsewhere_a_process_does_that_is_none() {
    let town = Town::new(2);
    let (_zero, one) = (start_as(&town, "host-0", &town.fleet).await, start_as(&town, "host-1", &town.fleet).await);
    let (tills, id) = (guest(&town, &town.fleet).await, town.id("host-1"));
    let now = town.clock.now();
    tills.set_alarm(&id, "a", now + SECOND, &()).await.unwrap();
    assert_eq!(tills.alarms(&id).await.unwrap(), one.tills.alarms(&id).await.unwrap());
    tills.post(&id, NewPost::new("hello")).await.unwrap();
    town.pass(2 * SECOND).await;
    assert_eq!(tills.request(&id, Add(1)).await.unwrap(), 1_101);
    assert_eq!(&*tills.stored(&id, "sum").await.unwrap()[0].1, b"1101");
    assert_eq!(tills.holder(&id).as_deref(), Some("host-1"));
    let connection = tills.connect(&id, ()).await.unwrap();
    connection.send(9).await.unwrap();
    assert_eq!(connection.recv().await, Ok(1_110));
    tills.stop(&id).await.unwrap();
    assert_eq!(connection.recv().await, Err(Closed::Stopped));
    assert!(!one.tills.is_running(&id));
}

#[tokio::test(start_paused = true)]
async fn it_goes_where_the_shards_go_while_hosts_join_drain_and_die() {
    let (town, fleet) = (Town::new(1), live());
    let (a, b) = tokio::join!(start_as(&town, "a", &fleet), start_as(&town, "b", &fleet));
    let tills = guest(&town, &fleet).await;
    let mut sum = 0;
    let mut ask = async |rounds: u32| {
        for _ in 0..rounds {
            sum += 1;
            for id in 0..20 {
                assert_eq!(tills.request(&format!("id-{id}"), Add(1)).await.unwrap(), sum, "each is done once");
            }
            town.pass(SECOND / 5).await;
        }
    };
    ask(5).await;
    let c = start_as(&town, "c", &fleet).await;
    ask(100).await;
    assert!(!c.host.shards().is_empty(), "it has its part");
    let draining = tokio::spawn(async move { b.host.drain(10 * SECOND).await });
    ask(20).await;
    assert!(draining.await.unwrap().released);
    // What waits for one that has died is answered by the next owner when its lease is over.
    a.host.crash();
    let began = town.now();
    ask(1).await;
    assert!(town.now() - began <= 16_000, "{}", town.now() - began);
    assert_eq!(c.host.shards().len(), 64);
}

#[tokio::test(start_paused = true)]
async fn without_a_host_that_is_up_it_says_so_after_a_while_and_asks_the_first_that_comes() {
    let (town, fleet) = (Town::new(1), live());
    let tills = guest(&town, &fleet).await;
    let error = tills.request("x", Add(1)).await.unwrap_err();
    assert!(matches!(error, RequestError::Unreachable { .. }), "{error}");
    assert_eq!(error.to_string(), "a host that is up, which owns the instance, cannot be reached");
    let waiting = tokio::spawn({
        let tills = tills.clone();
        async move { tills.request("x", Add(1)).await }
    });
    town.pass(SECOND).await;
    let _a = start_as(&town, "a", &fleet).await;
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
    assert!(town.now() < 20_000);
}

#[tokio::test(start_paused = true)]
async fn it_asks_for_as_long_as_it_was_told_for_an_owner_that_cannot_be_reached() {
    for (limit, longest) in [(Duration::ZERO, SECOND), (3 * SECOND, 4 * SECOND)] {
        let (town, fleet) = (Town::new(1), live());
        let a = start_as(&town, "a", &fleet).await;
        let tills = client(&town, &fleet).interface::<Till>(town.network.transport()).name("web-1");
        let tills = tills.reach_timeout(limit).forward::<Add>("add").open().await.unwrap();
        assert_eq!(tills.request("x", Add(1)).await.unwrap(), 1);
        a.host.crash();
        let began = town.now();
        let error = tills.request("x", Add(1)).await.unwrap_err();
        assert!(matches!(&error, RequestError::Unreachable { host } if **host == *"a"), "{error}");
        let took = Duration::from_millis(town.now() - began);
        assert!(took >= limit && took < longest, "{took:?} for a limit of {limit:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_holds_a_shard_which_is_placed_elsewhere_is_found_by_its_word() {
    let town = Town::new(2);
    let alone = Fleet::new(["host-0"], 64).unwrap();
    let _zero = start_as(&town, "host-0", &alone).await;
    let _one = start_as(&town, "host-1", &town.fleet).await;
    let tills = guest(&town, &town.fleet).await;
    assert_eq!(tills.request(&town.id("host-1"), Add(1)).await.unwrap(), 1);
    assert_eq!(town.network.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_opened_is_refused_by_name_and_what_was_ends_with_its_last_clone() {
    let town = Town::new(1);
    let open = |name: &'static str, message: &'static str| {
        client(&town, &town.fleet).interface::<Till>(town.network.transport()).name(name).forward::<Add>(message).open()
    };
    let refused = open("host-0", "add").await.unwrap_err();
    assert!(matches!(refused, StartError::Option(what) if what.contains("must not have the name of one")));
    assert!(matches!(open("web", "Add!").await.unwrap_err(), StartError::Register(_)));
    let (other, fleet) = (Town::new(1), live());
    let a = start_as(&other, "a", &fleet).await;
    let open_live = || client(&other, &fleet).interface::<Till>(other.network.transport()).name("a").open();
    let refused = open_live().await.unwrap_err();
    assert!(matches!(refused, StartError::Option(what) if what.contains("must not have the name of one")));
    // Once that one has left, the name is free.
    a.host.drain(SECOND).await;
    open_live().await.unwrap();

    let store: Arc<dyn Store> = Arc::new(town.store.clone());
    let client = FleetClient::new(store.clone(), town.fleet.clone()).clock(Arc::new(town.clock.clone()));
    let tills = client.interface::<Till>(town.network.transport()).open().await.unwrap();
    let other = tills.clone();
    town.pass(LEASE).await;
    drop((client, tills));
    assert!(Arc::strong_count(&store) > 1);
    drop(other);
    town.pass(LEASE).await;
    assert_eq!(Arc::strong_count(&store), 1, "nothing of it is left");
}
