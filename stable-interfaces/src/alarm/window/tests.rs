use bytes::Bytes;

use super::*;
use crate::store::{Attempts, Epoch};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn name(instance: &str) -> InstanceName {
    InstanceName { interface: "order".into(), instance: instance.into() }
}

fn rev(counter: u64) -> Revision {
    Revision { epoch: Epoch(1), counter }
}

fn alarm_of(instance: &str, id: &str, due: i64, revision: u64) -> AlarmRow {
    AlarmRow {
        name: name(instance),
        id: id.into(),
        due: at(due),
        scheduled_at: at(due),
        revision: rev(revision),
        attempts: Attempts::default(),
        meta: Bytes::from_static(b"null"),
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn alarm(id: &str, due: i64, revision: u64) -> AlarmRow {
    alarm_of("i", id, due, revision)
}

/// A window of a shard that had no alarms.
fn complete(cap: usize) -> AlarmWindow {
    let mut window = AlarmWindow::new(cap);
    window.begin_page();
    window.merge_page(vec![], true);
    window
}

/// The IDs of all that is due, in order.
fn pop_all(window: &mut AlarmWindow, now: i64) -> Vec<String> {
    std::iter::from_fn(|| window.pop_due(at(now))).map(|row| row.id.to_string()).collect()
}

#[test]
fn a_moved_alarm_does_not_fire_at_its_old_time() {
    let mut window = complete(8);
    window.put(alarm("retry", 10, 1));
    window.put(alarm("retry", 20, 2));
    assert_eq!(window.pop_due(at(15)), None);
    assert_eq!(window.next_deadline(), Some(at(20)));
    assert_eq!(window.pop_due(at(20)), Some(alarm("retry", 20, 2)));
    assert_eq!(window.len(), 1, "moving made no second alarm");
}

#[test]
fn an_alarm_armed_again_while_it_fires_fires_again_at_its_new_time_and_not_before() {
    let mut window = complete(8);
    window.put(alarm("tick", 10, 1));
    assert_eq!(window.pop_due(at(10)), Some(alarm("tick", 10, 1)));
    window.put(alarm("tick", 20, 2));
    window.remove(&name("i"), "tick", rev(1));
    assert!(!window.is_firing(&name("i"), "tick"));
    assert_eq!(pop_all(&mut window, 19), [""; 0]);
    assert_eq!(pop_all(&mut window, 20), ["tick"]);
}

#[test]
fn the_same_alarm_id_on_two_instances_is_two_alarms() {
    let mut window = complete(8);
    window.put(alarm_of("a", "timeout", 10, 1));
    window.put(alarm_of("b", "timeout", 10, 2));
    window.remove(&name("a"), "timeout", rev(9));
    assert_eq!(window.get(&name("a"), "timeout"), None);
    assert_eq!(window.pop_due(at(10)), Some(alarm_of("b", "timeout", 10, 2)));
    let other_interface = InstanceName { interface: "cart".into(), ..name("b") };
    window.put(AlarmRow { name: other_interface, ..alarm_of("b", "timeout", 10, 3) });
    assert_eq!((window.len(), window.firing()), (2, 1));
}

#[test]
fn alarms_fire_in_the_order_of_time_interface_instance_and_id() {
    let mut window = complete(8);
    for (instance, id, due) in [("b", "x", 5), ("a", "z", 5), ("a", "y", 5), ("z", "first", -1), ("a", "later", 6)] {
        window.put(alarm_of(instance, id, due, 1));
    }
    assert_eq!(pop_all(&mut window, 5), ["first", "y", "z", "x"]);
    assert_eq!(pop_all(&mut window, 6), ["later"]);
}

#[test]
fn an_alarm_fires_at_its_millisecond_whatever_the_date() {
    let mut window = complete(8);
    for (id, due) in [("old", Timestamp::MIN), ("1970", Timestamp::UNIX_EPOCH), ("far", Timestamp::MAX)] {
        window.put(AlarmRow { due, ..alarm(id, 0, 1) });
    }
    assert_eq!(window.next_deadline(), Some(Timestamp::MIN));
    assert_eq!(pop_all(&mut window, -1), ["old"]);
    assert_eq!(pop_all(&mut window, 0), ["1970"]);
    assert_eq!(pop_all(&mut window, Timestamp::MAX.as_millis() - 1), [""; 0]);
    assert_eq!(pop_all(&mut window, Timestamp::MAX.as_millis()), ["far"]);
}

#[test]
fn a_popped_alarm_stays_and_is_not_popped_again() {
    let mut window = complete(8);
    window.put(alarm("a", 10, 1));
    window.pop_due(at(10)).expect("due");
    assert_eq!(window.pop_due(at(99)), None);
    assert_eq!(window.next_deadline(), None);
    assert!(window.is_firing(&name("i"), "a"));
    assert_eq!((window.len(), window.waiting(), window.firing()), (1, 0, 1));
    window.remove(&name("i"), "a", rev(1));
    assert_eq!(window.len(), 0);
}

#[test]
fn an_alarm_that_a_page_has_shown_before_its_commit_fires_once() {
    let mut window = AlarmWindow::new(8);
    window.begin_page();
    window.merge_page(vec![alarm("early", 10, 1)], true);
    assert_eq!(pop_all(&mut window, 10), ["early"]);
    window.put(alarm("early", 10, 1));
    assert_eq!(pop_all(&mut window, 10), [""; 0]);
}

#[test]
fn a_retry_of_the_same_revision_waits_for_its_new_time() {
    let mut window = complete(8);
    window.put(alarm("a", 10, 1));
    window.pop_due(at(10)).expect("due");
    let retry =
        AlarmRow { attempts: Attempts { failed: 1, ..Attempts::default() }, scheduled_at: at(10), ..alarm("a", 50, 1) };
    window.put(retry.clone());
    assert_eq!(window.pop_due(at(49)), None);
    assert_eq!(window.pop_due(at(50)), Some(retry));
}

#[test]
fn a_smaller_revision_changes_nothing() {
    let mut window = complete(8);
    window.put(alarm("a", 10, 5));
    window.put(alarm("a", 1, 4));
    window.remove(&name("i"), "a", rev(4));
    assert_eq!(window.get(&name("i"), "a"), Some(&alarm("a", 10, 5)));
    window.pop_due(at(10)).expect("due");
    window.wait_again(&name("i"), "a", rev(4), None);
    window.set_aside(&name("i"), "a", rev(4));
    assert!(window.is_firing(&name("i"), "a"));
}

#[test]
fn a_fire_that_changed_nothing_waits_again_but_not_before_its_retry() {
    let mut window = complete(8);
    window.put(alarm("a", 10, 1));
    window.put(alarm("b", 30, 1));
    window.pop_due(at(10)).expect("due");
    window.wait_again(&name("i"), "a", rev(1), Some(SECOND));
    assert_eq!((window.next_deadline(), window.next_wait()), (Some(at(30)), Some(SECOND)));
    window.end_waits(SECOND / 2);
    assert_eq!(pop_all(&mut window, 20), [""; 0]);
    window.end_waits(SECOND);
    assert_eq!((window.next_wait(), pop_all(&mut window, 30)), (None, vec!["a".to_owned(), "b".to_owned()]));
    window.wait_again(&name("i"), "a", rev(1), None);
    window.wait_again(&name("i"), "b", rev(1), Some(SECOND / 2));
    window.end_waits(SECOND);
    assert_eq!(pop_all(&mut window, 30), ["a", "b"], "a retry in the past is at once");
}

#[test]
fn an_alarm_whose_retry_has_come_is_not_early_by_a_wall_that_went_back() {
    let mut window = complete(8);
    window.put(alarm("a", 10, 1));
    window.pop_due(at(10)).expect("due");
    window.wait_again(&name("i"), "a", rev(1), Some(SECOND));
    window.end_waits(SECOND);
    assert_eq!((window.pop_due(at(9)), window.next_deadline()), (None, Some(at(10))));
}

#[test]
fn only_a_firing_alarm_can_be_told_to_wait_again() {
    let mut window = complete(8);
    window.put(alarm("a", 10, 1));
    window.wait_again(&name("i"), "a", rev(1), Some(SECOND));
    window.wait_again(&name("i"), "gone", rev(1), None);
    assert_eq!(window.next_deadline(), Some(at(10)));
    assert_eq!(window.len(), 1);
}

#[test]
fn past_the_cap_the_last_alarms_are_dropped_and_come_back_with_a_page() {
    let mut window = complete(4);
    for n in 1..=6 {
        window.put(alarm(&n.to_string(), n, 1));
    }
    assert_eq!((window.len(), window.is_complete()), (4, false));
    window.put(alarm("5.5", 5, 1));
    assert_eq!(window.get(&name("i"), "5.5"), None, "beyond the horizon");
    assert!(!window.wants_page(), "there is enough");
    assert_eq!(pop_all(&mut window, 3), ["1", "2", "3"]);
    assert!(window.wants_page());
    assert_eq!(window.begin_page(), (Some(alarm("4", 4, 1).key()), 3));
    window.merge_page(vec![alarm("5", 5, 1), alarm("5.5", 5, 1), alarm("6", 6, 1)], false);
    assert!(!window.is_complete());
    assert_eq!(pop_all(&mut window, 99), ["4", "5", "5.5", "6"]);
    window.begin_page();
    window.merge_page(vec![], true);
    assert!(window.is_complete());
}

#[test]
fn firing_and_postponed_alarms_are_never_dropped() {
    let mut window = complete(2);
    window.put(alarm("firing", 50, 1));
    window.put(alarm("postponed", 50, 1));
    assert_eq!(pop_all(&mut window, 50), ["firing", "postponed"]);
    window.wait_again(&name("i"), "postponed", rev(1), Some(SECOND));
    for n in 1..=5 {
        window.put(alarm(&n.to_string(), n, 1));
    }
    assert!(window.is_firing(&name("i"), "firing"));
    assert_eq!((window.waiting(), window.firing()), (2, 1));
    assert_eq!(pop_all(&mut window, 60), ["1"], "and the rest is in the store");
    window.end_waits(SECOND);
    assert_eq!((window.len(), window.wants_page()), (2, true), "with the one that was postponed, from now on");
}

#[test]
fn an_alarm_that_fires_again_at_its_own_time_obeys_a_horizon_that_fell_meanwhile() {
    let mut window = complete(2);
    window.put(alarm("late", 50, 1));
    window.pop_due(at(50)).expect("due");
    for n in 1..=3 {
        window.put(alarm(&n.to_string(), n, 1));
    }
    window.wait_again(&name("i"), "late", rev(1), None);
    assert_eq!(window.get(&name("i"), "late"), None);
    assert_eq!(pop_all(&mut window, 2), ["1", "2"]);
    window.begin_page();
    window.merge_page(vec![alarm("3", 3, 1), alarm("late", 50, 1)], true);
    assert_eq!(pop_all(&mut window, 50), ["3", "late"]);
}

#[test]
fn a_window_that_has_loaded_nothing_keeps_nothing() {
    let mut window = AlarmWindow::new(8);
    window.put(alarm("a", 10, 1));
    assert_eq!((window.len(), window.pop_due(at(99))), (0, None));
    assert!(window.wants_page());
    assert_eq!(window.begin_page(), (None, 8));
    assert!(!window.wants_page(), "one at a time");
    window.merge_page(vec![alarm("a", 10, 1)], true);
    assert_eq!(pop_all(&mut window, 99), ["a"]);
}

#[test]
fn what_happens_while_a_page_loads_wins_over_the_page() {
    let mut window = AlarmWindow::new(16);
    window.begin_page();
    window.remove(&name("i"), "removed", rev(1));
    window.put(alarm("moved-in", 5, 2));
    window.put(alarm("moved-on", 30, 2));
    window.put(alarm("moved-out", 900, 2));
    window.put(alarm("new", 7, 1));
    window.put(alarm("new-and-gone", 8, 1));
    window.remove(&name("i"), "new-and-gone", rev(1));
    assert_eq!(window.len(), 0, "the horizon rises only at the merge");
    let page = [("moved-on", 1), ("removed", 2), ("moved-out", 3), ("stays", 4), ("moved-in", 40)];
    window.merge_page(page.map(|(id, due)| alarm(id, due, 1)).into(), false);
    assert_eq!(pop_all(&mut window, 999), ["stays", "moved-in", "new", "moved-on"]);
    assert_eq!(window.get(&name("i"), "moved-out"), None, "beyond the new horizon");
}

#[test]
fn an_alarm_put_again_after_its_removal_while_a_page_loads_lives() {
    let mut window = AlarmWindow::new(16);
    window.begin_page();
    window.remove(&name("i"), "a", rev(1));
    window.put(alarm("a", 20, 2));
    window.merge_page(vec![alarm("a", 10, 1), alarm("z", 90, 1)], false);
    assert_eq!(pop_all(&mut window, 90), ["a", "z"]);
}

#[test]
fn a_page_that_is_ahead_of_the_commits_is_believed() {
    let mut window = complete(2);
    for n in 1..=4 {
        window.put(alarm(&n.to_string(), n, 1));
    }
    assert_eq!(pop_all(&mut window, 2), ["1", "2"]);
    window.begin_page();
    window.put(alarm("3", 8, 2));
    // The store has already written what the window is told last: "1" and "3" were set again.
    window.merge_page(vec![alarm("4", 4, 1), alarm("1", 5, 2), alarm("3", 9, 3)], true);
    assert!(!window.is_firing(&name("i"), "1"));
    window.put(alarm("1", 5, 2));
    window.put(alarm("3", 9, 3));
    assert_eq!(pop_all(&mut window, 8), ["4", "1"]);
    window.begin_page();
    window.merge_page(vec![alarm("3", 9, 3)], true);
    assert_eq!(pop_all(&mut window, 9), ["3"]);
}

#[test]
fn a_page_does_not_double_an_alarm_that_is_firing() {
    let mut window = complete(4);
    window.put(alarm("firing", 50, 1));
    window.pop_due(at(50)).expect("due");
    for n in 1..=5 {
        window.put(alarm(&n.to_string(), n, 1));
    }
    assert_eq!(pop_all(&mut window, 4).len(), 4);
    window.begin_page();
    window.merge_page(vec![alarm("5", 5, 1), alarm("firing", 50, 1)], true);
    assert!(window.is_firing(&name("i"), "firing"));
    assert_eq!(pop_all(&mut window, 99), ["5"]);
}

#[test]
fn a_page_that_began_before_the_horizon_fell_is_not_used() {
    let mut window = complete(4);
    for n in 11..=15 {
        window.put(alarm(&n.to_string(), n, 1));
    }
    assert_eq!(pop_all(&mut window, 13), ["11", "12", "13"]);
    window.begin_page();
    for n in 1..=4 {
        window.put(alarm(&n.to_string(), n, 1));
    }
    assert_eq!(window.get(&name("i"), "14"), None, "dropped while the page after it was loading");
    window.merge_page(vec![alarm("15", 15, 1)], true);
    assert!(!window.is_complete());
    assert_eq!(pop_all(&mut window, 99), ["1", "2", "3", "4"]);
    assert!(window.wants_page());
}

#[test]
fn more_puts_than_the_cap_while_a_page_loads_are_kept_only_in_part_and_none_is_lost() {
    let mut window = AlarmWindow::new(4);
    window.begin_page();
    for n in (1..=9).rev() {
        window.put(alarm(&n.to_string(), n, 1));
    }
    window.remove(&name("i"), "4", rev(1));
    window.merge_page(vec![], true);
    assert!(!window.is_complete(), "five of them were not kept");
    assert_eq!(pop_all(&mut window, 99), ["1", "2", "3"]);
    assert_eq!(window.begin_page().0, Some(alarm("3", 3, 1).key()));
}

#[test]
fn an_abandoned_page_leaves_all_as_it_was_and_is_wanted_again() {
    let mut window = AlarmWindow::new(4);
    window.begin_page();
    window.put(alarm("a", 1, 1));
    window.abandon_page();
    window.merge_page(vec![alarm("z", 9, 1)], true);
    assert_eq!((window.len(), window.is_complete()), (0, false), "a page nobody began is not merged");
    assert!(window.wants_page());
}

#[test]
fn a_page_that_brings_nothing_does_not_lower_the_horizon() {
    let mut window = AlarmWindow::new(4);
    window.begin_page();
    window.merge_page(vec![alarm("a", 10, 1)], false);
    assert_eq!(pop_all(&mut window, 10), ["a"]);
    window.begin_page();
    window.merge_page(vec![], false);
    window.put(alarm("b", 9, 1));
    assert_eq!(pop_all(&mut window, 10), ["b"]);
}

#[test]
fn an_alarm_set_aside_is_out_of_memory_and_lets_others_pass() {
    let mut window = AlarmWindow::new(8);
    window.begin_page();
    window.merge_page(vec![alarm("unknown", 1, 1), alarm("known", 2, 1)], false);
    window.pop_due(at(9)).expect("due");
    window.begin_page();
    window.set_aside(&name("i"), "unknown", rev(1));
    window.merge_page(vec![alarm("unknown", 1, 1)], true);
    assert_eq!(window.get(&name("i"), "unknown"), None);
    assert_eq!(pop_all(&mut window, 9), ["known"]);
}

fn large(id: &str, due: i64, revision: u64) -> AlarmRow {
    AlarmRow { meta: Bytes::from(vec![b'1'; 10_000]), ..alarm(id, due, revision) }
}

#[test]
fn an_alarm_too_large_for_its_window_is_loaded_a_moment_before_it_is_due_and_waits_alone() {
    let mut window = AlarmWindow::bounded(8, 2_000);
    window.tell(at(0));
    window.begin_page();
    window.merge_page(vec![alarm("small", 30_000, 1), large("large", 60_000, 1)], true);
    assert_eq!((window.len(), window.is_complete()), (1, false));
    assert!(!window.wants_page(), "it is not due for long");
    assert_eq!(window.page_deadline(), None, "and small ones wait, which come first");
    assert_eq!(pop_all(&mut window, 30_000), ["small"]);
    assert_eq!(window.page_deadline(), Some(at(58_000)));
    assert_eq!(window.pop_due(at(58_000)), None);
    assert!(window.wants_page());
    window.begin_page();
    window.merge_page(vec![large("large", 60_000, 1), large("other", 60_000, 1)], true);
    assert_eq!((window.waiting(), window.is_complete()), (1, false));
    assert!(!window.wants_page(), "one at a time");
    assert_eq!(pop_all(&mut window, 60_000), ["large"]);
    assert!(window.wants_page());
    window.begin_page();
    window.merge_page(vec![large("other", 60_000, 1)], true);
    assert_eq!(pop_all(&mut window, 60_000), ["other"]);
}

#[test]
fn what_is_put_while_a_page_loads_is_bounded_in_bytes_and_none_is_lost() {
    let mut window = AlarmWindow::bounded(100, 30_000);
    window.tell(at(0));
    window.begin_page();
    for n in 0..10 {
        window.put(large(&n.to_string(), 100 + n, 1));
    }
    window.merge_page(vec![], true);
    assert!(window.waiting() <= 3 && !window.is_complete(), "{} wait", window.waiting());
    let mut fired = pop_all(&mut window, 1_000);
    while !window.is_complete() {
        assert!(window.wants_page());
        let (after, _) = window.begin_page();
        let rows = (0..10).map(|n| large(&n.to_string(), 100 + n, 1));
        let page: Vec<_> = rows.filter(|row| after.as_ref().is_none_or(|after| row.key() > *after)).take(2).collect();
        let is_last = page.last().is_none_or(|row| *row.id == *"9");
        window.merge_page(page, is_last);
        fired.extend(pop_all(&mut window, 1_000));
    }
    assert_eq!(fired, (0..10).map(|n: i32| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn alarms_of_a_busy_instance_wait_behind_the_first_and_let_the_others_pass() {
    let mut window = complete(4);
    for (instance, id, due) in [("slow", "a", 1), ("slow", "b", 2), ("slow", "c", 3), ("quick", "d", 4)] {
        window.put(alarm_of(instance, id, due, 1));
    }
    let slow = name("slow");
    let first = window.pop_due(at(10)).expect("it is due");
    assert!(window.lead(&slow) && !window.lead(&slow));
    assert_eq!(pop_all(&mut window, 10), ["d"]);
    assert_eq!((window.waiting(), window.firing()), (0, 2));
    assert_eq!(window.next_deadline(), None, "nothing is due before the instance is free");
    window.remove(&slow, "b", rev(1));
    window.put(alarm_of("slow", "e", 2, 1));
    window.head_ended(&slow);
    window.remove(&slow, &first.id, rev(1));
    assert_eq!(window.next_deadline(), Some(at(2)));
    assert_eq!(pop_all(&mut window, 10), ["e"], "it was due before the one that waits behind");
    assert!(window.is_led(&slow));
    window.head_ended(&slow);
    assert_eq!(pop_all(&mut window, 10), ["c"]);
    window.head_ended(&slow);
    assert!(!window.has_crowd() && !window.is_led(&slow));
}

#[test]
fn alarms_that_meet_another_on_their_way_go_back_behind_it_and_the_store_gives_the_next() {
    let mut window = AlarmWindow::new(2);
    window.begin_page();
    window.merge_page((0..2).map(|n| alarm_of("slow", &n.to_string(), n, 1)).collect(), false);
    let slow = name("slow");
    assert_eq!(pop_all(&mut window, 10), ["0", "1"]);
    assert!(window.lead(&slow));
    window.turn_back(&slow, "1", rev(1));
    window.turn_back(&slow, "1", rev(1));
    assert_eq!(window.firing(), 1);
    // However many there are, those of other instances are found behind them; memory has its bound all the same.
    let mut next = 2;
    while window.wants_page() {
        window.begin_page();
        window.merge_page((next..next + 2).map(|n| alarm_of("slow", &n.to_string(), n, 1)).collect(), false);
        next += 2;
        assert!(pop_all(&mut window, 1_000).is_empty());
    }
    assert_eq!(window.len(), 2 * CROWD_PER_CAP + 2);
    window.head_ended(&slow);
    window.turn_back(&slow, "0", rev(1));
    assert_eq!(pop_all(&mut window, 1_000), ["0"], "in their order");
}

#[test]
fn an_alarm_that_leaves_is_counted_no_more_wherever_it_has_waited() {
    let slow = name("slow");
    let waits: [fn(&mut AlarmWindow); 4] = [
        |_| {},
        |window| assert!(window.pop_due(at(10)).is_some()),
        |window| {
            window.pop_due(at(10)).expect("it is due");
            window.wait_again(&name("slow"), "a", rev(1), Some(SECOND));
        },
        |window| {
            window.pop_due(at(10)).expect("it is due");
            window.turn_back(&name("slow"), "a", rev(1));
        },
    ];
    let leaves: [fn(&mut AlarmWindow); 4] = [
        |window| window.remove(&name("slow"), "a", rev(1)),
        |window| {
            window.put(alarm_of("slow", "a", 5_000, 2));
            window.remove(&name("slow"), "a", rev(2));
        },
        |window| window.set_aside(&name("slow"), "a", rev(1)),
        |window| {
            window.end_waits(2 * SECOND);
            window.head_ended(&name("slow"));
            // It may be on its way already.
            window.pop_due(at(10));
            window.remove(&name("slow"), "a", rev(1));
        },
    ];
    for wait in waits {
        for leave in leaves {
            let mut window = complete(8);
            window.put(alarm_of("slow", "a", 1, 1));
            assert!(window.lead(&slow));
            window.head_ended(&slow);
            wait(&mut window);
            leave(&mut window);
            assert_eq!((window.waiting_bytes, window.postponed_bytes, window.crowd_bytes), (0, 0, 0));
            assert_eq!((window.len(), window.crowds.waiting()), (0, 0));
        }
    }
}
