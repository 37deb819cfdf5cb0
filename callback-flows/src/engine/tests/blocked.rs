//! Code that is not durable, or is not what it was: it is blocked with the reason, and better code goes on where it was.

use super::*;

#[tokio::test(start_paused = true)]
async fn two_operations_of_one_name_at_once_are_found_with_the_words_that_mend_it() {
    let flow = Tested::start(async |flow: Flow| {
        let fetch = |n: u32| flow.step("fetch").run(move |_| std::future::ready(Ok::<_, IoError>(n)));
        let (a, b) = tokio::join!(fetch(1), fetch(2));
        Ok(format!("{a:?} {b:?}"))
    });
    let words = "two `fetch` at once: give each a key, `flow.step_for(\"fetch\", &item.id)`, or a `branch`";
    flow.assert_blocked(BlockedKind::TwoAtOnce, words);
    let flow = Tested::start(async |flow: Flow| {
        let _both = (flow.callback::<u32>("accept"), flow.callback::<u32>("accept"));
        pending_callback(&flow).await
    });
    flow.assert_blocked(BlockedKind::TwoAtOnce, "two `accept` at once");
}

#[tokio::test(start_paused = true)]
async fn one_name_after_the_other_or_with_keys_or_in_branches_is_fine() {
    let flow = Tested::start(async |flow: Flow| {
        let mut sum = 0;
        for n in 0..3 {
            sum += flow.step("fetch").run(|_| std::future::ready(Ok::<_, IoError>(n))).await?;
        }
        let (b, c) = (flow.branch("b"), flow.branch("c"));
        let fetch = |flow: Flow, key: &'static str| async move {
            flow.step_for("fetch", key).run(async |_| Ok::<_, IoError>(10)).await
        };
        let all = tokio::join!(fetch(flow.clone(), "x"), fetch(flow.clone(), "y"), fetch(b, "x"), fetch(c, "x"));
        Ok((sum + all.0? + all.1? + all.2? + all.3?).to_string())
    });
    assert_eq!(flow.result(), "43");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_durable_blocks_before_it_decides_anything() {
    let flow = Tested::start(async |_: Flow| {
        pending::<()>().await;
        Ok(String::new())
    });
    flow.assert_blocked(BlockedKind::NotDurable, "waits for nothing that is durable");

    let decided = Arc::new(AtomicU32::new(0));
    let counted = decided.clone();
    #[allow(clippy::disallowed_methods, reason = "the mistake that is to be found")]
    let mut flow = Tested::start(move |flow| {
        let decided = counted.clone();
        async move {
            tokio::select! {
                () = tokio::time::sleep(seconds(1)) => drop(decided.fetch_add(1, Ordering::Relaxed)),
                () = flow.sleep(seconds(5)) => {}
            }
            pending_callback(&flow).await
        }
    });
    flow.assert_waits_for(&["timer:5s#0"]);
    tokio::time::advance(seconds(2)).await;
    flow.turn(2_000);
    flow.assert_blocked(BlockedKind::NotDurable, "`flow.sleep` and `flow.timeout` are durable");
    assert_eq!(decided.load(Ordering::Relaxed), 0);

    let mut flow = Tested::start(async |flow: Flow| {
        let task = tokio::spawn(std::future::ready(1));
        tokio::select! {
            _ = task => {}
            () = flow.sleep(seconds(5)) => {}
        }
        pending_callback(&flow).await
    });
    tokio::task::yield_now().await;
    flow.turn(1);
    flow.assert_blocked(BlockedKind::NotDurable, "a spawned task");
}

#[tokio::test(start_paused = true)]
async fn a_channel_between_branches_is_fine_and_one_from_a_step_is_not() {
    let flow = Tested::start(async |flow: Flow| {
        let (tell, told) = tokio::sync::oneshot::channel();
        let teller = async {
            let n = flow.step("a").run(async |_| Ok::<_, IoError>(7)).await?;
            let _ = tell.send(n);
            Ok::<_, StepError>(())
        };
        let (done, told) = tokio::join!(teller, told);
        done?;
        Ok(told?.to_string())
    });
    assert_eq!(flow.result(), "7");

    let flow = Tested::start(async |flow: Flow| {
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let step = flow.step("a").run(|_| {
            let tell = tell.clone();
            async move {
                let _ = tell.send(()).await;
                pending::<Result<(), IoError>>().await
            }
        });
        tokio::select! {
            _ = step => {}
            _ = told.recv() => {}
        }
        pending_callback(&flow).await
    });
    flow.assert_blocked(BlockedKind::NotDurable, "a lock or a channel");
}

