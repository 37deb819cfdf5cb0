//! Flows that go on as another run: their callers notice nothing.

use stable_interfaces::KeyRange;

use super::cutting::{Cut, cut_everywhere, run_until_cut};
use super::*;

/// Adds numbers until it is sent a 0, and goes on as another run after each three of them.
fn adding(urls: &Arc<Partner>) -> FlowsBuilder {
    let urls = urls.clone();
    builder().flow("sum", 1, move |flow: Flow, mut sum: u32| {
        let urls = urls.clone();
        async move {
            let mut numbers = flow.callback::<u32>("numbers");
            let mut closed = flow.callback::<u32>("closed");
            flow.step("tell").run(|s| urls.notify("numbers", numbers.url(), s.idempotency_key())).await?;
            flow.step("tell").run(|s| urls.notify("closed", closed.url(), s.idempotency_key())).await?;
            if sum == 0 {
                closed.next().await?;
            }
            drop(closed);
            for _ in 0..3 {
                match numbers.next().await? {
                    0 => return Ok(sum),
                    number => sum += number,
                }
            }
            flow.continue_with(&sum)
        }
    })
}

async fn rows(world: &World, prefix: &str) -> usize {
    let tool = FleetClient::new(Arc::new(world.store.clone()), Fleet::new(["local"], 1_024).unwrap())
        .clock(Arc::new(world.clock.clone()));
    tool.stored("flow", "sum/a", KeyRange::prefix(prefix)).await.unwrap().len()
}

on_each_store! {
    async fn none_is_lost_across_continue_with_and_urls_stay(world: World) {
        let urls = Arc::<Partner>::default();
        let (mut host, mut flows) = start(adding(&urls), world.local()).await;
        flows.start("sum", "a", &0).await.unwrap();
        world.settle().await;
        let (numbers, closed) = (urls.url("numbers"), urls.url("closed"));
        // They come before anybody takes any.
        for n in 1..=9 {
            assert_eq!(flows.deliver(&numbers, Call::new((1 << n).to_string()).id(n.to_string())).await.unwrap(), Delivered::Taken);
        }
        assert_eq!(status(&flows, "sum", "a").await.run, 1);
        flows.deliver(&closed, Call::new("1")).await.unwrap();
        for n in 1..=14 {
            // Some for the second time, over crashes.
            let call = Call::new((1 << n).to_string()).id(n.to_string());
            let expected = if n <= 9 { Delivered::Already } else { Delivered::Taken };
            assert_eq!(flows.deliver(&numbers, call).await.unwrap(), expected, "{n}");
            if n % 4 == 0 {
                host.crash();
                (host, flows) = start(adding(&urls), world.local()).await;
            }
        }
        world.pass(2 * SECOND).await;
        let seen = status(&flows, "sum", "a").await;
        assert_eq!((seen.run, seen.state), (5, State::Going));
        assert!(urls.told.lock()["numbers"].iter().all(|(url, _)| *url == numbers), "its URL is the same in each run");
        let last = urls.told.lock()["closed"].last().unwrap().0.clone();
        assert!(last != closed && matches!(flows.deliver(&closed, Call::new("1")).await, Err(FlowsError::Gone)));
        assert!(matches!(flows.deliver(&last, Call::new("1")).await, Err(FlowsError::Gone)), "and that of this run is closed");
        flows.deliver(&numbers, Call::new("0")).await.unwrap();
        match in_time(flows.ended("sum", "a")).await.unwrap() {
            Outcome::Done(sum) => assert_eq!(sum.get(), ((1 << 15) - 2).to_string()),
            other => panic!("{other:?}"),
        }
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn the_journal_of_a_flow_that_never_ends_stays_short(world: World) {
        let urls = Arc::<Partner>::default();
        let (host, flows) = start(adding(&urls), world.local()).await;
        flows.start("sum", "a", &1).await.unwrap();
        world.settle().await;
        let mut most = 0;
        for n in 1..=600_u32 {
            flows.deliver(&urls.url("numbers"), Call::new("1").id(n.to_string())).await.unwrap();
            if n % 100 == 50 {
                world.pass(SECOND).await;
                most = most.max(rows(&world, "page/").await);
            }
        }
        world.pass(SECOND).await;
        assert!(most < 20, "{most} rows");
        let seen = status(&flows, "sum", "a").await;
        assert!(seen.run == 201 && seen.entries < 20, "{seen:?}");
        let journal = flows.journal("sum", "a").await.unwrap();
        flows.check(&journal).unwrap();
        assert_eq!(flows.deliver(&urls.url("numbers"), Call::new("1").id("1")).await.unwrap(), Delivered::Already);
        host.drain(SECOND).await;
    }
}

/// Sends nine numbers, each as often as it takes, to a flow of three runs; cuts that at store call `k`, and goes on with another process.
async fn cut_at(world: &mut World, k: u64, cut: Cut) -> u64 {
    let urls = Arc::<Partner>::default();
    let send_all = async |world: &World, flows: &Flows| {
        while flows.start("sum", "a", &1).await.is_err() {
            world.settle().await;
        }
        while urls.times("numbers") == 0 {
            world.settle().await;
        }
        for n in 0..9_u32 {
            let number = if n == 8 { 0 } else { 1 << n };
            loop {
                match flows.deliver(&urls.url("numbers"), Call::new(number.to_string()).id(n.to_string())).await {
                    Ok(_) | Err(FlowsError::Gone) => break,
                    Err(error) => assert!(error.is_retryable(), "{error:?}"),
                }
                world.settle().await;
            }
        }
    };
    let calls = run_until_cut(world, k, cut, async |world| {
        let (host, flows) = start(adding(&urls), world.local()).await;
        send_all(world, &flows).await;
        while flows.ended("sum", "a").await.is_err() {
            world.settle().await;
        }
        host.drain(10 * SECOND).await;
    })
    .await;
    let (host, flows) = start(adding(&urls), world.local()).await;
    send_all(world, &flows).await;
    match in_time(flows.ended("sum", "a")).await.unwrap() {
        Outcome::Done(sum) => assert_eq!(sum.get(), "256", "{cut:?} call {k}"),
        other => panic!("{other:?}, {cut:?} call {k}"),
    }
    assert!(host.drain(SECOND).await.released);
    calls
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_store_call_loses_no_message_across_continue_with() {
    let points = cut_everywhere(World::in_memory, 1, cut_at).await;
    println!("{points} points: a crash before, a crash after, a lost answer at each");
    assert!(points > 60, "there were only {points}");
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_store_call_on_fjall_loses_no_message_across_continue_with() {
    let points = cut_everywhere(World::on_fjall, 9, cut_at).await;
    println!("{points} points on Fjall");
    assert!(points > 6, "there were only {points}");
}
