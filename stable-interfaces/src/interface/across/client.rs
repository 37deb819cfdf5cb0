//! The client's end of a connection through another host: one task for each, which carries both directions until there is a reason to end.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    ASK_AGAIN, Across, BATCH_BYTES, CONNECT, LEAVE, Leaving, Opened, Opening, RECEIVE, Receiving, SEND, Sending, Told,
    read,
};
use crate::clock::within;
use crate::connection::{AnyLink as _, CONNECTION_BUFFER, Closed, Link, LinkState};
use crate::error::RequestError;
use crate::forward::reach::Place;
use crate::forward::table::{Writing, Written};
use crate::forward::wire::{Answer, Request};
use crate::instance::OnConnect;
use crate::instance::kind::InterfaceCore;
use crate::interface::connect::{Connected, Connection, Incoming};
use crate::quiet::Quiet;
use crate::shared::Health;
use crate::store::client::Backoff;
use crate::sync::{Arc, Mutex, Notify, OwnedSemaphorePermit};
use crate::transport::{Addressee, Undelivered};

/// The most times that the owner is told of the end of a connection, if it cannot be reached.
const TOLD_AT_MOST: u32 = 5;

/// The messages of a client that are on their way to the owner.
pub(in crate::interface) struct Outbox<Out> {
    state: Mutex<Outgoing<Out>>,
    /// A notice for when there is one more, and for when the client has left.
    changed: Notify,
}

/// A message of the client, with its room in the client's buffer.
type Sent<Out> = (Box<RawValue>, Incoming<Out>);

struct Outgoing<Out> {
    waiting: VecDeque<Sent<Out>>,
    /// The client has closed the connection: what waits goes first.
    has_left: bool,
    /// The owner takes no more: the connection has ended there, for this reason.
    refused: Option<Closed>,
}

