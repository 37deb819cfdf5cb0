//! Connections that listen for messages, and die without a word: a firewall has forgotten them, or a machine has gone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real servers live in real time")]

use std::sync::Arc;
use std::time::Duration;

use alarm_backends::testing::servers::{Postgres, Redis};
use alarm_backends::{PostgresStore, RedisStore};
use bytes::Bytes;
use stable_interfaces::Store;
use stable_interfaces::store::{Hint, Incarnation, InstanceName, NewMessage, ShardId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const BIND: &str = "127.0.0.1:0";
/// The time in which a busy machine answers a listener that asks whether somebody is there.
const DEADLINE: Duration = Duration::from_secs(8);
/// Longer than anything takes, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Hands on what comes, on connections made after the last call of `freeze`; what is older stays open, and silent both ways.
struct Proxy {
    port: u16,
    frozen: watch::Sender<u64>,
}

impl Proxy {
    async fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind(BIND).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (frozen, _) = watch::channel(0);
        let freezes = frozen.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let ((from, to), (back, forth)) = (client.into_split(), server.into_split());
                tokio::spawn(carry(from, forth, freezes.subscribe()));
                tokio::spawn(carry(back, to, freezes.subscribe()));
            }
        });
        Proxy { port, frozen }
    }

    fn freeze(&self) {
        self.frozen.send_modify(|frozen| *frozen += 1);
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut frozen: watch::Receiver<u64>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let read = tokio::select! { biased;
            _ = frozen.changed() => break,
            read = from.read(&mut buffer) => read,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(bytes) if to.write_all(&buffer[..bytes]).await.is_err() => return,
            Ok(_) => {}
        }
    }
    // Both ends stay open.
    std::future::pending::<()>().await;
}

fn message(id: &str) -> NewMessage {
    let name = InstanceName { interface: "order".into(), instance: "i".into() };
    NewMessage { shard: ShardId(7), name, id: id.into(), headers: vec![], body: Bytes::new() }
}

/// The stream of hints of `listening` ends by itself after its connection has been frozen, and the next one hears.
async fn a_frozen_listener_is_noticed(listening: Arc<dyn Store>, posting: Arc<dyn Store>, proxy: Proxy) {
    let mut hints = listening.watch(Incarnation(1)).await.unwrap();
    posting.post(&[message("before")]).await.unwrap();
    assert_eq!(hints.next().await, Some(Hint::Inbox(ShardId(7))));
    // Quiet is not silent: who listens for longer than it takes to notice still hears.
    assert!(tokio::time::timeout(DEADLINE + Duration::from_secs(5), hints.next()).await.is_err(), "nothing was posted");
    posting.post(&[message("after a while")]).await.unwrap();
    assert_eq!(hints.next().await, Some(Hint::Inbox(ShardId(7))));
    proxy.freeze();
    posting.post(&[message("unheard")]).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, hints.next()).await;
    assert_eq!(ended, Ok(None), "it is seen to be dead");
    let mut hints = listening.watch(Incarnation(1)).await.unwrap();
    posting.post(&[message("heard")]).await.unwrap();
    assert_eq!(hints.next().await, Some(Hint::Inbox(ShardId(7))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_of_postgres_that_has_fallen_silent_is_noticed_within_seconds() {
    let server = Postgres::start();
    let url = server.fresh_database();
    let proxy = Proxy::start(server.port()).await;
    let behind = url.replace(&server.port().to_string(), &proxy.port.to_string());
    let posting = PostgresStore::builder(&url).unwrap().timeout(PATIENCE).connect().await.unwrap();
    let listening = PostgresStore::builder(&behind).unwrap().timeout(DEADLINE).connect().await.unwrap();
    a_frozen_listener_is_noticed(Arc::new(listening), Arc::new(posting), proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_of_redis_that_has_fallen_silent_is_noticed_within_seconds() {
    let server = Redis::start();
    let proxy = Proxy::start(server.port()).await;
    let posting = RedisStore::builder(server.url()).timeout(PATIENCE).connect().await.unwrap();
    let behind = format!("redis://127.0.0.1:{}", proxy.port);
    let listening = RedisStore::builder(&behind).timeout(DEADLINE).connect().await.unwrap();
    a_frozen_listener_is_noticed(Arc::new(listening), Arc::new(posting), proxy).await;
}
