//! HTTP to Stripe, over TLS as it demands, or without it to a fake on this machine: a connection for each request.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use examples::CannotStart;
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use reqwest::Url;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 192 * 1024;

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

/// The way to one server.
pub(crate) struct Wire {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Wire {
    /// The way to the server of a URL, of which nothing but scheme, host and port counts.
    ///
    /// # Errors
    /// If it is no URL of a server, or this machine has no certificates to know one by.
    pub(crate) fn new(url: &Url) -> Result<Wire, CannotStart> {
        let cannot = |why: &str| CannotStart::new(format!("cannot use {url}"), why.to_owned());
        let host = url.host_str().ok_or_else(|| cannot("it names no server"))?.to_owned();
        let port = url.port_or_known_default().ok_or_else(|| cannot("it names no port"))?;
        let tls = match url.scheme() {
            "http" => None,
            "https" => {
                let name = ServerName::try_from(host.clone()).map_err(|error| cannot(&error.to_string()))?;
                Some((connector().map_err(|error| cannot(&error.to_string()))?, name))
            }
            _ => return Err(cannot("it begins neither with http:// nor with https://")),
        };
        Ok(Wire { host, port, tls })
    }

    /// Sends a request and reads its answer. It has no limit in time: whoever calls it has one.
    ///
    /// # Errors
    /// If there is no whole answer; the request may have been received all the same.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> io::Result<Answer> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some((tls, name)) => Box::new(tls.connect(name.clone(), tcp).await?),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let mut request = Request::builder().method(method).uri(path).header("host", &self.host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).map_err(io::Error::other)?;
        let answer = async {
            let (parts, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
            let body = to_bytes(Body::new(body), MAX_ANSWER).await.map_err(io::Error::other)?;
            let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let headers = parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
            Ok(Answer { status: parts.status.as_u16(), headers, body })
        };
        // The connection is driven here, and so ends with this call, also with one that is given up. Ended by the server, it has left what
        // came before that, or an error.
        let mut answer = std::pin::pin!(answer);
        tokio::select! { biased;
            answer = &mut answer => answer,
            _ = connection => answer.await,
        }
    }
}

/// Knows a server by the certificates that this machine trusts.
fn connector() -> io::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(io::Error::other("this machine has no certificates; on Debian: apt-get install ca-certificates"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}
