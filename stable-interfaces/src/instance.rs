//! Instances: what an application implements, and what runs it one message at a time.

pub(crate) mod admin;
pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod chain;
pub(crate) mod context;
pub(crate) mod drive;
pub(crate) mod enlist;
pub(crate) mod job;
pub(crate) mod kind;
pub(crate) mod life;
pub(crate) mod living;
pub(crate) mod machine;
pub(crate) mod once;
pub(crate) mod peer;
pub(crate) mod queue;
pub(crate) mod range;
pub(crate) mod recorded;
pub(crate) mod slot;
pub(crate) mod stop;
pub(crate) mod submit;
pub(crate) mod table;
pub(crate) mod task;
pub(crate) mod turn;

use std::error::Error;
use std::fmt::{Debug, Display};
use std::future::Future;

use self::context::Context;
use self::peer::Connecting;
use crate::alarm::Alarm;
use crate::connection::{Closed, ConnectionId};
use crate::error::ContextError;
use crate::inbox::Message;

/// A kind of durable object: the type of its instances, which live one per ID.
///
/// The value holds what an instance keeps in memory. It is built when the first message for its ID arrives, and dropped when
/// it is idle, reset or on another host, so whatever must outlive that goes into storage with [`Context::put`] and is read
/// back in [`on_start`](Self::on_start).
///
/// Memory follows the store, so a handler works in this order: compute the new values, record them ([`Context::put`]), and
/// change memory last, where nothing can fail any more. A handler that fails all the same has its instance *rebuilt*: see
/// [`keeps_memory`](Self::keeps_memory).
///
/// ```
/// use stable_interfaces::{Context, ContextError, Handle, StableInterface};
///
/// struct Counter { count: u64 }
///
/// impl StableInterface for Counter {
///     const NAME: &'static str = "counter";
///     type Error = ContextError;
///
///     async fn on_start(&mut self, cx: &mut Context) -> Result<(), ContextError> {
///         self.count = cx.get("count").await?.unwrap_or(0);
///         Ok(())
///     }
/// }
///
/// struct Add(u64);
///
/// impl Handle<Add> for Counter {
///     type Reply = u64;
///
///     async fn handle(&mut self, cx: &mut Context, Add(n): Add) -> Result<u64, ContextError> {
///         let count = self.count + n;
///         cx.put("count", &count)?; // durable before the reply is released
///         self.count = count;
///         Ok(count)
///     }
/// }
/// ```
///
/// # Panics
/// Code of an interface may panic wherever it is called or dropped: handlers, constructors, `Display`, `Drop`, tasks, what runs
/// after a commit. That costs its own message at most, and the instance is rebuilt where a handler panicked. Two things Rust
/// itself does not allow: a value that panics when it is dropped while another panic of the same handler unwinds ends the
/// process, and so does every panic in a program built with `panic = "abort"`. An alarm or message that ends its process like
/// that is found out and becomes a dead letter, see [`HostBuilder::max_crashes`](crate::HostBuilder::max_crashes).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a stable interface",
    note = "implement `StableInterface` for it: a `NAME`, an `Error`, and if it needs them `on_start` and `on_stop`"
)]
pub trait StableInterface: Sized + Send + 'static {
    /// The interface's name in the store, in logs and in the fleet: `[a-z0-9_-]{1,64}`, unique. It must never change.
    const NAME: &'static str;

    /// The error that handlers fail with, such as an enum made with `thiserror`, or `anyhow::Error`. `From<ContextError>` lets `?`
    /// work on every operation of the [`Context`]; as a boxed error it shows its causes in logs, dead letters and
    /// [`RequestError::report`](crate::RequestError::report).
    type Error: Debug + Display + Send + Sync + 'static + From<ContextError> + Into<Box<dyn Error + Send + Sync>>;

    /// Runs before the first message of each incarnation; what it records is committed with that message's effects.
    ///
    /// # Errors
    /// On an error the message and all that wait behind it fail, and the instance is not kept.
    fn on_start(&mut self, cx: &mut Context) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = cx;
        async { Ok(()) }
    }

    /// Tells whether an error leaves the instance's memory as it was before the handler that failed with it.
    ///
    /// An instance whose handler fails is rebuilt: dropped, and built anew from what is stored for its next message, because its
    /// memory may be ahead of the store. That also closes its connections, cancels its tasks, and lets alarms that it held fire
    /// again. An error for which this is true is an ordinary answer instead: what the handler recorded since its last
    /// [`Context::commit`] does not happen either, and the instance stays as it is. Say so for errors that handlers return before
    /// they change anything, such as a refusal. Default: `false` for every error.
    ///
    /// Not asked where a commit has failed, which always ends the incarnation, and on a host without a store, which keeps the
    /// instance on every error for want of anything to rebuild it from. A panic in here counts as one of the handler.
    ///
    /// ```
    /// use stable_interfaces::{Context, ContextError, Handle, StableInterface};
    ///
    /// #[derive(Debug, thiserror::Error)]
    /// enum OrderError {
    ///     #[error("the order has been shipped already")]
    ///     Shipped,
    ///     #[error(transparent)]
    ///     Context(#[from] ContextError),
    /// }
    ///
    /// struct Order { shipped: bool }
    ///
    /// impl StableInterface for Order {
    ///     const NAME: &'static str = "order";
    ///     type Error = OrderError;
    ///
    ///     fn keeps_memory(error: &OrderError) -> bool {
    ///         matches!(error, OrderError::Shipped)
    ///     }
    /// }
    ///
    /// struct Ship;
    ///
    /// impl Handle<Ship> for Order {
    ///     type Reply = ();
    ///
    ///     async fn handle(&mut self, cx: &mut Context, _: Ship) -> Result<(), OrderError> {
    ///         if self.shipped {
    ///             return Err(OrderError::Shipped);
    ///         }
    ///         cx.put("shipped", &true)?;
    ///         self.shipped = true;
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// With `type Error = ContextError`, where every handler records before it changes memory, what the arguments of an operation
    /// were refused for has changed nothing:
    ///
    /// ```
    /// # use stable_interfaces::{ContextError, StableInterface};
    /// # struct Counter;
    /// # impl StableInterface for Counter {
    /// #     const NAME: &'static str = "counter";
    /// #     type Error = ContextError;
    /// fn keeps_memory(error: &ContextError) -> bool {
    ///     matches!(error, ContextError::InvalidId { .. } | ContextError::TooLarge(_))
    /// }
    /// # }
    /// ```
    #[must_use]
    fn keeps_memory(error: &Self::Error) -> bool {
        let _ = error;
        false
    }

    /// Runs before an instance leaves memory in good order: when stopped, drained or idle. Not after a crash or a reset. It has a
    /// [limit of its own](crate::InterfaceBuilder::stop_timeout).
    fn on_stop(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Says that an interface's instances handle messages of type `M`, sent with [`Interface::request`](crate::Interface::request).
///
/// ```
/// use stable_interfaces::{Context, ContextError, Handle, StableInterface};
///
/// struct Room;
///
/// impl StableInterface for Room {
///     const NAME: &'static str = "room";
///     type Error = ContextError;
/// }
///
/// struct Rename { title: String }
///
/// impl Handle<Rename> for Room {
///     type Reply = Option<String>; // The title it had.
///
///     async fn handle(&mut self, cx: &mut Context, Rename { title }: Rename) -> Result<Option<String>, ContextError> {
///         let before = cx.get("title").await?;
///         cx.put("title", &title)?;
///         Ok(before)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "instances of `{Self}` do not handle `{M}`",
    note = "implement `Handle<{M}>` for `{Self}`"
)]
pub trait Handle<M>: StableInterface {
    /// The value that the sender gets back.
    type Reply: Send + 'static;

