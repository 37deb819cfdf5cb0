//! How a connection is secured: by default with TLS, and the server's certificate and name are verified.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use stable_interfaces::StoreError;
use tokio_postgres::Config;
#[cfg(unix)]
use tokio_postgres::config::Host;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Parses a connection string in either form (`postgres://..` or `host=.. dbname=..`), whose `sslmode` is
/// [`SslMode::Require`] unless it says otherwise. `verify-full` is a name of the same.
pub(super) fn parse(url: &str) -> Result<Config, StoreError> {
    let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let text = if is_url {
        // As the parser finds it: a user and password end with the first `@` and may contain anything.
        let host = url.find('@').map_or(0, |at| at + 1);
        match url[host..].find('?') {
            Some(query) => {
                let (server, query) = url.split_at(host + query);
                format!("{server}?sslmode=require&{}", &query[1..].replace("sslmode=verify-full", "sslmode=require"))
            }
            None => format!("{url}?sslmode=require"),
        }
    } else {
        // A later word of the same name counts.
        format!("sslmode=require {}", url.replace("sslmode=verify-full", "sslmode=require"))
    };
    let mut config: Config = text.parse().map_err(|error: tokio_postgres::Error| {
        StoreError::Open("the connection string cannot be read".into(), Some(error.into()))
    })?;
    #[cfg(unix)]
    if !config.get_hosts().is_empty() && config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) {
        // Nobody is in between, and there is no name to verify.
        config.ssl_mode(SslMode::Disable);
    }
    Ok(config)
}

/// Makes TLS connections that trust what the operating system trusts (or `SSL_CERT_FILE` names), or by `given`.
pub(super) fn connector(config: &Config, given: Option<ClientConfig>) -> Result<MakeRustlsConnect, StoreError> {
    if let Some(given) = given {
        return Ok(MakeRustlsConnect::new(given));
    }
    let mut roots = RootCertStore::empty();
    if config.get_ssl_mode() != SslMode::Disable {
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 && config.get_ssl_mode() == SslMode::Require {
            let text = "no root certificates were found on this machine to verify the server with";
            return Err(StoreError::Open(text.into(), found.errors.into_iter().next().map(Into::into)));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Open("TLS cannot be set up".into(), Some(error.into())))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> SslMode {
        parse(url).expect("a connection string").get_ssl_mode()
    }

    #[test]
    fn tls_is_required_unless_the_url_says_otherwise() {
        for url in [
            "postgres://db.example/orders",
            "postgres://user:pass?sslmode=disable@db.example/orders",
            "postgresql://db.example/orders?application_name=x",
            "postgres://db.example/orders?sslmode=verify-full",
            "host=db.example dbname=orders",
            "host=db.example sslmode=verify-full",
        ] {
            assert_eq!(mode(url), SslMode::Require, "{url}");
        }
    }

    #[test]
    fn a_mode_in_the_url_is_kept() {
        assert_eq!(mode("postgres://db.example/orders?sslmode=disable"), SslMode::Disable);
        assert_eq!(mode("postgres://u:p@db.example/orders?application_name=x&sslmode=prefer"), SslMode::Prefer);
        assert_eq!(mode("host=db.example sslmode=disable"), SslMode::Disable);
        assert_eq!(mode("host=/var/run/postgresql dbname=orders"), SslMode::Disable);
        assert!(parse("postgres://db.example/orders?sslmode=allow").is_err());
    }
}
