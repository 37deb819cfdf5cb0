//! Questions: each is answered by the host that it was asked of, beside all instances, and once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod town;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::clock::Clock as _;
use stable_interfaces::transport::{MAX_MESSAGE_BYTES, Question};
use stable_interfaces::{
    Context, ContextError, Fleet, Handle, Host, Interface, MemoryStore, RegisterError, RequestError, StableInterface,
};

use self::town::Town;

const SECOND: Duration = Duration::from_secs(1);

struct Desk;

impl StableInterface for Desk {
    const NAME: &'static str = "desk";
    type Error = ContextError;
}

#[derive(Serialize, Deserialize)]
struct Add;

impl Handle<Add> for Desk {
    type Reply = ();

    async fn handle(&mut self, _: &mut Context, _: Add) -> Result<(), ContextError> {
        Ok(())
    }
}

/// The name of a host, after so long; with so many bytes more.
#[derive(Serialize, Deserialize)]
struct Name {
    after: Duration,
    bytes: usize,
}

impl Question for Name {
    const NAME: &'static str = "name";
    type Answer = String;
}

#[derive(Serialize, Deserialize)]
struct Panics;

impl Question for Panics {
    const NAME: &'static str = "panics";
    type Answer = ();
}

#[derive(Serialize, Deserialize)]
struct Unknown;

impl Question for Unknown {
    const NAME: &'static str = "unknown";
    type Answer = ();
}

impl Question for Add {
    const NAME: &'static str = "add";
    type Answer = ();
}

impl Town {
    async fn start(&self, name: &str) -> (Host, Interface<Desk>) {
        let fleet = Fleet::new(["a", "b"], 8).unwrap();
        let mut host = self.member(name, &fleet).transport(self.network.transport());
        let clock = self.clock.clone();
        let desks = host.interface(|_| Desk).answer(move |desks: Interface<Desk>, name: Name| {
            let clock = clock.clone();
            async move {
                clock.sleep(name.after).await;
                format!("{}{}", desks.host(), "x".repeat(name.bytes))
            }
        });
        let desks = desks.answer(async |_, _: Panics| panic!("it cannot say")).register().unwrap();
        (host.start().await.unwrap(), desks)
    }
}

fn name(after: Duration) -> Name {
    Name { after, bytes: 0 }
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_by_the_host_that_it_is_for_without_an_instance_and_however_long_that_takes() {
    let town = Town::new(2);
    let ((_a, at_a), (_b, at_b)) = tokio::join!(town.start("a"), town.start("b"));
    for host in ["a", "b"] {
        assert_eq!(at_a.ask_host(host, &name(60 * SECOND)).await.unwrap(), host);
    }
    assert_eq!((town.network.requests(), at_a.running(), at_b.running()), (1, 0, 0));
    let members: Vec<_> = at_b.members().iter().map(|member| member.name.to_string()).collect();
    assert_eq!(members, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_says_whether_it_was_sent() {
    let town = Town::new(2);
    let ((_a, at_a), (b, _)) = tokio::join!(town.start("a"), town.start("b"));
    let is_unreachable =
        |error: &RequestError<ContextError>| matches!(error, RequestError::Unreachable { host } if **host == *"b");
    town.network.cut("a", "b", true);
    let error = at_a.ask_host("b", &name(Duration::ZERO)).await.unwrap_err();
    assert!(is_unreachable(&error), "{error}");
    town.network.cut("a", "b", false);
    town.network.lose_answers("b", "a", 1);
    let error = at_a.ask_host("b", &name(Duration::ZERO)).await.unwrap_err();
    assert!(error.may_have_happened(), "{error}");
    let asking = at_a.ask_host("b", &Name { after: SECOND, bytes: 0 });
    let (error, ()) = tokio::join!(asking, async {
        town.clock.sleep(SECOND / 2).await;
        b.crash();
    });
    let error = error.unwrap_err();
    assert!(error.may_have_happened(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_not_known_or_whose_answer_panics_or_is_too_large_costs_itself_alone() {
    let town = Town::new(2);
    let ((_a, at_a), (_b, _)) = tokio::join!(town.start("a"), town.start("b"));
    for host in ["a", "b"] {
        let error = at_a.ask_host(host, &Unknown).await.unwrap_err();
        assert!(matches!(&error, RequestError::Unhandled(what) if what.contains("unknown")), "{error}");
        let error = at_a.ask_host(host, &Panics).await.unwrap_err();
        assert!(matches!(&error, RequestError::Panicked(text) if text == "it cannot say"), "{error}");
        let large = Name { after: Duration::ZERO, bytes: MAX_MESSAGE_BYTES };
        let error = at_a.ask_host(host, &large).await.unwrap_err();
        assert!(error.may_have_happened(), "{error}");
        assert_eq!(at_a.ask_host(host, &name(Duration::ZERO)).await.unwrap(), host);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_is_that_of_one_message_or_question() {
    let mut host = Host::local(MemoryStore::new());
    let twice = host.interface(|_| Desk).answer(async |_, _: Unknown| ()).answer(async |_, _: Unknown| ());
    assert!(matches!(twice.register(), Err(RegisterError::DuplicateMessage("unknown"))));
    let both = host.interface(|_| Desk).answer(async |_, _: Add| ()).forward::<Add>("add");
    assert!(matches!(both.register(), Err(RegisterError::DuplicateMessage("add"))));
    let both = host.interface(|_| Desk).forward::<Add>("add").answer(async |_, _: Add| ());
    assert!(matches!(both.register(), Err(RegisterError::DuplicateMessage("add"))));
    let desks = host.interface(|_| Desk).answer(async |_, _: Add| ()).register().unwrap();
    let error = desks.ask_host("local", &Add).await.unwrap_err();
    assert!(matches!(error, RequestError::NotStarted), "{error}");
}
