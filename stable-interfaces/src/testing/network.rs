//! A network in memory: links between hosts of one process that a test can slow down, cut and lose things on.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::BoxError;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, watch};
use crate::transport::{Addressee, Door, Introduction, MAX_WHOLE_BYTES, Running, Transport, Undelivered};

/// The time after which a host counts as gone that does not answer any more.
const PATIENCE: Duration = Duration::from_secs(3);

/// A network of hosts in one process. Clones are the same network.
///
/// ```
/// use stable_interfaces::testing::MemoryNetwork;
///
/// let network = MemoryNetwork::new();
/// let to_be_given_to_a_host = network.transport();
/// network.cut("host-0", "host-1", true);
/// assert_eq!(network.requests(), 0);
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemoryNetwork(Arc<Network>);

#[derive(Debug, Default)]
struct Network {
    hosts: Mutex<BTreeMap<Arc<str>, Opened>>,
    links: Mutex<BTreeMap<(String, String), Faults>>,
    requests: AtomicU64,
    lives: AtomicU64,
}

/// A host that can be reached.
#[derive(Debug, Clone)]
struct Opened {
    life: u64,
    door: Arc<dyn Door>,
    under_way: Arc<watch::Sender<UnderWay>>,
    /// A channel that is closed when it has ended.
    ended: watch::Receiver<()>,
}

/// The requests that a host has taken and not answered.
#[derive(Debug, Clone, Copy, Default)]
struct UnderWay {
    count: usize,
    /// Set once it takes no more.
    is_closing: bool,
}

/// The faults of a link, from one host to another.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    is_cut: bool,
    delay: Duration,
    lost_requests: u32,
    lost_answers: u32,
}

/// One host's way into a [`MemoryNetwork`].
#[derive(Debug)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    own: Mutex<Option<Introduction>>,
}

impl MemoryNetwork {
    /// A network without hosts and without faults.
    #[must_use]
    pub fn new() -> MemoryNetwork {
        MemoryNetwork::default()
    }

    /// The transport of one host.
    #[must_use]
    pub fn transport(&self) -> MemoryTransport {
        MemoryTransport { network: self.clone(), own: Mutex::new(None) }
    }

    /// Cuts the link from one host to another, or mends it. What is sent on it finds nobody; answers on it are lost.
    pub fn cut(&self, from: &str, to: &str, is_cut: bool) {
        self.change(from, to, |faults| faults.is_cut = is_cut);
    }

    /// Sets how long a request takes from one host to another, and an answer.
    pub fn delay(&self, from: &str, to: &str, delay: Duration) {
        self.change(from, to, |faults| faults.delay = delay);
    }

    /// Loses the next `count` requests on their way from one host to another: they were sent, and nobody gets them.
    pub fn lose_requests(&self, from: &str, to: &str, count: u32) {
        self.change(from, to, |faults| faults.lost_requests = count);
    }

    /// Loses the next `count` answers on their way from one host to another.
    pub fn lose_answers(&self, from: &str, to: &str, count: u32) {
        self.change(from, to, |faults| faults.lost_answers = count);
    }

    /// The number of requests that were sent so far, those that nobody got among them.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::SeqCst)
    }

    fn change(&self, from: &str, to: &str, change: impl FnOnce(&mut Faults)) {
        change(self.0.links.lock().entry((from.to_owned(), to.to_owned())).or_default());
    }

    fn faults(&self, from: &str, to: &str) -> Faults {
        self.0.links.lock().get(&(from.to_owned(), to.to_owned())).copied().unwrap_or_default()
    }

    /// Uses up one of a fault's losses, if there is one left.
    fn loses(&self, from: &str, to: &str, which: impl FnOnce(&mut Faults) -> &mut u32) -> bool {
        let mut loses = false;
        self.change(from, to, |faults| {
            let left = which(faults);
            loses = *left > 0;
            *left = left.saturating_sub(1);
        });
        loses
    }
}

