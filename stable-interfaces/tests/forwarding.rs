//! Requests through any door: what another host owns is answered by it, and what became of a request is always known or `Unknown`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod town;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::clock::Clock;
use stable_interfaces::testing::{MemoryNetwork, SeededRandom, SimClock};
use stable_interfaces::transport::{MAX_MESSAGE_BYTES, RemoteError};
use stable_interfaces::{
    Context, ContextError, Fleet, Handle, Host, HostBuilder, Interface, MemoryStore, RegisterError, RequestError,
    StableInterface,
};

use self::town::Town;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error, Serialize, Deserialize, PartialEq)]
enum DeskError {
    #[error("closed until {until}")]
    Closed { until: u32 },
    #[error("asked {asked}: {said}")]
    Nested { asked: String, said: String },
    #[error(transparent)]
    Context(#[from] ContextErrorText),
}

/// A context's error as its text, which can be compared.
#[derive(Debug, thiserror::Error, Serialize, Deserialize, PartialEq)]
#[error("{0}")]
struct ContextErrorText(String);

impl From<ContextError> for DeskError {
    fn from(error: ContextError) -> DeskError {
        ContextErrorText(error.to_string()).into()
    }
}

/// The handle of the host that an instance lives on.
type Desks = Arc<OnceLock<Interface<Desk>>>;

struct Desk {
    desks: Desks,
    clock: SimClock,
}

impl StableInterface for Desk {
    const NAME: &'static str = "desk";
    type Error = DeskError;
}

/// Adds to a stored number, after a while.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Add {
    number: u64,
    #[serde(default)]
    after: Duration,
}

impl Handle<Add> for Desk {
    type Reply = u64;

    async fn handle(&mut self, cx: &mut Context, Add { number, after }: Add) -> Result<u64, DeskError> {
        if !after.is_zero() {
            self.clock.sleep(after).await;
        }
        let sum = cx.get::<u64>("sum").await?.unwrap_or(0) + number;
        cx.put("sum", &sum)?;
        Ok(sum)
    }
}

fn add(number: u64) -> Add {
    Add { number, after: Duration::ZERO }
}

/// Asks the next instance of a list to do the same with the rest of it.
#[derive(Debug, Serialize, Deserialize)]
struct Round(Vec<String>);

impl Handle<Round> for Desk {
    type Reply = Vec<String>;

    async fn handle(&mut self, cx: &mut Context, Round(mut rest): Round) -> Result<Vec<String>, DeskError> {
        let own = cx.id().to_owned();
        if rest.is_empty() {
            return Ok(vec![own]);
        }
        let asked = rest.remove(0);
        let answer = self.desks.get().unwrap().request(&asked, Round(rest)).await;
        let mut visited = answer.map_err(|error| DeskError::Nested { asked, said: error.report() })?;
        visited.insert(0, own);
        Ok(visited)
    }
}

/// Asks another instance for something that takes a while.
#[derive(Debug, Serialize, Deserialize)]
struct AskFor {
    id: String,
    after: Duration,
}

impl Handle<AskFor> for Desk {
    type Reply = String;

