//! Dead letters.

use bytes::Bytes;

use super::given::*;
use crate::store::{AlarmRow, Attempts, DeadLetter, DeadRow, InboxRow, Op, Posted};

pub(super) async fn a_dead_alarm_comes_back_as_it_was_put(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let row = AlarmRow {
        revision: revision(4, (1 << 53) + 1),
        scheduled_at: at(-1),
        attempts: Attempts { failed: 17, crashes: u32::MAX, started: true, last_error: Some("".into()) },
        meta: Bytes::from_static(b"{\"a\" : \"\\u0000\"}"),
        ..alarm("i", "a", 1_952_310_701_235)
    };
    let letter = DeadLetter {
        died_at: at(1_952_310_701_236),
        reason: "no \"luck\"\n: 💥".into(),
        row: DeadRow::Alarm(row.clone()),
    };
    owner.commit(0, vec![Op::PutAlarm(row.clone())]).await;
    owner.commit(0, vec![remove_alarm(&row, row.revision), Op::PutDead(letter.clone())]).await;
    assert_eq!(alarms(&store, 0).await, []);
    assert_eq!(dead_letters(&store, 0).await, [letter]);
}

pub(super) async fn a_dead_message_comes_back_as_it_was_put(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    post(&store, message(0, "i", "m", "body")).await;
    let arrived = inbox(&store, 0).await.remove(0);
    let row = InboxRow {
        attempts: Attempts { failed: 9, crashes: 3, started: true, last_error: Some("broken".into()) },
        headers: vec![("b".into(), "1".into()), ("a".into(), "2".into()), ("b".into(), "".into())],
        body: (0..=255).collect::<Vec<u8>>().into(),
        ..arrived
    };
    let letter = dead(20, DeadRow::Message(row.clone()));
    owner.commit(0, vec![Op::RemoveMessage(row.key()), Op::PutDead(letter.clone())]).await;
    assert_eq!(inbox(&store, 0).await, []);
    assert_eq!(dead_letters(&store, 0).await, [letter]);
    assert_eq!(post(&store, message(0, "i", "m", "")).await, Posted::Inserted, "a dead message is not in the inbox");
}

pub(super) async fn a_dead_letter_replaces_one_with_the_same_key(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let first = dead(20, DeadRow::Alarm(alarm("i", "a", 10)));
    let second = DeadLetter { reason: "another".into(), row: DeadRow::Alarm(alarm("i", "a", 15)), ..first.clone() };
    let later = DeadLetter { died_at: at(21), ..first.clone() };
    for letter in [&first, &second, &later] {
        owner.commit(0, vec![Op::PutDead(letter.clone())]).await;
    }
    assert_eq!(dead_letters(&store, 0).await, [second, later]);
}

pub(super) async fn a_dead_alarm_and_a_dead_message_may_share_an_id(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let letters = [dead(20, DeadRow::Alarm(alarm("i", "x", 10))), dead(20, DeadRow::Message(inbox_row("i", "x", 10)))];
    owner.commit(0, letters.iter().rev().cloned().map(Op::PutDead).collect()).await;
    assert_eq!(dead_letters(&store, 0).await, letters);
    owner.commit(0, vec![Op::RemoveDead(letters[0].key())]).await;
    assert_eq!(dead_letters(&store, 0).await, letters[1..]);
}

pub(super) async fn dead_letters_come_oldest_first(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let mut letters = Vec::new();
    for died_at in [100, -1, 9, 999_999_999_999, 1_000_000_000_000] {
        for id in ["b", "a"] {
            letters.push(dead(died_at, DeadRow::Alarm(alarm("i", id, 50 - died_at))));
            letters.push(dead(died_at, DeadRow::Message(inbox_row("h", id, 3))));
            letters.push(dead(died_at, DeadRow::Message(inbox_row("i", id, 3))));
        }
    }
    owner.commit(0, letters.iter().cloned().map(Op::PutDead).collect()).await;
    letters.sort_by_key(DeadLetter::key);
    assert_eq!(dead_letters(&store, 0).await, letters);
}

pub(super) async fn a_removed_dead_letter_is_gone(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let letters = [dead(20, DeadRow::Alarm(alarm("i", "a", 10))), dead(21, DeadRow::Alarm(alarm("i", "a", 10)))];
    owner.commit(0, letters.iter().cloned().map(Op::PutDead).collect()).await;
    let absent = dead(22, DeadRow::Alarm(alarm("i", "a", 10)));
    owner.commit(0, vec![Op::RemoveDead(letters[0].key()), Op::RemoveDead(absent.key())]).await;
    assert_eq!(dead_letters(&store, 0).await, letters[1..]);
}
