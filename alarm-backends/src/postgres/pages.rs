//! Loading and reading: many pages in one query, and unusable rows set aside without shortening a page.
//!
//! Limits count usable rows. Where a page comes back with some that are not, it is asked for again with room for them, until
//! it is full or the store has no more.

use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::StoreError;
use stable_interfaces::store::{
    After, AlarmRow, DamageReason, Damaged, Found, Loaded, Page, Read, ReadRange, ReadRows, Rows,
};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::link::{Link, Params, Server};
use super::schema::Query;
use super::{rows, wire};

/// The start of a page of one of the three tables: the columns of its order, of which alarms and inbox have no `is_message`.
struct Start<'a> {
    at: i64,
    interface: &'a str,
    instance: &'a str,
    is_message: bool,
    id: &'a str,
}

/// The place before everything: IDs are never empty.
const BEGINNING: Start<'static> = Start { at: i64::MIN, interface: "", instance: "", is_message: false, id: "" };

impl<'a> Start<'a> {
    fn new(after: &'a After) -> Start<'a> {
        let (at, name, is_message, id) = match after {
            After::Alarms(Some(key)) => (key.due, &key.name, false, &key.id),
            After::Inbox(Some(key)) => (key.arrived, &key.name, false, &key.id),
            After::Dead(Some(key)) => (key.died_at, &key.name, key.is_message, &key.id),
            After::Alarms(None) | After::Inbox(None) | After::Dead(None) => return BEGINNING,
        };
        Start { at: at.as_millis(), interface: &name.interface, instance: &name.instance, is_message, id }
    }
}

/// One page while it is being filled.
struct Filling<'a, T> {
    /// The page's place among those asked for.
    index: usize,
    page: &'a Page,
    rows: Vec<T>,
    damaged: Vec<Damaged>,
    /// The most rows that the last query was to bring, and the most bytes.
    asked: usize,
    asked_bytes: usize,
    /// Says whether it found that many rows, so that there may be more.
    was_full: bool,
    /// Says whether it brought fewer than it found, for their bytes.
    was_cut: bool,
}

impl<T> Filling<'_, T> {
    fn is_done(&self) -> bool {
        self.rows.len() >= self.page.limit || if self.was_cut { !self.rows.is_empty() } else { !self.was_full }
    }
}

/// Loads as [`Store::load`](stable_interfaces::Store::load) promises.
pub(super) async fn load(server: &Server, link: &Link, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
    let mut loaded: Vec<Option<Loaded>> = pages.iter().map(|_| None).collect();
    let of_kind =
        |is_kind: fn(&Page) -> bool| pages.iter().enumerate().filter(|(_, page)| is_kind(page)).collect::<Vec<_>>();
    let wanted = of_kind(|page| matches!(page.after, After::Alarms(_)));
    fill(server, link, Query::LoadAlarms, &wanted, rows::alarm, Rows::Alarms, &mut loaded).await?;
    let wanted = of_kind(|page| matches!(page.after, After::Inbox(_)) && !page.keys_only);
    fill(server, link, Query::LoadInbox, &wanted, rows::message, Rows::Inbox, &mut loaded).await?;
    let wanted = of_kind(|page| matches!(page.after, After::Inbox(_)) && page.keys_only);
    fill(server, link, Query::LoadInboxKeys, &wanted, rows::message, Rows::Inbox, &mut loaded).await?;
    let wanted = of_kind(|page| matches!(page.after, After::Dead(_)));
    fill(server, link, Query::LoadDead, &wanted, rows::dead, Rows::Dead, &mut loaded).await?;
    Ok(loaded.into_iter().flatten().collect())
}

async fn fill<T>(
    server: &Server,
    link: &Link,
    query: Query,
    wanted: &[(usize, &Page)],
    decode: fn(&Row) -> Result<T, DamageReason>,
    rows: fn(Vec<T>) -> Rows,
    loaded: &mut [Option<Loaded>],
) -> Result<(), StoreError> {
    let begin = |&(index, page)| Filling {
        index,
        page,
        rows: Vec::new(),
        damaged: Vec::new(),
        asked: page.limit,
        asked_bytes: page.bytes,
        was_full: true,
        was_cut: false,
    };
    let mut filling: Vec<Filling<'_, T>> = wanted.iter().map(begin).collect();
    while !filling.is_empty() {
        ask(server, link, query, &mut filling, decode).await?;
        for done in filling.extract_if(.., |page| page.is_done()) {
            let is_last = !done.was_full && !done.was_cut;
            loaded[done.index] = Some(Loaded { rows: rows(done.rows), damaged: done.damaged, is_last });
        }
        for page in &mut filling {
            page.asked = page.page.limit + page.damaged.len();
            if page.was_cut {
                // Nothing but damaged rows fitted in.
                page.asked_bytes = page.asked_bytes.saturating_mul(2).max(4_096);
            }
        }
    }
    Ok(())
}

