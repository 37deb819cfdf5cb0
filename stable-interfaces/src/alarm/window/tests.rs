use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::store::Epoch;

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
        attempt: 0,
        crashes: 0,
        started: false,
        last_error: None,
        meta: Bytes::from_static(b"null"),
    }
}

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
    let retry = AlarmRow { attempt: 1, scheduled_at: at(10), ..alarm("a", 50, 1) };
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
    window.wait_again(&name("i"), "a", rev(1), Some(at(20)));
    assert_eq!(window.next_deadline(), Some(at(20)));
    assert_eq!(window.pop_due(at(19)), None);
    assert_eq!(pop_all(&mut window, 30), ["a", "b"]);
    window.wait_again(&name("i"), "a", rev(1), None);
    window.wait_again(&name("i"), "b", rev(1), Some(at(5)));
    assert_eq!(pop_all(&mut window, 30), ["a", "b"], "a retry in the past is at once");
}

#[test]
fn only_a_firing_alarm_can_be_told_to_wait_again() {
    let mut window = complete(8);
    window.put(alarm("a", 10, 1));
    window.wait_again(&name("i"), "a", rev(1), Some(at(99)));
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
    window.wait_again(&name("i"), "postponed", rev(1), Some(at(60)));
    for n in 1..=5 {
        window.put(alarm(&n.to_string(), n, 1));
    }
    assert!(window.is_firing(&name("i"), "firing"));
    assert_eq!((window.waiting(), window.firing()), (2, 1));
    assert_eq!(pop_all(&mut window, 60), ["1", "postponed"], "and the rest is in the store");
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

/// What a window should do, kept the simple way: the whole store, and marks beside it.
struct Model {
    store: BTreeMap<Identity, AlarmRow>,
    /// Commits that the store has written and the window has not been told of.
    under_way: VecDeque<Commit>,
    firing: BTreeMap<Identity, Revision>,
    postponed: BTreeMap<Identity, Timestamp>,
    aside: BTreeMap<Identity, Revision>,
}

type Identity = (InstanceName, Arc<str>);

enum Commit {
    /// And whether the store took it.
    Put(AlarmRow, bool),
    Remove(Identity, Revision, bool),
}

/// A page as it is being read, row by row and not at one moment.
struct Reading {
    after: Option<AlarmKey>,
    limit: usize,
    rows: Vec<AlarmRow>,
}

/// What the schedules must have met for the test to mean anything.
#[derive(Default, Debug)]
struct Met {
    pops: usize,
    merged: usize,
    spoiled: usize,
    ceilings: usize,
    dropped_tails: usize,
    postponed: usize,
    ahead: usize,
}

impl Model {
    fn put(&mut self, row: AlarmRow) {
        let identity = (row.name.clone(), row.id.clone());
        let taken = self.store.get(&identity).is_none_or(|old| old.revision <= row.revision);
        if taken {
            self.store.insert(identity, row.clone());
        }
        self.under_way.push_back(Commit::Put(row, taken));
    }

    fn remove(&mut self, identity: Identity, revision: Revision) {
        let taken = self.store.get(&identity).is_some_and(|old| old.revision <= revision);
        if taken {
            self.store.remove(&identity);
        }
        self.under_way.push_back(Commit::Remove(identity, revision, taken));
    }

    /// Tells the window of the oldest commit.
    fn deliver(&mut self, window: &mut AlarmWindow) {
        let (identity, taken) = match self.under_way.pop_front() {
            None => return,
            Some(Commit::Put(row, taken)) => {
                let identity = (row.name.clone(), row.id.clone());
                window.put(row);
                (identity, taken)
            }
            Some(Commit::Remove(identity, revision, taken)) => {
                window.remove(&identity.0, &identity.1, revision);
                (identity, taken)
            }
        };
        if taken {
            self.firing.remove(&identity);
            self.postponed.remove(&identity);
            self.aside.remove(&identity);
        }
    }

    fn read(&self, reading: &mut Reading) -> bool {
        let after = reading.rows.last().map(AlarmRow::key).or_else(|| reading.after.clone());
        let mut ordered: Vec<(AlarmKey, &AlarmRow)> = self.store.values().map(|row| (row.key(), row)).collect();
        ordered.sort_by(|a, b| a.0.cmp(&b.0));
        match ordered.into_iter().find(|(key, _)| after.as_ref().is_none_or(|after| key > after)) {
            Some((_, row)) if reading.rows.len() < reading.limit => {
                reading.rows.push(row.clone());
                true
            }
            _ => false,
        }
    }

    /// When an alarm is to fire, if it is one that the window can know of and that is not firing.
    fn wakes(&self, window: &AlarmWindow, identity: &Identity, row: &AlarmRow) -> Option<Timestamp> {
        if self.firing.contains_key(identity) || self.aside.contains_key(identity) {
            None
        } else if let Some(at) = self.postponed.get(identity) {
            Some(*at)
        } else {
            window.horizon.reaches(row).then_some(row.due)
        }
    }

    fn first(&self, window: &AlarmWindow) -> Option<(Timestamp, AlarmKey)> {
        let all = self.store.iter();
        all.filter_map(|(identity, row)| Some((self.wakes(window, identity, row)?, row.key()))).min()
    }

    /// Every live alarm up to the horizon, none beyond it but those firing and postponed, each in its state.
    fn check(&mut self, window: &AlarmWindow) {
        self.aside.retain(|(name, id), _| window.get(name, id).is_none());
        let (mut held, mut firing) = (0, 0);
        for (identity, row) in &self.store {
            let expected = self.firing.contains_key(identity) || self.wakes(window, identity, row).is_some();
            assert_eq!(window.get(&identity.0, &identity.1), expected.then_some(row), "{identity:?}");
            assert_eq!(window.is_firing(&identity.0, &identity.1), self.firing.contains_key(identity), "{identity:?}");
            held += usize::from(expected);
            firing += usize::from(self.firing.contains_key(identity));
        }
        assert_eq!((window.len(), window.firing()), (held, firing));
        assert!(window.waiting() <= window.cap || window.waiting.is_empty());
        assert_eq!(window.next_deadline(), self.first(window).map(|(at, _)| at));
    }
}

/// Prints the seed of a schedule that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failing seed: {}", self.0);
        }
    }
}

