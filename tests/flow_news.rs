//! News of flows: events without a gap or a repeat, from any host and over crashes; progress; and waiting for a change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use callback_flows::{
    Call, Delivered, Flow, FlowError, FlowEvent, FlowEvents, FlowResult, Flows, FlowsBuilder, FlowsError, HostEvents,
    Outcome, Retry, Started, State, Status,
};
use stable_interfaces::testing::Method;
use stable_interfaces::{Fleet, Host, HostBuilder, StoreError};
use system_tests::{World, in_time, now_or_never, on_each_store};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);

/// A flow of one test, which takes no input.
fn one<F, Fut>(code: F) -> FlowsBuilder
where
    F: Fn(Flow) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = FlowResult<String>> + Send + 'static,
{
    Flows::builder().flow("one", 1, move |flow, ()| code(flow))
}

async fn start(flows: FlowsBuilder, mut host: HostBuilder) -> (Host, Flows) {
    let flows = flows.register(&mut host).unwrap();
    (host.start().await.unwrap(), flows)
}

/// An event in one line: `sequence name value`.
fn line(event: &FlowEvent) -> String {
    format!("{} {} {}", event.sequence(), event.name(), event.value().get())
}

/// The events up to the end of the stream.
async fn rest(mut events: FlowEvents) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(event) = in_time(events.next()).await {
        lines.push(line(&event.unwrap()));
    }
    lines
}

/// The next events, so many.
async fn take(events: &mut FlowEvents, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < count {
        lines.push(line(&in_time(events.next()).await.unwrap().unwrap()));
    }
    assert!(now_or_never(events.next()).await.is_none(), "there are more than {lines:?}");
    lines
}

async fn told(events: &mut HostEvents) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(Some(Ok(event))) = now_or_never(tokio::task::unconstrained(events.next())).await {
        lines.push(format!("{}/{} {} {}", event.flow(), event.id(), event.name(), event.value().get()));
    }
    lines
}

/// Says where it is, and waits for two signals in between.
async fn teller(flow: Flow) -> FlowResult<String> {
    let mut go = flow.signal::<u32>("go");
    flow.progress(&"begun")?;
    flow.emit("order-created", &serde_json::json!({ "id": flow.uuid().len() }))?;
    let first = go.next().await?;
    flow.step("work").run(async |_| Ok::<_, std::io::Error>(())).await?;
    flow.progress(&first)?;
    let second = go.next().await?;
    flow.resource("https://shop.example/orders/17")?;
    flow.emit("order-created", &second)?;
    Ok("done".into())
}

const ALL: [&str; 6] = [
    "1 progress \"begun\"",
    "2 order-created {\"id\":36}",
    "3 progress 7",
    "4 resource \"https://shop.example/orders/17\"",
    "5 order-created 8",
    "6 succeeded null",
];

