//! One life of a host, for what runs on it and for those who ask it.

use std::fmt;
use std::time::Duration;

use super::Common;
use super::link::HostClock;
use crate::clock::{Clock, Sleep, Timestamp};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::testing::{History, SeededRandom};

/// One life of a host, or of a process that is none, as what runs on it sees it.
#[derive(Clone)]
pub struct Life(pub(super) Arc<LifeState>);

pub(super) struct LifeState {
    pub(super) number: u64,
    pub(super) name: Arc<str>,
    pub(super) clock: Arc<HostClock>,
    pub(super) common: Arc<Common>,
    /// Tells whether it is the last of its name that was started.
    pub(super) is_current: AtomicBool,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life").field("host", &self.0.name).field("number", &self.0.number).finish_non_exhaustive()
    }
}

impl Life {
    /// The number of this life, counted over all lives of all hosts.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// The name of the life's host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.name
    }

    /// The clock of the life's process.
    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        self.0.clock.clone()
    }

    /// The wall clock of the life's host.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// The latest time that the host's wall clock has ever shown.
    #[must_use]
    pub fn latest(&self) -> Timestamp {
        self.0.clock.latest()
    }

    /// A sleep by the host's clock, which does not end while the host stands still.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.0.clock.sleep(duration)
    }

    /// Waits while the host stands still.
    pub async fn awake(&self) {
        self.0.clock.pause.passed().await;
    }

    /// Tells whether no other life of the same host has been started since.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.0.is_current.load(Ordering::SeqCst)
    }

    /// Tells whether nothing fails any more.
    #[must_use]
    pub fn is_healed(&self) -> bool {
        self.0.common.is_healed.load(Ordering::SeqCst)
    }

    /// The history in which all that happens is written down.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.0.common.history
    }

    /// The random numbers of this simulation.
    #[must_use]
    pub fn random(&self) -> &SeededRandom {
        &self.0.common.random
    }

    /// Counts an operation that was acknowledged.
    pub fn count(&self, kind: &str) {
        self.0.common.operations.lock().add(kind, 1);
    }

    /// Counts something that was made to fail.
    pub fn fault(&self, name: &str) {
        self.0.common.fault(name);
    }
}

/// A host as its clients see it.
#[derive(Clone)]
pub struct Site<A> {
    pub(super) life: Life,
    pub(super) app: A,
}

impl<A> fmt::Debug for Site<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("life", &self.life).finish_non_exhaustive()
    }
}

impl<A> Site<A> {
    /// The application's handles on this host.
    #[must_use]
    pub fn app(&self) -> &A {
        &self.app
    }

    /// The life of a host that it is.
    #[must_use]
    pub fn life(&self) -> &Life {
        &self.life
    }
}
