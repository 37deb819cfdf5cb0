//! A broker's flow, cut at every call of its store: before it, between the call and its answer, and with the answer lost while the
//! process goes on. Whatever the cut, the next process finds every order where it was, and no partner is asked again that has
//! answered.

use std::sync::Arc;
use std::time::Duration;

use callback_flows::{Call, Flow, FlowResult, Flows, FlowsBuilder, FlowsError, Outcome};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stable_interfaces::clock::Clock as _;
use system_tests::World;

use super::cutting::{Cut, cut_everywhere, run_until_cut};
use super::{SECOND, builder, start};

/// An order, and the milliseconds for which its partner is waited for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    id: u32,
    limit: u64,
}

/// All that is outside, which outlives every process.
#[derive(Debug, Default)]
struct Outside {
    /// The steps that have run: their names, their keys, and the URL that they were given.
    notes: Mutex<Vec<(String, String, String)>>,
}

impl Outside {
    async fn note(&self, step: String, key: String, url: String) -> Result<(), std::io::Error> {
        self.notes.lock().push((step, key, url));
        Ok(())
    }

    fn url(&self, step: &str) -> Option<String> {
        self.notes.lock().iter().find(|(name, _, _)| name == step).map(|(_, _, url)| url.clone())
    }
}

/// Opens a region, and asks a partner about each of its orders, until there were two.
async fn broker(outside: Arc<Outside>, flow: Flow, region: String) -> FlowResult<String> {
    let mut orders = flow.callback::<Order>("orders");
    let note = |step: String, url: String| {
        let outside = outside.clone();
        move |s: callback_flows::StepCx| {
            let (outside, step, url) = (outside.clone(), step.clone(), url.clone());
            async move { outside.note(step, s.idempotency_key(), url).await }
        }
    };
    flow.step("register").run(note("register".into(), orders.url())).await?;
    let mut outcomes = vec![region];
    while outcomes.len() < 3 {
        let order = orders.next().await?;
        let one = flow.branch(&order.id.to_string());
        let mut accepted = one.callback::<String>("accepted");
        one.step("ask").input(&order).run(note(format!("ask {}", order.id), accepted.url())).await?;
        match one.timeout(Duration::from_millis(order.limit), accepted.next()).await {
            Ok(by) => {
                let by = by?;
                one.step("grant").run(note(format!("grant {}", order.id), String::new())).await?;
                outcomes.push(format!("{} by {by}", order.id));
            }
            Err(_) => outcomes.push(format!("{} by nobody", order.id)),
        }
    }
    Ok(outcomes.join(", "))
}

fn flows(outside: &Arc<Outside>) -> FlowsBuilder {
    let outside = outside.clone();
    builder().flow("broker", 1, move |flow, region| broker(outside.clone(), flow, region))
}

/// The steps, each after all before it. A step that runs when a later one has run had a result that was kept.
const STEPS: [&str; 4] = ["register", "ask 1", "grant 1", "ask 2"];

/// Does what those outside do, from the beginning to the flow's end: all of it may be repeated.
async fn play(world: &World, flows: &Flows, outside: &Outside) {
    let pause = || world.clock.sleep(Duration::from_millis(10));
    let call = async |step: &str, id: &str, body: String| {
        loop {
            match outside.url(step) {
                None => {}
                Some(url) => match flows.deliver(&url, Call::new(body.clone()).id(id)).await {
                    Ok(_) | Err(FlowsError::Gone) => return,
                    Err(error) => assert!(error.is_retryable(), "{error}"),
                },
            }
            pause().await;
        }
    };
    while let Err(error) = flows.start("broker", "north", "north").await {
        assert!(error.is_retryable(), "{error}");
        pause().await;
    }
    let order = |id, limit| serde_json::to_string(&Order { id, limit }).unwrap();
    call("register", "o-1", order(1, 3_600_000)).await;
    call("register", "o-2", order(2, 5_000)).await;
    call("ask 1", "a-1", "\"ada\"".into()).await;
    loop {
        match flows.ended("broker", "north").await {
            Ok(Outcome::Done(outcomes)) => return assert_eq!(outcomes.get(), "\"north, 1 by ada, 2 by nobody\""),
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        pause().await;
    }
}

/// Plays it, cuts it at store call `k`, and goes on with another process. Says how many calls there were until the end of the first.
async fn cut_at(world: &mut World, k: u64, cut: Cut) -> u64 {
    let outside = Arc::<Outside>::default();
    let calls = run_until_cut(world, k, cut, async |world| {
        let (host, flows) = start(flows(&outside), world.local()).await;
        play(world, &flows, &outside).await;
        host.drain(10 * SECOND).await;
    })
    .await;
    let (host, flows) = start(flows(&outside), world.local()).await;
    play(world, &flows, &outside).await;
    let notes = outside.notes.lock().clone();
    let mut latest = 0;
    for (step, key, _) in &notes {
        let place = STEPS.iter().position(|name| name == step).unwrap_or_else(|| panic!("{cut:?} call {k}: {notes:?}"));
        assert!(place >= latest, "{cut:?} call {k}: `{step}` ran again, though its result was kept: {notes:?}");
        latest = place;
        let is_same = notes.iter().filter(|(name, _, _)| name == step).all(|(_, other, _)| other == key);
        assert!(is_same, "{cut:?} call {k}: `{step}` ran under two keys: {notes:?}");
    }
    assert!((STEPS.len()..=STEPS.len() + 1).contains(&notes.len()), "{cut:?} call {k}: {notes:?}");
    host.drain(SECOND).await;
    calls
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_store_call_of_a_brokers_flow_loses_and_repeats_nothing() {
    let points = cut_everywhere(World::in_memory, 1, cut_at).await;
    println!("{points} points: a crash before, a crash after, a lost answer at each");
    assert!(points > 60, "there were only {points}");
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_store_call_of_a_brokers_flow_on_fjall_loses_and_repeats_nothing() {
    let every = if std::env::var_os("QUICK").is_some() { 5 } else { 1 };
    let points = cut_everywhere(World::on_fjall, every, cut_at).await;
    println!("{points} points on Fjall");
    assert!(points > 12, "there were only {points}");
}
