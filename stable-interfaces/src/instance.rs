//! Instances: what an application implements, and what runs it one message at a time.

pub(crate) mod chain;
pub(crate) mod context;
pub(crate) mod effects;
pub(crate) mod gate;
pub(crate) mod queue;
pub(crate) mod ride;
pub(crate) mod slot;
pub(crate) mod table;
pub(crate) mod task;
pub(crate) mod turn;

use std::fmt::{Debug, Display};
use std::future::Future;

use crate::alarm::Alarm;
use crate::connection::{Closed, Connecting, ConnectionId};
use crate::error::ContextError;
use crate::inbox::Message;
use context::Context;

/// A kind of durable object: the type of its instances, which live one per ID.
///
/// The value holds what an instance keeps in memory. It is built when the first message for its ID arrives, and dropped when
/// it is idle, reset or on another host, so whatever must outlive that goes into storage with [`Context::put`] and is read
/// back in [`on_start`](Self::on_start).
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
///         self.count += n;
///         cx.put("count", &self.count)?; // durable before the reply is released
///         Ok(self.count)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a stable interface",
    note = "implement `StableInterface` for it: a `NAME`, an `Error`, and if it needs them `on_start` and `on_stop`"
)]
pub trait StableInterface: Sized + Send + 'static {
    /// The interface's name in the store, in logs and in the fleet: `[a-z0-9_-]{1,64}`, unique. It must never change.
    const NAME: &'static str;

    /// What handlers fail with. `From<ContextError>` lets `?` work on every operation of the [`Context`].
    type Error: Debug + Display + Send + Sync + 'static + From<ContextError>;

    /// Runs before the first message of each incarnation; what it records is committed with that message's effects.
    ///
    /// # Errors
    /// On an error the message and all that wait behind it fail, and the instance is not kept.
    fn on_start(&mut self, cx: &mut Context) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = cx;
        async { Ok(()) }
    }

    /// Runs before an instance leaves memory in good order: when stopped, drained or idle. Not after a crash or a reset. It has a
    /// [limit of its own](crate::InterfaceBuilder::stop_timeout).
    fn on_stop(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Says that an interface's instances handle messages of type `M`, sent with [`Interface::request`](crate::Interface::request).
#[diagnostic::on_unimplemented(
    message = "instances of `{Self}` do not handle `{M}`",
    note = "implement `Handle<{M}>` for `{Self}`"
)]
pub trait Handle<M>: StableInterface {
    /// What the sender gets back.
    type Reply: Send + 'static;

    /// Handles one message. No other message of this instance is handled meanwhile.
    ///
    /// When this returns `Ok`, everything recorded on `cx` is committed as one, and only then is the reply released.
    ///
    /// # Errors
    /// On an error nothing recorded since the last [`Context::commit`] happens, and if anything was recorded the instance is
    /// reset: dropped, and built anew for its next message.
    fn handle(&mut self, cx: &mut Context, message: M)
    -> impl Future<Output = Result<Self::Reply, Self::Error>> + Send;
}

/// Says that an interface's instances wake up by alarms, set with [`Context::set_alarm`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle alarms",
    note = "implement `OnAlarm` for `{Self}`, or leave out `with_alarms()`"
)]
pub trait OnAlarm: StableInterface {
    /// Handles an alarm that is due. It counts as done, and is removed, in the same commit as the effects recorded here.
    ///
    /// It runs at least once, and its effects happen exactly once. Setting the same alarm again in here is how a recurring
    /// alarm is made.
    ///
    /// # Errors
    /// On an error the alarm is tried again later, by the interface's [`RetryPolicy`](crate::RetryPolicy).
    fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Says that an interface's instances take messages from their inbox, posted with
/// [`Interface::post`](crate::Interface::post) from any host.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not take messages from an inbox",
    note = "implement `OnMessage` for `{Self}`, or leave out `with_inbox()`"
)]
pub trait OnMessage: StableInterface {
    /// Handles a message from the inbox. It counts as done, and is removed, in the same commit as the effects recorded here: it
    /// runs at least once, and its effects happen exactly once.
    ///
    /// # Errors
    /// On an error the message is tried again later, by the interface's [`RetryPolicy`](crate::RetryPolicy).
    fn on_message(
        &mut self,
        cx: &mut Context,
        message: &Message,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Says that clients can connect to an interface's instances, with [`Interface::connect`](crate::Interface::connect).
///
/// A connection belongs to one incarnation: it closes when the instance is reset, stopped or moves. While it is open the
/// instance is not passivated, unless it asks for it.
#[diagnostic::on_unimplemented(
    message = "clients cannot connect to `{Self}`",
    note = "implement `OnConnect` for `{Self}`"
)]
pub trait OnConnect: StableInterface {
    /// What a client says about itself when it connects.
    type Meta: Send + 'static;
    /// What clients send to the instance.
    type Incoming: Send + 'static;
    /// What the instance sends to clients.
    type Outgoing: Send + 'static;

    /// Answers a client that asks to be connected: [`accept`](Connecting::accept) it and keep the peer, or
    /// [`reject`](Connecting::reject) it. With neither it is refused as unhandled.
    ///
    /// # Errors
    /// On an error the client is not connected and gets that error.
    fn on_connect(
        &mut self,
        cx: &mut Context,
        client: &mut Connecting<Self::Outgoing>,
        meta: Self::Meta,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Handles one message of a client. Those of one client come in the order in which it sent them.
    ///
    /// # Errors
    /// On an error nothing recorded happens. If anything was recorded the instance is reset, and all its connections close.
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
