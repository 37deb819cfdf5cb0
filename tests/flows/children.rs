//! Flows that begin flows: on the same host and on others, over crashes at every store call, up to their cancellation.

use callback_flows::{Child, ChildError};
use stable_interfaces::KeyRange;
use stable_interfaces::testing::Method::Post;

use super::cutting::{Cut, cut_everywhere, run_until_cut};
use super::*;

/// Doubles a number: below 10 at once, else when it is called, and never if that is odd.
fn doubling(builder: FlowsBuilder, urls: &Arc<Partner>, runs: &Arc<AtomicU32>) -> FlowsBuilder {
    let (urls, runs) = (urls.clone(), runs.clone());
    builder.flow("double", 1, move |flow: Flow, n: u32| {
        let (urls, runs) = (urls.clone(), runs.clone());
        async move {
            runs.fetch_add(u32::from(!flow.is_replaying()), Ordering::Relaxed);
            let mut go = flow.callback::<()>("go");
            let number = n.to_string();
            flow.step("tell").run(|s| urls.notify(&number, go.url(), s.idempotency_key())).await?;
            if n >= 10 {
                go.next().await?;
            }
            if n % 2 == 1 { Err(FlowError::new(format!("{n} is odd"))) } else { Ok(2 * n) }
        }
    })
}

/// A flow of one test, and `double`.
fn family<F, Fut>(urls: &Arc<Partner>, runs: &Arc<AtomicU32>, code: F) -> FlowsBuilder
where
    F: Fn(Flow) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = FlowResult<String>> + Send + 'static,
{
    doubling(one(code), urls, runs)
}

async fn parents_of(world: &World, child: &str) -> usize {
    let tool = FleetClient::new(Arc::new(world.store.clone()), Fleet::new(["local"], 1_024).unwrap())
        .clock(Arc::new(world.clock.clone()));
    tool.stored("flow", child, KeyRange::prefix("parent/")).await.unwrap().len()
}

