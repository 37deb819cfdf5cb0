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

#[derive(Debug)]
pub(crate) struct Reach {
    transport: Arc<dyn Transport>,
    /// Under way to each host that was asked, at least while something is.
    hosts: Mutex<BTreeMap<Arc<str>, Arc<Load>>>,
    /// Arrived, and waiting for a shard to come to this host.
    waiting: Arc<Load>,
}

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
    /// A place for so many bytes, if there is one.
    fn place(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        // Counted before it is compared, so that of two that come at once no more than one gets the last place.
        let place = Place { load: self.clone(), bytes };
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        (requests < MAX_REQUESTS && before.saturating_add(bytes) <= MAX_BYTES).then_some(place)
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
        Reach { transport, hosts: Mutex::default(), waiting: Arc::default() }
    }

    /// The load of a host: a new one, if there is none.
    fn load_of(&self, host: &Arc<str>) -> Arc<Load> {
        let mut hosts = self.hosts.lock();
        if let Some(load) = hosts.get(&**host) {
            return load.clone();
        }
        // Nothing is under way to those that nobody else holds: each place has its load.
        hosts.retain(|_, load| Arc::strong_count(load) > 1);
        hosts.entry(host.clone()).or_default().clone()
    }

    /// Sends a request; `None` if too much is under way to that host already.
    pub(crate) async fn send(&self, to: &Addressee, request: Bytes) -> Option<Result<Bytes, Undelivered>> {
        let load = self.load_of(&to.host);
        let _place = load.place(request.len())?;
        Some(self.transport.send(to, request).await)
    }

    /// A place among those that wait for a shard to come to this host, if there is one.
    pub(crate) fn place_to_wait(&self, bytes: usize) -> Option<Place> {
        self.waiting.place(bytes)
    }

    /// Takes no more requests, and waits until those that were taken are answered.
    pub(crate) async fn close(&self) {
        self.transport.close().await;
    }
}
