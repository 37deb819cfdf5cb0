//! Errors as a person reads them: each says which thing is wrong, and none of its causes is lost on the way to a caller, a dead
//! letter or an alarm's last error.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::{Debug, Display};
use std::io;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use stable_interfaces::store::BoxError;
use stable_interfaces::{
    Alarm, Context, ContextError, Handle, InterfaceBuilder, Message, NewPost, OnAlarm, OnMessage, RequestError,
    RetryPolicy, StableInterface,
};
use system_tests::World;

const CHAIN: &str = "the order could not be placed: the partner could not be told: connection refused";

/// Two causes deep, and the third is the operating system's.
#[derive(Debug, thiserror::Error)]
enum Enum {
    #[error("the order could not be placed")]
    Order(#[source] Partner),
    #[error(transparent)]
    Context(#[from] ContextError),
}

#[derive(Debug, thiserror::Error)]
#[error("the partner could not be told")]
struct Partner(#[source] io::Error);

/// An error of an application that can be made.
trait Sample: Debug + Display + Send + Sync + 'static + From<ContextError> + Into<BoxError> {
    const NAME: &'static str;
    fn sample() -> Self;
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused")
}

impl Sample for Enum {
    const NAME: &'static str = "enum";
    fn sample() -> Enum {
        Enum::Order(Partner(refused()))
    }
}

impl Sample for anyhow::Error {
    const NAME: &'static str = "anyhow";
    fn sample() -> anyhow::Error {
        let told = Err::<(), _>(refused()).context("the partner could not be told");
        told.context("the order could not be placed").unwrap_err()
    }
}

/// An instance whose handlers all fail.
struct Fails<E>(std::marker::PhantomData<fn() -> E>);

impl<E: Sample> StableInterface for Fails<E> {
    const NAME: &'static str = E::NAME;
    type Error = E;
}

struct Place;

impl<E: Sample> Handle<Place> for Fails<E> {
    type Reply = ();

    async fn handle(&mut self, _: &mut Context, _: Place) -> Result<(), E> {
        Err(E::sample())
    }
}

impl<E: Sample> OnAlarm for Fails<E> {
    async fn on_alarm(&mut self, _: &mut Context, _: &Alarm) -> Result<(), E> {
        Err(E::sample())
    }
}

impl<E: Sample> OnMessage for Fails<E> {
    async fn on_message(&mut self, _: &mut Context, _: &Message) -> Result<(), E> {
        Err(E::sample())
    }
}

async fn fail<E: Sample>() {
    let world = World::in_memory();
    let mut host = world.local();
    let retry = RetryPolicy::new().attempts(2).first(Duration::from_secs(60));
    let fails: InterfaceBuilder<'_, Fails<E>> = host.interface(|_| Fails(std::marker::PhantomData));
    let fails = fails.with_alarms().with_inbox().retry(retry).register().unwrap();
    let _host = host.start().await.unwrap();
    let error = fails.request("a", Place).await.unwrap_err();
    assert_eq!(error.report(), CHAIN, "{}", E::NAME);

    fails.set_alarm("a", "x", world.at(0), &()).await.unwrap();
    fails.post("a", NewPost::new("")).await.unwrap();
    world.pass(Duration::from_secs(1)).await;
    let alarms = fails.alarms("a").await.unwrap();
    assert_eq!(alarms.iter().map(Alarm::last_error).collect::<Vec<_>>(), [Some(CHAIN)], "{}", E::NAME);
    world.pass(Duration::from_secs(600)).await;
    let dead = fails.dead_letters(None, 10).await.unwrap();
    assert_eq!(dead.iter().map(|dead| dead.reason()).collect::<Vec<_>>(), [CHAIN, CHAIN], "{}", E::NAME);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_shown_with_all_its_causes_whether_it_is_an_enum_of_thiserror_or_of_anyhow() {
    fail::<Enum>().await;
    fail::<anyhow::Error>().await;
}

/// An instance that puts and gets what it is told.
struct Shelf;

impl StableInterface for Shelf {
    const NAME: &'static str = "shelf";
    type Error = Enum;
}

struct Put(&'static str, String);

impl Handle<Put> for Shelf {
    type Reply = ();

    async fn handle(&mut self, cx: &mut Context, Put(key, value): Put) -> Result<(), Enum> {
        Ok(cx.put(key, &value)?)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    cents: u64,
}

struct GetOrder(&'static str);

impl Handle<GetOrder> for Shelf {
    type Reply = Option<Order>;

    async fn handle(&mut self, cx: &mut Context, GetOrder(key): GetOrder) -> Result<Option<Order>, Enum> {
        Ok(cx.get(key).await?)
    }
}

impl OnAlarm for Shelf {
    async fn on_alarm(&mut self, _: &mut Context, alarm: &Alarm) -> Result<(), Enum> {
        alarm.meta::<Order>()?;
        Ok(())
    }
}

impl OnMessage for Shelf {
    async fn on_message(&mut self, _: &mut Context, message: &Message) -> Result<(), Enum> {
        message.json::<Order>()?;
        Ok(())
    }
}

/// Asserts that a text names all of these.
#[track_caller]
fn assert_names(text: &str, all: &[&str]) {
    for part in all {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_of_another_type_than_stored_is_named_with_its_instance_its_key_its_type_and_the_reason() {
    let world = World::in_memory();
    let mut host = world.local();
    let retry = RetryPolicy::new().attempts(1);
    let shelves = host.interface(|_| Shelf).with_alarms().with_inbox().retry(retry).register().unwrap();
    let _host = host.start().await.unwrap();
    shelves.request("alice", Put("order", "a text".into())).await.unwrap();
    let error = shelves.request("alice", GetOrder("order")).await.unwrap_err();
    let all = ["shelf/alice", "\"order\"", "Order", "invalid type: string \"a text\", expected struct Order"];
    assert_names(&error.to_string(), &all);
    let report = error.report();
    assert_names(&report, &all);
    assert_eq!(report.matches("invalid type").count(), 1, "each once: {report}");

    // The same of what an alarm or a message carries.
    shelves.set_alarm("alice", "due", world.at(0), &"a text").await.unwrap();
    shelves.post("alice", NewPost::json("a text").unwrap().id("m")).await.unwrap();
    world.pass(Duration::from_secs(1)).await;
    let dead = shelves.dead_letters(None, 10).await.unwrap();
    assert_eq!(dead.len(), 2);
    for dead in dead {
        assert_names(dead.reason(), &[dead.id(), "shelf/alice", "Order", "expected struct Order"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_or_key_that_cannot_be_one_and_what_is_too_large_are_named_with_the_reason_by_display_alone() {
    let world = World::in_memory();
    let mut host = world.local();
    let shelves = host.interface(|_| Shelf).with_alarms().with_inbox().register().unwrap();
    let _host = host.start().await.unwrap();
    let text = |error: RequestError<Enum>| error.to_string();
    let long = "x".repeat(600);
    let error = shelves.request(&long, GetOrder("k")).await.unwrap_err();
    assert_names(&text(error), &["instance ID", &long[..64], "600 bytes long, more than 512"]);
    let error = shelves.cancel_alarm("a", "n\0l").await.unwrap_err();
    assert_names(&text(error), &["alarm ID", "n\\0l", "it contains a NUL character"]);
    let error = shelves.request("a", GetOrder("")).await.unwrap_err();
    assert_names(&text(error), &["storage key", "it is empty"]);
    let error = shelves.request("a", Put("big", "x".repeat(300_000))).await.unwrap_err();
    assert_names(&text(error), &["shelf/a", "\"big\"", "300002 bytes, more than 262144"]);
    let error = shelves.set_alarm("a", "due", world.at(0), &"x".repeat(300_000)).await.unwrap_err();
    assert_names(&text(error), &["alarm \"due\"", "300002 bytes, more than 262144"]);
    let error = shelves.post("a", NewPost::new("x".repeat(300_000))).await.unwrap_err();
    assert_names(&text(error), &["shelf/a", "300000 bytes, more than 262144"]);
}
