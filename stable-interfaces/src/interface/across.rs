//! Connections through another host, as its two ends know them: the host at which a client is, and the one that owns the instance.
//!
//! | file | holds |
//! | --- | --- |
//! | `client.rs` | the client's end: opens, sends what the client sends, and asks for what the instance does |
//! | `owner.rs` | the owner's end: has a connection of its own for each |
//!
//! All that crosses is requests of the client's host, so that a transport has nothing else to carry. It sends messages of the client in batches, one
//! batch at a time, which is answered when each has its room in the instance's buffer; and it always asks for what comes back, for as much as
//! the client has room for, so that both directions are in order and each buffer holds its sender back. A request that has no answer, or an
//! asker that is gone, is the end of the connection on both sides: nothing is sent twice, and nothing goes missing in between.

pub(super) mod client;
pub(super) mod owner;

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::owner::Wires;
use crate::connection::Closed;
use crate::forward::table::{AnswerFn, AnyAcross, Errors, Forwards};
use crate::instance::OnConnect;
use crate::instance::kind::InterfaceCore;
use crate::quiet::guarded;
use crate::transport::MAX_MESSAGE_BYTES;

/// The names of the requests; no message can have one of them.
const CONNECT: &str = "@connect";
const SEND: &str = "@send";
const RECEIVE: &str = "@receive";
const LEAVE: &str = "@leave";

/// The time for which the owner has a question for the next messages wait; asked again, it says that the client is still there.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// After so long without a question a client counts as gone.
const GONE_AFTER: Duration = Duration::from_secs(45);
/// The same, before the first one.
const NEVER_CAME_AFTER: Duration = Duration::from_secs(10);
/// About the most bytes of a batch; a first message comes whatever it has.
const BATCH_BYTES: usize = 256 * 1024;

/// Asks for a connection.
#[derive(Serialize, Deserialize)]
struct Opening {
    /// The host that asks.
    from: String,
    meta: Box<RawValue>,
}

/// A connection that was opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Opened {
    /// The host that has it.
    host: String,
    /// The number of the connection, unique over all hosts and their lives.
    connection: u64,
}

/// Messages of the client.
#[derive(Serialize, Deserialize)]
struct Sending<M> {
    connection: u64,
    /// The number of the first one, from 0.
    first: u64,
    messages: Vec<M>,
}

/// Asks for messages of the instance.
#[derive(Serialize, Deserialize)]
struct Receiving {
    connection: u64,
    /// The number of questions before this one.
    number: u64,
    /// At most so many; with none it is a sign of life, and is answered at once.
    most: usize,
}

/// Says that the connection has ended at the client's host.
#[derive(Serialize, Deserialize)]
struct Leaving {
    connection: u64,
    /// Says that it was lost on the way, and not closed by the client.
    is_lost: bool,
}

/// The answer to the three above.
#[derive(Default, Serialize, Deserialize)]
struct Told {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    messages: Vec<Box<RawValue>>,
    /// The end of the connection, behind those messages: an [`Ending`], if this release knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    closed: Option<serde_json::Value>,
}

/// [`Closed`], as it crosses.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ending {
    ByClient,
    ByInstance { reason: String },
    Reset,
    Stopped,
    Draining,
    Lost,
    Moved { to: String },
    Unreachable { host: String },
    Uncrossable { what: String },
}

impl Told {
    fn closed(reason: Closed) -> Told {
        Told { messages: Vec::new(), closed: Some(told(reason)) }
    }
}

fn told(reason: Closed) -> serde_json::Value {
    let ending = match reason {
        Closed::ByClient => Ending::ByClient,
        Closed::ByInstance(reason) => Ending::ByInstance { reason },
        Closed::Reset => Ending::Reset,
        Closed::Stopped => Ending::Stopped,
        Closed::Draining => Ending::Draining,
        Closed::Lost => Ending::Lost,
        Closed::Moved { to } => Ending::Moved { to: to.to_string() },
        Closed::Unreachable { host } => Ending::Unreachable { host: host.to_string() },
        Closed::Uncrossable(what) => Ending::Uncrossable { what },
    };
    serde_json::to_value(ending).expect("texts can be written as JSON")
}

