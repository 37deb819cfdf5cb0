//! The way of one host to the others: its transport, and a limit of what may be under way to each of them at once.
//!
//! Whatever is under way is counted, in number and in bytes, and every way in which it can end counts it down.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};
use crate::transport::{Addressee, Transport, Undelivered};

/// The most requests that may be under way to one host, or wait on one for a shard to come.
const MAX_REQUESTS: usize = 16_384;
/// The most bytes of them.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// The most connections of clients here to instances at one host. Each has one more request under way there, which waits.
const MAX_CONNECTIONS: usize = 32_768;

#[derive(Debug)]
pub(crate) struct Reach {
    transport: Arc<dyn Transport>,
    /// Under way to each host that was asked, at least while something is.
    hosts: Mutex<Loads>,
    /// Connections to each host, likewise.
    connections: Mutex<Loads>,
    /// Arrived, and waiting for a shard to come to this host.
    waiting: Arc<Load>,
}

/// The load of each host.
type Loads = BTreeMap<Arc<str>, Arc<Load>>;

#[derive(Debug, Default)]
struct Load {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// The place of one request; dropped, it makes room for another.
#[derive(Debug)]
pub(crate) struct Place {
    load: Arc<Load>,
    bytes: usize,
}

impl Load {
    /// One of so many places, for so many bytes, if there is one.
    fn place(self: &Arc<Self>, places: usize, bytes: usize) -> Option<Place> {
        // Counted before it is compared, so that of two that come at once no more than one gets the last place.
        let place = Place { load: self.clone(), bytes };
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        (requests < places && before.saturating_add(bytes) <= MAX_BYTES).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.requests.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Reach {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Reach {
        Reach { transport, hosts: Mutex::default(), connections: Mutex::default(), waiting: Arc::default() }
    }

    /// The load of a host: a new one, if there is none.
    fn load_of(loads: &Mutex<Loads>, host: &Arc<str>) -> Arc<Load> {
        let mut hosts = loads.lock();
        if let Some(load) = hosts.get(&**host) {
            return load.clone();
        }
        // Nothing is under way to those that nobody else holds: each place has its load.
        hosts.retain(|_, load| Arc::strong_count(load) > 1);
        hosts.entry(host.clone()).or_default().clone()
    }

    /// Sends a request; `None` if too much is under way to that host already.
    pub(crate) async fn send(&self, to: &Addressee, request: Bytes) -> Option<Result<Bytes, Undelivered>> {
        let load = Self::load_of(&self.hosts, &to.host);
        let _place = load.place(MAX_REQUESTS, request.len())?;
        Some(self.transport.send(to, request).await)
    }

    /// A place for a connection to a host, if there is one.
    pub(crate) fn place_to_connect(&self, host: &Arc<str>) -> Option<Place> {
        Self::load_of(&self.connections, host).place(MAX_CONNECTIONS, 0)
    }

    /// Sends the one request of a connection that waits: that has the connection's place.
    pub(crate) async fn listen(&self, to: &Addressee, request: Bytes) -> Result<Bytes, Undelivered> {
        self.transport.send(to, request).await
    }

    /// A place among those that wait for a shard to come to this host, if there is one.
    pub(crate) fn place_to_wait(&self, bytes: usize) -> Option<Place> {
        self.waiting.place(MAX_REQUESTS, bytes)
    }

    /// Takes no more requests, and waits until those that were taken are answered.
    pub(crate) async fn close(&self) {
        self.transport.close().await;
    }
}
