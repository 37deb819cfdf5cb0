//! The gate alone: who settles tickets, who gives up waiting for answers, and who waits.

use shuttle::future::{self, block_on};

use super::{Log, below, explore, pause};
use crate::commit::gate::{Failure, Gate, Ticket};
use crate::store::StoreError;
use crate::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A ticket is about to be settled; whether as durable.
    Settling(u64, bool),
    /// Callers up to a ticket are about to be told that nothing is known.
    GivingUp(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Durable,
    Failed,
    Unknown,
}

const TICKETS: u64 = 4;

fn failure() -> Failure {
    Failure::Store(Arc::new(StoreError::NotApplied("refused".into())))
}

/// The answers that an output behind ticket `n` may hear, by what was settled before it heard.
fn check(log: &[Event], n: u64, heard: Heard) {
    let is_settled = |m: u64| log.iter().any(|event| matches!(event, Event::Settling(of, _) if *of == m));
    let has_failed = log.iter().any(|event| matches!(event, Event::Settling(m, false) if *m <= n));
    match heard {
        Heard::Durable => {
            assert!((1..=n).all(is_settled), "the output behind {n} was released too early: {log:?}");
            assert!(!has_failed, "the output behind {n} was released behind a failure: {log:?}");
        }
        Heard::Failed => assert!(has_failed, "nothing up to {n} has failed: {log:?}"),
        Heard::Unknown => {
            let has_given_up = log.iter().any(|event| matches!(event, Event::GivingUp(m) if *m >= n));
            assert!(has_given_up, "nobody gave up {n}: {log:?}");
        }
    }
}

/// As the lane does: in order, except that failures may come ahead of what is still under way.
async fn settle(tickets: Vec<Ticket>, log: Log<Event>, gives_up: bool) {
    // What is behind a failure fails as well, as the committer sees to.
    let fails_from = u64::from(below(2 * u32::try_from(TICKETS).unwrap_or(0))) + 1;
    let is_withdrawn = below(2) == 0;
    let all: Vec<_> = (1..).zip(&tickets).collect();
    let (sent, withdrawn): (Vec<_>, Vec<_>) = all.into_iter().partition(|(n, _)| !is_withdrawn || *n < fails_from);
    for (n, ticket) in withdrawn {
        log.note(Event::Settling(n, false));
        ticket.settle(Err(failure()));
        pause().await;
    }
    for (n, ticket) in sent {
        if gives_up && below(3) == 0 {
            log.note(Event::GivingUp(n));
            ticket.leave_unanswered();
            pause().await;
        }
        log.note(Event::Settling(n, n < fails_from));
        ticket.settle(if n < fails_from { Ok(()) } else { Err(failure()) });
        pause().await;
    }
}

fn outputs_wait(gives_up: bool) {
    block_on(async move {
        let (gate, log) = (Arc::new(Gate::default()), Log::new());
        let tickets: Vec<_> = (0..TICKETS).map(|_| gate.take_ticket()).collect();
        let settling = future::spawn(settle(tickets.clone(), log.clone(), gives_up));
        let waiting: Vec<_> = (1..)
            .zip(tickets)
            .map(|(n, ticket)| {
                let log = log.clone();
                future::spawn(async move {
                    pause().await;
                    let heard = match ticket.wait().await {
                        Ok(()) => Heard::Durable,
                        Err(Failure::Unknown) => Heard::Unknown,
                        Err(_) => Heard::Failed,
                    };
                    check(&log.all(), n, heard);
                })
            })
            .collect();
        // As one who ends the incarnation.
        gate.wait_settled().await;
        let settled = log.all().iter().filter(|event| matches!(event, Event::Settling(..))).count();
        assert_eq!(u64::try_from(settled), Ok(TICKETS), "not all is settled");
        for task in waiting {
            task.await.expect("it is not cancelled");
        }
        settling.await.expect("it is not cancelled");
        assert!(gate.is_settled());
        let fails = log.all().iter().any(|event| matches!(event, Event::Settling(_, false)));
        assert_eq!(gate.has_failed(), fails);
    });
}

#[test]
fn an_output_is_released_only_behind_all_earlier_commits_and_fails_behind_a_failed_one() {
    explore(|| outputs_wait(false));
}

#[test]
fn who_is_told_that_nothing_is_known_is_told_so_early_and_the_gate_stays_shut() {
    explore(|| outputs_wait(true));
}
