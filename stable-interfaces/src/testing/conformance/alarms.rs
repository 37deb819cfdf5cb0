//! Alarms: what is kept of them, their order, and which of two settings wins.

use bytes::Bytes;

use super::given::*;
use crate::clock::Timestamp;
use crate::store::{AlarmRow, Attempts, Op, Revision};

pub(super) async fn an_alarm_comes_back_as_it_was_put(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let plain = alarm("plain", "a", 10);
    let full = AlarmRow {
        name: of("x-1_y", "full"),
        id: "a".into(),
        due: at(1_952_310_701_235),
        scheduled_at: at(-5),
        revision: revision(3, (1 << 53) + 1),
        attempts: Attempts {
            failed: u32::MAX,
            crashes: u32::MAX - 1,
            started: true,
            last_error: Some("it's \"broken\"\n\tat line 3 \\ {}: 💥".into()),
        },
        meta: Bytes::from_static("{ \"b\":1, \"a\" : [1.0, 1e3, \"💥\"],\n\"a\":2 }".as_bytes()),
    };
    let silent = AlarmRow {
        attempts: Attempts { last_error: Some("".into()), ..Attempts::default() },
        meta: Bytes::from_static(b"1e400"),
        ..alarm("silent", "a", 20)
    };
    let rows = [plain, silent, full];
    owner.commit(0, rows.iter().cloned().map(Op::PutAlarm).collect()).await;
    assert_eq!(alarms(&store, 0).await, rows);
    assert_eq!(read_alarms(&store, 0, of("x-1_y", "full"), "", None, 10).await, rows[2..]);
}

pub(super) async fn alarms_come_in_order_of_time_interface_instance_and_id(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let mut rows = Vec::new();
    for due in [20, 9, 100] {
        for interface in ["b", "a-a", "a"] {
            for instance in ["2", "10", "B"] {
                for id in ["z", "Z", "zz"] {
                    rows.push(alarm_of(of(interface, instance), &format!("{id}{due}"), due));
                }
            }
        }
    }
    owner.commit(0, rows.iter().cloned().map(Op::PutAlarm).collect()).await;
    rows.sort_by_key(AlarmRow::key);
    assert_eq!(alarms(&store, 0).await, rows);
}

pub(super) async fn a_moved_alarm_leaves_no_row_at_its_old_time(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let neighbour = alarm("i", "b", 10);
    owner.commit(0, vec![Op::PutAlarm(neighbour.clone())]).await;
    for (counter, due) in [(1, 10), (2, 20), (3, 5), (4, 10), (4, 30), (5, -7)] {
        let moved = AlarmRow { revision: revision(1, counter), ..alarm("i", "a", due) };
        owner.commit(0, vec![Op::PutAlarm(moved.clone())]).await;
        let mut expected = vec![moved.clone(), neighbour.clone()];
        expected.sort_by_key(AlarmRow::key);
        assert_eq!(alarms(&store, 0).await, expected, "after a move to {due}");
        assert_eq!(read_alarms(&store, 0, name("i"), "", None, 10).await, [moved, neighbour.clone()]);
    }
}

/// Puts `stored`, then `put`; the row that is there in the end.
async fn put_over(store: AnyStore, stored: Revision, put: Revision) -> AlarmRow {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    owner.commit(0, vec![Op::PutAlarm(AlarmRow { revision: stored, ..alarm("i", "a", 10) })]).await;
    let second = AlarmRow { revision: put, meta: Bytes::from_static(b"2"), ..alarm("i", "a", 20) };
    owner.commit(0, vec![Op::PutAlarm(second)]).await;
    let mut rows = alarms(&store, 0).await;
    assert_eq!(rows.len(), 1, "an identity has one row, not {rows:?}");
    assert_eq!(read_alarms(&store, 0, name("i"), "", None, 10).await, rows, "both orders know the same row");
    rows.remove(0)
}

pub(super) async fn an_equal_revision_replaces_the_alarm(store: AnyStore) {
    let row = put_over(store, revision(2, 5), revision(2, 5)).await;
    assert_eq!((row.due, &row.meta[..]), (at(20), &b"2"[..]), "a retry keeps its revision and moves its time");
}

pub(super) async fn a_greater_revision_replaces_the_alarm(store: AnyStore) {
    let row = put_over(store, revision(2, 5), revision(2, 6)).await;
    assert_eq!((row.due, row.revision), (at(20), revision(2, 6)));
}

pub(super) async fn a_smaller_revision_leaves_the_alarm_as_it_is(store: AnyStore) {
    let row = put_over(store, revision(2, 5), revision(2, 4)).await;
    assert_eq!(row, AlarmRow { revision: revision(2, 5), ..alarm("i", "a", 10) });
}

