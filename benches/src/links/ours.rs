//! A request at a host that does not own the instance, with the whole library on both sides.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use stable_interfaces::transport::{TcpTransport, Tls};
use stable_interfaces::{Context, ContextError, Fleet, Handle, Host, Interface, StableInterface, Store};

use super::{Add, Counted, Link, account};

/// The host that asks, and the one that is asked.
pub const HOSTS: [&str; 2] = ["host-0", "host-1"];

/// The number of shards.
const SHARDS: u32 = 64;

/// An instance that counts in memory, or whose count is durable before it is told.
#[derive(Debug)]
struct Account<const IS_DURABLE: bool>(u64);

impl<const IS_DURABLE: bool> StableInterface for Account<IS_DURABLE> {
    const NAME: &'static str = if IS_DURABLE { "ledger" } else { "account" };
    type Error = ContextError;
}

impl<const IS_DURABLE: bool> Handle<Add> for Account<IS_DURABLE> {
    type Reply = Counted;

    async fn handle(&mut self, cx: &mut Context, add: Add) -> Result<Counted, ContextError> {
        self.0 += add.by;
        if IS_DURABLE {
            cx.put("count", &self.0)?;
        }
        Ok(Counted { count: self.0 })
    }
}

/// A host of two, with its two interfaces.
#[derive(Debug, Clone)]
pub struct Ours {
    accounts: Interface<Account<false>>,
    ledgers: Interface<Account<true>>,
    host: Arc<Host>,
}

/// The door through which a request comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// That of the host which owns the instance.
    Right,
    /// That of the other one.
    Wrong,
}

/// An instance, and the way to it.
#[derive(Debug, Clone)]
pub struct Way {
    ours: Ours,
    /// The instances that are asked.
    ids: Arc<[String]>,
    is_durable: bool,
}

impl Ours {
    /// Starts one of the two, which know each other's `addresses`. TLS is that of a directory into which [`certificates`] has written.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn start(
        place: usize,
        addresses: [String; 2],
        store: Option<Arc<dyn Store>>,
        tls: Option<&Path>,
    ) -> Ours {
        let [name, other] = [HOSTS[place], HOSTS[1 - place]];
        let [own, others] = if place == 0 {
            addresses
        } else {
            let [zero, one] = addresses;
            [one, zero]
        };
        let mut transport = TcpTransport::listen(own).addresses(move |host| {
            assert_eq!(host, other, "there are two hosts");
            others.clone()
        });
        if let Some(directory) = tls {
            let read = |name: &str| std::fs::read(directory.join(name)).expect("the certificates have been written");
            let (authority, certificate, key) = (read("authority"), read(name), read(&format!("{name}.key")));
            transport =
                transport.tls(Tls::from_pem(&authority, &certificate, &key).expect("the certificates are right"));
        }
        let fleet = Fleet::new(HOSTS, SHARDS).expect("two hosts make a fleet");
        let mut host = Host::builder(name, fleet).transport(transport);
        if let Some(store) = store {
            host = host.shared_store(store);
        }
        let accounts =
            host.interface(|_| Account::<false>(0)).forward::<Add>("add").register().expect("its name is good");
        let ledgers =
            host.interface(|_| Account::<true>(0)).forward::<Add>("add").register().expect("its name is good");
        let host = host.start().await.expect("the host can start");
        Ours { accounts, ledgers, host: Arc::new(host) }
    }

    /// The way to instances on this host, or on the other one.
    #[must_use]
    pub fn way(&self, through: Through, is_durable: bool) -> Way {
        let is_wanted = |id: &String| {
            let is_own = self.host.owner_of(id).is_ok_and(|owner| *owner == *self.host.name());
            is_own == (through == Through::Right)
        };
        let ids = (0..).map(account).filter(is_wanted).take(super::ACCOUNTS).collect();
        Way { ours: self.clone(), ids, is_durable }
    }
}

impl Link for Way {
    async fn ask(&self, caller: usize) -> u64 {
        let (id, add) = (&self.ids[caller % self.ids.len()], Add::of(caller));
        let counted = match self.is_durable {
            true => self.ours.ledgers.request(id, add).await,
            false => self.ours.accounts.request(id, add).await,
        };
        counted.expect("counting does not fail").count
    }
}

/// Writes an authority and the certificates of both hosts into a directory.
///
/// # Panics
/// If they cannot be made or written.
pub fn certificates(directory: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("there is randomness");
    let authority = CertifiedIssuer::self_signed(params, key).expect("an authority can be made");
    let write =
        |name: &str, pem: String| std::fs::write(directory.join(name), pem).expect("a temporary file can be written");
    write("authority", authority.pem());
    for host in HOSTS {
        let key = KeyPair::generate().expect("there is randomness");
        let params = CertificateParams::new([host.to_owned()]).expect("the name can be in a certificate");
        write(host, params.signed_by(&key, &authority).expect("the authority signs").pem());
        write(&format!("{host}.key"), key.serialize_pem());
    }
}
