//! A host that has not been started, and its options.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use super::InterfaceBuilder;
use crate::clock::{Clock, Random, SystemClock, SystemRandom};
use crate::forward::traces::Traces;
use crate::instance::StableInterface;
use crate::shared::{Health, HostCore, HostOptions};
use crate::store::Store;
use crate::sync::Arc;
use crate::transport::Transport;

/// A host that has not been started: its place in the fleet, its store, its interfaces and its limits.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use stable_interfaces::{Fleet, Host, MemoryStore};
///
/// let fleet = Fleet::expand("host-{0..2}", 1_024)?; // The same on all hosts.
/// let host = Host::builder("host-1", fleet)
///     .store(MemoryStore::new())
///     .lease(Duration::from_secs(10))
///     .max_firing(500)
///     .start()
///     .await?;
/// assert_eq!(host.name(), "host-1");
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Debug)]
pub struct HostBuilder {
    pub(super) store: Option<Arc<dyn Store>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) options: HostOptions,
    pub(super) transport: Option<Arc<dyn Transport>>,
    /// Says whether it is the only host of its store.
    pub(super) is_local: bool,
    /// The host that its interfaces point to, until it starts with what was set by then.
    pub(super) core: Option<Arc<HostCore>>,
    pub(super) beside: Beside,
}

/// The tasks that begin when a host has started.
#[derive(Default)]
pub(super) struct Beside(pub(super) Vec<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Beside").field(&self.0.len()).finish()
    }
}