    /// Handles one message. No other message of this instance is handled meanwhile.
    ///
    /// When this returns `Ok`, everything recorded on `cx` is committed as one, and only then is the reply released.
    ///
    /// # Errors
    /// On an error nothing recorded since the last [`Context::commit`] happens, and the instance is rebuilt from what is stored,
    /// unless the error [keeps its memory](StableInterface::keeps_memory). A rebuild closes the instance's connections, cancels
    /// its tasks and lets alarms that it held fire again.
    fn handle(&mut self, cx: &mut Context, message: M)
    -> impl Future<Output = Result<Self::Reply, Self::Error>> + Send;
}

/// Says that an interface's instances wake up by alarms, set with [`Context::set_alarm`].
///
/// ```
/// use std::time::Duration;
/// use stable_interfaces::{Alarm, Context, ContextError, OnAlarm, StableInterface};
///
/// struct Subscription;
///
/// impl StableInterface for Subscription {
///     const NAME: &'static str = "subscription";
///     type Error = ContextError;
/// }
///
/// impl OnAlarm for Subscription {
///     async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
///         let renewals: u32 = cx.get("renewals").await?.unwrap_or(0);
///         cx.put("renewals", &(renewals + 1))?;
///         // Again after a day, counted from when it was due.
///         cx.set_alarm(alarm.id(), alarm.scheduled_at() + Duration::from_secs(86_400), &())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle alarms",
    note = "implement `OnAlarm` for `{Self}`, or leave out `with_alarms()`"
)]
pub trait OnAlarm: StableInterface {
    /// Handles an alarm that is due. It counts as done, and is removed, in the same commit as the effects recorded here.
    ///
    /// The handler runs at least once, and its effects happen exactly once. Setting the same alarm again in here is how a recurring
    /// alarm is made.
    ///
    /// # Errors
    /// On an error the alarm is tried again later, by the interface's [`RetryPolicy`](crate::RetryPolicy). The instance is rebuilt
    /// as after an error of [`Handle::handle`], with all that this ends: connections, tasks, and the holding of other alarms.
    fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Says that an interface's instances take messages from their inbox, posted with
/// [`Interface::post`](crate::Interface::post) from any host.
///
/// ```
/// use stable_interfaces::{Context, ContextError, Message, OnMessage, StableInterface};
///
/// struct Stock;
///
/// impl StableInterface for Stock {
///     const NAME: &'static str = "stock";
///     type Error = ContextError;
/// }
///
/// impl OnMessage for Stock {
///     async fn on_message(&mut self, cx: &mut Context, message: &Message) -> Result<(), ContextError> {
///         let arrived: i64 = message.json()?; // Posted with `NewPost::json(&12)`.
///         let pieces = cx.get("pieces").await?.unwrap_or(0) + arrived;
///         cx.put("pieces", &pieces)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not take messages from an inbox",
    note = "implement `OnMessage` for `{Self}`, or leave out `with_inbox()`"
)]
pub trait OnMessage: StableInterface {
    /// Handles a message from the inbox. It counts as done, and is removed, in the same commit as the effects recorded here: it
    /// runs at least once, and its effects happen exactly once.
    ///
    /// # Errors
    /// On an error the message is tried again later, by the interface's [`RetryPolicy`](crate::RetryPolicy). The instance is
    /// rebuilt as after an error of [`Handle::handle`], with all that this ends: connections, tasks, and the holding of alarms.
    fn on_message(
        &mut self,
        cx: &mut Context,
        message: &Message,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Says that clients can connect to an interface's instances, with [`Interface::connect`](crate::Interface::connect).
///
/// A connection belongs to one incarnation: it closes when the instance is reset, stopped or moves, and so when it is rebuilt
/// because any handler of it failed with an error that does not [keep its memory](StableInterface::keeps_memory). While it is
/// open the instance is not passivated, unless it asks for it.
///
/// ```
/// use stable_interfaces::{Connecting, ConnectionId, Context, ContextError, OnConnect, Peer, StableInterface};
///
/// #[derive(Default)]
/// struct Room { clients: Vec<Peer<String>> }
///
/// impl StableInterface for Room {
///     const NAME: &'static str = "room";
///     type Error = ContextError;
/// }
///
/// impl OnConnect for Room {
///     type Meta = ();
///     type Incoming = String;
///     type Outgoing = String;
///
///     async fn on_connect(&mut self, _: &mut Context, client: &mut Connecting<String>, _: ()) -> Result<(), ContextError> {
///         self.clients.push(client.accept());
///         Ok(())
///     }
///
///     async fn on_receive(&mut self, cx: &mut Context, _: ConnectionId, text: String) -> Result<(), ContextError> {
///         cx.put("last", &text)?;
///         // Nobody sees the text before it is durable. A client without room for it misses it.
///         self.clients.retain(|client| !client.is_closed());
///         for client in &self.clients {
///             let _ = client.try_send(cx, text.clone());
///         }
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "clients cannot connect to `{Self}`",
    note = "implement `OnConnect` for `{Self}`"
)]
pub trait OnConnect: StableInterface {
    /// The words of a client about itself when it connects.
    type Meta: Send + 'static;
    /// The messages of clients to the instance.
    type Incoming: Send + 'static;
    /// The messages of the instance to clients.
    type Outgoing: Send + 'static;

