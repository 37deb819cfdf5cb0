//! Ranges of storage keys, and how they are read.

use std::ops::Range;

use bytes::Bytes;

use crate::error::ContextError;
use crate::store::client::StoreClient;
use crate::store::{InstanceName, ShardId};
use crate::sync::Arc;

/// A range of storage keys, and how many of them at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    pub(crate) from: Arc<str>,
    pub(crate) to: Option<Arc<str>>,
    pub(crate) limit: usize,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> KeyRange {
        KeyRange { from: "".into(), to: None, limit: usize::MAX }
    }

    /// Every key that starts with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &str) -> KeyRange {
        // The next text after all with this prefix: its last character that can be raised is.
        let mut end = prefix.to_owned();
        let to = loop {
            match end.pop() {
                None => break None,
                Some(last) => {
                    if let Some(raised) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
                        end.push(raised);
                        break Some(end.into());
                    }
                }
            }
        };
        KeyRange { from: prefix.into(), to, limit: usize::MAX }
    }

    /// At most `limit` keys, the first ones.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> KeyRange {
        self.limit = limit;
        self
    }

    /// Reads what is stored under these keys of an instance, in pages.
    pub(crate) async fn read(
        &self,
        client: &StoreClient<'_>,
        shard: ShardId,
        name: &InstanceName,
    ) -> Result<Vec<(Arc<str>, Bytes)>, ContextError> {
        let mut pages = client.range(shard, name.clone(), self.ends());
        let mut found = Vec::new();
        while let Some(rows) = pages.next(self.limit - found.len()).await.map_err(ContextError::store)? {
            found.extend(rows);
        }
        Ok(found)
    }

    /// The first key, and the first behind the range.
    pub(crate) fn ends(&self) -> (Arc<str>, Option<Arc<str>>) {
        (self.from.clone(), self.to.clone())
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        *self.from <= *key && self.to.as_deref().is_none_or(|to| key < to)
    }
}

impl From<&str> for KeyRange {
    /// The keys that begin with this prefix.
    fn from(prefix: &str) -> KeyRange {
        KeyRange::prefix(prefix)
    }
}

impl From<Range<&str>> for KeyRange {
    fn from(range: Range<&str>) -> KeyRange {
        KeyRange { from: range.start.into(), to: Some(range.end.into()), limit: usize::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_range_holds_exactly_the_keys_with_that_prefix() {
        let range = KeyRange::prefix("item/");
        assert!(range.contains("item/") && range.contains("item/\u{10ffff}x"));
        assert!(!range.contains("item") && !range.contains("item0"));
        assert_eq!(KeyRange::prefix("\u{10ffff}").to, None);
        assert_eq!(KeyRange::prefix("a\u{d7ff}").to.as_deref(), Some("a\u{e000}"));
    }
}
