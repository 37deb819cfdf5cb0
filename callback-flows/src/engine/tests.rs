//! Flows that are run by hand: each event, turn and crash where the test wants it.

use std::collections::HashMap;
use std::future::{Future, pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use stable_interfaces::Timestamp;
use stable_interfaces::testing::{SeededRandom, SimClock};

use super::{Code, Engine, Limits, Phase, Post, Shared};
use crate::journal::{Ended, Event, Message, Page};
use crate::{BlockedKind, Callback, Fatal, Flow, FlowError, FlowResult, Retry, StepError};

mod children;
mod continued;
mod written;

type IoError = std::io::Error;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn code<F, Fut>(run: F) -> Code
where
    F: Fn(Flow) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = FlowResult<String>> + Send + 'static,
{
    let run = Arc::new(run);
    Arc::new(move |flow, _| {
        let run = run.clone();
        Box::pin(async move {
            match run(flow).await {
                Ok(text) => Ok(Bytes::from(text)),
                Err(error) => Err(error.into_stop()),
            }
        })
    })
}

/// A flow, and what is stored of it.
struct Tested {
    code: Code,
    limits: Limits,
    clock: SimClock,
    engine: Engine,
    stored: Vec<Page>,
    messages: u32,
    /// Posts that were to go out once they were durable.
    posted: Vec<Post>,
    /// The number of its run.
    runs: u32,
}

impl Tested {
    fn start<F, Fut>(run: F) -> Tested
    where
        F: Fn(Flow) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = FlowResult<String>> + Send + 'static,
    {
        Tested::start_with(Limits::default(), code(run))
    }

    fn start_with(limits: Limits, code: Code) -> Tested {
        let clock = SimClock::new(at(0));
        let engine = engine(&code, limits, &clock, Vec::new());
        let mut tested =
            Tested { code, limits, clock, engine, stored: Vec::new(), messages: 0, posted: Vec::new(), runs: 1 };
        tested.engine.append(at(0), Event::Start { version: 1, run: 1, seed: 7, input: Bytes::new() });
        tested.turn(0);
        tested
    }

    /// A turn of the flow, with a commit behind it, and as many as its steps ask for.
    fn turn(&mut self, millis: i64) {
        self.clock.set(at(millis));
        self.engine.settle(usize::MAX);
        loop {
            let (page, mark) = self.engine.take_page();
            if !page.is_empty() {
                self.stored.push(Page::decode(&page.encode()).unwrap());
            }
            let Some(mark) = mark else { continue };
            self.posted.extend(self.engine.take_posts());
            self.engine.open(mark);
            if !self.engine.wants_steps_polled() {
                return;
            }
            self.engine.poll_steps(at(millis));
            self.engine.settle(usize::MAX);
        }
    }

    fn send(&mut self, millis: i64, callback: &str, body: &str) {
        while self.engine.fire_due(at(millis), None) > 0 {
            self.engine.settle(usize::MAX);
        }
        self.append(millis, callback, body);
        self.turn(millis);
    }

    /// A message comes, and nobody has a look yet.
    fn append_message(&mut self, callback: &str, body: &str) {
        self.append(1, callback, body);
    }

    fn append(&mut self, millis: i64, callback: &str, body: &str) {
        self.messages += 1;
        let message = Message {
            id: self.messages.to_string().into(),
            headers: Vec::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        self.engine.append(at(millis), Event::Message { callback: callback.into(), message });
    }

    fn pass(&mut self, millis: i64) {
        self.engine.fire_due(at(millis), Some(at(millis)));
        self.turn(millis);
    }

    /// Dies, and is replayed by this code.
    fn replay_with(&mut self, code: Code) {
        self.code = code;
        self.engine = engine(&self.code, self.limits, &self.clock, self.stored.clone());
        let now = i64::try_from(self.clock_millis()).unwrap();
        self.turn(now);
    }

    fn clock_millis(&self) -> u128 {
        use stable_interfaces::clock::Clock as _;
        self.clock.now().since(Timestamp::UNIX_EPOCH).as_millis()
    }

    fn replay(&mut self) {
        self.replay_with(self.code.clone());
    }

    fn result(&self) -> &str {
        match self.engine.phase() {
            Phase::Ended(Ended::Done(value)) => std::str::from_utf8(value).unwrap(),
            other => panic!("it is {other:?}, and waits for {:?}", self.engine.waits()),
        }
    }

    fn failure(&self) -> &str {
        match self.engine.phase() {
            Phase::Ended(Ended::Failed(error)) => error,
            other => panic!("it is {other:?}"),
        }
    }

    #[track_caller]
    fn assert_blocked(&self, kind: BlockedKind, words: &str) {
        match self.engine.phase() {
            Phase::Blocked(why) => {
                assert_eq!(why.kind(), kind, "{why}");
                assert!(why.message().contains(words), "{why}");
            }
            other => panic!("it is {other:?}"),
        }
    }

    #[track_caller]
    fn assert_waits_for(&self, keys: &[&str]) {
        let waits: Vec<_> = self.engine.waits().into_iter().map(|wait| wait.key.to_string()).collect();
        assert_eq!(waits, keys);
        assert_eq!(*self.engine.phase(), Phase::Going);
    }
}

fn engine(code: &Code, limits: Limits, clock: &SimClock, pages: Vec<Page>) -> Engine {
    let (clock, random) = (Arc::new(clock.clone()), Arc::new(SeededRandom::new(1)));
    let shared = Shared::new("test/1".into(), clock, random, limits, None, Arc::new(()));
    Engine::new(shared, code.clone(), pages)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_timed_out_does_not_swallow_the_next_message() {
    let mut flow = Tested::start(async |flow: Flow| {
        let mut orders: Callback<u32> = flow.callback("orders");
        let first = flow.timeout(seconds(5), orders.next()).await.is_ok();
        let second = orders.next().await?;
        Ok(format!("{first} {second}"))
    });
    flow.pass(5_000);
    flow.send(6_000, "callback:orders#0", "17");
    assert_eq!(flow.result(), "false 17");
}

#[tokio::test(start_paused = true)]
async fn a_flow_knows_the_id_that_it_was_started_under_in_each_branch() {
    let flow = Tested::start(async |flow: Flow| Ok(format!("{} {}", flow.id(), flow.branch("a/b").id())));
    assert_eq!(flow.result(), "1 1");
}

#[tokio::test(start_paused = true)]
async fn a_message_before_anyone_waits_is_kept() {
    let mut flow = Tested::start(async |flow: Flow| {
        flow.sleep(seconds(5)).await;
        let mut late: Callback<u32> = flow.callback("late");
        Ok(late.next().await?.to_string())
    });
    flow.send(1_000, "callback:late#0", "17");
    assert_eq!(flow.engine.unread(), 1);
    flow.replay();
    flow.pass(5_000);
    assert_eq!(flow.result(), "17");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_came_before_the_limit_wins_and_one_that_came_after_it_does_not() {
    let start = || {
        Tested::start(async |flow: Flow| {
            let mut accept: Callback<u32> = flow.callback("accept");
            Ok(format!("{}", flow.timeout(seconds(5), accept.next()).await.is_ok()))
        })
    };
    let mut flow = start();
    flow.send(4_999, "callback:accept#0", "1");
    assert_eq!(flow.result(), "true");
    let mut flow = start();
    flow.send(5_001, "callback:accept#0", "1");
    assert_eq!(flow.result(), "false");
}

#[tokio::test(start_paused = true)]
async fn a_timer_left_over_from_a_wait_that_was_answered_does_nothing() {
    let mut flow = Tested::start(async |flow: Flow| {
        let mut orders: Callback<u32> = flow.callback("orders");
        let first = flow.timeout(seconds(5), orders.next()).await;
        let second = flow.timeout(seconds(20), orders.next()).await;
        Ok(format!("{} {}", first.is_ok(), second.is_ok()))
    });
    flow.send(1_000, "callback:orders#0", "1");
    assert_eq!(flow.engine.next_due(), Some(at(21_000)), "the first one is disarmed");
    flow.pass(6_000);
    flow.assert_waits_for(&["callback:orders#0", "timer:20s#0"]);
    flow.pass(21_000);
    assert_eq!(flow.result(), "true false");
}

#[tokio::test(start_paused = true)]
async fn a_message_for_one_callback_never_resumes_another() {
    let mut flow = Tested::start(async |flow: Flow| {
        let (mut a, mut b): (Callback<u32>, Callback<u32>) = (flow.callback("a"), flow.branch("x").callback("a"));
        let (a, b) = tokio::join!(a.next(), b.next());
        Ok(format!("{} {}", a?, b?))
    });
    flow.send(1, "x/callback:a#0", "2");
    flow.assert_waits_for(&["callback:a#0"]);
    flow.send(2, "callback:a#0", "1");
    assert_eq!(flow.result(), "1 2");
}

#[tokio::test(start_paused = true)]
async fn a_restart_does_not_restart_a_timeout() {
    let mut flow = Tested::start(async |flow: Flow| {
        flow.sleep(seconds(60)).await;
        Ok(flow.now().as_millis().to_string())
    });
    flow.clock.set(at(50_000));
    flow.replay();
    assert_eq!(flow.engine.next_due(), Some(at(60_000)));
    flow.pass(60_000);
    assert_eq!(flow.result(), "60000");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_the_code_had_not_seen_when_its_process_died_is_seen_once() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let mut flow = Tested::start(move |flow| {
        let runs = counted.clone();
        async move {
            let mut go: Callback<u32> = flow.callback("go");
            let mut step =
                Box::pin(flow.step("count").run(async |_| Ok::<_, IoError>(runs.fetch_add(1, Ordering::Relaxed))));
            // Begun, and then not looked at for a while: its result waits in the journal.
            assert!(poll_fn(|task| Poll::Ready(step.as_mut().poll(task))).await.is_pending());
            go.next().await?;
            Ok(step.await?.to_string())
        }
    });
    assert_eq!(flow.engine.entries(), 1);
    flow.replay();
    flow.send(1, "callback:go#0", "1");
    flow.replay();
    assert_eq!((flow.result(), runs.load(Ordering::Relaxed)), ("0", 1));
}

#[tokio::test(start_paused = true)]
async fn a_step_runs_once_and_its_result_is_in_every_replay() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let mut flow = Tested::start(move |flow| {
        let runs = counted.clone();
        async move {
            let n = flow.step("count").run(async |_| Ok::<_, IoError>(runs.fetch_add(1, Ordering::Relaxed))).await?;
            flow.sleep(seconds(5)).await;
            Ok(n.to_string())
        }
    });
    flow.replay();
    flow.pass(5_000);
    assert_eq!((flow.result(), runs.load(Ordering::Relaxed)), ("0", 1));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_loses_a_race_is_dropped_and_never_run_by_a_replay() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let mut flow = Tested::start(move |flow| {
        let runs = counted.clone();
        async move {
            let step = flow.step("slow").run(|_| {
                runs.fetch_add(1, Ordering::Relaxed);
                pending::<Result<(), IoError>>()
            });
            let lost = flow.timeout(seconds(5), step).await.is_err();
            flow.sleep(seconds(5)).await;
            Ok(lost.to_string())
        }
    });
    flow.pass(5_000);
    flow.replay();
    flow.pass(10_000);
    assert_eq!((flow.result(), runs.load(Ordering::Relaxed)), ("true", 1));
}

#[tokio::test(start_paused = true)]
async fn a_step_does_not_start_before_what_came_before_it_is_durable() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let run = code(move |flow| {
        let runs = counted.clone();
        async move {
            flow.step("count").run(async |_| Ok::<_, IoError>(runs.fetch_add(1, Ordering::Relaxed))).await?;
            Ok(String::new())
        }
    });
    let mut engine = engine(&run, Limits::default(), &SimClock::new(at(0)), Vec::new());
    engine.append(at(0), Event::Start { version: 1, run: 1, seed: 7, input: Bytes::new() });
    engine.settle(usize::MAX);
    engine.poll_steps(at(0));
    let (_, mark) = engine.take_page();
    engine.poll_steps(at(0));
    assert_eq!(runs.load(Ordering::Relaxed), 0);
    engine.open(mark.unwrap());
    engine.poll_steps(at(0));
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_is_tried_again_with_the_same_key_and_in_the_end_its_error_is_recorded() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let noted = keys.clone();
    let mut flow = Tested::start(move |flow| {
        let keys = noted.clone();
        async move {
            let retry = Retry::default().attempts(3);
            let step = flow.step("pay").retry(retry).run(|s| {
                keys.lock().push((s.attempt(), s.idempotency_key()));
                std::future::ready(Err::<(), _>(std::io::Error::other("the line is busy")))
            });
            Err(step.await.unwrap_err().into())
        }
    });
    for millis in [200, 1_000] {
        tokio::time::advance(Duration::from_millis(300)).await;
        flow.turn(millis);
    }
    assert_eq!(flow.failure(), "the line is busy (attempt 3)");
    let keys = keys.lock();
    assert_eq!(keys.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(keys.iter().all(|(_, key)| *key == keys[0].1 && key.len() == 32), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fatal_error_is_not_tried_again() {
    let flow = Tested::start(async |flow: Flow| {
        let step = flow.step("pay").run(async |_| Err::<(), _>(Fatal::new("no such account")));
        Err(step.await.unwrap_err().into())
    });
    assert_eq!(flow.failure(), "no such account (attempt 1)");
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_for_the_next_attempt_outlives_the_process_with_the_attempts_that_were_made() {
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let noted = attempts.clone();
    let mut flow = Tested::start(move |flow| {
        let attempts = noted.clone();
        async move {
            let retry = Retry::default().between(seconds(30), seconds(30));
            let step = flow.step("pay").retry(retry).run(|s| {
                attempts.lock().push(s.attempt());
                std::future::ready(if s.attempt() < 2 { Err(std::io::Error::other("busy")) } else { Ok(s.attempt()) })
            });
            Ok(step.await?.to_string())
        }
    });
    flow.replay();
    let wait = flow.engine.waits().remove(0);
    assert_eq!((wait.attempts, wait.last_error.as_deref()), (1, Some("busy")));
    let due = flow.engine.next_due().unwrap().as_millis();
    assert!((15_000..=30_000).contains(&due), "{due}");
    flow.pass(due - 1);
    assert_eq!(*attempts.lock(), [1], "not before its time");
    flow.pass(due);
    assert_eq!((flow.result(), &**attempts.lock()), ("2", &[1, 2][..]));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_may_run_once_at_most_is_interrupted_by_a_crash() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let mut flow = Tested::start(move |flow| {
        let runs = counted.clone();
        async move {
            let step = flow.step("charge").at_most_once().run(|_| {
                runs.fetch_add(1, Ordering::Relaxed);
                pending::<Result<(), IoError>>()
            });
            Ok(format!("{:?}", step.await))
        }
    });
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    flow.replay();
    assert_eq!((flow.result(), runs.load(Ordering::Relaxed)), ("Err(Interrupted)", 1));
    assert!(matches!(StepError::Interrupted.to_string().as_str(), text if text.contains("once at most")));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_large_is_an_error_and_no_failed_turn() {
    let flow = Tested::start_with(
        Limits { value_bytes: 100, ..Limits::default() },
        code(async |flow: Flow| {
            let step = flow.step("read").run(async |_| Ok::<_, IoError>("x".repeat(200)));
            Ok(format!("{:?}", step.await))
        }),
    );
    assert_eq!(flow.result(), "Err(TooLarge(202))");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_something_else_is_an_error_with_its_body() {
    let mut flow = Tested::start(async |flow: Flow| {
        let mut numbers = flow.callback::<u32>("numbers");
        let wrong = match numbers.next().await {
            Err(crate::CallbackError::Decode { received, .. }) => received.body().len(),
            other => panic!("{other:?}"),
        };
        Ok(format!("{wrong} {}", numbers.next_raw().await.id()))
    });
    flow.send(1, "callback:numbers#0", "\"one\"");
    flow.send(2, "callback:numbers#0", "2");
    assert_eq!(flow.result(), "5 2");
}

#[tokio::test(start_paused = true)]
async fn a_callback_is_a_stream() {
    let mut flow = Tested::start(async |flow: Flow| {
        let numbers = flow.callback::<u32>("numbers");
        let sum = numbers.take(3).fold(0, async |sum, n| sum + n.unwrap_or(0)).await;
        Ok(sum.to_string())
    });
    for n in 1..=3 {
        flow.send(n, "callback:numbers#0", &n.to_string());
        flow.replay();
    }
    assert_eq!(flow.result(), "6");
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_the_code_has_dropped_takes_no_more() {
    let flow = Tested::start(async |flow: Flow| {
        drop(flow.callback::<u32>("closed"));
        let mut open = flow.callback::<u32>("open");
        Ok(open.next().await?.to_string())
    });
    assert!(!flow.engine.takes_messages("callback:closed#0"));
    assert!(flow.engine.takes_messages("callback:open#0") && flow.engine.takes_messages("callback:later#0"));
}

#[tokio::test(start_paused = true)]
async fn time_and_chance_are_the_same_in_every_replay() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let mut flow = Tested::start(move |flow| {
        let seen = noted.clone();
        async move {
            flow.sleep(seconds(1)).await;
            let (a, b) = (flow.uuid(), flow.branch("b").uuid());
            seen.lock().push((flow.now(), a, b, flow.uuid(), flow.random()));
            pending_callback(&flow).await
        }
    });
    flow.pass(1_500);
    flow.clock.set(at(9_000));
    flow.replay();
    let seen = seen.lock();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0], seen[1]);
    let (now, a, b, c, _) = &seen[0];
    assert_eq!(*now, at(1_500));
    assert!(a != b && a != c && a.len() == 36 && a.as_bytes()[14] == b'4', "{a} {b} {c}");
}

async fn pending_callback(flow: &Flow) -> FlowResult<String> {
    flow.callback::<String>("end").next_raw().await;
    Ok(String::new())
}

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

#[tokio::test(start_paused = true)]
async fn a_failure_and_a_cancellation_run_the_undo_steps_last_first() {
    let undone = Arc::new(Mutex::new(Vec::new()));
    let noted = undone.clone();
    let mut flow = Tested::start(move |flow| {
        let undone = noted.clone();
        async move {
            for name in ["seat", "meal"] {
                let undone = undone.clone();
                flow.undo(name, move |_| {
                    undone.lock().push(name);
                    std::future::ready(Ok::<_, IoError>(()))
                });
            }
            flow.callback::<u32>("go").next().await?;
            Err(FlowError::new("no flight"))
        }
    });
    flow.replay();
    let stored = flow.stored.clone();
    flow.send(1, "callback:go#0", "1");
    assert_eq!((flow.failure(), &**undone.lock()), ("no flight", &["meal", "seat"][..]));

    undone.lock().clear();
    flow.stored = stored;
    flow.replay();
    flow.engine.append(at(2), Event::Cancel);
    flow.turn(2);
    assert_eq!(*flow.engine.phase(), Phase::Ended(Ended::Cancelled));
    assert_eq!(*undone.lock(), ["meal", "seat"]);
}

#[tokio::test(start_paused = true)]
async fn an_undo_step_that_fails_for_good_blocks() {
    let mut flow = Tested::start(async |flow: Flow| {
        flow.undo("refund", async |_| Err::<(), _>(Fatal::new("the bank is closed")));
        pending_callback(&flow).await
    });
    flow.engine.append(at(1), Event::Cancel);
    flow.turn(1);
    flow.assert_blocked(BlockedKind::StepFailed, "`undo/step:refund#0` has failed 1 times: the bank is closed");
    flow.replay_with(code(async |flow: Flow| {
        flow.undo("refund", async |_| Ok::<_, IoError>(()));
        pending_callback(&flow).await
    }));
    assert_eq!(*flow.engine.phase(), Phase::Ended(Ended::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn one_turn_gives_the_code_so_much_and_the_next_one_goes_on() {
    let seen = Arc::new(AtomicU32::new(0));
    let counted = seen.clone();
    let run = code(move |flow| {
        let seen = counted.clone();
        async move {
            flow.sleep(seconds(1)).await;
            let mut numbers = flow.callback::<u32>("numbers");
            loop {
                numbers.next().await?;
                seen.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let mut flow = Tested::start_with(Limits::default(), run);
    for n in 0..10 {
        flow.send(n, "callback:numbers#0", "1");
    }
    flow.engine.fire_due(at(1_000), Some(at(1_000)));
    assert!(flow.engine.settle(4));
    assert_eq!(seen.load(Ordering::Relaxed), 3, "the timer was one of the four");
    assert!(flow.engine.settle(4));
    assert!(!flow.engine.settle(4));
    assert_eq!(seen.load(Ordering::Relaxed), 10);
}

#[test]
fn a_long_name_is_cut_and_still_its_own() {
    let (a, b) = ("x".repeat(600) + "a", "x".repeat(600) + "b");
    let base = |name: &str| super::names::base_of("", super::Kind::Step, name, None);
    assert!(base(&a).len() <= 512 && base(&a) != base(&b));
    assert_ne!(base("a#0"), base("a"));
    assert_eq!(base("a/b:c"), "step:a%2fb%3ac");
}
