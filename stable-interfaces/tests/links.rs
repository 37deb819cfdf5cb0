//! Connections through any door: in order, bounded, behind the gate, and closed for both sides or for neither.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod town;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::clock::{Clock, Sleep};
use stable_interfaces::testing::{Fault, FaultStore, Method, SeededRandom, SimClock};
use stable_interfaces::{
    CONNECTION_BUFFER, Closed, Connecting, Connection, ConnectionId, Context, ContextError, Fleet, FleetClient, Host,
    HostBuilder, Interface, OnConnect, Peer, RequestError, StableInterface, Timestamp,
};
use tokio::sync::watch;

use self::town::{LEASE, Town};

const SECOND: Duration = Duration::from_secs(1);

/// Does what its clients say.
struct Hall {
    clients: BTreeMap<ConnectionId, Peer<Word>>,
    clock: SimClock,
    left: Left,
}

/// The clients that have left, with the number of what they had said before, and why.
type Left = Arc<Mutex<Vec<(u64, Closed)>>>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Say {
    /// Comes back.
    Echo(u64),
    /// Is stored, and comes back.
    Store(u64),
    /// Has so many numbers sent, as there is room.
    Flood(u64),
    /// Takes so long.
    Nap(Duration),
    /// Has a text of so many bytes sent.
    Big(usize),
    /// Has a number sent that has no JSON.
    NaN,
    Close(String),
    Panic,
    Text(String),
    Number(f64),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Word {
    Number(u64),
    Float(f64),
    Text(String),
}

impl StableInterface for Hall {
    const NAME: &'static str = "hall";
    type Error = ContextError;
}

impl OnConnect for Hall {
    type Meta = String;
    type Incoming = Say;
    type Outgoing = Word;

    async fn on_connect(
        &mut self,
        _: &mut Context,
        client: &mut Connecting<Word>,
        meta: String,
    ) -> Result<(), ContextError> {
        match &*meta {
            "refused" => client.reject("full"),
            "ignored" => {}
            "broken" => return Err(ContextError::NotHere("no clients".into())),
            _ => {
                let peer = client.accept();
                self.clients.insert(peer.id(), peer);
            }
        }
        Ok(())
    }

    async fn on_receive(&mut self, cx: &mut Context, from: ConnectionId, said: Say) -> Result<(), ContextError> {
        let said_before = cx.get::<u64>("said").await?.unwrap_or(0);
        let client = self.clients[&from].clone();
        match said {
            Say::Echo(number) => client.send(cx, Word::Number(number)).await?,
            Say::Store(number) => {
                cx.put("said", &(said_before + 1))?;
                client.send(cx, Word::Number(number)).await?;
            }
            Say::Flood(count) => {
                for number in 0..count {
                    client.send(cx, Word::Number(number)).await?;
                    cx.commit().await?;
                }
            }
            Say::Nap(time) => self.clock.sleep(time).await,
            Say::Big(bytes) => client.send(cx, Word::Text("x".repeat(bytes))).await?,
            Say::NaN => client.send(cx, Word::Float(f64::NAN)).await?,
            Say::Close(reason) => client.close(cx, reason),
            Say::Panic => std::panic::resume_unwind(Box::new("it broke")),
            Say::Text(_) | Say::Number(_) => {}
        }
        Ok(())
    }

    async fn on_disconnect(&mut self, cx: &mut Context, from: ConnectionId, why: Closed) -> Result<(), ContextError> {
        let said = cx.get::<u64>("said").await?.unwrap_or(0);
        self.clients.remove(&from);
        self.left.lock().unwrap().push((said, why));
        Ok(())
    }
}

struct Site {
    host: Host,
    halls: Interface<Hall>,
}

impl Site {
    async fn connect(&self, id: &str) -> Connection<Hall> {
        self.halls.connect(id, "ann".to_owned()).await.unwrap()
    }
}

async fn start(town: &Town, left: &Left, host: HostBuilder) -> Site {
    let mut host = host.transport(town.network.transport());
    let (clock, left) = (town.clock.clone(), left.clone());
    let build = move |_: &str| Hall { clients: BTreeMap::new(), clock: clock.clone(), left: left.clone() };
    let halls = host.interface(build).forward_connections().register().unwrap();
    Site { host: host.start().await.unwrap(), halls }
}

async fn two(town: &Town, left: &Left) -> (Site, Site) {
    let zero = start(town, left, town.member("host-0", &town.fleet)).await;
    (zero, start(town, left, town.member("host-1", &town.fleet)).await)
}

fn left(left: &Left) -> Vec<(u64, Closed)> {
    left.lock().unwrap().clone()
}

fn unreachable(host: &str) -> Closed {
    Closed::Unreachable { host: host.into() }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_messages_arrive_in_order_both_ways_through_another_host() {
    let (town, gone) = (Town::new(2), Left::default());
    let (zero, one) = two(&town, &gone).await;
    let id = town.id("host-1");
    town.network.delay("host-0", "host-1", Duration::from_millis(2));
    town.network.delay("host-1", "host-0", Duration::from_millis(1));
    let client = Arc::new(zero.connect(&id).await);
    assert!(one.halls.is_running(&id) && !zero.halls.is_running(&id));
    assert_eq!((zero.host.connections(), one.host.connections()), (1, 1));
    let sender = client.clone();
    let sending = tokio::spawn(async move {
        for number in 0..10_000 {
            sender.send(Say::Echo(number)).await.unwrap();
        }
    });
    for number in 0..10_000 {
        assert_eq!(client.recv().await, Ok(Word::Number(number)));
    }
    sending.await.unwrap();
    let requests = town.network.requests();
    assert!(requests < 2_000, "they go together: {requests} requests");
    assert_eq!(left(&gone), []);
    drop(client);
    town.pass(SECOND).await;
    assert_eq!(left(&gone), [(0, Closed::ByClient)]);
    assert_eq!((zero.host.connections(), one.host.connections()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn either_side_that_is_slow_holds_the_other_back_through_another_host_and_nothing_is_lost() {
    let (town, gone) = (Town::new(2), Left::default());
    let (zero, _one) = two(&town, &gone).await;
    let id = town.id("host-1");
    let client = zero.connect(&id).await;
    // A client that takes nothing: the handler waits, and so does what it was told after that.
    client.send(Say::Flood(1_000)).await.unwrap();
    client.send(Say::Store(1_000)).await.unwrap();
    town.pass(20 * SECOND).await;
    assert_eq!(zero.halls.stored(&id, "said").await.unwrap(), [], "it has not come to that");
    for number in 0..=1_000 {
        assert_eq!(client.recv().await, Ok(Word::Number(number)));
    }
    // An instance that takes nothing: the client waits once the buffers of both hosts are full.
    client.send(Say::Nap(10 * SECOND)).await.unwrap();
    let mut sent = 0;
    while let Some(taken) = town.within(SECOND / 10, client.send(Say::Echo(sent))).await {
        taken.unwrap();
        sent += 1;
    }
    let most = 2 * CONNECTION_BUFFER as u64;
    assert!((most / 2..=most).contains(&sent), "{sent}");
    for number in 0..sent {
        assert_eq!(client.recv().await, Ok(Word::Number(number)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_at_another_host_sees_nothing_before_it_is_durable_and_learns_that_it_was_not() {
    let (town, gone) = (Town::new(2), Left::default());
    let store = FaultStore::seeded(Arc::new(town.store.clone()), Arc::new(town.clock.clone()), 1);
    let zero = start(&town, &gone, town.member("host-0", &town.fleet)).await;
    let one = start(&town, &gone, town.member("host-1", &town.fleet).store(store.clone())).await;
    let client = zero.connect(&town.id("host-1")).await;
    store.fail_next(Method::Commit, Fault::Hang);
    client.send(Say::Store(1)).await.unwrap();
    assert_eq!(town.within(SECOND, client.recv()).await, None, "it is not durable");
    assert_eq!(client.recv().await, Ok(Word::Number(1)), "when the commit was repeated");
    store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
    client.send(Say::Store(2)).await.unwrap();
    assert_eq!(client.recv().await, Err(Closed::Reset));
    drop(one);
}

#[tokio::test(start_paused = true)]
async fn each_end_of_a_connection_is_told_at_another_host_as_at_the_owner() {
    let (town, gone) = (Town::new(2), Left::default());
    let (zero, one) = two(&town, &gone).await;
    let id = town.id("host-1");
    let both = async || (zero.connect(&id).await, one.connect(&id).await);

    let (far, near) = both().await;
    for client in [&far, &near] {
        client.send(Say::Echo(1)).await.unwrap();
        client.send(Say::Close("done".into())).await.unwrap();
        assert_eq!(client.closed().await, Closed::ByInstance("done".into()));
        assert_eq!(client.recv().await, Ok(Word::Number(1)), "after everything that was sent before");
        assert_eq!(client.recv().await, Err(Closed::ByInstance("done".into())));
        assert_eq!(client.send(Say::Echo(2)).await, Err(Closed::ByInstance("done".into())));
    }

    let (far, near) = both().await;
    far.send(Say::Panic).await.unwrap();
    assert_eq!((far.recv().await, near.recv().await), (Err(Closed::Reset), Err(Closed::Reset)));

    let (far, near) = both().await;
    zero.halls.stop(&id).await.unwrap();
    assert_eq!((far.recv().await, near.recv().await), (Err(Closed::Stopped), Err(Closed::Stopped)));

    let (far, near) = both().await;
    let began = town.now();
    let drained = one.host.drain(5 * SECOND).await;
    assert_eq!((drained.unfinished, drained.released), (0, true));
    assert_eq!((far.recv().await, near.recv().await), (Err(Closed::Draining), Err(Closed::Draining)));
    assert!(town.now() - began < 1_000, "nothing waits for the client's host");
    assert_eq!(left(&gone), [], "no incarnation outlived its connections");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_told_of_after_all_that_it_sent_was_handled() {
    let (town, gone) = (Town::new(2), Left::default());
    let (zero, _one) = two(&town, &gone).await;
    town.network.delay("host-0", "host-1", Duration::from_millis(50));
    let client = zero.connect(&town.id("host-1")).await;
    for number in 0..20 {
        client.send(Say::Store(number)).await.unwrap();
    }
    client.close();
    town.pass(SECOND).await;
    assert_eq!(left(&gone), [(20, Closed::ByClient)]);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_refused_through_another_host_as_by_the_owner() {
    let (town, gone) = (Town::new(2), Left::default());
    let zero = start(&town, &gone, town.member("host-0", &town.fleet).max_connections(2)).await;
    let one = start(&town, &gone, town.member("host-1", &town.fleet).max_connections(1)).await;
    let id = town.id("host-1");
    for site in [&zero, &one] {
        let refused = async |meta: &str| site.halls.connect(&id, meta.to_owned()).await.unwrap_err();
        assert!(matches!(refused("refused").await, RequestError::Rejected(why) if why == "full"));
        assert!(matches!(refused("ignored").await, RequestError::Unhandled(_)));
        assert!(matches!(refused("broken").await, RequestError::Handler(ContextError::NotHere(_), _)));
    }
    let client = zero.connect(&id).await;
    let full = zero.halls.connect(&id, String::new()).await.unwrap_err();
    assert!(matches!(&full, RequestError::Overloaded(what) if what == "connections"), "the owner's own: {full}");
    client.close();
    town.pass(SECOND).await;
    let (_a, _b) = (zero.connect(&id).await, zero.connect(&town.id("host-0")).await);
    let full = zero.halls.connect(&id, String::new()).await.unwrap_err();
    assert!(matches!(&full, RequestError::Overloaded(what) if what == "connections"), "{full}");

    // Without `forward_connections` there, or at all.
    let mut two = town.member("host-1", &town.fleet).build("v7").transport(town.network.transport());
    let clock = town.clock.clone();
    let build = move |_: &str| Hall { clients: BTreeMap::new(), clock: clock.clone(), left: Left::default() };
    drop((one, _a));
    town.pass(SECOND).await;
    let halls = two.interface(build).register().unwrap();
    let _two = two.start().await.unwrap();
    let unknown = zero.halls.connect(&id, String::new()).await.unwrap_err();
    assert!(matches!(&unknown, RequestError::Unhandled(what) if what.contains("build v7")), "{unknown}");
    let elsewhere = halls.connect(&town.id("host-0"), String::new()).await.unwrap_err();
    assert!(matches!(&elsewhere, RequestError::NotOwner { holder } if **holder == *"host-0"), "{elsewhere}");
    assert_eq!(left(&gone).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_closes_a_connection_on_both_sides_within_seconds_of_being_noticed() {
    let (town, gone) = (Town::new(2), Left::default());
    let (zero, one) = two(&town, &gone).await;
    let id = town.id("host-1");
    // The answer with the instance's word is lost, and then that with room for the client's.
    for said in [Say::Echo(1), Say::Nap(Duration::ZERO)] {
        let client = zero.connect(&id).await;
        town.settle().await;
        town.network.lose_answers("host-1", "host-0", 1);
        client.send(said).await.unwrap();
        let began = town.now();
        assert_eq!(client.closed().await, unreachable("host-1"));
        assert!(town.now() - began < 4_000);
        assert_eq!(client.send(Say::Echo(2)).await, Err(unreachable("host-1")));
        town.pass(SECOND).await;
        assert_eq!(
            gone.lock().unwrap().pop().unwrap().1,
            unreachable("host-0"),
            "the instance is told that its client is gone"
        );
    }
    // A link that is cut while nothing is said.
    let client = zero.connect(&id).await;
    town.network.cut("host-0", "host-1", true);
    town.network.cut("host-1", "host-0", true);
    let began = town.now();
    assert_eq!(client.closed().await, unreachable("host-1"));
    assert!(town.now() - began < 20_000, "{}", town.now() - began);
    town.pass(60 * SECOND).await;
    assert_eq!(left(&gone), [(0, unreachable("host-0"))], "the owner finds out by itself");
    assert_eq!((zero.host.connections(), one.host.connections()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_either_host_closes_a_connection_at_the_other_at_once() {
    let (town, gone) = (Town::new(2), Left::default());
    let (zero, one) = two(&town, &gone).await;
    let client = zero.connect(&town.id("host-1")).await;
    town.settle().await;
    one.host.crash();
    // In one process it may still have said so.
    let closed = client.recv().await.unwrap_err();
    assert!(closed == unreachable("host-1") || closed == Closed::Draining, "{closed}");
    let one = start(&town, &gone, town.member("host-1", &town.fleet)).await;
    let client = zero.connect(&town.id("host-1")).await;
    let back = one.connect(&town.id("host-0")).await;
    town.settle().await;
    zero.host.crash();
    assert_eq!(client.recv().await, Err(Closed::Draining), "its own host has ended");
    let closed = back.recv().await.unwrap_err();
    assert!(closed == unreachable("host-0") || closed == Closed::Draining, "{closed}");
    town.settle().await;
    assert_eq!(left(&gone), [(0, unreachable("host-0"))]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_opening_was_never_heard_of_is_closed_by_the_owner() {
    let (town, gone) = (Town::new(2), Left::default());
    let (zero, one) = two(&town, &gone).await;
    town.network.lose_answers("host-1", "host-0", 1);
    let unknown = zero.halls.connect(&town.id("host-1"), String::new()).await.unwrap_err();
    assert!(unknown.may_have_happened(), "{unknown}");
    assert_eq!(one.host.connections(), 1);
    town.pass(30 * SECOND).await;
    assert_eq!((one.host.connections(), left(&gone)), (0, vec![(0, unreachable("host-0"))]));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_cross_closes_its_connection_with_that_reason_and_no_other() {
    let (town, gone) = (Town::new(2), Left::default());
    let (zero, _one) = two(&town, &gone).await;
    let id = town.id("host-1");
    let other = zero.connect(&id).await;
    let is_it = |closed: &Closed, words: &str| matches!(closed, Closed::Uncrossable(what) if what.contains(words));
    // Too large, on either way, and not to be read at the other end.
    let client = zero.connect(&id).await;
    client.send(Say::Store(1)).await.unwrap();
    let refused = client.send(Say::Text("x".repeat(2 << 20))).await.unwrap_err();
    assert!(is_it(&refused, "more than"), "{refused}");
    for (said, words) in
        [(Say::Number(f64::NAN), "cannot be read"), (Say::Big(2 << 20), "more than"), (Say::NaN, "cannot be read")]
    {
        let client = zero.connect(&id).await;
        client.send(Say::Echo(7)).await.unwrap();
        assert_eq!(client.recv().await, Ok(Word::Number(7)), "what was sent before is there");
        client.send(said).await.unwrap();
        let closed = client.recv().await.unwrap_err();
        assert!(is_it(&closed, words), "{closed}");
    }
    town.pass(SECOND).await;
    assert_eq!(left(&gone).len(), 4, "each was told of: {:?}", left(&gone));
    assert_eq!(left(&gone)[0], (1, Closed::ByClient), "after what was sent before it");
    // As large as can be, several of them.
    for _ in 0..3 {
        other.send(Say::Big(1_000_000)).await.unwrap();
        other.send(Say::Text("y".repeat(1_000_000))).await.unwrap();
    }
    for _ in 0..3 {
        assert_eq!(other.recv().await, Ok(Word::Text("x".repeat(1_000_000))));
    }
}

#[tokio::test(start_paused = true)]
async fn clients_of_an_instance_whose_shard_is_handed_over_are_told_where_it_goes_whatever_host_they_are_at() {
    let (town, gone) = (Town::new(1), Left::default());
    let live = Fleet::live(64).unwrap();
    let member = |name| start(&town, &gone, town.member(name, &live));
    let (a, b, c) = tokio::join!(member("a"), member("b"), member("c"));
    // All have settled.
    town.pass(2 * LEASE).await;
    let id = (0..).map(|n| format!("id-{n}")).find(|id| b.host.owns(id).unwrap()).unwrap();
    let (near, far) = (b.connect(&id).await, c.connect(&id).await);
    let fleet = FleetClient::new(Arc::new(town.store.clone()), live.clone()).clock(Arc::new(town.clock.clone()));
    assert!(fleet.cordon("b", true).await.unwrap());
    let (told, at_near) = (far.recv().await.unwrap_err(), near.recv().await.unwrap_err());
    let Closed::Moved { to } = &told else { panic!("{told}") };
    assert_eq!(told, at_near);
    town.pass(SECOND).await;
    let next = [&a, &c].into_iter().find(|site| site.host.owns(&id).unwrap()).unwrap();
    assert_eq!(next.host.name(), &**to);
    for site in [&a, &b, &c] {
        let again = site.connect(&id).await;
        again.send(Say::Echo(3)).await.unwrap();
        assert_eq!(again.recv().await, Ok(Word::Number(3)));
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_on_the_way_each_client_has_a_part_without_gaps_and_is_told_that_it_ends_there() {
    let (town, gone) = (Town::new(3), Left::default());
    let mut sites = Vec::new();
    for name in ["host-0", "host-1", "host-2"] {
        sites.push(start(&town, &gone, town.member(name, &town.fleet)).await);
    }
    let (random, names) = (SeededRandom::new(11), ["host-0", "host-1", "host-2"]);
    let mut clients = Vec::new();
    for number in 0..60_usize {
        let connected = sites[number % 3].halls.connect(&format!("id-{}", number % 17), String::new()).await;
        let Ok(client) = connected else { continue };
        let client = Arc::new(client);
        let sender = client.clone();
        let sending = tokio::spawn(async move {
            let mut sent = 0;
            while sent < 2_000 && sender.send(Say::Echo(sent)).await.is_ok() {
                sent += 1;
            }
            sent
        });
        let receiving = tokio::spawn(async move {
            let mut received = 0;
            while received < 2_000 {
                match client.recv().await {
                    Ok(word) => assert_eq!(word, Word::Number(received), "without gaps, and each once"),
                    Err(closed) => return (received, Some(closed)),
                }
                received += 1;
            }
            (received, None)
        });
        clients.push((sending, receiving));
        let (from, to) = (*random.pick(&names).unwrap(), *random.pick(&names).unwrap());
        match random.below(3) {
            0 => town.network.lose_requests(from, to, 1),
            1 => town.network.lose_answers(from, to, 1),
            _ => town.network.delay(from, to, random.up_to(SECOND / 20)),
        }
        town.pass(random.up_to(SECOND / 4)).await;
    }
    let (mut whole, mut cut) = (0, 0);
    for (sending, receiving) in clients {
        let (received, closed) = receiving.await.unwrap();
        match closed {
            None => whole += 1,
            Some(Closed::Unreachable { .. } | Closed::Lost) => cut += 1,
            Some(other) => panic!("{other}"),
        }
        assert!(sending.await.unwrap() >= received);
    }
    assert!(whole > 20 && cut > 5, "{whole} whole, {cut} cut off");
    town.pass(120 * SECOND).await;
    assert_eq!(
        sites.iter().map(|site| site.host.connections()).sum::<usize>(),
        0,
        "none is left behind on either side"
    );
}

/// A clock whose sleeps do not end while its process is stopped.
#[derive(Debug, Clone)]
struct Stopped {
    clock: SimClock,
    is_on: watch::Receiver<bool>,
}

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let (sleep, mut is_on) = (self.clock.sleep(duration), self.is_on.clone());
        Box::pin(async move {
            sleep.await;
            is_on.wait_for(|is_on| !is_on).await.unwrap();
        })
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        self.sleep(until.since(self.now()))
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_hears_of_a_client_that_left_though_the_lease_was_out_for_a_moment_when_it_was_to_hear_it() {
    let (town, gone) = (Town::new(1), Left::default());
    let (stop, is_on) = watch::channel(false);
    let store = FaultStore::seeded(Arc::new(town.store.clone()), Arc::new(town.clock.clone()), 1);
    let host = town.member("host-0", &town.fleet).store(store.clone());
    let zero = start(&town, &gone, host.clock(Arc::new(Stopped { clock: town.clock.clone(), is_on }))).await;
    let client = zero.connect("a").await;
    town.pass(9 * SECOND).await;
    // The lease lasts until 18.5 s by the renewal at 5 s, and until 23.5 s by the one at 10 s, of which the host hears at 19 s.
    store.fail_next(Method::Renew, Fault::HangAfter);
    town.pass(2 * SECOND).await;
    assert_eq!(store.injected(Method::Renew, Fault::HangAfter), 1);
    stop.send(true).unwrap();
    client.send(Say::Nap(SECOND * 78 / 10)).await.unwrap();
    drop(client);
    town.pass(SECOND * 79 / 10).await;
    let refused = zero.halls.connect("b", "bob".to_owned()).await.unwrap_err();
    assert!(matches!(refused, RequestError::LeaseLost), "{refused}");
    town.pass(SECOND / 10).await;
    store.release_hanging();
    town.pass(SECOND / 10).await;
    stop.send(false).unwrap();
    town.pass(SECOND).await;
    assert!(zero.halls.is_running("a"), "it is the same instance");
    assert_eq!(left(&gone), [(0, Closed::ByClient)]);
}
