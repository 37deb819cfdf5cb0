use bytes::Bytes;

use super::*;
use crate::store::Attempts;

fn failed_once() -> Attempts {
    Attempts { failed: 1, ..Attempts::default() }
}

fn row(id: &str, arrived: i64) -> InboxRow {
    let arrived = Timestamp::from_millis(arrived);
    InboxRow {
        name: InstanceName { interface: "room".into(), instance: "1".into() },
        id: id.into(),
        arrived,
        due: arrived,
        attempts: Attempts::default(),
        headers: Vec::new(),
        body: Bytes::new(),
    }
}

const NOW: Moment = moment(5);

/// A moment at which both clocks show the same.
const fn moment(millis: i64) -> Moment {
    Moment { wall: Timestamp::from_millis(millis), elapsed: Duration::from_millis(millis.unsigned_abs()) }
}

fn pop(window: &mut InboxWindow, now: i64) -> Option<String> {
    {
        window.end_waits(moment(now));
        window.pop_due(moment(now))
    }
    .map(|row| row.id.to_string())
}

#[test]
fn a_message_in_memory_is_not_taken_again_by_a_later_page() {
    let mut window = InboxWindow::new(10);
    window.begin_page();
    window.merge_page(vec![row("a", 1)], true, NOW);
    assert_eq!(pop(&mut window, 5).as_deref(), Some("a"));
    window.hint();
    assert_eq!(window.begin_page(), Some((None, 10, false)));
    window.merge_page(vec![row("a", 1), row("b", 2)], true, NOW);
    assert_eq!(pop(&mut window, 5).as_deref(), Some("b"));
    assert_eq!(pop(&mut window, 5), None);
}

#[test]
fn a_message_completed_while_a_page_loads_is_not_taken_from_that_page() {
    let mut window = InboxWindow::new(10);
    window.begin_page();
    window.merge_page(vec![row("a", 1)], true, NOW);
    let a = window.pop_due(NOW).expect("it is ready");
    window.hint();
    window.begin_page();
    window.remove(&a.key());
    window.merge_page(vec![row("a", 1)], true, NOW);
    assert_eq!(pop(&mut window, 5), None);
    window.begin_page();
    window.merge_page(Vec::new(), true, NOW);
    assert!(!window.is_behind(), "it was that one, and the next pass is the last");
}

#[test]
fn an_id_posted_again_before_its_first_message_was_seen_to_leave_is_taken_after_that() {
    // The second may bear the same time: it arrived in the same millisecond, or the store's clock was set back.
    for arrived in [1, 3] {
        let mut window = InboxWindow::new(10);
        window.begin_page();
        window.merge_page(vec![row("a", 1)], true, NOW);
        let first = window.pop_due(NOW).expect("it is ready");
        window.hint();
        window.begin_page();
        window.merge_page(vec![row("a", arrived)], true, NOW);
        assert_eq!(pop(&mut window, 5), None);
        assert!(!window.wants_page());
        window.remove(&first.key());
        assert!(window.wants_page());
        window.begin_page();
        window.merge_page(vec![row("a", arrived)], true, NOW);
        assert_eq!(pop(&mut window, 5).as_deref(), Some("a"));
    }
}

#[test]
fn an_id_posted_again_while_a_page_loads_in_which_its_first_message_is_seen_to_leave_is_taken_by_the_next() {
    for arrived in [1, 3] {
        let mut window = InboxWindow::new(10);
        window.begin_page();
        window.merge_page(vec![row("a", 1)], true, NOW);
        let first = window.pop_due(NOW).expect("it is ready");
        window.hint();
        window.begin_page();
        window.remove(&first.key());
        window.merge_page(vec![row("a", arrived)], true, NOW);
        assert_eq!(pop(&mut window, 5), None, "the page may have been read before it left");
        window.begin_page();
        window.merge_page(vec![row("a", arrived)], true, NOW);
        assert_eq!(pop(&mut window, 5).as_deref(), Some("a"));
    }
}

