//! Odd and hostile inputs: names of any text, times at the ends of time, texts without end, and code that does what it may and nobody expects.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::tests::{SECOND, builder};
use super::*;
use crate::{BlockedKind, ChildError, Flow, FlowError, FlowResult, StepError};

type Done = Result<(), std::io::Error>;

fn names() -> Vec<String> {
    let odd = [
        "",
        " ",
        "/",
        "a",
        "a/b",
        "a/b/",
        "a\0b",
        "\0",
        "#0",
        "a#0",
        "a[b]",
        "[",
        "%2f",
        ":",
        "step:a#0",
        "ü",
        "\u{1f980}",
        "\n\u{7f}",
    ];
    let long = ["x".repeat(512), "y".repeat(512), "z/".repeat(10_000), "\u{1f980}".repeat(1_000)];
    odd.into_iter().map(str::to_owned).chain(long).collect()
}

#[tokio::test(start_paused = true)]
async fn names_of_any_text_are_told_apart_and_found_again() {
    let t = TestFlows::new();
    t.deploy(builder().flow("odd", 1, async |flow: Flow, (): ()| {
        let names = names();
        let mut calls: Vec<_> = names.iter().map(|name| flow.callback::<String>(name)).collect();
        let urls: BTreeSet<_> = calls.iter().map(crate::Callback::url).collect();
        let steps = names.iter().flat_map(|name| names.iter().map(move |key| (name, key)));
        let branches: Vec<_> = names.iter().map(|name| flow.branch(name)).collect();
        let steps = steps.map(async |(name, key)| {
            flow.step_for(name, key).run(|s| std::future::ready(Ok::<_, std::io::Error>(s.idempotency_key()))).await
        });
        let keys: BTreeSet<String> = join_all(steps).await.into_iter().map(Result::unwrap).collect();
        join_all(branches.iter().zip(&names).map(|(branch, name)| branch.branch(name).sleep(SECOND))).await;
        let got = join_all(calls.iter_mut().map(crate::Callback::next)).await;
        let got: Vec<String> = got.into_iter().map(Result::unwrap).collect();
        Ok((urls.len(), keys.len(), got == names))
    }))
    .await
    .unwrap();
    t.start("odd", "1", &()).await.unwrap();
    t.run_until_parked().await.unwrap();
    t.crash().await.unwrap();
    for name in names() {
        let call = Call::new(serde_json::to_string(&name).unwrap()).id("the same for each");
        assert_eq!(t.deliver(&t.url("odd", "1", &name).await, call).await.unwrap(), Delivered::Taken, "{name:?}");
    }
    let count = names().len();
    assert_eq!(t.done::<(usize, usize, bool)>("odd", "1").await.unwrap(), (count, count * count, true));
}

