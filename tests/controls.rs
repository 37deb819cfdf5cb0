//! Negative controls: stores that are broken on purpose. A check that never fails proves nothing, so each of these has to be
//! found out by the same simulation and the same checker that find nothing wrong with the library.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::testing::{Faults, Invariant, Simulation};
use system_tests::broken::{Broken, How};
use system_tests::exercise::Exercise;

/// Those that are counted, with what each does and by which promises it may be found out.
const CONTROLS: [(How, &str, &[Invariant]); 8] = [
    (
        How::AcknowledgesEarly,
        "a store that acknowledges before it writes, and forgets that in a crash",
        &[Invariant::Kept, Invariant::Once, Invariant::Read],
    ),
    (
        How::Reorders,
        "a store that applies writes in another order",
        &[Invariant::Kept, Invariant::Once, Invariant::Read],
    ),
    (
        How::AppliesPartly,
        "a store that applies a part of a batch",
        &[Invariant::Kept, Invariant::Once, Invariant::Read],
    ),
    (How::IgnoresTheEpoch, "a store that lets former owners write", &[Invariant::OneWriter]),
    (
        How::IgnoresTheSequence,
        "a store that applies repeated and late writes again",
        &[Invariant::Kept, Invariant::Once, Invariant::NotAfterCancel, Invariant::Read],
    ),
    (How::ForgetsRemovals, "a store that forgets to remove", &[Invariant::Once, Invariant::NotAfterCancel]),
    (How::ReturnsPagesWithAHole, "a store whose pages have a hole", &[Invariant::Handled, Invariant::InOrder]),
    (How::LosesPosts, "a store that loses posts", &[Invariant::Kept]),
];

/// Those of which one may ask why they are not there.
const MORE: [(How, &str, &[Invariant]); 2] = [
    (How::ShowsAlarmsEarly, "a store that shows alarms as due before their time", &[Invariant::NotEarly]),
    (How::ForgetsValues, "a store that forgets what it is to overwrite", &[Invariant::Once, Invariant::Kept]),
];

/// The first seed with which the store is found out, and by which promise.
fn catch(how: How, by: &[Invariant]) -> Option<(u64, String)> {
    (1..=12).find_map(|seed| {
        let simulation = Simulation::new(seed).length(Duration::from_secs(240)).faults(Faults::ALL);
        let run = simulation.behind(move |store| Arc::new(Broken::new(store, how))).run(Exercise::default());
        let found = run.violations.iter().find(|violation| by.contains(&violation.invariant))?;
        Some((seed, found.to_string()))
    })
}

fn catch_all(controls: &'static [(How, &'static str, &'static [Invariant])]) -> usize {
    // Side by side: they have nothing to do with each other.
    let caught: Vec<_> = std::thread::scope(|scope| {
        let half = controls.len().div_ceil(2);
        let runs = controls.chunks(half).map(|some| {
            scope.spawn(move || some.iter().map(|(how, what, by)| (*what, catch(*how, by))).collect::<Vec<_>>())
        });
        let runs: Vec<_> = runs.collect();
        runs.into_iter().flat_map(|run| run.join().unwrap()).collect()
    });
    for (what, found) in &caught {
        match found {
            Some((seed, found)) => println!("caught {what}: seed {seed}, {found}"),
            None => println!("NOT caught: {what}"),
        }
    }
    caught.iter().filter(|(_, found)| found.is_some()).count()
}

#[test]
fn every_broken_store_is_found_out() {
    let caught = catch_all(&CONTROLS);
    println!("{caught} of {} caught", CONTROLS.len());
    assert_eq!(caught, CONTROLS.len());
}

#[test]
fn stores_broken_in_rarer_ways_are_found_out_too() {
    assert_eq!(catch_all(&MORE), MORE.len());
}

#[test]
fn nothing_is_found_out_about_a_store_that_is_not_broken() {
    for seed in 1..=3 {
        let simulation = Simulation::new(seed).length(Duration::from_secs(240)).faults(Faults::ALL);
        let run = simulation.behind(|store| store).run(Exercise::default());
        assert!(run.violations.is_empty(), "seed {seed}: {:#?}", run.violations);
    }
}
