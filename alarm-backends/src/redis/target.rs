//! The addresses of the servers and the settings that all connections of a store share.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult, TlsCertificates, Value};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use stable_interfaces::StoreError;
use stable_interfaces::clock::Clock;

use super::node::within;

/// The time that a server which was to be reached with TLS may take to say something without.
const PLAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// There was no connection in time.
#[derive(Debug, thiserror::Error)]
#[error("no connection to {addresses} within {limit:?}")]
struct NoConnection {
    addresses: String,
    limit: Duration,
    /// The reason why the last try failed.
    source: Option<StoreError>,
}

/// Addresses and settings, shared by all connections of a store.
#[derive(Clone)]
pub(super) struct Target {
    /// The server, or some servers of the cluster. At least one.
    seeds: Vec<ConnectionInfo>,
    pub(super) is_cluster: bool,
    /// The time that servers have to answer a question.
    pub(super) timeout: Duration,
    /// The number of replicas that must have a write before it is acknowledged.
    pub(super) replicas: u32,
    /// Says that the calls which wait on a connection drive it, where it is one of plain TCP.
    pub(super) is_driven_by_calls: bool,
    pub(super) clock: Arc<dyn Clock>,
    /// Warnings about the servers' settings that have been given, so that each is given once.
    warnings: Arc<Mutex<BTreeSet<String>>>,
}

impl Target {
    /// # Errors
    /// [`StoreError::Open`] if there is no address, one cannot be understood, or the certificates cannot.
    pub(super) fn new(
        urls: &[String],
        tls: Option<&TlsCertificates>,
        is_cluster: bool,
        timeout: Duration,
        replicas: u32,
        clock: Arc<dyn Clock>,
    ) -> Result<Target, StoreError> {
        let parse = |url: &String| url.as_str().into_connection_info();
        // The address may hold a password, so it is not part of the message.
        let seeds: Vec<_> = urls.iter().map(parse).collect::<RedisResult<_>>().map_err(|error| {
            StoreError::Open(
                "an address is not redis://[user:password@]host[:port], or rediss://..".to_owned(),
                Some(error.into()),
            )
        })?;
        if seeds.is_empty() {
            return Err(StoreError::Open("no address was given".to_owned(), None));
        }
        if seeds.iter().any(|seed| matches!(seed.addr(), ConnectionAddr::TcpTls { .. })) {
            // The client panics when the program has two cryptographic libraries and has chosen neither.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let seeds = match tls {
            Some(certificates) => with_certificates(&seeds, certificates)?,
            None => seeds,
        };
        // Calls share a connection, and none is to wait in the kernel until the one before it is answered (RFC 896).
        let at_once = |seed: ConnectionInfo| {
            let settings = seed.tcp_settings().clone().set_nodelay(true);
            seed.set_tcp_settings(settings)
        };
        let seeds = seeds.into_iter().map(at_once).collect();
        Ok(Target { seeds, is_cluster, timeout, replicas, is_driven_by_calls: false, clock, warnings: Arc::default() })
    }

    /// The same servers, which may take so long to answer.
    pub(super) fn with_timeout(&self, timeout: Duration) -> Target {
        Target { timeout, ..self.clone() }
    }

    /// The same servers, on connections without tasks of their own: for few calls at a time, since each answer wakes all that wait.
    pub(super) fn driven_by_calls(&self) -> Target {
        Target { is_driven_by_calls: true, ..self.clone() }
    }

