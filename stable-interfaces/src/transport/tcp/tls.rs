//! TLS between hosts: each side shows a certificate of the fleet's own authority, made out to the host's name.

use std::io;
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::hello::Wire;
use crate::error::WithCauses;
use crate::store::BoxError;

/// The certificate of one host and the authority that all hosts of its fleet trust, and no other. Certificates of hosts are for both ends of a
/// connection and made out to the name that the host has in its fleet.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate of this host.
    own: CertificateDer<'static>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// The fault in what was given for [`Tls`]: it takes the certificates of the authority, the chain of the host's own, and the key that fits it,
/// each as PEM.
#[derive(Debug, thiserror::Error)]
#[error("certificates or key of this host cannot be used for TLS: {}", WithCauses(&**.0))]
pub struct InvalidTls(BoxError);

impl Tls {
    /// Reads them from PEM: the certificates of the authority, the host's own with those between the two, and its private key.
    ///
    /// # Errors
    /// The fault in them: no PEM, none in it, a key that does not fit.
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Tls, InvalidTls> {
        Tls::read(authority, certificate, key).map_err(InvalidTls)
    }

    fn read(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Tls, BoxError> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(authority) {
            roots.add(root?)?;
        }
        let roots = Arc::new(roots);
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
        let own = chain.first().ok_or("there is no certificate of the host")?.clone();
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Tls { own, server: Arc::new(server), client: Arc::new(client) })
    }

    /// Checks that the host of this name is the one that its certificate is made out to.
    pub(super) fn check_own(&self, host: &str) -> Result<(), BoxError> {
        is_made_out_to(Some(&self.own), host).map_err(|reason| format!("of the host {host:?} itself: {reason}").into())
    }

    /// Calls a host, whose certificate has to be made out to its name.
    pub(super) async fn call(&self, stream: TcpStream, host: &str) -> io::Result<Box<dyn Wire>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Box::new(TlsConnector::from(self.client.clone()).connect(name, stream).await?))
    }

    /// Is called by somebody with a certificate of the authority.
    pub(super) async fn answer(
        &self,
        stream: TcpStream,
    ) -> io::Result<(Box<dyn Wire>, Option<CertificateDer<'static>>)> {
        let stream = TlsAcceptor::from(self.server.clone()).accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        Ok((Box::new(stream), certificate.map(CertificateDer::into_owned)))
    }
}

/// Holds a name against a certificate.
pub(super) fn is_made_out_to(certificate: Option<&CertificateDer<'_>>, host: &str) -> Result<(), String> {
    let certificate = certificate.ok_or("it has shown no certificate")?;
    let name =
        ServerName::try_from(host).map_err(|error| format!("{host:?} cannot be the name in a certificate: {error}"))?;
    ParsedCertificate::try_from(certificate)
        .and_then(|certificate| verify_server_name(&certificate, &name))
        .map_err(|error| format!("its certificate is not made out to {host:?}: {error}"))
}
