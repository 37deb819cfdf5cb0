//! The Redis store over TLS: the conformance suite as a user with the documented rights alone, and what is refused.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use alarm_backends::testing::servers::{Redis, RedisOptions};
use alarm_backends::{RedisStore, RedisStoreBuilder};
use redis::TlsCertificates;
use stable_interfaces::StoreError;

/// The rights that the store's documentation says a user needs.
const RIGHTS: &str = "~{case* &case*:* +eval +evalsha +script|load +info +wait +subscribe +publish +@hash +@sortedset +@set +@list +del \
    +type +time";

/// A server that calls itself `localhost`, and who vouches for that.
struct Secure {
    server: Redis,
    certificate: String,
}

static SECURE: LazyLock<Secure> = LazyLock::new(|| {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate is made");
    let certificate = issued.cert.pem();
    let server = RedisOptions::new().tls(&certificate, &issued.signing_key.serialize_pem()).start();
    let user = ["ACL", "SETUSER", "app", "on", ">secret"];
    server.execute(&user.into_iter().chain(RIGHTS.split_whitespace()).collect::<Vec<_>>());
    Secure { server, certificate }
});
static CASES: AtomicU32 = AtomicU32::new(0);

fn url() -> String {
    format!("rediss://app:secret@localhost:{}", SECURE.server.port())
}

fn trusting(certificate: &str) -> TlsCertificates {
    TlsCertificates { client_tls: None, root_cert: Some(certificate.as_bytes().to_vec()) }
}

fn store_at(url: &str) -> RedisStoreBuilder {
    // However busy the machine is.
    let builder = RedisStore::builder(url).timeout(Duration::from_secs(60));
    builder.prefix(format!("case-{}", CASES.fetch_add(1, Ordering::Relaxed)))
}

stable_interfaces::testing::store_tests!(|| async {
    store_at(&url())
        .tls(trusting(&SECURE.certificate))
        .connect()
        .await
        .expect("the certificate is trusted and names the host")
});

/// The reason why it was refused for good.
fn refusal(answer: Result<RedisStore, StoreError>) -> String {
    match answer {
        Err(StoreError::Open(text, source)) => format!("{text} {source:?}"),
        other => panic!("it is refused, not {other:?}"),
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let text = refusal(store_at(&url()).connect().await);
    assert!(text.contains("certificate") && text.contains("UnknownIssuer"), "{text}");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate is made");
    let text = refusal(store_at(&url()).tls(trusting(&other.cert.pem())).connect().await);
    assert!(text.contains("certificate"), "{text}");
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused() {
    let by_number = url().replace("localhost", "127.0.0.1");
    let text = refusal(store_at(&by_number).tls(trusting(&SECURE.certificate)).connect().await);
    assert!(text.contains("certificate") && text.contains("localhost"), "{text}");
}

#[test]
fn certificates_that_cannot_be_used_are_refused_before_anything_is_sent() {
    let text = refusal(store_at("redis://localhost").tls(trusting(&SECURE.certificate)).build());
    assert!(text.contains("rediss://"), "{text}");
    let text = refusal(store_at("rediss://localhost").tls(trusting("no certificate")).build());
    assert!(text.contains("no root certificate"), "{text}");
}

#[tokio::test]
async fn a_server_without_tls_is_refused_with_that_reason() {
    let server = Redis::start();
    for password in [None, Some("secret")] {
        if let Some(password) = password {
            server.execute(&["CONFIG", "SET", "requirepass", password]);
        }
        let url = format!("rediss://:secret@localhost:{}", server.port());
        let text = refusal(store_at(&url).timeout(Duration::from_secs(3)).connect().await);
        assert!(text.contains(&format!("localhost:{}", server.port())) && text.contains("without TLS"), "{text}");
    }
}