pub(super) async fn revisions_compare_as_numbers_epoch_first(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    // Ascending: text would put 10 before 9, and floating point cannot tell the last two of an epoch apart.
    let rising =
        [(1, 9), (1, 10), (1, 1 << 53), (1, (1 << 53) + 1), (2, 1), (9, 1), (10, 1)].map(|(e, c)| revision(e, c));
    let row =
        |revision: Revision| AlarmRow { revision, meta: Bytes::from(format!("\"{revision}\"")), ..alarm("i", "a", 10) };
    for revision in rising {
        owner.commit(0, vec![Op::PutAlarm(row(revision))]).await;
        assert_eq!(alarms(&store, 0).await, [row(revision)], "{revision} is the greatest so far");
    }
    let greatest = rising[rising.len() - 1];
    for &smaller in &rising[..rising.len() - 1] {
        owner.commit(0, vec![Op::PutAlarm(row(smaller))]).await;
        assert_eq!(alarms(&store, 0).await, [row(greatest)], "{smaller} is smaller");
        owner.commit(0, vec![remove_alarm(&row(smaller), smaller)]).await;
        assert_eq!(alarms(&store, 0).await, [row(greatest)], "{smaller} is too small to remove");
    }
}

pub(super) async fn removing_by_a_smaller_revision_leaves_the_alarm(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let row = AlarmRow { revision: revision(2, 5), ..alarm("i", "a", 10) };
    owner.commit(0, vec![Op::PutAlarm(row.clone())]).await;
    for smaller in [revision(2, 4), revision(1, 99)] {
        owner.commit(0, vec![remove_alarm(&row, smaller)]).await;
        assert_eq!(alarms(&store, 0).await, std::slice::from_ref(&row), "removed by {smaller}");
    }
}

pub(super) async fn removing_by_an_equal_or_greater_revision_removes_the_alarm(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let row = AlarmRow { revision: revision(2, 5), ..alarm("i", "a", 10) };
    let neighbour = alarm("i", "b", 10);
    for enough in [revision(2, 5), revision(2, 6), revision(3, 1)] {
        owner.commit(0, vec![Op::PutAlarm(row.clone()), Op::PutAlarm(neighbour.clone())]).await;
        owner.commit(0, vec![remove_alarm(&row, enough)]).await;
        assert_eq!(alarms(&store, 0).await, std::slice::from_ref(&neighbour), "not removed by {enough}");
        let read = read_alarms(&store, 0, name("i"), "", None, 10).await;
        assert_eq!(read, std::slice::from_ref(&neighbour), "not removed by {enough} from the order of IDs");
    }
}

pub(super) async fn removing_an_absent_alarm_does_nothing(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let row = alarm("i", "a", 10);
    owner.commit(0, vec![Op::PutAlarm(row.clone())]).await;
    let absent = [alarm("i", "aa", 10), alarm("ii", "a", 10), alarm_of(of("orders", "i"), "a", 10)];
    owner.commit(0, absent.iter().map(|row| remove_alarm(row, revision(9, 9))).collect()).await;
    assert_eq!(alarms(&store, 0).await, [row]);
}

pub(super) async fn a_removed_alarm_can_be_put_again(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let first = AlarmRow { revision: revision(1, 9), ..alarm("i", "a", 10) };
    owner.commit(0, vec![Op::PutAlarm(first.clone())]).await;
    owner.commit(0, vec![remove_alarm(&first, first.revision)]).await;
    // The store keeps nothing of a removed alarm, so even a smaller revision is new.
    for counter in [10, 3] {
        let again = AlarmRow { revision: revision(1, counter), ..alarm("i", "a", 10) };
        owner.commit(0, vec![Op::PutAlarm(again.clone())]).await;
        assert_eq!(alarms(&store, 0).await, std::slice::from_ref(&again));
        owner.commit(0, vec![remove_alarm(&again, again.revision)]).await;
    }
    assert_eq!(alarms(&store, 0).await, []);
}

pub(super) async fn one_alarm_id_in_two_instances_is_two_alarms(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let rows =
        [alarm_of(of("order", "1"), "a", 10), alarm_of(of("order", "2"), "a", 10), alarm_of(of("user", "1"), "a", 10)];
    owner.commit(0, rows.iter().cloned().map(Op::PutAlarm).collect()).await;
    assert_eq!(alarms(&store, 0).await, rows);
    let moved = AlarmRow { due: at(30), ..rows[1].clone() };
    owner.commit(0, vec![Op::PutAlarm(moved.clone()), remove_alarm(&rows[2], revision(1, 1))]).await;
    assert_eq!(alarms(&store, 0).await, [rows[0].clone(), moved]);
}

