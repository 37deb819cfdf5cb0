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

mod blocked;
mod children;
mod continued;
mod steps;
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