/// The reason that was told; that the instance is lost, if this release does not know it.
fn read(closed: serde_json::Value) -> Closed {
    match serde_json::from_value(closed) {
        Ok(Ending::ByClient) => Closed::ByClient,
        Ok(Ending::ByInstance { reason }) => Closed::ByInstance(reason),
        Ok(Ending::Reset) => Closed::Reset,
        Ok(Ending::Stopped) => Closed::Stopped,
        Ok(Ending::Draining) => Closed::Draining,
        Ok(Ending::Moved { to }) => Closed::Moved { to: to.into() },
        Ok(Ending::Unreachable { host }) => Closed::Unreachable { host: host.into() },
        Ok(Ending::Uncrossable { what }) => Closed::Uncrossable(what),
        Ok(Ending::Lost) | Err(_) => Closed::Lost,
    }
}

type WriteFn<T> = fn(&T) -> Result<Box<RawValue>, serde_json::Error>;
type ReadFn<T> = fn(&RawValue) -> Result<T, serde_json::Error>;

/// The way of one kind of value from host to host, captured where it is known that there is one.
struct Way<T> {
    write: WriteFn<T>,
    read: ReadFn<T>,
}

impl<T: Serialize + DeserializeOwned> Way<T> {
    fn new() -> Way<T> {
        Way { write: |value| serde_json::value::to_raw_value(value), read: |json| serde_json::from_str(json.get()) }
    }
}

impl<T> Way<T> {
    /// Writes a value of the application; the text says why it cannot be.
    fn write(&self, what: &str, value: &T) -> Result<Box<RawValue>, String> {
        match guarded(|| (self.write)(value)) {
            Ok(Ok(json)) if json.get().len() > MAX_MESSAGE_BYTES => {
                Err(format!("{what} has {} bytes, more than {MAX_MESSAGE_BYTES}", json.get().len()))
            }
            Ok(Ok(json)) => Ok(json),
            Ok(Err(error)) => Err(format!("{what} cannot be written: {error}")),
            Err(panic) => Err(format!("{what} panicked when it was written: {panic}")),
        }
    }

    /// Reads a value of the application; the text says why it cannot be.
    fn read(&self, what: &str, json: &RawValue) -> Result<T, String> {
        match guarded(|| (self.read)(json)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(format!("{what} cannot be read: {error}")),
            Err(panic) => Err(format!("{what} panicked when it was read: {panic}")),
        }
    }
}

/// The way of an interface's connections from host to host.
pub(crate) struct Across<I: OnConnect> {
    meta: Way<I::Meta>,
    incoming: Way<I::Incoming>,
    outgoing: Way<I::Outgoing>,
    read_error: fn(&[u8]) -> Result<I::Error, serde_json::Error>,
    /// The connections that clients at other hosts have to instances of this one.
    wires: Wires<I>,
}

impl<I: OnConnect> Across<I> {
    fn new<C: Errors<I::Error>>() -> Across<I>
    where
        I::Meta: Serialize + DeserializeOwned,
        I::Incoming: Serialize + DeserializeOwned,
        I::Outgoing: Serialize + DeserializeOwned,
    {
        Across {
            meta: Way::new(),
            incoming: Way::new(),
            outgoing: Way::new(),
            read_error: C::read,
            wires: Wires::default(),
        }
    }

    /// That of a registered interface, if its connections may cross.
    fn of(core: &InterfaceCore<I>) -> Option<&Across<I>> {
        core.forwards.across()
    }
}

impl<I: OnConnect> AnyAcross for Across<I> {
    fn abandon(&self) {
        self.wires.abandon();
    }
}

/// Lets the connections of an interface cross from host to host.
pub(crate) fn forward_connections<I: OnConnect, C: Errors<I::Error>>(forwards: &mut Forwards<I>)
where
    I::Meta: Serialize + DeserializeOwned,
    I::Incoming: Serialize + DeserializeOwned,
    I::Outgoing: Serialize + DeserializeOwned,
{
    let answers: [(&'static str, AnswerFn<I>); 4] =
        [(CONNECT, owner::connect::<I, C>), (SEND, owner::send), (RECEIVE, owner::receive), (LEAVE, owner::leave)];
    forwards.add_across(Across::<I>::new::<C>(), answers);
}
