//! stable-interfaces, as a program uses it: with a store, so that every request passes the output gate and the committer's limit.

use std::sync::Arc;

use stable_interfaces::{
    Connecting, ConnectionId, Context, ContextError, Handle, Host, Interface, MemoryStore, OnConnect, StableInterface,
};

use super::Peer;
use crate::measure::resident_bytes;
use crate::runner::{Kind, Runner};

/// An interface of a started host.
#[derive(Debug, Clone)]
pub struct Ours {
    counters: Interface<Counter>,
    _host: Arc<Host>,
}

/// An instance.
#[derive(Debug)]
pub struct Counter(u64);

impl StableInterface for Counter {
    const NAME: &'static str = "counter";
    type Error = ContextError;
}

/// The request.
#[derive(Debug)]
pub struct Add;

impl Handle<Add> for Counter {
    type Reply = u64;

    async fn handle(&mut self, _: &mut Context, _: Add) -> Result<u64, ContextError> {
        self.0 += 1;
        Ok(self.0)
    }
}

impl Peer for Ours {
    const NAME: &'static str = "stable-interfaces";
    type Ref = Box<str>;
    type Kept = ();

    #[allow(clippy::manual_async_fn, reason = "the future of an async fn would borrow the runner")]
    fn start(_: &Runner) -> impl Future<Output = Ours> + Send + 'static {
        async {
            let mut host = Host::local(MemoryStore::new());
            let counters = host.interface(|_| Counter(0)).register().expect("its name is good");
            let host = host.start().await.expect("a memory store lets its host start");
            Ours { counters, _host: Arc::new(host) }
        }
    }

    async fn create(&self, id: Box<str>) -> Box<str> {
        id
    }

    async fn ask(&self, id: &Box<str>) -> u64 {
        self.counters.request(id, Add).await.expect("counting does not fail")
    }

    fn keep(_: Box<str>) {}

    async fn end(&self, id: Box<str>) {
        self.counters.stop(&id).await.expect("an idle instance can be stopped");
    }
}

/// An instance that clients connect to.
#[derive(Debug, Default)]
pub struct Lobby(Vec<stable_interfaces::Peer<u64>>);

impl StableInterface for Lobby {
    const NAME: &'static str = "lobby";
    type Error = ContextError;
}

impl OnConnect for Lobby {
    type Meta = ();
    type Incoming = u64;
    type Outgoing = u64;

    async fn on_connect(&mut self, _: &mut Context, client: &mut Connecting<u64>, (): ()) -> Result<(), ContextError> {
        self.0.push(client.accept());
        Ok(())
    }

    async fn on_receive(&mut self, _: &mut Context, _: ConnectionId, _: u64) -> Result<(), ContextError> {
        Ok(())
    }
}

/// Measures the bytes that an idle connection takes, both its ends counted. To be run in a fresh process.
///
/// # Panics
/// If the host does not take so many connections.
#[must_use]
pub fn connection_bytes(connections: u64) -> f64 {
    /// The number of connections of each instance.
    const EACH: u64 = 100;
    let connect = async move {
        let mut host = Host::local(MemoryStore::new());
        let lobbies = host.interface(|_| Lobby::default()).register().expect("its name is good");
        let host = host.start().await.expect("a memory store lets its host start");
        let mut clients = Vec::with_capacity(usize::try_from(connections + connections / EACH).expect("they fit"));
        let mut before = 0;
        // The first of each instance makes the instance, and is not counted.
        for number in 0..=EACH {
            for lobby in 0..connections / EACH {
                let client = lobbies.connect(&format!("instance-{lobby:08}"), ()).await;
                clients.push(client.expect("the host takes so many connections"));
            }
            if number == 0 {
                before = resident_bytes();
            }
        }
        let bytes = resident_bytes().saturating_sub(before);
        drop((clients, host));
        bytes as f64 / (connections / EACH * EACH) as f64
    };
    Runner::tokio(Kind::Multi).run(vec![connect]).0.remove(0)
}
