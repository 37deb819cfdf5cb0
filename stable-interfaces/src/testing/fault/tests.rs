use super::*;
use crate::clock::Timestamp;
use crate::store::{Batch, ClaimKind, Epoch, Hint, InstanceName, Lane, MemoryStore, Op, Presence, Renewal};
use crate::testing::SimClock;

const SECOND: Duration = Duration::from_secs(1);

/// A fault store over a map in memory whose shard 0 is owned; both follow the paused clock.
async fn owned() -> (FaultStore, MemoryStore, SimClock) {
    let clock = SimClock::new(Timestamp::UNIX_EPOCH);
    let memory = MemoryStore::with_clock(Arc::new(clock.clone()));
    let claim = Claim {
        incarnation: Incarnation(1),
        host: "host-a".into(),
        shards: vec![ShardId(0)],
        given_up: Vec::new(),
        shard_count: 16,
        hash_version: 1,
        lease: Duration::from_secs(3_600),
        kind: ClaimKind::Start,
        presence: Presence::default(),
    };
    memory.claim(&claim).await.unwrap();
    (FaultStore::seeded(Arc::new(memory.clone()), Arc::new(clock.clone()), 1), memory, clock)
}

fn instance() -> InstanceName {
    InstanceName { interface: "order".into(), instance: "i".into() }
}

fn put(seq: u64, value: &'static str) -> Write {
    let op = Op::Put { name: instance(), key: "k".into(), value: value.into() };
    let batch = Batch { shard: ShardId(0), epoch: Epoch(1), ops: [op].into() };
    Write { incarnation: Incarnation(1), lane: Lane(0), seq, batches: vec![batch] }
}

fn stored(memory: &MemoryStore) -> Option<String> {
    memory.dump().value(&instance(), "k").map(|value| String::from_utf8_lossy(value).into_owned())
}

