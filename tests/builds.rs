//! Two builds of one program side by side: fields were added to what they say to each other, a message is new, one is gone, and so is an interface.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use serde::{Deserialize, Serialize};
use stable_interfaces::testing::MemoryNetwork;
use stable_interfaces::{
    Context, ContextError, Fleet, Handle, Host, HostBuilder, Interface, RequestError, StableInterface,
};
use system_tests::{World, in_time};

/// Stores the item of an order, in either build; the number of those so far.
async fn note(cx: &mut Context, item: &str) -> Result<u32, ContextError> {
    let count = cx.get("count").await?.unwrap_or(0) + 1;
    cx.put("count", &count)?;
    cx.put("item", item)?;
    Ok(count)
}

/// The program as it was.
mod old {
    use super::*;

    pub(super) struct Order;

    impl StableInterface for Order {
        const NAME: &'static str = "order";
        type Error = ContextError;
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct Place {
        pub(super) item: String,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Placed {
        pub(super) count: u32,
    }

    impl Handle<Place> for Order {
        type Reply = Placed;

        async fn handle(&mut self, cx: &mut Context, place: Place) -> Result<Placed, ContextError> {
            Ok(Placed { count: note(cx, &place.item).await? })
        }
    }

    /// A message that the new build has no more.
    #[derive(Serialize, Deserialize)]
    pub(super) struct Fax;

    impl Handle<Fax> for Order {
        type Reply = ();

        async fn handle(&mut self, _: &mut Context, _: Fax) -> Result<(), ContextError> {
            Ok(())
        }
    }

    /// An interface that it has no more.
    pub(super) struct Telegram;

    impl StableInterface for Telegram {
        const NAME: &'static str = "telegram";
        type Error = ContextError;
    }

    impl Handle<Fax> for Telegram {
        type Reply = ();

        async fn handle(&mut self, _: &mut Context, _: Fax) -> Result<(), ContextError> {
            Ok(())
        }
    }

    pub(super) struct Program {
        pub(super) host: Host,
        pub(super) orders: Interface<Order>,
        pub(super) telegrams: Interface<Telegram>,
    }

    pub(super) async fn start(host: HostBuilder) -> Program {
        let mut host = host.build("2026.1");
        let orders = host.interface(|_| Order).forward::<Place>("place").forward::<Fax>("fax").register().unwrap();
        let telegrams = host.interface(|_| Telegram).forward::<Fax>("fax").register().unwrap();
        Program { host: host.start().await.unwrap(), orders, telegrams }
    }
}

/// The program as it is.
mod new {
    use super::*;

    pub(super) struct Order;

    impl StableInterface for Order {
        const NAME: &'static str = "order";
        type Error = ContextError;
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct Place {
        pub(super) item: String,
        // Left out where it says nothing, it is to a key the same message as that of the old build.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub(super) is_gift: bool,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Placed {
        pub(super) count: u32,
        #[serde(default)]
        pub(super) wrapped: Option<bool>,
    }

    impl Handle<Place> for Order {
        type Reply = Placed;

        async fn handle(&mut self, cx: &mut Context, place: Place) -> Result<Placed, ContextError> {
            Ok(Placed { count: note(cx, &place.item).await?, wrapped: Some(place.is_gift) })
        }
    }

    /// A message that the old build does not have.
    #[derive(Serialize, Deserialize)]
    pub(super) struct Track;

    impl Handle<Track> for Order {
        type Reply = Option<String>;

        async fn handle(&mut self, cx: &mut Context, _: Track) -> Result<Option<String>, ContextError> {
            cx.get("item").await
        }
    }

    pub(super) struct Program {
        pub(super) host: Host,
        pub(super) orders: Interface<Order>,
    }

    pub(super) async fn start(host: HostBuilder) -> Program {
        let mut host = host.build("2026.2");
        let orders = host.interface(|_| Order).forward::<Place>("place").forward::<Track>("track").register().unwrap();
        Program { host: host.start().await.unwrap(), orders }
    }
}

/// The refusal of a build that does not have something, which names the build.
fn refused<T: std::fmt::Debug>(answer: Result<T, RequestError<ContextError>>, what: &str, build: &str) {
    match answer {
        Err(error @ RequestError::Unhandled(_)) => {
            let said = error.to_string();
            assert!(said.contains(what) && said.contains(&format!("build {build}")), "{said}");
            assert!(!error.is_retryable() && !error.may_have_happened(), "{said}");
        }
        other => panic!("{other:?}"),
    }
}

/// A host of each build in one fleet.
async fn start_both(world: &World) -> (old::Program, new::Program) {
    let (network, fleet) = (MemoryNetwork::new(), Fleet::new(["old", "new"], 32).unwrap());
    let member = |name: &str| world.member(name, &fleet).transport(network.transport());
    tokio::join!(old::start(member("old")), new::start(member("new")))
}

/// The ID of an instance that is on this host.
fn id_at(host: &Host) -> String {
    (0..).map(|n| n.to_string()).find(|id| host.owns(id).unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn two_builds_answer_each_other_and_say_what_they_do_not_have() {
    in_time(async {
        let world = World::in_memory();
        let (old, new) = start_both(&world).await;
        let (at_old, at_new) = (id_at(&old.host), id_at(&new.host));
        // Each time also: whatever was refused, the link goes on.
        for count in 1..=3 {
            let placed = old.orders.request(&at_new, old::Place { item: "tea".into() }).await.unwrap();
            assert_eq!(
                placed,
                old::Placed { count },
                "a field that was not sent has its default, one that is not known is left out"
            );
            let place = new::Place { item: "coffee".into(), is_gift: true };
            let placed = new.orders.request(&at_old, place).await.unwrap();
            assert_eq!(placed, new::Placed { count, wrapped: None });

            refused(new.orders.request(&at_old, new::Track).await, "messages named \"track\"", "2026.1");
            refused(old.orders.request(&at_new, old::Fax).await, "messages named \"fax\"", "2026.2");
            refused(old.telegrams.request(&at_new, old::Fax).await, "an interface named \"telegram\"", "2026.2");
        }
        // When the last of the old ones has gone, the new one has what that has stored.
        assert!(old.host.drain(std::time::Duration::from_secs(1)).await.released);
        drop(old);
        let fleet = Fleet::new(["new"], 32).unwrap();
        assert!(new.host.drain(std::time::Duration::from_secs(1)).await.released);
        drop(new);
        let new = new::start(world.member("new", &fleet)).await;
        assert_eq!(new.orders.request(&at_old, new::Track).await.unwrap().as_deref(), Some("coffee"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_key_is_the_same_to_both_builds_where_an_added_field_that_says_nothing_is_left_out() {
    in_time(async {
        let (old, new) = start_both(&World::in_memory()).await;
        for id in [id_at(&old.host), id_at(&new.host)] {
            let by_old = async |key| old.orders.request_once(&id, key, old::Place { item: "tea".into() }).await;
            let by_new = async |key, is_gift| {
                new.orders.request_once(&id, key, new::Place { item: "tea".into(), is_gift }).await
            };
            assert_eq!(by_old("old first").await.unwrap().count, 1);
            assert_eq!(by_new("old first", false).await.unwrap().count, 1, "it is not handled again");
            assert_eq!(by_new("new first", false).await.unwrap().count, 2);
            assert_eq!(by_old("new first").await.unwrap().count, 2, "it is not handled again");
            let other = by_new("old first", true).await;
            assert!(matches!(other, Err(RequestError::KeyReused { .. })), "{other:?}");
        }
    })
    .await;
}
