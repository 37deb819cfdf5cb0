//! Instances on a store that fails: an incarnation ends, and the next begins.

use std::time::Duration;

use shuttle::future::block_on;

use super::instances::{Add, Event, Options, Scene};
use super::{Fate, WriteEvent, below, explore, puts};
use crate::error::RequestError;

/// The life and the count that a write stores, if it stores any.
fn counted(event: &WriteEvent) -> Option<(u32, u32)> {
    let (WriteEvent::Sent(write) | WriteEvent::Answered { write, .. }) = event;
    puts(write).map(|(.., value)| serde_json::from_slice(value).expect("a life and a count")).last()
}

/// Checks that when a life begins nothing of the ones before is under way, and nothing of them is sent any more.
fn check_settled(log: &[Event], writes: &[WriteEvent]) {
    for event in log {
        let Event::Built { life, writes: until, .. } = event else { continue };
        let (before, after) = writes.split_at(*until);
        let (mut is_open, mut is_ambiguous) = (false, false);
        for event in before {
            match event {
                WriteEvent::Sent(_) => is_open = true,
                WriteEvent::Answered { fate: Fate::Done, .. } => (is_open, is_ambiguous) = (false, false),
                WriteEvent::Answered { fate: Fate::Unanswered | Fate::Lost, .. } => is_ambiguous = true,
                WriteEvent::Answered { fate: Fate::NotApplied, .. } => is_open = is_ambiguous,
            }
        }
        assert!(!is_open, "life {life} began while a write was under way: {log:#?}");
        let is_earlier = |event: &&WriteEvent| {
            matches!(event, WriteEvent::Sent(_)) && counted(event).is_some_and(|(of, _)| of < *life)
        };
        assert!(!after.iter().any(|event| is_earlier(&event)), "a write of an earlier life than {life}: {log:#?}");
    }
}

fn instances_count_on_a_failing_store(commit_timeout: Duration) {
    block_on(async move {
        let scene = Scene::new(Options { faults: 1 + below(3), commit_timeout, ..Options::default() }).await;
        let first: Vec<_> = (0..3)
            .map(|request| scene.ask("a", Add { request, waits: below(2), durable: true, ..Add::default() }, None))
            .collect();
        let (mut acknowledged, mut unknown) = (Vec::new(), 0);
        let mut asked = first;
        for request in 3..6 {
            let reply = asked.remove(0).await.expect("it is not cancelled").expect("it is waited for");
            match reply {
                Ok(count) => acknowledged.push(count),
                Err(RequestError::Unknown(_)) => unknown += 1,
                Err(RequestError::Store(_)) => {}
                Err(error) => panic!("{error}"),
            }
            asked.push(scene.ask("a", Add { request, waits: below(2), durable: true, ..Add::default() }, None));
        }
        for reply in asked {
            match reply.await.expect("it is not cancelled").expect("it is waited for") {
                Ok(count) => acknowledged.push(count),
                Err(RequestError::Unknown(_)) => unknown += 1,
                Err(RequestError::Store(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let (log, store) = scene.end().await;
        let writes = store.writes.all();
        check_settled(&log, &writes);
        let is_done =
            |event: &&WriteEvent| matches!(event, WriteEvent::Answered { fate: Fate::Done | Fate::Unanswered, .. });
        let stored = writes.iter().filter(is_done).filter_map(counted).map(|(_, count)| count).max().unwrap_or(0);
        let count = u32::try_from(acknowledged.len()).expect("a count");
        acknowledged.sort_unstable();
        acknowledged.dedup();
        assert_eq!(u32::try_from(acknowledged.len()), Ok(count), "two requests were told the same count");
        assert!(
            (count..=count + unknown).contains(&stored),
            "{count} acknowledged and {unknown} unknown, but {stored} stored: {log:#?}"
        );
    });
}

#[test]
fn nothing_of_the_next_incarnation_begins_before_the_last_one_is_settled() {
    explore(|| instances_count_on_a_failing_store(Duration::from_millis(1)));
}

#[test]
fn while_a_write_is_repeated_until_it_is_done_nobody_notices() {
    explore(|| instances_count_on_a_failing_store(Duration::from_secs(3_600)));
}