fn run_schedule(seed: u64, met: &mut Met) {
    let _seed = Seed(seed);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut window = AlarmWindow::new(rng.usize(2..12));
    let mut model = Model {
        store: BTreeMap::new(),
        under_way: VecDeque::new(),
        firing: BTreeMap::new(),
        postponed: BTreeMap::new(),
        aside: BTreeMap::new(),
    };
    let identities: Vec<Identity> = (0..rng.usize(4..40))
        .map(|n| {
            let interface = if n % 5 == 0 { "cart" } else { "order" };
            (
                InstanceName { interface: interface.into(), instance: format!("i{}", n % 3).into() },
                format!("a{n}").into(),
            )
        })
        .collect();
    let (mut now, mut counter) = (at(0), 0);
    let mut reading: Option<Reading> = None;
    let flood = if seed.is_multiple_of(4) { 3 } else { 0 };
    let span = *rng.choice(&[5, 40, 400]).expect("not empty");
    for n in 0..rng.u64(0..30) {
        let (name, id) = rng.choice(&identities).expect("not empty").clone();
        let revision = Revision { epoch: Epoch(1), counter: n };
        model
            .store
            .insert((name.clone(), id.clone()), AlarmRow { name, id, revision, ..alarm("", rng.i64(-span..span), 0) });
    }

    for _ in 0..400 {
        let identity = rng.choice(&identities).expect("not empty").clone();
        let due = now + Duration::from_millis(rng.u64(0..span as u64)) - Duration::from_millis(3);
        let complete_before = window.is_complete();
        let spoiled_before = matches!(window.page, Page::Spoiled);
        match rng.u32(0..100) {
            // A new setting; sometimes, as a late repeat, one that the store refuses because memory has a greater one.
            0..25 => {
                counter += 1;
                let mut revision = Revision { epoch: Epoch(2), counter };
                if rng.u32(0..8) == 0
                    && model.under_way.is_empty()
                    && let Some(row) = window.get(&identity.0, &identity.1)
                {
                    revision = Revision { counter: row.revision.counter.saturating_sub(1), ..row.revision };
                }
                let (name, id) = identity;
                model.put(AlarmRow { name, id, due, revision, ..alarm("", 0, 0) });
                for (name, id) in rng.choose_multiple(&identities, flood) {
                    counter += 1;
                    let (name, id, revision) = (name.clone(), id.clone(), Revision { epoch: Epoch(2), counter });
                    model.put(AlarmRow { name, id, due, revision, ..alarm("", 0, 0) });
                }
            }
            // A retry of the same setting.
            25..33 => {
                if let Some(row) = model.store.get(&identity).cloned() {
                    model.put(AlarmRow { due, attempt: row.attempt + 1, ..row });
                }
            }
            // A removal, now and then of a revision that is not the newest.
            33..45 => {
                let revision = model.store.get(&identity).map_or(rev(1), |row| row.revision);
                let back = rng.u64(0..5) / 4;
                model.remove(identity, Revision { counter: revision.counter.saturating_sub(back), ..revision });
            }
            45..65 => {
                if model.under_way.is_empty() {
                    let expected = model.first(&window).filter(|(at, _)| *at <= now);
                    let popped = window.pop_due(now);
                    assert_eq!(
                        popped.as_ref().map(|row| model.store.get(&(row.name.clone(), row.id.clone()))),
                        popped.as_ref().map(Some)
                    );
                    let same_time = popped.as_ref().map(|row| {
                        let identity = (row.name.clone(), row.id.clone());
                        (model.postponed.get(&identity).copied().unwrap_or(row.due), row.key())
                    });
                    assert_eq!(same_time, expected);
                    if let Some(row) = popped {
                        met.pops += 1;
                        let identity = (row.name, row.id);
                        model.postponed.remove(&identity);
                        model.firing.insert(identity, row.revision);
                    }
                }
            }
            // A fire ends and leaves its alarm as it was.
            65..75 => {
                if let Some((identity, revision)) = model.firing.clone().into_iter().nth(rng.usize(0..4)) {
                    let not_before = rng.bool().then_some(due + Duration::from_millis(5));
                    if rng.u32(0..6) == 0 {
                        window.set_aside(&identity.0, &identity.1, revision);
                        model.aside.insert(identity.clone(), revision);
                    } else {
                        window.wait_again(&identity.0, &identity.1, revision, not_before);
                        // Of an alarm removed meanwhile, the commit that did it takes the mark away when delivered.
                        let own = model.store.get(&identity).map(|row| row.due);
                        if let Some(at) = not_before.filter(|at| own.is_none_or(|due| *at > due)) {
                            model.postponed.insert(identity.clone(), at);
                            met.postponed += 1;
                        }
                    }
                    model.firing.remove(&identity);
                }
            }
            75..85 => match &mut reading {
                None if window.wants_page() => {
                    let (after, limit) = window.begin_page();
                    reading = Some(Reading { after, limit, rows: Vec::new() });
                }
                None => {}
                Some(reading) => _ = model.read(reading),
            },
            85..88 => {
                if let Some(mut page) = reading.take() {
                    if rng.u32(0..5) == 0 {
                        window.abandon_page();
                    } else {
                        while model.read(&mut page) {}
                        met.merged += 1;
                        met.ahead += usize::from(!model.under_way.is_empty());
                        if let Page::Loading(notes) = &window.page {
                            met.ceilings += usize::from(notes.has_ceiling());
                        }
                        let end = page.rows.len() < page.limit;
                        window.merge_page(page.rows, end);
                    }
                }
            }
            _ => now = now + Duration::from_millis(rng.u64(0..=span as u64 / 8)),
        }
        if rng.u32(0..10) < 8 {
            while !model.under_way.is_empty() {
                model.deliver(&mut window);
            }
        } else if rng.bool() {
            model.deliver(&mut window);
        }
        met.spoiled += usize::from(!spoiled_before && matches!(window.page, Page::Spoiled));
        met.dropped_tails += usize::from(complete_before && !window.is_complete());
        if model.under_way.is_empty() {
            model.check(&window);
        }
    }

    // In the end everything that lives fires, in order, and nothing twice.
    while !model.under_way.is_empty() {
        model.deliver(&mut window);
    }
    if reading.is_some() {
        window.abandon_page();
    }
    for (identity, revision) in mem::take(&mut model.firing) {
        window.wait_again(&identity.0, &identity.1, revision, None);
    }
    loop {
        model.check(&window);
        if let Some(row) = window.pop_due(Timestamp::MAX) {
            assert_eq!(Some(row.key()), model.first(&window).map(|(_, key)| key));
            model.remove((row.name, row.id), row.revision);
            model.deliver(&mut window);
        } else if window.is_complete() {
            break;
        } else {
            assert!(window.wants_page());
            let (after, limit) = window.begin_page();
            let mut page = Reading { after, limit, rows: Vec::new() };
            while model.read(&mut page) {}
            let end = page.rows.len() < page.limit;
            window.merge_page(page.rows, end);
        }
    }
    assert_eq!(window.len(), 0);
    assert!(model.store.keys().eq(model.aside.keys()), "only what was set aside is left");
}

#[test]
fn a_window_does_what_a_model_of_the_whole_store_does() {
    let mut met = Met::default();
    for seed in 0..200 {
        run_schedule(seed, &mut met);
    }
    let Met { pops, merged, spoiled, ceilings, dropped_tails, postponed, ahead } = met;
    for (what, times) in [
        ("pops", pops),
        ("pages merged", merged),
        ("pages spoiled", spoiled),
        ("ceilings", ceilings),
        ("tails dropped", dropped_tails),
        ("alarms postponed", postponed),
        ("pages ahead of commits", ahead),
    ] {
        assert!(times >= 20, "{what}: only {times}");
    }
}
