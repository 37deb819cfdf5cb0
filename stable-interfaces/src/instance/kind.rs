//! One registered interface on one host: its limits, its instances, and what was captured where its traits are known.
//!
//! Plain data. What is done with it stands above: the request path in [`submit`](super::submit), the host's part in the interface.

use std::fmt;
use std::time::Duration;

use super::StableInterface;
use super::job::Job;
use super::slot::{Slot, Taken};
use super::table::Table;
use crate::alarm::RetryPolicy;
use crate::commit::gate::Ticket;
use crate::directive::Needs;
use crate::error::{ContextError, RequestError};
use crate::forward::table::Forwards;
use crate::once::Keep;
use crate::quiet::Quiet;
use crate::shards::delivery::Delivery;
use crate::shared::{Health, HostCore};
use crate::sync::Arc;

/// Limits and times of one interface, with their defaults.
#[derive(Debug, Clone)]
pub(crate) struct InterfaceOptions {
    pub(crate) handler_timeout: Duration,
    pub(crate) stop_timeout: Duration,
    pub(crate) max_waiting: usize,
    pub(crate) max_instances: usize,
    pub(crate) idle_timeout: Duration,
    /// In place of the lease.
    pub(crate) reach_timeout: Option<Duration>,
    pub(crate) retry: RetryPolicy,
    /// In place of the host's.
    pub(crate) max_crashes: Option<u32>,
    pub(crate) keep: Keep,
}

impl Default for InterfaceOptions {
    fn default() -> InterfaceOptions {
        InterfaceOptions {
            handler_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(30),
            max_waiting: 4_096,
            max_instances: 4_000_000,
            idle_timeout: Duration::from_secs(600),
            reach_timeout: None,
            retry: RetryPolicy::default(),
            max_crashes: None,
            keep: Keep::default(),
        }
    }
}

pub(crate) type Factory<I> = Box<dyn Fn(&str) -> I + Send + Sync>;

/// Hands something due to its instance, which has been looked up already or has not. Captured where the interface's traits are known.
pub(crate) type WakeFn<I> = fn(&Arc<InterfaceCore<I>>, Delivery, Option<Found<I>>);

/// The instance for which something is due, as it was found.
pub(crate) struct Found<I: StableInterface> {
    pub(crate) slot: Arc<Slot<I>>,
    pub(crate) taken: Taken<I>,
    /// The place of the commit that has the mark in it, if that has been queued.
    pub(crate) marked: Option<Ticket>,
}

/// One registered interface on one host.
pub(crate) struct InterfaceCore<I: StableInterface> {
    pub(crate) name: Arc<str>,
    pub(crate) host: Arc<HostCore>,
    pub(crate) table: Table<Slot<I>>,
    pub(crate) options: InterfaceOptions,
    /// None where no instance is ever built.
    factory: Quiet<Factory<I>>,
    /// Makes the message that lets an instance leave memory.
    pub(crate) stop: fn() -> Box<dyn Job<I>>,
    /// Handles an alarm, if the interface was registered with alarms.
    pub(crate) fire: Option<WakeFn<I>>,
    /// Handles a message, if the interface was registered with an inbox.
    pub(crate) take: Option<WakeFn<I>>,
    /// The messages that may cross from host to host.
    pub(crate) forwards: Forwards<I>,
}

impl<I: StableInterface> fmt::Debug for InterfaceCore<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterfaceCore").field("name", &self.name).field("table", &self.table).finish_non_exhaustive()
    }
}

impl<I: StableInterface> InterfaceCore<I> {
    pub(crate) fn new(
        host: Arc<HostCore>,
        options: InterfaceOptions,
        factory: Quiet<Factory<I>>,
        fire: Option<WakeFn<I>>,
        take: Option<WakeFn<I>>,
        stop: fn() -> Box<dyn Job<I>>,
        forwards: Forwards<I>,
    ) -> Self {
        InterfaceCore {
            name: I::NAME.into(),
            table: Table::new(options.max_instances),
            host,
            options,
            factory,
            fire,
            take,
            stop,
            forwards,
        }
    }

    /// A new instance.
    pub(crate) fn build(&self, id: &str) -> I {
        let factory = self.factory.as_ref().expect("the factory is there as long as its interface");
        factory(id)
    }

    /// Refuses what this interface was registered without: it would be stored, and never handled.
    pub(crate) fn require(&self, needs: Needs) -> Result<(), ContextError> {
        // What the owner has it says itself.
        let is_guest = self.host.is_guest();
        needs.check(I::NAME, is_guest || self.fire.is_some(), is_guest || self.take.is_some())
    }

    /// Refuses what needs the host's settings, before it has them.
    pub(crate) fn require_started(&self) -> Result<(), RequestError<I::Error>> {
        if self.host.health() == Health::NotStarted { Err(RequestError::NotStarted) } else { Ok(()) }
    }
}