/// One query for all these pages.
async fn ask<T>(
    server: &Server,
    link: &Link,
    query: Query,
    filling: &mut [Filling<'_, T>],
    decode: fn(&Row) -> Result<T, DamageReason>,
) -> Result<(), StoreError> {
    let found = {
        let shards = filling.iter().map(|page| wire::shard(page.page.shard)).collect::<Result<Vec<_>, _>>()?;
        let starts: Vec<_> = filling.iter().map(|page| Start::new(&page.page.after)).collect();
        let ats: Vec<_> = starts.iter().map(|start| start.at).collect();
        let interfaces: Vec<_> = starts.iter().map(|start| start.interface).collect();
        let instances: Vec<_> = starts.iter().map(|start| start.instance).collect();
        let are_messages: Vec<_> = starts.iter().map(|start| start.is_message).collect();
        let ids: Vec<_> = starts.iter().map(|start| start.id).collect();
        let limits: Vec<_> = filling.iter().map(|page| limit(page.asked)).collect();
        let bytes: Vec<_> = filling.iter().map(|page| limit(page.asked_bytes)).collect();
        let params: Params<'_> = &[&shards, &ats, &interfaces, &instances, &are_messages, &ids, &limits, &bytes];
        link.shared(server).await?.all(query, params).await?
    };
    // How many rows came, and how many were found.
    let mut counts = vec![(0, 0); filling.len()];
    for page in &mut *filling {
        page.rows.clear();
        page.damaged.clear();
    }
    // The rows of a page come in order: a nested loop over an ordered subquery is the only way to answer a LATERAL join.
    for row in &found {
        let place = usize::try_from(row.get::<_, i64>("page") - 1).expect("ordinality counts from one");
        counts[place].0 += 1;
        counts[place].1 = usize::try_from(row.get::<_, i64>("found")).expect("a count is not negative");
        let page = &mut filling[place];
        match decode(row) {
            Ok(row) if page.rows.len() < page.page.limit => page.rows.push(row),
            // Room was asked for damaged rows that have gone since.
            Ok(_) => {}
            Err(reason) => {
                let place = place_of(server, query, row);
                page.damaged.push(Damaged { shard: page.page.shard, place, reason });
            }
        }
    }
    for (page, (count, found)) in filling.iter_mut().zip(counts) {
        page.was_full = found >= page.asked;
        page.was_cut = count < found;
    }
    Ok(())
}

/// The place of a row, for a person with a database client.
fn place_of(server: &Server, query: Query, row: &Row) -> String {
    let table = match query {
        Query::LoadInbox | Query::LoadInboxKeys => "inbox",
        Query::LoadDead => "dead",
        _ => "alarm",
    };
    let column = |name| row.try_get::<_, &str>(name).unwrap_or("?");
    let (interface, instance, id) = (column("interface"), column("instance"), column("id"));
    format!("{}.{table} interface {interface:?} instance {instance:?} id {id:?}", server.schema.quoted())
}

fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// Reads as [`Store::read`](stable_interfaces::Store::read) promises.
pub(super) async fn read(server: &Server, link: &Link, read: &Read) -> Result<Found, StoreError> {
    match &read.range {
        ReadRange::Storage(from, to) => {
            let query = if to.is_some() { Query::ReadStorageTo } else { Query::ReadStorage };
            let (rows, found) = range(server, link, query, read, (from, to.as_ref()), (read.limit, read.bytes)).await?;
            let value = |row: &Row| rows::value(row).map_err(|reason| damaged_value(server, read, row, reason));
            let values = rows.iter().map(value).collect::<Result<Vec<(Arc<str>, Bytes)>, _>>()?;
            let is_last = found < read.limit && values.len() == found;
            Ok(Found { rows: ReadRows::Storage(values), is_last })
        }
        ReadRange::Alarms(from, to) => {
            let query = if to.is_some() { Query::ReadAlarmsTo } else { Query::ReadAlarms };
            let (mut asked, mut bytes) = (read.limit, read.bytes);
            loop {
                let (rows, found) = range(server, link, query, read, (from, to.as_ref()), (asked, bytes)).await?;
                let mut alarms: Vec<AlarmRow> = rows.iter().filter_map(|row| rows::alarm(row).ok()).collect();
                let (was_full, was_cut) = (found >= asked, rows.len() < found);
                if alarms.len() >= read.limit || if was_cut { !alarms.is_empty() } else { !was_full } {
                    let is_last = !was_full && !was_cut && alarms.len() <= read.limit;
                    alarms.truncate(read.limit);
                    return Ok(Found { rows: ReadRows::Alarms(alarms), is_last });
                }
                asked = read.limit + (rows.len() - alarms.len());
                if was_cut {
                    // Nothing but damaged rows fitted in.
                    bytes = bytes.saturating_mul(2).max(4_096);
                }
            }
        }
    }
}

/// The first rows of a range that fit into so many rows and bytes, and how many there would be without the limit of bytes.
async fn range(
    server: &Server,
    link: &Link,
    query: Query,
    read: &Read,
    (from, to): (&str, Option<&Arc<str>>),
    (most, bytes): (usize, usize),
) -> Result<(Vec<Row>, usize), StoreError> {
    let (shard, most, bytes, to) = (wire::shard(read.shard)?, limit(most), limit(bytes), to.map(|to| &**to));
    let (interface, instance) = (&*read.name.interface, &*read.name.instance);
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&shard, &interface, &instance, &from, &most, &bytes];
    if let Some(to) = &to {
        params.push(to);
    }
    let rows = link.shared(server).await?.all(query, &params).await?;
    let found = rows.first().map_or(0, |row| row.get::<_, i64>("found"));
    Ok((rows, usize::try_from(found).expect("a count is not negative")))
}

fn damaged_value(server: &Server, read: &Read, row: &Row, reason: DamageReason) -> StoreError {
    let key = row.try_get::<_, &str>("key").unwrap_or("?");
    let place = format!("{}.storage {} key {key:?}", server.schema.quoted(), read.name);
    StoreError::Damaged(Damaged { shard: read.shard, place, reason })
}
