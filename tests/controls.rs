//! Negative controls: stores, transports and applications that are broken on purpose. A check that never fails proves nothing, so each of these
//! has to be found out by the same simulation and the same checker that find nothing wrong with the library.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::testing::{Faults, Invariant, Simulation};
use system_tests::broken::{Broken, BrokenTransport, How, HowSent};
use system_tests::exercise::{Exercise, Flaw};
use system_tests::flow_exercise::{FlowExercise, FlowFlaw};

/// Something broken on purpose.
#[derive(Debug, Clone, Copy)]
enum Planted {
    /// The store.
    Store(How),
    /// The store of a live fleet.
    Fleet(How),
    /// The way from host to host.
    Transport(HowSent),
    /// The application, where what it does is what a broken library would do.
    Application(Flaw),
}

use Planted::{Application, Fleet, Store, Transport};

/// A thing that is broken, in words, and the promises by which it may be found out.
type Control = (Planted, &'static str, &'static [Invariant]);

/// Those that are counted.
const CONTROLS: [Control; 22] = [
    (
        Store(How::AcknowledgesEarly),
        "a store that acknowledges before it writes, and forgets that in a crash",
        &[Invariant::Kept, Invariant::Once, Invariant::Answered, Invariant::Read],
    ),
    (
        Store(How::Reorders),
        "a store that applies writes in another order",
        &[Invariant::Kept, Invariant::Once, Invariant::Answered, Invariant::Read],
    ),
    (
        Store(How::AppliesPartly),
        "a store that applies a part of a batch",
        &[Invariant::Kept, Invariant::Once, Invariant::Answered, Invariant::Read],
    ),
    (Store(How::IgnoresTheEpoch), "a store that lets former owners write", &[Invariant::OneWriter]),
    (
        Store(How::IgnoresTheSequence),
        "a store that applies repeated and late writes again",
        &[Invariant::Kept, Invariant::Once, Invariant::Answered, Invariant::NotAfterCancel, Invariant::Read],
    ),
    (Store(How::ForgetsRemovals), "a store that forgets to remove", &[Invariant::Once, Invariant::NotAfterCancel]),
    (Store(How::ReturnsPagesWithAHole), "a store whose pages have a hole", &[Invariant::Handled, Invariant::InOrder]),
    (Store(How::LosesPosts), "a store that loses posts", &[Invariant::Kept]),
    (Store(How::LeavesTasks), "a store that leaves tasks behind", &[Invariant::NothingLeft]),
    (Store(How::DrawsFromOutside), "a store that draws from the machine", &[Invariant::Repeats]),
    (Transport(HowSent::AnswersTwice), "a transport that answers twice", &[Invariant::Answered]),
    (Transport(HowSent::ResendsAfterALoss), "a transport that resends after a loss", &[Invariant::Answered]),
    (
        Transport(HowSent::CallsLossesNotSent),
        "a transport that says of what was sent that it was not",
        &[Invariant::Answered],
    ),
    (
        Transport(HowSent::CallsLossesNotSentOutside),
        "a transport of a process that is no host, which says of what was sent that it was not",
        &[Invariant::Answered],
    ),
    (Transport(HowSent::AsksTwice), "a transport that asks twice and gives the second answer", &[Invariant::Connected]),
    (Transport(HowSent::LosesWithoutAWord), "a transport that says nothing of what it lost", &[Invariant::Handled]),
    (Fleet(How::TellsMembersDifferently), "a placement that disagrees between hosts", &[Invariant::Settled]),
    (Fleet(How::GrantsTheLiving), "a store that grants a living shard", &[Invariant::OneWriter]),
    (Store(How::LosesKeys), "a store that loses request keys", &[Invariant::Keyed]),
    (Application(Flaw::DrawsKeys), "a caller that takes a new key for each try", &[Invariant::Keyed]),
    (
        Application(Flaw::KeepsAHandle),
        "an application that holds its host, and the store with it",
        &[Invariant::NothingLeft],
    ),
    (Application(Flaw::IsDoubled), "an application whose instances exist twice", &[Invariant::OneAtATime]),
];

