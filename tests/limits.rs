//! Time limits and settings: each interface's own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use stable_interfaces::testing::SimClock;
use stable_interfaces::{Clock, Context, ContextError, Handle, Host, Interface, RequestError, StableInterface};
use system_tests::{Do, Failed, Probe, World, act, spawn, wait};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// An interface beside the probes, with limits of its own. It takes as long as it is told.
struct Slow(SimClock);

impl StableInterface for Slow {
    const NAME: &'static str = "slow";
    type Error = ContextError;
}

impl Handle<Duration> for Slow {
    type Reply = ();

    async fn handle(&mut self, _: &mut Context, takes: Duration) -> Result<(), ContextError> {
        if !takes.is_zero() {
            self.0.sleep(takes).await;
        }
        Ok(())
    }
}

/// A host with probes and slow ones, which have these limits.
async fn launch_both(world: &World, probe: Duration, slow: Duration) -> (Host, Interface<Probe>, Interface<Slow>) {
    let mut builder = world.local();
    let probes = builder.interface(world.factory()).with_alarms().handler_timeout(probe).register().unwrap();
    let clock = world.clock.clone();
    let slows = builder.interface(move |_| Slow(clock.clone())).handler_timeout(slow).register().unwrap();
    (builder.start().await.unwrap(), probes, slows)
}

/// A message whose handler asks a slow one for something that takes `asks`, notes the answer, then sleeps for `sleeps`.
fn ask_then_sleep(slows: &Interface<Slow>, asks: Duration, sleeps: Duration) -> Do<()> {
    let slows = slows.clone();
    act(move |me: &mut Probe, _| {
        let (sleep, script) = (me.sleep(asks + sleeps), me.script.clone());
        Box::pin(async move {
            let answer = slows.request("q", asks).await;
            script.note(answer.map_or_else(|error| error.to_string(), |()| "answered".to_owned()));
            sleep.await;
            Ok(())
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_handler_has_its_own_interfaces_time_whatever_the_limit_of_whom_it_asks() {
    let world = World::in_memory();
    let (_host, probes, slows) = launch_both(&world, 30 * SECOND, 300 * MILLI).await;
    probes.request("a", ask_then_sleep(&slows, Duration::ZERO, 29 * SECOND)).await.unwrap();
    // Also one that had to queue, and an alarm's.
    let busy = spawn(&probes, "a", wait(SECOND));
    world.settle().await;
    let queued = probes.request("a", ask_then_sleep(&slows, Duration::ZERO, 28 * SECOND));
    queued.await.unwrap();
    busy.await.unwrap().unwrap();
    let asked = slows.clone();
    world.script.on_alarm(move |me, _, _| {
        let (sleep, script, slows) = (me.sleep(29 * SECOND), me.script.clone(), asked.clone());
        Box::pin(async move {
            slows.request("q", Duration::ZERO).await.map_err(|error| Failed::Nested(error.to_string()))?;
            sleep.await;
            script.note("done");
            Ok(())
        })
    });
    probes.set_alarm("a", "x", world.at(world.now()), &()).await.unwrap();
    world.pass(31 * SECOND).await;
    assert_eq!(world.script.notes(), ["answered", "answered", "done"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_not_run_longer_for_asking_one_that_may() {
    let world = World::in_memory();
    let (_host, probes, slows) = launch_both(&world, 300 * MILLI, 30 * SECOND).await;
    for asks in [Duration::ZERO, 100 * MILLI] {
        let began = world.now();
        let error = probes.request("a", ask_then_sleep(&slows, asks, SECOND)).await.unwrap_err();
        assert!(matches!(&error, RequestError::TimedOut { after, .. } if *after == 300 * MILLI), "{error}");
        assert_eq!(world.now() - began, 300);
    }
    assert_eq!(world.script.notes(), ["answered", "answered"]);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_asked_has_its_own_limit_or_what_its_caller_has_left_less_a_tenth() {
    // What was asked is running: past its own limit it has not happened; its caller, which waits no longer, cannot know.
    for (probe, slow, said) in [
        (30 * SECOND, 300 * MILLI, "timed out after 300ms waiting for slow/q"),
        (300 * MILLI, 30 * SECOND, "outcome unknown"),
    ] {
        let world = World::in_memory();
        let (_host, probes, slows) = launch_both(&world, probe, slow).await;
        let asking = spawn(&probes, "a", ask_then_sleep(&slows, SECOND, 20 * SECOND));
        world.pass(probe.min(slow) * 9 / 10 - MILLI).await;
        assert!(world.script.notes().is_empty());
        world.pass(probe.min(slow) / 10 + 2 * MILLI).await;
        let notes = world.script.notes();
        assert!(notes.len() == 1 && notes[0].starts_with(said), "{notes:?}");
        assert_eq!(asking.await.unwrap().is_ok(), probe > slow);
    }
}
