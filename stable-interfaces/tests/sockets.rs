//! Whole hosts that talk over real sockets.

#![cfg(feature = "tcp")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stable_interfaces::store::BoxError;
use stable_interfaces::transport::{Addressee, Door, Introduction, Running, TcpTransport, Transport, Undelivered};
use stable_interfaces::{
    Alarm, Closed, Connecting, ConnectionId, Context, ContextError, Fleet, FleetClient, Handle, Host, Interface,
    MemoryStore, OnAlarm, OnConnect, Peer, RequestError, StableInterface, Timestamp,
};

const SECOND: Duration = Duration::from_secs(1);

struct Echo(Option<Peer<String>>);

#[derive(Serialize, Deserialize)]
struct Where;

impl StableInterface for Echo {
    const NAME: &'static str = "echo";
    type Error = ContextError;
}

impl Handle<Where> for Echo {
    type Reply = String;

    async fn handle(&mut self, cx: &mut Context, _: Where) -> Result<String, ContextError> {
        Ok(cx.host().to_owned())
    }
}

impl OnAlarm for Echo {
    async fn on_alarm(&mut self, _: &mut Context, _: &Alarm) -> Result<(), ContextError> {
        Ok(())
    }
}

impl OnConnect for Echo {
    type Meta = String;
    type Incoming = String;
    type Outgoing = String;

    async fn on_connect(
        &mut self,
        _: &mut Context,
        client: &mut Connecting<String>,
        _: String,
    ) -> Result<(), ContextError> {
        self.0 = Some(client.accept());
        Ok(())
    }

    async fn on_receive(&mut self, cx: &mut Context, _: ConnectionId, text: String) -> Result<(), ContextError> {
        match &self.0 {
            Some(client) => Ok(client.send(cx, text).await?),
            None => Ok(()),
        }
    }
}

async fn start(name: &str, fleet: &Fleet, store: &MemoryStore) -> (Host, Interface<Echo>) {
    let transport = TcpTransport::listen("127.0.0.1:0");
    let mut host = Host::builder(name, fleet.clone()).store(store.clone()).lease(30 * SECOND).transport(transport);
    let interface = host.interface(|_| Echo(None)).with_alarms().forward::<Where>("where");
    let echoes = interface.forward_connections().register().unwrap();
    (host.start().await.unwrap(), echoes)
}

/// Fails in place of waiting for ever, however slow the machine is.
#[allow(clippy::disallowed_methods, reason = "sockets take real time")]
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(60 * SECOND, work).await.unwrap()
}

#[tokio::test]
async fn two_hosts_and_a_process_that_is_none_do_all_there_is_to_do_over_real_sockets() {
    in_time(async {
        let (store, fleet) = (MemoryStore::new(), Fleet::expand("host-{0..1}", 16).unwrap());
        let (zero, at_zero) = start("host-0", &fleet, &store).await;
        let (one, at_one) = start("host-1", &fleet, &store).await;
        let client = FleetClient::new(Arc::new(store.clone()), fleet.clone());
        let web = client.interface::<Echo>(TcpTransport::outgoing()).forward::<Where>("where").forward_connections();
        let web = web.open().await.unwrap();
        let owned = |host: &Host| (0..).map(|n| format!("id-{n}")).find(|id| host.owns(id).unwrap()).unwrap();
        let (here, there) = (owned(&zero), owned(&one));
        for door in [&at_zero, &at_one, &web] {
            assert_eq!(door.request(&here, Where).await.unwrap(), "host-0");
            assert_eq!(door.request(&there, Where).await.unwrap(), "host-1");
        }
        at_zero.set_alarm_if_absent(&there, "later", Timestamp::MAX, &"x").await.unwrap();
        assert_eq!(web.alarms(&there).await.unwrap(), at_one.alarms(&there).await.unwrap());
        web.cancel_alarm(&there, "later").await.unwrap();

        let long = "x".repeat(700_000);
        for door in [&web, &at_zero] {
            let client = door.connect(&there, String::new()).await.unwrap();
            for number in 0..200 {
                client.send(number.to_string()).await.unwrap();
            }
            client.send(long.clone()).await.unwrap();
            for number in 0..200 {
                assert_eq!(client.recv().await, Ok(number.to_string()));
            }
            assert_eq!(client.recv().await.as_ref(), Ok(&long));
            client.close();
        }
        let client = at_zero.connect(&there, String::new()).await.unwrap();
        let guest = web.connect(&here, String::new()).await.unwrap();
        let drained = zero.drain(10 * SECOND).await;
        assert_eq!((drained.unfinished, drained.released), (0, true));
        // A question that came too late to be taken was not answered any more.
        let closed = guest.recv().await.unwrap_err();
        assert!(matches!(closed, Closed::Draining | Closed::Unreachable { .. }), "{closed}");
        assert_eq!(client.recv().await, Err(Closed::Draining), "a client of the host that drained");
        let client = web.connect(&there, String::new()).await.unwrap();
        at_one.stop(&there).await.unwrap();
        assert_eq!(client.recv().await, Err(Closed::Stopped));
        let client = web.connect(&there, String::new()).await.unwrap();
        one.crash();
        let closed = client.recv().await.unwrap_err();
        assert!(matches!(closed, Closed::Unreachable { .. } | Closed::Draining), "{closed}");
    })
    .await;
}