#[test]
fn a_message_that_waits_and_is_shown_again_and_again_costs_no_further_pass_when_it_leaves() {
    let mut window = InboxWindow::new(10);
    let later = InboxRow { due: Timestamp::from_millis(50), attempts: failed_once(), ..row("a", 1) };
    for _ in 0..3 {
        window.hint();
        window.begin_page();
        window.merge_page(vec![later.clone()], true, NOW);
    }
    while window.is_behind() {
        window.begin_page();
        window.merge_page(vec![later.clone()], true, NOW);
    }
    assert_eq!(pop(&mut window, 50).as_deref(), Some("a"));
    window.remove(&later.key());
    assert!(!window.is_behind());
}

#[test]
fn what_waits_is_listed_under_the_time_since_when_it_could_be_handled() {
    let mut window = InboxWindow::new(10);
    window.begin_page();
    // The store's clock may be ahead.
    window.merge_page(vec![row("a", 3), row("b", 9)], true, NOW);
    assert_eq!((window.next_wait(), window.due_since(NOW)), (Some(moment(3).elapsed), Some(moment(3).wall)));
    assert_eq!(pop(&mut window, 5).as_deref(), Some("a"));
    assert_eq!((window.next_wait(), window.due_since(NOW)), (Some(NOW.elapsed), Some(NOW.wall)));
}

#[test]
fn what_is_ready_and_what_waits_for_room_do_not_wait_for_a_wall_that_goes_back() {
    let mut window = InboxWindow::new(10);
    window.begin_page();
    window.merge_page(vec![row("a", 3), row("b", 4)], true, NOW);
    let a = window.pop_due(NOW).expect("it is ready");
    window.wait_again(Duration::from_millis(9), a);
    let back = |elapsed| Moment { wall: Timestamp::MIN, elapsed: Duration::from_millis(elapsed) };
    assert_eq!(window.pop_due(back(6)).map(|row| row.id.to_string()).as_deref(), Some("b"));
    assert_eq!((window.pop_due(back(8)), window.next_wait()), (None, Some(Duration::from_millis(9))));
    assert_eq!(window.pop_due(back(9)).map(|row| row.id.to_string()).as_deref(), Some("a"));
}

#[test]
fn of_many_that_find_no_room_the_last_are_left_to_the_store_for_a_while() {
    let (mut window, mut all) = (InboxWindow::new(1), Vec::new());
    for n in 0..17_i64 {
        all.push(row(&format!("{n:02}"), n));
        window.hint();
        while window.wants_page() {
            load(&mut window, &all);
        }
        let row = window.pop_due(NOW).expect("it is ready");
        window.wait_again(Duration::from_millis(100 + n.unsigned_abs()), row);
    }
    while window.wants_page() {
        load(&mut window, &all[..16]);
    }
    assert_eq!((window.resting.len(), window.left_resting_until), (16, Some(Duration::from_millis(116))));
    window.end_waits(moment(115));
    assert!(!window.wants_page());
    window.end_waits(moment(116));
    assert!(window.wants_page());
}

#[test]
fn messages_after_the_first_pass_do_not_hold_alarms_back() {
    let mut window = InboxWindow::new(10);
    window.begin_page();
    window.merge_page(Vec::new(), true, NOW);
    assert!(window.lets_alarms_fire());
    window.hint();
    window.begin_page();
    window.merge_page(vec![row("a", 1)], true, NOW);
    assert!(window.lets_alarms_fire());
}

#[test]
fn a_hint_during_a_pass_starts_another_after_it() {
    let mut window = InboxWindow::new(10);
    window.begin_page();
    window.hint();
    window.merge_page(Vec::new(), true, NOW);
    assert!(window.wants_page());
    window.begin_page();
    window.merge_page(Vec::new(), true, NOW);
    assert!(!window.wants_page());
}

#[test]
fn a_hint_before_a_pass_has_begun_to_read_starts_no_other() {
    let mut window = InboxWindow::new(10);
    for rows in [vec![row("a", 1)], vec![row("b", 2)]] {
        window.hint();
        window.hint();
        window.begin_page();
        window.abandon_page();
        window.hint();
        window.begin_page();
        window.merge_page(rows, true, NOW);
        assert!(!window.is_behind());
    }
    // The store's hints about posts of this host's own, of which the second ends later.
    window.begin_post();
    window.begin_post();
    window.hint_of_store();
    assert!(!window.is_behind());
    window.end_post();
    window.begin_page();
    window.hint_of_store();
    window.merge_page(Vec::new(), true, NOW);
    assert!(!window.is_behind());
    window.end_post();
    window.begin_page();
    window.hint_of_store();
    window.merge_page(Vec::new(), true, NOW);
    assert!(window.is_behind(), "it may be about the post of another host");
    window.begin_page();
    window.merge_page(Vec::new(), true, NOW);
    // A pass that has read its first page has not seen what comes before its place.
    window.hint();
    window.begin_page();
    window.merge_page(vec![row("c", 3)], false, NOW);
    window.hint();
    window.begin_page();
    window.merge_page(Vec::new(), true, NOW);
    assert!(window.wants_page());
}