impl HostBuilder {
    /// A builder of this host, with every option at its default.
    pub(super) fn new(core: Arc<HostCore>) -> HostBuilder {
        HostBuilder {
            core: Some(core),
            store: None,
            transport: None,
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom::default()),
            options: HostOptions::default(),
            is_local: false,
            beside: Beside::default(),
        }
    }

    /// Sets the store of alarms and storage.
    #[must_use]
    pub fn store(self, store: impl Store) -> HostBuilder {
        self.shared_store(Arc::new(store))
    }

    /// As [`store`](Self::store), for a store that is shared with other hosts of this process.
    #[must_use]
    pub fn shared_store(mut self, store: Arc<dyn Store>) -> HostBuilder {
        self.store = Some(store);
        self
    }

    /// Sets the way to the other hosts of the fleet: requests that another host is to answer are sent there, and theirs are answered here.
    /// Default: none, and such requests are refused with [`RequestError::NotOwner`](crate::RequestError::NotOwner).
    ///
    /// Only messages cross that were registered with [`InterfaceBuilder::forward`] under the same name on both hosts.
    #[must_use]
    pub fn transport(mut self, transport: impl Transport) -> HostBuilder {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// As [`transport`](Self::transport), for one that something else has too.
    #[cfg(feature = "testing")]
    pub(crate) fn shared_transport(mut self, transport: Arc<dyn Transport>) -> HostBuilder {
        self.transport = Some(transport);
        self
    }

    /// Sets the clock. Default: [`SystemClock`]. With [`Host::local`](super::Host::local), a [`MemoryStore`](crate::MemoryStore) that was given none follows it
    /// too; any other store has an option of its own for the same clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> HostBuilder {
        self.clock = clock;
        self
    }

    /// Sets the source of random numbers. Default: [`SystemRandom`].
    #[must_use]
    pub fn random(mut self, random: Arc<dyn Random>) -> HostBuilder {
        self.random = random;
        self
    }

    /// Sets the time that this host's shards stay its own after its last renewal: others take over no sooner when it dies. It renews three
    /// times in that time. At least 100 ms; 100 years or more are for ever. Default: 15 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> HostBuilder {
        self.options.lease = lease;
        self
    }

    /// Limits the time for which [`start`](Self::start) tries to reach the store. Default: 30 s.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.start_timeout = timeout;
        self
    }

    /// Limits the time that [`run_until`](super::Host::run_until) lets handlers finish. Default: 30 s.
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.drain_timeout = timeout;
        self
    }

    /// Sets the text by which the other hosts of the fleet know the program of this one: a version, the hash of a commit. At most 255 bytes, and
    /// no NUL. Default: none.
    #[must_use]
    pub fn build(mut self, build: impl AsRef<str>) -> HostBuilder {
        self.options.build = build.as_ref().into();
        self
    }

    /// Sets how a trace goes on at another host. `current` tells the context of what runs where it is called, as `traceparent` has it (W3C Trace Context); at
    /// most 255 bytes of it cross. A request that is sent to another host carries it there, where its handler runs in a span `forwarded` with
    /// the field `traceparent`; `go_on` is called with that span and the context, to have the span continue the trace. Default: nothing crosses, and
    /// what came from others is the field alone.
    ///
    /// ```
    /// # use stable_interfaces::{Fleet, Host};
    /// # mod opentelemetry { pub fn current() -> Option<String> { None } pub fn set_parent(_: &tracing::Span, _: &str) {} }
    /// // With `tracing-opentelemetry`: inject the context of `Span::current()`, and extract the one that `OpenTelemetrySpanExt::set_parent` is given.
    /// let host = Host::builder("host-0", Fleet::new(["host-0"], 64).unwrap())
    ///     .traces(opentelemetry::current, |span, traceparent| opentelemetry::set_parent(span, traceparent));
    /// ```
    #[must_use]
    pub fn traces(
        mut self,
        current: impl Fn() -> Option<String> + Send + Sync + 'static,
        go_on: impl Fn(&tracing::Span, &str) + Send + Sync + 'static,
    ) -> HostBuilder {
        self.options.traces = Some(Arc::new(Traces::new(current, go_on)));
        self
    }

    /// Sets the time for which the first host of a [live](crate::Fleet::live) fleet waits for others before it takes all shards; so does one that
    /// finds only others that began within that time. At most the start timeout. Default: 500 ms.
    #[must_use]
    pub fn gather(mut self, wait: Duration) -> HostBuilder {
        self.options.gather = wait;
        self
    }

    /// Sets the time that another host of a [live](crate::Fleet::live) fleet must have been up before this one hands shards over to it, so that one
    /// that comes and goes moves nothing. Default: a [`lease`](Self::lease).
    #[must_use]
    pub fn settle(mut self, time: Duration) -> HostBuilder {
        self.options.settle = Some(time);
        self
    }

    /// The most shards that a host of a [live](crate::Fleet::live) fleet hands over at once. At least 1. Default: 32.
    #[must_use]
    pub fn handoff_batch(mut self, shards: usize) -> HostBuilder {
        self.options.handoff_batch = shards;
        self
    }

    /// Limits the time that a host of a [live](crate::Fleet::live) fleet lets tasks of instances come to their end before it hands over their shard.
    /// Default: 30 s.
    #[must_use]
    pub fn handoff_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.handoff_timeout = timeout;
        self
    }

    /// Sets the time after which one call of the store counts as unanswered. At least 1 ms. Default: 5 s.
    #[must_use]
    pub fn store_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.commit.store_timeout = timeout;
        self
    }

    /// Sets the time after which a sender is told that its commit did not happen, or that its outcome is unknown. Default: 10 s.
    #[must_use]
    pub fn commit_timeout(mut self, timeout: Duration) -> HostBuilder {
        self.options.commit.commit_timeout = timeout;
        self
    }

    /// Sets the number of group commits that may be under way at once; each has a fixed part of the shards, so more than there are shards are no
    /// more, nor more than the store can work on at once ([`Claimed::overlap`](crate::store::Claimed::overlap): one on Fjall, whose writes share a journal). At least 1. Default: 2.
    #[must_use]
    pub fn lanes(mut self, lanes: u16) -> HostBuilder {
        self.options.commit.lanes = lanes;
        self
    }

    /// The most commits waiting to be written in a lane; past it, requests are refused as overloaded. At least 1. Default: 16,384.
    #[must_use]
    pub fn max_queued_commits(mut self, commits: usize) -> HostBuilder {
        self.options.commit.max_queued = commits;
        self
    }

    /// The most bytes of commits waiting to be written in a lane, keys and values together; past it, requests are refused as
    /// overloaded. A handler that has begun may still add its own. At least 1. Default: 67,108,864 (64 MiB).
    #[must_use]
    pub fn max_queued_bytes(mut self, bytes: usize) -> HostBuilder {
        self.options.commit.max_queued_bytes = bytes;
        self
    }

    /// The most alarms and messages being handled or committed at once. At least 1. Default: 1,024.
    #[must_use]
    pub fn max_firing(mut self, alarms: usize) -> HostBuilder {
        self.options.limits.max_firing = alarms;
        self
    }

    /// Limits the number of times that alarms of one instance fire within a second; past it they are slowed down to that: what stops an alarm
    /// that sets itself again and again at once. At least 1. Default: 1,000.
    #[must_use]
    pub fn max_fires_per_second(mut self, fires: u32) -> HostBuilder {
        self.options.limits.max_fires_per_second = fires;
        self
    }

    /// Limits the number of processes that died while an alarm or message was handled, before it becomes a dead letter. At least 1.
    /// Default: 3.
    #[must_use]
    pub fn max_crashes(mut self, crashes: u32) -> HostBuilder {
        self.options.limits.max_crashes = crashes;
        self
    }

    /// The most open connections, over all interfaces; with 0 none is let in. Default: 100,000.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> HostBuilder {
        self.options.max_connections = connections;
        self
    }

    /// Limits the difference between this host's wall clock and the store's when it starts. Default: 60 s.
    #[must_use]
    pub fn max_clock_skew(mut self, skew: Duration) -> HostBuilder {
        self.options.max_clock_skew = skew;
        self
    }

    /// Limits the number of alarms that all windows of this host together hold in memory, roughly; at least 16 per shard. Default: 65,536.
    #[must_use]
    pub fn alarm_window(mut self, alarms: usize) -> HostBuilder {
        self.options.window = alarms;
        self
    }

    /// About how many bytes of alarms this host holds in memory, with what they carry: half of it of alarms that wait, half of alarms and
    /// messages being handled. An alarm for which there is no room is loaded when it is due. Where there are less than a few alarms' worth,
    /// they are loaded one by one. Default: 64 MiB.
    #[must_use]
    pub fn alarm_window_bytes(mut self, bytes: usize) -> HostBuilder {
        self.options.limits.window_bytes = bytes;
        self
    }

    /// Registers an interface whose instances are built by `factory` from their ID. Finish with
    /// [`register`](InterfaceBuilder::register). The host's own options may be set before or after.
    pub fn interface<I: StableInterface>(
        &mut self,
        factory: impl Fn(&str) -> I + Send + Sync + 'static,
    ) -> InterfaceBuilder<'_, I> {
        InterfaceBuilder::new(self, factory)
    }

    /// Runs `task` beside the host, from the moment at which it has started until it ends: then the task is dropped where it waits. A host
    /// whose task panics ends.
    ///
    /// For what has to be done once interfaces can be asked. A drain does not wait for it.
    pub fn beside(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.beside.0.push(Box::pin(task));
    }

    pub(super) fn core(&self) -> Arc<HostCore> {
        self.core.clone().expect("only starting takes the host out of its builder")
    }
}

impl Drop for HostBuilder {
    /// Interfaces and their host point at each other: a host that is not started after all lets go of them here.
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            core.stop(Health::Stopped);
        }
    }
}