impl<Out> Outbox<Out> {
    fn new() -> Outbox<Out> {
        let state = Outgoing { waiting: VecDeque::new(), has_left: false, refused: None };
        Outbox { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Takes a message of the client.
    pub(in crate::interface) fn push<I: OnConnect<Outgoing = Out>>(
        &self,
        core: &InterfaceCore<I>,
        incoming: Incoming<Out>,
        message: Quiet<I::Incoming>,
    ) -> Result<(), Closed> {
        let way = Across::of(core).and_then(|across| Some((&across.incoming, message.as_ref()?)));
        let written = way.map_or(Err("the interface's connections cannot cross".to_owned()), |(way, message)| {
            way.write("a message of the client", message)
        });
        let refused = match written {
            Ok(written) => {
                let mut state = self.state.lock();
                match &state.refused {
                    None => {
                        state.waiting.push_back((written, incoming));
                        drop(state);
                        self.changed.notify_one();
                        return Ok(());
                    }
                    Some(refused) => refused.clone(),
                }
            }
            Err(what) => {
                // What has been sent before it is handled, and then the instance is told.
                let closed = Closed::Uncrossable(what);
                incoming.close(closed.clone());
                self.leave();
                closed
            }
        };
        incoming.settle();
        Err(refused)
    }

    /// Notes that nothing more comes.
    pub(in crate::interface) fn leave(&self) {
        self.state.lock().has_left = true;
        self.changed.notify_one();
    }

    /// The next messages to send; `None` when there will be no more.
    async fn next(&self) -> Option<Vec<Sent<Out>>> {
        loop {
            {
                let mut state = self.state.lock();
                let mut bytes = 0;
                let fits = |(message, _): &&Sent<Out>| {
                    bytes += message.get().len();
                    bytes <= BATCH_BYTES
                };
                let count = state.waiting.iter().take_while(fits).count();
                let count = count.max(1).min(state.waiting.len());
                if count > 0 {
                    return Some(state.waiting.drain(..count).collect());
                }
                if state.has_left {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Takes no more, for the connection has ended at the owner. Tells whether the client has left.
    fn refuse(&self, reason: Closed) -> bool {
        let mut state = self.state.lock();
        state.refused = Some(reason);
        let (waiting, has_left) = (std::mem::take(&mut state.waiting), state.has_left);
        drop(state);
        settle(waiting);
        has_left
    }
}

fn settle<Out>(sent: impl IntoIterator<Item = Sent<Out>>) {
    for (_, incoming) in sent {
        incoming.settle();
    }
}

/// Asks for a connection; `None` if the interface's connections may not cross.
pub(in crate::interface) fn write_opening<I: OnConnect>(
    core: &InterfaceCore<I>,
    meta: &I::Meta,
) -> Writing<Connected<I>, I::Error> {
    let across = Across::of(core)?;
    let meta = match across.meta.write("the meta of a connection", meta) {
        Ok(meta) => meta,
        Err(what) => return Some(Err(RequestError::Rejected(what).into())),
    };
    let body = serde_json::to_vec(&Opening { from: core.host.name.to_string(), meta });
    Some(Ok(Written {
        message: CONNECT,
        key: None,
        body: body.expect("texts can be written as JSON"),
        read: |reply| serde_json::from_slice(reply).map(Connected::Afar),
        read_error: across.read_error,
    }))
}

/// The client's end of a connection that another host has opened.
pub(in crate::interface) fn begin<I: OnConnect>(
    core: &Arc<InterfaceCore<I>>,
    id: &str,
    opened: Opened,
) -> Result<Connection<I>, RequestError<I::Error>> {
    let (link, outbox) = (Arc::new(Link::new()), Arc::new(Outbox::new()));
    let (owner, id): (Arc<str>, Arc<str>) = (opened.host.into(), id.into());
    let place = core.host.permit_connection().zip(core.host.reach().and_then(|reach| reach.place_to_connect(&owner)));
    let connection =
        Connection { link: link.clone(), core: core.clone(), id: id.clone(), outbox: Some(outbox.clone()) };
    let has_place = place.is_some();
    let ends = Ends { core: core.clone(), link };
    let far = Far { ends, id, owner, connection: opened.connection, outbox, _place: place };
    if !has_place {
        // Dropped with this, the connection is given up there too.
        metrics::counter!(crate::metrics::OVERLOADED, "interface" => I::NAME).increment(1);
    }
    core.host.spawn_system(far.run());
    if has_place { Ok(connection) } else { Err(RequestError::Overloaded("connections to another host".into())) }
}

/// A connection as the task that carries it has it.
struct Far<I: OnConnect> {
    ends: Ends<I>,
    id: Arc<str>,
    /// The host that owns the instance.
    owner: Arc<str>,
    connection: u64,
    outbox: Arc<Outbox<I::Outgoing>>,
    /// Among the connections of this host, and among those to that one.
    _place: Option<(OwnedSemaphorePermit, Place)>,
}

/// Closes the client's end when the task goes, for whatever reason.
struct Ends<I: OnConnect> {
    core: Arc<InterfaceCore<I>>,
    link: Arc<Link<I::Outgoing>>,
}

impl<I: OnConnect> Drop for Ends<I> {
    fn drop(&mut self) {
        // In any other case it has its reason by now.
        let is_lost = matches!(self.core.host.health(), Health::Replaced | Health::StoreLost | Health::Failed);
        self.link.close(if is_lost { Closed::Lost } else { Closed::Draining }).wake();
    }
}

/// The end of a connection.
enum End {
    /// Both sides know of it.
    Told,
    /// The client has left, and the owner does not know.
    Left,
    /// The owner does not know, perhaps, that it was lost.
    Lost,
}

impl<I: OnConnect> Far<I> {
    async fn run(self) {
        let end = tokio::select! { biased;
            end = self.send_all() => end,
            end = self.receive_all() => end,
        };
        match end {
            End::Told => {}
            End::Left => self.tell(false).await,
            End::Lost => self.tell(true).await,
        }
    }

    /// Sends what the client does, until it has left or the owner is lost.
    async fn send_all(&self) -> End {
        let mut first = 0;
        while let Some(batch) = self.outbox.next().await {
            let messages: Vec<&RawValue> = batch.iter().map(|(message, _)| &**message).collect();
            let sending = Sending { connection: self.connection, first, messages };
            let told = match self.ask(SEND, &sending).await {
                Ok(told) => told,
                Err(reason) => return self.lose(reason),
            };
            first += batch.len() as u64;
            settle(batch);
            if let Some(closed) = told.closed {
                if self.outbox.refuse(read(closed)) {
                    return End::Told;
                }
                // The owner tells it once more, behind all that the instance has sent.
                std::future::pending::<()>().await;
            }
        }
        End::Left
    }

    /// Takes what the instance sends, until the connection has ended there or the owner is lost.
    async fn receive_all(&self) -> End {
        let (host, link) = (&self.ends.core.host, &self.ends.link);
        let mut number = 0;
        loop {
            // For a good part of the buffer, or for none: so that each answer brings many, if there are many.
            let room = |state: &mut LinkState<I::Outgoing>| {
                let room = CONNECTION_BUFFER - state.outgoing.len().min(CONNECTION_BUFFER);
                (room >= CONNECTION_BUFFER / 2).then_some(room)
            };
            let most = within(&*host.clock, ASK_AGAIN, link.until(room)).await.unwrap_or(0);
            let told = match self.ask(RECEIVE, &Receiving { connection: self.connection, number, most }).await {
                Ok(told) => told,
                Err(reason) => return self.lose(reason),
            };
            number += 1;
            let way = Across::of(&self.ends.core).map(|across| &across.outgoing);
            for message in &told.messages {
                let Some(way) = way else { break };
                match way.read("a message of the instance", message) {
                    Ok(message) => {
                        let mut message = Quiet::new(message);
                        link.change(|state| {
                            if state.closed.is_none() {
                                state.outgoing.push_back((message.take(), None));
                            }
                        });
                    }
                    Err(what) => return self.lose(Closed::Uncrossable(what)),
                }
            }
            if let Some(closed) = told.closed {
                link.close(read(closed)).wake();
                return End::Told;
            }
        }
    }

    /// Closes the client's end, for the owner is lost, or to be left.
    fn lose(&self, reason: Closed) -> End {
        tracing::debug!(interface = I::NAME, id = %self.id, owner = %self.owner, %reason, "a connection through another host has ended");
        self.ends.link.close(reason).wake();
        End::Lost
    }

    /// Asks the owner. The error is the end of the connection.
    async fn ask(&self, message: &'static str, body: &impl Serialize) -> Result<Told, Closed> {
        let host = &self.ends.core.host;
        let mut backoff = Backoff::new(&*host.clock, &*host.random);
        loop {
            match self.ask_once(message, body).await {
                // Too much is under way to that host already.
                None => backoff.pause().await,
                Some(Ok(told)) => return Ok(told),
                Some(Err(error)) => {
                    tracing::debug!(interface = I::NAME, id = %self.id, owner = %self.owner, %error, "the link of a connection was lost");
                    metrics::counter!(crate::metrics::CONNECTIONS_LOST, "interface" => I::NAME).increment(1);
                    return Err(Closed::Unreachable { host: self.owner.clone() });
                }
            }
        }
    }

    async fn ask_once(&self, message: &'static str, body: &impl Serialize) -> Option<Result<Told, Undelivered>> {
        let host = &self.ends.core.host;
        let body = serde_json::to_vec(body).expect("texts and numbers can be written as JSON");
        let request = Request {
            interface: I::NAME,
            message,
            id: &self.id,
            key: None,
            since: None,
            given: ASK_AGAIN,
            waits: None,
            callers: Vec::new(),
            sent_by: None,
            trace: None,
            body: &body,
        };
        let to = Addressee { host: self.owner.clone(), address: host.address_of(&self.owner) };
        let reach = host.reach()?;
        let answer = match message {
            RECEIVE => reach.listen(&to, request.encode()).await,
            _ => reach.send(&to, request.encode()).await?,
        };
        Some(answer.map(|answer| match Answer::decode(&answer) {
            Ok(Answer::Reply(told)) => serde_json::from_slice(told).unwrap_or_else(|error| {
                Told::closed(Closed::Uncrossable(format!("the answer of {} cannot be read: {error}", self.owner)))
            }),
            // Another life of that host, or another program.
            _ => Told::closed(Closed::Lost),
        }))
    }

    /// Tells the owner that the connection has ended, if it can be reached: else it finds out by itself.
    async fn tell(&self, is_lost: bool) {
        let host = &self.ends.core.host;
        let mut backoff = Backoff::new(&*host.clock, &*host.random);
        for _ in 0..TOLD_AT_MOST {
            match self.ask_once(LEAVE, &Leaving { connection: self.connection, is_lost }).await {
                None | Some(Err(Undelivered::NotSent(_))) => backoff.pause().await,
                Some(Ok(_) | Err(Undelivered::Unanswered(_))) => return,
            }
        }
    }
}
