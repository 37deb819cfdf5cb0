//! The owner's end of connections through another host: for each a connection of its own to the instance, filled and emptied by the
//! requests of the host at which the client is.

use std::collections::HashMap;
use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{
    ASK_AGAIN, Across, BATCH_BYTES, GONE_AFTER, Leaving, NEVER_CAME_AFTER, Opened, Opening, Receiving, Sending, Told,
    told,
};
use crate::clock::within;
use crate::connection::{CONNECTION_BUFFER, Closed};
use crate::error::{ContextError, RequestError};
use crate::forward::door::refused;
use crate::forward::serve::{do_here, unknown, written};
use crate::forward::table::{Arrived, Errors};
use crate::forward::wire::Answer;
use crate::instance::OnConnect;
use crate::instance::kind::InterfaceCore;
use crate::interface::connect::{Connect, Connected, Connection};
use crate::quiet::Quiet;
use crate::sync::{Arc, Mutex};
use crate::transport::Answering;

/// The connections that clients at other hosts have.
pub(super) struct Wires<I: OnConnect>(Mutex<Table<I>>);

struct Table<I: OnConnect> {
    wires: HashMap<u64, Arc<Wire<I>>>,
    /// Says whether there is a task that looks for clients that are gone.
    is_watched: bool,
}

/// One connection.
struct Wire<I: OnConnect> {
    connection: Connection<I>,
    /// The host at which the client is.
    from: Arc<str>,
    heard: Mutex<Heard>,
}

/// All that has come from the client's host.
struct Heard {
    /// The number of the client's messages that were taken.
    messages: u64,
    /// The number of questions for the instance's messages.
    questions: u64,
    /// A message of the instance that did not fit into the last answer.
    held_back: Option<Box<RawValue>>,
    /// The number of requests that are being answered.
    under_way: usize,
    /// The time of the end of the last one, by the lease clock.
    at: Duration,
    /// The time after that at which the client counts as gone.
    patience: Duration,
}

impl<I: OnConnect> Default for Wires<I> {
    fn default() -> Wires<I> {
        Wires(Mutex::new(Table { wires: HashMap::new(), is_watched: false }))
    }
}

impl<I: OnConnect> Wires<I> {
    pub(super) fn abandon(&self) {
        let wires = std::mem::take(&mut self.0.lock().wires);
        drop(wires);
    }

    fn get(&self, number: u64) -> Option<Arc<Wire<I>>> {
        self.0.lock().wires.get(&number).cloned()
    }

    fn remove(&self, number: u64) {
        let removed = self.0.lock().wires.remove(&number);
        drop(removed);
    }

    /// Adds a connection, and has somebody look whether its client is still there. Its number is one that nobody can guess.
    fn add(core: &Arc<InterfaceCore<I>>, across: &Across<I>, connection: Connection<I>, from: Arc<str>) -> u64 {
        let host = &core.host;
        let heard = Heard {
            messages: 0,
            questions: 0,
            held_back: None,
            under_way: 0,
            at: host.clock.elapsed(),
            patience: NEVER_CAME_AFTER,
        };
        let (wire, number) = (Arc::new(Wire { connection, from, heard: Mutex::new(heard) }), host.random.next_u64());
        let is_watched = {
            let mut table = across.wires.0.lock();
            table.wires.insert(number, wire);
            std::mem::replace(&mut table.is_watched, true)
        };
        if !is_watched {
            let core = core.clone();
            host.spawn_system(async move { watch(&core).await });
        }
        number
    }
}

/// Ends the connections of clients that are gone, until there are none left.
async fn watch<I: OnConnect>(core: &InterfaceCore<I>) {
    let Some(across) = Across::of(core) else { return };
    loop {
        core.host.clock.sleep(NEVER_CAME_AFTER).await;
        let now = core.host.clock.elapsed();
        let mut gone = Vec::new();
        let is_last = {
            let mut table = across.wires.0.lock();
            table.wires.retain(|_, wire| {
                let is_gone = wire.is_gone(now);
                if is_gone {
                    gone.push(wire.clone());
                }
                !is_gone
            });
            table.is_watched = !table.wires.is_empty();
            table.wires.is_empty()
        };
        for wire in gone {
            tracing::debug!(interface = I::NAME, from = %wire.from, "a client at another host is gone");
            wire.connection.end(Closed::Unreachable { host: wire.from.clone() });
        }
        if is_last {
            return;
        }
    }
}

