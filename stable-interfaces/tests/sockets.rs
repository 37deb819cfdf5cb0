//! Whole hosts that talk over real sockets.

#![cfg(feature = "tcp")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::transport::TcpTransport;
use stable_interfaces::{
    Alarm, Closed, Connecting, ConnectionId, Context, ContextError, Fleet, FleetClient, Handle, Host, Interface,
    MemoryStore, OnAlarm, OnConnect, Peer, StableInterface, Timestamp,
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
    let mut host = Host::builder(name, fleet.clone()).store(store.clone()).lease(2 * SECOND).transport(transport);
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
