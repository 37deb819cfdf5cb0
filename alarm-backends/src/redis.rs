//! A fleet's store in Redis 7 or newer (or Valkey): one server, or a cluster.
//!
//! All of a shard is under one hash tag, `{prefix:shard}`, so one script can check and change it as one step, and in a cluster it is on one
//! server. Every change is such a script, and each first finds out everything that could make it fail: a script that
//! fails midway keeps what it has written. Numbers travel as text or bytes, since Lua's are doubles. No key has a time to live.
//!
//! # Claims, leases and fences
//!
//! Each shard's hash `own` holds its epoch, owner, lease and the last write of each of the owner's lanes. *The fence* is that hash: a
//! commit's script compares epoch and owner in the step that writes, so a stale owner's write does nothing, whatever
//! anyone's clock says. *The lease* only decides when others may take the shard; its end is a time of the shard's own server.
//! Claiming is one script per shard: it sees whether the shard is free, raises the epoch and names the new owner, so there is no
//! moment between the decision and the fence.
//!
//! What concerns a whole life of a host is under the tag `{prefix}`: shard count and hash version, the ID of the store, which lives there are,
//! and the shards that any life of a host has ever asked for. A claim goes there first. A start gets a birth number there, greater than
//! all before, then visits every shard that an earlier life of its name may own: it takes it or marks it ended, and leaves its
//! birth number. A claim of an earlier life that arrives late finds a greater number, and is refused as replaced. What is kept of a name is
//! forgotten when it has been no member's for a week and owns no shard, some names at each start.
//!
//! What that costs, and what was traded for it: on one server all scripts of a call go in one round trip, a hundred shards in each for
//! leases, as many as have a thousand operations together in each for a write, where every shard is checked and answered for itself. In a
//! cluster there is no step over several slots, so
//!
//! - a lease is kept per shard, not per host: a renewal is one short script (one hash) for each shard the host owns, all sent at
//!   once, some 5 µs of a server's time each. In return no shard's lease depends on another server: when one server
//!   is gone, its shards are kept for as long as their lease lasts, and then given up until they can be claimed again, under a greater
//!   epoch; the others go on. A single lease record would be cheaper, and would stop the whole fleet with the server that has it;
//! - a claim of many shards is not one step: each shard's part is. Two hosts that claim the same shards at once may each get
//!   some, never both the same one;
//! - a write is one script for each of its shards, some 10 µs of a server's time more than its part of a script for all;
//! - while the server of `{prefix}` is gone, hosts cannot start or claim, but those that run renew and write;
//! - a shard whose server cannot be reached at a claim is reported as held, so that the host starts with the others and asks again;
//! - while a slot moves from one server to another, a write to its shards waits until all keys that it uses are on one of them, and one
//!   that makes a key until the end of the move.
//!
//! A cluster stops wholly when one of its servers is gone, unless it is told `cluster-require-full-coverage no`.
//!
//! # What is acknowledged, and what survives
//!
//! An acknowledged write is in the server's memory and append-only file; whether the disk has it is `appendfsync`'s matter. With `always`
//! it survives everything but the disk; with `everysec` a kill of the server, but up to the last second is lost with the machine; without an
//! append-only file the end of the server's process loses all since the last snapshot. Replication is asynchronous: a failover may
//! lose what the replica lacks, which [`replicas`](RedisStoreBuilder::replicas) narrows and does not close. The
//! store warns of each weaker setting when it connects.
//!
//! A running host notices a server that came back with less than it acknowledged: it compares the store's ID, each shard's epoch and
//! owner, and the sequence numbers of its own writes at every commit and renewal. The store then answers [`StoreError::Lost`] to this
//! life of the host for good. Not `Unavailable`, which would be repeated for ever; not `Fenced`, which says that somebody else has the
//! shard: memory and store differ, so the host posts the alarms it still knows, ends, and must start anew. What that does not notice: lost messages
//! of [`post`](Store::post) where nothing else was lost, and whatever was lost while no host ran; a start on an empty store logs
//! a warning, and is refused with [`must_exist`](RedisStoreBuilder::must_exist).
//!
//! # Rights
//!
//! An ACL user needs `~{prefix*`, `&prefix:*`, and the commands
//! `+eval +evalsha +script|load +info +wait +subscribe +publish +@hash +@sortedset +@set +@list +del +type +time`, in a cluster also `+cluster|slots
//! +asking`. [`connect`](RedisStore::connect) tries them out. `+config|get` only lets it know `appendfsync`.

mod driver;
mod failure;
mod key;
mod link;
mod members;
mod names;
mod node;
mod ownership;
mod reply;
mod scan;
mod script;
mod server;
mod target;
mod watermarks;
mod write;
#[cfg(any(test, fuzzing))]
pub(crate) use self::scan::fuzzing;