pub(super) async fn dates_from_year_1_to_9999_keep_their_order(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let dues = [
        Timestamp::MIN,
        Timestamp::from_millis(Timestamp::MIN.as_millis() + 1),
        at(-86_400_000), // 1969-12-31
        at(-1_001),      // before the epoch, not on a second
        at(-1),
        at(0),
        at(1),
        at(999_999_999_999),   // 2001-09-09: nine digits of seconds,
        at(1_000_000_000_000), // then ten
        at(1_700_000_000_123),
        at(1_700_000_000_124),
        at(4_294_967_296_000),     // 2106: past 32 bits of seconds
        at(9_007_199_254_740_993), // no such date: becomes the last one
    ];
    let rows: Vec<AlarmRow> =
        (0..).zip(dues).map(|(n, due)| alarm("i", &format!("{:02}", 50 - n), due.as_millis())).collect();
    assert_eq!(rows[rows.len() - 1].due, Timestamp::MAX);
    owner.commit(0, rows.iter().rev().cloned().map(Op::PutAlarm).collect()).await;
    assert_eq!(alarms(&store, 0).await, rows);
    for (before, row) in rows.iter().zip(&rows[1..]) {
        let next = page::<AlarmRow>(&store, 0, Some(before.key()), 1).await;
        assert_eq!(next, std::slice::from_ref(row), "the alarm after {:?}", before.due);
    }
}

pub(super) async fn large_meta_is_kept_byte_by_byte(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0]).await;
    let large = format!("{{\"text\":\"{}\"}}", "é\\u0000\\\"💥".repeat(18_000));
    assert!(large.len() > 240 * 1024 && large.len() <= crate::store::MAX_VALUE_BYTES, "{} bytes", large.len());
    let metas = [
        large,
        "\"\\u0000\"".into(),
        "{\"\\u0000\":\"\\u0000\\ud83d\\udca5\"}".into(),
        "\"\u{7f}\u{80}\u{10ffff}\"".into(),
    ];
    let row = |(n, meta): (i64, String)| AlarmRow { meta: Bytes::from(meta), ..alarm("i", &n.to_string(), n) };
    let rows: Vec<AlarmRow> = (0..).zip(metas).map(row).collect();
    owner.commit(0, rows.iter().cloned().map(Op::PutAlarm).collect()).await;
    for (found, row) in alarms(&store, 0).await.iter().zip(&rows) {
        assert!(found == row, "the meta of {} came back changed ({} bytes)", row.id, found.meta.len());
    }
    assert_eq!(read_alarms(&store, 0, name("i"), "", None, 10).await.len(), rows.len());
}

pub(super) async fn an_instances_alarms_are_read_by_id(store: AnyStore) {
    let mut owner = Owner::start(&store, 1, "host-a", &[0, 1]).await;
    // Due in the opposite order, so that the order of firing would show.
    let rows: Vec<AlarmRow> = (0..).zip(["a", "b", "ba", "c", "d"]).map(|(n, id)| alarm("i", id, 100 - n)).collect();
    let others = [
        alarm("h", "b", 1),
        alarm("j", "b", 1),
        alarm_of(of("orde", "i"), "b", 1),
        alarm_of(of("order-", "i"), "b", 1),
    ];
    owner.commit(0, rows.iter().chain(&others).cloned().map(Op::PutAlarm).collect()).await;
    owner.commit(1, vec![Op::PutAlarm(alarm("i", "bb", 1))]).await;
    let read = async |from, to, limit| read_alarms(&store, 0, name("i"), from, to, limit).await;
    assert_eq!(read("", None, 100).await, rows);
    assert_eq!(read("b", Some("c"), 100).await, rows[1..3], "the start belongs to a range, the end does not");
    assert_eq!(read("aa", Some("bb"), 100).await, rows[1..3]);
    assert_eq!(read("c", None, 100).await, rows[3..]);
    assert_eq!(read("", None, 2).await, rows[..2], "the limit counts from the smallest ID");
    assert_eq!(read("c", Some("c"), 100).await, []);
    assert_eq!(read("d", Some("a"), 100).await, []);
}

pub(super) async fn alarms_survive_a_change_of_owner(store: AnyStore) {
    let mut first = Owner::start(&store, 1, "host-a", &[0]).await;
    let row =
        AlarmRow { revision: revision(1, 7), attempts: Attempts { started: true, ..failed(2) }, ..alarm("i", "a", 10) };
    first.commit(0, vec![Op::PutAlarm(row.clone())]).await;
    let mut second = Owner::start(&store, 2, "host-a", &[0]).await;
    assert_eq!(alarms(&store, 0).await, std::slice::from_ref(&row));
    second.commit(0, vec![remove_alarm(&row, row.revision)]).await;
    assert_eq!(alarms(&store, 0).await, []);
}
