//! Runs of a flow that are cut at a call of their store, and gone on with by another process.

use stable_interfaces::testing::Fault;
use system_tests::{World, in_time};

use super::SECOND;

/// The events at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The process ends, and the call never reaches the store.
    Before,
    /// The process ends after the store has done it, and nobody hears the answer.
    After,
    /// The store does it, and says that it is unavailable. The process goes on.
    LostAnswer,
}

/// Runs a process until store call `k`, cuts it there, and makes the store ready for the next one. Says how many calls there were.
pub(super) async fn run_until_cut(world: &mut World, k: u64, cut: Cut, process: impl AsyncFnOnce(&World)) -> u64 {
    let until = match cut {
        Cut::Before => {
            world.store.hang_from(k);
            k
        }
        Cut::After => {
            world.store.fail_at(k, Fault::HangAfter);
            world.store.hang_from(k + 1);
            k + 1
        }
        Cut::LostAnswer => {
            world.store.fail_at(k, Fault::FailAfter);
            u64::MAX
        }
    };
    {
        let world: &World = world;
        tokio::select! { biased;
            () = async {
                world.store.until_begun(until).await;
                world.settle().await;
            } => {}
            () = process(world) => {}
        }
        // Here the host is dropped, with whatever it was about to do.
        world.pass(2 * SECOND).await;
    }
    let calls = world.store.begun();
    world.store.heal();
    world.reopen().await;
    calls
}

/// Cuts a run at each `step`th call, one run for each, and says how many runs there were. `cut_at` says how many calls there were until
/// the end of the first process.
pub(super) async fn cut_everywhere(
    open: impl Fn() -> World,
    step: u64,
    cut_at: impl AsyncFn(&mut World, u64, Cut) -> u64,
) -> u64 {
    let mut points = 0;
    for cut in [Cut::Before, Cut::After, Cut::LostAnswer] {
        for k in (0..).map(|n| n * step) {
            let mut world = open();
            if in_time(cut_at(&mut world, k, cut)).await <= k {
                break;
            }
            points += 1;
        }
    }
    points
}