/// Those of which one may ask why they are not there.
const MORE: [Control; 2] = [
    (Store(How::ShowsAlarmsEarly), "a store that shows alarms as due before their time", &[Invariant::NotEarly]),
    (
        Store(How::ForgetsValues),
        "a store that forgets what it is to overwrite",
        &[Invariant::Once, Invariant::Answered, Invariant::Kept],
    ),
];

/// The first seed with which it is found out, and by which promise.
fn catch(planted: Planted, by: &[Invariant]) -> Option<(u64, String)> {
    (1..=30).find_map(|seed| {
        let simulation = Simulation::new(seed).length(Duration::from_secs(240)).faults(Faults::ALL);
        let run = match planted {
            Store(how) => {
                let simulation = simulation.behind(move |store| Arc::new(Broken::new(store, how)));
                if by.contains(&Invariant::Repeats) {
                    simulation.run_twice(Exercise::default)
                } else {
                    simulation.run(Exercise::default())
                }
            }
            Fleet(how) => {
                let simulation = simulation.behind(move |store| Arc::new(Broken::new(store, how))).live(true);
                simulation.run(Exercise::default())
            }
            Transport(how) => {
                let simulation = simulation.between(move |inner| Arc::new(BrokenTransport::new(inner, how)));
                simulation.run(Exercise::default())
            }
            Application(flaw) => simulation.behind(|store| store).run(Exercise::flawed(flaw)),
        };
        let found = run.violations.iter().find(|violation| by.contains(&violation.invariant))?;
        Some((seed, found.to_string()))
    })
}

fn catch_all(controls: &'static [Control]) -> usize {
    // Side by side: they have nothing to do with each other.
    let caught: Vec<_> = std::thread::scope(|scope| {
        let half = controls.len().div_ceil(2);
        let runs = controls.chunks(half).map(|some| {
            scope.spawn(move || some.iter().map(|(planted, what, by)| (*what, catch(*planted, by))).collect::<Vec<_>>())
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
fn whatever_is_broken_on_purpose_is_found_out() {
    let caught = catch_all(&CONTROLS);
    println!("{caught} of {} caught", CONTROLS.len());
    assert_eq!(caught, CONTROLS.len());
}

#[test]
fn what_is_broken_in_rarer_ways_is_found_out_too() {
    assert_eq!(catch_all(&MORE), MORE.len());
}

#[test]
fn nothing_is_found_out_where_nothing_is_broken() {
    for seed in 1..=3 {
        let simulation = Simulation::new(seed).length(Duration::from_secs(240)).faults(Faults::ALL);
        let run = simulation.behind(|store| store).run_twice(Exercise::default);
        assert!(run.violations.is_empty(), "seed {seed}: {:#?}", run.violations);
    }
}

#[test]
fn flows_that_are_wrong_are_found_out_and_those_that_are_not_are_not() {
    let run = |seed, flows| {
        Simulation::new(seed).length(Duration::from_secs(240)).faults(Faults::ALL).behind(|store| store).run(flows)
    };
    for (flaw, what, by) in [
        (FlowFlaw::DoesWithoutSteps, "a flow that does outside of steps what belongs into them", Invariant::Recorded),
        (FlowFlaw::CallsTwice, "calls that go in twice", Invariant::Once),
    ] {
        let found = (1..=30).find_map(|seed| {
            let run = run(seed, FlowExercise::flawed(flaw));
            Some((seed, run.violations.iter().find(|violation| violation.invariant == by)?.to_string()))
        });
        let (seed, found) = found.unwrap_or_else(|| panic!("NOT caught: {what}"));
        println!("caught {what}: seed {seed}, {found}");
    }
    for seed in 1..=3 {
        let run = run(seed, FlowExercise::default());
        assert!(run.violations.is_empty(), "seed {seed}: {:#?}", run.violations);
    }
}