on_each_store! {
    async fn a_flow_begins_others_and_goes_on_with_what_they_come_to(world: World) {
        let (urls, runs) = (Arc::<Partner>::default(), Arc::<AtomicU32>::default());
        let code = || family(&urls, &runs, async |flow: Flow| {
            let mut slow = flow.spawn("double", "slow", &20);
            let (mut a, mut b) = (flow.spawn("double", "a", &1), flow.spawn("double", "b", &2));
            let (a, b) = tokio::join!(a.result::<u32>(), b.result::<u32>());
            let slow = slow.result::<u32>().await?;
            Ok(format!("{a:?} {} {slow}", b?))
        });
        let (host, flows) = start(code(), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.settle().await;
        assert_eq!(waits(&status(&flows, "one", "a").await), ["child:double[slow]#0"]);
        assert_eq!(flows.deliver(&urls.url("20"), Call::new("null")).await.unwrap(), Delivered::Taken);
        assert_eq!(result(&flows, "one", "a").await, "Err(Failed(\"1 is odd\")) 4 40");
        // It is a flow like any other.
        assert!(matches!(flows.result("double", "b").await.unwrap(), Some(Outcome::Done(n)) if n.get() == "4"));
        world.settle().await;
        for child in ["double/a", "double/b", "double/slow"] {
            assert_eq!(parents_of(&world, child).await, 0, "{child} has told its parent");
        }
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_child_that_is_there_with_the_same_input_is_shared_and_one_with_another_is_a_conflict(world: World) {
        let (urls, runs) = (Arc::<Partner>::default(), Arc::<AtomicU32>::default());
        let code = || family(&urls, &runs, async |flow: Flow| {
            let (mut shared, mut taken) = (flow.spawn("double", "shared", &20), flow.spawn("double", "taken", &4));
            let (mut over, mut going) = (flow.spawn("double", "over", &2), flow.spawn("double", "shared 2", &1));
            let all = (over.result::<u32>().await, taken.result::<u32>().await, going.result::<u32>().await);
            Ok(format!("{all:?} {}", shared.result::<u32>().await?))
        });
        let (host, flows) = start(code(), world.local()).await;
        for (id, n) in [("shared", 20), ("taken", 40), ("over", 2), ("shared 2", 10)] {
            flows.start("double", id, &n).await.unwrap();
        }
        let over = in_time(flows.ended("double", "over")).await.unwrap();
        assert!(matches!(over, Outcome::Done(n) if n.get() == "4"));
        for parent in ["a", "b"] {
            flows.start("one", parent, &()).await.unwrap();
        }
        world.pass(SECOND).await;
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        flows.deliver(&urls.url("20"), Call::new("null")).await.unwrap();
        for parent in ["a", "b"] {
            assert_eq!(result(&flows, "one", parent).await, "(Ok(4), Err(Conflict), Err(Conflict)) 40");
        }
        assert_eq!(runs.load(Ordering::Relaxed), 4, "none is begun twice");
        world.settle().await;
        assert_eq!(parents_of(&world, "double/taken").await, 0);
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_child_that_cannot_be_is_an_error_that_is_recorded(world: World) {
        let (urls, runs) = (Arc::<Partner>::default(), Arc::<AtomicU32>::default());
        let code = |with_others: bool| {
            let told = urls.clone();
            let code = family(&urls, &runs, move |flow: Flow| { let told = told.clone(); async move {
                let mut go = flow.callback::<()>("go");
                flow.step("tell").run(|s| told.notify("go", go.url(), s.idempotency_key())).await?;
                let mut errors = Vec::new();
                let mut note = |error: Result<u32, ChildError>| errors.push(error.unwrap_err().to_string());
                note(flow.spawn("other", "1", &1).result().await);
                note(flow.spawn("double", "", &1).result().await);
                note(flow.spawn("double", "1", "one").result().await);
                note(flow.spawn("double", "1", &"x".repeat(200_000)).result().await);
                note(flow.spawn("one", "a", &()).result().await);
                go.next_raw().await;
                Ok(errors.join("; "))
            }});
            if with_others { code.flow("other", 1, async |_: Flow, n: u32| Ok(n)) } else { code }
        };
        let (host, flows) = start(code(false), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.settle().await;
        host.crash();
        // Registered since, it is as unknown as it was.
        let (host, flows) = start(code(true), world.local()).await;
        assert_eq!(flows.deliver(&urls.url("go"), Call::new("null")).await.unwrap(), Delivered::Taken);
        let text = result(&flows, "one", "a").await;
        let errors: Vec<_> = text.split("; ").collect();
        assert_eq!(errors[0], "no flow `other` is registered");
        assert_eq!(errors[1], "the child was not begun: the ID of a flow is empty");
        assert!(errors[2].starts_with("the child was not begun: its input does not fit: invalid type: string"), "{text}");
        assert_eq!(errors[3], "the child's input or result has 200002 bytes, which is too large to be sent");
        assert_eq!(errors[4], "the child was not begun: a flow cannot be its own child");
        assert_eq!(runs.load(Ordering::Relaxed), 0);
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_cancellation_goes_down_the_tree(world: World) {
        let undone = Arc::<Mutex<Vec<String>>>::default();
        let code = || {
            let undone = undone.clone();
            builder().flow("node", 1, move |flow: Flow, depth: u32| {
                let undone = undone.clone();
                async move {
                    let (name, noted) = (depth.to_string(), undone.clone());
                    flow.undo("undo", move |_| {
                        noted.lock().push(name.clone());
                        std::future::ready(Ok::<_, FlowFailure>(()))
                    });
                    let below = (depth > 0).then(|| flow.spawn("node", &format!("{}", depth - 1), &(depth - 1)));
                    // One is held, one is let go.
                    let _held: Option<Child> = if depth == 2 { below } else { None };
                    flow.callback::<()>("never").next_raw().await;
                    Ok(())
                }
            })
        };
        let (host, flows) = start(code(), world.local()).await;
        flows.start("node", "2", &2).await.unwrap();
        world.settle().await;
        assert_eq!(status(&flows, "node", "0").await.state, State::Going);
        flows.cancel("node", "2").await.unwrap();
        for id in ["2", "1", "0"] {
            assert!(matches!(in_time(flows.ended("node", id)).await.unwrap(), Outcome::Cancelled), "{id}");
        }
        let mut undone = undone.lock().clone();
        undone.sort();
        assert_eq!(undone, ["0", "1", "2"]);
        host.drain(SECOND).await;
    }
}

fn double_of(host: &str, salt: u32) -> String {
    let ids = (0..).map(|n| format!("{salt}-{n}"));
    ids.into_iter().find(|id| fleet().locate(&format!("double/{id}")).unwrap().host == host).unwrap()
}

fn one_of(host: &str) -> String {
    (0..).map(|n: u32| n.to_string()).find(|id| fleet().locate(&format!("one/{id}")).unwrap().host == host).unwrap()
}

on_each_store! {
    async fn a_child_lives_on_the_host_of_its_id_whether_or_not_that_is_up_and_so_does_its_parent(world: World) {
        let (urls, runs) = (Arc::<Partner>::default(), Arc::<AtomicU32>::default());
        let child = double_of("one", 0);
        let member = |name: &str| {
            let child = child.clone();
            let code = family(&urls, &runs, move |flow| {
                let child = child.clone();
                async move { Ok(flow.spawn("double", &child, &20).result::<u32>().await?.to_string()) }
            });
            start(code, world.member(name, &fleet()).lease(LEASE))
        };
        let (zero, at_zero) = member("zero").await;
        let parent = one_of("zero");
        at_zero.start("one", &parent, &()).await.unwrap();
        world.pass(60 * SECOND).await;
        assert_eq!((runs.load(Ordering::Relaxed), at_zero.get("double", &child).await.unwrap()), (0, None));
        let (one, at_one) = member("one").await;
        world.pass(SECOND).await;
        assert_eq!(status(&at_zero, "double", &child).await.state, State::Going);
        // Its end comes while the parent is away.
        zero.crash();
        at_one.deliver(&urls.url("20"), Call::new("null")).await.unwrap();
        world.pass(60 * SECOND).await;
        let (zero, at_zero) = member("zero").await;
        assert_eq!(result(&at_zero, "one", &parent).await, "40");
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        zero.drain(SECOND).await;
        one.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_child_is_kept_until_its_parent_has_been_told(world: World) {
        let (urls, runs) = (Arc::<Partner>::default(), Arc::<AtomicU32>::default());
        let code = || family(&urls, &runs, async |flow: Flow| Ok(flow.spawn("double", "x", &20).result::<u32>().await?.to_string()))
            .retention(70 * SECOND, 300 * SECOND);
        let (host, flows) = start(code(), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        world.settle().await;
        world.store.set_chance(Post, Fault::FailBefore, 1.0);
        flows.deliver(&urls.url("20"), Call::new("null")).await.unwrap();
        world.pass(200 * SECOND).await;
        assert_eq!((status(&flows, "double", "x").await.state, parents_of(&world, "double/x").await), (State::Done, 1));
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        world.pass(200 * SECOND).await;
        assert_eq!(status(&flows, "one", "a").await.state, State::Going);
        world.store.heal();
        assert_eq!(result(&flows, "one", "a").await, "40");
        world.pass(61 * SECOND).await;
        assert_eq!(status(&flows, "double", "x").await.state, State::Purged, "now that it has been told");
        host.drain(SECOND).await;
    }
}

/// Begins a flow with two children, one of which has a child; cuts it at store call `k`, and goes on with another process. Says how
/// many calls there were until the end of the first process.
async fn cut_at(world: &mut World, k: u64, cut: Cut) -> u64 {
    let (urls, runs) = (Arc::<Partner>::default(), Arc::<AtomicU32>::default());
    let code = || {
        let code = family(&urls, &runs, async |flow: Flow| {
            let (mut a, mut b) = (flow.spawn("double", "a", &1), flow.spawn("sum", "b", &vec![2, 4]));
            let (a, b) = tokio::join!(a.result::<u32>(), b.result::<u32>());
            flow.sleep(SECOND).await;
            Ok(format!("{} {}", a.unwrap_err(), b?))
        });
        code.flow("sum", 1, async |flow: Flow, numbers: Vec<u32>| {
            let mut sum = 0;
            for n in numbers {
                sum += flow.spawn("double", &format!("of sum {n}"), &n).result::<u32>().await?;
            }
            Ok(sum)
        })
    };
    let calls = run_until_cut(world, k, cut, async |world| {
        let (host, flows) = start(code(), world.local()).await;
        while flows.start("one", "a", &()).await.is_err() || flows.ended("one", "a").await.is_err() {
            world.settle().await;
        }
        host.drain(10 * SECOND).await;
    })
    .await;
    let (host, flows) = start(code(), world.local()).await;
    flows.start("one", "a", &()).await.unwrap();
    assert_eq!(result(&flows, "one", "a").await, "1 is odd 12", "{cut:?} call {k}");
    world.pass(2 * SECOND).await;
    for child in ["double/a", "sum/b", "double/of sum 2", "double/of sum 4"] {
        let (name, id) = child.split_once('/').unwrap();
        assert!(status(&flows, name, id).await.state.is_over(), "{child}, {cut:?} call {k}");
        assert_eq!(parents_of(world, child).await, 0, "{child}, {cut:?} call {k}");
    }
    for told in urls.told.lock().values() {
        assert!(told.iter().all(|one| *one == told[0]), "each is one flow: {told:?}, {cut:?} call {k}");
    }
    assert!(host.drain(SECOND).await.released);
    calls
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_store_call_loses_no_child_and_begins_none_twice() {
    let points = cut_everywhere(World::in_memory, 1, cut_at).await;
    println!("{points} points: a crash before, a crash after, a lost answer at each");
    assert!(points > 60, "there were only {points}");
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_store_call_on_fjall_loses_no_child_and_begins_none_twice() {
    let points = cut_everywhere(World::on_fjall, 5, cut_at).await;
    println!("{points} points on Fjall");
    assert!(points > 12, "there were only {points}");
}