use std::fmt;
use std::future::pending;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use redis::{TlsCertificates, Value};
use stable_interfaces::clock::{Clock, SystemClock};
use stable_interfaces::store::{
    Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Page, Read, Renewal, Renewed,
    ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError};

use self::failure::Failure;
use self::key::Keys;
use self::link::Link;
use self::node::{FIRST_PAUSE, MAX_PAUSE, within};
use self::reply::{list, optional_text};
use self::script::{Call, PROBE};
use self::target::Target;
use self::watermarks::Watermarks;
use crate::hint::hint;

/// The last [step](crate::steps) of the layout that this code knows.
///
/// | step | what it adds |
/// | --- | --- |
/// | 1 | everything |
/// | 2 | the record of steps in the fleet's hash: `step`, `needs`, `release` |
/// | 3 | the members of the fleet: the hash `members`, and `members` in the fleet's hash |
const STEP: u32 = 3;

/// The links that lanes share for their writes: as many as a host has lanes by default, so that an answer wakes the lane that waits for it and mostly no
/// other.
const WRITE_LINKS: usize = 2;

/// The interval at which a connection that listens is seen to be alive.
const LISTENER_PING: Duration = Duration::from_secs(3);

/// The names of a shard's keys behind their hash tag.
mod keys_of {
    pub(super) const OWN: &str = "own";
    pub(super) const ALARMS: &str = "alarms";
    pub(super) const DUE: &str = "alarms.due";
    pub(super) const ALARM_IDS: &str = "alarms.ids";
    pub(super) const INBOX: &str = "inbox";
    pub(super) const INBOX_ORDER: &str = "inbox.order";
    pub(super) const INBOX_PROGRESS: &str = "inbox.progress";
    pub(super) const DEAD: &str = "dead";
    pub(super) const DEAD_ORDER: &str = "dead.order";
    pub(super) const STORAGE: &str = "storage";
    pub(super) const STORAGE_ORDER: &str = "storage.order";
    /// The keys of each kind of rows: alarms, messages, dead letters, values. In the order of the commit script.
    pub(super) const OF_ROWS: [&[&str]; 4] = [
        &[ALARMS, DUE, ALARM_IDS],
        &[INBOX, INBOX_ORDER, INBOX_PROGRESS],
        &[DEAD, DEAD_ORDER],
        &[STORAGE, STORAGE_ORDER],
    ];
}

/// A store in Redis, for all hosts of a fleet. See [the module](self) for what it promises and how.
///
/// Clones share connections: two for the writes of lanes, one for messages, one for reading, one for claims and one for renewals, to each server; a
/// [`watch`](Store::watch) has its own. They are made when first needed, and made again when they break. Sentinel is not
/// supported: name the master, or an address that follows it.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use alarm_backends::RedisStore;
///
/// let store = RedisStore::connect("redis://127.0.0.1:6379").await?;
/// let cluster = RedisStore::cluster(["rediss://me:secret@db-1:6379", "rediss://me:secret@db-2:6379"])
///     .prefix("orders")
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore(Arc<Inner>);

/// Options of a [`RedisStore`]. Made by [`RedisStore::builder`] or [`RedisStore::cluster`].
#[must_use]
pub struct RedisStoreBuilder {
    urls: Vec<String>,
    is_cluster: bool,
    prefix: String,
    timeout: Duration,
    replicas: u32,
    must_exist: bool,
    clock: Option<Arc<dyn Clock>>,
    tls: Option<TlsCertificates>,
}

struct Inner {
    target: Arc<Target>,
    keys: Keys,
    /// Links for writes, each for some lanes; others are apart, so that a large page does not delay a write, and neither a renewal.
    writes: [Link; WRITE_LINKS],
    posts: Link,
    reads: Link,
    leases: Link,
    /// The link for renewals alone: its connections are made on the runtime that renews, which others cannot keep busy.
    renewals: Link,
    watermarks: Watermarks,
    must_exist: bool,
}

impl RedisStore {
    /// Connects to one server: `redis://[user:password@]host[:port][/db]`, or `rediss://..` for TLS.
    ///
    /// With TLS the server's certificate and name are verified, against the roots that the operating system trusts or that the
    /// file named by `SSL_CERT_FILE` holds; [`tls`](RedisStoreBuilder::tls) names others. Where the program has not chosen a cryptographic
    /// library for `rustls`, `ring` becomes its choice.
    ///
    /// # Errors
    /// As [`RedisStoreBuilder::connect`].
    pub async fn connect(url: &str) -> Result<RedisStore, StoreError> {
        RedisStore::builder(url).connect().await
    }

