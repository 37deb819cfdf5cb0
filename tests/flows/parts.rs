//! A flow whose one decision is more than its store takes in one commit, cut at each call of that store.

use std::sync::Arc;
use std::time::Duration;

use callback_flows::{Flow, FlowResult, Flows, FlowsBuilder, FlowsError, Outcome};
use futures_util::future::join_all;
use parking_lot::Mutex;
use stable_interfaces::clock::Clock as _;
use system_tests::World;

use super::cutting::{Cut, cut_everywhere, run_until_cut};
use super::{SECOND, builder, start};

/// So many names of almost 500 bytes are 1.3 MiB, which is more than is written at once.
const MANY: usize = 2_800;

/// Arms a timer for each of many items, does a step for one, and waits for all.
async fn flood(ran: Arc<Mutex<u32>>, flow: Flow, (): ()) -> FlowResult<usize> {
    let names = (0..MANY).map(|n| (format!("{n:0>240}"), format!("{n:0>240}")));
    let timers = join_all(names.map(|(scope, name)| flow.branch(&scope).branch(&name).sleep(Duration::from_secs(60))));
    let step = flow.step("count").run(|_| {
        *ran.lock() += 1;
        std::future::ready(Ok::<_, std::io::Error>(()))
    });
    let (timers, step) = tokio::join!(timers, step);
    step?;
    Ok(timers.len())
}

fn flows(ran: &Arc<Mutex<u32>>) -> FlowsBuilder {
    let ran = ran.clone();
    builder().flow("flood", 1, move |flow, input| flood(ran.clone(), flow, input)).replay_at_parks(false)
}

async fn play(world: &World, flows: &Flows) {
    let pause = || world.clock.sleep(Duration::from_millis(10));
    let again = |error: FlowsError| assert!(error.is_retryable(), "{error}");
    while let Err(error) = flows.start("flood", "1", &()).await {
        again(error);
        pause().await;
    }
    loop {
        match flows.ended("flood", "1").await {
            Ok(Outcome::Done(timers)) => return assert_eq!(timers.get(), MANY.to_string()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => again(error),
        }
        pause().await;
    }
}

async fn cut_at(world: &mut World, k: u64, cut: Cut) -> u64 {
    let ran = Arc::<Mutex<u32>>::default();
    let calls = run_until_cut(world, k, cut, async |world| {
        let (host, flows) = start(flows(&ran), world.local()).await;
        play(world, &flows).await;
        host.drain(10 * SECOND).await;
    })
    .await;
    let (host, flows) = start(flows(&ran), world.local()).await;
    play(world, &flows).await;
    let ran = *ran.lock();
    assert!((1..=2).contains(&ran), "{cut:?} call {k}: its step ran {ran} times");
    host.drain(SECOND).await;
    calls
}

fn step(quickly: u64) -> u64 {
    if std::env::var_os("QUICK").is_some() { quickly } else { 1 }
}

#[tokio::test(start_paused = true)]
async fn a_cut_between_the_commits_of_one_decision_loses_and_repeats_nothing() {
    let points = cut_everywhere(World::in_memory, step(8), cut_at).await;
    assert!(points >= if step(8) == 1 { 20 } else { 3 }, "there were only {points}");
}

#[tokio::test(start_paused = true)]
async fn a_cut_between_the_commits_of_one_decision_on_fjall_loses_and_repeats_nothing() {
    let points = cut_everywhere(World::on_fjall, step(12), cut_at).await;
    assert!(points >= if step(12) == 1 { 10 } else { 3 }, "there were only {points}");
}