    /// Answers a client that asks to be connected: [`accept`](Connecting::accept) it and keep the peer, or
    /// [`reject`](Connecting::reject) it. With neither it is refused as unhandled.
    ///
    /// # Errors
    /// On an error the client is not connected and gets that error. It refuses that client alone: the instance and its other
    /// connections stay, so fail before changing memory. Only if something was recorded before the error is the instance rebuilt,
    /// unless the error [keeps its memory](StableInterface::keeps_memory).
    fn on_connect(
        &mut self,
        cx: &mut Context,
        client: &mut Connecting<Self::Outgoing>,
        meta: Self::Meta,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Handles one message of a client. Those of one client come in the order in which it sent them.
    ///
    /// # Errors
    /// On an error nothing recorded happens, and the instance is rebuilt, unless the error
    /// [keeps its memory](StableInterface::keeps_memory): all its connections close, that of this client included.
    fn on_receive(
        &mut self,
        cx: &mut Context,
        from: ConnectionId,
        message: Self::Incoming,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Learns that a client has closed its connection: once for each, and not for those the instance closed itself.
    ///
    /// # Errors
    /// As [`on_receive`](Self::on_receive).
    fn on_disconnect(
        &mut self,
        cx: &mut Context,
        from: ConnectionId,
        reason: Closed,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = (cx, from, reason);
        async { Ok(()) }
    }
}
