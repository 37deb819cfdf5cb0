//! `load`: pages of rows, of many shards at once.

use bytes::Bytes;

use super::given::*;
use crate::store::{After, AlarmRow, DeadLetter, DeadRow, InboxRow, NewMessage, Op, Page, Rows, ShardId};

/// Fills a shard with `count` alarms, three of them due at each time; in the order of firing.
async fn fill(owner: &mut Owner, shard: u32, count: i64) -> Vec<AlarmRow> {
    let mut rows: Vec<AlarmRow> =
        (0..count).map(|n| alarm(&format!("i{}", n % 7), &format!("a{n}"), 100 - n / 3)).collect();
    for some in rows.chunks(500) {
        owner.commit(shard, some.iter().cloned().map(Op::PutAlarm).collect()).await;
    }
    rows.sort_by_key(AlarmRow::key);
    rows
}

pub(super) async fn a_page_starts_strictly_after_its_key(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let rows = fill(&mut owner, 0, 9).await;
    assert_eq!(page::<AlarmRow>(&store, 0, None, 4).await, rows[..4]);
    for (n, row) in rows.iter().enumerate() {
        let after = page::<AlarmRow>(&store, 0, Some(row.key()), 4).await;
        assert_eq!(after, rows[n + 1..].iter().take(4).cloned().collect::<Vec<_>>(), "after {:?}", row.key());
    }
}

pub(super) async fn a_page_may_start_after_a_key_that_is_not_there(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let rows = [alarm("b", "b", 10), alarm("b", "d", 10), alarm("d", "a", 10), alarm("a", "a", 20)];
    owner.commit(0, rows.iter().cloned().map(Op::PutAlarm).collect()).await;
    let after = async |instance, id, due| page::<AlarmRow>(&store, 0, Some(alarm(instance, id, due).key()), 100).await;
    assert_eq!(after("z", "z", 9).await, rows);
    assert_eq!(after("b", "a", 10).await, rows);
    assert_eq!(after("b", "c", 10).await, rows[1..]);
    assert_eq!(after("c", "x", 10).await, rows[2..]);
    assert_eq!(after("e", "a", 10).await, rows[3..]);
    assert_eq!(after("a", "a", 21).await, []);
    // The row that a page ended with may be gone when the next is asked for.
    owner.commit(0, vec![remove_alarm(&rows[1], rows[1].revision)]).await;
    assert_eq!(after("b", "d", 10).await, rows[2..]);
}

pub(super) async fn a_page_of_one_row_walks_through_everything(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let rows = fill(&mut owner, 0, 25).await;
    assert_same(&walk::<AlarmRow>(&store, 0, 1).await, &rows, "alarms by pages of 1");
}

pub(super) async fn a_thousand_rows_are_paged_without_gaps_or_repeats(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let rows = fill(&mut owner, 0, 1_100).await;
    for limit in [97, 550, 1_000, 1_100, 5_000] {
        let found = walk::<AlarmRow>(&store, 0, limit).await;
        assert_same(&found, &rows, &format!("alarms by pages of {limit}"));
    }
}

pub(super) async fn fewer_rows_than_the_limit_means_no_more(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let rows = fill(&mut owner, 0, 10).await;
    for limit in 1..=12 {
        let found = page::<AlarmRow>(&store, 0, None, limit).await;
        assert_eq!(found, rows[..limit.min(10)], "a page is full as long as there are rows");
    }
    assert_eq!(page::<AlarmRow>(&store, 0, Some(rows[9].key()), 1).await, []);
}

pub(super) async fn a_page_has_no_more_bytes_than_it_may_and_one_row_at_least(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let meta = |n: usize| Bytes::from(format!("\"{}\"", "x".repeat(9_998 + usize::from(n == 4) * 60_000)));
    let alarms: Vec<_> = (0..8).map(|n| AlarmRow { meta: meta(n), ..alarm("i", &format!("a{n}"), 10) }).collect();
    let sent: Vec<_> = (0..8).map(|n| NewMessage { body: meta(n), ..message(0, "i", &format!("m{n}"), "") }).collect();
    let letters: Vec<_> = alarms.iter().map(|row| dead(20, DeadRow::Alarm(row.clone()))).collect();
    owner.commit(0, alarms.iter().cloned().map(Op::PutAlarm).collect()).await;
    owner.commit(0, letters.iter().cloned().map(Op::PutDead).collect()).await;
    store.post(&sent).await.expect("a post is answered");
    // What a store keeps beside meta and body may count as well, so a limit is not exact.
    for (bytes, sizes) in
        [(1, vec![1; 8]), (26_000, vec![2, 2, 1, 2, 1]), (85_000, vec![4, 2, 2]), (1_000_000, vec![8])]
    {
        for (n, rows) in [by_bytes::<AlarmRow>(&store, bytes).await, by_bytes::<DeadLetter>(&store, bytes).await]
            .into_iter()
            .chain([by_bytes::<InboxRow>(&store, bytes).await])
            .enumerate()
        {
            assert_eq!(rows, sizes, "kind {n} by pages of {bytes} bytes");
        }
    }
}

