//! Rows of a store, page after page: of a shard, or of a range of one instance.
//!
//! Each page is as large as the last answers allow (a [`Portion`]): one that does not come is an error, and the next is smaller. Where
//! there are no more rows is the store's to say, and not to be seen from their number, for a page is bounded in bytes too.

use std::marker::PhantomData;

use bytes::Bytes;

use super::client::StoreClient;
use super::portion::Portion;
use super::{
    After, AlarmKey, AlarmRow, DeadKey, DeadLetter, Found, InboxKey, InboxRow, InstanceName, Loaded, Page, Read,
    ReadRange, ReadRows, Rows, ShardId, StoreError,
};
use crate::sync::{Arc, Mutex};

/// The most rows of one page.
const MOST_ROWS: usize = 512;

/// A row that stands in the order of its shard.
pub(crate) trait Paged: Sized {
    type Key: Clone;

    fn key(&self) -> Self::Key;
    fn after(key: Option<Self::Key>) -> After;
    fn from_rows(rows: Rows) -> Option<Vec<Self>>;
}

/// A row of a range of one instance.
pub(crate) trait Ranged: Sized {
    fn id(&self) -> &Arc<str>;
    /// The number of its bytes beside the ID.
    fn bytes(&self) -> usize;
    fn range(from: Arc<str>, to: Option<Arc<str>>) -> ReadRange;
    fn from_rows(rows: ReadRows) -> Option<Vec<Self>>;
}

/// The pages of a shard.
pub(crate) struct Pages<'a, R: Paged> {
    client: &'a StoreClient<'a>,
    shard: ShardId,
    after: Option<R::Key>,
    is_done: bool,
}

/// The pages of a range of one instance.
pub(crate) struct RangePages<'a, R> {
    client: &'a StoreClient<'a>,
    shard: ShardId,
    name: InstanceName,
    from: Arc<str>,
    to: Option<Arc<str>>,
    is_done: bool,
    rows: PhantomData<R>,
}

impl StoreClient<'_> {
    /// The rows of a shard after a key, or all.
    pub(crate) fn pages<R: Paged>(&self, shard: ShardId, after: Option<R::Key>) -> Pages<'_, R> {
        Pages { client: self, shard, after, is_done: false }
    }

    /// The rows of an instance from a key (included) up to another (excluded), or to the end.
    pub(crate) fn range<R: Ranged>(
        &self,
        shard: ShardId,
        name: InstanceName,
        (from, to): (Arc<str>, Option<Arc<str>>),
    ) -> RangePages<'_, R> {
        RangePages { client: self, shard, name, from, to, is_done: false, rows: PhantomData }
    }
}

impl<R: Paged> Pages<'_, R> {
    /// The next rows, in their order; `None` behind the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<R>>, StoreError> {
        if self.is_done {
            return Ok(None);
        }
        let portion = self.client.portion.lock().clone();
        let page = Page {
            shard: self.shard,
            after: R::after(self.after.clone()),
            limit: portion.rows().min(MOST_ROWS),
            bytes: portion.bytes(),
            keys_only: false,
        };
        let loaded = noted(self.client.portion, self.client.load(&[page]).await, |loaded| {
            loaded.iter().all(|page| page.is_last)
        })?;
        let Some(Loaded { rows, is_last, .. }) = loaded.into_iter().next() else { return Ok(None) };
        let rows = R::from_rows(rows).ok_or_else(wrong_rows)?;
        self.is_done = is_last;
        self.after = rows.last().map(R::key);
        Ok(Some(rows))
    }
}

