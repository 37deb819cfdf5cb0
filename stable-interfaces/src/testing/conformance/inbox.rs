//! The inbox: `post` by anyone, changes and removals by the owner.

use bytes::Bytes;

use super::given::*;
use crate::store::{Attempts, InboxRow, NewMessage, Op, Posted, StoreError};

pub(super) async fn a_posted_message_comes_back_as_it_was_posted(store: AnyStore) {
    let sent = message(0, "i", "m", "body");
    assert_eq!(post(&store, sent.clone()).await, Posted::Inserted);
    let rows = inbox(&store, 0).await;
    let expected = InboxRow {
        name: sent.name,
        id: sent.id,
        arrived: rows[0].arrived,
        due: rows[0].arrived,
        attempts: Attempts::default(),
        headers: sent.headers,
        body: sent.body,
    };
    assert_eq!(rows, [expected]);
}

pub(super) async fn a_post_needs_no_claim(store: AnyStore) {
    assert_eq!(
        post(&store, message(3, "i", "m1", "before")).await,
        Posted::Inserted,
        "in a store that nobody ever claimed"
    );
    claim(&store, &start(1, "host-a", &[3])).await;
    assert_eq!(post(&store, message(3, "i", "m2", "during")).await, Posted::Inserted);
    claim(&store, &start(2, "host-a", &[3])).await;
    assert_eq!(inbox(&store, 3).await.len(), 2, "messages stay over changes of owner");
}

pub(super) async fn a_second_post_of_an_id_is_a_duplicate_and_the_first_stays(store: AnyStore) {
    assert_eq!(post(&store, message(0, "i", "m", "first")).await, Posted::Inserted);
    let first = inbox(&store, 0).await;
    for body in ["second", "first"] {
        let again = NewMessage { headers: vec![], ..message(0, "i", "m", body) };
        assert_eq!(post(&store, again).await, Posted::Duplicate);
        assert_eq!(inbox(&store, 0).await, first);
    }
}

pub(super) async fn a_duplicate_within_one_call_is_told(store: AnyStore) {
    post(&store, message(0, "i", "old", "first")).await;
    let ids = ["m1", "old", "m2", "m1", "m3"];
    let sent: Vec<_> = (0..).zip(ids).map(|(n, id): (u32, _)| message(0, "i", id, &n.to_string())).collect();
    let posted = store.post(&sent).await.expect("a post is answered");
    use Posted::{Duplicate, Inserted};
    assert_eq!(posted, [Inserted, Duplicate, Inserted, Duplicate, Inserted], "one answer for each, in the same order");
    let mut rows: Vec<_> = inbox(&store, 0).await.iter().map(|row| (row.id.to_string(), row.body.clone())).collect();
    rows.sort_unstable();
    let expected = [("m1", "0"), ("m2", "2"), ("m3", "4"), ("old", "first")];
    assert_eq!(rows, expected.map(|(id, body)| (id.to_string(), Bytes::from_static(body.as_bytes()))));
}

pub(super) async fn posts_of_one_id_at_the_same_time_insert_one(store: AnyStore) {
    for round in 0..5 {
        let id = format!("m-{round}");
        let posts: Vec<_> = (0..8)
            .map(|n| {
                let (store, id) = (store.clone(), id.clone());
                tokio::spawn(async move { (post(&store, message(0, "i", &id, &n.to_string())).await, n) })
            })
            .collect();
        let mut inserted = Vec::new();
        for task in posts {
            if let (Posted::Inserted, n) = task.await.expect("a post ends") {
                inserted.push(n.to_string());
            }
        }
        let rows = inbox(&store, 0).await;
        let bodies: Vec<_> = rows.iter().filter(|row| *row.id == *id).map(|row| row.body.clone()).collect();
        assert_eq!(inserted.len(), 1, "round {round}: one of eight is told that it was inserted");
        assert_eq!(bodies, [Bytes::from(inserted.remove(0))], "round {round}: and that one is stored");
    }
}

pub(super) async fn a_removed_message_can_be_posted_again(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    for body in ["first", "second", "third"] {
        assert_eq!(post(&store, message(0, "i", "m", body)).await, Posted::Inserted);
        let rows = inbox(&store, 0).await;
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].body, body);
        owner.commit(0, vec![Op::RemoveMessage(rows[0].key())]).await;
        assert_eq!(inbox(&store, 0).await, []);
    }
}

