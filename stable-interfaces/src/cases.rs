//! The run of tests against a model: case after case, each from a seed of its own, the first that fails made as small as it gets.
//!
//! A failing case is repeated alone by `SEED=n CASES=1`, as its message says. `CASES=n` alone runs more or fewer of every model.
//! `tests/models.rs` takes this file in as well.

use std::fmt::Debug;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use proptest_state_machine::ReferenceStateMachine;

/// The result of a check; made by proptest's `prop_assert!`.
pub(crate) type Checked = Result<(), TestCaseError>;

/// Something under test, beside the model that it is compared with.
pub(crate) trait Subject<M: ReferenceStateMachine> {
    /// Does what the transition says. `model` is the model after it.
    fn apply(&mut self, model: &M::State, transition: &M::Transition) -> Checked;

    /// Ends the case, and compares for the last time.
    fn end(self, model: &M::State) -> Checked;
}

fn from_environment<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().map_or(default, |text| match text.parse() {
        Ok(value) => value,
        Err(_) => panic!("{name}={text} is not a number"),
    })
}

/// Runs `cases` cases of up to `steps` transitions, unless the environment asks for another number of cases.
///
/// # Panics
/// With the smallest failing case, and how to repeat it.
pub(crate) fn check<M: ReferenceStateMachine, S: Subject<M>>(cases: u64, steps: usize, start: impl Fn(&M::State) -> S) {
    let (first, cases) = (from_environment("SEED", 1), from_environment("CASES", cases));
    for seed in first..first + cases {
        if let Some(failure) = find::<M, S>(seed, steps, 60_000, &start) {
            panic!("{failure}\nto repeat it: the same test with SEED={seed} CASES=1");
        }
    }
}

/// Runs the case of one seed, and says how it failed. `shrink_millis` is how long to look for a smaller case that fails.
pub(crate) fn find<M: ReferenceStateMachine, S: Subject<M>>(
    seed: u64,
    steps: usize,
    shrink_millis: u32,
    start: &impl Fn(&M::State) -> S,
) -> Option<String> {
    let config = Config {
        cases: 1,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: if shrink_millis == 0 { 0 } else { u32::MAX - 1 },
        max_shrink_time: shrink_millis,
        ..Config::default()
    };
    // What was seen is for shrinking alone.
    let run = |(state, transitions, seen): (_, _, Option<Arc<AtomicUsize>>)| {
        run_case::<M, S>(state, transitions, seen.filter(|_| shrink_millis > 0), start)
    };
    match TestRunner::new(config).run(&M::sequential_strategy(1..=steps), run) {
        Ok(()) => None,
        Err(TestError::Abort(reason)) => panic!("no case could be made: {reason}"),
        Err(TestError::Fail(reason, (state, transitions, _))) => Some(described(&reason, &state, &transitions)),
    }
}

fn described(reason: &impl ToString, state: &impl Debug, transitions: &[impl Debug]) -> String {
    let steps = transitions.iter().enumerate().map(|(n, step)| format!("\n  {}. {step:?}", n + 1));
    format!("{}\nfrom {state:?}, after{}", reason.to_string(), steps.collect::<String>())
}

fn run_case<M: ReferenceStateMachine, S: Subject<M>>(
    mut model: M::State,
    transitions: Vec<M::Transition>,
    seen: Option<Arc<AtomicUsize>>,
    start: &impl Fn(&M::State) -> S,
) -> Checked {
    let mut subject = start(&model);
    for transition in transitions {
        // So that shrinking begins with leaving out what was never reached.
        if let Some(seen) = &seen {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        model = M::apply(model, &transition);
        subject.apply(&model, &transition)?;
    }
    subject.end(&model)
}
