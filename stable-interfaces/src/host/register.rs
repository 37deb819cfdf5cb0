//! The registration of an interface with a host.

use std::future::Future;
use std::time::Duration;

use super::HostBuilder;
use crate::alarm::RetryPolicy;
use crate::forward::question::answer_question;
use crate::forward::serve::answer_message;
use crate::forward::table::{Errors, Forwards, Json, Whole, Words};
use crate::id::is_interface_name;
use crate::instance::kind::{InterfaceCore, InterfaceOptions, WakeFn};
use crate::instance::stop::stop_job;
use crate::instance::{Handle, OnAlarm, OnConnect, OnMessage, StableInterface};
use crate::interface::{Interface, fire_alarm, forward_connections, take_message};
use crate::quiet::Quiet;
use crate::sync::Arc;
use crate::transport::{Codec, Crossing, CrossingError, Question, TextError};

/// The reason why an interface was not registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The interface's `NAME` is not `[a-z0-9_-]{1,64}`.
    #[error("{0:?} cannot be the name of an interface: it must be 1 to 64 of a-z, 0-9, _ and -")]
    InvalidName(&'static str),
    /// An interface of that `NAME` is registered already.
    #[error("an interface named {0:?} is registered already")]
    Duplicate(&'static str),
    /// The name under which a message is to cross is not `[a-z0-9_-]{1,64}`.
    #[error("{0:?} cannot be the name of a message: it must be 1 to 64 of a-z, 0-9, _ and -")]
    InvalidMessageName(&'static str),
    /// Two messages are to cross under this name, or one of them under two.
    #[error("a message named {0:?}, or its type, has a name already")]
    DuplicateMessage(&'static str),
}

/// An interface on its way into a host.
#[must_use = "an interface is registered by `register()`"]
pub struct InterfaceBuilder<'a, I: StableInterface> {
    host: &'a mut HostBuilder,
    factory: Box<dyn Fn(&str) -> I + Send + Sync>,
    options: InterfaceOptions,
    fire: Option<WakeFn<I>>,
    take: Option<WakeFn<I>>,
    forwards: Forwards<I>,
}

impl<I: StableInterface> std::fmt::Debug for InterfaceBuilder<'_, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InterfaceBuilder")
            .field("name", &I::NAME)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<'a, I: StableInterface> InterfaceBuilder<'a, I> {
    /// An interface of this host whose instances are built so.
    pub(super) fn new(host: &'a mut HostBuilder, factory: impl Fn(&str) -> I + Send + Sync + 'static) -> Self {
        InterfaceBuilder {
            host,
            factory: Box::new(factory),
            options: InterfaceOptions::default(),
            fire: None,
            take: None,
            forwards: Forwards::default(),
        }
    }

    /// Lets the instances handle alarms.
    pub fn with_alarms(mut self) -> Self
    where
        I: OnAlarm,
    {
        self.fire = Some(fire_alarm::<I>);
        self
    }

    /// Lets the instances take messages from their inbox.
    pub fn with_inbox(mut self) -> Self
    where
        I: OnMessage,
    {
        self.take = Some(take_message::<I>);
        self
    }

    /// Lets messages of type `M` cross from host to host: requests with them are answered on every host that has a
    /// [`transport`](HostBuilder::transport), by whichever owns the instance.
    ///
    /// `message` is their name between hosts, `[a-z0-9_-]{1,64}`, unique within the interface: it must never change, and the type's own name
    /// may. They cross as JSON, so that a field with a default can be added while older programs run. An error of the interface crosses as
    /// what it is, and all others of [`RequestError`](crate::RequestError) as well.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use stable_interfaces::{Context, ContextError, Handle, Host, MemoryStore, StableInterface};
    /// # struct Order;
    /// # impl StableInterface for Order {
    /// #     const NAME: &'static str = "order";
    /// #     type Error = ContextError;
    /// # }
    /// #[derive(Serialize, Deserialize)]
    /// struct Place { cents: u64 }
    ///
    /// impl Handle<Place> for Order {
    ///     type Reply = u64;
    ///     async fn handle(&mut self, cx: &mut Context, Place { cents }: Place) -> Result<u64, ContextError> {
    ///         cx.put("cents", &cents)?;
    ///         Ok(cents)
    ///     }
    /// }
    ///
    /// # let mut host = Host::local(MemoryStore::new());
    /// let orders = host.interface(|_id| Order).forward::<Place>("place").register()?;
    /// # Ok::<(), stable_interfaces::RegisterError>(())
    /// ```
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

    /// As [`forward`](Self::forward), in a form of the application's own in place of JSON, which is to be the same on all hosts: for messages and replies
    /// with many bytes, which take three times as much room as text. A message that is sent by
    /// [`request_once`](crate::Interface::request_once) is JSON all the same, and its reply is in this form.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize, de::DeserializeOwned};
    /// # use stable_interfaces::{Context, ContextError, Handle, Host, MemoryStore, StableInterface, store::BoxError};
    /// use stable_interfaces::transport::Codec;
    ///
    /// struct Binary;
    ///
    /// impl Codec for Binary {
    ///     fn write<T: Serialize>(value: &T) -> Result<Vec<u8>, BoxError> {
    ///         // Of whatever crate: `postcard::to_stdvec`, say.
    /// #       Ok(serde_json::to_vec(value)?)
    ///     }
    ///
    ///     fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError> {
    /// #       Ok(serde_json::from_slice(bytes)?)
    ///     }
    /// }
    /// # struct Album;
    /// # impl StableInterface for Album {
    /// #     const NAME: &'static str = "album";
    /// #     type Error = ContextError;
    /// # }
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Picture(Vec<u8>);
    /// # impl Handle<Picture> for Album {
    /// #     type Reply = ();
    /// #     async fn handle(&mut self, _: &mut Context, _: Picture) -> Result<(), ContextError> { Ok(()) }
    /// # }
    /// # let mut host = Host::local(MemoryStore::new());
    /// let albums = host.interface(|_id| Album).forward_as::<Picture, Binary>("picture").register()?;
    /// # Ok::<(), stable_interfaces::RegisterError>(())
    /// ```
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

    /// As [`forward`](Self::forward), where the interface's own error cannot be written and read again, as an `anyhow::Error` cannot: its words
    /// and those of its causes cross, as a
    /// [`RemoteError`](crate::transport::RemoteError) that it is made from.
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

    /// Answers a [`Question`] of other hosts of the fleet, by a function beside all instances: it takes no turn of any, holds up no handoff, and
    /// may take its time. It should end soon after [`Interface::stopping`], for a drain waits for what other hosts are waiting for.
    ///
    /// For what a host knows and its store does not, or not yet.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use stable_interfaces::{ContextError, Host, Interface, MemoryStore, StableInterface};
    /// # use stable_interfaces::transport::Question;
    /// # struct Order;
    /// # impl StableInterface for Order {
    /// #     const NAME: &'static str = "order";
    /// #     type Error = ContextError;
    /// # }
    /// #[derive(Serialize, Deserialize)]
    /// struct HowMany;
    ///
    /// impl Question for HowMany {
    ///     const NAME: &'static str = "how-many";
    ///     type Answer = usize;
    /// }
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut host = Host::local(MemoryStore::new());
    /// let orders = host.interface(|_id| Order);
    /// let orders = orders.answer(async |orders: Interface<Order>, _: HowMany| orders.running()).register()?;
    /// let host = host.start().await?;
    /// assert_eq!(orders.ask_host(host.name(), &HowMany).await?, 0);
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
    /// ```
    pub fn answer<Q, F, Fut>(mut self, answer: F) -> Self
    where
        Q: Question,
        F: Fn(Interface<I>, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Q::Answer> + Send + 'static,
    {
        let answer = answer_question(move |core, question| answer(Interface::new(core), question));
        self.forwards.add_question(Q::NAME, answer);
        self
    }

    /// Lets connections cross from host to host: clients [connect](Interface::connect) on every host that has a
    /// [`transport`](HostBuilder::transport), to instances on whichever.
    ///
    /// The words of a client about itself and the messages of both sides cross as JSON. Both sides are told why a connection ends: with
    /// [`Closed::Unreachable`](crate::Closed::Unreachable) where the link between the two hosts is lost, with
    /// [`Closed::Moved`](crate::Closed::Moved) where the instance goes to another host.
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

    /// As [`forward_connections`](Self::forward_connections), for an interface whose own error cannot be written and read again, as with
    /// [`forward_with_text_errors`](Self::forward_with_text_errors).
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

    /// Sets the time without a message after which an instance leaves memory, counted to within a quarter more. An instance
    /// with connections, or with a task that is not parked, stays. Default: 10 min.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.options.idle_timeout = timeout;
        self
    }

    /// Limits the time that a handler may run before it counts as failed and its instance is reset, counted from when it begins. At least 1 ms.
    /// Default: 30 s.
    ///
    /// A request waits in its instance's queue for as long at most, and then for its handler as long again. One whose turn has
    /// not come by then is refused with [`RequestError::TimedOut`](crate::RequestError::TimedOut): it has not begun and never
    /// will, and nothing is reset. What a handler asks of another instance waits for no longer than what is left of that
    /// handler's time, less a tenth; if the other's handler has begun by then it runs on, and the one that asked is told
    /// [`RequestError::Unknown`](crate::RequestError::Unknown).
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.options.handler_timeout = timeout;
        self
    }

    /// Limits the time for which a host that cannot be reached is asked again, before a request of this interface is refused with
    /// [`RequestError::Unreachable`](crate::RequestError::Unreachable). With zero it is refused at once: for who has something else to do then.
    /// Default: a lease, after which a live fleet has another owner.
    pub fn reach_timeout(mut self, timeout: Duration) -> Self {
        self.options.reach_timeout = Some(timeout);
        self
    }

    /// Limits the time that [`on_stop`](StableInterface::on_stop) may run before it is cut off, and the instance leaves memory without it; whoever
    /// asked for it is told [`TimedOut`](crate::RequestError::TimedOut). Default: 30 s.
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.options.stop_timeout = timeout;
        self
    }

    /// The most messages waiting for one instance; past it, requests are refused as overloaded. With 0 nobody waits. Default: 4,096.
    pub fn max_waiting(mut self, messages: usize) -> Self {
        self.options.max_waiting = messages;
        self
    }

    /// The most instances in memory. Past it the least recently used make room, and if none can, requests that would build one
    /// are refused as overloaded. At least 1. Default: 4,000,000.
    pub fn max_instances(mut self, instances: usize) -> Self {
        self.options.max_instances = instances;
        self
    }

    /// Sets the policy by which failed alarms and messages are tried again and given up. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options.retry = policy;
        self
    }

    /// Limits the number of processes that died while an alarm or message of this interface was handled, before it becomes a dead letter, in place
    /// of what [`HostBuilder::max_crashes`] says. At least 1. With `u32::MAX` none is given up: for instances that look at
    /// [`Context::crashes`](crate::Context::crashes) and know what to do in place of what ends their process.
    pub fn max_crashes(mut self, crashes: u32) -> Self {
        self.options.max_crashes = Some(crashes);
        self
    }

    /// Sets the time for which the replies to [`request_once`](Interface::request_once) are kept under their keys, by the clocks of the hosts
    /// that answer: a request that comes later may be handled anew. They go when a later one is kept. Default: a day.
    pub fn keep_replies(mut self, time: Duration) -> Self {
        self.options.keep.time = time;
        self
    }

    /// The most replies to [`request_once`](Interface::request_once) that are kept for one instance; past it the oldest goes, and its key may be
    /// handled anew, before its time is over. The keys, not the replies, are in memory while the instance is. At least 1. Default: 10,000.
    pub fn max_kept_replies(mut self, replies: usize) -> Self {
        self.options.keep.most = replies;
        self
    }

    /// Registers it.
    ///
    /// # Errors
    /// [`RegisterError`] if its `NAME`, or that of a message, cannot be one or is taken.
    pub fn register(self) -> Result<Interface<I>, RegisterError> {
        check_names(&self.forwards)?;
        let host = self.host.core();
        let (fire, take) = (self.fire, self.take);
        let core = InterfaceCore::new(
            host.clone(),
            self.options,
            Quiet::new(self.factory),
            fire,
            take,
            stop_job,
            self.forwards,
        );
        let core = Arc::new(core);
        let mut interfaces = host.interfaces.lock();
        if interfaces.iter().any(|interface| interface.name() == I::NAME) {
            return Err(RegisterError::Duplicate(I::NAME));
        }
        interfaces.push(core.clone());
        drop(interfaces);
        Ok(Interface::new(core))
    }
}

/// Lets messages of type `M` cross under this name, with errors as `C` writes and reads them.
pub(super) fn forward_message<I, M, C, F>(forwards: &mut Forwards<I>, message: &'static str)
where
    I: Handle<M>,
    M: Crossing,
    I::Reply: Crossing,
    C: Errors<I::Error>,
    F: Codec,
{
    forwards.add::<M, I::Reply, C, F>(message, answer_message::<I, M, C, F>);
}

/// Refuses names that cannot be those of an interface and its messages.
pub(super) fn check_names<I: StableInterface>(forwards: &Forwards<I>) -> Result<(), RegisterError> {
    if !is_interface_name(I::NAME) {
        return Err(RegisterError::InvalidName(I::NAME));
    }
    let (mut names, twice) = forwards.names();
    if let Some(name) = names.find(|name| !is_interface_name(name)) {
        return Err(RegisterError::InvalidMessageName(name));
    }
    twice.map_or(Ok(()), |name| Err(RegisterError::DuplicateMessage(name)))
}