pub(super) async fn a_repeated_removal_leaves_what_was_posted_under_its_id_since(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    // The second message arrives in the millisecond of the first at least sometimes: then only the repeat tells them apart.
    for round in 0..50 {
        assert_eq!(post(&store, message(0, "i", "m", "first")).await, Posted::Inserted, "round {round}");
        let first = inbox(&store, 0).await.remove(0);
        let removal = owner.next(vec![owner.batch(0, vec![Op::RemoveMessage(first.key())])]);
        one(commit(&store, &removal).await).expect("the owner's batch is written");
        assert_eq!(post(&store, message(0, "i", "m", "second")).await, Posted::Inserted, "round {round}");
        let second = inbox(&store, 0).await;
        one(commit(&store, &removal).await).expect("the repeat is answered as done");
        assert_eq!(inbox(&store, 0).await, second, "round {round}");
        owner.commit(0, vec![Op::RemoveMessage(second[0].key())]).await;
    }
}

pub(super) async fn one_message_id_in_two_instances_is_two_messages(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    for name in [of("order", "1"), of("order", "2"), of("user", "1")] {
        let sent = NewMessage { name, ..message(0, "", "m", "") };
        assert_eq!(post(&store, sent).await, Posted::Inserted);
    }
    let rows = inbox(&store, 0).await;
    assert_eq!(rows.len(), 3);
    owner.commit(0, vec![Op::RemoveMessage(rows[1].key())]).await;
    assert_eq!(inbox(&store, 0).await, [rows[0].clone(), rows[2].clone()]);
}