#[tokio::test(start_paused = true)]
async fn an_operation_inside_of_a_step_is_out_of_place() {
    let flow = Tested::start(async |flow: Flow| {
        let within = flow.clone();
        flow.step("outer")
            .run(|_| {
                let within = within.clone();
                async move {
                    within.sleep(seconds(1)).await;
                    Ok::<_, IoError>(())
                }
            })
            .await?;
        Ok(String::new())
    });
    flow.assert_blocked(BlockedKind::NotDurable, "inside of a step");
}

#[tokio::test(start_paused = true)]
async fn a_panic_blocks_and_better_code_goes_on_where_it_was() {
    let mut flow = Tested::start(async |flow: Flow| {
        let n: u32 = flow.callback("n").next().await?;
        assert!(n < 10, "{n} is too much");
        Ok(n.to_string())
    });
    flow.send(1, "callback:n#0", "17");
    flow.assert_blocked(BlockedKind::Panicked, "17 is too much");
    flow.replay_with(code(async |flow: Flow| Ok(flow.callback::<u32>("n").next().await?.to_string())));
    assert_eq!(flow.result(), "17");
}

#[tokio::test(start_paused = true)]
async fn a_blocked_flow_takes_messages_and_timers_and_loses_none() {
    let mut flow = Tested::start(async |flow: Flow| {
        flow.callback::<u32>("go").next().await?;
        panic!("not yet");
    });
    flow.send(1, "callback:go#0", "1");
    flow.assert_blocked(BlockedKind::Panicked, "not yet");
    flow.send(2, "callback:more#0", "2");
    flow.replay_with(code(async |flow: Flow| {
        let go: u32 = flow.callback("go").next().await?;
        let more: u32 = flow.callback("more").next().await?;
        Ok(format!("{go} {more}"))
    }));
    assert_eq!(flow.result(), "1 2");
}

#[tokio::test(start_paused = true)]
async fn a_panic_disarms_no_timer_and_one_that_the_code_catches_does() {
    use futures_util::FutureExt as _;

    let mut flow = Tested::start(async |flow: Flow| {
        let _limit = flow.sleep(seconds(5));
        flow.callback::<u32>("go").next().await?;
        panic!("not yet");
    });
    flow.send(1, "callback:go#0", "1");
    flow.assert_blocked(BlockedKind::Panicked, "not yet");
    assert!(flow.engine.next_due().is_some() && flow.engine.takes_messages("callback:go#0"));

    let flow = Tested::start(async |flow: Flow| {
        for _ in 0..2 {
            let attempt = async {
                let _limit = flow.sleep(seconds(5));
                let _go = flow.callback::<u32>("go");
                panic!("caught");
            };
            let _: Result<(), _> = std::panic::AssertUnwindSafe(attempt).catch_unwind().await;
        }
        pending_callback(&flow).await?;
        Ok(String::new())
    });
    flow.assert_waits_for(&["callback:end#0"]);
    assert_eq!(flow.engine.next_due(), None);
    assert!(!flow.engine.takes_messages("callback:go#1"));
}

/// A flow that waits at a place where the journal has a step, a callback and a timer.
fn parked() -> Tested {
    let mut flow = Tested::start(async |flow: Flow| {
        let mut accept: Callback<u32> = flow.callback("accept");
        flow.step("notify").input("x").run(async |_| Ok::<_, IoError>(())).await?;
        let got = flow.timeout(seconds(5), accept.next()).await.is_ok();
        pending_callback(&flow).await?;
        Ok(got.to_string())
    });
    flow.send(1, "callback:accept#0", "1");
    flow.assert_waits_for(&["callback:end#0"]);
    flow
}

