//! The store in memory. There is nothing under it, so its limit is the store itself.

use std::sync::Arc;

use async_trait::async_trait;
use stable_interfaces::{MemoryStore, Store};

use super::{Backend, Place, direct};

/// [`MemoryStore`].
#[derive(Debug)]
pub struct Memory;

#[async_trait]
impl Backend for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn fresh(&self) -> Box<dyn Place> {
        Box::new(InMemory(MemoryStore::new()))
    }

    fn at(&self, _: &str) -> Box<dyn Place> {
        Box::new(InMemory(MemoryStore::new()))
    }
}

struct InMemory(MemoryStore);

#[async_trait]
impl Place for InMemory {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.0.clone())
    }

    fn address(&self) -> Option<String> {
        None
    }

    async fn raw_set(&self, rows: usize) -> f64 {
        direct::set(&self.0, &MemoryStore::new(), rows).await
    }

    async fn raw_drain(&self, rows: usize) -> f64 {
        direct::drain(&self.0, rows).await
    }
}
