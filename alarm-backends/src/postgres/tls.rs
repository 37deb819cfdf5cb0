//! Security of a connection: TLS by default, with the server's certificate and name verified; plain text within this machine.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use stable_interfaces::StoreError;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A connection string that has been read.
pub(super) struct Parsed {
    pub(super) config: Config,
    /// Nobody asked for plain text: the server is on this machine, and the string has no `sslmode`.
    pub(super) is_plain_by_default: bool,
}

/// Parses a connection string in either form (`postgres://..` or `host=.. dbname=..`). Without an `sslmode` of its own it gets
/// [`SslMode::Require`], and within this machine [`SslMode::Disable`]. `verify-full` is another name of `require`.
pub(super) fn parse(url: &str) -> Result<Parsed, StoreError> {
    let mut config = with_default(url, "require")?;
    // Reading it with two defaults tells whether one was used; a password may contain the word.
    let is_silent = config.get_ssl_mode() != with_default(url, "disable")?.get_ssl_mode();
    let is_socket = !config.get_hosts().is_empty() && config.get_hosts().iter().all(is_socket);
    let is_plain_by_default = is_silent && !is_socket && is_loopback(&config);
    if is_socket || is_plain_by_default {
        // Nobody is in between. Of a socket there is no name to verify either.
        config.ssl_mode(SslMode::Disable);
    }
    Ok(Parsed { config, is_plain_by_default })
}

/// Parses a connection string whose `sslmode` is `mode` unless it says otherwise.
fn with_default(url: &str, mode: &str) -> Result<Config, StoreError> {
    let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let text = if is_url {
        // As the parser finds it: a user and password end with the first `@` and may contain anything.
        let host = url.find('@').map_or(0, |at| at + 1);
        match url[host..].find('?') {
            Some(query) => {
                let (server, query) = url.split_at(host + query);
                format!("{server}?sslmode={mode}&{}", &query[1..].replace("sslmode=verify-full", "sslmode=require"))
            }
            None => format!("{url}?sslmode={mode}"),
        }
    } else {
        // A later word of the same name counts.
        format!("sslmode={mode} {}", url.replace("sslmode=verify-full", "sslmode=require"))
    };
    text.parse().map_err(|error: tokio_postgres::Error| {
        StoreError::Open("the connection string cannot be read".into(), Some(error.into()))
    })
}

fn is_socket(host: &Host) -> bool {
    match host {
        Host::Tcp(_) => false,
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

/// Makes sure that every server that may be connected to is on this machine. An address, where there is one, counts and not the name.
fn is_loopback(config: &Config) -> bool {
    if !config.get_hostaddrs().is_empty() {
        return config.get_hostaddrs().iter().all(IpAddr::is_loopback);
    }
    let is_local = |host: &Host| match host {
        Host::Tcp(name) => {
            name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    };
    !config.get_hosts().is_empty() && config.get_hosts().iter().all(is_local)
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
        parse(url).expect("a connection string").config.get_ssl_mode()
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
            "postgres://127.0.0.1,db.example/orders",
            "postgres://localhost.example/orders",
            "host=localhost hostaddr=10.0.0.7 dbname=orders",
        ] {
            assert_eq!(mode(url), SslMode::Require, "{url}");
        }
    }

    #[test]
    fn a_server_on_this_machine_is_reached_in_plain_text_unless_the_url_asks_for_more() {
        for url in [
            "postgres://u:p@127.0.0.1/orders",
            "postgres://u:sslmode=require@localhost:5433/orders",
            "postgresql://u@[::1]/orders?application_name=x",
            "postgres://u@LOCALHOST,127.0.0.2/orders",
            "host=localhost dbname=orders",
            "host=db.example hostaddr=127.0.0.1 dbname=orders",
        ] {
            let parsed = parse(url).expect("a connection string");
            assert_eq!((parsed.config.get_ssl_mode(), parsed.is_plain_by_default), (SslMode::Disable, true), "{url}");
        }
        for (asked, expected) in [
            ("require", SslMode::Require),
            ("verify-full", SslMode::Require),
            ("prefer", SslMode::Prefer),
            ("disable", SslMode::Disable),
        ] {
            for url in [format!("postgres://127.0.0.1/x?sslmode={asked}"), format!("host=::1 sslmode={asked}")] {
                let parsed = parse(&url).expect("a connection string");
                assert_eq!((parsed.config.get_ssl_mode(), parsed.is_plain_by_default), (expected, false), "{url}");
            }
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