#[tokio::test(start_paused = true)]
async fn changed_code_blocks_with_the_exact_difference() {
    // Another name.
    let mut flow = parked();
    flow.replay_with(code(async |flow: Flow| {
        let _accept: Callback<u32> = flow.callback("accept");
        flow.step("tell").run(async |_| Ok::<_, IoError>(())).await?;
        Ok(String::new())
    }));
    let words = "after entry 0 of its journal, the code began `step:notify#0`, and begins `step:tell#0` now";
    flow.assert_blocked(BlockedKind::Differs, words);
    // One less.
    let mut flow = parked();
    flow.replay_with(code(async |flow: Flow| pending_callback(&flow).await));
    flow.assert_blocked(
        BlockedKind::Differs,
        "began `callback:accept#0`, `step:notify#0`, and begins `callback:end#0` now",
    );
    // One more.
    let mut flow = parked();
    flow.replay_with(code(async |flow: Flow| {
        let mut accept: Callback<u32> = flow.callback("accept");
        flow.step("notify").input("x").run(async |_| Ok::<_, IoError>(())).await?;
        let _more = flow.callback::<u32>("more");
        let _ = flow.timeout(seconds(5), accept.next()).await;
        pending_callback(&flow).await
    }));
    flow.assert_blocked(BlockedKind::Differs, "after entry 1 of its journal, the code begins `callback:more#0`");
    // Another duration.
    let mut flow = parked();
    flow.replay_with(code(async |flow: Flow| {
        let mut accept: Callback<u32> = flow.callback("accept");
        flow.step("notify").input("x").run(async |_| Ok::<_, IoError>(())).await?;
        let _ = flow.timeout(seconds(6), accept.next()).await;
        pending_callback(&flow).await
    }));
    flow.assert_blocked(BlockedKind::Differs, "began `timer:5s#0`, and begins `timer:6s#0` now");
    // Another input.
    let mut flow = parked();
    flow.replay_with(code(async |flow: Flow| {
        let _accept: Callback<u32> = flow.callback("accept");
        flow.step("notify").input("y").run(async |_| Ok::<_, IoError>(())).await?;
        Ok(String::new())
    }));
    flow.assert_blocked(BlockedKind::Differs, "`step:notify#0` has another input than it had then");
    // It ends too soon.
    let mut flow = parked();
    flow.replay_with(code(async |flow: Flow| {
        let _accept: Callback<u32> = flow.callback("accept");
        flow.step("notify").input("x").run(async |_| Ok::<_, IoError>(())).await?;
        Ok(String::new())
    }));
    flow.assert_blocked(BlockedKind::Differs, "after entry 1 of its journal, the code began `timer:5s#0`");
    let before = flow.stored.clone();
    flow.turn(10);
    assert_eq!(flow.stored, before, "its journal is as it was");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_asks_whether_it_applies_fits_old_flows_and_new_ones() {
    let changed = || {
        code(async |flow: Flow| {
            let mut accept: Callback<u32> = flow.callback("accept");
            flow.step("notify").input("x").run(async |_| Ok::<_, IoError>(())).await?;
            if flow.patched("twice") {
                flow.step("notify").input("x").run(async |_| Ok::<_, IoError>(())).await?;
            }
            let got = flow.timeout(seconds(5), accept.next()).await.is_ok();
            pending_callback(&flow).await?;
            Ok(format!("{got} {}", flow.patched("twice")))
        })
    };
    let mut old = parked();
    old.replay_with(changed());
    old.send(2, "callback:end#0", "null");
    assert_eq!(old.result(), "true false");
    let mut new = Tested::start_with(Limits::default(), changed());
    new.replay();
    new.send(1, "callback:accept#0", "1");
    new.replay();
    new.send(2, "callback:end#0", "null");
    assert_eq!(new.result(), "true true");
}

#[tokio::test(start_paused = true)]
async fn the_order_of_a_hash_map_does_not_matter() {
    let mut flow = Tested::start(async |flow: Flow| {
        // Another order in each life.
        let items: HashMap<u32, ()> = (0..20).map(|n| (n, ())).collect();
        let mut fetches = futures_util::stream::FuturesUnordered::new();
        for n in items.into_keys() {
            let flow = flow.clone();
            fetches.push(async move {
                flow.branch("fetch").step_for("fetch", &n.to_string()).run(async |_| Ok::<_, IoError>(n)).await
            });
        }
        let mut sum = 0;
        while let Some(n) = fetches.next().await {
            sum += n?;
        }
        pending_callback(&flow).await?;
        Ok(sum.to_string())
    });
    for _ in 0..5 {
        flow.replay();
    }
    flow.send(1, "callback:end#0", "null");
    assert_eq!(flow.result(), "190");
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_is_too_long_blocks_and_goes_on_growing() {
    let limits = Limits { entries: 3, ..Limits::default() };
    let run = || {
        code(async |flow: Flow| {
            let mut numbers = flow.callback::<u32>("numbers");
            let mut sum = 0;
            for _ in 0..4 {
                sum += numbers.next().await?;
            }
            Ok(sum.to_string())
        })
    };
    let mut flow = Tested::start_with(limits, run());
    for n in 1..=4 {
        flow.send(n, "callback:numbers#0", "1");
    }
    flow.assert_blocked(BlockedKind::TooLong, "has 4 entries");
    flow.limits = Limits::default();
    flow.replay();
    assert_eq!(flow.result(), "4");
}