    /// As [`connect`](Self::connect), with other settings than the default ones.
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(vec![url.into()], false)
    }

    /// A store in a cluster, found by one or more of its servers. All take the same user, password and encryption.
    pub fn cluster(urls: impl IntoIterator<Item = impl Into<String>>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(urls.into_iter().map(Into::into).collect(), true)
    }

    /// Losses that the settings of the servers connected to so far allow, one sentence each. Each has also been logged.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.0.target.warnings()
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("target", &self.0.target).field("keys", &self.0.keys).finish_non_exhaustive()
    }
}

/// More replicas than anybody has would leave every write without an answer.
const MAX_REPLICAS: u32 = 1_000;

impl RedisStoreBuilder {
    fn new(urls: Vec<String>, is_cluster: bool) -> RedisStoreBuilder {
        let (prefix, timeout) = ("stable".to_owned(), Duration::from_secs(5));
        RedisStoreBuilder { urls, is_cluster, prefix, timeout, replicas: 0, must_exist: false, clock: None, tls: None }
    }

    /// Sets the text that all keys begin with, so that several fleets can share a server: 1 to 64 letters, digits or any of `-_./`.
    /// Default: `stable`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Limits the time that servers may take to answer a question, connecting included. A claim asks twice, a large page several times. In a
    /// cluster claims and renewals wait half as long for each server, so that those which answer are heard in time. At least
    /// 1 ms. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the number of replicas that must have a write before it is acknowledged (`WAIT`); until they do, its outcome is unknown. A failover may
    /// still choose a replica without it. At most 1,000. Default: 0.
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// Refuses a claim when there is no store under this prefix, so that a server that came back empty is never taken for a
    /// new one. Default: no, the first claim makes the store.
    pub fn must_exist(mut self, must_exist: bool) -> Self {
        self.must_exist = must_exist;
        self
    }

    /// TLS with other roots or a client certificate, for addresses that begin with `rediss://`.
    pub fn tls(mut self, certificates: TlsCertificates) -> Self {
        self.tls = Some(certificates);
        self
    }

    /// Sets the clock that measures timeouts. Leases and arrival times follow the servers' clocks. Default: [`SystemClock`].
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// A store that connects when it is first used.
    ///
    /// # Errors
    /// [`StoreError::Open`] if an address, the prefix or a certificate cannot be understood, or another option cannot work.
    pub fn build(self) -> Result<RedisStore, StoreError> {
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock::default()));
        let keys = Keys::new(&self.prefix).map_err(|text| StoreError::Open(text, None))?;
        if self.timeout < Duration::from_millis(1) {
            return Err(StoreError::Open("the timeout must be at least 1 ms".to_owned(), None));
        }
        if self.replicas > MAX_REPLICAS {
            return Err(StoreError::Open(format!("replicas must be at most {MAX_REPLICAS}"), None));
        }
        let target = |replicas| {
            let tls = self.tls.as_ref();
            Target::new(&self.urls, tls, self.is_cluster, self.timeout, replicas, clock.clone()).map(Arc::new)
        };
        // A read or a lease that replicas lack is no worse for it.
        let (target, waiting) = (target(0)?, target(self.replicas)?);
        let of_lanes = Arc::new(waiting.driven_by_calls());
        // In a cluster, what the other servers say must be heard before a host gives up the whole call.
        let leasing = Arc::new(target.with_timeout(if self.is_cluster { self.timeout / 2 } else { self.timeout }));
        Ok(RedisStore(Arc::new(Inner {
            keys,
            writes: std::array::from_fn(|_| Link::new(of_lanes.clone())),
            posts: Link::new(waiting),
            reads: Link::new(target.clone()),
            leases: Link::new(leasing.clone()),
            renewals: Link::new(leasing),
            target,
            watermarks: Watermarks::default(),
            must_exist: self.must_exist,
        })))
    }

    /// Connects, trying again while the server is away, and finds out whether its settings and the user's rights will do.
    ///
    /// # Errors
    /// [`StoreError::Open`] if they will not, or the server takes no TLS where that was asked for; it says what to change.
    /// [`StoreError::NotApplied`] or [`StoreError::Unavailable`] if the server could not be reached or did not answer within the
    /// [timeout](Self::timeout); call again.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        let store = self.build()?;
        let target = &store.0.target;
        let without_tls = async {
            // By now a server with TLS would have answered. One without waits for the end of what it takes for a command.
            target.clock.sleep(target.timeout / 2).await;
            match target.without_tls().await {
                Some(address) => address,
                None => pending().await,
            }
        };
        tokio::select! { biased;
            opened = store.0.open() => opened?,
            address = without_tls => {
                let text = format!("{address} talks without TLS; name it with redis:// where the network can be trusted, or set its tls-port");
                return Err(StoreError::Open(text, None));
            }
        }
        Ok(store)
    }
}

impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses may hold passwords.
        f.debug_struct("RedisStoreBuilder")
            .field("is_cluster", &self.is_cluster)
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("replicas", &self.replicas)
            .field("must_exist", &self.must_exist)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Asks whether the server will do, again and again while it is away.
    async fn open(&self) -> Result<(), StoreError> {
        let clock = &*self.target.clock;
        let deadline = clock.elapsed().saturating_add(self.target.timeout);
        let (jitter, mut pause, mut last) = (RandomState::new(), FIRST_PAUSE, None);
        loop {
            let probe = Call::new(&PROBE, &["probe", "fleet"].map(|suffix| self.keys.fleet(suffix)));
            match within(clock, deadline, self.leases.one(probe))
                .await
                .map(|asked| asked.map_err(Failure::into_open_error))
            {
                Some(Ok(answer)) => return self.check_record(answer),
                Some(Err(error)) if error.is_retryable() => last = Some(error),
                Some(Err(error)) => return Err(error),
                None => return Err(self.target.no_connection(last)),
            }
            let share = u32::try_from(jitter.hash_one(pause) % 100).unwrap_or(0);
            let jittered = pause / 2 + pause * share / 100;
            if jittered >= deadline.saturating_sub(clock.elapsed()) {
                return Err(self.target.no_connection(last));
            }
            clock.sleep(jittered).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Checks what a probe found of the fleet's record.
    fn check_record(&self, answer: Value) -> Result<(), StoreError> {
        let texts = list(answer).and_then(|items| items.into_iter().map(optional_text).collect::<Result<Vec<_>, _>>());
        match texts.map_err(Failure::into_open_error)?.as_slice() {
            // No fleet yet.
            [None, ..] => Ok(()),
            [_, step, needs, release] => {
                self.read_record(step.as_deref(), needs.as_deref(), release.as_deref()).map(drop)
            }
            other => Err(Failure::unexpected(&other).into_open_error()),
        }
    }

    /// Subscribes at the first server that takes it: in a cluster every server hears what any of them publishes.
    async fn watch(&self) -> Result<Hints, StoreError> {
        let deadline = self.target.clock.elapsed().saturating_add(self.target.timeout);
        let mut failed = "no server was named".to_owned();
        for address in self.reads.addresses() {
            match within(&*self.target.clock, deadline, self.subscribe(&address)).await {
                Some(Ok((pings, messages))) => {
                    return Ok(forwarded(messages, alive(self.target.clone(), address, pings)));
                }
                Some(Err(error)) => failed = format!("{address}: {error}"),
                None => failed = format!("{address}: no answer within {:?}", self.target.timeout),
            }
        }
        Err(StoreError::Unavailable(failed.into()))
    }

    async fn subscribe(&self, address: &str) -> redis::RedisResult<(redis::aio::PubSubSink, redis::aio::PubSubStream)> {
        let client = self.target.client(address)?;
        let mut subscriber = client.get_async_pubsub().await?;
        subscriber.subscribe(self.keys.channel()).await?;
        Ok(subscriber.split())
    }
}

/// Ends when the server of a subscription does not answer in time: a connection that has died without a word looks like one on which
/// nobody posts.
async fn alive(target: Arc<Target>, address: String, mut pings: redis::aio::PubSubSink) {
    loop {
        target.clock.sleep(LISTENER_PING).await;
        let deadline = target.clock.elapsed() + target.timeout;
        if !matches!(within(&*target.clock, deadline, pings.ping::<Value>()).await, Some(Ok(_))) {
            tracing::warn!(%address, "the connection to Redis that listens for messages has fallen silent; it is made anew");
            return;
        }
    }
}

/// Passes hints on until the connection breaks, is not `alive` any more, or nobody listens.
fn forwarded(mut messages: redis::aio::PubSubStream, alive: impl Future<Output = ()> + Send + 'static) -> Hints {
    let (sender, hints) = Hints::channel();
    tokio::spawn(async move {
        let mut alive = std::pin::pin!(alive);
        loop {
            let message = tokio::select! { biased;
                () = sender.closed() => return,
                message = messages.next() => message,
                () = &mut alive => return,
            };
            let Some(message) = message else { return };
            if let Some(hint) = std::str::from_utf8(message.get_payload_bytes()).ok().and_then(hint) {
                sender.send(hint);
            }
        }
    });
    hints
}

#[async_trait]
impl Store for RedisStore {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.0.claim(claim).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        self.0.renew(renewal).await
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.0.release(incarnation, given_up).await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.0.cordon(member, is_cordoned, seen).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.0.members().await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.0.commit(write).await
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.0.post(messages).await
    }

    async fn watch(&self, _incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.0.watch().await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.0.load(pages).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        self.0.read(read).await
    }
}