on_each_store! {
    async fn events_are_read_on_from_each_of_them_without_a_gap_or_a_repeat_over_crashes_too(world: World) {
        let (host, flows) = start(one(teller), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        let mut live = flows.events("one", "a", 0).await.unwrap();
        assert_eq!(take(&mut live, 2).await, ALL[..2]);
        host.crash();
        let (host, flows) = start(one(teller), world.local()).await;
        let mut live = flows.events("one", "a", 1).await.unwrap();
        assert_eq!(take(&mut live, 1).await, ALL[1..2]);
        flows.signal("one", "a", "go", &7).await.unwrap();
        assert_eq!(take(&mut live, 1).await, ALL[2..3]);
        let seen = flows.get("one", "a").await.unwrap().unwrap();
        assert_eq!((seen.progress, seen.resource, seen.events), (Some(7.into()), None, 3));
        host.crash();
        let (host, flows) = start(one(teller), world.local()).await;
        let waiting = tokio::spawn(rest(flows.events("one", "a", 2).await.unwrap()));
        world.settle().await;
        flows.signal("one", "a", "go", &8).await.unwrap();
        assert_eq!(waiting.await.unwrap(), ALL[2..]);
        for after in 0..=6 {
            assert_eq!(rest(flows.events("one", "a", after).await.unwrap()).await, ALL[usize::try_from(after).unwrap()..]);
        }
        assert_eq!(rest(flows.events("one", "a", u64::MAX).await.unwrap()).await, ALL[6..], "beyond the end");
        let seen = flows.get("one", "a").await.unwrap().unwrap();
        assert_eq!(seen.resource.as_deref(), Some("https://shop.example/orders/17"));
        assert!(matches!(flows.events("one", "b", 0).await, Err(FlowsError::NotFound)));
        host.drain(SECOND).await;
    }
}

fn fleet() -> Fleet {
    Fleet::new(["zero", "one"], 64).unwrap()
}

fn owned_by(host: &str) -> String {
    let mut ids = (0..).map(|n| format!("{n}"));
    ids.find(|id| fleet().locate(&format!("one/{id}")).unwrap().host == host).unwrap()
}

on_each_store! {
    async fn events_are_read_from_another_host_within_a_second_and_while_the_owner_changes(world: World) {
        let member = |name: &str| start(one(teller), world.member(name, &fleet()).lease(LEASE));
        let ((zero, at_zero), (host, _)) = (member("zero").await, member("one").await);
        let id = owned_by("one");
        assert_eq!(at_zero.start("one", &id, &()).await.unwrap(), Started::Posted);
        world.pass(SECOND).await;
        let mut live = at_zero.events("one", &id, 0).await.unwrap();
        assert_eq!(take(&mut live, 2).await, ALL[..2]);
        let began = world.now();
        assert_eq!(at_zero.signal("one", &id, "go", &7).await.unwrap(), Delivered::Posted);
        assert_eq!(take(&mut live, 1).await, ALL[2..3]);
        assert!(world.now() - began <= 1_100, "{}", world.now() - began);
        host.crash();
        assert_eq!(at_zero.signal("one", &id, "go", &8).await.unwrap(), Delivered::Posted);
        let waiting = tokio::spawn(rest(live));
        world.pass(30 * SECOND).await;
        let (host, _) = member("one").await;
        assert_eq!(waiting.await.unwrap(), ALL[3..]);
        host.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_reader_that_is_slow_misses_nothing_and_a_turn_stores_no_more_than_fits(world: World) {
        let code = one(|flow| async move {
            let mut go = flow.signal::<u32>("go");
            for _ in 0..40 {
                let round = go.next().await?;
                for n in 0..99 {
                    flow.emit("tick", &(round * 99 + n))?;
                }
            }
            Ok("done".into())
        });
        let (host, flows) = start(code, world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        let mut live = flows.events("one", "a", 0).await.unwrap();
        assert_eq!(take(&mut live, 0).await, [""; 0]);
        for round in 0..40 {
            flows.signal("one", "a", "go", &round).await.unwrap();
        }
        let lines = rest(live).await;
        assert_eq!(lines.len(), 40 * 99 + 1);
        for (n, line) in lines[..40 * 99].iter().enumerate() {
            assert_eq!(*line, format!("{} tick {n}", n + 1));
        }
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_failed_and_a_cancelled_flow_say_so_last(world: World) {
        let code = one(|flow| async move {
            flow.emit("asked", &())?;
            match flow.signal::<bool>("go").next().await? {
                true => Ok("went".into()),
                false => Err(FlowError::new("no way")),
            }
        });
        let (host, flows) = start(code, world.local()).await;
        for id in ["a", "b"] {
            flows.start("one", id, &()).await.unwrap();
        }
        flows.signal("one", "a", "go", &false).await.unwrap();
        flows.cancel("one", "b").await.unwrap();
        assert_eq!(rest(flows.events("one", "a", 0).await.unwrap()).await, ["1 asked null", "2 failed \"no way\""]);
        assert_eq!(rest(flows.events("one", "b", 1).await.unwrap()).await, ["2 cancelled null"]);
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn an_event_is_told_when_it_is_durable_and_once_although_its_commit_was_refused(world: World) {
        let refuses = Arc::new(AtomicBool::new(false));
        let asked = refuses.clone();
        let host = world.local_behind(|between| between.on_commit(move |write| {
            let refusal = || Err(StoreError::Rejected("not this one".into()));
            asked.swap(false, Ordering::SeqCst).then(|| Ok(write.batches.iter().map(|_| refusal()).collect()))
        }));
        let (host, flows) = start(one(teller), host).await;
        let mut all = flows.on_event();
        flows.start("one", "a", &()).await.unwrap();
        let mut live = flows.events("one", "a", 2).await.unwrap();
        refuses.store(true, Ordering::SeqCst);
        let call = Call::new("7").id("x");
        assert!(flows.signal_call("one", "a", "go", call.clone()).await.unwrap_err().is_retryable());
        assert_eq!(take(&mut live, 0).await, [""; 0]);
        assert_eq!(flows.signal_call("one", "a", "go", call).await.unwrap(), Delivered::Taken);
        assert_eq!(take(&mut live, 1).await, ALL[2..3]);
        assert_eq!(told(&mut all).await, ["one/a started null"]);
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn what_happens_to_the_flows_of_a_host_is_told_once_and_in_order(world: World) {
        let mends = Arc::new(AtomicBool::new(false));
        let code = || {
            let mends = mends.clone();
            one(move |flow| {
                let mends = mends.clone();
                async move {
                    let mut go = flow.signal::<u32>("go");
                    go.next().await?;
                    assert!(mends.load(Ordering::SeqCst), "seven");
                    Ok("done".into())
                }
            })
        };
        let (host, flows) = start(code(), world.local()).await;
        let mut all = flows.on_event();
        flows.start("one", "a", &()).await.unwrap();
        flows.signal("one", "a", "go", &1).await.unwrap();
        flows.resume("one", "a").await.unwrap();
        let blocked = "{\"kind\":\"panicked\",\"message\":\"its code panicked: seven\"}";
        assert_eq!(told(&mut all).await, ["one/a started null".to_owned(), format!("one/a blocked {blocked}")]);
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        let mut all = flows.on_event();
        world.pass(2 * SECOND).await;
        assert_eq!(told(&mut all).await, [""; 0], "it is blocked as it was");
        mends.store(true, Ordering::SeqCst);
        flows.resume("one", "a").await.unwrap();
        assert_eq!(told(&mut all).await, ["one/a succeeded null"]);
        host.drain(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_to_all_that_is_too_slow_is_told_how_many_it_has_missed() {
    let world = World::in_memory();
    let (host, flows) = start(one(async |_| Ok(String::new())), world.local()).await;
    let mut all = flows.on_event();
    for n in 0..600 {
        flows.start("one", &n.to_string(), &()).await.unwrap();
    }
    let Some(Err(FlowsError::Missed(missed))) = all.next().await else { panic!("it is not told") };
    assert_eq!(missed, 1_200 - 1_024);
    assert_eq!(told(&mut all).await.len(), 1_024);
    host.drain(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_emitted_is_an_error_that_says_why_and_the_same_in_a_replay() {
    let world = World::in_memory();
    let code = || {
        one(|flow| async move {
            let long = "x".repeat(40_000);
            let mut errors: Vec<String> = Vec::new();
            let mut note = |result: FlowResult<()>| errors.extend(result.err().map(|error| error.to_string()));
            note(flow.emit("succeeded", &()));
            note(flow.emit("a\nb", &()));
            note(flow.emit("", &()));
            note(flow.emit("long", &long));
            note(flow.progress(&long));
            note(flow.resource(&long));
            for _ in 0..102 {
                note(flow.emit("many", &()));
            }
            flow.signal::<()>("go").next().await?;
            Ok(errors.join("; "))
        })
    };
    let (host, flows) = start(code(), world.local()).await;
    flows.start("one", "a", &()).await.unwrap();
    host.crash();
    let (host, flows) = start(code(), world.local()).await;
    flows.signal("one", "a", "go", &()).await.unwrap();
    let many =
        "the flow has emitted 100 events of 400 bytes without waiting for anything, and may emit 100 of 262144 bytes";
    let expected = [
        "\"succeeded\" cannot be the name of an event of a flow's own",
        "\"a\\nb\" cannot be the name of an event of a flow's own",
        "\"\" cannot be the name of an event of a flow's own",
        "the event \"long\" has 40002 bytes, and may have 32768",
        "the event \"progress\" has 40002 bytes, and may have 1024",
        "the event \"resource\" has 40002 bytes, and may have 1024",
        many,
        many,
    ];
    let Outcome::Done(errors) = flows.ended("one", "a").await.unwrap() else { panic!("it failed") };
    assert_eq!(serde_json::from_str::<String>(errors.get()).unwrap(), expected.join("; "));
    assert_eq!(rest(flows.events("one", "a", 0).await.unwrap()).await.len(), 101);
    host.drain(SECOND).await;
}

fn is_over(status: &Status) -> bool {
    status.state.is_over()
}

on_each_store! {
    async fn a_change_is_waited_for_for_so_long_at_most_on_the_owner_and_elsewhere(world: World) {
        let member = |name: &str| start(one(teller), world.member(name, &fleet()).lease(LEASE));
        let ((zero, at_zero), (host, at_one)) = (member("zero").await, member("one").await);
        let id = owned_by("one");
        at_one.start("one", &id, &()).await.unwrap();
        for (flows, most) in [(&at_one, 10), (&at_zero, 1_100)] {
            let began = world.now();
            let seen = flows.wait("one", &id, 10 * SECOND, is_over).await.unwrap();
            assert!(seen.state == State::Going && (10_000..10_010).contains(&(world.now() - began)), "{seen:?}");
            let revision = seen.revision;
            let waiting = {
                let (flows, id) = (flows.clone(), id.clone());
                tokio::spawn(async move { flows.wait("one", &id, 60 * SECOND, |now| now.revision != revision).await })
            };
            world.pass(3 * SECOND).await;
            assert!(!waiting.is_finished());
            let began = world.now();
            at_one.signal("one", &id, "go", &7).await.unwrap();
            let changed = waiting.await.unwrap().unwrap();
            assert!(changed.revision > revision && world.now() - began <= most, "{changed:?}");
        }
        let seen = at_zero.wait("one", &id, Duration::ZERO, is_over).await.unwrap();
        assert!(is_over(&seen), "it is over already");
        assert!(matches!(at_one.wait("one", "nobody's", 60 * SECOND, is_over).await, Err(FlowsError::NotFound)));
        assert!(matches!(at_zero.wait("one", "nobody's", 60 * SECOND, is_over).await, Err(FlowsError::NotFound)));
        host.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_flow_whose_end_is_waited_for_may_leave_memory_meanwhile(world: World) {
        let lives = Arc::new(AtomicU32::new(0));
        let counted = lives.clone();
        let code = one(move |flow| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                flow.emit("waits", &())?;
                flow.sleep(5 * 3_600 * SECOND).await;
                Ok("rested".into())
            }
        });
        let (host, flows) = start(code.replay_at_parks(false), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        let reader = tokio::spawn(rest(flows.events("one", "a", 0).await.unwrap()));
        assert!(matches!(in_time(flows.ended("one", "a")).await.unwrap(), Outcome::Done(_)));
        assert_eq!(reader.await.unwrap(), ["1 waits null", "2 succeeded null"]);
        assert_eq!(lives.load(Ordering::Relaxed), 2, "it was in memory when it began and when it ended");
        host.drain(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn readers_elsewhere_look_at_the_store_once_a_second_and_readers_on_the_owner_never() {
    let world = World::in_memory();
    let member = |name: &str| start(one(teller), world.member(name, &fleet()).lease(LEASE));
    let ((zero, at_zero), (host, at_one)) = (member("zero").await, member("one").await);
    let id = owned_by("one");
    at_one.start("one", &id, &()).await.unwrap();
    for (flows, most) in [(&at_one, 0), (&at_zero, 61)] {
        let mut live = flows.events("one", &id, 2).await.unwrap();
        assert_eq!(take(&mut live, 0).await, [""; 0]);
        let before = world.store.calls(Method::Read);
        let reader = tokio::spawn(rest(live));
        world.pass(60 * SECOND).await;
        let looked = world.store.calls(Method::Read) - before;
        assert!(looked <= most && (most == 0 || looked >= 58), "{looked}");
        reader.abort();
    }
    host.drain(SECOND).await;
    zero.drain(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn the_status_shows_the_attempts_of_a_step_that_runs() {
    let world = World::in_memory();
    let code = one(|flow| async move {
        let retry = Retry::default().between(5 * SECOND, 5 * SECOND);
        let asked = flow.step("ask").retry(retry).run(async |s| match s.attempt() {
            3 => Ok("there".to_owned()),
            _ => Err(std::io::Error::other("nobody is there")),
        });
        Ok(asked.await?)
    });
    let (host, flows) = start(code, world.local()).await;
    flows.start("one", "a", &()).await.unwrap();
    world.settle().await;
    let seen = flows.get("one", "a").await.unwrap().unwrap();
    assert_eq!((seen.version, seen.run, seen.waits.len()), (1, 1, 1));
    let step = &seen.waits[0];
    assert_eq!((&*step.name, step.attempts, step.last_error.as_deref()), ("step:ask#0", 1, Some("nobody is there")));
    assert!(matches!(flows.ended("one", "a").await.unwrap(), Outcome::Done(_)));
    host.drain(SECOND).await;
}
