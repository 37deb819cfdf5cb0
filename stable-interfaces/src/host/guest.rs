//! An interface of a fleet for a process that is none of its hosts: it asks the owners, owns nothing, and answers nobody.
//!
//! It is a host without shards, lease and door, so its requests go the way that those of a host go which does not own the instance. It reads
//! who the members are from the store, now and then and whenever one of them could not be reached or did not own what it was asked for.

use std::fmt;
use std::time::Duration;

use super::register::{check_names, forward_message};
use super::start::{StartError, begin_tasks, run_deferred};
use crate::clock::{Clock, Random};
use crate::error::WithCauses;
use crate::fleet::{Fleet, HASH_VERSION, check_host};
use crate::forward::reach::Reach;
use crate::forward::table::{Forwards, Json, Whole, Words};
use crate::instance::kind::{InterfaceCore, InterfaceOptions};
use crate::instance::stop::stop_job;
use crate::instance::{Handle, OnConnect, StableInterface};
use crate::interface::{Interface, forward_connections};
use crate::quiet::Quiet;
use crate::shared::{Health, HostCore, HostOptions};
use crate::store::client::Backoff;
use crate::store::{Incarnation, Members, Store, StoreError};
use crate::sync::{Arc, Notify, Runtime};
use crate::transport::{Codec, Crossing, CrossingError, Introduction, TextError, Transport};

/// The time between two looks at the members, if there is no reason for one; hosts renew their leases as often at least.
const LOOK: Duration = Duration::from_secs(5);
/// The shortest time between two.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// An interface on its way to a process that is no host, made by [`FleetClient::interface`](crate::FleetClient::interface).
#[must_use = "an interface is opened by `open()`"]
pub struct GuestBuilder<I: StableInterface> {
    name: Arc<str>,
    fleet: Fleet,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    transport: Arc<dyn Transport>,
    options: InterfaceOptions,
    forwards: Forwards<I>,
}

impl<I: StableInterface> fmt::Debug for GuestBuilder<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestBuilder").field("name", &self.name).field("interface", &I::NAME).finish_non_exhaustive()
    }
}

impl<I: StableInterface> GuestBuilder<I> {
    pub(crate) fn new(
        fleet: Fleet,
        store: Arc<dyn Store>,
        (clock, random): (Arc<dyn Clock>, Arc<dyn Random>),
        transport: Arc<dyn Transport>,
    ) -> GuestBuilder<I> {
        let (name, options, forwards) = ("client".into(), InterfaceOptions::default(), Forwards::default());
        GuestBuilder { name, fleet, store, clock, random, transport, options, forwards }
    }

