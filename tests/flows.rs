//! Flows on hosts: they go on where they were after a crash, on another host, and with other code; calls and deadlines keep their
//! order; what a step came to is kept.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "flows/compile_errors.rs"]
mod compile_errors;
#[path = "flows/cuts.rs"]
mod cuts;
#[path = "flows/cutting.rs"]
mod cutting;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use alarm_backends::testing::servers::{Postgres, Redis};
use alarm_backends::{PostgresStore, RedisStore};
use callback_flows::{
    BlockedKind, Call, Delivered, Flow, FlowError, FlowResult, Flows, FlowsBuilder, FlowsError, Outcome, Retry,
    Started, State, Status, UrlKeys,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{Fleet, FleetClient, Host, HostBuilder, Store, StoreError};
use system_tests::{Between, World, in_time, on_each_store};

#[path = "flows/children.rs"]
mod children;
#[path = "flows/continued.rs"]
mod continued;
#[path = "flows/first_start.rs"]
mod first_start;
#[path = "flows/parts.rs"]
mod parts;
#[path = "flows/strangers.rs"]
mod strangers;

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    id: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Accept {
    by: String,
}

/// Somebody outside, who outlives every host.
#[derive(Debug, Default)]
struct Partner {
    /// The URL that each order has told, and under which key, each time.
    told: Mutex<BTreeMap<String, Vec<(String, String)>>>,
}

impl Partner {
    async fn notify(&self, order: &str, url: String, key: String) -> Result<(), std::io::Error> {
        self.told.lock().entry(order.to_owned()).or_default().push((url, key));
        Ok(())
    }

    fn url(&self, order: &str) -> String {
        self.told.lock()[order][0].0.clone()
    }

    fn times(&self, order: &str) -> usize {
        self.told.lock().get(order).map_or(0, Vec::len)
    }
}

/// Waits five seconds for somebody to take an order.
async fn order(partner: Arc<Partner>, flow: Flow, input: Order) -> FlowResult<String> {
    let mut fulfillment = flow.callback::<Accept>("fulfillment");
    flow.step("notify").run(|s| partner.notify(&input.id, fulfillment.url(), s.idempotency_key())).await?;
    tokio::select! {
        accept = fulfillment.next() => Ok(format!("taken by {}", accept?.by)),
        () = flow.sleep(5 * SECOND) => Ok("no taker".into()),
    }
}

fn keys() -> UrlKeys {
    UrlKeys::new("k1", [7; 32]).unwrap()
}

fn builder() -> FlowsBuilder {
    Flows::builder().callbacks("https://broker.example/callbacks/", keys())
}

fn orders(partner: &Arc<Partner>) -> FlowsBuilder {
    let partner = partner.clone();
    builder().flow("order", 1, move |flow, input| order(partner.clone(), flow, input))
}

/// A flow of one test.
fn one<F, Fut>(code: F) -> FlowsBuilder
where
    F: Fn(Flow) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = FlowResult<String>> + Send + 'static,
{
    builder().flow("one", 1, move |flow, ()| code(flow))
}

async fn start(flows: FlowsBuilder, mut host: HostBuilder) -> (Host, Flows) {
    let flows = flows.register(&mut host).unwrap();
    (host.start().await.unwrap(), flows)
}

fn accept(by: &str) -> Call {
    Call::new(serde_json::to_vec(&Accept { by: by.into() }).unwrap())
}

fn new_order(id: &str) -> Order {
    Order { id: id.into() }
}

async fn result(flows: &Flows, name: &str, id: &str) -> String {
    match in_time(flows.ended(name, id)).await.unwrap() {
        Outcome::Done(value) => serde_json::from_str(value.get()).unwrap(),
        other => panic!("{other:?}, {:?}", flows.get(name, id).await),
    }
}

async fn status(flows: &Flows, name: &str, id: &str) -> Status {
    flows.get(name, id).await.unwrap().unwrap()
}

fn waits(status: &Status) -> Vec<&str> {
    status.waits.iter().map(|wait| &*wait.name).collect()
}

on_each_store! {
    async fn a_flow_hands_out_a_url_waits_and_ends_with_what_came_there(world: World) {
        let partner = Arc::<Partner>::default();
        let (host, flows) = start(orders(&partner), world.local()).await;
        assert_eq!(flows.start("order", "17", &new_order("17")).await.unwrap(), Started::New);
        assert_eq!(flows.start("order", "17", &new_order("17")).await.unwrap(), Started::Already);
        assert!(matches!(flows.start("order", "17", &new_order("18")).await, Err(FlowsError::Conflict)));
        world.settle().await;
        let seen = status(&flows, "order", "17").await;
        assert_eq!((waits(&seen), &seen.state), (vec!["callback:fulfillment#0", "timer:5s#0"], &State::Going));
        assert!(flows.result("order", "17").await.unwrap().is_none());
        let url = partner.url("17");
        assert!(url.starts_with("https://broker.example/callbacks/k1.1."), "{url}");
        assert_eq!(flows.deliver(&url, accept("ada").id("c-1")).await.unwrap(), Delivered::Taken);
        assert_eq!(result(&flows, "order", "17").await, "taken by ada");
        assert!(matches!(flows.deliver(&url, accept("ada")).await, Err(FlowsError::Gone)));
        assert_eq!(flows.start("order", "17", &new_order("17")).await.unwrap(), Started::Already);
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn an_order_that_nobody_takes_ends_at_its_limit(world: World) {
        let partner = Arc::<Partner>::default();
        let (host, flows) = start(orders(&partner), world.local()).await;
        flows.start("order", "17", &new_order("17")).await.unwrap();
        assert_eq!(result(&flows, "order", "17").await, "no taker");
        assert!((5_000..5_010).contains(&world.now()), "{}", world.now());
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn after_a_crash_a_flow_waits_where_it_waited_and_its_limit_is_the_same(world: World) {
        let partner = Arc::<Partner>::default();
        let (host, flows) = start(orders(&partner), world.local()).await;
        for id in ["a", "b"] {
            flows.start("order", id, &new_order(id)).await.unwrap();
        }
        world.settle().await;
        world.pass(2 * SECOND).await;
        host.crash();
        let (host, flows) = start(orders(&partner), world.local()).await;
        assert_eq!(flows.deliver(&partner.url("a"), accept("ada")).await.unwrap(), Delivered::Taken);
        assert_eq!(result(&flows, "order", "a").await, "taken by ada");
        assert_eq!(result(&flows, "order", "b").await, "no taker");
        assert!((5_000..5_050).contains(&world.now()), "{}", world.now());
        assert_eq!((partner.times("a"), partner.times("b")), (1, 1), "a step whose result is kept does not run again");
        host.drain(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_is_called_once_costs_two_commits_and_one_more_for_a_step() {
    let world = World::in_memory();
    let commits = Arc::new(AtomicUsize::new(0));
    let counted = commits.clone();
    let host = world.local_behind(|between| {
        between.on_answer(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
        })
    });
    let url = Arc::<Mutex<String>>::default();
    let told = url.clone();
    let plain = move |flow: Flow, with_step: bool| {
        let told = told.clone();
        async move {
            let mut go = flow.callback::<String>("go");
            *told.lock() = go.url();
            if with_step {
                flow.step("step").run(async |_| Ok::<_, FlowFailure>(())).await?;
            }
            Ok(flow.timeout(5 * SECOND, go.next()).await??)
        }
    };
    let (host, flows) = start(builder().flow("one", 1, plain), host).await;
    for (id, with_step, expected) in [("a", false, 2), ("b", true, 3)] {
        let before = commits.load(Ordering::Relaxed);
        flows.start("one", id, &with_step).await.unwrap();
        world.settle().await;
        let at = url.lock().clone();
        flows.deliver(&at, Call::new("\"went\"")).await.unwrap();
        assert_eq!(result(&flows, "one", id).await, "went");
        assert_eq!(commits.load(Ordering::Relaxed) - before, expected, "{id}");
    }
    host.drain(SECOND).await;
}

type FlowFailure = std::io::Error;

on_each_store! {
    async fn a_step_that_runs_when_its_process_dies_runs_again_soon_under_the_same_key(world: World) {
        let keys = Arc::<Mutex<Vec<String>>>::default();
        let code = |hangs: bool| {
            let keys = keys.clone();
            one(move |flow| {
                let keys = keys.clone();
                async move {
                    let step = flow.step("pay").run(|s| {
                        keys.lock().push(s.idempotency_key());
                        async move {
                            if hangs {
                                std::future::pending::<()>().await;
                            }
                            Ok::<_, FlowFailure>("paid".to_owned())
                        }
                    });
                    Ok(step.await?)
                }
            })
        };
        let (host, flows) = start(code(true), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.pass(10 * SECOND).await;
        assert_eq!(keys.lock().len(), 1);
        host.crash();
        let (host, flows) = start(code(false), world.local()).await;
        let began = world.now();
        assert_eq!(result(&flows, "one", "a").await, "paid");
        assert!(world.now() - began <= 1_000, "{}", world.now() - began);
        let keys = keys.lock().clone();
        assert!(keys.len() == 2 && keys[0] == keys[1], "{keys:?}");
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_step_that_kills_its_process_blocks_its_flow_after_two_deaths_until_somebody_resumes_it(world: World) {
        let runs = Arc::new(AtomicU32::new(0));
        let code = |kills: bool| {
            let runs = runs.clone();
            one(move |flow| {
                let runs = runs.clone();
                async move {
                    let step = flow.step("deadly").run(|_| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        async move {
                            if kills {
                                std::future::pending::<()>().await;
                            }
                            Ok::<_, FlowFailure>("alive".to_owned())
                        }
                    });
                    Ok(step.await?)
                }
            })
        };
        let (mut host, mut flows) = start(code(true), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        for death in 1..=4 {
            world.pass(3 * SECOND).await;
            host.crash();
            (host, flows) = start(code(death < 4), world.local()).await;
        }
        world.pass(3 * SECOND).await;
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        let seen = status(&flows, "one", "a").await;
        let State::Blocked { why } = &seen.state else { panic!("{seen:?}") };
        assert_eq!((why.kind(), why.message()), (BlockedKind::StepKilled, "its step `step:deadly#0` ran in 2 processes that died"));
        flows.resume("one", "a").await.unwrap();
        assert_eq!(result(&flows, "one", "a").await, "alive");
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_flow_whose_code_ended_three_processes_is_blocked_without_running_it_until_somebody_resumes_it(world: World) {
        let runs = Arc::new(AtomicU32::new(0));
        let code = || {
            let runs = runs.clone();
            one(move |flow| {
                runs.fetch_add(1, Ordering::Relaxed);
                async move {
                    flow.sleep(5 * SECOND).await;
                    Ok("woken".to_owned())
                }
            })
        };
        let (host, flows) = start(code(), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.settle().await;
        host.crash();
        world.pass(10 * SECOND).await;
        for _ in 0..3 {
            // Its timer is under way when the process dies.
            world.store.fail_next(Method::Read, Fault::Hang);
            let (host, _flows) = start(code(), world.local()).await;
            world.pass(SECOND).await;
            host.crash();
        }
        let before = runs.load(Ordering::Relaxed);
        for _ in 0..2 {
            let (host, flows) = start(code(), world.local()).await;
            world.pass(10 * SECOND).await;
            let seen = status(&flows, "one", "a").await;
            let State::Blocked { why } = &seen.state else { panic!("{seen:?}") };
            assert_eq!((why.kind(), why.message()), (BlockedKind::CodeKilled, "its code ran in 3 processes that died"));
            host.drain(SECOND).await;
        }
        assert_eq!(runs.load(Ordering::Relaxed), before, "its code was run");
        let (host, flows) = start(code(), world.local()).await;
        flows.resume("one", "a").await.unwrap();
        assert_eq!(result(&flows, "one", "a").await, "woken");
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_call_whose_process_died_three_times_blocks_its_flow_and_is_taken_when_that_is_resumed(world: World) {
        let partner = Arc::<Partner>::default();
        let member = |name: &str| start(orders(&partner), world.member(name, &fleet()).lease(LEASE));
        let ((zero, at_zero), (one, at_one)) = (member("zero").await, member("one").await);
        let id = owned_by("one", 20);
        at_one.start("order", &id, &new_order(&id)).await.unwrap();
        world.settle().await;
        one.crash();
        assert_eq!(at_zero.deliver(&partner.url(&id), accept("ada").id("1")).await.unwrap(), Delivered::Posted);
        for _ in 0..3 {
            // Before its limit, with the call under way.
            world.store.fail_next(Method::Read, Fault::Hang);
            let (one, _flows) = member("one").await;
            world.pass(Duration::from_millis(100)).await;
            one.crash();
        }
        let (one, at_one) = member("one").await;
        world.pass(10 * SECOND).await;
        let seen = status(&at_one, "order", &id).await;
        assert!(matches!(&seen.state, State::Blocked { why } if why.kind() == BlockedKind::CodeKilled), "{seen:?}");
        at_one.resume("order", &id).await.unwrap();
        assert_eq!(result(&at_one, "order", &id).await, "taken by ada");
        zero.drain(SECOND).await;
        one.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_drain_lets_a_step_end_and_its_result_is_kept_and_the_next_one_begins_elsewhere(world: World) {
        let runs = Arc::<Mutex<Vec<String>>>::default();
        let code = || {
            let (runs, clock) = (runs.clone(), world.clock.clone());
            one(move |flow| {
                let (runs, clock) = (runs.clone(), clock.clone());
                async move {
                    let step = |name: &'static str| {
                        let (runs, clock) = (&runs, &clock);
                        flow.step(name).run(move |s| async move {
                            runs.lock().push(format!("{name} began"));
                            stable_interfaces::clock::Clock::sleep(clock, SECOND).await;
                            runs.lock().push(format!("{name} ended, draining: {}", s.is_draining()));
                            Ok::<_, FlowFailure>(())
                        })
                    };
                    step("first").await?;
                    step("second").await?;
                    Ok("done".to_owned())
                }
            })
        };
        let (host, flows) = start(code(), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.pass(Duration::from_millis(700)).await;
        let drained = host.drain(10 * SECOND).await;
        assert_eq!((drained.unfinished, drained.tasks, drained.released), (0, 0, true));
        assert!((1_000..1_100).contains(&world.now()), "as soon as the step has ended: {}", world.now());
        assert_eq!(*runs.lock(), ["first began", "first ended, draining: true"]);
        let (host, flows) = start(code(), world.local()).await;
        assert_eq!(result(&flows, "one", "a").await, "done");
        assert_eq!(runs.lock()[2..], ["second began", "second ended, draining: false"]);
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_commit_that_fails_costs_nothing_but_a_replay(world: World) {
        let partner = Arc::<Partner>::default();
        let refuses = Arc::new(AtomicBool::new(false));
        let asked = refuses.clone();
        let host = world.local_behind(|between| between.on_commit(move |write| {
            let refusal = || Err(StoreError::Rejected("not this one".into()));
            asked.swap(false, Ordering::SeqCst).then(|| Ok(write.batches.iter().map(|_| refusal()).collect()))
        }));
        let (host, flows) = start(orders(&partner), host).await;
        flows.start("order", "17", &new_order("17")).await.unwrap();
        world.settle().await;
        refuses.store(true, Ordering::SeqCst);
        let refused = flows.deliver(&partner.url("17"), accept("ada").id("c-1")).await.unwrap_err();
        assert!(refused.is_retryable() && !refuses.load(Ordering::SeqCst), "{refused:?}");
        assert_eq!(flows.deliver(&partner.url("17"), accept("ada").id("c-1")).await.unwrap(), Delivered::Taken);
        assert_eq!(result(&flows, "order", "17").await, "taken by ada");
        assert_eq!(partner.times("17"), 1);
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_call_with_an_id_counts_once(world: World) {
        let url = Arc::<Mutex<String>>::default();
        let code = || {
            let told = url.clone();
            one(move |flow| {
                let told = told.clone();
                async move {
                    let mut numbers = flow.callback::<u32>("numbers");
                    *told.lock() = numbers.url();
                    let (a, b) = (numbers.next().await?, numbers.next().await?);
                    Ok(format!("{a} {b}"))
                }
            })
        };
        let (host, flows) = start(code(), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        let at = url.lock().clone();
        assert_eq!(flows.deliver(&at, Call::new("1").id("x")).await.unwrap(), Delivered::Taken);
        assert_eq!(flows.deliver(&at, Call::new("1").id("x")).await.unwrap(), Delivered::Already);
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        assert_eq!(flows.deliver(&at, Call::new("1").id("x")).await.unwrap(), Delivered::Already);
        assert_eq!(flows.deliver(&at, Call::new("2").id("y")).await.unwrap(), Delivered::Taken);
        assert_eq!(result(&flows, "one", "a").await, "1 2");
        host.drain(SECOND).await;
    }
}

fn fleet() -> Fleet {
    Fleet::new(["zero", "one"], 64).unwrap()
}

fn owned_by(host: &str, salt: u32) -> String {
    let ids = (0..).map(|n| format!("{salt}-{n}"));
    ids.into_iter().find(|id| fleet().locate(&format!("order/{id}")).unwrap().host == host).unwrap()
}

on_each_store! {
    async fn any_host_takes_a_call_while_the_owner_is_down_and_before_the_limit_it_wins(world: World) {
        let partner = Arc::<Partner>::default();
        let member = |name: &str| start(orders(&partner), world.member(name, &fleet()).lease(LEASE));
        let (zero, at_zero) = member("zero").await;
        for (called_at, expected) in [(4, "taken by ada"), (6, "no taker")] {
            let (one, _) = member("one").await;
            let id = owned_by("one", called_at);
            let order = new_order(&id);
            assert_eq!(at_zero.start("order", &id, &order).await.unwrap(), Started::Posted);
            world.pass(Duration::from_millis(100)).await;
            assert_eq!(at_zero.start("order", &id, &order).await.unwrap(), Started::Already);
            let until = at_zero.get("order", &id).await.unwrap().unwrap().waits[1].until.unwrap();
            one.crash();
            let called = until - 5 * SECOND + called_at * SECOND;
            stable_interfaces::clock::Clock::sleep_exact(&world.clock, called).await;
            let call = accept("ada").id("c-1");
            assert_eq!(at_zero.deliver(&partner.url(&order.id), call.clone()).await.unwrap(), Delivered::Posted);
            // The owner is away for longer than the limit.
            world.pass(60 * SECOND).await;
            let (one, at_one) = member("one").await;
            assert_eq!(result(&at_one, "order", &id).await, expected);
            assert_eq!(result(&at_zero, "order", &id).await, expected);
            assert_eq!(partner.times(&order.id), 1);
            one.drain(SECOND).await;
        }
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_flow_that_moves_to_another_host_in_a_wait_keeps_its_limit_and_what_its_steps_came_to(world: World) {
        let partner = Arc::<Partner>::default();
        let (one, at_one) = start(orders(&partner), world.member("one", &fleet()).lease(LEASE)).await;
        let ids = [owned_by("one", 21), owned_by("one", 22)];
        for id in &ids {
            at_one.start("order", id, &new_order(id)).await.unwrap();
        }
        world.settle().await;
        let until = status(&at_one, "order", &ids[0]).await.waits[1].until.unwrap();
        world.pass(2 * SECOND).await;
        one.crash();
        // It comes back no more, and when its lease is over the other has all.
        let alone = Fleet::new(["zero"], 64).unwrap();
        let (zero, at_zero) = start(orders(&partner), world.member("zero", &alone).lease(LEASE)).await;
        assert_eq!(status(&at_zero, "order", &ids[0]).await.waits[1].until, Some(until));
        assert_eq!(at_zero.deliver(&partner.url(&ids[1]), accept("ada")).await.unwrap(), Delivered::Posted);
        assert_eq!(result(&at_zero, "order", &ids[0]).await, "no taker");
        assert_eq!(result(&at_zero, "order", &ids[1]).await, "taken by ada");
        assert!((15_000..25_000).contains(&world.now()), "{}", world.now());
        assert!(ids.iter().all(|id| partner.times(id) == 1), "no step ran again");
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_call_that_another_host_stored_just_before_the_limit_wins_also_where_its_owner_is_late_to_look(world: World) {
        let partner = Arc::<Partner>::default();
        let member = |name: &str| start(orders(&partner), world.member(name, &fleet()).lease(LEASE));
        let ((zero, at_zero), (one, at_one)) = (member("zero").await, member("one").await);
        for (before, expected) in [(1, "taken by ada"), (-1, "no taker")] {
            let id = owned_by("one", 10 + u32::from(before < 0));
            at_one.start("order", &id, &new_order(&id)).await.unwrap();
            world.settle().await;
            let until = status(&at_one, "order", &id).await.waits[1].until.unwrap();
            let called = stable_interfaces::Timestamp::from_millis(until.as_millis() - before);
            stable_interfaces::clock::Clock::sleep_exact(&world.clock, called).await;
            // The owner is told at once, and its look into the inbox takes longer than the rest of the limit.
            world.store.fail_next(Method::Load, Fault::Delay(Duration::from_millis(50)));
            match at_zero.deliver(&partner.url(&id), accept("ada")).await {
                Ok(taken) => assert_eq!(taken, Delivered::Posted),
                Err(error) => assert!(before < 0 && matches!(error, FlowsError::Gone), "{error}"),
            }
            assert_eq!(result(&at_one, "order", &id).await, expected);
        }
        zero.drain(SECOND).await;
        one.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_call_after_the_limit_at_the_owner_does_not_outrun_one_that_another_host_stored_before_it(world: World) {
        let partner = Arc::<Partner>::default();
        let member = |name: &str| start(orders(&partner), world.member(name, &fleet()).lease(LEASE));
        let ((zero, at_zero), (one, at_one)) = (member("zero").await, member("one").await);
        let id = owned_by("one", 20);
        at_one.start("order", &id, &new_order(&id)).await.unwrap();
        world.settle().await;
        let until = status(&at_one, "order", &id).await.waits[1].until.unwrap();
        let just_before = stable_interfaces::Timestamp::from_millis(until.as_millis() - 1);
        stable_interfaces::clock::Clock::sleep_exact(&world.clock, just_before).await;
        // The owner's look into the inbox takes longer than until the second call.
        world.store.fail_next(Method::Load, Fault::Delay(Duration::from_millis(50)));
        assert_eq!(at_zero.deliver(&partner.url(&id), accept("ada").id("1")).await.unwrap(), Delivered::Posted);
        stable_interfaces::clock::Clock::sleep(&world.clock, Duration::from_millis(5)).await;
        let second = at_one.deliver(&partner.url(&id), accept("bob").id("2")).await;
        assert!(matches!(second, Ok(Delivered::Posted) | Err(FlowsError::Gone)), "{second:?}");
        assert_eq!(result(&at_one, "order", &id).await, "taken by ada");
        zero.drain(SECOND).await;
        one.drain(SECOND).await;
    }
}

on_each_store! {
    async fn changed_code_blocks_a_flow_and_code_that_fits_lets_it_go_on_by_itself(world: World) {
        let partner = Arc::<Partner>::default();
        let (host, flows) = start(orders(&partner), world.local()).await;
        flows.start("order", "17", &new_order("17")).await.unwrap();
        world.settle().await;
        host.crash();
        let changed = builder().flow("order", 1, async |flow: Flow, _: Order| {
            flow.step("tell").run(async |_| Ok::<_, FlowFailure>(())).await?;
            Ok(String::new())
        });
        let (host, flows) = start(changed, world.local()).await;
        assert_eq!(flows.deliver(&partner.url("17"), accept("ada")).await.unwrap(), Delivered::Taken);
        let State::Blocked { why } = status(&flows, "order", "17").await.state else { panic!("not blocked") };
        assert_eq!(why.kind(), BlockedKind::Differs);
        assert!(why.message().contains("began `callback:fulfillment#0`, `step:notify#0`, and begins `step:tell#0` now"), "{why}");
        // It takes messages, and its limit passes.
        world.pass(60 * SECOND).await;
        host.crash();
        let (host, flows) = start(orders(&partner), world.local()).await;
        assert_eq!(result(&flows, "order", "17").await, "taken by ada");
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_flow_whose_version_is_missing_is_blocked_until_it_is_there(world: World) {
        let version = |version: u32| {
            builder().flow("order", version, move |flow: Flow, _: Order| async move {
                flow.sleep(5 * SECOND).await;
                Ok(format!("version {version}"))
            })
        };
        let (host, flows) = start(version(1), world.local()).await;
        flows.start("order", "17", &new_order("17")).await.unwrap();
        host.crash();
        let (host, flows) = start(version(2), world.local()).await;
        world.pass(10 * SECOND).await;
        let seen = status(&flows, "order", "17").await;
        assert!(matches!(&seen.state, State::Blocked { why } if why.kind() == BlockedKind::UnknownVersion), "{seen:?}");
        host.crash();
        let both = version(2).flow("order", 1, async |flow: Flow, _: Order| {
            flow.sleep(5 * SECOND).await;
            Ok("version 1".to_owned())
        });
        let (host, flows) = start(both, world.local()).await;
        assert_eq!(result(&flows, "order", "17").await, "version 1");
        flows.start("order", "18", &new_order("18")).await.unwrap();
        assert_eq!(result(&flows, "order", "18").await, "version 2");
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_step_that_failed_for_good_may_block_until_somebody_resumes_the_flow(world: World) {
        let is_open = Arc::new(AtomicU32::new(0));
        let asked = is_open.clone();
        let code = one(move |flow| {
            let is_open = asked.clone();
            async move {
                let step = flow.step("pay").retry(Retry::default().attempts(2)).then_block();
                let paid = step.run(async |_| match is_open.load(Ordering::Relaxed) {
                    0 => Err(std::io::Error::other("the bank is closed")),
                    _ => Ok("paid".to_owned()),
                });
                Ok(paid.await?)
            }
        });
        let (host, flows) = start(code, world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.pass(SECOND).await;
        let seen = status(&flows, "one", "a").await;
        let State::Blocked { why } = &seen.state else { panic!("{seen:?}") };
        assert_eq!(why.message(), "its step `step:pay#0` has failed 2 times: the bank is closed");
        is_open.store(1, Ordering::Relaxed);
        flows.resume("one", "a").await.unwrap();
        assert_eq!(result(&flows, "one", "a").await, "paid");
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_flow_that_is_blocked_keeps_its_calls_and_its_limit_in_their_order_over_a_crash(world: World) {
        let partner = Arc::<Partner>::default();
        let may_offer = Arc::new(AtomicBool::new(false));
        let code = || {
            let (partner, may_offer) = (partner.clone(), may_offer.clone());
            one(move |flow| {
                let (partner, may_offer) = (partner.clone(), may_offer.clone());
                async move {
                    let mut accepted = flow.callback::<Accept>("accepted");
                    let id = flow.uuid();
                    partner.notify(&id, accepted.url(), String::new()).await?;
                    let offer = flow.step("offer").retry(Retry::never()).then_block().run(async |_| {
                        match may_offer.load(Ordering::Relaxed) {
                            true => Ok(()),
                            false => Err(std::io::Error::other("closed")),
                        }
                    });
                    tokio::select! {
                        accept = accepted.next() => Ok(format!("taken by {}", accept?.by)),
                        () = flow.sleep(5 * SECOND) => Ok("no taker".to_owned()),
                        Err(error) = offer => Err(error.into()),
                    }
                }
            })
        };
        let (host, flows) = start(code(), world.local()).await;
        let mut urls = Vec::new();
        for id in ["early", "late"] {
            flows.start("one", id, &()).await.unwrap();
            world.settle().await;
            urls.push(partner.told.lock().values().flatten().map(|(url, _)| url.clone()).find(|url| !urls.contains(url)).unwrap());
            assert!(matches!(status(&flows, "one", id).await.state, State::Blocked { .. }));
        }
        world.pass(SECOND).await;
        assert_eq!(flows.deliver(&urls[0], accept("ada")).await.unwrap(), Delivered::Taken, "its callback is open");
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        world.pass(6 * SECOND).await;
        flows.deliver(&urls[1], accept("bob")).await.unwrap();
        for id in ["early", "late"] {
            assert!(matches!(status(&flows, "one", id).await.state, State::Blocked { .. }), "nobody has resumed it");
        }
        may_offer.store(true, Ordering::Relaxed);
        for (id, expected) in [("early", "taken by ada"), ("late", "no taker")] {
            flows.resume("one", id).await.unwrap();
            assert_eq!(result(&flows, "one", id).await, expected);
        }
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_step_waits_for_its_next_attempt_over_a_crash(world: World) {
        let attempts = Arc::<Mutex<Vec<(i64, u32)>>>::default();
        let clock = world.clock.clone();
        let code = || {
            let (attempts, clock) = (attempts.clone(), clock.clone());
            one(move |flow| {
                let (attempts, clock) = (attempts.clone(), clock.clone());
                async move {
                    let retry = Retry::default().between(60 * SECOND, 60 * SECOND);
                    let paid = flow.step("pay").retry(retry).run(|s| {
                        let now = stable_interfaces::clock::Clock::now(&clock).as_millis();
                        attempts.lock().push((now, s.attempt()));
                        let is_open = s.attempt() == 3;
                        std::future::ready(if is_open { Ok("paid".to_owned()) } else { Err(std::io::Error::other("busy")) })
                    });
                    Ok(paid.await?)
                }
            })
        };
        let (host, flows) = start(code(), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.settle().await;
        let seen = status(&flows, "one", "a").await;
        assert_eq!((seen.waits[0].attempts, seen.waits[0].last_error.as_deref()), (1, Some("busy")));
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        assert_eq!(result(&flows, "one", "a").await, "paid");
        let attempts = attempts.lock().clone();
        assert_eq!(attempts.iter().map(|(_, attempt)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
        for pair in attempts.windows(2) {
            assert!((30_000..=60_100).contains(&(pair[1].0 - pair[0].0)), "{attempts:?}");
        }
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_cancelled_flow_undoes_what_it_did_last_first_over_a_crash_too(world: World) {
        let undone = Arc::<Mutex<Vec<&'static str>>>::default();
        let code = |hangs: bool| {
            let undone = undone.clone();
            one(move |flow| {
                let undone = undone.clone();
                async move {
                    for name in ["seat", "meal"] {
                        flow.step(name).run(async |_| Ok::<_, FlowFailure>(())).await?;
                        let undone = undone.clone();
                        flow.undo(name, move |_| {
                            let undone = undone.clone();
                            async move {
                                if hangs && name == "seat" {
                                    std::future::pending::<()>().await;
                                }
                                undone.lock().push(name);
                                Ok::<_, FlowFailure>(())
                            }
                        });
                    }
                    flow.callback::<()>("never").next_raw().await;
                    Err(FlowError::new("it was not to be called"))
                }
            })
        };
        let (host, flows) = start(code(true), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.settle().await;
        flows.cancel("one", "a").await.unwrap();
        world.settle().await;
        host.crash();
        let (host, flows) = start(code(false), world.local()).await;
        assert!(matches!(in_time(flows.ended("one", "a")).await.unwrap(), Outcome::Cancelled));
        assert_eq!(*undone.lock(), ["meal", "seat"], "what was undone before the crash is not undone again");
        assert!(matches!(flows.cancel("one", "a").await, Err(FlowsError::Gone)));
        assert!(matches!(flows.cancel("one", "b").await, Err(FlowsError::NotFound)));
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_flow_that_only_waits_leaves_memory_and_is_back_when_it_is_called(world: World) {
        let partner = Arc::<Partner>::default();
        let lives = Arc::new(AtomicU32::new(0));
        let (counted, told) = (lives.clone(), partner.clone());
        let code = one(move |flow| {
            counted.fetch_add(1, Ordering::Relaxed);
            let partner = told.clone();
            async move {
                let mut go = flow.callback::<Accept>("go");
                flow.step("tell").run(|s| partner.notify("a", go.url(), s.idempotency_key())).await?;
                Ok(go.next().await?.by)
            }
        });
        let (host, flows) = start(code.replay_at_parks(false), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.pass(3_600 * SECOND).await;
        assert_eq!(lives.load(Ordering::Relaxed), 1);
        flows.deliver(&partner.url("a"), accept("ada")).await.unwrap();
        assert_eq!(result(&flows, "one", "a").await, "ada");
        assert_eq!((lives.load(Ordering::Relaxed), partner.times("a")), (2, 1), "it was replayed");
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_step_may_wait_for_another_flow(world: World) {
        let handle = Arc::<Mutex<Option<Flows>>>::default();
        let asked = handle.clone();
        let code = builder()
            .flow("outer", 1, move |flow: Flow, ()| {
                let flows = asked.lock().clone().unwrap();
                async move {
                    let inner = flow.step("inner").run(|_| async {
                        flows.start("inner", "a", &7).await?;
                        match flows.ended("inner", "a").await? {
                            Outcome::Done(value) => Ok(value.get().to_owned()),
                            _ => Err(FlowsError::NotFound),
                        }
                    });
                    Ok(inner.await?)
                }
            })
            .flow("inner", 1, async |flow: Flow, n: u32| {
                flow.sleep(60 * SECOND).await;
                Ok(n + 1)
            });
        let (host, flows) = start(code, world.local()).await;
        *handle.lock() = Some(flows.clone());
        flows.start("outer", "a", &()).await.unwrap();
        assert_eq!(result(&flows, "outer", "a").await, "8");
        *handle.lock() = None;
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_flow_is_kept_for_a_while_then_its_id_and_then_nothing(world: World) {
        let code = one(async |flow: Flow| {
            let mut total = 0;
            for n in 0..600 {
                total += flow.step_for("add", &n.to_string()).run(async |_| Ok::<_, FlowFailure>(1)).await?;
            }
            Ok(total.to_string())
        })
        .retention(70 * SECOND, 300 * SECOND);
        let (host, flows) = start(code, world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        assert_eq!(result(&flows, "one", "a").await, "600");
        let tool = FleetClient::new(Arc::new(world.store.clone()), Fleet::new(["local"], 1_024).unwrap())
            .clock(Arc::new(world.clock.clone()));
        let rows = async || tool.stored("flow", "one/a", stable_interfaces::KeyRange::all()).await.unwrap().len();
        assert!(rows().await > 600);
        world.pass(71 * SECOND).await;
        assert_eq!((rows().await, status(&flows, "one", "a").await.state), (1, State::Purged));
        assert!(matches!(flows.result("one", "a").await.unwrap(), Some(Outcome::Purged)));
        assert_eq!(flows.start("one", "a", &()).await.unwrap(), Started::Already, "its ID is still taken");
        world.pass(301 * SECOND).await;
        assert_eq!((rows().await, flows.get("one", "a").await.unwrap()), (0, None));
        assert_eq!(tool.all_alarms("flow", None, 10).await.unwrap().len(), 0);
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn flows_are_listed_page_by_page_from_any_host(world: World) {
        let partner = Arc::<Partner>::default();
        let member = |name: &str| start(orders(&partner), world.member(name, &fleet()).lease(LEASE));
        let ((zero, at_zero), (one, at_one)) = (member("zero").await, member("one").await);
        let mut expected: Vec<_> = (0..20).map(|n| format!("{n}/of 20")).collect();
        for id in &expected {
            at_zero.start("order", id, &new_order(id)).await.unwrap();
        }
        world.pass(SECOND).await;
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = at_one.list(after.as_ref(), 7).await.unwrap();
            found.extend(page.iter().map(|listed| listed.id().to_owned()));
            assert!(page.iter().all(|listed| listed.name() == "order" && listed.next() <= world.at(5_100)));
            after = page.last().cloned();
            if page.len() < 7 {
                break;
            }
        }
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        zero.drain(SECOND).await;
        one.drain(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_refused_by_name_and_nothing_is_stored() {
    let world = World::in_memory();
    let partner = Arc::<Partner>::default();
    let (host, flows) = start(orders(&partner), world.local()).await;
    let text = |refused: Result<Started, FlowsError>| refused.unwrap_err().to_string();
    assert_eq!(text(flows.start("other", "1", &()).await), "no flow `other` is registered");
    assert_eq!(text(flows.start("order", "", &()).await), "the ID of a flow is empty");
    assert!(text(flows.start("order", "a\0b", &new_order("1")).await).contains("cannot be the ID of a flow"));
    assert_eq!(text(flows.start("order", "1", &17).await), "the input is not what `order` takes");
    let large = new_order(&"x".repeat(300_000));
    assert!(text(flows.start("order", "1", &large).await).contains("the input has 300009 bytes"));
    assert!(matches!(flows.deliver("k1.1.abc.def", accept("ada")).await, Err(FlowsError::NotFound)));
    let other = UrlKeys::new("k1", [8; 32]).unwrap();
    assert!(!format!("{other:?}").contains('8'));
    assert_eq!(flows.get("order", "1").await.unwrap(), None);
    assert!(matches!(flows.ended("order", "1").await, Err(FlowsError::NotFound)));
    world.settle().await;
    assert_eq!((world.dump().alarms().count(), world.dump().inbox().count()), (0, 0));
    let twice = orders(&partner).flow("order", 1, async |_: Flow, (): ()| Ok(()));
    let refused = twice.register(&mut world.local()).unwrap_err();
    assert_eq!(refused.to_string(), "version 1 of the flow \"order\" is there twice");
    host.drain(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_waits_for_what_is_not_durable_is_blocked_with_the_words_that_mend_it() {
    let world = World::in_memory();
    let decided = Arc::new(AtomicU32::new(0));
    let counted = decided.clone();
    #[allow(clippy::disallowed_methods, reason = "the mistake that is to be found")]
    let code = one(move |flow| {
        let decided = counted.clone();
        async move {
            tokio::select! {
                () = tokio::time::sleep(SECOND) => drop(decided.fetch_add(1, Ordering::Relaxed)),
                () = flow.sleep(5 * SECOND) => {}
            }
            flow.callback::<()>("never").next_raw().await;
            Ok(String::new())
        }
    });
    let (host, flows) = start(code, world.local()).await;
    flows.start("one", "a", &()).await.unwrap();
    world.pass(2 * SECOND).await;
    let State::Blocked { why } = status(&flows, "one", "a").await.state else { panic!("not blocked") };
    assert!(why.message().contains("`flow.sleep` and `flow.timeout` are durable"), "{why}");
    assert_eq!(decided.load(Ordering::Relaxed), 0);
    host.drain(SECOND).await;
}

/// Three orders over two crashes, in real time.
async fn goes_on_over_crashes(open: impl AsyncFn() -> Arc<dyn Store>) {
    let partner = Arc::<Partner>::default();
    let store = open().await;
    let boot = async || {
        let fleet = Fleet::new(["only"], 16).unwrap();
        start(orders(&partner), Host::builder("only", fleet).shared_store(store.clone())).await
    };
    let (host, flows) = boot().await;
    for id in ["a", "b", "c"] {
        assert_eq!(flows.start("order", id, &new_order(id)).await.unwrap(), Started::New);
    }
    while ["a", "b", "c"].iter().any(|id| partner.times(id) == 0) {
        tokio::task::yield_now().await;
    }
    // What the steps came to may not be durable yet: then they run again, under the same key.
    host.crash();
    let (host, flows) = boot().await;
    assert_eq!(flows.deliver(&partner.url("a"), accept("ada").id("1")).await.unwrap(), Delivered::Taken);
    host.crash();
    let (host, flows) = boot().await;
    assert_eq!(result(&flows, "order", "a").await, "taken by ada");
    assert_eq!(flows.deliver(&partner.url("b"), accept("bob").id("1")).await.unwrap(), Delivered::Taken);
    assert_eq!(result(&flows, "order", "b").await, "taken by bob");
    assert_eq!(result(&flows, "order", "c").await, "no taker");
    for told in partner.told.lock().values() {
        assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    }
    host.drain(5 * SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_on_postgres_go_on_over_crashes() {
    let server = Postgres::start();
    let url = server.fresh_database();
    goes_on_over_crashes(async || Arc::new(PostgresStore::connect(&url).await.unwrap()) as Arc<dyn Store>).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_on_redis_go_on_over_crashes() {
    let server = Redis::start();
    let url = server.url();
    goes_on_over_crashes(async || Arc::new(RedisStore::connect(&url).await.unwrap()) as Arc<dyn Store>).await;
}

on_each_store! {
    async fn a_call_that_ends_its_flow_is_not_told_that_the_flow_is_over(world: World) {
        let partner = Arc::<Partner>::default();
        let (zero, at_zero) = start(orders(&partner), world.member("zero", &fleet()).lease(LEASE)).await;
        let (one, at_one) = start(orders(&partner), world.member("one", &fleet()).lease(LEASE)).await;
        let id = owned_by("one", 601);
        at_one.start("order", &id, &new_order(&id)).await.unwrap();
        world.pass(SECOND).await;
        // Its caller's host waits long for an answer about the flow.
        world.store.fail_next(Method::Read, Fault::Hang);
        let call = tokio::spawn({
            let url = partner.url(&id);
            async move { at_zero.deliver(&url, accept("ada")).await }
        });
        world.pass(SECOND).await;
        world.store.release_hanging();
        assert_eq!(call.await.unwrap().unwrap(), Delivered::Posted);
        assert_eq!(result(&at_one, "order", &id).await, "taken by ada");
        one.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}