    async fn handle(&mut self, _: &mut Context, AskFor { id, after }: AskFor) -> Result<String, DeskError> {
        let answer = self.desks.get().unwrap().request(&id, Add { number: 1, after }).await;
        Ok(answer.map_or_else(RequestError::report, |sum| sum.to_string()))
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Break {
    Fail,
    Panic,
    FailHalfWay,
    BigReply,
    Hang,
}

impl Handle<Break> for Desk {
    type Reply = String;

    async fn handle(&mut self, cx: &mut Context, how: Break) -> Result<String, DeskError> {
        match how {
            Break::Fail => Err(DeskError::Closed { until: 9 }),
            Break::Panic => std::panic::resume_unwind(Box::new("it broke")),
            Break::FailHalfWay => {
                cx.put("half", &true)?;
                cx.commit().await?;
                Err(DeskError::Closed { until: 10 })
            }
            Break::BigReply => {
                cx.put("sum", &1_000)?;
                Ok("x".repeat(MAX_MESSAGE_BYTES))
            }
            Break::Hang => std::future::pending().await,
        }
    }
}

/// Cannot be written, and need not.
struct Local(Box<dyn FnOnce() -> u64 + Send>);

impl Handle<Local> for Desk {
    type Reply = u64;

    async fn handle(&mut self, _: &mut Context, Local(act): Local) -> Result<u64, DeskError> {
        Ok(act())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Text(String);

impl Handle<Text> for Desk {
    type Reply = usize;

    async fn handle(&mut self, _: &mut Context, Text(text): Text) -> Result<usize, DeskError> {
        Ok(text.len())
    }
}

struct Site {
    host: Host,
    desks: Interface<Desk>,
}

impl Town {
    async fn start_as(&self, name: &str, fleet: &Fleet) -> Site {
        let mut host = self.member(name, fleet).transport(self.network.transport());
        let (handle, clock) = (Desks::default(), self.clock.clone());
        let desks = handle.clone();
        let build = move |_: &str| Desk { desks: desks.clone(), clock: clock.clone() };
        let interface = host.interface(build).handler_timeout(TIMEOUT).max_waiting(2);
        let interface = interface.forward::<Add>("add").forward::<Round>("round").forward::<AskFor>("ask-for");
        let desks = interface.forward::<Break>("break").forward::<Text>("text").register().unwrap();
        handle.set(desks.clone()).unwrap();
        Site { host: host.start().await.unwrap(), desks }
    }

    async fn start(&self, name: &str) -> Site {
        self.start_as(name, &self.fleet).await
    }
}

impl Site {
    fn ask(&self, id: &str, add: Add) -> tokio::task::JoinHandle<Result<u64, RequestError<DeskError>>> {
        let (desks, id) = (self.desks.clone(), id.to_owned());
        tokio::spawn(async move { desks.request(&id, add).await })
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_through_any_door_is_answered_by_the_owner_and_only_one_that_is_elsewhere_is_sent() {
    let town = Town::new(3);
    let sites = [town.start("host-0").await, town.start("host-1").await, town.start("host-2").await];
    for (round, door) in sites.iter().enumerate() {
        for number in 0..60 {
            let sum = door.desks.request(&format!("id-{number}"), add(2)).await.unwrap();
            assert_eq!(sum, 2 * (round as u64 + 1));
        }
    }
    let running: usize = sites.iter().map(|site| site.desks.running()).sum();
    assert_eq!(running, 60, "each lives in one place");
    assert!(sites.iter().all(|site| site.desks.running() > 5));
    assert_eq!(town.network.requests(), 120, "of three doors two are the wrong one");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_not_registered_or_a_host_without_transport_names_the_owner() {
    let town = Town::new(2);
    let (zero, one) = (town.start("host-0").await, town.start("host-1").await);
    let id = town.id("host-1");
    let error = zero.desks.request(&id, Local(Box::new(|| 1))).await.unwrap_err();
    assert!(matches!(&error, RequestError::NotOwner { holder } if **holder == *"host-1"), "{error}");
    assert_eq!(one.desks.request(&id, Local(Box::new(|| 1))).await.unwrap(), 1);
    assert_eq!(town.network.requests(), 0);

    drop(zero);
    let mut host = town.member("host-0", &town.fleet);
    let clock = town.clock.clone();
    let build = move |_: &str| Desk { desks: Desks::default(), clock: clock.clone() };
    let desks = host.interface(build).forward::<Add>("add").register().unwrap();
    let _zero = host.start().await.unwrap();
    let error = desks.request(&id, add(1)).await.unwrap_err();
    assert!(matches!(error, RequestError::NotOwner { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn each_error_comes_through_the_wrong_door_as_the_one_that_the_owner_gives() {
    let town = Town::new(2);
    let (zero, one) = (town.start("host-0").await, town.start("host-1").await);
    let mut ids = town.ids("host-1");
    let mut asked = async |how: fn() -> Break| {
        let id = ids.next().unwrap();
        let there = one.desks.request(&id, how()).await.unwrap_err();
        let id = ids.next().unwrap();
        let through = zero.desks.request(&id, how()).await.unwrap_err();
        assert_eq!(std::mem::discriminant(&through), std::mem::discriminant(&there), "{through} and {there}");
        assert_eq!(through.is_retryable(), there.is_retryable());
        assert_eq!(through.may_have_happened(), there.may_have_happened());
        through
    };
    assert!(matches!(asked(|| Break::Fail).await, RequestError::Handler(DeskError::Closed { until: 9 }, _)));
    let half_way = asked(|| Break::FailHalfWay).await;
    assert!(matches!(half_way, RequestError::Handler(DeskError::Closed { until: 10 }, _)), "{half_way}");
    assert!(half_way.may_have_happened());
    assert!(matches!(asked(|| Break::Panic).await, RequestError::Panicked(text) if text == "it broke"));
    let late = asked(|| Break::Hang).await;
    assert!(matches!(&late, RequestError::TimedOut { after, .. } if *after == TIMEOUT), "{late}");
    let invalid = zero.desks.request("", add(1)).await.unwrap_err();
    assert!(matches!(invalid, RequestError::InvalidId { .. }), "{invalid}");
    // The owner's own caps.
    let id = ids.next().unwrap();
    let slow = Add { number: 1, after: 5 * SECOND };
    let asked: Vec<_> = (0..3).map(|_| one.ask(&id, slow)).collect();
    town.settle().await;
    let full = zero.desks.request(&id, add(1)).await.unwrap_err();
    assert!(matches!(&full, RequestError::Overloaded(what) if what.contains("waiting")), "{full}");
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
}

struct Loose;

impl StableInterface for Loose {
    const NAME: &'static str = "loose";
    type Error = Words;
}

/// An error that has a cause and cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Words(String, #[source] Option<Box<dyn std::error::Error + Send + Sync>>);

impl From<ContextError> for Words {
    fn from(error: ContextError) -> Words {
        Words("the context refused".into(), Some(error.into()))
    }
}

impl From<RemoteError> for Words {
    fn from(error: RemoteError) -> Words {
        Words("on another host".into(), Some(error.into()))
    }
}

impl Handle<Text> for Loose {
    type Reply = ();

    async fn handle(&mut self, _: &mut Context, Text(text): Text) -> Result<(), Words> {
        let cause = Words("the partner could not be told".into(), Some("the line is dead".into()));
        Err(Words(text, Some(cause.into())))
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_cannot_be_written_crosses_as_its_words_and_those_of_its_causes() {
    let town = Town::new(2);
    let mut sites = Vec::new();
    for name in ["host-0", "host-1"] {
        let mut host = town.member(name, &town.fleet).transport(town.network.transport());
        let loose = host.interface(|_| Loose).forward_with_text_errors::<Text>("text").register().unwrap();
        sites.push((host.start().await.unwrap(), loose));
    }
    let error = sites[0].1.request(&town.id("host-1"), Text("no order".into())).await.unwrap_err();
    let RequestError::Handler(Words(_, Some(cause)), _) = &error else { panic!("{error}") };
    assert!(cause.is::<RemoteError>());
    assert_eq!(error.report(), "on another host: no order: the partner could not be told: the line is dead");
}

#[tokio::test(start_paused = true)]
async fn a_call_cycle_over_three_hosts_is_named_as_on_one() {
    let town = Town::new(3);
    let sites = [town.start("host-0").await, town.start("host-1").await, town.start("host-2").await];
    let [a, b, c] = ["host-0", "host-1", "host-2"].map(|host| town.id(host));
    let visited = sites[1].desks.request(&a, Round(vec![b.clone(), c.clone()])).await.unwrap();
    assert_eq!(visited, [a.clone(), b.clone(), c.clone()]);
    let began = town.now();
    let around = Round(vec![b.clone(), c.clone(), a.clone()]);
    let error = sites[2].desks.request(&a, around).await.unwrap_err();
    let cycle = format!("call cycle: desk/{a} -> desk/{b} -> desk/{c} -> desk/{a}");
    assert!(error.to_string().ends_with(&cycle), "{error}");
    assert_eq!(town.now(), began, "nobody waited for it");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_asks_another_host_waits_no_longer_than_its_own_time_and_is_told_who_goes_on() {
    let town = Town::new(2);
    let (zero, one) = (town.start("host-0").await, town.start("host-1").await);
    let (a, b) = (town.id("host-0"), town.id("host-1"));
    let began = town.now();
    let ask = AskFor { id: b.clone(), after: 19 * SECOND };
    let said = zero.desks.request(&a, ask).await.unwrap();
    assert!(said.contains("outcome unknown") && said.contains(&format!("desk/{b} has begun with it")), "{said}");
    let waited = town.now() - began;
    assert!((17_000..19_000).contains(&waited), "a tenth less than its own 20 s: {waited}");
    town.pass(5 * SECOND).await;
    assert_eq!(one.desks.request(&b, add(0)).await.unwrap(), 1, "it had begun, and ran on");
    // And what waits in a queue there is refused, and never begins.
    let busy = one.ask(&b, Add { number: 10, after: 19 * SECOND });
    town.settle().await;
    let said = zero.desks.request(&a, AskFor { id: b.clone(), after: Duration::ZERO }).await.unwrap();
    assert!(said.contains("timed out") && said.contains(&format!("desk/{b}")), "{said}");
    busy.await.unwrap().unwrap();
    assert_eq!(one.desks.request(&b, add(0)).await.unwrap(), 11);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_and_has_no_answer_is_unknown_within_seconds_and_is_not_sent_again() {
    let town = Town::new(2);
    let (zero, one) = (town.start("host-0").await, town.start("host-1").await);
    let id = town.id("host-1");
    for (happens, lose) in
        [(0, MemoryNetwork::lose_requests as fn(&MemoryNetwork, &str, &str, u32)), (1, MemoryNetwork::lose_answers)]
    {
        let (from, to) = if happens == 0 { ("host-0", "host-1") } else { ("host-1", "host-0") };
        lose(&town.network, from, to, 1);
        let (began, sent) = (town.now(), town.network.requests());
        let error = zero.desks.request(&id, add(1)).await.unwrap_err();
        let RequestError::Unknown(cause) = &error else { panic!("{error}") };
        assert!(matches!(&**cause, RequestError::Unreachable { host } if **host == *"host-1"), "{cause}");
        assert!(error.may_have_happened() && !error.is_retryable());
        assert!(town.now() - began <= 3_100, "not at its deadline");
        town.pass(60 * SECOND).await;
        assert_eq!(town.network.requests() - sent, 1);
        assert_eq!(one.desks.request(&id, add(0)).await.unwrap(), happens);
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_be_reached_is_tried_until_the_lease_would_be_over_and_nothing_of_it_happens() {
    let town = Town::new(2);
    let (zero, one) = (town.start("host-0").await, town.start("host-1").await);
    let id = town.id("host-1");
    town.network.cut("host-0", "host-1", true);
    let began = town.now();
    let error = zero.desks.request(&id, add(1)).await.unwrap_err();
    assert!(matches!(&error, RequestError::Unreachable { host } if **host == *"host-1"), "{error}");
    assert!(error.is_retryable() && !error.may_have_happened());
    let waited = town.now() - began;
    assert!((15_000..15_500).contains(&waited), "{waited}");
    assert!(town.network.requests() < 200, "with pauses: {}", town.network.requests());
    assert_eq!(one.desks.request(&id, add(0)).await.unwrap(), 0);
    // It heals while one waits.
    let waiting = zero.ask(&id, add(1));
    town.pass(5 * SECOND).await;
    town.network.cut("host-0", "host-1", false);
    town.pass(SECOND).await;
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_a_host_that_is_restarted_or_drained_and_each_is_done_once() {
    let town = Town::new(2);
    let zero = town.start("host-0").await;
    let mut one = town.start("host-1").await;
    let id = town.id("host-1");
    let mut sum = 0;
    for is_drained in [false, true] {
        let before = zero.ask(&id, Add { number: 1, after: SECOND });
        town.settle().await;
        if is_drained {
            let waiting = zero.ask(&id, add(1));
            town.settle().await;
            let drained = one.host.drain(5 * SECOND).await;
            assert_eq!((drained.unfinished, drained.released), (0, true));
            assert_eq!(before.await.unwrap().unwrap(), sum + 1, "what runs while it drains is answered");
            sum += 1;
            // It had come before the drain, and was handled then or has waited for the next life.
            drop(one);
            town.pass(2 * SECOND).await;
            one = town.start("host-1").await;
            waiting.await.unwrap().unwrap();
            sum += 1;
        } else {
            one.host.crash();
            let error = before.await.unwrap().unwrap_err();
            assert!(error.may_have_happened(), "it was sent: {error}");
            let waiting = zero.ask(&id, add(1));
            town.pass(3 * SECOND).await;
            assert!(!waiting.is_finished());
            one = town.start("host-1").await;
            assert_eq!(waiting.await.unwrap().unwrap(), 1);
            sum = 1;
        }
        assert_eq!(one.desks.request(&id, add(0)).await.unwrap(), sum);
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_own_the_shard_says_who_does_and_the_request_goes_there() {
    let town = Town::new(3);
    // The first was started with a list of one host, and holds everything.
    let alone = Fleet::new(["host-0"], 64).unwrap();
    let zero = town.start_as("host-0", &alone).await;
    let (one, two) = (town.start("host-1").await, town.start("host-2").await);
    let id = town.id("host-1");
    assert_eq!(two.desks.request(&id, add(1)).await.unwrap(), 1);
    assert_eq!(town.network.requests(), 2, "to the one that should own it, and to the one that does");
    assert_eq!(one.desks.request(&id, add(1)).await.unwrap(), 2);
    assert!(zero.desks.is_running(&id) && !one.desks.is_running(&id));
    // While it is handed over a request waits, or goes from one to the other.
    zero.host.drain(SECOND).await;
    let waiting = two.ask(&id, add(1));
    town.pass(6 * SECOND).await;
    assert_eq!(waiting.await.unwrap().unwrap(), 3);
    assert!(one.desks.is_running(&id));
}

#[tokio::test(start_paused = true)]
async fn messages_and_replies_have_a_largest_size_and_a_reply_past_it_says_that_it_happened() {
    let town = Town::new(2);
    let (zero, one) = (town.start("host-0").await, town.start("host-1").await);
    let id = town.id("host-1");
    // In JSON with its two quotation marks.
    assert_eq!(zero.desks.request(&id, Text("x".repeat(MAX_MESSAGE_BYTES - 2))).await.unwrap(), MAX_MESSAGE_BYTES - 2);
    let sent = town.network.requests();
    let error = zero.desks.request(&id, Text("x".repeat(MAX_MESSAGE_BYTES - 1))).await.unwrap_err();
    assert!(matches!(&error, RequestError::TooLarge(what) if what.contains("\"text\"")), "{error}");
    assert_eq!(town.network.requests(), sent);
    let error = zero.desks.request(&id, Break::BigReply).await.unwrap_err();
    let RequestError::Unknown(cause) = &error else { panic!("{error}") };
    assert!(matches!(**cause, RequestError::TooLarge(_)), "{cause}");
    assert_eq!(one.desks.request(&id, add(0)).await.unwrap(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_under_way_to_one_host_than_may_be_and_what_is_refused_makes_room_for_nobody_else() {
    let town = Town::new(2);
    let (zero, _one) = (town.start("host-0").await, town.start("host-1").await);
    let id = town.id("host-1");
    town.network.delay("host-0", "host-1", SECOND);
    // By bytes: 64 MiB.
    let large = || {
        let (desks, id) = (zero.desks.clone(), id.clone());
        async move { desks.request(&id, Text("x".repeat(1_000_000))).await }
    };
    let waiting: Vec<_> = (0..67).map(|_| tokio::spawn(large())).collect();
    town.settle().await;
    let error = large().await.unwrap_err();
    assert!(matches!(&error, RequestError::Overloaded(what) if what == "requests to another host"), "{error}");
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().unwrap(), 1_000_000);
    }
    assert_eq!(large().await.unwrap(), 1_000_000);
}

struct Bare;

impl StableInterface for Bare {
    const NAME: &'static str = "desk";
    type Error = DeskError;
}

struct Other;

impl StableInterface for Other {
    const NAME: &'static str = "other";
    type Error = ContextError;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_know_the_interface_or_the_message_says_so_with_its_release() {
    let town = Town::new(2);
    let zero = town.start("host-0").await;
    for knows_interface in [true, false] {
        let mut host = town.member("host-1", &town.fleet).build("v7").transport(town.network.transport());
        if knows_interface {
            host.interface(|_| Bare).register().map(drop).unwrap();
        } else {
            host.interface(|_| Other).register().map(drop).unwrap();
        }
        let _one = host.start().await.unwrap();
        let error = zero.desks.request(&town.id("host-1"), add(1)).await.unwrap_err();
        let RequestError::Unhandled(what) = &error else { panic!("{error}") };
        let said = if knows_interface { "messages named \"add\"" } else { "an interface named \"desk\"" };
        assert!(what.contains(said) && what.contains("on host-1, build v7, stable-interfaces 0."), "{what}");
        assert!(!error.may_have_happened());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_runs_to_its_end_on_the_other_host() {
    let town = Town::new(2);
    let (zero, one) = (town.start("host-0").await, town.start("host-1").await);
    let id = town.id("host-1");
    let asked = zero.ask(&id, Add { number: 5, after: SECOND });
    town.settle().await;
    asked.abort();
    town.pass(2 * SECOND).await;
    assert_eq!(one.desks.request(&id, add(0)).await.unwrap(), 5);
}

#[test]
fn a_message_has_one_name_that_can_be_one_and_no_other_has_it() {
    let refused = |register: fn(&mut HostBuilder) -> RegisterError| register(&mut Host::local(MemoryStore::new()));
    let error = refused(|host| host.interface(|_| unbuilt()).forward::<Add>("Add!").register().unwrap_err());
    assert!(matches!(error, RegisterError::InvalidMessageName("Add!")), "{error}");
    let error = refused(|host| {
        host.interface(|_| unbuilt()).forward::<Add>("add").forward::<Text>("add").register().unwrap_err()
    });
    assert!(matches!(error, RegisterError::DuplicateMessage("add")), "{error}");
    let error = refused(|host| {
        host.interface(|_| unbuilt()).forward::<Add>("add").forward::<Add>("plus").register().unwrap_err()
    });
    assert!(matches!(error, RegisterError::DuplicateMessage("plus")), "{error}");
}

fn unbuilt() -> Desk {
    unreachable!("no instance is built")
}

#[tokio::test(start_paused = true)]
async fn through_all_doors_at_once_with_losses_each_effect_happens_once_or_its_request_says_that_it_may_have() {
    let town = Town::new(3);
    let sites = [town.start("host-0").await, town.start("host-1").await, town.start("host-2").await];
    let names = ["host-0", "host-1", "host-2"];
    let (random, mut asked) = (SeededRandom::new(7), Vec::new());
    for turn in 0..600 {
        let (from, to) = (*random.pick(&names).unwrap(), *random.pick(&names).unwrap());
        match random.below(20) {
            0 => town.network.lose_requests(from, to, 1),
            1 => town.network.lose_answers(from, to, 1),
            2 => town.network.cut(from, to, random.chance(0.5)),
            3 => town.network.delay(from, to, random.up_to(200 * MILLI)),
            _ => {}
        }
        let id = format!("id-{}", random.below(20));
        asked.push((id.clone(), sites[turn % 3].ask(&id, add(1))));
        town.pass(random.up_to(100 * MILLI)).await;
    }
    for (from, to) in names.iter().flat_map(|from| names.iter().map(move |to| (from, to))) {
        town.network.cut(from, to, false);
        town.network.lose_requests(from, to, 0);
        town.network.lose_answers(from, to, 0);
    }
    let mut counts = std::collections::BTreeMap::<String, (u64, u64)>::new();
    for (id, asked) in asked {
        let (done, unknown) = counts.entry(id).or_default();
        match asked.await.unwrap() {
            Ok(_) => *done += 1,
            Err(error) if error.may_have_happened() => *unknown += 1,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    let unknown: u64 = counts.values().map(|(_, unknown)| unknown).sum();
    let done: u64 = counts.values().map(|(done, _)| done).sum();
    assert!(unknown > 5 && done > 400, "{unknown} unknown, {done} done");
    for (id, (done, unknown)) in counts {
        let sum = sites[0].desks.request(&id, add(0)).await.unwrap();
        assert!((done..=done + unknown).contains(&sum), "{id}: {sum}, {done} done and {unknown} unknown");
    }
}