/// The number of rows that each page of `bytes` has, up to the last; together all that are there.
async fn by_bytes<R: Paged>(store: &AnyStore, bytes: usize) -> Vec<usize> {
    let (mut sizes, mut after) = (Vec::new(), None);
    loop {
        let page = Page { bytes, ..Page::new(ShardId(0), R::after(after), 100) };
        let loaded = store.load(&[page]).await.expect("a load is answered").remove(0);
        let rows = R::from_rows(loaded.rows);
        sizes.push(rows.len());
        after = rows.last().map(R::key_of);
        assert!(loaded.is_last || after.is_some(), "a page before the last has a row");
        if loaded.is_last {
            return sizes;
        }
    }
}

pub(super) async fn a_page_without_rows_is_the_last(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let row = alarm("i", "a", 10);
    let letter = dead(20, DeadRow::Alarm(row.clone()));
    owner.commit(0, vec![Op::PutAlarm(row.clone()), Op::PutDead(letter.clone())]).await;
    post(&store, message(0, "i", "m", "")).await;
    let posted = inbox(&store, 0).await.remove(0);
    // Behind the only row, and where there has never been one; with room for much, and for as good as nothing.
    for (shard, bytes) in [(0, usize::MAX), (0, 1), (1, usize::MAX), (1, 1)] {
        let here = shard == 0;
        let inbox = After::Inbox(here.then(|| posted.key()));
        let afters =
            [After::Alarms(here.then(|| row.key())), inbox.clone(), inbox, After::Dead(here.then(|| letter.key()))];
        let page = |(n, after)| Page { bytes, keys_only: n == 1, ..Page::new(ShardId(shard), after, 1) };
        let pages: Vec<_> = afters.into_iter().enumerate().map(page).collect();
        let loaded = store.load(&pages).await.expect("a load is answered");
        for (page, loaded) in pages.iter().zip(loaded) {
            let rows = match &loaded.rows {
                Rows::Alarms(rows) => rows.len(),
                Rows::Inbox(rows) => rows.len(),
                Rows::Dead(rows) => rows.len(),
            };
            assert!(rows == 0 && loaded.is_last, "{page:?} brings {loaded:?}");
        }
    }
}

pub(super) async fn a_page_of_keys_has_the_keys_of_its_rows(store: AnyStore) {
    let sent: Vec<_> = (0..25).map(|n| message(0, &format!("i{}", n % 3), &format!("m{n}"), "body")).collect();
    store.post(&sent).await.expect("a post is answered");
    let keys: Vec<_> = inbox(&store, 0).await.iter().map(InboxRow::key).collect();
    for limit in [1, 7, 25, 100] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = Page { keys_only: true, ..Page::new(ShardId(0), After::Inbox(after), limit) };
            // Beside one of whole rows, and an empty one.
            let whole = Page::new(ShardId(0), After::Inbox(None), 2);
            let none = Page { keys_only: true, ..Page::new(ShardId(1), After::Inbox(None), limit) };
            let mut loaded = store.load(&[whole, page, none]).await.expect("a load is answered");
            assert_eq!(InboxRow::from_rows(loaded.remove(2).rows), []);
            let keys = loaded.remove(1);
            let whole = InboxRow::from_rows(loaded.remove(0).rows);
            assert!(whole.len() == 2 && whole.iter().all(|row| row.body == "body"), "{whole:?}");
            let rows = InboxRow::from_rows(keys.rows);
            assert!(rows.len() == limit || keys.is_last, "a page that is not full is the last, and says so");
            after = rows.last().map(InboxRow::key);
            found.extend(rows.iter().map(InboxRow::key));
            if keys.is_last || after.is_none() {
                break;
            }
        }
        assert_eq!(found, keys, "by pages of {limit}");
    }
}

