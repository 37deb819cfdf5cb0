//! Inboxes: durable messages for an instance, from any host.
//!
//! Anyone may post; only the owner reads, and the order in which it takes messages is their order. [`window`] holds what a
//! shard's owner has taken into memory.
//!
//! *Why exactly once.* A message is a row from the post that the store acknowledged to the batch that removes it, together with the effects
//! of its handler and under the epoch of its shard: all of that lands, once, or none of it. A message that is lost on its way to that
//! commit (`shards/delivery.rs`) is due again; a committed one is gone, and no later message has its key of arrival, name and ID. What the
//! sender must know: a second post under the ID of one that still waits is a duplicate, and one that comes later is a new message.
//! So no post whose outcome is unknown is repeated here; the sender is told, and decides.

pub(crate) mod window;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Timestamp;
use crate::error::{ContextError, beginning};
use crate::id::{MAX_VALUE_BYTES, own_bytes};
use crate::json;
use crate::store::client::StoreClient;
use crate::store::{Addressed, InboxRow, InstanceName, MessageHeaders, ShardId};
use crate::sync::Arc;

/// The messages that wait in the inbox of an instance, in the order of their arrival, without those that arrived later than `until`. Reads the inboxes of
/// its shard up to there.
pub(crate) async fn waiting(
    client: &StoreClient<'_>,
    shard: ShardId,
    name: &InstanceName,
    until: Timestamp,
) -> Result<Vec<Message>, ContextError> {
    let mut messages = Vec::new();
    let mut pages = client.pages::<InboxRow>(shard, None);
    while let Some(rows) = pages.next().await.map_err(ContextError::store)? {
        for row in rows {
            if row.arrived > until {
                return Ok(messages);
            }
            if row.name == *name {
                messages.push(Message::new(Arc::new(row)));
            }
        }
    }
    Ok(messages)
}

/// A message to post to an instance's inbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewPost {
    pub(crate) id: Option<String>,
    pub(crate) headers: MessageHeaders,
    pub(crate) body: Bytes,
}

impl NewPost {
    /// A message with this body, opaque to the library, at most [`MAX_VALUE_BYTES`](crate::store::MAX_VALUE_BYTES) long.
    #[must_use]
    pub fn new(body: impl Into<Bytes>) -> NewPost {
        NewPost { body: body.into(), ..NewPost::default() }
    }

    /// A message with a value as JSON for its body.
    ///
    /// # Errors
    /// [`ContextError::Json`] if it cannot be JSON that is read again: a number that is not finite, nested too deep.
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<NewPost, ContextError> {
        Ok(NewPost::new(json::to_vec(value)?))
    }

    /// Sets the message's ID: while a message with the same ID waits in the instance's inbox, a second is dropped as a duplicate, so a sender
    /// that does not know whether its message got through can repeat it. Default: a random ID.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> NewPost {
        self.id = Some(id.into());
        self
    }

    /// Adds a header: text that travels beside the body.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> NewPost {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A message from an instance's inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Arc<InboxRow>);

impl Message {
    pub(crate) fn new(row: Arc<InboxRow>) -> Message {
        Message(row)
    }

    /// The ID it was posted under.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The instance it was posted to.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.0.name.instance
    }

    /// The time at which the store took it, by the store's clock.
    #[must_use]
    pub fn arrived(&self) -> Timestamp {
        self.0.arrived
    }

    /// The number of attempts to handle it that have failed: 0 the first time.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.attempts.failed
    }

    /// The first header of this name, letter case ignored.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.0.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All headers, in the order they were posted.
    #[must_use]
    pub fn headers(&self) -> &[(String, String)] {
        &self.0.headers
    }

    /// The body, as it was posted.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.0.body
    }

    /// The body, from JSON.
    ///
    /// # Errors
    /// [`ContextError::Json`] if it is not a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ContextError> {
        let what = || format!("the body of message {:?} to {}", self.0.id, self.0.name);
        serde_json::from_slice(&self.0.body).map_err(|error| ContextError::not_a::<T>(what(), error))
    }
}

impl Addressed {
    /// A message for the instance `id` of the interface called `interface`.
    ///
    /// # Errors
    /// [`ContextError::InvalidId`] for a name or ID that cannot be one, [`ContextError::TooLarge`] for a body and headers of more
    /// than [`MAX_VALUE_BYTES`](crate::store::MAX_VALUE_BYTES).
    pub fn post(interface: &str, id: &str, message: NewPost) -> Result<Addressed, ContextError> {
        let bytes =
            message.body.len() + message.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if bytes > MAX_VALUE_BYTES {
            let what = format!("the body and headers of a message to {interface}/{}", beginning(id));
            return Err(ContextError::too_large(what, bytes));
        }
        let NewPost { id: message_id, headers, body } = message;
        Addressed::new(interface, interface.into(), id, message_id, headers, own_bytes(body))
    }
}