pub(super) async fn headers_keep_order_repetitions_and_bytes(store: AnyStore) {
    let headers: Vec<(String, String)> = [
        ("z", "1"),
        ("a", "2"),
        ("Z", "3"),
        ("a", "2"),
        ("a", "0"),
        ("empty", ""),
        ("", "nameless"),
        ("10", "x"),
        ("9", "x"),
        ("quote\"'", "\\\n\r\t: ,;={}[]"),
        ("é💥", "\u{1}\u{7f}\u{ffff}"),
        ("null", "null"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    post(&store, NewMessage { headers: headers.clone(), ..message(0, "i", "m1", "") }).await;
    post(&store, NewMessage { headers: vec![], ..message(0, "j", "m2", "") }).await;
    let rows = inbox(&store, 0).await;
    let of = |id: &str| rows.iter().find(|row| *row.id == *id).map(|row| row.headers.clone());
    assert_eq!(of("m1"), Some(headers));
    assert_eq!(of("m2"), Some(vec![]));
}

pub(super) async fn bodies_are_any_bytes(store: AnyStore) {
    let large: Vec<u8> = (0..=255).cycle().take(crate::store::MAX_VALUE_BYTES).collect();
    let bodies = [vec![], vec![0], (0..=255).collect(), vec![0xff; 3], b"{}".to_vec(), large];
    for (n, body) in bodies.iter().enumerate() {
        let sent = NewMessage { body: body.clone().into(), ..message(0, "i", &n.to_string(), "") };
        assert_eq!(post(&store, sent).await, Posted::Inserted);
    }
    let rows = inbox(&store, 0).await;
    assert_eq!(rows.len(), bodies.len());
    for row in rows {
        let body = &bodies[row.id.parse::<usize>().expect("the IDs are numbers")];
        assert!(row.body == body, "body {} came back changed: {} bytes", row.id, row.body.len());
    }
}

pub(super) async fn messages_come_in_order_of_arrival(store: AnyStore) {
    for n in 0..30 {
        // IDs descend, so that an order by ID would show once the clock has moved.
        post(&store, message(0, "i", &format!("{:02}", 99 - n), "")).await;
        if n % 10 == 9 {
            wait_for_the_clock(&store).await;
        }
    }
    let rows = inbox(&store, 0).await;
    assert_eq!(rows.len(), 30);
    let mut sorted = rows.clone();
    sorted.sort_by_key(InboxRow::key);
    assert_eq!(rows, sorted);
    for (tenth, rows) in rows.chunks(10).enumerate() {
        let tens: Vec<_> =
            rows.iter().map(|row| (99 - row.id.parse::<usize>().expect("the IDs are numbers")) / 10).collect();
        assert_eq!(tens, [tenth; 10], "the first to arrive come first");
    }
}

/// Returns once the store's clock has moved on by a millisecond or more.
#[allow(clippy::disallowed_methods, reason = "the clock of a real store cannot be set")]
async fn wait_for_the_clock(store: &AnyStore) {
    let before = claim(store, &start(1, "host-a", &[9])).await.now;
    for _ in 0..1_000 {
        if claim(store, &start(1, "host-a", &[9])).await.now > before {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    unexpected("the store's clock moves", &before)
}

pub(super) async fn put_message_changes_all_but_arrival_headers_and_body(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    for id in ["m1", "m2"] {
        post(&store, message(0, "i", id, "body")).await;
    }
    let before = inbox(&store, 0).await;
    let mut changed = InboxRow {
        due: at(before[0].due.as_millis() + 5_000),
        attempts: Attempts { failed: 3, crashes: 2, started: true, last_error: Some("it's\n\"broken\"".into()) },
        ..before[0].clone()
    };
    let sent = InboxRow { headers: vec![], body: Bytes::new(), ..changed.clone() };
    owner.commit(0, vec![Op::PutMessage(sent)]).await;
    assert_eq!(inbox(&store, 0).await, [changed.clone(), before[1].clone()]);
    changed = InboxRow { due: at(-1), attempts: Attempts::default(), ..changed };
    owner.commit(0, vec![Op::PutMessage(changed.clone())]).await;
    assert_eq!(inbox(&store, 0).await, [changed, before[1].clone()], "its place is by arrival, not by due time");
    assert_eq!(post(&store, message(0, "i", "m1", "")).await, Posted::Duplicate);
}

pub(super) async fn put_message_on_a_missing_row_does_nothing(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    post(&store, message(0, "i", "m", "body")).await;
    let row = inbox(&store, 0).await.remove(0);
    owner.commit(0, vec![Op::RemoveMessage(row.key())]).await;
    owner.commit(0, vec![Op::PutMessage(InboxRow { attempts: failed(1), ..row })]).await;
    assert_eq!(inbox(&store, 0).await, [], "a message that was handled does not come back");
    owner.commit(0, vec![Op::PutMessage(inbox_row("i", "never", 10))]).await;
    assert_eq!(inbox(&store, 0).await, []);
    assert_eq!(post(&store, message(0, "i", "never", "")).await, Posted::Inserted);
}

pub(super) async fn removing_a_message_of_another_arrival_does_nothing(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    post(&store, message(0, "i", "m", "body")).await;
    let rows = inbox(&store, 0).await;
    let mut key = rows[0].key();
    key.arrived = at(key.arrived.as_millis() - 1);
    owner.commit(0, vec![Op::RemoveMessage(key), Op::RemoveMessage(inbox_row("i", "n", 10).key())]).await;
    assert_eq!(inbox(&store, 0).await, rows);
}

pub(super) async fn a_message_that_cannot_be_stored_leaves_nothing_of_its_call(store: AnyStore) {
    // NUL is excluded by the library; a store may hold it or refuse it, but not hold half.
    let sent = [message(0, "i", "m1", ""), message(0, "i", "nul\0id", ""), message(0, "i", "m3", "")];
    match store.post(&sent).await {
        Ok(posted) => {
            assert_eq!(posted, [Posted::Inserted; 3]);
            assert_eq!(inbox(&store, 0).await.len(), 3);
        }
        Err(StoreError::Rejected(_)) => assert_eq!(inbox(&store, 0).await, []),
        other => unexpected("a post is stored or rejected", &other),
    }
    assert_eq!(post(&store, message(0, "i", "m4", "")).await, Posted::Inserted, "a rejected post blocks nothing");
}

pub(super) async fn posts_and_commits_at_once_lose_nothing(store: AnyStore) {
    const MESSAGES: usize = 60;
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let poster = store.clone();
    let posting = tokio::spawn(async move {
        for n in 0..MESSAGES {
            assert_eq!(post(&poster, message(0, "i", &format!("m-{n:02}"), "")).await, Posted::Inserted);
            tokio::task::yield_now().await;
        }
    });
    let mut taken = Vec::new();
    while taken.len() < MESSAGES {
        let rows = inbox(&store, 0).await;
        if rows.is_empty() {
            assert!(
                !posting.is_finished() || !inbox(&store, 0).await.is_empty(),
                "only {} were ever seen",
                taken.len()
            );
            tokio::task::yield_now().await;
            continue;
        }
        owner.commit(0, rows.iter().map(|row| Op::RemoveMessage(row.key())).collect()).await;
        taken.extend(rows.into_iter().map(|row| row.id.to_string()));
    }
    posting.await.expect("the poster ends");
    taken.sort_unstable();
    assert_eq!(taken, (0..MESSAGES).map(|n| format!("m-{n:02}")).collect::<Vec<_>>(), "each is taken once");
    assert_eq!(inbox(&store, 0).await, []);
}
