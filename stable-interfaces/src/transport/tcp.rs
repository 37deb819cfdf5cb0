//! Hosts that talk over TCP, with TLS or without.
//!
//! There is one connection for each pair of hosts and direction: who wants to ask calls, and asks on that connection as much as it likes
//! at once. Whatever has queued meanwhile is written at once, and no message waits for the end of another. A link that has been silent for
//! seconds while something is asked on it is over: what was not sent on it is asked again elsewhere, what was sent is not known.
//!
//! Whoever calls has ten seconds to say a first word that is right, and as long for each frame it begins; who has not said it counts among
//! a few, of which the oldest goes when there are too many; of those who have, one that asks nothing goes.

mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hello;
mod link;
mod room;
mod serve;
mod tls;

pub use tls::{InvalidTls, Tls};

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::task::JoinSet;

use self::link::{EndsLink, Link, Start};
use self::serve::Guests;
use crate::store::BoxError;
use crate::sync::{Arc, Mutex, mpsc, watch};
use crate::transport::{Addressee, Door, Introduction, Running, Transport, Undelivered};

/// The most callers that the system keeps until they are taken; Linux has a limit of its own, `net.core.somaxconn`. One more waits for a second
/// before it tries again.
const BACKLOG: u32 = 4_096;

/// Finds the address of a host by its name.
type Addresses = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// Carries requests over TCP.
///
/// ```no_run
/// # fn example(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
/// use stable_interfaces::transport::{TcpTransport, Tls};
/// use stable_interfaces::{Fleet, Host, MemoryStore};
///
/// let transport = TcpTransport::listen("0.0.0.0:7000")
///     .addresses(|host| format!("{host}.orders.internal:7000")) // `host-0.orders.internal:7000`
///     .tls(Tls::from_pem(authority, certificate, key)?);
/// let host = Host::builder("host-0", Fleet::expand("host-{0..2}", 1_024)?).store(MemoryStore::new()).transport(transport);
/// # Ok(())
/// # }
/// ```
pub struct TcpTransport {
    options: Options,
    /// The parts that exist once it has been opened.
    opened: OnceLock<Opened>,
}

#[derive(Clone, Default)]
struct Options {
    /// The address to listen at; `None` for somebody who only calls.
    listen: Option<String>,
    advertise: Option<Arc<str>>,
    addresses: Option<Addresses>,
    fleet: Option<Arc<str>>,
    tls: Option<Tls>,
    is_plaintext: bool,
}

#[derive(Debug)]
struct Opened {
    /// The address that is listened at.
    bound: Option<SocketAddr>,
    /// The links, by the host that is called, with the address at which it is.
    links: Mutex<HashMap<Arc<str>, Called>>,
    /// Has the transport's own tasks begin a link.
    starts: mpsc::UnboundedSender<Start>,
    guests: Guests,
}

/// The address of a host, if it has told one, and the link to it.
type Called = (Option<Arc<str>>, Arc<Link>);

impl Opened {
    /// The link to a host: a new one, if there is none, or if the host is at another address by now. At the one before may be an earlier life of it,
    /// or nobody, and no sign of that.
    fn link_to(&self, to: &Addressee) -> Arc<Link> {
        let mut links = self.links.lock();
        if let Some((address, link)) = links.get(&*to.host)
            && (*address == to.address || to.address.is_none())
        {
            return link.clone();
        }
        // Nothing is asked on those that nobody else holds: whoever asks has them, and so has the task that sees to them.
        links.retain(|_, (_, link)| Arc::strong_count(link) > 1);
        let link = Arc::<Link>::default();
        if let Some((_, before)) = links.insert(to.host.clone(), (to.address.clone(), link.clone())) {
            before.is_not_asked_again();
        }
        link
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { listen, advertise, tls, .. } = &self.options;
        f.debug_struct("TcpTransport")
            .field("listen", listen)
            .field("advertise", advertise)
            .field("tls", &tls.is_some())
            .finish_non_exhaustive()
    }
}

impl TcpTransport {
    /// Listens at this address, such as `0.0.0.0:7000`, and calls other hosts. Without [`tls`](Self::tls) or [`plaintext`](Self::plaintext) it has
    /// to be one of this machine alone.
    #[must_use]
    pub fn listen(address: impl Into<String>) -> TcpTransport {
        let options = Options { listen: Some(address.into()), ..Options::default() };
        TcpTransport { options, opened: OnceLock::new() }
    }

    /// Calls hosts and listens nowhere: for a [process that is none](crate::FleetClient::interface).
    #[must_use]
    pub fn outgoing() -> TcpTransport {
        TcpTransport { options: Options::default(), opened: OnceLock::new() }
    }

    /// Sets the address at which other hosts reach this one. Default: the one it listens at. If that is every one of the machine
    /// (`0.0.0.0`), a host does not start without this or [`addresses`](Self::addresses). At most 255 bytes, and no NUL.
    #[must_use]
    pub fn advertise(mut self, address: impl Into<Arc<str>>) -> TcpTransport {
        self.options.advertise = Some(address.into());
        self
    }

    /// Sets how the address of a host is found by its name, where that host has told none.
    #[must_use]
    pub fn addresses(mut self, address_of: impl Fn(&str) -> String + Send + Sync + 'static) -> TcpTransport {
        self.options.addresses = Some(Arc::new(address_of));
        self
    }

