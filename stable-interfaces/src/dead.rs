//! Dead letters: alarms and messages that were given up, kept until somebody decides about them.
//!
//! Nothing is deleted but by its own handler's success or on somebody's word: the commit that gives up an alarm or message moves its row
//! here, and from here only a requeue or a discard removes it. No age and no number of dead letters does.

use std::collections::VecDeque;

use crate::alarm::Alarm;
use crate::clock::Timestamp;
use crate::error::ContextError;
use crate::id::interface_of;
use crate::inbox::Message;
use crate::store::client::StoreClient;
use crate::store::paging::noted;
use crate::store::{After, DeadKey, DeadLetter, DeadRow, InstanceName, Loaded, Page, Rows, ShardId};
use crate::sync::Arc;

/// An alarm or message that was given up after its last attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    pub(crate) letter: DeadLetter,
}

/// The alarm or message that died.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadKind {
    /// An alarm, as it was after its last attempt.
    Alarm(Alarm),
    /// A message from the inbox, as it was after its last attempt.
    Message(Message),
    /// A [directive](crate::Directive) that could not be carried out, as a message: its headers say what it was to do.
    Directive(Message),
}

impl Dead {
    /// The alarm or message.
    #[must_use]
    pub fn kind(&self) -> DeadKind {
        match &self.letter.row {
            DeadRow::Alarm(row) => DeadKind::Alarm(Alarm::new(Arc::new(row.clone()))),
            DeadRow::Message(row) => {
                let message = Message::new(Arc::new(row.clone()));
                match interface_of(&row.name.interface) {
                    (_, true) => DeadKind::Directive(message),
                    (_, false) => DeadKind::Message(message),
                }
            }
        }
    }

    /// The ID of the alarm or message.
    #[must_use]
    pub fn id(&self) -> &str {
        match &self.letter.row {
            DeadRow::Alarm(row) => &row.id,
            DeadRow::Message(row) => &row.id,
        }
    }

    /// The instance it belonged to.
    #[must_use]
    pub fn instance(&self) -> &str {
        match &self.letter.row {
            DeadRow::Alarm(row) => &row.name.instance,
            DeadRow::Message(row) => &row.name.instance,
        }
    }

    /// The time at which it was given up.
    #[must_use]
    pub fn died_at(&self) -> Timestamp {
        self.letter.died_at
    }

    /// The reason: the last error.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.letter.reason
    }
}

/// The most dead letters read of one shard at once.
const PAGE: usize = 128;

/// The dead letters of `interface` in `shards`.
pub(crate) async fn list(
    client: &StoreClient<'_>,
    shards: Vec<ShardId>,
    interface: &str,
    after: Option<&Dead>,
    limit: usize,
) -> Result<Vec<Dead>, ContextError> {
    let after_key = after.map(|dead| dead.letter.key());
    let mut found = Vec::new();
    // Each shard that may have more is asked for its next page in its turn; those with nothing dead answer once. With how many were found.
    let mut wanted: VecDeque<_> = shards.into_iter().map(|shard| (shard, after_key.clone(), 0)).collect();
    while !wanted.is_empty() {
        let portion = client.portion.lock().clone();
        let asked: Vec<_> = wanted.drain(..wanted.len().min(portion.shards())).collect();
        let bytes = (portion.bytes() / asked.len()).max(1);
        let page = |shard: ShardId, key: &Option<DeadKey>| Page {
            shard,
            after: After::Dead(key.clone()),
            limit: portion.rows().min(PAGE),
            bytes,
            keys_only: false,
        };
        let pages: Vec<_> = asked.iter().map(|(shard, key, _)| page(*shard, key)).collect();
        let is_small = |loaded: &Vec<Loaded>| loaded.iter().all(|page| page.is_last);
        let loaded = noted(client.portion, client.load(&pages).await, is_small).map_err(ContextError::store)?;
        for ((shard, _, before), page) in asked.into_iter().zip(loaded) {
            let Rows::Dead(letters) = page.rows else { continue };
            let fits = before + letters.iter().filter(|letter| is_of(&letter.key().name, interface)).count();
            if !page.is_last && fits < limit {
                wanted.extend(letters.last().map(|last| (shard, Some(last.key()), fits)));
            }
            found.extend(letters.into_iter().filter(|letter| is_of(&letter.key().name, interface)));
        }
        // No more are kept than are wanted, for each has its meta or body.
        found.sort_by_cached_key(DeadLetter::key);
        found.truncate(limit);
    }
    Ok(found.into_iter().map(|letter| Dead { letter }).collect())
}

/// Tells whether a dead letter under this name is one of `interface`: an alarm, a message or a directive.
fn is_of(name: &InstanceName, interface: &str) -> bool {
    interface_of(&name.interface).0 == interface
}

/// The dead letter with this very key, if it is in the store.
pub(crate) async fn find(
    client: &StoreClient<'_>,
    shard: ShardId,
    key: &DeadKey,
) -> Result<Option<DeadLetter>, ContextError> {
    // Pages start strictly after a key, and no ID is empty.
    let before = DeadKey { id: "".into(), ..key.clone() };
    let mut pages = client.pages::<DeadLetter>(shard, Some(before));
    while let Some(letters) = pages.next().await.map_err(ContextError::store)? {
        if let Some(letter) = letters.into_iter().find(|letter| letter.key() >= *key) {
            return Ok(Some(letter).filter(|letter| letter.key() == *key));
        }
    }
    Ok(None)
}