impl<I: OnConnect> Wire<I> {
    fn is_gone(&self, now: Duration) -> bool {
        let heard = self.heard.lock();
        heard.under_way == 0 && now.saturating_sub(heard.at) >= heard.patience
    }
}

/// A request for one connection while it is being answered. Dropped before that, the link it came by is lost, and so is the connection.
struct Serving<I: OnConnect> {
    core: Arc<InterfaceCore<I>>,
    number: u64,
    wire: Arc<Wire<I>>,
    is_done: bool,
}

impl<I: OnConnect> Serving<I> {
    fn begin(core: &Arc<InterfaceCore<I>>, number: u64) -> Option<Serving<I>> {
        let wire = Across::of(core)?.wires.get(number)?;
        wire.heard.lock().under_way += 1;
        Some(Serving { core: core.clone(), number, wire, is_done: false })
    }

    fn remove(&self) {
        if let Some(across) = Across::of(&self.core) {
            across.wires.remove(self.number);
        }
    }

    /// Ends the connection here, and gives the reason, which the client is told when its host asks next.
    fn end(&self, reason: Closed) -> Closed {
        self.wire.connection.end(reason.clone());
        reason
    }

    /// The same, for a host that asks no more.
    fn lose(&self) {
        self.remove();
        self.end(Closed::Unreachable { host: self.wire.from.clone() });
    }

    /// Has the instance take the client's messages, each in its turn.
    async fn take(&self, first: u64, messages: &[Box<RawValue>]) -> Result<(), Closed> {
        let Some(across) = Across::of(&self.core) else { return Err(Closed::Lost) };
        for (number, message) in (first..).zip(messages) {
            {
                let mut heard = self.wire.heard.lock();
                if number < heard.messages {
                    // It has come before.
                    continue;
                }
                if number > heard.messages {
                    drop(heard);
                    return Err(self.end(Closed::Uncrossable("messages before it are missing".into())));
                }
                heard.messages += 1;
            }
            match across.incoming.read("a message of the client", message) {
                Ok(message) => self.wire.connection.send(message).await?,
                Err(what) => return Err(self.end(Closed::Uncrossable(what))),
            }
        }
        Ok(())
    }

    /// The next messages of the instance, once there are any, and the end of the connection if it comes behind them.
    async fn give(&self, number: u64, most: usize) -> Told {
        let held_back = {
            let mut heard = self.wire.heard.lock();
            // One that comes once more is asked by nobody.
            if number != heard.questions {
                return Told::default();
            }
            heard.questions += 1;
            if most == 0 { None } else { heard.held_back.take() }
        };
        let Some(across) = Across::of(&self.core).filter(|_| most > 0) else { return Told::default() };
        let (mut given, mut bytes) = (Told::default(), 0);
        let mut next = held_back.map(Ok);
        loop {
            let message = match next.take() {
                Some(message) => message,
                None => match self.receive(given.messages.is_empty()).await {
                    Some(received) => received.and_then(|message| {
                        let written = across.outgoing.write("a message of the instance", &message);
                        crate::quiet::drop_quietly(message);
                        written.map_err(|what| self.end(Closed::Uncrossable(what)))
                    }),
                    None => return given,
                },
            };
            match message {
                Ok(message) => {
                    bytes += message.get().len();
                    if bytes > BATCH_BYTES && !given.messages.is_empty() {
                        self.wire.heard.lock().held_back = Some(message);
                        return given;
                    }
                    given.messages.push(message);
                    if given.messages.len() >= most.min(CONNECTION_BUFFER) {
                        return given;
                    }
                }
                Err(closed) => {
                    self.remove();
                    given.closed = Some(told(closed));
                    return given;
                }
            }
        }
    }

    /// The next message of the instance; `None` if there is none now, or, if it may wait, none comes for a while.
    async fn receive(&self, may_wait: bool) -> Option<Result<I::Outgoing, Closed>> {
        if may_wait {
            return within(&*self.core.host.clock, ASK_AGAIN, self.wire.connection.recv()).await;
        }
        tokio::select! { biased;
            received = self.wire.connection.recv() => Some(received),
            () = ready(()) => None,
        }
    }