    /// Sets the name of the fleet: hosts that were given another one are refused, with both names. Default: none, and hosts are told apart by
    /// their names and the number of their shards alone.
    #[must_use]
    pub fn fleet(mut self, name: impl Into<Arc<str>>) -> TcpTransport {
        self.options.fleet = Some(name.into());
        self
    }

    /// Has each side show its certificate to the other, and encrypts what is said. A host whose certificate is not made out to its own name does not
    /// start: nobody would let it in. So its name has to be one that a certificate can have, such as that of DNS.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> TcpTransport {
        self.options.tls = Some(tls);
        self
    }

    /// Lets it listen for other machines without TLS: for a network on which nobody else is, such as that of a service mesh which encrypts
    /// by itself. Whoever reaches the port can have any message handled.
    #[must_use]
    pub fn plaintext(mut self) -> TcpTransport {
        self.options.is_plaintext = true;
        self
    }

    async fn bind(&self) -> Result<Option<TcpListener>, BoxError> {
        let Some(listen) = &self.options.listen else { return Ok(None) };
        let addresses: Vec<_> = lookup_host(listen).await?.collect();
        let is_guarded = self.options.tls.is_some() || self.options.is_plaintext;
        if let Some(open) = addresses.iter().find(|address| !is_guarded && !address.ip().is_loopback()) {
            return Err(format!(
                "{open} can be reached by other machines: set TcpTransport::tls, or TcpTransport::plaintext if the network itself is safe"
            )
            .into());
        }
        let is_told = self.options.advertise.is_some() || self.options.addresses.is_some();
        if let Some(any) = addresses.iter().find(|address| !is_told && address.ip().is_unspecified()) {
            return Err(format!(
                "{any} is nothing that other hosts could call: tell them by TcpTransport::advertise where this one can be reached, or by TcpTransport::addresses where each is"
            )
            .into());
        }
        let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{listen} is no address"));
        for address in addresses {
            match listen_at(address) {
                Ok(listener) => return Ok(Some(listener)),
                Err(error) => failed = error,
            }
        }
        Err(failed.into())
    }

    /// Binds what it is to listen at, and is ready to be asked.
    async fn begin(&self, own: Introduction, door: Option<Arc<dyn Door>>) -> Result<Running, BoxError> {
        let listener = self.bind().await?;
        let bound = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let (starts, mut started) = mpsc::unbounded_channel::<Start>();
        let own = Arc::new(own);
        let guests = Guests::new(own.clone(), self.options.clone());
        let opened = Opened { bound, links: Mutex::default(), starts, guests: guests.clone() };
        if self.opened.set(opened).is_err() {
            return Err("a transport is opened once".into());
        }
        let options = self.options.clone();
        Ok(Box::pin(async move {
            let mut links = JoinSet::new();
            let receive = async {
                match (listener, door) {
                    (Some(listener), Some(door)) => guests.receive(listener, door).await,
                    _ => std::future::pending().await,
                }
            };
            let mut receive = std::pin::pin!(receive);
            loop {
                tokio::select! { biased;
                    Some(start) = started.recv() => {
                        links.spawn(link::run(start, own.clone(), options.clone()));
                    }
                    Some(_ended) = links.join_next(), if !links.is_empty() => {}
                    () = &mut receive => return,
                }
            }
        }))
    }
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A process that is started anew has its port at once. On Windows it could share one with others.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Options {
    fn address_of(&self, to: &Addressee) -> io::Result<String> {
        let address = to.address.as_deref().map(str::to_owned);
        let address = address.or_else(|| self.addresses.as_ref().map(|address_of| address_of(&to.host)));
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("the address of {:?} is not known", to.host));
        address.ok_or_else(unknown)
    }
}

#[async_trait]
impl Transport for TcpTransport {
    fn address(&self) -> Option<Arc<str>> {
        let bound = || self.opened.get()?.bound.filter(|bound| !bound.ip().is_unspecified());
        self.options.advertise.clone().or_else(|| bound().map(|bound| bound.to_string().into()))
    }

    async fn open(&self, own: Introduction, door: Option<Arc<dyn Door>>) -> Result<Running, BoxError> {
        if let Some(tls) = &self.options.tls {
            tls.check_own(&own.host)?;
        }
        self.begin(own, door).await
    }

    async fn send(&self, to: &Addressee, request: Bytes) -> Result<Bytes, Undelivered> {
        let opened = self.opened.get().ok_or_else(|| Undelivered::NotSent("it has not been opened".into()))?;
        let link = opened.link_to(to);
        let (answer, is_first) = link.ask(request);
        if is_first {
            // Where nobody takes it any more, it ends the link.
            drop(opened.starts.send(Start { link: EndsLink(Some(link)), to: to.clone() }));
        }
        // Dropped without an answer, its link has ended with the transport.
        answer.await.unwrap_or_else(|_| Err(Undelivered::Unanswered("the transport has ended".into())))
    }

    async fn close(&self) {
        if let Some(opened) = self.opened.get() {
            opened.guests.close().await;
        }
    }
}

/// The word that the transport is to close.
type Closing = watch::Receiver<bool>;

#[cfg(all(test, not(shuttle)))]
mod tests;