/// Takes a host out of its network when it ends, unless another life of it is there by then.
struct Leaves {
    network: MemoryNetwork,
    host: Arc<str>,
    life: u64,
    _ended: watch::Sender<()>,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        let mut hosts = self.network.0.hosts.lock();
        let left =
            hosts.get(&self.host).filter(|opened| opened.life == self.life).is_some().then(|| hosts.remove(&self.host));
        drop(hosts);
        drop(left);
    }
}

/// One request that a host has taken, until it is answered.
struct Taken(Arc<watch::Sender<UnderWay>>);

impl Taken {
    /// `None` if it takes no more.
    fn begin(opened: &Opened) -> Option<Taken> {
        let take = |under_way: &mut UnderWay| {
            under_way.count += usize::from(!under_way.is_closing);
            !under_way.is_closing
        };
        opened.under_way.send_if_modified(take).then(|| Taken(opened.under_way.clone()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.send_modify(|under_way| under_way.count -= 1);
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn address(&self) -> Option<Arc<str>> {
        None
    }

    async fn open(&self, own: Introduction, door: Option<Arc<dyn Door>>) -> Result<Running, BoxError> {
        let (network, host) = (self.network.clone(), own.host.clone());
        *self.own.lock() = Some(own);
        let life = network.0.lives.fetch_add(1, Ordering::SeqCst);
        let (ending, ended) = watch::channel(());
        if let Some(door) = door {
            let opened = Opened { life, door, under_way: Arc::default(), ended };
            let before = network.0.hosts.lock().insert(host.clone(), opened);
            drop(before);
        }
        let leaves = Leaves { network, host, life, _ended: ending };
        Ok(Box::pin(async move {
            let _leaves = leaves;
            pending::<()>().await;
        }))
    }

    async fn send(&self, to: &Addressee, request: Bytes) -> Result<Bytes, Undelivered> {
        let own = self.own.lock().clone().ok_or_else(|| Undelivered::NotSent("it has not begun".into()))?;
        let (network, from, to, clock) = (&self.network, &*own.host, &*to.host, &own.clock);
        network.0.requests.fetch_add(1, Ordering::SeqCst);
        let faults = network.faults(from, to);
        clock.sleep(faults.delay).await;
        let opened = network.0.hosts.lock().get(to).cloned();
        let opened = opened.filter(|_| !faults.is_cut).ok_or_else(|| Undelivered::NotSent("nobody is there".into()))?;
        if network.loses(from, to, |faults| &mut faults.lost_requests) {
            clock.sleep(PATIENCE).await;
            return Err(Undelivered::Unanswered("the request was lost".into()));
        }
        let taken = Taken::begin(&opened).ok_or_else(|| Undelivered::NotSent("it takes no more requests".into()))?;
        let answer = opened.door.answer(request);
        let mut ended = opened.ended.clone();
        drop(opened);
        let answer = tokio::select! { biased;
            answer = answer => answer,
            // Nothing is ever sent: the sender's end is the host's end.
            _ = ended.changed() => return Err(Undelivered::Unanswered("the host has ended".into())),
        };
        drop(taken);
        if answer.len() > MAX_WHOLE_BYTES {
            return Err(Undelivered::Unanswered(format!("an answer of {} bytes ended the link", answer.len()).into()));
        }
        let back = network.faults(to, from);
        if back.is_cut || network.loses(to, from, |faults| &mut faults.lost_answers) {
            clock.sleep(PATIENCE).await;
            return Err(Undelivered::Unanswered("the answer was lost".into()));
        }
        clock.sleep(back.delay).await;
        Ok(answer)
    }

    async fn close(&self) {
        let Some(own) = self.own.lock().clone() else { return };
        let opened = self.network.0.hosts.lock().get(&own.host).cloned();
        if let Some(opened) = opened {
            opened.under_way.send_modify(|under_way| under_way.is_closing = true);
            // It cannot fail: the sender is at hand.
            drop(opened.under_way.subscribe().wait_for(|under_way| under_way.count == 0).await);
        }
    }
}
