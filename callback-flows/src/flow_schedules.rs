//! Random programs under random schedules, with a crash wherever there can be one.
//!
//! A program is made of everything that flows are made of: steps (tried again, run once at most), timers, callbacks, `join!`,
//! `select!`, `FuturesUnordered`, `buffer_unordered`, branches that talk by a channel, code that wakes itself, children, undo; and some
//! go on as another run, once or twice, with a callback that is open all along. In half of them next to nothing fits into one commit. It is run as a host would: some events, a turn, a commit; and between any two of these it may be dropped and replayed from what was
//! committed. Each replay must show what the first run has shown, step by step, and wait for the same; no message may be lost, none
//! may come twice, those that a run has not taken are there for the next one, no step whose result is kept may run again, no child may be left out, or go on when its parent is cancelled, and
//! each event that the code emits is stored once.
//!
//! `tests/run flow_schedules`: `SCHEDULES=n` runs so many, `SEED=n` begins with that one. (`select!` itself begins at random, so
//! a seed repeats all but that.)

mod hand;
mod program;
mod run;

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use parking_lot::Mutex;

use self::run::{Counts, Run};
use crate::engine::Sabotage;

/// Runs `work` in a task of tokio's that has used up its budget.
fn without_budget<T: Send>(work: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut work = Some(work);
    runtime.block_on(poll_fn(move |task: &mut Context<'_>| {
        loop {
            if pin!(tokio::task::consume_budget()).poll(task).is_pending() {
                break;
            }
        }
        Poll::Ready(work.take().expect("it is ready at its first poll")())
    }))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is to be a number")))
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the rate is that of the real clock")]
fn every_replay_shows_what_the_first_run_has_shown_and_no_event_is_lost_or_comes_twice() {
    let (first, schedules) = (number("SEED", 0), number("SCHEDULES", 5_000));
    let (counts, began) = (Mutex::new(Counts::default()), std::time::Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let counts = &counts;
            scope.spawn(move || {
                for seed in (first..first + schedules).filter(|seed| seed % threads == thread) {
                    // Half of them where tokio would cut them short if it could.
                    let run = || Run::new(seed, None).go();
                    let result = if seed % 2 == 0 { run() } else { without_budget(run) };
                    let one = result.unwrap_or_else(|wrong| panic!("SEED={seed} SCHEDULES=1: {wrong}"));
                    let mut counts = counts.lock();
                    counts.entries += one.entries;
                    counts.crashes += one.crashes;
                    counts.messages += one.messages;
                    counts.runs += one.runs;
                    counts.parts += one.parts;
                }
            });
        }
    });
    let (Counts { entries, crashes, messages, runs, parts }, seconds) = (*counts.lock(), began.elapsed().as_secs_f64());
    println!(
        "{schedules} schedules exact, {:.0} a second: {entries} entries, {messages} messages, {crashes} crashes, {runs} runs that went on, {parts} parts of commits",
        f64::from(u32::try_from(schedules).unwrap()) / seconds
    );
}

#[test]
fn each_fault_put_into_the_engine_is_found() {
    let faults = [
        (Sabotage::TwoReleasesPerPoll, false),
        (Sabotage::AllDeliveredAtOnce, false),
        (Sabotage::NotUnconstrained, true),
        (Sabotage::ForgetsWhoWaitsOnSelfWake, false),
        (Sabotage::ConsumesAtDelivery, false),
        (Sabotage::EmitsInReplays, false),
        (Sabotage::EmitsBeforeAllIsTakenIn, false),
        (Sabotage::ForgetsWhatComesAsARunEnds, false),
        (Sabotage::GoesOnWithoutWhatWaits, false),
        (Sabotage::OpensStepsBeforeAllIsWritten, false),
        (Sabotage::TakesAPartForTheWhole, false),
    ];
    for (fault, is_without_budget) in faults {
        let found = (0..3_000).find_map(|seed| {
            let run = || std::panic::catch_unwind(|| Run::new(seed, Some(fault)).go());
            let result = if is_without_budget { without_budget(run) } else { run() };
            match result {
                Ok(Ok(_)) => None,
                Ok(Err(wrong)) => Some((seed, wrong)),
                Err(_) => Some((seed, "a panic".into())),
            }
        });
        let (seed, wrong) = found.unwrap_or_else(|| panic!("{fault:?} was not found"));
        println!("{fault:?}: found by schedule {seed}: {}", wrong.lines().next().unwrap_or_default());
    }
}