    /// Host and port of each server that was named.
    pub(super) fn addresses(&self) -> impl Iterator<Item = String> + '_ {
        self.seeds.iter().map(|seed| address(seed.addr()))
    }

    /// A client for a server that was named, or that the cluster named: all take the same user and encryption.
    ///
    /// # Errors
    /// If the address cannot be understood.
    pub(super) fn client(&self, wanted: &str) -> RedisResult<Client> {
        if let Some(seed) = self.seeds.iter().find(|seed| address(seed.addr()) == wanted) {
            return Client::open(seed.clone());
        }
        let (host, port) = split(wanted).unwrap_or((wanted, 6379));
        let seed = self.seeds[0].clone();
        let addr = match seed.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        Client::open(seed.set_addr(addr))
    }

    /// No server could be reached in time; `last` is why not.
    pub(super) fn no_connection(&self, last: Option<StoreError>) -> StoreError {
        let addresses = self.addresses().collect::<Vec<_>>().join(", ");
        StoreError::NotApplied(NoConnection { addresses, limit: self.timeout, source: last }.into())
    }

    /// The first server that was to be reached with TLS and talks without.
    pub(super) async fn without_tls(&self) -> Option<String> {
        for seed in &self.seeds {
            let ConnectionAddr::TcpTls { host, port, .. } = seed.addr() else { continue };
            // Nobody is shown the password.
            let Ok(client) = Client::open(ConnectionAddr::Tcp(host.clone(), *port)) else { continue };
            let greeting = async {
                let mut connection = client.get_multiplexed_async_connection().await?;
                redis::cmd("PING").query_async::<Value>(&mut connection).await
            };
            let answer = within(&*self.clock, self.clock.elapsed() + PLAIN_TIMEOUT, greeting).await;
            // It may answer that it wants the password.
            if answer.is_some_and(|answer| answer.map_or_else(|error| error.code().is_some(), |_| true)) {
                return Some(address(seed.addr()));
            }
        }
        None
    }

    /// Says each warning about a server once.
    pub(super) fn warn(&self, address: &str, found: Vec<String>) {
        for warning in found {
            let warning = format!("{address}: {warning}");
            let mut warnings = self.warnings.lock();
            if warnings.insert(warning.clone()) {
                tracing::warn!("{warning}");
            }
        }
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().iter().cloned().collect()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.addresses().collect();
        f.debug_struct("Target")
            .field("addresses", &addresses)
            .field("is_cluster", &self.is_cluster)
            .finish_non_exhaustive()
    }
}

/// The same servers, to be reached with these certificates, which the client keeps with an address.
fn with_certificates(
    seeds: &[ConnectionInfo],
    certificates: &TlsCertificates,
) -> Result<Vec<ConnectionInfo>, StoreError> {
    if let Some(roots) = &certificates.root_cert
        && CertificateDer::pem_slice_iter(roots).next().is_none()
    {
        return Err(StoreError::Open("there is no root certificate in what was given as such".to_owned(), None));
    }
    let of_client = |seed: &ConnectionInfo| {
        Client::build_with_tls(seed.clone(), certificates.clone()).map(|client| client.get_connection_info().clone())
    };
    let seeds = seeds.iter().map(of_client).collect::<RedisResult<_>>();
    seeds.map_err(|error| StoreError::Open("the given certificates cannot be used".to_owned(), Some(error.into())))
}

fn address(addr: &ConnectionAddr) -> String {
    match addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => format!("{host}:{port}"),
        ConnectionAddr::Unix(path) => path.display().to_string(),
        other => other.to_string(),
    }
}

/// Host and port of `host:port`, where the host may have colons itself.
pub(super) fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    Some((host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use stable_interfaces::clock::SystemClock;

    use super::*;

    fn target(urls: &[&str]) -> Result<Target, StoreError> {
        let urls: Vec<_> = urls.iter().map(|url| (*url).to_owned()).collect();
        Target::new(&urls, None, true, Duration::from_secs(1), 0, Arc::new(SystemClock::default()))
    }

    #[test]
    fn a_server_named_by_the_cluster_gets_the_user_and_encryption_of_the_first() {
        let target = target(&["rediss://me:secret@db-1:7000"]).unwrap();
        let client = target.client("10.0.0.7:7001").unwrap();
        let info = client.get_connection_info();
        assert!(matches!(info.addr(), ConnectionAddr::TcpTls { host, port: 7001, .. } if host == "10.0.0.7"));
        assert_eq!((info.redis_settings().username(), info.redis_settings().password()), (Some("me"), Some("secret")));
        assert!(!format!("{target:?}").contains("secret"));
    }

    #[test]
    fn no_call_waits_in_the_kernel_until_the_one_before_it_is_answered() {
        let target = target(&["redis://db-1:7000", "redis://db-2"]).unwrap();
        for address in ["db-1:7000", "db-2:6379", "10.0.0.7:7001"] {
            assert!(target.client(address).unwrap().get_connection_info().tcp_settings().nodelay(), "{address}");
        }
    }

    #[test]
    fn an_address_that_cannot_be_understood_is_refused_without_repeating_its_password() {
        for urls in [&["http://me:secret@db-1"][..], &["::secret"], &[]] {
            let error = target(urls).unwrap_err();
            assert!(
                matches!(error, StoreError::Open(..)) && !format!("{error} {error:?}").contains("secret"),
                "{error:?}"
            );
        }
    }
}
