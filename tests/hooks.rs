//! Hooks of probes for messages from their inbox and for connections, unless a test says otherwise.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use stable_interfaces::{Closed, Connecting, ConnectionId, Context, Message, OnConnect, OnMessage, Peer};

use crate::{BoxFuture, Failed, Probe, Script};

type MessageHook = Arc<
    dyn for<'a> Fn(&'a mut Probe, &'a mut Context, &'a Message) -> BoxFuture<'a, Result<(), Failed>>
        + Send
        + Sync
        + 'static,
>;
type ConnectHook = Arc<
    dyn for<'a> Fn(
            &'a mut Probe,
            &'a mut Context,
            &'a mut Connecting<i64>,
            &'static str,
        ) -> BoxFuture<'a, Result<(), Failed>>
        + Send
        + Sync
        + 'static,
>;
type ReceiveHook = Arc<
    dyn for<'a> Fn(&'a mut Probe, &'a mut Context, ConnectionId, i64) -> BoxFuture<'a, Result<(), Failed>>
        + Send
        + Sync
        + 'static,
>;

/// Hooks for the messages and connections of a world's probes, and a record of those that came.
#[derive(Default)]
pub(crate) struct Hooks {
    on_message: Mutex<Option<MessageHook>>,
    on_connect: Mutex<Option<ConnectHook>>,
    on_receive: Mutex<Option<ReceiveHook>>,
    taken: Mutex<Vec<Taken>>,
    left: Mutex<Vec<(ConnectionId, Closed)>>,
}

/// A message from an inbox whose handler began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The instance.
    pub instance: String,
    /// The message's ID.
    pub message: String,
    /// The number of the attempt.
    pub attempt: u32,
}

/// The connections of a probe.
#[derive(Default)]
pub struct Peers(BTreeMap<ConnectionId, Peer<i64>>);

impl Peers {
    /// The peer of a connection.
    #[must_use]
    pub fn of(&self, id: ConnectionId) -> Option<Peer<i64>> {
        self.0.get(&id).cloned()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Peer<i64>> {
        self.0.values().cloned().collect()
    }

    /// Keeps a peer.
    pub fn keep(&mut self, peer: Peer<i64>) {
        self.0.insert(peer.id(), peer);
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Script {
    /// Sets the hook for a message from their inbox, after it was recorded. Default: nothing.
    pub fn on_message(
        &self,
        hook: impl for<'a> Fn(&'a mut Probe, &'a mut Context, &'a Message) -> BoxFuture<'a, Result<(), Failed>>
        + Send
        + Sync
        + 'static,
    ) {
        *self.0.hooks.on_message.lock() = Some(Arc::new(hook));
    }

    /// Sets the hook for a client that asks to be connected. Default: they accept and keep its peer.
    pub fn on_connect(
        &self,
        hook: impl for<'a> Fn(
            &'a mut Probe,
            &'a mut Context,
            &'a mut Connecting<i64>,
            &'static str,
        ) -> BoxFuture<'a, Result<(), Failed>>
        + Send
        + Sync
        + 'static,
    ) {
        *self.0.hooks.on_connect.lock() = Some(Arc::new(hook));
    }

    /// Sets the hook for a client's message. Default: they send it back.
    pub fn on_receive(
        &self,
        hook: impl for<'a> Fn(&'a mut Probe, &'a mut Context, ConnectionId, i64) -> BoxFuture<'a, Result<(), Failed>>
        + Send
        + Sync
        + 'static,
    ) {
        *self.0.hooks.on_receive.lock() = Some(Arc::new(hook));
    }

    /// Every message handler that began, in that order.
    #[must_use]
    pub fn taken(&self) -> Vec<Taken> {
        self.0.hooks.taken.lock().clone()
    }

    /// The IDs of the messages whose handlers began, in that order.
    #[must_use]
    pub fn taken_ids(&self) -> Vec<String> {
        self.taken().into_iter().map(|taken| taken.message).collect()
    }

    /// The clients that probes were told had left, in that order.
    #[must_use]
    pub fn left(&self) -> Vec<(ConnectionId, Closed)> {
        self.0.hooks.left.lock().clone()
    }
}

impl OnMessage for Probe {
    async fn on_message(&mut self, cx: &mut Context, message: &Message) -> Result<(), Failed> {
        let _running = self.enter();
        self.script.0.hooks.taken.lock().push(Taken {
            instance: message.instance().to_owned(),
            message: message.id().to_owned(),
            attempt: message.attempt(),
        });
        let hook = self.script.0.hooks.on_message.lock().clone();
        match hook {
            Some(hook) => hook(self, cx, message).await,
            None => Ok(()),
        }
    }
}

impl OnConnect for Probe {
    type Meta = &'static str;
    type Incoming = i64;
    type Outgoing = i64;

    async fn on_connect(
        &mut self,
        cx: &mut Context,
        client: &mut Connecting<i64>,
        meta: &'static str,
    ) -> Result<(), Failed> {
        let _running = self.enter();
        let hook = self.script.0.hooks.on_connect.lock().clone();
        match hook {
            Some(hook) => hook(self, cx, client, meta).await,
            None => {
                self.peers.keep(client.accept());
                Ok(())
            }
        }
    }

    async fn on_receive(&mut self, cx: &mut Context, from: ConnectionId, message: i64) -> Result<(), Failed> {
        let _running = self.enter();
        let hook = self.script.0.hooks.on_receive.lock().clone();
        match hook {
            Some(hook) => hook(self, cx, from, message).await,
            None => {
                let peer = self.peers.of(from).ok_or(Failed::Told("a message of a client that was not accepted"))?;
                // A client that has left misses it.
                let _ = peer.send(cx, message).await;
                Ok(())
            }
        }
    }

    async fn on_disconnect(&mut self, _: &mut Context, from: ConnectionId, reason: Closed) -> Result<(), Failed> {
        let _running = self.enter();
        self.script.0.hooks.left.lock().push((from, reason));
        self.peers.0.remove(&from);
        Ok(())
    }
}