#[tokio::test(start_paused = true)]
async fn an_id_counts_once_over_many_runs_whatever_is_in_it_and_in_the_name_of_its_callback() {
    let t = TestFlows::new();
    t.deploy(builder().flow("sum", 1, async |flow: Flow, sum: u64| {
        let (mut nul, mut plain) = (flow.callback::<u64>("a\0b"), flow.callback::<u64>("a"));
        let got = tokio::select! { got = nul.next() => got?, got = plain.next() => got? };
        if got == 0 { Ok(sum) } else { flow.continue_with(&(sum + got)) }
    }))
    .await
    .unwrap();
    t.start("sum", "1", &0).await.unwrap();
    let (nul, plain) = (t.url("sum", "1", "a\0b").await, t.url("sum", "1", "a").await);
    for round in 0..3 {
        // No two of them are one.
        for (url, id) in [(&nul, "c"), (&plain, "b\0c"), (&nul, ""), (&plain, "\0"), (&plain, "c")] {
            let told = t.deliver(url, Call::new("1").id(id)).await.unwrap();
            t.run_until_parked().await.unwrap();
            // An empty one is none.
            assert_eq!(
                told,
                if round == 0 || id.is_empty() { Delivered::Taken } else { Delivered::Already },
                "{round} {id:?}"
            );
        }
        t.crash().await.unwrap();
    }
    t.deliver(&plain, Call::new("0")).await.unwrap();
    assert_eq!(t.done::<u64>("sum", "1").await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn timers_at_the_ends_of_time_fire_at_once_or_never_and_hold_nothing_up() {
    let t = TestFlows::new();
    t.deploy(builder().flow("times", 1, async |flow: Flow, (): ()| {
        for past in [Timestamp::MIN, Timestamp::UNIX_EPOCH, flow.now()] {
            flow.sleep_until(past).await;
        }
        for _ in 0..100 {
            flow.sleep(Duration::ZERO).await;
        }
        let mut go = flow.signal::<()>("go");
        let at_once = flow.timeout(Duration::ZERO, std::future::pending::<()>()).await.is_err();
        tokio::select! {
            () = flow.sleep(Duration::MAX) => Ok(0),
            () = flow.sleep_until(Timestamp::MAX) => Ok(1),
            _ = flow.timeout(Duration::MAX, flow.step("never").run(async |_| std::future::pending::<Done>().await)) => Ok(2),
            _ = go.next_raw() => Ok(3 + u32::from(at_once)),
        }
    }))
    .await
    .unwrap();
    t.start("times", "1", &()).await.unwrap();
    t.advance(SECOND).await;
    t.crash().await.unwrap();
    t.ask(async |flows| flows.signal("times", "1", "go", &()).await).await.unwrap();
    assert_eq!(t.done::<u32>("times", "1").await.unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn texts_without_end_are_cut_and_reset_no_flow() {
    let long = || "e".repeat(5 * 1024 * 1024);
    let many = "e".repeat(300 * 1024);
    let t = TestFlows::new();
    let code = move |flow: Flow, what: String| {
        let many = many.clone();
        async move {
            match &*what {
                "fails" => Err(FlowError::new(long())),
                "panics" => panic!("{many}"),
                "spawns" => match flow.spawn("texts", &long(), "done").result::<String>().await {
                    Err(ChildError::Refused(reason)) => Ok(reason.len().to_string()),
                    other => Err(FlowError::new(format!("{other:?}"))),
                },
                "steps" => {
                    let failing = flow.step("s").retry(crate::Retry::never()).run(async |_| Err::<(), _>(long()));
                    match failing.await {
                        Err(StepError::Failed { error, .. }) => Ok(error.len().to_string()),
                        other => Err(FlowError::new(format!("{other:?}"))),
                    }
                }
                "twice" => {
                    let _first = flow.callback::<()>(&long());
                    let _second = flow.callback::<()>(&long());
                    Ok(String::new())
                }
                _ => Ok(what),
            }
        }
    };
    t.deploy(builder().flow("texts", 1, code)).await.unwrap();
    for what in ["fails", "panics", "spawns", "steps", "twice"] {
        t.start("texts", what, what).await.unwrap();
    }
    assert!(matches!(t.run_until_parked().await, Err(TestError::Blocked { .. })));
    let Outcome::Failed(error) = t.ended("texts", "fails").await.unwrap() else { panic!("it has not failed") };
    assert!((1_000..5_000).contains(&error.len()), "{}", error.len());
    for (what, kind) in [("panics", BlockedKind::Panicked), ("twice", BlockedKind::TwoAtOnce)] {
        let State::Blocked { why } = t.status("texts", what).await.unwrap().state else { panic!("{what}") };
        assert!(why.kind() == kind && why.message().len() < 2_000, "{why}");
    }
    for what in ["spawns", "steps"] {
        let length: usize = t.done::<String>("texts", what).await.unwrap().parse().unwrap();
        assert!((1_000..5_000).contains(&length), "{what}: {length}");
    }
}

#[tokio::test(start_paused = true)]
async fn signals_of_ever_new_names_are_refused_before_they_are_too_many_to_go_along() {
    let t = TestFlows::new();
    t.deploy(builder().flow("runs", 1, async |flow: Flow, run: u32| {
        flow.signal::<()>("go").next().await?;
        if run < 3 { flow.continue_with(&(run + 1)) } else { Ok(run) }
    }))
    .await
    .unwrap();
    t.start("runs", "1", &1).await.unwrap();
    let signal = async |name: &str| t.ask(async |flows| flows.signal("runs", "1", name, &()).await).await;
    let mut taken = 0;
    for n in 0..600 {
        match signal(&format!("{n:0>600}")).await {
            Ok(_) => taken += 1,
            Err(error) => assert!(matches!(error, FlowsError::TooManyUnread), "{error}"),
        }
    }
    assert_eq!(taken, 500);
    // One that is waited for is none of those.
    for run in 2..=4 {
        signal("go").await.unwrap();
        t.run_until_parked().await.unwrap();
        assert_eq!(t.ask(async |flows| flows.get("runs", "1").await).await.unwrap().unwrap().run, run.min(3));
        t.crash().await.unwrap();
    }
    assert_eq!(t.done::<u32>("runs", "1").await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_is_cancelled_while_it_undoes_what_failed_undoes_all_of_it() {
    for dies in [false, true] {
        let t = TestFlows::new();
        let undone = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let noted = undone.clone();
        t.deploy(builder().flow("undo", 1, move |flow: Flow, (): ()| {
            let noted = noted.clone();
            async move {
                for name in ["first", "second", "third"] {
                    let noted = noted.clone();
                    flow.undo(name, move |s| {
                        let (noted, attempt) = (noted.clone(), s.attempt());
                        async move {
                            if name == "second" && attempt == 1 {
                                return Err("not now");
                            }
                            noted.lock().push(name);
                            Ok(())
                        }
                    });
                }
                Err::<(), _>(FlowError::new("no more"))
            }
        }))
        .await
        .unwrap();
        t.start("undo", "1", &()).await.unwrap();
        t.advance(Duration::from_millis(10)).await;
        assert_eq!(*undone.lock(), ["third"], "the second one waits to be tried again");
        t.ask(async |flows| flows.cancel("undo", "1").await).await.unwrap();
        if dies {
            t.crash().await.unwrap();
        }
        assert!(matches!(t.ended("undo", "1").await.unwrap(), Outcome::Failed(error) if error == "no more"));
        assert_eq!(*undone.lock(), ["third", "second", "first"]);
    }
}

/// A value whose end panics.
struct Mine;

impl Drop for Mine {
    fn drop(&mut self) {
        panic!("it was to be kept");
    }
}

#[tokio::test(start_paused = true)]
async fn code_whose_locals_panic_as_it_is_dropped_blocks_its_own_flow_and_nothing_else() {
    let t = TestFlows::new();
    let code = async |flow: Flow, (): ()| -> FlowResult<()> {
        let _mine = Mine;
        flow.signal::<()>("go").next().await?;
        std::mem::forget(_mine);
        Ok(())
    };
    let fine = async |flow: Flow, (): ()| {
        flow.sleep(SECOND).await;
        Ok(())
    };
    t.deploy(builder().flow("mine", 1, code).flow("fine", 1, fine)).await.unwrap();
    for id in ["cancelled", "called"] {
        t.start("mine", id, &()).await.unwrap();
    }
    t.start("fine", "1", &()).await.unwrap();
    t.run_until_parked().await.unwrap();
    t.ask(async |flows| flows.cancel("mine", "cancelled").await).await.unwrap();
    t.ask(async |flows| flows.signal("mine", "called", "go", &()).await).await.unwrap();
    let State::Blocked { why } = t.status("mine", "cancelled").await.unwrap().state else { panic!("it goes on") };
    assert_eq!((why.kind(), why.message()), (BlockedKind::Panicked, "its code panicked: it was to be kept"));
    t.done::<()>("mine", "called").await.unwrap();
    t.done::<()>("fine", "1").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_drops_its_step_each_time_a_branch_a_thousand_deep_and_handles_in_any_order_are_fine() {
    let t = TestFlows::new();
    let (begun, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counted = (begun.clone(), dropped.clone());
    t.deploy(builder().flow("odd", 1, move |flow: Flow, (): ()| {
        let (begun, dropped) = counted.clone();
        async move {
            for _ in 0..50 {
                let step = flow.step("poll").run(|_| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    let ends = Counts(dropped.clone());
                    async move {
                        let _ends = ends;
                        std::future::pending::<Done>().await
                    }
                });
                assert!(flow.timeout(Duration::from_millis(10), step).await.is_err());
            }
            let deep = (0..1_000).fold(flow.clone(), |flow, n| flow.branch(&n.to_string()));
            let (first, second) = (deep.callback::<u32>("a"), flow.callback::<u32>("a"));
            let (timer, mut third) = (flow.sleep(SECOND), deep.callback::<u32>("b"));
            let wait = Box::pin(third.next());
            drop(first);
            timer.await;
            drop(wait);
            drop((second, deep));
            let mut again = flow.callback::<u32>("a");
            drop(flow);
            Ok(tokio::join!(third.next(), again.next()).1?)
        }
    }))
    .await
    .unwrap();
    t.start("odd", "1", &()).await.unwrap();
    t.advance(SECOND).await;
    assert_eq!((begun.load(Ordering::Relaxed), dropped.load(Ordering::Relaxed)), (50, 50));
    t.advance(SECOND).await;
    t.crash().await.unwrap();
    let waits = t.status("odd", "1").await.unwrap().waits;
    let [deep, again] = &*waits else { panic!("{waits:?}") };
    assert_eq!(again.name, "callback:a#1");
    let tokens: Vec<_> =
        t.ask(async |flows| Ok([&deep.name, &again.name].map(|name| flows.url("odd/1", name)))).await.unwrap().into();
    for token in tokens {
        t.deliver(&token, Call::new("17")).await.unwrap();
    }
    assert_eq!(t.done::<u32>("odd", "1").await.unwrap(), 17);
    assert_eq!(begun.load(Ordering::Relaxed), 50, "a replay runs none of them");
}

/// Counts its ends.
struct Counts(Arc<AtomicU64>);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
