//! The contents of a store, laid open for checkers.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::store::{AlarmRow, DeadLetter, Epoch, InboxRow, Incarnation, InstanceName, ShardId};
use crate::sync::Arc;

/// Everything in a [`MemoryStore`](crate::MemoryStore) at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreDump {
    /// Every shard that was ever claimed or posted to.
    pub shards: BTreeMap<ShardId, ShardDump>,
}

/// Everything in one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardDump {
    /// The shard's newest epoch; zero if the shard was never claimed.
    pub epoch: Epoch,
    /// The owner; `None` if the shard was released or never claimed. An owner whose lease ran out is still named.
    pub owner: Option<Incarnation>,
    /// The alarms, in the order of firing.
    pub alarms: Vec<AlarmRow>,
    /// The messages, in the order of arrival.
    pub inbox: Vec<InboxRow>,
    /// Oldest first.
    pub dead: Vec<DeadLetter>,
    /// The values, by instance and key.
    pub storage: BTreeMap<(InstanceName, Arc<str>), Bytes>,
}

impl StoreDump {
    /// All alarms, shard by shard.
    pub fn alarms(&self) -> impl Iterator<Item = &AlarmRow> {
        self.shards.values().flat_map(|shard| &shard.alarms)
    }

    /// All unread messages, shard by shard.
    pub fn inbox(&self) -> impl Iterator<Item = &InboxRow> {
        self.shards.values().flat_map(|shard| &shard.inbox)
    }

    /// All dead letters, shard by shard.
    pub fn dead(&self) -> impl Iterator<Item = &DeadLetter> {
        self.shards.values().flat_map(|shard| &shard.dead)
    }

    /// The value under `key` of the instance, in whichever shard it is.
    #[must_use]
    pub fn value(&self, name: &InstanceName, key: &str) -> Option<&Bytes> {
        let place = (name.clone(), Arc::from(key));
        self.shards.values().find_map(|shard| shard.storage.get(&place))
    }
}
