//! Whatever comes from outside at odd moments: commands in every state of a flow, ends of children that another life of their parent has begun, waits
//! in tasks of the application's own, a clock that goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::stream::{StreamExt as _, select_all};
use parking_lot::Mutex as Lock;

use super::tests::{SECOND, builder};
use super::*;
use crate::{BlockedKind, Flow, FlowResult, Listed, Retry};

/// Waits to be called, or for a step that never ends.
async fn wait(flow: Flow, (): ()) -> FlowResult<String> {
    flow.undo("undo", async |_| Ok::<_, std::io::Error>(()));
    let mut go = flow.callback::<String>("go");
    let never = flow.step("never").run(async |_| std::future::pending::<Result<(), std::io::Error>>().await);
    tokio::select! {
        went = go.next() => Ok(went?),
        ended = never => ended.map(|()| String::new()).map_err(Into::into),
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_is_answered_in_every_state_of_a_flow_and_a_second_one_adds_nothing() {
    let t = TestFlows::new();
    let code = || builder().flow("wait", 1, wait).retention(60 * SECOND, 60 * SECOND);
    t.deploy(code()).await.unwrap();
    let cancel = async || t.ask(async |flows| flows.cancel("wait", "1").await).await;
    let resume = async || t.ask(async |flows| flows.resume("wait", "1").await).await;
    let signal = async || t.ask(async |flows| flows.signal("wait", "1", "x", &()).await).await;
    let entries = async || t.status("wait", "1").await.unwrap().entries;
    // It is not there.
    for answer in [cancel().await, resume().await, signal().await.map(drop)] {
        assert!(matches!(answer, Err(FlowsError::NotFound)), "{answer:?}");
    }
    let url = t.url("wait", "1", "go").await;
    assert!(matches!(t.deliver(&url, Call::new("1")).await, Err(FlowsError::NotFound)));
    // It goes on.
    assert_eq!(t.start("wait", "1", &()).await.unwrap(), Started::New);
    for _ in 0..3 {
        resume().await.unwrap();
    }
    assert_eq!(entries().await, 1);
    // Its code has changed, and it is blocked.
    let changed = builder().flow("wait", 1, async |flow: Flow, (): ()| {
        flow.sleep(SECOND).await;
        Ok(String::new())
    });
    t.deploy(changed).await.unwrap();
    t.advance(2 * SECOND).await;
    for _ in 0..20 {
        cancel().await.unwrap();
        resume().await.unwrap();
        assert_eq!(entries().await, 2, "one cancellation is as good as twenty");
    }
    t.crash().await.unwrap();
    cancel().await.unwrap();
    assert_eq!(entries().await, 2);
    t.deploy(code()).await.unwrap();
    t.advance(2 * SECOND).await;
    assert!(matches!(t.ended("wait", "1").await.unwrap(), Outcome::Cancelled));
    // It is over, then purged, and then its ID is free.
    for state in [State::Cancelled, State::Purged] {
        assert_eq!(t.status("wait", "1").await.unwrap().state, state);
        for answer in
            [cancel().await, resume().await, signal().await.map(drop), t.deliver(&url, Call::new("1")).await.map(drop)]
        {
            assert!(matches!(answer, Err(FlowsError::Gone)), "{answer:?}");
        }
        assert_eq!(t.start("wait", "1", &()).await.unwrap(), Started::Already);
        t.advance(61 * SECOND).await;
    }
    assert!(matches!(cancel().await, Err(FlowsError::NotFound)));
    assert_eq!(t.start("wait", "1", &()).await.unwrap(), Started::New);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_child_that_an_earlier_flow_of_the_id_began_is_nothing_to_the_next() {
    let t = TestFlows::new();
    let code = builder()
        .flow("parent", 1, async |flow: Flow, is_first: bool| {
            if is_first {
                drop(flow.spawn("child", "1", &()));
                return Ok(String::new());
            }
            Ok(flow.callback::<String>("go").next().await?)
        })
        .flow("child", 1, async |flow: Flow, (): ()| {
            flow.sleep(600 * SECOND).await;
            Ok(())
        })
        .retention(SECOND, SECOND);
    t.deploy(code).await.unwrap();
    t.start("parent", "1", &true).await.unwrap();
    t.advance(60 * SECOND).await;
    assert_eq!(t.start("parent", "1", &false).await.unwrap(), Started::New, "the first is gone for good");
    t.advance(600 * SECOND).await;
    assert!(t.status("child", "1").await.is_err(), "the child is over, and has told");
    assert_eq!(t.status("parent", "1").await.unwrap().state, State::Going);
    t.deliver(&t.url("parent", "1", "go").await, Call::new("\"went\"")).await.unwrap();
    assert_eq!(t.done::<String>("parent", "1").await.unwrap(), "went");
}

#[tokio::test(start_paused = true)]
async fn a_wait_in_a_task_or_inside_of_a_step_blocks_with_the_words_that_mend_it() {
    let t = TestFlows::new();
    let code = async |flow: Flow, place: String| {
        let mut go = flow.callback::<String>("go");
        let waits = async move { go.next().await.map(|_| ()) };
        if place == "task" {
            #[allow(clippy::disallowed_methods, reason = "the mistake that is to be found")]
            let task = tokio::spawn(waits);
            tokio::select! {
                _ = task => Ok("called"),
                () = flow.sleep(60 * SECOND) => Ok("never called"),
            }
        } else {
            let waits = Lock::new(Some(waits));
            flow.step("inside")
                .run(|_| {
                    let waits = waits.lock().take();
                    async move {
                        match waits {
                            Some(waits) => waits.await,
                            None => Ok(()),
                        }
                    }
                })
                .await?;
            Ok("called")
        }
    };
    t.deploy(builder().flow("odd", 1, code)).await.unwrap();
    for place in ["task", "step"] {
        t.start("odd", place, place).await.unwrap();
        t.advance(SECOND).await;
        let State::Blocked { why } = t.status("odd", place).await.unwrap().state else { panic!("{place}: it goes on") };
        assert_eq!(why.kind(), BlockedKind::NotDurable);
        assert!(
            why.message().starts_with("`callback:go#0` is waited for outside of the flow's own code"),
            "{place}: {why}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn code_that_yields_to_the_runtime_blocks_before_it_goes_on() {
    let t = TestFlows::new();
    let went_on = Arc::new(AtomicBool::new(false));
    let noted = went_on.clone();
    let code = move |_: Flow, (): ()| {
        let noted = noted.clone();
        async move {
            tokio::task::yield_now().await;
            noted.store(true, Ordering::Relaxed);
            Ok(())
        }
    };
    t.deploy(builder().flow("yields", 1, code)).await.unwrap();
    t.start("yields", "1", &()).await.unwrap();
    t.advance(SECOND).await;
    let State::Blocked { why } = t.status("yields", "1").await.unwrap().state else { panic!("it goes on") };
    assert_eq!(why.kind(), BlockedKind::NotDurable, "{why}");
    assert!(!went_on.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn flows_in_a_ring_wait_for_one_another_and_end_when_one_is_cancelled() {
    let t = TestFlows::new();
    let code = builder().flow("ring", 1, async |flow: Flow, (own, size): (u32, u32)| {
        let next = (own + 1) % size;
        let mut child = flow.spawn("ring", &next.to_string(), &(next, size));
        Ok(child.result::<u32>().await? + 1)
    });
    t.deploy(code).await.unwrap();
    t.start("ring", "0", &(0, 5)).await.unwrap();
    t.advance(SECOND).await;
    t.crash().await.unwrap();
    t.advance(60 * SECOND).await;
    let entries = async || {
        let mut entries = Vec::new();
        for n in 0..5 {
            let status = t.status("ring", &n.to_string()).await.unwrap();
            assert_eq!(status.state, State::Going);
            entries.push(status.entries);
        }
        entries
    };
    let before = entries().await;
    t.advance(600 * SECOND).await;
    assert_eq!(entries().await, before, "nobody tells anybody anything");
    t.ask(async |flows| flows.cancel("ring", "3").await).await.unwrap();
    for n in 0..5 {
        // Cancelled from above, or told from below that its child was.
        match t.ended("ring", &n.to_string()).await.unwrap() {
            Outcome::Cancelled => {}
            Outcome::Failed(error) => assert!(n != 3 && error == "the child was cancelled", "{n}: {error}"),
            other => panic!("{n}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_flows_deep_comes_back_with_the_sum_over_crashes() {
    let t = TestFlows::new();
    let code = builder().flow("deep", 1, async |flow: Flow, left: u64| {
        if left == 0 {
            return Ok(0);
        }
        let mut child = flow.spawn("deep", &format!("{}/{left}", flow.id()), &(left - 1));
        Ok(left + child.result::<u64>().await?)
    });
    t.deploy(code).await.unwrap();
    t.start("deep", "top", &200).await.unwrap();
    for _ in 0..10 {
        t.advance(Duration::from_millis(5)).await;
        t.crash().await.unwrap();
    }
    let Err(error) = t.done::<u64>("deep", "top").await else { panic!("an ID has 512 bytes at most") };
    assert!(error.to_string().contains("cannot be the ID of a flow"), "{error}");

    let t = TestFlows::new();
    let code = builder().flow("deep", 1, async |flow: Flow, left: u64| {
        if left == 0 {
            return Ok(0);
        }
        let mut child = flow.spawn("deep", &(left - 1).to_string(), &(left - 1));
        Ok(left + child.result::<u64>().await?)
    });
    t.deploy(code).await.unwrap();
    t.start("deep", "100", &100).await.unwrap();
    for _ in 0..10 {
        t.advance(Duration::from_millis(5)).await;
        t.crash().await.unwrap();
    }
    assert_eq!(t.done::<u64>("deep", "100").await.unwrap(), 5_050);
}

/// Notes a URL, once.
fn note(urls: &Lock<Vec<String>>, url: String) {
    let mut urls = urls.lock();
    if !urls.contains(&url) {
        urls.push(url);
    }
}

#[tokio::test(start_paused = true)]
async fn many_callbacks_of_one_name_are_told_apart_and_merged_streams_lose_and_repeat_nothing() {
    let t = TestFlows::new();
    let urls = Arc::<Lock<Vec<String>>>::default();
    let told = urls.clone();
    let code = move |flow: Flow, count: usize| {
        let urls = told.clone();
        async move {
            let mut got = Vec::new();
            for _ in 0..count {
                let mut one = flow.callback::<usize>("one");
                note(&urls, one.url());
                // A wait that is dropped and made anew, each time.
                let got_it = loop {
                    tokio::select! {
                        next = one.next() => break next?,
                        () = flow.sleep(SECOND) => {}
                    }
                };
                got.push(got_it);
            }
            let branches: Vec<_> =
                (0..count).map(|n| flow.branch(&n.to_string()).callback::<usize>("merged")).collect();
            let merged: Vec<usize> = select_all(branches).take(count * 2).map(Result::unwrap).collect().await;
            Ok((got, merged))
        }
    };
    let count = 40;
    t.deploy(builder().flow("many", 1, code)).await.unwrap();
    t.start("many", "1", &count).await.unwrap();
    for n in 0..count {
        t.advance(Duration::from_millis(700)).await;
        if n % 10 == 5 {
            t.crash().await.unwrap();
        }
        let at = urls.lock().clone();
        assert_eq!(at.len(), n + 1, "each has a URL of its own");
        if n > 0 {
            assert!(matches!(t.deliver(&at[n - 1], Call::new("7")).await, Err(FlowsError::Gone)));
        }
        assert_eq!(t.deliver(&at[n], Call::new(n.to_string())).await.unwrap(), Delivered::Taken);
    }
    let mut sent = Vec::new();
    for n in 0..count * 2 {
        let at = t.url("many", "1", &format!("{}/callback:merged#0", (n * 37) % count)).await;
        t.deliver(&at, Call::new(n.to_string())).await.unwrap();
        sent.push(n);
        if n % 50 == 17 {
            t.crash().await.unwrap();
        }
    }
    let (got, merged) = t.done::<(Vec<usize>, Vec<usize>)>("many", "1").await.unwrap();
    assert_eq!((got, merged), ((0..count).collect(), sent));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_back_loses_nothing_and_a_flow_never_sees_it_go_back() {
    let t = TestFlows::new();
    let code = async |flow: Flow, (): ()| {
        let mut go = flow.callback::<u32>("go");
        let (mut seen, mut calls, mut limits) = (vec![flow.now()], 0, 0);
        while calls < 3 || limits < 5 {
            tokio::select! {
                _ = go.next() => calls += 1,
                () = flow.sleep(1_800 * SECOND) => limits += 1,
            }
            seen.push(flow.now());
        }
        Ok(seen.is_sorted() && calls == 3)
    };
    t.deploy(builder().flow("back", 1, code)).await.unwrap();
    t.start("back", "1", &()).await.unwrap();
    let url = t.url("back", "1", "go").await;
    for step in [-3_600_000, 3_600_000, 7_200_000] {
        t.advance(SECOND).await;
        t.world.clock.step(step);
        assert_eq!(t.deliver(&url, Call::new("1")).await.unwrap(), Delivered::Taken);
        t.crash().await.unwrap();
    }
    t.world.clock.step(-7_200_000);
    assert!(t.done::<bool>("back", "1").await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_has_failed_and_cannot_be_undone_is_blocked_takes_commands_and_ends_when_it_can() {
    let t = TestFlows::new();
    let is_open = Arc::new(AtomicBool::new(false));
    let asked = is_open.clone();
    let code = move |flow: Flow, (): ()| {
        let is_open = asked.clone();
        async move {
            flow.undo("refund", move |_| {
                let is_open = is_open.load(Ordering::Relaxed);
                std::future::ready(if is_open { Ok(()) } else { Err("the bank is closed") })
            });
            flow.step("charge").retry(Retry::never()).run(async |_| Err::<(), _>("no money")).await?;
            Ok(())
        }
    };
    t.deploy(builder().flow("saga", 1, code)).await.unwrap();
    t.start("saga", "1", &()).await.unwrap();
    // Its step is tried for an hour.
    t.advance(3_700 * SECOND).await;
    for _ in 0..3 {
        let State::Blocked { why } = t.status("saga", "1").await.unwrap().state else { panic!("it is not blocked") };
        assert_eq!(why.kind(), BlockedKind::StepFailed, "{why}");
        t.ask(async |flows| flows.cancel("saga", "1").await).await.unwrap();
        t.crash().await.unwrap();
        t.advance(3_700 * SECOND).await;
    }
    is_open.store(true, Ordering::Relaxed);
    t.ask(async |flows| flows.resume("saga", "1").await).await.unwrap();
    assert!(matches!(t.ended("saga", "1").await.unwrap(), Outcome::Failed(error) if error.contains("no money")));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_tried_again_without_a_wait_leaves_the_others_their_turns() {
    let t = TestFlows::new();
    let code = async |flow: Flow, (): ()| {
        let retry = Retry::default().between(Duration::ZERO, Duration::ZERO);
        let step = flow.step("busy").retry(retry).run(|s| {
            std::future::ready(if s.attempt() > 1_000 { Ok(s.attempt()) } else { Err(std::io::Error::other("busy")) })
        });
        Ok(step.await?)
    };
    t.deploy(builder().flow("busy", 1, code)).await.unwrap();
    t.start("busy", "1", &()).await.unwrap();
    t.advance(Duration::from_millis(100)).await;
    let attempts = t.attempts("busy");
    assert!((50..=101).contains(&attempts), "{attempts}");
    assert_eq!(t.done::<u32>("busy", "1").await.unwrap(), 1_001);
}

/// The payload of a panic that panics as it is dropped.
struct Again(u32);

impl Drop for Again {
    fn drop(&mut self) {
        if self.0 > 0 {
            std::panic::panic_any(Again(self.0 - 1));
        }
    }
}

/// A value whose end panics so.
struct Ends;

impl Drop for Ends {
    fn drop(&mut self) {
        std::panic::panic_any(Again(3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_whose_payload_panics_blocks_its_flow_and_ends_nothing_else() {
    let t = TestFlows::new();
    let panics = async |_: Flow, (): ()| -> FlowResult<()> { std::panic::panic_any(Again(3)) };
    let ends = async |flow: Flow, (): ()| {
        let _ends = Ends;
        flow.callback::<()>("never").next_raw().await;
        Ok(())
    };
    t.deploy(builder().flow("panics", 1, panics).flow("ends", 1, ends)).await.unwrap();
    for name in ["panics", "ends"] {
        assert_eq!(t.start(name, "1", &()).await.unwrap(), Started::New);
        t.ask(async |flows| flows.cancel(name, "1").await).await.unwrap();
        let State::Blocked { why } = t.status(name, "1").await.unwrap().state else { panic!("{name}: it goes on") };
        assert_eq!((why.kind(), why.message()), (BlockedKind::Panicked, "its code panicked: with no text"));
    }
    let ends = async |flow: Flow, (): ()| {
        flow.callback::<()>("never").next_raw().await;
        Ok(())
    };
    t.deploy(builder().flow("panics", 1, async |_: Flow, (): ()| Ok(())).flow("ends", 1, ends)).await.unwrap();
    t.advance(2 * SECOND).await;
    assert!(matches!(t.ended("panics", "1").await.unwrap(), Outcome::Done(_)));
    assert!(matches!(t.ended("ends", "1").await.unwrap(), Outcome::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_nobody_calls_is_listed_anew_each_year_and_one_that_is_over_is_kept_for_a_week_and_its_id_for_a_month()
 {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    let t = TestFlows::new();
    let code = async |flow: Flow, (): ()| {
        flow.callback::<()>("go").next_raw().await;
        Ok(())
    };
    t.deploy(builder().flow("old", 1, code)).await.unwrap();
    t.start("old", "1", &()).await.unwrap();
    let listed = async || t.ask(async |flows| flows.list(None, usize::MAX).await).await.unwrap();
    // A host has something to do every few seconds, which is much in a year.
    let pass = async |days: u32| {
        t.world.clock.step(i64::from(days) * 24 * 3_600_000);
        t.advance(60 * SECOND).await;
    };
    let began = t.now();
    assert_eq!(listed().await.iter().map(Listed::next).collect::<Vec<_>>(), [began + 365 * DAY]);
    pass(366).await;
    let next: Vec<_> = listed().await.iter().map(Listed::next).collect();
    assert!(next.len() == 1 && next[0] >= began + 2 * 365 * DAY, "{next:?}");
    assert_eq!(t.status("old", "1").await.unwrap().state, State::Going);
    t.deliver(&t.url("old", "1", "go").await, Call::new("null")).await.unwrap();
    let state = async || t.status("old", "1").await.map(|status| status.state).ok();
    for (days, expected) in [(6, Some(State::Done)), (2, Some(State::Purged)), (28, Some(State::Purged)), (2, None)] {
        pass(days).await;
        assert_eq!(state().await, expected, "{days}");
    }
    assert!(listed().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_many_starts_of_one_id_at_once_one_is_new_and_those_with_another_input_are_refused() {
    let t = TestFlows::new();
    t.deploy(builder().flow("one", 1, async |flow: Flow, n: u32| {
        flow.sleep(SECOND).await;
        Ok(n)
    }))
    .await
    .unwrap();
    let starts = futures_util::future::join_all((0..100).map(|n| {
        let t = t.clone();
        async move { (n % 4, t.start("one", "1", &(n % 4)).await) }
    }));
    let (mut new, mut already, mut refused) = (Vec::new(), Vec::new(), 0);
    for (input, told) in starts.await {
        match told {
            Ok(Started::New) => new.push(input),
            Ok(told) => already.push((input, told)),
            Err(error) => {
                assert!(matches!(error, FlowsError::Conflict), "{error}");
                refused += 1;
            }
        }
    }
    let [first] = *new else { panic!("{new:?} are all told that they have begun it") };
    assert_eq!((already, refused), (vec![(first, Started::Already); 24], 75));
    assert_eq!(t.done::<u32>("one", "1").await.unwrap(), first);
}