#[test]
fn alarms_wait_until_the_first_pass_is_read_and_handed_out() {
    let mut window = InboxWindow::new(1);
    window.begin_page();
    window.merge_page(vec![row("a", 1)], false, NOW);
    assert!(!window.lets_alarms_fire());
    let a = window.pop_due(NOW).expect("it is ready");
    window.remove(&a.key());
    assert_eq!(window.begin_page(), Some((Some(a.key()), 1, false)));
    window.merge_page(Vec::new(), true, NOW);
    assert!(window.lets_alarms_fire());
}

#[test]
fn messages_that_nobody_can_handle_do_not_keep_the_others_out() {
    let mut window = InboxWindow::new(2);
    window.begin_page();
    window.merge_page(vec![row("a", 1), row("b", 1)], false, NOW);
    assert!(!window.wants_page());
    for _ in 0..2 {
        window.pop_due(NOW).expect("it is ready");
    }
    assert!(window.wants_page());
    window.begin_page();
    window.merge_page(vec![row("c", 2)], true, NOW);
    assert_eq!(pop(&mut window, 5).as_deref(), Some("c"));
    assert!(window.lets_alarms_fire());
    window.hint();
    window.begin_page();
    window.merge_page(vec![row("a", 1), row("b", 1), row("c", 2)], true, NOW);
    assert_eq!(pop(&mut window, 5), None);
}

#[test]
fn messages_that_are_being_handled_for_however_many_instances_keep_no_other_out() {
    let mut window = InboxWindow::new(2);
    let slow: Vec<_> = (0..100).map(|n| of(&format!("slow-{n}"), n)).collect();
    assert_eq!(hand_out_all(&mut window, &slow).len(), 100, "each is handed out, and none is done");
    let late = of("other", 1_000);
    let all: Vec<_> = slow.iter().chain([&late]).cloned().collect();
    window.hint();
    assert_eq!(hand_out_all(&mut window, &all), ["1000"]);
}

#[test]
fn of_many_that_fail_the_last_are_left_to_the_store_until_they_are_due() {
    let mut window = InboxWindow::new(1);
    window.begin_page();
    let failed =
        |n: i64| InboxRow { due: Timestamp::from_millis(100 + n), attempts: failed_once(), ..row(&n.to_string(), n) };
    let all: Vec<_> = (0..20).map(failed).collect();
    window.merge_page(all.clone(), true, NOW);
    assert_eq!(window.postponed.len(), 16);
    assert!(window.lets_alarms_fire() && !window.wants_page());
    let popped: Vec<_> = (0..20).filter_map(|_| pop(&mut window, 115)).collect();
    assert_eq!(popped, (0..16).map(|n: i32| n.to_string()).collect::<Vec<_>>());
    for row in &all[..16] {
        window.remove(&row.key());
    }
    assert_eq!(window.next_deadline(), Some(Timestamp::from_millis(116)));
    assert_eq!(pop(&mut window, 116), None);
    assert!(window.wants_page());
    while window.wants_page() {
        load(&mut window, &all[16..]);
    }
    assert_eq!(pop(&mut window, 116).as_deref(), Some("16"));
}

/// The next page of the inbox `all`, as a store would answer it: which rows were read whole.
fn load(window: &mut InboxWindow, all: &[InboxRow]) -> Vec<String> {
    let (after, limit, keys_only) = window.begin_page().expect("a page is wanted");
    let rows = all.iter().filter(|row| after.as_ref().is_none_or(|after| row.key() > *after));
    let page: Vec<_> = rows.clone().take(limit).cloned().collect();
    let is_last = rows.count() <= limit;
    let read = page.iter().map(|row| row.id.to_string()).collect();
    window.merge_page(page, is_last, NOW);
    if keys_only { Vec::new() } else { read }
}

