//! Redis, on private servers, in both modes of its append-only file. Its limit is the store itself without a host: the same
//! scripts with the same arguments, in a tight loop.

use std::sync::Arc;

use alarm_backends::redis::RedisStore;
use alarm_backends::testing::servers;
use async_trait::async_trait;
use stable_interfaces::Store;

use super::{Backend, Place, direct};
#[cfg(feature = "queues")]
use crate::queues::{ApalisRedis, Queue};

/// [`RedisStore`] on a server that syncs its file once a second (`everysec`) or before each answer (`always`).
#[derive(Debug)]
pub struct Redis {
    /// `everysec` or `always`.
    pub mode: &'static str,
}

fn start(mode: &str) -> servers::Redis {
    servers::RedisOptions::new().set("appendfsync", mode).start()
}

#[async_trait]
impl Backend for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn mode(&self) -> Option<&'static str> {
        Some(self.mode)
    }

    async fn fresh(&self) -> Box<dyn Place> {
        let server = start(self.mode);
        Box::new(Server { url: server.url(), mode: self.mode, _server: Some(server) })
    }

    fn at(&self, address: &str) -> Box<dyn Place> {
        Box::new(Server { url: address.to_owned(), mode: self.mode, _server: None })
    }

    #[cfg(feature = "queues")]
    async fn queues(&self) -> Vec<Box<dyn Queue>> {
        vec![Box::new(ApalisRedis::new(start(self.mode), None))]
    }

    #[cfg(feature = "queues")]
    async fn due_queues(&self) -> Vec<(Box<dyn Queue>, u64)> {
        // It fails with 20,000.
        vec![
            (Box::new(ApalisRedis::new(start(self.mode), None)), 5_000),
            (Box::new(ApalisRedis::new(start(self.mode), Some(500))), 5_000),
        ]
    }
}

struct Server {
    url: String,
    mode: &'static str,
    /// Ends it in the end.
    _server: Option<servers::Redis>,
}

#[async_trait]
impl Place for Server {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(RedisStore::connect(&self.url).await.expect("the store can be opened"))
    }

    fn address(&self) -> Option<String> {
        Some(self.url.clone())
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn raw_set(&self, rows: usize) -> f64 {
        let empty = start(self.mode);
        let store = RedisStore::connect(&empty.url()).await.expect("the store can be opened");
        direct::set(&*self.open().await, &store, rows).await
    }

    async fn raw_drain(&self, rows: usize) -> f64 {
        direct::drain(&*self.open().await, rows).await
    }
}
