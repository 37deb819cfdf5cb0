//! Shards without a store: what is counted and listed comes down again on every way, and which alarms are marked.

use bytes::Bytes;

use super::*;
use crate::store::{Attempts, InstanceName};
use crate::testing::SimClock;

const SHARD: ShardId = ShardId(0);
const EPOCH: Epoch = Epoch(1);

/// A host that owns one shard.
fn owned(clock: &SimClock, clean: bool) -> Arc<Shards> {
    let limits = Limits { max_firing: 4, max_fires_per_second: 9, max_crashes: 1, window_bytes: 100_000 };
    let shards = Arc::new(Shards::new(1, limits, Arc::new(clock.clone())));
    shards.own(SHARD, EPOCH, clean, 8, 50_000);
    shards
}

/// Loads these alarms, and an empty inbox.
fn load(shards: &Shards, alarms: Vec<AlarmRow>, is_last: bool) {
    for page in shards.begin_pages(1) {
        match page.after {
            BegunAfter::Inbox(_) => shards.merge_inbox(&page, Vec::new(), true),
            BegunAfter::Alarms(_) => shards.merge_alarms(&page, alarms.clone(), is_last),
        }
    }
}

/// An alarm of 1,000 bytes.
fn alarm(due: Timestamp) -> AlarmRow {
    AlarmRow {
        name: InstanceName { interface: "order".into(), instance: "a".into() },
        id: "x".into(),
        due,
        scheduled_at: due,
        revision: Revision { epoch: EPOCH, counter: 1 },
        attempts: Attempts::default(),
        meta: Bytes::from(vec![b'0'; 1_000]),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_handled_is_counted_until_it_has_ended_whichever_way_it_ends() {
    let ends: [fn(Delivery); 6] = [
        drop,
        Delivery::ack,
        Delivery::set_aside,
        |delivery| delivery.nack(Duration::from_secs(5)),
        |delivery| drop(delivery.hold()),
        |mut delivery| assert!(delivery.lead_or_turn_back()),
    ];
    for end in ends {
        let clock = SimClock::new(Timestamp::from_millis(1_000));
        let shards = owned(&clock, true);
        load(&shards, vec![alarm(clock.now())], true);
        let counted = |shards: &Shards| shards.firing.counted();
        let delivery = shards.pop_due(Moment::of(&clock)).expect("it is due");
        assert!(matches!(counted(&shards), (1, 1_000..)), "{:?}", counted(&shards));
        end(delivery);
        assert_eq!(counted(&shards), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_given_up_is_waited_for_no_more() {
    let clock = SimClock::new(Timestamp::from_millis(1_000));
    for is_loaded in [false, true] {
        let shards = owned(&clock, true);
        if is_loaded {
            load(&shards, vec![alarm(clock.now())], true);
        }
        clock.sleep(Duration::from_secs(10)).await;
        assert_eq!(shards.overdue(), Duration::from_secs(10), "loaded: {is_loaded}");
        assert!(shards.lose(SHARD, EPOCH));
        assert_eq!(shards.overdue(), Duration::ZERO, "loaded: {is_loaded}");
        assert_eq!((shards.next_deadline(), shards.next_wait()), (None, None));
        assert!(shards.pop_due(Moment::of(&clock)).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_later_does_not_end_the_marking_of_what_was_overdue() {
    let clock = SimClock::new(Timestamp::from_millis(1_000));
    let shards = owned(&clock, false);
    let of = |instance: &str, due| {
        let name = InstanceName { interface: "order".into(), instance: instance.into() };
        AlarmRow { name, ..alarm(Timestamp::from_millis(due)) }
    };
    let is_marked_when_handled = || {
        let delivery = shards.pop_due(Moment::of(&clock)).expect("it is due");
        let (is_marked, done) = (delivery.must_mark, delivery.wake().done());
        delivery.ack();
        shards.apply(SHARD, EPOCH, &[done]);
        is_marked
    };
    // Of the two that are overdue, the second is in the store yet when the message comes.
    load(&shards, vec![of("first", 1)], false);
    assert!(is_marked_when_handled());
    clock.sleep(Duration::from_secs(1)).await;
    shards.hint(SHARD);
    let now = clock.now();
    let message = InboxRow {
        name: of("message", 1).name,
        id: "m".into(),
        arrived: now,
        due: now,
        attempts: Attempts::default(),
        headers: Vec::new(),
        body: Bytes::new(),
    };
    let mut pages = shards.begin_pages(1);
    let alarms = pages.pop().expect("the rest of the alarms");
    let inbox = pages.pop().expect("the inbox");
    shards.merge_inbox(&inbox, vec![message], true);
    assert!(!is_marked_when_handled(), "it is none of what was overdue");
    shards.merge_alarms(&alarms, vec![of("second", 2), of("later", 5_000)], true);
    assert!(is_marked_when_handled());
    clock.sleep(Duration::from_secs(5)).await;
    assert!(!is_marked_when_handled(), "what comes later ends it");
}

#[tokio::test(start_paused = true)]
async fn of_a_backlog_several_of_a_shard_are_handed_out_at_once_and_else_one() {
    let clock = SimClock::new(Timestamp::from_millis(10_000));
    let of = |due: u64| {
        let name = InstanceName { interface: "order".into(), instance: due.to_string().into() };
        AlarmRow { name, ..alarm(Timestamp::from_millis(due.cast_signed())) }
    };
    let shards = owned(&clock, true);
    load(&shards, [1, 2, 3, 4, 5, 6, 9_000, 9_500].map(of).into(), true);
    let popped = |most| {
        let run = shards.pop_run(Moment::of(&clock), most);
        let dues: Vec<_> = run.iter().map(|delivery| delivery.wake().due().as_millis()).collect();
        (dues, run)
    };
    let (dues, first) = popped(3);
    assert_eq!((dues, shards.firing.counted().0), (vec![1, 2, 3], 3));
    let (dues, second) = popped(3);
    assert_eq!(dues, [4], "no more than may be handled at once");
    assert_eq!(popped(3).0, [] as [i64; 0]);
    for delivery in first.into_iter().chain(second) {
        let done = delivery.wake().done();
        delivery.ack();
        shards.apply(SHARD, EPOCH, &[done]);
    }
    let (dues, _rest) = popped(3);
    assert_eq!(dues, [5, 6], "what has only just become due is no backlog");
    let (dues, _third) = popped(3);
    assert_eq!(dues, [9_000]);
    assert_eq!(popped(3).0, [9_500]);
}

#[tokio::test(start_paused = true)]
async fn what_was_running_when_a_process_died_is_handed_out_with_nothing_beside_it() {
    let clock = SimClock::new(Timestamp::from_millis(10_000));
    let shards = owned(&clock, false);
    let of = |due: u64, started| {
        let name = InstanceName { interface: "order".into(), instance: due.to_string().into() };
        let attempts = Attempts { started, ..Attempts::default() };
        AlarmRow { name, attempts, ..alarm(Timestamp::from_millis(due.cast_signed())) }
    };
    load(&shards, vec![of(1, false), of(2, true), of(3, true), of(4, false), of(5, false)], true);
    for expected in [&[1][..], &[2], &[3], &[4, 5]] {
        let run = shards.pop_run(Moment::of(&clock), 4);
        assert_eq!(run.iter().map(|delivery| delivery.wake().due().as_millis()).collect::<Vec<_>>(), expected);
        assert!(run.iter().all(|delivery| delivery.must_mark));
        assert!(shards.pop_run(Moment::of(&clock), 4).is_empty(), "until it has ended");
        for delivery in run {
            let done = delivery.wake().done();
            delivery.ack();
            shards.apply(SHARD, EPOCH, &[done]);
        }
    }
    assert_eq!(shards.firing.counted(), (0, 0));
}