#[test]
fn messages_that_wait_are_read_once_and_later_only_what_came_between_them() {
    let mut window = InboxWindow::new(2);
    let later =
        |n: i64| InboxRow { due: Timestamp::from_millis(1_000), attempts: failed_once(), ..row(&format!("{n:02}"), n) };
    let mut all: Vec<_> = (0..12).filter(|n| n % 5 != 3).map(later).collect();
    let mut read = Vec::new();
    while window.is_behind() {
        read.extend(load(&mut window, &all));
    }
    assert_eq!(read.len(), all.len());
    window.look();
    while window.is_behind() {
        assert_eq!(load(&mut window, &all), [""; 0], "all of it is known");
    }
    // They become visible in another order than they arrived.
    all.extend([3, 8, 12, 13, 14].map(|n| row(&format!("{n:02}"), n)));
    all.sort_by_key(InboxRow::key);
    window.look();
    let (mut read, mut popped) = (Vec::new(), Vec::new());
    while window.is_behind() || !window.ready.is_empty() {
        if window.wants_page() {
            read.extend(load(&mut window, &all));
        }
        if let Some(id) = pop(&mut window, 5) {
            all.retain(|row| *row.id != *id);
            window.remove(&row(&id, id.parse().expect("a number")).key());
            popped.push(id);
        }
    }
    let new = ["03", "08", "12", "13", "14"];
    assert_eq!((read, popped), (new.map(str::to_owned).to_vec(), new.map(str::to_owned).to_vec()));
}

#[test]
fn messages_are_bounded_in_bytes_while_they_are_ready_and_while_they_are_postponed() {
    let mut window = InboxWindow::new(64);
    let large = |n: i64, failed| {
        let due = Timestamp::from_millis(if failed > 0 { 1_000 + n } else { n });
        InboxRow {
            body: vec![0; 100_000].into(),
            attempts: Attempts { failed, ..Attempts::default() },
            due,
            ..row(&format!("{n:02}"), n)
        }
    };
    window.begin_page();
    window.merge_page((0..3).map(|n| large(n, 0)).collect(), false, NOW);
    assert!(!window.wants_page());
    assert_eq!(pop(&mut window, 5).as_deref(), Some("00"));
    assert!(window.wants_page());
    window.begin_page();
    window.merge_page((3..9).map(|n| large(n, 1)).collect(), true, NOW);
    assert_eq!(window.postponed.len(), 2);
    assert_eq!(
        (pop(&mut window, 5), pop(&mut window, 5), pop(&mut window, 5)),
        (Some("01".into()), Some("02".into()), None)
    );
    assert_eq!(pop(&mut window, 2_000).as_deref(), Some("03"), "the first stay");
    assert_eq!(pop(&mut window, 2_000).as_deref(), Some("04"));
    assert!(window.wants_page(), "the rest is due as well");
}

#[test]
fn messages_left_to_the_store_are_not_read_again_before_they_are_due() {
    let mut window = InboxWindow::new(1);
    let all: Vec<_> = (0..40)
        .map(|n| InboxRow {
            due: Timestamp::from_millis(100 + n),
            attempts: failed_once(),
            ..row(&format!("{n:02}"), n)
        })
        .collect();
    while window.is_behind() {
        load(&mut window, &all);
    }
    for _ in 0..3 {
        window.look();
        while window.is_behind() {
            assert_eq!(load(&mut window, &all), [""; 0]);
        }
    }
    let mut popped = Vec::new();
    for now in 100..140 {
        while let Some(id) = pop(&mut window, now) {
            window.remove(&row(&id, id.parse().expect("a number")).key());
            popped.push(id);
        }
        let left: Vec<_> = all.iter().filter(|row| !popped.contains(&row.id.to_string())).cloned().collect();
        while window.wants_page() {
            load(&mut window, &left);
        }
        while let Some(id) = pop(&mut window, now) {
            window.remove(&row(&id, id.parse().expect("a number")).key());
            popped.push(id);
        }
    }
    assert_eq!(popped, (0..40).map(|n| format!("{n:02}")).collect::<Vec<_>>());
}

