//! Connections that die without a word: what is open falls silent, what is new is served. Each method of each server's store, given
//! up by its caller before, with and after the store's own deadline.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use alarm_backends::testing::servers::{Postgres, Redis};
use alarm_backends::{PostgresStore, RedisStore};
use bytes::Bytes;
use stable_interfaces::store::{
    After, Batch, Claim, ClaimKind, Epoch, Incarnation, InstanceName, Lane, NewMessage, Op, Page, Presence, Read,
    ReadRange, Renewal, ShardId, Write,
};
use stable_interfaces::{Store, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::start);
static REDIS: LazyLock<Redis> = LazyLock::new(Redis::start);

/// The store's own deadline.
const DEADLINE: Duration = Duration::from_millis(1500);
/// The callers' deadlines: shorter, equal, longer.
const PATIENCE: [Duration; 3] = [Duration::from_millis(500), DEADLINE, Duration::from_secs(60)];
const ME: Incarnation = Incarnation(1);

/// A proxy that can let all connections there are fall silent for good, as a network does that has lost their state.
struct Proxy {
    port: u16,
    /// Raised with each freeze: a connection that is older passes nothing any more, and stays open.
    age: watch::Sender<u64>,
}

impl Proxy {
    async fn start(target: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (port, age) = (listener.local_addr().unwrap().port(), watch::channel(0).0);
        let born = age.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let (client, server) = (client.into_split(), server.into_split());
                tokio::spawn(pass(client.0, server.1, born.subscribe()));
                tokio::spawn(pass(server.0, client.1, born.subscribe()));
            }
        });
        Proxy { port, age }
    }

    fn freeze(&self) {
        self.age.send_modify(|age| *age += 1);
    }
}

/// Passes bytes on until either side ends it or it is frozen. Then it holds both ends open, and its peers in the dark.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut age: watch::Receiver<u64>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        tokio::select! { biased;
            frozen = age.changed() => {
                if frozen.is_ok() {
                    std::future::pending::<()>().await;
                }
                return;
            }
            read = from.read(&mut buffer) => match read {
                Ok(read) if read > 0 && to.write_all(&buffer[..read]).await.is_ok() => {}
                _ => return,
            },
        }
    }
}

fn name() -> InstanceName {
    InstanceName { interface: "order".into(), instance: "o-1".into() }
}

fn claim() -> Claim {
    Claim {
        incarnation: ME,
        host: "host-a".into(),
        shards: vec![ShardId(0)],
        given_up: Vec::new(),
        shard_count: 16,
        hash_version: 1,
        lease: Duration::from_secs(3600),
        kind: ClaimKind::Running,
        presence: Presence::default(),
    }
}

const METHODS: [&str; 8] = ["claim", "renew", "release", "commit", "post", "load", "read", "watch"];

/// Calls a method; `round` makes its content new.
async fn call(store: &dyn Store, method: &str, round: u64) -> Result<(), StoreError> {
    let ops = vec![Op::Put { name: name(), key: format!("k-{round}").into(), value: Bytes::from_static(b"v") }];
    let batches = vec![Batch { shard: ShardId(0), epoch: Epoch(1), ops: ops.into() }];
    match method {
        "claim" => store.claim(&claim()).await.map(drop),
        "renew" => store.renew(&Renewal::new(ME, Duration::from_secs(3600))).await.map(drop),
        // Of a shard that it does not have: the others are needed.
        "release" => store.release(ME, &[(ShardId(1), None)]).await,
        "commit" => {
            let write = Write { incarnation: ME, lane: Lane(0), seq: round + 1, batches };
            store.commit(&write).await?.into_iter().collect()
        }
        "post" => {
            let id = format!("m-{round}").into();
            let new = NewMessage { shard: ShardId(0), name: name(), id, headers: Vec::new(), body: Bytes::new() };
            store.post(&[new]).await.map(drop)
        }
        "load" => store.load(&[Page::new(ShardId(0), After::Alarms(None), 10)]).await.map(drop),
        "watch" => store.watch(ME).await.map(drop),
        _ => {
            let range = ReadRange::Storage("".into(), None);
            store.read(&Read::new(ShardId(0), name(), range, 10)).await.map(drop)
        }
    }
}

/// Calls a method again and again, as a host does, until it is done.
async fn insist(store: &dyn Store, method: &str, round: u64, patience: Duration) {
    // On the dead connection no try would ever be answered, and this is far less than it takes the network to say so.
    let end = Instant::now() + PATIENCE[2];
    while Instant::now() < end {
        match tokio::time::timeout(patience, call(store, method, round)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => assert!(error.is_retryable(), "{method}: {error:?}"),
            Err(_) => {}
        }
    }
    panic!("{method} is not done, given up after {patience:?} each time");
}

/// Freezes what is open before a call of the method, for each patience of its caller.
async fn is_used_no_more(store: &dyn Store, proxy: &Proxy, method: &str) {
    // What owns nothing can do nothing.
    insist(store, "claim", 0, PATIENCE[2]).await;
    for (round, patience) in (0..).step_by(2).zip(PATIENCE) {
        insist(store, method, round, PATIENCE[2]).await;
        proxy.freeze();
        insist(store, method, round + 1, patience).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_connection_to_postgres_is_used_no_more_whoever_gives_up_first() {
    let url = tokio::task::spawn_blocking(|| POSTGRES.fresh_database()).await.unwrap();
    let each = METHODS.map(async |method| {
        let proxy = Proxy::start(POSTGRES.port()).await;
        let url = url.replace(&format!(":{}/", POSTGRES.port()), &format!(":{}/", proxy.port));
        let builder = || PostgresStore::builder(&url).unwrap().schema(format!("of_{method}")).timeout(DEADLINE);
        // Many do so at once here.
        let store = loop {
            match builder().connect().await {
                Ok(store) => break store,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        };
        is_used_no_more(&store, &proxy, method).await;
    });
    futures_util::future::join_all(each).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_connection_to_redis_is_used_no_more_whoever_gives_up_first() {
    let each = METHODS.map(async |method| {
        let proxy = Proxy::start(REDIS.port()).await;
        let builder = RedisStore::builder(format!("redis://127.0.0.1:{}", proxy.port));
        let store = builder.prefix(method).timeout(DEADLINE).build().unwrap();
        is_used_no_more(&store, &proxy, method).await;
    });
    futures_util::future::join_all(each).await;
}