#[tokio::test(start_paused = true)]
async fn failing_before_leaves_the_store_untouched_and_says_so() {
    let (store, memory, _) = owned().await;
    store.fail_next(Method::Commit, Fault::FailBefore);
    assert!(matches!(store.commit(&put(1, "a")).await, Err(StoreError::NotApplied(_))));
    assert_eq!(stored(&memory), None);
    assert!(store.commit(&put(1, "a")).await.is_ok());
    assert_eq!(stored(&memory).as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn failing_after_has_written_and_does_not_know() {
    let (store, memory, _) = owned().await;
    store.fail_next(Method::Commit, Fault::FailAfter);
    assert!(matches!(store.commit(&put(1, "a")).await, Err(StoreError::Unavailable(_))));
    assert_eq!(stored(&memory).as_deref(), Some("a"));
    assert!(store.commit(&put(1, "a")).await.unwrap()[0].is_ok(), "the repeat is recognised");
}

#[tokio::test(start_paused = true)]
async fn a_delayed_call_reaches_the_store_after_its_time() {
    let (store, memory, clock) = owned().await;
    store.fail_next(Method::Commit, Fault::Delay(SECOND));
    let write = put(1, "a");
    let mut call = store.commit(&write);
    tokio::select! { biased;
        _ = &mut call => panic!("answered before its time"),
        () = clock.sleep(SECOND / 2) => assert_eq!(stored(&memory), None),
    }
    assert!(call.await.is_ok());
    assert_eq!(clock.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_waits_for_its_release_and_a_dropped_one_never_happens() {
    let (store, memory, clock) = owned().await;
    store.fail_next(Method::Commit, Fault::Hang);
    let write = put(1, "dropped");
    tokio::select! { biased;
        _ = store.commit(&write) => panic!("answered while hanging"),
        () = clock.sleep(SECOND * 3_600) => {}
    }
    store.fail_next(Method::Commit, Fault::Hang);
    let (released, other) = (store.clone(), store.clone());
    let hanging = tokio::spawn(async move { other.commit(&put(1, "released")).await });
    store.until_begun(1).await;
    assert_eq!(stored(&memory), None);
    released.release_hanging();
    assert!(hanging.await.unwrap().is_ok());
    assert_eq!(stored(&memory).as_deref(), Some("released"));
    let answers: Vec<Answer> = store.log().iter().map(|call| call.answer).collect();
    assert_eq!(answers, [Answer::Dropped, Answer::Done]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_after_has_written_already() {
    let (store, memory, clock) = owned().await;
    store.fail_next(Method::Commit, Fault::HangAfter);
    let write = put(1, "a");
    let mut call = store.commit(&write);
    tokio::select! { biased;
        _ = &mut call => panic!("answered while hanging"),
        () = clock.sleep(SECOND) => {}
    }
    assert_eq!(stored(&memory).as_deref(), Some("a"));
    store.release_hanging();
    assert!(call.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_late_call_is_answered_now_and_happens_later() {
    let (store, memory, clock) = owned().await;
    store.fail_next(Method::Commit, Fault::Late(SECOND));
    assert!(matches!(store.commit(&put(1, "a")).await, Err(StoreError::Unavailable(_))));
    assert_eq!(stored(&memory), None);
    clock.sleep(SECOND * 2).await;
    assert_eq!(stored(&memory).as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_timed_out_may_still_happen() {
    let (store, memory, clock) = owned().await;
    store.fail_next(Method::Commit, Fault::HangLate(SECOND * 3));
    let write = put(1, "ghost");
    let answer = crate::clock::within(&clock, SECOND, store.commit(&write)).await;
    assert!(answer.is_none(), "the caller waited in vain, not {answer:?}");
    assert_eq!(stored(&memory), None);
    clock.sleep(SECOND * 3).await;
    assert_eq!(stored(&memory).as_deref(), Some("ghost"));
}

#[tokio::test(start_paused = true)]
async fn a_late_call_that_waits_to_be_told_arrives_in_order() {
    let (store, memory, clock) = owned().await;
    for (seq, value) in [(1, "a"), (2, "b")] {
        store.fail_next(Method::Commit, Fault::LateUntilTold);
        assert!(store.commit(&put(seq, value)).await.is_err());
    }
    clock.sleep(SECOND * 3_600).await;
    assert_eq!(stored(&memory), None);
    assert_eq!(store.deliver_late().await, 2);
    assert_eq!(stored(&memory).as_deref(), Some("b"));
    assert_eq!(store.deliver_late().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_late_call_after_a_newer_one_is_the_stores_to_refuse() {
    let (store, memory, _) = owned().await;
    store.fail_next(Method::Commit, Fault::LateUntilTold);
    assert!(store.commit(&put(1, "late")).await.is_err());
    assert!(store.commit(&put(2, "newer")).await.is_ok());
    store.deliver_late().await;
    assert_eq!(stored(&memory).as_deref(), Some("newer"));
}

#[tokio::test(start_paused = true)]
async fn faults_hit_the_call_they_were_set_for() {
    let (store, _, _) = owned().await;
    store.fail_at(1, Fault::FailAfter);
    store.fail_next(Method::Load, Fault::FailBefore);
    assert!(store.release(Incarnation(1), &[]).await.is_ok());
    assert!(matches!(store.load(&[]).await, Err(StoreError::Unavailable(_))), "the number goes before the method");
    assert!(matches!(store.load(&[]).await, Err(StoreError::NotApplied(_))));
    assert!(store.load(&[]).await.is_ok());
    assert_eq!((store.begun(), store.calls(Method::Load), store.calls(Method::Release)), (4, 3, 1));
    assert_eq!(store.injected(Method::Load, Fault::FailAfter), 1);
    assert_eq!(store.injected(Method::Load, Fault::FailBefore), 1);
    assert_eq!(store.injected(Method::Release, Fault::FailBefore), 0);
}

#[tokio::test(start_paused = true)]
async fn from_a_call_on_everything_hangs() {
    let (store, memory, clock) = owned().await;
    store.hang_from(1);
    assert!(store.commit(&put(1, "a")).await.is_ok());
    let write = put(2, "b");
    for _ in 0..3 {
        assert!(crate::clock::within(&clock, SECOND, store.commit(&write)).await.is_none());
    }
    assert_eq!(stored(&memory).as_deref(), Some("a"));
    store.release_hanging();
    assert!(store.commit(&write).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_refuses_everything_until_it_is_up() {
    let (store, _, _) = owned().await;
    let mut hints = store.watch(Incarnation(1)).await.unwrap();
    store.set_down(true);
    assert_eq!(hints.next().await, None, "a connection does not outlive the server");
    assert!(matches!(store.renew(&Renewal::new(Incarnation(1), SECOND)).await, Err(StoreError::NotApplied(_))));
    assert!(matches!(store.commit(&put(1, "a")).await, Err(StoreError::NotApplied(_))));
    store.set_down(false);
    assert!(store.renew(&Renewal::new(Incarnation(1), SECOND)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn hints_get_through_unless_they_are_lost() {
    let (store, _, clock) = owned().await;
    let mut hints = store.watch(Incarnation(1)).await.unwrap();
    let message = |id: &str| NewMessage {
        shard: ShardId(3),
        name: instance(),
        id: id.into(),
        headers: vec![],
        body: bytes::Bytes::new(),
    };
    store.post(&[message("a")]).await.unwrap();
    assert_eq!(hints.next().await, Some(Hint::Inbox(ShardId(3))));
    store.lose_hints(true);
    store.post(&[message("b")]).await.unwrap();
    assert_eq!(crate::clock::within(&clock, SECOND, hints.next()).await, None);
    store.heal();
    store.post(&[message("c")]).await.unwrap();
    assert_eq!(hints.next().await, Some(Hint::Inbox(ShardId(3))));
}

#[tokio::test(start_paused = true)]
async fn chance_repeats_with_its_seed() {
    let run = async |seed| {
        let clock = Arc::new(SimClock::new(Timestamp::UNIX_EPOCH));
        let store = FaultStore::seeded(Arc::new(MemoryStore::new()), clock.clone(), seed);
        store.set_chance(Method::Load, Fault::FailBefore, 0.25);
        store.set_chance(Method::Load, Fault::DelayUpTo(SECOND), 0.25);
        for _ in 0..400 {
            let _either = store.load(&[]).await;
        }
        (store.log(), clock.elapsed())
    };
    let (log, elapsed) = run(7).await;
    assert_eq!((&log, elapsed), (&run(7).await.0, run(7).await.1));
    assert_ne!(log, run(8).await.0);
    let failed = log.iter().filter(|call| call.answer == Answer::Failed).count();
    assert!((60..140).contains(&failed), "a quarter of 400, more or less, not {failed}");
    assert!(elapsed > SECOND * 20 && elapsed < SECOND * 80, "a quarter of 400 waits of half a second, not {elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn the_log_tells_what_was_called_with_how_much() {
    let (store, _, _) = owned().await;
    store.fail_next(Method::Commit, Fault::FailBefore);
    let _refused = store.commit(&put(1, "a")).await;
    store.commit(&put(1, "a")).await.unwrap();
    let call = |index, fault, is_done, answer| Call { index, method: Method::Commit, size: 1, fault, is_done, answer };
    let (refused, done) = (call(0, Some(Fault::FailBefore), false, Answer::Failed), call(1, None, true, Answer::Done));
    assert_eq!(store.log(), [refused, done]);
}

#[tokio::test(start_paused = true)]
async fn late_calls_end_with_the_last_handle() {
    let (store, memory, clock) = owned().await;
    store.fail_next(Method::Commit, Fault::Late(SECOND));
    assert!(store.commit(&put(1, "a")).await.is_err());
    drop(store);
    clock.sleep(SECOND * 2).await;
    assert_eq!(stored(&memory), None, "nothing is left running");
}

#[tokio::test(start_paused = true)]
async fn the_log_tells_what_was_done_without_an_answer() {
    let (store, memory, clock) = owned().await;
    store.fail_next(Method::Commit, Fault::SlowAnswer(SECOND));
    store.fail_next(Method::Commit, Fault::Late(SECOND));
    {
        let write = put(1, "a");
        let mut slow = std::pin::pin!(store.commit(&write));
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(slow.as_mut().poll(cx).is_pending())).await);
        assert_eq!(store.under_way().len(), 1);
        assert_eq!(stored(&memory).as_deref(), Some("a"), "it is done at once");
    }
    assert!(store.under_way().is_empty());
    assert!(store.commit(&put(2, "b")).await.is_err());
    let done = |store: &FaultStore| store.log().iter().map(|call| (call.is_done, call.answer)).collect::<Vec<_>>();
    assert_eq!(done(&store), [(true, Answer::Dropped), (false, Answer::Failed)]);
    clock.sleep(SECOND * 2).await;
    assert_eq!(done(&store), [(true, Answer::Dropped), (true, Answer::Failed)]);
}