/// A transport whose address can be asked for while a host has it.
#[derive(Debug, Clone)]
struct Shared(Arc<TcpTransport>);

#[async_trait]
impl Transport for Shared {
    fn address(&self) -> Option<Arc<str>> {
        self.0.address()
    }

    async fn open(&self, own: Introduction, door: Option<Arc<dyn Door>>) -> Result<Running, BoxError> {
        self.0.open(own, door).await
    }

    async fn send(&self, to: &Addressee, request: Bytes) -> Result<Bytes, Undelivered> {
        self.0.send(to, request).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

/// The addresses of hosts, by name, as an application knows them.
type Addresses = Arc<Mutex<BTreeMap<String, Arc<str>>>>;

/// A host without a store, which finds the others by a function of their names.
async fn start_without_store(name: &str, fleet: &Fleet, addresses: &Addresses) -> (Host, Interface<Echo>) {
    let known = addresses.clone();
    let address_of = move |host: &str| known.lock().unwrap().get(host).map_or_else(String::new, ToString::to_string);
    let transport = Shared(Arc::new(TcpTransport::listen("127.0.0.1:0").addresses(address_of)));
    let mut host = Host::builder(name, fleet.clone()).transport(transport.clone());
    let echoes =
        host.interface(|_| Echo(None)).forward::<Where>("where").reach_timeout(10 * SECOND).register().unwrap();
    let host = host.start().await.unwrap();
    addresses.lock().unwrap().insert(name.to_owned(), transport.address().unwrap());
    (host, echoes)
}

#[tokio::test]
async fn hosts_of_a_list_without_a_store_find_each_other_by_their_names_also_after_one_has_another_address() {
    in_time(async {
        let (fleet, addresses) = (Fleet::expand("host-{0..1}", 16).unwrap(), Addresses::default());
        let (zero, at_zero) = start_without_store("host-0", &fleet, &addresses).await;
        let (one, at_one) = start_without_store("host-1", &fleet, &addresses).await;
        let owned = |host: &Host| (0..).map(|n| format!("id-{n}")).find(|id| host.owns(id).unwrap()).unwrap();
        let (here, there) = (owned(&zero), owned(&one));
        for door in [&at_zero, &at_one] {
            assert_eq!(door.request(&here, Where).await.unwrap(), "host-0");
            assert_eq!(door.request(&there, Where).await.unwrap(), "host-1");
        }
        let before = addresses.lock().unwrap()["host-1"].clone();
        one.crash();
        let asking = async {
            loop {
                match at_zero.request(&there, Where).await {
                    // The end of the link was not heard of yet.
                    Err(RequestError::Unknown(_)) => {}
                    answer => break answer,
                }
            }
        };
        // Asked while nobody is there, and by the name that leads elsewhere by then.
        let (asked, (again, _)) = tokio::join!(asking, start_without_store("host-1", &fleet, &addresses));
        assert_eq!(asked.unwrap(), "host-1");
        assert_ne!(addresses.lock().unwrap()["host-1"], before);
        drop(again);
    })
    .await;
}
