//! Opening the store: many at once, on databases that do not fit, with and without TLS.

use std::sync::Arc;
use std::time::Duration;

use alarm_backends::postgres::PostgresStore;
use alarm_backends::testing::servers::PostgresOptions;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use stable_interfaces::store::{Batch, ClaimKind, Incarnation, Lane, Renewal, ShardId, Write};
use stable_interfaces::{Store, StoreError};

use super::SERVER;
use super::given::*;

/// The text of the error that opening gives.
fn refusal(opened: Result<PostgresStore, StoreError>) -> String {
    let Err(StoreError::Open(text, _)) = opened else { unreachable!("it cannot be opened, not {opened:?}") };
    text
}

async fn fresh_database_with(options: &'static str) -> String {
    tokio::task::spawn_blocking(move || SERVER.fresh_database_with(options)).await.expect("a database is made")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_hosts_may_open_an_empty_database_at_once() {
    let url = fresh_database_with("ENCODING 'UTF8' LOCALE 'C'").await;
    let opening: Vec<_> = (0..10)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { store_on(&url).await })
        })
        .collect();
    for opened in opening {
        opened.await.expect("the store is opened");
    }
    let raw = raw(&url).await;
    let versions: i64 = raw
        .query_one_scalar("SELECT count(*) FROM stable_interfaces.schema_version", &[])
        .await
        .expect("the schema is there");
    assert_eq!(versions, 1, "it was made once");
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_one_database_are_stores_of_their_own() {
    let url = fresh_database_with("ENCODING 'UTF8' LOCALE 'C'").await;
    // A keyword and the default.
    let other = PostgresStore::builder(&url).expect("a URL").schema("select").connect().await.expect("it is opened");
    let store = store_on(&url).await;
    own(&store, 1).await;
    own(&other, 1).await;
    commit(&store, &write(0, 1, vec![put("k", "v")])).await.expect("the owner writes");
    assert_eq!(value(&store, "k").await.as_deref(), Some("v"));
    assert_eq!(value(&other, "k").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_name_that_needs_escaping_is_refused() {
    for name in ["Orders", "a\"; DROP SCHEMA public; --", "", "pg_mine"] {
        let builder = PostgresStore::builder(&SERVER.url("postgres")).expect("a URL").schema(name);
        assert!(refusal(builder.connect().await).contains("schema name"), "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_utf8_is_refused() {
    for options in ["ENCODING 'SQL_ASCII' LOCALE 'C'", "ENCODING 'LATIN1' LOCALE 'C'"] {
        let url = fresh_database_with(options).await;
        let text = refusal(PostgresStore::connect(&url).await);
        assert!(text.contains("UTF8"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_must_exist_is_not_made() {
    let url = fresh_database_with("ENCODING 'UTF8' LOCALE 'C'").await;
    let builder = || PostgresStore::builder(&url).expect("a URL").must_exist(true);
    let text = refusal(builder().connect().await);
    assert!(text.contains("stable_interfaces") && text.contains("must_exist"), "{text}");
    let count = "SELECT count(*) FROM pg_namespace WHERE nspname = 'stable_interfaces'";
    let schemas: i64 = raw(&url).await.query_one_scalar(count, &[]).await.expect("it is answered");
    assert_eq!(schemas, 0, "nothing was made");
    store_on(&url).await;
    builder().connect().await.expect("now there is one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_or_user_that_is_not_there_is_refused_at_once() {
    assert!(refusal(PostgresStore::connect(&SERVER.url("nowhere")).await).contains("does not exist"));
    let url = SERVER.url("postgres").replace("postgres@", "nobody@");
    assert!(refusal(PostgresStore::connect(&url).await).contains("login"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_waited_for_until_the_deadline() {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let began = std::time::Instant::now();
    let opened = PostgresStore::builder(&url).expect("a URL").timeout(DEADLINE).connect().await;
    let Err(StoreError::NotApplied(error)) = &opened else { panic!("{opened:?}") };
    assert_eq!(error.to_string(), format!("no connection to 127.0.0.1:{port} within 2s"));
    assert!(format!("{error:?}").contains("refused"), "{error:?}");
    let took = began.elapsed();
    assert!(took > DEADLINE / 3 && took < PATIENCE, "it took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_needs_no_right_to_create_schemas_where_there_is_one() {
    let url = fresh_database_with("ENCODING 'UTF8' LOCALE 'C'").await;
    let role = format!("modest_{}", url.bytes().filter(u8::is_ascii_digit).map(char::from).collect::<String>());
    let admin = raw(&url).await;
    admin
        .batch_execute(&format!("CREATE ROLE {role} LOGIN; CREATE SCHEMA stable_interfaces AUTHORIZATION {role}"))
        .await
        .expect("the role is made");
    let store = store_on(&url.replace("postgres@", &format!("{role}@"))).await;
    own(&store, 1).await;
    commit(&store, &write(0, 1, vec![put("k", "v")])).await.expect("the owner writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_this_machine_needs_no_sslmode() {
    let plain = SERVER.url("postgres").replace("?sslmode=disable", "");
    for url in [plain.clone(), plain.replace("127.0.0.1", "localhost")] {
        let store = store_on(&url).await;
        own(&store, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_logins_over_tls_alone_is_refused_with_the_word_that_mends_it() {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate is made");
    let options = PostgresOptions::new().tls(&issued.cert.pem(), &issued.signing_key.serialize_pem());
    let server = tokio::task::spawn_blocking(|| options.start()).await.expect("the server starts");
    let hba = server.directory().join("data/pg_hba.conf");
    std::fs::write(hba, "hostssl all all 127.0.0.1/32 trust\n").expect("a file can be written");
    server.execute("SELECT pg_reload_conf()");
    let url = server.url("postgres").replace("?sslmode=disable", "");
    // The server reads it in its own time.
    let text = loop {
        match PostgresStore::connect(&url).await {
            Ok(_) => {}
            refused => break refusal(refused),
        }
    };
    assert!(text.contains("login") && text.contains("sslmode=require"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified_and_its_lack_refused_by_name() {
    let asking = SERVER.url("postgres").replace("sslmode=disable", "sslmode=require");
    let text = refusal(PostgresStore::connect(&asking).await);
    assert!(text.contains("no TLS") && text.contains("sslmode=disable"), "{text}");

    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate is made");
    let options = PostgresOptions::new().tls(&issued.cert.pem(), &issued.signing_key.serialize_pem());
    let server = tokio::task::spawn_blocking(|| options.start()).await.expect("the server starts");
    let url = server.url("postgres").replace("?sslmode=disable", "").replace("127.0.0.1", "localhost");
    let text = refusal(PostgresStore::connect(&format!("{url}?sslmode=require")).await);
    assert!(text.contains("certificate") && text.contains("sslmode"), "nobody vouches for it: {text}");

    let trusting = |certificate: &CertificateDer<'static>| {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a certificate can be a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        config.expect("the provider has safe versions").with_root_certificates(roots).with_no_client_auth()
    };
    let certificate = issued.cert.der();
    let builder = PostgresStore::builder(&url).expect("a URL").tls(trusting(certificate));
    let store = builder.connect().await.expect("the certificate is trusted and names the host");
    own(&store, 1).await;
    store.renew(&Renewal::new(Incarnation(1), DEADLINE)).await.expect("the store can be used");
    let raw = raw(&server.url("postgres")).await;
    until(
        &raw,
        "SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
         WHERE a.application_name = 'stable-interfaces'",
    )
    .await;

    let by_number = url.replace("localhost", "127.0.0.1");
    let builder = PostgresStore::builder(&by_number).expect("a URL").tls(trusting(certificate));
    let text = refusal(builder.connect().await);
    assert!(text.contains("certificate"), "a certificate of another name: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_option_at_its_ends_is_refused_by_name_or_works() {
    let url = fresh_database_with("ENCODING 'UTF8' LOCALE 'C'").await;
    let builder = || PostgresStore::builder(&url).expect("a URL").timeout(PATIENCE);
    for timeout in [Duration::ZERO, Duration::from_nanos(999_999)] {
        let text = refusal(builder().timeout(timeout).connect().await);
        assert!(text.contains("timeout"), "{text}");
    }
    let working = [
        builder().timeout(Duration::MAX),
        builder().timeout(Duration::from_secs(u64::MAX / 2)),
        builder().transactions(0),
        builder().transactions(u16::MAX),
    ];
    for (n, builder) in (1..).zip(working) {
        let store = builder.connect().await.expect("the store can be opened");
        let life = Incarnation(n);
        let claimed = store.claim(&claim(n, "host-a", &[0], ClaimKind::Start)).await.expect("the claim is answered");
        let epoch = claimed.granted[0].epoch;
        for lane in [0, 1, u16::MAX] {
            let batch = Batch { shard: ShardId(0), epoch, ops: [put("k", &format!("{n} {lane}"))].into() };
            let write = Write { incarnation: life, lane: Lane(lane), seq: 1, batches: vec![batch] };
            store.commit(&write).await.expect("the write is answered").remove(0).expect("the owner writes");
            assert_eq!(value(&store, "k").await, Some(format!("{n} {lane}")));
        }
        store.renew(&Renewal::new(life, Duration::MAX)).await.expect("a lease may be as long as any");
        store.release(life, &[(ShardId(0), None)]).await.expect("the shard is let go");
    }
}