impl<R: Ranged> RangePages<'_, R> {
    /// The next rows, in their order, `most` of them at most; `None` behind the last.
    pub(crate) async fn next(&mut self, most: usize) -> Result<Option<Vec<R>>, StoreError> {
        self.next_of(most, usize::MAX).await
    }

    /// As [`next`](Self::next), and with about so many bytes at most.
    pub(crate) async fn next_of(&mut self, most: usize, bytes: usize) -> Result<Option<Vec<R>>, StoreError> {
        if self.is_done || most == 0 {
            return Ok(None);
        }
        let range = R::range(self.from.clone(), self.to.clone());
        let read = Read::new(self.shard, self.name.clone(), range, most);
        let found = if most == 1 {
            // It has no size to be learnt from.
            self.client.read(&read).await?
        } else {
            let portion = self.client.portion.lock().clone();
            let (limit, bytes) = (portion.rows().min(MOST_ROWS).min(most), portion.bytes().min(bytes));
            let read = Read { limit, bytes, ..read };
            let is_small = |found: &Found| found.is_last || limit == most || bytes < portion.bytes();
            noted(self.client.portion, self.client.read(&read).await, is_small)?
        };
        let rows = R::from_rows(found.rows).ok_or_else(wrong_rows)?;
        self.is_done = found.is_last;
        if let Some(last) = rows.last() {
            self.from = just_after(last.id());
        }
        Ok(Some(rows))
    }

    /// The key from which on there may be more.
    pub(crate) fn rest(&self) -> Option<Arc<str>> {
        (!self.is_done).then(|| self.from.clone())
    }
}

/// Notes for the next question whether this one was answered. An answer that is smaller than what was asked for says nothing.
pub(crate) fn noted<T>(
    portion: &Mutex<Portion>,
    answer: Result<T, StoreError>,
    is_small: impl Fn(&T) -> bool,
) -> Result<T, StoreError> {
    match &answer {
        Ok(answer) if is_small(answer) => {}
        Ok(_) => portion.lock().succeeded(),
        Err(error) if error.is_retryable() => portion.lock().failed(),
        Err(_) => {}
    }
    answer
}

/// The smallest text greater than this one, given that NUL is in none.
pub(crate) fn just_after(text: &str) -> Arc<str> {
    format!("{text}\u{1}").into()
}

/// The error for rows of another kind than were asked for.
pub(crate) fn wrong_rows() -> StoreError {
    StoreError::Rejected("the store answered with rows of another kind".into())
}

impl Paged for AlarmRow {
    type Key = AlarmKey;

    fn key(&self) -> AlarmKey {
        self.key()
    }

    fn after(key: Option<AlarmKey>) -> After {
        After::Alarms(key)
    }

    fn from_rows(rows: Rows) -> Option<Vec<AlarmRow>> {
        if let Rows::Alarms(rows) = rows { Some(rows) } else { None }
    }
}

impl Paged for InboxRow {
    type Key = InboxKey;

    fn key(&self) -> InboxKey {
        self.key()
    }

    fn after(key: Option<InboxKey>) -> After {
        After::Inbox(key)
    }

    fn from_rows(rows: Rows) -> Option<Vec<InboxRow>> {
        if let Rows::Inbox(rows) = rows { Some(rows) } else { None }
    }
}

impl Paged for DeadLetter {
    type Key = DeadKey;

    fn key(&self) -> DeadKey {
        self.key()
    }

    fn after(key: Option<DeadKey>) -> After {
        After::Dead(key)
    }

    fn from_rows(rows: Rows) -> Option<Vec<DeadLetter>> {
        if let Rows::Dead(rows) = rows { Some(rows) } else { None }
    }
}

impl Ranged for AlarmRow {
    fn id(&self) -> &Arc<str> {
        &self.id
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn range(from: Arc<str>, to: Option<Arc<str>>) -> ReadRange {
        ReadRange::Alarms(from, to)
    }

    fn from_rows(rows: ReadRows) -> Option<Vec<AlarmRow>> {
        if let ReadRows::Alarms(rows) = rows { Some(rows) } else { None }
    }
}

/// A key of storage and its value.
impl Ranged for (Arc<str>, Bytes) {
    fn id(&self) -> &Arc<str> {
        &self.0
    }

    fn bytes(&self) -> usize {
        self.1.len()
    }

    fn range(from: Arc<str>, to: Option<Arc<str>>) -> ReadRange {
        ReadRange::Storage(from, to)
    }

    fn from_rows(rows: ReadRows) -> Option<Vec<(Arc<str>, Bytes)>> {
        if let ReadRows::Storage(rows) = rows { Some(rows) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn just_after_is_the_very_next_key() {
        assert!("a" < &*just_after("a") && *just_after("a") < *"a\u{1}a");
    }
}
