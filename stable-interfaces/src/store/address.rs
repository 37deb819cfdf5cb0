//! A message with its address, for the entrances of stores.
//!
//! The message's name, IDs and size have been checked: whatever takes one may hand it to a store as it is.

use bytes::Bytes;

use super::{InstanceName, MessageHeaders, NewMessage};
use crate::clock::Random;
use crate::error::ContextError;
use crate::fleet::{Fleet, hash_id};
use crate::id::{check_id, check_interface_name};
use crate::sync::Arc;

/// A message with its address, checked: what a store's own entrance for messages takes, such as one that posts within a
/// transaction of the application. [`Interface::post`](crate::Interface::post) and [`FleetClient`](crate::FleetClient) do it all.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Addressed {
    /// The instance that the message is for.
    pub name: InstanceName,
    /// The number that [`Fleet::shard_of`](crate::Fleet::shard_of) scales onto the shards, by the hash of [`HASH_VERSION`](crate::store::HASH_VERSION).
    pub hash: u64,
    /// The message's ID, if the sender chose one; else the message is to get a random ID.
    pub id: Option<Arc<str>>,
    /// The headers that go beside the body.
    pub headers: MessageHeaders,
    /// The body.
    pub body: Bytes,
}

impl Addressed {
    /// A message for `inbox`, which is that of `interface` or the one beside it; for the instance `id`.
    pub(crate) fn new(
        interface: &str,
        inbox: Arc<str>,
        id: &str,
        message_id: Option<String>,
        headers: MessageHeaders,
        body: Bytes,
    ) -> Result<Addressed, ContextError> {
        check_interface_name(interface).map_err(|reason| ContextError::invalid("interface name", interface, reason))?;
        check_id(id).map_err(|reason| ContextError::invalid("instance ID", id, reason))?;
        if let Some(id) = &message_id {
            check_id(id).map_err(|reason| ContextError::invalid("message ID", id, reason))?;
        }
        let name = InstanceName { interface: inbox, instance: id.into() };
        Ok(Addressed { name, hash: hash_id(id), id: message_id.map(Arc::from), headers, body })
    }

    /// The row that a store takes, with a random ID if the sender gave none.
    pub(crate) fn into_message(self, fleet: &Fleet, random: &dyn Random) -> NewMessage {
        let Addressed { name, hash, id, headers, body } = self;
        let id = id.unwrap_or_else(|| format!("{:016x}{:016x}", random.next_u64(), random.next_u64()).into());
        NewMessage { shard: fleet.shard_of_hash(hash), name, id, headers, body }
    }
}