pub(super) async fn many_pages_are_answered_in_the_order_asked_for(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[1, 2, 300]).await;
    let (first, second) = (fill(&mut owner, 1, 6).await, fill(&mut owner, 2, 3).await);
    let letter = dead(20, DeadRow::Alarm(alarm("i", "dead", 10)));
    owner.commit(300, vec![Op::PutDead(letter.clone())]).await;
    post(&store, message(2, "i", "m", "")).await;
    let page = |shard, after, limit| Page::new(ShardId(shard), after, limit);
    let mut pages = vec![
        page(300, After::Dead(None), 5),
        page(2, After::Alarms(None), 2),
        page(0, After::Alarms(None), 5),
        page(1, After::Alarms(Some(first[1].key())), 3),
        page(2, After::Inbox(None), 5),
        page(300, After::Alarms(None), 5),
        page(1, After::Inbox(None), 5),
        page(2, After::Alarms(Some(second[1].key())), 5),
    ];
    // As many as a host has shards, most of them empty.
    pages.extend((400..1000).map(|shard| page(shard, After::Alarms(None), 5)));
    let loaded = store.load(&pages).await.expect("a load is answered");
    assert_eq!(loaded.len(), pages.len(), "there is one answer for each page");
    assert!(loaded.iter().all(|loaded| loaded.damaged.is_empty()), "nothing that was written is damaged");
    let inbox = InboxRow::from_rows(loaded[4].rows.clone());
    assert_eq!(inbox.iter().map(|row| &*row.id).collect::<Vec<_>>(), ["m"]);
    assert_eq!(DeadLetter::from_rows(loaded[0].rows.clone()), [letter]);
    assert_eq!(InboxRow::from_rows(loaded[6].rows.clone()), []);
    let alarms = |n: usize| AlarmRow::from_rows(loaded[n].rows.clone());
    assert_eq!(alarms(1), second[..2]);
    assert_eq!(alarms(2), []);
    assert_eq!(alarms(3), first[2..5]);
    assert_eq!(alarms(5), []);
    assert_eq!(alarms(7), second[2..]);
    assert!((8..pages.len()).all(|n| alarms(n).is_empty()), "empty shards have no rows");
}

pub(super) async fn shards_do_not_mix(store: AnyStore) {
    let shards = [0, 1, 10, 11, 100, 1023];
    let mut owner = Owner::start(&store, 1, "host-a", &shards).await;
    for shard in shards {
        let id = shard.to_string();
        let letter = dead(20, DeadRow::Alarm(alarm("i", &id, 10)));
        owner.commit(shard, vec![Op::PutAlarm(alarm("i", &id, 10)), Op::PutDead(letter)]).await;
        post(&store, message(shard, "i", &id, "")).await;
    }
    for shard in shards {
        let id = shard.to_string();
        assert_eq!(alarms(&store, shard).await, [alarm("i", &id, 10)]);
        let messages: Vec<String> = inbox(&store, shard).await.iter().map(|row| row.id.to_string()).collect();
        assert_eq!(messages.join(" "), id);
        assert_eq!(dead_letters(&store, shard).await, [dead(20, DeadRow::Alarm(alarm("i", &id, 10)))]);
    }
}

pub(super) async fn inbox_and_dead_letters_are_paged_likewise(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let sent: Vec<_> = (0..250).map(|n| message(0, &format!("i{}", n % 7), &format!("m{n}"), "")).collect();
    store.post(&sent).await.expect("a post is answered");
    let mut letters: Vec<DeadLetter> = (0..250)
        .map(|n| dead(n / 3, DeadRow::Message(inbox_row(&format!("i{}", n % 7), &format!("m{n}"), 5))))
        .collect();
    owner.commit(0, letters.iter().cloned().map(Op::PutDead).collect()).await;
    letters.sort_by_key(DeadLetter::key);
    for limit in [1, 49, 50, 1_000] {
        let rows = walk::<InboxRow>(&store, 0, limit).await;
        assert_eq!(rows.len(), sent.len(), "by pages of {limit}");
        let found = walk::<DeadLetter>(&store, 0, limit).await;
        assert_same(&found, &letters, &format!("dead letters by pages of {limit}"));
    }
    let rows = walk::<InboxRow>(&store, 0, 1_000).await;
    for (row, next) in rows.iter().zip(&rows[1..]) {
        assert_eq!(page::<InboxRow>(&store, 0, Some(row.key()), 1).await, std::slice::from_ref(next));
    }
}