#[test]
fn a_failed_message_waits_for_its_time() {
    let mut window = InboxWindow::new(10);
    window.begin_page();
    window.merge_page(
        vec![InboxRow { due: Timestamp::from_millis(50), attempts: failed_once(), ..row("a", 1) }],
        true,
        NOW,
    );
    assert_eq!(window.next_deadline(), Some(Timestamp::from_millis(50)));
    assert_eq!(pop(&mut window, 49), None);
    assert_eq!(pop(&mut window, 50).as_deref(), Some("a"));
}

fn of(instance: &str, n: i64) -> InboxRow {
    let name = InstanceName { interface: "order".into(), instance: instance.into() };
    InboxRow { name, ..row(&format!("{n:03}"), n) }
}

/// Loads whatever is wanted and hands out whatever may be, except to those who are busy; whom it was handed out.
fn hand_out_all(window: &mut InboxWindow, all: &[InboxRow]) -> Vec<String> {
    let mut handed = Vec::new();
    loop {
        if let Some(row) = window.pop_due(NOW) {
            if window.is_led(&row.name) || window.lead(&row.name) {
                handed.push(row.id.to_string());
            } else {
                window.turn_back(NOW, row);
            }
        } else if window.wants_page() {
            load(window, all);
        } else {
            return handed;
        }
    }
}

#[test]
fn messages_of_a_busy_instance_wait_behind_the_first_and_the_store_keeps_the_rest() {
    let mut window = InboxWindow::new(2);
    let mut all: Vec<_> = (0..100).map(|n| of("slow", n)).chain([of("quick", 100), of("other", 101)]).collect();
    assert_eq!(hand_out_all(&mut window, &all), ["000", "100", "101"]);
    assert_eq!(window.crowds.waiting(), 2 * CROWD_PER_CAP, "and no more are in memory");
    assert!(window.lets_alarms_fire() && window.next_deadline().is_none());
    for done in all.split_off(100) {
        window.remove(&done.key());
        window.head_ended(&done.name);
    }
    let mut handled = vec!["000".to_owned()];
    while handled.len() < 100 {
        let last = handled.last().expect("there is one").clone();
        let row = all.remove(all.iter().position(|row| *row.id == *last).expect("it is stored"));
        window.remove(&row.key());
        window.head_ended(&row.name);
        let next = hand_out_all(&mut window, &all);
        assert_eq!(next.len(), 1, "after {last}: {next:?}");
        handled.extend(next);
    }
    assert_eq!(handled, (0..100).map(|n| format!("{n:03}")).collect::<Vec<_>>());
}

#[test]
fn a_message_that_is_handed_out_is_counted_no_more_wherever_it_has_waited() {
    let body = |row: InboxRow| InboxRow { body: vec![0; 1_000].into(), ..row };
    let waits: [fn(&mut InboxWindow, Arc<InboxRow>); 4] = [
        |_, _| {},
        |window, row| window.wait_again(Duration::from_millis(7), row),
        |window, row| window.postpone(Timestamp::from_millis(7), row),
        |window, row| window.turn_back(NOW, row),
    ];
    for wait in waits {
        let mut window = InboxWindow::new(4);
        window.begin_page();
        window.merge_page(vec![body(row("a", 1))], true, NOW);
        let row = window.pop_due(NOW).expect("it is ready");
        wait(&mut window, row.clone());
        pop(&mut window, 9);
        assert_eq!((window.ready_bytes, window.postponed_bytes, window.crowd_bytes), (0, 0, 0));
        window.remove(&row.key());
        assert!(window.taken.is_empty() && window.crowds.waiting() == 0);
    }
}

#[test]
fn a_page_that_could_not_be_loaded_is_wanted_again_from_where_it_began() {
    let mut window = InboxWindow::new(1);
    window.begin_page();
    window.merge_page(vec![row("a", 1)], false, NOW);
    let a = window.pop_due(NOW).expect("it is ready");
    window.remove(&a.key());
    for _ in 0..2 {
        assert_eq!(window.begin_page(), Some((Some(a.key()), 1, false)));
        assert!(!window.wants_page(), "one is under way");
        window.abandon_page();
        assert!(window.wants_page() && !window.lets_alarms_fire());
    }
}
