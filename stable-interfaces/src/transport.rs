//! The way between hosts: whatever carries the bytes of a request to another host and those of its answer back.
//!
//! A transport knows no instance and no message. It says the truth about one thing: whether a request that has no answer was sent. What
//! [was not](Undelivered::NotSent) is asked again without harm; what [was](Undelivered::Unanswered) may have happened, and is never sent
//! twice by the library.

#[cfg(feature = "tcp")]
pub(crate) mod tcp;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Clock;
use crate::error::WithCauses;
use crate::store::BoxError;
use crate::sync::Arc;

pub use crate::forward::told::RemoteError;
#[cfg(feature = "tcp")]
pub use tcp::{InvalidTls, TcpTransport, Tls};

/// Carries requests to other hosts, and those of others to this one. One for each host: it is given to
/// [`HostBuilder::transport`](crate::HostBuilder::transport).
///
/// The bytes that it carries mean nothing to it: at most [`MAX_MESSAGE_BYTES`] in either direction and a few hundred bytes more.
#[async_trait]
pub trait Transport: Debug + Send + Sync + 'static {
    /// The address at which other hosts reach this one, as it is told them; `None` if they know it by themselves, or cannot.
    fn address(&self) -> Option<Arc<str>>;

    /// Begins, once: from here on requests of others are handed to `door`, if there is one, and those of this host can be sent. The
    /// future that it returns is the transport's work; dropped, all of it ends at once.
    ///
    /// # Errors
    /// The reason why it cannot begin, such as a port that is taken.
    async fn open(&self, own: Introduction, door: Option<Arc<dyn Door>>) -> Result<Running, BoxError>;

    /// Sends a request, and waits for its answer for as long as the other host is there.
    ///
    /// # Errors
    /// [`Undelivered`] says whether it was sent.
    async fn send(&self, to: &Addressee, request: Bytes) -> Result<Bytes, Undelivered>;

    /// Ends in good order: takes no more requests, and returns when all it has taken are answered and the answers are on their way. What
    /// others have sent and was not taken is [not sent](Undelivered::NotSent) for them.
    async fn close(&self);
}

/// The work of a [`Transport`] that was opened.
pub type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The answer to a request of another host.
pub type Answering = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// The part of a host to which others speak.
pub trait Door: Debug + Send + Sync + 'static {
    /// Answers a request. What has begun goes on if the future is dropped. Polled once where it was taken, most requests are done.
    fn answer(&self, request: Bytes) -> Answering;
}

/// The words of a host about itself, for those that it meets.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Introduction {
    /// The name of the host in the fleet.
    pub host: Arc<str>,
    /// The number of shards of its fleet.
    pub shards: u32,
    /// The version of the function that maps IDs to shards.
    pub hash_version: u32,
    /// The name that its store has [given itself](crate::store::Claimed::store), once the host has been told it; `None` where there is none. Hosts
    /// that were told different ones are not of one fleet, whatever their names and addresses.
    pub store: Arc<OnceLock<Option<Arc<str>>>>,
    /// The clock that its links wait by.
    pub clock: Arc<dyn Clock>,
}

/// The host to which a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Addressee {
    /// The name of the host in the fleet.
    pub host: Arc<str>,
    /// The address of the host, if it has told one.
    pub address: Option<Arc<str>>,
}

/// The reason why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Undelivered {
    /// Nothing of it was sent, or the other host has said that it did not take it: it has not happened.
    #[error("not sent: {}", WithCauses(&**.0))]
    NotSent(BoxError),
    /// The request was sent, and the link was lost before its answer came: it may have happened, or may happen still.
    #[error("sent, and not answered: {}", WithCauses(&**.0))]
    Unanswered(BoxError),
}

/// A message, or the reply to one, that crosses from host to host. Whatever can be written and read by serde is.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot cross from host to host",
    label = "this message, or the reply to it",
    note = "derive `serde::Serialize` and `serde::Deserialize` for it, or leave the message out: it is then answered by its owner alone"
)]
pub trait Crossing: Serialize + DeserializeOwned + Send + 'static {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned + Send + 'static> Crossing for T {}

/// A form of values on their way from host to host in place of JSON, such as that of `postcard` or `rmp-serde`, for
/// [`InterfaceBuilder::forward_as`](crate::InterfaceBuilder::forward_as). One that is to change gets another name, and its messages with it: what was
/// written by one is never read by another.
pub trait Codec: 'static {
    /// The bytes of a value.
    ///
    /// # Errors
    /// The reason why it cannot be written. A request is then refused. One whose reply cannot be written has happened, and is
    /// [unknown](crate::RequestError::Unknown) to whoever asks.
    fn write<T: Serialize>(value: &T) -> Result<Vec<u8>, BoxError>;

    /// The value of these bytes, which another host has sent.
    ///
    /// # Errors
    /// The reason why it cannot be read. It is not to take more memory than a small multiple of the bytes.
    fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError>;
}

/// A question to a host, which answers for an interface as a whole and not for one instance:
/// [`InterfaceBuilder::answer`](crate::InterfaceBuilder::answer), [`Interface::ask_host`](crate::Interface::ask_host).
pub trait Question: Crossing + Sync {
    /// The name of the question between hosts, `[a-z0-9_-]{1,64}`, unique among the messages and questions of its interface. It must never
    /// change.
    const NAME: &'static str;

    /// The answer to it.
    type Answer: Crossing;
}

/// An interface's own error that crosses from host to host as what it is. Whatever can be written and read by serde does.
#[diagnostic::on_unimplemented(
    message = "errors of type `{Self}` cannot cross from host to host as what they are",
    label = "its interface fails with `{Self}`",
    note = "derive `serde::Serialize` and `serde::Deserialize` for it, or register the message with `forward_with_text_errors`"
)]
pub trait CrossingError: Serialize + DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<E: Serialize + DeserializeOwned> CrossingError for E {}

/// An interface's own error that is made from the words of one that crossed. Whatever is `From<RemoteError>` is.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be made from an error of another host",
    label = "its interface fails with `{Self}`",
    note = "implement `From<RemoteError>` for it, such as by a variant `#[error(transparent)] Remote(#[from] RemoteError)`"
)]
pub trait TextError: From<RemoteError> {}

#[diagnostic::do_not_recommend]
impl<E: From<RemoteError>> TextError for E {}

/// The most bytes that a message to another host has, and a reply. What is larger is refused as
/// [`TooLarge`](crate::RequestError::TooLarge).
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// The most bytes of one message with all that surrounds it. A longer one ends its link, as the work of a stranger.
#[cfg(any(feature = "tcp", feature = "testing"))]
pub(crate) const MAX_WHOLE_BYTES: usize = MAX_MESSAGE_BYTES + 256 * 1024;