    /// Sets the name by which the process introduces itself to hosts; it is none of theirs. With TLS its certificate, of the fleet's own
    /// authority, has to be made out to it; several processes may have the same. Default: `client`.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Limits the time that a request waits for its turn, as [`handler_timeout`](crate::InterfaceBuilder::handler_timeout) does on a host. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.handler_timeout = timeout;
        self
    }

    /// Limits the time for which an owner that cannot be reached is asked again, as
    /// [`reach_timeout`](crate::InterfaceBuilder::reach_timeout) does on a host; with zero it is given up at once. Default: a lease of 15 s,
    /// after which a live fleet has another owner.
    pub fn reach_timeout(mut self, timeout: Duration) -> Self {
        self.options.reach_timeout = Some(timeout);
        self
    }

    /// Sends messages of type `M` under this name, as on the hosts: [`InterfaceBuilder::forward`](crate::InterfaceBuilder::forward).
    pub fn forward<M>(mut self, message: &'static str) -> Self
    where
        I: Handle<M>,
        M: Crossing,
        I::Reply: Crossing,
        I::Error: CrossingError,
    {
        forward_message::<I, M, Whole, Json>(&mut self.forwards, message);
        self
    }

    /// As [`InterfaceBuilder::forward_as`](crate::InterfaceBuilder::forward_as).
    pub fn forward_as<M, F>(mut self, message: &'static str) -> Self
    where
        I: Handle<M>,
        M: Crossing,
        I::Reply: Crossing,
        I::Error: CrossingError,
        F: Codec,
    {
        forward_message::<I, M, Whole, F>(&mut self.forwards, message);
        self
    }

    /// As [`InterfaceBuilder::forward_with_text_errors`](crate::InterfaceBuilder::forward_with_text_errors).
    pub fn forward_with_text_errors<M>(mut self, message: &'static str) -> Self
    where
        I: Handle<M>,
        M: Crossing,
        I::Reply: Crossing,
        I::Error: TextError,
    {
        forward_message::<I, M, Words, Json>(&mut self.forwards, message);
        self
    }

    /// Lets it connect, as [`InterfaceBuilder::forward_connections`](crate::InterfaceBuilder::forward_connections).
    pub fn forward_connections(mut self) -> Self
    where
        I: OnConnect,
        I::Meta: Crossing,
        I::Incoming: Crossing,
        I::Outgoing: Crossing,
        I::Error: CrossingError,
    {
        forward_connections::<I, Whole>(&mut self.forwards);
        self
    }

    /// As [`InterfaceBuilder::forward_connections_with_text_errors`](crate::InterfaceBuilder::forward_connections_with_text_errors).
    pub fn forward_connections_with_text_errors(mut self) -> Self
    where
        I: OnConnect,
        I::Meta: Crossing,
        I::Incoming: Crossing,
        I::Outgoing: Crossing,
        I::Error: TextError,
    {
        forward_connections::<I, Words>(&mut self.forwards);
        self
    }

    /// Opens the transport and reads who the members are. The interface may be used until its last clone is dropped, and all it has open ends then.
    ///
    /// # Errors
    /// [`StartError::Transport`], [`StartError::Store`] if the members could not be read within 30 s, [`StartError::Register`] for a name that
    /// cannot be one or is there twice, [`StartError::Option`] if its own name cannot be one, or is that of a host in the fleet's list or
    /// of one that holds a lease, and [`StartError::NoRuntime`].
    pub async fn open(self) -> Result<Interface<I>, StartError> {
        let runtime = Runtime::try_current().map_err(|_| StartError::NoRuntime)?;
        check_names(&self.forwards)?;
        let GuestBuilder { name, fleet, store, clock, random, transport, options, forwards } = self;
        if check_host(&name).is_err() {
            return Err(StartError::Option("the name of a process must have 1 to 255 bytes and no control character"));
        }
        let is_of_a_host = StartError::Option("a process that is no host must not have the name of one");
        if fleet.index_of(&name).is_some() {
            return Err(is_of_a_host);
        }
        let own = Introduction {
            host: name.clone(),
            shards: fleet.shards(),
            hash_version: HASH_VERSION,
            // It claims nothing, so no store has told it; those it calls are those that its own store names.
            store: Arc::default(),
            clock: clock.clone(),
        };
        let links = transport.open(own, None).await.map_err(StartError::Transport)?;
        let (core, look) = (Arc::new(HostCore::new(name, fleet)), Arc::new(Notify::new()));
        core.set_guest(look.clone());
        let settings = HostOptions::default().within_reach(core.fleet.shards());
        core.set(Some(store), clock.clone(), random, settings);
        core.set_reach(Reach::new(transport));
        let deferred_work = begin_tasks(&core, runtime, None, Incarnation(0));
        let there = first_look(&core).await.map_err(StartError::Store)?;
        if there.list.iter().any(|member| member.name == core.name) {
            return Err(is_of_a_host);
        }
        core.see_members(&there);
        core.set_health(Health::Running);
        let this = Arc::downgrade(&core);
        core.spawn_system(links);
        core.spawn_system(run_deferred(deferred_work));
        core.spawn_system(async move {
            let mut is_away = false;
            loop {
                tokio::select! { biased;
                    () = look.notified() => {}
                    () = clock.sleep(LOOK) => {}
                }
                // It ends with the last interface, and so does this task.
                let Some(core) = this.upgrade() else { return };
                match members(&core).await {
                    Ok(members) => {
                        is_away = false;
                        core.see_members(&members);
                    }
                    Err(error) if !std::mem::replace(&mut is_away, true) => {
                        tracing::warn!(error = %WithCauses(&error), "the members could not be read; those that were there last are asked");
                    }
                    Err(_) => {}
                }
                drop(core);
                clock.sleep(LOOK_AGAIN).await;
            }
        });
        let interface = InterfaceCore::new(core, options, Quiet::none(), None, None, stop_job, forwards);
        Ok(Interface::new(Arc::new(interface)))
    }
}

async fn members(core: &HostCore) -> Result<Members, StoreError> {
    match core.timely_store() {
        Some(store) => store.members().await,
        None => Ok(Members::default()),
    }
}

/// The members, read again while the store cannot be reached.
async fn first_look(core: &HostCore) -> Result<Members, StoreError> {
    let mut backoff = Backoff::new(&*core.clock, &*core.random);
    loop {
        match members(core).await {
            Err(error) if error.is_retryable() && !backoff.over(core.options.start_timeout) => backoff.pause().await,
            read => return read,
        }
    }
}