    /// Answers.
    fn answer(mut self, told: &Told) -> Bytes {
        self.is_done = true;
        reply(told)
    }
}

impl<I: OnConnect> Drop for Serving<I> {
    fn drop(&mut self) {
        if !self.is_done {
            self.lose();
        }
        let mut heard = self.wire.heard.lock();
        heard.under_way -= 1;
        (heard.at, heard.patience) = (self.core.host.clock.elapsed(), GONE_AFTER);
    }
}

fn reply(told: &Told) -> Bytes {
    Answer::Reply(serde_json::to_vec(told).expect("texts can be written as JSON")).encode()
}

/// The answer about a connection that is not, or no longer, there.
fn no_such_connection() -> Answering {
    Box::pin(ready(reply(&Told::closed(Closed::Lost))))
}

fn read_body<B: DeserializeOwned>(arrived: &Arrived<'_>) -> Result<B, Answering> {
    let not_it = |error| refused(&ContextError::not_a::<B>("a request about a connection", error).into());
    serde_json::from_slice(arrived.body).map_err(not_it)
}

/// Connects a client that is at another host.
pub(super) fn connect<I, C>(core: &Arc<InterfaceCore<I>>, arrived: Arrived<'_>) -> Answering
where
    I: OnConnect,
    C: Errors<I::Error>,
{
    let Opening { from, meta } = match read_body(&arrived) {
        Ok(opening) => opening,
        Err(refused) => return refused,
    };
    let Some(across) = Across::of(core) else { return unknown(core, format_args!("connections of other hosts")) };
    let meta = match across.meta.read("the meta of a connection", &meta) {
        Ok(meta) => meta,
        Err(what) => return refused(&RequestError::Rejected(what)),
    };
    let connect = match Connect::new(core, meta) {
        Ok(connect) => Quiet::new(connect),
        Err(_) => return refused(&RequestError::Overloaded("connections".into())),
    };
    let this = core.clone();
    do_here(core, arrived, connect, move |connected| {
        let opened = connected.and_then(|connected| match (connected, Across::of(&this)) {
            (Connected::Here(connection), Some(across)) => {
                let connection = Wires::add(&this, across, connection, from.into());
                Ok(Opened { host: this.host.name.to_string(), connection })
            }
            // One that came from another host is sent on to nobody.
            (Connected::Here(_), None) | (Connected::Afar(_), _) => {
                Err(RequestError::Unhandled("connections of other hosts".into()))
            }
        });
        written::<Opened, I::Error, C>(opened).encode()
    })
}

/// Takes messages of a client.
pub(super) fn send<I: OnConnect>(core: &Arc<InterfaceCore<I>>, arrived: Arrived<'_>) -> Answering {
    let Sending { connection, first, messages } = match read_body::<Sending<Box<RawValue>>>(&arrived) {
        Ok(sending) => sending,
        Err(refused) => return refused,
    };
    let Some(serving) = Serving::begin(core, connection) else { return no_such_connection() };
    Box::pin(async move {
        let taken = serving.take(first, &messages).await;
        serving.answer(&taken.map_or_else(Told::closed, |()| Told::default()))
    })
}

/// Gives messages of the instance.
pub(super) fn receive<I: OnConnect>(core: &Arc<InterfaceCore<I>>, arrived: Arrived<'_>) -> Answering {
    let Receiving { connection, number, most } = match read_body(&arrived) {
        Ok(receiving) => receiving,
        Err(refused) => return refused,
    };
    let Some(serving) = Serving::begin(core, connection) else { return no_such_connection() };
    Box::pin(async move {
        let given = serving.give(number, most).await;
        serving.answer(&given)
    })
}

/// Lets a client leave.
pub(super) fn leave<I: OnConnect>(core: &Arc<InterfaceCore<I>>, arrived: Arrived<'_>) -> Answering {
    let Leaving { connection, is_lost } = match read_body(&arrived) {
        Ok(leaving) => leaving,
        Err(refused) => return refused,
    };
    if let Some(serving) = Serving::begin(core, connection) {
        if is_lost {
            serving.lose();
        } else {
            serving.remove();
            serving.end(Closed::ByClient);
        }
        return Box::pin(ready(serving.answer(&Told::default())));
    }
    no_such_connection()
}
